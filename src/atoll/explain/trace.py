"""Which nft rule dropped a packet, as the kernel itself tells: `meta nftrace` set for one flow only, by a table of our own that is gone
afterwards, and the trace's messages read by netlink (linux/netfilter/nf_tables.h, nft_trace_attributes)."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.errors import AtollError
from atoll.explain.snapshot import PROBE_TABLE, Stack
from atoll.kernel import netlink, nft

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from atoll.kernel.netlink import Message
    from atoll.model import Address

#: NFNLGRP_NFTRACE, NFT_MSG_TRACE
_GROUP: Final = 9
_TRACE: Final = 10 << 8 | 17
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _POLICY = 1, 2, 3, 4, 5, 16
_BY_POLICY, _BY_RULE = 1, 3
#: NF_DROP, and what a rule that answers in the packet's stead leaves behind: NF_STOLEN.
_ENDS: Final = (0, 2)
_FAMILIES: Final = {number: name for name, number in nft.NFPROTO.items()}
_GONE: Final = "".join(f"add table {family} {PROBE_TABLE}\ndelete table {family} {PROBE_TABLE}\n" for family in ("inet", "bridge"))


class Drop(NamedTuple):
    """`handle` is 0 where a chain's policy dropped it."""

    family: str
    table: str
    chain: str
    handle: int = 0

    def words(self, stack: Stack) -> str:
        chain = f"{self.family} {self.table} {self.chain}"
        if not self.handle:
            return f"the policy of chain {chain}"
        text = stack.rule_text(*self)
        return f"{chain} handle {self.handle}" + (f": {text}" if text else "")


def parse(event: Message) -> Drop | None:
    """What a trace message says of a packet's end; None for one that goes on. Raises `ValueError` when a length leaves the message."""
    if event.type != _TRACE or not event.body:
        return None
    found = netlink.attributes(event.body, 4)
    kind, end = _big(found.get(_TYPE)), -1
    if kind == _BY_RULE:
        end = _big(netlink.attributes(found.get(_VERDICT, b"")).get(1), -1)
    elif kind == _BY_POLICY:
        end = _big(found.get(_POLICY), -1)
    if end not in _ENDS:
        return None
    family = _FAMILIES.get(event.body[0], str(event.body[0]))
    where = netlink.string(found.get(_TABLE, b"")), netlink.string(found.get(_CHAIN, b""))
    return Drop(family, *where, _big(found.get(_HANDLE)) if kind == _BY_RULE else 0)


def _big(payload: bytes | None, default: int = 0) -> int:
    return int.from_bytes(payload, "big") if payload else default


def script(matches: Sequence[str], ends: Sequence[Address]) -> str:
    """The table, made anew: its rules mark the flow, and on bridges what its two ends ask each other for their link addresses."""
    marks = [f"{match} meta nftrace set 1" for match in matches]
    asks = [f"{match} meta nftrace set 1" for match in _neighbours(ends)]
    parts = [_GONE]
    for family, rules in (("inet", marks + [ask for ask in asks if not ask.startswith("arp")]), ("bridge", marks + asks)):
        body = "".join(
            f"chain {hook} {{ type filter hook {hook} priority -1000; policy accept;\n" + "\n".join(rules) + "\n}\n"
            for hook in ("prerouting", "output")
        )
        parts.append(f"table {family} {PROBE_TABLE} {{\n{body}}}\n")
    return "".join(parts)


def _neighbours(ends: Sequence[Address]) -> Iterator[str]:
    """ARP, or neighbour discovery, among these addresses."""
    four = sorted({str(end) for end in ends if end.version == 4})
    if four:
        yield f"arp saddr ip {{ {', '.join(four)} }} arp daddr ip {{ {', '.join(four)} }}"
    six = sorted({end for end in ends if end.version == 6})
    for end in six:
        yield f"icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} @th,64,128 {int(end):#x}"


@contextlib.contextmanager
def traced(stack: Stack, text: str) -> Iterator[netlink.Socket]:
    """A socket that gets a stack's traces while the table of `script` is there. What a killed probe left is removed as well."""
    with stack.open_nft() as tables, stack.run(lambda: nft.open_socket((_GROUP,))) as sock:
        try:
            tables.apply(text)
            yield sock
        finally:
            with contextlib.suppress(AtollError):
                tables.apply(_GONE)


def drops(sock: netlink.Socket) -> list[Drop]:
    """Those that were told of since the last look; none where the kernel lost messages."""
    found = []
    with contextlib.suppress(OSError, ValueError, struct.error):
        found = [drop for event in sock.events() if (drop := parse(event)) is not None]
    return found
