"""`netavark teardown`: a container off its networks. All of it is tried, whatever fails; what isn't there is no error.

Networks that were made for Podman go with their last endpoint, as they do with netavark. So they also go when the last container has
ended without a teardown, or after Podman was given back to netavark (`release_networks`, which the daemon calls as well).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.errors import AtollError, Conflict, Failed
from atoll.frontends.netavark import networks, words
from atoll.plan.execute import dismantle
from atoll.plan.operations import HOST, LinkDelete, Plan

if TYPE_CHECKING:
    from collections.abc import Collection

    from atoll.engine import Engine
    from atoll.model import Endpoint, Network


def is_ours(engine: Engine, container: words.Container) -> bool:
    """Whether anything of this container is under our care."""
    return bool(engine.state.owned(networks.owner(container.container_id)))


def teardown(engine: Engine, container: words.Container) -> None:
    """Take the container off the networks that are named. Raises one error that names all there were."""
    named = {network.name for network, _ in container.attachments()}
    leaving: list[Endpoint] = []
    staying: list[Endpoint] = []
    for endpoint in engine.state.owned(networks.owner(container.container_id)):
        (leaving if engine.state.network(endpoint.network).name in named else staying).append(endpoint)
    errors: list[AtollError] = []
    for namespace in dict.fromkeys(endpoint.namespace for endpoint in leaving):
        errors += _leave(engine, namespace, [endpoint for endpoint in leaving if endpoint.namespace == namespace])
    if staying:
        errors += _publish_elsewhere(engine, leaving, staying)
    errors += release_networks(engine, {*named})
    if errors:
        raise errors[0] if len(errors) == 1 else Failed("; ".join(error.what for error in errors))


def _leave(engine: Engine, name: str, leaving: list[Endpoint]) -> list[AtollError]:
    """Let the whole namespace go if nothing else holds it, which costs less than one endpoint after the other."""
    namespace = engine.state.namespaces.get(name)
    ids = {endpoint.id for endpoint in leaving}
    others = [endpoint for endpoint in engine.state.endpoints_of(name) if endpoint.id not in ids]
    try:
        if namespace is not None and namespace.kind == "adopted" and namespace.source.startswith(f"{networks.PODMAN}:") and not others:
            engine.remove_namespace(name)
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


def release_networks(engine: Engine, names: Collection[str] | None = None) -> list[AtollError]:
    """Remove the networks that were made for Podman and that nobody is on any more; of all, or of those named."""
    errors: list[AtollError] = []
    for network in list(engine.state.networks.values()):
        if network.labels.get(networks.DOOR) != networks.PODMAN or engine.state.count_on(network) or network.state != "ready":
            continue
        if names is not None and network.name not in names:
            continue
        try:
            engine.remove_network(network.id)
            if network.driver == "bridge" and not network.made_bridge:
                _remove_bridge(engine, network.bridge)
        except Conflict:
            continue
        except AtollError as error:
            errors.append(error)
    return errors


def _remove_bridge(engine: Engine, name: str) -> None:
    """A bridge that netavark had made before us goes with its last port, whoever's that was."""
    links = engine.links()
    bridge = links.get(name)
    if bridge is not None and not any(link.master == bridge.ifindex for link in links.values()):
        dismantle(engine.host, Plan((LinkDelete(HOST, name),)))
