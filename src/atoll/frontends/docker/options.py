"""Docker's options in Atoll's words: `-o` and the subnets of a network, `-p` and `--driver-opt` of an endpoint. Pure."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.checks import check_labels
from atoll.engine.network_request import NetworkRequest
from atoll.errors import Invalid
from atoll.frontends import DOOR_LABEL
from atoll.frontends.docker.protocol import NetworkOptions, PortBinding, option
from atoll.frontends.docker.records import NETWORK_LABEL
from atoll.frontends.sharing import can_be_halved, halves
from atoll.ipam import parse_subnet

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from msgspec import Raw

    from atoll.frontends.docker.protocol import CreateNetwork, PoolData
    from atoll.model import Prefix

_PREFIX: Final = "com.docker.network."
#: `-o network=NAME` and `--ipam-opt network=NAME`: the network of Atoll's that is to be joined.
NETWORK: Final = "network"
#: Which of Atoll's drivers a network is made with.
DRIVER: Final = "driver"
#: What Docker itself does, whatever the driver (moby: daemon/libnetwork/netlabel/labels.go).
_DOCKERS: Final = {f"{_PREFIX}{name}" for name in ("advertise_addr_nmsgs", "advertise_addr_ms", "enable_ipv4", "enable_ipv6")}
#: IANA's numbers.
_PROTOCOLS: Final = {6: "tcp", 17: "udp", 132: "sctp"}

PORTMAP: Final = f"{_PREFIX}portmap"
IFNAME: Final = f"{_PREFIX}endpoint.ifname"


class EndpointWish(NamedTuple):
    """What `--driver-opt` says of an endpoint."""

    ingress_rate: str = ""
    egress_rate: str = ""


# --- networks ------------------------------------------------------------------------------------------------------------------------


def subnets(data: Iterable[PoolData]) -> list[Prefix]:
    """The subnets that Docker has chosen; none with its null IPAM, whose pool is everything. Raises `Invalid`."""
    return [parse_subnet(pool.pool) for pool in data if not pool.pool.endswith("/0")]


def gateways(data: Iterable[PoolData]) -> list[str]:
    return [_bare(pool.gateway) for pool in data if pool.gateway]


def _wanted_gateways(call: CreateNetwork) -> list[str]:
    """Without those that dockerd takes unasked for a network that is to have none: before 28 it doesn't ask whether it should."""
    modes = _isolated(call.options)
    return [*([] if modes[0] else gateways(call.ipv4 or ())), *([] if modes[1] else gateways(call.ipv6 or ()))]


def aux_addresses(data: Iterable[PoolData]) -> dict[str, str]:
    return check_labels({name: _bare(text) for pool in data for name, text in (pool.aux or {}).items()}, "reserved address")


def new_network(call: CreateNetwork, ranges: Mapping[Prefix, Collection[str]]) -> NetworkRequest:
    """The network that Docker asks for. `ranges` says, of the subnets whose addresses we hand out, from which parts; none is all.

    Docker's default IPAM takes a subnet's addresses from its low end without asking, so what Atoll chooses there (for processes, Podman
    and others on the same network) comes from the upper half.
    """
    wanted = call.options or NetworkOptions()
    data = [*(call.ipv4 or ()), *(call.ipv6 or ())]
    prefixes = subnets(data)
    options = {key: value for key, value in (wanted.generic or {}).items() if key not in _DOCKERS}
    driver = options.pop(DRIVER, "bridge")
    taken_from = [text for prefix in prefixes for text in (ranges[prefix] if prefix in ranges else upper_half(prefix))]
    return NetworkRequest(
        name=provisional_name(call.network),
        driver=driver,
        subnets=tuple(map(str, prefixes)),
        gateways=tuple(_wanted_gateways(call)),
        ip_ranges=tuple(taken_from),
        aux_addresses=aux_addresses(data),
        ipv4=wanted.ipv4,
        ipv6=wanted.ipv6,
        internal=wanted.internal,
        options=options,
        labels={DOOR_LABEL: "docker", NETWORK_LABEL: call.network},
    )


def provisional_name(docker_id: str) -> str:
    """What a network or namespace is called until Docker's event stream has told its name."""
    return f"docker-{docker_id[:12]}"


def upper_half(subnet: Prefix) -> tuple[str, ...]:
    return (str(halves(subnet)[1]),) if can_be_halved(subnet) else ()


def own_options(generic: Mapping[str, str] | None) -> list[str]:
    """The `-o` keys that would shape a network."""
    return [key for key in generic or {} if key not in _DOCKERS and key != NETWORK]


def without_gateway(options: NetworkOptions | None) -> tuple[bool, bool]:
    """For which family no address need be kept for a gateway unless the user named one: as Docker's own drivers answer GwAllocCheck."""
    generic = (options.generic if options is not None else None) or {}
    return (True, True) if generic.get(DRIVER, "bridge") != "bridge" else _isolated(options)


def _isolated(options: NetworkOptions | None) -> tuple[bool, bool]:
    """Whether the gateway mode is `isolated`, for each family."""
    generic = (options.generic if options is not None else None) or {}
    modes = [generic.get(f"{_PREFIX}bridge.gateway_mode_ipv{v}", generic.get(f"gateway-mode{v}", "")) for v in (4, 6)]
    return modes[0] == "isolated", modes[1] == "isolated"


def _bare(text: str) -> str:
    return text.partition("/")[0]


# --- endpoints -----------------------------------------------------------------------------------------------------------------------


def ports(method: str, options: dict[str, Raw] | None) -> tuple[str, ...] | None:
    """The ports to publish as specs; None when these options don't speak of ports. Raises `Invalid`."""
    bindings = option(method, options, PORTMAP, list[PortBinding])
    return None if bindings is None else publish_specs(bindings)


def publish_specs(bindings: Collection[PortBinding]) -> tuple[str, ...]:
    """`-p` as Docker hands it on: one binding for each port. Those that follow one another become ranges, as they were written: a range is
    one element of the firewall however long it is. Raises `Invalid`."""
    runs: list[tuple[str, str, int, int, int]] = []
    for protocol, host, outer, inner in sorted({(_protocol(b), _host(b), b.host_port, b.port) for b in bindings if _is_fixed(b)}):
        begun = runs[-1] if runs else None
        if begun is not None and begun[:2] == (protocol, host) and (outer, inner) == (begun[2] + begun[4], begun[3] + begun[4]):
            runs[-1] = (*begun[:4], begun[4] + 1)
        else:
            runs.append((protocol, host, outer, inner, 1))
    specs = [f"{host}{_range(outer, count)}:{_range(inner, count)}/{protocol}" for protocol, host, outer, inner, count in runs]
    for binding in bindings:
        if not _is_fixed(binding):
            outer_text = f"{binding.host_port}-{binding.host_port_end}" if binding.host_port else "0"
            specs.append(f"{_host(binding)}{outer_text}:{binding.port}/{_protocol(binding)}")
    return tuple(specs)


def _is_fixed(binding: PortBinding) -> bool:
    return bool(binding.host_port) and binding.host_port_end in (0, binding.host_port)


def endpoint_wish(method: str, options: dict[str, Raw] | None) -> EndpointWish:
    """Raises `Invalid` for an option that would be ignored."""
    found: dict[str, str] = {}
    for key in options or {}:
        if key == IFNAME:
            raise Invalid(f"option {key} can't be given to a plugin's network: Docker doesn't hand it on", "leave it out")
        if key.startswith("com.docker."):
            continue
        name = key.replace("-", "_")
        if name not in EndpointWish._fields:
            raise Invalid(f"option {key[:80]!r} of an endpoint is unknown", "it knows ingress-rate and egress-rate")
        found[name] = option(method, options, key, str) or ""
    return EndpointWish(**found)


def _protocol(binding: PortBinding) -> str:
    if binding.proto not in _PROTOCOLS:
        raise Invalid(f"IP protocol {binding.proto} has no ports to publish", "expected 6 (tcp), 17 (udp) or 132 (sctp)")
    return _PROTOCOLS[binding.proto]


def _host(binding: PortBinding) -> str:
    """The host address as it begins a spec."""
    if not binding.host_ip:
        return ""
    try:
        value = ipaddress.ip_address(binding.host_ip)
    except ValueError:
        raise Invalid(f"host address {binding.host_ip[:80]!r} is not an IP address", "expected one such as 127.0.0.1 or ::1") from None
    return f"[{value}]:" if value.version == 6 else f"{value}:"


def _range(first: int, count: int) -> str:
    return f"{first}-{first + count - 1}" if count > 1 else str(first)
