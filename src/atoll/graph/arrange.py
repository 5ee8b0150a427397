"""In what order networks and namespaces are shown: which lane and row each is in, and from which side its wires come. No geometry."""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atoll.graph.scene import Namespace, Network, Scene


class Row(NamedTuple):
    """Namespaces beside each other. `extras`: networks of other lanes that have a track in the channel above; `below`: the network
    whose first track is in the channel beneath, if that is joined from here."""

    names: tuple[str, ...]
    extras: tuple[str, ...] = ()
    below: tuple[str, ...] = ()


class Lane(NamedTuple):
    """A network with the namespaces that are shown with it; no network for those that are on none."""

    network: str
    rows: tuple[Row, ...]


def order(scene: Scene) -> list[Network]:
    """The networks so that those which share namespaces are near each other: from each as the first, always the one next that shares
    most with those just before; the best of these, the way round that has what is published near the top."""
    shared: dict[tuple[str, str], int] = {}
    for item in scene.namespaces:
        for one, other in combinations(sorted({end.network for end in item.endpoints}), 2):
            shared[one, other] = shared[other, one] = shared.get((one, other), 0) + 1
    by_name = {network.name: network for network in scene.networks}
    if not shared:
        return list(scene.networks)
    # Trying all of very many would take longer than it helps.
    starts = list(by_name) if len(by_name) <= 16 else list(by_name)[:1]
    publishing = {end.network for item in scene.namespaces for end in item.endpoints if end.ports}
    chains = [_chain(start, list(by_name), shared) for start in starts]
    best = min(
        (one for chain in chains for one in (chain, chain[::-1])),
        key=lambda chain: (_stretch(chain, shared), sum(place for place, name in enumerate(chain) if name in publishing)),
    )
    return [by_name[name] for name in best]


def _chain(start: str, names: Sequence[str], shared: dict[tuple[str, str], int]) -> list[str]:
    chain = [start]
    left = [name for name in names if name != start]
    while left:
        chain.append(max(left, key=lambda name: ([shared.get((before, name), 0) for before in reversed(chain)], -left.index(name))))
        left.remove(chain[-1])
    return chain


def _stretch(chain: Sequence[str], shared: dict[tuple[str, str], int]) -> int:
    """How far apart networks are that share namespaces, in sum."""
    place = {name: number for number, name in enumerate(chain)}
    return sum(count * abs(place[one] - place[other]) for (one, other), count in shared.items())


def homes(scene: Scene, networks: Sequence[Network]) -> dict[str, list[str]]:
    """In whose lane each namespace is, in the order in which they are shown: those on one network first, then by the others."""
    place = {network.name: number for number, network in enumerate(networks)}
    found: dict[str, list[str]] = {network.name: [] for network in networks}
    found[""] = []

    def key(item: Namespace) -> tuple[int, list[tuple[str, int]]]:
        on = sorted({place[end.network] for end in item.endpoints})
        # Those that are joined to the next lane come last, in the row next to it.
        return -on[1] if len(on) > 1 else -len(networks) - 1, _natural(item.name)

    for item in sorted(scene.namespaces, key=key):
        on = [place[end.network] for end in item.endpoints]
        found[networks[min(on)].name if on else ""].append(item.name)
    return found


def _natural(name: str) -> list[tuple[str, int]]:
    """`r2` comes before `r10`."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D*)(\d*)", name)]


def lanes(scene: Scene, networks: Sequence[Network], columns: int) -> list[Lane]:
    """All lanes with their rows of at most so many namespaces."""
    on = {item.name: {end.network for end in item.endpoints} for item in scene.namespaces}
    members = homes(scene, networks)
    found: list[Lane] = []
    for place, network in enumerate(networks):
        names = members[network.name]
        following = networks[place + 1].name if place + 1 < len(networks) else ""
        rows: list[Row] = []
        parts = _rows(names, columns)
        for number, row in enumerate(parts):
            others = set().union(*(on[name] for name in row)) - {network.name}
            below = tuple(others & {following}) if number == len(parts) - 1 else ()
            rows.append(Row(row, tuple(item.name for item in networks if item.name in others.difference(below)), below))
        found.append(Lane(network.name, tuple(rows) or (Row(()),)))
    if members[""]:
        found.append(Lane("", tuple(map(Row, _rows(members[""], columns)))))
    return found


def _rows(names: Sequence[str], columns: int) -> list[tuple[str, ...]]:
    """As few rows as do, all about as long."""
    count = -(-len(names) // columns)
    length = -(-len(names) // max(1, count))
    return [tuple(names[first : first + length]) for first in range(0, len(names), max(1, length))]
