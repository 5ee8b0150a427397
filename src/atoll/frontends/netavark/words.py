"""What Podman writes to netavark, and what netavark answers: its JSON as checked values.

The fields are those of netavark's `network/types.rs`. Unknown ones are ignored, as netavark does; all else is strict. Addresses are
checked here and stay text. Raises `Invalid` with the words that netavark would use, for Podman's users know them.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from atoll.checks import check_count
from atoll.errors import Invalid
from atoll.model import MAX_SUBNETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from atoll.model import Address, Prefix

S = TypeVar("S", bound=Struct)

Port = Annotated[int, Meta(ge=0, le=65535)]
Metric = Annotated[int, Meta(ge=0, le=2**32 - 1)]

#: Mappings in one call; there are no more ports.
MOST_MAPPINGS: Final = 65535


# --- networks ------------------------------------------------------------------------------------------------------------------------


class LeaseRange(Struct, frozen=True, omit_defaults=True):
    """The part of a subnet that Podman takes addresses from."""

    start_ip: str | None = None
    end_ip: str | None = None


class Subnet(Struct, frozen=True, omit_defaults=True):
    subnet: str
    gateway: str | None = None
    lease_range: LeaseRange | None = None


class Route(Struct, frozen=True, omit_defaults=True):
    destination: str
    gateway: str | None = None
    metric: Metric | None = None
    route_type: str | None = None


class Network(Struct, frozen=True, omit_defaults=True):
    """A network as Podman keeps it in /etc/containers/networks."""

    name: str
    id: str
    driver: str
    dns_enabled: bool
    internal: bool
    ipv6_enabled: bool
    network_interface: str | None = None
    created: str | None = None
    options: dict[str, str] | None = None
    ipam_options: dict[str, str] | None = None
    subnets: tuple[Subnet, ...] | None = None
    routes: tuple[Route, ...] | None = None
    network_dns_servers: tuple[str, ...] | None = None
    labels: dict[str, str] | None = None


# --- setup and teardown --------------------------------------------------------------------------------------------------------------


class PerNetwork(Struct, frozen=True, kw_only=True):
    """What is said of a container on one of its networks."""

    interface_name: str
    static_ips: tuple[str, ...] | None = None
    static_mac: str | None = None
    aliases: tuple[str, ...] | None = None
    options: dict[str, str] | None = None


class Named(PerNetwork, frozen=True, kw_only=True):
    """The same in a list instead of a map."""

    name: str


class PortMapping(Struct, frozen=True):
    """`range` ports from `host_port` on that lead to as many from `container_port` on; 0 means one."""

    container_port: Port
    host_port: Port
    host_ip: str = ""
    protocol: str = ""
    range: Port = 0


class Container(Struct, frozen=True):
    """A container with its networks: a map by their names (Podman up to 5), or a list, whose order counts."""

    container_id: str
    container_name: str
    networks: dict[str, PerNetwork] | tuple[Named, ...]
    network_info: dict[str, Network]
    container_hostname: str | None = None
    port_mappings: tuple[PortMapping, ...] | None = None
    dns_servers: tuple[str, ...] | None = None

    def named(self) -> list[tuple[str, PerNetwork]]:
        """The networks' names with what is said of them. A map has no order, so the interfaces' names decide: eth0 is the first."""
        if isinstance(self.networks, dict):
            return sorted(self.networks.items(), key=lambda pair: (len(pair[1].interface_name), pair[1].interface_name))
        return [(per.name, per) for per in self.networks]

    def attachments(self) -> Iterator[tuple[Network, PerNetwork]]:
        """Each network with what is said of it. Raises `Invalid` unless all are described."""
        named = self.named()
        if len({name for name, _ in named}) != len(named):
            raise Invalid("a network is named twice")
        for name, per in named:
            if name not in self.network_info:
                raise Invalid(f"network info for network {name[:80]} not found")
            if self.network_info[name].name != name:
                raise Invalid(f"network info for network {name[:80]} is that of {self.network_info[name].name[:80]!r}")
            yield self.network_info[name], per


class PluginCall(Struct, frozen=True):
    """What netavark writes to a plugin: one network of a container."""

    container_id: str
    container_name: str
    network: Network
    network_options: PerNetwork
    port_mappings: tuple[PortMapping, ...] | None = None

    def container(self) -> Container:
        return Container(
            container_id=self.container_id,
            container_name=self.container_name,
            networks={self.network.name: self.network_options},
            network_info={self.network.name: self.network},
            port_mappings=self.port_mappings,
        )


class NetAddress(Struct, frozen=True):
    ipnet: str
    gateway: str | None


class NetInterface(Struct, frozen=True):
    mac_address: str
    subnets: tuple[NetAddress, ...]


class Status(Struct, frozen=True):
    """What netavark answers for a network; Podman shows it, and makes the container's resolv.conf of it."""

    dns_search_domains: tuple[str, ...]
    dns_server_ips: tuple[str, ...]
    interfaces: dict[str, NetInterface]


# --- create --------------------------------------------------------------------------------------------------------------------------


class Used(Struct, frozen=True):
    """What a new network must avoid; `names` are ids by networks' names."""

    interfaces: tuple[str, ...]
    names: dict[str, str]
    subnets: tuple[str, ...]


class SubnetPool(Struct, frozen=True):
    """Where subnets with prefixes of `size` bits are taken from."""

    base: str
    size: Annotated[int, Meta(ge=0, le=128)]


class CreateOptions(Struct, frozen=True):
    subnet_pools: tuple[SubnetPool, ...]
    check_used_subnets: bool
    default_interface_name: str | None = None


class CreateCall(Struct, frozen=True):
    network: Network
    used: Used
    options: CreateOptions


# --- reading -------------------------------------------------------------------------------------------------------------------------


def decode(data: bytes, kind: type[S], what: str) -> S:
    """Raises `Invalid` for anything that isn't `kind` in JSON; `what` is what netavark calls it."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"failed to load {what}: {error}") from None


def parse_address(text: str) -> Address:
    """Raises `Invalid`; an address of a link, with a zone, is none that can be meant here."""
    try:
        if "%" not in text:
            return ipaddress.ip_address(text)
    except ValueError:
        pass
    raise Invalid(f"invalid IP address syntax: {text[:80]!r}")


def parse_net(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    """ADDRESS/LENGTH, with whatever host part."""
    try:
        if "/" in text and "%" not in text:
            return ipaddress.ip_interface(text)
    except ValueError:
        pass
    raise Invalid(f"invalid IP address syntax: {text[:80]!r}")


def parse_prefix(text: str) -> Prefix:
    return parse_net(text).network


def addresses(texts: Iterable[str] | None) -> tuple[str, ...]:
    """Addresses in their canonical form."""
    return tuple(str(parse_address(text)) for text in texts or ())


def check_subnets(prefixes: list[Prefix]) -> None:
    """The subnets of a network must be apart."""
    check_count(prefixes, MAX_SUBNETS, "subnets")
    for position, first in enumerate(prefixes):
        for second in prefixes[position + 1 :]:
            if first == second:
                raise Invalid(f"duplicate subnet defined: {first}")
            if first.overlaps(second):
                raise Invalid(f"overlapping subnets: {first} and {second}")
