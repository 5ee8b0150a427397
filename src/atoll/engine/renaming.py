"""The verbs that change what things are called and what is said of them. Front doors learn a container's name late, and may change it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from atoll import faults
from atoll.checks import check_labels, check_name
from atoll.engine.namespaces import NamespaceVerbs
from atoll.errors import AtollError, Conflict, Denied
from atoll.kernel import netns
from atoll.model import PREDEFINED
from atoll.plan.execute import dismantle
from atoll.plan.operations import NamespaceAttach, NamespaceDelete, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atoll.model import Endpoint, Namespace, Network


class NamingVerbs(NamespaceVerbs):
    def rename_namespace(self, old: str, new: str) -> Namespace:
        """Call a namespace otherwise; its name in /run/netns, in DNS and on its files follow. Connections go on.

        The new name is recorded first, beside the former one, so that what is left undone is finished later.
        """
        faults.begin("rename_namespace")
        before = self.state.namespace(old)
        if new == old:
            return before
        self._check_renamable(before, new)
        self._record_renamed(before, structs.replace(before, name=new, former=old))
        faults.step()
        try:
            made = self.finish_rename(self.state.namespace(new))
        except AtollError:
            self._record_renamed(self.state.namespace(new), before)
            raise
        self.names.drop_namespace(before)
        self.names.put_namespace(made)
        for network, endpoint in self.state.attached(new):
            self.names.put_endpoint(network, endpoint)
        self.names.tell()
        self.emit("namespace.rename", namespace=new, former=old)
        return made

    def plan_rename_namespace(self, old: str, new: str) -> Plan:
        before = self.state.namespace(old)
        if new == old:
            return Plan()
        self._check_renamable(before, new)
        moved = structs.replace(before, name=new, former=old)
        return Plan.of(self._new_name(moved).operations, self._former_name(moved).operations)

    def rename_network(self, network: str, new: str) -> Network:
        """Call a network otherwise; the names in its domain follow."""
        faults.begin("rename_network")
        before = self.state.network(network)
        if new == before.name:
            return before
        check_name(new, "network")
        if before.id in PREDEFINED:
            raise Denied(f"network {before.name} is predefined and keeps its name")
        if new in PREDEFINED or self.state.has_network(new):
            raise Conflict(f"a network named {new} exists", "choose another name")
        made = structs.replace(before, name=new)
        with self.store.transaction():
            self.store.put(made)
        faults.step()
        self.state.rename_network(before, made)
        self.names.put_network(made)
        self.names.push()
        for name in dict.fromkeys(endpoint.namespace for endpoint in self.state.endpoints_on(made)):
            self.write_files(self.state.namespace(name))
        self.names.wait()
        self.emit("network.rename", network=new, former=before.name, id=made.id)
        return made

    def set_aliases(self, network: str, namespace: str, aliases: Sequence[str], *, interface: str = "") -> Endpoint:
        """The further names of a namespace on a network, instead of those that it had; `interface` says on which endpoint of several."""
        faults.begin("set_aliases")
        where = self.state.network(network)
        before = self.state.endpoint(where, namespace, interface)
        made = structs.replace(before, aliases=tuple(dict.fromkeys(check_name(alias, "alias") for alias in aliases)))
        if made != before:
            with self.store.transaction():
                self.store.put(made)
            faults.step()
            self.state.put_endpoint(made)
            self.names.put_endpoint(where, made)
            self.names.tell()
            self.emit("endpoint.alias", network=where.name, namespace=namespace, id=made.id, aliases=made.aliases)
        return made

    def set_labels(self, namespace: str, labels: dict[str, str]) -> Namespace:
        """The labels of a namespace, instead of those that it had."""
        faults.begin("set_labels")
        made = structs.replace(self.state.namespace(namespace), labels=check_labels(labels, "label"))
        with self.store.transaction():
            self.store.put(made)
        self.state.put_namespace(made)
        return made

    def set_network_labels(self, network: str, labels: dict[str, str]) -> Network:
        """The labels of a network, instead of those that it had."""
        faults.begin("set_network_labels")
        before = self.state.network(network)
        if before.id in PREDEFINED:
            raise Denied(f"network {before.name} is predefined and has no labels")
        made = structs.replace(before, labels=check_labels(labels, "label"))
        with self.store.transaction():
            self.store.put(made)
        self.state.update_network(made)
        return made

    # --- parts ---

    def _check_renamable(self, namespace: Namespace, new: str) -> None:
        if namespace.state != "ready":
            raise Conflict(f"namespace {namespace.name} is {namespace.state}", "try again in a moment")
        self._check_new(new)
        self._check_not_running(namespace.name)
        if netns.identity_at(str(self.host.namespace_path(new))) != (namespace.device, namespace.inode):
            self._check_unnamed(new)

    def _record_renamed(self, before: Namespace, after: Namespace) -> None:
        """A namespace's record and its endpoints' under another name; nothing else."""
        with self.store.transaction():
            self.store.delete(before)
            self.store.put(after)
            for endpoint in self.state.endpoints_of(before.name):
                self.store.put(structs.replace(endpoint, namespace=after.name))
        self.state.rename_namespace(before, after)
        if before.name in self._pidfds:
            self._pidfds[after.name] = self._pidfds.pop(before.name)

    def finish_rename(self, moved: Namespace) -> Namespace:
        """What is left to do for a namespace that is recorded under its new name."""
        self.do(self._new_name(moved))
        faults.step()
        dismantle(self.host, self._former_name(moved))
        if self.files is not None:
            self.files.rename(moved.former, moved.name)
        faults.step()
        made = structs.replace(moved, former="", named=bool(moved.inode) and not self._is_anothers_file(moved))
        with self.store.transaction():
            self.store.put(made)
        self.state.put_namespace(made)
        self.write_files(made)
        return made

    def _new_name(self, moved: Namespace) -> Plan:
        """Nothing for a namespace that nothing leads to, or that has the new name already."""
        if not moved.inode or self._is_known(moved):
            return Plan()
        return Plan((NamespaceAttach(moved.name, str(self.host.namespace_path(moved.former))),))

    def _former_name(self, moved: Namespace) -> Plan:
        """What others call it stays, and so does what has the former name by now."""
        former = structs.replace(moved, name=moved.former)
        return Plan((NamespaceDelete(moved.former),) if moved.named and self._is_known(former) else ())

    def _is_anothers_file(self, namespace: Namespace) -> bool:
        """Whether its name in /run/netns is the very file that it was adopted from."""
        file = str(self.host.namespace_path(namespace.name))
        return namespace.path == file or namespace.source == f"path:{file}"
