"""Pictures of whatever there may be: nothing overlaps, every text is in its box, every wire leads where it should and across no box."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.graph.boxes import INSET, Box, baseline, measured
from atoll.graph.drawing import Text, draw
from atoll.graph.layout import Layout, lay_out
from atoll.graph.scene import Endpoint, Namespace, Network, Port, Scene, Subnet, Uplink
from atoll.graph.svg import svg
from atoll.graph.terminal import lines
from atoll.graph.text import clean_lines, columns, fit, width

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.graph.layout import Wire

Segment = tuple[float, float, float, float]

#: How far apart what must not touch is at least, and how far apart two points may be that are one.
CLEAR: Final = 2.0
SAME: Final = 1e-6

FOUR: Final = ("10.1.0.2", "192.168.100.200")
SIX: Final = ("fd12:3456:789a::2", "2001:db8:1111:2222:3333:4444:5555:6666")
WEB: Final = Port("80", "80", "tcp")
LONG: Final = Port("[2001:db8:1111:2222:3333:4444:5555:6666]:8000-8100", "8000-8100", "sctp")

#: What an endpoint may have besides its network: addresses, aliases, ports.
ENDS: Final = (
    (FOUR[:1], (), ()),
    (FOUR[:1] + SIX[:1], ("db",), (WEB,)),
    ((), (), ()),
    (FOUR + SIX, ("an-alias-of-some-length", "another-one-of-some-length"), (LONG, WEB) * 20),
    (SIX, (), tuple(Port(str(port), "80", "udp") for port in range(9000, 9005))),
)
SUBNETS: Final = tuple(Subnet(address, gateway) for address in FOUR + SIX for gateway in ("", address))

words = st.one_of(
    st.sampled_from(["r1", "W" * 63, "a b & <c>", "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 40, "\x1b[31m\x00\ud800"]),
    st.text(min_size=1, max_size=8),
)
uplinks = st.builds(Uplink, words, st.sampled_from([(), FOUR[:1], FOUR + SIX * 2]))
networks = st.tuples(
    words, st.integers(0, 5), st.sampled_from(["", "masquerade", "routed", "snat 192.0.2.7"]), st.booleans(), st.integers(0, 2)
)
ends = st.dictionaries(st.integers(0, 7), st.sampled_from(ENDS), max_size=4)
namespaces = st.tuples(words, st.sampled_from(["", "pid:4711", "command " * 20]), ends)


@st.composite
def scenes(draw_: st.DrawFn) -> Scene:
    """Hosts with up to eight networks and namespaces on any of them, called anything."""
    ups = draw_(st.lists(uplinks, max_size=3, unique_by=lambda up: up.interface))
    shown = [
        Network(
            name,
            "bridge",
            colour,
            SUBNETS[:count],
            out,
            ups[parent % len(ups)].interface if is_child and ups else "",
            ("internal", "no-icc")[:parent],
        )
        for colour, (name, count, out, is_child, parent) in enumerate(draw_(st.lists(networks, max_size=8, unique_by=lambda one: one[0])))
    ]
    inside = [
        Namespace(
            name,
            about,
            tuple(Endpoint(shown[place].name, f"eth{place}", *details) for place, details in on.items() if place < len(shown)),
        )
        for name, about, on in draw_(st.lists(namespaces, max_size=20, unique_by=lambda one: one[0]))
    ]
    return Scene(draw_(words), tuple(ups), tuple(shown), tuple(inside), draw_(words))


def segments(wire: Wire) -> Iterator[Segment]:
    for (x1, y1), (x2, y2) in zip(wire.points, wire.points[1:], strict=False):
        assert abs(x1 - x2) < SAME or abs(y1 - y2) < SAME, "a wire runs aslant"
        yield min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def overlap(one: Box, other: Box, clear: float = CLEAR) -> bool:
    apart_x = one.x + one.width + clear <= other.x or other.x + other.width + clear <= one.x
    apart_y = one.y + one.height + clear <= other.y or other.y + other.height + clear <= one.y
    return not (apart_x or apart_y)


def enters(segment: Segment, box: Box) -> bool:
    """Whether a wire runs through a box or along its edge; one that ends at the edge doesn't."""
    left, top, right, bottom = segment
    return left < box.x + box.width - SAME and right > box.x + SAME and top < box.y + box.height - SAME and bottom > box.y + SAME


def touches(point: tuple[float, float], segment: Segment) -> bool:
    x, y = point
    left, top, right, bottom = segment
    return left - SAME <= x <= right + SAME and top - SAME <= y <= bottom + SAME


def on_edge(point: tuple[float, float], box: Box) -> bool:
    x, y = point
    inside = box.x - SAME <= x <= box.x + box.width + SAME and box.y - SAME <= y <= box.y + box.height + SAME
    return inside and min(abs(x - box.x), abs(x - box.x - box.width), abs(y - box.y), abs(y - box.y - box.height)) < SAME


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_any_picture_is_readable(scene: Scene) -> None:
    layout = lay_out(scene)
    assert layout == lay_out(scene)
    boxes_are_apart_and_hold_their_text(layout)
    no_wire_crosses_a_box(layout)
    no_wire_crosses_the_name_of_the_host(layout)
    wires_of_different_networks_only_cross(layout)
    every_endpoint_is_joined_to_its_network(scene, layout)


def boxes_are_apart_and_hold_their_text(layout: Layout) -> None:
    for place, box in enumerate(layout.boxes):
        assert box.x >= 0, box
        assert box.y >= 0, box
        assert box.x + box.width <= layout.width, box
        assert box.y + box.height <= layout.height, box
        assert not [other for other in layout.boxes[:place] if overlap(box, other)], box
        for row, line in enumerate(box.lines):
            assert INSET + line.indent + line.x + measured(line) <= box.width - INSET / 2, line
            assert baseline(line, row) <= box.height - 4, line


def no_wire_crosses_a_box(layout: Layout) -> None:
    for wire in layout.wires:
        for segment in segments(wire):
            crossed = [box for box in layout.boxes if enters(segment, box)]
            assert not crossed, (wire, crossed)


def no_wire_crosses_the_name_of_the_host(layout: Layout) -> None:
    (title,) = (shape for group in draw(layout).groups for shape in group.shapes if isinstance(shape, Text) and shape.right)
    left = title.x - width(title.text, title.size, bold=title.bold)
    place = Box("outside", "", left, title.y - title.size, title.x - left, title.size, ())
    assert left >= layout.bands[0].x
    assert not [wire for wire in layout.wires for segment in segments(wire) if enters(segment, place)]


def wires_of_different_networks_only_cross(layout: Layout) -> None:
    """Two that run over each other couldn't be told apart."""
    pieces = [(wire.colour, segment) for wire in layout.wires for segment in segments(wire)]
    for place, (colour, (left, top, right, bottom)) in enumerate(pieces):
        for other, (left2, top2, right2, bottom2) in pieces[:place]:
            if colour == other:
                continue
            along_x = top == bottom and top2 == bottom2 and abs(top - top2) < CLEAR and left < right2 - SAME and left2 < right - SAME
            along_y = left == right and left2 == right2 and abs(left - left2) < CLEAR and top < bottom2 - SAME and top2 < bottom - SAME
            assert not along_x, (pieces[place], other, left2, top2, right2, bottom2)
            assert not along_y, (pieces[place], other, left2, top2, right2, bottom2)


def every_endpoint_is_joined_to_its_network(scene: Scene, layout: Layout) -> None:
    """From its card by a stub of its own, whose end lies on wires of the network that lead to the network's header."""
    cards = {box.name: box for box in layout.boxes if box.kind == "namespace"}
    headers = {box.name: box for box in layout.boxes if box.kind == "network" and box.colour >= 0}
    assert set(cards) == {namespace.name for namespace in scene.namespaces}
    assert set(headers) == {network.name for network in scene.networks}
    stubs = {(wire.namespace, wire.network, wire.interface): wire for wire in layout.wires if wire.interface}
    wanted = {(namespace.name, end.network, end.interface) for namespace in scene.namespaces for end in namespace.endpoints}
    assert set(stubs) == wanted
    assert len(stubs) == sum(1 for wire in layout.wires if wire.interface)
    for network in scene.networks:
        trunk = [wire for wire in layout.wires if wire.colour == network.colour and not wire.interface]
        pieces = [piece for wire in trunk for piece in segments(wire)]
        reached = [piece for piece in pieces if on_edge(piece[:2], headers[network.name]) or on_edge(piece[2:], headers[network.name])]
        grown = True
        while grown:
            more = [piece for piece in pieces if piece not in reached and any(meet(piece, other) for other in reached)]
            reached += more
            grown = bool(more)
        assert all(piece in reached for piece in pieces), network.name
        for (name, on, _), wire in stubs.items():
            if on == network.name:
                assert on_edge(wire.points[0], cards[name]), wire
                assert any(touches(wire.points[-1], piece) for piece in reached), wire
                assert wire.points[-1] in wire.dots, wire


def meet(one: Segment, other: Segment) -> bool:
    """Whether two pieces of a network are one wire: an end of one lies on the other."""
    return any(touches(point, other) for point in (one[:2], one[2:])) or any(touches(point, one) for point in (other[:2], other[2:]))


@settings(max_examples=100, deadline=None)
@given(scenes())
def test_any_svg_is_well_formed_and_says_what_the_drawing_says(scene: Scene) -> None:
    drawing = draw(lay_out(scene))
    text = svg(drawing)
    assert text == svg(draw(lay_out(scene)))
    root = ElementTree.fromstring(text.encode())
    space = "{http://www.w3.org/2000/svg}"
    drawn = [shape.text for group in drawing.groups for shape in group.shapes if isinstance(shape, Text)]
    assert [element.text or "" for element in root.iter(f"{space}text")] == drawn
    tooltips = [element.text or "" for element in root.iter(f"{space}title")][1:]
    assert tooltips == [clean_lines(group.tooltip) for group in drawing.groups if group.tooltip]
    known = {"svg", "title", "style", "g", "rect", "text", "polyline", "polygon", "circle"}
    assert {element.tag.removeprefix(space) for element in root.iter()} <= known


@settings(max_examples=100, deadline=None)
@given(scenes(), st.integers(1, 200))
def test_any_drawing_for_a_terminal_is_as_wide_as_the_terminal_and_sends_it_nothing_else(scene: Scene, wide: int) -> None:
    shown = lines(scene, wide)
    assert shown == lines(scene, wide)
    for line in shown:
        assert columns(line) <= max(wide, 20), line
        assert line.isprintable(), line


@given(st.text(max_size=80), st.floats(20, 300), st.booleans(), st.booleans())
def test_shortened_text_fits_and_is_what_the_text_begins_and_ends_with(text: str, most: float, bold: bool, middle: bool) -> None:
    shown = fit(text, most, 11.0, bold=bold, middle=middle)
    assert width(shown, 11.0, bold=bold) <= most
    assert shown.isprintable()
    if text.isprintable() and shown != text:
        beginning, _, end = shown.rpartition("…") if middle else (shown[:-1], shown[-1], "")
        assert text.startswith(beginning)
        assert text.endswith(end)
