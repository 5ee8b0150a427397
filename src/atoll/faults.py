"""Fault points: places where a test may kill the process, to prove that dying there loses and leaks nothing.

`ATOLL_FAULT=connect:3` ends the process with SIGKILL at the third step of the first `connect`. Unset, a step costs one comparison.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_verb, _, _number = os.environ.get("ATOLL_FAULT", "").partition(":")
_armed = int(_number) if _number.isdigit() else 0
_counting = False
_whole = False


def begin(verb: str) -> None:
    """A verb starts: from here its steps are counted."""
    global _counting
    if _armed and not _whole:
        _counting = verb == _verb


@contextlib.contextmanager
def whole(verb: str) -> Iterator[None]:
    """A verb that is made of others: their steps are its own."""
    global _whole
    begin(verb)
    _whole = True
    try:
        yield
    finally:
        _whole = False


def step() -> None:
    """Between two effects."""
    global _armed
    if _armed and _counting:
        _armed -= 1
        if _armed == 0:
            os.kill(os.getpid(), signal.SIGKILL)
