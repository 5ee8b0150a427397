"""`ptp`: each container on a pair of its own with the host, and through the host to the others of its network.

In Atoll that is a bridge network whose bridge the container need not know of: who reaches whom is the same (every container of the network
by its address, the host by the gateway's), and so is what the container sees but for one thing: its neighbours answer it directly and not
by the host's routing, so broadcasts reach them, too. Addresses can't be forged on the way, which is what the pairs are mostly used for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.frontends.cni import networks
from atoll.frontends.cni.addressing import read_scheme
from atoll.frontends.cni.interfaces import InterfaceConfiguration, attach, check, delete, gc, result
from atoll.frontends.cni.refusal import BAD_CONFIG, Refusal
from atoll.frontends.cni.results import Dns

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.engine.network_request import NetworkRequest
    from atoll.frontends.cni.addressing import Scheme
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request

__all__ = ["add", "check", "delete", "gc", "status"]


def add(engine: Engine, request: Request) -> Result:
    configuration, scheme = _read(request)
    with networks.joined(engine, _wanted(request, configuration, scheme), scheme) as network:
        endpoint = attach(engine, request, network, scheme, mtu=configuration.mtu, mac=configuration.mac(request))
        dns = configuration.dns if configuration.dns != Dns() else scheme.dns
        return result(engine, request, network, endpoint, scheme, dns=dns, bridge=False)


def status(engine: Engine, request: Request) -> None:
    networks.check_ready(engine, _wanted(request, *_read(request)))


def _read(request: Request) -> tuple[InterfaceConfiguration, Scheme]:
    scheme = read_scheme(request)
    if not scheme.kind:
        raise Refusal(BAD_CONFIG, "ptp needs addresses", "add an ipam section")
    return request.read(InterfaceConfiguration), scheme.with_gateways()


def _wanted(request: Request, configuration: InterfaceConfiguration, scheme: Scheme) -> NetworkRequest:
    return networks.requested(request.network, "bridge", scheme, mtu=configuration.mtu, **configuration.reach())
