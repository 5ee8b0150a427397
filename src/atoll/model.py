"""What Atoll knows: networks, namespaces, endpoints, published ports, as frozen values.

These are what the state file holds, what the API speaks and what the drivers turn into plans. Addresses are text in their canonical
form; rates are bits a second; times are seconds since the epoch. What comes from outside is checked at the edge (`checks`).
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from atoll.words import RouteKind

Driver = Literal["bridge", "macvlan", "ipvlan", "host", "none"]
Nat = Literal["masquerade", "routed", "snat", "kept"]
GatewayMode = Literal["nat", "nat-unprotected", "routed", "isolated"]
Protocol = Literal["tcp", "udp", "sctp"]
State = Literal["pending", "ready", "removing"]
NamespaceKind = Literal["created", "adopted", "external"]
RunState = Literal["pending", "running", "ended"]
Isolation = Literal["strict", "isolated", "open"]
Announce = Literal["changed", "always", "never"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

DRIVERS: Final[tuple[Driver, ...]] = ("bridge", "macvlan", "ipvlan", "host", "none")
PROTOCOLS: Final[tuple[Protocol, ...]] = ("tcp", "udp", "sctp")
GATEWAY_MODES: Final[tuple[GatewayMode, ...]] = ("nat", "nat-unprotected", "routed", "isolated")
ANNOUNCE: Final[tuple[Announce, ...]] = ("changed", "always", "never")
ISOLATIONS: Final[tuple[Isolation, ...]] = ("strict", "isolated", "open")
#: These always exist and can't be removed, as in Docker.
PREDEFINED: Final = {"host": "host", "none": "none"}
#: Interface names that Atoll gives out start so; the firewall drops what comes from such an interface and isn't known.
BRIDGE_PREFIX: Final = "atb"
VETH_PREFIX: Final = "atv"
TRUNK_PREFIX: Final = "att"
SHAPER_PREFIX: Final = "ati"
PARENT_PREFIX: Final = "atp"
SPARE_PREFIX: Final = "atc"
#: A kernel bridge takes 1,023 ports, but one broadcast to more than about 900 overruns the backlog of a CPU (net.core.netdev_max_backlog
#: 1000), also when it goes on to the next bridge of the chain; so a network grows by bridges of this many ports.
SHARD_PORTS: Final = 480
MAX_SHARDS: Final = 10
#: Of a resolv.conf (MAXNS).
MAX_SERVERS: Final = 3
#: Subnets of a network. Whatever is asked for is worked through while all others wait, and these are compared each with each.
MAX_SUBNETS: Final = 64
#: Routes of an endpoint: they are made in one message to the kernel.
MAX_ROUTES: Final = 1000

Port = Annotated[int, Meta(ge=1, le=65535)]


class Route(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A further route in a namespace, by an endpoint's interface: to the prefix `destination`, through `gateway` or on the link. One of
    another kind than unicast is a way that ends there (ip-route(8))."""

    destination: str
    gateway: str = ""
    metric: int = 0
    kind: RouteKind = "unicast"

    def __str__(self) -> str:
        kind = "" if self.kind == "unicast" else f"{self.kind} "
        return f"{kind}{self.destination}{f' via {self.gateway}' if self.gateway else ''}{f' metric {self.metric}' if self.metric else ''}"

    @property
    def version(self) -> int:
        return 6 if ":" in self.destination else 4


class Subnet(Struct, frozen=True, omit_defaults=True):
    """One address range of a network. `ranges` limits where addresses are taken from; `reserved` are names of addresses never taken."""

    subnet: str
    gateway: str = ""
    ranges: tuple[str, ...] = ()
    reserved: dict[str, str] = {}

    @property
    def version(self) -> int:
        return 6 if ":" in self.subnet else 4


class Network(Struct, frozen=True, omit_defaults=True):
    """A network. `bridge` is its first kernel bridge and the one with the gateway addresses; `made_bridge` is false when it was there
    before us and stays. `parent` and `mode` belong to macvlan and ipvlan; `made_parent` is true when the parent is there for such
    networks alone: an interface that leads nowhere, or the VLAN 50 of eth0 that is called eth0.50. `snat` holds the source addresses for
    `nat="snat"`. With `dns` the gateway of a bridge network answers for names, below `domains` as well as below `NETWORK.atoll`, and asks
    `servers` (none: the host's) about those of the world outside. `isolation`: networks that are `open` reach each other and `isolated`
    ones; `isolated` ones don't reach each other; a `strict` one reaches no other. `routes`, `default_route` and `metric` are those of its
    endpoints that say nothing else. A `fleeting` one goes with its last endpoint.

    `nat` says whether what leaves keeps its address: where it is `routed` the outside also reaches the endpoints by theirs, where it is
    `kept` it doesn't. The gateway modes are Docker's: `nat-unprotected` opens the endpoints to the outside; `routed` keeps addresses,
    and published ports are reached by the endpoints' own, while the host's ports lead nowhere; `isolated`, of an internal network, has no
    gateway. `host_binding` is the host's address for ports that name none; `trusted` interfaces of the host lead to published ports by
    the endpoints' own addresses; with an `inhibit` the bridge doesn't carry that gateway's address, someone else does.
    `announce`: whether neighbours are told of a new endpoint's addresses, by default of those that another had before."""

    id: str
    name: str
    driver: Driver
    subnets: tuple[Subnet, ...] = ()
    mtu: int = 1500
    mac: str = ""
    bridge: str = ""
    made_bridge: bool = True
    kept_addresses: tuple[str, ...] = ()
    internal: bool = False
    isolation: Isolation = "strict"
    icc: bool = True
    guard: bool = True
    nat: Nat = "masquerade"
    snat: tuple[str, ...] = ()
    gateway_mode4: GatewayMode = "nat"
    gateway_mode6: GatewayMode = "nat"
    host_binding: str = ""
    trusted: tuple[str, ...] = ()
    inhibit_ipv4: bool = False
    inhibit_ipv6: bool = False
    interface_prefix: str = "eth"
    announce: Announce = "changed"
    parent: str = ""
    made_parent: bool = False
    mode: str = ""
    flag: str = ""
    ingress_rate: int = 0
    egress_rate: int = 0
    routes: tuple[Route, ...] = ()
    default_route: bool = True
    metric: int = 0
    dns: bool = True
    servers: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    fleeting: bool = False
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    shards: int = 1
    created: float = 0.0
    state: State = "pending"

    def has(self, version: int) -> bool:
        return any(subnet.version == version for subnet in self.subnets)

    def gateway(self, version: int) -> str:
        """The gateway's address for a family; empty when endpoints have no way out over this network."""
        if self.internal:
            return ""
        return next((subnet.gateway for subnet in self.subnets if subnet.version == version and subnet.gateway), "")

    def gateway_mode(self, version: int) -> GatewayMode:
        return self.gateway_mode4 if version == 4 else self.gateway_mode6

    def maps_ports(self, version: int = 0) -> bool:
        """Whether ports of the host lead to published ones, in a family or in any."""
        versions = (version,) if version else tuple(v for v in (4, 6) if self.has(v))
        return any(self.gateway_mode(v) != "routed" for v in versions)

    def serves(self, version: int) -> bool:
        """Whether somebody beyond the network reaches published ports by the endpoints' own addresses."""
        return bool(self.trusted) or self.gateway_mode(version) == "routed"

    def gateways(self) -> tuple[Subnet, ...]:
        """The subnets whose gateway the first bridge is."""
        inhibited = {4: self.inhibit_ipv4, 6: self.inhibit_ipv6}
        return tuple(subnet for subnet in self.subnets if subnet.gateway and not inhibited[subnet.version])

    def shard(self, index: int) -> str:
        """The name of the kernel bridge number `index`."""
        return self.bridge if index == 0 else f"{BRIDGE_PREFIX}{self.id}s{index}"

    def resolvers(self) -> tuple[str, ...]:
        """The addresses at which its endpoints ask for names, also on an internal network; none without DNS."""
        if self.driver != "bridge" or not self.dns:
            return ()
        return tuple(subnet.gateway for subnet in self.gateways())

    def bridges(self) -> tuple[str, ...]:
        return tuple(self.shard(index) for index in range(self.shards)) if self.driver == "bridge" else ()


class Namespace(Struct, frozen=True, omit_defaults=True):
    """A network namespace under our care. `device` and `inode` tell it from any other as long as it lives; an adopted one also knows
    where it came from and, if that was a process, which (`pid`, `start` in ticks since boot `boot`). `servers` are asked about names of the
    world outside instead of its network's; `files`: an adopted one has a resolv.conf and hosts of ours, as each created one has.

    `path` is the file that leads to one which others made and end: when it leads nowhere or to another namespace, ours has ended. The
    inside of an `external` one is set up by somebody else (Docker): we make the host's side, and the other end of each link lies on the
    host (`Endpoint.spare`) until they take it. At first nothing leads to it, so it has no inode. `former` is the name that it is losing.
    `resolver` is the address of somebody else's resolver inside, which is asked first about what we don't know."""

    name: str
    kind: NamespaceKind = "created"
    source: str = ""
    device: int = 0
    inode: int = 0
    pid: int = 0
    start: int = 0
    boot: str = ""
    named: bool = True
    path: str = ""
    former: str = ""
    servers: tuple[str, ...] = ()
    resolver: str = ""
    files: bool = False
    labels: dict[str, str] = {}
    created: float = 0.0
    state: State = "pending"

    @property
    def has_files(self) -> bool:
        return self.files or self.kind == "created"

    @property
    def is_external(self) -> bool:
        return self.kind == "external"

    @property
    def can_be_entered(self) -> bool:
        """Whether something leads to it yet."""
        return self.named or not self.is_external


class Run(Struct, frozen=True, omit_defaults=True):
    """A program that `atoll run` started: the process `pid` that began at `start` (ticks since boot `boot`).

    `namespace` names the one that it is in: its own, which has the run's name and goes when it ends, another's, or the host's (empty).
    Of a detached one `shepherd` is the process that waits for it, writes its log and says its exit code; once it has `ended` it is kept
    for `atoll ps -a`. `exit_code` is None while it runs, and when nobody could say it; 128 and the signal's number after a signal.
    """

    name: str
    namespace: str = ""
    command: tuple[str, ...] = ()
    user: str = ""
    directory: str = ""
    detached: bool = False
    pid: int = 0
    start: int = 0
    boot: str = ""
    shepherd: int = 0
    labels: dict[str, str] = {}
    exit_code: int | None = None
    created: float = 0.0
    ended: float = 0.0
    state: RunState = "pending"

    @property
    def owns(self) -> bool:
        """Whether it has a namespace of its own."""
        return self.namespace == self.name

    @property
    def alive(self) -> bool:
        return self.state != "ended"


class PublishedPort(Struct, frozen=True, omit_defaults=True):
    """A host port, or a range of `count` ports, that leads to as many ports of an endpoint. `host_ip` empty means every address."""

    host_port: Port
    port: Port
    count: int = 1
    protocol: Protocol = "tcp"
    host_ip: str = ""

    def __str__(self) -> str:
        host = f"[{self.host_ip}]:" if ":" in self.host_ip else f"{self.host_ip}:" if self.host_ip else ""
        outer = f"{self.host_port}-{self.host_port + self.count - 1}" if self.count > 1 else str(self.host_port)
        inner = f"{self.port}-{self.port + self.count - 1}" if self.count > 1 else str(self.port)
        return f"{host}{outer}:{inner}/{self.protocol}"

    @property
    def host_version(self) -> int:
        """4 or 6 when it is published on addresses of one family only, else 0."""
        return 0 if not self.host_ip else 6 if ":" in self.host_ip else 4

    @property
    def wildcard(self) -> bool:
        return self.host_ip in ("", "0.0.0.0", "::")


class Tuning(Struct, frozen=True, omit_defaults=True):
    """What is asked of an endpoint's interface and its namespace beyond what Atoll sets; None, 0 and empty: nothing.

    `settings` of the kernel are named by their path under /proc/sys and have the value that the kernel shows; `asked` has the words of
    those for which that isn't what was written. `queue` is how many packets may wait to be sent.
    """

    settings: dict[str, str] = {}
    asked: dict[str, str] = {}
    promisc: bool | None = None
    allmulti: bool | None = None
    queue: int | None = None
    mac: str = ""
    mtu: int = 0


#: Nothing is asked. The very value, as what is a default is only left out of a record if it is that one.
UNTUNED: Final = Tuning()


class AddressPool(Struct, frozen=True, omit_defaults=True):
    """Addresses that are leased without a network: a subnet, the parts of it that leases come from (none: all of it) as prefixes or
    FIRST-LAST, and addresses that are never leased. With `until_reboot` leases end when the machine does; `boot` is when they began."""

    name: str
    subnet: str
    ranges: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()
    until_reboot: bool = False
    boot: str = ""


class PortChoice(PublishedPort, frozen=True, omit_defaults=True):
    """A port to be published on the first of `among` host ports from `host_port` on that is free, or on any that is if that is 0. What is
    recorded is the one that was chosen, as a `PublishedPort`."""

    among: int = 0

    def __str__(self) -> str:
        outer = f"{self.host_port}-{self.host_port + self.among - 1}" if self.among else "0"
        host = f"[{self.host_ip}]:" if ":" in self.host_ip else f"{self.host_ip}:" if self.host_ip else ""
        return f"{host}{outer}:{self.port}/{self.protocol}"


class Endpoint(Struct, frozen=True, omit_defaults=True):
    """One namespace's attachment to one network. `addresses` carry the prefix length; `number` is the n-th interface of the namespace;
    `shard` the kernel bridge of the network that it is a port of. `mtu` is 0 where it is the network's. Without `default_route` the
    namespace's default route never leads by it; `metric` is that of the one that does. `owner` is who asked for it, such as
    `docker:ENDPOINT`, and empty for Atoll's own. `host_name` is a further name of its interface on the host. In an external namespace
    `interface` is the spare end's name until we know a better. `untuned` is what was there before `tuning`."""

    id: str
    network: str
    namespace: str
    interface: str
    addresses: tuple[str, ...] = ()
    mac: str = ""
    number: int = 0
    shard: int = 0
    aliases: tuple[str, ...] = ()
    gateway_priority: int = 0
    mtu: int = 0
    routes: tuple[Route, ...] = ()
    default_route: bool = True
    metric: int = 0
    owner: str = ""
    host_name: str = ""
    ports: tuple[PublishedPort, ...] = ()
    ingress_rate: int = 0
    egress_rate: int = 0
    tuning: Tuning = UNTUNED
    untuned: Tuning = UNTUNED
    created: float = 0.0
    state: State = "pending"

    @property
    def host_interface(self) -> str:
        return VETH_PREFIX + self.id

    @property
    def spare(self) -> str:
        """What an external namespace's own end is called until somebody takes it."""
        return SPARE_PREFIX + self.id

    @property
    def shaper(self) -> str:
        return SHAPER_PREFIX + self.id

    def address(self, version: int) -> str:
        """The first address of a family, without prefix length; empty when there is none."""
        return next((text.partition("/")[0] for text in self.addresses if (":" in text) == (version == 6)), "")


@lru_cache(maxsize=16384)
def interface(text: str) -> Interface:
    """`192.168.34.163/24` as a value; for text that was checked when it came in."""
    return ipaddress.ip_interface(text)


@lru_cache(maxsize=16384)
def address(text: str) -> Address:
    return ipaddress.ip_address(text)


def smallest_mtu(*, ipv6: bool) -> int:
    """In bytes (RFC 791, RFC 8200)."""
    return 1280 if ipv6 else 68


def as_tuples(options: dict[str, Any]) -> dict[str, Any]:
    """Options from a caller who gives lists where a value has tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
