"""What an endpoint, or a machine outside, can't make others believe: frames written byte by byte, and where they arrived."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pytest

from atoll.firewall.elements import link_local
from atoll.kernel import rtnl, sysctl
from tests.support import PATIENCE, TRANSPORTS, Inside, Probe, Traffic, ip, lenient, outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll import Engine
    from atoll.lab.machine import Machine
    from atoll.model import Endpoint
    from tests.support import Place

FACING: Final = {4: "198.51.100.1", 6: "2001:db8:100::1"}
OUTSIDE: Final = {4: "198.51.100.9", 6: "2001:db8:100::9"}
#: Where the host listens.
LISTENING: Final = 9

# --- frames --------------------------------------------------------------------------------------------------------------------------

IPV4: Final = 0x0800
ARP: Final = 0x0806
VLAN: Final = 0x8100
IPV6: Final = 0x86DD
MPLS: Final = 0x8847
SERVICE_VLAN: Final = 0x88A8
LLDP: Final = 0x88CC
ICMP: Final = 1
UDP: Final = 17
FRAGMENT: Final = 44
ICMP6: Final = 58
DESTINATION_OPTIONS: Final = 60

EVERYBODY: Final = "ff:ff:ff:ff:ff:ff"
ALL_NODES: Final = "33:33:00:00:00:01"
#: Groups that a bridge keeps to its port (IEEE 802.1D, table 7-10); the last one is where LLDP is sent.
PORT_GROUPS: Final = [f"01:80:c2:00:00:{number:02x}" for number in range(2, 16)]
NOBODY: Final = "02:00:00:00:00:99"


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF) or 0xFFFF


def _with_checksum(data: bytes, at: int, pseudo_header: bytes = b"") -> bytes:
    return data[:at] + struct.pack("!H", _checksum(pseudo_header + data)) + data[at + 2 :]


def frame(to: str, by: str, kind: int, payload: bytes) -> bytes:
    """An Ethernet frame of an ethertype."""
    return _mac(to) + _mac(by) + struct.pack("!H", kind) + payload


def tagged(plain: bytes, vlan: int, kind: int = VLAN) -> bytes:
    return plain[:12] + struct.pack("!HH", kind, vlan) + plain[12:]


def arp(operation: int, by: str, address: str) -> bytes:
    """RFC 826; 1 asks, 2 answers."""
    return struct.pack("!HHBBH6s4s6s4s", 1, IPV4, 6, 4, operation, _mac(by), _packed(address), _mac(EVERYBODY), _packed(address))


def ip_packet(source: str, to: str, protocol: int, payload: bytes) -> bytes:
    if ":" in to:
        return struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, 255, _packed(source), _packed(to)) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, _packed(source), _packed(to))
    return _with_checksum(head, 10) + payload


def udp(source: str, to: str, port: int, payload: bytes = b"", *, by: int = 4000) -> bytes:
    """A packet to a port from port `by`."""
    size = 8 + len(payload)
    head = _packed(source) + _packed(to) + (struct.pack("!IHBB", size, 0, 0, UDP) if ":" in to else struct.pack("!BBH", 0, UDP, size))
    return ip_packet(source, to, UDP, _with_checksum(struct.pack("!HHHH", by, port, size, 0) + payload, 6, head))


def icmp6(source: str, to: str, kind: int, body: bytes, *, code: int = 0) -> bytes:
    """The message without the packet around it."""
    head = _packed(source) + _packed(to) + struct.pack("!IHBB", 4 + len(body), 0, 0, ICMP6)
    return _with_checksum(struct.pack("!BBH", kind, code, 0) + body, 2, head)


def icmp(kind: int, body: bytes, *, code: int = 0) -> bytes:
    return _with_checksum(struct.pack("!BBH", kind, code, 0) + body, 2)


def router_advertisement(source: str) -> bytes:
    """RFC 4861 section 4.2: the sender is a default router for half an hour."""
    return icmp6(source, "ff02::1", 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0))


def neighbor_advertisement(source: str, target: str, mac: str) -> bytes:
    """RFC 4861 section 4.4, overriding what is known."""
    return icmp6(source, "ff02::1", 136, struct.pack("!I", 0x20000000) + _packed(target) + b"\2\1" + _mac(mac))


def fragment(protocol: int, part: bytes, *, offset: int = 0, more: bool = True) -> bytes:
    """RFC 8200 section 4.5."""
    return struct.pack("!BBHI", protocol, 0, offset | more, 7) + part


def options(protocol: int, size: int = 8) -> bytes:
    """A header of destination or hop-by-hop options that is all padding."""
    return struct.pack("!BBBB", protocol, size // 8 - 1, 1, size - 4) + bytes(size - 4)


# --- sending and watching ------------------------------------------------------------------------------------------------------------

#: Frames by what they are, around a token by which they are known wherever they arrive.
Forgery = Callable[[bytes], Mapping[str, bytes]]


@pytest.fixture
def watch() -> Iterator[Callable[..., socket.socket]]:
    """`watch(place)` is a place's `eth0`, on which all frames are seen and any can be sent; `watch(place, port=N, version=V)` is what
    reaches a UDP port of a place."""
    with contextlib.ExitStack() as stack:

        def opened(place: Place, *, link: str = "eth0", port: int = 0, version: int = 4) -> socket.socket:
            return stack.enter_context(place.run(lambda: _server(port, version) if port else _interface(link)))

        yield opened


def _interface(link: str) -> socket.socket:
    every = 3  # ETH_P_ALL
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every))
    made.bind((link, every))
    return made


def _server(port: int, version: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    if version == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(("::" if version == 6 else "0.0.0.0", port))
    return made


_numbers = itertools.count()


def _token() -> bytes:
    return b"<token %08d>" % next(_numbers)


def arrived(
    sender: socket.socket,
    watchers: Sequence[socket.socket],
    forgery: Forgery,
    canary: Callable[[bytes], bytes],
    by: socket.socket | None = None,
) -> set[str]:
    """Which frames some watcher saw. Before and after each of them goes a canary, which must be seen, or nothing was proven; it is sent
    `by` another socket where nothing at all is to pass from this one."""
    seen = bytearray()

    def look(token: bytes) -> None:
        end = time.monotonic() + PATIENCE
        while token not in seen:
            ready = select.select(watchers, [], [], max(0.0, end - time.monotonic()))[0]
            assert ready, "a canary was not seen"
            for watcher in ready:
                seen.extend(watcher.recv(65536))

    def sing() -> None:
        token = _token()
        (by or sender).send(canary(token))
        look(token)

    tokens = {name: _token() for name in forgery(b"")}
    for name, token in tokens.items():
        sing()
        sender.send(forgery(token)[name])
    for _ in range(3):
        sing()
    return {name for name, token in tokens.items() if token in seen}


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    with Traffic() as made:
        yield made


def _cidr(addresses: dict[int, str]) -> list[str]:
    return [f"{addresses[4]}/24", f"{addresses[6]}/64"]


@pytest.fixture
def world(engine: Engine) -> Iterator[Machine]:
    """A machine outside of the host."""
    lenient()
    with outside("outside", "wan0", _cidr(FACING), _cidr(OUTSIDE)) as machine:
        yield machine


def mac_of(place: Place, link: str = "eth0") -> str:
    """Read by a request of its own, as /sys shows the namespace that it was mounted in."""

    def read() -> str:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((link, 0))
            return str(sock.getsockname()[4].hex(":"))

    return place.run(read)


# --- what neighbours are spared ------------------------------------------------------------------------------------------------------


def _rightful(attacker: Endpoint, victim: Endpoint) -> Forgery:
    """What any endpoint may send."""
    mac, ip4, ip6 = attacker.mac, attacker.address(4), attacker.address(6)
    own = neighbor_advertisement(ip6, ip6, mac)
    solicitation = icmp6("::", "ff02::1", 135, bytes(4) + _packed(ip6))
    large = bytes(range(256))

    def frames(token: bytes) -> dict[str, bytes]:
        return {
            name: made + token
            for name, made in {
                "ARP request": frame(EVERYBODY, mac, ARP, arp(1, mac, ip4)),
                "ARP answer": frame(victim.mac, mac, ARP, arp(2, mac, ip4)),
                "IPv4": frame(victim.mac, mac, IPV4, udp(ip4, victim.address(4), 9)),
                "IPv6": frame(victim.mac, mac, IPV6, udp(ip6, victim.address(6), 9)),
                "IPv6 by the link-local address": frame(victim.mac, mac, IPV6, udp(link_local(mac), link_local(victim.mac), 9)),
                "NA": frame(ALL_NODES, mac, IPV6, ip_packet(ip6, "ff02::1", ICMP6, own)),
                "NS whether an address is free": frame(ALL_NODES, mac, IPV6, ip_packet("::", "ff02::1", ICMP6, solicitation)),
                "a first fragment": frame(
                    victim.mac,
                    mac,
                    IPV6,
                    ip_packet(ip6, victim.address(6), FRAGMENT, fragment(UDP, udp(ip6, victim.address(6), 9, large)[40:])),
                ),
                "a later fragment": frame(
                    victim.mac, mac, IPV6, ip_packet(ip6, victim.address(6), FRAGMENT, fragment(UDP, large, offset=264, more=False))
                ),
            }.items()
        }

    return frames


def _wrongful(attacker: Endpoint, victim: Endpoint, gateway: dict[int, str]) -> Forgery:
    """What no endpoint may."""
    mac, ip4, ip6, local = attacker.mac, attacker.address(4), attacker.address(6), link_local(attacker.mac)
    to4, to6 = victim.address(4), victim.address(6)
    honest4 = frame(victim.mac, mac, IPV4, udp(ip4, to4, 9))
    advert = router_advertisement(local)
    claim = neighbor_advertisement(ip6, gateway[6], mac)

    def to_all_nodes(source: str, protocol: int, payload: bytes) -> bytes:
        return frame(ALL_NODES, mac, IPV6, ip_packet(source, "ff02::1", protocol, payload))

    made = {
        # addresses of others
        "ARP answer for another's address": frame(victim.mac, mac, ARP, arp(2, mac, gateway[4])),
        "ARP request with another's address": frame(EVERYBODY, mac, ARP, arp(1, mac, gateway[4])),
        "ARP answer with another's MAC": frame(victim.mac, mac, ARP, arp(2, NOBODY, ip4)),
        "ARP in a frame with another's MAC": frame(victim.mac, NOBODY, ARP, arp(2, mac, ip4)),
        "IPv4 from another's address": frame(victim.mac, mac, IPV4, udp(gateway[4], to4, 9)),
        "IPv4 from an address of the outside": frame(victim.mac, mac, IPV4, udp(OUTSIDE[4], to4, 9)),
        "IPv4 from no address": frame(victim.mac, mac, IPV4, udp("0.0.0.0", to4, 9)),
        "IPv4 from a loopback address": frame(victim.mac, mac, IPV4, udp("127.0.0.1", to4, 9)),
        "IPv4 with another's MAC": frame(victim.mac, NOBODY, IPV4, udp(ip4, to4, 9)),
        "IPv6 from another's address": frame(victim.mac, mac, IPV6, udp(gateway[6], to6, 9)),
        "IPv6 from an address of the outside": frame(victim.mac, mac, IPV6, udp(OUTSIDE[6], to6, 9)),
        "IPv6 from another's link-local address": frame(victim.mac, mac, IPV6, udp(link_local(NOBODY), to6, 9)),
        "IPv6 from no address": frame(victim.mac, mac, IPV6, udp("::", to6, 9)),
        "IPv6 with another's MAC": frame(victim.mac, NOBODY, IPV6, udp(ip6, to6, 9)),
        # a router's or another's part in neighbour discovery
        "RA": to_all_nodes(local, ICMP6, advert),
        "RA behind hop-by-hop options": to_all_nodes(local, 0, options(ICMP6) + advert),
        "RA behind destination options": to_all_nodes(local, DESTINATION_OPTIONS, options(ICMP6) + advert),
        "RA behind a routing header": to_all_nodes(local, 43, bytes((ICMP6, 0, 4, 0, 0, 0, 0, 0)) + advert),
        "RA in a first fragment": to_all_nodes(local, FRAGMENT, fragment(ICMP6, advert)),
        "RA in an only fragment": to_all_nodes(local, FRAGMENT, fragment(ICMP6, advert, more=False)),
        "the options that hide an RA in the next fragment": to_all_nodes(local, FRAGMENT, fragment(60, options(ICMP6, 16)[:8])),
        "the RA in that next fragment": to_all_nodes(local, FRAGMENT, fragment(60, options(ICMP6, 16)[8:] + advert, offset=8, more=False)),
        "NA for another's address": to_all_nodes(ip6, ICMP6, claim),
        "NA for another's address from its address": to_all_nodes(gateway[6], ICMP6, neighbor_advertisement(gateway[6], gateway[6], mac)),
        "NA cut off before its target": to_all_nodes(ip6, ICMP6, claim[:8]),
        "NA with its target in the next fragment": to_all_nodes(ip6, FRAGMENT, fragment(ICMP6, claim[:8])),
        "redirect": frame(victim.mac, mac, IPV6, ip_packet(local, to6, ICMP6, icmp6(local, to6, 137, bytes(36)))),
        "IPv4 redirect": frame(victim.mac, mac, IPV4, ip_packet(ip4, to4, ICMP, icmp(5, _packed(ip4) + udp(to4, OUTSIDE[4], 9)))),
        # a server's part in configuration
        "DHCP answer": frame(EVERYBODY, mac, IPV4, udp(ip4, "255.255.255.255", 68, by=67)),
        "DHCP answer from another port": frame(EVERYBODY, mac, IPV4, udp(ip4, "255.255.255.255", 68)),
        "DHCP answer to another port": frame(EVERYBODY, mac, IPV4, udp(ip4, "255.255.255.255", 1068, by=67)),
        "DHCPv6 answer": frame(victim.mac, mac, IPV6, udp(local, link_local(victim.mac), 546, by=547)),
        "DHCPv6 answer from another port": frame(victim.mac, mac, IPV6, udp(local, link_local(victim.mac), 546)),
        "DHCPv6 answer to another port": frame(victim.mac, mac, IPV6, udp(local, link_local(victim.mac), 1546, by=547)),
        # other protocols than IPv4, IPv6 and ARP
        "VLAN": tagged(honest4, 5),
        "VLAN 0": tagged(honest4, 0),
        "VLAN 0 around another's address": tagged(frame(victim.mac, mac, IPV4, udp(gateway[4], to4, 9)), 0),
        "VLAN 0 around ARP for another's address": tagged(frame(victim.mac, mac, ARP, arp(2, mac, gateway[4])), 0),
        "VLAN 0 around an RA": tagged(to_all_nodes(local, ICMP6, advert), 0),
        "VLAN in VLAN": tagged(tagged(honest4, 6), 5, SERVICE_VLAN),
        "MPLS": frame(victim.mac, mac, MPLS, struct.pack("!I", 16 << 12 | 1 << 8 | 64) + honest4[14:]),
        "LLDP": frame(victim.mac, mac, LLDP, bytes(32)),
        "LLC": frame(victim.mac, mac, 40, b"\xaa\xaa\3\0\0\0\x08\0" + honest4[14:46]),
        "a bridge's BPDU": frame("01:80:c2:00:00:00", mac, 38, b"\x42\x42\3" + bytes(35)),
    }
    return lambda token: {name: forged + token for name, forged in made.items()}


@pytest.mark.parametrize("options", [{}, {"egress_rate": "1gbit"}], ids=["", "with a rate"])
@pytest.mark.parametrize("guard", [True, False], ids=["guarded", "not guarded"])
def test_an_endpoint_sends_as_itself_only_unless_its_network_is_not_guarded(
    engine: Engine, watch: Callable[..., socket.socket], guard: bool, options: dict[str, str]
) -> None:
    lenient()
    network = engine.create_network("net", ipv6=True, guard=guard)
    for name in ("attacker", "victim"):
        engine.create_namespace(name)
    attacker, victim = engine.connect("net", "attacker", **options), engine.connect("net", "victim")  # type: ignore[arg-type]
    sender, watcher = watch(Inside(engine, "attacker")), watch(Inside(engine, "victim"))

    def canary(token: bytes) -> bytes:
        return frame(victim.mac, attacker.mac, IPV4, udp(attacker.address(4), victim.address(4), 9, token))

    rightful = _rightful(attacker, victim)
    wrongful = _wrongful(attacker, victim, {version: network.gateway(version) for version in (4, 6)})
    assert arrived(sender, [watcher], rightful, canary) == set(rightful(b""))
    # That all of them arrive where there is no guard shows that nothing but the guard is in their way.
    assert arrived(sender, [watcher], wrongful, canary) == (set() if guard else set(wrongful(b"")))


def test_a_network_without_ipv6_carries_none_between_neighbours(engine: Engine, watch: Callable[..., socket.socket]) -> None:
    lenient()
    for guard in (True, False):
        name = f"net-{guard}"
        engine.create_network(name, guard=guard)
        for role in ("attacker", "victim"):
            engine.create_namespace(f"{role}-{guard}")
        attacker, victim = (engine.connect(name, f"{role}-{guard}") for role in ("attacker", "victim"))
        for endpoint in (attacker, victim):
            place = Inside(engine, endpoint.namespace)
            assert place.run(lambda: sysctl.read("net/ipv6/conf/eth0/disable_ipv6")) == "1"
            # Root inside switches it on again.
            place.run(lambda: sysctl.write("net/ipv6/conf/eth0/disable_ipv6", "0"))
        sender, watcher = (watch(Inside(engine, endpoint.namespace)) for endpoint in (attacker, victim))
        source, to = link_local(attacker.mac), link_local(victim.mac)
        target = "ff02::1:ff" + to[-7:]
        group = "33:33:ff:" + victim.mac[9:]
        solicitation = icmp6(source, target, 135, bytes(4) + _packed(to) + b"\1\1" + _mac(attacker.mac))
        made = {
            "UDP": frame(victim.mac, attacker.mac, IPV6, udp(source, to, 9)),
            "NS": frame(group, attacker.mac, IPV6, ip_packet(source, target, ICMP6, solicitation)),
        }

        def forgery(token: bytes, made: dict[str, bytes] = made) -> dict[str, bytes]:
            return {name: forged + token for name, forged in made.items()}

        def canary(token: bytes, attacker: Endpoint = attacker, victim: Endpoint = victim) -> bytes:
            return frame(victim.mac, attacker.mac, IPV4, udp(attacker.address(4), victim.address(4), 9, token))

        assert arrived(sender, [watcher], forgery, canary) == (set() if guard else set(made))


def test_a_frame_that_a_bridge_keeps_to_its_port_teaches_the_bridge_nothing(engine: Engine, watch: Callable[..., socket.socket]) -> None:
    network = engine.create_network("net")
    for name in ("attacker", "victim", "neighbour"):
        engine.create_namespace(name)
    attacker, victim, neighbour = (engine.connect("net", name) for name in ("attacker", "victim", "neighbour"))
    at = {endpoint.namespace: watch(Inside(engine, endpoint.namespace)) for endpoint in (attacker, victim, neighbour)}

    def to_victim(token: bytes) -> bytes:
        return frame(victim.mac, neighbour.mac, IPV4, udp(neighbour.address(4), victim.address(4), 9, token))

    def stolen(token: bytes) -> dict[str, bytes]:
        at["victim"].send(frame(neighbour.mac, victim.mac, IPV4, udp(victim.address(4), neighbour.address(4), 9)))
        at["attacker"].send(frame(PORT_GROUPS[-2], victim.mac, LLDP, bytes(32)))
        return {"stolen": to_victim(token)}

    def canary(token: bytes) -> bytes:
        return frame(EVERYBODY, neighbour.mac, IPV4, udp(neighbour.address(4), "255.255.255.255", 9, token))

    assert arrived(at["neighbour"], [at["victim"]], stolen, canary) == {"stolen"}
    assert arrived(at["neighbour"], [at["attacker"]], stolen, canary) == set()
    ip(Inside(engine), f"link set {network.bridge} type bridge no_linklocal_learn 0")
    assert arrived(at["neighbour"], [at["attacker"]], stolen, canary) == {"stolen"}


# --- what the host is spared ---------------------------------------------------------------------------------------------------------


def test_what_a_bridge_hands_up_from_a_port_itself_does_not_reach_the_host(
    engine: Engine, world: Machine, watch: Callable[..., socket.socket]
) -> None:
    host = Inside(engine)
    engine.create_network("open", guard=False)
    engine.create_network("internal", internal=True, subnets=["10.91.1.0/24", "fd91:0:0:1::/64"], gateways=["10.91.1.1", "fd91:0:0:1::1"])
    servers = [watch(host, port=LISTENING, version=version) for version in (4, 6)]
    for name in ("open", "internal"):
        engine.create_namespace(name)
        endpoint, network = engine.connect(name, name), engine.state.network(name)
        sender = watch(Inside(engine, name))
        own = {4: endpoint.address(4), 6: endpoint.address(6)}

        def canary(token: bytes, endpoint: Endpoint = endpoint, mac: str = network.mac, gateway: str = network.subnets[0].gateway) -> bytes:
            return frame(mac, endpoint.mac, IPV4, udp(endpoint.address(4), gateway, LISTENING, token))

        def forgery(token: bytes, endpoint: Endpoint = endpoint, own: dict[int, str] = own) -> dict[str, bytes]:
            return {
                f"from {source} to {group}": frame(group, endpoint.mac, kind, udp(source, FACING[version], LISTENING, token))
                for group in PORT_GROUPS
                for version, kind in ((4, IPV4), (6, IPV6))
                for source in (own[version], OUTSIDE[version])
                if source
            }

        assert arrived(sender, servers, forgery, canary) == set()


def _ways_out(engine: Engine) -> list[str]:
    return [
        str(row.gateway)
        for row in rtnl.routes(engine.host.rtnl)
        if row.family == socket.AF_INET6 and row.destination is None and row.gateway
    ]


def test_no_endpoint_becomes_the_router_of_its_host(engine: Engine, watch: Callable[..., socket.socket]) -> None:
    lenient()
    sysctl.write("net/ipv6/conf/default/accept_ra", "1")
    network = engine.create_network("net", guard=False)
    engine.create_namespace("attacker")
    endpoint = engine.connect("net", "attacker")
    with outside("outside", "wan0", _cidr(FACING), _cidr(OUTSIDE)) as machine:
        sender, server = watch(Inside(engine, "attacker")), watch(Inside(engine), port=LISTENING)

        def advertise(mac: str) -> dict[str, bytes]:
            packet = ip_packet(link_local(mac), "ff02::1", ICMP6, router_advertisement(link_local(mac)))
            return {to: frame(to, mac, IPV6, packet) for to in (ALL_NODES, *PORT_GROUPS)}

        def canary(token: bytes) -> bytes:
            return frame(network.mac, endpoint.mac, IPV4, udp(endpoint.address(4), network.gateway(4), LISTENING, token))

        arrived(sender, [server], lambda _: advertise(endpoint.mac), canary)
        assert _ways_out(engine) == []
        # The same from where the host does take routers from.
        mac = mac_of(machine)
        watch(machine).send(advertise(mac)[ALL_NODES])
        assert _ways_out(engine) == [link_local(mac)]


@pytest.mark.parametrize("sender", ["guarded", "not guarded", "outside"])
def test_the_loopback_of_the_host_is_out_of_reach_also_where_ports_are_published_on_it(
    engine: Engine, world: Machine, watch: Callable[..., socket.socket], sender: str
) -> None:
    host = Inside(engine)
    network = engine.create_network("net", ipv6=True, guard=sender != "not guarded")
    for name in ("attacker", "server"):
        engine.create_namespace(name)
    attacker = engine.connect("net", "attacker")
    published = 8001
    engine.connect("net", "server", publish=[f"127.0.0.1:{published}:{LISTENING}/udp", f"[::1]:{published}:{LISTENING}/udp"])
    assert sysctl.read(f"net/ipv4/conf/{network.bridge}/route_localnet") == "1"
    watchers = [watch(place, port=LISTENING, version=version) for place in (host, Inside(engine, "server")) for version in (4, 6)]
    if sender == "outside":
        place: Place = world
        mac, to, near, own = mac_of(world), mac_of(host, "wan0"), FACING, OUTSIDE
    else:
        place = Inside(engine, "attacker")
        mac, to, near = attacker.mac, network.mac, {version: network.gateway(version) for version in (4, 6)}
        own = {version: attacker.address(version) for version in (4, 6)}

    def canary(token: bytes) -> bytes:
        return frame(to, mac, IPV4, udp(own[4], near[4], LISTENING, token))

    def canary6(token: bytes) -> bytes:
        return frame(to, mac, IPV6, udp(own[6], near[6], LISTENING, token))

    def forgery(token: bytes) -> dict[str, bytes]:
        ways = [
            *((IPV4, source, "127.0.0.1") for source in (own[4], "127.0.0.1", near[4])),
            *((IPV4, own[4], "127.1.2.3"), (IPV4, "127.0.0.1", near[4]), (IPV4, "127.1.2.3", near[4])),
            *((IPV6, source, "::1") for source in (own[6], "::1", near[6])),
            *((IPV6, own[6], "::ffff:127.0.0.1"), (IPV6, "::ffff:127.0.0.1", near[6]), (IPV6, "::1", near[6])),
        ]
        return {
            f"{source} to {address} port {port} in a frame to {mac_}": frame(mac_, mac, kind, udp(source, address, port, token))
            for kind, source, address in ways
            for port in (LISTENING, published)
            for mac_ in (to, EVERYBODY)
        }

    for control in (canary, canary6):
        assert arrived(watch(place), watchers, forgery, control) == set()


# --- who passes for whom -------------------------------------------------------------------------------------------------------------


def test_nobody_outside_passes_for_an_endpoint_or_for_the_host(
    engine: Engine, world: Machine, watch: Callable[..., socket.socket], traffic: Traffic
) -> None:
    network = engine.create_network("net", ipv6=True)
    other = engine.create_network("other", ipv6=True)
    del other
    for name in ("server", "neighbour", "client"):
        engine.create_namespace(name)
    published = 8001
    server = engine.connect("net", "server", publish=[f"{published}:{LISTENING}/udp"])
    neighbour, client = engine.connect("net", "neighbour"), engine.connect("other", "client")
    mac, to = mac_of(world), mac_of(Inside(engine), "wan0")
    sender, watchers = watch(world), [watch(Inside(engine, name)) for name in ("server", "neighbour", "client")]
    own_port = 5000
    # The client has a connection with the server, which an answer could be forged for.
    traffic.serve(Inside(engine, "server"), LISTENING)
    for version in (4, 6):
        kind = IPV6 if version == 6 else IPV4

        def conversation(version: int = version) -> socket.socket:
            made = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
            made.bind(("::" if version == 6 else "0.0.0.0", own_port))
            made.sendto(b"question", (FACING[version], published))
            return made

        def canary(token: bytes, kind: int = kind, version: int = version) -> bytes:
            return frame(to, mac, kind, udp(OUTSIDE[version], FACING[version], published, token))

        def forgery(token: bytes, kind: int = kind, version: int = version) -> dict[str, bytes]:
            inside = {
                name: endpoint.address(version) for name, endpoint in (("server", server), ("neighbour", neighbour), ("client", client))
            }
            mine = {**inside, "gateway": network.gateway(version), "host": FACING[version]}
            return {
                **{
                    f"from the {name} to a published port": frame(to, mac, kind, udp(source, FACING[version], published, token))
                    for name, source in mine.items()
                },
                **{
                    f"from the {name} to the server": frame(to, mac, kind, udp(source, inside["server"], LISTENING, token))
                    for name, source in mine.items()
                },
                "to the server": frame(to, mac, kind, udp(OUTSIDE[version], inside["server"], LISTENING, token)),
                "to the server, to everybody": frame(EVERYBODY, mac, kind, udp(OUTSIDE[version], inside["server"], LISTENING, token)),
                "the client's next question": frame(to, mac, kind, udp(inside["client"], FACING[version], published, token, by=own_port)),
                "the server's next answer": frame(to, mac, kind, udp(inside["server"], inside["client"], own_port, token, by=LISTENING)),
            }

        with Inside(engine, "client").run(conversation):
            assert arrived(sender, watchers, forgery, canary) == set()


def test_no_network_can_end_a_connection_of_another_by_an_icmp_error(
    engine: Engine, world: Machine, watch: Callable[..., socket.socket]
) -> None:
    for name in ("client", "attacker"):
        engine.create_network(name, ipv6=True)
        engine.create_namespace(name)
    port, published = 5000, 8001
    client = engine.connect("client", "client", publish=[f"{published}:{LISTENING}/udp"])
    attacker, network = engine.connect("attacker", "attacker"), engine.state.network("attacker")
    del client
    watcher = watch(Inside(engine, "client"))
    for version, kind in ((4, IPV4), (6, IPV6)):

        def talk(version: int = version) -> socket.socket:
            made = _server(port, version)
            made.sendto(b"question", (OUTSIDE[version], LISTENING))
            return made

        def error(source: str, token: bytes, version: int = version) -> bytes:
            """The far end of the client's connection has no such port, as the host that stands for the client would be told."""
            quoted = udp(FACING[version], OUTSIDE[version], LISTENING, token, by=port)
            if version == 4:
                return ip_packet(source, FACING[4], ICMP, icmp(3, bytes(4) + quoted, code=3))
            return ip_packet(source, FACING[6], ICMP6, icmp6(source, FACING[6], 1, bytes(4) + quoted, code=4))

        def forgery(token: bytes, version: int = version, kind: int = kind) -> dict[str, bytes]:
            return {"error": frame(network.mac, attacker.mac, kind, error(attacker.address(version), token, version))}

        def canary(token: bytes, version: int = version, kind: int = kind) -> bytes:
            return frame(network.mac, attacker.mac, kind, udp(attacker.address(version), FACING[version], published, token))

        far, near = mac_of(world), mac_of(Inside(engine), "wan0")

        def from_outside(token: bytes, version: int = version, kind: int = kind) -> dict[str, bytes]:
            return {"error": frame(near, far, kind, error(OUTSIDE[version], token, version))}

        def canary_outside(token: bytes, version: int = version, kind: int = kind) -> bytes:
            return frame(near, far, kind, udp(OUTSIDE[version], FACING[version], published, token))

        with Inside(engine, "client").run(talk):
            assert arrived(watch(Inside(engine, "attacker")), [watcher], forgery, canary) == set()
            # From where the connection leads it is true, or might be.
            assert arrived(watch(world), [watcher], from_outside, canary_outside) == {"error"}


# --- interfaces that nobody knows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("link", "passes"), [("atv0123456789", False), ("veth9", True)])
def test_a_port_with_our_kind_of_name_that_nothing_speaks_of_lets_nothing_in(
    engine: Engine, world: Machine, traffic: Traffic, link: str, passes: bool
) -> None:
    subnets = ["10.91.1.0/24", "fd91:0:0:1::/64"]
    network = engine.create_network("net", subnets=subnets, gateways=["10.91.1.1", "fd91:0:0:1::1"])
    for name in ("known", "stranger"):
        engine.create_namespace(name)
    known, stranger = Inside(engine, "known"), Inside(engine, "stranger")
    endpoint = engine.connect("net", "known")
    ip(Inside(engine), f"link add {link} type veth peer name eth9 netns stranger", f"link set {link} master {network.bridge} up")
    stranger.run(lambda: sysctl.write("net/ipv6/conf/eth9/disable_ipv6", "0"))
    ip(stranger, "link set eth9 up", *(f"address add {where} dev eth9" for where in ("10.91.1.99/24", "fd91:0:0:1::99/64 nodad")))
    ip(stranger, *(f"route add default via {network.gateway(version)}" for version in (4, 6)))
    for place in (known, Inside(engine), world):
        traffic.serve(place, LISTENING)
    targets = [where[version] for where in (FACING, OUTSIDE) for version in (4, 6)]
    canaries = [Probe(known, where, LISTENING, transport) for where in targets for transport in TRANSPORTS]
    tried = [probe._replace(source=stranger) for probe in canaries]
    tried += [Probe(stranger, endpoint.address(version), LISTENING, transport) for version in (4, 6) for transport in TRANSPORTS]
    assert (None not in traffic.ask(tried)) if passes else (set(traffic.silence(tried, canaries)) == {None})


@pytest.mark.parametrize(("link", "passes"), [("atv0123456789", False), ("att01234567891", False), ("veth9", True)])
def test_an_interface_with_our_kind_of_name_is_no_way_in_outside_of_a_bridge(
    engine: Engine, world: Machine, watch: Callable[..., socket.socket], traffic: Traffic, link: str, passes: bool
) -> None:
    host = Inside(engine)
    network = engine.create_network("net", ipv6=True)
    for name in ("known", "stranger"):
        engine.create_namespace(name)
    known = engine.connect("net", "known")
    ip(host, f"link add {link} type veth peer name eth9 netns stranger", f"link set {link} up")
    ip(Inside(engine, "stranger"), "link set eth9 up")
    near, far = mac_of(host, link), mac_of(Inside(engine, "stranger"), "eth9")
    by, sender = watch(Inside(engine, "known")), watch(Inside(engine, "stranger"), link="eth9")
    watchers = [watch(place, port=LISTENING, version=version) for place in (host, world) for version in (4, 6)]
    # The host knows the way, so that nothing waits for an answer to ARP and comes late.
    traffic.serve(world, LISTENING + 1)
    assert None not in traffic.ask([Probe(host, OUTSIDE[version], LISTENING + 1) for version in (4, 6)])

    def canary(token: bytes) -> bytes:
        return frame(network.mac, known.mac, IPV4, udp(known.address(4), network.gateway(4), LISTENING, token))

    def forgery(token: bytes) -> dict[str, bytes]:
        ways = ((IPV4, "10.99.0.9", 4), (IPV6, "2001:db8:99::9", 6))
        return {
            f"{source} to {where[version]}": frame(near, far, kind, udp(source, where[version], LISTENING, token))
            for kind, source, version in ways
            for where in (FACING, OUTSIDE)
        }

    assert arrived(sender, watchers, forgery, canary, by) == (set(forgery(b"")) if passes else set())


@pytest.mark.parametrize(("bridge", "passes"), [("atb0123456789", False), ("br9", True)])
def test_a_bridge_with_our_kind_of_name_that_nothing_speaks_of_leads_nowhere(
    engine: Engine, world: Machine, traffic: Traffic, bridge: str, passes: bool
) -> None:
    engine.create_network("net", ipv6=True)
    for name in ("known", "stranger"):
        engine.create_namespace(name)
    known, stranger = Inside(engine, "known"), Inside(engine, "stranger")
    published = 8001
    engine.connect("net", "known", publish=[f"{published}:{LISTENING}/{transport}" for transport in TRANSPORTS])
    near, far = {4: "10.99.0.1", 6: "2001:db8:99::1"}, {4: "10.99.0.9", 6: "2001:db8:99::9"}
    ip(
        Inside(engine),
        f"link add {bridge} type bridge",
        "link add veth9 type veth peer name eth9 netns stranger",
        f"link set veth9 master {bridge} up",
        f"link set {bridge} up",
        *(f"address add {where} dev {bridge}" for where in _cidr(near)),
    )
    stranger.run(lambda: sysctl.write("net/ipv6/conf/eth9/disable_ipv6", "0"))
    ip(stranger, "link set eth9 up", f"address add {far[4]}/24 dev eth9", f"address add {far[6]}/64 dev eth9 nodad")
    ip(stranger, *(f"route add default via {where}" for where in near.values()))
    for place in (known, stranger, world):
        traffic.serve(place, LISTENING)

    def probes(place: Place, wheres: Sequence[dict[int, str]], port: int) -> list[Probe]:
        return [Probe(place, where[version], port, transport) for where in wheres for version in (4, 6) for transport in TRANSPORTS]

    canaries = probes(known, [OUTSIDE], LISTENING) + probes(world, [FACING], published)
    tried = probes(stranger, [OUTSIDE], LISTENING) + probes(stranger, [FACING], published)
    tried += probes(known, [far], LISTENING) + probes(world, [far], LISTENING)
    assert (None not in traffic.ask(tried)) if passes else (set(traffic.silence(tried, canaries)) == {None})
