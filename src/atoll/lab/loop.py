"""One thread of a lab that waits for everything at once: frames to be recorded, frames to be sent later."""

from __future__ import annotations

import heapq
import itertools
import os
import queue
import selectors
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Loop:
    """Its methods may be called from any thread; what they were given runs in the loop's own."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="atoll-lab", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], object]) -> None:
        """Run a function in the loop, and return when it has run; its exception is raised here."""
        failure: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                function()
            except BaseException as error:
                failure.append(error)
            finally:
                done.set()

        self._calls.put(run)
        os.eventfd_write(self._bell, 1)
        done.wait()
        if failure:
            raise failure[0]

    def watch(self, fd: int, function: Callable[[], object]) -> None:
        """Run the function whenever the descriptor is readable."""
        self.call(partial(self._selector.register, fd, selectors.EVENT_READ, function))

    def forget(self, fd: int) -> None:
        self.call(partial(self._selector.unregister, fd))

    def at(self, when: float, function: Callable[[], None]) -> None:
        """Run a function at a time of the monotonic clock, in order of time; only from within the loop."""
        heapq.heappush(self._timers, (when, next(self._numbers), function))

    def close(self) -> None:
        def stop() -> None:
            self._open = False

        self.call(stop)
        self._thread.join()
        while self._timers:
            heapq.heappop(self._timers)[2]()
        self._selector.close()
        os.close(self._bell)

    def _run(self) -> None:
        while self._open:
            rest = self._timers[0][0] - time.monotonic() if self._timers else None
            # epoll's clock has a millisecond's grain; the rest is waited for by asking again.
            for key, _ in self._selector.select(rest if rest is None or rest > 0 else 0):
                if key.data is not None:
                    key.data()
                    continue
                os.eventfd_read(self._bell)
                while not self._calls.empty():
                    self._calls.get()()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
