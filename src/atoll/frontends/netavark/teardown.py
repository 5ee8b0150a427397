"""`netavark teardown`: a container off its networks. All of it is tried, whatever fails; what isn't there is no error.

Networks that were made for Podman are fleeting: they go with their last endpoint, as they do with netavark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.errors import AtollError, Failed
from atoll.frontends.netavark import networks, words

if TYPE_CHECKING:
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
    errors += engine.release_idle()
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
