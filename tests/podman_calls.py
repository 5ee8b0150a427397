"""Calls of netavark as Podman makes them, for tests of Podman's front door."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec

from atoll.frontends import netavark
from atoll.frontends.call import Answer, Call
from atoll.kernel import netns
from tests.support import Inside

if TYPE_CHECKING:
    from pathlib import Path

    from atoll import Engine
    from atoll.model import Endpoint

COMMON: Final = ("--config", "/run/containers/networks", "--rootless=false", "--aardvark-binary=/usr/lib/podman/aardvark-dns")

#: Of a network with both families, and of one with two subnets.
DUAL: dict[str, Any] = {
    "subnets": [{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}, {"subnet": "fd89::/64", "gateway": "fd89::1"}],
    "ipv6_enabled": True,
}
TWO: dict[str, Any] = {"subnets": [{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}, {"subnet": "10.89.9.0/24", "gateway": "10.89.9.1"}]}


def network(name: str = "web", subnet: str = "10.89.0.0/24", gateway: str = "10.89.0.1", **changes: Any) -> dict[str, Any]:
    """A network as Podman describes it."""
    made = {
        "name": name,
        "id": f"{sum(map(ord, name)):064x}",
        "driver": "bridge",
        "network_interface": f"podman{sum(map(ord, name)) % 1000}",
        "created": "2022-10-18T18:34:21.701124201+02:00",
        "subnets": [{"subnet": subnet, "gateway": gateway}],
        "ipv6_enabled": False,
        "internal": False,
        "dns_enabled": False,
        "ipam_options": {"driver": "host-local"},
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not ...}


def port(host_port: int, container_port: int = 80, **changes: Any) -> dict[str, Any]:
    return {"host_ip": "", "host_port": host_port, "container_port": container_port, "protocol": "tcp", "range": 1, **changes}


def container(*attached: tuple[dict[str, Any], dict[str, Any]], number: int = 1, as_list: bool = False, **changes: Any) -> dict[str, Any]:
    """A container on networks; each with what is said of it there."""
    per = [{"name": info["name"], "interface_name": f"eth{position}", **said} for position, (info, said) in enumerate(attached)]
    return {
        "container_id": f"{number:064x}",
        "container_name": f"c{number}",
        "networks": per if as_list else {each.pop("name"): each for each in per},
        "network_info": {info["name"]: info for info, _ in attached},
        **changes,
    }


def call(engine: Engine, *arguments: str, body: Any = b"", door: str = "netavark", folder: str = "/", **environment: str) -> Answer:
    stdin = body if isinstance(body, bytes) else msgspec.json.encode(body)
    words = (*COMMON, *arguments) if door == "netavark" else arguments
    return netavark.answer(engine, Call(door, f"/usr/local/lib/{door}", words, environment, stdin, folder))


def done(answer: Answer) -> Any:
    """What a call that must succeed has printed."""
    assert answer.code == 0, answer.stdout
    return msgspec.json.decode(answer.stdout) if answer.stdout else None


def refused(answer: Answer) -> str:
    """The error of a call that must fail, in the only form that Podman takes: one key, on stdout, exit code 1."""
    assert answer.code == 1, answer
    found = msgspec.json.decode(answer.stdout, type=dict[str, str])
    assert list(found) == ["error"]
    assert "\n" not in found["error"]
    assert "Traceback" not in found["error"]
    return found["error"]


def namespace(folder: Path, name: str = "netns-1") -> str:
    """A namespace as Podman makes one: bound to a file that leads to it."""
    path = folder / name
    path.touch()

    def make() -> None:
        netns.unshare(netns.CLONE_NEWNET)
        netns.mount("/proc/thread-self/ns/net", str(path), "", netns.MS_BIND)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return str(path)


def end(path: str) -> None:
    """Remove a namespace as Podman does."""
    netns.unmount(path)
    os.unlink(path)


# --- what is so afterwards ------------------------------------------------------------------------------------------------------------


def inside(engine: Engine, *argv: str, name: str = "c1") -> str:
    """What `ip` says in a container, or on the host for the empty name."""
    return Inside(engine, name).run(lambda: subprocess.run(["ip", *argv], capture_output=True, text=True, check=True).stdout)


def host_links(engine: Engine) -> set[str]:
    return set(engine.links())


def only(engine: Engine) -> Endpoint:
    (endpoint,) = engine.state.endpoints.values()
    return endpoint


def nothing_is_left(engine: Engine) -> None:
    engine.settle()
    assert not engine.state.namespaces
    assert not engine.state.networks
    assert host_links(engine) <= {"lo", "parent0", "parent1"}
    assert not engine.differences()
