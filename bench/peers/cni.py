"""CNI plugins called as a runtime does: one process each, configuration on stdin, each plugin with the result of the one before.

The configuration of the reference plugins is the common one: the bridge is the gateway, traffic to elsewhere is masqueraded, host-local
gives addresses, portmap publishes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import netns, private, tool

if TYPE_CHECKING:
    from bench.variant import Sample

FOLDER = "/usr/lib/cni"
PACKAGE = "containernetworking-plugins"
_VERSION = "1.0.0"


class Attachment(NamedTuple):
    """What an ADD made, and what DEL needs."""

    elapsed: float
    number: int
    namespace: int
    result: Any


class Cni:
    """A network whose namespaces each get one published port: `plugins` are the parts of its configuration list."""

    def __init__(self, folder: str, plugins: Sequence[dict[str, Any]]) -> None:
        self._folder = folder
        self._plugins = [(tool.find(plugin["type"], PACKAGE, folder), plugin) for plugin in plugins]
        self._made = 0

    def _call(self, command: str, program: str, plugin: dict[str, Any], attachment: Attachment) -> tuple[float, str]:
        """One plugin as a whole process: milliseconds, and its result."""
        call = {
            "COMMAND": command,
            "CONTAINERID": f"bench{attachment.number}",
            "NETNS": netns.path(attachment.namespace),
            "IFNAME": "eth0",
            "PATH": self._folder,
        }
        environment = {"PATH": os.environ["PATH"], **{f"CNI_{key}": value for key, value in call.items()}}
        configuration = {"cniVersion": _VERSION, "name": "bench", **plugin}
        if "capabilities" in configuration:
            del configuration["capabilities"]
            port = {"hostPort": 20000 + attachment.number, "containerPort": 80, "protocol": "tcp"}
            configuration["runtimeConfig"] = {"portMappings": [port]}
        if attachment.result is not None:
            configuration["prevResult"] = attachment.result
        return tool.timed(program, text=json.dumps(configuration), environment=environment)

    def prepare(self) -> Attachment:
        """A namespace that isn't attached yet."""
        self._made += 1
        return Attachment(0, self._made, netns.create(), None)

    def add(self, attachment: Attachment | None = None) -> Attachment:
        """ADD of all plugins in their order, for a new namespace or a prepared one."""
        attachment = attachment or self.prepare()
        for program, plugin in self._plugins:
            elapsed, result = self._call("ADD", program, plugin, attachment)
            attachment = attachment._replace(elapsed=attachment.elapsed + elapsed, result=json.loads(result))
        return attachment

    def delete(self, attachment: Attachment) -> float:
        """DEL of all plugins in reverse: milliseconds."""
        total = sum(self._call("DEL", program, plugin, attachment)[0] for program, plugin in reversed(self._plugins))
        os.close(attachment.namespace)
        return total


def bridge_and_portmap() -> Sequence[dict[str, Any]]:
    """The common configuration list."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.67.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(private.SCRATCH / f"cni-{os.getpid()}"),
    }
    return (
        {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": addresses},
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
    )


def attach(cni: Cni, endpoints: int, count: int) -> Sample:
    """Takes the milliseconds of ADD and those of DEL in turn, for one namespace after the other beside `endpoints` others."""
    for _ in range(endpoints):
        cni.add()

    def sample() -> Sequence[float]:
        results: list[float] = []
        for _ in range(count):
            attachment = cni.add()
            results += [attachment.elapsed, cni.delete(attachment)]
            # What the kernel still does in the background for this one is not the next one's.
            netns.settle()
        return results

    return sample


def storm(cni: Cni, count: int) -> Sample:
    """Takes the seconds until `count` ADDs that start together are all done."""

    def sample() -> Sequence[float]:
        prepared = [cni.prepare() for _ in range(count)]
        with ThreadPoolExecutor(count) as threads:
            begin = time.perf_counter()
            done = list(threads.map(cni.add, prepared))
            elapsed = time.perf_counter() - begin
            list(threads.map(cni.delete, done))
        return [elapsed]

    return sample


def _reference() -> Cni:
    return Cni(FOLDER, bridge_and_portmap())


@contextmanager
def attaching(endpoints: int, count: int) -> Iterator[Sample]:
    yield attach(_reference(), endpoints, count)


@contextmanager
def storming(count: int) -> Iterator[Sample]:
    yield storm(_reference(), count)
