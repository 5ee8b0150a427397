"""What the name server knows, who may see which part of it, and what it answers from that. Pure.

A client sees the networks that its namespace is on. All namespaces on the same networks share one `View`, which keeps the answers that
were given as bytes, by the bytes of the question. A change takes back exactly the answers that hold a name that it touches, so that
its cost does not depend on how much else is known.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from atoll.dns import records, wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DOMAIN: Final = records.DOMAIN
_SUFFIX: Final = records.SUFFIX

#: Answers kept as bytes, of all views together.
KEPT: Final = 16384


class NetworkNames(Struct, frozen=True):
    """A network as DNS sees it. `listen` are its gateway addresses, `servers` who is asked what we don't know; below `domains` its names
    are to be found as well."""

    id: str
    name: str
    listen: tuple[str, ...]
    subnets: tuple[str, ...]
    internal: bool
    servers: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


class EndpointNames(Struct, frozen=True):
    """An endpoint's addresses and names, first that of its namespace. `services`: inner port and protocol of what it publishes."""

    id: str
    network: str
    namespace: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    services: tuple[tuple[int, str], ...] = ()


class NamespaceServers(Struct, frozen=True):
    """The servers of a namespace's own; none: those of the network. `resolver` is the address of one inside the namespace of the file
    `path`, which is asked first about what we don't know: somebody else's (Docker's), who knows what we don't."""

    namespace: str
    servers: tuple[str, ...] = ()
    resolver: str = ""
    path: str = ""


class Update(Struct, frozen=True):
    """A change. What is put replaces what has its id; `reset` forgets everything first."""

    serial: int
    reset: bool = False
    networks: tuple[NetworkNames, ...] = ()
    gone_networks: tuple[str, ...] = ()
    endpoints: tuple[EndpointNames, ...] = ()
    gone_endpoints: tuple[str, ...] = ()
    namespaces: tuple[NamespaceServers, ...] = ()


class Done(Struct, frozen=True):
    """The update of this number is in effect; `errors` say what is wrong now, such as an address that can't be listened on."""

    serial: int
    errors: tuple[str, ...] = ()


class Found(NamedTuple):
    """What there is to say: records, and others that help."""

    rcode: int = wire.NOERROR
    answers: tuple[bytes, ...] = ()
    extra: tuple[bytes, ...] = ()


class Inside(NamedTuple):
    """A server that is reached from within the namespace of a file."""

    path: str
    server: str


class Client(NamedTuple):
    """Who asks: its namespace ("" for the host) and what it sees."""

    namespace: str
    view: View


class View:
    """What the namespaces on the same networks see. `networks` is None for the host, which sees all, by full names only."""

    def __init__(self, networks: frozenset[str] | None) -> None:
        self.networks = networks
        self.users = 0
        #: Answers without their first two bytes, by questions without theirs.
        self.answers: dict[bytes, bytes | wire.Answer] = {}
        #: Which of them are about a name.
        self._about: dict[str, list[bytes]] = {}

    def keep(self, name: str, question: bytes, answer: bytes | wire.Answer) -> None:
        self.answers[question] = answer
        self._about.setdefault(name, []).append(question)

    def forget(self, name: str) -> int:
        """How many answers were about this name."""
        questions = self._about.pop(name, ())
        for question in questions:
            del self.answers[question]
        return len(questions)

    def forget_all(self) -> int:
        count = len(self.answers)
        self.answers.clear()
        self._about.clear()
        return count


class Known:
    """A network with its endpoints. `clients` is by source address, as text and packed; `warm` are the views that keep answers about it."""

    def __init__(self, names: NetworkNames) -> None:
        self.clients: dict[str | bytes, Client] = {}
        self.warm: set[View] = set()
        self.endpoints: dict[str, EndpointNames] = {}
        self._named: dict[str, dict[str, EndpointNames]] = {}
        self._addressed: dict[str, EndpointNames] = {}
        self.rename(names)

    def rename(self, names: NetworkNames) -> None:
        self.names = names
        self.domain = names.name.lower()
        self.suffixes = tuple(f".{domain}" for domain in names.domains)
        self.subnets = tuple(map(ipaddress.ip_network, names.subnets))

    def put(self, endpoint: EndpointNames) -> None:
        self.endpoints[endpoint.id] = endpoint
        for name in endpoint.names:
            self._named.setdefault(name.lower(), {})[endpoint.id] = endpoint
        for address in endpoint.addresses:
            self._addressed[address] = endpoint

    def drop(self, endpoint: EndpointNames) -> None:
        del self.endpoints[endpoint.id]
        for name in {name.lower() for name in endpoint.names}:
            same = self._named[name]
            del same[endpoint.id]
            if not same:
                del self._named[name]
        for address in endpoint.addresses:
            if self._addressed.get(address) is endpoint:
                del self._addressed[address]
                for key in (address, wire.packed(address)):
                    self.clients.pop(key, None)

    def named(self, name: str) -> Iterable[EndpointNames]:
        return self._named.get(name, {}).values()

    def addressed(self, address: str) -> EndpointNames | None:
        return self._addressed.get(address)

    def affected(self, endpoint: EndpointNames) -> Iterator[str]:
        """The questions whose answers hold this endpoint."""
        for name in endpoint.names:
            lower = name.lower()
            yield from (lower, f"{lower}.{self.domain}", f"{lower}.{self.domain}{_SUFFIX}")
            yield from (lower + suffix for suffix in self.suffixes)
        for address in endpoint.addresses:
            yield wire.reverse_of(address)


class Zone:
    """Everything known. `apply` is the only way in; `client` and `find` the ways out."""

    def __init__(self) -> None:
        self._forget_all()

    def _forget_all(self) -> None:
        self.networks: dict[str, Known] = {}
        self.servers: dict[str, NamespaceServers] = {}
        self.host = Client("", View(None))
        self._network_of: dict[str, str] = {}  # endpoint to network
        self._endpoints_of: dict[str, set[str]] = {}  # namespace to endpoints
        self._views: dict[frozenset[str], View] = {}
        self._client_of: dict[str, Client] = {}  # by namespace
        self._listening: dict[str, dict[str, None]] = {}  # gateway address to networks
        #: How many answers are kept as bytes.
        self.kept = 0

    # --- changes

    def apply(self, update: Update) -> None:
        if update.reset:
            self._forget_all()
        touched: set[str] = set()
        for identity in update.gone_endpoints:
            touched |= self._drop(identity)
        for identity in update.gone_networks:
            if (network := self.networks.get(identity)) is not None:
                for endpoint in list(network.endpoints):
                    touched |= self._drop(endpoint)
                self._cool(network)
                self._stop_listening(network)
                del self.networks[identity]
        for names in update.networks:
            self._put_network(names)
        for put in update.endpoints:
            touched |= self._drop(put.id)
            touched.add(put.namespace)
            network = self.networks.get(put.network) or self._put_network(NetworkNames(put.network, "", (), (), internal=True))
            network.put(put)
            self._network_of[put.id] = put.network
            self._endpoints_of.setdefault(put.namespace, set()).add(put.id)
            self._take_back(network, put)
        for namespace in touched:
            self._look_again(namespace)
        for its in update.namespaces:
            if its.servers or its.resolver:
                self.servers[its.namespace] = its
            else:
                self.servers.pop(its.namespace, None)

    def _put_network(self, names: NetworkNames) -> Known:
        network = self.networks.get(names.id)
        if network is None:
            network = self.networks[names.id] = Known(names)
        else:
            self._stop_listening(network)
            network.rename(names)
        for address in names.listen:
            self._listening.setdefault(address, {})[names.id] = None
        self._cool(network)
        return network

    def _stop_listening(self, network: Known) -> None:
        for address in network.names.listen:
            networks = self._listening[address]
            del networks[network.names.id]
            if not networks:
                del self._listening[address]

    def _drop(self, identity: str) -> set[str]:
        """Forget an endpoint, if there is one; the namespaces that this touches."""
        where = self._network_of.pop(identity, None)
        if where is None:
            return set()
        network = self.networks[where]
        endpoint = network.endpoints[identity]
        network.drop(endpoint)
        self._endpoints_of[endpoint.namespace].discard(identity)
        self._take_back(network, endpoint)
        return {endpoint.namespace}

    def _look_again(self, namespace: str) -> None:
        """Which networks a namespace is on has changed, perhaps, or its addresses."""
        endpoints = self._endpoints_of.get(namespace, set())
        before = self._client_of.pop(namespace, None)
        if endpoints:
            on = frozenset(self._network_of[endpoint] for endpoint in endpoints)
            view = self._views.setdefault(on, View(on))
            view.users += 1
            client = self._client_of[namespace] = Client(namespace, view)
            for endpoint in endpoints:
                network = self.networks[self._network_of[endpoint]]
                for address in network.endpoints[endpoint].addresses:
                    if network.addressed(address) is network.endpoints[endpoint]:
                        network.clients[address] = network.clients[wire.packed(address)] = client
        else:
            self._endpoints_of.pop(namespace, None)
        if before is not None:
            before.view.users -= 1
            if not before.view.users and before.view.networks is not None:
                self.kept -= before.view.forget_all()
                for seen in self._seen_by(before.view):
                    seen.warm.discard(before.view)
                del self._views[before.view.networks]

    def _take_back(self, network: Known, endpoint: EndpointNames) -> None:
        for view in (*network.warm, self.host.view):
            for name in network.affected(endpoint):
                self.kept -= view.forget(name)

    def _cool(self, network: Known) -> None:
        for view in (*network.warm, self.host.view):
            self.kept -= view.forget_all()
        network.warm.clear()

    def keep(self, view: View, query: wire.Query, data: bytes, answer: bytes | wire.Answer) -> None:
        """Give this answer to the same bytes from now on, until it changes. Never more than `KEPT` of them."""
        if data in view.answers:
            return
        if self.kept >= KEPT:
            for old in (*self._views.values(), self.host.view):
                old.forget_all()
            self.kept = 0
        view.keep(query.name, data, answer)
        self.kept += 1
        if view is not self.host.view:
            for network in self._seen_by(view):
                network.warm.add(view)

    # --- questions

    def client(self, network: str, source: str) -> Client | None:
        known = self.networks.get(network)
        return known.clients.get(source) if known else None

    def listens(self, address: str) -> str:
        """The network whose gateway has this address, or "" where none has."""
        return next(iter(self._listening.get(address, ())), "")

    def forwards(self, view: View) -> bool:
        """Whether what is asked may leave: it may from a network that isn't internal."""
        return view.networks is not None and any(not network.names.internal for network in self._seen_by(view))

    def upstream(self, client: Client, network: str) -> tuple[str, ...]:
        """The servers for a client that asked on this network; none: those of the host."""
        own = self.servers.get(client.namespace)
        return (own.servers if own else ()) or self.networks[network].names.servers

    def resolver(self, client: Client) -> Inside | None:
        """The resolver inside the client's namespace that is asked before any server."""
        own = self.servers.get(client.namespace)
        return Inside(own.path, own.resolver) if own and own.resolver else None

    def find(self, view: View, query: wire.Query) -> Found | None:
        """What is known about a question to us, or None where others are to be asked."""
        name = query.name
        if name == DOMAIN:
            return Found(answers=(wire.soa(query),) if query.kind in (wire.SOA, wire.ANY) else ())
        if name.endswith(".arpa") and (address := wire.address_of(name)):
            return self._pointers(view, query, address)
        endpoints = list(self._endpoints(view, name))
        if endpoints:
            return self._of_name(query, endpoints)
        if name.startswith("_") and (service := self._service(view, name)):
            return Found(0, *records.services(service)) if query.kind in (wire.SRV, wire.ANY) else Found()
        if name.endswith(_SUFFIX):
            inside = name.removesuffix(_SUFFIX)
            exists = any(network.domain == inside for network in self._seen_by(view))
            return Found() if exists else Found(wire.NXDOMAIN)
        further = {suffix for network in self._seen_by(view) for suffix in network.suffixes if f".{name}".endswith(suffix)}
        if further:
            return Found() if f".{name}" in further else Found(wire.NXDOMAIN)
        return None

    def _seen_by(self, view: View) -> Iterator[Known]:
        if view.networks is None:
            yield from self.networks.values()
        else:
            for identity in view.networks:
                if (network := self.networks.get(identity)) is not None:
                    yield network

    def _endpoints(self, view: View, name: str) -> Iterator[tuple[Known, EndpointNames]]:
        """Whom a name means, by all the ways to say it."""
        full = name.endswith(_SUFFIX)
        inside = name.removesuffix(_SUFFIX)
        short = not full and view.networks is not None
        networks = self._by_domain(name, inside) if view.networks is None else self._seen_by(view)
        for network in networks:
            found = list(network.named(name)) if short else []
            if (full or short) and network.domain and inside.endswith(f".{network.domain}"):
                found += network.named(inside[: -len(network.domain) - 1])
            for suffix in network.suffixes:
                if name.endswith(suffix):
                    found += network.named(name.removesuffix(suffix))
            for endpoint in found:
                yield network, endpoint

    def _by_domain(self, name: str, inside: str) -> Iterator[Known]:
        return (
            network
            for network in self.networks.values()
            if inside.endswith(f".{network.domain}") or (network.suffixes and name.endswith(network.suffixes))
        )

    def _of_name(self, query: wire.Query, endpoints: list[tuple[Known, EndpointNames]]) -> Found:
        match query.kind:
            case wire.A | wire.AAAA:
                return Found(answers=tuple(records.addresses(query.kind, endpoints)))
            case wire.ANY:  # one of what there is will do, RFC 8482
                every = [*records.addresses(wire.A, endpoints), *records.addresses(wire.AAAA, endpoints)]
                return Found(answers=tuple(every[:1]))
            case _:
                return Found()

    def _pointers(self, view: View, query: wire.Query, address: str) -> Found | None:
        targets = []
        inside = False
        for network in self._seen_by(view):
            if (endpoint := network.addressed(address)) is not None and endpoint.names and (target := records.full_name(network, endpoint)):
                targets.append(wire.record(wire.PTR, target))
            inside = inside or records.contains(network.subnets, address)
        if targets:
            return Found(answers=tuple(targets) if query.kind in (wire.PTR, wire.ANY) else ())
        return Found(wire.NXDOMAIN) if inside else None

    def _service(self, view: View, name: str) -> list[tuple[Known, EndpointNames, int]]:
        """Who serves `_PORT._PROTO.NAME`, and on which port."""
        service, _, rest = name.partition(".")
        protocol, _, rest = rest.partition(".")
        port = records.port_number(service[1:], protocol[1:])
        if not port or not protocol.startswith("_"):
            return []
        return [
            (network, endpoint, port)
            for network, endpoint in self._endpoints(view, rest)
            if endpoint.names and (port, protocol[1:]) in endpoint.services
        ]
