"""Where everything of a scene is in a picture: boxes with their lines of text, and wires. Pure, and the same for the same scene.

    outside   a bar on top
    host      a frame: its uplinks and the published ports in a row, then one lane a network

A lane is the network's header at the left, as high as the lane, and rows of cards, its namespaces. Above each row is a channel, in which
the network's track runs from the header to over its cards; a stub joins each card to it. Nothing but wires is in a channel, so none
crosses a card. A namespace on several networks is in the lane of the first, at the end; it is joined to the next lane's network from
below, and to others by a track of theirs in its own channel, which comes there by a riser between the headers and the cards. Networks
that share namespaces are next to each other as far as that goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.graph import arrange
from atoll.graph.boxes import LINE, Box, Line, card, header, height_of, outside_bar, ports_panel, uplink_box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atoll.graph.arrange import Lane, Row
    from atoll.graph.scene import Endpoint, Network, Scene

MARGIN: Final = 20.0
PAD: Final = 14.0
GAP: Final = 16.0
#: Between neighbouring wires.
PITCH: Final = 12.0
_TITLE: Final = 30.0
_OUTSIDE: Final = 34.0
_LEAST_WIDTH: Final = 760.0
#: What fits on any screen, and the width for a height of 1 that larger pictures should have.
_SCREEN: Final = (1000.0, 640.0)
_SHAPE: Final = 1.55
#: Colours of what belongs to no network: the host's own frame and wires, published ports, namespaces on none.
HOST: Final = -1
PUBLISHED: Final = -2
NONE: Final = -3


class Band(NamedTuple):
    """A lane's background, or the host's frame."""

    x: float
    y: float
    width: float
    height: float
    colour: int


class Wire(NamedTuple):
    """A line of horizontal and vertical pieces. The stub of an endpoint names its namespace and begins at its card; the others of a
    network lead together from there to its header. `dots` are joints; `arrow` says that the last piece ends in one."""

    points: tuple[tuple[float, float], ...]
    colour: int
    network: str = ""
    namespace: str = ""
    interface: str = ""
    dots: tuple[tuple[float, float], ...] = ()
    arrow: bool = False


class Stub(NamedTuple):
    """An endpoint's wire, of which the card's end is known: `x`, and `y` of the card's edge."""

    network: str
    namespace: str
    interface: str
    x: float
    y: float


class Track(NamedTuple):
    """A horizontal piece of a network at height `y`, to the farthest of its stubs; in its own lane or in another."""

    y: float
    end: float
    at_home: bool


class Layout(NamedTuple):
    width: float
    height: float
    host: str
    bands: tuple[Band, ...]
    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]


def lay_out(scene: Scene) -> Layout:
    return _Drawing(scene).layout()


class _Drawing:
    """One run of the layout, from the top to the bottom."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.order = arrange.order(scene)
        self.place = {network.name: place for place, network in enumerate(self.order)}
        self.cards = {namespace.name: card(namespace, scene) for namespace in scene.namespaces}
        self.card_width = max([box.width for box in self.cards.values()], default=150.0)
        self.headers = {network.name: header(network) for network in self.order}
        self.header_width = max([box.width for box in self.headers.values()], default=150.0)
        self.heights = {name: height_of(box.lines) for name, box in self.cards.items()}
        self.endpoints: dict[str, tuple[Endpoint, ...]] = {item.name: item.endpoints for item in scene.namespaces}
        self.colours = {network.name: network.colour for network in self.order}
        self.tracks: dict[str, list[Track]] = {network.name: [] for network in self.order}
        #: Stubs that come down from the last row to the next lane's track.
        self.pending: list[Stub] = []
        self.boxes: list[Box] = []
        self.bands: list[Band] = []
        self.wires: list[Wire] = []
        slots = max([len(namespace.endpoints) for namespace in scene.namespaces], default=1)
        self.slot = min(44.0, (self.card_width - 36.0) / max(1, slots))
        self.lanes = arrange.lanes(self.scene, self.order, self._columns())

    def _columns(self) -> int:
        """As many cards in a row as give a picture about half as wide again as it is high; what is smaller than a screen, flat."""
        members = arrange.homes(self.scene, self.order)
        best, least = 1, (float("inf"), 0.0)
        for columns in range(1, max([1, *map(len, members.values())]) + 1):
            width = self.header_width + 4 * PITCH + columns * (self.card_width + GAP) + 2 * (MARGIN + PAD)
            height = _OUTSIDE + 150.0
            for name, names in members.items():
                rows = [names[first : first + columns] for first in range(0, len(names), columns)]
                content = sum(max(self.heights[each] for each in row) + 2.5 * PITCH for row in rows) + PAD
                height += max(content, height_of(self.headers[name].lines) if name else 0.0) + GAP
            ratio = max(width, _SCREEN[0]) / max(height, _SCREEN[1]) / _SHAPE
            badness = (round(max(ratio, 1 / ratio), 2), height)
            if badness < least:
                best, least = columns, badness
        return best

    def layout(self) -> Layout:
        down = [network for network in self.order if network.parent]
        routed = [network for network in self.order if network.out and not network.parent]
        left = MARGIN + PAD + (PITCH * (bool(routed) + len(down)) + 4.0 if routed or down else 0.0)
        risers = self._risers()
        cards_left = left + self.header_width + PITCH * (1 + (max(risers.values()) + 1 if risers else 0)) + 4.0
        columns = max([1, *(len(row.names) for lane in self.lanes for row in lane.rows)])
        right = max(cards_left + columns * (self.card_width + GAP) - GAP + 2 * PAD, _LEAST_WIDTH - MARGIN)
        right = max(right, left + sum(uplink_box(uplink).width + GAP for uplink in self.scene.uplinks) + PAD)
        top = MARGIN + _OUTSIDE + 22.0
        y = self._top(top, left, right, routed, down)
        y = self._lanes(y, left, cards_left, right, risers)
        self._ways_out(left, routed, down)
        self.bands.insert(0, Band(MARGIN, top, right - MARGIN, y - top, HOST))
        self.boxes.append(outside_bar(self.scene, MARGIN, MARGIN, right - MARGIN, _OUTSIDE))
        return Layout(right + MARGIN, y + MARGIN, self.scene.host, tuple(self.bands), tuple(self.boxes), tuple(self.wires))

    # --- the host's own row ---

    def _top(self, top: float, left: float, right: float, routed: Sequence[Network], down: Sequence[Network]) -> float:
        """Uplinks and published ports, with what leads to them from outside. Answers where the lanes begin."""
        y = top + _TITLE
        made = [uplink_box(uplink) for uplink in self.scene.uplinks]
        used = left + sum(box.width + GAP for box in made)
        panel = ports_panel(self.scene, right - PAD - used)
        height = max([height_of(box.lines) for box in [*made, *([panel] if panel else [])]], default=0.0)
        x = left
        self.uplinks: dict[str, Box] = {}
        for box in made:
            placed = box._replace(x=x, y=y, height=height)
            self.boxes.append(placed)
            self.uplinks[box.name] = placed
            middle = x + box.width / 2
            self.wires.append(Wire(((middle, MARGIN + _OUTSIDE), (middle, y)), HOST))
            x += box.width + GAP
        if panel:
            self.boxes.append(panel._replace(x=x, y=y, height=height))
            middle = x + panel.width / 2
            self.wires.append(Wire(((middle, MARGIN + _OUTSIDE), (middle, y)), PUBLISHED, arrow=True))
        self.channel = y + height
        below = PITCH * (bool(routed) + len(down) + 1) if routed or down else PAD
        return y + height + below if height else y + below - PAD

    def _ways_out(self, left: float, routed: Sequence[Network], down: Sequence[Network]) -> None:
        """From the headers' left sides: the routed ones by the host's router to its uplinks, macvlan and ipvlan each to its parent."""
        tops = {box.name: box for box in self.boxes if box.kind == "network"}
        x, y = MARGIN + PAD, self.channel + PITCH
        if routed:
            ends = [tops[network.name].y + LINE for network in routed]
            joints = [self.uplinks[uplink.interface].x + 18.0 for uplink in self.scene.uplinks if uplink.addresses]
            if joints:
                self.wires += [Wire(((joint, self.channel), (joint, y)), HOST, dots=((joint, y),)) for joint in joints[:-1]]
                self.wires.append(Wire(((joints[-1], self.channel), (joints[-1], y), (x, y), (x, ends[-1]), (left, ends[-1])), HOST))
            else:
                self.wires.append(Wire(((x, MARGIN + _OUTSIDE), (x, ends[-1]), (left, ends[-1])), HOST))
            self.wires += [Wire(((x, end), (left, end)), HOST, dots=((x, end),)) for end in ends[:-1]]
            x, y = x + PITCH, y + PITCH
        siblings: dict[str, list[str]] = {}
        for network in down:
            siblings.setdefault(network.parent, []).append(network.name)
        for network in down:
            parent, end = self.uplinks[network.parent], tops[network.name].y + LINE
            room = min(PITCH, (parent.width - 24.0) / len(siblings[network.parent]))
            joint = parent.x + 18.0 + room * (1 + siblings[network.parent].index(network.name))
            points = ((joint, self.channel), (joint, y), (x, y), (x, end), (left, end))
            self.wires.append(Wire(points, network.colour, network.name))
            x, y = x + PITCH, y + PITCH

    # --- the lanes ---

    def _risers(self) -> dict[str, int]:
        """Which networks need a riser, and in which column each is; two that share a column are far enough from each other."""
        spans: dict[str, tuple[int, int]] = {}
        number = 0
        home: dict[str, tuple[int, int]] = {}
        for lane in self.lanes:
            numbers = range(number, number + len(lane.rows))
            home[lane.network] = (numbers[0], numbers[-1])
            for row in lane.rows:
                for name in row.extras:
                    low, high = spans.get(name, (number, number))
                    spans[name] = (min(low, number), max(high, number))
                number += 1
        columns: list[list[tuple[int, int]]] = []
        found: dict[str, int] = {}
        for name, (low, high) in sorted(spans.items(), key=lambda item: self.place[item[0]]):
            low, high = min(low, home[name][0]), max(high, home[name][0])
            column = next((place for place, taken in enumerate(columns) if all(high < a or b < low for a, b in taken)), len(columns))
            if column == len(columns):
                columns.append([])
            columns[column].append((low, high))
            found[name] = column
        return found

    def _lanes(self, y: float, left: float, cards_left: float, right: float, risers: dict[str, int]) -> float:
        start = left + self.header_width
        for lane in self.lanes:
            top = y
            y += PAD / 2
            for row in lane.rows:
                y = self._row(lane, row, y, cards_left)
            if lane.network:
                box = self.headers[lane.network]
            else:
                box = Box("network", "", 0.0, 0.0, 0.0, 0.0, (Line("no network", "title"),), NONE)
            y = max(y + PAD / 2, top + height_of(box.lines))
            self.boxes.append(box._replace(x=left, y=top, width=self.header_width, height=y - top))
            self.bands.append(Band(left, top, right - PAD - left, y - top, box.colour))
            y += PAD
        for network in self.order:
            self._tracks(network, start, start + PITCH * (1 + risers.get(network.name, 0)))
        return y

    def _row(self, lane: Lane, row: Row, y: float, cards_left: float) -> float:
        """A channel and the row of cards below it, from `y` on. Answers where it ends."""
        names = [*row.extras, *([lane.network] if lane.network else [])]
        levels = {name: y + PITCH * (place + 1) for place, name in enumerate(names)}
        top = y + PITCH * (len(names) + 1.5) if names else y + PITCH / 2
        height = max([self.heights[name] for name in row.names], default=0.0)
        stubs, self.pending = self.pending, []
        for place, name in enumerate(row.names):
            x = cards_left + place * (self.card_width + GAP)
            self.boxes.append(self.cards[name]._replace(x=x, y=top, width=self.card_width, height=height))
            ends = sorted(self.endpoints[name], key=lambda end: (end.network != lane.network, end.network))
            above = [end for end in ends if end.network not in row.below]
            stubs += [Stub(end.network, name, end.interface, x + 18.0 + self.slot * number, top) for number, end in enumerate(above)]
            below = [end for end in ends if end.network in row.below]
            self.pending += [Stub(end.network, name, end.interface, x + self.card_width - 18.0, top + height) for end in below]
        for stub in stubs:
            joint = (stub.x, levels[stub.network])
            wire = Wire(((stub.x, stub.y), joint), self.colours[stub.network], *stub[:3], dots=(joint,))
            self.wires.append(wire)
        for name in names:
            if places := [stub.x for stub in stubs if stub.network == name]:
                self.tracks[name].append(Track(levels[name], max(places), name == lane.network))
        return top + height

    def _tracks(self, network: Network, start: float, riser: float) -> None:
        """A network's tracks: at home from its header, elsewhere from its riser, which leaves the header with the first track at home."""
        tracks = self.tracks[network.name]
        own = [track.y for track in tracks if track.at_home]
        foreign = [track.y for track in tracks if not track.at_home]
        header = next(box for box in self.boxes if box.kind == "network" and box.name == network.name)
        base = own[0] if own else header.y + header.height / 2
        for track in tracks:
            self.wires.append(Wire(((start if track.at_home else riser, track.y), (track.end, track.y)), network.colour, network.name))
        if foreign:
            low, high = min([base, *foreign]), max([base, *foreign])
            dots = tuple((riser, y) for y in sorted({base, *foreign}) if low < y < high or y == base)
            self.wires.append(Wire(((riser, low), (riser, high)), network.colour, network.name, dots=dots))
            if not own:
                self.wires.append(Wire(((start, base), (riser, base)), network.colour, network.name))
