"""Messages between the name server and its parent, on a stream: length and kind, then the body as msgpack.

Each is answered by one of its kind: an `Update` by `Done`, an empty one for statistics by these.
"""

from __future__ import annotations

import struct
from typing import Final

UPDATE: Final = 1
STATS: Final = 2

_LENGTH: Final = struct.Struct(">IB")


def put(kind: int, body: bytes) -> bytes:
    return _LENGTH.pack(len(body), kind) + body


def take(buffer: bytearray) -> tuple[int, bytes] | None:
    """The first whole message of a buffer, which loses it."""
    if len(buffer) < _LENGTH.size:
        return None
    size, kind = _LENGTH.unpack_from(buffer)
    end = _LENGTH.size + size
    if len(buffer) < end:
        return None
    body = bytes(buffer[_LENGTH.size : end])
    del buffer[:end]
    return kind, body
