"""`netavark create` (docs/netavark-create-input.md of netavark): what Podman asks for, made a whole network. Nothing is made here.

Podman up to 5 does this itself; Podman 6 asks netavark, and a plugin is asked by all. The names and subnets of Atoll's networks are
avoided as well as those that Podman says are used.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from msgspec import structs

from atoll.errors import Exhausted, Invalid
from atoll.frontends.netavark import networks, words
from atoll.frontends.netavark import options as given

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from atoll.engine import Engine
    from atoll.frontends.netavark.words import CreateCall, Network, Subnet
    from atoll.model import Prefix

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_ID: Final = re.compile(r"[0-9a-fA-F]{64}\Z")
_LONGEST_INTERFACE: Final = 15
_MOST_DEVICES: Final = 1_000_000
_MOST_TRIES: Final = 100
_DOCKER_MTU: Final = "com.docker.network.driver.mtu"
_DOCKER_BRIDGE: Final = "com.docker.network.bridge.name"


def create(engine: Engine, call: CreateCall) -> Network:
    """The network with all that was left open. Raises `Invalid` in netavark's words."""
    _check_name(call.network.name, call.network.id, call.used.names)
    if call.network.network_interface is not None:
        _check_interface(call.network.network_interface)
    _check_ipam(call.network)
    used = [words.parse_prefix(text) for text in call.used.subnets]
    if call.network.driver == "bridge":
        network = _with_docker_options(call.network)
        options = given.parse("bridge", network.options, strict=True)
        apart = options.vlan is None and options.mode == "managed"
        check = apart and call.options.check_used_subnets
        if check:
            used += _used_by(engine)
        network = _bridge(engine, network, call, used if check else (), apart=apart)
    elif call.network.driver in ("macvlan", "ipvlan"):
        network, check = _child(engine, call.network), False
    elif call.network.driver == networks.PLUGIN:
        return create_for_plugin(engine, call.network)
    else:
        raise Invalid(f'plugin for driver "{call.network.driver[:80]}" not found in plugin directories', "Atoll runs no plugins")
    return _finished(network, used if check else ())


def create_for_plugin(engine: Engine, network: Network) -> Network:
    """The same for `podman network create -d atoll`, where Podman says nothing of what is used. Name, id and driver stay. One with the
    name of a network of Atoll's is that network.
    """
    _check_name(network.name, network.id, ())
    _check_ipam(network)
    asked = _with_docker_options(network)
    given.parse("bridge", asked.options, strict=True)
    subnets = list(asked.subnets or _subnets_of(engine, asked.name))
    if given.ipam(asked.ipam_options) == "host-local":
        versions = {words.parse_net(subnet.subnet).version for subnet in subnets}
        if 4 not in versions and not (subnets and not asked.ipv6_enabled):
            subnets.append(words.Subnet(engine.free_subnet(4)))
        if asked.ipv6_enabled and 6 not in versions:
            subnets.append(words.Subnet(engine.free_subnet(6)))
        asked = structs.replace(asked, subnets=tuple(subnets), ipam_options={**(asked.ipam_options or {}), "driver": "host-local"})
    if not asked.network_interface:
        asked = structs.replace(asked, network_interface=_free_device(engine, "podman", (), ()))
    return _finished(asked, ())


# --- checks --------------------------------------------------------------------------------------------------------------------------


def _check_name(name: str, identity: str, taken: Collection[str]) -> None:
    if not name:
        raise Invalid("Network name must be supplied")
    if not _NAME.match(name):
        raise Invalid(f'Invalid characters in network name "{name[:80]}": must match [a-zA-Z0-9][a-zA-Z0-9_.-]*')
    if name in taken:
        raise Invalid(f"network already exists {name[:80]}")
    if not identity:
        raise Invalid("Network id must be supplied")
    if not _ID.match(identity):
        raise Invalid(f'Network id must be a hexadecimal string "{identity[:80]}"')


def _check_interface(name: str) -> None:
    if len(name.encode()) > _LONGEST_INTERFACE:
        raise Invalid(f"Interface name is too long: interface names must be {_LONGEST_INTERFACE} characters or less: {name[:80]}")
    if name in ("", ".", ".."):
        raise Invalid("Interface name cannot be . or ..")
    bad = next((c for c in name if c in "/:" or c.isspace() or not c.isprintable()), "")
    if bad:
        raise Invalid(f'Interface name cannot contain"{bad}"')


def _check_ipam(network: Network) -> None:
    driver = (network.ipam_options or {}).get("driver")
    if driver and driver not in given.IPAM:
        raise Invalid(f"Unsupported ipam driver: {driver[:80]}")
    if driver == "none" and network.subnets:
        raise Invalid("None ipam driver is set but subnets are given")


# --- drivers -------------------------------------------------------------------------------------------------------------------------


def _with_docker_options(network: Network) -> Network:
    """Docker's names of options mean the same here."""
    options = dict(network.options or {})
    changed = network
    if _DOCKER_MTU in options:
        options["mtu"] = options.pop(_DOCKER_MTU)
    if _DOCKER_BRIDGE in options:
        changed = structs.replace(changed, network_interface=options.pop(_DOCKER_BRIDGE))
    return changed if network.options is None else structs.replace(changed, options=options)


def _bridge(engine: Engine, network: Network, call: CreateCall, used: Sequence[Prefix], *, apart: bool) -> Network:
    interface = network.network_interface
    if interface is None:
        prefix = call.options.default_interface_name
        if prefix is None:
            raise Invalid("default interface name is not set")
        interface = _free_device(engine, prefix, call.used.interfaces, call.used.names)
    elif apart and interface in call.used.interfaces:
        raise Invalid(f"bridge name {interface[:80]} already in use")
    if not _NAME.match(interface):
        raise Invalid(f"bridge name {interface[:80]} is invalid")
    _check_interface(interface)
    network = structs.replace(network, network_interface=interface)
    if (network.ipam_options or {}).get("driver") in (None, "", "host-local"):
        subnets = list(network.subnets or ()) or [_free_ipv4(call.options.subnet_pools, used)]
        versions = {words.parse_net(subnet.subnet).version for subnet in subnets}
        if network.ipv6_enabled and 4 not in versions:
            subnets.append(_free_ipv4(call.options.subnet_pools, used))
        if network.ipv6_enabled and 6 not in versions:
            subnets.append(_free_ipv6([words.parse_prefix(text) for text in call.used.subnets]))
        network = structs.replace(network, subnets=tuple(subnets), ipam_options={**(network.ipam_options or {}), "driver": "host-local"})
    return network


def _child(engine: Engine, network: Network) -> Network:
    if network.network_interface is not None and network.network_interface not in engine.links():
        raise Invalid(f"parent interface {network.network_interface} does not exist")
    ipam = dict(network.ipam_options or {})
    driver = ipam.get("driver", "")
    if not driver:
        driver = ipam["driver"] = "host-local" if network.subnets else "dhcp"
    elif driver == "host-local" and not network.subnets:
        raise Invalid(f"{network.driver} driver needs at least one subnet specified when the host-local ipam driver is set")
    if driver == "dhcp" and network.driver == "ipvlan":
        raise Invalid("ipam driver dhcp is not supported with ipvlan")
    if driver == "dhcp" and network.subnets:
        raise Invalid("ipam driver dhcp set but subnets are set")
    given.parse(network.driver, network.options, strict=True)
    return structs.replace(network, dns_enabled=False, ipam_options=ipam)


# --- what was left open ---------------------------------------------------------------------------------------------------------------


def _free_device(engine: Engine, prefix: str, interfaces: Iterable[str], names: Iterable[str]) -> str:
    taken = {*engine.links(), *interfaces, *names, *(network.bridge for network in engine.state.networks.values())}
    for number in range(1, _MOST_DEVICES):
        if (name := f"{prefix}{number}") not in taken:
            return name
    raise Exhausted(f"could not find a free device name after {_MOST_DEVICES} attempts")


def _subnets_of(engine: Engine, name: str) -> list[Subnet]:
    """Those of Atoll's network of this name, which Podman's is to be."""
    found = (network for network in engine.state.networks.values() if network.name == name)
    return [words.Subnet(subnet.subnet, subnet.gateway or None) for network in found for subnet in network.subnets]


def _used_by(engine: Engine) -> list[Prefix]:
    return [ipaddress.ip_network(subnet.subnet) for network in engine.state.networks.values() for subnet in network.subnets]


def _free_ipv4(pools: Iterable[words.SubnetPool], used: Sequence[Prefix]) -> Subnet:
    """The first subnet of a pool that is apart from what is used; past what is in the way, so that no pool is too large."""
    taken = [prefix for prefix in used if prefix.version == 4]
    for pool in pools:
        base = words.parse_prefix(pool.base)
        if base.version != 4:
            continue
        if not base.prefixlen <= pool.size <= 32:
            raise Invalid(f"Failed to create network from pool: {base} has no subnets of size {pool.size}")
        step, at = 1 << (32 - pool.size), int(base.network_address)
        while at <= int(base.broadcast_address):
            candidate = ipaddress.IPv4Network((at, pool.size))
            stands = next((prefix for prefix in taken if prefix.overlaps(candidate)), None)
            if stands is None:
                return words.Subnet(str(candidate))
            at = (max(int(stands.broadcast_address), int(candidate.broadcast_address)) // step + 1) * step
    raise Exhausted("could not find free subnet from subnet pools")


def _free_ipv6(used: Sequence[Prefix]) -> Subnet:
    """A random one of unique local addresses (RFC 4193)."""
    for _ in range(_MOST_TRIES):
        candidate = ipaddress.IPv6Network((0xFD << 120 | secrets.randbits(56) << 64, 64))
        if not any(prefix.version == 6 and prefix.overlaps(candidate) for prefix in used):
            return words.Subnet(str(candidate))
    raise Exhausted("failed to get random ipv6 subnet")


# --- the end --------------------------------------------------------------------------------------------------------------------------


def _finished(network: Network, used: Sequence[Prefix]) -> Network:
    if (network.ipam_options or {}).get("driver") == "none":
        network = structs.replace(network, dns_enabled=False)
    if network.network_dns_servers is not None and not network.dns_enabled:
        raise Invalid("cannot set NetworkDNSServers if DNS is not enabled for the network")
    words.addresses(network.network_dns_servers)
    if network.subnets is not None:
        words.check_subnets([words.parse_prefix(subnet.subnet) for subnet in network.subnets])
        with_gateway = not network.internal or network.dns_enabled
        subnets = tuple(_subnet(subnet, used, with_gateway=with_gateway) for subnet in network.subnets)
        ipv6 = network.ipv6_enabled or any(":" in subnet.subnet for subnet in subnets)
        network = structs.replace(network, subnets=subnets, ipv6_enabled=ipv6)
    for route in network.routes or ():
        destination = words.parse_net(route.destination)
        if destination.ip != destination.network.network_address:
            raise Invalid("route destination invalid")
        networks.route(route)
    return structs.replace(network, created=datetime.now(UTC).isoformat())


def _subnet(subnet: Subnet, used: Sequence[Prefix], *, with_gateway: bool) -> Subnet:
    prefix = words.parse_prefix(subnet.subnet)
    if any(prefix.overlaps(other) for other in used):
        raise Invalid(f"subnet {prefix} is already used on the host or by another config")
    gateway = subnet.gateway
    if gateway:
        if words.parse_address(gateway) not in prefix:
            raise Invalid(f"gateway {gateway} not in subnet {prefix}")
    elif with_gateway:
        longest = 31 if prefix.version == 4 else 128
        if prefix.prefixlen >= longest:
            raise Invalid(f"could not create gateway for subnet {prefix} because it has a {longest} or greater subnet prefix")
        gateway = str(prefix.network_address + 1)
    if subnet.lease_range is not None:
        _check_lease_range(subnet.lease_range, prefix)
    return structs.replace(subnet, subnet=str(prefix), gateway=gateway or None)


def _check_lease_range(lease_range: words.LeaseRange, prefix: Prefix) -> None:
    ends = []
    for what, text in (("start_ip", lease_range.start_ip), ("end_ip", lease_range.end_ip)):
        if text:
            ends.append(words.parse_address(text))
            if ends[-1] not in prefix:
                raise Invalid(f"lease range {what} {ends[-1]} not in subnet {prefix}")
    if len(ends) == 2 and int(ends[0]) > int(ends[1]):
        raise Invalid(f"lease range start_ip {ends[0]} must be less than or equal to end_ip {ends[1]}")
