"""portmap: publishes ports of the attachment on the host (reference: plugins/meta/portmap; capability portMappings).

What `snat`, `masqAll`, `markMasqBit`, `externalSetMarkChain` and `backend` steer has no counterpart: a client's address is kept wherever
the kernel allows it, and no marks are used. They are checked, and do nothing. `conditionsV4` and `conditionsV6` narrow who may come, so
leaving them out unsaid would open more than was meant: they are refused.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from msgspec import Struct, field

from atoll.frontends.cni.attachments import require
from atoll.frontends.cni.chained import each_stale, fail, previous
from atoll.frontends.cni.refusal import BAD_CONFIG, Refusal
from atoll.model import PROTOCOLS, PublishedPort

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request
    from atoll.model import Endpoint, Network


class _Mapping(Struct, frozen=True):
    host_port: int = field(name="hostPort", default=0)
    container_port: int = field(name="containerPort", default=0)
    protocol: str = "tcp"
    host_ip: str = field(name="hostIP", default="")


class _Runtime(Struct, frozen=True):
    mappings: tuple[_Mapping, ...] = field(name="portMappings", default=())


class _Configuration(Struct, frozen=True):
    runtime: _Runtime = field(name="runtimeConfig", default=_Runtime())
    snat: bool = True
    masq_all: bool = field(name="masqAll", default=False)
    mark_bit: int | None = field(name="markMasqBit", default=None)
    mark_chain: str | None = field(name="externalSetMarkChain", default=None)
    conditions_v4: tuple[str, ...] = field(name="conditionsV4", default=())
    conditions_v6: tuple[str, ...] = field(name="conditionsV6", default=())
    backend: str = ""


def add(engine: Engine, request: Request) -> Result:
    result = previous(request)
    ports = ports_asked(request)
    if ports:
        network, endpoint = require(engine, request)
        specs = [str(port) for port in _served(endpoint, ports) if port not in endpoint.ports]
        if specs:
            engine.publish(endpoint.namespace, specs, network=network.id, interface=endpoint.interface)
    return result


def delete(engine: Engine, request: Request) -> None:
    _unpublish(engine, *require(engine, request))


def check(engine: Engine, request: Request) -> None:
    ports = ports_asked(request)
    if ports:
        network, endpoint = require(engine, request)
        missing = [port for port in _served(endpoint, ports) if port not in endpoint.ports]
        fail([f"{port} is not published" for port in missing] or engine.rule_faults(network, endpoint))


def gc(engine: Engine, request: Request) -> None:
    each_stale(engine, request, lambda network, endpoint: _unpublish(engine, network, endpoint))


def status(engine: Engine, request: Request) -> None:
    del engine
    ports_asked(request)


# --- parts ---------------------------------------------------------------------------------------------------------------------------


def _unpublish(engine: Engine, network: Network, endpoint: Endpoint) -> None:
    """The interface itself goes next, most of the time: what is left to be forgotten is forgotten with it."""
    ports = [str(port) for port in endpoint.ports]
    if ports:
        engine.unpublish(endpoint.namespace, ports, network=network.id, interface=endpoint.interface, ending=True)


def ports_asked(request: Request) -> list[PublishedPort]:
    """What is to be published, with everything that the configuration says checked."""
    found = request.read(_Configuration)
    if found.conditions_v4 or found.conditions_v6:
        raise Refusal(BAD_CONFIG, "portmap: Atoll knows no conditionsV4 and conditionsV6", "publish on a hostIP, or leave them out")
    if found.mark_bit is not None and found.mark_chain is not None:
        raise Refusal(BAD_CONFIG, "Cannot specify externalSetMarkChain and markMasqBit")
    if found.mark_bit is not None and not 0 <= found.mark_bit <= 31:
        raise Refusal(BAD_CONFIG, "MasqMarkBit must be between 0 and 31")
    if found.backend not in ("", "iptables", "nftables"):
        raise Refusal(
            BAD_CONFIG, f"unrecognized portmap backend {found.backend[:40]!r}", "iptables or nftables; neither makes a difference"
        )
    return list(dict.fromkeys(_port(one) for one in found.runtime.mappings))


def _port(mapping: _Mapping) -> PublishedPort:
    for number, what in ((mapping.host_port, "host"), (mapping.container_port, "container")):
        if not 1 <= number <= 65535:
            raise Refusal(BAD_CONFIG, f"Invalid {what} port number: {number}", "1 to 65535")
    protocol = mapping.protocol.lower() or "tcp"
    if protocol not in PROTOCOLS:
        raise Refusal(BAD_CONFIG, f"unknown protocol {mapping.protocol[:40]!r} in portMappings", "tcp, udp or sctp")
    host_ip = ""
    if mapping.host_ip:
        try:
            host_ip = str(ipaddress.ip_address(mapping.host_ip))
        except ValueError:
            raise Refusal(BAD_CONFIG, f"hostIP {mapping.host_ip[:80]!r} is not an IP address") from None
    return PublishedPort(mapping.host_port, mapping.container_port, 1, protocol, host_ip)


def _served(endpoint: Endpoint, ports: list[PublishedPort]) -> list[PublishedPort]:
    """Without those on every address of a family that the endpoint hasn't: runtimes ask for both, as they don't know."""
    return [port for port in ports if not (port.host_ip in ("0.0.0.0", "::") and not endpoint.address(port.host_version))]
