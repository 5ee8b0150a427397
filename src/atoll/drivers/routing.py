"""Which way a namespace's packets leave: default routes, further routes and source rules, decided over all of its endpoints.

For each address family one endpoint is the gateway: of those that may have the default route the highest `gateway_priority`, and among
equals the one that was connected first.
What is sent from an endpoint's address must still leave by that endpoint (another network would drop the address, and a client of its
published ports waits for the answer from there), so where there are several each gets a rule and a routing table of its own. The gateway
too: without one it would answer clients that are on another network of the namespace directly, over there. And so does each of several
endpoints on one network.
Where no endpoint may have the default route nothing has: IPv6 looks with the address that it would send from as well, so by a table of
the endpoint's own all would leave after all.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from atoll.errors import Conflict, Invalid
from atoll.kernel import rtnl
from atoll.model import interface
from atoll.plan.operations import Operation, RouteAdd, RouteDelete, RuleAdd, RuleDelete

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from atoll.model import Endpoint, Network, Prefix, Route

_FIRST_TABLE: Final = 1000


def routes(attached: Collection[tuple[Network, Endpoint]], *, foreign_default: Collection[int] = ()) -> list[Operation]:
    """The wanted routes and rules of a namespace. `foreign_default`: families in which it has a default route that isn't ours."""
    wanted: list[Operation] = []
    networks = [network.id for network, _ in attached]
    for version in (4, 6):
        here = sorted(
            (pair for pair in attached if pair[1].address(version)),
            key=lambda pair: (-pair[1].gateway_priority, pair[1].created, pair[1].number),
        )
        ways = [pair for pair in here if has_way_out(pair[0], version)]
        leader = next((pair for pair in ways if pair[1].default_route), None) if version not in foreign_default else None
        if leader is None and version not in foreign_default:
            ways = []
        ends = [(endpoint, route) for _, endpoint in attached for route in endpoint.routes if _ends(route, version)]
        for pair in here:
            if pair is leader:
                wanted.append(_default(*pair, version, metric=pair[1].metric))
            leads_out = pair in ways
            if (leads_out and (len(ways) > 1 or pair is not leader)) or networks.count(pair[0].id) > 1:
                wanted += _own_table(*pair, version, leads_out=leads_out)
                wanted += [_further(endpoint, route, _table(pair[1])) for endpoint, route in ends]
        wanted += [_further(endpoint, route) for endpoint, route in ends]
    for _, endpoint in attached:
        wanted += [_further(endpoint, route) for route in _in_order(endpoint.routes)]
    return list(dict.fromkeys(wanted))


def has_way_out(network: Network, version: int) -> bool:
    return bool(network.gateway(version)) or (network.driver == "ipvlan" and network.mode in ("l3", "l3s") and network.has(version))


def _default(network: Network, endpoint: Endpoint, version: int, table: int = rtnl.TABLE_MAIN, metric: int = 0) -> Operation:
    return RouteAdd(endpoint.namespace, version, "default", network.gateway(version), endpoint.interface, table=table, metric=metric)


def _own_table(network: Network, endpoint: Endpoint, version: int, *, leads_out: bool) -> Iterable[Operation]:
    table = _table(endpoint)
    for text in endpoint.addresses:
        value = interface(text)
        if value.version == version:
            yield RouteAdd(endpoint.namespace, version, str(value.network), "", endpoint.interface, table=table)
            yield RuleAdd(endpoint.namespace, str(value.ip), table, table)
    if leads_out:
        yield _default(network, endpoint, version, table)
    yield from (_further(endpoint, route, table) for route in _in_order(endpoint.routes) if route.version == version)


def _table(endpoint: Endpoint) -> int:
    return _FIRST_TABLE + endpoint.number


# --- further routes ------------------------------------------------------------------------------------------------------------------


def _ends(route: Route, version: int) -> bool:
    """Whether nothing goes on by this route; then it counts whatever address something is sent from."""
    return route.kind != "unicast" and route.version == version


def _in_order(further: Iterable[Route]) -> list[Route]:
    """Those that lead on, the ones on the link first: a gateway may lie behind them."""
    return sorted((route for route in further if route.kind == "unicast"), key=lambda route: bool(route.gateway))


def _further(endpoint: Endpoint, route: Route, table: int = rtnl.TABLE_MAIN) -> RouteAdd:
    destination = "default" if ipaddress.ip_network(route.destination).prefixlen == 0 else route.destination
    link = endpoint.interface if route.kind == "unicast" else ""
    return RouteAdd(endpoint.namespace, route.version, destination, route.gateway, link, table=table, metric=route.metric, kind=route.kind)


def check(further: Collection[Route], prefixes: Collection[Prefix]) -> None:
    """Whether one whose addresses are in `prefixes` can have these routes. Raises `Invalid`."""
    on_link = [ipaddress.ip_network(route.destination) for route in further if route.kind == "unicast" and not route.gateway]
    for route in further:
        if route.kind == "unicast" and not any(prefix.version == route.version for prefix in prefixes):
            raise Invalid(f"route {route}: there is no IPv{route.version} address to send from", "give the network a subnet of that family")
        if route.gateway:
            gateway = ipaddress.ip_address(route.gateway)
            if not (gateway.version == 6 and gateway.is_link_local) and not any(gateway in prefix for prefix in [*prefixes, *on_link]):
                where = ", ".join(map(str, prefixes))
                raise Invalid(f"route {route}: its gateway is not on the network ({where})", "a gateway must be reached without one")


def check_apart(wanted: Iterable[Operation]) -> None:
    """Raises `Conflict` when two routes would say where the same goes."""
    seen: dict[tuple[object, ...], RouteAdd] = {}
    for route in wanted:
        if isinstance(route, RouteAdd):
            other = seen.setdefault((route.version, route.destination, route.table, route.metric), route)
            if other is not route:
                raise Conflict(
                    f"{route.namespace} would have two routes to {route.destination}, by {_way(other)} and by {_way(route)}",
                    "give one a metric, or leave it out",
                )


def _way(route: RouteAdd) -> str:
    return route.gateway or route.link or route.kind


# --- from one set of endpoints to another --------------------------------------------------------------------------------------------


def changes(before: Collection[Operation], after: Collection[Operation]) -> tuple[list[Operation], list[Operation]]:
    """What to take away first and what to add then."""
    gone: list[Operation] = []
    for operation in before:
        if operation not in after:
            if isinstance(operation, RouteAdd):
                gone.append(RouteDelete(operation))
            elif isinstance(operation, RuleAdd):
                gone.append(RuleDelete(operation))
    return gone, [operation for operation in after if operation not in before]


def without_links(gone: Iterable[Operation]) -> Iterator[Operation]:
    """What must be taken away though the links go."""
    return (part for part in gone if not (isinstance(part, RouteDelete) and part.route.link))
