"""A scene as a Mermaid flowchart, for Markdown pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from atoll.graph.boxes import mapping
from atoll.graph.drawing import COUNT, PALETTES
from atoll.graph.text import clean, some

if TYPE_CHECKING:
    from atoll.graph.scene import Scene

_MOST_PORTS: Final = 6


def mermaid(scene: Scene) -> str:
    lines = ["flowchart TB", f"  outside([{_quoted('outside', scene.outside)}])", f"  subgraph host[{_quoted('host ' + scene.host)}]"]
    uplinks = {uplink.interface: f"u{place}" for place, uplink in enumerate(scene.uplinks)}
    networks = {network.name: f"n{place}" for place, network in enumerate(scene.networks)}
    lines += [f"    {uplinks[uplink.interface]}[{_quoted(uplink.interface, *uplink.addresses)}]" for uplink in scene.uplinks]
    for network in scene.networks:
        words = (network.name, " ".join([network.driver, *network.options]), *(subnet.subnet for subnet in network.subnets))
        lines.append(f"    {networks[network.name]}{{{{{_quoted(*words)}}}}}")
    for place, namespace in enumerate(scene.namespaces):
        ports = some([mapping(port) for end in namespace.endpoints for port in end.ports], _MOST_PORTS)
        lines.append(f"    s{place}[{_quoted(namespace.name, namespace.about, *ports)}]")
    lines.append("  end")
    lines += [f"  outside --- {name}" for name in uplinks.values()]
    routed = [uplinks[uplink.interface] for uplink in scene.uplinks if uplink.addresses] or ["outside"]
    for network in scene.networks:
        if network.parent:
            lines.append(f"  {uplinks[network.parent]} --- {networks[network.name]}")
        elif network.out:
            lines += [f"  {up} -. {_quoted(network.out)} .- {networks[network.name]}" for up in routed]
    for place, namespace in enumerate(scene.namespaces):
        lines += [f"  {networks[end.network]} -- {_quoted(end.interface, *end.addresses)} --- s{place}" for end in namespace.endpoints]
    for network in scene.networks:
        colour = PALETTES["light"][f"n{network.colour % COUNT}"]
        lines.append(f"  style {networks[network.name]} stroke:{colour},stroke-width:2px")
    return "\n".join([*lines, ""])


def _quoted(*lines: str) -> str:
    """Lines as a quoted label. What Mermaid, its Markdown or HTML could take for something else is written by its number."""
    return '"' + "<br>".join("".join(map(_escaped, clean(line))) for line in lines if line) + '"'


def _escaped(character: str) -> str:
    return f"#{ord(character)};" if character in '"#&<>`*_\\;{}[]()|~$%' else character
