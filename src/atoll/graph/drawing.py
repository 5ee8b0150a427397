"""A layout as shapes, which SVG and PNG draw alike. Colours are names, which a palette gives their values on light and on dark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from atoll.graph.boxes import DOT, INSET, SIZES, baseline
from atoll.graph.layout import HOST, NONE, PUBLISHED
from atoll.graph.text import fit

if TYPE_CHECKING:
    from atoll.graph.boxes import Box
    from atoll.graph.layout import Layout, Wire

Theme = Literal["light", "dark"]


class Rect(NamedTuple):
    """`stroke` empty: no outline."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str = ""
    radius: float = 0.0
    thickness: float = 1.0


class Path(NamedTuple):
    points: tuple[tuple[float, float], ...]
    stroke: str
    thickness: float = 2.0


class Triangle(NamedTuple):
    """An arrowhead."""

    points: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    fill: str


class Circle(NamedTuple):
    x: float
    y: float
    radius: float
    fill: str


class Text(NamedTuple):
    """`x`, `y`: the beginning of the baseline, or its end if `right`."""

    x: float
    y: float
    text: str
    size: float
    fill: str
    bold: bool = False
    right: bool = False


Shape = Rect | Path | Triangle | Circle | Text


class Group(NamedTuple):
    """Shapes that belong together, with the text that a pointer over them brings up."""

    shapes: tuple[Shape, ...]
    tooltip: str = ""


class Drawing(NamedTuple):
    width: float
    height: float
    title: str
    groups: tuple[Group, ...]


#: Colours that differ well from each other, also for most people who see fewer colours; after the last the first comes again.
_LIGHT_NETWORKS: Final = ("#0969da", "#bc4c00", "#1a7f6b", "#8250df", "#b58407", "#bf3989", "#4f6b1f", "#cf222e", "#1b7c9e", "#6e5043")
_DARK_NETWORKS: Final = ("#58a6ff", "#f0883e", "#3fc9a7", "#bc8cff", "#e3b341", "#f778ba", "#a5c261", "#ff7b72", "#56c8e8", "#c9a58f")
COUNT: Final = len(_LIGHT_NETWORKS)


def _mixed(colour: str, ground: str, share: float) -> str:
    """So much of a colour on a ground."""
    pairs = ((int(colour[at : at + 2], 16), int(ground[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(one * share + other * (1 - share)):02x}" for one, other in pairs)


def _palette(base: dict[str, str], networks: tuple[str, ...], band: float, head: float) -> dict[str, str]:
    found = dict(base)
    for number, colour in enumerate(networks):
        found[f"n{number}"] = colour
        found[f"b{number}"] = _mixed(colour, base["frame"], band)
        found[f"h{number}"] = _mixed(colour, base["frame"], head)
    return found


PALETTES: Final[dict[Theme, dict[str, str]]] = {
    "light": _palette(
        {"page": "#ffffff", "frame": "#f6f8fa", "line": "#afb8c1", "card": "#ffffff", "text": "#1f2328", "muted": "#59636e"}
        | {"port": "#1a7f37", "wire": "#6e7781", "plain": "#1f2328", "title": "#1f2328", "none": "#eaeef2"},
        _LIGHT_NETWORKS,
        0.06,
        0.16,
    ),
    "dark": _palette(
        {"page": "#0d1117", "frame": "#151b23", "line": "#3d444d", "card": "#0d1117", "text": "#f0f6fc", "muted": "#9198a1"}
        | {"port": "#56d364", "wire": "#9198a1", "plain": "#f0f6fc", "title": "#f0f6fc", "none": "#212830"},
        _DARK_NETWORKS,
        0.09,
        0.22,
    ),
}


def draw(layout: Layout) -> Drawing:
    """Grounds first, then wires, then boxes over their ends."""
    groups = [Group((Rect(0.0, 0.0, layout.width, layout.height, "page"),))]
    for band in layout.bands:
        fill = "frame" if band.colour == HOST else "none" if band.colour == NONE else f"b{band.colour % COUNT}"
        groups.append(Group((Rect(band.x, band.y, band.width, band.height, fill, "line" if band.colour == HOST else "", 10.0),)))
    groups += [_wire(wire) for wire in layout.wires]
    groups += [_box(box) for box in layout.boxes]
    groups.append(_title(layout))
    return Drawing(layout.width, layout.height, f"Networks of {layout.host}", tuple(groups))


def _title(layout: Layout) -> Group:
    """The host's name in the right corner of its frame, where no wire comes through."""
    frame = layout.bands[0]
    ends = [wire.points[0][0] for wire in layout.wires if wire.points[0][1] < frame.y and len(wire.points) == 2]
    free = frame.x + frame.width - max([*ends, frame.x]) - 3 * INSET
    text = fit(f"host {layout.host}", free, 13.0, bold=True)
    return Group((Text(frame.x + frame.width - INSET - 4.0, frame.y + 20.0, text, 13.0, "title", True, True),), f"host {layout.host}")


def colour_of(wire: Wire) -> str:
    return "port" if wire.colour == PUBLISHED else "wire" if wire.colour < 0 else f"n{wire.colour % COUNT}"


def _wire(wire: Wire) -> Group:
    colour = colour_of(wire)
    points = wire.points
    shapes: list[Shape] = []
    if wire.arrow:
        x, y = points[-1]
        points = (*points[:-1], (x, y - 6.0))
        shapes.append(Triangle(((x - 5.0, y - 8.0), (x + 5.0, y - 8.0), (x, y)), colour))
    shapes.insert(0, Path(points, colour))
    shapes += [Circle(x, y, 3.0, colour) for x, y in wire.dots]
    tooltip = (
        f"{wire.namespace} {wire.interface} on {wire.network}" if wire.namespace else f"network {wire.network}" if wire.network else ""
    )
    return Group(tuple(shapes), tooltip)


def _box(box: Box) -> Group:
    network = f"n{box.colour % COUNT}" if box.colour >= 0 else "line"
    fill = {"namespace": "card", "uplink": "card", "ports": "card", "outside": "none"}.get(box.kind, "")
    if box.kind == "network":
        fill = f"h{box.colour % COUNT}" if box.colour >= 0 else "none"
    stroke = {"outside": "line", "network": network, "ports": "port"}.get(box.kind, "line")
    shapes: list[Shape] = [Rect(box.x, box.y, box.width, box.height, fill, stroke, 10.0 if box.kind == "network" else 7.0)]
    for place, line in enumerate(box.lines):
        style = line.style
        y = box.y + baseline(line, place) + (2.0 if box.kind == "outside" else 0.0)
        x = box.x + INSET + line.indent + line.x
        if line.dot >= 0:
            shapes.append(Circle(x - DOT + 4.0, y - 4.0, 3.5, f"n{line.dot % COUNT}"))
        shapes.append(Text(x, y, line.text, SIZES[style], style, style == "title"))
    return Group(tuple(shapes), box.tooltip)
