"""Answers of other servers, kept for as long as they said (RFC 2308 for what doesn't exist). Bounded in number and size."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.dns import wire

if TYPE_CHECKING:
    from collections.abc import Hashable

#: At most so many answers, of so many bytes, for so many seconds.
ENTRIES: Final = 4096
SIZE: Final = 4096
LONGEST: Final = 3600


class _Entry(NamedTuple):
    stored: float
    lifetime: int
    data: bytes
    ttls: tuple[int, ...]


class Cache:
    """By a key that says all that an answer depends on."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: Hashable, data: bytes, response: wire.Response) -> None:
        if response.lifetime <= 0 or response.flags & wire.TC or len(data) > SIZE:
            return
        self._entries.pop(key, None)
        while len(self._entries) >= ENTRIES:  # the oldest goes
            del self._entries[next(iter(self._entries))]
        self._entries[key] = _Entry(time.monotonic(), min(response.lifetime, LONGEST), data, response.ttls)

    def get(self, key: Hashable) -> bytes | None:
        """The answer with what is left of its TTLs, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        age = int(time.monotonic() - entry.stored)
        if age >= entry.lifetime:
            del self._entries[key]
            return None
        return wire.aged(entry.data, entry.ttls, age)
