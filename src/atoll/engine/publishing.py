"""The verbs for published ports."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Final

from msgspec import structs

from atoll import faults
from atoll.checks import parse_publish
from atoll.engine.base import Base
from atoll.engine.names import services
from atoll.errors import Conflict, Exhausted, Invalid
from atoll.firewall.elements import Element, change, port_elements, served_elements
from atoll.kernel.host import has_other_holder, port_holder, port_is_free, take_port
from atoll.model import Endpoint, Network, PortChoice, PublishedPort
from atoll.plan.operations import ConntrackDelete, Plan
from atoll.ports import PortTable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

_MOST_PORTS: Final = 65535


class PortVerbs(Base):
    def publish(
        self, namespace: str, specs: Sequence[str], *, network: str = "", interface: str = "", ports_held: bool = False
    ) -> Endpoint:
        """Publish ports of a namespace that runs. `network` and `interface` say on which endpoint when there are several; else its
        gateway's. The endpoint's last ports are the new ones, in the order of `specs`, with the host ports that were chosen. With
        `ports_held` the caller holds the host's ports, so that no program has them.

        Recorded first: what a crash leaves undone is then a difference that recovery puts right.
        """
        faults.begin("publish")
        with contextlib.ExitStack() as held:
            return self._publish(*self._publishing(namespace, specs, network, interface, held, ports_held=ports_held))

    def _publish(self, endpoint: Endpoint, ports: tuple[PublishedPort, ...]) -> Endpoint:
        self.settle_for(structs.replace(endpoint, ports=ports, addresses=()))
        made = structs.replace(endpoint, ports=(*endpoint.ports, *ports))
        with self.store.transaction():
            self.store.add_ports(endpoint.id, ports)
        self.state.put_endpoint(made, added=ports)
        try:
            self.do(self._publish_plan(endpoint, made, ports))
        except BaseException:
            with self.store.transaction():
                self.store.delete_ports(endpoint.id, ports)
            self.state.put_endpoint(endpoint, removed=ports)
            self.rebuild_firewall()
            raise
        self._tell_services(endpoint, made)
        self.emit("port.publish", namespace=endpoint.namespace, ports=[str(port) for port in ports])
        return made

    def plan_publish(self, namespace: str, specs: Sequence[str], *, network: str = "", interface: str = "") -> Plan:
        with contextlib.ExitStack() as held:
            endpoint, ports = self._publishing(namespace, specs, network, interface, held)
            return self._publish_plan(endpoint, structs.replace(endpoint, ports=(*endpoint.ports, *ports)), ports)

    def unpublish(self, namespace: str, specs: Sequence[str], *, network: str = "", interface: str = "", ending: bool = False) -> Endpoint:
        """Take published ports back and forget the connections that came through them. `ending`: the endpoint is about to go as well, so
        they are forgotten together with others a moment later (`settle`)."""
        faults.begin("unpublish")
        endpoint, ports = self._unpublishing(namespace, specs, network, interface)
        made = _without(endpoint, ports)
        where = self.state.network(endpoint.network)
        with self.store.transaction():
            self.store.delete_ports(endpoint.id, ports)
        self.state.put_endpoint(made, removed=ports)
        gone, added = _unpublished(where, endpoint, made, ports)
        self.delete_elements(gone)
        self.do(Plan(tuple(change("add", added))))
        self._stale |= _led_here(where, endpoint, ports)
        if not ending:
            self.settle()
        self._tell_services(endpoint, made)
        self.emit("port.unpublish", namespace=namespace, ports=[str(port) for port in ports])
        return made

    def plan_unpublish(self, namespace: str, specs: Sequence[str], *, network: str = "", interface: str = "") -> Plan:
        endpoint, ports = self._unpublishing(namespace, specs, network, interface)
        where = self.state.network(endpoint.network)
        gone, added = _unpublished(where, endpoint, _without(endpoint, ports), ports)
        return Plan.of(change("delete", gone), change("add", added), sorted(_led_here(where, endpoint, ports), key=repr))

    # --- parts ---

    def _tell_services(self, before: Endpoint, after: Endpoint) -> None:
        if services(before.ports) != services(after.ports):
            self.names.put_endpoint(self.state.network(after.network), after)
            self.names.tell()

    def _publishing(
        self,
        namespace: str,
        specs: Sequence[str],
        network: str,
        interface: str,
        held: contextlib.ExitStack,
        *,
        ports_held: bool = False,
    ) -> tuple[Endpoint, tuple[PublishedPort, ...]]:
        where, endpoint = self._serving(namespace, network, interface)
        ports = parse_specs(specs)
        if not ports:
            raise Invalid("no port to publish was named", "expected [HOSTIP:]HOSTPORT[-END]:PORT[-END][/tcp|udp|sctp]")
        families = [version for version in (4, 6) if endpoint.address(version)]
        return endpoint, self.choose_ports(where, endpoint, ports, families=families, held=held, ports_held=ports_held)

    def _unpublishing(
        self, namespace: str, specs: Sequence[str], network: str, interface: str
    ) -> tuple[Endpoint, tuple[PublishedPort, ...]]:
        named = parse_specs(specs)
        if not named:
            raise Invalid("no published port was named", "atoll ns inspect shows what is published")
        self.state.namespace(namespace)
        where = self.state.network(network).id if network else ""
        mine = [e for e in self.state.endpoints_of(namespace) if where in ("", e.network) and interface in ("", e.interface)]
        holders = [endpoint for endpoint in mine if any(port in endpoint.ports for port in self._bound(endpoint, named))]
        endpoint = holders[0] if holders else self._serving(namespace, network, interface)[1]
        ports = self._bound(endpoint, named)
        if len(set(ports)) < len(ports):
            raise Conflict(f"{', '.join(map(str, ports[:8]))}: one of these is named twice", "name it once")
        for port in ports:
            if port not in endpoint.ports:
                published = ", ".join(map(str, endpoint.ports[:8])) or "nothing"
                raise Conflict(f"{port} is not published by {namespace}", f"published: {published}")
        return endpoint, ports

    def _bound(self, endpoint: Endpoint, ports: tuple[PublishedPort, ...]) -> tuple[PublishedPort, ...]:
        return _on_binding(self.state.network(endpoint.network), ports)

    def _serving(self, namespace: str, network: str, interface: str) -> tuple[Network, Endpoint]:
        """The endpoint that ports are published on: the named one, else the one that is the namespace's gateway."""
        if network:
            where = self.state.network(network)
            return where, self.state.endpoint(where, namespace, interface)
        self.state.namespace(namespace)
        able = [pair for pair in self.state.attached(namespace) if pair[0].driver == "bridge" and not pair[0].internal]
        able = [pair for pair in able if interface in ("", pair[1].interface)]
        if not able:
            on = f" by {interface}" if interface else ""
            raise Conflict(f"{namespace} is on no network{on} that can publish", "connect it to a bridge network that isn't internal")
        return min(able, key=lambda pair: (-pair[1].gateway_priority, pair[1].created, pair[1].number))

    def choose_ports(
        self,
        network: Network,
        endpoint: Endpoint,
        ports: Collection[PublishedPort],
        *,
        families: Collection[int],
        held: contextlib.ExitStack,
        ports_held: bool = False,
    ) -> tuple[PublishedPort, ...]:
        """The ports as they will be published, those of the host that were left open chosen; nobody else gets these while `held` is open.

        Raises `Conflict` with the holder's name for a port that is taken, by an endpoint or by a program of the host; with `ports_held`
        that program is the caller's own.
        """
        ports = _on_binding(network, ports)
        self._check_ports(network, endpoint, ports, families)
        if not network.maps_ports():
            # No port of the host leads anywhere, so none is taken.
            return tuple(_own_port(port) if isinstance(port, PortChoice) else port for port in ports)
        families = [version for version in families if network.maps_ports(version)]
        fixed = [port for port in ports if not isinstance(port, PortChoice)]
        named = PortTable()
        seen: set[PublishedPort] = set()
        for port in fixed:
            taken = self.state.ports.conflict(port)
            if taken is not None:
                raise Conflict(
                    f"port {taken[0]}/{port.protocol} is published by {taken[1]}",
                    f"atoll unpublish {taken[1]} ..., or choose another",
                )
            if port in seen:
                raise Conflict(f"{port} is named twice", "name it once")
            seen.add(port)
            named.add(port, endpoint.namespace)
        busy = None if ports_held else self.host.run(lambda: _busy_port(fixed, families, self.names.pid))
        if busy is not None:
            number, protocol, holder = busy
            raise Conflict(f"port {number}/{protocol} of the host is taken by {holder}", "stop it, or choose another port")
        return tuple(self._choose_port(port, families, named, held) if isinstance(port, PortChoice) else port for port in ports)

    def _choose_port(self, wanted: PortChoice, families: Collection[int], named: PortTable, held: contextlib.ExitStack) -> PublishedPort:
        for number in self._candidates(wanted):
            port = PublishedPort(host_port=number, port=wanted.port, protocol=wanted.protocol, host_ip=wanted.host_ip)
            if self.state.ports.conflict(port) or named.conflict(port):
                continue
            with contextlib.ExitStack() as taken:
                try:
                    for address in _addresses(port, families):
                        sock = self.host.run(lambda address=address: take_port(address, number, port.protocol))  # type: ignore[misc]  # noqa: B023
                        if sock is not None:
                            taken.enter_context(sock)
                except OSError:
                    continue
                held.push(taken.pop_all())
            named.add(port, "")
            return port
        raise Exhausted(f"no port of the host is free for {wanted}", "unpublish one, or choose other ports")

    def _candidates(self, wanted: PortChoice) -> Iterable[int]:
        if wanted.among:
            return range(wanted.host_port, wanted.host_port + wanted.among)
        low, high = map(int, (self.read_setting("net/ipv4/ip_local_port_range") or "32768 60999").split())
        reserved = _numbers(self.read_setting("net/ipv4/ip_local_reserved_ports") or "")
        # Not from the beginning: one that was given up a moment ago is not the next one's at once.
        start = secrets.randbits(16) % (high - low + 1)
        return (number for number in (*range(low + start, high + 1), *range(low, low + start)) if number not in reserved)

    @staticmethod
    def _check_ports(network: Network, endpoint: Endpoint, ports: Collection[PublishedPort], families: Collection[int]) -> None:
        if network.driver != "bridge":
            raise Invalid(f"driver {network.driver} can't publish ports", "its endpoints are on the parent's network themselves")
        if network.internal:
            raise Invalid(f"network {network.name} is internal", "publish from a network that isn't")
        if sum(port.count for port in ports) > _MOST_PORTS:
            raise Invalid(f"{endpoint.namespace} would publish more than {_MOST_PORTS} ports at once", "publish fewer")
        for port in ports:
            if port.host_version and port.host_version not in families:
                raise Invalid(
                    f"{port} is on an IPv{port.host_version} address, and there is none for it on network {network.name}",
                    f"publish on an IPv{10 - port.host_version} address, or on none in particular",
                )

    def _publish_plan(self, before: Endpoint, after: Endpoint, ports: Collection[PublishedPort]) -> Plan:
        where = self.state.network(before.network)
        elements = [element for port in ports for element in port_elements(where, before, port)]
        gone, added = _differing(served_elements(where, before), served_elements(where, after))
        mapped = [port for port in ports if port.protocol != "tcp" and where.maps_ports()]
        forget = [ConntrackDelete(port.protocol, port.host_port, port.count) for port in mapped]
        return Plan.of(change("delete", gone), change("add", elements + added), forget)


def parse_specs(specs: Sequence[str]) -> tuple[PublishedPort, ...]:
    return tuple(parse_publish(spec) for spec in specs)


def _on_binding(network: Network, ports: Collection[PublishedPort]) -> tuple[PublishedPort, ...]:
    """Ports that name no address of the host are on the network's."""
    if not network.host_binding:
        return tuple(ports)
    return tuple(port if port.host_ip else structs.replace(port, host_ip=network.host_binding) for port in ports)


def _own_port(wanted: PortChoice) -> PublishedPort:
    return PublishedPort(host_port=wanted.port, port=wanted.port, protocol=wanted.protocol, host_ip=wanted.host_ip)


def _without(endpoint: Endpoint, ports: Collection[PublishedPort]) -> Endpoint:
    kept = list(endpoint.ports)
    for port in ports:
        kept.remove(port)
    return structs.replace(endpoint, ports=tuple(kept))


def _unpublished(
    network: Network, before: Endpoint, after: Endpoint, ports: Collection[PublishedPort]
) -> tuple[list[Element], list[Element]]:
    """The elements that go, and those that come: what is left of a range that others were part of."""
    gone, added = _differing(served_elements(network, before), served_elements(network, after))
    return [element for port in ports for element in port_elements(network, before, port)] + gone, added


def _differing(before: list[Element], after: list[Element]) -> tuple[list[Element], list[Element]]:
    known, wanted = set(before), set(after)
    return [element for element in before if element not in wanted], [element for element in after if element not in known]


def _led_here(network: Network, endpoint: Endpoint, ports: Collection[PublishedPort]) -> set[ConntrackDelete]:
    """The connections that came through ports, or may have come to the endpoint's own."""
    found = {ConntrackDelete(port.protocol, port.host_port, port.count) for port in ports if network.maps_ports()}
    direct = [text for text in endpoint.addresses if network.serves(6 if ":" in text else 4)]
    return found | {ConntrackDelete(address=text.partition("/")[0]) for text in direct}


def _busy_port(ports: Collection[PublishedPort], families: Collection[int], names: int) -> tuple[int, str, str] | None:
    """The first port that a program of the host has open, with its name; runs in the host's namespace.

    Our name server (its pid is `names`) stands in nobody's way on every address: the firewall leaves it what it serves.
    """
    for port in ports:
        addresses = _addresses(port, families)
        for number in range(port.host_port, port.host_port + port.count):
            for address in addresses:
                ours = names and number == 53 and not port.host_ip and not has_other_holder(number, port.protocol, names)
                if not ours and not port_is_free(address, number, port.protocol):
                    return number, port.protocol, port_holder(number, port.protocol) or "another program"
    return None


def _addresses(port: PublishedPort, families: Collection[int]) -> list[str]:
    """Where a program of the host would stand in the way."""
    return [port.host_ip] if port.host_ip else [any_ for version, any_ in ((4, "0.0.0.0"), (6, "::")) if version in families]


def _numbers(text: str) -> set[int]:
    """`8080,9000-9010` as the kernel writes it."""
    found: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
