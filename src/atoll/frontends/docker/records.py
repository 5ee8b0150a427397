"""What Docker told us and will not tell again: its networks, endpoints and address pools by its own ids. Kept among the store's facts.

A record is written before the effect that it speaks of and goes after the effect has gone, so that whatever a crash leaves behind has a
record, and whoever compares these with Docker's own list (`docker network ls`, inspect) finds everything. The other way round, an Atoll
endpoint that Docker asked for carries the owner `docker:<endpoint id>`, and a network that was made for it the label below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from msgspec import Struct

from atoll.errors import Failed, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from atoll.engine import Engine
    from atoll.model import Endpoint, Namespace
    from atoll.store.sqlite import Store

#: A label of a network that was made for Docker: Docker's id of it.
NETWORK_LABEL: Final = "atoll.docker.network"
#: For whom addresses of a network are held (`engine.hold_address`) that Docker has, also before Join and after DeleteEndpoint.
HOLDER: Final = "docker"
#: How the source of a sandbox's namespace begins; its key follows.
SOURCE: Final = "docker:"


class DockerNetwork(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`id` is Docker's, `network` Atoll's. `made`: it was made for Docker and goes with it; else it was there and was joined."""

    id: str
    network: str = ""
    made: bool = True
    created: float = 0.0


class DockerEndpoint(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`id` and `network` are Docker's. `addresses` carry their prefix length. `ports` are as Docker last said them, as specs for publish;
    `published` what was chosen for them, while they are open.

    `sandbox` is the key (a path) of the sandbox that it was joined to last, empty before Join; `joined` is true from Join to Leave;
    `external` says that its ports are to be open. The Atoll endpoint, from Join to DeleteEndpoint, is the one that `owner(id)` owns.
    """

    id: str
    network: str
    addresses: tuple[str, ...] = ()
    mac: str = ""
    ports: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    ingress_rate: str = ""
    egress_rate: str = ""
    sandbox: str = ""
    joined: bool = False
    external: bool = False
    created: float = 0.0


class DockerPool(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A pool that our IPAM driver gave to Docker. Until a network is made of it (`network`, Atoll's id) its addresses are leases of the
    engine's pool `id`; from then on they are held in the network's own pool, for `HOLDER`. `docker_network` is Docker's id of the
    network that it serves, from CreateNetwork on; of a network of another driver we are never told. `told` is the subnet as Docker knows
    it."""

    id: str
    subnet: str
    ranges: tuple[str, ...] = ()
    network: str = ""
    docker_network: str = ""
    told: str = ""
    created: float = 0.0


T = TypeVar("T", DockerNetwork, DockerEndpoint, DockerPool)
Record = DockerNetwork | DockerEndpoint | DockerPool

_FACTS: Final[dict[type[Record], str]] = {
    DockerNetwork: "docker.network:",
    DockerEndpoint: "docker.endpoint:",
    DockerPool: "docker.pool:",
}


def owner(endpoint: str) -> str:
    """Who an Atoll endpoint belongs to that Docker knows as `endpoint`."""
    return f"docker:{endpoint}"


class Records:
    """All records, in memory and in the store. Belongs to the engine's thread."""

    def __init__(self, store: Store) -> None:
        """Raises `Failed` on one that can't be read."""
        self._store = store
        self._encode = msgspec.json.Encoder().encode
        self._networks = known_networks(store)
        self._endpoints = _load(store, DockerEndpoint)
        self._pools = _load(store, DockerPool)
        self._sandboxes: dict[str, set[str]] = {}
        self._of_network: dict[str, dict[str, None]] = {}
        self._holding: dict[tuple[str, str], str] = {}
        for endpoint in self._endpoints.values():
            self._index(endpoint)

    @property
    def networks(self) -> Mapping[str, DockerNetwork]:
        """By Docker's id, like the others, in the order in which they were made."""
        return self._networks

    @property
    def endpoints(self) -> Mapping[str, DockerEndpoint]:
        return self._endpoints

    @property
    def pools(self) -> Mapping[str, DockerPool]:
        return self._pools

    def network(self, id_: str) -> DockerNetwork:
        if id_ not in self._networks:
            raise NotFound(f"Docker's network {id_[:64]} is unknown here", "docker network rm, and create it anew")
        return self._networks[id_]

    def endpoint(self, id_: str) -> DockerEndpoint:
        if id_ not in self._endpoints:
            raise NotFound(f"Docker's endpoint {id_[:64]} is unknown here", "start the container anew")
        return self._endpoints[id_]

    def on_network(self, id_: str) -> list[DockerEndpoint]:
        """The endpoints of one of Docker's networks."""
        return [self._endpoints[endpoint] for endpoint in self._of_network.get(id_, ())]

    def holding(self, network: str, address: str) -> DockerEndpoint | None:
        """The endpoint on one of Docker's networks that has an address."""
        id_ = self._holding.get((network, address))
        return self._endpoints[id_] if id_ is not None else None

    def in_sandbox(self, key: str) -> list[DockerEndpoint]:
        """The endpoints of a sandbox: one container's, also those that have left it and are not deleted yet."""
        return [self._endpoints[id_] for id_ in self._sandboxes.get(key, ())]

    def put(self, record: Record) -> None:
        """Add or replace."""
        with self._store.transaction():
            self._store.set_fact(_FACTS[type(record)] + record.id, self._encode(record).decode())
        if isinstance(record, DockerNetwork):
            self._networks[record.id] = record
        elif isinstance(record, DockerPool):
            self._pools[record.id] = record
        else:
            self._unindex(record.id)
            self._endpoints[record.id] = record
            self._index(record)

    def drop(self, record: Record) -> None:
        """Forget; one that isn't there is forgotten already."""
        with self._store.transaction():
            self._store.set_fact(_FACTS[type(record)] + record.id, None)
        if isinstance(record, DockerNetwork):
            self._networks.pop(record.id, None)
        elif isinstance(record, DockerPool):
            self._pools.pop(record.id, None)
        else:
            self._unindex(record.id)
            self._endpoints.pop(record.id, None)

    def _index(self, endpoint: DockerEndpoint) -> None:
        self._of_network.setdefault(endpoint.network, {})[endpoint.id] = None
        for address in _bare(endpoint):
            self._holding[endpoint.network, address] = endpoint.id
        if endpoint.sandbox:
            self._sandboxes.setdefault(endpoint.sandbox, set()).add(endpoint.id)

    def _unindex(self, id_: str) -> None:
        known = self._endpoints.get(id_)
        if known is None:
            return
        self._of_network[known.network].pop(id_)
        if not self._of_network[known.network]:
            del self._of_network[known.network]
        for address in _bare(known):
            if self._holding.get((known.network, address)) == id_:
                del self._holding[known.network, address]
        if known.sandbox:
            members = self._sandboxes[known.sandbox]
            members.discard(id_)
            if not members:
                del self._sandboxes[known.sandbox]


def known_networks(store: Store) -> dict[str, DockerNetwork]:
    """Docker's networks by its id, from the store. Raises `Failed` on one that can't be read."""
    return _load(store, DockerNetwork)


def _load(store: Store, kind: type[T]) -> dict[str, T]:
    found: dict[str, T] = {}
    for id_, text in store.facts(_FACTS[kind]).items():
        try:
            found[id_] = msgspec.json.decode(text, type=kind)
        except msgspec.DecodeError as error:
            raise Failed(f"the state file's record {_FACTS[kind]}{id_} can't be read: {error}", "restore it from a copy") from None
    return found


def _bare(endpoint: DockerEndpoint) -> list[str]:
    return [text.partition("/")[0] for text in endpoint.addresses]


# --- from Docker's words to Atoll's objects ------------------------------------------------------------------------------------------


def attached(engine: Engine, endpoint: DockerEndpoint) -> Endpoint | None:
    """The Atoll endpoint of one of Docker's; None before Join."""
    return next(iter(engine.state.owned(owner(endpoint.id))), None)


def namespace_of(engine: Engine, records: Records, sandbox: str) -> Namespace | None:
    """The namespace that stands for a sandbox; None when no endpoint is joined to it. Its name may have changed since Join."""
    for endpoint in records.in_sandbox(sandbox):
        made = attached(engine, endpoint)
        if made is not None:
            return engine.state.namespaces.get(made.namespace)
    return None
