"""`netavark setup`: a container's namespace on its networks.

Everything is checked before anything is touched; what fails undoes all that was done before it, newest first.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from msgspec import structs

from atoll.errors import AtollError, Conflict, Invalid
from atoll.frontends.netavark import networks, words
from atoll.frontends.netavark.teardown import leave
from atoll.kernel import rtnl
from atoll.model import MAX_SERVERS, interface
from atoll.plan.operations import LinkSet, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from atoll.engine import Engine
    from atoll.frontends.netavark.networks import Attachment
    from atoll.model import Endpoint, Namespace, Network


def setup(engine: Engine, path: str, container: words.Container) -> dict[str, words.Status]:
    """Put the namespace at `path` on the container's networks: what netavark answers, by network."""
    wanted = [networks.attachment(network, per, container, lambda: _way_out(engine)) for network, per in container.attachments()]
    if not wanted:
        return {}
    owner = networks.owner(container.container_id)
    _check_path(path)
    _let_go_of_the_past(engine, owner, path)
    _check_networks(engine, wanted)
    published = _publications(engine, owner, wanted, container)
    with ExitStack() as undo:
        namespace = engine.namespace_at(path) or _adopt(engine, path, container, undo)
        found = {}
        for each in wanted:
            network = _network(engine, each, undo)
            found[network.name] = _connect(engine, network, namespace, each, published.get(each.name, []), undo)
        undo.pop_all()
    servers = words.addresses(container.dns_servers)
    return {each.name: _status(engine, each, found[each.name], servers) for each in wanted}


# --- before ---------------------------------------------------------------------------------------------------------------------------


def _way_out(engine: Engine) -> str:
    """The interface of the host's default route, on which a macvlan or ipvlan network hangs that names none."""
    links = {link.ifindex: link.name for link in engine.links().values()}
    for row in rtnl.routes(engine.host.rtnl):
        if row.destination is None and row.table == rtnl.TABLE_MAIN and row.ifindex in links:
            return links[row.ifindex]
    raise Invalid("failed to get default route interface", "name the network's parent, or give the host a default route")


def _check_path(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise Invalid(f"invalid namespace path {path[:80]!r}", "expected an absolute path")
    try:
        os.stat(path)
    except OSError as error:
        raise Invalid(f"invalid namespace path: IO error: {error.strerror} (os error {error.errno})") from None


def _let_go_of_the_past(engine: Engine, owner: str, path: str) -> None:
    """A container has one namespace. If it has another one by now, the one that we know has ended, or Podman has forgotten it."""
    former = {endpoint.namespace for endpoint in engine.state.owned(owner)}
    here = engine.namespace_at(path)
    if former - {here.name if here is not None else ""}:
        engine.release_vanished()
        stale = [endpoint for endpoint in engine.state.owned(owner) if here is None or endpoint.namespace != here.name]
        for namespace in {endpoint.namespace for endpoint in stale}:
            leave(engine, namespace, [endpoint for endpoint in stale if endpoint.namespace == namespace])


def _check_networks(engine: Engine, wanted: Sequence[Attachment]) -> None:
    for each in wanted:
        found = _find(engine, each.name)
        bridge = each.request.options.get("bridge", "")
        if each.unmanaged and bridge not in engine.links():
            raise Invalid("in unmanaged mode, the bridge must already exist on the host", f"there is no {bridge}")
        if found is not None:
            networks.check_same(found, each)
        elif len(wanted) > 1:  # a single one is checked when it is made
            engine.plan_create_network(**structs.asdict(each.request))


def _find(engine: Engine, name: str) -> Network | None:
    """By its name alone: an id of Atoll's may be a name of Podman's."""
    return next((network for network in engine.state.networks.values() if network.name == name), None)


def _publications(engine: Engine, owner: str, wanted: Sequence[Attachment], container: words.Container) -> dict[str, list[str]]:
    """Which network's endpoint publishes what: for each family the first that can, as one port leads to one address only.

    What a container publishes on a network that it is on already stays there.
    """
    if any(endpoint.ports for endpoint in engine.state.owned(owner)):
        return {}
    ways = [(each.name, sorted({prefix.version for prefix in each.prefixes})) for each in wanted if each.publishes]
    return networks.spread(container.port_mappings, ways)


# --- doing ----------------------------------------------------------------------------------------------------------------------------


def _adopt(engine: Engine, path: str, container: words.Container, undo: ExitStack) -> Namespace:
    name = engine.free_name(container.container_name or container.container_id)
    labels = {"podman.id": container.container_id}
    if container.container_name.isprintable():
        labels["podman.name"] = container.container_name[:255]
    servers = tuple(dict.fromkeys(words.addresses(container.dns_servers)))[:MAX_SERVERS]
    namespace = engine.adopt_namespace(
        name, path=path, follow=True, source=networks.owner(container.container_id), labels=labels, servers=servers
    )
    undo.callback(_quietly, lambda: engine.remove_namespace(name))
    engine.do(Plan((LinkSet(name, "lo", up=True),)))
    return namespace


def _network(engine: Engine, wanted: Attachment, undo: ExitStack) -> Network:
    found = _find(engine, wanted.name)
    if found is not None:
        return engine.serve_names(found.name, domains=(networks.DOMAIN,)) if wanted.dns and found.resolvers() else found
    made = engine.create_network_explained(wanted.request).network
    undo.callback(_quietly, engine.release_idle)
    return made


def _connect(engine: Engine, network: Network, namespace: Namespace, wanted: Attachment, publish: list[str], undo: ExitStack) -> Endpoint:
    def connect() -> Endpoint:
        return engine.connect(network.name, namespace.name, publish=publish, ports_held=bool(publish), **wanted.connect)

    try:
        made = connect()
    except Conflict:
        # What stands in the way may have ended a moment ago: another container, or this one's former interface.
        engine.release_vanished()
        engine.settle()
        made = connect()
    undo.callback(_quietly, lambda: engine.disconnect(network.name, namespace.name))
    return made


def _quietly(function: Callable[[], object]) -> None:
    """Undoing goes on after an error: the first one is what Podman is told."""
    with contextlib.suppress(AtollError):
        function()


# --- after ----------------------------------------------------------------------------------------------------------------------------


def _status(engine: Engine, wanted: Attachment, endpoint: Endpoint, servers: tuple[str, ...]) -> words.Status:
    network = engine.state.network(endpoint.network)
    gateways = wanted.gateways | {s.subnet: s.gateway or None for s in network.subnets if s.subnet not in wanted.gateways}
    interface = words.NetInterface(_mac(engine, network, endpoint), tuple(_addresses(endpoint, gateways)))
    resolvers = network.resolvers() if wanted.dns else ()
    return words.Status(
        dns_search_domains=(networks.DOMAIN,) if resolvers else (),
        dns_server_ips=resolvers or servers,
        interfaces={endpoint.interface: interface},
    )


def _addresses(endpoint: Endpoint, gateways: dict[str, str | None]) -> list[words.NetAddress]:
    """In the order of the subnets."""
    found = [(str(interface(text).network), text) for text in endpoint.addresses]
    return [words.NetAddress(text, gateway) for subnet, gateway in gateways.items() for inside, text in found if inside == subnet]


def _mac(engine: Engine, network: Network, endpoint: Endpoint) -> str:
    """An ipvlan interface has its parent's."""
    parent = engine.links().get(network.parent) if network.driver == "ipvlan" else None
    return parent.mac if parent is not None else endpoint.mac
