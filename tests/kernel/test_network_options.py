"""The options of networks, by our names and by Docker's: what each means to packets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from atoll.engine import Engine
from atoll.errors import Conflict, Invalid, NotFound, Unsupported
from atoll.explain import explain, parse
from tests.kernel.kernel_state import Shell
from tests.kernel.test_limits import left_as_it_was
from tests.support import FACING, OUTSIDE, Inside, Probe, Traffic

if TYPE_CHECKING:
    from pathlib import Path

    from atoll.lab.machine import Machine
    from atoll.model import Network
    from tests.support import Place

DOCKER = "com.docker.network."


def furnish(engine: Engine, traffic: Traffic, name: str = "net", number: int = 1, **options: Any) -> Network:
    """A network, a server on it that publishes port 80 as 8080 and serves 81, too, and a client."""
    network = engine.create_network(name, subnets=[f"10.{number}.0.0/24", f"fd0{number}::/64"], **options)
    for namespace in (name, f"{name}b"):
        engine.create_namespace(namespace)
    engine.connect(name, name, publish=[] if network.internal else [f"808{number}:80"])
    engine.connect(name, f"{name}b")
    for port in (80, 81):
        traffic.serve(Inside(engine, name), port)
    return network


def seen_by(traffic: Traffic, probes: list[Probe], control: Probe) -> list[bool]:
    """Which of these get through, as far as one can wait for them."""
    return [answer is not None for answer in traffic.silence(probes, [control])]


def both(place: Place, number: int, port: int) -> list[Probe]:
    """The server's own addresses."""
    return [Probe(place, f"10.{number}.0.2", port), Probe(place, f"fd0{number}::2", port)]


# --- gateway modes -------------------------------------------------------------------------------------------------------------------

#: For each mode: whether the outside reaches by the server's own address a published port, another port; by the host's a published one;
#: another network by the server's own address a published port, another; and whether what leaves has the host's address.
MODES = {
    "nat": (False, False, True, False, False, True),
    "nat-unprotected": (True, True, True, False, False, True),
    "routed": (True, False, False, True, False, False),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("versions", [(4, 6), (4,), (6,)], ids=["both", "v4", "v6"])
def test_gateway_modes(engine: Engine, world: Machine, traffic: Traffic, mode: str, versions: tuple[int, ...]) -> None:
    options = {f"{DOCKER}bridge.gateway_mode_ipv{version}": mode for version in versions}
    furnish(engine, traffic, options=options)
    furnish(engine, traffic, "other", 2)
    traffic.serve(world, 80)
    other, client, here = Inside(engine, "otherb"), Inside(engine, "netb"), Inside(engine)
    out = [Probe(client, OUTSIDE[version], 80) for version in (4, 6)]
    answers = traffic.ask([*out, *both(here, 1, 80), *both(here, 1, 81)])
    assert None not in answers
    probes = [
        *(probe for place, port in ((world, 80), (world, 81)) for probe in both(place, 1, port)),
        *(Probe(world, FACING[version], 8081) for version in (4, 6)),
        *(probe for place, port in ((other, 80), (other, 81)) for probe in both(place, 1, port)),
    ]
    found = seen_by(traffic, probes, out[0])
    for index, version in enumerate((4, 6)):
        expected = MODES[mode] if version in versions else MODES["nat"]
        answer = answers[index]
        assert (*found[index::2], answer is not None and answer.client == FACING[version]) == expected, version
    assert engine.differences() == []
    # And explain says so, for the first packet of each.
    for probe, got in zip(probes, found, strict=True):
        who = f"outside:{OUTSIDE[6 if ':' in probe.address else 4]}" if probe.source is world else "otherb"
        where = f"[{probe.address}]" if ":" in probe.address else probe.address
        said = explain(engine, parse(who, f"{where}:{probe.port}"))
        assert (said.verdict == "yes" and said.arrived == "net") == got, said


def test_in_a_routed_network_ports_of_the_host_stay_free(engine: Engine, world: Machine, traffic: Traffic) -> None:
    furnish(engine, traffic, options={"gateway-mode4": "routed", "gateway-mode6": "routed"})
    furnish(engine, traffic, "other", 2)
    engine.publish("otherb", ["8081:80"])
    with left_as_it_was(engine), pytest.raises(Conflict, match="port 8081/tcp is published by otherb"):
        engine.publish("other", ["8081:80"])
    traffic.serve(Inside(engine, "netb"), 90)
    # The same numbers again, a range that lies beside another, and one that any port of the host would do for.
    made = engine.publish("netb", ["8081:90", "91-93:91-93", "94:94", "0:95"])
    assert [str(port) for port in made.ports] == ["8081:90/tcp", "91-93:91-93/tcp", "94:94/tcp", "95:95/tcp"]
    served = [line for line in Shell().run("nft list set inet atoll served4").splitlines() if "10.1.0.3" in line]
    assert [word.strip(" ,}") for word in served[0].partition("10.1.0.3 . ")[2].split("10.1.0.3 . ")] == ["tcp . 90-95"]
    control = Probe(world, "10.1.0.3", 90)
    assert traffic.one(*control[:3])
    assert traffic.one(world, FACING[4], 8082)
    assert engine.differences() == []
    engine.unpublish("netb", ["8081:90"])
    assert engine.differences() == []
    assert not any(seen_by(traffic, [control], Probe(world, FACING[4], 8082)))
    engine.disconnect("net", "netb")
    engine.settle()
    assert engine.differences() == []
    with left_as_it_was(engine), pytest.raises(Conflict, match="port 8081/tcp is published by otherb"):
        engine.publish("other", ["8081:80"])


def test_ping_reaches_a_routed_network(engine: Engine, world: Machine, traffic: Traffic) -> None:
    furnish(engine, traffic, options={"gateway-mode4": "routed", "gateway-mode6": "routed"})
    furnish(engine, traffic, "plain", 2)
    for number, address in enumerate(("10.1.0.2", "fd01::2", "10.2.0.2", "fd02::2")):
        places: list[Place] = [world, Inside(engine, "plainb")] if number < 2 else [world]
        for place in places:
            command = f"ping -c1 -W1 {address}"
            assert place.run(lambda command=command: Shell().succeeds(command)) == (number < 2), (place.name, address)  # type: ignore[misc]


def test_an_isolated_network_has_no_gateway(engine: Engine, traffic: Traffic) -> None:
    options = {f"{DOCKER}bridge.gateway_mode_ipv{version}": "isolated" for version in (4, 6)}
    network = furnish(engine, traffic, internal=True, options=options)
    assert [subnet.gateway for subnet in network.subnets] == ["", ""]
    assert Shell().run(f"ip -o address show dev {network.bridge} scope global") == ""
    server = engine.state.endpoint(network, "net")
    probes = [Probe(Inside(engine, "netb"), server.address(version), 80) for version in (4, 6)]
    assert None not in traffic.ask(probes)
    assert network.resolvers() == ()
    assert engine.differences() == []
    with left_as_it_was(engine), pytest.raises(Invalid, match="isolated is for a network without a way out"):
        engine.create_network("bad", options=options)
    with left_as_it_was(engine), pytest.raises(Invalid, match="whose gateway mode is isolated"):
        engine.create_network("bad", internal=True, options=options, subnets=["10.7.0.0/24"], gateways=["10.7.0.1"])


# --- the others ----------------------------------------------------------------------------------------------------------------------


def test_trusted_interfaces_lead_to_published_ports(engine: Engine, world: Machine, traffic: Traffic) -> None:
    furnish(engine, traffic, options={f"{DOCKER}bridge.trusted_host_interfaces": "nothere:wan0"})
    furnish(engine, traffic, "other", 2, options={"trusted-interfaces": "nothere"})
    published = [*both(world, 1, 80), *(Probe(world, FACING[version], 8081) for version in (4, 6))]
    assert None not in traffic.ask(published)
    apart = [*both(world, 1, 81), *both(world, 2, 80), *both(Inside(engine, "otherb"), 1, 80)]
    assert not any(seen_by(traffic, apart, published[0]))
    assert engine.differences() == []
    engine.unpublish("net", ["8081:80"])
    assert not any(seen_by(traffic, published, Probe(world, FACING[4], 8082)))
    assert engine.differences() == []


@pytest.mark.parametrize(("binding", "reached"), [("127.0.0.1", []), (FACING[4], [4]), ("0.0.0.0", [4, 6]), ("::", [6])])
def test_the_address_that_ports_are_published_on(
    engine: Engine, world: Machine, traffic: Traffic, binding: str, reached: list[int]
) -> None:
    furnish(engine, traffic, options={f"{DOCKER}bridge.host_binding_ipv4": binding})
    furnish(engine, traffic, "other", 2)
    control = Probe(world, FACING[4], 8082)
    found = seen_by(traffic, [Probe(world, FACING[version], 8081) for version in (4, 6)], control)
    assert found == [version in reached for version in (4, 6)]
    if binding != "::":
        assert traffic.one(Inside(engine), "127.0.0.1" if binding != FACING[4] else FACING[4], 8081)
    # Who names an address has that one; and what was published without one is taken back without one.
    engine.publish("net", [f"{FACING[4]}:8090:80"])
    assert traffic.one(world, FACING[4], 8090)
    assert len(engine.unpublish("net", ["8081:80"]).ports) == 1
    assert engine.differences() == []


def test_addresses_are_kept_and_nobody_is_let_in(engine: Engine, world: Machine, traffic: Traffic) -> None:
    network = furnish(engine, traffic, options={f"{DOCKER}bridge.enable_ip_masquerade": "false"})
    assert network.nat == "kept"
    traffic.serve(world, 80)
    found = traffic.ask([Probe(Inside(engine, "netb"), OUTSIDE[version], 80) for version in (4, 6)])
    assert [answer.client for answer in found if answer] == ["10.1.0.3", "fd01::3"]
    assert not any(seen_by(traffic, both(world, 1, 80), Probe(world, FACING[4], 8081)))


def test_without_its_ipv4_address_a_bridge_leaves_the_gateway_to_someone_else(engine: Engine, traffic: Traffic) -> None:
    network = furnish(engine, traffic, options={f"{DOCKER}bridge.inhibit_ipv4": "true"})
    assert "inet 10.1." not in Shell().run(f"ip address show dev {network.bridge}")
    assert network.resolvers() == ("fd01::1",)
    assert "default via 10.1.0.1 dev eth0" in Shell().run("ip -n netb route")
    engine.create_namespace("router")
    Shell().run(f"ip link add rt0 type veth peer name eth0 netns router; ip link set rt0 up master {network.bridge}")
    Shell().run(
        "ip -n router address add 10.1.0.1/24 dev eth0; ip -n router link set eth0 up; ip -n router address add 10.77.0.1/32 dev lo"
    )
    traffic.serve(Inside(engine, "router"), 80)
    assert traffic.one(Inside(engine, "netb"), "10.77.0.1", 80)
    assert traffic.one(Inside(engine, "netb"), "fd01::2", 80)
    assert engine.differences() == []


def test_interfaces_are_called_as_the_network_says(engine: Engine) -> None:
    engine.create_network("a", options={f"{DOCKER}container_iface_prefix": "lan"})
    engine.create_network("b")
    engine.create_namespace("r1")
    assert [engine.connect(name, "r1").interface for name in ("a", "b")] == ["lan0", "eth1"]
    assert engine.connect("a", "r1", interface="up").interface == "up"


def test_the_families_and_the_mtu_of_a_network_by_dockers_names(engine: Engine) -> None:
    options = {"enable_ipv4": "false", "enable_ipv6": "true", "driver.mtu": "1400", "bridge.name": "br7", "bridge.enable_icc": "0"}
    made = engine.create_network("net", options={DOCKER + key: value for key, value in options.items()})
    assert (made.has(4), made.has(6), made.mtu, made.bridge, made.icc) == (False, True, 1400, "br7", False)
    options = {"advertise_addr_nmsgs": "0", "advertise_addr_ms": "100", "host_ipv4": "192.0.2.7"}
    made = engine.create_network("two", options={DOCKER + key: value for key, value in options.items()})
    assert (made.snat, made.announce) == (("192.0.2.7",), "never")
    made = engine.create_network("three", options={"no-default-route": "true", "metric": "70", "isolation": "open"})
    assert (made.default_route, made.metric, made.isolation) == (False, 70, "open")


def test_our_names_and_dockers_mean_the_same(engine: Engine) -> None:
    pairs = {
        "gateway-mode4": f"{DOCKER}bridge.gateway_mode_ipv4",
        "gateway-mode6": f"{DOCKER}bridge.gateway_mode_ipv6",
        "trusted-interfaces": f"{DOCKER}bridge.trusted_host_interfaces",
    }
    values = {"gateway-mode4": "routed", "gateway-mode6": "nat-unprotected", "trusted-interfaces": "eth7"}
    ours = engine.create_network("ours", subnets=["10.1.0.0/24"], options=values)
    theirs = engine.create_network("theirs", subnets=["10.2.0.0/24"], options={pairs[key]: value for key, value in values.items()})
    same = ("id", "name", "bridge", "mac", "created", "subnets")
    one, other = ({k: v for k, v in structs.asdict(network).items() if k not in same} for network in (ours, theirs))
    assert one == other


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {f"{DOCKER}bridge.gateway_mode_ipv4": "bridged"},
            "gateway-mode4 'bridged' is unknown; expected one of nat, nat-unprotected",
        ),
        ({f"{DOCKER}bridge.host_binding_ipv4": "here"}, "option host-binding 'here' is not an IP address"),
        ({f"{DOCKER}bridge.inhibit_ipv4": "maybe"}, "option inhibit-ipv4='maybe' is neither true nor false"),
        ({f"{DOCKER}bridge.trusted_host_interfaces": "a b"}, "'a b' is not an interface name"),
        ({f"{DOCKER}container_iface_prefix": "a-prefix-too-long"}, "is not an interface name"),
        ({f"{DOCKER}advertise_addr_nmsgs": "4"}, "advertise_addr_nmsgs=4 is out of range; expected 0 to 3"),
        ({f"{DOCKER}advertise_addr_ms": "99"}, "advertise_addr_ms=99 is out of range; expected 100 to 2000"),
        ({"announce": "twice"}, "announce 'twice' is unknown; expected one of changed, always, never"),
        ({f"{DOCKER}bridge.unheard_of": "1"}, "is unknown to driver bridge"),
        ({"nat": "none"}, "nat 'none' is unknown; expected one of masquerade, routed, kept"),
        ({"metric": "x"}, "metric 'x' is not a number"),
    ],
)
def test_an_option_that_means_nothing_is_refused(engine: Engine, options: dict[str, str], words: str) -> None:
    with left_as_it_was(engine), pytest.raises(Invalid, match=re.escape(words)):
        engine.create_network("net", options=options)


def test_more_subnets_than_can_be_compared_while_others_wait_are_refused(engine: Engine) -> None:
    with left_as_it_was(engine), pytest.raises(Invalid, match="16000 subnets are too many; at most 64"):
        engine.create_network("net", subnets=[f"10.{n >> 8}.{n & 255}.0/24" for n in range(16000)])


# --- parents of macvlan networks -----------------------------------------------------------------------------------------------------


def test_without_a_parent_macvlan_endpoints_have_a_network_of_their_own(engine: Engine, world: Machine, traffic: Traffic) -> None:
    before = Shell().run("ip -o link | cut -d: -f2")
    network = engine.create_network("lan", driver="macvlan", ipv6=True)
    assert (network.made_parent, [subnet.gateway for subnet in network.subnets]) == (True, ["", ""])
    engine.create_network("second", driver="macvlan", subnets=["10.7.0.0/24"], options={"parent": network.parent})
    for name in ("m1", "m2", "m3"):
        engine.create_namespace(name)
        traffic.serve(Inside(engine, name), 80)
    at = [engine.connect("lan", name) for name in ("m1", "m2")]
    engine.connect("second", "m3")
    probes = [Probe(Inside(engine, "m1"), at[1].address(version), 80) for version in (4, 6)]
    assert None not in traffic.ask(probes)
    assert engine.differences() == []
    Shell().run(f"ip link delete {network.parent}")
    assert f"network lan: link {network.parent} is missing" in [f"{d.subject}: {d.what}" for d in engine.differences()]
    assert engine.repair()[1] == []
    assert None not in traffic.ask(probes)
    # It goes with the last that is on it.
    for name in ("m1", "m2", "m3"):
        engine.remove_namespace(name)
    engine.remove_network("lan")
    assert engine.differences() == []
    assert network.parent in Shell().run("ip -o link")
    engine.remove_network("second")
    assert Shell().run("ip -o link | cut -d: -f2") == before


def test_a_vlan_is_made_for_its_networks_and_goes_with_the_last(engine: Engine) -> None:
    Shell().run("ip link add up0 mtu 1450 type ifb; ip link set up0 up")
    options: dict[str, Any] = {"driver": "macvlan", "subnets": ["10.7.0.0/24"], "options": {"parent": "up0.50"}}
    commands = engine.plan_create_network("lan", **options).commands()
    assert "ip link add dev up0.50 link up0 type vlan id 50" in commands
    assert "ip link set dev up0.50 up" in commands
    for parent in ("up0.0", "up0.4095", "up0.x", "up0.050", "nothere.5", "up0."):
        with left_as_it_was(engine), pytest.raises(NotFound, match="no interface"):
            engine.create_network("lan", **(options | {"options": {"parent": parent}}))
    if not Shell().succeeds("ip link add up1 type ifb && ip link add link up1 name up1.7 type vlan id 7"):
        with left_as_it_was(engine), pytest.raises(Unsupported, match="this kernel has no VLANs"):
            engine.create_network("lan", **options)
        return
    with left_as_it_was(engine), pytest.raises(Invalid, match=r"up1.7 is a VLAN itself"):
        engine.create_network("bad", **(options | {"options": {"parent": "up1.7.8"}}))
    made = engine.create_network("lan", **options)
    engine.create_network("second", **(options | {"subnets": ["10.8.0.0/24"]}))
    engine.create_namespace("m1")
    engine.connect("lan", "m1")
    assert (made.made_parent, made.mtu) == (True, 1450)
    assert engine.differences() == []
    engine.remove_namespace("m1")
    engine.remove_network("lan")
    assert "up0.50" in engine.links()
    engine.remove_network("second")
    assert "up0.50" not in engine.links()
    # One that was there before stays.
    engine.create_network("theirs", **(options | {"options": {"parent": "up1.7"}}))
    engine.remove_network("theirs")
    assert "up1.7" in engine.links()


def test_a_parent_that_was_made_does_not_outlive_a_crash(host: None, tmp_path: Path) -> None:
    with Engine.open(tmp_path) as engine:
        made = engine.create_network("lan", driver="macvlan")
        with engine.store.transaction():
            engine.store.put(structs.replace(made, state="pending"))
    with Engine.open(tmp_path) as engine:
        assert engine.networks()[2:] == []
        assert made.parent not in engine.links()
