"""The API's calls: from JSON to a verb of the engine and back. Nothing here decides anything.

Each call is a function of the engine and a checked request; `ROUTES` says under which method and path it is found. With `dry_run` a
change answers with the commands that it stands for and changes nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from atoll.checks import parse_publish
from atoll.engine.endpoints import EndpointOptions
from atoll.engine.network_request import NetworkRequest
from atoll.engine.runs import RunRequest
from atoll.errors import Invalid
from atoll.explain import checked, describe, explain
from atoll.frontends.docker import claims
from atoll.view import endpoint_view, host_view, namespace_view, network_view, run_view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from atoll.engine import Engine
    from atoll.model import Endpoint
    from atoll.plan.operations import Plan


class NoBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A request that is all in its path."""


class NamespaceBody(Struct, frozen=True, forbid_unknown_fields=True):
    """`create` without a source, else `adopt` from one."""

    name: str
    pid: int = 0
    path: str = ""
    docker: str = ""
    podman: str = ""
    dns: bool = False
    servers: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class ConnectBody(EndpointOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    namespace: str


class PortsBody(Struct, frozen=True, forbid_unknown_fields=True):
    ports: tuple[str, ...]
    network: str = ""
    interface: str = ""


class ExitBody(Struct, frozen=True, forbid_unknown_fields=True):
    """`pid` says which run of that name is meant; `code` is left out by those who don't know it."""

    pid: int
    code: int | None = None


class Call(NamedTuple):
    """What answers a request; `plan` what answers it with `dry_run`, for calls that change something."""

    body: type[Struct]
    do: Callable[[Engine, dict[str, str], Any], Any]
    plan: Callable[[Engine, dict[str, str], Any], Plan] | None = None


# --- the calls -----------------------------------------------------------------------------------------------------------------------


def _networks(engine: Engine, _: dict[str, str], __: NoBody) -> Any:
    return [network_view(engine, network) for network in engine.networks()]


def _network(engine: Engine, where: dict[str, str], _: NoBody) -> Any:
    return network_view(engine, engine.state.network(where["network"]))


def _create_network(engine: Engine, _: dict[str, str], body: NetworkRequest) -> Any:
    chosen = engine.create_network_explained(body)
    return network_view(engine, chosen.network) | {"notes": list(chosen.notes)}


def _plan_create_network(engine: Engine, _: dict[str, str], body: NetworkRequest) -> Plan:
    return engine.plan_create_network(**msgspec.structs.asdict(body))


def _remove_network(engine: Engine, where: dict[str, str], _: NoBody) -> Any:
    return {"name": engine.remove_network(_removable(engine, where)).name}


def _plan_remove_network(engine: Engine, where: dict[str, str], _: NoBody) -> Plan:
    return engine.plan_remove_network(_removable(engine, where))


def _removable(engine: Engine, where: dict[str, str]) -> str:
    if not flag(where, "force"):
        claims.check_removable(engine, where["network"])
    return where["network"]


def _prune(engine: Engine, _: dict[str, str], __: NoBody) -> Any:
    return {"removed": [network.name for network in engine.prune_networks(claims.claimed(engine))]}


def _namespaces(engine: Engine, _: dict[str, str], __: NoBody) -> Any:
    return [namespace_view(engine, namespace) for namespace in engine.namespaces()]


def _namespace(engine: Engine, where: dict[str, str], _: NoBody) -> Any:
    return namespace_view(engine, engine.state.namespace(where["namespace"]))


def _create_namespace(engine: Engine, _: dict[str, str], body: NamespaceBody) -> Any:
    if body.pid or body.path or body.docker or body.podman:
        made = engine.adopt_namespace(**msgspec.structs.asdict(body))
    else:
        made = engine.create_namespace(body.name, body.labels, servers=body.servers)
    return namespace_view(engine, made)


def _plan_create_namespace(engine: Engine, _: dict[str, str], body: NamespaceBody) -> Plan:
    if body.pid or body.path or body.docker or body.podman:
        return engine.plan_adopt_namespace(body.name, pid=body.pid, path=body.path, docker=body.docker, podman=body.podman)
    return engine.plan_create_namespace(body.name, servers=body.servers)


def _remove_namespace(engine: Engine, where: dict[str, str], _: NoBody) -> Any:
    return {"name": engine.remove_namespace(where["namespace"]).name}


def _connect(engine: Engine, where: dict[str, str], body: ConnectBody) -> Any:
    claims.check_connectable(engine, where["network"], body.namespace)
    return endpoint_view(engine, engine.connect(where["network"], **msgspec.structs.asdict(body)))


def _plan_connect(engine: Engine, where: dict[str, str], body: ConnectBody) -> Plan:
    claims.check_connectable(engine, where["network"], body.namespace)
    return engine.plan_connect(where["network"], **msgspec.structs.asdict(body))


def _disconnect(engine: Engine, where: dict[str, str], _: NoBody) -> Any:
    return {"id": engine.disconnect(where["network"], where["namespace"], interface=where.get("interface", "")).id}


def _publish(engine: Engine, where: dict[str, str], body: PortsBody) -> Any:
    made = engine.publish(where["namespace"], **_which(body))
    return _ports_view(engine, made, [str(port) for port in made.ports[-len(body.ports) :]])


def _unpublish(engine: Engine, where: dict[str, str], body: PortsBody) -> Any:
    left = engine.unpublish(where["namespace"], **_which(body))
    return _ports_view(engine, left, [str(parse_publish(spec)) for spec in body.ports])


def _which(body: PortsBody) -> dict[str, Any]:
    return {"specs": body.ports, "network": body.network, "interface": body.interface}


def _ports_view(engine: Engine, endpoint: Endpoint, changed: Sequence[str]) -> dict[str, Any]:
    """The endpoint and the ports that changed; all that it publishes may be tens of thousands."""
    network = engine.state.network(endpoint.network)
    return {
        "id": endpoint.id,
        "network": network.name,
        "namespace": endpoint.namespace,
        "interface": endpoint.interface,
        "ports": list(changed),
    }


def _runs(engine: Engine, _: dict[str, str], __: NoBody) -> Any:
    return [run_view(engine, run) for run in engine.runs()]


def _run(engine: Engine, where: dict[str, str], _: NoBody) -> Any:
    return run_view(engine, engine.state.run(where["run"]))


def _create_run(engine: Engine, _: dict[str, str], body: RunRequest) -> Any:
    """The run, and what its process needs to enter: the pid of the daemon, whose host it is, and the namespace (null: the host's)."""
    run = engine.create_run(body)
    place = engine.state.namespaces.get(run.namespace)
    inside = None if place is None else namespace_view(engine, place)
    return run_view(engine, run) | {"daemon": os.getpid(), "place": inside}


def _report_exit(engine: Engine, where: dict[str, str], body: ExitBody) -> Any:
    return run_view(engine, engine.report_exit(where["run"], pid=body.pid, code=body.code))


def _forget_run(engine: Engine, where: dict[str, str], _: NoBody) -> Any:
    return {"name": engine.forget_run(where["run"]).name}


def _prune_runs(engine: Engine, _: dict[str, str], __: NoBody) -> Any:
    return {"removed": [run.name for run in engine.prune_runs()]}


def _host(engine: Engine, _: dict[str, str], __: NoBody) -> Any:
    return host_view(engine)


def _differences(engine: Engine, _: dict[str, str], __: NoBody) -> Any:
    return {"differences": _shown(engine.differences()), "errors": []}


def _repair(engine: Engine, _: dict[str, str], __: NoBody) -> Any:
    found, errors = engine.repair()
    return {"differences": _shown(found), "errors": [str(error) for error in errors]}


def _explain(engine: Engine, where: dict[str, str], _: NoBody, *, send: bool = False) -> Any:
    question = checked(where.get("from", ""), where.get("to", ""), ipv6=where.get("ipv6", "0") in ("1", "true"))
    explained = explain(engine, question, send=send)
    return msgspec.to_builtins(explained) | {"summary": describe(explained, question)}


def _shown(differences: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {
            "subject": difference.subject,
            "what": difference.what,
            "repair": [command for operation in difference.repair for command in operation.commands()]
            or ["the ruleset is loaded anew, in one transaction"],
        }
        for difference in differences
    ]


ROUTES: Final[dict[tuple[str, str], Call]] = {
    ("GET", "/v1/networks"): Call(NoBody, _networks),
    ("POST", "/v1/networks"): Call(NetworkRequest, _create_network, _plan_create_network),
    ("POST", "/v1/networks/prune"): Call(NoBody, _prune),
    ("GET", "/v1/networks/{network}"): Call(NoBody, _network),
    ("DELETE", "/v1/networks/{network}"): Call(NoBody, _remove_network, _plan_remove_network),
    ("POST", "/v1/networks/{network}/endpoints"): Call(ConnectBody, _connect, _plan_connect),
    ("DELETE", "/v1/networks/{network}/endpoints/{namespace}"): Call(
        NoBody,
        _disconnect,
        lambda engine, where, _: engine.plan_disconnect(where["network"], where["namespace"], interface=where.get("interface", "")),
    ),
    ("GET", "/v1/namespaces"): Call(NoBody, _namespaces),
    ("POST", "/v1/namespaces"): Call(NamespaceBody, _create_namespace, _plan_create_namespace),
    ("GET", "/v1/namespaces/{namespace}"): Call(NoBody, _namespace),
    ("DELETE", "/v1/namespaces/{namespace}"): Call(
        NoBody, _remove_namespace, lambda engine, where, _: engine.plan_remove_namespace(where["namespace"])
    ),
    ("POST", "/v1/namespaces/{namespace}/publish"): Call(
        PortsBody, _publish, lambda engine, where, body: engine.plan_publish(where["namespace"], **_which(body))
    ),
    ("POST", "/v1/namespaces/{namespace}/unpublish"): Call(
        PortsBody, _unpublish, lambda engine, where, body: engine.plan_unpublish(where["namespace"], **_which(body))
    ),
    ("GET", "/v1/runs"): Call(NoBody, _runs),
    ("POST", "/v1/runs"): Call(RunRequest, _create_run, lambda engine, _, body: engine.plan_create_run(body)),
    ("POST", "/v1/runs/prune"): Call(NoBody, _prune_runs),
    ("GET", "/v1/runs/{run}"): Call(NoBody, _run),
    ("DELETE", "/v1/runs/{run}"): Call(NoBody, _forget_run),
    ("POST", "/v1/runs/{run}/exit"): Call(ExitBody, _report_exit),
    ("GET", "/v1/host"): Call(NoBody, _host),
    ("GET", "/v1/doctor"): Call(NoBody, _differences),
    ("POST", "/v1/doctor"): Call(NoBody, _repair),
    ("GET", "/v1/explain"): Call(NoBody, _explain),
    ("POST", "/v1/explain"): Call(NoBody, lambda engine, where, body: _explain(engine, where, body, send=True)),
}


def flag(where: Mapping[str, str], name: str) -> bool:
    """A parameter that is on or off. Raises `Invalid` for anything else: a dry run must not turn into the change itself."""
    value = where.get(name, "0")
    if value not in ("0", "1", "false", "true"):
        raise Invalid(f"{name}={value[:40]} is neither true nor false", f"expected {name}=1 or {name}=0")
    return value in ("1", "true")


def decode(body: type[Struct], data: bytes) -> Any:
    """A request's body, checked. Raises `Invalid` with the place and what was expected."""
    try:
        return msgspec.json.decode(data or b"{}", type=body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the request is not as expected: {error}", "see docs/api.md") from None
