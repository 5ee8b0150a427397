"""Traffic control over routing netlink: queues that limit a rate, and the hooks by which what arrives is led elsewhere, as messages to
send and as dumps to read (linux/pkt_sched.h, pkt_cls.h). Verbs and words are tc's."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.kernel.netlink import (
    CREATE,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Socket,
    attribute,
    attributes,
    message,
    nested,
    number,
    string,
    text,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_GETQDISC: Final = 38
RTM_NEWTFILTER: Final = 44
RTM_GETTFILTER: Final = 46

_TCA_KIND: Final = 1
_TCA_OPTIONS: Final = 2
_TCA_TBF_PARMS: Final = 1
_TCA_TBF_RATE64: Final = 4
_TCA_TBF_BURST: Final = 6
_TC_H_ROOT: Final = 0xFFFFFFFF
_TC_H_INGRESS: Final = 0xFFFFFFF1

_TC = struct.Struct("=BxxxiIII")


class QueueRow(NamedTuple):
    """A queue; `rate` in bytes a second, 0 for kinds that limit none."""

    ifindex: int
    kind: str
    rate: int


#: One tick of the packet scheduler's clock is 64 ns (PSCHED_SHIFT 6), and rates are bytes a second.
_TICKS_PER_SECOND: Final = 1_000_000_000 / 64


def tbf_burst(rate: int) -> int:
    """A burst in bytes that lets a timer of 4 ms and one large segment (64 KiB) through; `rate` in bits a second."""
    return max(rate // 8 // 250, 65_536)


def tbf_limit(rate: int) -> int:
    """The queue in bytes: the burst and 50 ms of the rate; `rate` in bits a second."""
    return tbf_burst(rate) + rate // 8 // 20


def add_tbf(index: int, rate: int) -> bytes:
    """A token bucket as root queue, `rate` in bits a second (tc-tbf(8))."""
    byte_rate, burst = max(rate // 8, 1), tbf_burst(rate)
    capped = min(byte_rate, 0xFFFFFFFF)
    # tc_ratespec: cell_log, linklayer (1 = ethernet), overhead, cell_align, mpu, rate
    spec = struct.pack("=BBHhHI", 0, 1, 0, -1, 0, capped)
    buffer = min(int(burst * _TICKS_PER_SECOND / byte_rate), 0xFFFFFFFF)
    parms = spec + struct.pack("=BBHhHI", 0, 0, 0, 0, 0, 0) + struct.pack("=III", tbf_limit(rate), buffer, 0)
    # The old field ends at 34 Gbit/s; what is more travels beside it.
    wide = attribute(_TCA_TBF_RATE64, struct.pack("=Q", byte_rate)) if byte_rate > capped else b""
    options = nested(_TCA_OPTIONS, attribute(_TCA_TBF_PARMS, parms), wide, u32(_TCA_TBF_BURST, burst))
    return message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, _TC.pack(0, index, 0, _TC_H_ROOT, 0) + text(_TCA_KIND, "tbf") + options)


def add_ingress(index: int) -> bytes:
    """The hook for what arrives on an interface (`tc qdisc replace dev X ingress`); one that is there stays."""
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return message(RTM_NEWQDISC, flags, _TC.pack(0, index, 0xFFFF0000, _TC_H_INGRESS, 0) + text(_TCA_KIND, "ingress"))


def delete_queue(index: int, parent: str) -> bytes:
    """`tc qdisc delete dev X root` or `ingress`."""
    handle, place = (0, _TC_H_ROOT) if parent == "root" else (0xFFFF0000, _TC_H_INGRESS)
    return message(RTM_DELQDISC, 0, _TC.pack(0, index, handle, place, 0))


def add_clsact(index: int) -> bytes:
    """The hooks for what arrives on an interface and for what leaves by it (`tc qdisc add dev X clsact`)."""
    return message(RTM_NEWQDISC, CREATE, _TC.pack(0, index, 0xFFFF0000, _TC_H_INGRESS, 0) + text(_TCA_KIND, "clsact"))


def delete_clsact(index: int) -> bytes:
    return message(RTM_DELQDISC, 0, _TC.pack(0, index, 0xFFFF0000, _TC_H_INGRESS, 0) + text(_TCA_KIND, "clsact"))


def add_redirect(index: int, target: int, *, leaving: bool = False) -> bytes:
    """Send all that arrives on an interface (or is `leaving` by it, which wants clsact) out of another: a u32 filter that matches
    everything, with `mirred egress redirect`."""
    # tc_u32_sel: flags (1 = terminal), offshift, nkeys, offmask, off, offoff, hoff, hmask; then one key that compares nothing
    selector = struct.pack("=BBBxHHhhI", 1, 0, 1, 0, 0, 0, 0, 0) + struct.pack("=IIii", 0, 0, 0, 0)
    # tc_mirred: index, capab, action (4 = stolen), refcnt, bindcnt, eaction (1 = egress redirect), ifindex
    mirred = struct.pack("=IIiiiiI", 0, 0, 4, 0, 0, 1, target)
    action = nested(1, text(1, "mirred"), nested(2, attribute(2, mirred)))
    options = nested(_TCA_OPTIONS, attribute(5, selector), nested(7, action))
    eth_p_all = int.from_bytes(struct.pack("=H", socket.htons(3)), "little")
    # By its number, as the first of the first table, so that it takes the place of one that led elsewhere.
    body = _TC.pack(0, index, 0x80000800, 0xFFFFFFF3 if leaving else 0xFFFF0000, (1 << 16) | eth_p_all)
    return message(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, body + text(_TCA_KIND, "u32") + options)


def queues(sock: Socket) -> Iterator[QueueRow]:
    """Every queue that is not the kernel's default."""
    for answer in sock.dump(message(RTM_GETQDISC, 0, _TC.pack(0, 0, 0, 0, 0))):
        if answer.type != RTM_NEWQDISC or len(answer.body) < _TC.size:
            continue
        _, index, handle, _, _ = _TC.unpack_from(answer.body)
        if handle:
            found = attributes(answer.body, _TC.size)
            kind = string(found.get(_TCA_KIND, b""))
            yield QueueRow(index, kind, _tbf_rate(found.get(_TCA_OPTIONS, b"")) if kind == "tbf" else 0)


def has_ingress_filter(sock: Socket, index: int) -> bool:
    """Whether anything is done to what arrives on an interface."""
    request = message(RTM_GETTFILTER, 0, _TC.pack(0, index, 0, 0xFFFF0000, 0))
    return any(answer.type == RTM_NEWTFILTER for answer in sock.dump(request))


def _tbf_rate(options: bytes) -> int:
    found = attributes(options)
    wide, parms = found.get(_TCA_TBF_RATE64, b""), found.get(_TCA_TBF_PARMS, b"")
    return number(wide) if wide else number(parms[8:12])
