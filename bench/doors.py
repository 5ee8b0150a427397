"""Atoll behind its front doors: called as its peers are, by the same code, with its own file in the place of theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from atoll.frontends import forwarder
from bench.ours import Daemon
from bench.peers import cni, docker, netavark

if TYPE_CHECKING:
    from bench.variant import Sample

#: One plugin for what takes bridge, host-local and portmap.
ONE_PLUGIN: Sequence[dict[str, Any]] = (
    {
        "type": "atoll",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.67.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]},
        "capabilities": {"portMappings": True},
    },
)


@contextmanager
def _daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    # This process is the variant's own.
    os.environ.update(daemon.folders)
    try:
        yield daemon
    finally:
        daemon.close()


@contextmanager
def _executed(door: str, *names: str) -> Iterator[str]:
    """A folder with what runtimes execute, and a daemon behind it."""
    with _daemon() as daemon:
        folder = daemon.run / "bin"
        folder.mkdir()
        for name in names:
            forwarder.place(str(folder / name), door)
        yield str(folder)


@contextmanager
def _network(plugins: Sequence[dict[str, Any]]) -> Iterator[cni.Cni]:
    names = [plugin["type"] for plugin in plugins]
    with _executed("cni", *names, *({"host-local"} & {plugin.get("ipam", {}).get("type") for plugin in plugins})) as folder:
        yield cni.Cni(folder, plugins)


@contextmanager
def adding(endpoints: int, count: int, *, one: bool) -> Iterator[Sample]:
    """ADD and DEL of Atoll's own plugin if `one`, else with the configuration of the reference plugins, under their names."""
    with _network(ONE_PLUGIN if one else cni.bridge_and_portmap()) as network:
        yield cni.attach(network, endpoints, count)


@contextmanager
def storming(count: int, *, one: bool) -> Iterator[Sample]:
    with _network(ONE_PLUGIN if one else cni.bridge_and_portmap()) as network:
        yield cni.storm(network, count)


@contextmanager
def setting_up(ports: int, endpoints: int, count: int) -> Iterator[Sample]:
    """Setup and teardown in the place of netavark."""
    with _executed("netavark", "netavark") as folder:
        yield netavark.attach(netavark.Netavark(f"{folder}/netavark", ports), endpoints, count)


@contextmanager
def starting(count: int) -> Iterator[Sample]:
    """`docker run` on an Atoll network, with addresses of Atoll's, less the same without a network."""
    with _daemon() as daemon, docker.running() as engine:
        daemon("docker", "install", "--socket", engine.socket)
        try:
            engine("network", "create", "-d", "atoll", "--ipam-driver", "atoll", "bench")
            yield docker.start(engine, "bench", count)
            engine("network", "rm", "bench")
        finally:
            daemon("docker", "uninstall", "--force")
