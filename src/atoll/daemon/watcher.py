"""The watcher: notices what others change in the kernel and has it put right, within a second.

Three bells. Routing netlink tells of links, addresses, routes and rules, in the host and in every namespace that a veth pair joins to it
(one socket hears them all). Nftables tells of every transaction and who committed it. Settings under /proc ring no bell and are looked
at twice a second, as are the namespaces' files and processes.

An event is only a reason to look: most are our own doing, and what they say agrees with the model. `Watcher.look` runs on the
engine's thread, where nothing changes meanwhile.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from atoll.drivers import of
from atoll.engine import host_side
from atoll.errors import AtollError
from atoll.firewall.skeleton import TABLE
from atoll.kernel import netlink, nft, rtnl, sysctl, tc
from atoll.model import SPARE_PREFIX, TRUNK_PREFIX, VETH_PREFIX
from atoll.plan.operations import HOST, SysctlSet

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.kernel.netlink import Message
    from atoll.model import Network

_GROUPS: Final = (
    rtnl.GROUP_LINK,
    rtnl.GROUP_IPV4_ADDRESS,
    rtnl.GROUP_IPV6_ADDRESS,
    rtnl.GROUP_IPV4_ROUTE,
    rtnl.GROUP_IPV6_ROUTE,
    rtnl.GROUP_IPV4_RULE,
    rtnl.GROUP_IPV6_RULE,
    rtnl.GROUP_TC,
)
_LOSSES: Final = {rtnl.RTM_DELADDR, rtnl.RTM_DELROUTE, rtnl.RTM_DELRULE, tc.RTM_DELQDISC}
#: The links inside namespaces that are ours, or could be ours with another name or MAC address.
_KINDS: Final = ("veth", "macvlan")
#: The table in which iptables, and so Docker, filters.
_FILTER_BYTES: Final = b"filter\0"
_TABLE_BYTES: Final = TABLE.encode() + b"\0"


class Watcher:
    """Listens for one engine. Made and used on the engine's thread, but for the two descriptors that the event loop waits on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.links = engine.host.run(lambda: netlink.Socket(netlink.NETLINK_ROUTE, _GROUPS, all_namespaces=True))
        self.rules = engine.host.run(lambda: nft.open_socket((nft.GROUP_NFTABLES,)))
        self._own_pid = self._find_own_pid()
        self._namespace_ids: dict[int, str] = {}
        #: The endpoints and the namespaces to be found that there were when these ids were asked for.
        self._connected: frozenset[str] = frozenset()

    def close(self) -> None:
        self.links.close()
        self.rules.close()

    def _find_own_pid(self) -> int:
        """Our pid as nftables reports it: another than getpid() when we are in a pid namespace."""
        self._engine.host.nft.apply("add table inet atoll-probe\ndelete table inet atoll-probe\n")
        for event in self._read(self.rules)[0]:
            committed = nft.generation_process(event)
            if committed is not None:
                return committed[0]
        return os.getpid()

    @staticmethod
    def _read(sock: netlink.Socket) -> tuple[list[Message], bool]:
        """The events that wait, and whether some were lost."""
        try:
            return sock.events(), False
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return [], True

    def look(self) -> bool:
        """Read what has rung and repair what it speaks of; whether others have changed rules of their own."""
        engine = self._engine
        events, lost_links = self._read(self.links)
        rule_events, lost_rules = self._read(self.rules)
        if lost_links or lost_rules:
            engine.release_vanished()
            engine.repair()
            return True
        links, namespaces = self._suspects(events)
        firewall = self._rules_touched(rule_events)
        if links or namespaces:
            engine.release_vanished()
            engine.learn_interfaces(namespaces)
        if links or namespaces or firewall:
            engine.repair(namespaces=namespaces & set(engine.state.namespaces), firewall=firewall, links=links)
        return any(_FILTER_BYTES in event.body[:32] for event in rule_events)

    def tick(self) -> None:
        """What rings no bell: settings, and namespaces that ended. Also the walk over connection tracking that is due."""
        engine = self._engine
        engine.settle()
        engine.release_vanished()
        engine.release_idle()
        engine.refresh_files()
        if self._settings_changed():
            engine.repair(namespaces=(), firewall=False)

    # --- rules ---

    def _rules_touched(self, events: list[Message]) -> bool:
        """Whether somebody else committed a change to our tables."""
        touched = False
        for event in events:
            committed = nft.generation_process(event)
            if committed is None:
                touched = touched or _TABLE_BYTES in event.body[:32]
            elif committed[0] == self._own_pid:
                touched = False
            elif touched:
                return True
        return touched

    # --- links ---

    def _suspects(self, events: list[Message]) -> tuple[bool, set[str]]:
        """Whether the host's links must be looked at, and which namespaces."""
        newest: dict[tuple[int | None, int], Message] = {}
        ports: dict[int, Message] = {}
        host, ids = False, set()
        for event in events:
            if event.type in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
                # Of a link's events only the last counts: making one passes through states that would look like damage.
                index = int.from_bytes(event.body[4:8], "little")
                if event.body[0] != rtnl.AF_BRIDGE:
                    newest[event.namespace, index] = event
                elif event.namespace is None:
                    ports[index] = event  # comes beside the link's own, and alone when a flag of the port was changed
            elif event.type in _LOSSES:
                if event.namespace is None:
                    host = host or self._loss_on_host(event)
                else:
                    ids.add(event.namespace)
        known, inside = self._known_links()
        for (namespace, _), event in newest.items():
            link = rtnl.parse_link(event.body)
            if namespace is None:
                host = host or self._contradicts(event, link, known)
            elif event.type == rtnl.RTM_DELLINK or not link.up or (link.kind in _KINDS and (link.mac, link.name, link.mtu) not in inside):
                ids.add(namespace)
        host = host or any(self._must_be_isolated(rtnl.parse_link(event.body), known) for event in ports.values())
        return host, {name for name in map(self._name_of, ids) if name}

    def _known_links(self) -> tuple[dict[str, tuple[Network, int]], set[tuple[str, str, int]]]:
        """The links that must be there, and up: the host's, with their networks and MTU, and the MAC, name and MTU of those in
        namespaces."""
        found: dict[str, tuple[Network, int]] = {}
        inside: set[tuple[str, str, int]] = set()
        for network in self._engine.state.networks.values():
            for bridge in network.bridges():
                found[bridge] = network, network.mtu
            for endpoint in self._engine.state.endpoints_on(network):
                if endpoint.state == "ready":
                    mtu = endpoint.mtu or network.mtu
                    inside.add((endpoint.mac, endpoint.interface, mtu))
                    if network.driver == "bridge":
                        found[endpoint.host_interface] = network, mtu
        return found, inside

    def _must_be_isolated(self, port: rtnl.Link, known: dict[str, tuple[Network, int]]) -> bool:
        """Whether it is the port of an endpoint that is to be kept apart from others and isn't (or a trunk's, which may have to be)."""
        apart = port.name in known and not known[port.name][0].icc
        return not port.isolated and (port.name.startswith(TRUNK_PREFIX) or apart)

    def _contradicts(self, event: Message, link: rtnl.Link, known: dict[str, tuple[Network, int]]) -> bool:
        if link.name not in known:
            if link.name.startswith(SPARE_PREFIX):
                return False
            # A trunk, a shaper, or one of ours under another name; a foreign link is nobody's business.
            owner = link.alias.removeprefix("atoll:")
            return link.alias != owner and (owner in self._engine.state.endpoints or owner in self._engine.state.networks)
        if event.type == rtnl.RTM_DELLINK:
            return True
        enslaved = link.master != 0 or not link.name.startswith(VETH_PREFIX)
        return not (link.up and link.mtu == known[link.name][1] and enslaved)

    def _loss_on_host(self, event: Message) -> bool:
        """Whether a lost address, route, rule or queue of the host may be one of ours: the model is asked only then."""
        if event.type == rtnl.RTM_DELADDR:
            text = str(rtnl.parse_address(event.body).interface)
            return any(
                text.partition("/")[0] == subnet.gateway for network in self._engine.state.bridge_networks() for subnet in network.subnets
            )
        if event.type == rtnl.RTM_DELROUTE:
            return rtnl.parse_route(event.body).protocol == rtnl.RTPROT_ATOLL
        return event.type == tc.RTM_DELQDISC and any(e.ingress_rate or e.egress_rate for e in self._engine.state.endpoints.values())

    def _name_of(self, namespace_id: int) -> str:
        """The namespace that the kernel knows by this id here; empty when it is none of ours that is connected to anything.

        To learn an id is to ask for each namespace's; that an id is nobody's is remembered for as long as nothing is connected.
        """
        connected = frozenset(self._engine.state.endpoints) | {name for name, one in self._engine.state.namespaces.items() if one.inode}
        name = self._namespace_ids.get(namespace_id)
        if name is None or (self._id_of(name) != namespace_id if name else connected != self._connected):
            self._namespace_ids = {self._id_of(other): other for other in self._engine.state.namespaces}
            self._connected = connected
            name = self._namespace_ids.setdefault(namespace_id, "")
        return name if name and self._engine.state.endpoints_of(name) else ""

    def _id_of(self, name: str) -> int:
        try:
            with self._engine.host.namespace(name) as fd:
                return rtnl.namespace_id(self._engine.host.rtnl, fd)
        except (AtollError, OSError):
            return -1

    # --- settings ---

    def _settings_changed(self) -> bool:
        wanted = [
            operation
            for part in (
                host_side.lasting(list(self._engine.state.networks.values())),
                *(of(network).network_up(network) for network in self._engine.state.networks.values()),
            )
            for operation in part
            if isinstance(operation, SysctlSet) and operation.namespace == HOST and not operation.optional
        ]
        if not wanted:
            return False
        return self._engine.host.run(lambda: any(sysctl.read(operation.setting) != operation.value for operation in wanted))
