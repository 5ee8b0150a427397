"""What of Atoll's is Docker's to change. Asked before people's own words are carried out, so that nobody takes it away by mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.errors import Conflict
from atoll.frontends.docker.records import known_networks

if TYPE_CHECKING:
    from atoll.engine import Engine


def claimed(engine: Engine) -> set[str]:
    """The ids of Atoll's networks that are Docker's as well, whether they were made for it or joined."""
    return {network.network for network in known_networks(engine.store).values()}


def check_removable(engine: Engine, name: str) -> None:
    """Raises `Conflict` for a network that Docker would go on to offer."""
    network = engine.state.network(name)
    if network.id in claimed(engine):
        raise Conflict(f"network {network.name} is one of Docker's", f"docker network rm {network.name}, or --force")


def check_connectable(engine: Engine, network: str, namespace: str) -> None:
    """Raises `Conflict` for a container whose inside Docker sets up: what we connect would never get there."""
    known = engine.state.namespaces.get(namespace)
    if known is not None and known.is_external:
        raise Conflict(f"Docker sets up what is inside {namespace}", f"docker network connect {network} {namespace}")
