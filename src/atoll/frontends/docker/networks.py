"""NetworkDriver's calls for networks, as verbs of the engine.

A network of Docker's is made, with a provisional name, or one that is there is joined. Each call may come again: what is there already is
success, and so is taking away what isn't there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from atoll.errors import AtollError, Conflict, Invalid, NotFound
from atoll.frontends import DOOR_LABEL
from atoll.frontends.docker import options as words
from atoll.frontends.docker import protocol
from atoll.frontends.docker.endpoints import forget_endpoint
from atoll.frontends.docker.records import NETWORK_LABEL, DockerNetwork
from atoll.frontends.sharing import mismatch
from atoll.model import interface

if TYPE_CHECKING:
    from collections.abc import Collection

    from atoll.engine.network_request import NetworkRequest
    from atoll.frontends.docker.door import Door
    from atoll.frontends.docker.records import DockerPool
    from atoll.model import Network, Prefix


def gateway_check(_: Door, call: protocol.OfOptions) -> protocol.GatewayCheck:
    skip4, skip6 = words.without_gateway(call.options)
    return protocol.GatewayCheck(skip4=skip4, skip6=skip6)


def create_network(door: Door, call: protocol.CreateNetwork) -> protocol.Done:
    engine, records = door.engine, door.records
    known = records.networks.get(call.network)
    if known is not None and known.network in engine.state.networks:
        return protocol.Done()
    pools = _pools_for(door, call)
    joined = _network_to_join(door, call, pools)
    record = DockerNetwork(id=call.network, created=engine.now())
    if joined is not None:
        _check_joinable(joined, call)
        record = structs.replace(record, network=joined.id, made=False)
    records.put(record)
    try:
        if joined is None:
            made = _made_before(door, call.network) or engine.create_network_explained(_request(call, pools)).network
            record = structs.replace(record, network=made.id)
            records.put(record)
        for pool in pools:
            door.bind(pool, record)
    except AtollError:
        delete_network(door, protocol.OfNetwork(network=call.network))
        raise
    return protocol.Done()


def delete_network(door: Door, call: protocol.OfNetwork) -> protocol.Done:
    """A network that was made for Docker and that others use by now stays, as theirs: Docker forgets it whatever we say."""
    engine, records = door.engine, door.records
    for endpoint in records.on_network(call.network):
        forget_endpoint(door, endpoint)
    record = records.networks.get(call.network)
    if record is None:
        return protocol.Done()
    network = engine.state.networks.get(record.network)
    if network is not None and record.made:
        if engine.state.count_on(network):
            kept = {key: value for key, value in network.labels.items() if key not in (DOOR_LABEL, NETWORK_LABEL)}
            engine.set_network_labels(network.id, kept)
        else:
            engine.remove_network(network.id)
    records.drop(record)
    return protocol.Done()


def _pools_for(door: Door, call: protocol.CreateNetwork) -> list[DockerPool]:
    """The pools that our IPAM driver gave for this network. Docker names their subnets and not their ids: of those that no network was
    made of the latest is meant."""
    found: list[DockerPool] = []
    for data in (*(call.ipv4 or ()), *(call.ipv6 or ())):
        if data.address_space == protocol.ADDRESS_SPACE:
            free = [pool for pool in door.records.pools.values() if pool.docker_network in ("", call.network) and door.is_meant(pool, data)]
            if not free:
                raise NotFound(f"no pool {data.pool[:80]} was requested here", "docker network create asks for one by itself")
            found.append(free[-1])
    return found


def _network_to_join(door: Door, call: protocol.CreateNetwork, pools: Collection[DockerPool]) -> Network | None:
    """The network that `-o network=` names, or `--ipam-opt network=` did before."""
    state = door.engine.state
    by_pool = {pool.network for pool in pools if pool.network}
    generic = (call.options.generic if call.options is not None else None) or {}
    named = generic.get(words.NETWORK, "")
    found = state.network(named) if named else None
    if found is None and not by_pool:
        return None
    found = found if found is not None else state.network(min(by_pool))
    if by_pool - {found.id}:
        raise Invalid(f"-o network={named[:80]} and --ipam-opt network= name different networks", "name the same one")
    if found.state != "ready":
        raise Conflict(f"network {found.name} is {found.state}", "try again in a moment")
    return found


def _check_joinable(network: Network, call: protocol.CreateNetwork) -> None:
    """Raises `Invalid` where Docker would hold something for true that is not so."""
    wanted = call.options or protocol.NetworkOptions()
    ignored = words.own_options(wanted.generic)
    if ignored:
        raise Invalid(f"network {network.name} exists, and its options are its own", f"leave out -o {ignored[0][:80]}")
    if network.driver in ("host", "none"):
        raise Invalid(f"network {network.name} is not one for Docker's containers", f"docker run --network {network.name}")
    if wanted.internal and not network.internal:
        raise Invalid(f"network {network.name} is not internal", "leave out --internal")
    data = [*(call.ipv4 or ()), *(call.ipv6 or ())]
    if (found := mismatch(network, network.driver, map(str, words.subnets(data)), words.gateways(data))) is not None:
        what = "subnets" if found.what == "subnet" else found.what
        hint = f"--ipam-driver atoll --ipam-opt network={network.name} takes them from it"
        raise Invalid(f"network {network.name} has the {what} {found.there}, not {found.wanted}", hint)


def _made_before(door: Door, docker_id: str) -> Network | None:
    """The network that an attempt before this one made, and perhaps didn't live to record."""
    return next((n for n in door.engine.state.networks.values() if n.labels.get(NETWORK_LABEL) == docker_id), None)


def _request(call: protocol.CreateNetwork, pools: Collection[DockerPool]) -> NetworkRequest:
    return words.new_network(call, {_prefix(pool): pool.ranges for pool in pools})


def _prefix(pool: DockerPool) -> Prefix:
    return interface(pool.subnet).network
