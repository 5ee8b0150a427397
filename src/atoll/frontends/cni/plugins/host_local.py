"""host-local: addresses for whichever plugin delegates to it, out of pools that the engine keeps (reference: plugins/ipam/host-local).

The pool of a network and subnet is `cni:NETWORK:SUBNET`. Leases are in the engine's state and end with the machine's uptime; `dataDir` is
only read: what the plugin that stood here before has leased there since the machine started is nobody else's.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from atoll.errors import AtollError, Conflict, Exhausted
from atoll.frontends.cni.addressing import Range, Scheme, read_scheme
from atoll.frontends.cni.leases import files
from atoll.frontends.cni.refusal import BAD_CONFIG, NOT_READY, OWN, Refusal, Unknown
from atoll.frontends.cni.results import Ip, Result
from atoll.frontends.cni.words import attachment_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.engine import Engine
    from atoll.frontends.cni.words import Request
    from atoll.model import Address

_POOL: Final = "cni:"


def add(engine: Engine, request: Request) -> Result:
    """One address of each range set, or none when one of them has none left."""
    scheme = _scheme(request)
    mine = _mine(engine, request)
    for group in scheme.sets:
        for value in mine:
            if any(value in one for one in group):
                raise Refusal(OWN + Conflict.exit_code, f"{value} is allocated to {_who(request)} already", "DEL comes before the next ADD")
    ips: list[Ip] = []
    try:
        for group in scheme.sets:
            ips.append(_lease(engine, request, scheme, group))  # noqa: PERF401 - what was leased before one fails is given back
    except BaseException:
        for ip in ips:
            address = ipaddress.ip_interface(ip.address)
            engine.release_lease(_pool(request, str(address.network)), str(address.ip), request.owner)
        raise
    return Result(ips=tuple(ips), routes=scheme.routes, dns=scheme.dns)


def delete(engine: Engine, request: Request) -> None:
    if not _mine(engine, request):
        raise Unknown(f"{_who(request)} has no address on network {request.network[:80]}")
    for pool in _pools(engine, request):
        engine.release_lease(pool, owner=request.owner)


def check(engine: Engine, request: Request) -> None:
    """The address is still reserved, and is the one that the result speaks of."""
    mine = _mine(engine, request)
    if not mine:
        raise Unknown(f"{_who(request)} has no address on network {request.network[:80]}")
    said = {ipaddress.ip_interface(ip.address).ip for ip in request.previous.ips} if request.previous is not None else set()
    for value in mine:
        if value not in said:
            raise Refusal(BAD_CONFIG, f"{value} is reserved for {_who(request)} and not in its result", "DEL, and ADD again")


def gc(engine: Engine, request: Request) -> None:
    for pool in _pools(engine, request):
        for owner in set(engine.leases(pool).values()):
            if attachment_of(owner) not in request.valid:
                engine.release_lease(pool, owner=owner)


def status(engine: Engine, request: Request) -> None:
    """Ready as long as every range set has an address left."""
    for group in _scheme(request).sets:
        if all(_is_full(engine, request, one) for one in group):
            what = f"no address is left in {', '.join(f'{one.first} to {one.last}' for one in group)}"
            raise Refusal(NOT_READY, f"network {request.network}: {what}", "delete containers, or use a larger range")


# --- parts ---------------------------------------------------------------------------------------------------------------------------


def _scheme(request: Request) -> Scheme:
    scheme = read_scheme(request)
    if scheme.kind != "host-local":
        raise Refusal(BAD_CONFIG, "host-local was called for a configuration without it", 'ipam should say "type": "host-local"')
    return scheme


def _who(request: Request) -> str:
    return f"{request.environment.container[:80]}/{request.environment.interface}"


def _pool(request: Request, subnet: str) -> str:
    return f"{_POOL}{request.network}:{subnet}"


def _pools(engine: Engine, request: Request) -> Iterator[str]:
    """The network's pools. A network's name has no colon."""
    beginning = _pool(request, "")
    return (pool.name for pool in engine.pools() if pool.name.startswith(beginning))


def _mine(engine: Engine, request: Request) -> list[Address]:
    leased = engine.state.leases.pools
    return [value for pool in _pools(engine, request) for value in leased[pool].of(request.owner)]


def _lease(engine: Engine, request: Request, scheme: Scheme, group: tuple[Range, ...]) -> Ip:
    """From the first range of a set that has a free address; one that was asked for, if it is of this set."""
    asked = [value for value in scheme.wanted if any(value in one for one in group)]
    if len(asked) > 1:
        raise Refusal(BAD_CONFIG, f"host-local: {asked[0]} and {asked[1]} are of one range set", "ask for one address of each")
    full: list[AtollError] = []
    for one in group:
        if asked and asked[0] not in one:
            continue
        pool = _open(engine, request, scheme, one)
        try:
            text = engine.lease(pool, request.owner, str(asked[0]) if asked else "", again=True)
        except Exhausted as error:
            full.append(error)
            continue
        return Ip(text, str(one.gateway or ""))
    raise full[0]


def _open(engine: Engine, request: Request, scheme: Scheme, one: Range) -> str:
    """The pool with this range, without the gateway and without what others have of it."""
    pool = _pool(request, str(one.subnet))
    others = {text for name in _pools(engine, request) if name != pool for text in engine.leases(name)}
    others |= {text for text, _ in files(scheme.data_dir, request.network)}
    known = engine.state.leases.pools.get(pool)
    foreign = [value for value in map(ipaddress.ip_address, others) if value in one.subnet]
    taken = sorted(str(value) for value in foreign if known is None or known.pool.holder(value) is None)
    gateway = [str(one.gateway)] if one.gateway is not None and one.gateway in one.subnet else []
    whole = (one.first, one.last) == (one.subnet[1], one.subnet[-2 if one.subnet.version == 4 else -1])
    ranges = () if whole else (f"{one.first}-{one.last}",)
    engine.open_pool(pool, str(one.subnet), ranges, list(dict.fromkeys([*gateway, *taken])), until_reboot=True)
    return pool


def _is_full(engine: Engine, request: Request, one: Range) -> bool:
    """Held without opening a pool for the question."""
    name = _pool(request, str(one.subnet))
    found = engine.leases(name) if name in engine.state.leases.pools else {}
    held = {value for value in map(ipaddress.ip_address, found) if value in one}
    if one.gateway is not None and one.gateway in one:
        held.add(one.gateway)
    return len(held) > int(one.last) - int(one.first)
