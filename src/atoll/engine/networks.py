"""The verbs for networks."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from msgspec import structs

from atoll import faults, ipam
from atoll.checks import check_domains, check_servers
from atoll.drivers import of
from atoll.engine import host_side
from atoll.engine.base import Base
from atoll.engine.network_request import Chosen, HostFacts, NetworkRequest, choose
from atoll.errors import AtollError, Conflict, Denied, Failed, Invalid
from atoll.firewall.elements import Element, change, network_elements, statement
from atoll.firewall.skeleton import RESET, SKELETON
from atoll.kernel import rtnl
from atoll.model import PREDEFINED, Network, as_tuples
from atoll.plan.execute import dismantle
from atoll.plan.operations import NftScript, Operation, Plan

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence


class NetworkVerbs(Base):
    def create_network(self, name: str, **options: Any) -> Network:
        """Make a network; `options` are the fields of `NetworkRequest`. Nothing is left behind when it fails."""
        return self.create_network_explained(NetworkRequest(name=name, **as_tuples(options))).network

    def create_network_explained(self, request: NetworkRequest) -> Chosen:
        """The same with the notes that explain what was chosen."""
        faults.begin("create_network")
        chosen = self._choose(request)
        network = chosen.network
        plan, former, fence = self._network_plan(network)
        with self.store.transaction():
            self.store.put(network)
            for setting, value in former.items():
                self.store.set_fact(f"former:{setting}", value)
            for element in fence:
                self.store.set_fact(f"{element.set}:{element.key[0]}", "")
        self.state.add_network(network)
        try:
            self.do(plan)
        except AtollError:
            self._take_down(network)
            raise
        network = structs.replace(network, state="ready")
        with self.store.transaction():
            self.store.put(network)
        self.state.update_network(network)
        self.names.put_network(network)
        self.names.push()
        self.emit("network.create", network=network.name, id=network.id, driver=network.driver)
        return Chosen(network, chosen.notes)

    def plan_create_network(self, name: str, **options: Any) -> Plan:
        """What `create_network` would do; changes nothing."""
        return self._network_plan(self._choose(NetworkRequest(name=name, **as_tuples(options))).network)[0]

    def remove_network(self, name: str) -> Network:
        """Take a network away. Raises `Conflict` with the endpoints' names while it has any."""
        faults.begin("remove_network")
        network = self._removable(name)
        removing = structs.replace(network, state="removing")
        with self.store.transaction():
            self.store.put(removing)
        faults.step()
        errors = self._take_down(removing)
        self.names.drop_network(network)
        self.names.push()
        self.emit("network.remove", network=network.name, id=network.id)
        _report(f"removing network {network.name}", errors)
        return network

    def plan_remove_network(self, name: str) -> Plan:
        network = self._removable(name)
        back: list[Operation] = list(host_side.put_back(self.store.facts("former:"), network, self.state.networks.values()))
        return Plan.of(of(network).network_down(self._without_shared(network)), [self._firewall_without(network)], back)

    def serve_names(self, name: str, *, servers: Sequence[str] | None = None, domains: Sequence[str] = ()) -> Network:
        """Have a network with DNS ask other `servers` (none: the host's) about the world outside, and answer below further `domains`."""
        network = self.state.network(name)
        changed = structs.replace(
            network,
            servers=network.servers if servers is None else check_servers(servers),
            domains=tuple(dict.fromkeys((*network.domains, *check_domains(domains)))),
        )
        if changed == network:
            return network
        if not network.resolvers():
            raise Invalid(f"network {network.name} answers for no names", "create it without --no-dns")
        with self.store.transaction():
            self.store.put(changed)
        self.state.update_network(changed)
        self.names.put_network(changed)
        self.names.tell()
        self.emit("network.change", network=network.name, id=network.id)
        return changed

    def release_idle(self) -> list[AtollError]:
        """Remove the fleeting networks that nobody is on; what could not be taken away."""
        errors: list[AtollError] = []
        for network in [network for network in self.state.networks.values() if network.fleeting and not self.state.count_on(network)]:
            try:
                self.remove_network(network.id)
            except Conflict:
                continue  # an address of it is held for somebody
            except AtollError as error:
                errors.append(error)
        return errors

    def prune_networks(self, keep: Collection[str] = ()) -> list[Network]:
        """Remove every network without endpoints, but those with the ids `keep`."""
        unused = [network for network in self.state.networks.values() if network.id not in keep and not self.state.count_on(network)]
        return [self.remove_network(network.id) for network in unused]

    def networks(self) -> list[Network]:
        """All networks, the predefined ones first, then by name."""
        predefined = [self.state.network(name) for name in PREDEFINED]
        return predefined + sorted(self.state.networks.values(), key=lambda network: network.name)

    # --- parts ---

    def _choose(self, request: NetworkRequest) -> Chosen:
        while self.state.mac_taken(Network(id="", name="", driver="bridge"), mac := self.new_mac()):
            pass
        return choose(request, self._facts(), self.state.networks.values(), self.new_id(), mac, self.now())

    def _facts(self) -> HostFacts:
        links = self.links()
        by_index = {link.ifindex: link for link in links.values()}
        rows = list(rtnl.routes(self.host.rtnl))
        addresses = {(by_index[row.ifindex].name, str(row.interface)) for row in rtnl.addresses(self.host.rtnl) if row.ifindex in by_index}
        ways_out = [by_index[r.ifindex] for r in rows if r.destination is None and r.table == rtnl.TABLE_MAIN and r.ifindex in by_index]
        ours = {name for network in self.state.networks.values() for name in network.bridges()}
        return HostFacts(
            links=links,
            addresses=addresses,
            taken=[*routes_taken(rows, by_index, ours), *_nameservers()],
            mtu=ways_out[0].mtu if ways_out else 1500,
            ula=int(self.store.fact("ula")),
            pooled=[ipam.Taken(leased.subnet, f"pool {name}") for name, leased in self.state.leases.pools.items()],
        )

    def _network_plan(self, network: Network) -> tuple[Plan, dict[str, str], list[Element]]:
        """The plan, the host settings' former values that must be recorded first, and the elements that fence other interfaces."""
        links = list(self.links().values())
        networks = [*self.state.networks.values(), network]
        wanted = host_side.needs(networks, links, self.read_setting)
        former = host_side.remember({**host_side.on_adopted(network), **wanted}, self.store.facts("former:"), self.read_setting)
        fence = host_side.fence(former, links)
        elements = [*network_elements(network), *fence]
        rules = change("add", elements)
        if network.driver == "bridge" and not any(True for _ in self.state.bridge_networks()):
            rules = [NftScript(RESET + SKELETON + statement("add", elements))]
        settings = host_side.set_up({setting: value for setting, value in wanted.items() if setting in former})
        # Forwarding before addresses: the kernel would join an address's anycast group twice if it came right after, and never leave it.
        return Plan.of(rules, settings, of(network).network_up(self._without_shared(network))), former, fence

    def _removable(self, name: str) -> Network:
        network = self.state.network(name)
        if network.id in PREDEFINED:
            raise Denied(f"network {name} is predefined and can't be removed")
        holders = sorted(endpoint.namespace for endpoint in self.state.endpoints_on(network))
        if holders:
            shown = ", ".join(holders[:8]) + (f" and {len(holders) - 8} more" if len(holders) > 8 else "")
            raise Conflict(f"network {network.name} is in use by {shown}", f"atoll disconnect {network.name} {holders[0]}")
        return network

    def _firewall_without(self, network: Network) -> Operation:
        others = [other for other in self.state.bridge_networks() if other.id != network.id]
        return NftScript(RESET) if not others else change("delete", network_elements(network))[0]

    def _without_shared(self, network: Network) -> Network:
        """As one that didn't make its parent while others are on that: it comes with the first of them and goes with the last."""
        others = (other for other in self.state.networks.values() if other.id != network.id)
        shared = network.made_parent and any(other.made_parent and other.parent == network.parent for other in others)
        return structs.replace(network, made_parent=False) if shared else network

    def _take_down(self, network: Network) -> list[AtollError]:
        """Take away all that a network's record speaks of, and the record; its links before its rules."""
        self.settle()
        errors = dismantle(self.host, Plan(tuple(of(network).network_down(self._without_shared(network)))))
        self.state.drop_network(network)
        if network.driver == "bridge":
            faults.step()
            if any(True for _ in self.state.bridge_networks()):
                self.delete_elements(network_elements(network))
            else:
                self.rebuild_firewall()
        faults.step()
        self.put_host_back(network)
        faults.step()
        with self.store.transaction():
            self.store.delete(network)
        return errors


def routes_taken(rows: list[rtnl.RouteRow], by_index: dict[int, rtnl.Link], ours: set[str]) -> Iterator[ipam.Taken]:
    """Where addresses lead on this host by any table, but for default routes and our own bridges."""
    for row in rows:
        device = by_index[row.ifindex].name if row.ifindex in by_index else ""
        if row.destination is None or device in ours or device == "lo" or row.table == rtnl.TABLE_LOCAL:
            continue
        if row.destination.version == 6 and (row.destination.is_multicast or row.destination.is_link_local):
            continue
        via = f" via {row.gateway}" if row.gateway else ""
        yield ipam.Taken(row.destination, f"route{via} dev {device}" if device else "route to nowhere")


def _nameservers() -> Iterator[ipam.Taken]:
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            words = [line.split() for line in file]
    except OSError:
        return
    for word in words:
        if len(word) > 1 and word[0] == "nameserver":
            try:
                server = ipaddress.ip_network(word[1].partition("%")[0])
            except ValueError:
                continue
            if not server.network_address.is_loopback:
                yield ipam.Taken(server, f"nameserver {word[1]} in /etc/resolv.conf")


def _report(doing: str, errors: list[AtollError]) -> None:
    """Everything was tried and the record is gone; what could not be taken away is said once."""
    if errors:
        raise Failed(f"{doing}: {'; '.join(error.what for error in errors)}", "atoll doctor shows what is left")
