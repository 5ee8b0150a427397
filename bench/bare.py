"""The floor's variants: the kernel's own cost of each row, without an engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench import netns, traffic
from bench.floor import SKELETON, Floor, Target, attached
from bench.traffic import Published

if TYPE_CHECKING:
    from bench.variant import Sample

#: The first of the ports that are only there to be many; those below are for what is timed.
FIRST = 4096


@contextmanager
def connecting(endpoints: int, count: int) -> Iterator[Sample]:
    """Milliseconds to connect one namespace beside `endpoints` others; a round gives `count` samples and takes them back."""
    with attached(endpoints) as floor:

        def sample() -> Sequence[float]:
            targets = [floor.prepare() for _ in range(count)]
            results: list[float] = []
            for target in targets:
                begin = time.perf_counter_ns()
                floor.connect(target)
                results.append((time.perf_counter_ns() - begin) / 1e6)
            for target in targets:
                floor.disconnect(target)
                floor.release(target)
            return results

        yield sample


def _published(ports: int) -> tuple[Floor, Target]:
    floor = Floor()
    target = floor.prepare()
    floor.connect(target)
    floor.publish(range(FIRST, FIRST + ports), target.address)
    return floor, target


@contextmanager
def publishing(ports: int, count: int) -> Iterator[Sample]:
    """Milliseconds to publish one port beside `ports` others."""
    floor, target = _published(ports)

    def sample() -> Sequence[float]:
        results: list[float] = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            floor.publish([1000], target.address)
            results.append((time.perf_counter_ns() - begin) / 1e6)
            floor.unpublish(1000)
        return results

    yield sample


@contextmanager
def published(ports: int) -> Iterator[Published]:
    """A client outside and the middle one of `ports` published ports."""
    _, target = _published(ports)
    yield Published(traffic.outside(), target.namespace, f"{traffic.OUTSIDE}.1", FIRST + ports // 2)


@contextmanager
def churning(count: int) -> Iterator[Sample]:
    """Seconds to create `count` namespaces, connect and remove them, until the kernel has taken the last one down.

    The links go with their namespaces, many at a time, which is the cheapest way there is.
    """
    with attached(0) as floor:

        def sample() -> Sequence[float]:
            begin = time.perf_counter()
            targets = [floor.prepare() for _ in range(count)]
            for target in targets:
                floor.connect(target)
            for target in targets:
                floor.nftables.apply(target.fewer)
                floor.release(target)
            netns.settle()
            return [time.perf_counter() - begin]

        yield sample


@contextmanager
def repairing(endpoints: int) -> Iterator[Sample]:
    """Seconds to load the skeleton and the elements of `endpoints` again after a flush."""
    with attached(0) as floor:
        targets = [floor.prepare() for _ in range(endpoints)]
        text = b"\n".join([SKELETON.encode(), *(target.elements for target in targets)])
        flush = b"flush ruleset"
        floor.nftables.apply(flush)

        def sample() -> Sequence[float]:
            begin = time.perf_counter()
            floor.nftables.apply(text)
            elapsed = time.perf_counter() - begin
            floor.nftables.apply(flush)
            return [elapsed]

        yield sample
