"""A picture of a host: its networks, namespaces and published ports, as lines for a terminal and as SVG. Pure: from the API's views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

View = dict[str, Any]

_BOX: Final = (210, 78)
_GAP: Final = 16
_PER_ROW: Final = 4
_BAND_TOP: Final = 42


def lines(networks: Sequence[View], outside: str = "") -> list[str]:
    """A tree: the outside, the host's networks, their endpoints."""
    found = [f"outside {outside}".rstrip(), "│"] if outside else []
    found.append("host")
    shown = [network for network in networks if network["subnets"]]
    for network in shown:
        last_network = network is shown[-1]
        found.append(f"{'└' if last_network else '├'}─ {_title(network)}")
        ends = network["endpoints"]
        for end in ends:
            branch = f"{' ' if last_network else '│'}  {'└' if end is ends[-1] else '├'}─ "
            words = [end["namespace"], end["interface"], " ".join(_plain(end)), " ".join(f"◄ {port}" for port in end["ports"])]
            found.append(branch + "  ".join(word for word in words if word))
    return found


def svg(networks: Sequence[View], outside: str = "") -> str:
    """One band a network with a box a namespace; published ports are said where they lead. Readable on light and dark."""
    shown = [network for network in networks if network["subnets"]]
    width = _GAP + _PER_ROW * (_BOX[0] + _GAP) + 2 * _GAP
    parts: list[str] = []
    top = 20
    if outside:
        parts += [_text(_GAP * 2, top + 14, f"outside {outside}", "t"), _line(_GAP * 3, top + 22, _GAP * 3, top + 44)]
        top += 44
    host_top = top
    top += 34
    for network in shown:
        ends = network["endpoints"]
        rows = max(1, -(-len(ends) // _PER_ROW))
        height = _BAND_TOP + rows * (_BOX[1] + _GAP)
        parts += [
            f'<rect class="n" x="{_GAP * 2}" y="{top}" width="{width - 4 * _GAP}" height="{height}" rx="8"/>',
            _text(_GAP * 3, top + 26, _title(network), "h"),
        ]
        for position, end in enumerate(ends):
            x = _GAP * 3 + (position % _PER_ROW) * (_BOX[0] + _GAP // 2)
            y = top + _BAND_TOP + (position // _PER_ROW) * (_BOX[1] + _GAP)
            parts += _box(x, y, end)
        top += height + _GAP
    host = f'<rect class="o" x="{_GAP}" y="{host_top}" width="{width - 2 * _GAP}" height="{top - host_top}" rx="10"/>'
    height = top + _GAP
    style = (
        "text{font:13px sans-serif;fill:#24292f}.h,.t{font-weight:600}.s{font-size:12px}.p{fill:#1a7f37}"
        ".o,.n,.b{fill:#8881;stroke:#888}.n{stroke:#0969da}.b{fill:#0969da18}line{stroke:#888;stroke-width:2}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.p{fill:#56d364}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f"<title>Networks of the host</title><style>{style}</style>{host}"
        f"{_text(_GAP * 2, host_top + 22, 'host', 'h')}{''.join(parts)}</svg>\n"
    )


def _box(x: int, y: int, end: View) -> list[str]:
    addresses = _plain(end)
    ports = ", ".join(end["ports"])
    if len(ports) > 30:
        ports = f"{end['ports'][0]} and {len(end['ports']) - 1} more"
    found = [
        f'<rect class="b" x="{x}" y="{y}" width="{_BOX[0]}" height="{_BOX[1]}" rx="6"/>',
        _text(x + 10, y + 20, f"{end['namespace']}  {end['interface']}", "h"),
        *(_text(x + 10, y + 37 + 15 * row, text, "s") for row, text in enumerate(addresses[:2])),
    ]
    if ports:
        found.append(_text(x + 10, y + 70, f"◄ {ports}", "s p"))
    return found


def _title(network: View) -> str:
    flags = [word for word, on in (("internal", network.get("internal")), ("no-icc", not network.get("icc", True))) if on]
    subnets = ", ".join(subnet["subnet"] + (f" by {subnet['gateway']}" if subnet.get("gateway") else "") for subnet in network["subnets"])
    return "  ".join([network["name"], network["driver"], subnets, *flags])


def _plain(end: View) -> list[str]:
    return [address.partition("/")[0] for address in end["addresses"]]


def _text(x: int, y: int, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(words)}</text>'


def _line(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
