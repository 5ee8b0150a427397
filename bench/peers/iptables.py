"""iptables with one DNAT rule for each published port, in a chain for local addresses, as Docker and portmap arrange them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from bench import netns, tool, traffic
from bench.bare import FIRST
from bench.traffic import Published

if TYPE_CHECKING:
    from bench.variant import Sample

_ADDRESS = IPv4Address("10.69.0.2")
_PROGRAM = "iptables-nft"


def _rule(port: int) -> str:
    return f"-p tcp -m tcp --dport {port} -j DNAT --to-destination {_ADDRESS}:80"


def _loaded(ports: int) -> int:
    """A namespace behind a bridge with `ports` rules that lead to it."""
    tool.find(_PROGRAM, "iptables")
    namespace = netns.create()
    tool.run("ip", "link", "add", "ipt0", "type", "bridge", "mcast_snooping", "0")
    tool.run("ip", "addr", "add", "10.69.0.1/16", "dev", "ipt0")
    tool.run("ip", "link", "set", "ipt0", "up")
    peer = ("peer", "name", "eth0", "netns", netns.path(namespace))
    tool.run("ip", "link", "add", "ipt1", "master", "ipt0", "up", "type", "veth", *peer)
    with netns.inside(namespace):
        tool.run("ip", "addr", "add", f"{_ADDRESS}/16", "dev", "eth0")
        tool.run("ip", "link", "set", "eth0", "up")
        tool.run("ip", "route", "add", "default", "via", "10.69.0.1")
    with open("/proc/sys/net/ipv4/ip_forward", "w") as forward:
        forward.write("1")
    rules = [
        "*nat",
        ":PORTS - [0:0]",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j PORTS",
        "-A POSTROUTING -s 10.69.0.0/16 ! -o ipt0 -j MASQUERADE",
        *(f"-A PORTS {_rule(port)}" for port in range(FIRST, FIRST + ports)),
        "COMMIT\n",
    ]
    tool.run(f"{_PROGRAM}-restore", text="\n".join(rules))
    return namespace


@contextmanager
def publishing(ports: int, count: int) -> Iterator[Sample]:
    """Milliseconds of the command that publishes one port beside `ports` others."""
    _loaded(ports)
    rule = _rule(1000).split()

    def sample() -> Sequence[float]:
        results: list[float] = []
        for _ in range(count):
            elapsed, _ = tool.timed(_PROGRAM, "-t", "nat", "-A", "PORTS", *rule)
            results.append(elapsed)
            tool.run(_PROGRAM, "-t", "nat", "-D", "PORTS", str(ports + 1))
        return results

    yield sample


@contextmanager
def published(ports: int) -> Iterator[Published]:
    """A client outside and the middle one of `ports` published ports: what a connection meets on average."""
    namespace = _loaded(ports)
    yield Published(traffic.outside(), namespace, f"{traffic.OUTSIDE}.1", FIRST + ports // 2)
