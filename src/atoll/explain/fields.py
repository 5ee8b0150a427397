"""A packet's fields under nftables' names, and the constants that rules compare them with. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from atoll.explain.packet import CT_STATE, CT_STATUS, Packet

_PROTOCOLS: Final = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "ipv6-icmp": 58, "icmpv6": 58, "sctp": 132, "esp": 50, "ah": 51}
_FIB: Final = {"unspec": 0, "unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5, "blackhole": 6, "unreachable": 7}
_ICMP: Final = {"echo-reply": 0, "destination-unreachable": 3, "redirect": 5, "echo-request": 8, "time-exceeded": 11}
_ICMP6: Final = {
    "destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4, "echo-request": 128, "echo-reply": 129,
    "mld-listener-query": 130, "mld-listener-report": 131, "mld-listener-done": 132, "mld-listener-reduction": 132,
    "nd-router-solicit": 133, "nd-router-advert": 134, "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136, "nd-redirect": 137,
    "mld2-listener-report": 143,
}  # fmt: skip
_FLAGS: Final = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32}
_ETHER: Final = {"ip": 0x0800, "arp": 0x0806, "ip6": 0x86DD, "vlan": 0x8100}
_NFPROTO: Final = {"ipv4": 2, "ipv6": 10}
_NAMES: Final[dict[str, dict[str, int]]] = {
    "proto": _PROTOCOLS, "fib": _FIB, "icmp": _ICMP, "icmp6": _ICMP6, "state": CT_STATE, "status": CT_STATUS,
    "flags": _FLAGS, "ether": _ETHER, "nfproto": _NFPROTO,
}  # fmt: skip


class Unknown(Exception):
    """An expression that can't be judged."""


class Absent(Exception):
    """The packet has no such field, so the rule ends here."""


class Value(NamedTuple):
    kind: str
    value: Any


def unknown(body: Any, _: Packet) -> Value:
    raise Unknown(str(body))


def meta(body: dict[str, Any], packet: Packet) -> Value:
    key = body["key"]
    if key in ("l4proto", "nfproto") and packet.ether == "arp":
        raise Absent
    known: dict[str, Value] = {
        "iifname": Value("ifname", packet.iif), "iif": Value("ifname", packet.iif),
        "oifname": Value("ifname", packet.oif), "oif": Value("ifname", packet.oif),
        "l4proto": Value("proto", packet.protocol), "nfproto": Value("nfproto", 2 if packet.version == 4 else 10),
        "mark": Value("number", packet.mark), "protocol": Value("ether", _ETHER[packet.ether]),
    }  # fmt: skip
    if key not in known:
        raise Unknown(key)
    return known[key]


def ct(body: dict[str, Any], packet: Packet) -> Value:
    key = body["key"]
    if key == "state":
        return Value("state", packet.state)
    if not packet.is_known:
        raise Absent
    if key == "status":
        return Value("status", packet.status)
    if key == "mark":
        return Value("number", packet.connection_mark)
    if key == "direction":
        return Value("direction", "reply" if packet.reply else "original")
    raise Unknown(key)


def payload(body: dict[str, Any], packet: Packet) -> Value:
    if "protocol" not in body:
        if (body.get("base"), body.get("offset"), body.get("len")) == ("th", 64, 128) and packet.target is not None:
            return Value("number128", int(packet.target))
        raise Unknown("raw payload")
    protocol, field = body["protocol"], body["field"]
    if protocol == "ether":
        frame = {"saddr": Value("mac", packet.mac), "type": Value("ether", _ETHER[packet.ether])}
        return frame.get(field) or unknown(field, packet)
    if protocol == "arp":
        if packet.ether != "arp":
            raise Absent
        return {
            "saddr ip": Value("address", packet.src),
            "saddr ether": Value("mac", packet.mac),
            "daddr ip": Value("address", packet.dst),
        }.get(field) or unknown(field, packet)
    if packet.ether == "arp":
        raise Absent
    if protocol in ("ip", "ip6"):
        if packet.ether != protocol:
            raise Absent
        fields = {
            "saddr": Value("address", packet.src), "daddr": Value("address", packet.dst), "protocol": Value("proto", packet.protocol),
            "nexthdr": Value("proto", packet.protocol),
        }  # fmt: skip
        return fields.get(field) or unknown(field, packet)
    if protocol in ("icmp", "icmpv6"):
        if packet.protocol != (1 if protocol == "icmp" else 58):
            raise Absent
        return Value("icmp" if protocol == "icmp" else "icmp6", packet.icmp) if field == "type" else unknown(field, packet)
    if protocol != "th" and packet.protocol != _PROTOCOLS.get(protocol, -1):
        raise Absent
    if packet.protocol not in (6, 17, 33, 132, 136):
        raise Absent
    if field == "flags":
        return Value("flags", 18 if packet.reply else 2)
    return {"sport": Value("number", packet.sport), "dport": Value("number", packet.dport)}.get(field) or unknown(field, packet)


def exthdr(body: dict[str, Any], packet: Packet) -> Value:
    """Nothing that is asked about has extension headers."""
    if "field" in body or packet.version != 6:
        raise Absent
    return Value("exists", False)


def constant(kind: str, value: Any) -> Any:
    """A constant of the ruleset as what `_value` gives for that kind."""
    if isinstance(value, bool):
        return value
    if kind == "address":
        try:
            return ipaddress.ip_address(value)
        except ValueError:
            raise Unknown(str(value)) from None
    if kind in ("ifname", "mac", "direction"):
        return str(value)
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        if value in _NAMES.get(kind, {}):
            return _NAMES[kind][value]
        try:
            return int(value, 0)
        except ValueError:
            raise Unknown(value) from None
    raise Unknown(str(value))


def bits(kind: str, value: Any) -> int:
    if isinstance(value, dict) and "|" in value:
        value = value["|"]
    if isinstance(value, list):
        return sum({bits(kind, part) for part in value})
    return int(constant(kind, value))


READERS: Final[dict[str, Callable[[Any, Packet], Value]]] = {"meta": meta, "ct": ct, "payload": payload, "exthdr": exthdr}
