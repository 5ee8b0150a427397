"""Topologies in a lab: what `atoll up` makes by the daemon is made here of the lab's own namespaces, links and processes."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import structs

from atoll.errors import Failed
from atoll.kernel import netns
from atoll.topology import SERVICE, EngineHost, Topology, carry_out, difference, load, parse
from atoll.topology.difference import Change, Connect, CreateNamespace, Current, Disconnect, RemoveNamespace, StartProgram, StopProgram

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from atoll.lab.places import Host
    from atoll.lab.processes import Process
    from atoll.topology.value import Program

#: Seconds for a program to end when it is asked to.
_PATIENCE: Final = 10.0


def read(source: str | Path | Topology, folder: str | Path = ".") -> Topology:
    """A topology as it is given: the value, the text of a document (more than one line), or a file's path in a folder."""
    if isinstance(source, Topology):
        return source
    if isinstance(source, str) and "\n" in source:
        return parse(source, "topology", folder=str(folder), variables=os.environ).topology
    return load(os.path.join(folder, source), variables=os.environ).topology


class _Running(NamedTuple):
    start: StartProgram
    process: Process


class LabHost:
    """A host of a lab, for `topology.carry_out`: an engine's, where namespaces and links are the lab's objects and programs are its
    processes."""

    at_once = False

    def __init__(self, host: Host) -> None:
        self._host = host
        self._engine = EngineHost(host.engine)
        self._running: dict[str, _Running] = {}

    def apply(self, topology: Topology) -> tuple[Change, ...]:
        changes = difference(topology, self.current())
        carry_out(changes, self)
        return changes

    def current(self) -> Current:
        return self._engine.current()._replace(runs=[_view(*running) for running in self._running.values()])

    def do(self, change: Change) -> Sequence[str]:
        host = self._host
        match change:
            case CreateNamespace():
                host.create(change.name, change.labels, servers=change.servers, service=change.labels.get(SERVICE, ""))
            case Connect():
                options = structs.asdict(change.connection)
                host.connect(options.pop("network"), host.namespaces[change.namespace], **options)
            case Disconnect():
                host.namespaces[change.namespace].disconnect(change.network)
            case RemoveNamespace():
                host.remove(change.name)
            case StartProgram():
                self._running[change.program.name] = _Running(change, self._start(change.program))
            case StopProgram():
                _stop(self._running.pop(change.name).process)
            case _:
                return self._engine.do(change)
        return ()

    def _start(self, program: Program) -> Process:
        inside = program.share.removeprefix("ns:")
        place = self._host if program.share == "host" else self._host.namespaces[inside]
        hostname = program.hostname or place.name

        def enter() -> None:
            place.enter()
            netns.unshare(netns.CLONE_NEWUTS)
            socket.sethostname(hostname)

        # A session of its own, so that what it starts is asked to end with it.
        options: dict[str, Any] = {"cwd": program.directory or None, "start_new_session": True}
        account: dict[str, str] = {}
        if program.user:
            from atoll.cli import program as programs

            who = programs.account(program.user)
            options |= {"user": who.uid, "group": who.gid, "extra_groups": who.groups}
            account = {"HOME": who.home, "USER": who.name, "LOGNAME": who.name} if who.name else {}
        options["env"] = {**os.environ, **account, **program.environment}
        try:
            return self._host.lab.processes.start(enter, place.name, program.command, options)
        except (OSError, subprocess.SubprocessError) as error:
            raise Failed(f"starting {program.name}: {shlex.join(program.command)[:200]}: {error}") from None


def _view(start: StartProgram, process: Process) -> dict[str, Any]:
    """As much of the API's view of a run as `difference` looks at."""
    program = start.program
    inside = "" if program.share == "host" else program.share.removeprefix("ns:")
    state = "running" if process.poll() is None else "ended"
    return {"name": program.name, "namespace": inside, "labels": start.labels, "state": state}


def _stop(process: Process) -> None:
    """Ask a program to end, and end it if it doesn't. Nothing is sent to one that was waited for: its number may be another's."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
