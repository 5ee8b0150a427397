"""DNS messages as bytes (RFC 1035, EDNS by RFC 6891): queries are read, answers to them built.

A query that a resolver sends has one question and perhaps an OPT record, and its names are never compressed, so that a pointer in
one is an error and no loop can be built. Other records are stepped over, not understood. All of it either gives a value or raises
`Malformed`.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

A: Final = 1
SOA: Final = 6
PTR: Final = 12
AAAA: Final = 28
SRV: Final = 33
OPT: Final = 41
IXFR: Final = 251
AXFR: Final = 252
ANY: Final = 255
IN: Final = 1

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16

QR: Final = 0x8000
OPCODE: Final = 0x7800
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
AD: Final = 0x0020
CD: Final = 0x0010
RCODE: Final = 0x000F

#: The largest message over UDP that we send, and say that we take: no fragment on any usual path (DNS flag day 2020).
PAYLOAD: Final = 1232
#: The largest over UDP for one who says nothing.
CLASSIC: Final = 512
#: The largest over TCP, whose length field has two bytes.
LARGEST: Final = 65535
HEADER: Final = 12

_HEADER: Final = struct.Struct(">HHHHHH")
_FIXED: Final = struct.Struct(">HHIH")
_QUESTION: Final = struct.Struct(">HH")
#: The question's name, by a pointer to where every message has it.
_QNAME: Final = b"\xc0\x0c"
_REVERSE_4: Final = ".in-addr.arpa"
_REVERSE_6: Final = ".ip6.arpa"


class Malformed(ValueError):
    """Not a DNS query as RFC 1035 has it."""


class Edns(NamedTuple):
    """What a query's OPT record says. `options`: there are some, so that the query is like no other."""

    payload: int
    version: int
    do: bool
    options: bool


class Query(NamedTuple):
    """A query. `name` is in lower case without the last dot, a dot within a label as `\\.`; `question` is its question section, and
    `top` where in the message the last label of the name is, or its end for the root."""

    id: int
    flags: int
    name: str
    kind: int
    cls: int
    question: bytes
    top: int
    edns: Edns | None

    @property
    def room(self) -> int:
        """Bytes that an answer over UDP may have."""
        return max(CLASSIC, min(self.edns.payload, PAYLOAD)) if self.edns else CLASSIC


def read_query(data: bytes) -> Query:
    """The query in a message. Raises `Malformed`."""
    try:
        identity, flags, questions, answers, authority, additional = _HEADER.unpack_from(data)
        if questions != 1 or answers or authority:
            raise Malformed("a query has one question and no answer")
        labels: list[bytes] = []
        at = top = HEADER
        while size := data[at]:
            if size > 63 or at + size > HEADER + 253:
                raise Malformed("a name with a pointer or too long")
            labels.append(data[at + 1 : at + 1 + size])
            top, at = at, at + 1 + size
        kind, cls = _QUESTION.unpack_from(data, at + 1)
        end = at + 5
        question = data[HEADER:end]
        edns = None
        for _ in range(additional):
            end, kind_of, size_of, ttl, length = _step(data, end)
            if kind_of == OPT:
                if edns is not None:
                    raise Malformed("two OPT records")
                edns = Edns(size_of, ttl >> 16 & 0xFF, bool(ttl & 0x8000), length > 0)
        if end != len(data):
            raise Malformed("more bytes than the header says")
    except (IndexError, struct.error):
        raise Malformed("shorter than its fields say") from None
    if any(b"." in label for label in labels):
        labels = [label.replace(b".", b"\\.") for label in labels]
    return Query(identity, flags, b".".join(labels).lower().decode("latin-1"), kind, cls, question, top, edns)


def _step(data: bytes, at: int) -> tuple[int, int, int, int, int]:
    """Past the record at `at`: where the next one begins; its type, class, TTL and length of data."""
    at = skip_name(data, at)
    kind, cls, ttl, length = _FIXED.unpack_from(data, at)
    at += 10 + length
    if at > len(data):
        raise Malformed("a record beyond the end")
    return at, kind, cls, ttl, length


def skip_name(data: bytes, at: int) -> int:
    """Where the name at `at` ends; a pointer ends it and isn't followed. Raises IndexError, `Malformed`."""
    while size := data[at]:
        if size >= 0xC0:
            return at + 2
        if size > 63:
            raise Malformed("a label of an unknown kind")
        at += 1 + size
    return at + 1


class Response(NamedTuple):
    """What matters in somebody's answer. `lifetime` is for how many seconds it holds (0: not at all), `ttls` are where its TTLs are."""

    flags: int
    question: bytes
    lifetime: int
    ttls: tuple[int, ...]


def read_response(data: bytes) -> Response:
    """An answer, as far as one who passes it on must understand it. Raises `Malformed`.

    What doesn't exist holds for as long as the SOA record beside it says (RFC 2308, section 5), and not at all without one.
    """
    try:
        _, flags, questions, answers, authority, additional = _HEADER.unpack_from(data)
        at = HEADER
        for _ in range(questions):
            at = skip_name(data, at) + 4
        question, ttls, least = data[HEADER:at], [], 1 << 31
        if at > len(data):
            raise Malformed("a question beyond the end")
        negative = None
        for number in range(answers + authority + additional):
            begin = skip_name(data, at)
            at, kind, _, ttl, length = _step(data, at)
            if kind == OPT:
                continue
            ttls.append(begin + 4)
            least = min(least, ttl)
            if kind == SOA and answers <= number < answers + authority and length >= 20:
                negative = min(ttl, struct.unpack_from(">I", data, at - 4)[0])
    except (IndexError, struct.error):
        raise Malformed("shorter than its fields say") from None
    rcode = flags & RCODE
    if rcode == NXDOMAIN or (rcode == NOERROR and not answers):
        least = min(least, negative or 0)
    elif rcode != NOERROR:
        least = 0
    # A TTL with the highest bit set counts as zero (RFC 2181, section 8).
    return Response(flags, question, least if ttls and least < 1 << 31 else 0, tuple(ttls))


def aged(data: bytes, ttls: Sequence[int], age: int) -> bytes:
    """An answer `age` seconds later."""
    if not age:
        return data
    old = bytearray(data)
    for at in ttls:
        (ttl,) = struct.unpack_from(">I", old, at)
        struct.pack_into(">I", old, at, max(0, ttl - age))
    return bytes(old)


def folded(question: bytes) -> bytes:
    """A question section so that two that ask the same are equal. Type and class, after the name, have no case: HTTPS is 65, an `A`."""
    return question[: -_QUESTION.size].lower() + question[-_QUESTION.size :]


def respell(data: bytes, query: Query) -> bytes:
    """Somebody's answer to the same question as one for this query: with its id, and its way to spell the name."""
    end = HEADER + len(query.question)
    same = int.from_bytes(data[4:6], "big") == 1 and folded(data[HEADER:end]) == folded(query.question)
    return query.id.to_bytes(2, "big") + (data[2:HEADER] + query.question + data[end:] if same else data[2:])


def cut(data: bytes, query: Query, room: int) -> bytes:
    """Somebody's answer if it has room, else only that it was cut (RFC 2181, section 9)."""
    if len(data) <= room:
        return data
    flags = int.from_bytes(data[2:4], "big") | TC
    extra = opt(query)
    return _HEADER.pack(query.id, flags, 1, 0, 0, 1 if extra else 0) + query.question + extra


# --- answers of our own -------------------------------------------------------------------------------------------------------------


def encode_name(name: str) -> bytes:
    """A name as bytes, not compressed. Raises `Malformed` for what can't be one, such as `a..b`."""
    encoded = b""
    for label in name.rstrip(".").encode("latin-1", "replace").split(b"."):
        if not 0 < len(label) < 64:
            raise Malformed(f"{name} is no name")
        encoded += bytes((len(label),)) + label
    if len(encoded) > 254:
        raise Malformed(f"{name} is too long")
    return encoded + b"\0"


def record(kind: int, data: bytes, owner: bytes = _QNAME) -> bytes:
    """A resource record; ours have no lifetime, as the next moment may bring another."""
    return owner + _FIXED.pack(kind, IN, 0, len(data)) + data


def soa(query: Query) -> bytes:
    """The SOA record that makes a negative answer one. The zone is the name's top label: `atoll`, or whatever we were asked below."""
    zone = (0xC000 | query.top).to_bytes(2, "big") if query.name else b"\0"
    return record(SOA, zone + b"\x06nobody\x07invalid\0" + struct.pack(">IIIII", 1, 3600, 600, 86400, 0), zone)


def opt(query: Query, rcode: int = NOERROR) -> bytes:
    """The OPT record of an answer, where the query has one."""
    if query.edns is None:
        return b""
    return b"\0" + _FIXED.pack(OPT, PAYLOAD, (rcode >> 4) << 24 | (0x8000 if query.edns.do else 0), 0)


class Answer:
    """An answer without its id: records in any order between what stays the same."""

    __slots__ = ("_head", "_records", "_tail")

    def __init__(self, head: bytes, records: list[bytes], tail: bytes) -> None:
        self._head, self._records, self._tail = head, records, tail

    def message(self) -> bytes:
        random.shuffle(self._records)
        return self._head + b"".join(self._records) + self._tail


def build(query: Query, rcode: int, room: int, answers: Sequence[bytes] = (), extra: Sequence[bytes] = ()) -> Answer:
    """An answer of at most `room` bytes. Without any record it says by a SOA record that there is none.

    Of too many answers those that fit are sent and the message marked as cut: some resolvers take them and ask no more.
    """
    negative = soa(query) if not answers and rcode in (NOERROR, NXDOMAIN) else b""
    edns = opt(query, rcode)
    left = room - HEADER - len(query.question) - len(negative) - len(edns)
    # Shuffled first, so that each of too many comes in turn.
    chosen = random.sample(list(answers), len(answers))
    sizes = sum(map(len, chosen))
    flags = 0
    if sizes > left:
        flags = TC
        while sizes > left:
            sizes -= len(chosen.pop())
    helpful = list(extra) if not flags and sizes + sum(map(len, extra)) <= left else []
    own = 0 if rcode in (REFUSED, FORMERR, NOTIMP, BADVERS, SERVFAIL) else AA
    flags |= QR | own | RA | (query.flags & (OPCODE | RD | CD)) | (rcode & RCODE)
    counts = _HEADER.pack(0, flags, 1, len(chosen), bool(negative), len(helpful) + bool(edns))
    return Answer(counts[2:] + query.question, chosen, negative + b"".join(helpful) + edns)


def complaint(data: bytes) -> bytes | None:
    """The answer to a message that can't be read, or None where silence is best: to what is no query, to what is shorter than a header."""
    if len(data) < HEADER or data[2] & 0x80:
        return None
    flags = int.from_bytes(data[2:4], "big")
    rcode = NOTIMP if flags & OPCODE else FORMERR
    return data[:2] + (QR | RA | flags & (OPCODE | RD) | rcode).to_bytes(2, "big") + bytes(8)


def address_of(name: str) -> str:
    """The address that a name below in-addr.arpa or ip6.arpa stands for, in its canonical form, or "" where it isn't a whole one."""
    try:
        if name.endswith(_REVERSE_4):
            return str(ipaddress.IPv4Address(".".join(reversed(name.removesuffix(_REVERSE_4).split(".")))))
        if name.endswith(_REVERSE_6):
            digits = name.removesuffix(_REVERSE_6).split(".")
            if len(digits) == 32 and all(len(digit) == 1 for digit in digits):
                return str(ipaddress.IPv6Address(bytes.fromhex("".join(reversed(digits)))))
    except ValueError:
        pass
    return ""


def packed(address: str) -> bytes:
    """An address as the kernel has it."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def reverse_of(address: str) -> str:
    """The name below in-addr.arpa or ip6.arpa for an address."""
    return ipaddress.ip_address(address).reverse_pointer
