"""The bridge driver: a kernel bridge with the gateway addresses, one veth pair an endpoint.

A network past `SHARD_PORTS` endpoints grows by further bridges in a chain, each joined to the one before it by a veth pair (a trunk):
still one layer-2 domain, and all that leaves it still passes the first bridge, so nothing else has to know. With `icc` off the
endpoints' ports are isolated, and so is the port of a trunk on the nearer bridge: frames from behind it reach only the gateway.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from atoll.drivers.tuning import tuned
from atoll.kernel import rtnl
from atoll.model import TRUNK_PREFIX
from atoll.plan.operations import (
    HOST,
    AddressAdd,
    AddressDelete,
    BridgeAdd,
    LinkDelete,
    LinkName,
    LinkSet,
    Operation,
    QueueDelete,
    RateSet,
    Redirect,
    RouteAdd,
    RouteDelete,
    ShaperAdd,
    SysctlSet,
    VethAdd,
)

if TYPE_CHECKING:
    from atoll.model import Endpoint, Namespace, Network

#: Below the kernel's own route to ::1, so it never carries what goes out.
_LOOPBACK_METRIC = 4096


def network_up(network: Network) -> list[Operation]:
    operations: list[Operation] = []
    if network.made_bridge:
        operations.append(BridgeAdd(network.bridge, network.mtu, network.mac, f"atoll:{network.id}"))
    operations += _settings(network)
    for text in gateway_addresses(network):
        if text not in network.kept_addresses:
            operations.append(AddressAdd(HOST, network.bridge, text))
    operations.append(LinkSet(HOST, network.bridge, up=True))
    operations += _loopback_routes(network)
    for shard in range(1, network.shards):
        operations += shard_up(network, shard)
    return operations


def gateway_addresses(network: Network) -> list[str]:
    """The addresses that the first bridge carries, with prefix length."""
    return [f"{subnet.gateway}/{ipaddress.ip_network(subnet.subnet).prefixlen}" for subnet in network.gateways()]


def _loopback_routes(network: Network) -> list[RouteAdd]:
    """What route_localnet is to IPv4: answers to ::1 that come back by this bridge are let in (forged ones never get this far, the kernel
    drops any frame from or to ::1 that comes from outside before it looks at routes)."""
    if not network.has(6) or network.internal:
        return []
    return [RouteAdd(HOST, 6, "::1/128", "", network.bridge, table=rtnl.TABLE_LOCAL, metric=_LOOPBACK_METRIC)]


def _settings(network: Network) -> list[Operation]:
    bridge = network.bridge
    operations: list[Operation] = []
    if network.has(4) and not network.internal:
        # For ports published on 127.0.0.1; the firewall drops 127/8 from every interface but lo.
        operations.append(SysctlSet(HOST, f"net/ipv4/conf/{bridge}/route_localnet", "1"))
    if network.has(6):
        # The address is ours and must work at once; and a bridge that we run takes no routes from its endpoints.
        operations += [
            SysctlSet(HOST, f"net/ipv6/conf/{bridge}/{name}", value)
            for name, value in (("disable_ipv6", "0"), ("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0"))
        ]
    elif network.made_bridge:
        operations.append(SysctlSet(HOST, f"net/ipv6/conf/{bridge}/disable_ipv6", "1", optional=True))
    return operations


def shard_up(network: Network, shard: int) -> list[Operation]:
    """One more bridge, behind the one before it."""
    name, near = network.shard(shard), network.shard(shard - 1)
    down, up = _trunk(network, shard)
    mark = f"atoll:{network.id}"
    return [
        BridgeAdd(name, network.mtu, _shard_mac(network.mac, shard), mark),
        SysctlSet(HOST, f"net/ipv6/conf/{name}/disable_ipv6", "1", optional=True),
        # It has no address, but would answer for the gateway's all the same, and packets would leave by it past the network's NAT.
        SysctlSet(HOST, f"net/ipv4/conf/{name}/arp_ignore", "8"),
        LinkSet(HOST, name, up=True),
        VethAdd(down, up, HOST, "", network.mtu, near, mark),
        *([LinkSet(HOST, down, isolated=True)] if not network.icc else []),
        LinkSet(HOST, up, master=name, alias=mark),
        LinkSet(HOST, up, up=True),
    ]


def shard_down(network: Network, shard: int) -> list[Operation]:
    return [LinkDelete(HOST, _trunk(network, shard)[0]), LinkDelete(HOST, network.shard(shard))]


def _trunk(network: Network, shard: int) -> tuple[str, str]:
    """The two ends of the trunk between a bridge and the one before it: the end on the nearer bridge, the end on this one."""
    return f"{TRUNK_PREFIX}{network.id}{shard}d", f"{TRUNK_PREFIX}{network.id}{shard}u"


def _shard_mac(mac: str, shard: int) -> str:
    return f"{mac[:-2]}{(int(mac[-2:], 16) + shard) & 0xFF:02x}"


def network_down(network: Network) -> list[Operation]:
    operations: list[Operation] = []
    for shard in range(network.shards - 1, 0, -1):
        operations += shard_down(network, shard)
    if network.made_bridge:
        return [*operations, LinkDelete(HOST, network.bridge)]
    # A bridge that was there before us keeps all but what we put on it; its settings are put back with the host's.
    operations += [AddressDelete(HOST, network.bridge, text) for text in gateway_addresses(network) if text not in network.kept_addresses]
    return [*operations, *map(RouteDelete, _loopback_routes(network))]


def endpoint_up(network: Network, endpoint: Endpoint, namespace: Namespace) -> list[Operation]:
    near, external = endpoint.host_interface, namespace.is_external
    far, inside = (endpoint.spare, HOST) if external else (endpoint.interface, namespace.name)
    mark = f"atoll:{endpoint.id}"
    operations: list[Operation] = [
        VethAdd(near, far, inside, endpoint.mac, endpoint.mtu or network.mtu, network.shard(endpoint.shard), mark, spare=external)
    ]
    if endpoint.host_name:
        operations.append(LinkName(near, endpoint.host_name))
    if not network.icc:
        operations.append(LinkSet(HOST, near, isolated=True))
    operations += rates_up(endpoint)
    return operations if external else operations + inside_up(endpoint, namespace)


def rates_up(endpoint: Endpoint) -> list[Operation]:
    near, operations = endpoint.host_interface, list[Operation]()
    if endpoint.ingress_rate:
        operations.append(RateSet(near, endpoint.ingress_rate))
    if endpoint.egress_rate:
        # A queue holds back what leaves an interface, so what the endpoint sends is led through one more.
        operations += [
            ShaperAdd(endpoint.shaper, f"atoll:{endpoint.id}"),
            RateSet(endpoint.shaper, endpoint.egress_rate),
            Redirect(near, endpoint.shaper),
        ]
    return operations


def rates_down(before: Endpoint, after: Endpoint) -> list[Operation]:
    """Takes away the limits that an endpoint has and is to have no more."""
    operations: list[Operation] = []
    if before.ingress_rate and not after.ingress_rate:
        operations.append(QueueDelete(before.host_interface, "root"))
    if before.egress_rate and not after.egress_rate:
        operations += [QueueDelete(before.host_interface, "ingress"), LinkDelete(HOST, before.shaper)]
    return operations


def inside_up(endpoint: Endpoint, namespace: Namespace) -> list[Operation]:
    """The namespace's own side: settings before the interface is up, so that nothing is sent that shouldn't be."""
    far, inside = endpoint.interface, namespace.name
    operations: list[Operation] = []
    if endpoint.address(6):
        operations += [
            SysctlSet(inside, f"net/ipv6/conf/{far}/{name}", value)
            for name, value in (("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0"))
        ]
    elif namespace.kind == "adopted":
        operations.append(SysctlSet(inside, f"net/ipv6/conf/{far}/disable_ipv6", "1", optional=True))
    operations.append(LinkSet(inside, far, up=True))
    operations += [AddressAdd(inside, far, text) for text in endpoint.addresses]
    return tuned(operations, endpoint, inside)


def endpoint_down(network: Network, endpoint: Endpoint, namespace: Namespace) -> list[Operation]:
    del network, namespace
    operations: list[Operation] = [LinkDelete(HOST, endpoint.host_interface)]
    if endpoint.egress_rate:
        operations.append(LinkDelete(HOST, endpoint.shaper))
    return operations
