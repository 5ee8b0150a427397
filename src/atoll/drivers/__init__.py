"""Drivers: what a network and an endpoint mean as operations. Pure: from the model to plans.

Each driver is a module with the same four functions:

    network_up(network)                       what makes the network
    network_down(network)                     what takes it away
    endpoint_up(network, endpoint, namespace) what attaches an endpoint
    endpoint_down(network, endpoint, namespace)

What goes up says the whole wanted state, so the same operations are what is held against the kernel to find damage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from atoll.drivers import bridge, children, none

if TYPE_CHECKING:
    from atoll.model import Endpoint, Namespace, Network
    from atoll.plan.operations import Operation


class Driver(Protocol):
    def network_up(self, network: Network) -> list[Operation]: ...
    def network_down(self, network: Network) -> list[Operation]: ...
    def endpoint_up(self, network: Network, endpoint: Endpoint, namespace: Namespace) -> list[Operation]: ...
    def endpoint_down(self, network: Network, endpoint: Endpoint, namespace: Namespace) -> list[Operation]: ...


_DRIVERS: Final[dict[str, Driver]] = {"bridge": bridge, "macvlan": children, "ipvlan": children, "none": none, "host": none}


def of(network: Network) -> Driver:
    """The driver of a network."""
    return _DRIVERS[network.driver]
