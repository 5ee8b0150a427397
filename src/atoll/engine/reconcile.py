"""Recovery and repair: expected (the model's own plans) minus observed (the kernel), and the difference is a plan again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from atoll.drivers import of
from atoll.engine import host_side
from atoll.engine.base import DOOMED
from atoll.engine.external import ExternalVerbs
from atoll.engine.pools import PoolVerbs
from atoll.engine.renaming import NamingVerbs
from atoll.errors import AtollError, Denied, NotFound
from atoll.firewall.elements import Element, encode
from atoll.firewall.elements import text as element_text
from atoll.firewall.skeleton import CONSTANT, FAMILIES, SETS, SKELETON, TABLE
from atoll.kernel import nft, rtnl
from atoll.kernel.netlink import NetlinkError
from atoll.model import BRIDGE_PREFIX, PARENT_PREFIX, SHAPER_PREFIX, SPARE_PREFIX, TRUNK_PREFIX, VETH_PREFIX
from atoll.plan import operations as op
from atoll.plan.execute import dismantle
from atoll.plan.observe import Observed, place, repairs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from atoll.model import Endpoint, Namespace, Network

_PREFIXES = (BRIDGE_PREFIX, VETH_PREFIX, SPARE_PREFIX, TRUNK_PREFIX, SHAPER_PREFIX, PARENT_PREFIX)


class Difference(NamedTuple):
    """Something that isn't as the model says: of what, what is wrong, and the operations that put it right (none: rebuild the rules)."""

    subject: str
    what: str
    repair: tuple[op.Operation, ...]


class Reconcile(PoolVerbs, ExternalVerbs, NamingVerbs):
    #: Of the tables that our own script makes, by family; learnt when first needed.
    _fingerprints: dict[str, str] | None = None

    # --- at the start ---

    def recover(self) -> None:
        """Undo what was left half done, let go of what ended meanwhile, and bring the kernel to what the state says."""
        self.forget_rebooted()
        for namespace in self.namespaces():
            if namespace.former:
                self._finish_late(namespace)
        for endpoint in list(self.state.endpoints.values()):
            if endpoint.state != "ready":
                self.tear_down(self.state.network(endpoint.network), endpoint)
        for namespace in self.namespaces():
            if namespace.state != "ready":
                self._let_go(namespace)
        for network in list(self.state.networks.values()):
            if network.state != "ready":
                self._take_down(network)
        self.reopen_processes()
        self.release_vanished()
        self.release_idle()
        if self.state.networks or self._leftovers():
            self.repair()
        elif any(nft.has_table(self.host.nfnl, family, TABLE) for family in FAMILIES):
            self.rebuild_firewall()
        self.names.reset()
        if self.files is not None:
            self.files.keep_only(self.state.namespaces)
        for namespace in self.namespaces():
            self.write_files(namespace)
            try:
                self.cover_files(namespace)
            except AtollError as error:
                self.emit("files.fail", namespace=namespace.name, what=error.what)

    def _finish_late(self, namespace: Namespace) -> None:
        """What can't be finished is a namespace without its name, and is let go as such."""
        try:
            self.finish_rename(namespace)
        except AtollError as error:
            self.emit("namespace.fail", namespace=namespace.name, what=error.what)

    # --- comparing ---

    def differences(self, *, namespaces: Collection[str] | None = None, firewall: bool = True, links: bool = True) -> list[Difference]:
        """Every difference between the model and the kernel.

        `namespaces` limits the look inside namespaces to those (None: all); `firewall` and `links` say whether the rules, and the
        host's own links, addresses and settings, are looked at.
        """
        found: list[Difference] = []
        if firewall:
            found += self._firewall_differences()
        if links or namespaces is None or namespaces:
            found += self._link_differences(namespaces)
        if links:
            found += self._leftovers()
        return found

    def repair(
        self, *, namespaces: Collection[str] | None = None, firewall: bool = True, links: bool = True
    ) -> tuple[list[Difference], list[AtollError]]:
        """Put every difference right and return what there was, with what could not be put right.

        Rules come first: a link must not be up without them. What is made anew may lack what hung on it, so it is looked at again.
        """
        all_found: list[Difference] = []
        errors: list[AtollError] = []
        for _ in range(3):
            found = self.differences(namespaces=namespaces, firewall=firewall, links=links)
            if not found:
                errors = []
                break
            all_found += [difference for difference in found if difference not in all_found]
            errors = []
            if any(not difference.repair for difference in found):
                try:
                    self.rebuild_firewall()
                except AtollError as error:
                    errors.append(error)
            operations = tuple(part for difference in found for part in difference.repair)
            errors += dismantle(self.host, op.Plan(operations))
            if not operations and not errors:
                break
        for difference in all_found:
            self.emit("repair", subject=difference.subject, what=difference.what)
        return all_found, errors

    # --- links, addresses, routes, settings ---

    def _link_differences(self, namespaces: Collection[str] | None) -> list[Difference]:
        """One for each thing that is wrong; what goes with a link that must be made anew is in that one's repair."""
        observed = Observed(self.host)
        remade: set[tuple[str, str]] = set()
        found: list[Difference] = []
        causes: dict[tuple[str, str], int] = {}
        for subject, wanted in self._wanted(namespaces, observed, remade):
            for operation in wanted:
                todo = tuple(repairs(operation, observed, remade))
                if not todo:
                    continue
                cause = causes.get(place(operation) or ("", ""))
                if cause is None:
                    causes.update((link, len(found)) for link in remade if link not in causes)
                    found.append(Difference(subject, describe(operation, todo, observed), todo))
                else:
                    found[cause] = found[cause]._replace(repair=found[cause].repair + todo)
        return found

    def _wanted(
        self, namespaces: Collection[str] | None, observed: Observed, remade: set[tuple[str, str]]
    ) -> Iterator[tuple[str, list[op.Operation]]]:
        """All operations that make the model, grouped by what they are for.

        Of a namespace that need not be looked at only the host's side is held against the kernel, unless the veth on that side is
        amiss; so a look at a host with a thousand namespaces is one dump.
        """
        yield "host", host_side.lasting(list(self.state.networks.values()))
        for network in self.state.networks.values():
            yield f"network {network.name}", of(network).network_up(network)
        for namespace in self.namespaces():
            attached = [pair for pair in self.state.attached(namespace.name) if pair[1].state == "ready"]
            amiss = any(not _near_side_is_right(network, endpoint, observed, remade) for network, endpoint in attached)
            inside = namespaces is None or namespace.name in namespaces or amiss
            if inside and namespace.kind == "created":
                yield f"namespace {namespace.name}", [op.LinkSet(namespace.name, "lo", up=True)]
            for network, endpoint in attached:
                if namespace.is_external and network.driver != "bridge":
                    continue  # it was taken to where we don't look
                wanted = of(network).endpoint_up(network, endpoint, namespace)
                if not inside:
                    wanted = [part for part in wanted if _is_on_host(part)]
                yield f"endpoint {endpoint.namespace} on {network.name}", wanted
            if inside and attached:
                try:
                    yield f"namespace {namespace.name}", self.wanted_routes(namespace, attached)[0]
                except (NotFound, Denied):
                    continue

    def _leftovers(self) -> list[Difference]:
        """Links that bear our names and our mark, but no record."""
        known = {name for network in self.state.networks.values() for name in (*network.bridges(), network.parent)}
        ids = set(self.state.endpoints) | set(self.state.networks)
        found: list[Difference] = []
        for link in self.links().values():
            if self._doomed and link.group == DOOMED:
                continue  # it waits for `settle`
            marked = link.name.startswith(_PREFIXES) and link.alias.startswith("atoll:")
            if marked and link.name not in known and link.alias.removeprefix("atoll:") not in ids:
                repair = (op.LinkDelete(op.HOST, link.name),)
                found.append(Difference("host", f"link {link.name} belongs to nothing", repair))
        return found

    # --- rules ---

    def _firewall_differences(self) -> list[Difference]:
        sock = self.host.nfnl
        needed = any(True for _ in self.state.bridge_networks())
        there = [family for family in FAMILIES if nft.has_table(sock, family, TABLE)]
        if not needed:
            return [Difference("firewall", f"table {family} {TABLE} serves no network", ()) for family in there]
        missing = [Difference("firewall", f"table {family} {TABLE} is missing", ()) for family in FAMILIES if family not in there]
        if missing:
            return missing
        if self._fingerprints is None:
            self._fingerprints = nft.fingerprints_of(self.host.visitor, SKELETON, FAMILIES, TABLE)
        for family in FAMILIES:
            if nft.fingerprint(sock, family, TABLE) != self._fingerprints[family]:
                return [Difference("firewall", f"a rule, chain or set of table {family} {TABLE} was changed", ())]
        return list(self._element_differences())

    def _element_differences(self) -> Iterator[Difference]:
        wanted: dict[str, list[Element]] = {name: [] for name in SETS}
        constant = [Element(name, (value,)) for name, values in CONSTANT.items() for value in values]
        for element in [*self.elements(), *constant]:
            wanted[element.set].append(element)
        for name, elements in wanted.items():
            expected = {encode(element): element for element in elements}
            try:
                actual = {(found.key, found.key_end, found.data) for found in nft.elements(self.host.nfnl, SETS[name].family, TABLE, name)}
            except NetlinkError:
                yield Difference("firewall", f"set {name} is missing", ())
                continue
            for encoded, element in expected.items():
                if tuple(encoded) not in actual:
                    yield Difference("firewall", f"element {element_text(element)} of {name} is missing or altered", ())
            strangers = len(actual - {tuple(encoded) for encoded in expected})
            if strangers:
                yield Difference("firewall", f"{strangers} element(s) of {name} belong to nothing", ())


def _near_side_is_right(network: Network, endpoint: Endpoint, observed: Observed, remade: set[tuple[str, str]]) -> bool:
    """Whether the host's end of a veth pair is there, up and a port of its bridge; true for drivers without one."""
    if network.driver != "bridge":
        return True
    stack, bridge = observed.stack(op.HOST), network.shard(endpoint.shard)
    link = stack.links.get(endpoint.host_interface) if stack is not None else None
    master = stack.links.get(bridge) if stack is not None else None
    if link is None or master is None or (op.HOST, bridge) in remade:
        return False
    mtu = endpoint.mtu or network.mtu
    return link.up and link.mtu == mtu and link.master == master.ifindex and link.alias == f"atoll:{endpoint.id}"


def _is_on_host(operation: op.Operation) -> bool:
    match operation:
        case op.LinkSet() | op.SysctlSet():
            return operation.namespace == op.HOST
        case op.RateSet() | op.Redirect() | op.ShaperAdd():
            return True
        case _:
            return False


def describe(wanted: op.Operation, todo: Collection[op.Operation], observed: Observed) -> str:
    """What is wrong, in words."""
    match wanted:
        case op.BridgeAdd(name) | op.ParentAdd(name) | op.ShaperAdd(name):
            return _link_fault(todo, observed, (op.HOST, name))
        case op.ChildAdd() | op.LinkSet():
            return _link_fault(todo, observed, (wanted.namespace, wanted.name))
        case op.VethAdd():
            far = [] if wanted.spare else [(wanted.peer_namespace, wanted.peer)]
            return _link_fault(todo, observed, (op.HOST, wanted.name), *far)
        case op.AddressAdd(namespace, link, address):
            return f"address {address} of {link}{_inside(namespace)} is missing"
        case op.RouteAdd():
            table = "" if wanted.table == rtnl.TABLE_MAIN else f" in table {wanted.table}"
            return f"route {wanted.destination} by {wanted.link or wanted.kind}{table}{_inside(wanted.namespace)} is missing"
        case op.RuleAdd(namespace, source):
            return f"rule from {source}{_inside(namespace)} is missing"
        case op.SysctlSet(namespace, setting, value):
            return f"{setting}{_inside(namespace)} is not {value}"
        case op.RateSet(link, rate):
            return f"rate of {link} is not limited to {rate} bit/s"
        case op.Redirect(link, target):
            return f"what arrives on {link} is not led through {target}"
        case _:
            return f"not so any more: {wanted.commands()[0]}"


def _link_fault(todo: Collection[op.Operation], observed: Observed, *ends: tuple[str, str]) -> str:
    """What is wrong with a link, or with either end of a pair."""
    for namespace, name in ends:
        if (namespace, name) in observed.foreign:
            return f"link {name}{_inside(namespace)} is someone else's"
    for namespace, name in ends:
        if observed.link(namespace, name) is None:
            return f"link {name}{_inside(namespace)} is missing"
    for part in todo:
        if isinstance(part, op.LinkSet) and (found := observed.link(part.namespace, part.name)) is not None:
            link = f"link {part.name}{_inside(part.namespace)}"
            if part.up and not found.up:
                return f"{link} is down"
            if part.mtu not in (None, found.mtu):
                return f"{link} has MTU {found.mtu}, not {part.mtu}"
            if part.mac not in (None, found.mac):
                return f"{link} has MAC address {found.mac}, not {part.mac}"
            if part.alias not in (None, found.alias):
                return f"{link} has lost its mark"
            if part.isolated not in (None, found.isolated):
                return f"{link} is not isolated"
            return f"{link} is not a port of {part.master}"
    namespace, name = ends[-1]
    return f"link {name}{_inside(namespace)} is not the one that was made"


def _inside(namespace: str) -> str:
    return f" in {namespace}" if namespace else ""
