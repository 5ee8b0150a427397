"""`macvlan`: an interface of the container's own on the network that a host interface (`master`) is on, past the host's stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import field

from atoll.frontends.cni import networks
from atoll.frontends.cni.addressing import read_scheme
from atoll.frontends.cni.interfaces import InterfaceConfiguration, attach, check, delete, gc, result
from atoll.frontends.cni.refusal import BAD_CONFIG, Refusal, Unserved
from atoll.frontends.cni.results import Dns
from atoll.kernel import rtnl

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.engine.network_request import NetworkRequest
    from atoll.frontends.cni.addressing import Scheme
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request

__all__ = ["add", "check", "delete", "gc", "status"]


class Configuration(InterfaceConfiguration, frozen=True):
    master: str = ""
    mode: str = "bridge"
    link_in_container: bool = field(name="linkInContainer", default=False)


def add(engine: Engine, request: Request) -> Result:
    configuration, scheme = _read(request)
    with networks.joined(engine, _wanted(engine, request, configuration, scheme), scheme) as network:
        endpoint = attach(engine, request, network, scheme, mtu=configuration.mtu, mac=configuration.mac(request))
        dns = configuration.dns if configuration.dns != Dns() else scheme.dns
        return result(engine, request, network, endpoint, scheme, dns=dns, bridge=False)


def status(engine: Engine, request: Request) -> None:
    networks.check_ready(engine, _wanted(engine, request, *_read(request)))


def _read(request: Request) -> tuple[Configuration, Scheme]:
    found = request.read(Configuration)
    if found.link_in_container:
        raise Unserved("macvlan: Atoll makes none on an interface of a container", "use an interface of the host as master")
    scheme = read_scheme(request)
    if not scheme.kind:
        raise Unserved("macvlan: Atoll makes none without addresses", "add an ipam section")
    return found, scheme


def _wanted(engine: Engine, request: Request, configuration: Configuration, scheme: Scheme) -> NetworkRequest:
    options = {"parent": configuration.master or _way_out(engine), "mode": configuration.mode or "bridge"}
    return networks.requested(request.network, "macvlan", scheme, mtu=configuration.mtu, options=options)


def _way_out(engine: Engine) -> str:
    """The interface of the host's default route, which the reference plugin takes when it isn't told a master."""
    names = {link.ifindex: link.name for link in rtnl.links(engine.host.rtnl)}
    for row in rtnl.routes(engine.host.rtnl):
        if row.destination is None and row.table == rtnl.TABLE_MAIN and row.ifindex in names:
            return names[row.ifindex]
    raise Refusal(BAD_CONFIG, "macvlan: no master was named and the host has no default route", "name the host's interface as master")
