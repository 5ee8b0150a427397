"""What others break by hand is named in words, put right, and works again; and nothing else is touched.

One host has something of everything (`World`). A test damages one thing, reads what `differences` says, repairs, and sends traffic
along every way there is.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from atoll.engine import Engine, endpoints
from atoll.kernel import netlink, nft, rtnl
from tests.kernel.kernel_state import Shell, State, comparable, differences, exact, read
from tests.support import Inside, Probe, Traffic, outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.lab.machine import Machine

#: What is on the host beside us, and where it is easily hit by mistake.
FOREIGN = """
nft -f - <<'END'
table inet theirs {
    set known { type ipv4_addr; elements = { 192.0.2.1 } }
    chain forward { type filter hook forward priority 5; policy accept; ip saddr @known accept; }
}
table ip atoll {
    chain c { type filter hook input priority 5; policy accept; }
}
END
ip link add br-theirs address 02:00:00:00:00:21 type bridge
ip link add atb address 02:00:00:00:00:22 type bridge
ip link add atvtheirs address 02:00:00:00:00:23 type ifb
ip link set atvtheirs alias 'not atoll:at all' up
ip link set br-theirs up
ip address add 10.200.0.1/24 dev br-theirs
ip route add 10.201.0.0/16 via 10.200.0.9
ip rule add from 10.202.0.0/16 lookup 77 priority 77
"""
#: The same on things of ours.
FOREIGN_ON_OURS = """
ip address add 10.203.0.1/24 dev {bridge}
ip route add 10.204.0.0/16 via 10.1.0.99
ip -n r1 address add 10.205.0.1/32 dev lo
ip -n r1 route add 10.206.0.0/16 via 10.1.0.98
ip -n r1 rule add from 10.207.0.0/16 lookup 78 priority 78
ip -n r1 link add theirs address 02:00:00:00:00:24 type ifb
nft add table inet theirs-too
"""


class World(NamedTuple):
    engine: Engine
    names: dict[str, str]
    traffic: Traffic
    probes: list[Probe]
    silent: list[Probe]

    def flows(self) -> None:
        """Everything that should get through does."""
        end = time.monotonic() + 10
        while None in (seen := self.traffic.ask(self.probes, patience=1.5)):
            assert time.monotonic() < end, [probe for probe, answer in zip(self.probes, seen, strict=True) if answer is None]

    def keeps_apart(self) -> None:
        """What shouldn't get through doesn't."""
        assert not any(self.traffic.silence(self.silent, self.probes[:1]))


@pytest.fixture
def world(host: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(endpoints, "SHARD_PORTS", 2)
    Shell().run(FOREIGN)
    with (
        outside("client", "uplink", ["192.0.2.1/24", "2001:db8::1/64"], ["192.0.2.9/24", "2001:db8::9/64"]) as client,
        Traffic() as traffic,
        Engine.open() as engine,
    ):
        yield _furnished(engine, client, traffic)


def _furnished(engine: Engine, client: Machine, traffic: Traffic) -> World:
    net = engine.create_network("net", subnets=["10.1.0.0/24", "fd01::/64"])
    second = engine.create_network("second", subnets=["10.2.0.0/24"])
    apart = engine.create_network("apart", subnets=["10.3.0.0/24"], icc=False)
    engine.create_network("lan", driver="macvlan", subnets=["192.0.2.0/24"], gateways=["192.0.2.9"], options={"parent": "uplink"})
    for name in ("r1", "r2", "a1", "a2", "a3", "m1"):
        engine.create_namespace(name)
    r1 = engine.connect("net", "r1", publish=["8080:80", "9000-9001:9000-9001", "127.0.0.1:81:81"], mac="02:00:00:00:01:01")
    r2 = engine.connect("net", "r2", egress_rate="1gbit", ingress_rate="1gbit", publish=["8082:80"])
    r1_second = engine.connect("second", "r1", publish=["8081:80"])
    a1, _, a3 = (engine.connect("apart", name, publish=[f"70{number}:80"]) for number, name in enumerate(("a1", "a2", "a3")))
    engine.connect("lan", "m1", addresses=["192.0.2.50"])
    assert engine.state.network("apart").shards == 2
    names = {
        "bridge": net.bridge,
        "second": second.bridge,
        "apart": apart.bridge,
        "shard": apart.bridge + "s1",
        "trunk": f"att{apart.id}1",
        "r1": r1.host_interface,
        "r2": r2.host_interface,
        "r1s": r1_second.host_interface,
        "a3": a3.host_interface,
        "shaper": r2.shaper,
        "bridge_mac": net.mac,
        "net_id": net.id,
    }
    Shell().run(FOREIGN_ON_OURS.format(**names))

    places = {name: Inside(engine, name) for name in ("", "r1", "r2", "a1", "a2", "a3", "m1")}
    for name in ("r1", "r2", "a1", "a2", "a3", "m1"):
        traffic.serve(places[name], 80)
    traffic.serve(places["r1"], 81)
    traffic.serve(places["r1"], 9001)
    traffic.serve(client, 80)
    here = places[""]
    probes = [
        Probe(places["r1"], "10.1.0.3", 80),
        Probe(places["r2"], "fd01::2", 80),
        Probe(here, "10.1.0.2", 80),
        Probe(here, "fd01::3", 80),
        Probe(here, "127.0.0.1", 81),
        Probe(here, "::1", 8080),
        *(Probe(client, "192.0.2.1", port) for port in (8080, 8081, 8082, 9001, 700, 702)),
        Probe(client, "2001:db8::1", 8080),
        *(Probe(places[name], "192.0.2.9", 80) for name in ("r1", "r2", "a1", "a3", "m1")),
        Probe(places["r1"], "192.0.2.9", 80, local="10.2.0.2"),
        Probe(client, "192.0.2.50", 80),
    ]
    a1_address, a3_address = a1.address(4), a3.address(4)
    silent = [
        Probe(places["a1"], a3_address, 80),
        Probe(places["a3"], a1_address, 80),
        Probe(places["a1"], "10.1.0.2", 80),
        Probe(places["r2"], a1_address, 80),
        Probe(client, "10.1.0.2", 80),
    ]
    return World(engine, names, traffic, probes, silent)


class Damage(NamedTuple):
    script: str
    #: A pattern that one of the differences matches, as "subject: what".
    words: str
    #: Whether it also hits what others had put on our links.
    takes: bool = False


DAMAGES = {
    # links of the host
    "bridge deleted": Damage("ip link delete {bridge}", "network net: link {bridge} is missing", takes=True),
    "bridge down": Damage("ip link set {bridge} down", "network net: link {bridge} is down", takes=True),
    "bridge mtu": Damage("ip link set {bridge} mtu 1400", "network net: link {bridge} has MTU 1400, not 1500"),
    "bridge mac": Damage(
        "ip link set {bridge} address 02:00:00:00:09:99", "network net: link {bridge} has MAC address 02:00:00:00:09:99, not {bridge_mac}"
    ),
    "gateway removed": Damage("ip address delete 10.1.0.1/24 dev {bridge}", "network net: address 10.1.0.1/24 of {bridge} is missing"),
    "gateway6 removed": Damage("ip address delete fd01::1/64 dev {bridge}", "network net: address fd01::1/64 of {bridge} is missing"),
    "loopback route removed": Damage(
        "ip -6 route delete local ::1 dev {bridge} table local", "network net: route ::1/128 by {bridge} .*missing"
    ),
    "host end deleted": Damage("ip link delete {r1}", "endpoint r1 on net: link {r1} is missing", takes=True),
    "host end renamed": Damage("ip link set {r1} down name elsewhere", "endpoint r1 on net: link {r1} is missing", takes=True),
    "host end taken out": Damage("ip link set {r1} nomaster", "endpoint r1 on net: link {r1} is not a port of {bridge}"),
    "host end moved": Damage("ip link set {r1} master br-theirs", "endpoint r1 on net: link {r1} is not a port of {bridge}"),
    "host end down": Damage("ip link set {r1} down", "endpoint r1 on net: link {r1} is down"),
    "host end mtu": Damage("ip link set {r1} mtu 1300", "endpoint r1 on net: link {r1} has MTU 1300, not 1500"),
    "host end alias": Damage("ip link set {r1} alias x", "endpoint r1 on net: link {r1} has lost its mark"),
    "isolation cleared": Damage("ip link set {a3} type bridge_slave isolated off", "endpoint a3 on apart: link {a3} is not isolated"),
    "isolated port moved": Damage("ip link set {a3} nomaster", "endpoint a3 on apart: link {a3} is not a port of {shard}"),
    "shard deleted": Damage("ip link delete {shard}", "network apart: link {shard} is missing"),
    "shard down": Damage("ip link set {shard} down", "network apart: link {shard} is down"),
    "trunk deleted": Damage("ip link delete {trunk}d", "network apart: link {trunk}d is missing"),
    "trunk down": Damage("ip link set {trunk}u down", "network apart: link {trunk}u is down"),
    "trunk taken out": Damage("ip link set {trunk}u nomaster", "network apart: link {trunk}u is not a port of {shard}"),
    "trunk isolation": Damage("ip link set {trunk}d type bridge_slave isolated off", "network apart: link {trunk}d is not isolated"),
    "all bridges deleted": Damage(
        "for link in {bridge} {second} {apart} {shard}; do ip link delete $link; done",
        "network second: link {second} is missing",
        takes=True,
    ),
    # queues
    "rate removed": Damage("tc qdisc delete dev {r2} root", "endpoint r2 on net: rate of {r2} is not limited to 1000000000 bit/s"),
    "rate changed": Damage(
        "tc qdisc replace dev {r2} root tbf rate 1mbit burst 10kb limit 10kb",
        "endpoint r2 on net: rate of {r2} is not limited to 1000000000 bit/s",
    ),
    "ingress removed": Damage("tc qdisc delete dev {r2} ingress", "endpoint r2 on net: what arrives on {r2} is not led through {shaper}"),
    "filter removed": Damage("tc filter delete dev {r2} ingress", "endpoint r2 on net: what arrives on {r2} is not led through {shaper}"),
    "shaper deleted": Damage("ip link delete {shaper}", "endpoint r2 on net: link {shaper} is missing"),
    "shaper down": Damage("ip link set {shaper} down", "endpoint r2 on net: link {shaper} is down"),
    # in the namespaces
    "interface down": Damage("ip -n r1 link set eth0 down", "endpoint r1 on net: link eth0 in r1 is down", takes=True),
    "interface renamed": Damage("ip -n r1 link set eth0 down name lan0", "endpoint r1 on net: link eth0 in r1 is missing", takes=True),
    "interface deleted": Damage("ip -n r1 link delete eth0", "endpoint r1 on net: link {r1} is missing", takes=True),
    "interface moved": Damage("ip -n r1 link set eth0 netns r2 name stolen", "endpoint r1 on net: link eth0 in r1 is missing", takes=True),
    "interface mtu": Damage("ip -n r1 link set eth0 mtu 1300", "endpoint r1 on net: link eth0 in r1 has MTU 1300, not 1500"),
    "interface mac": Damage(
        "ip -n r1 link set eth0 address 02:00:00:00:09:98", "endpoint r1 on net: link eth0 in r1 is not the one that was made", takes=True
    ),
    "loopback down": Damage("ip -n r1 link set lo down", "namespace r1: link lo in r1 is down"),
    "address removed": Damage(
        "ip -n r1 address delete 10.1.0.2/24 dev eth0", "endpoint r1 on net: address 10.1.0.2/24 of eth0 in r1 is missing", takes=True
    ),
    "address6 removed": Damage(
        "ip -n r1 address delete fd01::2/64 dev eth0", "endpoint r1 on net: address fd01::2/64 of eth0 in r1 is missing"
    ),
    "all addresses": Damage(
        "ip -n r1 address flush dev eth0", "endpoint r1 on net: address 10.1.0.2/24 of eth0 in r1 is missing", takes=True
    ),
    "route removed": Damage("ip -n r1 route delete default", "namespace r1: route default by eth0 in r1 is missing"),
    "route6 removed": Damage("ip -n r1 -6 route delete default", "namespace r1: route default by eth0 in r1 is missing"),
    "table emptied": Damage("ip -n r1 route flush table 1001", "namespace r1: route default by eth1 in table 1001 in r1 is missing"),
    "rule removed": Damage("ip -n r1 rule delete priority 1001", "namespace r1: rule from 10.2.0.2 in r1 is missing"),
    "ipv6 off": Damage(
        "ip netns exec r1 sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1",
        "endpoint r1 on net: net/ipv6/conf/eth0/disable_ipv6 in r1 is not 0",
    ),
    "macvlan deleted": Damage("ip -n m1 link delete eth0", "endpoint m1 on lan: link eth0 in m1 is missing"),
    "macvlan mac": Damage(
        "ip -n m1 link set eth0 address 02:00:00:00:09:97", "endpoint m1 on lan: link eth0 in m1 has MAC address 02:00:00:00:09:97"
    ),
    # settings
    "route_localnet off": Damage(
        "sysctl -qw net.ipv4.conf.{bridge}.route_localnet=0", "network net: net/ipv4/conf/{bridge}/route_localnet is not 1"
    ),
    "forwarding off": Damage("sysctl -qw net.ipv4.ip_forward=0", "host: net/ipv4/ip_forward is not 1"),
    "forwarding6 off": Damage("sysctl -qw net.ipv6.conf.all.forwarding=0", "host: net/ipv6/conf/all/forwarding is not 1"),
    # rules
    "table flushed": Damage("nft flush table inet atoll", "firewall: a rule, chain or set of table inet atoll was changed"),
    "bridge table flushed": Damage("nft flush table bridge atoll", "firewall: a rule, chain or set of table bridge atoll was changed"),
    "table deleted": Damage("nft delete table inet atoll", "firewall: table inet atoll is missing"),
    "bridge table deleted": Damage("nft delete table bridge atoll", "firewall: table bridge atoll is missing"),
    "rule added": Damage("nft insert rule inet atoll forward drop", "firewall: a rule, chain or set of table inet atoll was changed"),
    "rule deleted": Damage(
        "nft delete rule inet atoll prerouting handle $(nft -a list chain inet atoll prerouting | sed -n 's/.*carried.* handle //p')",
        "firewall: a rule, chain or set of table inet atoll was changed",
    ),
    "chain added": Damage("nft 'add chain inet atoll x'", "firewall: a rule, chain or set of table inet atoll was changed"),
    "policy changed": Damage(
        "nft 'chain inet atoll forward {{ policy drop; }}'", "firewall: a rule, chain or set of table inet atoll was changed"
    ),
    "set added": Damage(
        "nft 'add set inet atoll x {{ type ipv4_addr; }}'", "firewall: a rule, chain or set of table inet atoll was changed"
    ),
    "element removed": Damage(
        "nft 'delete element inet atoll ports4 {{ tcp . 8080 }}'",
        "firewall: element tcp . 8080 : 10.1.0.2 . 80 of ports4 is missing or altered",
    ),
    "range removed": Damage(
        "nft 'delete element inet atoll ranges4 {{ tcp . 9000-9001 }}'",
        "firewall: element tcp . 9000-9001 : 10.1.0.2 of ranges4 is missing",
    ),
    "element added": Damage(
        "nft 'add element inet atoll ports4 {{ tcp . 22 : 10.1.0.2 . 22 }}'", r"firewall: 1 element\(s\) of ports4 belong to nothing"
    ),
    "element changed": Damage(
        "nft 'delete element inet atoll ports4 {{ tcp . 8080 }}; add element inet atoll ports4 {{ tcp . 8080 : 10.1.0.3 . 80 }}'",
        "firewall: element tcp . 8080 : 10.1.0.2 . 80 of ports4 is missing or altered",
    ),
    "guard opened": Damage(
        "nft 'add element bridge atoll unguarded {{ \"{r1}\" }}'", r"firewall: 1 element\(s\) of unguarded belong to nothing"
    ),
    "constant element removed": Damage("nft 'delete element inet atoll carried {{ tcp }}'", "firewall: element tcp of carried is missing"),
    "map emptied": Damage("nft flush map inet atoll ports4", "firewall: element tcp . 8080 : 10.1.0.2 . 80 of ports4 is missing"),
    # leftovers
    "leftover link": Damage(
        "ip link add atv0123456789 type ifb; ip link set atv0123456789 alias atoll:0123456789",
        "host: link atv0123456789 belongs to nothing",
    ),
    "leftover bridge": Damage(
        "ip link add atb0123456789s3 type bridge; ip link set atb0123456789s3 alias atoll:0123456789 up",
        "host: link atb0123456789s3 belongs to nothing",
    ),
}


#: Rows that speak of what is not ours, or on what of ours the damage itself took away.
_FOREIGN_ROW = re.compile(r"10\.20\d\.|theirs|02:00:00:00:00:2|\"ip\", \"(name|table)\": \"atoll\"")


def _rows(state: State) -> tuple[Counter[str], Counter[str]]:
    """What is ours and what is not, a row each, addresses apart from their links."""
    found: list[str] = []
    for place, rows in state.items():
        for row in rows:
            addresses = row.pop("addr_info", []) if isinstance(row, dict) else []
            found += [f"{place} {json.dumps(part)}" for part in (row, *({"link": row["ifname"], **info} for info in addresses))]
    foreign = Counter(row for row in found if _FOREIGN_ROW.search(row))
    return Counter(found) - foreign, foreign


def _state() -> tuple[Counter[str], Counter[str]]:
    return _rows(comparable(exact(read(Shell(), namespaces=["r1", "m1"]))))


def _said(engine: Engine) -> list[str]:
    return [f"{difference.subject}: {difference.what}" for difference in engine.differences()]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_damage_is_named_and_put_right(world: World, damage: Damage) -> None:
    engine = world.engine
    assert _said(engine) == []
    ours, foreign = _state()
    Shell().run(damage.script.format(**world.names))

    said = _said(engine)
    pattern = damage.words.format(**world.names)
    assert any(re.fullmatch(pattern + ".*", line) for line in said), said
    found, errors = engine.repair()
    assert errors == []
    assert {f"{difference.subject}: {difference.what}" for difference in found} >= set(said)
    assert _said(engine) == []

    ours_after, foreign_after = _state()
    assert (ours_after - ours, ours - ours_after) == (Counter(), Counter())
    assert foreign_after - foreign == Counter()
    # With a link or its last address the kernel takes away the routes and addresses that others put there.
    assert damage.takes or foreign_after == foreign
    world.flows()
    if "firewall" in damage.words or "on apart" in damage.words or "network apart" in damage.words:
        world.keeps_apart()


def test_nothing_is_written_when_nothing_is_wrong(world: World) -> None:
    groups = (
        rtnl.GROUP_LINK,
        rtnl.GROUP_TC,
        rtnl.GROUP_IPV4_ADDRESS,
        rtnl.GROUP_IPV4_ROUTE,
        rtnl.GROUP_IPV4_RULE,
        rtnl.GROUP_IPV6_ADDRESS,
        rtnl.GROUP_IPV6_ROUTE,
        rtnl.GROUP_IPV6_RULE,
    )
    with netlink.Socket(groups=groups, all_namespaces=True) as links, nft.open_socket((nft.GROUP_NFTABLES,)) as rules:
        # What the kernel still has to say about the making of this world, such as that a link has carrier.
        calm = time.monotonic() + 1.2
        while time.monotonic() < calm:
            if links.events():
                calm = time.monotonic() + 1.2
            time.sleep(0.02)
        assert rules.events() == []
        before = exact(read(Shell()))
        assert world.engine.differences() == []
        assert world.engine.repair() == ([], [])
        assert (links.events(), rules.events()) == ([], [])
        assert differences(before, exact(read(Shell()))) == []
        # The bells do ring.
        Shell().run("ip -n r1 link set eth0 down; nft add table inet x")
        assert links.events()
        assert rules.events()


def test_many_things_at_once_are_put_right_at_once(world: World) -> None:
    engine = world.engine
    ours, foreign = _state()
    scripts = [damage.script for name, damage in DAMAGES.items() if not damage.takes and name not in UNIQUE]
    Shell().run("\n".join(f"({script}) 2>/dev/null || true" for script in scripts).format(**world.names))
    assert len(_said(engine)) > 20
    _, errors = engine.repair()
    assert errors == []
    assert _said(engine) == []
    assert _state() == (ours, foreign)
    world.flows()
    world.keeps_apart()


#: Damage that undoes or hides other damage.
UNIQUE = {"table deleted", "bridge table deleted", "table flushed", "bridge table flushed", "forwarding off", "forwarding6 off"}


def test_flush_ruleset_takes_the_others_tables_and_ours_come_back(world: World) -> None:
    Shell().run("nft flush ruleset")
    assert _said(world.engine) == ["firewall: table inet atoll is missing", "firewall: table bridge atoll is missing"]
    world.engine.repair()
    assert _said(world.engine) == []
    tables = [line.removeprefix("table ") for line in Shell().run("nft list tables").splitlines()]
    assert sorted(tables) == ["bridge atoll", "inet atoll"]
    world.flows()
    world.keeps_apart()


@pytest.mark.parametrize(
    ("namespace", "name", "script", "subject"),
    [
        ("", "{bridge}", "ip link delete {bridge}; ip link add {bridge} type ifb", "network net"),
        ("r1", "eth0", "ip -n r1 link delete eth0; ip -n r1 link add eth0 type ifb", "endpoint r1 on net"),
        ("r1", "eth0", "ip -n r1 link delete eth0; ip -n r1 link add eth0 type veth peer name x", "endpoint r1 on net"),
        ("r1", "eth0", "ip -n r1 link set eth0 down name y; ip -n r1 link add eth0 type veth peer name x", "endpoint r1 on net"),
        ("m1", "eth0", "ip -n m1 link delete eth0; ip -n m1 link add eth0 type ifb", "endpoint m1 on lan"),
    ],
    ids=["bridge", "interface", "veth", "veth beside ours", "macvlan"],
)
def test_a_link_of_anothers_under_our_name_is_named_and_left_alone(
    world: World, namespace: str, name: str, script: str, subject: str
) -> None:
    Shell().run(script.format(**world.names))
    ip, name = f"ip -n {namespace}" if namespace else "ip", name.format(**world.names)
    before = Shell().run(f"{ip} -d address show dev {name}")
    assert f"{subject}: link {name}{f' in {namespace}' if namespace else ''} is someone else's" in _said(world.engine)
    _, errors = world.engine.repair()
    assert any("File exists" in str(error) for error in errors)
    assert Shell().run(f"{ip} -d address show dev {name}") == before
    # It is for a person to take it away; then all is well again.
    Shell().run(f"{ip} link delete {name}")
    _, errors = world.engine.repair()
    assert errors == []
    assert _said(world.engine) == []
    world.flows()


def test_a_look_is_only_as_wide_as_it_is_asked_to_be(world: World) -> None:
    engine = world.engine
    Shell().run("ip -n r1 link set eth0 mtu 1300; ip -n a1 link set eth0 down; nft flush table inet atoll".format(**world.names))
    Shell().run("ip address delete 10.2.0.1/24 dev {second}; sysctl -qw net.ipv4.ip_forward=0".format(**world.names))

    def subjects(**how: Any) -> set[str]:
        return {difference.subject for difference in engine.differences(**how)}

    assert subjects() == {"firewall", "host", "network second", "endpoint r1 on net", "endpoint a1 on apart", "namespace a1"}
    assert subjects(namespaces=["r1"]) == {"firewall", "host", "network second", "endpoint r1 on net"}
    assert subjects(namespaces=[], firewall=False) == {"host", "network second"}
    assert subjects(namespaces=[], links=False) == {"firewall"}
    engine.repair(namespaces=["a1"], firewall=False)
    assert subjects() == {"firewall", "endpoint r1 on net"}
    # An end on the host that is amiss makes the other end suspect.
    Shell().run("ip link delete {r1}".format(**world.names))
    assert subjects(namespaces=[], firewall=False) == {"endpoint r1 on net"}
    engine.repair(namespaces=[])
    assert subjects() == set()
    world.flows()
