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
    """Attaches namespaces one after the other, each with `ports` published ports, each of those a mapping of its own."""

    def __init__(self, program: str, ports: int) -> None:
        state = f"/run/bench/netavark-{os.getpid()}"
        os.mkdir(state)
        self._command = (program, "--config", state, "--rootless=false")
        self._environment = {"PATH": os.environ["PATH"], "RUST_LOG": "netavark=warn"}
        self._ports = ports
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
        first = 20000 + self._made * self._ports
        ports = [
            {"host_ip": "", "host_port": first + number, "container_port": 80 + number, "protocol": "tcp", "range": 1}
            for number in range(self._ports)
        ]
        return json.dumps(
            {
                "container_id": f"{self._made:064x}",
                "container_name": f"bench{self._made}",
                "networks": {"bench": attachment},
                "network_info": {"bench": network},
                "port_mappings": ports,
            }
        )

    def setup(self) -> tuple[float, int]:
        """Setup for a new namespace: milliseconds, the namespace."""
        self._made += 1
        namespace = netns.create()
        return self._timed("setup", namespace), namespace

    def teardown(self, namespace: int) -> float:
        """Teardown of the namespace that was set up last: milliseconds."""
        elapsed = self._timed("teardown", namespace)
        os.close(namespace)
        return elapsed

    def _timed(self, verb: str, namespace: int) -> float:
        return tool.timed(*self._command, verb, netns.path(namespace), text=self._request(), environment=self._environment)[0]


def attach(netavark: Netavark, endpoints: int, count: int) -> Sample:
    """Takes the milliseconds of setup and those of teardown in turn, for one namespace after the other beside `endpoints` others."""
    for _ in range(endpoints):
        netavark.setup()

    def sample() -> Sequence[float]:
        results: list[float] = []
        for _ in range(count):
            elapsed, namespace = netavark.setup()
            results += [elapsed, netavark.teardown(namespace)]
            netns.settle()
        return results

    return sample


@contextmanager
def attaching(ports: int, endpoints: int, count: int) -> Iterator[Sample]:
    yield attach(Netavark(tool.find("netavark", "netavark", FOLDER), ports), endpoints, count)
