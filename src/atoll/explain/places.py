"""Who asks and who is asked: names from a question as stacks, interfaces and addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from atoll.errors import Invalid, NotFound
from atoll.explain.question import Question, as_address
from atoll.explain.snapshot import Stack
from atoll.kernel import rtnl

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.explain.names import Names
    from atoll.model import Address


class Place(Struct, frozen=True):
    """`interface` is the host's by which the outside is reached, else empty. `certain`: a packet that ends elsewhere went wrong."""

    name: str
    stack: Stack
    address: str = ""
    interface: str = ""
    namespace: str = ""
    network: str = ""
    networks: tuple[str, ...] = ()
    certain: bool = True

    def address_for(self, host: Stack, wanted: Address) -> str:
        """The address of a machine outside: the one that was named, else one beside the host's own."""
        return self.address or beside(host, self.interface, wanted.version)


def source_of(engine: Engine, names: Names, text: str) -> Place:
    if text == "host":
        return Place("host", names.host)
    if text == "outside" or text.startswith(("outside:", "outside@")):
        return _outside(names, text)
    networks = _networks(engine, text)
    return Place(text, names.stack(text), namespace=text, networks=networks)


def _networks(engine: Engine, namespace: str) -> tuple[str, ...]:
    found = engine.state.namespace(namespace)
    return tuple(network.name for network, _ in engine.state.attached(found.name))


def _outside(names: Names, text: str) -> Place:
    host = names.host
    if text.startswith("outside@"):
        interface = text.partition("@")[2]
        if interface not in host.links:
            raise NotFound(f"the host has no interface {interface[:40]}", "ip link shows what there is")
        return Place(text, host, interface=interface)
    where, _, interface = text.partition(":")[2].partition("@")
    if interface and interface not in host.links:
        raise NotFound(f"the host has no interface {interface[:40]}", "ip link shows what there is")
    if where:
        value = as_address(where.strip("[]"))
        if value is None:
            raise Invalid(f"{where[:80]!r} is not an address", "expected outside:ADDRESS, outside@INTERFACE or outside:ADDRESS@INTERFACE")
        route = host.route(value)
        interface = interface or (route.oif if not route.error else _uplink(host, value.version))
        if interface == "lo":
            raise Invalid(f"{value} is an address of the host", "name one that is outside")
        return Place(text, host, address=str(value), interface=interface)
    interface = _uplink(host, 4) or _uplink(host, 6)
    if not interface:
        raise NotFound("the host has no interface that leads outside", "name one: outside@INTERFACE")
    return Place("outside", host, interface=interface)


def _uplink(host: Stack, version: int) -> str:
    """The interface that the default route leaves by, else the first other that is up and has an address."""
    family = 2 if version == 4 else 10
    for row in host.routes():
        if row.destination is None and row.family == family and row.table == rtnl.TABLE_MAIN and row.ifindex in host.by_index:
            return host.by_index[row.ifindex].name
    for link in host.links.values():
        if (
            link.up
            and link.kind not in ("bridge", "ifb")
            and link.name != "lo"
            and any(not r.interface.ip.is_link_local for r in host.on(link.name, version))
        ):
            return link.name
    return ""


def beside(host: Stack, interface: str, version: int) -> str:
    """An address outside: the gateway of the default route, else one of the interface's subnet that isn't the host's."""
    index = host.links[interface].ifindex if interface in host.links else 0
    for row in host.routes():
        if row.destination is None and row.ifindex == index and row.gateway is not None and row.gateway.version == version:
            return str(row.gateway)
    for found in host.on(interface, version):
        if not found.interface.ip.is_link_local:
            network = found.interface.network
            last = network[-2] if network.num_addresses > 2 else network[-1]
            return str(last if last != found.interface.ip else network[1])
    raise NotFound(f"nothing is known of the outside by IPv{version}", "name it: outside:ADDRESS, or an address as the target")


def target_of(engine: Engine, names: Names, question: Question, source: Place) -> Place:
    text, version = question.target, question.version
    value = as_address(text)
    if value is not None:
        return Place(text, names.host, address=text, certain=False)
    if text == "host":
        # A port of the host may be one that leads on.
        where = _host_address(engine, names, source, version or 4)
        return Place("host", names.host, address=where, certain=not question.port)
    if text == "outside":
        interface = _uplink(names.host, version or 4)
        return Place("outside", names.host, address=beside(names.host, interface, version or 4), interface=interface)
    name, _, wanted = text.partition("@")
    attached = list(engine.state.attached(engine.state.namespace(name).name))
    if wanted:
        attached = [pair for pair in attached if engine.state.network(wanted).id == pair[0].id]
    shared = [pair for pair in attached if pair[0].name in source.networks]
    for network, endpoint in [*shared, *attached]:
        for family in (version,) if version else (4, 6):
            if endpoint.address(family):
                return Place(name, names.stack(name), endpoint.address(family), namespace=name, network=network.name)
    which = f"no address on network {wanted}" if wanted else f"no IPv{version} address" if attached and version else "on no network"
    raise NotFound(f"{name} {'is' if which.startswith('on') else 'has'} {which}", f"atoll connect {wanted or 'NETWORK'} {name}")


def _host_address(engine: Engine, names: Names, source: Place, version: int) -> str:
    """The host as the source knows it: its gateway, the uplink's address, or loopback for the host itself."""
    if source.namespace:
        for network, _ in engine.state.attached(source.namespace):
            for subnet in network.subnets:
                if subnet.version == version and subnet.gateway:
                    return subnet.gateway
    elif source.interface:
        for row in names.host.on(source.interface, version):
            if not row.interface.ip.is_link_local:
                return str(row.interface.ip)
    else:
        return "127.0.0.1" if version == 4 else "::1"
    raise NotFound(f"the host has no IPv{version} address that {source.name} knows", "name one as the target")
