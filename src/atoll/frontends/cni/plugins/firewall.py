"""firewall: who may reach the network's containers from other networks (reference: plugins/meta/firewall).

ingressPolicy open (or none)   from other networks that are open or isolated
              same-bridge      from its own network only
              isolated         not even from there: a network's option, portIsolation of bridge
backend, iptablesAdminChainName, firewalldZone     nothing to do: the rules are Atoll's own, beside whatever firewall the host has

That the host's and other software's firewalls let the containers' packets pass, which is what the reference plugin is for, Atoll sees to
for every network. The policy is one for the whole network. Where the network was there before CNI joined it, the one that it has stays;
a policy that promises less reach than it has is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from atoll.frontends import DOOR_LABEL
from atoll.frontends.cni.attachments import require
from atoll.frontends.cni.chained import fail, previous
from atoll.frontends.cni.refusal import BAD_CONFIG, Refusal

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request
    from atoll.model import Isolation, Network

_ISOLATION: Final[dict[str, Isolation]] = {"": "open", "open": "open", "same-bridge": "isolated"}
_BACKENDS: Final = ("", "iptables", "nftables", "firewalld")


class _Configuration(Struct, frozen=True):
    backend: str = ""
    policy: str = field(name="ingressPolicy", default="")
    chain: str = field(name="iptablesAdminChainName", default="")
    zone: str = field(name="firewalldZone", default="")


def add(engine: Engine, request: Request) -> Result:
    result = previous(request)
    configuration = _read(request)
    network, _ = require(engine, request)
    wanted = _wanted(network, configuration)
    if wanted != network.isolation:
        engine.set_isolation(network.id, wanted)
    return result


def delete(engine: Engine, request: Request) -> None:
    """Nothing: the rules of a container go with it, the policy with the network."""
    require(engine, request)


def check(engine: Engine, request: Request) -> None:
    configuration = _read(request)
    network, endpoint = require(engine, request)
    wanted = _wanted(network, configuration)
    other = [f"network {network.name} is {network.isolation}, not {wanted}"] if network.isolation != wanted else []
    fail(other or engine.rule_faults(network, endpoint))


def gc(engine: Engine, request: Request) -> None:
    del engine, request


def status(engine: Engine, request: Request) -> None:
    del engine
    _read(request)


# --- parts ---------------------------------------------------------------------------------------------------------------------------


def _read(request: Request) -> _Configuration:
    found = request.read(_Configuration)
    if found.backend not in _BACKENDS:
        raise Refusal(BAD_CONFIG, f"unrecognized firewall backend {found.backend[:40]!r}", f"one of {', '.join(_BACKENDS[1:])}")
    if found.policy == "isolated":
        raise Refusal(BAD_CONFIG, "ingressPolicy isolated is an option of the network", "say portIsolation in bridge, and same-bridge here")
    if found.policy not in _ISOLATION:
        raise Refusal(BAD_CONFIG, f"unknown ingress policy: {found.policy[:40]!r}", "open or same-bridge")
    return found


def _wanted(network: Network, configuration: _Configuration) -> Isolation:
    """How the network is to be isolated."""
    wanted = _ISOLATION[configuration.policy]
    if network.driver != "bridge":
        if wanted != "open":
            raise Refusal(BAD_CONFIG, f"a {network.driver} network can't be kept apart", "its packets don't pass the host")
        return network.isolation
    if network.labels.get(DOOR_LABEL) == "cni":
        return wanted
    if wanted == "isolated" and network.isolation == "open":
        raise Refusal(BAD_CONFIG, f"network {network.name} is open to others, ingressPolicy same-bridge is not to be", "make it isolated")
    return network.isolation
