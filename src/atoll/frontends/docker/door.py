"""What all of Docker's calls work on: the engine and the records, and where pools become networks."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import TYPE_CHECKING

from msgspec import structs

from atoll.errors import AtollError, NotFound
from atoll.frontends import DOOR_LABEL
from atoll.frontends.docker.records import HOLDER, NETWORK_LABEL, SOURCE, DockerNetwork, Records

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.docker.protocol import PoolData
    from atoll.frontends.docker.records import DockerPool
    from atoll.model import Network


class Door:
    """Belongs to the engine's thread."""

    def __init__(self, engine: Engine) -> None:
        """Raises `Failed` when the records can't be read."""
        self.engine = engine
        self.records = Records(engine.store)
        self._mend()

    def network(self, docker_id: str) -> Network:
        """Atoll's network for one of Docker's. Raises `NotFound`."""
        return self._network(self.records.network(docker_id).network)

    def network_of(self, pool: DockerPool) -> Network:
        """The network that a pool has become. Raises `NotFound`."""
        return self._network(pool.network)

    def _network(self, id_: str) -> Network:
        found = self.engine.state.networks.get(id_)
        if found is None:
            raise NotFound("the network was removed from Atoll", "docker network rm, and create it anew")
        return found

    def pool_of(self, docker_network: str, address: str) -> DockerPool | None:
        """The pool of our IPAM driver that an address of one of Docker's networks is from; None when Docker's own has it."""
        value = ipaddress.ip_address(address)
        mine = (pool for pool in self.records.pools.values() if pool.docker_network == docker_network)
        return next((pool for pool in mine if value in ipaddress.ip_network(pool.subnet)), None)

    def is_meant(self, pool: DockerPool, data: PoolData) -> bool:
        """Whether a subnet of a new network may be this pool. One that Docker knows as everything is told by its gateway, which no two
        networks of a host share."""
        if data.pool != (pool.told or pool.subnet):
            return False
        network = self.engine.state.networks.get(pool.network)
        gateways = [subnet.gateway for subnet in network.subnets] if network is not None else []
        return data.pool == pool.subnet or data.gateway.partition("/")[0] in gateways

    def bind(self, pool: DockerPool, record: DockerNetwork) -> None:
        """A pool is one of Docker's networks from now on: its leases are held in the network's own pool, but for what the network itself
        has taken, its gateway and reserved addresses."""
        network = self.engine.state.network(record.network)
        if not pool.network:
            for address in self.engine.leases(pool.id):
                if not _is_the_networks(network, address):
                    self.engine.hold_address(network.id, HOLDER, address)
        self.records.put(structs.replace(pool, network=network.id, docker_network=record.id))
        if not pool.network:
            self.engine.close_pool(pool.id)

    def forget_pool(self, pool: DockerPool) -> None:
        """Take away all that a pool's record speaks of, and the record. Addresses that endpoints have stay theirs."""
        if not pool.network:
            self.engine.close_pool(pool.id)
        network = self.engine.state.networks.get(pool.network)
        if network is not None and not self._has_others(pool):
            subnet = ipaddress.ip_network(pool.subnet)
            for address in [
                text for (where, text) in self.engine.state.holds if where == network.id and ipaddress.ip_address(text) in subnet
            ]:
                self.drop_hold(network, address)
        self.records.drop(pool)

    def drop_hold(self, network: Network, address: str) -> None:
        """Of an address that is held for Docker; anybody else's stays."""
        if self.engine.state.holds.get((network.id, address)) == HOLDER:
            self.engine.drop_hold(network.id, address)

    def _has_others(self, pool: DockerPool) -> bool:
        """Whether another of Docker's networks takes addresses from the same subnet of Atoll's network."""
        others = (other for other in self.records.pools.values() if other.id != pool.id)
        return any((other.network, other.subnet) == (pool.network, pool.subnet) for other in others)

    def _mend(self) -> None:
        """What a crash left between two steps: a network that was made and not recorded, an engine's pool that has become one, a pool that
        was recorded and not opened (so Docker has no answer about it), a namespace that nothing was joined to."""
        for network in self.engine.state.networks.values():
            docker_id = network.labels.get(NETWORK_LABEL, "") if network.labels.get(DOOR_LABEL) == "docker" else ""
            known = self.records.networks.get(docker_id)
            if docker_id and (known is None or not known.network):
                self.records.put(DockerNetwork(id=docker_id, network=network.id, created=network.created))
        open_ = {pool.name for pool in self.engine.pools()}
        for pool in list(self.records.pools.values()):
            if pool.network and pool.id in open_:
                self.engine.close_pool(pool.id)
            elif not pool.network and pool.id not in open_:
                self.records.drop(pool)
        for namespace in self.engine.namespaces():
            if namespace.is_external and namespace.source.startswith(SOURCE) and not self.engine.state.endpoints_of(namespace.name):
                with contextlib.suppress(AtollError):  # a program that Atoll runs in it keeps it
                    self.engine.remove_namespace(namespace.name)


def _is_the_networks(network: Network, address: str) -> bool:
    return any(address == subnet.gateway or address in subnet.reserved.values() for subnet in network.subnets)
