"""Which way a namespace's packets leave: default routes and source rules, decided over all of its endpoints.

For each address family one endpoint is the gateway: the highest `gateway_priority`, and among equals the one that was connected first.
What is sent from an endpoint's address must still leave by that endpoint (another network would drop the address, and a client of its
published ports waits for the answer from there), so where there are several each gets a rule and a routing table of its own. The gateway
too: without one it would answer clients that are on another network of the namespace directly, over there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from atoll.model import interface
from atoll.plan.operations import Operation, RouteAdd, RouteDelete, RuleAdd, RuleDelete

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from atoll.model import Endpoint, Network

_FIRST_TABLE: Final = 1000


def routes(attached: Collection[tuple[Network, Endpoint]], *, foreign_default: Collection[int] = ()) -> list[Operation]:
    """The wanted routes and rules of a namespace. `foreign_default`: families in which it has a default route that isn't ours."""
    wanted: list[Operation] = []
    for version in (4, 6):
        ways = sorted(
            (pair for pair in attached if pair[1].address(version) and has_way_out(pair[0], version)),
            key=lambda pair: (-pair[1].gateway_priority, pair[1].created, pair[1].number),
        )
        for position, (network, endpoint) in enumerate(ways):
            leads = position == 0 and version not in foreign_default
            if leads:
                wanted.append(_default(network, endpoint, version))
            if len(ways) > 1 or not leads:
                wanted += _own_table(network, endpoint, version)
    return wanted


def has_way_out(network: Network, version: int) -> bool:
    return bool(network.gateway(version)) or (network.driver == "ipvlan" and network.mode in ("l3", "l3s") and network.has(version))


def _default(network: Network, endpoint: Endpoint, version: int, table: int = 254) -> Operation:
    return RouteAdd(endpoint.namespace, version, "default", network.gateway(version), endpoint.interface, table=table)


def _own_table(network: Network, endpoint: Endpoint, version: int) -> Iterable[Operation]:
    table = _FIRST_TABLE + endpoint.number
    for text in endpoint.addresses:
        value = interface(text)
        if value.version == version:
            yield RouteAdd(endpoint.namespace, version, str(value.network), "", endpoint.interface, table=table)
            yield RuleAdd(endpoint.namespace, str(value.ip), table, table)
    yield _default(network, endpoint, version, table)


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
