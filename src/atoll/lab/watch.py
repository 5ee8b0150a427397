"""What passed: the last packets of every link are remembered, always, and written to a file when asked.

A host has one packet socket for all its links. When more comes than is read, the kernel keeps the earlier packets; nothing waits for
this.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from atoll.lab.places import Host

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from atoll.lab.links import Device, Link
    from atoll.lab.loop import Loop

_ETH_P_ALL: Final = 3
#: How much of a packet is kept, in bytes; a large segment is longer.
_KEPT: Final = 2048


class Packet(NamedTuple):
    """`time` is the wall clock's; `length` the frame's in bytes, of which `data` is the beginning."""

    time: float
    data: bytes
    length: int


class _Watched(NamedTuple):
    link: Link
    device: Device
    ring: deque[Packet]


class Watcher:
    def __init__(self, loop: Loop, ring: int) -> None:
        self._loop, self._ring = loop, ring
        self._sockets: dict[Host, socket.socket] = {}
        self._watched: dict[tuple[Host, str], _Watched] = {}
        self._writers: list[_Writer] = []

    def add(self, link: Link) -> None:
        """Watch a link at its end on a host."""
        device = link.near if isinstance(link.near.place, Host) else link.far
        host = device.place
        if not device.name or not isinstance(host, Host):
            return
        self._watched[host, device.name] = _Watched(link, device, deque(maxlen=self._ring))
        if host not in self._sockets:
            sock = host.visit(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ALL)))
            self._sockets[host] = sock
            self._loop.watch(sock.fileno(), lambda: self._read(host, sock))

    def remove(self, link: Link) -> None:
        for key in [key for key, watched in self._watched.items() if watched.link is link]:
            del self._watched[key]

    def packets(self, link: Link) -> list[Packet]:
        """The last packets of a link, oldest first."""
        self._loop.call(self._read_all)
        return next((list(watched.ring) for watched in list(self._watched.values()) if watched.link is link), [])

    def note(self, device: Device, frame: bytes) -> None:
        """A frame that was sent past the packet socket; called in the loop."""
        for watched in self._watched.values():
            if watched.device == device:
                self._keep(watched, frame, len(frame))

    @contextlib.contextmanager
    def capture(self, path: Path) -> Iterator[None]:
        with path.open("wb") as file:
            writer = _Writer(file)
            self._loop.call(self._read_all)
            self._writers.append(writer)
            try:
                yield
            finally:
                self._loop.call(self._read_all)
                self._writers.remove(writer)

    def save(self, path: Path) -> None:
        """Write the remembered packets of all links to a file, in order of time."""
        self._loop.call(self._read_all)
        with path.open("wb") as file:
            writer = _Writer(file)
            kept = [(packet, watched.link) for watched in self._watched.values() for packet in watched.ring]
            for packet, link in sorted(kept, key=lambda pair: pair[0].time):
                writer.write(link, packet)

    def close(self) -> None:
        for sock in self._sockets.values():
            self._loop.forget(sock.fileno())
            sock.close()
        self._sockets.clear()

    def _read_all(self) -> None:
        for host, sock in list(self._sockets.items()):
            self._read(host, sock)

    def _read(self, host: Host, sock: socket.socket) -> None:
        for _ in range(256):
            try:
                data, source = sock.recvfrom(65536)
            except OSError:
                return
            watched = self._watched.get((host, source[0]))
            if watched is not None:
                self._keep(watched, data, len(data))

    def _keep(self, watched: _Watched, data: bytes, length: int) -> None:
        packet = Packet(time.time(), data[:_KEPT], length)
        watched.ring.append(packet)
        for writer in self._writers:
            writer.write(watched.link, packet)


class _Writer:
    """pcapng (draft-ietf-opsawg-pcapng): a section, an interface description before a link's first packet, packets."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._numbers: dict[str, int] = {}
        self._block(0x0A0D0D0A, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1))

    def write(self, link: Link, packet: Packet) -> None:
        if link.name not in self._numbers:
            self._numbers[link.name] = len(self._numbers)
            name = link.name.encode()
            option = struct.pack("=HH", 2, len(name)) + _padded(name) + bytes(4)
            self._block(1, struct.pack("=HHI", 1, 0, 0) + option)
        stamp = int(packet.time * 1_000_000)
        head = struct.pack("=IIIII", self._numbers[link.name], stamp >> 32, stamp & 0xFFFFFFFF, len(packet.data), packet.length)
        self._block(6, head + _padded(packet.data))

    def _block(self, kind: int, body: bytes) -> None:
        length = len(body) + 12
        self._file.write(struct.pack("=II", kind, length) + body + struct.pack("=I", length))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
