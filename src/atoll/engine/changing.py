"""The verbs that change an endpoint while it runs: its rates, its MAC address and MTU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from atoll import faults
from atoll.checks import check_mac
from atoll.drivers import bridge
from atoll.engine.endpoints import EndpointVerbs
from atoll.errors import Invalid, NotFound
from atoll.firewall.elements import change, guard_elements, link_local
from atoll.kernel import rtnl
from atoll.model import smallest_mtu
from atoll.plan.execute import dismantle
from atoll.plan.operations import HOST, AddressAdd, AddressDelete, LinkSet, Operation, Plan, SysctlSet

if TYPE_CHECKING:
    from atoll.model import Endpoint, Namespace, Network


class ChangingVerbs(EndpointVerbs):
    def set_rates(self, network: str, namespace: str, *, ingress_rate: str = "", egress_rate: str = "", interface: str = "") -> Endpoint:
        """What an endpoint may receive and send from now on; an empty rate is the network's own, as with `connect`.

        A limit that ends is taken away before that is recorded, a new one is made after.
        """
        faults.begin("set_rates")
        where, before = self._tuned(network, namespace, interface)
        after = self._with_rates(where, before, ingress_rate, egress_rate)
        faults.step()
        self.do(Plan(tuple(bridge.rates_down(before, after))))
        return self._change(where, before, after, Plan(tuple(_new_rates(before, after))), _rates_plan(after, before))

    def plan_set_rates(self, network: str, namespace: str, *, ingress_rate: str = "", egress_rate: str = "", interface: str = "") -> Plan:
        where, before = self._tuned(network, namespace, interface)
        return _rates_plan(before, self._with_rates(where, before, ingress_rate, egress_rate))

    def retune(self, network: str, namespace: str, *, mac: str = "", mtu: int = 0, interface: str = "") -> Endpoint:
        """Another MAC address, another MTU (bytes), or both. Neighbours are told of the MAC address; connections go on."""
        faults.begin("retune")
        where, before = self._tuned(network, namespace, interface)
        after = self._retuned(where, before, mac, mtu)
        return self._change(where, before, after, self._retune_plan(where, before, after), self._retune_plan(where, after, before))

    def plan_retune(self, network: str, namespace: str, *, mac: str = "", mtu: int = 0, interface: str = "") -> Plan:
        where, before = self._tuned(network, namespace, interface)
        return self._retune_plan(where, before, self._retuned(where, before, mac, mtu))

    # --- parts ---

    def _tuned(self, network: str, namespace: str, interface: str) -> tuple[Network, Endpoint]:
        where = self.state.network(network)
        return where, self.state.endpoint(where, namespace, interface)

    def _change(self, where: Network, before: Endpoint, after: Endpoint, plan: Plan, back: Plan) -> Endpoint:
        """Recorded first: what a crash leaves undone is then a difference that recovery puts right."""
        if before == after:
            return before
        self._record_change(after)
        try:
            self.do(plan)
        except BaseException:
            self._record_change(before)
            dismantle(self.host, back)
            raise
        self.emit("endpoint.change", network=where.name, namespace=after.namespace, id=after.id)
        return after

    def _record_change(self, endpoint: Endpoint) -> None:
        with self.store.transaction():
            self.store.put(endpoint)
        self.state.put_endpoint(endpoint)

    def _with_rates(self, where: Network, endpoint: Endpoint, ingress_rate: str, egress_rate: str) -> Endpoint:
        ingress, egress = self.rates(where, ingress_rate, egress_rate)
        return structs.replace(endpoint, ingress_rate=ingress, egress_rate=egress)

    def _retuned(self, where: Network, endpoint: Endpoint, mac: str, mtu: int) -> Endpoint:
        if where.driver not in ("bridge", "macvlan", "ipvlan"):
            raise Invalid(f"network {where.name} has no interface to change", "it is its namespace's loopback")
        if self.state.namespace(endpoint.namespace).is_external:
            raise Invalid(f"{endpoint.namespace} is set up by someone else, and so is its interface", "let them change it")
        carrier = self.links().get(where.parent) if where.parent else None
        lowest, highest = smallest_mtu(ipv6=where.has(6)), carrier.mtu if carrier is not None else 65535
        if mtu and not lowest <= mtu <= highest:
            raise Invalid(f"mtu {mtu} is out of range", f"expected {lowest} to {highest} bytes here")
        mac = endpoint.mac if not mac or check_mac(mac) == endpoint.mac else self.choose_mac(where, mac)
        return structs.replace(endpoint, mac=mac, mtu=(mtu if mtu != where.mtu else 0) if mtu else endpoint.mtu)

    def _retune_plan(self, where: Network, before: Endpoint, after: Endpoint) -> Plan:
        """The guard lets both addresses pass while the interface changes from one to the other."""
        namespace = self.state.namespace(after.namespace)
        operations: list[Operation] = []
        mtu = (after.mtu or where.mtu) if before.mtu != after.mtu else None
        if mtu and where.driver == "bridge":
            operations.append(LinkSet(HOST, after.host_interface, mtu=mtu))
            if where.made_bridge:
                # It goes with the least of its ports until someone has set it to something else than what it has (br_mtu_auto_adjust).
                operations.append(LinkSet(HOST, where.shard(after.shard), mtu=where.mtu))
        if before.mac == after.mac:
            inside = [LinkSet(namespace.name, after.interface, mtu=mtu)] if mtu else []
            return Plan.of(operations, inside)
        known, wanted = (set(guard_elements(where, end)) if where.driver == "bridge" else set() for end in (before, after))
        return Plan.of(
            change("add", sorted(wanted - known)),
            operations,
            _announced(after),
            [LinkSet(namespace.name, after.interface, mtu=mtu, mac=after.mac)],
            self._link_local(before, after, namespace),
            change("delete", sorted(known - wanted)),
        )

    def _link_local(self, before: Endpoint, after: Endpoint, namespace: Namespace) -> list[Operation]:
        """The link-local address that the kernel made of the MAC address stays as it is, and from the new one it may not be used."""
        old, new = (f"{link_local(end.mac)}/64" for end in (before, after))
        if not after.address(6):
            return []
        try:
            with self.host.socket_in(namespace.name) as sock:
                there = {str(row.interface) for row in rtnl.addresses(sock)}
        except NotFound:
            return []
        name, link = namespace.name, after.interface
        return [AddressDelete(name, link, old), AddressAdd(name, link, new)] if old in there else []


def _announced(endpoint: Endpoint) -> list[Operation]:
    """The kernel tells the neighbours of a new MAC address, where it is asked to (ip-sysctl.rst)."""
    inside, link = endpoint.namespace, endpoint.interface
    settings = ["net/ipv4/conf/{}/arp_notify"] if endpoint.address(4) else []
    settings += ["net/ipv6/conf/{}/ndisc_notify"] if endpoint.address(6) else []
    return [SysctlSet(inside, setting.format(link), "1") for setting in settings]


def _new_rates(before: Endpoint, after: Endpoint) -> list[Operation]:
    known = bridge.rates_up(before)
    return [part for part in bridge.rates_up(after) if part not in known]


def _rates_plan(before: Endpoint, after: Endpoint) -> Plan:
    return Plan.of(bridge.rates_down(before, after), _new_rates(before, after))
