"""A scene as a Mermaid flowchart, for Markdown pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from atoll.graph.nodes import edges, nodes
from atoll.graph.text import clean

if TYPE_CHECKING:
    from atoll.graph.nodes import Edge, Node
    from atoll.graph.scene import Scene

#: The brackets that make a node's shape.
_SHAPES: Final = {"outside": ("([", "])"), "uplink": ("[", "]"), "network": ("{{", "}}"), "namespace": ("[", "]")}


def mermaid(scene: Scene) -> str:
    outside, *inside = nodes(scene)
    lines = [
        "flowchart TB",
        f"  {_node(outside)}",
        f"  subgraph host[{_quoted(f'host {scene.host}')}]",
        *(f"    {_node(node)}" for node in inside),
        "  end",
        *(f"  {_edge(edge)}" for edge in edges(scene)),
        *(f"  style {node.id} stroke:{node.colour},stroke-width:2px" for node in inside if node.colour),
    ]
    return "".join(f"{line}\n" for line in lines)


def _node(node: Node) -> str:
    left, right = _SHAPES[node.kind]
    return f"{node.id}{left}{_quoted(*node.words)}{right}"


def _edge(edge: Edge) -> str:
    left, right = ("-.", ".-") if edge.is_nat else ("--", "---")
    return f"{edge.one} {left} {_quoted(*edge.words)} {right} {edge.other}" if edge.words else f"{edge.one} --- {edge.other}"


def _quoted(*lines: str) -> str:
    """Lines as a quoted label. What Mermaid, its Markdown or HTML could take for something else is written by its number."""
    return '"' + "<br>".join("".join(map(_escaped, clean(line))) for line in lines if line) + '"'


def _escaped(character: str) -> str:
    return f"#{ord(character)};" if character in '"#&<>`*_\\;{}[]()|~$%' else character
