"""What is written in the boxes of a picture: lines of text, shortened to fit, with all of it for a tooltip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from atoll.graph.text import fit, some, width

if TYPE_CHECKING:
    from collections.abc import Iterable

    from atoll.graph.scene import Namespace, Network, Port, Scene, Uplink

Kind = Literal["namespace", "network", "uplink", "ports", "outside"]
Style = Literal["title", "plain", "muted", "port"]

#: From one line's top to the next one's, and the sizes of text.
LINE: Final = 15.0
SIZES: Final[dict[Style, float]] = {"title": 13.0, "plain": 11.0, "muted": 11.0, "port": 11.0}
INSET: Final = 10.0
_EDGE: Final = 7.0
#: The lines of an endpoint begin further in, beside its dot.
DOT: Final = 12.0
_LEAST: Final = 130.0
_CARD: Final = 216.0
_HEADER: Final = 220.0
_UPLINK: Final = 260.0
_MOST_ENDPOINTS: Final = 6
_MOST_ADDRESSES: Final = 3
_MOST_PORT_LINES: Final = 2
_PANEL_ROWS: Final = 4
_TOOLTIP_PORTS: Final = 40
_PUBLISHED: Final = "published ports"


class Line(NamedTuple):
    """A line of text in a box, `indent` from the inset, with a `dot` of that colour before it (-1: none). Where lines are in columns,
    `x` is the column's and `row` the line's in it; else lines are below each other."""

    text: str
    style: Style
    indent: float = 0.0
    dot: int = -1
    x: float = 0.0
    row: int = -1


class Box(NamedTuple):
    kind: Kind
    name: str
    x: float
    y: float
    width: float
    height: float
    lines: tuple[Line, ...]
    colour: int = -1
    tooltip: str = ""


def height_of(lines: Iterable[Line]) -> float:
    rows = max([line.row if line.row >= 0 else place for place, line in enumerate(lines)], default=0) + 1
    return 2 * _EDGE + LINE * rows + 1.0


def baseline(line: Line, place: int) -> float:
    """Of a line's text, below the top of its box."""
    return _EDGE + LINE * (line.row if line.row >= 0 else place) + 12.0


def measured(line: Line) -> float:
    return width(line.text, SIZES[line.style], bold=line.style == "title")


def _box(kind: Kind, name: str, lines: list[Line], most: float, *, colour: int = -1, tooltip: str = "") -> Box:
    """A box as wide as its lines need, up to `most`, by which they are shortened."""
    room = most - 2 * INSET
    fitted = [line._replace(text=_fitted(line, room - line.indent)) for line in lines]
    wide = max([line.indent + measured(line) for line in fitted], default=0.0)
    size = min(most, max(_LEAST, wide + 2 * INSET)), height_of(fitted)
    return Box(kind, name, 0.0, 0.0, *size, tuple(fitted), colour, tooltip)


def _fitted(line: Line, room: float) -> str:
    is_name = line.style == "title"
    return fit(line.text, room, SIZES[line.style], bold=is_name, middle=is_name)


def card(namespace: Namespace, scene: Scene) -> Box:
    colours = {network.name: network.colour for network in scene.networks}
    lines = [Line(namespace.name, "title")]
    if namespace.about:
        lines.append(Line(namespace.about, "muted"))
    ends = namespace.endpoints if len(namespace.endpoints) <= _MOST_ENDPOINTS else namespace.endpoints[: _MOST_ENDPOINTS - 1]
    told = [namespace.name, *([namespace.about] if namespace.about else [])]
    for end in namespace.endpoints:
        told.append(f"{end.interface} on {end.network}: {', '.join(end.addresses) or 'no address'}")
        if end.aliases:
            told.append(f"also called {', '.join(end.aliases)}")
        if end.ports:
            told.append(f"published {', '.join(some([str(port) for port in end.ports], _TOOLTIP_PORTS))}")
    for end in ends:
        addresses = some(list(end.addresses), _MOST_ADDRESSES) or [""]
        lines.append(Line(f"{end.interface}  {addresses[0]}".rstrip(), "plain", DOT, colours[end.network]))
        lines += [Line(address, "plain", DOT) for address in addresses[1:]]
        if end.aliases:
            lines.append(Line(f"aka {', '.join(end.aliases)}", "muted", DOT))
        lines += [Line(words, "port", DOT) for words in _packed([mapping(port) for port in end.ports], _CARD - 2 * INSET - DOT)]
    if len(ends) < len(namespace.endpoints):
        lines.append(Line(f"and on {len(namespace.endpoints) - len(ends)} more networks", "muted"))
    return _box("namespace", namespace.name, lines, _CARD, tooltip="\n".join(told))


def mapping(port: Port) -> str:
    """A published port as people read it; tcp goes without saying."""
    return f"{port.outer} → {port.inner}{_protocol(port)}"


def _protocol(port: Port) -> str:
    return f"/{port.protocol}" if port.protocol != "tcp" else ""


def _packed(words: list[str], most: float) -> list[str]:
    """Words in lines, and how many more there are if they don't fit."""
    lines: list[str] = []
    for place, word in enumerate(words):
        longer = f"{lines[-1]}, {word}" if lines else word
        left = len(words) - place
        note = f"  +{left - 1} more" if left > 1 and len(lines) >= _MOST_PORT_LINES else ""
        if lines and width(longer + note, SIZES["port"]) <= most:
            lines[-1] = longer
        elif len(lines) < _MOST_PORT_LINES:
            lines.append(word)
        else:
            lines[-1] += f"  +{left} more"
            break
    return lines


def header(network: Network) -> Box:
    lines = [Line(network.name, "title"), Line(" · ".join([network.driver, *network.options]), "plain")]
    told = [f"network {network.name}", " ".join([network.driver, *network.options, network.out])]
    if network.out:
        lines.append(Line(network.out, "muted"))
    for subnet in network.subnets[:_MOST_ADDRESSES]:
        lines.append(Line(subnet.subnet, "plain"))
        if subnet.gateway:
            lines.append(Line(f"gateway {subnet.gateway}", "muted"))
    if len(network.subnets) > _MOST_ADDRESSES:
        lines.append(Line(f"and {len(network.subnets) - _MOST_ADDRESSES} more", "muted"))
    told += [f"{subnet.subnet} gateway {subnet.gateway or 'none'}" for subnet in network.subnets]
    return _box("network", network.name, lines, _HEADER, colour=network.colour, tooltip="\n".join(told))


def uplink_box(uplink: Uplink) -> Box:
    lines = [Line(uplink.interface, "title"), *(Line(address, "plain") for address in some(list(uplink.addresses), _MOST_ADDRESSES + 1))]
    tooltip = "\n".join([f"interface {uplink.interface} of the host", *uplink.addresses])
    return _box("uplink", uplink.interface, lines, _UPLINK, tooltip=tooltip)


def ports_panel(scene: Scene, room: float) -> Box | None:
    """What is published, in columns; as much as has room."""
    published = scene.published()
    least = width(_PUBLISHED, SIZES["title"], bold=True) + 2 * INSET
    if not published or room < least:
        return None
    size = SIZES["port"]
    inner = room - 2 * INSET
    words = [f"{port.outer} → {namespace.name}:{port.inner}{_protocol(port)}" for port, namespace in published]
    shown = words[: _PANEL_ROWS * 12]
    column = min(inner, 230.0, max(width(word, size) for word in shown) + 18.0)
    columns = max(1, int(inner / column))
    fitting = some(words, columns * _PANEL_ROWS)
    rows = -(-len(fitting) // -(-len(fitting) // _PANEL_ROWS))
    lines = [Line(_PUBLISHED, "title", row=0)]
    for place, word in enumerate(fitting):
        x = column * (place // rows)
        lines.append(Line(fit(word, column - 12.0, size), "port", x=x, row=1 + place % rows))
    used = -(-len(fitting) // rows)
    wide = min(room, max(least, used * column + 2 * INSET))
    tooltip = "\n".join([_PUBLISHED, *some(words, 4 * _TOOLTIP_PORTS)])
    return Box("ports", "", 0.0, 0.0, wide, height_of(lines), tuple(lines), tooltip=tooltip)


def outside_bar(scene: Scene, x: float, y: float, wide: float, high: float) -> Box:
    text = fit(f"outside  {scene.outside}".rstrip(), wide - 2 * INSET, SIZES["title"], bold=True)
    return Box("outside", "", x, y, wide, high, (Line(text, "title"),), tooltip=f"outside {scene.outside}".rstrip())
