"""bandwidth: limits what an attachment receives (ingress) and sends (egress), in bits a second (reference: plugins/meta/bandwidth).

Unlike the reference's, its CHECK looks at the queues that the kernel has. The limit is that of the whole interface: `shapedSubnets` and
`unshapedSubnets` are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct, field, structs

from atoll.frontends.cni.attachments import require
from atoll.frontends.cni.chained import each_stale, fail, previous
from atoll.frontends.cni.refusal import BAD_CONFIG, Refusal
from atoll.frontends.cni.results import Interface
from atoll.kernel import rtnl

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request
    from atoll.model import Endpoint, Network

_Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_MOST_BURST: Final = (1 << 32) * 8


class _Limits(Struct, frozen=True):
    ingress_rate: _Number = field(name="ingressRate", default=0)
    ingress_burst: _Number = field(name="ingressBurst", default=0)
    egress_rate: _Number = field(name="egressRate", default=0)
    egress_burst: _Number = field(name="egressBurst", default=0)
    shaped: tuple[str, ...] = field(name="shapedSubnets", default=())
    unshaped: tuple[str, ...] = field(name="unshapedSubnets", default=())


class _Runtime(Struct, frozen=True):
    bandwidth: _Limits = _Limits()


class _Configuration(_Limits, frozen=True):
    runtime: _Runtime = field(name="runtimeConfig", default=_Runtime())


def add(engine: Engine, request: Request) -> Result:
    """The result has one interface more, as the reference plugin's has: the one that what the container sends is led through."""
    result = previous(request)
    limits = limits_asked(request)
    if limits == _Limits():
        return result
    network, endpoint = require(engine, request)
    _set(engine, network, endpoint, limits)
    if not limits.egress_rate or any(one.name == endpoint.shaper for one in result.interfaces):
        return result
    shaper = rtnl.parse_link(engine.host.rtnl.ask(rtnl.get_link(endpoint.shaper)).body)
    return structs.replace(result, interfaces=(*result.interfaces, Interface(shaper.name, mac=shaper.mac, mtu=shaper.mtu)))


def delete(engine: Engine, request: Request) -> None:
    _set(engine, *require(engine, request), _Limits())


def check(engine: Engine, request: Request) -> None:
    """The limits are those of the configuration, and the kernel has them."""
    limits = limits_asked(request)
    if limits == _Limits():
        return
    network, endpoint = require(engine, request)
    wanted = {"ingress": (limits.ingress_rate, endpoint.ingress_rate), "egress": (limits.egress_rate, endpoint.egress_rate)}
    other = [
        f"the {way} rate of {endpoint.interface} is {there} bit/s, not {asked}" for way, (asked, there) in wanted.items() if asked != there
    ]
    fail(other or engine.shaping_faults(network, endpoint))


def gc(engine: Engine, request: Request) -> None:
    each_stale(engine, request, lambda network, endpoint: _set(engine, network, endpoint, _Limits()))


def status(engine: Engine, request: Request) -> None:
    del engine
    limits_asked(request)


# --- parts ---------------------------------------------------------------------------------------------------------------------------


def _set(engine: Engine, network: Network, endpoint: Endpoint, limits: _Limits) -> None:
    engine.set_rates(
        network.id,
        endpoint.namespace,
        ingress_rate=rate(limits.ingress_rate),
        egress_rate=rate(limits.egress_rate),
        interface=endpoint.interface,
    )


def rate(bits: int) -> str:
    """As the engine takes it."""
    return f"{bits}bit" if bits else ""


def limits_asked(request: Request) -> _Limits:
    """The configuration's own, if it has any, else the runtime's; checked."""
    found = request.read(_Configuration)
    own = _Limits(found.ingress_rate, found.ingress_burst, found.egress_rate, found.egress_burst, found.shaped, found.unshaped)
    limits = own if own != _Limits() else found.runtime.bandwidth
    if limits.shaped or limits.unshaped:
        raise Refusal(BAD_CONFIG, "bandwidth: Atoll limits the whole interface", "leave out shapedSubnets and unshapedSubnets")
    for rate, burst in ((limits.ingress_rate, limits.ingress_burst), (limits.egress_rate, limits.egress_burst)):
        if rate and not burst:
            raise Refusal(BAD_CONFIG, "if rate is set, burst must also be set")
        if burst and not rate:
            raise Refusal(BAD_CONFIG, "if burst is set, rate must also be set")
        if burst >= _MOST_BURST:
            raise Refusal(BAD_CONFIG, "burst cannot be more than 4GB")
    return limits
