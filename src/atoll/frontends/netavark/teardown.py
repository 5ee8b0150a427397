"""`netavark teardown`: a container off its networks. All of it is tried, whatever fails; what isn't there is no error.

Networks that were made for Podman are fleeting: they go with their last endpoint, as they do with netavark.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from atoll.errors import AtollError, Failed
from atoll.frontends.netavark import networks, words
from atoll.kernel import rtnl
from atoll.plan.execute import dismantle
from atoll.plan.operations import HOST, LinkDelete, Plan

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.model import Endpoint, Network


def is_ours(engine: Engine, container: words.Container) -> bool:
    """Whether anything of this container is under our care."""
    return bool(engine.state.owned(networks.owner(container.container_id)))


def is_also_anothers(engine: Engine, container: words.Container) -> bool:
    """Whether the container is on networks that netavark had put it on before it came under our care as well: `podman network connect`
    after the switch. Then it has interfaces of that call that aren't ours."""
    mine = engine.state.owned(networks.owner(container.container_id))
    ours = {engine.state.network(endpoint.network).name for endpoint in mine}
    others = {per.interface_name for name, per in container.named() if name not in ours}
    inside: set[str] = set()
    for name in {endpoint.namespace for endpoint in mine} if others else ():
        with contextlib.suppress(AtollError, OSError), engine.host.socket_in(name) as sock:  # unless it has ended
            inside |= {link.name for link in rtnl.links(sock)}
    return bool(others & inside)


def teardown(engine: Engine, container: words.Container) -> None:
    """Take the container off the networks that are named, described or not. Raises one error that names all there were."""
    named = {name for name, _ in container.named()}
    leaving: list[Endpoint] = []
    staying: list[Endpoint] = []
    for endpoint in engine.state.owned(networks.owner(container.container_id)):
        (leaving if engine.state.network(endpoint.network).name in named else staying).append(endpoint)
    errors: list[AtollError] = []
    former = _bridges_of_netavark(engine, container)
    for namespace in dict.fromkeys(endpoint.namespace for endpoint in leaving):
        errors += leave(engine, namespace, [endpoint for endpoint in leaving if endpoint.namespace == namespace])
    if staying:
        errors += _publish_elsewhere(engine, leaving, staying)
    errors += engine.release_idle()
    errors += _remove_bridges(engine, former)
    if errors:
        raise errors[0] if len(errors) == 1 else Failed("; ".join(error.what for error in errors))


def leave(engine: Engine, name: str, leaving: list[Endpoint]) -> list[AtollError]:
    """Let the whole namespace go if nothing else holds it, which costs less than one endpoint after the other."""
    namespace = engine.state.namespaces.get(name)
    ids = {endpoint.id for endpoint in leaving}
    others = [endpoint for endpoint in engine.state.endpoints_of(name) if endpoint.id not in ids]
    try:
        if namespace is not None and namespace.kind == "adopted" and namespace.source.startswith(f"{networks.PODMAN}:") and not others:
            engine.remove_namespace(name, ending=True)
            return []
    except AtollError as error:
        return [error]
    errors: list[AtollError] = []
    for endpoint in leaving:
        try:
            engine.disconnect(endpoint.network, name)
        except AtollError as error:
            errors.append(error)
    return errors


def _publish_elsewhere(engine: Engine, gone: list[Endpoint], staying: list[Endpoint]) -> list[AtollError]:
    """What was published on a network that the container has left is published on one that it stays on, if that can."""
    ports = [port for endpoint in gone for port in endpoint.ports]
    able = [endpoint for endpoint in staying if _can_publish(engine.state.network(endpoint.network))]
    if not ports or not able:
        return []
    heir = min(able, key=lambda endpoint: (endpoint.created, endpoint.number))
    specs = [str(port) for port in ports if not port.host_version or heir.address(port.host_version)]
    try:
        if specs:
            engine.publish(heir.namespace, specs, network=heir.network, ports_held=True)
    except AtollError as error:
        return [error]
    return []


def _can_publish(network: Network) -> bool:
    return network.driver == "bridge" and not network.internal


def _bridges_of_netavark(engine: Engine, container: words.Container) -> set[str]:
    """The bridges of the call's networks that were there before those came under our care, and that netavark would remove."""
    asked = [container.network_info[name] for name, _ in container.named() if name in container.network_info]
    managed = {network.name for network in asked if (network.options or {}).get("mode") != "unmanaged"}
    ours = [network for network in engine.state.networks.values() if network.name in managed and network.fleeting]
    return {network.bridge for network in ours if network.driver == "bridge" and not network.made_bridge}


def _remove_bridges(engine: Engine, names: set[str]) -> list[AtollError]:
    """Such a bridge goes with its last port, whoever's that was."""
    if not names:
        return []
    links = engine.links()
    used = {bridge for network in engine.state.networks.values() for bridge in network.bridges()}
    idle = [name for name in names - used if name in links and not any(link.master == links[name].ifindex for link in links.values())]
    return dismantle(engine.host, Plan(tuple(LinkDelete(HOST, name) for name in idle)))
