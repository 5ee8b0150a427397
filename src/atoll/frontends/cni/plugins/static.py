"""static: the addresses that the configuration names, for whichever plugin delegates to it (reference: plugins/ipam/static).

Nothing is kept of them, so there is nothing to free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.frontends.cni.addressing import Scheme, read_scheme
from atoll.frontends.cni.refusal import BAD_CONFIG, Refusal
from atoll.frontends.cni.results import Ip, Result

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.cni.words import Request


def add(engine: Engine, request: Request) -> Result:
    del engine
    scheme = _scheme(request)
    ips = tuple(Ip(text, str(group[0].gateway or "")) for text, group in zip(scheme.fixed, scheme.sets, strict=True))
    return Result(ips=ips, routes=scheme.routes, dns=scheme.dns)


def delete(engine: Engine, request: Request) -> None:
    del engine, request


def check(engine: Engine, request: Request) -> None:
    del engine
    said = {ip.address for ip in request.previous.ips} if request.previous is not None else set()
    missing = [text for text in _scheme(request).fixed if text not in said]
    if missing:
        raise Refusal(BAD_CONFIG, f"static: {missing[0]} is not in the result", "DEL, and ADD again")


def gc(engine: Engine, request: Request) -> None:
    del engine, request


def status(engine: Engine, request: Request) -> None:
    """Always ready: what is wrong with the addresses is said by ADD, which may be told of more of them."""
    del engine, request


def _scheme(request: Request) -> Scheme:
    scheme = read_scheme(request)
    if scheme.kind != "static":
        raise Refusal(BAD_CONFIG, "static was called for a configuration without it", 'ipam should say "type": "static"')
    return scheme
