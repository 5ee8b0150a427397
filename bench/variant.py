"""Variants of one measurement, each in a forked process with a host of its own, sampled in turns.

A row of the table compares variants: the engine, the bare kernel, a peer. Each is built once in its own process and its own
network and mount namespaces, so that none disturbs another's rules, caches or garbage collector. Then they are sampled in rounds,
A B C, B C A, C A B ..., so that a drift of the machine falls on all alike.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atoll.errors import AtollError
from bench import netns, private, tool

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

#: Takes the samples of one round, in the row's unit.
Sample = Callable[[], Sequence[float]]


#: Seconds that a variant may take to be built, for one round, and to be taken down.
_PATIENCE = 120


@dataclass(frozen=True)
class Variant:
    """`build` sets the variant up on an empty host of its own, gives the function that samples it, and takes it down.

    Of one with `parts` the samples are those of its parts in turn, and each part is a series: what it takes to make something, and
    to take it back.
    """

    name: str
    build: Callable[[], AbstractContextManager[Sample]]
    parts: Sequence[str] = ("",)

    def series(self) -> list[Series]:
        return [Series(f"{self.name}, {part}" if part else self.name) for part in self.parts]


@dataclass
class Series:
    """What one variant gave: its samples in the row's unit, or why there are none."""

    name: str
    samples: list[float] = field(default_factory=list)
    missing: str = ""


def _serve(variant: Variant, pipe: Connection) -> None:
    """The forked process: build, then one round for each message that arrives, until one says to stop.

    Whatever it started, and whatever that left behind, falls to it and ends with it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    tool.adopt_orphans()
    try:
        netns.unshare(netns.CLONE_NEWNET | netns.CLONE_NEWNS)
        private.own_host()
        with ExitStack() as stack:
            sample = stack.enter_context(variant.build())
            pipe.send([])
            while pipe.recv():
                pipe.send(list(sample()))
    except AtollError as error:
        pipe.send(str(error))
    except Exception as error:  # whatever a peer or an unfinished engine does wrong belongs in the table, not on the terminal
        pipe.send(" ".join(f"{type(error).__name__}: {error}".split()))
    finally:
        for pid in tool.processes(os.getpid())[1:]:
            os.kill(pid, signal.SIGKILL)


class _Process:
    """One forked variant: starts in the constructor, ends with `stop`."""

    def __init__(self, variant: Variant) -> None:
        self.series = variant.series()
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(variant, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def _receive(self) -> None:
        try:
            answer = self._pipe.recv() if self._pipe.poll(_PATIENCE) else f"no answer within {_PATIENCE} s"
        except EOFError:
            answer = "its process ended without an answer"
        for number, series in enumerate(self.series):
            if isinstance(answer, str):
                series.missing = answer
                series.samples.clear()
            else:
                series.samples += answer[number :: len(self.series)]

    @property
    def _missing(self) -> bool:
        return bool(self.series[0].missing)

    def round(self) -> None:
        if not self._missing:
            self._pipe.send(True)
            self._receive()

    def stop(self) -> None:
        if self._missing:
            self._process.terminate()
        else:
            self._pipe.send(False)
        self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()
        self._pipe.close()


def compare(variants: Sequence[Variant], rounds: int) -> dict[str, Series]:
    """The samples of every variant after `rounds` rounds, by name, in the order given."""
    processes: list[_Process] = []
    try:
        processes.extend(_Process(variant) for variant in variants)
        for turn in range(rounds):
            first = turn % len(processes)
            for process in processes[first:] + processes[:first]:
                process.round()
    finally:
        for process in processes:
            process.stop()
        netns.settle()
    return {series.name: series for process in processes for series in process.series}
