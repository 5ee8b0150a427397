"""What comes from outside, checked at the edge: names, addresses, rates, ports as text. Each answers with the value in its canonical form,
or raises `Invalid` with one line that says what was wrong and what was expected."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

from atoll.errors import Invalid
from atoll.model import MAX_SERVERS, PROTOCOLS, PortChoice, PublishedPort, Route

if TYPE_CHECKING:
    from collections.abc import Iterable, Sized

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}\Z")
_INTERFACE: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,14}\Z")
_DOMAIN: Final = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_RATE: Final = re.compile(r"(\d{1,12})(bit|kbit|mbit|gbit)?\Z")
_PUBLISH: Final = re.compile(
    r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[0-9.]+):)?(?P<outer>[0-9]+(?:-[0-9]+)?):(?P<inner>[0-9]+(?:-[0-9]+)?)(?:/(?P<proto>[a-z]+))?\Z"
)


def check_name(text: str, what: str) -> str:
    """A network's, namespace's or endpoint's name: 1 to 63 letters, digits, `_ . -`, the first a letter or digit."""
    if not _NAME.match(text):
        raise Invalid(f"{text[:80]!r} is not a {what} name", "1 to 63 letters, digits, '_', '.' or '-', beginning with a letter or digit")
    return text


def check_key(text: str, what: str) -> str:
    """What a front door calls something by: 1 to 255 printable characters."""
    if not text or len(text) > 255 or not text.isprintable():
        raise Invalid(f"{text[:80]!r} is not usable as {what}", "1 to 255 printable characters")
    return text


def check_interface(text: str) -> str:
    """An interface name as the kernel takes it (at most 15 bytes)."""
    if not _INTERFACE.match(text) or text in ("all", "default"):
        raise Invalid(f"{text[:80]!r} is not an interface name", "1 to 15 letters, digits, '_', '.' or '-'")
    return text


def check_mac(text: str) -> str:
    lowered = text.lower().replace("-", ":")
    if not _MAC.match(lowered):
        raise Invalid(f"{text[:80]!r} is not a MAC address", "expected six pairs of hex digits, such as 02:42:ac:11:00:02")
    if int(lowered[:2], 16) & 1 or lowered == "00:00:00:00:00:00":
        raise Invalid(f"{lowered} is a group or zero MAC address", "the first byte must be even, such as 02")
    return lowered


def check_metric(metric: int) -> int:
    """A route's metric; 0 is the kernel's own choice."""
    if not 0 <= metric < 2**32:
        raise Invalid(f"metric {metric} is out of range", "expected 0 to 4294967295")
    return metric


def check_route(route: Route) -> Route:
    """A route with its addresses in their canonical form."""
    try:
        destination = ipaddress.ip_network(route.destination)
    except ValueError:
        raise Invalid(f"{route.destination[:80]!r} is not where a route leads to", "expected a prefix such as 10.9.0.0/16") from None
    gateway = ""
    if route.kind != "unicast":
        if route.gateway:
            raise Invalid(f"a route of kind {route.kind} has no gateway", "leave out one of them")
    elif route.gateway:
        try:
            value = ipaddress.ip_address(route.gateway)
        except ValueError:
            raise Invalid(f"gateway {route.gateway[:80]!r} of the route to {destination} is no IP address", "such as 10.0.0.1") from None
        if value.version != destination.version or value.is_unspecified or value.is_multicast or "%" in route.gateway:
            raise Invalid(f"{value} is no gateway to {destination}", f"expected an IPv{destination.version} address")
        gateway = str(value)
    return Route(destination=str(destination), gateway=gateway, metric=check_metric(route.metric), kind=route.kind)


def check_domains(texts: Iterable[str]) -> tuple[str, ...]:
    """Domains of which a network's names may be part, in lower case: not ours, which are there anyway, and no whole top level."""
    found = [text.lower().removeprefix(".").removesuffix(".") for text in texts]
    for domain in found:
        if len(domain) > 200 or not _DOMAIN.match(domain) or domain.rpartition(".")[2] == "atoll":
            raise Invalid(f"{domain[:80]!r} is not a further domain for names", "two or more labels, not below atoll, such as dns.podman")
    return tuple(dict.fromkeys(found))


def check_servers(texts: Iterable[str]) -> tuple[str, ...]:
    """Addresses of name servers: at most three, as a resolv.conf has (resolv.conf(5))."""
    found: list[str] = []
    for text in texts:
        try:
            value = ipaddress.ip_address(text)
        except ValueError:
            raise Invalid(f"DNS server {text[:80]!r} is not an IP address", "expected an address such as 192.0.2.53") from None
        if value.is_unspecified or value.is_multicast or "%" in text:
            raise Invalid(f"DNS server {value} is not an address to ask", "expected the address of a server")
        found.append(str(value))
    found = list(dict.fromkeys(found))
    if len(found) > MAX_SERVERS:
        raise Invalid(f"{len(found)} DNS servers are too many", f"give at most {MAX_SERVERS}")
    return tuple(found)


def check_labels(labels: dict[str, str], what: str) -> dict[str, str]:
    for key, value in labels.items():
        if not key or len(key) > 255 or len(value) > 4096 or not (key + value).isprintable():
            raise Invalid(f"{what} {key[:40]!r} is not usable", "a key of 1 to 255 and a value of at most 4096 printable characters")
    return labels


def check_count(items: Sized, most: int, what: str) -> None:
    """Raises `Invalid` for more than `most`."""
    if len(items) > most:
        raise Invalid(f"{len(items)} {what} are too many", f"at most {most}")


def parse_rate(text: str, what: str) -> int:
    """`10mbit` in bits a second, with tc's units (bit, kbit, mbit, gbit; none means bit)."""
    match = _RATE.match(text.strip().lower())
    rate = int(match[1]) * {None: 1, "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}[match[2]] if match else 0
    if not 8_000 <= rate <= 400 * 10**9:
        raise Invalid(f"{what} {text[:40]!r} is not a rate", "expected a number with bit, kbit, mbit or gbit, from 8kbit to 400gbit")
    return rate


def _parse_range(text: str, spec: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    low, high = int(first), int(last or first)
    if not (1 <= low <= 65535 and 1 <= high <= 65535):
        raise Invalid(f"port {text} in {spec!r} is out of range", "ports are 1 to 65535")
    if high < low:
        raise Invalid(f"port range {text} in {spec!r} runs backwards", f"write {high}-{low}")
    return low, high - low + 1


def parse_publish(spec: str) -> PublishedPort:
    """`[HOSTIP:]HOSTPORT[-END]:PORT[-END][/tcp|udp|sctp]`, Docker's form; an IPv6 host address in brackets.

    A range of the host onto one port is a `PortChoice`, and so is port 0 of the host.
    """
    match = _PUBLISH.match(spec) if len(spec) <= 100 else None
    if match is None:
        raise Invalid(f"{spec[:100]!r} is not a port to publish", "expected [HOSTIP:]HOSTPORT[-END]:PORT[-END][/tcp|udp|sctp]")
    protocol = match["proto"] or "tcp"
    if protocol not in PROTOCOLS:
        raise Invalid(f"protocol {protocol!r} in {spec!r} is unknown", "expected tcp, udp or sctp")
    host_ip = ""
    if match["host"]:
        try:
            host_ip = str(ipaddress.ip_address(match["host"].strip("[]")))
        except ValueError:
            raise Invalid(f"host address {match['host']!r} in {spec!r} is not an IP address", "IPv6 goes in brackets") from None
    port, inner_count = _parse_range(match["inner"], spec)
    if match["outer"].strip("0") == "" and inner_count == 1:
        return PortChoice(host_port=0, port=port, protocol=protocol, host_ip=host_ip)
    host_port, count = _parse_range(match["outer"], spec)
    if count > 1 and inner_count == 1:
        return PortChoice(host_port=host_port, port=port, protocol=protocol, host_ip=host_ip, among=count)
    if count != inner_count:
        raise Invalid(f"{spec!r} maps {count} host ports onto {inner_count}", "both ranges must be of the same length")
    return PublishedPort(host_port=host_port, port=port, count=count, protocol=protocol, host_ip=host_ip)
