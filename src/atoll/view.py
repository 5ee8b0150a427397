"""How networks, endpoints and namespaces are shown to programs: the API's JSON."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

import msgspec

from atoll.kernel import rtnl
from atoll.model import BRIDGE_PREFIX, PREDEFINED

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.model import Endpoint, Namespace, Network, Run

#: The kernel's number of the main routing table (rtnetlink(7)).
_MAIN: Final = 254


def host_view(engine: Engine) -> dict[str, Any]:
    """The host's name and the interfaces that lead outside: those of default routes; where there are none, those with addresses."""
    sock = engine.host.rtnl
    addresses: dict[int, list[str]] = {}
    for row in rtnl.addresses(sock):
        if not row.interface.is_link_local:
            addresses.setdefault(row.ifindex, []).append(str(row.interface))
    defaults = {route.ifindex for route in rtnl.routes(sock) if route.destination is None and route.table == _MAIN}
    ours = {bridge for network in engine.networks() for bridge in network.bridges()}
    links = [link for link in rtnl.links(sock) if link.name != "lo" and link.name not in ours and not link.name.startswith(BRIDGE_PREFIX)]
    shown = [link for link in links if link.ifindex in defaults] or [link for link in links if link.ifindex in addresses]
    parents = {network.parent for network in engine.networks() if network.parent}
    shown += [link for link in links if link.name in parents and link not in shown]
    return {
        "hostname": socket.gethostname(),
        "uplinks": [{"interface": link.name, "addresses": addresses.get(link.ifindex, [])} for link in shown],
    }


def network_view(engine: Engine, network: Network) -> dict[str, Any]:
    """A network as the API shows it: its record, with its endpoints."""
    shown: dict[str, Any] = msgspec.to_builtins(network)
    shown.setdefault("subnets", [])
    if network.driver == "bridge":
        shown.update(internal=network.internal, icc=network.icc, guard=network.guard, nat=network.nat, mtu=network.mtu)
        shown.update(isolation=network.isolation)
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
        "owner": endpoint.owner,
        "gateway_priority": endpoint.gateway_priority,
        "mtu": endpoint.mtu or network.mtu,
        "routes": msgspec.to_builtins(endpoint.routes),
        "default_route": endpoint.default_route,
        "metric": endpoint.metric,
        "ports": [str(port) for port in endpoint.ports],
        "ingress_rate": endpoint.ingress_rate,
        "egress_rate": endpoint.egress_rate,
        "tuning": msgspec.to_builtins(endpoint.tuning),
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
        "who": engine.state.who(namespace),
        "path": str(engine.host.namespace_path(namespace.name)) if namespace.can_be_entered else "",
        "follows": namespace.path,
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
