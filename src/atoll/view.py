"""How networks, endpoints and namespaces are shown to programs: the API's JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from atoll.model import PREDEFINED

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.model import Endpoint, Namespace, Network


def network_view(engine: Engine, network: Network) -> dict[str, Any]:
    """A network as the API shows it: its record, with its endpoints."""
    shown: dict[str, Any] = msgspec.to_builtins(network)
    shown.setdefault("subnets", [])
    if network.driver == "bridge":
        shown.update(internal=network.internal, icc=network.icc, guard=network.guard, nat=network.nat, mtu=network.mtu)
    if network.id not in PREDEFINED:
        shown["mtu"] = network.mtu
    shown["endpoints"] = [endpoint_view(engine, endpoint) for endpoint in engine.state.endpoints_on(network)]
    return shown


def endpoint_view(engine: Engine, endpoint: Endpoint) -> dict[str, Any]:
    network = engine.state.network(endpoint.network)
    return {
        "id": endpoint.id,
        "network": network.name,
        "namespace": endpoint.namespace,
        "interface": endpoint.interface,
        "host_interface": endpoint.host_interface if network.driver == "bridge" else "",
        "mac": endpoint.mac,
        "addresses": list(endpoint.addresses),
        "aliases": list(endpoint.aliases),
        "gateway_priority": endpoint.gateway_priority,
        "ports": [str(port) for port in endpoint.ports],
        "ingress_rate": endpoint.ingress_rate,
        "egress_rate": endpoint.egress_rate,
        "created": endpoint.created,
        "state": endpoint.state,
    }


def namespace_view(engine: Engine, namespace: Namespace) -> dict[str, Any]:
    return {
        "name": namespace.name,
        "kind": namespace.kind,
        "source": namespace.source,
        "path": str(engine.host.namespace_path(namespace.name)),
        "inode": namespace.inode,
        "pid": namespace.pid,
        "labels": namespace.labels,
        "created": namespace.created,
        "state": namespace.state,
        "endpoints": [endpoint_view(engine, endpoint) for endpoint in engine.state.endpoints_of(namespace.name)],
    }
