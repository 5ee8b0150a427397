"""`atoll`: all in one plugin. A network of Atoll's, made as `network` says (the words of `atoll network create`) or there already, with
what others need a chain of plugins for: addresses, ports, bandwidth, names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct, field, structs

from atoll.engine.network_request import NetworkRequest
from atoll.frontends.cni import networks
from atoll.frontends.cni.addressing import read_scheme
from atoll.frontends.cni.interfaces import InterfaceConfiguration, attach, check, delete, gc, result
from atoll.frontends.cni.refusal import BAD_CONFIG, Refusal, convert
from atoll.frontends.cni.results import Dns

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.cni.addressing import Scheme
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request
    from atoll.model import Network

__all__ = ["add", "check", "delete", "gc", "status"]


class PortMapping(Struct, frozen=True):
    """The capability `portMappings` (CONVENTIONS.md of the spec)."""

    host_port: int = field(name="hostPort", default=0)
    port: int = field(name="containerPort", default=0)
    protocol: str = "tcp"
    host_ip: str = field(name="hostIP", default="")

    def spec(self) -> str:
        """As `connect` takes it. Raises `Refusal`."""
        for number, what in ((self.host_port, "hostPort"), (self.port, "containerPort")):
            if not 0 < number < 65536:
                raise Refusal(BAD_CONFIG, f"portMappings: {what} {number} is out of range", "1 to 65535")
        host = f"[{self.host_ip}]:" if ":" in self.host_ip else f"{self.host_ip}:" if self.host_ip else ""
        return f"{host}{self.host_port}:{self.port}/{self.protocol.lower() or 'tcp'}"


class Bandwidth(Struct, frozen=True):
    """The capability `bandwidth`: bits a second, and bits of a burst. 0 is no limit. Ingress is what the container receives."""

    ingress_rate: int = field(name="ingressRate", default=0)
    ingress_burst: int = field(name="ingressBurst", default=0)
    egress_rate: int = field(name="egressRate", default=0)
    egress_burst: int = field(name="egressBurst", default=0)


class _Dns(Struct, frozen=True):
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class _Runtime(Struct, frozen=True):
    mac: str = ""
    ports: tuple[PortMapping, ...] = field(name="portMappings", default=())
    bandwidth: Bandwidth = Bandwidth()
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
    runtime = configuration.runtime
    with networks.joined(engine, _wanted(request, configuration, scheme), scheme) as network:
        endpoint = attach(
            engine,
            request,
            network,
            scheme,
            mac=configuration.mac(request),
            aliases=runtime.aliases_on(request.network),
            publish=[port.spec() for port in runtime.ports if port.host_port],
            ingress_rate=_rate(runtime.bandwidth.ingress_rate),
            egress_rate=_rate(runtime.bandwidth.egress_rate),
            servers=runtime.dns.servers,
            default_route=True,
        )
        dns = _dns(network, configuration)
        return result(engine, request, network, endpoint, scheme, dns=dns, bridge=network.driver == "bridge")


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


def _rate(bits: int) -> str:
    return f"{bits}bit" if bits else ""


def _dns(network: Network, configuration: Configuration) -> Dns:
    """Atoll's resolvers, which answer for the network's names and pass the rest on; where it has none, what the configuration says."""
    runtime = configuration.runtime.dns
    servers = network.resolvers() or runtime.servers or configuration.dns.nameservers
    search = (*((f"{network.name}.atoll",) if network.resolvers() else ()), *(runtime.searches or configuration.dns.search))
    return Dns(servers, configuration.dns.domain, search, runtime.options or configuration.dns.options)
