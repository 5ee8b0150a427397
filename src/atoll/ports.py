"""Which host ports are published, by whom: one table for all networks, so that no two endpoints claim the same one. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.model import PublishedPort


class PortTable:
    """Published host ports by protocol and number; several may share one on different addresses."""

    def __init__(self) -> None:
        self._holders: dict[tuple[str, int], list[tuple[PublishedPort, str]]] = {}

    def conflict(self, wanted: PublishedPort) -> tuple[int, str] | None:
        """The first port that is taken and who holds it, else None."""
        for number in _numbers(wanted):
            for held, holder in self._holders.get((wanted.protocol, number), ()):
                if _overlap(held, wanted):
                    return number, holder
        return None

    def holds(self, port: PublishedPort, holder: str) -> bool:
        """Whether exactly this is published by exactly this holder."""
        return (port, holder) in self._holders.get((port.protocol, port.host_port), ())

    def add(self, port: PublishedPort, holder: str) -> None:
        for number in _numbers(port):
            self._holders.setdefault((port.protocol, number), []).append((port, holder))

    def remove(self, port: PublishedPort, holder: str) -> None:
        """Nothing there is success."""
        for number in _numbers(port):
            kept = [pair for pair in self._holders.get((port.protocol, number), ()) if pair != (port, holder)]
            if kept:
                self._holders[port.protocol, number] = kept
            else:
                self._holders.pop((port.protocol, number), None)


def _numbers(port: PublishedPort) -> Iterator[int]:
    return iter(range(port.host_port, port.host_port + port.count))


def _overlap(one: PublishedPort, other: PublishedPort) -> bool:
    """Whether some address is in both: an address is in its own, in its family's wildcard and in the empty one."""
    if 0 not in (one.host_version, other.host_version) and one.host_version != other.host_version:
        return False
    return one.wildcard or other.wildcard or one.host_ip == other.host_ip
