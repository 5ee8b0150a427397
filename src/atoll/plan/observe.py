"""What the kernel has, as values; and what an operation lacks there.

One dump a kind and namespace, never a query an object. `repairs` holds an operation against what was observed and answers with the
operations that make it true: none, the operation itself, or a smaller change.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from atoll.errors import Invalid, NotFound
from atoll.kernel import rtnl, sysctl, tc
from atoll.plan import operations as op

if TYPE_CHECKING:
    from atoll.kernel.host import Host
    from atoll.kernel.netlink import Socket
    from atoll.kernel.rtnl import Link


_ENDS: Final = {number for kind, number in rtnl.ROUTE_KINDS.items() if kind != "unicast"}
#: What the kernel makes of an IPv6 route that is given no metric (IP6_RT_PRIO_USER).
_METRIC6: Final = 1024


class Stack:
    """One network stack as it was observed."""

    def __init__(self, sock: Socket, *, routes: bool) -> None:
        rows = rtnl.links(sock)
        self.links: dict[str, Link] = {link.name: link for link in rows}
        self.names = {link.ifindex: link.name for link in rows}
        self.addresses = {(self.names.get(row.ifindex, ""), str(row.interface)) for row in rtnl.addresses(sock)}
        self.routes: set[tuple[int, str, str, str, int, int, int]] = set()
        self.rules: set[tuple[str, int, int]] = set()
        if routes:
            for row in rtnl.routes(sock):
                destination = str(row.destination) if row.destination is not None else "default"
                version = 6 if row.family == 10 else 4
                # To IPv6 a route that ends is one by lo.
                link = "" if row.kind in _ENDS else self.names.get(row.ifindex, "")
                self.routes.add((version, destination, str(row.gateway or ""), link, row.table, row.metric, row.kind))
            for rule in rtnl.rules(sock):
                if rule.source is not None:
                    self.rules.add((str(rule.source), rule.table, rule.priority))
        self.queues = {(self.names.get(queue.ifindex, ""), queue.kind): queue.rate for queue in tc.queues(sock)}


class Observed:
    """The host and the namespaces that were asked about; each is read when it is first looked at."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._stacks: dict[str, Stack | None] = {}
        #: Links, as (namespace, name), that someone else has made under a name that is ours.
        self.foreign: set[tuple[str, str]] = set()

    def stack(self, namespace: str) -> Stack | None:
        """None when the namespace is not there."""
        if namespace not in self._stacks:
            try:
                with self._host.socket_in(namespace) as sock:
                    self._stacks[namespace] = Stack(sock, routes=True)
            except (NotFound, Invalid):
                self._stacks[namespace] = None
        return self._stacks[namespace]

    def link(self, namespace: str, name: str) -> Link | None:
        stack = self.stack(namespace)
        return stack.links.get(name) if stack is not None else None

    def redirects(self, link: str) -> bool:
        """Whether what arrives on an interface of the host is led elsewhere."""
        stack = self.stack(op.HOST)
        if stack is None or (link, "ingress") not in stack.queues:
            return False
        return tc.has_ingress_filter(self._host.rtnl, stack.links[link].ifindex)

    def setting(self, namespace: str, name: str) -> str | None:
        with self._host.namespace(namespace) as fd:
            return self._host.visitor.run(fd, lambda: sysctl.read(name))


def repairs(operation: op.Operation, observed: Observed, remade: set[tuple[str, str]]) -> list[op.Operation]:
    """What makes `operation` true where it isn't; `remade` are the links, as (namespace, name), that earlier repairs make anew.

    What hangs on a link of someone else's is left alone; making ours in its place will fail and say so.
    """
    if place(operation) in observed.foreign:
        return []
    match operation:
        case op.BridgeAdd():
            return _link(operation, op.HOST, "bridge", observed, remade, mtu=operation.mtu, mac=operation.mac)
        case op.VethAdd():
            return _veth(operation, observed, remade)
        case op.ChildAdd():
            mac = operation.mac if operation.kind == "macvlan" else ""
            return _link(operation, operation.namespace, operation.kind, observed, remade, mtu=operation.mtu, mac=mac)
        case op.ParentAdd():
            # Several networks may share it.
            again = (op.HOST, operation.name) in remade
            return [] if again else _link(operation, op.HOST, "vlan" if operation.base else "ifb", observed, remade)
        case op.ShaperAdd():
            return _link(operation, op.HOST, "ifb", observed, remade, up=True)
        case op.LinkSet():
            return _set(operation, observed, remade)
        case op.LinkName(name, other):
            found = observed.link(op.HOST, name)
            return [] if found is not None and other in found.altnames and (op.HOST, name) not in remade else [operation]
        case op.LinkTune():
            return _tuning(operation, observed, remade)
        case op.SysctlSet():
            return _setting(operation, observed)
        case op.AddressAdd(namespace, link, address):
            stack = observed.stack(namespace)
            there = stack is not None and (link, str(ipaddress.ip_interface(address))) in stack.addresses
            return [] if there and (namespace, link) not in remade else [operation]
        case op.RouteAdd():
            return _route(operation, observed, remade)
        case op.RuleAdd(namespace, source, table, priority):
            stack = observed.stack(namespace)
            there = stack is not None and (str(ipaddress.ip_network(source)), table, priority) in stack.rules
            return [] if there else [operation]
        case op.RateSet(link, rate):
            return [] if _queue(observed, link, "tbf") == rate // 8 and (op.HOST, link) not in remade else [operation]
        case op.Redirect(link, target):
            right = observed.redirects(link) and not {(op.HOST, link), (op.HOST, target)} & remade
            return [] if right else [operation]
        case _:
            return []


def place(operation: op.Operation) -> tuple[str, str] | None:
    """The link that an operation takes for granted, as (namespace, name)."""
    match operation:
        case op.LinkSet(namespace, name) | op.LinkTune(namespace, name) | op.AddressAdd(namespace, name):
            return namespace, name
        case op.RouteAdd() if operation.link:
            return operation.namespace, operation.link
        case op.RateSet(link) | op.Redirect(link) | op.LinkName(link):
            return op.HOST, link
        case op.SysctlSet(namespace, setting) if "/conf/" in setting:
            return namespace, setting.split("/")[3]
        case _:
            return None


def _queue(observed: Observed, link: str, kind: str) -> int | None:
    """The rate of a queue in bytes a second (0 if it has none); None where the link has no such queue."""
    stack = observed.stack(op.HOST)
    return stack.queues.get((link, kind)) if stack is not None else None


def _link(
    operation: op.BridgeAdd | op.ChildAdd | op.ParentAdd | op.ShaperAdd,
    namespace: str,
    kind: str,
    observed: Observed,
    remade: set[tuple[str, str]],
    *,
    up: bool | None = None,
    mtu: int = 0,
    mac: str = "",
) -> list[op.Operation]:
    name = operation.name
    found = observed.link(namespace, name)
    if found is None:
        remade.add((namespace, name))
        return [operation]
    if found.kind != kind:
        observed.foreign.add((namespace, name))
        return [operation]
    changed_up = up if up is not None and found.up != up else None
    changed_mtu = mtu if mtu and found.mtu != mtu else None
    changed_mac = mac if mac and found.mac != mac else None
    if changed_up is None and changed_mtu is None and changed_mac is None:
        return []
    return [op.LinkSet(namespace, name, up=changed_up, mtu=changed_mtu, mac=changed_mac)]


def _veth(operation: op.VethAdd, observed: Observed, remade: set[tuple[str, str]]) -> list[op.Operation]:
    """A pair is whole or it is made anew: a peer that was renamed, moved or replaced is not ours any more."""
    near = observed.link(op.HOST, operation.name)
    if operation.spare:
        return _near_end(operation, near, observed, remade)
    far = observed.link(operation.peer_namespace, operation.peer)
    if far is not None and not _is_peer(far, near, operation):
        observed.foreign.add((operation.peer_namespace, operation.peer))
        return [operation]
    if near is None or far is None or (operation.peer_mac and far.mac != operation.peer_mac):
        remade.update({(op.HOST, operation.name), (operation.peer_namespace, operation.peer)})
        leftover: list[op.Operation] = []
        if near is not None:
            leftover.append(op.LinkDelete(op.HOST, operation.name))
        elif far is not None:
            leftover.append(op.LinkDelete(operation.peer_namespace, operation.peer))
        return [*leftover, operation]
    changes = _port(operation, near, observed, remade)
    if far.mtu != operation.mtu:
        changes.append(op.LinkSet(operation.peer_namespace, operation.peer, mtu=operation.mtu))
    return changes


def _near_end(operation: op.VethAdd, near: Link | None, observed: Observed, remade: set[tuple[str, str]]) -> list[op.Operation]:
    """Of a pair whose other end is somebody else's: it is there as long as this one is."""
    if near is not None and near.kind == "veth":
        return _port(operation, near, observed, remade)
    remade.add((op.HOST, operation.name))
    leftover = [op.LinkDelete(op.HOST, end) for end in (operation.name, operation.peer) if observed.link(op.HOST, end) is not None]
    return [*leftover, operation]


def _port(operation: op.VethAdd, near: Link, observed: Observed, remade: set[tuple[str, str]]) -> list[op.Operation]:
    """What makes the end on the host the port that it is to be."""
    changes: list[op.Operation] = []
    master = observed.link(op.HOST, operation.master)
    wrong_master = (op.HOST, operation.master) in remade or master is None or near.master != master.ifindex
    wrong_mtu = near.mtu != operation.mtu
    if wrong_master or wrong_mtu or not near.up or near.alias != operation.alias:
        changes.append(
            op.LinkSet(
                op.HOST,
                operation.name,
                up=None if near.up else True,
                mtu=operation.mtu if wrong_mtu else None,
                master=operation.master if wrong_master else None,
                alias=operation.alias if near.alias != operation.alias else None,
            )
        )
        if wrong_master:
            remade.add((op.HOST, operation.name + "/port"))
    return changes


def _is_peer(far: Link, near: Link | None, operation: op.VethAdd) -> bool:
    """Whether an interface under the peer's name is the peer, though it may have been altered."""
    if far.kind != "veth":
        return False
    if near is not None:
        return far.link == near.ifindex
    return far.mac == operation.peer_mac if operation.peer_mac else far.alias == operation.alias


def _set(operation: op.LinkSet, observed: Observed, remade: set[tuple[str, str]]) -> list[op.Operation]:
    key = (operation.namespace, operation.name)
    found = observed.link(*key)
    if found is None or key in remade or (operation.namespace, operation.name + "/port") in remade:
        return [operation]
    master = observed.link(operation.namespace, operation.master) if operation.master else None
    right = (
        (operation.up is None or operation.up == found.up)
        and (operation.mtu is None or operation.mtu == found.mtu)
        and (operation.mac is None or operation.mac == found.mac)
        and (operation.alias is None or operation.alias == found.alias)
        and (operation.isolated is None or operation.isolated == found.isolated)
        and (not operation.master or (master is not None and found.master == master.ifindex))
    )
    if operation.master and (operation.namespace, operation.master) in remade:
        right = False
    return [] if right else [operation]


def _tuning(operation: op.LinkTune, observed: Observed, remade: set[tuple[str, str]]) -> list[op.Operation]:
    key = (operation.namespace, operation.name)
    found = observed.link(*key)
    if found is None or key in remade:
        return [operation]
    wanted = (operation.promisc, operation.allmulti, operation.queue)
    there = (found.promisc, found.allmulti, found.queue)
    return [] if all(want is None or want == have for want, have in zip(wanted, there, strict=True)) else [operation]


def _setting(operation: op.SysctlSet, observed: Observed) -> list[op.Operation]:
    try:
        found = observed.setting(operation.namespace, operation.setting)
    except NotFound:
        return []
    if found == operation.value:
        return []
    # A setting of an interface is missing when the interface is; it is there again when the interface is.
    family = "/".join(operation.setting.split("/")[:2]) + "/conf/all/disable_ipv6"
    if found is None and operation.optional and observed.setting(operation.namespace, family) is None:
        return []
    return [operation]


def _route(operation: op.RouteAdd, observed: Observed, remade: set[tuple[str, str]]) -> list[op.Operation]:
    stack = observed.stack(operation.namespace)
    if stack is None:
        return [operation]
    destination = operation.destination if operation.destination == "default" else str(ipaddress.ip_network(operation.destination))
    metric = operation.metric or (_METRIC6 if operation.version == 6 else 0)
    kind = rtnl.RTN_LOCAL if operation.table == rtnl.TABLE_LOCAL else rtnl.ROUTE_KINDS[operation.kind]
    wanted = (operation.version, destination, operation.gateway, operation.link, operation.table, metric, kind)
    return [] if wanted in stack.routes and (operation.namespace, operation.link) not in remade else [operation]
