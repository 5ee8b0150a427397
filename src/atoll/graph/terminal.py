"""A scene in a terminal: boxes of Unicode line drawing characters, no wider than the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.graph import arrange
from atoll.graph.boxes import mapping
from atoll.graph.text import clean, columns, fit_columns, some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atoll.graph.scene import Endpoint, Namespace, Network, Scene

_LEAST: Final = 20
_CARD: Final = 18
_ROOMY: Final = 26
#: Columns that a network's line takes at the left of its cards.
_RAIL: Final = 2
_MOST_PORTS: Final = 3
_MOST_UPLINKS: Final = 8
_GAP: Final = 1
_RESET: Final = "\x1b[0m"
_PORT: Final = "\x1b[32m"
_BOLD: Final = "\x1b[1m"
_DIM: Final = "\x1b[2m"
_COLOURS: Final = tuple(f"\x1b[{number}m" for number in (34, 33, 36, 35, 31, 94, 93, 96, 95, 91))


class Piece(NamedTuple):
    """Text in one colour; `code` is the terminal's sequence for it, empty for none. `middle`: it may be shortened there."""

    text: str
    code: str = ""
    middle: bool = False


def lines(scene: Scene, width: int = 80, *, colour: bool = False) -> list[str]:
    """Each network with the namespaces that are shown with it, as in the other pictures. At least 20 columns wide."""
    width = max(_LEAST, width)
    found = _top(scene, width)
    networks = arrange.order(scene)
    homes = arrange.homes(scene, networks)
    by_name = {namespace.name: namespace for namespace in scene.namespaces}
    codes = {network.name: _COLOURS[network.colour % len(_COLOURS)] for network in networks}
    for network in networks:
        found += [[], *_heading(network, codes[network.name], width)]
        cards = [by_name[name] for name in homes[network.name]]
        found += _rows(cards, network.name, codes, width)
        for namespace in scene.namespaces:
            if namespace.name not in homes[network.name]:
                found += [
                    [Piece("  also ", codes[network.name]), Piece(fit_columns(f"{namespace.name}  {_address(end)}", width - 7), _DIM)]
                    for end in namespace.endpoints
                    if end.network == network.name
                ]
    if homes[""]:
        found += [[], [Piece("no network", _BOLD)], *_rows([by_name[name] for name in homes[""]], "", codes, width)]
    return [_line(pieces, colour) for pieces in found]


def _line(pieces: Sequence[Piece], colour: bool) -> str:
    if not colour:
        return "".join(piece.text for piece in pieces).rstrip()
    return "".join(f"{piece.code}{piece.text}{_RESET}" if piece.code and piece.text.strip() else piece.text for piece in pieces).rstrip()


def _top(scene: Scene, width: int) -> list[list[Piece]]:
    """The outside, the host's uplinks and what is published."""
    found = [[Piece(fit_columns(f"outside  {scene.outside}".rstrip(), width), _BOLD)]]
    shown = (" ".join([uplink.interface, *uplink.addresses]) for uplink in scene.uplinks[:_MOST_UPLINKS])
    found += [[Piece("  │ ", _DIM), Piece(fit_columns(words, width - 4))] for words in shown]
    if len(scene.uplinks) > _MOST_UPLINKS:
        found.append([Piece(f"  │ and {len(scene.uplinks) - _MOST_UPLINKS} more", _DIM)])
    title = fit_columns(f"host {scene.host}", width - 8)
    begin = "══╧══ " if scene.uplinks else "═════ "
    return [*found, [Piece(begin, _DIM), Piece(title, _BOLD), Piece(" " + "═" * (width - len(begin) - 1 - columns(title)), _DIM)]]


def _heading(network: Network, code: str, width: int) -> list[list[Piece]]:
    about = [network.driver, *network.options, *([network.out] if network.out else [])]
    subnets = [subnet.subnet + (f" by {subnet.gateway}" if subnet.gateway else "") for subnet in network.subnets]
    name = fit_columns(network.name, width)
    words = "  ".join([" ".join(about), *subnets])
    room = width - columns(name) - 2
    if columns(words) <= room:
        return [[Piece(name, code + _BOLD), Piece(f"  {words}")]]
    return [[Piece(name, code + _BOLD)], *([Piece(fit_columns(f"  {part}", width))] for part in [" ".join(about), *subnets])]


def _rows(cards: Sequence[Namespace], network: str, codes: dict[str, str], width: int) -> list[list[Piece]]:
    if not cards:
        return []
    bodies = [_body(card, network, codes) for card in cards]
    natural = max(max(sum(columns(piece.text) for piece in line) for line in body) for body in bodies) + 4
    room = width - _RAIL
    # Long commands and names give way to a second card beside the first.
    size = min(max(_CARD, natural), room if room < 2 * _ROOMY + _GAP else (room - _GAP) // 2)
    beside = (room + _GAP) // (size + _GAP)
    found: list[list[Piece]] = []
    code = codes.get(network, _DIM)
    for first in range(0, len(cards), beside):
        row = bodies[first : first + beside]
        is_last = first + beside >= len(cards)
        found += _row(row, size, code if network else "", "┗" if is_last else "┣", " " if is_last else "┃", bus=bool(network))
    return found


def _row(row: Sequence[list[list[Piece]]], size: int, code: str, corner: str, rail: str, *, bus: bool) -> list[list[Piece]]:
    """Boxes beside each other below the network's line, from which each hangs."""
    top: list[Piece] = [Piece(f"{corner}━" if bus else "  ", code)]
    edges: list[Piece] = [Piece(f"{rail} " if bus else "  ", code)]
    for place, _ in enumerate(row):
        last = place == len(row) - 1
        top.append(Piece("━━" + ("┓" if last else "┳") + ("" if last else "━" * (size - 3 + _GAP)) if bus else "", code))
        edges.append(Piece("┌─", _DIM))
        edges.append(Piece("┸" if bus else "─", code or _DIM))
        edges.append(Piece("─" * (size - 4) + "┐" + ("" if last else " " * _GAP), _DIM))
    height = max(map(len, row))
    found = [top, edges] if bus else [edges]
    for number in range(height):
        line: list[Piece] = [Piece(f"{rail} " if bus else "  ", code)]
        for place, body in enumerate(row):
            line.append(Piece("│ ", _DIM))
            line += _padded(body[number] if number < len(body) else [], size - 4)
            line.append(Piece(" │" + ("" if place == len(row) - 1 else " " * _GAP), _DIM))
        found.append(line)
    bottom = ("└" + "─" * (size - 2) + "┘" + " " * _GAP) * len(row)
    found.append([Piece(f"{rail} " if bus else "  ", code), Piece(bottom.rstrip(), _DIM)])
    return found


def _padded(pieces: Sequence[Piece], size: int) -> list[Piece]:
    """Pieces cut and filled up to so many columns."""
    found: list[Piece] = []
    left = size
    for piece in pieces:
        text = fit_columns(piece.text, left, middle=piece.middle)
        found.append(piece._replace(text=text))
        left -= columns(text)
        if text != clean(piece.text):
            break
    return [*found, Piece(" " * left)]


def _body(namespace: Namespace, network: str, codes: dict[str, str]) -> list[list[Piece]]:
    found = [[Piece(namespace.name, _BOLD, middle=True)]]
    if namespace.about:
        found.append([Piece(namespace.about, _DIM)])
    for end in namespace.endpoints:
        place = [] if end.network == network else [Piece(f"{end.network} ", codes[end.network])]
        first, *more = end.addresses or ("",)
        found.append([Piece(f"{end.interface} "), *place, Piece(first)])
        found += [[Piece(" " * (columns(end.interface) + 1)), Piece(address)] for address in some(list(more), 3)]
        if end.aliases:
            found.append([Piece(f"aka {', '.join(end.aliases)}", _DIM)])
        found += [[Piece("◂ ", _PORT), Piece(words, _PORT)] for words in some([mapping(port) for port in end.ports], _MOST_PORTS)]
    return found


def _address(end: Endpoint) -> str:
    return " ".join([end.interface, *end.addresses])
