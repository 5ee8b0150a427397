"""A printed plan is the plan: its commands, run by bash with the real tools on an empty host, make what our own execution makes.

Every scenario runs on two hosts at once. On one the engine does each step, on the other bash runs what the step's plan printed before;
after each step both kernels must hold the same. And before it the plan must have changed nothing.
"""

from __future__ import annotations

import random
import secrets
import subprocess
import time
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

import pytest

from atoll.engine import Engine, endpoints
from atoll.ipam import Pool
from atoll.model import Route, Tuning
from tests.kernel.kernel_state import OtherHost, Shell, State, comparable, differences, exact, read

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How long an asynchronous consequence of a change may take, in seconds: a bridge's link-local address comes with its carrier.
SETTLED = 10.0

UPLINK = """
ip link add uplink address 02:00:00:00:00:01 type ifb
ip address add 192.0.2.2/24 dev uplink
ip address add 2001:db8::2/64 dev uplink nodad
sysctl -qw net/ipv6/conf/uplink/accept_ra=1
ip link set uplink up
ip route add default via 192.0.2.1
"""


class Twins:
    """The engine's host and the one where bash does the same."""

    def __init__(self, engine: Engine, other: OtherHost, draws: random.Random) -> None:
        self.engine = engine
        self._here, self._other, self._draws = Shell(), other, draws
        self.with_connections = False
        self._latest = self._read(self._here)

    def _read(self, shell: Shell) -> State:
        return read(shell, connections=self.with_connections)

    def both(self, script: str) -> None:
        """Something that is not ours, on both hosts."""
        self._here.run(script)
        self._other.run(script)
        self._latest = self._read(self._here)

    def do(self, verb: str, *arguments: Any, **options: Any) -> None:
        """One step: the plan, which changes nothing; the same by the engine and by bash; the comparison."""
        drawn, recorded = self._draws.getstate(), _record(self.engine)
        commands: list[str] = getattr(self.engine, f"plan_{verb}")(*arguments, **options).commands()
        assert not differences(exact(self._latest), exact(self._read(self._here)))
        assert _record(self.engine) == recorded
        # Ids and MAC addresses are random: the step draws again what its plan drew.
        self._draws.setstate(drawn)
        getattr(self.engine, verb)(*arguments, **options)
        self.engine.settle()
        self._other.run("\n".join(commands))
        self._compare(commands)

    def connections(self, port: int) -> int:
        """How many connections were made to a port."""
        return sum(f"dport={port} " in row.partition(" src=")[2].partition(" src=")[0] + " " for row in self._latest["connections"])

    def _compare(self, commands: list[str]) -> None:
        deadline = time.monotonic() + SETTLED
        while True:
            self._latest = self._read(self._here)
            found = differences(comparable(self._latest), comparable(self._read(self._other)))
            if not found:
                return
            assert time.monotonic() < deadline, "\n".join(["first our execution, second the commands:", *found, "", *commands])


def _record(engine: Engine) -> list[object]:
    """All that the engine keeps: its store, and in memory the state of every address pool."""
    pools = [pool for network in engine.state.networks.values() for pool in engine.state.pools(network)]
    return [*engine.store._db.iterdump(), *((pool.cursor, list(pool.holders()), pool._last_freed) for pool in pools)]


@pytest.fixture
def twins(host: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Twins]:
    draws = random.Random(1)
    monkeypatch.setattr(secrets, "token_bytes", draws.randbytes)
    monkeypatch.setattr(secrets, "token_hex", lambda size: draws.randbytes(size).hex())
    monkeypatch.setattr(secrets, "randbits", draws.getrandbits)
    with OtherHost() as other, Engine.open() as engine:
        yield Twins(engine, other, draws)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ipv6": True},
        {"ipv4": False, "ipv6": True, "gateways": [], "mtu": 1400},
        {"subnets": ["10.1.0.0/16", "10.2.0.0/24", "fd00:1::/64", "fd00:2::/64"], "gateways": ["10.1.255.254", "fd00:1::ffff"]},
        {"subnets": ["10.1.0.0/30", "fd00::/127"], "gateways": ["10.1.0.2", "fd00::"], "options": {"mac": "02:00:00:00:00:55"}},
        {"ipv6": True, "internal": True},
        {"ipv6": True, "icc": False},
        {"ipv6": True, "masquerade": False},
        {"ipv6": True, "options": {"snat": "192.0.2.2", "snat6": "2001:db8::2"}},
        {"options": {"bridge": "type", "guard": "false"}},
        {"ipv6": True, "options": {"gateway-mode4": "routed", "gateway-mode6": "nat-unprotected", "host-binding": "192.0.2.2"}},
        {"ipv6": True, "options": {"trusted-interfaces": "uplink:other", "inhibit-ipv4": "true", "nat": "kept"}},
        {"ipv6": True, "internal": True, "options": {"gateway-mode4": "isolated", "gateway-mode6": "isolated"}},
    ],
    ids=[
        "v4",
        "dual-stack",
        "v6",
        "several-subnets",
        "smallest",
        "internal",
        "no-icc",
        "routed",
        "snat",
        "named-bridge",
        "gateway-modes",
        "trusted",
        "isolated",
    ],
)
def test_the_life_of_a_network(twins: Twins, options: dict[str, Any]) -> None:
    twins.both(UPLINK)
    twins.do("create_network", "net", **options)
    twins.do("create_namespace", "r1")
    # A name that iproute2 could take for a word of its own.
    twins.do("connect", "net", "r1", interface="up")
    if not options.get("internal"):
        twins.do("publish", "r1", ["80-90:80-90", "91:91", "95:95", "8080:80/udp"])
        twins.do("publish", "r1", ["92-94:92-94"])
        twins.do("unpublish", "r1", ["91:91", "80-90:80-90"])
    twins.do("remove_namespace", "r1")
    twins.do("remove_network", "net")


def test_networks_that_come_and_go_beside_others(twins: Twins) -> None:
    twins.both(UPLINK)
    twins.do("create_network", "v4")
    twins.do("create_network", "v6", ipv4=False, ipv6=True)
    twins.do("create_network", "inner", ipv6=True, internal=True)
    twins.do("remove_network", "v4")
    twins.do("create_network", "both", ipv6=True)
    twins.do("remove_network", "v6")
    twins.do("remove_network", "both")
    twins.do("remove_network", "inner")


def test_a_network_on_a_bridge_that_was_there_before(twins: Twins) -> None:
    twins.both(
        """
        ip link add br9 address 02:00:00:00:00:09 mtu 1450 type bridge
        ip link add port up master br9 address 02:00:00:00:00:10 type ifb
        ip address add 10.9.0.1/24 dev br9
        ip address add 10.8.0.1/24 dev br9
        ip link set br9 up
        """
    )
    subnets = ["10.9.0.0/24", "fd00:9::/64"]
    twins.do("create_network", "net", subnets=subnets, gateways=["10.9.0.1"], options={"bridge": "br9"})
    twins.do("create_namespace", "r1")
    twins.do("connect", "net", "r1")
    twins.do("disconnect", "net", "r1")
    twins.do("remove_network", "net")


def test_rates(twins: Twins) -> None:
    twins.do("create_network", "net", ingress_rate="10mbit")
    twins.do("create_namespace", "r1")
    twins.do("create_namespace", "r2")
    twins.do("connect", "net", "r1", egress_rate="20mbit")
    twins.do("connect", "net", "r2", ingress_rate="100gbit", egress_rate="8kbit")
    twins.do("set_rates", "net", "r1", ingress_rate="1gbit", egress_rate="1mbit")
    twins.do("set_rates", "net", "r1")
    twins.do("set_rates", "net", "r1", egress_rate="9kbit")
    twins.do("create_network", "free")
    twins.do("connect", "free", "r1")
    twins.do("set_rates", "free", "r1", ingress_rate="1gbit", egress_rate="1mbit")
    twins.do("set_rates", "free", "r1", egress_rate="1mbit")
    twins.do("set_rates", "free", "r1")
    twins.do("disconnect", "net", "r1")
    twins.do("remove_namespace", "r2")


def test_another_mac_address_and_mtu(twins: Twins) -> None:
    twins.do("create_network", "net", ipv6=True)
    twins.do("create_network", "open", options={"guard": "false"})
    twins.do("create_namespace", "r1")
    twins.do("connect", "net", "r1")
    twins.do("connect", "open", "r1")
    twins.do("retune", "net", "r1", mac="02:00:00:00:00:aa", mtu=1400)
    twins.do("retune", "net", "r1", mtu=1500)
    twins.do("retune", "open", "r1", mac="02:00:00:00:00:bb")
    twins.do("remove_namespace", "r1")


def test_tuning(twins: Twins) -> None:
    twins.do("create_network", "net", ipv6=True)
    twins.do("create_namespace", "r1")
    twins.do("connect", "net", "r1", mac="02:00:00:00:00:01")
    settings = {"net/ipv4/conf/eth0/forwarding": "1", "net/ipv4/conf/eth0/accept_redirects": "0"}
    twins.do("tune", "net", "r1", Tuning(settings=settings, promisc=True, queue=55, mac="02:00:00:00:00:aa", mtu=1400))
    twins.do("tune", "net", "r1", Tuning(allmulti=True, promisc=False))
    twins.do("untune", "net", "r1")
    twins.do("untune", "net", "r1")


def test_isolation(twins: Twins) -> None:
    twins.do("create_network", "net", ipv6=True)
    twins.do("create_namespace", "r1")
    twins.do("connect", "net", "r1")
    for isolation in ("open", "isolated", "isolated", "strict"):
        twins.do("set_isolation", "net", isolation)


def test_macvlan(twins: Twins) -> None:
    twins.both("ip link add up0 address 02:00:00:00:00:77 mtu 1460 type ifb; ip link set up0 up")
    twins.do("create_network", "lan", driver="macvlan", subnets=["10.5.0.0/24"], gateways=["10.5.0.1"], options={"parent": "up0"})
    twins.do("create_namespace", "r1")
    twins.do("create_namespace", "r2")
    twins.do("connect", "lan", "r1")
    twins.do("connect", "lan", "r2", addresses=["10.5.0.99"], mac="02:00:00:00:00:99", interface="lan0")
    twins.do("retune", "lan", "r1", mac="02:00:00:00:00:98", mtu=1400)
    twins.do("disconnect", "lan", "r1")
    twins.do("remove_namespace", "r2")
    twins.do("remove_network", "lan")


def test_macvlan_without_a_parent(twins: Twins) -> None:
    twins.do("create_network", "lan", driver="macvlan", mtu=1400)
    parent = twins.engine.state.network("lan").parent
    twins.do("create_network", "second", driver="macvlan", options={"parent": parent}, subnets=["10.5.0.0/24"])
    twins.do("create_namespace", "r1")
    twins.do("connect", "second", "r1")
    twins.do("remove_network", "lan")
    twins.do("remove_namespace", "r1")
    twins.do("remove_network", "second")


def test_a_namespace_on_several_networks(twins: Twins) -> None:
    for name, options in (("a", {"ipv6": True}), ("b", {}), ("c", {"ipv6": True}), ("d", {"internal": True})):
        twins.do("create_network", name, **options)
    twins.do("create_namespace", "r1")
    twins.do("connect", "a", "r1")
    twins.do("connect", "b", "r1")
    twins.do("connect", "d", "r1")
    twins.do("connect", "c", "r1", gateway_priority=7)
    twins.do("disconnect", "a", "r1")
    twins.do("disconnect", "c", "r1")
    twins.do("remove_namespace", "r1")


def test_several_endpoints_on_one_network(twins: Twins) -> None:
    twins.do("create_network", "a", ipv6=True)
    twins.do("create_network", "inner", internal=True)
    twins.do("create_namespace", "r1")
    for network in ("a", "inner"):
        twins.do("connect", network, "r1")
        twins.do("connect", network, "r1", interface=f"{network}2")
        twins.do("connect", network, "r1", interface=f"{network}3", routes=[Route("10.9.0.0/16", kind="blackhole")])
    twins.do("publish", "r1", ["80:80"], interface="a2")
    twins.do("unpublish", "r1", ["80:80"])
    twins.do("disconnect", "a", "r1", interface="eth0")
    twins.do("disconnect", "inner", "r1", interface="inner3")
    twins.do("disconnect", "a", "r1", interface="a3")
    twins.do("remove_namespace", "r1")


def test_further_routes(twins: Twins) -> None:
    further = [Route("10.9.0.0/16", "10.1.0.9"), Route("fd09::/32", "fe80::9", metric=7), Route("10.8.0.0/16", kind="blackhole")]
    twins.do("create_network", "a", subnets=["10.1.0.0/24", "fd01::/64"], routes=further, metric=50)
    twins.do("create_network", "b", subnets=["10.2.0.0/24", "fd02::/64"], default_route=False)
    twins.do("create_namespace", "r1")
    twins.do("create_namespace", "r2")
    twins.do("connect", "b", "r1", routes=[Route("fd08::/16", kind="prohibit"), Route("10.7.0.0/16", kind="unreachable", metric=3)])
    twins.do("connect", "a", "r1", routes=[Route("10.6.0.0/16"), Route("10.5.0.0/16", "10.6.0.1")], gateway_priority=-1)
    twins.do("connect", "a", "r2", default_route=False)
    twins.do("disconnect", "b", "r1")
    twins.do("connect", "b", "r1", metric=9)
    twins.do("disconnect", "a", "r1")
    twins.do("disconnect", "a", "r2")
    twins.do("disconnect", "b", "r1")


def test_published_ports_and_the_connections_through_them(twins: Twins) -> None:
    twins.do("create_network", "net", subnets=["10.1.0.0/24", "fd00::/64"])
    twins.do("create_namespace", "r1")
    twins.with_connections = True
    specs = ["8080:80", "9000-9010:9000-9010/udp", "7000-7003:8000-8003", "127.0.0.1:81:81/udp", "[::1]:82-83:82-83", "84:84/sctp"]
    twins.both(CONNECTIONS)
    twins.do("connect", "net", "r1", publish=specs)
    twins.both(CONNECTIONS)
    twins.do("publish", "r1", ["0.0.0.0:90:90/udp", "[::]:90:91/udp", "91-92:93-94"])
    twins.both(CONNECTIONS)
    assert twins.connections(8080) == 6
    twins.do("unpublish", "r1", [*specs[:3], "91-92:93-94"])
    assert (twins.connections(8080), twins.connections(443)) == (3, 3)  # the others are udp
    twins.do("unpublish", "r1", specs[3:])
    twins.both(CONNECTIONS)
    twins.do("disconnect", "net", "r1")
    twins.do("connect", "net", "r1", publish=specs)
    twins.both(CONNECTIONS)
    twins.do("remove_namespace", "r1")


def _connection(protocol: str, client: str, port: int, target: str, target_port: int) -> str:
    state = {"tcp": "--state ESTABLISHED", "udp": "", "sctp": "--state ESTABLISHED --orig-vtag 1 --reply-vtag 2"}[protocol]
    here = "2001:db8::1" if ":" in client else "192.0.2.1"
    there = (
        f"-p {protocol} {state} -t 100 -s {client} -d {here} --sport 1234 --dport {port}"
        f" -r {target} -q {client} --reply-port-src {target_port} --reply-port-dst 1234"
    )
    return f"conntrack -I {there} -u SEEN_REPLY 2>/dev/null || true"


#: Connections through host ports, of clients that are not there; those that are still tracked are left as they are.
CONNECTIONS = "\n".join(
    _connection(protocol, client, port, target, target_port)
    for client, target in (("198.51.100.1", "10.1.0.2"), ("198.51.100.2", "10.77.0.1"), ("2001:db8:1::1", "fd00::2"))
    for protocol, port, target_port in (
        ("tcp", 8080, 80),
        ("udp", 8080, 80),
        ("udp", 9005, 9005),
        ("udp", 9011, 9011),
        ("tcp", 7002, 8002),
        ("udp", 81, 81),
        ("udp", 90, 90),
        ("tcp", 92, 94),
        ("tcp", 443, 443),
    )
)


def test_growth_past_a_bridge(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "SHARD_PORTS", 2)
    twins.do("create_network", "net", icc=False, ipv6=True)
    twins.do("create_network", "inner", internal=True)
    for number in range(5):
        twins.do("create_namespace", f"r{number}")
        twins.do("connect", "net", f"r{number}")
        twins.do("connect", "inner", f"r{number}")
    assert twins.engine.state.network("net").shards == 3
    twins.do("remove_namespace", "r4")
    for number in range(4):
        twins.do("disconnect", "net", f"r{number}")
    twins.do("remove_network", "net")


def test_adopted_namespaces(twins: Twins) -> None:
    twins.both("ip netns add theirs; ip -n theirs link add eth0 address 02:00:00:00:00:44 type ifb")
    twins.do("create_network", "net")
    twins.do("adopt_namespace", "r1", path="/run/netns/theirs")
    twins.do("connect", "net", "r1")
    twins.do("remove_namespace", "r1")
    with subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline()  # it is in its own namespace by now
        twins.do("adopt_namespace", "r2", pid=process.pid)
        twins.do("remove_namespace", "r2")
        process.stdin.close()


def test_a_dry_run_uses_up_no_address(engine: Engine) -> None:
    engine.create_network("net", subnets=["10.1.0.0/29", "fd00::/64"])
    engine.create_namespace("r1")
    for _ in range(20):
        commands = engine.plan_connect("net", "r1").commands()
        assert "ip -n r1 address add 10.1.0.2/29 dev eth0" in commands
    assert engine.connect("net", "r1").addresses == ("10.1.0.2/29", "fd00::2/64")


def test_what_is_retracted_was_never_allocated() -> None:
    pool = Pool("net", IPv4Network("10.0.0.0/29"), gateway=IPv4Address("10.0.0.1"))
    pool.allocate("a")
    freed = pool.allocate("b")
    pool.release(freed)
    tried = IPv4Address("10.0.0.4")  # not the one that was freed last
    for _ in range(3):
        assert pool.allocate("c") == tried
        pool.retract(tried)
    assert (pool.used, pool.holder(tried)) == (1, None)
    pool.retract(IPv4Address("10.0.0.5"))  # nobody has it
    # A static address is no allocation, and one that was released in between isn't either: the cursor stays.
    held = pool.allocate("d")
    pool.release(held)
    pool.claim(held, "e")
    pool.retract(held)
    assert str(pool.allocate("f")) == "10.0.0.5"
