"""The records that endpoints have, as bytes."""

from __future__ import annotations

import ipaddress
import socket
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from atoll.dns import wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from atoll.dns.zone import EndpointNames, Known

DOMAIN: Final = "atoll"
SUFFIX: Final = f".{DOMAIN}"


def addresses(kind: int, endpoints: Iterable[tuple[Known, EndpointNames]], owner: bytes = b"") -> Iterator[bytes]:
    """The A or AAAA records of endpoints, each address once."""
    family = socket.AF_INET if kind == wire.A else socket.AF_INET6
    texts = dict.fromkeys(address for _, endpoint in endpoints for address in endpoint.addresses)
    for text in texts:
        if (":" in text) == (kind == wire.AAAA):
            data = socket.inet_pton(family, text)
            yield wire.record(kind, data, owner) if owner else wire.record(kind, data)


def services(found: Iterable[tuple[Known, EndpointNames, int]]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The SRV records of who serves on which port, and the addresses of those."""
    answers: dict[bytes, None] = {}
    extra: dict[bytes, None] = {}
    for network, endpoint, port in found:
        if target := full_name(network, endpoint):
            answers[wire.record(wire.SRV, struct.pack(">HHH", 0, 1, port) + target)] = None
            whole = [(network, other) for other in network.named(endpoint.names[0].lower())]
            for kind in (wire.A, wire.AAAA):
                extra.update(dict.fromkeys(addresses(kind, whole, target)))
    return tuple(answers), tuple(extra)


def full_name(network: Known, endpoint: EndpointNames) -> bytes:
    """NAME.NETWORK.atoll as bytes, or none where that can't be a name in DNS."""
    try:
        return wire.encode_name(f"{endpoint.names[0]}.{network.names.name}{SUFFIX}")
    except wire.Malformed:
        return b""


def contains(subnets: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network], address: str) -> bool:
    """Whether an address is in one of the subnets."""
    found = ipaddress.ip_address(address)
    return any(found in subnet for subnet in subnets)


@lru_cache(maxsize=1)
def _services_by_name() -> dict[tuple[str, str], int]:
    """`/etc/services`, which Debian has in the package netbase."""
    services: dict[tuple[str, str], int] = {}
    try:
        with open("/etc/services", encoding="latin-1") as lines:
            for line in lines:
                words = line.partition("#")[0].lower().split()
                if len(words) >= 2 and "/" in words[1]:
                    number, _, protocol = words[1].partition("/")
                    if number.isdecimal():
                        for name in (words[0], *words[2:]):
                            services.setdefault((name, protocol), int(number))
    except OSError:
        pass
    return services


def port_number(service: str, protocol: str) -> int:
    """The port by its number or its IANA name, 0 for none."""
    if service.isascii() and service.isdecimal() and len(service) <= 5:
        return int(service)
    return _services_by_name().get((service, protocol), 0)
