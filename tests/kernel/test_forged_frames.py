"""What an endpoint, or a machine outside, can't make others believe: frames that no socket would send, and where they arrived."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pytest

from atoll.firewall.elements import link_local
from atoll.kernel import rtnl, sysctl
from tests import frames
from tests.frames import ALL_NODES, EVERYBODY, LLDP_GROUP, PORT_GROUPS, around, frame, icmp, icmp6, packed, tagged, udp
from tests.support import FACING, OUTSIDE, PATIENCE, TRANSPORTS, Inside, Probe, Traffic, cidr, ip, lenient, meet, outside, settle

if TYPE_CHECKING:
    from atoll import Engine
    from atoll.lab.machine import Machine
    from atoll.model import Endpoint, Network
    from tests.support import Place

#: Where servers listen, and a port of the host that is published.
LISTENING: Final = 9
PUBLISHED: Final = 8001
#: A port that clients speak from.
CLIENT: Final = 5000
#: A MAC address that is nobody's.
NOBODY: Final = "02:00:00:00:00:99"

#: Frames by what they are, around a token by which each is known wherever it arrives.
Forgery = Callable[[bytes], Mapping[str, bytes]]
#: Opens a socket that sees what arrives.
Watch = Callable[..., socket.socket]


@pytest.fixture
def watch() -> Iterator[Watch]:
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


def mac_of(place: Place, link: str = "eth0") -> str:
    def read() -> str:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((link, 0))
            return str(sock.getsockname()[4].hex(":"))

    return place.run(read)


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

    def sing(*, within: float = PATIENCE) -> bool:
        token = _token()
        (by or sender).send(canary(token))
        end = time.monotonic() + within
        while token not in seen:
            ready = select.select(watchers, [], [], max(0.0, end - time.monotonic()))[0]
            if not ready:
                return False
            for watcher in ready:
                seen.extend(watcher.recv(65536))
        return True

    # The first may come too early: the kernel puts off a part of the work for a new IPv6 address.
    assert any(sing(within=0.1) for _ in range(int(PATIENCE / 0.1))), "no canary was seen at all"
    tokens = {name: _token() for name in forgery(b"")}
    for name, token in tokens.items():
        sender.send(forgery(token)[name])
        assert sing(), f"the canary after {name!r} was not seen"
    assert sing()
    return {name for name, token in tokens.items() if token in seen}


def _trailed(made: Mapping[str, bytes]) -> Forgery:
    """With the token after what the frame says of itself, where only those who see whole frames find it."""
    return lambda token: {name: forged + token for name, forged in made.items()}


# --- what neighbours are spared ------------------------------------------------------------------------------------------------------


def _rightful(attacker: Endpoint, victim: Endpoint) -> Forgery:
    """What any endpoint may send."""
    mac, ip4, ip6, to6 = attacker.mac, attacker.address(4), attacker.address(6), victim.address(6)
    own = frames.neighbor_advertisement(ip6, ip6, mac)
    free = icmp6("::", "ff02::1", 135, bytes(4) + packed(ip6))
    part = udp(ip6, to6, LISTENING, bytes(248))[40:]
    made = {
        "ARP request": frame(EVERYBODY, mac, frames.ARP, frames.arp(1, mac, ip4)),
        "ARP answer": frame(victim.mac, mac, frames.ARP, frames.arp(2, mac, ip4)),
        "IPv4": around(victim.mac, mac, udp(ip4, victim.address(4), LISTENING)),
        "IPv6": around(victim.mac, mac, udp(ip6, to6, LISTENING)),
        "IPv6 from the link-local address": around(victim.mac, mac, udp(link_local(mac), link_local(victim.mac), LISTENING)),
        "NA": around(ALL_NODES, mac, frames.ip_packet(ip6, "ff02::1", frames.ICMP6, own)),
        "NS whether an address is free": around(ALL_NODES, mac, frames.ip_packet("::", "ff02::1", frames.ICMP6, free)),
    }
    for name, offset, more in (("first", 0, True), ("later", 256, False)):
        packet = frames.ip_packet(ip6, to6, frames.FRAGMENT, frames.fragment(frames.UDP, part, offset=offset, more=more))
        made[f"a {name} fragment"] = around(victim.mac, mac, packet)
    return _trailed(made)


def _wrongful(attacker: Endpoint, victim: Endpoint, gateway: dict[int, str]) -> Forgery:
    """What none may."""
    mac, ip4, ip6, local = attacker.mac, attacker.address(4), attacker.address(6), link_local(attacker.mac)
    to4, to6, to_local = victim.address(4), victim.address(6), link_local(victim.mac)

    def to_victim(packet: bytes, by: str = mac) -> bytes:
        return around(victim.mac, by, packet)

    def to_all(source: str, protocol: int, payload: bytes) -> bytes:
        return around(ALL_NODES, mac, frames.ip_packet(source, "ff02::1", protocol, payload))

    def claim_by_arp(operation: int, address: str, *, said: str = mac, by: str = mac) -> bytes:
        return frame(victim.mac, by, frames.ARP, frames.arp(operation, said, address))

    honest = to_victim(udp(ip4, to4, LISTENING))
    advert = frames.router_advertisement(local)
    claim = frames.neighbor_advertisement(ip6, gateway[6], mac)
    hiding = frames.options(frames.ICMP6, 16)
    redirect6 = frames.ip_packet(local, to6, frames.ICMP6, icmp6(local, to6, 137, bytes(4) + packed(local) + packed(OUTSIDE[6])))
    redirect4 = frames.ip_packet(ip4, to4, frames.ICMP, icmp(5, packed(ip4) + udp(to4, OUTSIDE[4], LISTENING)))
    return _trailed(
        {
            # others' addresses
            "ARP answer for another's address": claim_by_arp(2, gateway[4]),
            "ARP request with another's address": claim_by_arp(1, gateway[4]),
            "ARP answer with another's MAC": claim_by_arp(2, ip4, said=NOBODY),
            "ARP answer in a frame with another's MAC": claim_by_arp(2, ip4, by=NOBODY),
            "IPv4 from another's address": to_victim(udp(gateway[4], to4, LISTENING)),
            "IPv4 from an address of the outside": to_victim(udp(OUTSIDE[4], to4, LISTENING)),
            "IPv4 from no address": to_victim(udp("0.0.0.0", to4, LISTENING)),
            "IPv4 from a loopback address": to_victim(udp("127.0.0.1", to4, LISTENING)),
            "IPv4 with another's MAC": to_victim(udp(ip4, to4, LISTENING), by=NOBODY),
            "IPv6 from another's address": to_victim(udp(gateway[6], to6, LISTENING)),
            "IPv6 from another's link-local address": to_victim(udp(link_local(NOBODY), to6, LISTENING)),
            "IPv6 from an address of the outside": to_victim(udp(OUTSIDE[6], to6, LISTENING)),
            "IPv6 from no address": to_victim(udp("::", to6, LISTENING)),
            "ping from no address": to_victim(frames.ip_packet("::", to6, frames.ICMP6, icmp6("::", to6, 128, bytes(4)))),
            "IPv6 with another's MAC": to_victim(udp(ip6, to6, LISTENING), by=NOBODY),
            # a router's part, or another's, in neighbour discovery
            "RA": to_all(local, frames.ICMP6, advert),
            "RA behind hop-by-hop options": to_all(local, frames.HOP_BY_HOP, frames.options(frames.ICMP6) + advert),
            "RA behind destination options": to_all(local, frames.DESTINATION_OPTIONS, frames.options(frames.ICMP6) + advert),
            "RA behind a routing header": to_all(local, frames.ROUTING, bytes((frames.ICMP6, 0, 4, 0, 0, 0, 0, 0)) + advert),
            "RA in a first fragment": to_all(local, frames.FRAGMENT, frames.fragment(frames.ICMP6, advert)),
            "RA in an only fragment": to_all(local, frames.FRAGMENT, frames.fragment(frames.ICMP6, advert, more=False)),
            "options that hide the RA in the next fragment": to_all(
                local, frames.FRAGMENT, frames.fragment(frames.DESTINATION_OPTIONS, hiding[:8])
            ),
            "RA in that next fragment": to_all(
                local, frames.FRAGMENT, frames.fragment(frames.DESTINATION_OPTIONS, hiding[8:] + advert, offset=8, more=False)
            ),
            "NA for another's address": to_all(ip6, frames.ICMP6, claim),
            "NA cut off before its target": to_all(ip6, frames.ICMP6, claim[:8]),
            "NA with its target in the next fragment, and its own behind this one": to_all(
                ip6, frames.FRAGMENT, frames.fragment(frames.ICMP6, claim[:8])
            )
            + packed(ip6),
            "NA with its target in the next fragment": to_all(ip6, frames.FRAGMENT, frames.fragment(frames.ICMP6, claim[:8])),
            "redirect": to_victim(redirect6),
            "IPv4 redirect": to_victim(redirect4),
            # a server's part in configuration
            "DHCP answer": around(EVERYBODY, mac, udp(ip4, "255.255.255.255", 68, by=67)),
            "DHCP answer from another port": around(EVERYBODY, mac, udp(ip4, "255.255.255.255", 68)),
            "DHCP answer to another port": around(EVERYBODY, mac, udp(ip4, "255.255.255.255", 1068, by=67)),
            "DHCPv6 answer": to_victim(udp(local, to_local, 546, by=547)),
            "DHCPv6 answer from another port": to_victim(udp(local, to_local, 546)),
            "DHCPv6 answer to another port": to_victim(udp(local, to_local, 1546, by=547)),
            # protocols beside IPv4, IPv6 and ARP
            "VLAN": tagged(honest, 5),
            "VLAN 0": tagged(honest, 0),
            "VLAN 0 around another's address": tagged(to_victim(udp(gateway[4], to4, LISTENING)), 0),
            "VLAN 0 around ARP for another's address": tagged(claim_by_arp(2, gateway[4]), 0),
            "VLAN 0 around an RA": tagged(to_all(local, frames.ICMP6, advert), 0),
            "VLAN in VLAN": tagged(tagged(honest, 6), 5, frames.SERVICE_VLAN),
            "MPLS": frame(victim.mac, mac, frames.MPLS, b"\0\1\1\x40" + honest[14:]),
            "LLDP": frame(victim.mac, mac, frames.LLDP, bytes(32)),
            "LLC": frame(victim.mac, mac, 40, b"\xaa\xaa\3\0\0\0\x08\0" + honest[14:46]),
            "a bridge's BPDU": frame("01:80:c2:00:00:00", mac, 38, b"\x42\x42\3" + bytes(35)),
        }
    )


def _neighbours(engine: Engine, guard: bool, *, ipv6: bool, egress_rate: str = "") -> tuple[Network, Endpoint, Endpoint]:
    network = engine.create_network("net", ipv6=ipv6, guard=guard)
    for name in ("attacker", "victim"):
        engine.create_namespace(name)
    return network, engine.connect("net", "attacker", egress_rate=egress_rate), engine.connect("net", "victim")


def _to_neighbour(attacker: Endpoint, victim: Endpoint) -> Callable[[bytes], bytes]:
    return lambda token: around(victim.mac, attacker.mac, udp(attacker.address(4), victim.address(4), LISTENING, token))


@pytest.mark.parametrize("egress_rate", ["", "1gbit"], ids=["", "with a rate"])
@pytest.mark.parametrize("guard", [True, False], ids=["guarded", "not guarded"])
def test_an_endpoint_sends_as_itself_only_unless_its_network_is_not_guarded(
    engine: Engine, watch: Watch, guard: bool, egress_rate: str
) -> None:
    lenient()
    network, attacker, victim = _neighbours(engine, guard, ipv6=True, egress_rate=egress_rate)
    sender, watcher, canary = watch(Inside(engine, "attacker")), watch(Inside(engine, "victim")), _to_neighbour(attacker, victim)
    rightful, wrongful = _rightful(attacker, victim), _wrongful(attacker, victim, {v: network.gateway(v) for v in (4, 6)})
    assert arrived(sender, [watcher], rightful, canary) == set(rightful(b""))
    # That all of them arrive where there is no guard shows that nothing but the guard is in their way.
    assert arrived(sender, [watcher], wrongful, canary) == (set() if guard else set(wrongful(b"")))


@pytest.mark.parametrize("guard", [True, False], ids=["guarded", "not guarded"])
def test_a_guarded_network_without_ipv6_carries_none_between_neighbours(engine: Engine, watch: Watch, guard: bool) -> None:
    lenient()
    _, attacker, victim = _neighbours(engine, guard, ipv6=False)
    for name in ("attacker", "victim"):
        place = Inside(engine, name)
        assert place.run(lambda: sysctl.read("net/ipv6/conf/eth0/disable_ipv6")) == "1"
        # Root inside switches it on again.
        place.run(lambda: sysctl.write("net/ipv6/conf/eth0/disable_ipv6", "0"))
    source, to = link_local(attacker.mac), link_local(victim.mac)
    solicited = "ff02::1:ff{}:{}{}".format(*victim.mac.split(":")[3:])
    solicitation = icmp6(source, solicited, 135, bytes(4) + packed(to))
    forgery = _trailed(
        {
            "UDP": around(victim.mac, attacker.mac, udp(source, to, LISTENING)),
            "NS": around("33:33:ff:" + victim.mac[9:], attacker.mac, frames.ip_packet(source, solicited, frames.ICMP6, solicitation)),
        }
    )
    sender, watcher = watch(Inside(engine, "attacker")), watch(Inside(engine, "victim"))
    assert arrived(sender, [watcher], forgery, _to_neighbour(attacker, victim)) == (set() if guard else {"UDP", "NS"})


def test_a_frame_that_a_bridge_keeps_to_its_port_teaches_the_bridge_nothing(engine: Engine, watch: Watch) -> None:
    network, _, victim = _neighbours(engine, guard=True, ipv6=False)
    engine.create_namespace("neighbour")
    neighbour = engine.connect("net", "neighbour")
    by_attacker, by_victim, by_neighbour = (watch(Inside(engine, name)) for name in ("attacker", "victim", "neighbour"))

    def forgery(token: bytes) -> dict[str, bytes]:
        by_victim.send(_to_neighbour(victim, neighbour)(b""))
        by_attacker.send(frame(LLDP_GROUP, victim.mac, frames.LLDP, bytes(32)))
        return {"to the victim": _to_neighbour(neighbour, victim)(token)}

    def canary(token: bytes) -> bytes:
        return around(EVERYBODY, neighbour.mac, udp(neighbour.address(4), "255.255.255.255", LISTENING, token))

    assert arrived(by_neighbour, [by_victim], forgery, canary) == {"to the victim"}
    assert arrived(by_neighbour, [by_attacker], forgery, canary) == set()
    ip(Inside(engine), f"link set {network.bridge} type bridge no_linklocal_learn 0")
    assert arrived(by_neighbour, [by_attacker], forgery, canary) == {"to the victim"}


# --- what the host is spared ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"guard": False}, {"internal": True}], ids=["not guarded", "internal"])
def test_what_a_bridge_hands_up_from_a_port_itself_does_not_reach_the_host(
    engine: Engine, world: Machine, watch: Watch, options: dict[str, bool]
) -> None:
    network = engine.create_network("net", ipv6=True, **options)
    engine.create_namespace("attacker")
    endpoint = engine.connect("net", "attacker")
    gateway = network.subnets[0].gateway

    def canary(token: bytes) -> bytes:
        return around(network.mac, endpoint.mac, udp(endpoint.address(4), gateway, LISTENING, token))

    def forgery(token: bytes) -> dict[str, bytes]:
        return {
            f"from {source} to {group}": around(group, endpoint.mac, udp(source, FACING[version], LISTENING, token))
            for group in PORT_GROUPS
            for version in (4, 6)
            for source in (endpoint.address(version), OUTSIDE[version])
        }

    servers = [watch(Inside(engine), port=LISTENING, version=version) for version in (4, 6)]
    assert arrived(watch(Inside(engine, "attacker")), servers, forgery, canary) == set()


@pytest.mark.parametrize(("version", "group"), [(4, "255.255.255.255"), (4, "10.91.1.255"), (4, "224.0.0.1"), (6, "ff02::1")])
def test_what_an_internal_network_says_to_everybody_reaches_the_host_too(engine: Engine, watch: Watch, version: int, group: str) -> None:
    network = engine.create_network("net", subnets=["10.91.1.0/24"], gateways=["10.91.1.1"], ipv6=True, internal=True)
    engine.create_namespace("server")
    endpoint = engine.connect("net", "server")
    gateway = network.subnets[(4, 6).index(version)].gateway

    def canary(token: bytes) -> bytes:
        return around(network.mac, endpoint.mac, udp(endpoint.address(version), gateway, LISTENING, token))

    def to_everybody(token: bytes) -> dict[str, bytes]:
        return {group: around(EVERYBODY, endpoint.mac, udp(endpoint.address(version), group, LISTENING, token))}

    server = watch(Inside(engine), port=LISTENING, version=version)
    assert arrived(watch(Inside(engine, "server")), [server], to_everybody, canary) == {group}


def test_what_a_further_bridge_of_a_network_gets_for_itself_goes_nowhere(
    engine: Engine, world: Machine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.engine.endpoints.SHARD_PORTS", 1)
    network = engine.create_network("net", guard=False)
    for name in ("first", "second"):
        engine.create_namespace(name)
        endpoint = engine.connect("net", name)
    further = mac_of(Inside(engine), engine.state.network("net").bridges()[1])

    def canary(token: bytes) -> bytes:
        return around(network.mac, endpoint.mac, udp(endpoint.address(4), OUTSIDE[4], LISTENING, token))

    def to_the_further_one(token: bytes) -> dict[str, bytes]:
        sources = (endpoint.address(4), "10.99.0.9")
        return {source: around(further, endpoint.mac, udp(source, OUTSIDE[4], LISTENING, token)) for source in sources}

    assert arrived(watch(Inside(engine, "second")), [watch(world)], to_the_further_one, canary) == set()


@pytest.mark.parametrize("version", [4, 6])
def test_what_belongs_to_no_connection_does_not_leave_under_an_address_of_the_inside(
    engine: Engine, world: Machine, watch: Watch, version: int
) -> None:
    network = engine.create_network("net", ipv6=True)
    engine.create_namespace("attacker")
    endpoint = engine.connect("net", "attacker")
    source, to = endpoint.address(version), OUTSIDE[version]

    def canary(token: bytes) -> bytes:
        return around(network.mac, endpoint.mac, udp(source, to, LISTENING, token))

    def answer_to_no_ping(token: bytes) -> dict[str, bytes]:
        body = bytes(4) + token
        if version == 6:
            return {"echo": around(network.mac, endpoint.mac, frames.ip_packet(source, to, frames.ICMP6, icmp6(source, to, 129, body)))}
        return {"echo": around(network.mac, endpoint.mac, frames.ip_packet(source, to, frames.ICMP, icmp(0, body)))}

    assert arrived(watch(Inside(engine, "attacker")), [watch(world)], answer_to_no_ping, canary) == set()


def test_no_endpoint_becomes_the_router_of_its_host(engine: Engine, watch: Watch) -> None:
    lenient()
    sysctl.write("net/ipv6/conf/default/accept_ra", "1")
    network = engine.create_network("net", guard=False)
    engine.create_namespace("attacker")
    endpoint = engine.connect("net", "attacker")

    def advertised_by(mac: str) -> dict[str, bytes]:
        packet = frames.ip_packet(link_local(mac), "ff02::1", frames.ICMP6, frames.router_advertisement(link_local(mac)))
        return {to: around(to, mac, packet) for to in (ALL_NODES, *PORT_GROUPS)}

    def canary(token: bytes) -> bytes:
        return around(network.mac, endpoint.mac, udp(endpoint.address(4), network.gateway(4), LISTENING, token))

    with outside("outside", "wan0", cidr(FACING), cidr(OUTSIDE)) as machine:
        server = watch(Inside(engine), port=LISTENING)
        arrived(watch(Inside(engine, "attacker")), [server], lambda _: advertised_by(endpoint.mac), canary)
        assert _routers(engine) == []
        # The same where the host does take routers from.
        mac = mac_of(machine)
        watch(machine).send(advertised_by(mac)[ALL_NODES])
        assert _routers(engine) == [link_local(mac)]


def _routers(engine: Engine) -> list[str]:
    """The host's ways out by IPv6."""
    rows = (row for row in rtnl.routes(engine.host.rtnl) if row.family == socket.AF_INET6 and row.destination is None)
    return [str(row.gateway) for row in rows if row.gateway]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("sender", ["guarded", "not guarded", "outside"])
def test_the_loopback_of_the_host_is_out_of_reach_also_where_ports_are_published_on_it(
    engine: Engine, world: Machine, watch: Watch, sender: str, version: int
) -> None:
    network, attacker, _ = _neighbours(engine, guard=sender != "not guarded", ipv6=True)
    engine.publish("victim", [f"127.0.0.1:{PUBLISHED}:{LISTENING}/udp", f"[::1]:{PUBLISHED}:{LISTENING}/udp"])
    assert sysctl.read(f"net/ipv4/conf/{network.bridge}/route_localnet") == "1"
    if sender == "outside":
        place: Place = world
        mac, to, own, near = mac_of(world), mac_of(Inside(engine), "wan0"), OUTSIDE[version], FACING[version]
    else:
        place = Inside(engine, "attacker")
        mac, to, own, near = attacker.mac, network.mac, attacker.address(version), network.gateway(version)
    loopback = {4: ("127.0.0.1", "127.1.2.3"), 6: ("::1", "::ffff:127.0.0.1")}[version]

    def canary(token: bytes) -> bytes:
        return around(to, mac, udp(own, near, LISTENING, token))

    def forgery(token: bytes) -> dict[str, bytes]:
        ways = [(source, where) for source in (own, near, *loopback) for where in (near, *loopback) if {source, where} & set(loopback)]
        return {
            f"from {source} to {where} port {port} in a frame to {receiver}": around(receiver, mac, udp(source, where, port, token))
            for source, where in ways
            for port in (LISTENING, PUBLISHED)
            for receiver in (to, EVERYBODY)
        }

    watchers = [watch(Inside(engine, name), port=LISTENING, version=version) for name in ("", "victim")]
    assert arrived(watch(place), watchers, forgery, canary) == set()


# --- who passes for whom -------------------------------------------------------------------------------------------------------------


def _talking(port: int, to: str) -> socket.socket:
    """A UDP socket that has spoken from a port to a server at `to`, so that there is a connection."""
    made = _server(CLIENT, 6 if ":" in to else 4)
    made.sendto(b"", (to, port))
    return made


@pytest.mark.parametrize("version", [4, 6])
def test_nobody_outside_passes_for_an_endpoint_or_for_the_host(engine: Engine, world: Machine, watch: Watch, version: int) -> None:
    addresses = {"host": FACING[version]}
    for name, network in (("server", "net"), ("neighbour", "net"), ("client", "other")):
        if name != "neighbour":
            addresses[f"gateway of {network}"] = engine.create_network(network, ipv6=True).gateway(version)
        engine.create_namespace(name)
        published = [f"{PUBLISHED}:{LISTENING}/udp"] if name == "server" else []
        addresses[name] = engine.connect(network, name, publish=published).address(version)
    mac, to, server, facing = mac_of(world), mac_of(Inside(engine), "wan0"), addresses["server"], FACING[version]

    def canary(token: bytes) -> bytes:
        return around(to, mac, udp(OUTSIDE[version], facing, PUBLISHED, token))

    def forgery(token: bytes) -> dict[str, bytes]:
        made = {"outside to server": udp(OUTSIDE[version], server, LISTENING, token)}
        for name, source in addresses.items():
            made[f"{name} to published port"] = udp(source, facing, PUBLISHED, token)
            made[f"{name} to server"] = udp(source, server, LISTENING, token)
        # The client has a connection with the server, by the port that is published.
        made["the client's next question"] = udp(addresses["client"], facing, PUBLISHED, token, by=CLIENT)
        made["the server's next answer"] = udp(server, addresses["client"], CLIENT, token, by=LISTENING)
        receivers = (to, EVERYBODY)
        return {f"{name}, to {receiver}": around(receiver, mac, packet) for name, packet in made.items() for receiver in receivers}

    watchers = [watch(Inside(engine, name)) for name in ("server", "neighbour", "client")]
    with Inside(engine, "client").run(lambda: _talking(PUBLISHED, facing)):
        assert arrived(watch(world), watchers, forgery, canary) == set()


@pytest.mark.parametrize("version", [4, 6])
def test_a_network_without_a_guard_passes_for_no_other(engine: Engine, world: Machine, watch: Watch, version: int) -> None:
    addresses = {"outside": OUTSIDE[version], "host": FACING[version]}
    for name, network in (("server", "net"), ("neighbour", "net"), ("attacker", "open")):
        if name != "neighbour":
            engine.create_network(network, ipv6=True, guard=name != "attacker")
        engine.create_namespace(name)
        endpoint = engine.connect(network, name, publish=[f"{PUBLISHED}:{LISTENING}/udp"] if name == "server" else [])
        addresses[name] = endpoint.address(version)
    attacker, gateway = engine.state.endpoint(engine.state.network("open"), "attacker"), engine.state.network("open").mac

    def canary(token: bytes) -> bytes:
        return around(gateway, attacker.mac, udp(addresses["attacker"], FACING[version], PUBLISHED, token))

    def forgery(token: bytes) -> dict[str, bytes]:
        return {name: around(gateway, attacker.mac, udp(source, FACING[version], PUBLISHED, token)) for name, source in addresses.items()}

    watcher = watch(Inside(engine, "server"))
    assert arrived(watch(Inside(engine, "attacker")), [watcher], forgery, canary) == {"attacker", "outside"}


@pytest.mark.parametrize("version", [4, 6])
def test_no_network_can_end_a_connection_of_another_by_an_icmp_error(engine: Engine, world: Machine, watch: Watch, version: int) -> None:
    facing, far_end = FACING[version], OUTSIDE[version]
    for name in ("client", "attacker"):
        engine.create_network(name, ipv6=True)
        engine.create_namespace(name)
    engine.connect("client", "client", publish=[f"{PUBLISHED}:{LISTENING}/udp"])
    attacker, gateway = engine.connect("attacker", "attacker"), engine.state.network("attacker").mac

    def result(sender: socket.socket, to: str, by: str, source: str) -> set[str]:
        def error(token: bytes) -> dict[str, bytes]:
            """There is no such port at the far end, as the host would be told, under whose address the client speaks."""
            quoted = bytes(4) + udp(facing, far_end, LISTENING, token, by=CLIENT)
            if version == 6:
                return {"error": around(to, by, frames.ip_packet(source, facing, frames.ICMP6, icmp6(source, facing, 1, quoted, code=4)))}
            return {"error": around(to, by, frames.ip_packet(source, facing, frames.ICMP, icmp(3, quoted, code=3)))}

        def canary(token: bytes) -> bytes:
            return around(to, by, udp(source, facing, PUBLISHED, token))

        return arrived(sender, [watcher], error, canary)

    watcher = watch(Inside(engine, "client"))
    with Inside(engine, "client").run(lambda: _talking(LISTENING, far_end)):
        assert result(watch(Inside(engine, "attacker")), gateway, attacker.mac, attacker.address(version)) == set()
        # From where the connection leads it may well be true.
        assert result(watch(world), mac_of(Inside(engine), "wan0"), mac_of(world), far_end) == {"error"}


# --- interfaces that nothing speaks of -----------------------------------------------------------------------------------------------
#
# Each with a name of our kind, and to show that it is the name that shuts the way, with another.


def _probes(place: Place, port: int, *wheres: Mapping[int, str]) -> list[Probe]:
    return [Probe(place, where[version], port, transport) for where in wheres for version in (4, 6) for transport in TRANSPORTS]


def _join(place: Place, addresses: Mapping[int, str], gateways: Mapping[int, str]) -> None:
    """Bring a namespace's `eth9` up without the engine."""
    place.run(lambda: sysctl.write("net/ipv6/conf/eth9/disable_ipv6", "0"))
    ip(place, "link set eth9 up", f"address add {addresses[4]}/24 dev eth9", f"address add {addresses[6]}/64 dev eth9 nodad")
    ip(place, *(f"route add default via {gateway}" for gateway in gateways.values()))


@pytest.mark.parametrize(("link", "passes"), [("atv0123456789", False), ("veth9", True)])
def test_an_unknown_port_of_a_bridge_lets_nothing_in(engine: Engine, world: Machine, traffic: Traffic, link: str, passes: bool) -> None:
    gateways, addresses = {4: "10.91.1.1", 6: "fd91:0:0:1::1"}, {4: "10.91.1.99", 6: "fd91:0:0:1::99"}
    network = engine.create_network("net", subnets=["10.91.1.0/24", "fd91:0:0:1::/64"], gateways=list(gateways.values()))
    for name in ("known", "stranger"):
        engine.create_namespace(name)
    known, stranger = Inside(engine, "known"), Inside(engine, "stranger")
    endpoint = engine.connect("net", "known")
    ip(Inside(engine), f"link add {link} type veth peer name eth9 netns stranger", f"link set {link} master {network.bridge} up")
    _join(stranger, addresses, gateways)
    settle(link)
    if passes:
        meet(*addresses.values())
    for place in (known, Inside(engine), world):
        traffic.serve(place, LISTENING)
    tried = _probes(stranger, LISTENING, FACING, OUTSIDE, {version: endpoint.address(version) for version in (4, 6)})
    canaries = _probes(known, LISTENING, FACING, OUTSIDE)
    assert (traffic.unanswered(tried) if passes else traffic.leaking(tried, canaries)) == []


@pytest.mark.parametrize(("link", "passes"), [("atv0123456789", False), ("att01234567891", False), ("veth9", True)])
def test_a_port_that_is_in_no_bridge_lets_nothing_in(engine: Engine, world: Machine, watch: Watch, link: str, passes: bool) -> None:
    host, stranger = Inside(engine), Inside(engine, "stranger")
    network = engine.create_network("net", ipv6=True)
    for name in ("known", "stranger"):
        engine.create_namespace(name)
    known = engine.connect("net", "known")
    ip(host, f"link add {link} type veth peer name eth9 netns stranger", f"link set {link} up")
    ip(stranger, "link set eth9 up")
    settle(link)
    near, far = mac_of(host, link), mac_of(stranger, "eth9")

    def canary(token: bytes) -> bytes:
        return around(network.mac, known.mac, udp(known.address(4), network.gateway(4), LISTENING, token))

    def forgery(token: bytes) -> dict[str, bytes]:
        sources = {4: "10.99.0.9", 6: "2001:db8:99::9"}
        return {
            where[version]: around(near, far, udp(source, where[version], LISTENING, token))
            for version, source in sources.items()
            for where in (FACING, OUTSIDE)
        }

    watchers = [watch(place, port=LISTENING, version=version) for place in (host, world) for version in (4, 6)]
    seen = arrived(watch(stranger, link="eth9"), watchers, forgery, canary, by=watch(Inside(engine, "known")))
    assert seen == (set(forgery(b"")) if passes else set())


@pytest.mark.parametrize(("bridge", "passes"), [("atb0123456789", False), ("br9", True)])
def test_an_unknown_bridge_leads_nowhere(engine: Engine, world: Machine, traffic: Traffic, bridge: str, passes: bool) -> None:
    engine.create_network("net", ipv6=True)
    for name in ("known", "stranger"):
        engine.create_namespace(name)
    known, stranger = Inside(engine, "known"), Inside(engine, "stranger")
    engine.connect("net", "known", publish=[f"{PUBLISHED}:{LISTENING}/{transport}" for transport in TRANSPORTS])
    near, far = {4: "10.99.0.1", 6: "2001:db8:99::1"}, {4: "10.99.0.9", 6: "2001:db8:99::9"}
    ip(
        Inside(engine),
        f"link add {bridge} up type bridge",
        "link add veth9 type veth peer name eth9 netns stranger",
        f"link set veth9 master {bridge} up",
        *(f"address add {where} dev {bridge}" for where in cidr(near)),
    )
    _join(stranger, far, near)
    settle("veth9", bridge)
    meet(*far.values())
    for place in (known, stranger, world):
        traffic.serve(place, LISTENING)
    tried = [*_probes(stranger, LISTENING, OUTSIDE), *_probes(stranger, PUBLISHED, FACING)]
    tried += [*_probes(known, LISTENING, far), *_probes(world, LISTENING, far)]
    canaries = [*_probes(known, LISTENING, OUTSIDE), *_probes(world, PUBLISHED, FACING)]
    assert (traffic.unanswered(tried) if passes else traffic.leaking(tried, canaries)) == []
