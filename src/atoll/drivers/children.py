"""The macvlan and ipvlan drivers: an interface of the namespace's own on a host interface's network, past the host's stack.

The kernel does not let the host and such an endpoint talk over the parent, and nothing of the host's firewall sees its packets; so there
is no guard, no isolation and no published port here. Subnet and gateway are those of the network that the parent is on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.drivers.bridge import inside_up
from atoll.plan.operations import HOST, ChildAdd, LinkDelete, LinkSet, Operation

if TYPE_CHECKING:
    from atoll.model import Endpoint, Namespace, Network


def network_up(network: Network) -> list[Operation]:
    """Nothing: the parent is there already and stays as it is."""
    del network
    return []


def network_down(network: Network) -> list[Operation]:
    del network
    return []


def endpoint_up(network: Network, endpoint: Endpoint, namespace: Namespace) -> list[Operation]:
    external = namespace.is_external
    name, where = (endpoint.spare, HOST) if external else (endpoint.interface, namespace.name)
    child = ChildAdd(
        kind=network.driver,
        name=name,
        namespace=where,
        parent=network.parent,
        mac=endpoint.mac,
        mtu=endpoint.mtu or network.mtu,
        mode=network.mode,
        flag=network.flag,
    )
    mark = LinkSet(where, name, alias=f"atoll:{endpoint.id}")
    return [child, mark] if external else [child, mark, *inside_up(endpoint, namespace)]


def endpoint_down(network: Network, endpoint: Endpoint, namespace: Namespace) -> list[Operation]:
    del network
    if not namespace.is_external:
        return [LinkDelete(namespace.name, endpoint.interface)]
    # Whoever took it may have given it back, or not.
    inside = [LinkDelete(namespace.name, endpoint.interface)] if namespace.named and endpoint.interface != endpoint.spare else []
    return [LinkDelete(HOST, endpoint.spare), *inside]
