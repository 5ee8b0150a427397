"""From what was asked for to a network: every check, and the choice of what was left open. Pure; the host's facts are arguments."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct, structs

from atoll import ipam
from atoll.checks import (
    check_count,
    check_domains,
    check_interface,
    check_labels,
    check_mac,
    check_metric,
    check_name,
    check_route,
    check_servers,
    parse_rate,
)
from atoll.drivers import children, routing
from atoll.engine import network_options
from atoll.errors import Conflict, Invalid, NotFound
from atoll.kernel import rtnl
from atoll.model import BRIDGE_PREFIX, ISOLATIONS, MAX_SUBNETS, PARENT_PREFIX, PREDEFINED, Network, Route, Subnet, smallest_mtu

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from atoll.ipam import Taken
    from atoll.model import Prefix


class NetworkRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What `network create` takes, as text; what is left empty is chosen."""

    name: str
    driver: str = "bridge"
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    ip_ranges: tuple[str, ...] = ()
    aux_addresses: dict[str, str] = {}
    ipv4: bool = True
    ipv6: bool = False
    internal: bool = False
    isolation: str = "strict"
    icc: bool = True
    masquerade: bool = True
    guard: bool = True
    mtu: int = 0
    ingress_rate: str = ""
    egress_rate: str = ""
    routes: tuple[Route, ...] = ()
    default_route: bool = True
    metric: int = 0
    dns: bool = True
    servers: tuple[str, ...] = ()
    fleeting: bool = False
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


class HostFacts(NamedTuple):
    """What the host has, as far as a new network must know: its interfaces, what addresses lead somewhere, the MTU of its way out and
    the random part of its ULA prefix (RFC 4193)."""

    links: Mapping[str, rtnl.Link]
    addresses: Collection[tuple[str, str]]
    taken: Collection[Taken]
    mtu: int
    ula: int
    #: Subnets that are somebody's who has no network for them yet: never chosen, but taken by who names them.
    pooled: Collection[Taken] = ()

    def everything(self, others: Collection[Network]) -> list[Taken]:
        """What a subnet that we choose must keep clear of."""
        networks = (ipam.Taken(ipaddress.ip_network(s.subnet), f"network {other.name}") for other in others for s in other.subnets)
        return [*self.taken, *self.pooled, *networks]


class Chosen(NamedTuple):
    network: Network
    notes: tuple[str, ...]


def choose(request: NetworkRequest, facts: HostFacts, others: Collection[Network], new_id: str, mac: str, now: float) -> Chosen:
    """The network that was asked for, with lines that explain a choice. Raises `Invalid`, `Conflict`, `NotFound` or `Exhausted`."""
    request = _with_options(request)
    check_name(request.name, "network")
    if request.name in PREDEFINED or any(other.name == request.name for other in others):
        raise Conflict(f"a network named {request.name} exists", "choose another name")
    if request.driver in PREDEFINED:
        raise Conflict(f"there is one {request.driver} network and it exists", f"use the network named {request.driver}")
    check_labels(request.labels, "label")
    if request.isolation not in ISOLATIONS:
        raise Invalid(f"isolation {request.isolation[:20]!r} is unknown", f"expected one of {', '.join(ISOLATIONS)}")
    options = request.options
    notes: list[str] = []
    network = Network(
        id=new_id,
        name=request.name,
        driver=request.driver,  # type: ignore[arg-type]
        interface_prefix=network_options.interface_prefix(options),
        labels=request.labels,
        created=now,
    )
    network = _bridge(network, request, facts, others, mac) if request.driver == "bridge" else _child(network, request, facts, others)
    subnets = _subnets(request, network, facts, others, notes)
    kept = tuple(text for text in _gateway_texts(subnets) if (network.bridge, text) in facts.addresses)
    network = structs.replace(
        network,
        subnets=subnets,
        kept_addresses=kept,
        internal=request.internal,
        fleeting=request.fleeting,
        routes=tuple(map(check_route, request.routes)),
        default_route=request.default_route,
        metric=check_metric(request.metric),
        mtu=_mtu(request, network, facts),
        options=options,
    )
    _check_snat(network)
    routing.check(network.routes, [ipaddress.ip_network(subnet.subnet) for subnet in subnets])
    return Chosen(network, tuple(notes))


def _with_options(request: NetworkRequest) -> NetworkRequest:
    """Fold `--opt K=V` into the fields that say the same. Raises `Invalid` for options that the driver doesn't know."""
    folded = network_options.fold(request.driver, request.options)
    return structs.replace(request, options=folded.options, **folded.fields)


def _bridge(network: Network, request: NetworkRequest, facts: HostFacts, others: Collection[Network], mac: str) -> Network:
    name = check_interface(request.options.get("bridge", f"{BRIDGE_PREFIX}{network.id}"))
    if any(name in other.bridges() for other in others):
        raise Conflict(f"bridge {name} belongs to another network", "choose another name for the bridge")
    existing = facts.links.get(name)
    if existing is not None and existing.kind != "bridge":
        raise Conflict(f"interface {name} exists and is a {existing.kind or 'physical interface'}, not a bridge", "choose another name")
    nat = network_options.nat(request.options, masquerade=request.masquerade)
    modes = network_options.gateway_modes(request.options, internal=request.internal)
    sources = tuple(str(ipam.parse_address(request.options[key], f"option {key}")) for key in ("snat", "snat6") if key in request.options)
    if sources and nat != "masquerade":
        raise Invalid("a network can't be routed and rewrite its source address", "leave out --no-masquerade or the option snat")
    return structs.replace(
        network,
        bridge=name,
        made_bridge=existing is None,
        mac=check_mac(request.options.get("mac", mac)) if existing is None else existing.mac,
        icc=request.icc,
        isolation=request.isolation,
        guard=request.guard,
        nat="snat" if sources else nat,
        snat=sources,
        gateway_mode4=modes[0],
        gateway_mode6=modes[1],
        host_binding=network_options.host_binding(request.options),
        trusted=network_options.trusted_interfaces(request.options),
        announce=network_options.announce(request.options),
        inhibit_ipv4=network_options.inhibits(request.options, 4),
        inhibit_ipv6=network_options.inhibits(request.options, 6),
        ingress_rate=_rate(request.ingress_rate or request.options.get("ingress-rate", ""), "ingress rate"),
        egress_rate=_rate(request.egress_rate or request.options.get("egress-rate", ""), "egress rate"),
        dns=request.dns,
        servers=_servers(request),
        domains=check_domains(request.options["domain"].split(",")) if request.options.get("domain") else (),
    )


def _rate(text: str, what: str) -> int:
    return parse_rate(text, what) if text else 0


def _servers(request: NetworkRequest) -> tuple[str, ...]:
    servers = check_servers(request.servers)
    if servers and not request.dns:
        raise Invalid(f"network {request.name} would have DNS servers and no DNS", "leave out --no-dns or --dns")
    return servers


def _check_snat(network: Network) -> None:
    for source in network.snat:
        if not network.has(6 if ":" in source else 4):
            raise Invalid(f"source address {source} is of a family that network {network.name} lacks", "give a subnet of that family")


def _child(network: Network, request: NetworkRequest, facts: HostFacts, others: Collection[Network]) -> Network:
    driver = request.driver
    for wrong, flag in (
        (not request.icc, "--no-icc"),
        (request.isolation != "strict", "--isolation"),
        (not request.masquerade, "--no-masquerade"),
        (not request.guard, "--no-guard"),
        (bool(request.ingress_rate or request.egress_rate), "a rate"),
        (bool(request.servers), "--dns"),
    ):
        if wrong:
            raise Invalid(f"{flag} means nothing for driver {driver}", "its packets don't pass the host's bridge or firewall")
    parent, made_parent = _parent(network, request, facts, others)
    modes = rtnl.MACVLAN_MODES if driver == "macvlan" else rtnl.IPVLAN_MODES
    mode = request.options.get("mode", "bridge" if driver == "macvlan" else "l2")
    flag = request.options.get("flag", "bridge") if driver == "ipvlan" else ""
    if mode not in modes:
        raise Invalid(f"mode {mode[:20]!r} is unknown to {driver}", f"expected one of {', '.join(modes)}")
    if flag and flag not in rtnl.IPVLAN_FLAGS:
        raise Invalid(f"flag {flag[:20]!r} is unknown to ipvlan", f"expected one of {', '.join(rtnl.IPVLAN_FLAGS)}")
    for other in others:
        if other.parent == parent and (other.driver != driver or "passthru" in (mode, other.mode)):
            raise Conflict(f"{parent} carries network {other.name} ({other.driver} {other.mode})", "choose another parent")
    return structs.replace(network, parent=parent, made_parent=made_parent, mode=mode, flag=flag, nat="routed")


def _parent(network: Network, request: NetworkRequest, facts: HostFacts, others: Collection[Network]) -> tuple[str, bool]:
    """The interface to hang on, and whether it is (or was) made for such networks."""
    parent = request.options.get("parent", "")
    if not parent:
        return f"{PARENT_PREFIX}{network.id}", True
    check_interface(parent)
    if parent == "lo":
        raise Invalid(f"lo can't carry a {request.driver} network", "choose an interface with a network behind it")
    if any(other.parent == parent and other.made_parent for other in others):
        return parent, True
    if parent in facts.links:
        return parent, False
    base, number = children.vlan_of(parent)
    if base not in facts.links:
        raise NotFound(f"no interface {base or parent} on the host", "ip link shows what there is")
    if number and facts.links[base].kind == "vlan":
        raise Invalid(f"{base} is a VLAN itself", "choose the interface that it is on")
    return parent, True


def _mtu(request: NetworkRequest, network: Network, facts: HostFacts) -> int:
    carrier = facts.links.get(network.parent or network.bridge) or facts.links.get(children.vlan_of(network.parent)[0])
    limit = carrier.mtu if carrier is not None and network.parent else 65535
    smallest = smallest_mtu(ipv6=network.has(6) or any(":" in text for text in request.subnets) or request.ipv6)
    if request.mtu and not smallest <= request.mtu <= limit:
        raise Invalid(f"mtu {request.mtu} is out of range", f"expected {smallest} to {limit} bytes here")
    return request.mtu or (carrier.mtu if carrier is not None else max(facts.mtu, smallest))


# --- subnets -------------------------------------------------------------------------------------------------------------------------


def _subnets(
    request: NetworkRequest, network: Network, facts: HostFacts, others: Collection[Network], notes: list[str]
) -> tuple[Subnet, ...]:
    check_count(request.subnets, MAX_SUBNETS, "subnets")
    prefixes = [ipam.parse_subnet(text) for text in request.subnets]
    for position, prefix in enumerate(prefixes):
        for other in prefixes[:position]:
            if prefix.overlaps(other):
                raise Invalid(f"subnets {other} and {prefix} overlap", "each subnet of a network must be apart")
        _check_free(prefix, network, facts, others, notes)
    versions = {prefix.version for prefix in prefixes}
    alone = request.driver == "bridge" or (network.made_parent and not children.vlan_of(network.parent)[0])
    if not alone and not prefixes:
        raise Invalid(f"driver {request.driver} needs --subnet", f"give the subnet of the network that {network.parent} is on")
    if alone:
        taken = facts.everything(others)
        if request.ipv4 and 4 not in versions:
            chosen = ipam.choose_subnet(taken)
            prefixes.insert(0, chosen.subnet)
            notes += _worth_saying(chosen)
        if request.ipv6 and 6 not in versions:
            ula = ipam.machine_ula(facts.ula)
            chosen = ipam.choose_ula(ula, taken, int(network.id[:4], 16))
            prefixes.append(chosen.subnet)
            notes += _worth_saying(chosen)
    # Without the guard, and so without addresses that it would know, endpoints may find their own.
    if not prefixes and (request.guard or request.driver != "bridge"):
        raise Invalid(f"network {network.name} would have no addresses", "leave out --no-ipv4, or add --ipv6 or --subnet")
    return _laid_out(request, network, prefixes)


def _worth_saying(chosen: ipam.Chosen) -> list[str]:
    """That our own networks have their addresses is no news; what else stood in the way is."""
    return [line for line in chosen.skipped if "route" in line or "nameserver" in line]


def _check_free(prefix: Prefix, network: Network, facts: HostFacts, others: Collection[Network], notes: list[str]) -> None:
    """An explicit subnet may lie inside a wider route that leads elsewhere (it is more specific), but not on something that is here."""
    for other in others:
        for subnet in other.subnets:
            shared = network.parent and other.parent == network.parent
            if not shared and ipaddress.ip_network(subnet.subnet).overlaps(prefix):
                raise Conflict(f"subnet {prefix} overlaps {subnet.subnet} of network {other.name}", "choose another subnet")
    if network.driver != "bridge":
        return
    for taken in facts.taken:
        if network.bridge and taken.why.endswith(f"dev {network.bridge}"):
            continue
        if not taken.network.overlaps(prefix):
            continue
        via = " via " in taken.why
        if via and taken.network.prefixlen < prefix.prefixlen:
            notes.append(f"note: {prefix} is inside {taken.network} ({taken.why}); it is reached here from now on")
        elif taken.network.num_addresses > 1 or taken.network.network_address in prefix:
            if taken.why.startswith("nameserver"):
                notes.append(f"note: {taken.why} is inside {prefix} and out of reach from now on")
                continue
            raise Conflict(f"subnet {prefix} overlaps {taken.network} ({taken.why})", "choose another subnet")


def _laid_out(request: NetworkRequest, network: Network, prefixes: Sequence[Prefix]) -> tuple[Subnet, ...]:
    """Hand out gateways, ranges and reserved addresses to the subnets that they lie in."""
    gateways = [ipam.parse_address(text, "gateway") for text in request.gateways]
    ranges = [ipam.parse_subnet(text) for text in request.ip_ranges]
    reserved = {name: ipam.parse_address(text, f"reserved address {name}") for name, text in request.aux_addresses.items()}
    subnets: list[Subnet] = []
    for prefix in prefixes:
        mine = [gateway for gateway in gateways if gateway in prefix]
        if len(mine) > 1:
            raise Invalid(f"subnet {prefix} has two gateways, {mine[0]} and {mine[1]}", "give one")
        own_ranges = [r for r in ranges if r.version == prefix.version and r.subnet_of(prefix)]  # type: ignore[arg-type]
        own_reserved = {name: value for name, value in reserved.items() if value in prefix}
        gateway = mine[0] if mine else None
        if network.gateway_mode(prefix.version) == "isolated":
            if gateway is not None:
                raise Invalid(f"gateway {gateway} of a network whose gateway mode is isolated", "leave it out")
        elif gateway is None and request.driver == "bridge":
            gateway = ipam.next_gateway(prefix, own_ranges, own_reserved)
        ipam.check_layout(prefix, gateway, own_ranges, own_reserved)
        subnets.append(
            Subnet(
                subnet=str(prefix),
                gateway=str(gateway) if gateway else "",
                ranges=tuple(map(str, own_ranges)),
                reserved={name: str(value) for name, value in own_reserved.items()},
            )
        )
    where = f"in none of the subnets {', '.join(map(str, prefixes))}"
    for gateway in gateways:
        if not any(gateway in prefix for prefix in prefixes):
            raise Invalid(f"gateway {gateway} is {where}", "choose an address inside a subnet")
    for part in ranges:
        if not any(part.version == prefix.version and part.subnet_of(prefix) for prefix in prefixes):  # type: ignore[arg-type]
            raise Invalid(f"ip-range {part} is {where}", "choose a range inside a subnet")
    for name, value in reserved.items():
        if not any(value in prefix for prefix in prefixes):
            raise Invalid(f"reserved address {name}={value} is {where}", "choose an address inside a subnet")
    return tuple(subnets)


def _gateway_texts(subnets: Sequence[Subnet]) -> list[str]:
    return [f"{s.gateway}/{ipaddress.ip_network(s.subnet).prefixlen}" for s in subnets if s.gateway]
