"""The model in memory, with the indexes that the verbs need. The store holds the same rows; this is never ahead of it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from msgspec import structs

from atoll.engine.leases import Leases
from atoll.errors import Conflict, NotFound
from atoll.ipam import Pool
from atoll.model import PREDEFINED, Endpoint, Namespace, Network, Run, address, interface
from atoll.ports import PortTable
from atoll.words import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from atoll.ipam import Address
    from atoll.model import PublishedPort
    from atoll.store.sqlite import Store


class State:
    """Networks by id, namespaces by name, endpoints by id, and who holds which address and port."""

    def __init__(self, store: Store) -> None:
        self.networks: dict[str, Network] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.runs: dict[str, Run] = {run.name: run for run in store.load_runs()}
        self.endpoints: dict[str, Endpoint] = {}
        self.ports = PortTable()
        self._pools: dict[str, list[Pool]] = {}
        self._by_name: dict[str, str] = {}
        self._of_network: dict[str, dict[str, Endpoint]] = {}
        self._of_namespace: dict[str, dict[str, Endpoint]] = {}
        self._of_owner: dict[str, dict[str, Endpoint]] = {}
        self._by_identity: dict[tuple[int, int], str] = {}
        #: Addresses kept for someone who has no endpoint yet: by network id and address, the holder.
        self.holds: dict[tuple[str, str], str] = {}
        self.leases = Leases(store)
        self._macs: set[tuple[str, str]] = set()
        for network in store.load(Network):
            self.add_network(network, [store.cursor(network.id, subnet.subnet) for subnet in network.subnets])
        for namespace in store.load(Namespace):
            self.put_namespace(namespace)
        for endpoint in store.load_endpoints():
            self.claim_addresses(endpoint)
            self.put_endpoint(endpoint)
        for (network_id, text), holder in store.load_holds().items():
            self.put_hold(network_id, text, holder)

    # --- networks ---

    def add_network(self, network: Network, cursors: Iterable[int] = ()) -> None:
        self.networks[network.id] = network
        self._by_name[network.name] = network.id
        self._of_network.setdefault(network.id, {})
        starts = list(cursors) or [0] * len(network.subnets)
        self._pools[network.id] = [
            Pool(
                network.name,
                ipaddress.ip_network(subnet.subnet),
                gateway=address(subnet.gateway) if subnet.gateway else None,
                ranges=[ipaddress.ip_network(text) for text in subnet.ranges],
                reserved={name: address(text) for name, text in subnet.reserved.items()},
                cursor=start,
            )
            for subnet, start in zip(network.subnets, starts, strict=True)
        ]

    def update_network(self, network: Network) -> None:
        """The same network with another state or number of bridges."""
        self.networks[network.id] = network

    def rename_network(self, before: Network, after: Network) -> None:
        self.networks[after.id] = after
        self._by_name.pop(before.name, None)
        self._by_name[after.name] = after.id
        for pool in self.pools(after):
            pool.rename(after.name)

    def has_network(self, name: str) -> bool:
        """Whether a network has exactly this name."""
        return name in self._by_name

    def drop_network(self, network: Network) -> None:
        self.networks.pop(network.id, None)
        self._by_name.pop(network.name, None)
        self._pools.pop(network.id, None)
        self.holds = {key: holder for key, holder in self.holds.items() if key[0] != network.id}
        self._of_network.pop(network.id, None)

    def network(self, name: str) -> Network:
        """By name, id, or an id's unique beginning, in this order, as Docker does."""
        if name in PREDEFINED:
            return Network(id=name, name=name, driver=PREDEFINED[name], state="ready")  # type: ignore[arg-type]
        key = self._by_name.get(name, name)
        if key not in self.networks:
            found = [other for other in self.networks if name and other.startswith(name)]
            if len(found) > 1:
                raise Conflict(f"network id {name} is ambiguous", f"it begins {len(found)} ids: {', '.join(sorted(found)[:5])}")
            if not found:
                swapped = f"{name} is a namespace, the network goes first; " if name in self.namespaces else ""
                raise NotFound(f"no network named {name[:80]}", f"{swapped}atoll network ls shows what there is")
            key = found[0]
        return self.networks[key]

    def pools(self, network: Network) -> list[Pool]:
        return self._pools.get(network.id, [])

    def pool_of(self, network: Network, wanted: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Pool | None:
        return next((pool for pool in self.pools(network) if wanted in pool.subnet), None)

    # --- namespaces ---

    def put_namespace(self, namespace: Namespace) -> None:
        known = self.namespaces.get(namespace.name)
        if known is not None:
            self._by_identity.pop((known.device, known.inode), None)
        self.namespaces[namespace.name] = namespace
        if namespace.inode:
            self._by_identity[namespace.device, namespace.inode] = namespace.name

    def drop_namespace(self, namespace: Namespace) -> None:
        """Nothing there is success."""
        known = self.namespaces.pop(namespace.name, None)
        if known is not None and self._by_identity.get((known.device, known.inode)) == known.name:
            del self._by_identity[known.device, known.inode]

    def rename_namespace(self, before: Namespace, after: Namespace) -> None:
        """The same namespace, with its endpoints, addresses and ports, under another name."""
        self.drop_namespace(before)
        self.put_namespace(after)
        for known in self.endpoints_of(before.name):
            endpoint = structs.replace(known, namespace=after.name)
            for port in known.ports:
                self.ports.remove(port, before.name)
                self.ports.add(port, after.name)
            for pool, value in self._held(known):
                pool.hand_over(value, after.name)
            self.put_endpoint(endpoint)
        self._of_namespace.pop(before.name, None)

    def identified(self, device: int, inode: int) -> Namespace | None:
        """The namespace that is recorded with this identity."""
        name = self._by_identity.get((device, inode))
        return self.namespaces[name] if name is not None else None

    def namespace(self, name: str) -> Namespace:
        if name not in self.namespaces:
            raise NotFound(f"no namespace named {name[:80]}", f"atoll ns create {name[:80]}, or atoll ns ls for what there is")
        return self.namespaces[name]

    # --- runs ---

    def run(self, name: str) -> Run:
        if name not in self.runs:
            raise NotFound(f"no run named {name[:80]}", "atoll ps -a shows what there is")
        return self.runs[name]

    def live_run(self, name: str) -> Run | None:
        """The run of a name if its program goes on; one that has ended leaves its name to whoever wants it."""
        run = self.runs.get(name)
        return run if run is not None and run.state == "running" else None

    # --- endpoints ---

    def put_endpoint(self, endpoint: Endpoint, *, added: Iterable[PublishedPort] = (), removed: Iterable[PublishedPort] = ()) -> None:
        """Add or replace; addresses are claimed apart, before. Of one that is known, `added` and `removed` say which ports changed."""
        before = self.endpoints.get(endpoint.id)
        if before is not None and before.mac != endpoint.mac:
            self._macs.discard((before.network, before.mac))
        self.endpoints[endpoint.id] = endpoint
        self._of_network.setdefault(endpoint.network, {})[endpoint.id] = endpoint
        self._of_namespace.setdefault(endpoint.namespace, {})[endpoint.id] = endpoint
        self._macs.add((endpoint.network, endpoint.mac))
        if endpoint.owner:
            self._of_owner.setdefault(endpoint.owner, {})[endpoint.id] = endpoint
        if not self._maps_ports(endpoint):
            return
        for port in removed:
            self.ports.remove(port, endpoint.namespace)
        for port in added if before is not None else endpoint.ports:
            self.ports.add(port, endpoint.namespace)

    def drop_endpoint(self, endpoint: Endpoint) -> None:
        """Forget it with its addresses and ports. Nothing there is success."""
        self.endpoints.pop(endpoint.id, None)
        self._of_network.get(endpoint.network, {}).pop(endpoint.id, None)
        for index, key in ((self._of_namespace, endpoint.namespace), (self._of_owner, endpoint.owner)):
            mine = index.get(key, {})
            mine.pop(endpoint.id, None)
            if not mine:
                index.pop(key, None)
        self._macs.discard((endpoint.network, endpoint.mac))
        for port in endpoint.ports if self._maps_ports(endpoint) else ():
            self.ports.remove(port, endpoint.namespace)
        self.release_addresses(endpoint)

    def _maps_ports(self, endpoint: Endpoint) -> bool:
        """Whether it takes ports of the host with those that it publishes."""
        network = self.networks.get(endpoint.network)
        return network is None or network.maps_ports()

    def claim_addresses(self, endpoint: Endpoint) -> None:
        for pool, value in self._held(endpoint):
            pool.claim(value, endpoint.namespace)

    def release_addresses(self, endpoint: Endpoint) -> None:
        """Give back addresses; those that were kept for it before are so again."""
        for pool, value in self._held(endpoint):
            if not self._hand_back(endpoint.network, pool, value):
                pool.release(value)

    def retract_addresses(self, endpoint: Endpoint) -> None:
        """Give back addresses that nobody has used, as if they had never been handed out."""
        if endpoint.network in self.networks:
            self.retract(self.networks[endpoint.network], self._held(endpoint))

    def retract(self, network: Network, held: Iterable[tuple[Pool, Address]]) -> None:
        for pool, value in held:
            if not self._hand_back(network.id, pool, value):
                pool.retract(value)

    def _hand_back(self, network_id: str, pool: Pool, value: Address) -> bool:
        holder = self.holds.get((network_id, str(value)))
        return holder is not None and pool.hand_over(value, holder)

    def _held(self, endpoint: Endpoint) -> Iterator[tuple[Pool, Address]]:
        """An endpoint's addresses with their pools; none when its network is gone."""
        network = self.networks.get(endpoint.network)
        if network is None:
            return
        for text in endpoint.addresses:
            value = interface(text).ip
            pool = self.pool_of(network, value)
            if pool is not None:
                yield pool, value

    # --- holds ---

    def put_hold(self, network_id: str, text: str, holder: str) -> None:
        """Keep an address, unless an endpoint that is being made has taken it over."""
        network, value = self.networks.get(network_id), address(text)
        pool = self.pool_of(network, value) if network is not None else None
        if pool is not None:
            self.holds[network_id, text] = holder
            if pool.holder(value) is None:
                pool.claim(value, holder)

    def drop_hold(self, network_id: str, text: str) -> None:
        """Nothing there is success."""
        network, value = self.networks.get(network_id), address(text)
        holder = self.holds.pop((network_id, text), None)
        pool = self.pool_of(network, value) if network is not None else None
        if pool is not None and holder is not None and pool.holder(value) == holder:
            pool.release(value)

    def take_over(self, network: Network, pool: Pool, value: Address, holder: str, owner: str) -> None:
        """Take an address for an endpoint: a free one, or one that is kept for this holder. Raises as `Pool.claim`."""
        if holder and self.holds.get((network.id, str(value))) == holder and pool.holder(value) == holder:
            pool.hand_over(value, owner)
        else:
            pool.claim(value, owner)

    # --- what endpoints are found by ---

    def owned(self, owner: str) -> list[Endpoint]:
        """The endpoints that somebody asked for."""
        return list(self._of_owner.get(owner, {}).values())

    def who(self, namespace: Namespace) -> str:
        """Who runs what is in a namespace: a word of `CLIENTS`, `run` for a program of `atoll run`, else `ns`."""
        run = self.live_run(namespace.name)
        if run is not None and run.owns:
            return "run"
        asked = [namespace.source, *(endpoint.owner for endpoint in self.endpoints_of(namespace.name))]
        return next((word for word in (text.partition(":")[0] for text in asked) if word in CLIENTS), "ns")

    def owned_by(self, beginning: str) -> list[Endpoint]:
        """The endpoints of every owner that begins so, such as `cni:`."""
        return [endpoint for owner, mine in self._of_owner.items() if owner.startswith(beginning) for endpoint in mine.values()]

    def mac_taken(self, network: Network, mac: str) -> bool:
        return mac == network.mac or (network.id, mac) in self._macs

    def endpoints_on(self, network: Network) -> list[Endpoint]:
        return list(self._of_network.get(network.id, {}).values())

    def count_on(self, network: Network) -> int:
        return len(self._of_network.get(network.id, {}))

    def endpoints_of(self, namespace: str) -> list[Endpoint]:
        return list(self._of_namespace.get(namespace, {}).values())

    def attached(self, namespace: str) -> list[tuple[Network, Endpoint]]:
        """The namespace's endpoints with their networks, without the predefined ones."""
        return [(self.networks[e.network], e) for e in self.endpoints_of(namespace) if e.network in self.networks]

    def endpoint(self, network: Network, namespace: str, interface: str = "") -> Endpoint:
        """A namespace's endpoint on a network; `interface` says which when there are several."""
        mine = [endpoint for endpoint in self._of_namespace.get(namespace, {}).values() if endpoint.network == network.id]
        found = [endpoint for endpoint in mine if interface in ("", endpoint.interface)]
        if len(found) == 1:
            return found[0]
        self.namespace(namespace)
        names = ", ".join(endpoint.interface for endpoint in mine)
        if found:
            raise Conflict(f"{namespace} is connected to {network.name} by several interfaces, {names}", "say which: --ifname NAME")
        if mine:
            raise NotFound(f"{namespace} is connected to {network.name} by {names}, not by {interface[:20]}", "name that one")
        raise NotFound(f"{namespace} is not connected to {network.name}", f"atoll connect {network.name} {namespace}")

    def bridge_networks(self) -> Iterator[Network]:
        return (network for network in self.networks.values() if network.driver == "bridge")
