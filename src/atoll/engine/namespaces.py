"""The verbs for namespaces."""

from __future__ import annotations

import itertools
import os
import re
import select
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import structs

from atoll import faults
from atoll.checks import check_key, check_labels, check_name, check_servers
from atoll.engine.base import Base
from atoll.errors import AtollError, Conflict, Failed, Invalid, NotFound
from atoll.kernel import mounts, netns
from atoll.model import Namespace
from atoll.neighbours import containers
from atoll.plan.execute import dismantle
from atoll.plan.operations import LinkSet, NamespaceAdd, NamespaceAttach, NamespaceDelete, Operation, Plan, SysctlSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LONGEST_NAME: Final = 63
_UNUSABLE: Final = re.compile(r"[^a-zA-Z0-9_.-]+")
_PROC_PATH: Final = re.compile(r"/proc/(\d+)/(?:task/\d+/)?ns/net\Z")


class NamespaceVerbs(Base):
    def create_namespace(self, name: str, labels: dict[str, str] | None = None, *, servers: Sequence[str] = ()) -> Namespace:
        """A new, empty namespace with its loopback up, visible to `ip netns`. `servers` are asked about names outside."""
        faults.begin("create_namespace")
        self._check_new(name)
        self._check_unnamed(name)
        namespace = Namespace(
            name=name,
            servers=check_servers(servers),
            labels=check_labels(labels or {}, "label"),
            created=self.now(),
            boot=netns.boot_id(),
        )
        return self._bring_up(namespace, self.plan_create_namespace(name))

    def plan_create_namespace(self, name: str, *, servers: Sequence[str] = ()) -> Plan:
        self._check_new(name)
        check_servers(servers)
        return Plan(
            (
                NamespaceAdd(name),
                # Off until a network has IPv6: an interface that is up with it floods every port of its bridge.
                SysctlSet(name, "net/ipv6/conf/default/disable_ipv6", "1", optional=True),
                LinkSet(name, "lo", up=True),
            )
        )

    def adopt_namespace(
        self,
        name: str,
        *,
        pid: int = 0,
        path: str = "",
        docker: str = "",
        podman: str = "",
        labels: dict[str, str] | None = None,
        dns: bool = False,
        servers: Sequence[str] = (),
        follow: bool = False,
        source: str = "",
    ) -> Namespace:
        """Take a namespace that someone else made under our care: a process's, a container's, or one that has a file.

        A process's namespace is ours as long as that very process lives. Raises `Conflict` for the host's own namespace and for one
        that is under our care already. With `dns` it gets a resolv.conf and hosts of ours, as one that we make has.

        One that is adopted by its path lives as long as the name that we give it; with `follow` only as long as that very path leads to it.
        `source` is what it is said to come from.
        """
        faults.begin("adopt_namespace")
        self._check_new(name)
        if [bool(pid), bool(path), bool(docker), bool(podman)].count(True) != 1:
            raise Invalid("a namespace is adopted from one place", "give one of --pid, --path, --docker and --podman")
        if follow and not path:
            raise Invalid("only a path can be followed", "give the path of the namespace")
        source = check_key(source, "a source") if source else ""
        if docker or podman:
            kind, container = ("docker", docker) if docker else ("podman", podman)
            pid, source = containers.pid(kind, container), source or f"{kind}:{container}"
        elif match := _PROC_PATH.match(path):
            pid = int(match[1])
        if pid < 0 or pid > 2**22:
            raise Invalid(f"{pid} is not a pid", "expected 1 to 4194304")
        made = Namespace(
            name=name,
            kind="adopted",
            source=source or (f"pid:{pid}" if pid else f"path:{path}"),
            path=path if follow and not pid else "",
            servers=check_servers(servers),
            files=dns,
            labels=check_labels(labels or {}, "label"),
            created=self.now(),
            boot=netns.boot_id(),
        )
        return self._adopt_process(made, pid) if pid else self._adopt_path(made, path)

    def plan_adopt_namespace(self, name: str, *, pid: int = 0, path: str = "", docker: str = "", podman: str = "") -> Plan:
        self._check_new(name)
        if docker or podman:
            kind, container = ("docker", docker) if docker else ("podman", podman)
            pid = containers.pid(kind, container)
        return Plan((NamespaceAttach(name, f"/proc/{pid}/ns/net" if pid else path),))

    def remove_namespace(self, name: str, *, ending: bool = False) -> Namespace:
        """Disconnect a namespace from everything and let it go; one that we made ends with its last process.

        `ending`: so does this one. Its links then go together with others' a moment later (`settle`), and nothing passes until then.
        """
        faults.begin("remove_namespace")
        namespace = structs.replace(self.state.namespace(name), state="removing")
        self._check_not_running(name)
        with self.store.transaction():
            self.store.put(namespace)
        self.state.put_namespace(namespace)
        faults.step()
        errors = self._let_go(namespace, ending=ending)
        self.names.tell()
        self.emit("namespace.remove", namespace=name)
        if errors:
            raise Failed(f"removing namespace {name}: {'; '.join(e.what for e in errors)}", "atoll doctor shows what is left")
        return namespace

    def plan_remove_namespace(self, name: str) -> Plan:
        namespace = self.state.namespace(name)
        self._check_not_running(name)
        parts: list[Operation] = []
        attached = self.state.attached(name)
        while attached:
            parts += self.plan_tear_down(*attached.pop(0), namespace, attached).operations
        return Plan.of(parts, [NamespaceDelete(name)] if namespace.named else [])

    def namespaces(self) -> list[Namespace]:
        return sorted(self.state.namespaces.values(), key=lambda namespace: namespace.name)

    def namespace_at(self, path: str) -> Namespace | None:
        """The namespace under our care that a file leads to; None when it is none of ours, or leads nowhere."""
        found = netns.identity_at(path)
        known = self.state.identified(*found) if found is not None else None
        return known if known is not None and self._is_there(known) else None

    def free_name(self, wanted: str) -> str:
        """A namespace's name that is like the one wanted, valid and not taken."""
        base = _UNUSABLE.sub("-", wanted).strip("-_.")[:_LONGEST_NAME] or "namespace"
        candidates = itertools.chain([base], (f"{base[: _LONGEST_NAME - 8]}-{number}" for number in itertools.count(2)))
        return next(name for name in candidates if not self._is_taken(name))

    def release_vanished(self) -> list[Namespace]:
        """Let go of namespaces that ended without us: their process died, their path leads elsewhere, or somebody deleted their name."""
        gone = [
            namespace
            for namespace in self.namespaces()
            if namespace.state == "ready" and not self._is_there(namespace) and not self._named_again(namespace)
        ]
        for namespace in gone:
            self._let_go_of_ended(namespace)
        self.names.tell()
        return gone

    # --- parts ---

    def _is_taken(self, name: str) -> bool:
        return name in self.state.namespaces or self.state.live_run(name) is not None or self.host.has_namespace(name)

    def _check_new(self, name: str) -> None:
        check_name(name, "namespace")
        if self.state.live_run(name) is not None:
            raise Conflict(f"a run named {name} goes on", f"choose another name, or end it: atoll stop {name}")
        if name in self.state.namespaces:
            raise Conflict(f"a namespace named {name} exists", "choose another name")

    def _check_not_running(self, name: str) -> None:
        run = self.state.live_run(name)
        if run is not None and run.owns:
            raise Conflict(f"namespace {name} is that of a program that runs", f"atoll stop {name}")
        inside = sorted(other.name for other in self.state.runs.values() if other.alive and other.namespace == name)
        if inside:
            raise Conflict(f"{', '.join(inside[:8])} runs in namespace {name}", f"atoll stop {inside[0]}")

    def _check_unnamed(self, name: str) -> None:
        """Before we give a namespace its name: what failed would be undone, and a name of someone else's must not go with it."""
        if self.host.has_namespace(name):
            path = self.host.namespace_path(name)
            raise Conflict(f"a namespace {name} exists that isn't ours", f"adopt it: atoll ns adopt {name} --path {path}")

    def _bring_up(self, namespace: Namespace, plan: Plan) -> Namespace:
        with self.store.transaction():
            self.store.put(namespace)
        self.state.put_namespace(namespace)
        try:
            self.do(plan)
            with self.host.namespace(namespace.name) as fd:
                found = netns.identity(fd)
            self.write_files(namespace)
            self.cover_files(namespace)
        except AtollError:
            self._let_go(namespace)
            raise
        made = structs.replace(namespace, device=found.device, inode=found.inode, state="ready")
        with self.store.transaction():
            self.store.put(made)
        self.state.put_namespace(made)
        self.names.put_namespace(made)
        self.names.push()
        self.emit("namespace.create", namespace=made.name, kind=made.kind, source=made.source)
        return made

    def _adopt_process(self, made: Namespace, pid: int) -> Namespace:
        process = netns.process(pid)
        holder = netns.hold_process(process)
        try:
            source = f"/proc/{pid}/ns/net"
            self._check_adoptable(made, source)
            self._check_unnamed(made.name)
            namespace = structs.replace(made, pid=pid, start=process.start)
            self._check_coverable(namespace)
            adopted = self._bring_up(namespace, Plan((NamespaceAttach(made.name, source),)))
            # Only now is it sure that the path did not lead to a later process with the same number.
            if netns.process(pid) != process:
                self.remove_namespace(made.name)
                raise NotFound(f"the process with pid {pid} has ended")
        except BaseException:
            os.close(holder)
            raise
        self._hold(made, holder)
        return adopted

    def _adopt_path(self, made: Namespace, path: str) -> Namespace:
        self._check_adoptable(made, check_path(path))
        if Path(path) == self.host.namespace_path(made.name):
            # It has the name already, and that name is not ours to take away.
            return self._bring_up(structs.replace(made, named=False), Plan())
        self._check_unnamed(made.name)
        return self._bring_up(made, Plan((NamespaceAttach(made.name, path),)))

    def _check_adoptable(self, made: Namespace, path: str) -> netns.Identity:
        fd = netns.open_path(path)
        try:
            found = netns.identity(fd)
        finally:
            os.close(fd)
        if found == self.host.identity:
            raise Conflict(f"{made.source} is in the host's own network namespace", "only isolated namespaces can be adopted")
        other = self.state.identified(*found)
        if other is not None and other.name != made.name:
            if self._is_there(other):
                raise Conflict(f"that namespace is under our care as {other.name}", f"use the name {other.name}")
            self._let_go_of_ended(other)
        return found

    def _let_go_of_ended(self, namespace: Namespace) -> None:
        self._let_go(namespace, ending=True)
        self.emit("namespace.vanish", namespace=namespace.name, source=namespace.source)

    def _let_go(self, namespace: Namespace, *, ending: bool = False) -> list[AtollError]:
        """Take away all that a namespace's record speaks of, and the record."""
        errors: list[AtollError] = []
        for endpoint in self.state.endpoints_of(namespace.name):
            ends = ending or namespace.kind == "created"
            errors += self.tear_down(self.state.network(endpoint.network), endpoint, with_namespace=ends)
        self.names.push()
        if namespace.named and not self._is_anothers(namespace):
            errors += dismantle(self.host, Plan((NamespaceDelete(namespace.name),)))
        holder = self._pidfds.pop(namespace.name, None)
        if holder is not None:
            os.close(holder)
        self.state.drop_namespace(namespace)
        self.names.drop_namespace(namespace)
        errors += self._uncover_files(namespace)
        if self.files is not None:
            self.files.remove(namespace.name)
        faults.step()
        with self.store.transaction():
            self.store.delete(namespace)
        return errors

    def _check_coverable(self, namespace: Namespace) -> None:
        for target in self._covered(namespace):
            for other in self.state.namespaces.values():
                if self._covered(other) and mounts.are_same(other.pid, namespace.pid):
                    raise Conflict(f"pid {namespace.pid} has the mounts of {other.name}, and so its files", "adopt without --dns")
            mounts.check(netns.Process(namespace.pid, namespace.start), target)

    def cover_files(self, namespace: Namespace) -> None:
        """Have the process that a namespace was adopted from see its files in /etc, if it is to have any."""
        for target, source in self._covered(namespace).items():
            mounts.cover(netns.Process(namespace.pid, namespace.start), target, source)
            faults.step()

    def _uncover_files(self, namespace: Namespace) -> list[AtollError]:
        errors: list[AtollError] = []
        for target, source in self._covered(namespace).items():
            try:
                mounts.uncover(netns.Process(namespace.pid, namespace.start), target, source)
            except AtollError as error:
                errors.append(error)
            faults.step()
        return errors

    def _covered(self, namespace: Namespace) -> dict[str, str]:
        """What a process is to see at other places than where it is."""
        ours = self.files is not None and namespace.files and namespace.pid and namespace.boot == netns.boot_id()
        return self.files.of(namespace.name) if ours and self.files is not None else {}

    def _is_there(self, namespace: Namespace) -> bool:
        """Whether it is still the namespace that we know, and its process still the one that was named."""
        holder = self._pidfds.get(namespace.name)
        if holder is not None:
            poll = select.poll()
            poll.register(holder, select.POLLIN)
            if poll.poll(0):
                return False
        if namespace.is_external and not namespace.path:
            return namespace.boot == netns.boot_id()
        if namespace.path and netns.identity_at(namespace.path) != (namespace.device, namespace.inode):
            return False
        return self._is_known(namespace)

    def _named_again(self, namespace: Namespace) -> bool:
        """One that others hold needs its name here only to be entered, so a name that was deleted is given once more."""
        if not namespace.path or not namespace.named or self.host.has_namespace(namespace.name):
            return False
        if netns.identity_at(namespace.path) != (namespace.device, namespace.inode) or namespace.boot != netns.boot_id():
            return False
        return not dismantle(self.host, Plan((NamespaceAttach(namespace.name, namespace.path),))) and self._is_known(namespace)

    def _is_known(self, namespace: Namespace) -> bool:
        """Whether the name leads to the namespace that the record speaks of. The kernel gives numbers anew after a restart."""
        try:
            found = os.stat(self.host.namespace_path(namespace.name))
        except OSError:
            return False
        return namespace.boot == netns.boot_id() and (found.st_dev, found.st_ino) == (namespace.device, namespace.inode)

    def _is_anothers(self, namespace: Namespace) -> bool:
        """Whether somebody has given the name to another namespace. One that never came up has the name from us."""
        came_up = namespace.inode or namespace.boot != netns.boot_id()
        return bool(came_up) and self.host.has_namespace(namespace.name) and not self._is_known(namespace)

    def reopen_processes(self) -> None:
        """After a restart: hold the processes again that we adopted from. Those that have ended are found by `release_vanished`."""
        for namespace in self._adopted_from_processes():
            try:
                self._hold(namespace, netns.hold_process(netns.Process(namespace.pid, namespace.start)))
            except NotFound:
                self._let_go_of_ended(namespace)

    def _hold(self, namespace: Namespace, holder: int) -> None:
        self._pidfds[namespace.name] = holder
        self.ends.register(holder, select.EPOLLIN)

    def _adopted_from_processes(self) -> Iterator[Namespace]:
        return (namespace for namespace in self.namespaces() if namespace.pid and namespace.name not in self._pidfds)


def check_path(path: str) -> str:
    # Bytes that aren't UTF-8 can't be kept, and what isn't printable shouldn't be.
    if not path.startswith("/") or not path.isprintable() or len(path) > 4000:
        raise Invalid(f"{path[:80]!r} is not an absolute path", "expected a file such as /run/netns/NAME")
    return path
