"""The recipe that a person would type: `ip` and `nft` commands in one shell script, for one namespace and one published port."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench import netns, tool
from bench.floor import GATEWAY, PREFIX, Floor

if TYPE_CHECKING:
    from bench.variant import Sample

_CONNECT = """set -e
nft add element inet floor ports "{{ tcp . {port} : {address} . 80 }}"
nft add element bridge floor interfaces "{{ {link} }}"
nft add element bridge floor senders "{{ {link} . {mac} . {address} }}"
ip link add {link} mtu 1500 master floor0 up type veth peer name eth0 address {mac} netns {name}
ip link set {link} alias floor:{link}
ip -n {name} link set lo up
ip -n {name} link set eth0 up
ip -n {name} addr add {address}/{prefix} dev eth0
ip -n {name} route add default via {gateway}
"""

_DISCONNECT = """set -e
ip link del {link}
nft delete element bridge floor senders "{{ {link} . {mac} . {address} }}"
nft delete element bridge floor interfaces "{{ {link} }}"
nft delete element inet floor ports "{{ tcp . {port} }}"
"""


class Recipe:
    """Attaches namespaces one after the other to the floor's bridge and tables."""

    def __init__(self) -> None:
        self._floor = Floor()
        self._made = 0

    def _values(self) -> dict[str, object]:
        address = GATEWAY + self._made
        return {
            "name": f"bench{self._made}",
            "link": f"r{self._made}",
            "mac": (b"\x02\x42" + address.packed).hex(":"),
            "address": address,
            "gateway": GATEWAY,
            "prefix": PREFIX,
            "port": 20000 + self._made,
        }

    def connect(self) -> tuple[float, int]:
        """The script for a new namespace: milliseconds, the namespace."""
        self._made += 1
        values = self._values()
        namespace = netns.create()
        os.symlink(netns.path(namespace), f"/run/netns/{values['name']}")
        elapsed, _ = tool.timed("sh", text=_CONNECT.format(**values))
        return elapsed, namespace

    def disconnect(self, namespace: int) -> None:
        """Take back the namespace that was connected last."""
        values = self._values()
        tool.run("sh", text=_DISCONNECT.format(**values))
        os.unlink(f"/run/netns/{values['name']}")
        os.close(namespace)


@contextmanager
def connecting(endpoints: int, count: int) -> Iterator[Sample]:
    """Milliseconds of the script for one namespace beside `endpoints` others."""
    recipe = Recipe()
    for _ in range(endpoints):
        recipe.connect()

    def sample() -> Sequence[float]:
        results: list[float] = []
        for _ in range(count):
            elapsed, namespace = recipe.connect()
            results.append(elapsed)
            recipe.disconnect(namespace)
        return results

    yield sample
