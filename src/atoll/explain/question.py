"""A question as people type it: `FROM TO[:PORT[/PROTO]]`, taken apart and checked. Nothing here knows what exists."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from msgspec import Struct

from atoll.errors import Invalid

PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132}
_TARGET: Final = re.compile(r"(?P<what>\[[0-9a-fA-F:.]+\]|[^:/\[\]]+)(?::(?P<port>[0-9]{1,5}))?(?:/(?P<proto>[a-z0-9]+))?\Z")
_HINT: Final = "expected NAMESPACE, NAMESPACE@NETWORK, host, outside or an address, then :PORT or :PORT/PROTO; IPv6 goes in brackets"


class Question(Struct, frozen=True):
    """`source` and `target` as they were named; `port` 0 is a ping; `version` 0 lets the target decide."""

    source: str
    target: str
    port: int = 0
    protocol: str = "icmp"
    version: int = 0


def parse(source: str, target: str, *, ipv6: bool = False) -> Question:
    """Raises `Invalid` with what was expected."""
    if not source or len(source) > 200:
        raise Invalid("the source is not named", "expected NAMESPACE, host, outside, outside:ADDRESS or outside@INTERFACE")
    what, port, protocol = _parts(target)
    version = 6 if ipv6 else 0
    address = as_address(what)
    if address is not None:
        if ipv6 and address.version == 4:
            raise Invalid(f"{what} is not an IPv6 address", "leave -6 away, or name an IPv6 address")
        what, version = str(address), address.version
    return Question(source, what, port, protocol, version)


def _parts(target: str) -> tuple[str, int, str]:
    if as_address(target) is not None:
        return target, 0, "icmp"
    match = _TARGET.match(target) if len(target) <= 200 else None
    if match is None:
        raise Invalid(f"{target[:80]!r} is not a target", _HINT)
    protocol = match["proto"] or ("tcp" if match["port"] else "icmp")
    if protocol not in PROTOCOLS:
        raise Invalid(f"protocol {protocol[:20]!r} is unknown", "expected tcp, udp, sctp or icmp")
    port = int(match["port"] or 0)
    if (protocol == "icmp") != (match["port"] is None):
        raise Invalid(f"{target[:80]!r} is not a target", "icmp has no port, and tcp, udp and sctp need one")
    if match["port"] and not 1 <= port <= 65535:
        raise Invalid(f"port {port} is out of range", "ports are 1 to 65535")
    return match["what"].strip("[]"), port, protocol


def as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
