"""Which addresses an attachment is to get: the `ipam` section, read as the reference IPAM plugins read it. Pure, but for `resolvConf`.

host-local    ranges to choose from, grouped in sets; each set gives one address
static        the addresses themselves
(none)        the network's own choice
"""

from __future__ import annotations

import ipaddress
import itertools
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field, structs

from atoll.frontends.cni.refusal import BAD_CONFIG, IO_FAILURE, Refusal, Unserved, convert
from atoll.frontends.cni.results import Dns, Route
from atoll.frontends.files import read_file
from atoll.model import Address, Prefix

if TYPE_CHECKING:
    from atoll.frontends.cni.words import Request

#: resolv.conf is a line or two; more than this isn't one.
_MOST_BYTES: Final = 1 << 16
_MOST_RANGES: Final = 256


class Range(Struct, frozen=True):
    """Addresses from `first` to `last` of a subnet. An empty gateway: the network has none (static addresses without one)."""

    subnet: Prefix
    first: Address
    last: Address
    gateway: Address | None = None

    def __contains__(self, value: Address) -> bool:
        return value.version == self.first.version and self.first <= value <= self.last  # type: ignore[operator]


class Scheme(Struct, frozen=True):
    """What an `ipam` section means for one attachment.

    `sets`: one address is chosen from each, from its first range that has one. `fixed`: addresses as they are, with prefix length.
    `wanted`: addresses out of the sets that were asked for. `kind` is the section's type; empty without one.
    """

    kind: str = ""
    sets: tuple[tuple[Range, ...], ...] = ()
    fixed: tuple[str, ...] = ()
    wanted: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()
    data_dir: str = ""

    def with_gateways(self) -> Scheme:
        """The same, where every subnet has a gateway: the first address if none is named (bridge.go:calcGateways)."""
        sets = tuple(tuple(structs.replace(one, gateway=one.gateway or one.subnet[1]) for one in group) for group in self.sets)
        return structs.replace(self, sets=sets)

    def ranges(self) -> list[Range]:
        return [one for group in self.sets for one in group]

    def gateway(self, value: Address) -> str:
        """The gateway that goes with an address; empty when its range has none, or when it is in no range."""
        return next((str(one.gateway) for one in self.ranges() if value in one.subnet and one.gateway), "")


class _Range(Struct, frozen=True):
    subnet: str = ""
    first: str = field(name="rangeStart", default="")
    last: str = field(name="rangeEnd", default="")
    gateway: str = ""


class _Fixed(Struct, frozen=True):
    address: str = ""
    gateway: str = ""


class _Section(_Range, frozen=True):
    type: str = ""
    ranges: tuple[tuple[_Range, ...], ...] = ()
    routes: tuple[Route, ...] = ()
    resolv_conf: str = field(name="resolvConf", default="")
    data_dir: str = field(name="dataDir", default="")
    addresses: tuple[_Fixed, ...] = ()
    dns: Dns = Dns()


class _Runtime(Struct, frozen=True):
    ranges: tuple[tuple[_Range, ...], ...] = field(name="ipRanges", default=())
    ips: tuple[str, ...] = ()


class _Cni(Struct, frozen=True):
    ips: tuple[str, ...] = ()


class _Args(Struct, frozen=True):
    cni: _Cni = _Cni()


class _Configuration(Struct, frozen=True):
    ipam: _Section = _Section()
    runtime: _Runtime = field(name="runtimeConfig", default=_Runtime())
    args: _Args = _Args()


def ipam_type(configuration: dict[str, Any]) -> str:
    return convert(_Configuration, configuration).ipam.type


def read_scheme(request: Request) -> Scheme:
    """The `ipam` section with what CNI_ARGS, `args` and `runtimeConfig` add to it. Raises `Refusal`, for other plugins `Unserved`."""
    found = request.read(_Configuration)
    match found.ipam.type:
        case "":
            return Scheme(wanted=tuple(_address(text, "ips") for text in _asked_for(request, found)))
        case "host-local":
            return _host_local(request, found)
        case "static":
            return _static(request, found)
        case "dhcp":
            raise Unserved("Atoll asks no DHCP server for addresses", "use host-local or static in ipam")
        case other:
            raise Unserved(f"IPAM plugin {other[:40]!r} is none of Atoll's", "use host-local or static in ipam")


# --- host-local ----------------------------------------------------------------------------------------------------------------------


def _host_local(request: Request, found: _Configuration) -> Scheme:
    section = found.ipam
    groups = [*found.runtime.ranges, *([(section,)] if section.subnet else []), *section.ranges]
    if not groups:
        raise Refusal(BAD_CONFIG, "host-local: no IP ranges specified", "give ipam a subnet, or ranges")
    if sum(map(len, groups)) > _MOST_RANGES:
        raise Refusal(BAD_CONFIG, f"host-local: more than {_MOST_RANGES} ranges are too many", "use larger ones")
    sets = tuple(tuple(_range(one) for one in group) for group in groups)
    for number, group in enumerate(sets):
        if not group:
            raise Refusal(BAD_CONFIG, f"host-local: range set {number} is empty")
        if len({one.subnet.version for one in group}) > 1:
            raise Refusal(BAD_CONFIG, f"host-local: range set {number} has IPv4 and IPv6", "use a set for each")
    _check_apart(sets)
    versions = [group[0].subnet.version for group in sets]
    if request.version < "0.3.0" and len(set(versions)) < len(versions):
        raise Refusal(BAD_CONFIG, f"CNI version {request.version} does not support more than 1 address per family")
    wanted = tuple(_address(text, "address") for text in _asked_for(request, found))
    for value in wanted:
        if not any(value in one for group in sets for one in group):
            raise Refusal(BAD_CONFIG, f"host-local: requested IP address {value} is not in any range")
    dns = _resolv_conf(section.resolv_conf) if section.resolv_conf else Dns()
    return Scheme("host-local", sets, wanted=wanted, routes=_routes(section.routes), dns=dns, data_dir=section.data_dir)


def _range(raw: _Range) -> Range:
    """With what was left out filled in, as host-local does (backend/allocator/range.go)."""
    try:
        subnet = ipaddress.ip_network(raw.subnet)
    except ValueError as error:
        raise Refusal(BAD_CONFIG, f"subnet {raw.subnet[:80]!r} is not usable", str(error)[:200]) from None
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        raise Refusal(BAD_CONFIG, f"network {subnet} is too small to allocate from", "a /30 is the smallest, of IPv6 a /126")
    first = _address(raw.first, "rangeStart") if raw.first else subnet[1]
    last = _address(raw.last, "rangeEnd") if raw.last else subnet[-2 if subnet.version == 4 else -1]
    gateway = _address(raw.gateway, "gateway") if raw.gateway else subnet[1]
    for value, what in ((first, "rangeStart"), (last, "rangeEnd")):
        if value not in subnet:
            raise Refusal(BAD_CONFIG, f"{what} {value} is not in network {subnet}")
    if gateway not in subnet:
        raise Unserved(f"gateway {gateway} is not in network {subnet}", "Atoll's bridges have an address of their subnet")
    if first > last:  # type: ignore[operator]
        raise Refusal(BAD_CONFIG, f"range {first} to {last} runs backwards")
    return Range(subnet, first, last, gateway)


def _check_apart(sets: tuple[tuple[Range, ...], ...]) -> None:
    ranges = sorted((one for group in sets for one in group), key=lambda one: (one.subnet.version, int(one.first)))
    for one, other in itertools.pairwise(ranges):
        if other.first in one:
            raise Refusal(BAD_CONFIG, f"ranges {one.first}-{one.last} and {other.first}-{other.last} overlap")


def _asked_for(request: Request, found: _Configuration) -> list[str]:
    """Addresses that the runtime asks for, by whichever of the three ways; with or without prefix length."""
    texts = [*filter(None, request.environment.arguments.get("IP", "").split(",")), *found.args.cni.ips, *found.runtime.ips]
    return list(dict.fromkeys(texts))


# --- static --------------------------------------------------------------------------------------------------------------------------


def _static(request: Request, found: _Configuration) -> Scheme:
    """What comes later overrides: the section and CNI_ARGS, then `args`, then `runtimeConfig` (plugins/ipam/static/main.go)."""
    section, arguments = found.ipam, request.environment.arguments
    fixed = [(_interface(one.address), _address(one.gateway, "gateway") if one.gateway else None) for one in section.addresses]
    from_arguments = [_interface(text) for text in filter(None, arguments.get("IP", "").split(","))]
    gateways = [_address(text, "GATEWAY") for text in filter(None, arguments.get("GATEWAY", "").split(","))]
    fixed += [(value, next((gateway for gateway in gateways if gateway in value.network), None)) for value in from_arguments]
    for override in (found.args.cni.ips, found.runtime.ips):
        if override:
            fixed = [(_interface(text), None) for text in override]
    if not fixed:
        raise Refusal(BAD_CONFIG, "static: no address was given", "in ipam.addresses, or by the capability ips")
    versions = [value.version for value, _ in fixed]
    if request.version < "0.3.0" and len(set(versions)) < len(versions):
        raise Refusal(BAD_CONFIG, f"CNI version {request.version} does not support more than 1 address per family")
    sets = tuple((Range(value.network, value.ip, value.ip, gateway),) for value, gateway in fixed)
    return Scheme("static", sets, fixed=tuple(str(value) for value, _ in fixed), routes=_routes(section.routes), dns=section.dns)


def _interface(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    try:
        if "/" not in text:
            raise ValueError("its prefix length is missing")
        return ipaddress.ip_interface(text)
    except ValueError as error:
        raise Refusal(BAD_CONFIG, f"address {text[:80]!r} is not usable", str(error)[:200]) from None


# --- both ----------------------------------------------------------------------------------------------------------------------------


def _address(text: str, what: str) -> Address:
    try:
        return ipaddress.ip_address(text.partition("/")[0])
    except ValueError:
        raise Refusal(BAD_CONFIG, f"{what} {text[:80]!r} is not an IP address") from None


def _routes(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    for route in routes:
        try:
            destination = ipaddress.ip_network(route.dst, strict=False)
        except ValueError:
            raise Refusal(BAD_CONFIG, f"route to {route.dst[:80]!r} is not a subnet") from None
        if route.gw and _address(route.gw, "gw").version != destination.version:
            raise Refusal(BAD_CONFIG, f"route to {route.dst} by {route.gw} mixes IPv4 and IPv6")
    return routes


def _resolv_conf(path: str) -> Dns:
    """As resolv.conf(5) has it: the last `domain`, `search` and `options` count."""
    try:
        text = read_file(path, _MOST_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise Refusal(IO_FAILURE, f"reading resolvConf {path[:200]!r}", str(error)[:200]) from None
    servers: list[str] = []
    said: dict[str, Any] = {"domain": "", "search": (), "options": ()}
    for words in (line.split() for line in text.splitlines()):
        if len(words) < 2 or words[0][0] in "#;":
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] == "domain":
            said["domain"] = words[1]
        elif words[0] in ("search", "options"):
            said[words[0]] = tuple(words[1:])
    return Dns(nameservers=tuple(servers), **said)
