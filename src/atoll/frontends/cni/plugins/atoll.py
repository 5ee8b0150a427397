"""`atoll`: all in one plugin. A network of Atoll's, made as `network` says (the words of `atoll network create`) or there already, with
what others need a chain of plugins for: addresses, ports, bandwidth, settings, names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field, structs

from atoll.engine.network_request import NetworkRequest
from atoll.frontends.cni import interfaces, networks
from atoll.frontends.cni.addressing import read_scheme
from atoll.frontends.cni.attachments import find, kept_if_whole, require
from atoll.frontends.cni.chained import fail
from atoll.frontends.cni.interfaces import InterfaceConfiguration, attach, gc, result
from atoll.frontends.cni.plugins import bandwidth, portmap
from atoll.frontends.cni.plugins.bandwidth import limits_asked, rate
from atoll.frontends.cni.plugins.portmap import ports_asked
from atoll.frontends.cni.plugins.tuning import tuning_asked
from atoll.frontends.cni.refusal import BAD_CONFIG, Refusal, convert
from atoll.frontends.cni.results import Dns
from atoll.model import Tuning

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.cni.addressing import Scheme
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request
    from atoll.model import Network

__all__ = ["add", "check", "delete", "gc", "status"]


#: What runtimes that don't know a network's families ask for: each is published where it means something.
_WILDCARDS: Final = {"0.0.0.0": 4, "::": 6}


class _Dns(Struct, frozen=True):
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class _Runtime(Struct, frozen=True):
    mac: str = ""
    dns: _Dns = _Dns()
    aliases: tuple[str, ...] | dict[str, tuple[str, ...]] = ()

    def aliases_on(self, network: str) -> tuple[str, ...]:
        """A list, or, as Podman has it, a list for each network."""
        return self.aliases.get(network, ()) if isinstance(self.aliases, dict) else self.aliases


class Configuration(InterfaceConfiguration, frozen=True):
    network: Any = None
    runtime: _Runtime = field(name="runtimeConfig", default=_Runtime())  # type: ignore[assignment]


def add(engine: Engine, request: Request) -> Result:
    configuration, scheme = request.read(Configuration), read_scheme(request)
    ports, limits, tuning = ports_asked(request), limits_asked(request), _tuning(request)
    runtime = configuration.runtime
    with networks.joined(engine, _wanted(request, configuration, scheme), scheme) as network:
        endpoint = attach(
            engine,
            request,
            network,
            scheme,
            mtu=configuration.mtu,
            mac=configuration.mac(request),
            aliases=runtime.aliases_on(request.network),
            publish=[str(port) for port in ports if port.host_ip not in _WILDCARDS or network.has(_WILDCARDS[port.host_ip])],
            ingress_rate=rate(limits.ingress_rate),
            egress_rate=rate(limits.egress_rate),
            servers=runtime.dns.servers,
            default_route=True,
        )
        if tuning != Tuning():
            with kept_if_whole(engine, network, endpoint):
                engine.tune(network.id, endpoint.namespace, tuning, interface=endpoint.interface)
        dns = _dns(network, configuration)
        return result(engine, request, network, endpoint, scheme, dns=dns, bridge=network.driver == "bridge")


def delete(engine: Engine, request: Request) -> None:
    found = find(engine, request)
    if found is not None:
        engine.untune(found[0].id, found[1].namespace, interface=found[1].interface)
    interfaces.delete(engine, request)


def check(engine: Engine, request: Request) -> None:
    """As each plugin of the chain that it stands for checks it."""
    interfaces.check(engine, request)
    portmap.check(engine, request)
    bandwidth.check(engine, request)
    tuning = _tuning(request)
    if tuning != Tuning():
        network, endpoint = require(engine, request)
        fail(engine.tuning_faults(network.id, endpoint.namespace, tuning, interface=endpoint.interface))


def status(engine: Engine, request: Request) -> None:
    networks.check_ready(engine, _wanted(request, request.read(Configuration), read_scheme(request)))


def _wanted(request: Request, configuration: Configuration, scheme: Scheme) -> NetworkRequest:
    said = configuration.network if configuration.network is not None else {}
    if not isinstance(said, dict):
        raise Refusal(BAD_CONFIG, "network is not an object", "expected the options of atoll network create, such as subnets")
    asked = convert(NetworkRequest, said | {"name": request.network})
    if configuration.mtu:
        asked = structs.replace(asked, mtu=configuration.mtu)
    if not scheme.kind:
        return asked
    addresses = networks.requested(request.network, asked.driver, scheme.with_gateways() if asked.driver == "bridge" else scheme)
    return structs.replace(
        asked, subnets=addresses.subnets, gateways=addresses.gateways, ip_ranges=addresses.ip_ranges, ipv4=addresses.ipv4
    )


def _tuning(request: Request) -> Tuning:
    """MAC address and MTU are given to the interface when it is made."""
    return structs.replace(tuning_asked(request), mac="", mtu=0)


def _dns(network: Network, configuration: Configuration) -> Dns:
    """Atoll's resolvers, which answer for the network's names and pass the rest on; where it has none, what the configuration says."""
    runtime = configuration.runtime.dns
    servers = network.resolvers() or runtime.servers or configuration.dns.nameservers
    search = (*((f"{network.name}.atoll",) if network.resolvers() else ()), *(runtime.searches or configuration.dns.search))
    return Dns(servers, configuration.dns.domain, search, runtime.options or configuration.dns.options)
