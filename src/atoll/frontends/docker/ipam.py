"""IpamDriver: Docker's pools and addresses as the engine's.

Docker asks for a pool before there is a network, so the addresses are leases of a pool of the engine's at first. When a network is made of
it the network's own pool takes over: from then on what Docker requests is held there, and nothing else on the network gets it. A pool of
`--ipam-opt network=NAME` is that network's from the start.

Every RequestPool makes a pool of its own and never the same subnet twice by choice: dockerd asks again, holding what it got, until it likes
one. Subnets that were asked for by name may be had several times; the network that is made of them decides.
"""

from __future__ import annotations

import ipaddress
import secrets
from typing import TYPE_CHECKING, Final

from atoll import ipam
from atoll.errors import AtollError, Conflict, Invalid, NotFound
from atoll.frontends.docker import protocol
from atoll.frontends.docker.endpoints import forget_holder
from atoll.frontends.docker.options import NETWORK
from atoll.frontends.docker.records import HOLDER, DockerPool

if TYPE_CHECKING:
    from atoll.frontends.docker.door import Door
    from atoll.model import Network, Prefix, Subnet

#: Of an answer to RequestPool: the gateway's address, so that Docker requests none.
_GATEWAY: Final = "com.docker.network.gateway"
_EVERYTHING: Final = {4: "0.0.0.0/0", 6: "::/0"}
#: Of RequestAddress.
_KIND: Final = "RequestAddressType"


def request_pool(door: Door, call: protocol.RequestPool) -> protocol.Pool:
    if call.address_space not in ("", protocol.ADDRESS_SPACE):
        raise Invalid(f"address space {call.address_space[:80]!r} is not Atoll's", f"expected {protocol.ADDRESS_SPACE}")
    unknown = [key for key in call.options or {} if key != NETWORK]
    if unknown:
        raise Invalid(f"option {unknown[0][:80]!r} of the IPAM driver is unknown", "--ipam-opt network=NAME is what it knows")
    name = (call.options or {}).get(NETWORK, "")
    return _join_pool(door, call, name) if name else _new_pool(door, call)


def _new_pool(door: Door, call: protocol.RequestPool) -> protocol.Pool:
    engine = door.engine
    subnet = _subnet(door, call)
    ranges = _ranges(call, subnet)
    pool = DockerPool(id=_new_id(door), subnet=str(subnet), ranges=ranges, created=engine.now())
    door.records.put(pool)
    try:
        engine.open_pool(pool.id, pool.subnet, pool.ranges)
    except AtollError:
        door.records.drop(pool)
        raise
    return protocol.Pool(pool=pool.id, subnet=pool.subnet)


def _subnet(door: Door, call: protocol.RequestPool) -> Prefix:
    """The one that was asked for, or a free one; since Docker 29 `0.0.0.0/24` and `::/64` ask for a free one of that size."""
    version = 6 if call.v6 else 4
    if call.pool:
        base, _, size = call.pool.partition("/")
        if base in ("0.0.0.0", "::"):
            if not (size.isascii() and size.isdigit() and 0 < int(size[:4]) <= 128):
                raise Invalid(f"{call.pool[:80]!r} is no size of a subnet", "expected one such as 0.0.0.0/24")
            return ipam.parse_subnet(door.engine.free_subnet(6 if ":" in base else 4, int(size)))
        subnet = ipam.parse_subnet(call.pool)
        if subnet.version != version:
            raise Invalid(f"subnet {subnet} is not of IPv{version}", "give IPv6 subnets with --ipv6")
        return subnet
    if call.sub_pool:
        raise Invalid(f"an IP range {call.sub_pool[:80]!r} needs its subnet", "--subnet")
    return ipam.parse_subnet(door.engine.free_subnet(version))


def _ranges(call: protocol.RequestPool, subnet: Prefix) -> tuple[str, ...]:
    if not call.sub_pool:
        return ()
    part = ipam.parse_subnet(call.sub_pool)
    ipam.check_layout(subnet, None, [part], {})
    return (str(part),)


def _join_pool(door: Door, call: protocol.RequestPool, name: str) -> protocol.Pool:
    """The pool of a network that exists, with its gateway, so that Docker requests none.

    Docker takes no subnet to which the host has a route, unless it was named with `--subnet`: it would ask for another one again and again.
    But it doesn't mind `0.0.0.0/0`, which its null IPAM says, and takes addresses as they are given.
    """
    network = door.engine.state.network(name)
    version = 6 if call.v6 else 4
    subnets = [subnet for subnet in network.subnets if subnet.version == version]
    if not subnets:
        raise Invalid(f"network {network.name} has no IPv{version}", "leave out --ipv6" if call.v6 else "give it an IPv4 subnet")
    found = next((subnet for subnet in subnets if call.pool in ("", subnet.subnet)), None)
    if found is None:
        raise Invalid(f"{call.pool[:80]} is no subnet of network {network.name}", f"leave out --subnet, or name {subnets[0].subnet}")
    if call.sub_pool and call.sub_pool not in found.ranges:
        raise Invalid(f"network {network.name} says itself where its addresses are taken from", "leave out --ip-range")
    told = call.pool or _EVERYTHING[version]
    if not call.pool and not found.gateway:
        raise Invalid(f"network {network.name} has no gateway for Docker to know it by", f"--subnet {found.subnet}")
    pool = DockerPool(id=_new_id(door), subnet=found.subnet, ranges=found.ranges, network=network.id, told=told, created=door.engine.now())
    door.records.put(pool)
    data = {_GATEWAY: _with_length(found.gateway, found)} if found.gateway else {}
    return protocol.Pool(pool=pool.id, subnet=told, data=data)


def release_pool(door: Door, call: protocol.ReleasePool) -> protocol.Done:
    pool = door.records.pools.get(call.pool)
    if pool is not None:
        door.forget_pool(pool)
    return protocol.Done()


def request_address(door: Door, call: protocol.RequestAddress) -> protocol.Address:
    pool = door.records.pools.get(call.pool)
    if pool is None:
        raise NotFound(f"pool {call.pool[:80]} is unknown here", "docker network rm, and create it anew")
    wanted = str(ipam.parse_address(call.address, "address")) if call.address else ""
    is_gateway = (call.options or {}).get(_KIND) == _GATEWAY
    if not pool.network:
        return protocol.Address(address=_lease(door, pool, wanted, is_gateway=is_gateway))
    network = door.network_of(pool)
    if is_gateway:
        return protocol.Address(address=_gateway(network, pool, wanted))
    if wanted and (network.id, wanted) in door.engine.state.holds:
        raise Conflict(f"{wanted} is in use on network {network.name}", "choose another, or name none to get a free one")
    return protocol.Address(address=door.engine.hold_address(network.id, HOLDER, wanted, 6 if ":" in pool.subnet else 4))


def _lease(door: Door, pool: DockerPool, wanted: str, *, is_gateway: bool) -> str:
    """From a pool that no network was made of yet. A gateway is the subnet's first address, as everywhere in Atoll."""
    subnet = ipam.parse_subnet(pool.subnet)
    if is_gateway and not wanted:
        wanted = str(ipam.next_gateway(subnet, [ipam.parse_subnet(text) for text in pool.ranges], {}))
    if wanted in door.engine.leases(pool.id):
        raise Conflict(f"{wanted} is in use in pool {pool.subnet}", "choose another, or name none to get a free one")
    return door.engine.lease(pool.id, HOLDER, wanted, again=True)


def _gateway(network: Network, pool: DockerPool, wanted: str) -> str:
    subnet = next(subnet for subnet in network.subnets if subnet.subnet == pool.subnet)
    if not subnet.gateway or wanted not in ("", subnet.gateway):
        raise Conflict(f"the gateway of network {network.name} is {subnet.gateway or 'not on it'}", "leave out --gateway")
    return _with_length(subnet.gateway, subnet)


def release_address(door: Door, call: protocol.ReleaseAddress) -> protocol.Done:
    pool = door.records.pools.get(call.pool)
    if pool is None:
        return protocol.Done()
    address = str(ipam.parse_address(call.address, "address"))
    if not pool.network:
        door.engine.release_lease(pool.id, address)
    elif pool.network in door.engine.state.networks:
        forget_holder(door, pool.docker_network, address)
        door.drop_hold(door.engine.state.networks[pool.network], address)
    return protocol.Done()


def _new_id(door: Door) -> str:
    while (made := f"docker-{secrets.token_hex(5)}") in door.records.pools:
        pass
    return made


def _with_length(address: str, subnet: Subnet) -> str:
    return f"{address}/{ipaddress.ip_network(subnet.subnet).prefixlen}"
