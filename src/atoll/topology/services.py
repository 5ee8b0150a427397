"""The `services:` of a document: namespaces with their connections, and programs."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from atoll.checks import check_interface, check_labels, check_mac, check_name, check_servers
from atoll.topology import keys
from atoll.topology.networks import address_in
from atoll.topology.ports import ports
from atoll.topology.source import (
    List,
    Map,
    Mark,
    Scalar,
    as_boolean,
    as_list,
    as_map,
    as_number,
    as_pairs,
    as_text,
    as_texts,
    at,
    check_keys,
    dotenv,
    is_null,
)
from atoll.topology.value import Connection, Place, Program

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from atoll.topology.networks import Described
    from atoll.topology.source import Node

_MOST_REPLICAS = 500


class Service(NamedTuple):
    """A service as it is written. `after` are the services that it depends on, `shares` the one whose namespace it is in, or `host`."""

    name: str
    mark: Mark
    node: Map
    profiles: tuple[str, ...]
    after: tuple[str, ...]
    shares: str
    scale: int


class Context(NamedTuple):
    """What a service is read with."""

    project: str
    folder: str
    networks: Mapping[str, Described]
    variables: Mapping[str, str]
    unused: Callable[[str], None]


def outline(name: str, mark: Mark, node: Map, services: Map, unused: Callable[[str], None]) -> Service:
    """What other services must know of a service; every key is checked here."""
    with at(mark):
        check_name(name, "service")
    for key, hint in keys.REFUSED.items():
        if key in node.entries:
            raise node.keys[key].error(f"{key} is not supported", hint)
    check_keys(node, (*keys.SERVICE, *keys.SERVICE_UNUSED), f"service {name}")
    for key in node.entries:
        if key in keys.SERVICE_UNUSED:
            unused(key)
    after = _after(node, services)
    shares = ""
    if "network_mode" in node.entries:
        shares = _mode(node.entries["network_mode"], name, services)
        for other in ("networks", "ports") if shares else ():
            if other in node.entries:
                raise node.keys[other].error(f"{other} of a service in the network of another", "leave out this or network_mode")
        if "networks" in node.entries:
            raise node.keys["networks"].error("networks beside network_mode", "leave out one of both")
    profiles = tuple(as_texts(node.entries["profiles"], "profiles")) if "profiles" in node.entries else ()
    return Service(name, mark, node, profiles, after, shares, _scale(node, unused))


def _after(node: Map, services: Map) -> tuple[str, ...]:
    if "depends_on" not in node.entries:
        return ()
    found = node.entries["depends_on"]
    wanted = found.keys if isinstance(found, Map) else {as_text(item, "depends_on"): item.mark for item in as_list(found, "depends_on")}
    for name, mark in wanted.items():
        if name not in services.entries:
            raise mark.error(f"no service {name[:60]!r} to depend on", f"the services: {', '.join(services.entries)}")
    return tuple(wanted)


def _mode(node: Node, name: str, services: Map) -> str:
    text = as_text(node, "network_mode")
    kind, _, other = text.partition(":")
    if kind == "service" and other in services.entries and other != name:
        return other
    if text not in ("none", "host", "bridge"):
        what = f"no other service {other[:60]!r}" if kind == "service" else f"network_mode {text[:60]!r} is unknown"
        raise node.mark.error(what, "expected none, host or service:NAME")
    return "host " if text == "host" else ""


def _scale(node: Map, unused: Callable[[str], None]) -> int:
    found = node.entries.get("scale")
    if "deploy" in node.entries:
        deploy = as_map(node.entries["deploy"], "deploy")
        for key in deploy.entries:
            if key != "replicas":
                unused(f"deploy.{key}")
        found = found or deploy.entries.get("replicas")
    return as_number(found, "the number of replicas", 0, _MOST_REPLICAS) if found is not None else 1


def read(service: Service, context: Context, prefix: str) -> tuple[list[Place], list[Program]]:
    """The namespaces and programs of a service. `prefix` is what stands before the name of the service that it shares with."""
    names = [service.name] if service.scale == 1 else [f"{service.name}-{number}" for number in range(1, service.scale + 1)]
    places: list[Place] = []
    if not service.shares:
        drawn = Place(
            name="",
            service=service.name,
            connections=_connections(service, context),
            servers=_servers(service.node),
            labels=_labels(service.node),
        )
        places = [structs.replace(drawn, name=_full(service, context, name)) for name in names]
    command = _command(service, context)
    if not command:
        return places, []
    program = Program(
        name="",
        share="host" if service.shares == "host " else f"ns:{prefix}",
        command=command,
        service=service.name,
        environment=_environment(service.node, context),
        directory=_directory(service.node, context),
        user=_text(service.node, "user"),
        hostname=_text(service.node, "hostname"),
    )
    if service.shares:
        full = [_full(service, context, name) for name in names]
        return [], [structs.replace(program, name=f"{name}.run") for name in full]
    return places, [structs.replace(program, name=f"{place.name}.run", share=f"ns:{place.name}") for place in places]


def _full(service: Service, context: Context, name: str) -> str:
    """A namespace's name on the host."""
    given = service.node.entries.get("container_name")
    if given is not None and service.scale != 1:
        raise given.mark.error(f"container_name, and {service.scale} replicas", "leave out one of both")
    mark = service.mark if given is None else given.mark
    with at(mark):
        return check_name(f"{context.project}-{name}" if given is None else as_text(given, "container_name"), "namespace")


def full_name(service: Service, context: Context) -> str:
    """The name of the one namespace that others may share."""
    if service.scale != 1:
        raise service.mark.error(f"{service.name} has {service.scale} replicas and its network is shared", "have one replica")
    return _full(service, context, service.name)


def _labels(node: Map) -> dict[str, str]:
    if "labels" not in node.entries:
        return {}
    found = as_pairs(node.entries["labels"], "labels")
    with at(node.entries["labels"].mark):
        return check_labels(found, "label")


def _servers(node: Map) -> tuple[str, ...]:
    if "dns" not in node.entries:
        return ()
    with at(node.entries["dns"].mark):
        return check_servers(as_texts(node.entries["dns"], "dns"))


def _text(node: Map, key: str) -> str:
    return as_text(node.entries[key], key) if key in node.entries else ""


# --- networks ------------------------------------------------------------------------------------------------------------------------


def _connections(service: Service, context: Context) -> tuple[Connection, ...]:
    node = service.node.entries.get("networks")
    mode = service.node.entries.get("network_mode")
    none = isinstance(mode, Scalar) and mode.text == "none"
    wanted: list[tuple[int, Connection, Described]] = []
    if node is None:
        if not none:
            wanted.append((0, Connection(network="", aliases=(service.name,)), context.networks["default"]))
    elif isinstance(node, Map):
        for key, value in node.entries.items():
            described = _described(key, node.keys[key], context)
            wanted.append((*_connection(service, as_map(value, f"network {key}"), described, context), described))
    else:
        for item in as_list(node, "networks"):
            described = _described(as_text(item, "a network"), item.mark, context)
            if any(other.name == described.name for _, _, other in wanted):
                raise item.mark.error(f"network {as_text(item, 'a network')} is named twice", "name it once")
            wanted.append((0, Connection(network="", aliases=(service.name,)), described))
    wanted.sort(key=lambda one: -one[0])  # as written, but for those with a priority
    made = [structs.replace(connection, network=described.name) for _, connection, described in wanted]
    if "mac_address" in service.node.entries and made:
        made[0] = structs.replace(made[0], mac=_mac(service, service.node.entries["mac_address"]))
    if "ports" in service.node.entries:
        _publish(service, made, [described for _, _, described in wanted], context)
    return tuple(made)


def _described(key: str, mark: Mark, context: Context) -> Described:
    if key not in context.networks:
        raise mark.error(f"network {key[:60]!r} is not under networks:", f"it has: {', '.join(context.networks) or 'none'}")
    return context.networks[key]


def _connection(service: Service, node: Map, described: Described, context: Context) -> tuple[int, Connection]:
    entries = node.entries
    check_keys(node, (*keys.CONNECTION, *keys.CONNECTION_UNUSED), "a service's network")
    for key in keys.CONNECTION_UNUSED:
        if key in entries:
            context.unused(f"networks.{key}")
    aliases = [service.name]
    for item in as_list(entries["aliases"], "aliases") if "aliases" in entries else ():
        with at(item.mark):
            aliases.append(check_name(as_text(item, "an alias"), "alias"))
    addresses: list[str] = []
    for version in (4, 6):
        if (found := entries.get(f"ipv{version}_address")) is not None:
            _single(service, found.mark, "a static address")
            addresses.append(address_in(found, version, described))
    interface = ""
    if "interface_name" in entries:
        with at(entries["interface_name"].mark):
            interface = check_interface(as_text(entries["interface_name"], "interface_name"))
    limit = 2**31 - 1
    made = Connection(
        network="",
        addresses=tuple(addresses),
        mac=_mac(service, entries["mac_address"]) if "mac_address" in entries else "",
        interface=interface,
        aliases=tuple(dict.fromkeys(aliases)),
        gateway_priority=as_number(entries["gw_priority"], "gw_priority", -limit, limit) if "gw_priority" in entries else 0,
    )
    return as_number(entries["priority"], "priority", -limit, limit) if "priority" in entries else 0, made


def _mac(service: Service, node: Node) -> str:
    _single(service, node.mark, "a MAC address")
    with at(node.mark):
        return check_mac(as_text(node, "mac_address"))


def _single(service: Service, mark: Mark, what: str) -> None:
    if service.scale > 1:
        raise mark.error(f"{what}, and {service.scale} replicas", "leave out one of both")


def _publish(service: Service, made: list[Connection], described: list[Described], context: Context) -> None:
    """Ports are published from the network that is the gateway, as `atoll publish` does it."""
    found = ports(service.node.entries["ports"], context.unused)
    if not found:
        return
    _single(service, found[0][1], "a published port")
    able = [number for number, network in enumerate(described) if network.publishes]
    if not able:
        raise found[0][1].error(
            f"service {service.name} is on no network that can publish ports", "put it on a bridge network that isn't internal"
        )
    chosen = max(able, key=lambda number: (made[number].gateway_priority, -number))
    made[chosen] = structs.replace(made[chosen], publish=tuple(spec for spec, _ in found))


# --- programs ------------------------------------------------------------------------------------------------------------------------


def _command(service: Service, context: Context) -> tuple[str, ...]:
    """The words of what is to run; a command that belongs to an image isn't there to be run."""
    node = service.node
    extras = as_map(node.entries["x-atoll"], "x-atoll") if "x-atoll" in node.entries else None
    if extras is not None:
        check_keys(extras, keys.SERVICE_EXTRAS, "x-atoll")
        if "command" in extras.entries:
            return _words(extras.entries["command"], "command")
    found = [key for key in ("entrypoint", "command") if key in node.entries]
    if any(key in node.entries for key in ("image", "build")):
        for key in found:
            context.unused(f"{key} of an image")
        return ()
    return tuple(word for key in found for word in _words(node.entries[key], key))


def _words(node: Node, what: str) -> tuple[str, ...]:
    if isinstance(node, List):
        return tuple(as_texts(node, what))
    if is_null(node):
        return ()
    try:
        return tuple(shlex.split(as_text(node, what)))
    except ValueError as error:
        raise node.mark.error(f"{what} can't be split into words: {error}", "close the quote, or write a list") from None


def _environment(node: Map, context: Context) -> dict[str, str]:
    found: dict[str, str] = {}
    if "env_file" in node.entries:
        listed = node.entries["env_file"]
        for item in listed.items if isinstance(listed, List) else (listed,):
            found |= _env_file(item, context)
    if "environment" in node.entries:
        given = node.entries["environment"]
        if isinstance(given, List):
            for item in given.items:
                name, separator, value = as_text(item, "environment").partition("=")
                found |= {name: value} if separator else _passed(name, context)
        else:
            for key, variable in as_map(given, "environment").entries.items():
                found |= _passed(key, context) if is_null(variable) else {key: as_text(variable, key)}
    return found


def _passed(name: str, context: Context) -> dict[str, str]:
    """A variable without a value is passed on, if there is one."""
    return {name: context.variables[name]} if name in context.variables else {}


def _env_file(node: Node, context: Context) -> dict[str, str]:
    required = True
    where: Node = node
    if isinstance(node, Map):
        check_keys(node, ("path", "required", "format"), "env_file")
        if "path" not in node.entries:
            raise node.mark.error("an env_file without a path", "expected path: FILE")
        where = node.entries["path"]
        required = as_boolean(node.entries["required"], "required") if "required" in node.entries else True
    path = os.path.join(context.folder, as_text(where, "env_file"))
    if not required and not os.path.exists(path):
        return {}
    with at(where.mark):
        return dotenv(path)


def _directory(node: Map, context: Context) -> str:
    return os.path.join(context.folder, _text(node, "working_dir"))
