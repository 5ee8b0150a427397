"""A scene as nodes and edges, for languages that leave the layout to others: what each is called and says, and what leads where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from atoll.graph.boxes import mapping
from atoll.graph.drawing import COUNT, PALETTES
from atoll.graph.text import some

if TYPE_CHECKING:
    from atoll.graph.scene import Network, Scene

_MOST_PORTS: Final = 6


class Node(NamedTuple):
    """`words` are lines of text, of which some may be empty; `colour` is a network's."""

    id: str
    kind: Literal["outside", "uplink", "network", "namespace"]
    words: tuple[str, ...]
    colour: str = ""


class Edge(NamedTuple):
    """`colour` is empty where no one network's traffic goes; `is_nat` for what the host's router does."""

    one: str
    other: str
    words: tuple[str, ...] = ()
    colour: str = ""
    is_nat: bool = False


def colour_of(network: Network) -> str:
    return PALETTES["light"][f"n{network.colour % COUNT}"]


def nodes(scene: Scene) -> list[Node]:
    """The outside first; what follows is in the host."""
    found = [Node("outside", "outside", ("outside", scene.outside))]
    found += [Node(f"u{place}", "uplink", (uplink.interface, *uplink.addresses)) for place, uplink in enumerate(scene.uplinks)]
    for place, network in enumerate(scene.networks):
        words = (network.name, " ".join([network.driver, *network.options]), *(subnet.subnet for subnet in network.subnets))
        found.append(Node(f"n{place}", "network", words, colour_of(network)))
    for place, namespace in enumerate(scene.namespaces):
        ports = some([mapping(port) for end in namespace.endpoints for port in end.ports], _MOST_PORTS)
        found.append(Node(f"s{place}", "namespace", (namespace.name, namespace.about, *ports)))
    return found


def edges(scene: Scene) -> list[Edge]:
    uplinks = {uplink.interface: f"u{place}" for place, uplink in enumerate(scene.uplinks)}
    networks = {network.name: (f"n{place}", colour_of(network)) for place, network in enumerate(scene.networks)}
    found = [Edge("outside", uplink) for uplink in uplinks.values()]
    routed = [uplinks[uplink.interface] for uplink in scene.uplinks if uplink.addresses] or ["outside"]
    for network in scene.networks:
        name, colour = networks[network.name]
        if network.parent:
            found.append(Edge(uplinks[network.parent], name, (), colour))
        elif network.out:
            found += [Edge(uplink, name, (network.out,), is_nat=True) for uplink in routed]
    for place, namespace in enumerate(scene.namespaces):
        for end in namespace.endpoints:
            name, colour = networks[end.network]
            found.append(Edge(name, f"s{place}", (end.interface, *end.addresses), colour))
    return found
