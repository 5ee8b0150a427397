"""The verbs for runs: programs that a namespace is made for, and that take it with them when they end.

A run is a record beside its namespace. It is written first, as pending, and says `running` only when all is connected, so what was
interrupted is undone as a whole. Its process is held by a descriptor: `Engine.ends` is readable as soon as one has ended, and
`release_ended` gives back what was its.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
from typing import TYPE_CHECKING, Final

from msgspec import Struct, structs

from atoll import faults
from atoll.checks import check_labels, check_name
from atoll.engine.endpoints import ClientOptions, EndpointOptions, EndpointVerbs
from atoll.engine.namespaces import NamespaceVerbs
from atoll.engine.network_request import NetworkRequest
from atoll.engine.networks import NetworkVerbs
from atoll.errors import Conflict, Invalid, NotFound
from atoll.kernel import netns
from atoll.model import Namespace, Run
from atoll.plan.operations import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from atoll.model import Network

#: The network of those who name none; made when it is missing.
DEFAULT_NETWORK: Final = "default"
_DEFAULT: Final = NetworkRequest(name=DEFAULT_NETWORK)
#: Ended runs that are remembered.
_MOST_ENDED: Final = 100
_MOST_WORDS: Final = 4096

_MOODS: Final = """amber bold brisk calm clever cosy deft eager fair fond gentle glad keen kind lively lucky mellow merry neat nimble
    plucky proud quick quiet rapid shy sly snug spry steady sunny swift tidy warm wise witty"""
_BEASTS: Final = """badger beaver bison crane curlew dingo dolphin egret falcon ferret finch fox gecko heron ibex ibis jackal koala lark
    lemur lynx marmot marten mole newt otter owl panda plover puffin raven robin seal stoat swan tapir tern toad vole wren"""


class Attachment(EndpointOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A network that a run is to be on, and how."""

    network: str


class RunRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What `run` takes. `pid` is the process that becomes the program. `share` is empty for a namespace of its own, `host` for the host's,
    `ns:NAME` for another's. `publish` is done on the first of the networks that can. `servers` are asked about names outside. `command`,
    `user` and `directory` are for listings."""

    pid: int
    name: str = ""
    networks: tuple[Attachment, ...] = ()
    share: str = ""
    publish: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    command: tuple[str, ...] = ()
    user: str = ""
    directory: str = ""
    detached: bool = False
    shepherd: int = 0


class RunVerbs(EndpointVerbs, NetworkVerbs, NamespaceVerbs):
    #: Where the logs of detached runs are, NAME.log each; they go with the record. None: there are none.
    logs: Path | None = None

    def create_run(self, request: RunRequest) -> Run:
        """A namespace for a process, connected to its networks, for as long as that process lives; all of it, or nothing when it fails.

        The process enters by itself. A network called `default` is made if it is asked for and missing.
        """
        with faults.whole("create_run"):
            run = self._draft_run(request)
            holder = netns.hold_process(netns.Process(run.pid, run.start))
            former = self.state.runs.pop(run.name, None)
            made: Network | None = None
            try:
                self._record(run)
                if run.owns:
                    made = self._make_default(request)
                    self.create_namespace(run.name, run.labels, servers=request.servers)
                    for attachment in self._attachments(request):
                        self.connect(namespace=run.name, **structs.asdict(attachment))
                run = self._record(structs.replace(run, state="running"))
            except BaseException:
                os.close(holder)
                self._undo(run, former)
                if made is not None:
                    self.remove_network(made.id)
                raise
            self._hold_run(run, holder)
        if former is not None and not run.detached:
            self._drop_log(former)
        self.emit("run.start", run=run.name, pid=run.pid, namespace=run.namespace)
        return run

    def plan_create_run(self, request: RunRequest) -> Plan:
        """What `create_run` would do; changes nothing."""
        run = self._draft_run(request)
        if not run.owns:
            return Plan()
        with contextlib.ExitStack() as undo:
            plan = Plan()
            if self._lacks_default(request):
                network = structs.replace(self._choose(_DEFAULT).network, state="ready")
                plan = self._network_plan(network)[0]
                self.state.add_network(network)
                undo.callback(self.state.drop_network, network)
            plan = Plan.of(plan.operations, self.plan_create_namespace(run.name, servers=request.servers).operations)
            # As if it were there: what is connected later depends on what was connected before.
            self.state.namespaces[run.name] = Namespace(name=run.name, state="ready")
            undo.callback(self.state.namespaces.pop, run.name)
            for attachment in self._attachments(request):
                options = structs.asdict(attachment)
                where, who, endpoint = self._draft(options.pop("network"), run.name, ClientOptions(**options), undo)
                undo.callback(self.state.drop_endpoint, endpoint)
                undo.callback(self.state.retract_addresses, endpoint)
                plan = Plan.of(plan.operations, self._connection_plan(where, who, endpoint).operations)
                self.state.put_endpoint(endpoint)
        return plan

    def runs(self) -> list[Run]:
        """Those that go on and those that are remembered, in the order in which they began."""
        return list(self.state.runs.values())

    def report_exit(self, name: str, *, pid: int, code: int | None = None) -> Run:
        """A run's process has ended: release what was its, and remember its exit code. Raises `Conflict` while it goes on."""
        faults.begin("end_run")
        if code is not None and not 0 <= code <= 255:
            raise Invalid(f"{code} is not an exit code", "expected 0 to 255, or none")
        run = self.state.run(name)
        if pid != run.pid:
            raise NotFound(f"run {name} is not that of process {pid}", "it has ended, and its name was used again")
        if run.alive:
            self._check_ended(run)
            return self._end(run, code)
        if run.exit_code is None and code is not None:
            run = self._record(structs.replace(run, exit_code=code))
        return run

    def forget_run(self, name: str) -> Run:
        """Forget a run that has ended, and its log."""
        faults.begin("end_run")
        run = self.state.run(name)
        if run.alive:
            self._check_ended(run)
            run = self._end(run)
        self._forget(run)
        return run

    def prune_runs(self) -> list[Run]:
        """Forget all that have ended."""
        ended = [run for run in self.runs() if not run.alive]
        for run in ended:
            self._forget(run)
        return ended

    def release_ended(self) -> bool:
        """Give back what hung on processes that have ended; whether any has. Costs nothing while none has. See `ends`."""
        ready = self._end_ready()
        if ready & set(self._pidfds.values()):
            super().release_vanished()
        return bool(ready)

    def release_vanished(self) -> list[Namespace]:
        self._end_ready()
        for run in [run for run in self._live() if run.name not in self._held]:
            self._end(run)  # what could not be finished when its process ended
        return super().release_vanished()

    def _end_ready(self) -> set[int]:
        """End the runs whose process has ended. All descriptors of processes that have, those of adopted ones too."""
        ready = {fd for fd, _ in self.ends.poll(0)}
        for run in [run for run in self._live() if self._held.get(run.name, -1) in ready]:
            faults.begin("end_run")
            self._end(run)
        return ready

    def recover(self) -> None:
        for run in self.runs():
            if run.state == "pending":
                self._undo(run, None)
            elif run.alive:
                try:
                    if run.boot != netns.boot_id():
                        raise NotFound(f"run {run.name} was before the machine's last start")
                    self._hold_run(run, netns.hold_process(netns.Process(run.pid, run.start)))
                except NotFound:
                    self._end(run)
        super().recover()

    # --- parts ---

    def _live(self) -> Iterator[Run]:
        return (run for run in self.state.runs.values() if run.state == "running")

    def _draft_run(self, request: RunRequest) -> Run:
        """Everything that can be checked before anything is changed; the rest is checked by the verbs that it is made of."""
        for pid, least in ((request.pid, 1), (request.shepherd, 0)):
            if not least <= pid <= 2**22:
                raise Invalid(f"{pid} is not a pid", "expected 1 to 4194304")
        if len(request.command) > _MOST_WORDS or sum(map(len, request.command)) > 1 << 17:
            raise Invalid("the command is too long to be remembered", f"expected at most {_MOST_WORDS} words of 128 KiB")
        name = request.name or self._free_name()
        self._check_new(name)
        namespace = name
        if request.share:
            if request.networks or request.publish or request.servers:
                what = "networks, ports or DNS servers"
                raise Invalid(f"a run in the network of {request.share} has no {what} of its own", "leave out one of both")
            namespace = self._shared(request.share)
        return Run(
            name=name,
            namespace=namespace,
            command=request.command,
            user=request.user,
            directory=request.directory,
            detached=request.detached,
            pid=request.pid,
            start=netns.process(request.pid).start,
            boot=netns.boot_id(),
            shepherd=request.shepherd,
            labels=check_labels(request.labels, "label"),
            created=self.now(),
        )

    def _shared(self, share: str) -> str:
        """The name of the namespace that a run shares; empty for the host's."""
        if share == "host":
            return ""
        kind, _, other = share.partition(":")
        if kind != "ns":
            raise Invalid(f"{share[:80]!r} is nothing to share", "expected host or ns:NAME")
        namespace = self.state.namespace(check_name(other, "namespace"))
        if namespace.state != "ready":
            raise Conflict(f"namespace {other} is {namespace.state}", "try again in a moment")
        return other

    def _free_name(self) -> str:
        """A readable name that nothing has, such as `quiet-otter`; with hex digits after it on a host where most are taken."""
        moods, beasts = _MOODS.split(), _BEASTS.split()
        digits = ""
        while True:
            name = f"{secrets.choice(moods)}-{secrets.choice(beasts)}{digits}"
            if name not in self.state.runs and name not in self.state.namespaces and not self.host.has_namespace(name):
                return name
            digits = f"-{secrets.token_hex(3)}"

    def _lacks_default(self, request: RunRequest) -> bool:
        known = {network.name for network in self.state.networks.values()}
        return DEFAULT_NETWORK not in known and any(attachment.network == DEFAULT_NETWORK for attachment in request.networks)

    def _make_default(self, request: RunRequest) -> Network | None:
        return self.create_network_explained(_DEFAULT).network if self._lacks_default(request) else None

    def _attachments(self, request: RunRequest) -> list[Attachment]:
        """The networks to connect, with the ports on the first that can publish; if none can, the first of all says why not."""
        found = list(request.networks)
        if request.publish:
            if not found:
                raise Invalid("there is no network to publish on", "name one, or none for the network called default")
            networks = [self.state.network(attachment.network) for attachment in found]
            able = (number for number, network in enumerate(networks) if network.driver == "bridge" and not network.internal)
            number = next(able, 0)
            found[number] = structs.replace(found[number], publish=(*found[number].publish, *request.publish))
        return found

    def _hold_run(self, run: Run, holder: int) -> None:
        self._held[run.name] = holder
        self.ends.register(holder, select.EPOLLIN)

    def _check_ended(self, run: Run) -> None:
        holder = self._held.get(run.name)
        if holder is not None and holder not in {fd for fd, _ in self.ends.poll(0)}:
            raise Conflict(f"run {run.name} goes on", f"atoll stop {run.name}")

    def _end(self, run: Run, code: int | None = None) -> Run:
        """Release what was a run's. The record says so last: until then the next engine does it again."""
        holder = self._held.pop(run.name, None)
        if holder is not None:
            os.close(holder)
        self._release(run)
        ended = self._record(structs.replace(run, state="ended", exit_code=code, ended=self.now()))
        old = [] if run.detached else [ended]  # a foreground run's exit code went to whoever started it
        old += [other for other in self.runs() if not other.alive and other.detached][:-_MOST_ENDED]
        for other in old:
            self._forget(other)
        self.emit("run.end", run=run.name, pid=run.pid, exit_code=code)
        return ended

    def _release(self, run: Run) -> None:
        namespace = self.state.namespaces.get(run.name)
        if run.owns and namespace is not None:
            self._let_go(namespace)
            self.names.tell()

    def _undo(self, run: Run, former: Run | None) -> None:
        """As if there had been no such run; `former` is an ended one of the same name."""
        self._release(run)
        self.state.runs.pop(run.name, None)
        if former is not None:
            self.state.runs[former.name] = former
        with self.store.transaction():
            self.store.delete_run(run)
            if former is not None:
                self.store.put_run(former)

    def _record(self, run: Run) -> Run:
        with self.store.transaction():
            self.store.put_run(run)
        self.state.runs[run.name] = run
        return run

    def _forget(self, run: Run) -> None:
        with self.store.transaction():
            self.store.delete_run(run)
        del self.state.runs[run.name]
        self._drop_log(run)

    def _drop_log(self, run: Run) -> None:
        if run.detached and self.logs is not None:
            with contextlib.suppress(OSError):
                (self.logs / f"{run.name}.log").unlink()
