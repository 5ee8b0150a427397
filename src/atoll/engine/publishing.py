"""The verbs for published ports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import structs

from atoll import faults
from atoll.engine.base import Base
from atoll.engine.names import services
from atoll.errors import Conflict, Invalid
from atoll.firewall.elements import change, port_elements
from atoll.kernel.host import has_other_holder, port_holder, port_is_free
from atoll.model import Endpoint, Network, PublishedPort, parse_publish
from atoll.plan.operations import ConntrackDelete, Plan

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_MOST_PORTS: Final = 65535


class PortVerbs(Base):
    def publish(self, namespace: str, specs: Sequence[str], *, network: str = "", ports_held: bool = False) -> Endpoint:
        """Publish ports of a namespace that runs. `network` says on which endpoint when there are several; else its gateway's. With
        `ports_held` the caller sees to it that no program of the host has them.

        Recorded first: what a crash leaves undone is then a difference that recovery puts right.
        """
        faults.begin("publish")
        endpoint, ports = self._publishing(namespace, specs, network, held=ports_held)
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

    # --- parts ---

    def _tell_services(self, before: Endpoint, after: Endpoint) -> None:
        if services(before.ports) != services(after.ports):
            self.names.put_endpoint(self.state.network(after.network), after)
            self.names.tell()

    def _publishing(
        self, namespace: str, specs: Sequence[str], network: str, *, held: bool = False
    ) -> tuple[Endpoint, tuple[PublishedPort, ...]]:
        where, endpoint = self._serving(namespace, network)
        ports = parse_specs(specs)
        if not ports:
            raise Invalid("no port to publish was named", "expected [HOSTIP:]HOSTPORT[-END]:PORT[-END][/tcp|udp|sctp]")
        families = [version for version in (4, 6) if endpoint.address(version)]
        self.check_ports(where, endpoint, ports, families=families, held=held)
        return endpoint, ports

    def _unpublishing(self, namespace: str, specs: Sequence[str], network: str) -> tuple[Endpoint, tuple[PublishedPort, ...]]:
        ports = parse_specs(specs)
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

    def check_ports(
        self,
        network: Network,
        endpoint: Endpoint,
        ports: Collection[PublishedPort],
        *,
        families: Collection[int],
        held: bool = False,
    ) -> None:
        """Raises `Conflict` with the holder's name for a port that is taken, by an endpoint or by a program of the host. Programs aren't
        looked for with `held`: whoever asks holds the ports itself, or will."""
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
        if held:
            return
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


def parse_specs(specs: Sequence[str]) -> tuple[PublishedPort, ...]:
    return tuple(parse_publish(spec) for spec in specs)


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
