"""The verbs for endpoints: the main path.

`connect` reads top to bottom: check everything, choose what was left open, record the endpoint as pending, do the plan, record it as
ready. Whatever fails after the first record is undone from that record, by this process or the next one.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from atoll import faults, ipam
from atoll.checks import check_count, check_interface, check_key, check_mac, check_metric, check_name, check_route, parse_rate
from atoll.drivers import bridge, routing
from atoll.engine.publishing import PortVerbs, parse_specs
from atoll.errors import AtollError, Conflict, Exhausted, Invalid
from atoll.firewall.elements import Element, change, network_elements
from atoll.model import MAX_ROUTES, MAX_SHARDS, PREDEFINED, SHARD_PORTS, Endpoint, Namespace, Network, Route, as_tuples, interface
from atoll.plan.execute import dismantle
from atoll.plan.operations import Operation, Plan

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class EndpointOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be said of an endpoint when it is made: the options of `connect`."""

    addresses: tuple[str, ...] = ()
    mac: str = ""
    interface: str = ""
    aliases: tuple[str, ...] = ()
    gateway_priority: int = 0
    publish: tuple[str, ...] = ()
    ingress_rate: str = ""
    egress_rate: str = ""
    routes: tuple[Route, ...] = ()
    default_route: bool = True
    metric: int = 0


class ClientOptions(EndpointOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a front door may say besides: for whom it asks (`Endpoint.owner`), by which name some of the addresses are kept for this
    (`hold_address`), whether the client itself has the ports open on the host, so that they are no one else's, and a further name of the
    endpoint's interface on the host."""

    owner: str = ""
    holder: str = ""
    ports_held: bool = False
    host_name: str = ""


class EndpointVerbs(PortVerbs):
    def connect(self, network: str, namespace: str, **options: Any) -> Endpoint:
        """Attach a namespace to a network; `options` are the fields of `ClientOptions`.

        Returns when packets flow; leaves nothing behind when it fails.
        """
        faults.begin("connect")
        with contextlib.ExitStack() as held:
            return self._connect(*self._draft(network, namespace, ClientOptions(**as_tuples(options)), held))

    def _connect(self, where: Network, who: Namespace, endpoint: Endpoint) -> Endpoint:
        try:
            self.settle_for(endpoint)
            grown = _grown(where, endpoint)
            plan = Plan.of(_growth(where, grown), self.attach(where, endpoint, who).operations)
            with self.store.transaction():
                if grown != where:
                    self.store.put(grown)
                self.store.put(endpoint)
                self.store.add_ports(endpoint.id, endpoint.ports)
                for pool in self.state.pools(where):
                    self.store.set_cursor(where.id, str(pool.subnet), pool.cursor)
        except BaseException:
            self.state.retract_addresses(endpoint)
            raise
        if grown != where:
            self.state.update_network(grown)
        self.state.put_endpoint(endpoint)
        try:
            self.do(plan)
            self.announcements.make(where, endpoint)
            self.write_files(who)
        except BaseException:
            self.tear_down(where, endpoint)
            self._undo_growth(where, grown)
            raise
        endpoint = self.ready(endpoint)
        self.names.put_endpoint(where, endpoint)
        self.names.tell()
        self.emit("endpoint.connect", network=where.name, namespace=who.name, id=endpoint.id, addresses=endpoint.addresses)
        return endpoint

    def plan_connect(self, network: str, namespace: str, **options: Any) -> Plan:
        """What `connect` would do; changes nothing."""
        with contextlib.ExitStack() as held:
            where, who, endpoint = self._draft(network, namespace, ClientOptions(**as_tuples(options)), held)
            try:
                return self._connection_plan(where, who, endpoint)
            finally:
                self.state.retract_addresses(endpoint)

    def disconnect(self, network: str, namespace: str, *, interface: str = "", ending: bool = False) -> Endpoint:
        """Detach a namespace from a network and give back its addresses and ports. `interface` says which of several endpoints.

        `ending`: the namespace ends as well, so its last link may go a moment later (see `remove_namespace`).
        """
        faults.begin("disconnect")
        where = self.state.network(network)
        endpoint = structs.replace(self.state.endpoint(where, namespace, interface), state="removing")
        with self.store.transaction():
            self.store.put(endpoint)
        self.state.put_endpoint(endpoint)
        faults.step()
        last = len(self.state.endpoints_of(namespace)) == 1 or self.state.namespace(namespace).is_external
        errors = self.tear_down(where, endpoint, with_namespace=ending and last)
        self.names.push()
        self.write_files(self.state.namespace(namespace))
        self.names.wait()
        self.emit("endpoint.disconnect", network=where.name, namespace=namespace, id=endpoint.id)
        if errors:
            raise errors[0]
        return endpoint

    def plan_disconnect(self, network: str, namespace: str, *, interface: str = "") -> Plan:
        where = self.state.network(network)
        endpoint = self.state.endpoint(where, namespace, interface)
        return self.plan_tear_down(where, endpoint, self.state.namespace(namespace))

    # --- connect's parts ---

    def _connection_plan(self, where: Network, who: Namespace, endpoint: Endpoint) -> Plan:
        return Plan.of(_growth(where, _grown(where, endpoint)), self.attach(where, endpoint, who).operations)

    def _draft(
        self, network: str, namespace: str, options: ClientOptions, held: contextlib.ExitStack
    ) -> tuple[Network, Namespace, Endpoint]:
        """Everything checked and chosen. The addresses are held for the endpoint, chosen ports of the host by `held`; nothing else is
        changed."""
        where, who = self.state.network(network), self.state.namespace(namespace)
        self._check_allowed(where, who, options.interface)
        ports = parse_specs(options.publish)
        rates = self.rates(where, options.ingress_rate, options.egress_rate)
        _check_32_bits(options.gateway_priority, "gateway priority")
        check_count(options.routes, MAX_ROUTES, "routes")
        owner = check_key(options.owner, "an owner") if options.owner else ""
        number = _lowest_free({endpoint.number for endpoint in self.state.endpoints_of(namespace)})
        endpoint = Endpoint(
            id=self.new_id(),
            network=where.id,
            namespace=namespace,
            interface=self._interface(where, who, options.interface, number),
            mac=self.choose_mac(where, options.mac),
            number=number,
            owner=owner,
            host_name=self._host_name(where, options.host_name),
            shard=self._shard(where),
            aliases=tuple(check_name(alias, "alias") for alias in options.aliases),
            gateway_priority=options.gateway_priority,
            routes=tuple(dict.fromkeys([*where.routes, *map(check_route, options.routes)])),
            default_route=where.default_route and options.default_route,
            metric=check_metric(options.metric) or where.metric,
            ingress_rate=rates[0],
            egress_rate=rates[1],
            created=self.now(),
        )
        if ports:
            families = [version for version in (4, 6) if where.has(version)]
            ports = self.choose_ports(where, endpoint, ports, families=families, held=held, ports_held=options.ports_held)
            endpoint = structs.replace(endpoint, ports=ports)
        if who.is_external:
            endpoint = structs.replace(endpoint, interface=endpoint.spare)
        endpoint = structs.replace(endpoint, addresses=self._addresses(where, namespace, options.addresses, options.holder))
        try:
            routing.check(endpoint.routes, [interface(text).network for text in endpoint.addresses])
        except AtollError:
            self.state.retract_addresses(endpoint)
            raise
        return where, who, endpoint

    def _host_name(self, network: Network, wanted: str) -> str:
        """A further name of the endpoint's interface on the host."""
        if not wanted:
            return ""
        if network.driver != "bridge":
            raise Invalid(f"driver {network.driver} has no interface of an endpoint on the host", "leave out its name")
        links = self.links().values()
        if any(check_interface(wanted) in (link.name, *link.altnames) for link in links):
            raise Conflict(f"an interface of the host is called {wanted}", "choose another name")
        return wanted

    def _check_allowed(self, network: Network, namespace: Namespace, interface: str) -> None:
        for object_, what in ((network, "network"), (namespace, "namespace")):
            if object_.state != "ready":
                raise Conflict(f"{what} {object_.name} is {object_.state}", "try again in a moment")
        if network.driver == "host":
            raise Invalid(
                f"{namespace.name} has a network stack of its own and can't be on the host's",
                "a process is on the host network when it isn't in a namespace at all",
            )
        mine = self.state.endpoints_of(namespace.name)
        # In an external one each link has a name of its own until it is taken.
        if not interface and not namespace.is_external and any(endpoint.network == network.id for endpoint in mine):
            again = f"atoll disconnect {network.name} {namespace.name}, or name another interface: --ifname NAME"
            raise Conflict(f"{namespace.name} is connected to {network.name}", again)
        if mine and (network.driver == "none" or mine[0].network in PREDEFINED):
            raise Conflict(f"{namespace.name} can't be on network none and another", "none means no network at all")

    @staticmethod
    def rates(network: Network, ingress_rate: str, egress_rate: str) -> tuple[int, int]:
        """In bits a second, the network's own where nothing is said."""
        found = _rate(ingress_rate, "ingress rate", network.ingress_rate), _rate(egress_rate, "egress rate", network.egress_rate)
        if any(found) and network.driver != "bridge":
            raise Invalid(f"driver {network.driver} can't limit bandwidth", "its packets don't pass the host")
        return found

    def _interface(self, network: Network, namespace: Namespace, wanted: str, number: int) -> str:
        if network.driver == "none":
            return "lo"
        if namespace.is_external and wanted:
            raise Invalid(f"{namespace.name} is set up by someone else, who also names its interfaces", "leave out the interface's name")
        mine = {endpoint.interface for endpoint in self.state.endpoints_of(namespace.name)}
        names = (f"{network.interface_prefix}{n}" for n in itertools.count(number))
        first = check_interface(wanted) if wanted else next(name for name in names if name not in mine)
        if first != "lo" and first not in mine and self._is_free(namespace, first):
            return first
        if wanted:
            raise Conflict(f"{namespace.name} has an interface {wanted}", "choose another name")
        return next(name for name in names if name not in mine and self._is_free(namespace, name))

    def _is_free(self, namespace: Namespace, name: str) -> bool:
        if self._doomed and self.has_interface(namespace, name):
            self.settle()  # it may be what has just been disconnected there
        return not self.has_interface(namespace, name)

    def choose_mac(self, network: Network, wanted: str) -> str:
        """The one that is wanted, or one that nobody has."""
        if network.driver == "none":
            return ""
        if wanted:
            if network.driver == "ipvlan":
                raise Invalid("an ipvlan endpoint has its parent's MAC address", "leave out --mac, or use macvlan")
            mac = check_mac(wanted)
            if self.state.mac_taken(network, mac):
                raise Conflict(f"MAC address {mac} is taken on network {network.name}", "choose another, or none for a random one")
            return mac
        if network.mode == "passthru":
            return self.links()[network.parent].mac  # the kernel gives it that, and to set another would change the parent's
        while self.state.mac_taken(network, mac := self.new_mac()):
            pass
        return mac

    def _addresses(self, network: Network, owner: str, wanted: Sequence[str], holder: str) -> tuple[str, ...]:
        """Static addresses as asked for (free, or kept for `holder`), and one chosen address in each family that is left.

        Without a static address the first subnet of a family serves, and the next when it is full.
        """
        held: list[tuple[ipam.Pool, ipam.Address]] = []
        try:
            for text in wanted:
                value = ipam.parse_address(text, "address")
                pool = self.state.pool_of(network, value)
                if pool is None:
                    subnets = ", ".join(subnet.subnet for subnet in network.subnets) or "none"
                    raise Invalid(f"address {value} is not in a subnet of {network.name}", f"its subnets: {subnets}")
                self.state.take_over(network, pool, value, holder, owner)
                held.append((pool, value))
            for version in (4, 6):
                pools = [pool for pool in self.state.pools(network) if pool.subnet.version == version]
                if pools and not any(value.version == version for _, value in held):
                    pool = next((pool for pool in pools if pool.used < pool.size), pools[-1])
                    held.append((pool, pool.allocate(owner)))
        except AtollError:
            self.state.retract(network, held)
            raise
        held.sort(key=lambda pair: pair[1].version)
        return tuple(f"{value}/{pool.subnet.prefixlen}" for pool, value in held)

    def _shard(self, network: Network) -> int:
        """The first bridge of the network with room; one past the last when all are full."""
        if network.driver != "bridge" or self.state.count_on(network) < SHARD_PORTS:
            return 0
        counts = [0] * network.shards
        for endpoint in self.state.endpoints_on(network):
            counts[endpoint.shard] += 1
        for shard, count in enumerate(counts):
            if count < SHARD_PORTS:
                return shard
        if network.shards == MAX_SHARDS:
            raise Exhausted(f"network {network.name} has {sum(counts)} endpoints, the most it can hold", "use a second network")
        return network.shards

    def _undo_growth(self, network: Network, grown: Network) -> None:
        if grown == network:
            return
        dismantle(self.host, Plan(tuple(bridge.shard_down(grown, network.shards))))
        self.state.update_network(network)
        self.delete_elements(_further(network, grown))
        with self.store.transaction():
            self.store.put(network)


def _grown(network: Network, endpoint: Endpoint) -> Network:
    """The network with the bridge that an endpoint hangs on; the same when it has that already."""
    return structs.replace(network, shards=max(network.shards, endpoint.shard + 1))


def _further(network: Network, grown: Network) -> list[Element]:
    known = network_elements(network)
    return [element for element in network_elements(grown) if element not in known]


def _growth(network: Network, grown: Network) -> list[Operation]:
    """The further bridge, if there is one."""
    if grown == network:
        return []
    return [*change("add", _further(network, grown)), *bridge.shard_up(grown, network.shards)]


def _rate(text: str, what: str, default: int) -> int:
    return parse_rate(text, what) if text else default


def _check_32_bits(number: int, what: str) -> None:
    if not -(2**31) <= number < 2**31:
        raise Invalid(f"{what} {number} is out of range", "expected a 32-bit number")


def _lowest_free(taken: Collection[int]) -> int:
    number = 0
    while number in taken:
        number += 1
    return number
