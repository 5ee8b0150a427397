"""The verbs for endpoints and published ports: the main path.

`connect` reads top to bottom: check everything, choose what was left open, record the endpoint as pending, do the plan, record it as
ready. Whatever fails after the first record is undone from that record, by this process or the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct, structs

from atoll import faults, ipam
from atoll.drivers import bridge
from atoll.engine.base import Base
from atoll.engine.names import services
from atoll.errors import AtollError, Conflict, Exhausted, Invalid
from atoll.firewall.elements import Element, change, network_elements, port_elements
from atoll.kernel.host import has_other_holder, port_holder, port_is_free
from atoll.model import (
    MAX_SHARDS,
    PREDEFINED,
    SHARD_PORTS,
    Endpoint,
    Namespace,
    Network,
    PublishedPort,
    check_interface,
    check_mac,
    check_name,
    parse_publish,
    parse_rate,
)
from atoll.plan.execute import dismantle
from atoll.plan.operations import ConntrackDelete, Operation, Plan

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_MOST_PORTS: Final = 65535


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


class EndpointVerbs(Base):
    def connect(
        self,
        network: str,
        namespace: str,
        *,
        addresses: Sequence[str] = (),
        mac: str = "",
        interface: str = "",
        aliases: Sequence[str] = (),
        gateway_priority: int = 0,
        publish: Sequence[str] = (),
        ingress_rate: str = "",
        egress_rate: str = "",
    ) -> Endpoint:
        """Attach a namespace to a network. Returns when packets flow; leaves nothing behind when it fails."""
        faults.begin("connect")
        where, who, endpoint = self._draft(
            network, namespace, addresses, mac, interface, aliases, gateway_priority, publish, ingress_rate, egress_rate
        )
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

    def plan_connect(self, network: str, namespace: str, **options: object) -> Plan:
        """What `connect` would do; changes nothing."""
        where, who, endpoint = self._draft(network, namespace, **_filled(options))  # type: ignore[arg-type]
        try:
            return self._connection_plan(where, who, endpoint)
        finally:
            self.state.retract_addresses(endpoint)

    def disconnect(self, network: str, namespace: str) -> Endpoint:
        """Detach a namespace from a network and give back its addresses and ports."""
        faults.begin("disconnect")
        where = self.state.network(network)
        endpoint = structs.replace(self.state.endpoint(where, namespace), state="removing")
        with self.store.transaction():
            self.store.put(endpoint)
        self.state.put_endpoint(endpoint)
        faults.step()
        errors = self.tear_down(where, endpoint)
        self.names.push()
        self.write_files(self.state.namespace(namespace))
        self.names.wait()
        self.emit("endpoint.disconnect", network=where.name, namespace=namespace, id=endpoint.id)
        if errors:
            raise errors[0]
        return endpoint

    def plan_disconnect(self, network: str, namespace: str) -> Plan:
        where = self.state.network(network)
        endpoint = self.state.endpoint(where, namespace)
        return self.plan_tear_down(where, endpoint, self.state.namespace(namespace))

    def publish(self, namespace: str, specs: Sequence[str], *, network: str = "") -> Endpoint:
        """Publish ports of a namespace that runs. `network` says on which endpoint when there are several; else its gateway's.

        Recorded first: what a crash leaves undone is then a difference that recovery puts right.
        """
        faults.begin("publish")
        endpoint, ports = self._publishing(namespace, specs, network)
        self.settle_for(structs.replace(endpoint, ports=ports, addresses=()))
        made = structs.replace(endpoint, ports=(*endpoint.ports, *ports))
        with self.store.transaction():
            self.store.add_ports(endpoint.id, ports)
        self.state.put_endpoint(made, added=ports)
        try:
            self.do(self._publish_plan(endpoint, ports))
        except BaseException:
            with self.store.transaction():
                self.store.delete_ports(endpoint.id, ports)
            self.state.put_endpoint(endpoint, removed=ports)
            self.rebuild_firewall()
            raise
        self._tell_services(endpoint, made)
        self.emit("port.publish", namespace=namespace, ports=[str(port) for port in ports])
        return made

    def plan_publish(self, namespace: str, specs: Sequence[str], *, network: str = "") -> Plan:
        return self._publish_plan(*self._publishing(namespace, specs, network))

    def unpublish(self, namespace: str, specs: Sequence[str], *, network: str = "") -> Endpoint:
        """Take published ports back and forget the connections that came through them."""
        faults.begin("unpublish")
        endpoint, ports = self._unpublishing(namespace, specs, network)
        kept = list(endpoint.ports)
        for port in ports:
            kept.remove(port)
        made = structs.replace(endpoint, ports=tuple(kept))
        with self.store.transaction():
            self.store.delete_ports(endpoint.id, ports)
        self.state.put_endpoint(made, removed=ports)
        self.delete_elements(element for port in ports for element in port_elements(endpoint, port))
        self._stale |= {ConntrackDelete(port.protocol, port.host_port, port.count) for port in ports}
        self.settle()
        self._tell_services(endpoint, made)
        self.emit("port.unpublish", namespace=namespace, ports=[str(port) for port in ports])
        return made

    def plan_unpublish(self, namespace: str, specs: Sequence[str], *, network: str = "") -> Plan:
        return self._unpublish_plan(*self._unpublishing(namespace, specs, network))

    # --- connect's parts ---

    def _connection_plan(self, where: Network, who: Namespace, endpoint: Endpoint) -> Plan:
        return Plan.of(_growth(where, _grown(where, endpoint)), self.attach(where, endpoint, who).operations)

    def _draft(
        self,
        network: str,
        namespace: str,
        addresses: Sequence[str],
        mac: str,
        interface: str,
        aliases: Sequence[str],
        gateway_priority: int,
        publish: Sequence[str],
        ingress_rate: str,
        egress_rate: str,
    ) -> tuple[Network, Namespace, Endpoint]:
        """Everything checked and chosen. The addresses are held for the endpoint; nothing else is changed."""
        where, who = self.state.network(network), self.state.namespace(namespace)
        self._check_allowed(where, who)
        ports = _parse_specs(publish)
        rates = (_rate(ingress_rate, "ingress rate", where.ingress_rate), _rate(egress_rate, "egress rate", where.egress_rate))
        self._check_rates(where, rates)
        if not -(2**31) <= gateway_priority < 2**31:
            raise Invalid(f"gateway priority {gateway_priority} is out of range", "expected a 32-bit number")
        number = _lowest_free({endpoint.number for endpoint in self.state.endpoints_of(namespace)})
        endpoint = Endpoint(
            id=self.new_id(),
            network=where.id,
            namespace=namespace,
            interface=self._interface(where, who, interface, number),
            mac=self._mac(where, mac),
            number=number,
            shard=self._shard(where),
            aliases=tuple(check_name(alias, "alias") for alias in aliases),
            gateway_priority=gateway_priority,
            ports=ports,
            ingress_rate=rates[0],
            egress_rate=rates[1],
            created=self.now(),
        )
        if ports:
            self._check_ports(where, endpoint, ports, families=[version for version in (4, 6) if where.has(version)])
        return where, who, structs.replace(endpoint, addresses=self._addresses(where, namespace, addresses))

    def _check_allowed(self, network: Network, namespace: Namespace) -> None:
        for object_, what in ((network, "network"), (namespace, "namespace")):
            if object_.state != "ready":
                raise Conflict(f"{what} {object_.name} is {object_.state}", "try again in a moment")
        if network.driver == "host":
            raise Invalid(
                f"{namespace.name} has a network stack of its own and can't be on the host's",
                "a process is on the host network when it isn't in a namespace at all",
            )
        mine = self.state.endpoints_of(namespace.name)
        if any(endpoint.network == network.id for endpoint in mine):
            raise Conflict(f"{namespace.name} is connected to {network.name}", f"atoll disconnect {network.name} {namespace.name}")
        if mine and (network.driver == "none" or mine[0].network in PREDEFINED):
            raise Conflict(f"{namespace.name} can't be on network none and another", "none means no network at all")

    def _check_rates(self, network: Network, rates: tuple[int, int]) -> None:
        if any(rates) and network.driver != "bridge":
            raise Invalid(f"driver {network.driver} can't limit bandwidth", "its packets don't pass the host")

    def _interface(self, network: Network, namespace: Namespace, wanted: str, number: int) -> str:
        if network.driver == "none":
            return "lo"
        taken = {endpoint.interface for endpoint in self.state.endpoints_of(namespace.name)} | self.foreign(namespace)[0]
        if wanted:
            if check_interface(wanted) in taken or wanted == "lo":
                raise Conflict(f"{namespace.name} has an interface {wanted}", "choose another name")
            return wanted
        while f"eth{number}" in taken:
            number += 1
        return f"eth{number}"

    def _mac(self, network: Network, wanted: str) -> str:
        if network.driver == "none":
            return ""
        if wanted:
            if network.driver == "ipvlan":
                raise Invalid("an ipvlan endpoint has its parent's MAC address", "leave out --mac, or use macvlan")
            mac = check_mac(wanted)
            if self.state.mac_taken(network, mac):
                raise Conflict(f"MAC address {mac} is taken on network {network.name}", "choose another, or none for a random one")
            return mac
        while self.state.mac_taken(network, mac := self.new_mac()):
            pass
        return mac

    def _addresses(self, network: Network, owner: str, wanted: Sequence[str]) -> tuple[str, ...]:
        """Static addresses as asked for, and one chosen address in each family that is left; held in their pools.

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
                pool.claim(value, owner)
                held.append((pool, value))
            for version in (4, 6):
                pools = [pool for pool in self.state.pools(network) if pool.subnet.version == version]
                if pools and not any(value.version == version for _, value in held):
                    pool = next((pool for pool in pools if pool.used < pool.size), pools[-1])
                    held.append((pool, pool.allocate(owner)))
        except AtollError:
            for pool, value in held:
                pool.retract(value)
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

    # --- publish's parts ---

    def _tell_services(self, before: Endpoint, after: Endpoint) -> None:
        if services(before.ports) != services(after.ports):
            self.names.put_endpoint(self.state.network(after.network), after)
            self.names.tell()

    def _publishing(self, namespace: str, specs: Sequence[str], network: str) -> tuple[Endpoint, tuple[PublishedPort, ...]]:
        where, endpoint = self._serving(namespace, network)
        ports = _parse_specs(specs)
        if not ports:
            raise Invalid("no port to publish was named", "expected [HOSTIP:]HOSTPORT[-END]:PORT[-END][/tcp|udp|sctp]")
        self._check_ports(where, endpoint, ports, families=[version for version in (4, 6) if endpoint.address(version)])
        return endpoint, ports

    def _unpublishing(self, namespace: str, specs: Sequence[str], network: str) -> tuple[Endpoint, tuple[PublishedPort, ...]]:
        ports = _parse_specs(specs)
        if not ports:
            raise Invalid("no published port was named", "atoll ns inspect shows what is published")
        if network:
            endpoint = self.state.endpoint(self.state.network(network), namespace)
        else:
            self.state.namespace(namespace)
            holders = [e for e in self.state.endpoints_of(namespace) if any(port in e.ports for port in ports)]
            endpoint = holders[0] if holders else self._serving(namespace, "")[1]
        for port in ports:
            if port not in endpoint.ports:
                published = ", ".join(map(str, endpoint.ports[:8])) or "nothing"
                raise Conflict(f"{port} is not published by {namespace}", f"published: {published}")
        return endpoint, ports

    def _serving(self, namespace: str, network: str) -> tuple[Network, Endpoint]:
        """The endpoint that ports are published on: the named network's, else the one that is the namespace's gateway."""
        if network:
            where = self.state.network(network)
            return where, self.state.endpoint(where, namespace)
        self.state.namespace(namespace)
        able = [pair for pair in self.state.attached(namespace) if pair[0].driver == "bridge" and not pair[0].internal]
        if not able:
            raise Conflict(f"{namespace} is on no network that can publish", "connect it to a bridge network that isn't internal")
        return min(able, key=lambda pair: (-pair[1].gateway_priority, pair[1].created, pair[1].number))

    def _check_ports(self, network: Network, endpoint: Endpoint, ports: Collection[PublishedPort], *, families: Collection[int]) -> None:
        """Raises `Conflict` with the holder's name for a port that is taken, by an endpoint or by a program of the host."""
        if network.driver != "bridge":
            raise Invalid(f"driver {network.driver} can't publish ports", "its endpoints are on the parent's network themselves")
        if network.internal:
            raise Invalid(f"network {network.name} is internal", "publish from a network that isn't")
        if sum(port.count for port in ports) > _MOST_PORTS:
            raise Invalid(f"{endpoint.namespace} would publish more than {_MOST_PORTS} ports at once", "publish fewer")
        seen: list[PublishedPort] = []
        for port in ports:
            if port.host_version and port.host_version not in families:
                raise Invalid(
                    f"{port} is on an IPv{port.host_version} address, and {endpoint.namespace} has none on {network.name}",
                    "publish on an address of the network's family",
                )
            taken = self.state.ports.conflict(port)
            if taken is not None:
                raise Conflict(
                    f"port {taken[0]}/{port.protocol} is published by {taken[1]}",
                    f"atoll unpublish {taken[1]} ..., or choose another",
                )
            if any(other == port for other in seen):
                raise Conflict(f"{port} is named twice", "name it once")
            seen.append(port)
        busy = self.host.run(lambda: _busy_port(ports, families, self.names.pid))
        if busy is not None:
            number, protocol, holder = busy
            raise Conflict(f"port {number}/{protocol} of the host is taken by {holder}", "stop it, or choose another port")

    def _publish_plan(self, endpoint: Endpoint, ports: Collection[PublishedPort]) -> Plan:
        elements = [element for port in ports for element in port_elements(endpoint, port)]
        forget = [ConntrackDelete(port.protocol, port.host_port, port.count) for port in ports if port.protocol != "tcp"]
        return Plan.of(change("add", elements), forget)

    def _unpublish_plan(self, endpoint: Endpoint, ports: Collection[PublishedPort]) -> Plan:
        elements = [element for port in ports for element in port_elements(endpoint, port)]
        forget = [ConntrackDelete(port.protocol, port.host_port, port.count) for port in ports]
        return Plan.of(change("delete", elements), forget)


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


def _filled(options: dict[str, object]) -> dict[str, object]:
    """`connect`'s defaults under what was given."""
    defaults = structs.asdict(EndpointOptions())
    unknown = set(options) - set(defaults)
    if unknown:
        raise TypeError(f"connect takes no {', '.join(sorted(unknown))}")
    return defaults | options


def _parse_specs(specs: Sequence[str]) -> tuple[PublishedPort, ...]:
    return tuple(parse_publish(spec) for spec in specs)


def _rate(text: str, what: str, default: int) -> int:
    return parse_rate(text, what) if text else default


def _lowest_free(taken: Collection[int]) -> int:
    number = 0
    while number in taken:
        number += 1
    return number


def _busy_port(ports: Collection[PublishedPort], families: Collection[int], names: int) -> tuple[int, str, str] | None:
    """The first port that a program of the host has open, with its name; runs in the host's namespace.

    Our name server (its pid is `names`) stands in nobody's way on every address: the firewall leaves it what it serves.
    """
    for port in ports:
        addresses = [port.host_ip] if port.host_ip else [any_ for version, any_ in ((4, "0.0.0.0"), (6, "::")) if version in families]
        for number in range(port.host_port, port.host_port + port.count):
            for address in addresses:
                ours = names and number == 53 and not port.host_ip and not has_other_holder(number, port.protocol, names)
                if not ours and not port_is_free(address, number, port.protocol):
                    return number, port.protocol, port_holder(number, port.protocol) or "another program"
    return None
