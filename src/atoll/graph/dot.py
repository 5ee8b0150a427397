"""A scene for Graphviz."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.graph.nodes import edges, nodes
from atoll.graph.text import clean

if TYPE_CHECKING:
    from atoll.graph.nodes import Edge, Node
    from atoll.graph.scene import Scene


def dot(scene: Scene) -> str:
    """An undirected graph: networks and namespaces are nodes, endpoints edges; what is in the host is a cluster."""
    outside, *inside = nodes(scene)
    lines = [
        "graph atoll {",
        '  graph [fontname="Helvetica", rankdir=LR, ranksep=1.2]',
        '  node [fontname="Helvetica", fontsize=11, shape=box, style="rounded,filled", fillcolor=white, color="#afb8c1"]',
        '  edge [fontname="Helvetica", fontsize=9]',
        f"  {_node(outside)}",
        "  subgraph cluster_host {",
        f'    label={_quoted(f"host {scene.host}")}; style=rounded; color="#afb8c1"',
        *(f"    {_node(node)}" for node in inside),
        "  }",
        *(f"  {_edge(edge)}" for edge in edges(scene)),
        "}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _node(node: Node) -> str:
    look = ', shape=ellipse, fillcolor="#eaeef2"' if node.kind == "outside" else ""
    if node.colour:
        look = f', fillcolor="{node.colour}33", color="{node.colour}"'
    return f"{node.id} [label={_quoted(*node.words)}{look}]"


def _edge(edge: Edge) -> str:
    look = [f"label={_quoted(*edge.words)}"] if edge.words else []
    look += [f'color="{edge.colour}"', "penwidth=2"] if edge.colour else []
    look += ["style=dashed"] if edge.is_nat else []
    return f"{edge.one} -- {edge.other}" + (f" [{', '.join(look)}]" if look else "")


def _quoted(*lines: str) -> str:
    """Lines as a quoted string. Quotes and backslashes mean something in it, and what looks like an entity of HTML."""
    escaped = (clean(line).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;") for line in lines if line)
    return '"' + "\\n".join(escaped) + '"'
