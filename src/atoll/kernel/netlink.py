"""Netlink: framing, attributes, requests, dumps and events on one blocking socket.

A message is `nlmsghdr` (length u32, type u16, flags u16, sequence u32, port id u32), then a body, then attributes (length u16,
type u16, payload), each padded to 4 bytes (linux/netlink.h). A request is one or more messages in one datagram; the kernel works
through them in order and answers each error, and the last success because only the last message asks for an acknowledgement.

Nothing here knows what a link or a rule is. Every length that comes from outside is checked before it is used.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.errors import Failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

NLM_F_REQUEST: Final = 0x001
NLM_F_ACK: Final = 0x004
NLM_F_DUMP_INTR: Final = 0x010
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
NLM_F_DUMP: Final = 0x300
#: What a request that makes something carries: it must not exist yet.
CREATE: Final = NLM_F_CREATE | NLM_F_EXCL

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF

_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSGERR_ATTR_MSG: Final = 1
#: linux/err.h, MAX_ERRNO
_LARGEST_ERROR: Final = 4095

_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_LISTEN_ALL_NSID: Final = 8
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12
_SO_RCVBUFFORCE: Final = 33

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_S32 = struct.Struct("=i")
HEADER_SIZE: Final = _HEADER.size
#: The kernel never sends a larger dump part than 32 KiB unless the reader's buffer is larger; a single message may be.
_RECEIVE_SIZE: Final = 1 << 17


class Message(NamedTuple):
    """One message as it came: its type, flags, sequence number, sender's port id, and everything behind the header.

    `namespace` is the id by which the socket's namespace knows the one that an event comes from; None for its own.
    """

    type: int
    flags: int
    sequence: int
    port: int
    body: bytes
    namespace: int | None = None


class NetlinkError(Failed):
    """The kernel refused a request. `errno` is its number, `index` says which message of the datagram it was."""

    def __init__(self, number: int, text: str, index: int = 0) -> None:
        super().__init__(text or os.strerror(number), errno=number)
        self.index = index


def message(kind: int, flags: int, body: bytes) -> bytes:
    """One request message; the sequence number and the acknowledgement are set when it is sent."""
    return _HEADER.pack(HEADER_SIZE + len(body), kind, flags | NLM_F_REQUEST, 0, 0) + body


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    length = 4 + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + b"\0" * (-length & 3)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def u32(kind: int, value: int) -> bytes:
    """An attribute with a 32-bit number in the machine's byte order."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """An attribute with a string and its closing NUL."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from `offset` on, by type without the flag bits; of a type that repeats, the last.

    Raises `ValueError` when a length leaves the data.
    """
    return dict(attribute_list(data, offset))


def attribute_list(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Like `attributes`, each pair in its order, repeats included."""
    end = len(data)
    while end - offset >= 4:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or length > end - offset:
            raise ValueError(f"netlink attribute of {length} bytes in {end - offset}")
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def string(payload: bytes) -> str:
    """A string attribute's text, with or without its closing NUL."""
    return payload.split(b"\0", 1)[0].decode("utf-8", "replace")


def number(payload: bytes) -> int:
    """An unsigned number attribute of any width in the machine's byte order."""
    return int.from_bytes(payload, "little")


def messages(data: bytes, namespace: int | None = None) -> Iterator[Message]:
    """The messages of one datagram. Raises `ValueError` when a length leaves the data."""
    offset, end = 0, len(data)
    while end - offset >= HEADER_SIZE:
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if length < HEADER_SIZE or length > end - offset:
            raise ValueError(f"netlink message of {length} bytes in {end - offset}")
        yield Message(kind, flags, sequence, port, data[offset + HEADER_SIZE : offset + length], namespace)
        offset += (length + 3) & ~3


def _error_number(answer: Message) -> int:
    """What an NLMSG_ERROR or NLMSG_DONE message begins with: the negative of an error's number, 0 for success."""
    number: int = -_S32.unpack_from(answer.body)[0]
    if not 0 <= number <= _LARGEST_ERROR:
        raise ValueError(f"netlink error number {number}")
    return number


def _refusal(answer: Message, index: int) -> NetlinkError | None:
    """The error that an NLMSG_ERROR message carries, with the kernel's own words; None when it is an acknowledgement."""
    if len(answer.body) < 4 + HEADER_SIZE:
        raise ValueError("netlink error message cut short")
    code = _error_number(answer)
    if code == 0:
        return None
    words = ""
    if answer.flags & _NLM_F_ACK_TLVS:
        # The request is echoed whole unless the kernel capped it to its header; the attributes follow it.
        echoed = HEADER_SIZE if answer.flags & _NLM_F_CAPPED else int.from_bytes(answer.body[4:8], "little")
        extra = attributes(answer.body, 4 + ((echoed + 3) & ~3))
        words = string(extra.get(_NLMSGERR_ATTR_MSG, b""))
    return NetlinkError(code, f"{words} ({os.strerror(code)})" if words else "", index)


class Socket:
    """One blocking netlink socket of the network namespace that the calling thread is in when it is made.

    It belongs to that namespace for good, so it may be used from any thread, by one at a time.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE, groups: Sequence[int] = (), *, all_namespaces: bool = False) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            if protocol == NETLINK_ROUTE:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            if groups:
                # An event burst of 1,000 attachments must not overrun the buffer (about 4 MiB).
                try:
                    self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
                except PermissionError:
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            if all_namespaces:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, 1)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """Our address on the netlink bus; the kernel puts it into the events that our requests cause."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, *requests: bytes, acknowledged: int = -1) -> list[NetlinkError]:
        """Send the messages as one datagram and return what the kernel refused, in order; an empty list is success.

        The kernel goes on after a refused message, so a caller that raises must also undo. `acknowledged` is the position of the
        message whose answer is the last: another than the last one in a batch, whose closing message the kernel does not answer.
        """
        if not requests:
            return []
        answering = acknowledged % len(requests)
        first = self._sequence + 1
        self._sequence += len(requests)
        data = bytearray(b"".join(requests))
        offset = 0
        for index, part in enumerate(requests):
            struct.pack_into("=I", data, offset + 8, first + index)
            offset += len(part)
        data[sum(map(len, requests[:answering])) + 6] |= NLM_F_ACK
        self._socket.send(data)
        refused: list[NetlinkError] = []
        while True:
            for answer in messages(self._receive()):
                if answer.type != NLMSG_ERROR or not first <= answer.sequence <= self._sequence:
                    continue
                index = answer.sequence - first
                error = _refusal(answer, index)
                if error is not None:
                    refused.append(error)
                if index == answering:
                    return refused

    def execute(self, *requests: bytes) -> None:
        """Like `request`, but raises the first refusal."""
        for error in self.request(*requests):
            raise error

    def ask(self, request: bytes) -> Message:
        """The one answer to a request that is not a dump. Raises `NetlinkError`."""
        sequence = self._send_one(request, 0)
        while True:
            for answer in messages(self._receive()):
                if answer.sequence != sequence:
                    continue
                if answer.type == NLMSG_ERROR:
                    error = _refusal(answer, 0)
                    if error is None:
                        raise NetlinkError(errno.EBADMSG, "the kernel acknowledged but did not answer")
                    raise error
                return answer

    def dump(self, request: bytes) -> list[Message]:
        """All answers to a dump request. A dump that was changed under way is asked again (at most five times)."""
        for _ in range(5):
            answers, complete = self._dump_once(request)
            if complete:
                return answers
        raise NetlinkError(errno.EINTR, "the kernel's tables change faster than they can be read")

    def _dump_once(self, request: bytes) -> tuple[list[Message], bool]:
        sequence = self._send_one(request, NLM_F_DUMP)
        answers: list[Message] = []
        complete = True
        while True:
            for answer in messages(self._receive()):
                if answer.sequence != sequence:
                    continue
                if answer.flags & NLM_F_DUMP_INTR:
                    complete = False
                if answer.type == NLMSG_DONE:
                    code = _error_number(answer) if len(answer.body) >= _S32.size else 0
                    if code:
                        raise NetlinkError(code, "")
                    return answers, complete
                if answer.type == NLMSG_ERROR:
                    error = _refusal(answer, 0)
                    if error is not None:
                        raise error
                    return answers, complete
                answers.append(answer)

    def events(self) -> list[Message]:
        """The events that wait, without blocking. Raises `OSError` ENOBUFS when some were lost."""
        found: list[Message] = []
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(_RECEIVE_SIZE, 64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            namespace = None
            for level, kind, payload in ancillary:
                if level == _SOL_NETLINK and kind == _NETLINK_LISTEN_ALL_NSID and len(payload) == 4:
                    namespace = _S32.unpack(payload)[0]
            found.extend(messages(data, namespace))

    def _send_one(self, request: bytes, flags: int) -> int:
        self._sequence += 1
        data = bytearray(request)
        struct.pack_into("=HI", data, 6, int.from_bytes(request[6:8], "little") | flags, self._sequence)
        self._socket.send(data)
        return self._sequence

    def _receive(self) -> bytes:
        return self._socket.recv(_RECEIVE_SIZE)
