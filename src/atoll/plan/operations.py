"""The operations that a plan is made of.

Each is a value: it can be compared, printed as the command that a person would type (`commands`), carried out (`execute.py`) and held
against what the kernel has (`observe.py`). `namespace` is the name of a namespace, or `HOST`.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from atoll.kernel import nft, rtnl, tc
from atoll.words import RouteKind

if TYPE_CHECKING:
    from collections.abc import Iterable


HOST: Final = ""


def _ip(namespace: str) -> str:
    return f"ip -n {namespace} " if namespace else "ip "


def _in(namespace: str) -> str:
    return f"ip netns exec {namespace} " if namespace else ""


class Operation(Struct, frozen=True):
    """One change."""

    def commands(self) -> list[str]:
        """As a person would type it, in bash."""
        raise TypeError(f"{type(self).__name__} can't be printed")


class NamespaceAdd(Operation, frozen=True):
    """A new named namespace."""

    name: str

    def commands(self) -> list[str]:
        return [f"ip netns add {self.name}"]


class NamespaceAttach(Operation, frozen=True):
    """A name for a namespace that exists; `source` is a path, such as /proc/PID/ns/net."""

    name: str
    source: str

    def commands(self) -> list[str]:
        return [f"touch /run/netns/{self.name}", f"mount --bind {shlex.quote(self.source)} /run/netns/{self.name}"]


class NamespaceDelete(Operation, frozen=True):
    name: str

    def commands(self) -> list[str]:
        return [f"ip netns delete {self.name}"]


class BridgeAdd(Operation, frozen=True):
    """A kernel bridge of the host, down."""

    name: str
    mtu: int
    mac: str
    alias: str

    def commands(self) -> list[str]:
        return [
            f"ip link add dev {self.name} address {self.mac} type bridge mcast_snooping 0 no_linklocal_learn 1",
            f"ip link set dev {self.name} mtu {self.mtu} alias {self.alias}",
        ]


class VethAdd(Operation, frozen=True):
    """A veth pair: `name` on the host as a port of `master`, up; `peer` in a namespace (or the host), down.

    With `spare` the peer lies there for somebody else to take and to rename: it is marked as well, and nothing more is asked of it.
    """

    name: str
    peer: str
    peer_namespace: str
    peer_mac: str
    mtu: int
    master: str
    alias: str
    spare: bool = False

    def commands(self) -> list[str]:
        address = f" address {self.peer_mac}" if self.peer_mac else ""
        where = f" netns {self.peer_namespace}" if self.peer_namespace else ""
        return [
            f"ip link add dev {self.name} mtu {self.mtu} master {self.master} up"
            f" type veth peer name {self.peer} mtu {self.mtu}{address}{where}",
            *(f"ip link set dev {end} alias {self.alias}" for end in ([self.name, self.peer] if self.spare else [self.name])),
        ]


class ChildAdd(Operation, frozen=True):
    """A macvlan or ipvlan interface of a host interface, in a namespace, down."""

    kind: str
    name: str
    namespace: str
    parent: str
    mac: str
    mtu: int
    mode: str
    flag: str

    def commands(self) -> list[str]:
        address = f" address {self.mac}" if self.kind == "macvlan" else ""
        flag = f" {self.flag}" if self.kind == "ipvlan" else ""
        return [
            f"ip link add dev {self.name} link {self.parent}{address} mtu {self.mtu} netns {self.namespace}"
            f" type {self.kind} mode {self.mode}{flag}"
        ]


class ParentAdd(Operation, frozen=True):
    """A host interface for macvlan and ipvlan interfaces, down: the VLAN `number` of `base`, or, without a base, one that leads nowhere.

    That is an ifb, which drops what is sent by it as a dummy does, and which the limiters of bandwidth need anyway.
    """

    name: str
    base: str
    number: int
    mtu: int
    alias: str

    def commands(self) -> list[str]:
        how = f"link {self.base} type vlan id {self.number}" if self.base else f"mtu {self.mtu} type ifb"
        return [f"ip link add dev {self.name} {how}", f"ip link set dev {self.name} alias {self.alias}"]


class ShaperAdd(Operation, frozen=True):
    """An ifb that carries what arrives on an interface, so that it can be queued."""

    name: str
    alias: str

    def commands(self) -> list[str]:
        return [f"ip link add dev {self.name} up type ifb", f"ip link set dev {self.name} alias {self.alias}"]


class LinkSet(Operation, frozen=True):
    """What an interface is to be; what is None stays as it is. `master` empty takes it out of its bridge."""

    namespace: str
    name: str
    up: bool | None = None
    mtu: int | None = None
    mac: str | None = None
    alias: str | None = None
    master: str | None = None
    isolated: bool | None = None

    def commands(self) -> list[str]:
        words: list[str] = []
        if self.master is not None:
            words.append(f"master {self.master}" if self.master else "nomaster")
        if self.mtu is not None:
            words.append(f"mtu {self.mtu}")
        if self.mac is not None:
            words.append(f"address {self.mac}")
        if self.alias is not None:
            words.append(f"alias {self.alias}")
        if self.up is not None:
            words.append("up" if self.up else "down")
        found = [f"{_ip(self.namespace)}link set dev {self.name} {' '.join(words)}"] if words else []
        if self.isolated is not None:
            found.append(f"{_ip(self.namespace)}link set dev {self.name} type bridge_slave isolated {'on' if self.isolated else 'off'}")
        return found


class LinkName(Operation, frozen=True):
    """A further name of an interface of the host."""

    name: str
    other: str

    def commands(self) -> list[str]:
        return [f"ip link property add dev {self.name} altname {self.other}"]


class LinkTune(Operation, frozen=True):
    """Whether an interface takes in frames for others (`promisc`) and all multicast, and how many packets may wait in its queue; what is
    None stays as it is."""

    namespace: str
    name: str
    promisc: bool | None = None
    allmulti: bool | None = None
    queue: int | None = None

    def commands(self) -> list[str]:
        words: list[str] = []
        for word, wanted in (("promisc", self.promisc), ("allmulticast", self.allmulti)):
            if wanted is not None:
                words.append(f"{word} {'on' if wanted else 'off'}")
        if self.queue is not None:
            words.append(f"txqueuelen {self.queue}")
        return [f"{_ip(self.namespace)}link set dev {self.name} {' '.join(words)}"] if words else []


class LinkDelete(Operation, frozen=True):
    namespace: str
    name: str

    def commands(self) -> list[str]:
        return [f"{_ip(self.namespace)}link delete dev {self.name}"]


class AddressAdd(Operation, frozen=True):
    namespace: str
    link: str
    address: str

    def commands(self) -> list[str]:
        nodad = " nodad" if ":" in self.address else ""
        return [f"{_ip(self.namespace)}address add {self.address} dev {self.link}{nodad}"]


class AddressDelete(Operation, frozen=True):
    namespace: str
    link: str
    address: str

    def commands(self) -> list[str]:
        return [f"{_ip(self.namespace)}address delete {self.address} dev {self.link}"]


class RouteAdd(Operation, frozen=True):
    """A route; `destination` is a prefix or `default`. In the local table it is of type local. One of a kind that ends has no link."""

    namespace: str
    version: int
    destination: str
    gateway: str
    link: str
    table: int = rtnl.TABLE_MAIN
    metric: int = 0
    kind: RouteKind = "unicast"

    def words(self) -> str:
        kind = "local " if self.table == rtnl.TABLE_LOCAL else f"{self.kind} " if self.kind != "unicast" else ""
        via = f" via {self.gateway}" if self.gateway else ""
        table = "" if self.table == rtnl.TABLE_MAIN else f" table {'local' if self.table == rtnl.TABLE_LOCAL else self.table}"
        metric = f" metric {self.metric}" if self.metric else ""
        link = f" dev {self.link}" if self.link else ""
        return f"{kind}{self.destination}{via}{link} proto {rtnl.RTPROT_ATOLL}{table}{metric}"

    def commands(self) -> list[str]:
        family = "-6 " if self.version == 6 else ""
        # Several routes to ::1 differ only by interface, which "add" would refuse.
        verb = "append" if self.table == rtnl.TABLE_LOCAL else "add"
        return [f"{_ip(self.namespace)}{family}route {verb} {self.words()}"]


class RouteDelete(Operation, frozen=True):
    route: RouteAdd

    def commands(self) -> list[str]:
        family = "-6 " if self.route.version == 6 else ""
        return [f"{_ip(self.route.namespace)}{family}route delete {self.route.words()}"]


class RuleAdd(Operation, frozen=True):
    """A policy rule: what is sent from `source` looks in `table`."""

    namespace: str
    source: str
    table: int
    priority: int

    def words(self) -> str:
        return f"from {self.source} table {self.table} priority {self.priority} protocol {rtnl.RTPROT_ATOLL}"

    def commands(self) -> list[str]:
        family = "-6 " if ":" in self.source else ""
        return [f"{_ip(self.namespace)}{family}rule add {self.words()}"]


class RuleDelete(Operation, frozen=True):
    rule: RuleAdd

    def commands(self) -> list[str]:
        family = "-6 " if ":" in self.rule.source else ""
        return [f"{_ip(self.rule.namespace)}{family}rule delete {self.rule.words()}"]


class SysctlSet(Operation, frozen=True):
    """A setting by its path under /proc/sys. An `optional` one is left out where the kernel has none (IPv6 compiled out)."""

    namespace: str
    setting: str
    value: str
    optional: bool = False

    def commands(self) -> list[str]:
        # Slashes, because interface names may hold dots; -e where the kernel may lack it.
        return [f"{_in(self.namespace)}sysctl -q{'e' if self.optional else ''}w {self.setting}={shlex.quote(self.value)}"]


class RateSet(Operation, frozen=True):
    """A token bucket in front of an interface of the host; `rate` in bits a second."""

    link: str
    rate: int

    def commands(self) -> list[str]:
        burst, limit = tc.tbf_burst(self.rate), tc.tbf_limit(self.rate)
        return [f"tc qdisc replace dev {self.link} root tbf rate {self.rate}bit burst {burst} limit {limit}"]


class QueueDelete(Operation, frozen=True):
    """Takes away an interface's queue (`root`), or what is done to what arrives on it (`ingress`)."""

    link: str
    parent: Literal["root", "ingress"]

    def commands(self) -> list[str]:
        return [f"tc qdisc delete dev {self.link} {self.parent}"]


class Redirect(Operation, frozen=True):
    """Sends what arrives on an interface of the host through another."""

    link: str
    target: str

    def commands(self) -> list[str]:
        return [
            f"tc qdisc replace dev {self.link} ingress",
            f"tc filter replace dev {self.link} parent ffff: protocol all prio 1 handle 800::800 u32 match u32 0 0"
            f" action mirred egress redirect dev {self.target}",
        ]


class NftScript(Operation, frozen=True):
    """A script for nft: one transaction together with the scripts beside it.

    One that only adds or deletes elements also says them as bytes (`verb`, `changes`); then no text need be read to do it.
    """

    script: str
    verb: str = ""
    changes: tuple[nft.Change, ...] = ()

    def commands(self) -> list[str]:
        return [f"nft -f - <<'END'\n{self.script}END"]


class ConntrackDelete(Operation, frozen=True):
    """Forget the connections that came to this host port (`port`, first packet) or from or to an address."""

    protocol: str = ""
    port: int = 0
    count: int = 1
    address: str = ""

    def commands(self) -> list[str]:
        family = "ipv6" if ":" in self.address else "ipv4"
        if self.address:
            return [
                f"conntrack -D -f {family} --orig-src {self.address} || true",
                f"conntrack -D -f {family} --reply-src {self.address} || true",
            ]
        ports = range(self.port, self.port + self.count)
        if self.count > 1:
            each = f"for port in $(seq {ports[0]} {ports[-1]}); do"
            return [f"{each} conntrack -D -p {self.protocol} --orig-port-dst $port || true; done"]
        return [f"conntrack -D -p {self.protocol} --orig-port-dst {self.port} || true"]


class Plan(Struct, frozen=True):
    """A list of operations, to be done in order."""

    operations: tuple[Operation, ...] = ()

    @staticmethod
    def of(*parts: Iterable[Operation]) -> Plan:
        return Plan(tuple(operation for part in parts for operation in part))

    def commands(self) -> list[str]:
        """The commands that a person would type in bash, as root, to do the same."""
        return [command for operation in self.operations for command in operation.commands()]
