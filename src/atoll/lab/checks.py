"""Assertions about who reaches whom that can't lie: silence counts only while the instrument is seen to work."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from atoll.lab.traffic import PATIENCE, Blind, Probe, Traffic

if TYPE_CHECKING:
    from atoll.lab.places import Place
    from atoll.lab.traffic import Transport

#: Where a canary is asked, on a place that serves nothing else there.
_CANARY_PORT: Final = 61999


class Inconclusive(AssertionError):
    """Nothing is proved: the way that is known to be open was silent too, or there was none to try."""


def assert_reachable(source: Place, target: Place, *, tcp: int = 0, udp: int = 0, address: str = "", inner: int = 0) -> None:
    """Fail unless a packet from `source` comes to a port of `target` and its answer back.

    A server that is there answers for itself (TCP only); where there is none, one is made for the moment. `address` is the one to ask,
    if it isn't the target's own: a host's, for a published port; `target` is then still who must get it, by its port `inner`.
    """
    probe = _probe(source, target, tcp, udp, address)
    with Traffic() as traffic:
        if not _serves(traffic, target, inner or probe.port, probe.transport):
            _connect(source, probe)
            return
        seen = traffic.ask([probe])[0]
    if seen is None:
        raise AssertionError(f"{probe} ({target.name}): nothing arrived within {PATIENCE:.0f} s")
    if not seen.answered:
        raise AssertionError(f"{probe} ({target.name}): it arrived, from {seen.client}, but its answer did not come back")


def assert_blocked(source: Place, target: Place, *, tcp: int = 0, udp: int = 0, address: str = "", canary: Place | None = None) -> None:
    """Fail if a packet from `source` comes to a port of `target`; raise `Inconclusive` if that can't be told.

    Before and after, `source` must reach `canary` (a neighbour of it, if none is named), and the target's server must answer the target
    itself, both by the same protocol.
    """
    probe = _probe(source, target, tcp, udp, address)
    open_to = canary or next((place for place in source.lab.places() if _are_neighbours(source, place) and place is not target), None)
    if open_to is None or not source.links:
        raise Inconclusive(f"{source.name} has no neighbour that it surely reaches; name one: canary=")
    with Traffic() as traffic:
        if not _serves(traffic, target, probe.port, probe.transport):
            raise Inconclusive(f"{target.name} serves {probe.port}/{probe.transport} itself, so it can't be seen what arrives there")
        traffic.serve(_Here(open_to), _CANARY_PORT)
        canaries = [
            Probe(_Here(source), open_to.address_from(source), _CANARY_PORT, probe.transport),
            Probe(_Here(target), target.address, probe.port, probe.transport),
        ]
        try:
            leaks = traffic.leaking([probe], canaries)
        except Blind as error:
            raise Inconclusive(str(error)) from None
    if leaks:
        raise AssertionError(f"not blocked: {leaks[0]}")


class _Here:
    """A place of a lab as traffic wants it: quick."""

    def __init__(self, place: Place) -> None:
        self.name = place.name
        self.run = place.visit


def _probe(source: Place, target: Place, tcp: int, udp: int, address: str) -> Probe:
    if bool(tcp) == bool(udp):
        raise ValueError("expected one port: tcp=80 or udp=53")
    transport: Transport = "tcp" if tcp else "udp"
    return Probe(_Here(source), address or target.address_from(source), tcp or udp, transport)


def _serves(traffic: Traffic, place: Place, port: int, transport: Transport) -> bool:
    """Serve a port, unless there is a server already."""
    try:
        traffic.serve(_Here(place), port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        if transport == "udp":
            raise Inconclusive(f"{place.name} serves {port}/udp or {port}/tcp itself, so it can't be seen what arrives there") from None
        return False
    return True


def _connect(source: Place, probe: Probe) -> None:
    def connect() -> None:
        socket.create_connection((probe.address, probe.port), timeout=PATIENCE).close()

    try:
        source.run(connect)
    except OSError as error:
        raise AssertionError(f"{probe}: {error}") from None


def _are_neighbours(one: Place, other: Place) -> bool:
    mine = {link.medium for link in one.links}
    return one is not other and any(link.medium in mine for link in other.links)
