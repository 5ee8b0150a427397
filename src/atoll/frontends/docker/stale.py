"""What is left of Docker's here that Docker doesn't know any more, and the other way round. On the engine's thread.

A call may be under way whose outcome Docker's list doesn't show yet. So nothing is taken away that was missing from one list only: it must
be here before two lists, some seconds apart, and in neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.errors import AtollError
from atoll.frontends.docker import networks, protocol
from atoll.frontends.docker.endpoints import forget_endpoint
from atoll.frontends.docker.records import HOLDER, SOURCE, attached, owner

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from atoll.frontends.docker.api import DockerNetworkThere, IpamPool
    from atoll.frontends.docker.door import Door

#: Names of the driver as Docker's networks have it: the spec's file name.
DRIVER: Final = "atoll"
_OWNER: Final = owner("")
#: What Docker lists an endpoint under that is in no sandbox, as one that is being made or was left over.
_NO_CONTAINER: Final = "ep-"


class Item(NamedTuple):
    """Something that one side has: its kind and the ids that tell it from others."""

    kind: str
    id: str
    of: str = ""


class There(NamedTuple):
    """What Docker has: its networks in all detail, ours and others'."""

    networks: Sequence[DockerNetworkThere]

    def ids(self) -> set[str]:
        return {network.id for network in self.networks}

    def endpoints(self) -> set[str]:
        return {end.endpoint for network in self.networks for end in (network.endpoints or {}).values()}

    def pools(self) -> Iterator[IpamPool]:
        """Of other drivers' networks that take their addresses from our IPAM driver; those of our own are known by their records."""
        for network in self.networks:
            if network.ipam.driver == DRIVER != network.driver:
                yield from network.ipam.pools or ()

    def addresses(self) -> set[str]:
        """All that may be in use: gateways, reserved ones, endpoints'."""
        found = {end_address for n in self.networks for end in (n.endpoints or {}).values() for end_address in (end.address4, end.address6)}
        for network in self.networks:
            for pool in network.ipam.pools or ():
                found |= {pool.gateway, *(pool.aux or {}).values()}
        return {text.partition("/")[0] for text in found if text}


# --- what is here and not there ------------------------------------------------------------------------------------------------------


def here(door: Door) -> set[Item]:
    """All that Docker has made us have; before Docker is asked for its list."""
    engine, records = door.engine, door.records
    found = {Item("network", id_) for id_ in records.networks} | {Item("endpoint", id_) for id_ in records.endpoints}
    found |= {Item("pool", id_) for id_ in records.pools}
    found |= {Item("orphan", end.id) for end in engine.state.owned_by(_OWNER) if end.owner.removeprefix(_OWNER) not in records.endpoints}
    found |= {Item("namespace", ns.name) for ns in engine.namespaces() if ns.is_external and ns.source.startswith(SOURCE)}
    found |= {Item("hold", address, network) for (network, address), holder in engine.state.holds.items() if holder == HOLDER}
    # Of a pool that was recorded and not opened, as when we were killed between the two, there are no leases.
    opened = {pool.name for pool in engine.pools()} & set(records.pools)
    return found | {Item("lease", address, pool) for pool in opened for address in engine.leases(pool)}


class Missing(NamedTuple):
    """What is here and not in Docker's list; the ids of networks that it has from us and we don't know, and of containers that it has on
    our networks without an endpoint here; and the list."""

    stale: set[Item]
    lost: set[str]
    bare: set[str]
    there: There


def missing(door: Door, before: Collection[Item], there: There) -> Missing:
    lost = {network.id for network in there.networks if network.driver == DRIVER and network.id not in door.records.networks}
    return Missing(stale(door, before, there), lost, _bare(door, there), there)


def stale(door: Door, before: Collection[Item], there: There) -> set[Item]:
    """What of `before` Docker doesn't know."""
    engine, records = door.engine, door.records
    ids, endpoints, addresses = there.ids(), there.endpoints(), there.addresses()
    pools = {pool.subnet for pool in there.pools()}
    waiting = {text.partition("/")[0] for record in records.endpoints.values() if record.id in endpoints for text in record.addresses}
    found: set[Item] = set()
    for item in before:
        match item.kind:
            case "network" | "endpoint":
                gone = item.id not in (ids if item.kind == "network" else endpoints)
            case "pool":
                pool = records.pools.get(item.id)
                gone = pool is not None and pool.docker_network not in ids and (bool(pool.docker_network) or pool.subnet not in pools)
            case "namespace":
                gone = not engine.state.endpoints_of(item.id)
            case "hold" | "lease":
                gone = item.id not in addresses and item.id not in waiting
            case _:
                gone = True
        if gone:
            found.add(item)
    return found


def remove(door: Door, items: Collection[Item]) -> list[AtollError]:
    """Take away what was found stale twice; endpoints first, since networks stand on nothing else."""
    errors: list[AtollError] = []
    order = ("endpoint", "orphan", "network", "namespace", "hold", "lease", "pool")
    for item in sorted(items, key=lambda item: (order.index(item.kind), item)):
        try:
            _remove(door, item)
        except AtollError as error:
            errors.append(error)
    return errors


def _remove(door: Door, item: Item) -> None:
    engine, records = door.engine, door.records
    match item.kind:
        case "network":
            networks.delete_network(door, protocol.OfNetwork(network=item.id))
        case "endpoint" if item.id in records.endpoints:
            forget_endpoint(door, records.endpoints[item.id])
        case "orphan" if item.id in engine.state.endpoints:
            end = engine.state.endpoints[item.id]
            engine.disconnect(end.network, end.namespace, interface=end.interface)
        case "namespace" if item.id in engine.state.namespaces and not engine.state.endpoints_of(item.id):
            engine.remove_namespace(item.id)
        case "pool" if item.id in records.pools:
            door.forget_pool(records.pools[item.id])
        case "hold" if item.of in engine.state.networks:
            door.drop_hold(engine.state.networks[item.of], item.id)
        case "lease" if item.of in records.pools:
            engine.release_lease(item.of, item.id)


# --- what is there and not here ------------------------------------------------------------------------------------------------------


def restore(door: Door, network: DockerNetworkThere) -> str:
    """Make a network again that Docker has and we have lost, as Docker would ask for it; what keeps it from that."""
    help_ = f"docker network rm {network.name}, and create it anew"
    if network.ipam.driver == DRIVER:
        return f"Docker's network {network.name[:80]} is unknown here, and so is its address pool; {help_}"
    pools = [_pool_data(pool) for pool in network.ipam.pools or ()]
    options = protocol.NetworkOptions(ipv4=network.ipv4, ipv6=network.ipv6, internal=network.internal, generic=network.options)
    call = protocol.CreateNetwork(
        network=network.id,
        options=options,
        ipv4=[pool for pool in pools if ":" not in pool.pool],
        ipv6=[pool for pool in pools if ":" in pool.pool],
    )
    try:
        networks.create_network(door, call)
    except AtollError as error:
        return f"Docker's network {network.name[:80]} is unknown here and can't be made again: {error.what}; {help_}"
    return ""


def _pool_data(pool: IpamPool) -> protocol.PoolData:
    length = pool.subnet.rpartition("/")[2]
    gateway = f"{pool.gateway.partition('/')[0]}/{length}" if pool.gateway else ""
    aux = {name: f"{text.partition('/')[0]}/{length}" for name, text in (pool.aux or {}).items()}
    return protocol.PoolData(pool=pool.subnet, gateway=gateway, aux=aux)


def _bare(door: Door, there: There) -> set[str]:
    found: set[str] = set()
    for network in there.networks:
        if network.driver != DRIVER:
            continue
        for container, end in (network.endpoints or {}).items():
            if container.startswith(_NO_CONTAINER):
                continue
            record = door.records.endpoints.get(end.endpoint)
            if record is None or (record.joined and attached(door.engine, record) is None):
                found.add(container)
    return found
