"""Who reaches whom: real packets against a small model of what networks promise."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import pytest

from atoll.firewall.skeleton import TABLE
from atoll.kernel import nft, sysctl
from tests.support import FACING, OUTSIDE, PATIENCE, QUIET, TRANSPORTS, Inside, Probe, Seen, Traffic, cidr, ip, lenient, outside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from atoll import Engine
    from atoll.lab.machine import Machine
    from tests.support import Place, Transport

T = TypeVar("T")

SERVED: Final = 80
LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}


# --- the model -----------------------------------------------------------------------------------------------------------------------
#
# Four networks, one of each kind. On each a server, a client as it was connected, and a crafty one: root inside has given it a default
# route and leads the server's address, which is on its own link, by the gateway.

KINDS: Final[dict[str, dict[str, bool]]] = {
    "plain": {},
    "internal": {"internal": True},
    "apart": {"icc": False},
    "routed": {"masquerade": False},
}
INHABITANTS: Final = ("server", "client", "crafty")
#: Each server but the internal one publishes its port four times: on every address of the host, or on one only.
PUBLISHED_ON: Final = ("any", "facing", "gateway", "loopback")
#: The addresses of the host that are tried: the one that faces the outside, the gateway's on the target's own network, the gateway's on
#: another network (the internal one, of all), and the loopback address.
HOST_ADDRESSES: Final = ("facing", "gateway", "foreign", "loopback")


class Source(NamedTuple):
    """`network` is empty for the host and the machine outside."""

    network: str
    name: str


class Target(NamedTuple):
    """Where there are two names only, a server's own address: a network's, the host's by one of its addresses, or that outside. Else a
    server's port as published on some address of the host and tried by another."""

    where: str
    published_on: str = ""
    tried_by: str = ""


def sources() -> list[Source]:
    return [Source("", "host"), Source("", "outside"), *(Source(network, name) for network in KINDS for name in INHABITANTS)]


def targets(source: Source) -> Iterator[Target]:
    """What a source can try. To anyone but the host its loopback address is its own; frames that say otherwise are forged ones."""
    ways = [way for way in HOST_ADDRESSES if way != "loopback" or source.name == "host"]
    yield from (Target(where) for where in (*KINDS, "outside") if where != source.name)
    yield from (Target("host", tried_by=way) for way in ways)
    for network in KINDS:
        if network != "internal":
            yield from (Target(network, published_on, way) for published_on in PUBLISHED_ON for way in ways)


def reachable(source: Source, target: Target) -> bool:
    """The promise."""
    if source.network == "internal":
        # Nothing leads out of an internal network; its gateway's address is the only one of the host that is in it.
        return target.where == "internal" or (target.where == "host" and target.tried_by == "foreign")
    if target.where in ("host", "outside"):
        return True
    if target.published_on:
        # A published port is there for everyone, neighbours that are kept apart and the publisher included: by every address of the
        # host, or by just the one that it is published on.
        return target.published_on in ("any", target.tried_by)
    if source.network == target.where:
        # A namespace always reaches itself. Its neighbours do unless the network keeps them apart.
        return source.name == "server" or target.where != "apart"
    # Beyond its network an endpoint has no address, but for the host, and for the outside where the network is routed.
    return source.name == "host" or (source.name == "outside" and target.where == "routed")


def client_address(source: Source, target: Target, version: int) -> str:
    """Whom the server sees: the client by its own address wherever an answer to that would come back the way the question went."""
    if source.name == "outside":
        return OUTSIDE[version]
    if source.name == "host":
        if target.where == "outside":
            return FACING[version]
        # The host asks its own address by that same address, which an endpoint could not answer if it is the loopback one.
        direct = not target.tried_by or (target.published_on and target.tried_by == "loopback")
        return gateway_address(target.where, version) if direct else host_address(target, version)
    if target.published_on and source.network == target.where:
        # Seen by its own address, a neighbour would be answered directly, by an address that it didn't ask.
        return gateway_address(target.where, version)
    if target.where == "outside" and source.network != "routed":
        return FACING[version]
    return own_address(source, version)


# --- the model's addresses and ports -------------------------------------------------------------------------------------------------


def _inside(network: str, host: int, version: int) -> str:
    number = 1 + list(KINDS).index(network)
    return f"fd91:0:0:{number}::{host}" if version == 6 else f"10.91.{number}.{host}"


def gateway_address(network: str, version: int) -> str:
    return _inside(network, 1, version)


def own_address(source: Source, version: int) -> str:
    return _inside(source.network, 2 + INHABITANTS.index(source.name), version)


def host_address(target: Target, version: int) -> str:
    gateway = gateway_address("plain" if target.where == "host" else target.where, version)
    foreign = gateway_address("internal", version)
    return {"facing": FACING[version], "gateway": gateway, "foreign": foreign, "loopback": LOOPBACK[version]}[target.tried_by]


def address(target: Target, version: int) -> str:
    if target.where == "outside":
        return OUTSIDE[version]
    return host_address(target, version) if target.tried_by else own_address(Source(target.where, "server"), version)


def port(target: Target) -> int:
    if not target.published_on:
        return SERVED
    return 8000 + 10 * list(KINDS).index(target.where) + PUBLISHED_ON.index(target.published_on)


def specs(network: str) -> Iterator[str]:
    for published_on in PUBLISHED_ON:
        target = Target(network, published_on, tried_by=published_on)
        hosts = [""] if published_on == "any" else [f"{host_address(target, 4)}:", f"[{host_address(target, 6)}]:"]
        yield from (f"{host}{port(target)}:{SERVED}/{transport}" for host in hosts for transport in TRANSPORTS)


# --- the model against the kernel ----------------------------------------------------------------------------------------------------


def populate(engine: Engine, machine: Machine) -> dict[Source, Place]:
    """The four networks and who is on them."""
    places: dict[Source, Place] = {Source("", "host"): Inside(engine), Source("", "outside"): machine}
    for network, options in KINDS.items():
        subnets = [f"{_inside(network, 0, 4)}/24", f"{_inside(network, 0, 6)}/64"]
        gateways = {version: gateway_address(network, version) for version in (4, 6)}
        engine.create_network(network, subnets=subnets, gateways=list(gateways.values()), **options)
        server = Source(network, "server")
        for name in INHABITANTS:
            source = Source(network, name)
            engine.create_namespace("-".join(source))
            engine.connect(network, "-".join(source), addresses=[own_address(source, version) for version in gateways])
            places[source] = Inside(engine, "-".join(source))
        for version, gateway in gateways.items():
            ip(places[Source(network, "crafty")], f"route replace default via {gateway}")
            ip(places[Source(network, "crafty")], f"route add {own_address(server, version)} via {gateway}")
        if network != "internal":
            engine.publish("-".join(server), list(specs(network)))
    return places


class Cell(NamedTuple):
    """One field of the table of who reaches whom."""

    source: Source
    target: Target
    version: int
    transport: Transport

    def __str__(self) -> str:
        published = f", port published on {self.target.published_on}" if self.target.published_on else ""
        by = f", by {self.target.tried_by}" if self.target.tried_by else ""
        return f"{' '.join(self.source).strip()} to {self.target.where}{published}{by}, IPv{self.version} {self.transport}"

    def expected(self) -> Seen | None:
        if not reachable(self.source, self.target):
            return None
        server = f"{self.target.where}-server" if self.target.where in KINDS else self.target.where
        return Seen(server, client_address(self.source, self.target, self.version))

    def probe(self, places: dict[Source, Place]) -> Probe:
        return Probe(places[self.source], address(self.target, self.version), port(self.target), self.transport)


def test_what_is_reachable_is_what_the_model_says_and_nothing_else(engine: Engine, world: Machine, traffic: Traffic) -> None:
    places = populate(engine, world)
    for source, place in places.items():
        if source.name in ("server", "host", "outside"):
            traffic.serve(place, SERVED)
    seen: dict[Cell, Seen | None] = {}
    for source in sources():
        cells = [Cell(source, target, v, transport) for target in targets(source) for v in (4, 6) for transport in TRANSPORTS]
        allowed = [cell for cell in cells if cell.expected()]
        blocked = [cell for cell in cells if not cell.expected()]
        seen |= zip(allowed, traffic.ask([cell.probe(places) for cell in allowed]), strict=True)
        # For each family and protocol some path from this very source that works, to be tried before and after those that don't.
        canaries = {cell[2:]: cell for cell in allowed if seen[cell] == cell.expected()}
        assert len(canaries) == 4
        canary_probes = [cell.probe(places) for cell in canaries.values()]
        seen |= zip(blocked, traffic.silence([cell.probe(places) for cell in blocked], canary_probes), strict=True)
    wrong = [f"{cell}: expected {cell.expected()}, seen {got}" for cell, got in seen.items() if got != cell.expected()]
    assert wrong == []
    assert len(seen) == 2 * 2 * sum(len(list(targets(source))) for source in sources())


def test_pings_go_where_the_model_says_and_nowhere_else(engine: Engine, world: Machine) -> None:
    places = populate(engine, world)
    asked = [(s, t, v) for s in sources() for t in targets(s) if not t.published_on for v in (4, 6)]
    allowed = [question for question in asked if reachable(*question[:2])]
    blocked = [question for question in asked if not reachable(*question[:2])]

    def answered(questions: list[tuple[Source, Target, int]], patience: float) -> list[tuple[Source, Target, int]]:
        return _answered([(question, places[question[0]], address(*question[1:])) for question in questions], patience)

    assert answered(allowed, PATIENCE) == allowed
    assert answered(blocked, QUIET) == []
    assert answered(allowed, PATIENCE) == allowed
    assert {(source, version) for source, _, version in allowed} >= {(source, version) for source, _, version in blocked}


def _answered(questions: Sequence[tuple[T, Place, str]], patience: float) -> list[T]:
    """Those whose address answers an echo request from the place. All are sent at once."""
    with contextlib.ExitStack() as stack:
        waiting = {stack.enter_context(place.run(lambda to=to: _echo_request(to))): key for key, place, to in questions}  # type: ignore[misc]
        end = time.monotonic() + patience
        silent = dict(waiting)
        while silent and (rest := end - time.monotonic()) > 0:
            for ready in select.select(list(silent), [], [], rest)[0]:
                if ready.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    del silent[ready]
        return [key for one, key in waiting.items() if one not in silent]


def _echo_request(to: str) -> socket.socket:
    """On its way; the socket can be read when it is answered (icmp(7): sockets that need no privilege once the namespace lets them)."""
    sysctl.write("net/ipv4/ping_group_range", "0\t0")
    family, protocol, kind = (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128) if ":" in to else (socket.AF_INET, socket.IPPROTO_ICMP, 8)
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, protocol)
    with contextlib.suppress(OSError):
        made.connect((to, 0))
        made.send(struct.pack("!BBHHH", kind, 0, 0, 0, 1))
    return made


def test_nobody_is_told_of_a_way_that_is_shorter_than_by_the_gateway(engine: Engine, traffic: Traffic) -> None:
    lenient()
    sysctl.write("net/ipv4/conf/all/send_redirects", "1")
    network = engine.create_network("net", ipv6=True)
    for name in ("server", "client"):
        engine.create_namespace(name)
    server, client = engine.connect("net", "server"), Inside(engine, "client")
    engine.connect("net", "client")
    traffic.serve(Inside(engine, "server"), SERVED)
    ip(client, *(f"route add {server.address(version)} via {network.gateway(version)}" for version in (4, 6)))
    every = 3  # ETH_P_ALL
    with client.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(every))) as watcher:
        for _ in range(3):
            assert traffic.unanswered([Probe(client, server.address(version), SERVED, "udp") for version in (4, 6)]) == []
        packets = list(iter(lambda: _received(watcher), b""))
    assert len(packets) >= 12
    assert not [packet for packet in packets if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_ICMP and packet[20] == 5]
    assert not [packet for packet in packets if packet[0] >> 4 == 6 and packet[6] == socket.IPPROTO_ICMPV6 and packet[40] == 137]


def _received(watcher: socket.socket) -> bytes:
    try:
        return watcher.recv(65536)
    except BlockingIOError:
        return b""


def test_datagrams_larger_than_the_mtu_arrive(engine: Engine, world: Machine, traffic: Traffic) -> None:
    engine.create_network("net", ipv6=True)
    for name in ("server", "client"):
        engine.create_namespace(name)
    client, server = engine.connect("net", "client"), engine.connect("net", "server", publish=[f"8001:{SERVED}/udp"])
    del client
    for place in (Inside(engine, "server"), world):
        traffic.serve(place, SERVED)
    for version in (4, 6):
        ways = {server.address(version): SERVED, OUTSIDE[version]: SERVED, FACING[version]: 8001}
        probes = [Probe(Inside(engine, "client"), where, number, "udp", size=5000) for where, number in ways.items()]
        assert traffic.unanswered([*probes, Probe(world, FACING[version], 8001, "udp", size=5000)]) == []


# --- what leaves the host ------------------------------------------------------------------------------------------------------------


def test_what_leaves_the_host_bears_the_address_that_its_network_says(engine: Engine, traffic: Traffic) -> None:
    chosen = {4: "203.0.113.77", 6: "2001:db8:300::77"}
    lenient()
    with outside("outside", "wan0", [*cidr(FACING), *cidr(chosen)], cidr(OUTSIDE)) as machine:
        traffic.serve(machine, SERVED)
        engine.create_network("masquerade", ipv6=True)
        engine.create_network("snat", ipv6=True, options={"snat": chosen[4], "snat6": chosen[6]})
        engine.create_network("routed", ipv6=True, masquerade=False)
        for name in ("masquerade", "snat", "routed"):
            engine.create_namespace(name)
            endpoint = engine.connect(name, name)
            for version in (4, 6):
                expected = {"masquerade": FACING[version], "snat": chosen[version], "routed": endpoint.address(version)}[name]
                for transport in TRANSPORTS:
                    assert traffic.one(Inside(engine, name), OUTSIDE[version], SERVED, transport) == Seen("outside", expected)


def test_a_published_port_does_not_catch_what_only_passes_the_host(engine: Engine, world: Machine, traffic: Traffic) -> None:
    engine.create_network("net", ipv6=True)
    for name in ("server", "client"):
        engine.create_namespace(name)
        engine.connect("net", name, publish=[f"{SERVED}:{SERVED}/{transport}" for transport in TRANSPORTS if name == "server"])
    for place in (Inside(engine, "server"), world):
        traffic.serve(place, SERVED)
    for version in (4, 6):
        for transport in TRANSPORTS:
            for where, name in ((FACING, "server"), (OUTSIDE, "outside")):
                seen = traffic.one(Inside(engine, "client"), where[version], SERVED, transport)
                assert seen is not None
                assert seen.server == name


@pytest.mark.parametrize("routes4", [False, True], ids=["no IPv4 router", "IPv4 router"])
@pytest.mark.parametrize("routes6", [False, True], ids=["no IPv6 router", "IPv6 router"])
def test_a_host_forwards_between_its_other_interfaces_only_what_it_did_before(
    engine: Engine, traffic: Traffic, routes4: bool, routes6: bool
) -> None:
    lenient()
    sysctl.write("net/ipv4/ip_forward", str(int(routes4)))
    sysctl.write("net/ipv6/conf/all/forwarding", str(int(routes6)))
    beyond = {4: "203.0.113.9", 6: "2001:db8:200::9"}
    with (
        outside("left", "wan0", cidr(FACING), cidr(OUTSIDE)) as left,
        outside("right", "wan1", ["203.0.113.1/24", "2001:db8:200::1/64"], cidr(beyond)) as right,
    ):
        for place in (left, right, Inside(engine)):
            traffic.serve(place, SERVED)

        def check() -> None:
            for version, routes in ((4, routes4), (6, routes6)):
                ways = ((left, beyond[version]), (right, OUTSIDE[version]))
                across = [Probe(machine, where, SERVED, transport) for machine, where in ways for transport in TRANSPORTS]
                # The host's own address on the far side is reached either way.
                canaries = [probe._replace(address=FACING[version]) for probe in across]
                assert (traffic.unanswered(across) if routes else traffic.leaking(across, canaries)) == []

        check()
        engine.create_network("first", ipv6=True)
        assert sysctl.read("net/ipv4/ip_forward") == sysctl.read("net/ipv6/conf/all/forwarding") == "1"
        check()
        engine.create_network("second", ipv6=True)
        engine.remove_network("first")
        check()
        engine.remove_network("second")
        check()


# --- ranges and families -------------------------------------------------------------------------------------------------------------


def test_a_range_that_keeps_its_ports_is_one_element_and_works_from_end_to_end(engine: Engine, world: Machine, traffic: Traffic) -> None:
    engine.create_network("net", ipv6=True)
    engine.create_namespace("server")
    engine.connect("net", "server", publish=[f"20000-29999:20000-29999/{transport}" for transport in TRANSPORTS])
    for version in (4, 6):
        assert len(list(nft.elements(engine.host.nfnl, "inet", TABLE, f"ranges{version}"))) == len(TRANSPORTS)
        assert list(nft.elements(engine.host.nfnl, "inet", TABLE, f"ports{version}")) == []
    for number in (19999, 20000, 25000, 29999, 30000):
        traffic.serve(Inside(engine, "server"), number, name=str(number))
    within = _to_the_host(world, 20000, 25000, 29999)
    assert [seen and seen.server for seen in traffic.ask(within)] == [str(probe.port) for probe in within]
    assert traffic.leaking(_to_the_host(world, 19999, 30000), within) == []


def test_a_range_on_one_address_of_the_host_is_on_no_other(engine: Engine, world: Machine, traffic: Traffic) -> None:
    network = engine.create_network("net", ipv6=True)
    engine.create_namespace("server")
    hosts = (FACING[4], f"[{FACING[6]}]")
    engine.connect("net", "server", publish=[f"{host}:7000-7999:7000-7999/{transport}" for host in hosts for transport in TRANSPORTS])
    traffic.serve(Inside(engine, "server"), 7500)
    there = _to_the_host(world, 7500)
    elsewhere = [probe._replace(address=network.gateway(6 if ":" in probe.address else 4)) for probe in there]
    assert traffic.leaking(elsewhere, there) == []


def test_a_shifted_range_keeps_the_distance(engine: Engine, world: Machine, traffic: Traffic) -> None:
    engine.create_network("net", ipv6=True)
    engine.create_namespace("server")
    engine.connect("net", "server", publish=[f"7000-7003:9000-9003/{transport}" for transport in TRANSPORTS])
    for number in range(8999, 9005):
        traffic.serve(Inside(engine, "server"), number, name=str(number))
    within = _to_the_host(world, 7000, 7001, 7002, 7003)
    assert [seen and seen.server for seen in traffic.ask(within)] == [str(probe.port + 2000) for probe in within]
    assert traffic.leaking(_to_the_host(world, 6999, 7004, 9000), within) == []


def _to_the_host(source: Place, *ports: int, versions: Sequence[int] = (4, 6)) -> list[Probe]:
    return [Probe(source, FACING[version], number, transport) for version in versions for number in ports for transport in TRANSPORTS]


def test_a_port_is_there_in_the_families_of_its_address_and_of_its_endpoint(engine: Engine, world: Machine, traffic: Traffic) -> None:
    engine.create_network("dual", ipv6=True)
    engine.create_network("single")
    for name, hosts in (("dual", {"0.0.0.0:8001", "[::]:8002", "8003"}), ("single", {"8004"})):
        engine.create_namespace(name)
        engine.connect(name, name, publish=[f"{host}:{SERVED}/{transport}" for host in hosts for transport in TRANSPORTS])
        traffic.serve(Inside(engine, name), SERVED)
    for version, there, not_there in ((4, (8001, 8003, 8004), (8002,)), (6, (8002, 8003), (8001, 8004))):
        canaries = _to_the_host(world, *there, versions=[version])
        assert traffic.unanswered(canaries) == []
        assert traffic.leaking(_to_the_host(world, *not_there, versions=[version]), canaries) == []


# --- several networks per namespace --------------------------------------------------------------------------------------------------


def test_of_several_networks_the_gateway_priority_says_by_which_a_namespace_leaves(
    engine: Engine, world: Machine, traffic: Traffic
) -> None:
    traffic.serve(world, SERVED)
    engine.create_namespace("both")

    def leaves_by(name: str) -> None:
        addresses = {4: by_name[name].address(4), 6: by_name[name].address(6)}
        for version, expected in addresses.items():
            assert traffic.one(Inside(engine, "both"), OUTSIDE[version], SERVED) == Seen("outside", expected)

    by_name = {}
    for name, priority in (("first", 0), ("second", 0), ("third", 10)):
        engine.create_network(name, ipv6=True, masquerade=False)
        by_name[name] = engine.connect(name, "both", gateway_priority=priority)
        leaves_by("third" if name == "third" else "first")
    engine.disconnect("third", "both")
    leaves_by("first")
    engine.disconnect("first", "both")
    leaves_by("second")


def test_each_endpoint_of_a_namespace_answers_for_itself(engine: Engine, world: Machine, traffic: Traffic) -> None:
    ports = {"gateway": 8001, "other": 8002}
    clients = {}
    engine.create_namespace("server")
    for network in (*ports, "third"):
        engine.create_network(network, ipv6=True)
        engine.create_namespace(f"{network}-client")
        clients[network] = engine.connect(network, f"{network}-client")
        if network in ports:
            engine.connect(network, "server", publish=[f"{ports[network]}:{SERVED}/{transport}" for transport in TRANSPORTS])
    traffic.serve(Inside(engine, "server"), SERVED)
    for network, number in ports.items():
        for version in (4, 6):
            expected = {"outside": OUTSIDE[version], **{name: client.address(version) for name, client in clients.items()}}
            # Its neighbours' addresses can't be kept on the network that it is published from, and are on any other.
            where = engine.state.network(network)
            expected[network] = where.gateway(version)
            for transport in TRANSPORTS:
                for name, client in expected.items():
                    place = world if name == "outside" else Inside(engine, f"{name}-client")
                    assert traffic.one(place, FACING[version], number, transport) == Seen("server", client), (network, name)
    assert engine.differences() == []
    engine.disconnect("gateway", "server")
    assert engine.differences() == []


# --- networks of several bridges, and frames that pass the IP firewall ---------------------------------------------------------------


@pytest.mark.parametrize("call", ["0", "1"], ids=["frames go by", "frames pass the IP firewall"])
@pytest.mark.parametrize("icc", [True, False])
def test_a_network_of_several_bridges_is_as_one(
    engine: Engine, world: Machine, traffic: Traffic, monkeypatch: pytest.MonkeyPatch, icc: bool, call: str
) -> None:
    monkeypatch.setattr("atoll.engine.endpoints.SHARD_PORTS", 2)
    # Somebody else's bridge, for whose sake Atoll leaves these settings as they are.
    ip(Inside(engine), "link add br9 type bridge")
    for setting in ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"):
        if sysctl.read(setting) is None:
            pytest.skip("this kernel has no br_netfilter")
        sysctl.write(setting, call)
    engine.create_network("net", ipv6=True, icc=icc)
    endpoints = {}
    for name in "abcde":
        engine.create_namespace(name)
        endpoints[name] = engine.connect("net", name, publish=[f"8001:{SERVED}/{transport}" for transport in TRANSPORTS if name == "e"])
        traffic.serve(Inside(engine, name), SERVED)
    assert {name: endpoint.shard for name, endpoint in endpoints.items()} == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2}
    traffic.serve(world, SERVED)
    for version in (4, 6):
        out = [Probe(Inside(engine, name), OUTSIDE[version], SERVED, transport) for name in endpoints for transport in TRANSPORTS]
        assert set(traffic.ask(out)) == {Seen("outside", FACING[version])}
        neighbours = [
            probe._replace(address=other.address(version))
            for probe in out
            for other in endpoints.values()
            if other.namespace != probe.source.name
        ]
        assert (traffic.unanswered(neighbours) if icc else traffic.leaking(neighbours, out)) == []
        published = [Probe(world, FACING[version], 8001, transport) for transport in TRANSPORTS]
        assert traffic.ask(published) == [Seen("e", OUTSIDE[version])] * 2
        if call == "0":  # else a bridge rewrites such frames by itself, and never sends one back to the port that it came by
            round_about = [probe._replace(address=FACING[version], port=8001) for probe in out if probe.source.name != "e"]
            assert set(traffic.ask(round_about)) == {Seen("e", engine.state.network("net").gateway(version))}
        beyond = [probe._replace(address=endpoint.address(version), port=SERVED) for probe in published for endpoint in endpoints.values()]
        assert traffic.leaking(beyond, published) == []
