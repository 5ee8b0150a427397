"""From a network of Podman's to one of ours, and from what is said of a container on it to an endpoint. Pure but for the model.

Podman chooses the addresses of its containers itself, from the low end. So that Atoll's own choices don't meet them, a network that is
made for Podman gives those from one half of each subnet.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from atoll.checks import check_interface, check_mac, check_name
from atoll.engine.network_request import NetworkRequest
from atoll.errors import Conflict, Invalid
from atoll.frontends import DOOR_LABEL
from atoll.frontends.netavark import options as given
from atoll.frontends.netavark import words
from atoll.frontends.sharing import can_be_halved, halves, mismatch
from atoll.model import MAX_SERVERS, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from atoll.frontends.netavark.options import Options
    from atoll.model import Network, Prefix

PODMAN: Final = "podman"
#: Podman's containers know each other as NAME.dns.podman, too.
DOMAIN: Final = "dns.podman"
#: The driver's name when Atoll is netavark's plugin.
PLUGIN: Final = "atoll"
_DRIVERS: Final = ("bridge", "macvlan", "ipvlan", PLUGIN)
_CONTAINER: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")
#: Of a static route that names none.
_METRIC: Final = 100


class Attachment(NamedTuple):
    """One network of a container: what to make where there is none, and the options of `connect`."""

    request: NetworkRequest
    connect: dict[str, Any]
    prefixes: tuple[Prefix, ...]
    #: What Podman takes for the gateway of each subnet.
    gateways: dict[str, str | None]
    dns: bool
    #: Its addresses are Podman's, so the answer speaks of them; false with the ipam driver `none`.
    addressed: bool
    #: The bridge was made by somebody else, and must be there.
    unmanaged: bool

    @property
    def name(self) -> str:
        return self.request.name

    @property
    def publishes(self) -> bool:
        return self.request.driver == "bridge" and not self.request.internal and self.addressed


def attachment(network: words.Network, per: words.PerNetwork, container: words.Container, way_out: Callable[[], str]) -> Attachment:
    """Raises `Invalid` for what can't be, and for what Atoll can't do. `way_out` says which interface of the host leads outside."""
    name = check_name(network.name, "network")
    driver = "bridge" if network.driver == PLUGIN else network.driver
    if network.driver not in _DRIVERS:
        raise Invalid(f'unknown network driver "{network.driver[:80]}"', "Atoll has bridge, macvlan and ipvlan")
    if not per.interface_name:
        raise Invalid("no container interface name given")
    options = given.parse(driver, network.options)
    _check_possible(network, driver, options)
    addressed = given.ipam(network.ipam_options) == "host-local"
    subnets = (network.subnets or ()) if addressed else ()
    prefixes = tuple(words.parse_prefix(subnet.subnet) for subnet in subnets)
    words.check_subnets(list(prefixes))
    request = NetworkRequest(
        name=name,
        driver=driver,
        subnets=tuple(map(str, prefixes)),
        gateways=tuple(filter(None, (_gateway(s, p, bridge=driver == "bridge") for s, p in zip(subnets, prefixes, strict=True)))),
        ip_ranges=tuple(_own_part(subnet, prefix) for subnet, prefix in zip(subnets, prefixes, strict=True) if can_be_halved(prefix)),
        ipv4=any(prefix.version == 4 for prefix in prefixes),
        internal=network.internal,
        isolation=options.isolation,
        mtu=options.mtu,
        guard=addressed or driver != "bridge",
        dns=network.dns_enabled and driver == "bridge" and addressed,
        servers=_servers(network.network_dns_servers, subnets) if network.dns_enabled and driver == "bridge" else (),
        options=_options(network, driver, options, way_out),
        labels={**_labels(network.labels), DOOR_LABEL: PODMAN},
    )
    connect = {
        "interface": check_interface(per.interface_name),
        "addresses": _static(per, prefixes) if addressed else (),
        "mac": check_mac(per.static_mac) if per.static_mac else "",
        "aliases": _aliases(container.container_name, per.aliases),
        "owner": owner(container.container_id),
        "routes": tuple(map(route, network.routes or ())) if addressed else (),
        "default_route": options.default_route and any(subnet.gateway for subnet in subnets),
        "metric": options.metric,
        "host_name": (per.options or {}).get("host_interface_name", "") if driver == "bridge" else "",
    }
    _servers(container.dns_servers, subnets)  # a loop is refused here as well
    gateways = {str(prefix): subnet.gateway or None for prefix, subnet in zip(prefixes, subnets, strict=True)}
    return Attachment(request, connect, prefixes, gateways, request.dns, addressed, options.mode == "unmanaged")


def all_foreign(container: words.Container) -> bool:
    """Whether all of its networks are those of other plugins, so that netavark can serve it alone."""
    return bool(container.network_info) and all(network.driver not in _DRIVERS for network in container.network_info.values())


def owner(container_id: str) -> str:
    """Who an endpoint was made for. Raises `Invalid`."""
    if not _CONTAINER.match(container_id):
        raise Invalid(f"invalid container id {container_id[:80]!r}")
    return f"{PODMAN}:{container_id}"


def check_same(network: Network, wanted: Attachment) -> None:
    """A network of ours with the name of one of Podman's must be the same network. Raises `Conflict`."""
    gateways = filter(None, wanted.gateways.values())
    match mismatch(network, wanted.request.driver, map(str, wanted.prefixes), gateways):
        case ("driver", there, meant):
            raise Conflict(f"network {network.name} of Atoll has the driver {there}, Podman's {meant}", _OTHER)
        case ("subnet", there, meant):
            raise Conflict(f"network {network.name} of Atoll has the subnets {there}, Podman's has {meant}", _OTHER)
        case (_, _, meant):
            raise Conflict(f"network {network.name} of Atoll hasn't the gateway {meant}, Podman's has", _OTHER)


_OTHER: Final = "rename one, or create Podman's with the subnet and gateway of the other"


# --- parts ---------------------------------------------------------------------------------------------------------------------------


def _check_possible(network: words.Network, driver: str, options: Options) -> None:
    if given.ipam(network.ipam_options) == "dhcp":
        raise Invalid(f"network {network.name}: Atoll asks no DHCP server", "create it with --subnet, or with --ipam-driver none")
    if options.vrf:
        raise Invalid(f"network {network.name}: Atoll puts no bridge into a VRF", "leave out the option vrf")
    if options.vlan:
        raise Invalid(f"network {network.name}: Atoll tags no bridge ports", "use a macvlan network on a VLAN interface")
    if options.bclim is not None:
        raise Invalid(f"network {network.name}: Atoll knows no bclim", "leave out the option bclim")
    if driver == "bridge" and not network.network_interface:
        raise Invalid("no bridge interface name given")
    if options.mode == "unmanaged" and any(":" in subnet.subnet for subnet in network.subnets or ()):
        raise Invalid(f"network {network.name}: an unmanaged bridge has no IPv6 here", "leave out its IPv6 subnets")


def _options(network: words.Network, driver: str, options: Options, way_out: Callable[[], str]) -> dict[str, str]:
    if driver != "bridge":
        return {"mode": options.mode, "parent": network.network_interface or way_out(), "fleeting": "true"}
    found = {"bridge": network.network_interface or "", "fleeting": "true"}
    if options.mode == "unmanaged":
        # Its gateway is a machine behind it, and so is the way out.
        found |= {"inhibit-ipv4": "true", "nat": "kept"}
    if network.dns_enabled:
        found["domain"] = DOMAIN
    for source in options.outbound:
        found["snat6" if ":" in source else "snat"] = source
    return found


def _labels(labels: dict[str, str] | None) -> dict[str, str]:
    """Podman's labels, as far as ours may look so."""
    return {key: value for key, value in (labels or {}).items() if key and len(key) < 256 and (key + value).isprintable()}


def _static(per: words.PerNetwork, prefixes: Sequence[Prefix]) -> tuple[str, ...]:
    if per.static_ips is None:
        raise Invalid("no static ips provided")
    found = [words.parse_address(text) for text in per.static_ips]
    matched = [value for value in found if any(value in prefix for prefix in prefixes)]
    if len(matched) != len(found):
        raise Invalid(f"not all static IPs matched a subnet: expected {len(found)}, got {len(matched)}")
    return tuple(map(str, found))


def _aliases(name: str, aliases: Iterable[str] | None) -> tuple[str, ...]:
    """The names of a container but for those that can be none in DNS; netavark leaves them out as well."""
    found = []
    for alias in (name, *(aliases or ())):
        try:
            found.append(check_name(alias, "alias"))
        except Invalid:
            continue
    return tuple(dict.fromkeys(found))


def _servers(texts: Iterable[str] | None, subnets: Sequence[words.Subnet]) -> tuple[str, ...]:
    """Name servers, as many as a resolv.conf takes. None of them may be the network's own."""
    found = words.addresses(texts)
    gateways = {str(words.parse_address(subnet.gateway)) for subnet in subnets if subnet.gateway}
    for server in found:
        if server in gateways:
            raise Invalid(
                f"DNS server {server} is the gateway of the network", "using it would cause the name server to forward queries to itself"
            )
    return tuple(dict.fromkeys(found))[:MAX_SERVERS]


def route(asked: words.Route) -> Route:
    """A static route of a network. Raises `Invalid`."""
    destination = words.parse_prefix(asked.destination)
    kind = asked.route_type or "unicast"
    if kind not in ("unicast", "blackhole", "unreachable", "prohibit"):
        raise Invalid(f'invalid route type "{kind[:80]}"')
    gateway = words.parse_address(asked.gateway) if asked.gateway else None
    if kind == "unicast" and gateway is None:
        raise Invalid(f"route {destination} requires a gateway for type unicast")
    if kind != "unicast" and gateway is not None:
        raise Invalid(f"route {destination} must not have a gateway for type {kind}")
    if gateway is not None and gateway.version != destination.version:
        raise Invalid(f"route with ipv{destination.version} destination and ipv{gateway.version} gateway ({destination} via {gateway})")
    return Route(
        destination=str(destination),
        gateway=str(gateway) if gateway else "",
        metric=_METRIC if asked.metric is None else asked.metric,
        kind=kind,  # type: ignore[arg-type]
    )


def _gateway(subnet: words.Subnet, prefix: Prefix, *, bridge: bool) -> str:
    """The gateway's address. Where Podman knows of none (an internal network without names) it may give the usual one to a container, so
    ours is the last of the subnet."""
    if subnet.gateway:
        return str(words.parse_address(subnet.gateway))
    return str(prefix[-2]) if bridge and can_be_halved(prefix) else ""


def _own_part(subnet: words.Subnet, prefix: Prefix) -> str:
    """The half that Atoll takes its own choices from: the upper one, or the lower if Podman's are in the upper one only."""
    lower, upper = halves(prefix)
    start = subnet.lease_range.start_ip if subnet.lease_range is not None else None
    return str(lower if start and words.parse_address(start) in upper else upper)


# --- ports ---------------------------------------------------------------------------------------------------------------------------


def spread(mappings: Sequence[words.PortMapping] | None, ways: Sequence[tuple[str, Sequence[int]]]) -> dict[str, list[str]]:
    """Port mappings as specs of ours, by network. `ways` are the networks that can publish, with the families that they have.

    A port leads to one address of each family: that on the first network that has it. One on a host address of a family that there
    isn't is left out, as netavark does.
    """
    if mappings is not None and len(mappings) > words.MOST_MAPPINGS:
        raise Invalid(f"{len(mappings)} port mappings are more than there are ports")
    first = {family: next((name for name, families in ways if family in families), "") for family in (4, 6)}
    found: dict[str, list[str]] = {}
    for mapping in mappings or ():
        _check_range(mapping)
        last = max(mapping.range, 1) - 1
        outer, inner = (f"{port}-{port + last}" if last else str(port) for port in (mapping.host_port, mapping.container_port))
        for name, host in _hosts(mapping, first):
            for protocol in _protocols(mapping):
                found.setdefault(name, []).append(f"{host}{outer}:{inner}/{protocol}")
    return {name: list(dict.fromkeys(specs)) for name, specs in found.items()}


def _check_range(mapping: words.PortMapping) -> None:
    if mapping.host_port == 0 or mapping.container_port == 0:
        raise Invalid(f"port mapping {mapping.host_port}:{mapping.container_port} has a port 0", "expected 1 to 65535")
    if max(mapping.host_port, mapping.container_port) + max(mapping.range, 1) - 1 > 65535:
        raise Invalid(f"{mapping.range} ports from {max(mapping.host_port, mapping.container_port)} on go beyond 65535")


def _hosts(mapping: words.PortMapping, first: dict[int, str]) -> list[tuple[str, str]]:
    """Where it is published, and the host address as a spec begins with it."""
    if not mapping.host_ip:
        if len({name for name in first.values() if name}) < 2:
            return [(name, "") for name in dict.fromkeys(first.values()) if name]
        return [(first[4], "0.0.0.0:"), (first[6], "[::]:")]
    try:
        address = ipaddress.ip_address(mapping.host_ip)
    except ValueError:
        raise Invalid(f'invalid host ip "{mapping.host_ip[:80]}" provided for port {mapping.host_port}') from None
    host = f"[{address}]:" if address.version == 6 else f"{address}:"
    return [(first[address.version], host)] if first[address.version] else []


def _protocols(mapping: words.PortMapping) -> list[str]:
    found = [text.strip().lower() for text in (mapping.protocol or "tcp").split(",")]
    for protocol in found:
        if protocol not in ("tcp", "udp", "sctp"):
            raise Invalid(f'unknown port protocol "{protocol[:40]}" provided for port {mapping.host_port}')
    return list(dict.fromkeys(found))
