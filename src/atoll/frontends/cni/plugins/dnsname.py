"""dnsname: names for a network's containers (reference: containers/dnsname, which Podman adds to its CNI networks where it finds it).

What answers is Atoll's name server, on the gateway as dnsname's would be: for the container's name and its aliases, below `domainName` as
well as below NETWORK.atoll. `multiDomain` has no effect: a container knows the names of all networks that it is on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field, structs

from atoll.frontends.cni.attachments import require
from atoll.frontends.cni.chained import fail, previous
from atoll.frontends.cni.refusal import BAD_CONFIG, Refusal
from atoll.frontends.cni.results import Dns

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request


class _Runtime(Struct, frozen=True):
    #: By network.
    aliases: dict[str, tuple[str, ...]] = {}


class _Configuration(Struct, frozen=True):
    domain: str = field(name="domainName", default="")
    runtime: _Runtime = field(name="runtimeConfig", default=_Runtime())


def add(engine: Engine, request: Request) -> Result:
    result = previous(request)
    asked = request.read(_Configuration)
    network, endpoint = require(engine, request)
    if not network.resolvers():
        raise Refusal(BAD_CONFIG, f"network {network.name} has no gateway that could answer for names", "say isGateway in bridge")
    if asked.domain and asked.domain not in network.domains:
        network = engine.serve_names(network.id, domains=[asked.domain])
    aliases = (*endpoint.aliases, *asked.runtime.aliases.get(request.network, ()))
    engine.set_aliases(network.id, endpoint.namespace, aliases, interface=endpoint.interface)
    search = asked.domain or f"{network.name}.atoll"
    return structs.replace(result, dns=Dns(nameservers=network.resolvers(), domain=asked.domain, search=(search,)))


def delete(engine: Engine, request: Request) -> None:
    """Nothing: names go with their container."""
    require(engine, request)


def check(engine: Engine, request: Request) -> None:
    asked = request.read(_Configuration)
    _, endpoint = require(engine, request)
    missing = [alias for alias in asked.runtime.aliases.get(request.network, ()) if alias not in endpoint.aliases]
    fail([f"{endpoint.namespace} is not known as {alias}" for alias in missing])


def gc(engine: Engine, request: Request) -> None:
    del engine, request


def status(engine: Engine, request: Request) -> None:
    del engine
    request.read(_Configuration)
