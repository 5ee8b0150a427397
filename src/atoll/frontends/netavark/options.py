"""The options of Podman's networks (`podman network create -o KEY=VALUE`), as netavark reads them. Pure."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from atoll.errors import Invalid
from atoll.model import Isolation

if TYPE_CHECKING:
    from collections.abc import Mapping

_OF_BRIDGE: Final = ("mode", "mtu", "isolate", "metric", "no_default_route", "vrf", "vlan")
_OF_VLAN: Final = ("mode", "mtu", "metric", "no_default_route", "bclim")
#: Only `setup` takes these: they are edited into the network's file by hand.
_BY_HAND: Final = ("outbound_addr4", "outbound_addr6")
_ISOLATION: Final[dict[str, Isolation]] = {"true": "isolated", "false": "open", "strict": "strict"}
_MODES: Final = {
    "bridge": ("managed", "unmanaged"),
    "macvlan": ("bridge", "private", "vepa", "passthru", "source"),
    "ipvlan": ("l2", "l3", "l3s"),
}
#: Those of netavark. A container on a macvlan network leaves by that one.
_METRIC: Final = {"bridge": 100, "macvlan": 99, "ipvlan": 99}
_MOST_VLAN: Final = 4094
IPAM: Final = ("host-local", "dhcp", "none")


class Options(Struct, frozen=True):
    """What the options say; 0 and "" where they say nothing."""

    mode: str
    metric: int
    isolation: Isolation = "strict"
    mtu: int = 0
    default_route: bool = True
    vrf: str = ""
    vlan: int | None = None
    bclim: int | None = None
    outbound: tuple[str, ...] = ()


def parse(driver: str, options: Mapping[str, str] | None, *, strict: bool = False) -> Options:
    """The options of a bridge, macvlan or ipvlan network. `strict`, at `create`, refuses unknown ones, which `setup` ignores."""
    given = options or {}
    known = _OF_BRIDGE if driver == "bridge" else _OF_VLAN
    for key in given:
        if strict and key not in known:
            raise Invalid(f"unsupported {'bridge' if driver == 'bridge' else 'vlan'} network option: {key[:80]}")
    isolate = given.get("isolate", "strict")
    if driver == "bridge" and isolate not in _ISOLATION:
        raise Invalid(f'invalid isolate option "{isolate[:80]}"')
    mode = given.get("mode") or _MODES[driver][0]
    if mode not in _MODES[driver]:
        raise Invalid(f'invalid {driver} mode "{mode[:80]}"')
    vlan = _number(given, "vlan", 2**16 - 1)
    if vlan is not None and vlan > _MOST_VLAN:
        raise Invalid(f"vlan must be between 0 and {_MOST_VLAN}")
    bclim = _number(given, "bclim", 2**31 - 1, signed=True)
    if bclim is not None and driver != "macvlan" and "bclim" in known:
        raise Invalid("unsupported ipvlan network option bclim")
    return Options(
        mode=mode,
        metric=_or(_number(given, "metric", 2**32 - 1), _METRIC[driver]),
        isolation=_ISOLATION[isolate] if driver == "bridge" else "strict",
        mtu=_or(_number(given, "mtu", 2**32 - 1), 0),
        default_route=not _boolean(given, "no_default_route"),
        vrf=given.get("vrf", "") if driver == "bridge" else "",
        vlan=vlan if driver == "bridge" else None,
        bclim=bclim if driver == "macvlan" else None,
        outbound=tuple(_outbound(given)) if driver == "bridge" else (),
    )


def ipam(options: Mapping[str, str] | None) -> str:
    """Where addresses come from."""
    driver = (options or {}).get("driver") or "host-local"
    if driver not in IPAM:
        raise Invalid(f"unsupported ipam driver {driver[:80]}")
    return driver


def _number(given: Mapping[str, str], name: str, most: int, *, signed: bool = False) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    digits = text.removeprefix("-") if signed else text.removeprefix("+")
    if not digits.isascii() or not digits.isdigit():
        raise Invalid(f'unable to parse "{name}": invalid digit found in string')
    if len(digits) > 12 or int(digits) > most:
        raise Invalid(f'unable to parse "{name}": number too large to fit in target type')
    return int(text)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _boolean(given: Mapping[str, str], name: str) -> bool:
    text = given.get(name, "false")
    if text not in ("true", "false"):
        raise Invalid(f'unable to parse "{name}": provided string was not `true` or `false`')
    return text == "true"


def _outbound(given: Mapping[str, str]) -> list[str]:
    found = []
    for name, kind, version in zip(_BY_HAND, (ipaddress.IPv4Address, ipaddress.IPv6Address), (4, 6), strict=True):
        if name in given:
            try:
                found.append(str(kind(given[name])))
            except ValueError:
                raise Invalid(f'unable to parse "{name}": invalid IPv{version} address syntax') from None
    return found
