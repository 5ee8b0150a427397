"""What has happened, numbered: a ring of the last events, and those who follow."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_KEPT: Final = 4096
#: A follower that reads slower than this many events behind is sent away rather than kept in memory.
_BACKLOG: Final = 10_000


class Events:
    """Events have a number that only grows, a time (seconds since the epoch), a kind such as `endpoint.connect`, and fields."""

    def __init__(self) -> None:
        self._ring: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._number = 0
        self._followers: set[asyncio.Queue[dict[str, Any] | None]] = set()

    def add(self, kind: str, fields: dict[str, Any]) -> None:
        """Only from the event loop's thread."""
        self._number += 1
        event = {"number": self._number, "time": time.time(), "event": kind, **fields}
        self._ring.append(event)
        for queue in list(self._followers):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._followers.discard(queue)

    def since(self, number: int) -> list[dict[str, Any]]:
        return [event for event in self._ring if event["number"] > number]

    async def follow(self, number: int) -> AsyncIterator[dict[str, Any] | None]:
        """The events after `number` as they come; None when nothing came for a while, so that a dead connection is noticed."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_BACKLOG)
        self._followers.add(queue)
        try:
            for event in self.since(number):
                yield event
            while queue in self._followers or not queue.empty():
                try:
                    yield await asyncio.wait_for(queue.get(), 15)
                except TimeoutError:
                    yield None
        finally:
            self._followers.discard(queue)
