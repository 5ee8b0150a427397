"""NetworkDriver's calls for endpoints, as verbs of the engine.

The order of calls (libnetwork): for a container CreateEndpoint, Join, ProgramExternalConnectivity when the endpoint becomes
the gateway; RevokeExternalConnectivity, Leave, DeleteEndpoint. Each may come again, or for what is long gone: what is
there already is success and is answered as before, and so is taking away what isn't there. Nothing here waits for Docker.

A sandbox (a container's network stack) is one external namespace, from the first Join with its key to the last DeleteEndpoint. Docker moves
the endpoint's spare link into it, gives it name, addresses and routes, and after Leave moves it back.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from msgspec import structs

from atoll.checks import check_mac
from atoll.errors import AtollError, Conflict, Invalid, NotFound
from atoll.frontends.docker import options as words
from atoll.frontends.docker import protocol
from atoll.frontends.docker.records import HOLDER, SOURCE, DockerEndpoint, attached, namespace_of, owner
from atoll.ipam import parse_address

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from atoll.frontends.docker.door import Door
    from atoll.model import Endpoint, Namespace, Network


def create_endpoint(door: Door, call: protocol.CreateEndpoint) -> protocol.CreatedEndpoint:
    """Only records: the link is made at Join, when the sandbox is known. Addresses that Docker has chosen are kept for it from now on, and
    those that it left open are chosen."""
    network = door.network(call.network)
    given = call.interface or protocol.EndpointInterface()
    record = door.records.endpoints.get(call.endpoint)
    if record is None:
        wish = words.endpoint_wish("NetworkDriver.CreateEndpoint", call.options)
        record = DockerEndpoint(
            id=call.endpoint,
            network=call.network,
            ports=words.ports("NetworkDriver.CreateEndpoint", call.options) or (),
            ingress_rate=wish.ingress_rate,
            egress_rate=wish.egress_rate,
            created=door.engine.now(),
        )
        door.records.put(record)
        try:
            record = structs.replace(record, addresses=_addresses(door, network, record, given))
            record = structs.replace(record, mac=_mac(door, network, record, given.mac))
            door.records.put(record)
        except AtollError:
            forget_endpoint(door, record)
            raise
    elif record.network != call.network:
        raise Conflict(f"endpoint {call.endpoint[:12]} is on another network", "docker network inspect shows where")
    return protocol.CreatedEndpoint(
        interface=protocol.EndpointInterface(
            address="" if given.address else _of_family(record.addresses, 4),
            address6="" if given.address6 else _of_family(record.addresses, 6),
            mac="" if given.mac else record.mac,
        )
    )


def _mac(door: Door, network: Network, record: DockerEndpoint, wanted: str) -> str:
    """Docker's `--mac-address`, or one made of the address as Docker's own bridge makes it: Docker gives an address anew at once, and who
    has spoken to it would go on sending to its last owner's MAC. An ipvlan endpoint has its parent's."""
    if network.driver == "ipvlan":
        return ""
    if wanted:
        return check_mac(wanted)
    made = "02:42:" + parse_address(record.addresses[0].partition("/")[0], "address").packed[-4:].hex(":")
    while door.engine.state.mac_taken(network, made):
        made = door.engine.new_mac()
    return made


def _addresses(door: Door, network: Network, record: DockerEndpoint, given: protocol.EndpointInterface) -> tuple[str, ...]:
    engine, held = door.engine, []
    try:
        for version, text in ((4, given.address), (6, given.address6)):
            if text:
                held.append(_keep(door, network, record, text))
            elif network.has(version):
                held.append(engine.hold_address(network.id, HOLDER, version=version))
    except AtollError:
        for text in held:
            engine.drop_hold(network.id, text.partition("/")[0])
        raise
    return tuple(held)


def _keep(door: Door, network: Network, record: DockerEndpoint, text: str) -> str:
    """An address that Docker has chosen: our IPAM driver has kept it already, Docker's own knows nothing of the others on the network."""
    address = str(parse_address(text.partition("/")[0], "address"))
    if door.pool_of(record.network, address) is not None and door.engine.state.holds.get((network.id, address)) == HOLDER:
        return text
    forget_holder(door, record.network, address)
    return door.engine.hold_address(network.id, HOLDER, address)


def _of_family(addresses: Collection[str], version: int) -> str:
    return next((text for text in addresses if (":" in text) == (version == 6)), "")


def operational_info(_: Door, __: protocol.OfEndpoint) -> protocol.OperInfo:
    """Docker would show ports that are listed here, but can't read them from a plugin's JSON."""
    return protocol.OperInfo()


def join(door: Door, call: protocol.Join) -> protocol.Joined:
    engine, records = door.engine, door.records
    network, record = door.network(call.network), _endpoint(door, call)
    ports = words.ports("NetworkDriver.Join", call.options)
    made = attached(engine, record)
    if made is not None and record.sandbox != call.sandbox:
        _detach(door, record)
        made = None
    # The record speaks of the sandbox before there is anything of it.
    record = structs.replace(
        record,
        sandbox=call.sandbox,
        joined=True,
        external=made is not None and record.external,
        ports=record.ports if ports is None else ports,
    )
    namespace = namespace_of(engine, records, call.sandbox)
    records.put(record)
    try:
        if made is None:
            made = _attach(door, network, record, namespace)
    except AtollError:
        records.put(structs.replace(record, sandbox="", joined=False))
        raise
    return _joined(network, made)


def _attach(door: Door, network: Network, record: DockerEndpoint, namespace: Namespace | None) -> Endpoint:
    engine = door.engine
    name = engine.free_name(words.provisional_name(record.sandbox.rstrip("/").rpartition("/")[2]))
    where = namespace or engine.create_external(name, source=f"{SOURCE}{record.sandbox}")
    try:
        return engine.connect(
            network.id,
            where.name,
            addresses=tuple(text.partition("/")[0] for text in record.addresses),
            mac=record.mac,
            ingress_rate=record.ingress_rate,
            egress_rate=record.egress_rate,
            owner=owner(record.id),
            holder=HOLDER,
        )
    except AtollError:
        if namespace is None:
            engine.remove_namespace(where.name)
        raise


def _joined(network: Network, endpoint: Endpoint) -> protocol.Joined:
    """With a gateway all that leaves goes by this network; without one Docker must not add a way out of its own."""
    gateways = [_gateway(network, version) if endpoint.default_route and endpoint.address(version) else "" for version in (4, 6)]
    return protocol.Joined(
        interface=protocol.InterfaceName(source=endpoint.spare, prefix=network.interface_prefix),
        gateway=gateways[0],
        gateway6=gateways[1],
        routes=tuple(_static_routes(endpoint)),
        no_gateway_service=not any(gateways),
    )


def _gateway(network: Network, version: int) -> str:
    """As Docker's bridge driver has it, a reserved address of this name is the containers' gateway instead of the bridge's."""
    gateway = network.gateway(version)
    reserved = [subnet.reserved.get(f"DefaultGatewayIPv{version}", "") for subnet in network.subnets if subnet.version == version]
    return next(filter(None, reserved), gateway) if gateway else ""


def _static_routes(endpoint: Endpoint) -> Iterator[protocol.StaticRoute]:
    """The network's routes, as far as Docker has words for them: none for those that lead nowhere, and no metrics."""
    for route in endpoint.routes:
        if route.kind == "unicast":
            yield protocol.StaticRoute(destination=route.destination, kind=0 if route.gateway else 1, next_hop=route.gateway)


def program_external_connectivity(door: Door, call: protocol.ProgramExternalConnectivity) -> protocol.Done:
    """The endpoint is the container's way out now: its ports are opened here and not before."""
    engine = door.engine
    network, record = door.network(call.network), _endpoint(door, call)
    given = words.ports("NetworkDriver.ProgramExternalConnectivity", call.options)
    made = attached(engine, record)
    if made is None:
        raise NotFound(f"endpoint {call.endpoint[:12]} has not joined a sandbox", "start the container anew")
    ports = record.ports if given is None else given
    if record.external and record.ports == ports and (record.published or not ports):
        return protocol.Done()
    _close_ports(door, record, made)
    record = structs.replace(record, ports=ports, published=(), external=True)
    door.records.put(record)
    try:
        opened = engine.publish(made.namespace, ports, network=network.id, interface=made.interface).ports if ports else made.ports
    except AtollError:
        door.records.put(structs.replace(record, external=False))
        raise
    door.records.put(structs.replace(record, published=tuple(str(port) for port in opened if port not in made.ports)))
    return protocol.Done()


def revoke_external_connectivity(door: Door, call: protocol.OfEndpoint) -> protocol.Done:
    record = door.records.endpoints.get(call.endpoint)
    if record is not None:
        _revoke(door, record)
    return protocol.Done()


def leave(door: Door, call: protocol.OfEndpoint) -> protocol.Done:
    """Its link stays until DeleteEndpoint: Docker takes it out of the sandbox between the two."""
    record = door.records.endpoints.get(call.endpoint)
    if record is not None:
        door.records.put(structs.replace(_revoke(door, record), joined=False))
    return protocol.Done()


def delete_endpoint(door: Door, call: protocol.OfEndpoint) -> protocol.Done:
    """Addresses of our own IPAM driver stay kept until Docker releases them, which it does next."""
    record = door.records.endpoints.get(call.endpoint)
    if record is not None:
        forget_endpoint(door, record, keep=True)
    return protocol.Done()


def forget_endpoint(door: Door, record: DockerEndpoint, *, keep: bool = False) -> None:
    """Take away all that a record speaks of, and the record. `keep` leaves addresses that Docker is going to release by itself: until then
    nobody else may have them, or the release would be of theirs."""
    _detach(door, record)
    network = door.records.networks.get(record.network)
    where = door.engine.state.networks.get(network.network) if network is not None else None
    for text in record.addresses if where is not None else ():
        address = text.partition("/")[0]
        if where is not None and keep and door.pool_of(record.network, address):
            with contextlib.suppress(Conflict):  # somebody else's already
                door.engine.hold_address(where.id, HOLDER, address)
        elif where is not None:
            door.drop_hold(where, address)
    door.records.drop(record)


def forget_holder(door: Door, docker_network: str, address: str) -> None:
    """Docker has an endpoint's address for another's, or for free: it has forgotten the endpoint, as after it was killed."""
    record = door.records.holding(docker_network, address)
    if record is not None:
        forget_endpoint(door, record)


# --- parts ---------------------------------------------------------------------------------------------------------------------------


def _endpoint(door: Door, call: protocol.OfEndpoint) -> DockerEndpoint:
    record = door.records.endpoint(call.endpoint)
    if record.network != call.network:
        raise Invalid(f"endpoint {call.endpoint[:12]} is on another network", "docker network inspect shows where")
    return record


def _revoke(door: Door, record: DockerEndpoint) -> DockerEndpoint:
    made = attached(door.engine, record)
    if made is not None:
        _close_ports(door, record, made)
    revoked = structs.replace(record, published=(), external=False)
    if record.external:
        door.records.put(revoked)
    return revoked


def _close_ports(door: Door, record: DockerEndpoint, made: Endpoint) -> None:
    """Those that were opened for Docker; what was published by hand stays. Where we died before we had recorded what was chosen, all."""
    open_ = [str(port) for port in made.ports]
    mine = [text for text in record.published if text in open_] if record.published else open_ if record.external else []
    if mine:
        door.engine.unpublish(made.namespace, mine, network=made.network, interface=made.interface, ending=True)


def _detach(door: Door, record: DockerEndpoint) -> None:
    """Disconnect; the namespace goes with its last endpoint. What can't be taken away of it is said by the engine's events and found by its
    repair: Docker would not try again."""
    made = attached(door.engine, record)
    if made is None:
        return
    engine, name = door.engine, made.namespace
    if engine.state.namespaces[name].kind == "external" and len(engine.state.endpoints_of(name)) == 1:
        with contextlib.suppress(AtollError):  # a program that Atoll runs in it keeps it
            engine.remove_namespace(name, ending=True)
    if attached(engine, record) is not None:
        try:
            engine.disconnect(made.network, name, interface=made.interface)
        except AtollError:
            if attached(engine, record) is not None:
                raise
