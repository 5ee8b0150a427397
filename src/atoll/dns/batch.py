"""Datagrams by the batch: recvmmsg(2) and sendmmsg(2) on buffers that are made once.

Two calls for up to `SLOTS` datagrams instead of two for each, no object for a peer's address, and an answer is written over its question,
so that the id before it and the address beside it stay where they are.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS: Final = 64
#: Bytes of a datagram; of a longer one, which no query is, the rest is lost.
SIZE: Final = 2048


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("len", ctypes.c_uint32))


_libc = ctypes.CDLL(None)
_libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)

_HEADER: Final = ctypes.sizeof(_Mmsghdr)
_LENGTH: Final = struct.Struct(f"{_Mmsghdr.len.offset}xI{_HEADER - _Mmsghdr.len.offset - 4}x")
_DATA: Final = struct.Struct(f"{SIZE}s")
_VECTOR: Final = ctypes.sizeof(_Iovec)
_ROOM: Final = struct.Struct("N")

#: sockaddr_in and sockaddr_in6, whose size is the name's: the packed address alone, and all of it.
_SOURCE: Final = {4: struct.Struct("4x4s8x"), 6: struct.Struct("8x16s4x")}
_PEER_4: Final = struct.Struct(">2xH4s8x")
_PEER_6: Final = struct.Struct(">2xH4x16s")
_SCOPE: Final = struct.Struct("I")

Peer = tuple[str, int] | tuple[str, int, int, int]


class Batch:
    """Buffers for the sockets of one IP version; between `receive` and the last `send` they hold the datagrams of one."""

    def __init__(self, version: int) -> None:
        self._source = _SOURCE[version]
        self._data, self._names = bytearray(SLOTS * SIZE), bytearray(SLOTS * self._source.size)
        data, names = _start(self._data), _start(self._names)
        size = self._source.size
        self._in, self._in_vectors = _headers(data, names, size)
        self._out, self._out_vectors = _headers(data, names, size)
        self._in_at, self._out_at = ctypes.addressof(self._in), ctypes.addressof(self._out)
        self._lengths = memoryview(self._in).cast("B")
        self._rooms = memoryview(self._out_vectors).cast("B")
        self._data_view, self._names_view = memoryview(self._data), memoryview(self._names)

    def receive(self, fd: int) -> Iterator[tuple[tuple[bytes], tuple[int], tuple[bytes]]]:
        """What has come, by slot: the packed source address, the length, and the slot's bytes, of which so many count."""
        count = max(0, _libc.recvmmsg(fd, self._in_at, SLOTS, socket.MSG_DONTWAIT, None))
        return zip(
            self._source.iter_unpack(self._names_view[: count * self._source.size]),
            _LENGTH.iter_unpack(self._lengths[: count * _HEADER]),
            _DATA.iter_unpack(self._data_view[: count * SIZE]),
            strict=True,
        )

    def answer(self, slot: int, answer: bytes) -> None:
        """Put the answer but its id, which is there, where the question was."""
        at, size = slot * SIZE + 2, len(answer)
        self._data_view[at : at + size] = answer
        _ROOM.pack_into(self._rooms, slot * _VECTOR + _VECTOR - _ROOM.size, size + 2)

    def send(self, fd: int, first: int, last: int) -> int:
        """Send the answers of slots `first` up to `last`; how many couldn't be."""
        lost = 0
        while first < last:
            sent = _libc.sendmmsg(fd, self._out_at + first * _HEADER, last - first, 0)
            if sent < 0:  # of the first one; the rest may be better off
                lost += 1
            first += max(1, sent)
        return lost

    def peer(self, slot: int) -> Peer:
        """Whom a slot's datagram is from."""
        at = slot * self._source.size
        if self._source.size == _PEER_4.size:
            port, packed = _PEER_4.unpack_from(self._names, at)
            return socket.inet_ntop(socket.AF_INET, packed), port
        port, packed = _PEER_6.unpack_from(self._names, at)
        return socket.inet_ntop(socket.AF_INET6, packed), port, 0, _SCOPE.unpack_from(self._names, at + 24)[0]


def _headers(data: int, names: int, size: int) -> tuple[ctypes.Array[_Mmsghdr], ctypes.Array[_Iovec]]:
    """One header for each slot of the buffers at these addresses, where a name has `size` bytes."""
    vectors = (_Iovec * SLOTS)(*(_Iovec(data + slot * SIZE, SIZE) for slot in range(SLOTS)))
    at = ctypes.addressof(vectors)
    headers = (_Msghdr(names + slot * size, size, at + slot * _VECTOR, 1, None, 0, 0) for slot in range(SLOTS))
    return (_Mmsghdr * SLOTS)(*(_Mmsghdr(header, 0) for header in headers)), vectors


def _start(buffer: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
