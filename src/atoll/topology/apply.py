"""Making a host as a topology says: changes, several at once where they are independent, through one small interface.

A `Host` is where they are made: the daemon (`atoll.cli.topology`), or an engine in this process (`EngineHost`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import structs

from atoll.errors import AtollError, Failed, Unsupported
from atoll.topology.difference import (
    Change,
    Connect,
    CreateNamespace,
    CreateNetwork,
    Current,
    Disconnect,
    Publish,
    RemoveNamespace,
    RemoveNetwork,
    StartProgram,
    Unpublish,
    difference,
)
from atoll.view import namespace_view, network_view, run_view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from atoll.engine import Engine
    from atoll.topology.value import Topology

#: Requests under way at once. An engine does one after the other, but need not wait for the next one to come.
_AT_ONCE: Final = 8


class Host(Protocol):
    """Where changes are made. `at_once`: whether `do` may be called by several threads."""

    at_once: bool

    def current(self) -> Current:
        """What there is."""

    def do(self, change: Change) -> Sequence[str]:
        """Make one change; lines that explain what was chosen. Raises what kept it from that."""


class EngineHost:
    """An engine of this process, for labs and tests. It starts no programs: those are processes of whoever has the daemon."""

    at_once = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def current(self) -> Current:
        engine = self._engine
        return Current(
            [network_view(engine, network) for network in engine.networks()],
            [namespace_view(engine, namespace) for namespace in engine.namespaces()],
            [run_view(engine, run) for run in engine.runs()],
        )

    def do(self, change: Change) -> Sequence[str]:
        engine = self._engine
        match change:
            case Unpublish():
                engine.unpublish(change.namespace, change.ports, network=change.network)
            case Disconnect():
                engine.disconnect(change.network, change.namespace)
            case RemoveNamespace():
                engine.remove_namespace(change.name)
            case RemoveNetwork():
                engine.remove_network(change.name)
            case CreateNetwork():
                return engine.create_network_explained(change.request).notes
            case CreateNamespace():
                engine.create_namespace(change.name, change.labels, servers=change.servers)
            case Connect():
                engine.connect(namespace=change.namespace, **structs.asdict(change.connection))
            case Publish():
                engine.publish(change.namespace, change.ports, network=change.network)
            case _:
                raise Unsupported("an engine in this process starts and stops no programs", "use the daemon: atoll up")
        return ()


def apply(topology: Topology, engine: Engine, *, orphans: bool = True) -> tuple[Change, ...]:
    """Make an engine's host as a topology says; what was changed. Programs are left out.

    from atoll.topology import apply, parse
    apply(parse(text, "lab.yaml").topology, engine)
    """
    host = EngineHost(engine)
    changes = difference(structs.replace(topology, programs=()), host.current(), orphans=orphans)
    carry_out(changes, host)
    return changes


def carry_out(changes: Sequence[Change], host: Host, told: Callable[[Change, Sequence[str]], None] | None = None) -> None:
    """Make changes in their order. What fails is raised when what was under way beside it is done; the rest is left for the next time."""
    for batch in batches(changes):
        errors: list[AtollError] = []
        for change, answer in _answers(batch, host):
            try:
                notes = answer()
            except AtollError as error:
                errors.append(error)
            else:
                if told is not None:
                    told(change, notes)
        _report(errors)


def _answers(batch: Sequence[Change], host: Host) -> Iterator[tuple[Change, Callable[[], Sequence[str]]]]:
    """Each change with what waits for it. The threads end with the batch: a process that has any can't fork to start a program."""
    if len(batch) == 1 or not host.at_once:
        yield from ((change, partial(host.do, change)) for change in batch)
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(batch)), "atoll-up") as pool:
        yield from [(change, pool.submit(host.do, change).result) for change in batch]


def _report(errors: Sequence[AtollError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise Failed(f"{len(errors)} changes failed: {' | '.join(error.what for error in errors)}", errors[0].hint)


def batches(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """Changes that are independent of each other, together; one kind after the other, as they are sorted."""
    for kind, group in groupby(changes, type):
        same: list[Change] = list(group)
        if kind is Connect:
            yield from _connecting([change for change in same if isinstance(change, Connect)])
        elif kind in (CreateNetwork, StartProgram):
            # One at a time: subnets are chosen, and programs depend on each other, in this order.
            yield from ([change] for change in same)
        else:
            yield same


def _connecting(changes: list[Connect]) -> Iterator[list[Change]]:
    """A namespace's connections one after the other, as eth0, eth1, ...; and none that chooses an address while another network member
    of the topology still waits for its static one."""
    pending = [*changes]
    while pending:
        waiting = {change.connection.network for change in pending if change.connection.addresses}
        first = list({change.namespace: change for change in reversed(pending)}.values())[::-1]
        batch = [change for change in first if change.connection.addresses or change.connection.network not in waiting]
        if not batch:  # each waits for another's: the static ones out of their order, then
            batch = [change for change in pending if change.connection.addresses]
        pending = [change for change in pending if change not in batch]
        yield [*batch]
