"""CNI plugins bridge with host-local, then portmap, called as a runtime does: one process each, configuration on stdin.

The configuration is the common one: the bridge is the gateway, traffic to elsewhere is masqueraded, host-local gives addresses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench import netns, private, tool

if TYPE_CHECKING:
    from bench.variant import Sample

FOLDER = "/usr/lib/cni"
PACKAGE = "containernetworking-plugins"
_VERSION = "1.0.0"


class Cni:
    """Attaches namespaces one after the other, each with one published port."""

    def __init__(self) -> None:
        self._bridge = tool.find("bridge", PACKAGE, FOLDER)
        self._portmap = tool.find("portmap", PACKAGE, FOLDER)
        ranges = [[{"subnet": "10.67.0.0/16"}]]
        leases = private.SCRATCH / f"cni-{os.getpid()}"
        ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": str(leases)}
        common = {"cniVersion": _VERSION, "name": "bench"}
        self._network = json.dumps(
            {**common, "type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
        )
        self._ports: dict[str, Any] = {**common, "type": "portmap", "snat": True}
        self._made = 0

    def _environment(self, command: str, name: str, namespace: int) -> dict[str, str]:
        call = {"COMMAND": command, "CONTAINERID": name, "NETNS": netns.path(namespace), "IFNAME": "eth0", "PATH": FOLDER}
        return {"PATH": os.environ["PATH"], **{f"CNI_{key}": value for key, value in call.items()}}

    def add(self) -> tuple[float, int, str]:
        """ADD of both plugins for a new namespace: milliseconds, the namespace, the configuration that portmap got."""
        self._made += 1
        namespace = netns.create()
        environment = self._environment("ADD", f"bench{self._made}", namespace)
        first, result = tool.timed(self._bridge, text=self._network, environment=environment)
        mappings = [{"hostPort": 20000 + self._made, "containerPort": 80, "protocol": "tcp"}]
        ports = json.dumps({**self._ports, "runtimeConfig": {"portMappings": mappings}, "prevResult": json.loads(result)})
        second, _ = tool.timed(self._portmap, text=ports, environment=environment)
        return first + second, namespace, ports

    def delete(self, namespace: int, ports: str) -> None:
        """DEL of both plugins for the namespace that was added last."""
        environment = self._environment("DEL", f"bench{self._made}", namespace)
        tool.run(self._portmap, text=ports, environment=environment)
        tool.run(self._bridge, text=self._network, environment=environment)
        os.close(namespace)


@contextmanager
def connecting(endpoints: int, count: int) -> Iterator[Sample]:
    """Milliseconds of the two ADDs for one namespace beside `endpoints` others."""
    cni = Cni()
    for _ in range(endpoints):
        cni.add()

    def sample() -> Sequence[float]:
        results: list[float] = []
        for _ in range(count):
            elapsed, namespace, ports = cni.add()
            results.append(elapsed)
            cni.delete(namespace, ports)
        return results

    yield sample
