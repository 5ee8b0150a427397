"""`bridge`: containers on a bridge of the host, under the reference plugin's options.

isGateway, isDefaultGateway   whether the bridge has the gateway's address; whether it is the container's default route
ipMasq                        masquerade; without it what leaves keeps its address (a routed network)
bridge, mtu                   the kernel bridge's name and MTU
portIsolation                 containers don't reach each other (Atoll's --no-icc)
macspoofchk                   Atoll's guard of MAC and IP addresses, which is on unless this says false
hairpinMode, promiscMode      for containers that reach themselves by a published port: they always do
forceAddress, ipMasqBackend, preserveDefaultVlan     nothing to do: addresses are the model's, rules are nftables, there are no VLANs
vlan, vlanTrunk, enabledad, disableContainerInterface    not served
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import field, structs

from atoll.frontends.cni import networks
from atoll.frontends.cni.addressing import read_scheme
from atoll.frontends.cni.attachments import network_named
from atoll.frontends.cni.interfaces import InterfaceConfiguration, attach, check, delete, gc, result
from atoll.frontends.cni.refusal import BAD_CONFIG, Refusal, Unserved
from atoll.frontends.cni.results import Dns, Route

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.engine.network_request import NetworkRequest
    from atoll.frontends.cni.addressing import Scheme
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request

__all__ = ["add", "check", "delete", "gc", "status"]

#: What the reference plugin calls its bridge when it isn't told.
_DEFAULT: Final = "cni0"


class Configuration(InterfaceConfiguration, frozen=True):
    bridge: str = ""
    is_gateway: bool = field(name="isGateway", default=False)
    is_default_gateway: bool = field(name="isDefaultGateway", default=False)
    hairpin: bool = field(name="hairpinMode", default=False)
    promiscuous: bool = field(name="promiscMode", default=False)
    vlan: int = 0
    trunk: Any = field(name="vlanTrunk", default=None)
    guard: bool = field(name="macspoofchk", default=True)
    dad: bool = field(name="enabledad", default=False)
    disabled: bool = field(name="disableContainerInterface", default=False)
    isolation: bool = field(name="portIsolation", default=False)

    @property
    def gateway(self) -> bool:
        return self.is_gateway or self.is_default_gateway


def add(engine: Engine, request: Request) -> Result:
    configuration, scheme = _read(engine, request)
    with networks.joined(engine, _wanted(engine, request, configuration, scheme), scheme) as network:
        if configuration.is_default_gateway:
            scheme = _with_defaults(scheme)
        endpoint = attach(engine, request, network, scheme, mtu=configuration.mtu, mac=configuration.mac(request))
        dns = configuration.dns if configuration.dns != Dns() else scheme.dns
        return result(engine, request, network, endpoint, scheme, dns=dns, bridge=True)


def status(engine: Engine, request: Request) -> None:
    configuration, scheme = _read(engine, request)
    networks.check_ready(engine, _wanted(engine, request, configuration, scheme))


def _read(engine: Engine, request: Request) -> tuple[Configuration, Scheme]:
    """The configuration, if Atoll can serve all of it."""
    found = request.read(Configuration)
    for asked, name, instead in (
        (found.vlan, "vlan", "use a network of its own for each VLAN"),
        (found.trunk, "vlanTrunk", "use a network of its own for each VLAN"),
        (found.dad, "enabledad", "no two containers of a network get one address"),
        (found.disabled, "disableContainerInterface", "leave it out"),
    ):
        if asked:
            raise Unserved(f"bridge: Atoll doesn't do {name}", instead)
    if found.hairpin and found.promiscuous:
        raise Refusal(BAD_CONFIG, "cannot set hairpin mode and promiscuous mode at the same time")
    scheme = read_scheme(request)
    if not scheme.kind and network_named(engine, request.network) is None:
        raise Unserved(
            "bridge: Atoll makes no bridge without addresses", "add an ipam section, or make the network with atoll network create"
        )
    return found, scheme.with_gateways() if found.gateway else scheme


def _wanted(engine: Engine, request: Request, configuration: Configuration, scheme: Scheme) -> NetworkRequest:
    reach = configuration.reach()
    options: dict[str, str] = reach["options"]
    name = configuration.bridge or _DEFAULT
    if configuration.bridge or not any(name in network.bridges() for network in engine.state.networks.values()):
        options["bridge"] = name
    if not configuration.gateway:
        options |= {"inhibit-ipv4": "true", "inhibit-ipv6": "true"}
    return networks.requested(
        request.network,
        "bridge",
        scheme,
        mtu=configuration.mtu,
        icc=not configuration.isolation,
        guard=configuration.guard,
        **reach,
    )


def _with_defaults(scheme: Scheme) -> Scheme:
    """A default route by the gateway of each family that has none yet (bridge.go:calcGateways)."""
    routes = list(scheme.routes)
    for group in scheme.sets:
        dst = "0.0.0.0/0" if group[0].subnet.version == 4 else "::/0"
        if not any(route.dst == dst for route in routes):
            routes.append(Route(dst, gw=str(group[0].gateway)))
    return structs.replace(scheme, routes=tuple(routes))
