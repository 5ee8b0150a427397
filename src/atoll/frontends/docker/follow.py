"""What Docker tells of its networks and containers, as names, aliases and labels of Atoll's. On the engine's thread.

A driver isn't told what anything is called, so networks and namespaces have provisional names until these have been here. Each function
may come again at any time, and changes nothing then.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from atoll.checks import check_labels, check_name
from atoll.errors import AtollError, Conflict, Invalid, NotFound
from atoll.frontends import DOOR_LABEL
from atoll.frontends.docker.records import NETWORK_LABEL, attached, namespace_of
from atoll.frontends.docker.resolv import RESOLVER
from atoll.model import MAX_SERVERS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from atoll.frontends.docker.api import Container, DockerNetworkThere
    from atoll.frontends.docker.door import Door
    from atoll.model import Endpoint, Namespace

_SERVICE: Final = "com.docker.compose.service"
_NOT_IN_A_NAME: Final = re.compile(r"[^a-zA-Z0-9_.-]")
#: Facts: the files that name our gateways.
_FILE: Final = "docker.file:"
#: Docker's short ids.
_SHORT: Final = 12
_LONGEST: Final = 63


class Followed(NamedTuple):
    """What is to be done about a container outside the engine: the servers that its resolv.conf is to name, by Docker's networks (none:
    leave it to Docker), and what is wrong."""

    servers: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 - never changed
    problem: str = ""


# --- networks ------------------------------------------------------------------------------------------------------------------------


def follow_network(door: Door, there: DockerNetworkThere) -> str:
    """Give a network that was made for Docker Docker's name and labels; what keeps it from that, if anything does."""
    engine, record = door.engine, door.records.networks.get(there.id)
    network = engine.state.networks.get(record.network) if record is not None else None
    if record is None or network is None or not record.made:
        return ""
    labels = _usable(there.labels or {}) | {key: network.labels[key] for key in (DOOR_LABEL, NETWORK_LABEL) if key in network.labels}
    if labels != network.labels:
        engine.set_network_labels(network.id, labels)
    if network.name != there.name:
        try:
            engine.rename_network(network.id, there.name)
        except (Conflict, Invalid) as error:
            return f"Docker's network {there.name[:80]} is called {network.name} here: {error.what}"
    return ""


def servers_of(door: Door, network: str) -> tuple[str, ...]:
    """The gateways at which the containers of one of Docker's networks may ask for names; none where ours doesn't answer."""
    record = door.records.networks.get(network)
    mine = door.engine.state.networks.get(record.network) if record is not None else None
    return mine.resolvers() if mine is not None else ()


# --- containers ----------------------------------------------------------------------------------------------------------------------


def reveal(door: Door) -> None:
    """Find the files of sandboxes that were joined before they had one."""
    for sandbox in {record.sandbox for record in door.records.endpoints.values() if record.sandbox}:
        namespace = namespace_of(door.engine, door.records, sandbox)
        if namespace is not None and namespace.is_external and not namespace.path:
            _reveal(door, namespace, sandbox)


def follow_container(door: Door, there: Container) -> Followed:
    """Call a container's namespace as Docker does, with its aliases and labels, and have its file and its resolver known."""
    engine = door.engine
    ours = {
        attachment.network: attachment
        for attachment in (there.settings.networks or {}).values()
        if attachment.network in door.records.networks
    }
    servers = {} if _asks_us(door, there) else {network: found for network in ours if (found := servers_of(door, network))}
    ends = [(attachment, end) for attachment in ours.values() if (end := _end(door, attachment.endpoint)) is not None]
    if not ends:
        return Followed(servers)
    name = ends[0][1].namespace
    namespace, problem = _renamed(door, engine.state.namespace(name), there)
    labels = _usable(there.config.labels or {})
    if labels != namespace.labels:
        engine.set_labels(namespace.name, labels)
    for attachment, end in ends:
        aliases = _aliases(there, namespace, attachment.aliases or ())
        if aliases != end.aliases:
            engine.set_aliases(end.network, namespace.name, aliases)
    if there.settings.sandbox:
        _reveal(door, namespace, there.settings.sandbox)
    engine.set_resolver(namespace.name, RESOLVER if servers else "", servers=_own_servers(door, there))
    return Followed(servers, problem)


def _end(door: Door, endpoint: str) -> Endpoint | None:
    record = door.records.endpoints.get(endpoint)
    return attached(door.engine, record) if record is not None else None


def _reveal(door: Door, namespace: Namespace, sandbox: str) -> None:
    """That there is no file yet, or no more, or one that is no namespace yet, is for the next event."""
    with contextlib.suppress(NotFound, Invalid):
        door.engine.reveal_namespace(namespace.name, sandbox)
        if not namespace.path:
            door.engine.set_resolver(namespace.name, RESOLVER, servers=namespace.servers)


def _renamed(door: Door, namespace: Namespace, there: Container) -> tuple[Namespace, str]:
    """The namespace by the container's name. Where somebody else has it, with the container's id behind it."""
    wanted = _valid(there.name.removeprefix("/"), there.id)
    marked = f"{wanted[: _LONGEST - _SHORT - 1]}-{there.id[:_SHORT]}"
    if namespace.name == wanted:
        return namespace, ""
    try:
        return door.engine.rename_namespace(namespace.name, wanted), ""
    except (Conflict, Invalid) as error:
        first = error
    problem = f"container {wanted} is called {marked} here: {first.what}"
    if namespace.name == marked:
        return namespace, problem
    try:
        return door.engine.rename_namespace(namespace.name, marked), problem
    except AtollError as error:
        return namespace, f"container {wanted} is called {namespace.name} here: {error.what}"


def _valid(name: str, id_: str) -> str:
    """A container's name as a namespace's: Docker has the same letters and no end."""
    cleaned = _NOT_IN_A_NAME.sub("-", name)
    if len(cleaned) > _LONGEST:
        cleaned = f"{cleaned[: _LONGEST - _SHORT - 1]}-{id_[:_SHORT]}"
    return cleaned if cleaned[:1].isalnum() else id_[:_SHORT]


def _aliases(there: Container, namespace: Namespace, given: Iterable[str]) -> tuple[str, ...]:
    """The names that Docker's resolver answers to, but for the namespace's own."""
    service = (there.config.labels or {}).get(_SERVICE, "")
    names = [there.name.removeprefix("/"), *given, service, there.id[:_SHORT], there.config.hostname]
    return tuple(dict.fromkeys(name for name in names if name != namespace.name and _is_name(name)))


def _is_name(text: str) -> bool:
    try:
        check_name(text, "alias")
    except Invalid:
        return False
    return True


def _usable(labels: dict[str, str]) -> dict[str, str]:
    """Docker takes any text as a label; those that ours can't be are left out."""
    found: dict[str, str] = {}
    for key, value in labels.items():
        with contextlib.suppress(Invalid):
            found |= check_labels({key: value}, "label")
    return found


def _asks_us(door: Door, there: Container) -> bool:
    """Whether its user named one of our gateways with `--dns`: Docker's resolver asks us then, so we must not ask it."""
    return not _gateways(door).isdisjoint(there.host.dns or ())


def _gateways(door: Door) -> set[str]:
    return {address for network in door.engine.state.bridge_networks() for address in network.resolvers()}


def _own_servers(door: Door, there: Container) -> tuple[str, ...]:
    """What `--dns` named, as far as it can be asked from the host; Docker's resolver asks the rest."""
    found: list[str] = []
    for text in there.host.dns or ():
        with contextlib.suppress(ValueError):
            value = ipaddress.ip_address(text)
            if not (value.is_loopback or value.is_unspecified or value.is_multicast or "%" in text or text in _gateways(door)):
                found.append(str(value))
    return tuple(dict.fromkeys(found))[:MAX_SERVERS]


# --- what is kept --------------------------------------------------------------------------------------------------------------------


class _File(Struct, frozen=True):
    path: str
    servers: tuple[str, ...]


def record_file(door: Door, container: str, wanted: tuple[str, tuple[str, ...]] | None) -> None:
    """Keep which file names which servers, or forget it."""
    store = door.engine.store
    with store.transaction():
        store.set_fact(_FILE + container, None if wanted is None else msgspec.json.encode(_File(*wanted)).decode())


def known_files(door: Door) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What was kept, by container."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for container, text in door.engine.store.facts(_FILE).items():
        with contextlib.suppress(msgspec.DecodeError):
            file = msgspec.json.decode(text, type=_File)
            found[container] = file.path, file.servers
    return found


def served(door: Door) -> dict[str, Any]:
    """Docker's networks here, and the namespaces that stand for its containers."""
    state, records = door.engine.state, door.records
    networks = [
        {"id": record.id, "name": state.networks[record.network].name, "made": record.made}
        for record in records.networks.values()
        if record.network in state.networks
    ]
    ends = (attached(door.engine, record) for record in records.endpoints.values())
    return {"networks": networks, "namespaces": sorted({end.namespace for end in ends if end is not None})}
