"""One flow of packets, told from all others, and where it is seen: packet sockets on all links of the stacks that it may pass.

What a hop rewrites (addresses, ports) doesn't tell a flow; what none touches does: a TCP sequence number that is ours, or eight bytes of
ours in a datagram or ping. The kernel filters by it (classic BPF), so other traffic costs nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import secrets
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from atoll.explain.packet import ends
from atoll.model import Address, address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.explain.snapshot import Stack

ICMP: Final = {4: 1, 6: 58}
_ALL: Final = 0x0003
_OUTGOING: Final = 4
_TO_US: Final = 0
_ATTACH_FILTER: Final = 26
#: linux/if_packet.h: a ring of frames of the second version; a frame's header (tpacket2_hdr) and behind it the link's address.
_SOL_PACKET, _RX_RING, _PACKET_VERSION, _SECOND = 263, 5, 10, 1
_FRAME, _FRAMES = 512, 1024
_FRAME_HEADER = struct.Struct("=IIIHHII")
_LINK_ADDRESS = struct.Struct("=4xi2xB")
_INSTRUCTION = struct.Struct("=HBBI")
#: linux/bpf_common.h: load a word, a byte; the length of an IPv4 header; a number into the index; compare, mask, return.
_LOAD_WORD, _LOAD_BYTE, _HEADER_LENGTH, _INDEX, _EQUAL, _AND, _RETURN = 0x40, 0x30, 0xB1, 0x01, 0x15, 0x54, 0x06


class Flow(NamedTuple):
    """`number` is what tells it: the sequence number of a SYN (32 bits), else the first bytes of what is sent (64 bits)."""

    version: int
    protocol: int
    number: int

    @property
    def token(self) -> bytes:
        return self.number.to_bytes(8, "big")

    @property
    def next(self) -> int:
        """What a SYN's answer acknowledges."""
        return (self.number + 1) & 0xFFFFFFFF

    def matches(self) -> tuple[str, ...]:
        """nft's expressions for it and its answer, in every family."""
        if self.protocol == socket.IPPROTO_TCP:
            return f"tcp sequence {self.number}", f"tcp ackseq {self.next}"
        return (f"meta l4proto {self.protocol} @th,64,64 {self.number:#018x}",)

    def filter(self) -> bytes:
        """The BPF program that takes it, beginning at the network header."""
        code = [
            (_LOAD_BYTE, 0, 0, 0), (_AND, 0, 0, 0xF0), (_EQUAL, 0, 1, self.version << 4),
            (_LOAD_BYTE, 0, 0, 9 if self.version == 4 else 6), (_EQUAL, 1, 0, self.protocol), (_RETURN, 0, 0, 0),
            (_HEADER_LENGTH, 0, 0, 0) if self.version == 4 else (_INDEX, 0, 0, 40),
        ]  # fmt: skip
        # A wrong version jumps onto the refusal as well: over one instruction, whose comparison then fails (no protocol is 0x40 or 0x60
        # of those that are asked for).
        if self.protocol == socket.IPPROTO_TCP:
            code += [
                (_LOAD_WORD, 0, 0, 4), (_EQUAL, 3, 0, self.number), (_LOAD_WORD, 0, 0, 8), (_EQUAL, 1, 0, self.next),
                (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFF),
            ]  # fmt: skip
        else:
            code += [
                (_LOAD_WORD, 0, 0, 8), (_EQUAL, 0, 2, self.number >> 32), (_LOAD_WORD, 0, 0, 12), (_EQUAL, 1, 0, self.number & 0xFFFFFFFF),
                (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFF),
            ]  # fmt: skip
        return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def new_flow(version: int, protocol: int) -> Flow:
    return Flow(version, protocol, secrets.randbits(32) if protocol == socket.IPPROTO_TCP else secrets.randbits(64))


class Sighting(NamedTuple):
    """A packet on a link, at a time in nanoseconds. `outgoing`: the stack sends it by the link; `here`: it is addressed to this stack's
    MAC there. `refusal`: a TCP reset."""

    time: int
    stack: Stack
    link: str
    outgoing: bool
    here: bool
    reply: bool
    src: Address
    dst: Address
    sport: int
    dport: int
    refusal: bool = False

    def words(self) -> str:
        return f"{ends(self.src, self.sport)} to {ends(self.dst, self.dport)}"


class Sniffer:
    """Hears one flow on all links of one stack.

    By a ring that is shared with the kernel, because there each packet has the time at which it was seen: what is received without one
    may get that of the reading while the kernel still switches its time stamps on.
    """

    def __init__(self, stack: Stack, flow: Flow) -> None:
        self.stack, self._flow, self._next = stack, flow, 0
        self._socket = stack.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.htons(_ALL)))
        try:
            program = flow.filter()
            memory = ctypes.create_string_buffer(program, len(program))
            head = struct.pack("HP", len(program) // _INSTRUCTION.size, ctypes.addressof(memory))
            self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, head)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _SECOND)
            # What came before the filter goes with this.
            blocks = _FRAMES * _FRAME // mmap.PAGESIZE
            self._socket.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("=IIII", mmap.PAGESIZE, blocks, _FRAME, _FRAMES))
            self._ring = mmap.mmap(self._socket.fileno(), _FRAMES * _FRAME)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ring.close()
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def heard(self) -> Iterator[Sighting]:
        """Since the last time."""
        while True:
            begin = self._next * _FRAME
            status, _, length, _, network, seconds, nanoseconds = _FRAME_HEADER.unpack_from(self._ring, begin)
            if not status & 1:
                return
            ifindex, kind = _LINK_ADDRESS.unpack_from(self._ring, begin + 32)
            data = self._ring[begin + network : min(begin + network + length, begin + _FRAME)]
            struct.pack_into("=I", self._ring, begin, 0)
            self._next = (self._next + 1) % _FRAMES
            link = self.stack.by_index.get(ifindex)
            with contextlib.suppress(struct.error, ValueError, IndexError):
                yield self._sighting(data, link.name if link else str(ifindex), kind, seconds * 1_000_000_000 + nanoseconds)

    def _sighting(self, data: bytes, link: str, kind: int, time: int) -> Sighting:
        four = self._flow.version == 4
        source, target, begin = (data[12:16], data[16:20], (data[0] & 15) * 4) if four else (data[8:24], data[24:40], 40)
        head = data[begin:]
        sport = dport = 0
        refusal = False
        if self._flow.protocol == socket.IPPROTO_TCP:
            sport, dport, _, acknowledged = struct.unpack_from("!HHII", head)
            reply = bool(head[13] & 0x10) and acknowledged == self._flow.next
            refusal = bool(head[13] & 0x04)
        elif self._flow.protocol == socket.IPPROTO_UDP:
            sport, dport = struct.unpack_from("!HH", head)
            reply = head[16:17] == b"!"
        else:
            reply = head[0] in (0, 129)
        where = socket.AF_INET if four else socket.AF_INET6
        src, dst = (address(socket.inet_ntop(where, packed)) for packed in (source, target))
        return Sighting(time, self.stack, link, kind == _OUTGOING, kind == _TO_US, reply, src, dst, sport, dport, refusal)
