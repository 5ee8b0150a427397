"""The event loop: who is called when a descriptor is ready or a time has come. One thread, level-triggered epoll(7), times in seconds."""

from __future__ import annotations

import heapq
import itertools
import select
import time
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
#: Descriptors served in a row before timers have their turn.
_EVENTS = 64
#: Errors of ours that are shown; more would be somebody's way to fill a log.
_SHOWN = 10
BROKEN = select.EPOLLERR | select.EPOLLHUP


class Loop:
    """Runs until `stop`. A handler gets the events; it may be called once too often, as a number that was closed is soon used again.

    What a handler raises is an error of ours; it is shown and counted in `errors`, and everybody else is still served.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._running = True
        self.errors = 0

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Before the descriptor is closed."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def after(self, delay: float, function: Callable[[], None]) -> None:
        """Call once; whoever no longer wants it must find that out when it is called."""
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._numbers), function))

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        while self._running:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for fd, events in self._epoll.poll(timeout, _EVENTS):
                if (handler := self._handlers.get(fd)) is not None:
                    try:
                        handler(events)
                    except Exception:
                        self._failed()
            now = time.monotonic() if self._timers else 0.0
            while self._timers and self._timers[0][0] <= now:
                try:
                    heapq.heappop(self._timers)[2]()
                except Exception:
                    self._failed()

    def _failed(self) -> None:
        self.errors += 1
        if self.errors <= _SHOWN:
            traceback.print_exc()
