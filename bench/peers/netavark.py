"""netavark setup, called as Podman calls it: one process, the request as JSON on stdin, addresses chosen by the caller."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from bench import netns, tool

if TYPE_CHECKING:
    from bench.variant import Sample

FOLDER = "/usr/lib/podman"
_GATEWAY = IPv4Address("10.68.0.1")


class Netavark:
    """Attaches namespaces one after the other, each with one published port."""

    def __init__(self) -> None:
        state = f"/run/bench/netavark-{os.getpid()}"
        os.mkdir(state)
        self._command = (tool.find("netavark", "netavark", FOLDER), "--config", state, "--rootless=false")
        self._environment = {"PATH": os.environ["PATH"], "RUST_LOG": "netavark=warn"}
        self._made = 0

    def _request(self) -> str:
        network = {
            "name": "bench",
            "id": "be" * 32,
            "driver": "bridge",
            "network_interface": "podman0",
            "subnets": [{"subnet": "10.68.0.0/16", "gateway": str(_GATEWAY)}],
            "ipv6_enabled": False,
            "internal": False,
            "dns_enabled": False,
            "ipam_options": {"driver": "host-local"},
        }
        attachment = {"interface_name": "eth0", "static_ips": [str(_GATEWAY + self._made)]}
        port = {"host_ip": "", "host_port": 20000 + self._made, "container_port": 80, "protocol": "tcp", "range": 1}
        return json.dumps(
            {
                "container_id": f"{self._made:064x}",
                "container_name": f"bench{self._made}",
                "networks": {"bench": attachment},
                "network_info": {"bench": network},
                "port_mappings": [port],
            }
        )

    def setup(self) -> tuple[float, int]:
        """Setup for a new namespace: milliseconds, the namespace."""
        self._made += 1
        namespace = netns.create()
        command = (*self._command, "setup", netns.path(namespace))
        elapsed, _ = tool.timed(*command, text=self._request(), environment=self._environment)
        return elapsed, namespace

    def teardown(self, namespace: int) -> None:
        """Teardown of the namespace that was set up last."""
        tool.run(*self._command, "teardown", netns.path(namespace), text=self._request(), environment=self._environment)
        os.close(namespace)


@contextmanager
def connecting(endpoints: int, count: int) -> Iterator[Sample]:
    """Milliseconds of setup for one namespace beside `endpoints` others."""
    netavark = Netavark()
    for _ in range(endpoints):
        netavark.setup()

    def sample() -> Sequence[float]:
        results: list[float] = []
        for _ in range(count):
            elapsed, namespace = netavark.setup()
            results.append(elapsed)
            netavark.teardown(namespace)
        return results

    yield sample
