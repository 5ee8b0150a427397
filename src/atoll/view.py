"""How networks, endpoints and namespaces are shown to programs: the API's JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from atoll.model import PREDEFINED

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.model import Endpoint, Namespace, Network, Run


def network_view(engine: Engine, network: Network) -> dict[str, Any]:
    """A network as the API shows it: its record, with its endpoints."""
    shown: dict[str, Any] = msgspec.to_builtins(network)
    shown.setdefault("subnets", [])
    if network.driver == "bridge":
        shown.update(internal=network.internal, icc=network.icc, guard=network.guard, nat=network.nat, mtu=network.mtu)
        shown.update(dns=network.dns, servers=list(network.servers))
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
    run = engine.state.live_run(namespace.name)
    owner = run if run is not None and run.owns else None
    return {
        "name": namespace.name,
        "kind": namespace.kind,
        "source": namespace.source,
        "path": str(engine.host.netns_dir / namespace.name),
        "inode": namespace.inode,
        "pid": owner.pid if owner is not None else namespace.pid,
        "command": list(owner.command) if owner is not None else [],
        "servers": list(namespace.servers),
        "files": engine.files.of(namespace.name) if engine.files is not None and namespace.has_files else {},
        "labels": namespace.labels,
        "created": namespace.created,
        "state": namespace.state,
        "endpoints": [endpoint_view(engine, endpoint) for endpoint in engine.state.endpoints_of(namespace.name)],
    }


def run_view(engine: Engine, run: Run) -> dict[str, Any]:
    """A run with the endpoints of the namespace that it is in. `exit_code` is null while it runs and when nobody knows it."""
    inside = engine.state.endpoints_of(run.namespace) if run.alive and run.namespace else []
    return {
        "name": run.name,
        "namespace": run.namespace,
        "command": list(run.command),
        "user": run.user,
        "directory": run.directory,
        "detached": run.detached,
        "pid": run.pid,
        "start": run.start,
        "shepherd": run.shepherd,
        "labels": run.labels,
        "state": run.state,
        "exit_code": run.exit_code,
        "created": run.created,
        "ended": run.ended,
        "endpoints": [endpoint_view(engine, endpoint) for endpoint in inside],
    }
