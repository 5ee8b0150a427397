"""The verbs for external namespaces: those whose inside somebody else sets up (Docker does so with its containers').

Such a one is only a name at first, and nothing leads to it. What is connected to it has its host's side from us; the other end of each
link lies on the host until it is taken. When a file is known that leads to the namespace it gets its name in /run/netns as any other,
and from then on ends when the file leads elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from atoll import faults
from atoll.checks import check_key, check_labels
from atoll.engine.namespaces import NamespaceVerbs, check_path
from atoll.errors import AtollError, Conflict
from atoll.kernel import netns, rtnl
from atoll.model import Namespace
from atoll.plan.execute import dismantle
from atoll.plan.operations import NamespaceAttach, NamespaceDelete, Plan

if TYPE_CHECKING:
    from collections.abc import Iterable


class ExternalVerbs(NamespaceVerbs):
    def create_external(self, name: str, *, source: str, labels: dict[str, str] | None = None) -> Namespace:
        """A namespace that somebody else will make and set up; `source` says who, such as `docker:CONTAINER`."""
        faults.begin("create_external")
        self._check_new(name)
        self._check_unnamed(name)
        made = Namespace(
            name=name,
            kind="external",
            source=check_key(source, "a source"),
            named=False,
            labels=check_labels(labels or {}, "label"),
            created=self.now(),
            boot=netns.boot_id(),
            state="ready",
        )
        faults.step()
        with self.store.transaction():
            self.store.put(made)
        faults.step()
        self.state.put_namespace(made)
        self.emit("namespace.create", namespace=name, kind=made.kind, source=made.source)
        return made

    def reveal_namespace(self, name: str, path: str) -> Namespace:
        """An external namespace's file is known now. The same again is success; its inside stays somebody else's."""
        faults.begin("reveal_namespace")
        before = self.state.namespace(name)
        found = self._check_adoptable(before, check_path(path))
        if not before.is_external:
            if found == (before.device, before.inode):
                return before
            raise Conflict(f"{name} is another namespace than the one at {path}", "only an external one is revealed")
        if before.path == path and found == (before.device, before.inode) and self._is_known(before):
            return self._learned(before)
        if before.named:
            # What it was has ended, or it has a better path.
            dismantle(self.host, Plan((NamespaceDelete(name),)))
            faults.step()
        self._check_unnamed(name)
        made = structs.replace(before, named=True, path=path, device=found.device, inode=found.inode)
        self._put(made)
        faults.step()
        try:
            self.do(Plan((NamespaceAttach(name, path),)))
        except AtollError:
            self._put(structs.replace(before, named=False, path="", device=0, inode=0))
            raise
        self.emit("namespace.reveal", namespace=name, path=path)
        return self._learned(made)

    def learn_interfaces(self, names: Iterable[str]) -> None:
        """Record what the links in these external namespaces are called by now: whoever took them named them."""
        for name in names:
            namespace = self.state.namespaces.get(name)
            if namespace is not None and namespace.is_external and namespace.named:
                self._learned(namespace)

    # --- parts ---

    def _put(self, namespace: Namespace) -> None:
        with self.store.transaction():
            self.store.put(namespace)
        self.state.put_namespace(namespace)

    def _learned(self, namespace: Namespace) -> Namespace:
        mine = {f"atoll:{endpoint.id}": endpoint for endpoint in self.state.endpoints_of(namespace.name)}
        try:
            with self.host.socket_in(namespace.name) as sock:
                found = {link.alias: link.name for link in rtnl.links(sock) if link.alias in mine}
        except AtollError:
            return namespace
        named = [structs.replace(mine[alias], interface=link) for alias, link in found.items() if mine[alias].interface != link]
        if named:
            with self.store.transaction():
                for endpoint in named:
                    self.store.put(endpoint)
            for endpoint in named:
                self.state.put_endpoint(endpoint)
        return namespace
