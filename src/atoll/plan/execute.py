"""Carrying out a plan: operations become netlink batches, nft transactions and visits to namespaces.

Operations that follow each other and go the same way (the same namespace's netlink socket, the same namespace's settings, nft) are one
batch, because a datagram or a transaction costs more than what is in it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import time
from itertools import groupby
from typing import TYPE_CHECKING, Final

from atoll import faults
from atoll.errors import AtollError, Conflict, Exhausted, Failed, NotFound, Unsupported
from atoll.kernel import conntrack, nft, rtnl, sysctl, tc
from atoll.kernel.host import interface_index
from atoll.kernel.netlink import NetlinkError
from atoll.plan import operations as op

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from atoll.kernel.host import Host
    from atoll.kernel.netlink import Socket

#: What the kernel answers when the thing to delete is not there.
_GONE: Final = {errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENXIO}


#: How long deferred work of the kernel is waited for, in seconds; it takes well below a millisecond unless the host is very busy.
_DEFERRED: Final = 1.0


def execute(host: Host, plan: op.Plan) -> None:
    """Do all of it, or raise at the first operation that fails; what was done before it stays done (the caller tears down)."""
    for way, batch in _batches(plan):
        faults.step()
        with _explained(batch):
            _run(host, way, batch)
    faults.step()
    _await_carriers(host, plan)
    _await_addresses(host, plan)


def _await_carriers(host: Host, plan: op.Plan) -> None:
    """Packets flow through new links when this returns.

    The kernel tells a bridge of its port's carrier, and starts the port's queue, by deferred work that can take a tenth of a second on
    a busy host; when it is asked about the link it does that work first (rtnl_getlink, since Linux 6.8).
    """
    for operation in plan.operations:
        if isinstance(operation, op.VethAdd):
            with contextlib.suppress(NetlinkError):
                host.rtnl.ask(rtnl.get_link(operation.name))


def _await_addresses(host: Host, plan: op.Plan) -> None:
    """New IPv6 addresses of namespaces serve when this returns.

    The kernel joins the group by which neighbours ask for an address, and then makes the address local, by deferred work, also where
    there is no detection of duplicates. A neighbour who asks before that asks again a second later.
    """
    new = [part for part in plan.operations if isinstance(part, op.AddressAdd) and part.namespace and ":" in part.address]
    for namespace, parts in groupby(new, key=lambda part: part.namespace):
        with host.socket_in(namespace) as sock:
            for part in parts:
                question = rtnl.get_route(ipaddress.ip_interface(part.address).ip)
                end = time.monotonic() + _DEFERRED
                while time.monotonic() < end and not _is_local(sock, question):
                    time.sleep(0.0001)


def _is_local(sock: Socket, question: bytes) -> bool:
    try:
        return rtnl.parse_route(sock.ask(question).body).kind == rtnl.RTN_LOCAL
    except NetlinkError:
        return False


def dismantle(host: Host, plan: op.Plan) -> list[AtollError]:
    """Do as much of it as can be done and return what went wrong. What is gone already is success."""
    errors: list[AtollError] = []
    for way, batch in _batches(plan):
        for operation in batch:
            faults.step()
            try:
                with _explained([operation]):
                    _run(host, way, [operation], one_by_one=True)
            except NotFound:
                continue
            except Failed as error:
                if error.errno not in _GONE:
                    errors.append(error)
            except AtollError as error:
                errors.append(error)
    return errors


_Way = tuple[str, str]


def _way(operation: op.Operation) -> _Way:
    """Which batch an operation goes into: the means, and the namespace."""
    match operation:
        case op.NftScript(_, verb, changes):
            return ("elements " + verb if changes else "nft"), ""
        case op.ConntrackDelete():
            return "conntrack", ""
        case op.SysctlSet():
            return "sysctl", operation.namespace
        case op.NamespaceAdd() | op.NamespaceAttach() | op.NamespaceDelete():
            return "namespace", operation.name
        case op.LinkSet() | op.LinkTune() | op.LinkDelete() | op.AddressAdd() | op.AddressDelete() | op.RouteAdd() | op.RuleAdd():
            return "netlink", operation.namespace
        case op.RouteDelete():
            return "netlink", operation.route.namespace
        case op.RuleDelete():
            return "netlink", operation.rule.namespace
        case _:
            return "netlink", ""


def _batches(plan: op.Plan) -> Iterator[tuple[_Way, list[op.Operation]]]:
    for way, batch in groupby(plan.operations, key=_way):
        yield way, list(batch)


def _run(host: Host, way: _Way, batch: Sequence[op.Operation], *, one_by_one: bool = False) -> None:
    means, namespace = way
    match means:
        case "netlink" if one_by_one and not namespace and isinstance(batch[0], op.LinkDelete):
            host.delete_link(batch[0].name)
        case "netlink":
            with host.socket_in(namespace) as sock:
                _send(host, sock, batch, one_by_one=one_by_one)
        case "elements add" | "elements delete":
            _change_elements(host, [part for part in batch if isinstance(part, op.NftScript)])
        case "nft":
            host.nft.apply("".join(part.script for part in batch if isinstance(part, op.NftScript)))
        case "sysctl":
            with host.namespace(namespace) as fd:
                host.visitor.run(fd, lambda: _write_settings(batch))
        case "conntrack":
            _forget(host, batch)
        case _:
            for operation in batch:
                _name_namespace(host, operation)


def _change_elements(host: Host, scripts: Sequence[op.NftScript]) -> None:
    changes = [change for script in scripts for change in script.changes]
    if len(changes) > nft.MOST_CHANGES:
        host.nft.apply("".join(script.script for script in scripts))
    else:
        nft.change_elements(host.nfnl, scripts[0].verb, changes)


def _write_settings(batch: Sequence[op.Operation]) -> None:
    for part in batch:
        if isinstance(part, op.SysctlSet) and not (part.optional and sysctl.read(part.setting) is None):
            sysctl.write(part.setting, part.value)


def _forget(host: Host, batch: Sequence[op.Operation]) -> None:
    parts = [part for part in batch if isinstance(part, op.ConntrackDelete)]
    addresses = {ipaddress.ip_address(part.address) for part in parts if part.address}
    ports = {(part.protocol, part.port, part.count) for part in parts if not part.address}
    conntrack.forget(host.nfnl, addresses, ports)


def _name_namespace(host: Host, operation: op.Operation) -> None:
    if isinstance(operation, op.NamespaceAdd):
        host.create_namespace(operation.name)
    elif isinstance(operation, op.NamespaceAttach):
        host.attach_namespace(operation.name, operation.source)
    elif isinstance(operation, op.NamespaceDelete):
        host.release_namespace(operation.name)


def _send(host: Host, sock: Socket, batch: Sequence[op.Operation], *, one_by_one: bool) -> None:
    """Encode and send netlink operations, in as few datagrams as there are dependencies between them.

    Commands name interfaces, the kernel wants indexes; so a datagram ends before an operation that names one made in it. With
    `one_by_one` nothing is sent after a refusal: a link that can't be made as there is another of its name must not mark that one.
    """
    pending: list[bytes] = []
    made: set[str] = set()

    def flush() -> None:
        if pending:
            for requests in ([part] for part in pending) if one_by_one else [pending]:
                sock.execute(*requests)
            pending.clear()
            made.clear()

    indexes: dict[str, int] = {}

    def index(name: str) -> int:
        if name in made:
            flush()
        if name not in indexes:
            indexes[name] = interface_index(sock, name)
        return indexes[name]

    with contextlib.ExitStack() as opened:

        def target(namespace: str) -> int:
            return opened.enter_context(host.namespace(namespace))

        for operation in batch:
            pending.extend(_encode(operation, index, target, host))
            match operation:
                case op.BridgeAdd() | op.ParentAdd() | op.ShaperAdd() | op.VethAdd():
                    made.add(operation.name)
                    if isinstance(operation, op.VethAdd) and not operation.peer_namespace:
                        made.add(operation.peer)
                case op.ChildAdd() if not operation.namespace:
                    made.add(operation.name)
        flush()


def _encode(operation: op.Operation, index: Callable[[str], int], target: Callable[[str], int], host: Host) -> Iterator[bytes]:
    match operation:
        case op.BridgeAdd(name, mtu, mac, alias):
            yield rtnl.add_bridge(name, mac=mac)
            yield rtnl.set_alias(name, alias, mtu=mtu)
        case op.VethAdd():
            yield rtnl.add_veth(
                operation.name,
                peer=operation.peer,
                peer_netns=target(operation.peer_namespace) if operation.peer_namespace else None,
                peer_mac=operation.peer_mac,
                mtu=operation.mtu,
                master=index(operation.master),
                up=True,
            )
            yield rtnl.set_alias(operation.name, operation.alias)
            if operation.spare:
                yield rtnl.set_alias(operation.peer, operation.alias)
        case op.ChildAdd():
            parent = interface_index(host.rtnl, operation.parent)
            if operation.kind == "macvlan":
                yield rtnl.add_macvlan(
                    operation.name,
                    parent=parent,
                    netns=target(operation.namespace),
                    mac=operation.mac,
                    mtu=operation.mtu,
                    mode=operation.mode,
                )
            else:
                yield rtnl.add_ipvlan(
                    operation.name,
                    parent=parent,
                    netns=target(operation.namespace),
                    mtu=operation.mtu,
                    mode=operation.mode,
                    flag=operation.flag,
                )
        case op.ParentAdd(name, base, number, mtu, alias):
            yield rtnl.add_vlan(name, base=index(base), number=number) if base else rtnl.add_ifb(name, mtu=mtu, up=False)
            yield rtnl.set_alias(name, alias)
        case op.ShaperAdd(name, alias):
            yield rtnl.add_ifb(name)
            yield rtnl.set_alias(name, alias)
        case op.LinkSet():
            yield from _encode_link(operation, index)
        case op.LinkName(name, other):
            yield rtnl.add_altname(index(name), other)
        case op.LinkTune(_, name, promisc, allmulti, queue):
            yield rtnl.tune_link(index(name), promisc=promisc, allmulti=allmulti, queue=queue)
        case op.LinkDelete(_, name):
            yield rtnl.delete_link(name)
        case op.AddressAdd(_, link, address):
            yield rtnl.add_address(index(link), ipaddress.ip_interface(address))
        case op.AddressDelete(_, link, address):
            yield rtnl.delete_address(index(link), ipaddress.ip_interface(address))
        case op.RouteAdd():
            yield _encode_route(rtnl.add_route, operation, index)
        case op.RouteDelete(route):
            yield _encode_route(rtnl.delete_route, route, index)
        case op.RuleAdd(_, source, table, priority):
            yield rtnl.add_rule(ipaddress.ip_network(source), table=table, priority=priority)
        case op.RuleDelete(rule):
            yield rtnl.delete_rule(ipaddress.ip_network(rule.source), table=rule.table, priority=rule.priority)
        case op.RateSet(link, rate):
            yield tc.add_tbf(index(link), rate)
        case op.QueueDelete(link, parent):
            yield tc.delete_queue(index(link), parent)
        case op.Redirect(link, through):
            yield tc.add_ingress(index(link))
            yield tc.add_redirect(index(link), index(through))
        case _:
            raise TypeError(f"{type(operation).__name__} does not travel by netlink")


def _encode_link(operation: op.LinkSet, index: Callable[[str], int]) -> Iterator[bytes]:
    number = index(operation.name)
    master = None if operation.master is None else index(operation.master) if operation.master else 0
    changes = (operation.up, operation.mtu, operation.mac, operation.alias, operation.master)
    if any(change is not None for change in changes):
        yield rtnl.set_link(
            number, up=operation.up, mtu=operation.mtu or 0, mac=operation.mac or "", alias=operation.alias or "", master=master
        )
    if operation.isolated is not None:
        yield rtnl.set_isolated(number, operation.isolated)


def _encode_route(build: Callable[..., bytes], route: op.RouteAdd, index: Callable[[str], int]) -> bytes:
    return build(
        route.version,
        destination=None if route.destination == "default" else ipaddress.ip_network(route.destination),
        gateway=ipaddress.ip_address(route.gateway) if route.gateway else None,
        index=index(route.link) if route.link else 0,
        table=route.table,
        metric=route.metric,
        kind=route.kind,
    )


@contextlib.contextmanager
def _explained(batch: Sequence[op.Operation]) -> Iterator[None]:
    """Turn the kernel's number into the error that it means, with the command that it answered."""
    try:
        yield
    except NetlinkError as error:
        raise _meaning(error, batch) from None
    except OSError as error:
        raise Failed(f"{_said(batch)}: {error.strerror or error}", errno=error.errno or 0) from None


def _said(batch: Sequence[op.Operation]) -> str:
    first = f"nft {batch[0].script}" if isinstance(batch[0], op.NftScript) else batch[0].commands()[0]
    return first.partition("\n")[0] + (f" (and {len(batch) - 1} more)" if len(batch) > 1 else "")


def _meaning(error: NetlinkError, batch: Sequence[op.Operation]) -> AtollError:
    what = f"{_said(batch)}: {error.what}"
    if isinstance(batch[0], op.NftScript):
        return Failed(what, "somebody changed our tables: atoll doctor --fix", error.errno)
    match error.errno:
        case errno.EEXIST | errno.EBUSY | errno.EADDRINUSE:
            return Conflict(what, "remove what is there, or choose another name")
        case errno.EXFULL:
            return Exhausted(what, "a kernel bridge takes 1,023 ports")
        case errno.EPERM | errno.EACCES:
            return Failed(what, "run as root", errno.EPERM)
        case errno.EOPNOTSUPP:
            kinds = [part.kind for part in batch if isinstance(part, op.ChildAdd)]
            kinds += ["VLANs" if part.base else "ifb" for part in batch if isinstance(part, op.ParentAdd)]
            subject = f"this kernel has no {kinds[0]}" if kinds else "this kernel lacks something"
            return Unsupported(f"{subject} ({what})", "load or build the module, or choose another driver")
        case _:
            return Failed(what, errno=error.errno)
