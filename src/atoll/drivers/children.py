"""The macvlan and ipvlan drivers: an interface of the namespace's own on a host interface's network, past the host's stack.

The kernel does not let the host and such an endpoint talk over the parent, and nothing of the host's firewall sees its packets; so there
is no guard, no isolation and no published port here. Subnet and gateway are those of the network that the parent is on. Without a
parent one is made that leads nowhere, and with one called eth0.50 the VLAN 50 of eth0; it goes with the last network that is on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.drivers.bridge import inside_up
from atoll.plan.operations import HOST, ChildAdd, LinkDelete, LinkSet, Operation, ParentAdd, SysctlSet

if TYPE_CHECKING:
    from atoll.model import Endpoint, Namespace, Network


def network_up(network: Network) -> list[Operation]:
    """The parent, if it is there for such networks alone; one that was there before stays as it is."""
    if not network.made_parent:
        return []
    base, number = vlan_of(network.parent)
    return [
        ParentAdd(network.parent, base, number, 0 if base else network.mtu, f"atoll:{network.id}"),
        # The host takes no part in what passes it.
        SysctlSet(HOST, f"net/ipv6/conf/{network.parent}/disable_ipv6", "1", optional=True),
        LinkSet(HOST, network.parent, up=True),
    ]


def network_down(network: Network) -> list[Operation]:
    """What `network_up` made; whoever shares a parent with others says beforehand that it isn't made."""
    return [LinkDelete(HOST, network.parent)] if network.made_parent else []


def vlan_of(parent: str) -> tuple[str, int]:
    """`eth0.50` is the VLAN 50 of eth0; an empty base for what is no such name."""
    base, dot, number = parent.rpartition(".")
    valid = dot and base and number.isascii() and number.isdigit() and number == str(int(number)) and 1 <= int(number) <= 4094
    return (base, int(number)) if valid else ("", 0)


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
