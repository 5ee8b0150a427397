"""iptables' own expressions, as nft_compat and the legacy tables hold them: a name, a revision and the bytes of a C struct.

Layouts and meanings are those of linux/netfilter/xt_*.h, netfilter_ipv4/ipt_*.h and the kernel's net/netfilter/xt_*.c; a new layout gets
a new revision, so a pair that is not in the tables below is unknown, and so is whatever needs a state that can't be seen (owner, recent,
statistic, ipset...). Pure.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from atoll.explain.fields import Unknown
from atoll.explain.packet import CT_STATE, CT_STATUS, Nat, Packet
from atoll.kernel.netlink import attribute_list, attributes, string
from atoll.kernel.nft import NFPROTO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from atoll.model import Address

#: What `fib` finds: the result that is wanted, the flags, the packet.
Fib = Callable[[str, tuple[str, ...], Packet], "str | int"]
_TCP, _UDP, _ICMP, _ICMP6, _SCTP = 6, 17, 1, 58, 132
_KINDS: Final[dict[str, Literal["match", "target"]]] = {"match": "match", "target": "target"}
_U32: Final = 0xFFFFFFFF
_FAMILIES: Final = {number: name for name, number in NFPROTO.items()}


class Extension(NamedTuple):
    kind: Literal["match", "target"]
    name: str
    revision: int
    info: bytes

    def statement(self) -> dict[str, Any]:
        """As libnftables' JSON has it, with what it leaves out."""
        return {"xt": {"type": self.kind, "name": self.name, "revision": self.revision, "info": self.info}}


# --- reading -------------------------------------------------------------------------------------------------------------------------


def extensions(body: bytes) -> tuple[tuple[str, str, str, int], list[Extension]]:
    """Where a rule of a dump is (family, table, chain, handle), and its expressions of this kind in their order.

    linux/netfilter/nf_tables.h, nft_rule_attributes; nf_tables_compat.h. Raises `ValueError` when a length leaves the message.
    """
    found = attributes(body, 4)
    where = _FAMILIES.get(body[0], ""), string(found.get(1, b"")), string(found.get(2, b"")), int.from_bytes(found.get(3, b""), "big")
    listed = []
    for _, item in attribute_list(found.get(4, b"")):
        expression = attributes(item)
        kind = _KINDS.get(string(expression.get(1, b"")))
        if kind is not None:
            data = attributes(expression.get(2, b""))
            listed.append(Extension(kind, string(data.get(1, b"")), int.from_bytes(data.get(2, b""), "big"), data.get(3, b"")))
    return where, listed


def families(ruleset: Iterable[dict[str, Any]]) -> set[str]:
    """Those with rules that have such expressions."""
    return {item["rule"]["family"] for item in ruleset if "rule" in item and any("xt" in said for said in item["rule"]["expr"])}


def complete(ruleset: Iterable[dict[str, Any]], dump: Iterable[bytes]) -> None:
    """Put what the kernel holds where libnftables' JSON only says `xt`. A rule that isn't the same in both stays as it was: unknown."""
    held = dict(extensions(body) for body in dump)
    for item in ruleset:
        if "rule" not in item:
            continue
        rule = item["rule"]
        places = [number for number, said in enumerate(rule["expr"]) if "xt" in said]
        listed = held.get((rule["family"], rule["table"], rule["chain"], rule["handle"]), [])
        if len(places) == len(listed):
            for number, extension in zip(places, listed, strict=True):
                rule["expr"][number] = extension.statement()


# --- judging -------------------------------------------------------------------------------------------------------------------------


def matches(body: dict[str, Any], packet: Packet, fib: Fib) -> bool:
    """Raises `Unknown`."""
    judge = MATCHES.get((str(body["name"]), int(body.get("revision", -1))))
    if judge is None or packet.ether not in ("ip", "ip6"):
        raise Unknown(str(body["name"]))
    try:
        return judge(body["info"], packet, fib)
    except (struct.error, LookupError):
        raise Unknown(str(body["name"])) from None


def act(body: dict[str, Any], packet: Packet) -> Literal["drop"] | Nat | None:
    """What a target does to a packet beyond what it writes to it; None goes on to the next rule. Raises `Unknown`."""
    if body["name"] in HARMLESS:
        return None
    if body["name"] == "REJECT":
        return "drop"
    judge = TARGETS.get((str(body["name"]), int(body.get("revision", -1))))
    if judge is None or packet.ether not in ("ip", "ip6"):
        raise Unknown(str(body["name"]))
    try:
        return judge(body["info"], packet)
    except struct.error:
        raise Unknown(str(body["name"])) from None


def _within(low: int, value: int, high: int) -> bool:
    return low <= value <= high


def _unless(hit: int, inverted: int) -> bool:
    return bool(hit) != bool(inverted)


def _is(packet: Packet, *protocols: int) -> None:
    """Rules say the protocol before they ask for its fields; one that doesn't isn't understood."""
    if packet.protocol not in protocols:
        raise Unknown("protocol")


def _true(_info: bytes, _packet: Packet, _fib: Fib) -> bool:
    return True


def _tcp(info: bytes, packet: Packet, _: Fib) -> bool:
    _is(packet, _TCP)
    s_low, s_high, d_low, d_high, option, mask, wanted, inverted = struct.unpack_from("=4H4B", info)
    flags = 18 if packet.reply else 2
    hit = (
        _unless(_within(s_low, packet.sport, s_high), inverted & 1)
        and _unless(_within(d_low, packet.dport, d_high), inverted & 2)
        and _unless(flags & mask == wanted, inverted & 4)
    )
    if hit and option:
        raise Unknown("tcp option")
    return hit


def _udp(info: bytes, packet: Packet, _: Fib) -> bool:
    _is(packet, _UDP)
    s_low, s_high, d_low, d_high, inverted = struct.unpack_from("=4HB", info)
    return _unless(_within(s_low, packet.sport, s_high), inverted & 1) and _unless(_within(d_low, packet.dport, d_high), inverted & 2)


def _sctp(info: bytes, packet: Packet, _: Fib) -> bool:
    _is(packet, _SCTP)
    d_low, d_high, s_low, s_high = struct.unpack_from("=4H", info)
    flags, inverted = struct.unpack_from("=2I", info, 60)
    if flags & 1 and not _unless(_within(s_low, packet.sport, s_high), inverted & 1):
        return False
    if flags & 2 and not _unless(_within(d_low, packet.dport, d_high), inverted & 2):
        return False
    if flags & 4:
        raise Unknown("chunk types")
    return True


def _icmp(info: bytes, packet: Packet, _: Fib) -> bool:
    """Whatever is asked about has code 0. Of IPv4's types 255 is any."""
    _is(packet, _ICMP, _ICMP6)
    kind, low, high, inverted = struct.unpack_from("=4B", info)
    anything = kind == 255 and packet.protocol == _ICMP
    return _unless(anything or (kind == packet.icmp and _within(low, 0, high)), inverted & 1)


def _multiport(info: bytes, packet: Packet, _: Fib) -> bool:
    _is(packet, _TCP, _UDP, _SCTP, 33, 136)
    which, count = struct.unpack_from("=2B", info)
    ports = struct.unpack_from("=15H", info, 2)[: min(count, 15)]
    goes_on = struct.unpack_from("=15B", info, 32)
    (inverted,) = struct.unpack_from("=B", info, 47)
    asked = {0: (packet.sport,), 1: (packet.dport,), 2: (packet.sport, packet.dport)}[which]
    number, hit = 0, False
    while number < len(ports):
        low = high = ports[number]
        if goes_on[number]:
            number += 1
            high = ports[number]
        hit = hit or any(_within(low, port, high) for port in asked)
        number += 1
    return _unless(hit, inverted)


def _mark(info: bytes, packet: Packet, _: Fib) -> bool:
    mark, mask, inverted = struct.unpack_from("=2IB", info)
    return _unless(packet.mark & mask == mark, inverted)


def _connmark(info: bytes, packet: Packet, _: Fib) -> bool:
    mark, mask, inverted = struct.unpack_from("=2IB", info)
    return packet.is_known and _unless(packet.connection_mark & mask == mark, inverted)


def _address_type(info: bytes, packet: Packet, fib: Fib) -> bool:
    source, destination, flags = struct.unpack_from("=2HI", info)
    limits = (("iif",) if flags & 4 else ()) + (("oif",) if flags & 8 else ())
    for mask, which, inverted in ((source, "saddr", flags & 1), (destination, "daddr", flags & 2)):
        if mask and not _unless(_has_type(mask, which, limits, packet, fib), inverted):
            return False
    return True


def _old_address_type(info: bytes, packet: Packet, fib: Fib) -> bool:
    source, destination, source_inverted, destination_inverted = struct.unpack_from("=2H2I", info)
    return _address_type(struct.pack("=2HI", source, destination, bool(source_inverted) | bool(destination_inverted) << 1), packet, fib)


def _has_type(mask: int, which: str, limits: tuple[str, ...], packet: Packet, fib: Fib) -> bool:
    kind = int(fib("type", (which, *limits), packet))
    if packet.version == 4:
        return bool(mask >> kind & 1)
    # Of IPv6 unicast and multicast are of the address alone, and local is asked for beside them.
    if mask & ~0b100110:
        raise Unknown("address type")
    multicast = (packet.src if which == "saddr" else packet.dst).is_multicast
    return not (mask >> 5 & 1 and not multicast) and not (mask >> 1 & 1 and multicast) and not (mask >> 2 & 1 and kind != 2)


#: xt_conntrack.h: XT_CONNTRACK_*.
_STATE, _PROTO, _STATUS, _DIRECTION, _ALIAS = 1, 2, 1 << 6, 1 << 12, 1 << 13


def _conntrack(states: str) -> Callable[[bytes, Packet, Fib], bool]:
    """By the format of the two masks, which is what the revisions differ in."""

    def judge(info: bytes, packet: Packet, _: Fib) -> bool:
        (protocol,) = struct.unpack_from("=H", info, 136)
        asked, inverted = struct.unpack_from("=2H", info, 146)
        state_mask, status_mask = struct.unpack_from(states, info, 150)
        state = packet.state
        if state == CT_STATE["untracked"]:
            state = 1 << 8
        elif packet.is_known:
            state |= bool(packet.status & CT_STATUS["snat"]) << 6 | bool(packet.status & CT_STATUS["dnat"]) << 7
        if asked & _STATE and not _unless(state & state_mask, inverted & _STATE):
            return False
        if not packet.is_known:
            return bool(asked & _STATE)
        if asked & _DIRECTION and not _unless(not packet.reply, inverted & _DIRECTION):
            return False
        if asked & _PROTO and not _unless(packet.protocol == protocol, inverted & _PROTO):
            return False
        if asked & _STATUS and not status_mask & ~(CT_STATUS["snat"] | CT_STATUS["dnat"]):
            if not _unless(packet.status & status_mask, inverted & _STATUS):
                return False
            asked &= ~_STATUS
        if asked & ~(_STATE | _PROTO | _DIRECTION | _ALIAS):
            raise Unknown("conntrack")
        return True

    return judge


def _state(info: bytes, packet: Packet, _: Fib) -> bool:
    (mask,) = struct.unpack_from("=I", info)
    return bool(packet.state & mask)


def _ip_range(info: bytes, packet: Packet, _: Fib) -> bool:
    size = 4 if packet.version == 4 else 16
    ends = [int.from_bytes(info[at : at + size], "big") for at in (0, 16, 32, 48)]
    (flags,) = struct.unpack_from("=B", info, 64)
    sides = ((1, packet.src, ends[0], ends[1]), (2, packet.dst, ends[2], ends[3]))
    return all(_unless(_within(low, int(side), high), flags & bit << 4) for bit, side, low, high in sides if flags & bit)


def _mac(info: bytes, packet: Packet, _: Fib) -> bool:
    if not packet.mac or packet.iif in ("", "lo"):
        raise Unknown("mac")
    address, inverted = struct.unpack_from("=6s2xi", info)
    return _unless(bytes.fromhex(packet.mac.replace(":", "")) == address, inverted)


def _packet_type(info: bytes, _packet: Packet, _fib: Fib) -> bool:
    """What is led through hooks here is for this host: PACKET_HOST, 0."""
    kind, inverted = struct.unpack_from("=2i", info)
    return _unless(kind == 0, inverted)


#: A limit lets through what comes now and then, which is what one packet is.
MATCHES: Final[dict[tuple[str, int], Callable[[bytes, Packet, Fib], bool]]] = {
    ("comment", 0): _true, ("limit", 0): _true,
    ("tcp", 0): _tcp, ("udp", 0): _udp, ("sctp", 0): _sctp, ("icmp", 0): _icmp, ("icmp6", 0): _icmp, ("multiport", 1): _multiport,
    ("mark", 1): _mark, ("connmark", 1): _connmark, ("addrtype", 0): _old_address_type, ("addrtype", 1): _address_type,
    ("conntrack", 1): _conntrack("=2B"), ("conntrack", 2): _conntrack("=2H"), ("conntrack", 3): _conntrack("=2H"), ("state", 0): _state,
    ("iprange", 1): _ip_range, ("mac", 0): _mac, ("pkttype", 0): _packet_type,
}  # fmt: skip


# --- targets -------------------------------------------------------------------------------------------------------------------------


def _set_mark(info: bytes, packet: Packet) -> None:
    mark, mask = struct.unpack_from("=2I", info)
    packet.mark = packet.mark & ~mask ^ mark


def _set_connmark(info: bytes, packet: Packet) -> None:
    mark, mask, packet_mask, mode = struct.unpack_from("=3IB", info)
    _move_marks(packet, mode, mark, mask, packet_mask)


def _shift_connmark(info: bytes, packet: Packet) -> None:
    mark, mask, packet_mask, right, shift, mode = struct.unpack_from("=3I3B", info)
    _move_marks(packet, mode, mark, mask, packet_mask, -shift if right else shift)


def _move_marks(packet: Packet, mode: int, mark: int, mask: int, packet_mask: int, shift: int = 0) -> None:
    """xt_connmark.h: 0 sets the connection's, 1 saves the packet's there, 2 puts it back."""

    def shifted(value: int) -> int:
        return value << shift & _U32 if shift >= 0 else value >> -shift

    if mode not in (0, 1, 2):
        raise Unknown("CONNMARK")
    if not packet.is_known:
        return
    if mode == 2:
        packet.mark = packet.mark & ~packet_mask ^ shifted(packet.connection_mark & mask)
    else:
        kept = packet.connection_mark & ~mask
        packet.connection_mark = shifted(kept ^ mark) if mode == 0 else kept ^ shifted(packet.mark & packet_mask)


def _ct(info: bytes, packet: Packet) -> None:
    flags, zone = struct.unpack_from("=2H", info)
    if zone or flags & ~3:
        raise Unknown("zone")
    if flags & 1:
        packet.tracked, packet.state = False, CT_STATE["untracked"]


def _no_track(_: bytes, packet: Packet) -> None:
    packet.tracked, packet.state = False, CT_STATE["untracked"]


def _nat(kind: Literal["dnat", "snat"], layout: Literal["ip", "range", "range2", "by family"]) -> Callable[[bytes, Packet], Nat]:
    """nf_nat_ipv4_multi_range_compat, nf_nat_range or nf_nat_range2. One of several addresses or ports is chosen by a hash: unknown."""

    def judge(info: bytes, packet: Packet) -> Nat:
        if layout == "ip" or (layout == "by family" and packet.version == 4):
            count, flags, low, high, port, last_port = struct.unpack_from("=2I4s4s2s2s", info)
            if count != 1:
                raise Unknown("several ranges")
        else:
            flags, low, high, port, last_port = struct.unpack_from("=I16s16s2s2s", info)
            if packet.version == 4:
                low, high = low[:4], high[:4]
        chosen: Address | None = None
        if flags & 1:
            chosen = ipaddress.ip_address(low)
            if low != high:
                raise Unknown("one of several addresses")
        if flags & ~0b11111 or (flags & 2 and port != last_port):
            raise Unknown("one of several ports")
        return Nat(kind, chosen, int.from_bytes(port, "big") if flags & 2 else 0)

    return judge


#: Whatever their revision, they neither decide nor write what is looked at here.
HARMLESS: Final = frozenset(
    {"LOG", "NFLOG", "ULOG", "CHECKSUM", "TCPMSS", "TCPOPTSTRIP", "DSCP", "TOS", "ECN", "CLASSIFY", "TRACE", "AUDIT", "SECMARK",
     "CONNSECMARK", "LED", "RATEEST", "IDLETIMER", "TEE", "SET"}
)  # fmt: skip
TARGETS: Final[dict[tuple[str, int], Callable[[bytes, Packet], Nat | None]]] = {
    ("MARK", 2): _set_mark, ("CONNMARK", 1): _set_connmark, ("CONNMARK", 2): _shift_connmark,
    ("CT", 0): _ct, ("CT", 1): _ct, ("CT", 2): _ct, ("NOTRACK", 0): _no_track,
    ("DNAT", 0): _nat("dnat", "ip"), ("DNAT", 1): _nat("dnat", "range"), ("DNAT", 2): _nat("dnat", "range2"),
    ("SNAT", 0): _nat("snat", "ip"), ("SNAT", 1): _nat("snat", "range"),
    ("MASQUERADE", 0): _nat("snat", "by family"), ("REDIRECT", 0): _nat("dnat", "by family"),
}  # fmt: skip
