"""What must change so that a host is as a topology says: a pure function of the topology and of the API's views.

The answer is a list of changes in the order in which they can be made. It is as short as it can be: a port is published without
reconnecting its endpoint, what is as it should be isn't named. Only what carries the project's label is ever changed or removed, and
what can't be done because of something else on the host is an error here, before anything is done.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import Struct, structs

from atoll.checks import parse_publish
from atoll.engine.network_request import NetworkRequest
from atoll.errors import Conflict, NotFound
from atoll.ports import PortTable
from atoll.topology.value import PROJECT, Connection, Program, Topology

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from atoll.topology.value import Place

View = dict[str, Any]


class Current(NamedTuple):
    """What there is, as the API shows it."""

    networks: Sequence[View] = ()
    namespaces: Sequence[View] = ()
    runs: Sequence[View] = ()


# --- changes -------------------------------------------------------------------------------------------------------------------------


class StopProgram(Struct, frozen=True, tag=True):
    name: str
    forget: bool = True
    running: bool = True


class Unpublish(Struct, frozen=True, tag=True):
    namespace: str
    network: str
    ports: tuple[str, ...]


class Disconnect(Struct, frozen=True, tag=True):
    namespace: str
    network: str


class RemoveNamespace(Struct, frozen=True, tag=True):
    name: str


class RemoveNetwork(Struct, frozen=True, tag=True):
    name: str


class CreateNetwork(Struct, frozen=True, tag=True):
    request: NetworkRequest


class CreateNamespace(Struct, frozen=True, tag=True):
    name: str
    labels: dict[str, str]
    servers: tuple[str, ...] = ()


class Connect(Struct, frozen=True, tag=True):
    namespace: str
    connection: Connection


class Publish(Struct, frozen=True, tag=True):
    namespace: str
    network: str
    ports: tuple[str, ...]


class StartProgram(Struct, frozen=True, tag=True):
    program: Program
    labels: dict[str, str]


Change = (
    StopProgram
    | Unpublish
    | Disconnect
    | RemoveNamespace
    | RemoveNetwork
    | CreateNetwork
    | CreateNamespace
    | Connect
    | Publish
    | StartProgram
)
#: The order in which changes are made: what is given up before what takes it.
ORDER: Final[tuple[type[Change], ...]] = (
    StopProgram,
    Unpublish,
    Disconnect,
    RemoveNamespace,
    RemoveNetwork,
    CreateNetwork,
    CreateNamespace,
    Connect,
    Publish,
    StartProgram,
)


# --- the difference ------------------------------------------------------------------------------------------------------------------


def difference(topology: Topology, current: Current, *, orphans: bool = True) -> tuple[Change, ...]:
    """The changes from `current` to `topology`. `orphans`: whether what is the project's and not in the topology goes.

    Raises `Conflict` or `NotFound` when something that isn't the project's is in the way.
    """
    return _Difference(topology, current, orphans).changes()


class _Difference:
    def __init__(self, topology: Topology, current: Current, orphans: bool) -> None:
        self._topology = topology
        self._networks = {view["name"]: view for view in current.networks}
        self._namespaces = {view["name"]: view for view in current.namespaces}
        self._runs = {view["name"]: view for view in current.runs}
        self._orphans = orphans
        self._changes: list[Change] = []
        self._wanted = {place.name: place for place in topology.namespaces}
        self._requests = {request.name: request for request in topology.networks}
        #: Static addresses by network, with whom they are for.
        self._static = {
            (connection.network, address): place.name
            for place in topology.namespaces
            for connection in place.connections
            for address in connection.addresses
        }

    def changes(self) -> tuple[Change, ...]:
        self._check_names()
        gone = self._networks_gone()
        remade = self._namespaces_gone()
        for place in self._topology.namespaces:
            self._place(place, gone, remade)
        self._programs(remade | {name for name in self._wanted if name not in self._namespaces})
        self._check_left(gone)
        self._check_free(gone)
        return tuple(sorted(self._changes, key=lambda change: ORDER.index(type(change))))

    def _ours(self, view: View) -> bool:
        return bool(view.get("labels", {}).get(PROJECT) == self._topology.project)

    def _check_names(self) -> None:
        for name in self._topology.external:
            if name not in self._networks:
                raise NotFound(f"external network {name} is not there", f"atoll network create {name}")
        for kind, wanted, there in (
            ("network", self._requests, self._networks),
            ("namespace", self._wanted, self._namespaces),
            ("run", [program.name for program in self._topology.programs], self._runs),
        ):
            for name in wanted:
                if name in there and not self._ours(there[name]):
                    owner = there[name].get("labels", {}).get(PROJECT)
                    whose = f"belongs to project {owner}" if owner else f"is not project {self._topology.project}'s"
                    raise Conflict(f"{kind} {name} is there and {whose}", "rename one of the two, or remove the one that is there")

    def _networks_gone(self) -> set[str]:
        """Those that go, for good or to be made anew; those that are missing are asked for."""
        gone: set[str] = set()
        for name, view in self._networks.items():
            if not self._ours(view):
                continue
            request = self._requests.get(name)
            if request is None and not self._orphans:
                continue
            if request is None or view["labels"] != self._topology.network_labels(request) or view.get("state", "ready") != "ready":
                gone.add(name)
                self._changes.append(RemoveNetwork(name))
        # Those with subnets of their own first: what is chosen must not be in their way.
        for request in sorted(self._topology.networks, key=lambda request: (not request.subnets, request.name)):
            if request.name not in self._networks or request.name in gone:
                self._changes.append(CreateNetwork(structs.replace(request, labels=self._topology.network_labels(request))))
        return gone

    def _namespaces_gone(self) -> set[str]:
        """Those that go, for good or to be made anew: labels and name servers are given once."""
        gone: set[str] = set()
        for name, view in self._namespaces.items():
            if not self._ours(view) or self._owned_by_run(view):
                continue
            place = self._wanted.get(name)
            if place is None and not self._orphans:
                continue
            if place is None or view["labels"] != self._topology.namespace_labels(place) or view["state"] != "ready":
                gone.add(name)
                self._changes.append(RemoveNamespace(name))
        return gone

    def _owned_by_run(self, view: View) -> bool:
        """A namespace that `atoll run` made goes with its program."""
        run = self._runs.get(view["name"])
        return run is not None and run["state"] != "ended"

    def _place(self, place: Place, gone: set[str], remade: set[str]) -> None:
        there = place.name in self._namespaces and place.name not in remade
        if not there:
            self._changes.append(CreateNamespace(place.name, self._topology.namespace_labels(place), place.servers))
        ends = {end["network"]: end for end in self._namespaces[place.name]["endpoints"]} if there else {}
        wanted = {connection.network: connection for connection in place.connections}
        for network, end in ends.items():
            if network in gone or network not in wanted or not self._stays(end, wanted[network]):
                self._changes.append(Disconnect(place.name, network))
        for network, connection in wanted.items():
            end = ends.get(network)
            if end is None or network in gone or not self._stays(end, connection):
                self._changes.append(Connect(place.name, connection))
                continue
            if old := tuple(port for port in end["ports"] if port not in connection.publish):
                self._changes.append(Unpublish(place.name, network, old))
            if new := tuple(port for port in connection.publish if port not in end["ports"]):
                self._changes.append(Publish(place.name, network, new))

    def _stays(self, end: View, wanted: Connection) -> bool:
        """Whether an endpoint needs no reconnecting. What the topology leaves open may be anything but another's static address."""
        addresses = {text.partition("/")[0] for text in end["addresses"]}
        return (
            end["state"] == "ready"
            and set(wanted.addresses) <= addresses
            and all(self._static.get((end["network"], address), end["namespace"]) == end["namespace"] for address in addresses)
            and tuple(end["aliases"]) == wanted.aliases
            and end["gateway_priority"] == wanted.gateway_priority
            and (not wanted.mac or end["mac"] == wanted.mac)
            and (not wanted.interface or end["interface"] == wanted.interface)
        )

    def _programs(self, remade: set[str]) -> None:
        wanted = {program.name: program for program in self._topology.programs}
        stopped: set[str] = set()
        for name, view in self._runs.items():
            inside = view["namespace"] in remade
            if not self._ours(view) and inside and view["state"] != "ended":
                raise Conflict(
                    f"namespace {view['namespace']} must go and {name}, which is not the project's, runs in it", f"atoll stop {name}"
                )
            if not self._ours(view):
                continue
            program = wanted.get(name)
            if program is None and not self._orphans and not inside:
                continue
            same = program is not None and view["labels"] == self._topology.program_labels(program) and view["state"] != "ended"
            if not same or inside:
                stopped.add(name)
                self._changes.append(StopProgram(name, running=view["state"] != "ended"))
        for program in self._topology.programs:  # which are in the order in which they start
            if program.name not in self._runs or program.name in stopped:
                self._changes.append(StartProgram(program, self._topology.program_labels(program)))

    # --- what is in the way ---

    def _check_left(self, gone: set[str]) -> None:
        """A network can't go while others' endpoints are on it."""
        leaving = {change.name for change in self._changes if isinstance(change, RemoveNamespace)}
        leaving_network = {(change.namespace, change.network) for change in self._changes if isinstance(change, Disconnect)}
        for name in sorted(gone):
            for end in self._networks[name]["endpoints"]:
                who = end["namespace"]
                if who not in leaving and (who, name) not in leaving_network:
                    if self._ours(self._namespaces.get(who, {})):
                        self._changes.append(Disconnect(who, name))
                        continue
                    raise Conflict(
                        f"network {name} must go and {who}, which is not the project's, is on it", f"atoll disconnect {name} {who}"
                    )

    def _check_free(self, gone: set[str]) -> None:
        """Subnets, host ports and static addresses that something else has, or that two of the topology's would have."""
        held = PortTable()
        addresses: dict[tuple[str, str], str] = {}
        for end in self._left(gone):
            for port in end["ports"]:
                held.add(parse_publish(port), end["namespace"])
            addresses |= {(end["network"], text.partition("/")[0]): end["namespace"] for text in end["addresses"]}
        kept = [view for view in self._networks.values() if view["name"] not in gone]
        for change in self._changes:
            if isinstance(change, CreateNetwork):
                _check_subnets(change.request, kept)
            elif isinstance(change, Publish):
                _hold(held, change.ports, change.namespace)
            elif isinstance(change, Connect):
                _hold(held, change.connection.publish, change.namespace)
                for address in change.connection.addresses:
                    where = change.connection.network
                    owner = addresses.setdefault((where, address), change.namespace)
                    if owner != change.namespace:
                        raise Conflict(f"{change.namespace} would be {address} on network {where}, and that is {owner}", "choose another")

    def _left(self, gone: set[str]) -> Iterator[View]:
        """The endpoints that stay, without the ports that they give up."""
        removed = {change.name for change in self._changes if isinstance(change, RemoveNamespace)}
        disconnected = {(change.namespace, change.network) for change in self._changes if isinstance(change, Disconnect)}
        given_up = {(change.namespace, change.network): change.ports for change in self._changes if isinstance(change, Unpublish)}
        for view in self._namespaces.values():
            for end in view["endpoints"]:
                key = (end["namespace"], end["network"])
                if view["name"] not in removed and key not in disconnected and end["network"] not in gone:
                    yield end | {"ports": [port for port in end["ports"] if port not in given_up.get(key, ())]}


def _hold(held: PortTable, specs: Iterable[str], namespace: str) -> None:
    for port in map(parse_publish, specs):
        if taken := held.conflict(port):
            raise Conflict(f"{namespace} would publish {port}, and port {taken[0]} is published by {taken[1]}", "choose another port")
        held.add(port, namespace)


def _check_subnets(request: NetworkRequest, kept: Iterable[View]) -> None:
    for text in request.subnets:
        subnet = ipaddress.ip_network(text)
        for view in kept:
            shared = request.driver != "bridge" and request.options.get("parent") == view.get("parent")
            for other in view["subnets"]:
                if not shared and subnet.overlaps(ipaddress.ip_network(other["subnet"])):
                    raise Conflict(
                        f"subnet {subnet} of network {request.name} overlaps {other['subnet']} of network {view['name']}", "choose another"
                    )
