"""The `none` network: a namespace that is on it has its loopback interface and nothing else.

The `host` network has no endpoints of its own (a process on it simply stays in the host's namespace), so it shares this driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.plan.operations import LinkSet, Operation

if TYPE_CHECKING:
    from atoll.model import Endpoint, Namespace, Network


def network_up(network: Network) -> list[Operation]:
    del network
    return []


def network_down(network: Network) -> list[Operation]:
    del network
    return []


def endpoint_up(network: Network, endpoint: Endpoint, namespace: Namespace) -> list[Operation]:
    del network, endpoint
    return [] if namespace.is_external else [LinkSet(namespace.name, "lo", up=True)]


def endpoint_down(network: Network, endpoint: Endpoint, namespace: Namespace) -> list[Operation]:
    del network, endpoint, namespace
    return []
