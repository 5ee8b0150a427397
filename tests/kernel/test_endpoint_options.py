"""What an endpoint may have of its own: further routes, rates, a MAC address and an MTU that change, and host ports that are chosen."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from atoll.engine import Engine, endpoints
from atoll.engine.files import Files
from atoll.errors import AtollError, Conflict, Exhausted, Invalid, NotFound
from atoll.explain import explain, parse
from atoll.model import Route
from tests.kernel.kernel_state import Shell
from tests.kernel.test_limits import left_as_it_was, transfer
from tests.support import Inside, Probe, Traffic, outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.lab.machine import Machine


@pytest.fixture
def client(engine: Engine) -> Iterator[Machine]:
    with outside("client", "uplink", ["192.0.2.1/24", "2001:db8::1/64"], ["192.0.2.9/24", "2001:db8::9/64"]) as machine:
        yield machine


def said(engine: Engine) -> list[str]:
    return [f"{difference.subject}: {difference.what}" for difference in engine.differences()]


# --- routes --------------------------------------------------------------------------------------------------------------------------


def test_further_routes_lead_where_they_say(engine: Engine, traffic: Traffic) -> None:
    engine.create_network("net", subnets=["10.1.0.0/24", "fd01::/64"], options={"guard": "false"})
    for name in ("r1", "router"):
        engine.create_namespace(name)
    at = engine.connect("net", "router")
    Shell().run("ip -n router address add 10.9.0.1/32 dev lo; ip -n router address add fd09::1/128 dev lo")
    router = Inside(engine, "router")
    traffic.serve(router, 80)
    further = [Route("10.9.0.0/16", at.address(4)), Route("fd09::/32", at.address(6), metric=5), Route("10.9.1.0/24", kind="blackhole")]
    engine.connect("net", "r1", routes=further)
    place = Inside(engine, "r1")
    probes = [Probe(place, "10.9.0.1", 80), Probe(place, "fd09::1", 80)]
    assert None not in traffic.ask(probes)
    shown = Shell().run("ip -n r1 route; ip -n r1 -6 route")
    assert f"10.9.0.0/16 via {at.address(4)} dev eth0 proto 167" in shown
    assert "blackhole 10.9.1.0/24 proto 167" in shown
    assert f"fd09::/32 via {at.address(6)} dev eth0 proto 167 metric 5" in shown
    assert said(engine) == []
    Shell().run("ip -n r1 route delete 10.9.0.0/16; ip -n r1 route delete blackhole 10.9.1.0/24; ip -n r1 -6 route delete fd09::/32")
    assert said(engine) == [
        "namespace r1: route 10.9.1.0/24 by blackhole in r1 is missing",
        "namespace r1: route 10.9.0.0/16 by eth0 in r1 is missing",
        "namespace r1: route fd09::/32 by eth0 in r1 is missing",
    ]
    assert engine.repair()[1] == []
    assert said(engine) == []
    assert None not in traffic.ask(probes)


def test_a_route_that_ends_goes_with_its_endpoint_also_from_a_namespace_that_stays(engine: Engine) -> None:
    Shell().run("ip netns add theirs")
    engine.create_network("net")
    engine.adopt_namespace("theirs", path="/run/netns/theirs")
    before = Shell().run("ip -n theirs route show table all; ip -n theirs -6 route show table all")
    engine.connect("net", "theirs", routes=[Route("10.9.0.0/16", kind="prohibit"), Route("fd09::/16", kind="unreachable")])
    assert said(engine) == []
    engine.disconnect("net", "theirs")
    assert Shell().run("ip -n theirs route show table all; ip -n theirs -6 route show table all") == before


def test_without_the_default_route_nothing_leads_out_by_a_network(engine: Engine, client: Machine, traffic: Traffic) -> None:
    engine.create_network("net", subnets=["10.1.0.0/24", "fd01::/64"])
    engine.create_network("other", subnets=["10.2.0.0/24", "fd02::/64"], metric=70)
    engine.create_namespace("r1")
    engine.connect("net", "r1", default_route=False, publish=["8080:80"], gateway_priority=9)
    place, here = Inside(engine, "r1"), Inside(engine)
    traffic.serve(place, 80)
    traffic.serve(client, 80)
    near = [Probe(here, "127.0.0.1", 8080), Probe(here, "::1", 8080)]
    far = [Probe(client, "192.0.2.1", 8080), Probe(client, "2001:db8::1", 8080)]
    out = [Probe(place, "192.0.2.9", 80), Probe(place, "2001:db8::9", 80)]
    assert None not in traffic.ask(near)
    assert not any(seen and seen.answered for seen in traffic.silence([*far, *out], near))
    assert explain(engine, parse("r1", "192.0.2.9:80")).why == "r1 has no route to 192.0.2.9: none of its networks leads out by IPv4"
    # By another network it leads out; and who comes by this one is answered by this one.
    engine.connect("other", "r1")
    assert None not in traffic.ask([*near, *far, *out])
    assert "default via 10.2.0.1 dev eth1 proto 167 metric 70" in Shell().run("ip -n r1 route")
    assert said(engine) == []
    engine.disconnect("other", "r1")
    assert not any(seen and seen.answered for seen in traffic.silence([*far, *out], near))
    assert said(engine) == []


REFUSED_ROUTES: dict[str, tuple[dict[str, Any], type[AtollError], str]] = {
    "no prefix": ({"routes": [Route("10.9.0.1/16")]}, Invalid, "'10.9.0.1/16' is not where a route leads to"),
    "gateway elsewhere": ({"routes": [Route("10.9.0.0/16", "10.2.0.1")]}, Invalid, "its gateway is not on the network (10.1.0.0/24)"),
    "gateway of another family": ({"routes": [Route("10.9.0.0/16", "fd01::1")]}, Invalid, "fd01::1 is no gateway to 10.9.0.0/16"),
    "a family that it lacks": ({"routes": [Route("fd09::/16")]}, Invalid, "there is no IPv6 address to send from"),
    "gateway to nowhere": ({"routes": [Route("10.9.0.0/16", "10.1.0.1", kind="blackhole")]}, Invalid, "of kind blackhole has no gateway"),
    "two ways": (
        {"routes": [Route("10.9.0.0/16"), Route("10.9.0.0/16", kind="blackhole")]},
        Conflict,
        "r1 would have two routes to 10.9.0.0/16, by blackhole and by eth0",
    ),
    "two defaults": ({"routes": [Route("0.0.0.0/0", "10.1.0.9")]}, Conflict, "r1 would have two routes to default"),
    "metric": ({"metric": -1}, Invalid, "metric -1 is out of range"),
}


@pytest.mark.parametrize("case", REFUSED_ROUTES)
def test_a_route_that_cannot_be_is_refused(engine: Engine, case: str) -> None:
    options, error, words = REFUSED_ROUTES[case]
    engine.create_network("net", subnets=["10.1.0.0/24"])
    engine.create_namespace("r1")
    with left_as_it_was(engine), pytest.raises(error, match=re.escape(words)):
        engine.connect("net", "r1", **options)
    if case != "two defaults" and "routes" in options:
        with left_as_it_was(engine), pytest.raises(AtollError):
            engine.create_network("second", subnets=["10.3.0.0/24"], routes=[*options["routes"], Route("fd09::/16")])


# --- rates ---------------------------------------------------------------------------------------------------------------------------


def test_rates_change_while_traffic_flows(engine: Engine) -> None:
    engine.create_network("net")
    for name in ("fast", "slow"):
        engine.create_namespace(name)
    fast, slow = engine.connect("net", "fast"), engine.connect("net", "slow")
    assert transfer(engine, "fast", "slow", slow.address(4), 2_500_000) > 30e6
    engine.set_rates("net", "slow", ingress_rate="20mbit", egress_rate="10mbit")
    assert 10e6 < transfer(engine, "fast", "slow", slow.address(4), 1_250_000) < 26e6
    assert 5e6 < transfer(engine, "slow", "fast", fast.address(4), 625_000) < 13e6
    assert said(engine) == []
    engine.set_rates("net", "slow", ingress_rate="20mbit")
    assert transfer(engine, "slow", "fast", fast.address(4), 2_500_000) > 30e6
    assert engine.set_rates("net", "slow").ingress_rate == 0
    assert transfer(engine, "fast", "slow", slow.address(4), 2_500_000) > 30e6
    assert said(engine) == []
    assert slow.shaper not in engine.links()
    with left_as_it_was(engine), pytest.raises(Invalid, match="is not a rate"):
        engine.set_rates("net", "slow", egress_rate="much")


# --- MAC address and MTU -------------------------------------------------------------------------------------------------------------


def test_another_mac_address_serves_at_once_and_the_old_one_no_more(engine: Engine, client: Machine, traffic: Traffic) -> None:
    engine.create_network("net", subnets=["10.1.0.0/24", "fd01::/64"])
    for name in ("r1", "r2"):
        engine.create_namespace(name)
    old = engine.connect("net", "r1", publish=["8080:80"])
    engine.connect("net", "r2")
    r1, r2 = Inside(engine, "r1"), Inside(engine, "r2")
    traffic.serve(r1, 80)
    traffic.serve(r2, 80)
    probes = [Probe(r2, old.address(4), 80), Probe(r2, old.address(6), 80), Probe(client, "192.0.2.1", 8080), Probe(r1, "10.1.0.3", 80)]
    assert None not in traffic.ask(probes)
    with r1.run(lambda: socket.create_server(("10.1.0.2", 90))) as listener:
        sender = r2.run(lambda: socket.create_connection(("10.1.0.2", 90)))
        receiver, _ = listener.accept()
        with sender, receiver:
            made = engine.retune("net", "r1", mac="02-00-00-00-00-AA", mtu=1400)
            assert (made.mac, made.mtu) == ("02:00:00:00:00:aa", 1400)
            assert None not in traffic.ask(probes)
            sender.sendall(b"still here")
            assert receiver.recv(100) == b"still here"
    shown = Shell().run("ip -n r1 address show eth0; nft list table bridge atoll")
    assert "mtu 1400" in shown
    assert "fe80::ff:fe00:aa/64" in shown
    assert old.mac not in shown
    assert said(engine) == []
    # What was the other's is free again, and whoever takes the new one away is found out.
    Shell().run("ip -n r1 link set eth0 address 02:00:00:00:00:bb mtu 1500")
    assert len(said(engine)) == 1
    assert engine.repair()[1] == []
    assert engine.links()[made.host_interface].mtu == 1400
    assert None not in traffic.ask(probes)
    with left_as_it_was(engine), pytest.raises(Conflict, match="MAC address 02:00:00:00:00:aa is taken"):
        engine.retune("net", "r2", mac="02:00:00:00:00:aa")
    assert engine.retune("net", "r2", mac=old.mac).mac == old.mac
    assert engine.retune("net", "r1", mtu=1500).mtu == 0
    for mtu in (-1, 1279, 70000):
        with left_as_it_was(engine), pytest.raises(Invalid, match="out of range"):
            engine.retune("net", "r1", mtu=mtu)


def test_what_was_changed_outlives_a_restart(host: None, tmp_path: Path) -> None:
    with Engine.open(tmp_path) as engine:
        engine.create_network("net")
        engine.create_namespace("r1")
        engine.connect("net", "r1", publish=["0:80"], routes=[Route("10.99.0.0/16")], ingress_rate="1gbit")
        engine.retune("net", "r1", mac="02:00:00:00:00:aa", mtu=1400)
        engine.set_rates("net", "r1", egress_rate="1gbit")
        known = dict(engine.state.endpoints)
    with Engine.open(tmp_path) as engine:
        assert dict(engine.state.endpoints) == known
        assert said(engine) == []
        Shell().run(f"ip link delete {next(iter(known.values())).host_interface}")
        assert engine.repair()[1] == []
        assert "mtu 1400" in Shell().run("ip -n r1 link show eth0")


CHANGES = {
    "set_rates": 'ingress_rate="2gbit", egress_rate=""',
    "set_rates too": 'ingress_rate="", egress_rate="2gbit"',
    "retune": 'mac="02:00:00:00:00:bb", mtu=1400',
}


@pytest.mark.parametrize("change", CHANGES)
def test_death_at_any_step_of_a_change_leaves_the_one_or_the_other(host: None, tmp_path: Path, change: str) -> None:
    verb = change.split()[0]
    program = f"from atoll.engine import Engine\nEngine.open({str(tmp_path)!r}).{verb}('net', 'r1', {CHANGES[change]})"
    with Engine.open(tmp_path) as engine:
        engine.create_network("net", subnets=["10.1.0.0/24", "fd01::/64"])
        engine.create_namespace("r1")
    for step in range(1, 50):
        with Engine.open(tmp_path) as engine:
            before = engine.connect("net", "r1", mac="02:00:00:00:00:aa", ingress_rate="1gbit", egress_rate="1gbit")
        environment = os.environ | {"ATOLL_FAULT": f"{verb}:{step}"}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False, timeout=60)
        with Engine.open(tmp_path) as engine:
            assert said(engine) == []
            after = engine.state.endpoint(engine.state.network("net"), "r1")
            shown = Shell().run(f"tc qdisc show dev {after.host_interface}; ip link show type ifb")
            assert ("ingress" in shown, after.shaper in shown) == (bool(after.egress_rate),) * 2
            engine.disconnect("net", "r1")
            engine.settle()
        if done.returncode == 0:
            assert after != before
            assert step > 3
            return
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    raise AssertionError("it never ends")


# --- host ports that are chosen ------------------------------------------------------------------------------------------------------


def test_the_first_free_port_of_a_range_is_chosen(engine: Engine, client: Machine, traffic: Traffic) -> None:
    engine.create_network("net", subnets=["10.1.0.0/24", "fd01::/64"])
    for name in ("r1", "r2"):
        engine.create_namespace(name)
        engine.connect("net", name)
        traffic.serve(Inside(engine, name), 80)
    with socket.create_server(("192.0.2.1", 8001)), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        udp.bind(("::1", 8000))
        assert [str(port) for port in engine.publish("r1", ["8000-8003:80"]).ports] == ["8000:80/tcp"]
        ports = engine.publish("r2", ["8003:80", "8000-8003:80", "8000-8003:80/udp"]).ports
        assert [str(port) for port in ports] == ["8003:80/tcp", "8002:80/tcp", "8001:80/udp"]
        engine.create_namespace("r3")
        with left_as_it_was(engine), pytest.raises(Exhausted, match=re.escape("no port of the host is free for 8000-8003:80/tcp")):
            engine.connect("net", "r3", publish=["8000-8003:80"])
    probes = [Probe(client, address, port) for address in ("192.0.2.1", "2001:db8::1") for port in (8000, 8002, 8003)]
    assert None not in traffic.ask(probes)
    assert [str(port) for port in engine.connect("net", "r3", publish=["8000-8003:80"]).ports] == ["8001:80/tcp"]
    engine.unpublish("r2", ["8002:80"])
    with left_as_it_was(engine), pytest.raises(Conflict, match=re.escape("8000-8003:80/tcp is not published by r1")):
        engine.unpublish("r1", ["8000-8003:80"])
    assert said(engine) == []


def test_port_0_is_any_free_one_of_the_kernels_own_range(engine: Engine) -> None:
    Shell().run("sysctl -qw net.ipv4.ip_local_port_range='40000 40009' net.ipv4.ip_local_reserved_ports=40000,40003-40005")
    engine.create_network("net")
    engine.create_namespace("r1")
    with socket.create_server(("127.0.0.1", 40009)):
        engine.connect("net", "r1", publish=["40008:8", "0:80", "127.0.0.1:0:81/udp"])
        found = engine.publish("r1", ["0:80"] * 3).ports
        tcp = sorted(port.host_port for port in found if port.protocol == "tcp" and port.port == 80)
        assert tcp == [40001, 40002, 40006, 40007]
        with left_as_it_was(engine), pytest.raises(Exhausted, match="no port of the host is free for 0:80/tcp"):
            engine.publish("r1", ["0:80"])
    assert engine.publish("r1", ["0:80"]).ports[-1].host_port == 40009


@pytest.mark.parametrize("spec", ["0-10:80", "0:80-90", "8000-8010:80-81", "8000:80-90", "0:0", "1-0:80"])
def test_a_choice_that_means_nothing_is_refused(engine: Engine, spec: str) -> None:
    engine.create_network("net")
    engine.create_namespace("r1")
    with left_as_it_was(engine), pytest.raises(Invalid):
        engine.connect("net", "r1", publish=[spec])


def test_a_port_is_taken_back_once(engine: Engine) -> None:
    engine.create_network("net")
    engine.create_namespace("r1")
    engine.connect("net", "r1", publish=["80:80"])
    with left_as_it_was(engine), pytest.raises(Conflict, match="named twice"):
        engine.unpublish("r1", ["80:80", "80:80"])


def test_what_someone_else_sets_up_is_not_retuned(engine: Engine) -> None:
    engine.create_network("net")
    engine.create_external("c1", source="docker:c1")
    engine.connect("net", "c1")
    with left_as_it_was(engine), pytest.raises(Invalid, match="c1 is set up by someone else"):
        engine.retune("net", "c1", mtu=1400)
    engine.set_rates("net", "c1", egress_rate="1mbit")
    assert said(engine) == []


def test_an_endpoint_that_is_not_there_is_not_changed(engine: Engine) -> None:
    engine.create_network("net")
    engine.create_namespace("r1")
    for verb, options in (("set_rates", {"ingress_rate": "1gbit"}), ("retune", {"mtu": 1400})):
        with left_as_it_was(engine), pytest.raises(NotFound, match="r1 is not connected to net"):
            getattr(engine, verb)("net", "r1", **options)


# --- several endpoints on one network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"internal": True}, {"options": {"guard": "false"}}], ids=["plain", "internal", "unguarded"])
def test_several_endpoints_on_one_network_answer_each_by_its_own(
    engine: Engine, client: Machine, traffic: Traffic, options: dict[str, Any]
) -> None:
    engine.create_network("net", subnets=["10.1.0.0/24", "fd01::/64"], **options)
    for name in ("r1", "r2"):
        engine.create_namespace(name)
    published = not options.get("internal")
    first = engine.connect("net", "r1", publish=["8080:80"] if published else [])
    second = engine.connect("net", "r1", interface="lan", publish=["8081:80"] if published else [])
    engine.connect("net", "r2")
    with left_as_it_was(engine), pytest.raises(Conflict, match=r"r1 is connected to net; .*--ifname"):
        engine.connect("net", "r1")
    with left_as_it_was(engine), pytest.raises(Conflict, match="r1 has an interface lan"):
        engine.connect("net", "r1", interface="lan")
    r1, r2 = Inside(engine, "r1"), Inside(engine, "r2")
    for place in (r1, r2, client):
        traffic.serve(place, 80)
    probes = [Probe(place, end.address(version), 80) for place in (r2, Inside(engine)) for end in (first, second) for version in (4, 6)]
    probes += [Probe(r1, "10.1.0.4", 80, local=local) for local in ("", "10.1.0.2", "10.1.0.3")]
    if published:
        probes += [Probe(client, address, port) for address in ("192.0.2.1", "2001:db8::1") for port in (8080, 8081)]
        probes += [Probe(r1, "192.0.2.9", 80, local=local) for local in ("", "10.1.0.2", "10.1.0.3")]
    seen = traffic.ask(probes)
    assert [probe for probe, answer in zip(probes, seen, strict=True) if answer is None] == []
    assert said(engine) == []
    for verb in ("disconnect", "set_rates"):
        with left_as_it_was(engine), pytest.raises(Conflict, match="r1 is connected to net by several interfaces, eth0, lan"):
            getattr(engine, verb)("net", "r1")
    with left_as_it_was(engine), pytest.raises(NotFound, match="r1 is connected to net by eth0, lan, not by eth7"):
        engine.disconnect("net", "r1", interface="eth7")
    engine.retune("net", "r1", interface="lan", mtu=1400)
    assert engine.disconnect("net", "r1", interface="eth0").id == first.id
    left = [probe for probe in probes if probe.address not in first.addresses[0] + first.addresses[1] and "10.1.0.2" not in probe.local]
    left = [probe for probe in left if probe.port != 8080]
    assert None not in traffic.ask(left)
    assert said(engine) == []


def test_a_namespace_twice_on_one_network_asks_its_gateway_once(host: None, tmp_path: Path) -> None:
    files = Files(tmp_path / "files")
    with Engine.open(files=files) as engine:
        engine.create_network("net", subnets=["10.1.0.0/24"])
        engine.create_namespace("r1")
        engine.connect("net", "r1")
        engine.connect("net", "r1", interface="lan")
        lines = Path(files.of("r1")["/etc/resolv.conf"]).read_text().splitlines()
        assert lines[1:3] == ["nameserver 10.1.0.1", "search net.atoll"]


# --- addresses that change hands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ports", [480, 1], ids=["one bridge", "several"])
def test_an_address_that_changes_hands_is_reached_at_once(
    engine: Engine, client: Machine, traffic: Traffic, ports: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "SHARD_PORTS", ports)
    engine.create_network("net", subnets=["10.1.0.0/24", "fd01::/64"])
    addresses = ["10.1.0.99", "fd01::99"]
    for name in ("first", "second", "near", "far"):
        engine.create_namespace(name)
    engine.connect("net", "near")
    engine.connect("net", "far")
    places = [Inside(engine), Inside(engine, "near"), Inside(engine, "far")]
    probes = [Probe(place, address, 80) for place in places for address in addresses]
    probes.append(Probe(client, "192.0.2.1", 8080))
    for name in ("first", "second"):
        traffic.serve(Inside(engine, name), 80)
    for name in ("first", "second", "first"):
        engine.connect("net", name, addresses=addresses, publish=["8080:80"])
        seen = traffic.ask(probes, patience=3)
        assert [answer.server for answer in seen if answer] == [name] * len(probes)
        engine.disconnect("net", name)


def test_whether_neighbours_are_told_is_the_networks_affair(engine: Engine) -> None:
    def heard(announce: str) -> list[str]:
        engine.create_network(announce, subnets=["10.1.0.0/24", "fd01::/64"], options={"announce": announce})
        for name in ("r1", "neighbour"):
            engine.create_namespace(name)
        engine.connect(announce, "neighbour")
        ear = Inside(engine, "neighbour").run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        found = []
        with ear:
            ear.bind(("eth0", 3))
            for addresses in (["10.1.0.50", "fd01::50"], ["10.1.0.50", "fd01::51"]):
                made = engine.connect(announce, "r1", addresses=addresses)
                engine.disconnect(announce, "r1")
                at = bytes.fromhex(made.mac.replace(":", ""))
                ear.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while frame := ear.recv(2000):
                        for text in addresses:
                            packed = ipaddress.ip_address(text).packed
                            about = (
                                frame[22:28] == at and frame[28:32] == packed
                                if "." in text
                                else frame[54:55] == b"\x88" and packed in frame
                            )
                            found += [text] if about and frame[6:12] != at else []
        for name in ("r1", "neighbour"):
            engine.remove_namespace(name)
        engine.remove_network(announce)
        return found

    assert heard("never") == []
    assert heard("changed") == ["10.1.0.50"]
    assert sorted(heard("always")) == ["10.1.0.50", "10.1.0.50", "fd01::50", "fd01::51"]
