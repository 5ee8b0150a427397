"""Connection tracking: forget connections, by the host port they first came to or by an address they use.

A connection keeps its NAT for life, so one that was made before a port was published or unpublished would go on along the old path.
The kernel filters the list itself (CTA_FILTER, since Linux 5.8, linux/netfilter/nfnetlink_conntrack.h); what it lists is then deleted
entry by entry, each by its own tuple and id, so nothing else can be hit.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

from atoll.kernel.netlink import NLA_F_NESTED, attribute, attribute_list, attributes, message, nested, u32

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from atoll.kernel.netlink import Message, Socket
    from atoll.kernel.rtnl import Address

PROTOCOL_NUMBER: Final = {"tcp": 6, "udp": 17, "sctp": 132}

_SUBSYSTEM: Final = 1
_NEW: Final = _SUBSYSTEM << 8 | 0
_GET: Final = _SUBSYSTEM << 8 | 1
_DELETE: Final = _SUBSYSTEM << 8 | 2
_TUPLE_ORIG: Final = 1
_TUPLE_REPLY: Final = 2
_ID: Final = 12
_ZONE: Final = 18
_FILTER: Final = 25
_FILTER_ORIG_FLAGS: Final = 1
_FILTER_REPLY_FLAGS: Final = 2
_BY_SOURCE: Final = 1 << 0
_BY_PROTOCOL: Final = 1 << 3
_BY_DESTINATION_PORT: Final = 1 << 5
_TUPLE_IP: Final = 1
_TUPLE_PROTO: Final = 2
_IP_SOURCE: Final = {4: 1, 6: 3}
_PROTO_NUM: Final = 1
_PROTO_DST_PORT: Final = 3
#: As many deletions as fit comfortably into one datagram.
_CHUNK: Final = 256


def forget(sock: Socket, addresses: Collection[Address], ports: Collection[tuple[str, int, int]]) -> int:
    """Forget connections from or to these addresses, and those whose first packet went to one of these (protocol, port, count), whatever
    they were rewritten to; how many there were.

    A walk over the kernel's table costs about 9 ms whatever it finds, so many questions are put in one unfiltered walk.
    """
    if len(addresses) + len(ports) > 1:
        packed = {address.packed for address in addresses}
        return _delete(sock, [entry for entry in _list(sock, socket.AF_UNSPEC) if _concerns(entry, packed, ports)])
    count = sum(_forget_port(sock, *port) for port in ports)
    return count + sum(_forget_address(sock, address) for address in addresses)


def _concerns(entry: Message, packed: Collection[bytes], ports: Collection[tuple[str, int, int]]) -> bool:
    found = attributes(entry.body, 4)
    for kind in (_TUPLE_ORIG, _TUPLE_REPLY):
        ends = attributes(attributes(found.get(kind, b"")).get(_TUPLE_IP, b""))
        if ends.get(_IP_SOURCE[4], ends.get(_IP_SOURCE[6], b"")) in packed:
            return True
    proto, port = _first_port(entry)
    return any(proto == PROTOCOL_NUMBER[name] and first <= port < first + count for name, first, count in ports)


def _forget_port(sock: Socket, protocol: str, port: int, count: int) -> int:
    proto = attribute(_PROTO_NUM, bytes([PROTOCOL_NUMBER[protocol]]))
    flags = _BY_PROTOCOL
    if count == 1:
        proto += attribute(_PROTO_DST_PORT, struct.pack("!H", port))
        flags |= _BY_DESTINATION_PORT
    wanted = (
        nested(_TUPLE_ORIG, nested(_TUPLE_PROTO, proto)),
        nested(_FILTER, u32(_FILTER_ORIG_FLAGS, flags), u32(_FILTER_REPLY_FLAGS, 0)),
    )
    found = (entry for family in (socket.AF_INET, socket.AF_INET6) for entry in _list(sock, family, *wanted))
    return _delete(sock, [entry for entry in found if port <= _first_port(entry)[1] < port + count])


def _forget_address(sock: Socket, address: Address) -> int:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    source = nested(_TUPLE_IP, attribute(_IP_SOURCE[address.version], address.packed))
    by_origin = nested(_TUPLE_ORIG, source), nested(_FILTER, u32(_FILTER_ORIG_FLAGS, _BY_SOURCE), u32(_FILTER_REPLY_FLAGS, 0))
    by_reply = nested(_TUPLE_REPLY, source), nested(_FILTER, u32(_FILTER_ORIG_FLAGS, 0), u32(_FILTER_REPLY_FLAGS, _BY_SOURCE))
    return sum(_delete(sock, list(_list(sock, family, *wanted))) for wanted in (by_origin, by_reply))


def _header(family: int) -> bytes:
    return struct.pack("=BBH", family, 0, 0)


def _list(sock: Socket, family: int, *wanted: bytes) -> Iterator[Message]:
    return (entry for entry in sock.dump(message(_GET, 0, _header(family) + b"".join(wanted))) if entry.type == _NEW)


def _first_port(entry: Message) -> tuple[int, int]:
    """The protocol's number and the port that the first packet went to (0 for protocols without ports)."""
    tuple_ = attributes(attributes(entry.body, 4).get(_TUPLE_ORIG, b""))
    proto = attributes(tuple_.get(_TUPLE_PROTO, b""))
    return int.from_bytes(proto.get(_PROTO_NUM, b""), "big"), int.from_bytes(proto.get(_PROTO_DST_PORT, b""), "big")


def _delete(sock: Socket, entries: list[Message]) -> int:
    """Delete listed entries; one that has ended meanwhile is as good as deleted."""
    requests: list[bytes] = []
    for entry in entries:
        kept = (
            attribute(kind | (NLA_F_NESTED if kind == _TUPLE_ORIG else 0), payload)
            for kind, payload in attribute_list(entry.body, 4)
            if kind in (_TUPLE_ORIG, _ID, _ZONE)
        )
        requests.append(message(_DELETE, 0, entry.body[:4] + b"".join(kept)))
    for start in range(0, len(requests), _CHUNK):
        sock.request(*requests[start : start + _CHUNK])
    return len(entries)
