"""A scene for Graphviz."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from atoll.graph.boxes import mapping
from atoll.graph.drawing import COUNT, PALETTES
from atoll.graph.text import clean, some

if TYPE_CHECKING:
    from atoll.graph.scene import Namespace, Network, Scene

_MOST_PORTS: Final = 6


def dot(scene: Scene) -> str:
    """An undirected graph: networks and namespaces are nodes, endpoints edges; what is in the host is a cluster."""
    lines = [
        "graph atoll {",
        '  graph [fontname="Helvetica", rankdir=TB, ranksep=0.8, compound=true]',
        '  node [fontname="Helvetica", fontsize=11, shape=box, style="rounded,filled", fillcolor=white, color="#afb8c1"]',
        '  edge [fontname="Helvetica", fontsize=9]',
        f"  outside [label={_quoted('outside', scene.outside)}, shape=ellipse, fillcolor={_quoted('#eaeef2')}]",
        "  subgraph cluster_host {",
        f"    label={_quoted('host ' + scene.host)}; style=rounded; color={_quoted('#afb8c1')}",
    ]
    uplinks = {uplink.interface: f"u{place}" for place, uplink in enumerate(scene.uplinks)}
    networks = {network.name: f"n{place}" for place, network in enumerate(scene.networks)}
    lines += [f"    {uplinks[uplink.interface]} [label={_quoted(uplink.interface, *uplink.addresses)}]" for uplink in scene.uplinks]
    lines += [f"    {networks[network.name]} [{_network(network)}]" for network in scene.networks]
    lines += [f"    s{place} [label={_label(namespace)}]" for place, namespace in enumerate(scene.namespaces)]
    lines.append("  }")
    lines += [f"  outside -- {name}" for name in uplinks.values()]
    routed = [uplinks[uplink.interface] for uplink in scene.uplinks if uplink.addresses] or ["outside"]
    for network in scene.networks:
        if network.parent:
            lines.append(f"  {uplinks[network.parent]} -- {networks[network.name]} [color={_quoted(_colour(network))}, penwidth=2]")
        elif network.out:
            lines += [f"  {up} -- {networks[network.name]} [label={_quoted(network.out)}, style=dashed]" for up in routed]
    colours = {network.name: _colour(network) for network in scene.networks}
    for place, namespace in enumerate(scene.namespaces):
        for end in namespace.endpoints:
            words = _quoted(end.interface, *end.addresses)
            lines.append(f"  {networks[end.network]} -- s{place} [label={words}, color={_quoted(colours[end.network])}, penwidth=2]")
    return "\n".join([*lines, "}", ""])


def _network(network: Network) -> str:
    words = [network.name, " ".join([network.driver, *network.options]), *(subnet.subnet for subnet in network.subnets)]
    return f"label={_quoted(*words)}, fillcolor={_quoted(_colour(network) + '33')}, color={_quoted(_colour(network))}"


def _label(namespace: Namespace) -> str:
    ports = [mapping(port).replace("→", "to") for end in namespace.endpoints for port in end.ports]
    words = [namespace.name, namespace.about, *some(ports, _MOST_PORTS)]
    return _quoted(*words)


def _colour(network: Network) -> str:
    return PALETTES["light"][f"n{network.colour % COUNT}"]


def _quoted(*lines: str) -> str:
    """Lines as a quoted string of the language: only quotes and backslashes mean something in it."""
    escaped = (clean(line).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;") for line in lines if line)
    return '"' + "\\n".join(escaped) + '"'
