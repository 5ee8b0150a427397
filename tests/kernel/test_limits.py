"""Where networks end and begin: many endpoints, slow links, other drivers, others' namespaces and bridges, refusals, and restarts."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from atoll.engine import Engine, endpoints
from atoll.errors import AtollError, Conflict, Exhausted, Failed, Invalid, NotFound, Unsupported
from atoll.kernel import netns
from atoll.lab import private
from atoll.lab.machine import Machine, wire
from atoll.model import address
from tests.kernel.kernel_state import Shell, comparable, differences, exact, read
from tests.support import Inside, Probe, Traffic, outside

if TYPE_CHECKING:
    from collections.abc import Iterator


# --- many endpoints ------------------------------------------------------------------------------------------------------------------


def test_eleven_hundred_endpoints_on_one_network(engine: Engine) -> None:
    count, begun = 1100, time.monotonic()
    engine.create_network("net", subnets=["10.0.0.0/16"])
    with outside("client", "uplink", ["192.0.2.1/24"], ["192.0.2.9/24"]) as client, Traffic() as traffic:
        for number in range(count):
            engine.create_namespace(f"r{number}")
            engine.connect("net", f"r{number}", publish=["8080:80"] if number == count - 1 else [])
        network = engine.state.network("net")
        assert network.shards == 3
        links = engine.links()
        masters = Counter(link.master for link in links.values())
        ports = [masters[links[bridge].ifindex] for bridge in network.bridges()]
        assert sum(ports) == count + 4  # and the trunks between them
        assert max(ports) < 500

        sample = [0, 1, 479, 480, 481, 959, 960, 1098, 1099]
        places = {number: Inside(engine, f"r{number}") for number in sample}
        at = {number: engine.state.endpoints_of(f"r{number}")[0].address(4) for number in sample}
        for place in places.values():
            traffic.serve(place, 80)
        traffic.serve(Inside(engine), 80)
        ways = [(0, 1099), (1099, 0), (0, 480), (481, 959), (960, 479), (1098, 1099), (1, 960)]
        probes = [Probe(places[here], at[there], 80) for here, there in ways]
        probes += [Probe(place, "10.0.0.1", 80) for place in places.values()]
        probes += [Probe(client, "192.0.2.1", 8080), Probe(Inside(engine), at[1099], 80)]
        assert None not in traffic.ask(probes)
        assert engine.differences() == []
    assert time.monotonic() - begun < 40


def test_without_icc_endpoints_are_apart_on_every_bridge_of_a_network(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "SHARD_PORTS", 2)
    engine.create_network("net", icc=False, ipv6=True)
    with outside("client", "uplink", ["192.0.2.1/24"], ["192.0.2.9/24"]) as client, Traffic() as traffic:
        here, made = Inside(engine), []
        traffic.serve(client, 80)
        traffic.serve(here, 80)
        for number in range(5):
            engine.create_namespace(f"r{number}")
            made.append(engine.connect("net", f"r{number}", publish=[f"{8000 + number}:80"]))
            traffic.serve(Inside(engine, f"r{number}"), 80)
        assert [endpoint.shard for endpoint in made] == [0, 0, 1, 1, 2]
        places = [Inside(engine, endpoint.namespace) for endpoint in made]
        network = engine.state.network("net")
        through: list[Probe] = []
        for number, place in enumerate(places):
            through += [Probe(place, network.gateway(4), 80), Probe(place, network.gateway(6), 80), Probe(place, "192.0.2.9", 80)]
            through += [Probe(client, "192.0.2.1", 8000 + number), Probe(place, "192.0.2.1", 8000 + (number + 3) % 5)]
        assert None not in traffic.ask(through)
        between = [
            Probe(place, endpoint.address(version), 80)
            for place in places
            for endpoint in made
            if endpoint.namespace != place.name
            for version in (4, 6)
        ]
        assert not any(traffic.silence(between, through[:1]))


def test_a_network_that_is_full_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "SHARD_PORTS", 1)
    monkeypatch.setattr(endpoints, "MAX_SHARDS", 2)
    engine.create_network("net")
    for name in ("r1", "r2", "r3"):
        engine.create_namespace(name)
    engine.connect("net", "r1")
    engine.connect("net", "r2")
    with left_as_it_was(engine), pytest.raises(Exhausted, match="network net has 2 endpoints, the most it can hold") as caught:
        engine.connect("net", "r3")
    assert caught.value.exit_code == 7


def test_a_subnet_that_is_full_says_who_has_its_addresses(engine: Engine) -> None:
    engine.create_network("net", subnets=["10.0.0.0/29"])
    for number in range(6):
        engine.create_namespace(f"r{number}")
    for number in range(5):
        engine.connect("net", f"r{number}")
    words = r"network net has no free address in subnet 10.0.0.0/29, size 5 \(held by r0, r1, r2, r3, r4\)"
    with left_as_it_was(engine), pytest.raises(Exhausted, match=words) as caught:
        engine.connect("net", "r5")
    assert caught.value.exit_code == 7
    engine.disconnect("net", "r2")
    assert engine.connect("net", "r5").address(4) == "10.0.0.4"


# --- slow links ----------------------------------------------------------------------------------------------------------------------


def transfer(engine: Engine, source: str, target: str, host: str, size: int) -> float:
    """Send bytes over TCP from one namespace to another; how many bits a second arrived."""
    listener = Inside(engine, target).run(lambda: socket.create_server((host, 5001)))
    sender = Inside(engine, source).run(socket.socket)

    def send() -> None:
        sender.connect((host, 5001))
        sender.sendall(bytes(size))
        sender.close()

    thread = threading.Thread(target=send)
    with listener, sender:
        thread.start()
        connection, _ = listener.accept()
        with connection:
            begun, received = time.monotonic(), 0
            while chunk := connection.recv(1 << 16):
                received += len(chunk)
            seconds = time.monotonic() - begun
        thread.join()
    assert received == size
    return received * 8 / seconds


def test_rates_are_kept_in_each_direction(engine: Engine) -> None:
    engine.create_network("net")
    for name in ("fast", "slow"):
        engine.create_namespace(name)
    fast = engine.connect("net", "fast")
    slow = engine.connect("net", "slow", ingress_rate="20mbit", egress_rate="10mbit")
    # Half a second's worth; the bucket holds 64 KiB, which go at once.
    assert 10e6 < transfer(engine, "fast", "slow", slow.address(4), 1_250_000) < 26e6
    assert 5e6 < transfer(engine, "slow", "fast", fast.address(4), 625_000) < 13e6


# --- other drivers -------------------------------------------------------------------------------------------------------------------


def test_macvlan_endpoints_are_on_the_network_of_their_parent(engine: Engine) -> None:
    with outside("neighbour", "lan0", [], ["192.168.7.9/24", "fd07::9/64"]) as neighbour, Traffic() as traffic:
        subnets = ["192.168.7.0/24", "fd07::/64"]
        engine.create_network("lan", driver="macvlan", subnets=subnets, ip_ranges=["192.168.7.64/28"], options={"parent": "lan0"})
        places = []
        for name in ("m1", "m2"):
            engine.create_namespace(name)
            made = engine.connect("lan", name, mac="02:00:00:00:00:77" if name == "m1" else "")
            assert made.address(4).startswith("192.168.7.6")
            places.append(Inside(engine, name))
        for place in places:
            traffic.serve(place, 80)
        traffic.serve(neighbour, 80)
        probes = [Probe(place, target, 80) for place in places for target in ("192.168.7.9", "fd07::9")]
        probes += [Probe(neighbour, "192.168.7.64", 80), Probe(neighbour, "192.168.7.65", 80), Probe(places[0], "192.168.7.65", 80)]
        assert None not in traffic.ask(probes)
        assert "02:00:00:00:00:77" in Shell().run("ip -n m1 link show eth0")
        refusals: list[dict[str, Any]] = [{"publish": ["80:80"]}, {"ingress_rate": "1mbit"}]
        for refused in refusals:
            engine.create_namespace("m3")
            with left_as_it_was(engine), pytest.raises(Invalid, match="driver macvlan can't"):
                engine.connect("lan", "m3", **refused)
            engine.remove_namespace("m3")


def test_a_driver_that_the_kernel_lacks_is_named_and_leaves_nothing(engine: Engine) -> None:
    if Shell().succeeds("ip link add probe0 type ifb && ip link add probe1 link probe0 type ipvlan"):
        pytest.skip("this kernel has ipvlan")
    Shell().run("ip link add lan0 type ifb && ip link set lan0 up")
    engine.create_network("lan", driver="ipvlan", subnets=["192.168.7.0/24"], options={"parent": "lan0"})
    engine.create_namespace("r1")
    with left_as_it_was(engine), pytest.raises(Unsupported, match="this kernel has no ipvlan") as caught:
        engine.connect("lan", "r1")
    assert caught.value.exit_code == 6
    assert engine.state.endpoints_of("r1") == []
    engine.remove_network("lan")


# --- others' namespaces --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process() -> Iterator[int]:
    """A process in a network namespace of its own, by its pid; it ends with the block."""
    with subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        yield started.pid
        started.communicate()


def test_a_process_is_adopted_until_it_ends(engine: Engine) -> None:
    engine.create_network("net", subnets=["10.0.0.0/29"])
    engine.create_namespace("r2")
    with Traffic() as traffic:
        with process() as pid:
            namespace = engine.adopt_namespace("theirs", pid=pid)
            assert (namespace.kind, namespace.source) == ("adopted", f"pid:{pid}")
            assert "theirs" in Shell().run("ip netns list")
            made = engine.connect("net", "theirs", publish=["8080:80"])
            engine.connect("net", "r2")
            traffic.serve(Inside(engine, "theirs"), 80)
            assert traffic.one(Inside(engine, "r2"), made.address(4), 80)
            assert traffic.one(Inside(engine), "127.0.0.1", 8080)
            assert engine.release_vanished() == []
            with pytest.raises(Conflict, match="is published by theirs"):
                engine.publish("r2", ["8080:80"])
        # The servers of this test hold the namespace, but the process that it was adopted for is gone.
        assert [gone.name for gone in engine.release_vanished()] == ["theirs"]
        assert not Path("/run/netns/theirs").exists()
        assert f"link {made.host_interface}" not in Shell().run("ip -d -o link")
        assert engine.state.pools(engine.state.network("net"))[0].holder(address(made.address(4))) is None
        engine.publish("r2", ["8080:80"])
        engine.settle()
        assert engine.differences() == []


def test_a_pid_that_another_process_has_by_now_is_not_the_one_that_was_adopted(host: None, tmp_path: Path) -> None:
    with process() as pid:
        with Engine.open(tmp_path) as engine:
            engine.create_network("net")
            engine.adopt_namespace("theirs", pid=pid)
            engine.connect("net", "theirs")
            # As if the process that was adopted had ended and this one had got its number: it started at another time.
            record = engine.state.namespaces["theirs"]
            with engine.store.transaction():
                engine.store.put(structs.replace(record, start=record.start - 1))
        with pytest.raises(NotFound, match="is another process by now"):
            netns.hold_process(netns.Process(pid, record.start - 1))
        with Engine.open(tmp_path) as engine:
            assert engine.namespaces() == []
            assert engine.state.endpoints == {}
            engine.settle()
            assert engine.differences() == []
            assert not Path("/run/netns/theirs").exists()


def test_what_is_no_isolated_namespace_is_not_adopted(engine: Engine, tmp_path: Path) -> None:
    Shell().run("ip netns add theirs")
    (tmp_path / "plain").touch()
    engine.create_namespace("r1")
    cases: list[tuple[dict[str, Any], type[AtollError], str]] = [
        ({"pid": os.getpid()}, Conflict, "is in the host's own network namespace"),
        ({"path": "/proc/self/ns/net"}, Conflict, "is in the host's own network namespace"),
        ({"path": "/run/netns/r1"}, Conflict, "is under our care as r1"),
        ({"path": "/proc/self/ns/mnt"}, Invalid, "is not a network namespace"),
        ({"path": str(tmp_path / "plain")}, Invalid, "is not a network namespace"),
        ({"path": str(tmp_path)}, Invalid, "is not a network namespace"),
        ({"path": "run/netns/theirs"}, Invalid, "is not an absolute path"),
        ({"path": "/run/netns/nothere"}, NotFound, "no network namespace at"),
        ({"pid": 2**22}, NotFound, "no process with pid"),
        ({"pid": -1}, Invalid, "is not a pid"),
        ({}, Invalid, "is adopted from one place"),
        ({"pid": 1, "path": "/x"}, Invalid, "is adopted from one place"),
    ]
    for options, error, words in cases:
        with left_as_it_was(engine), pytest.raises(error, match=words):
            engine.adopt_namespace("new", **options)
    # A name that is someone else's stays theirs, also when giving it away fails.
    with process() as pid:
        ways: list[dict[str, Any]] = [{"pid": pid}, {"path": f"/proc/{pid}/ns/net"}]
        for options in ways:
            with left_as_it_was(engine), pytest.raises(Conflict, match="a namespace theirs exists that isn't ours"):
                engine.adopt_namespace("theirs", **options)
    with left_as_it_was(engine), pytest.raises(Conflict, match="a namespace theirs exists that isn't ours"):
        engine.create_namespace("theirs")


def test_a_namespace_that_has_its_name_already_keeps_it(engine: Engine) -> None:
    Shell().run("ip netns add theirs; ip -n theirs link add eth0 type ifb; ip -n theirs address add 10.99.0.2/24 dev eth0")
    Shell().run("ip -n theirs link set eth0 up; ip -n theirs route add default via 10.99.0.1")
    engine.create_network("net", subnets=["10.0.0.0/24"])
    before = comparable(exact(read(Shell())))
    engine.adopt_namespace("theirs", path="/run/netns/theirs")
    engine.create_namespace("r2")
    engine.connect("net", "r2")
    made = engine.connect("net", "theirs")
    assert made.interface == "eth1"
    with Traffic() as traffic:
        traffic.serve(Inside(engine, "theirs"), 80)
        assert traffic.one(Inside(engine, "r2"), made.address(4), 80)
    assert "default via 10.99.0.1" in Shell().run("ip -n theirs route")
    engine.remove_namespace("theirs")
    engine.remove_namespace("r2")
    engine.settle()
    after = comparable(exact(read(Shell())))
    ours = {place for place in before if place.startswith("theirs: ")}
    assert ours
    assert {place: after[place] for place in ours} == {place: before[place] for place in ours}


def test_a_name_that_somebody_deletes_is_noticed(engine: Engine) -> None:
    engine.create_network("net", subnets=["10.0.0.0/29"])
    for name in ("r1", "r2", "r3"):
        engine.create_namespace(name)
        engine.connect("net", name, publish=[f"80{name[1]}:80"])
    with netns_held("r1"):
        Shell().run("ip netns delete r1; ip netns delete r2; ip netns add r2; ip -n r2 link add mine type ifb")
        assert [gone.name for gone in engine.release_vanished()] == ["r1", "r2"]
        engine.settle()
        assert engine.differences() == []
        # The new r2 is someone else's, and so is its name.
        assert "mine" in Shell().run("ip -n r2 link")
        with pytest.raises(Conflict, match="a namespace r2 exists that isn't ours"):
            engine.create_namespace("r2")
        engine.create_namespace("r1")
        engine.connect("net", "r1", addresses=["10.0.0.2"], publish=["801:80"])


@contextlib.contextmanager
def netns_held(name: str) -> Iterator[None]:
    """A namespace that something else keeps alive."""
    with open(f"/run/netns/{name}", "rb"):
        yield


def test_a_removed_namespace_is_gone(engine: Engine) -> None:
    """What hangs between it and others goes with it."""
    engine.create_network("net", ipv6=True)
    engine.create_namespace("r1")
    engine.connect("net", "r1")
    Shell().run("ip link add witness type veth peer name far netns r1")
    engine.remove_namespace("r1")
    deadline = time.monotonic() + 10
    while Shell().succeeds("ip link show witness"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- others' bridges -----------------------------------------------------------------------------------------------------------------


def test_a_bridge_keeps_its_mtu_when_its_ports_come_and_go(engine: Engine) -> None:
    for name, mtu in (("small", 1400), ("large", 9000)):
        engine.create_network(name, mtu=mtu)
        engine.create_namespace(name)
        engine.connect(name, name)
        assert engine.differences() == []
        engine.disconnect(name, name)
        assert engine.differences() == []
        assert engine.links()[engine.state.network(name).bridge].mtu == mtu


def test_a_bridge_that_was_there_is_used_and_given_back(engine: Engine) -> None:
    with Machine("vm") as vm, Traffic() as traffic:
        wire("vnet0", vm, "eth0")
        vm.configure("eth0", ["10.9.0.50/24", "fd09::50/64"])
        Shell().run(
            """
            ip link add br9 address 02:00:00:00:00:09 type bridge
            ip link set br9 mtu 1450
            sysctl -qw net.ipv4.conf.br9.route_localnet=0 net.ipv6.conf.br9.accept_ra=1
            ip link set vnet0 up master br9
            ip link set br9 up
            ip address add 10.9.0.1/24 dev br9
            ip address add 10.8.0.1/24 dev br9
            ip route add 10.7.0.0/16 via 10.9.0.50
            """
        )
        before = comparable(exact(read(Shell())))
        network = engine.create_network("net", subnets=["10.9.0.0/24", "fd09::/64"], gateways=["10.9.0.1"], options={"bridge": "br9"})
        assert (network.made_bridge, network.kept_addresses, network.mtu) == (False, ("10.9.0.1/24",), 1450)
        engine.create_namespace("r1")
        made = engine.connect("net", "r1")
        assert engine.differences() == []
        traffic.serve(Inside(engine, "r1"), 80)
        traffic.serve(vm, 80)
        assert traffic.one(Inside(engine, "r1"), "10.9.0.50", 80)
        assert traffic.one(vm, made.address(4), 80)
        assert traffic.one(vm, made.address(6), 80)
        with pytest.raises(Conflict, match="bridge br9 belongs to another network"):
            engine.create_network("other", options={"bridge": "br9"})
        with pytest.raises(Conflict, match="interface vnet0 exists and is a veth, not a bridge"):
            engine.create_network("other", options={"bridge": "vnet0"})
        engine.remove_namespace("r1")
        engine.remove_network("net")
        engine.settle()
        assert differences(before, comparable(exact(read(Shell())))) == []


# --- refusals ------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def left_as_it_was(engine: Engine) -> Iterator[None]:
    """Whatever is done inside leaves the kernel and the engine's records as they were."""

    def record() -> list[object]:
        pools = [pool for network in engine.state.networks.values() for pool in engine.state.pools(network)]
        held = [list(pool.holders()) for pool in pools]
        state = engine.state
        return [dict(state.networks), dict(state.namespaces), dict(state.endpoints), held, set(state._macs), dict(state.ports._holders)]

    engine.settle()
    before, recorded = exact(read(Shell())), record()
    yield
    engine.settle()
    assert differences(comparable(before), comparable(exact(read(Shell())))) == []
    assert record() == recorded
    assert engine.differences() == []


@pytest.fixture
def busy(engine: Engine) -> Engine:
    """Two endpoints on a network, and a namespace on none."""
    engine.create_network("net", subnets=["10.0.0.0/24", "fd00::/64"])
    engine.create_network("small", subnets=["10.1.0.0/30"])
    for name in ("r1", "r2", "r3"):
        engine.create_namespace(name)
    engine.connect("net", "r1", publish=["8080:80", "9000-9009:9000-9009/udp"], mac="02:00:00:00:00:11")
    engine.connect("small", "r2")
    return engine


REFUSED: dict[str, tuple[str, dict[str, Any], type[AtollError], str]] = {
    "interface name taken": ("ip -n r3 link add eth0 type ifb", {}, Conflict, "File exists"),
    "interface name taken on a shard": ("ip -n r3 link add eth0 type ifb", {}, Conflict, "File exists"),
    "default route taken": (
        "ip -n r3 link add x type ifb; ip -n r3 link set x up; ip -n r3 route add default dev x",
        {},
        Conflict,
        "File exists",
    ),
    "element taken": ("nft 'add element inet atoll ports4 { tcp . 81 : 10.9.9.9 . 1 }'", {"publish": ["81:81"]}, Failed, "File exists"),
    "address held": ("", {"addresses": ["10.0.0.2"]}, Conflict, "10.0.0.2 is held by r1 on network net"),
    "address held, the other free": ("", {"addresses": ["fd00::77", "10.0.0.2"]}, Conflict, "10.0.0.2 is held by r1"),
    "gateway": ("", {"addresses": ["10.0.0.1"]}, Conflict, "10.0.0.1 is the gateway"),
    "foreign address": ("", {"addresses": ["10.7.0.1"]}, Invalid, "10.7.0.1 is not in a subnet of net"),
    "mac taken": ("", {"mac": "02:00:00:00:00:11"}, Conflict, "MAC address 02:00:00:00:00:11 is taken on network net"),
    "port published": ("", {"publish": ["8080:1"]}, Conflict, "port 8080/tcp is published by r1"),
    "port in a published range": ("", {"publish": ["1.2.3.4:9005:1/udp"]}, Conflict, "port 9005/udp is published by r1"),
    "port twice": ("", {"publish": ["1:1", "1:1"]}, Conflict, "1:1/tcp is named twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_connect_leaves_nothing_behind(busy: Engine, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, options, error, words = REFUSED[case]
    if "shard" in case:
        monkeypatch.setattr(endpoints, "SHARD_PORTS", 1)
    Shell().run(script)
    before = comparable(exact(read(Shell())))
    with pytest.raises(error, match=re.escape(words)):
        busy.connect("net", "r3", **options)
    busy.settle()
    after = comparable(exact(read(Shell())))
    # An element of ours that somebody else had added is taken away with ours.
    if "element" not in case:
        assert differences(before, after) == []
    assert busy.state.endpoints_of("r3") == []
    assert busy.state.network("net").shards == 1
    assert busy.differences() == []
    # And once it is out of the way all is as if it had never been tried.
    for name in ("eth0", "x"):
        Shell().succeeds(f"ip -n r3 link delete {name}")
    busy.connect("net", "r3", publish=["81:81"])
    assert busy.differences() == []


def test_a_port_that_a_program_of_the_host_has_is_named_with_the_program(busy: Engine) -> None:
    # A program may call itself what it likes.
    program = "import socket, sys\nopen('/proc/self/comm', 'wb').write(b'a\\xff\\x1b[1m')\nheld = [{}]\nprint(flush=True)\nsys.stdin.read()"
    tcp, udp6 = "socket.create_server(('127.0.0.1', 7000))", "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"
    sockets = f"{tcp}, (lambda s: s.bind(('::', 7001)) or s)({udp6})"
    command = [sys.executable, "-c", program.format(sockets)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        for spec, port in (("7000:80", "7000/tcp"), ("6990-7010:6990-7010", "7000/tcp"), ("7001:80/udp", "7001/udp")):
            words = re.escape(f"port {port} of the host is taken by a\ufffd\\x1b[1m (pid {holder.pid})")
            with left_as_it_was(busy), pytest.raises(Conflict, match=words):
                busy.connect("net", "r3", publish=[spec])
            with left_as_it_was(busy), pytest.raises(Conflict, match=words):
                busy.publish("r1", [spec])
        # Another address or protocol is free.
        busy.publish("r1", ["192.0.2.1:7000:80", "7000:80/udp", "7001:80"])
        holder.communicate()
    busy.publish("r1", ["127.0.0.1:7000:80"])
    assert busy.differences() == []


def test_a_namespace_that_vanished_before_it_is_connected_is_an_error_and_no_more(busy: Engine) -> None:
    Shell().run("ip netns delete r3")
    before = comparable(exact(read(Shell())))
    with pytest.raises(NotFound, match="no network namespace at /run/netns/r3"):
        busy.connect("net", "r3")
    assert busy.state.endpoints_of("r3") == []
    busy.settle()
    assert differences(before, comparable(exact(read(Shell())))) == []
    assert [gone.name for gone in busy.release_vanished()] == ["r3"]
    assert busy.differences() == []


def test_a_network_in_use_is_not_removed_and_its_users_are_named(engine: Engine) -> None:
    engine.create_network("net")
    for number in range(10):
        engine.create_namespace(f"r{number}")
        engine.connect("net", f"r{number}")
    with left_as_it_was(engine), pytest.raises(Conflict, match="network net is in use by r0, r1, r2, r3, r4, r5, r6, r7 and 2 more"):
        engine.remove_network("net")
    for number in range(10):
        engine.remove_namespace(f"r{number}")
    engine.remove_network("net")


# --- restarts ------------------------------------------------------------------------------------------------------------------------


def furnish(engine: Engine) -> None:
    engine.create_network("net", subnets=["10.0.0.0/24", "fd00::/64"])
    engine.create_network("second", subnets=["10.1.0.0/24"], internal=True, labels={"a": "b"})
    for name in ("r1", "r2"):
        engine.create_namespace(name)
        engine.connect("net", name, publish=[f"80{name[1]}:80", f"[::1]:9{name[1]}0-9{name[1]}5:9{name[1]}0-9{name[1]}5/udp"])
    engine.connect("second", "r1", aliases=["db"])
    engine.disconnect("net", "r2")
    engine.connect("net", "r2", addresses=["10.0.0.99"])


def test_a_restarted_engine_finds_everything_and_changes_nothing(host: None, tmp_path: Path) -> None:
    with process() as pid, contextlib.ExitStack() as stack:
        with Engine.open(tmp_path) as engine:
            furnish(engine)
            engine.adopt_namespace("theirs", pid=pid)
            engine.connect("net", "theirs")
            with pytest.raises(Conflict, match="another atoll has the state in"):
                Engine.open(tmp_path)
            known = engine.networks(), engine.namespaces(), dict(engine.state.endpoints)
            listener = stack.enter_context(Inside(engine, "r1").run(lambda: socket.create_server(("10.0.0.2", 80))))
            client = stack.enter_context(Inside(engine).run(lambda: socket.create_connection(("127.0.0.1", 801))))
            server = stack.enter_context(listener.accept()[0])
        before = exact(read(Shell()))
        with Engine.open(tmp_path) as engine:
            assert (engine.networks(), engine.namespaces(), dict(engine.state.endpoints)) == known
            assert differences(before, exact(read(Shell()))) == []
            assert engine.differences() == []
            client.sendall(b"still here")
            assert server.recv(100) == b"still here"
            # Nothing that was held is given out again, and numbers go on where they were.
            engine.create_namespace("r3")
            with pytest.raises(Conflict, match=r"10.0.0.99 is held by r2"):
                engine.connect("net", "r3", addresses=["10.0.0.99"])
            with pytest.raises(Conflict, match="port 801/tcp is published by r1"):
                engine.publish("r2", ["801:1"])
            assert engine.connect("net", "r3").address(4) == "10.0.0.5"
            assert engine.release_vanished() == []
    # The engine hears of a process that ended while it was away.
    with Engine.open(tmp_path) as engine:
        assert [namespace.name for namespace in engine.namespaces()] == ["r1", "r2", "r3"]
        engine.settle()
        assert engine.differences() == []


@contextlib.contextmanager
def rebooted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The calling thread on a host that has just started: another network stack, another boot, nothing mounted."""
    home = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
    netns.mount("atoll", str(netns.NETNS_DIR), "tmpfs", data="mode=755")
    netns.unshare(netns.CLONE_NEWNET)
    private.fresh()
    monkeypatch.setattr(netns, "boot_id", lambda: "another boot")
    try:
        yield
    finally:
        netns.setns(home)
        os.close(home)
        netns.unmount(str(netns.NETNS_DIR))


def test_after_a_reboot_networks_are_made_again_and_namespaces_are_gone(
    host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process() as pid, Engine.open(tmp_path) as engine:
        furnish(engine)
        engine.adopt_namespace("theirs", pid=pid)
        engine.connect("net", "theirs", publish=["7000:80"])
        networks = engine.networks()
    with rebooted(monkeypatch):
        Shell().run("ip netns add r2; ip -n r2 link add mine type ifb")
        with Engine.open(tmp_path) as engine:
            assert engine.networks() == networks
            assert engine.namespaces() == []
            assert engine.state.endpoints == {}
            engine.settle()
            assert engine.differences() == []
            assert "mine" in Shell().run("ip -n r2 link")
            engine.create_namespace("r1")
            made = engine.connect("net", "r1", addresses=["10.0.0.2"], publish=["801:80"])
            with Traffic() as traffic:
                traffic.serve(Inside(engine, "r1"), 80)
                assert traffic.one(Inside(engine), "127.0.0.1", 801)
            assert made.shard == 0
            engine.remove_namespace("r1")
            for network in ("net", "second"):
                engine.remove_network(network)
            engine.settle()
            assert Shell().run("nft list tables") == ""
            assert Shell().run("cat /proc/sys/net/ipv4/ip_forward") == "0\n"


def test_a_namespace_of_an_earlier_boot_is_not_taken_for_ours_whatever_its_number(
    host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine.open(tmp_path) as engine:
        engine.create_network("net")
        engine.create_namespace("r1")
    # The kernel numbers namespaces from the same beginning each time, so a stranger's may well have the number of ours.
    monkeypatch.setattr(netns, "boot_id", lambda: "another boot")
    with Engine.open(tmp_path) as engine:
        assert engine.namespaces() == []
        assert "r1" in Shell().run("ip netns list")
