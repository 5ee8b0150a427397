"""What a network, an endpoint and a published port mean as elements of the firewall's sets, as text for nft and as the kernel's bytes."""

from __future__ import annotations

import ipaddress
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.firewall.skeleton import SETS, TABLE, Field
from atoll.kernel import nft
from atoll.model import address, interface
from atoll.plan.operations import NftScript

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from atoll.model import Endpoint, Network, PublishedPort
    from atoll.plan.operations import Operation

PROTOCOL_NUMBER: Final = {"tcp": 6, "udp": 17, "sctp": 132}
#: A field's value: a name or address as text, a port, or a range of ports as (first, last).
Value = str | int | tuple[int, int]


class Element(NamedTuple):
    """One element of the set `set`; `data` is empty unless that is a map."""

    set: str
    key: tuple[Value, ...]
    data: tuple[Value, ...] = ()


# --- from the model ------------------------------------------------------------------------------------------------------------------


def network_elements(network: Network) -> list[Element]:
    """What a bridge network needs, whatever endpoints it has."""
    if network.driver != "bridge":
        return []
    found: list[Element] = []
    for bridge in network.bridges():
        found += [Element("ours", (bridge,)), Element("within", (bridge, bridge))]
        if network.internal:
            found.append(Element("internals", (bridge,)))
    found.append(Element("homes", (network.bridge,)))
    found += [Element("shards", (bridge,)) for bridge in network.bridges()[1:]]
    for gateway in network.resolvers():
        found += [Element("resolvers6" if ":" in gateway else "resolvers4", (link, gateway)) for link in (network.bridge, "lo")]
    if not network.icc:
        found.append(Element("isolated", (network.bridge,)))
    if network.isolation != "strict":
        found.append(Element("unstrict", (network.bridge,)))
    if network.isolation == "open":
        found.append(Element("open", (network.bridge,)))
    if not network.internal:
        found += _beyond(network)
    return found


def _beyond(network: Network) -> Iterator[Element]:
    """How a network that isn't internal stands to the world outside."""
    bridge = network.bridge
    masqueraded = [v for v in (4, 6) if network.nat == "masquerade" and network.gateway_mode(v) != "routed"]
    yield from _in_families("masqueraded", bridge, masqueraded)
    for source in network.snat:
        version = 6 if ":" in source else 4
        if network.gateway_mode(version) != "routed":
            yield Element(f"sourced{version}", (bridge,), (source,))
    open_to_all = {"nat": network.nat == "routed", "nat-unprotected": True}
    yield from _in_families("routable", bridge, [v for v in (4, 6) if open_to_all.get(network.gateway_mode(v), False)])
    routed = [v for v in (4, 6) if network.gateway_mode(v) == "routed"]
    if routed or network.trusted:
        yield Element("direct", (bridge,))
    yield from (Element(f"routed{version}", (bridge,)) for version in routed)
    yield from (Element("trusted", (interface, bridge)) for interface in network.trusted)


def _in_families(name: str, bridge: str, versions: list[int]) -> Iterator[Element]:
    """One element of the set for both families, or of that for one."""
    if len(versions) == 2:
        yield Element(name, (bridge,))
    else:
        yield from (Element(f"{name}{version}", (bridge,)) for version in versions)


def endpoint_elements(network: Network, endpoint: Endpoint) -> list[Element]:
    """What an endpoint of a bridge network may send, and its published ports."""
    if network.driver != "bridge":
        return []
    found = [*guard_elements(network, endpoint)]
    for port in endpoint.ports:
        found += port_elements(network, endpoint, port)
    return found + served_elements(network, endpoint)


def guard_elements(network: Network, endpoint: Endpoint) -> Iterator[Element]:
    port, mac = endpoint.host_interface, endpoint.mac
    if not network.guard:
        yield Element("unguarded", (port,))
        return
    for text in endpoint.addresses:
        value = str(interface(text).ip)
        if ":" in value:
            yield Element("senders6", (port, mac, value))
            yield Element("targets6", (port, mac, value))
        else:
            yield Element("senders4", (port, mac, value))
    if endpoint.address(6):
        # The link-local address that the kernel makes of the MAC, and the one that a host has before it has any.
        local = link_local(mac)
        yield Element("senders6", (port, mac, local))
        yield Element("targets6", (port, mac, local))
        yield Element("senders6", (port, mac, "::"))


def port_elements(network: Network, endpoint: Endpoint, port: PublishedPort) -> Iterator[Element]:
    """Where ports of the host lead: one element for a range that keeps its ports, else one a port; for each family that both sides
    have."""
    for version in (4, 6):
        target = endpoint.address(version)
        if not target or not network.maps_ports(version) or port.host_version not in (0, version):
            continue
        where: tuple[Value, ...] = () if port.wildcard else (port.host_ip,)
        scope = "" if port.wildcard else "host"
        if port.count > 1 and port.host_port == port.port:
            ports = (port.host_port, port.host_port + port.count - 1)
            yield Element(f"{scope}ranges{version}", (*where, port.protocol, ports), (target,))
            continue
        for offset in range(port.count):
            key = (*where, port.protocol, port.host_port + offset)
            yield Element(f"{scope}ports{version}", key, (target, port.port + offset))


def served_elements(network: Network, endpoint: Endpoint) -> list[Element]:
    """The published ports by the endpoint's own address, where anyone reaches them by that: ranges that don't overlap."""
    found: list[Element] = []
    for version in (4, 6):
        target = endpoint.address(version)
        if not target or not network.serves(version):
            continue
        ranges: dict[str, list[tuple[int, int]]] = {}
        for port in sorted(endpoint.ports, key=lambda port: port.port):
            if port.host_version not in (0, version):
                continue
            mine, first, last = ranges.setdefault(port.protocol, []), port.port, port.port + port.count - 1
            if mine and first <= mine[-1][1] + 1:
                mine[-1] = (mine[-1][0], max(last, mine[-1][1]))
            else:
                mine.append((first, last))
        found += [Element(f"served{version}", (target, protocol, span)) for protocol, spans in ranges.items() for span in spans]
    return found


def link_local(mac: str) -> str:
    """fe80:: with the interface identifier of RFC 4291 appendix A."""
    raw = bytearray.fromhex(mac.replace(":", ""))
    raw[0] ^= 2
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(raw[:3]) + b"\xff\xfe" + bytes(raw[3:])))


# --- as nft text ---------------------------------------------------------------------------------------------------------------------


def _text(field: Field, value: Value) -> str:
    if isinstance(value, tuple):
        return f"{value[0]}-{value[1]}"
    if field in ("ifname", "way"):
        return f'"{value}"'
    if field == "raw6":
        return f"0x{ipaddress.IPv6Address(value).packed.hex()}"
    return str(value)


def text(element: Element) -> str:
    spec = SETS[element.set]
    key = " . ".join(map(_text, spec.key, element.key))
    return f"{key} : {' . '.join(map(_text, spec.data, element.data))}" if element.data else key


def statement(verb: str, elements: Iterable[Element]) -> str:
    """`add` or `delete` as one nft statement a set; maps are told only the keys to delete."""
    by_set: dict[str, list[str]] = {}
    for element in elements:
        by_set.setdefault(element.set, []).append(text(element if verb == "add" else Element(element.set, element.key)))
    return "".join(f"{verb} element {SETS[name].family} {TABLE} {name} {{ {', '.join(items)} }}\n" for name, items in by_set.items())


def change(verb: str, elements: Iterable[Element]) -> list[Operation]:
    """The operation that adds or deletes elements; none when there are none."""
    found = list(elements)
    if not found:
        return []
    changes = tuple(nft.Change(SETS[element.set].family, TABLE, element.set, encode(element)) for element in found)
    return [NftScript(statement(verb, found), verb, changes)]


# --- as the kernel's bytes -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _packed(field: Field, value: str | int) -> bytes:
    if field == "port":
        return struct.pack("!H", value)
    if field == "proto":
        return bytes((PROTOCOL_NUMBER[str(value)],))
    if field in ("ifname", "way"):
        return str(value).encode().ljust(16, b"\0")
    if field == "ether":
        return bytes.fromhex(str(value).replace(":", ""))
    return address(str(value)).packed


def _join(fields: tuple[Field, ...], values: tuple[Value, ...], *, last: bool) -> bytes:
    """Several fields are each padded to the kernel's 4-byte registers, one alone is not."""
    picked = (value if not isinstance(value, tuple) else value[1 if last else 0] for value in values)
    parts = [_packed(field, value) for field, value in zip(fields, picked, strict=True)]
    return parts[0] if len(parts) == 1 else b"".join(part + bytes(-len(part) & 3) for part in parts)


def encode(element: Element) -> nft.Element:
    """The element as a dump of its set shows it."""
    spec = SETS[element.set]
    key = _join(spec.key, element.key, last=False)
    end = _join(spec.key, element.key, last=True) if spec.interval else b""
    return nft.Element(key, end, _join(spec.data, element.data, last=False) if element.data else b"")
