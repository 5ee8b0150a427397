"""What the chained plugins of CNI may be told, each option on a real engine."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.kernel.cni_door import container
from tests.kernel.cni_lists import BANDWIDTH, PORTMAP, SHELL, TUNING, bridge, conflist, port, ports, refused, shaping
from tests.support import FACING, OUTSIDE, PATIENCE, Inside, Probe, Traffic

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.lab.machine import Machine
    from tests.clients.cni_runtime import Attachment, Json, Runtime


# --- portmap -------------------------------------------------------------------------------------------------------------------------


def test_ports_are_published_as_they_were_asked_for(engine: Engine, cni: Runtime, world: Machine, traffic: Traffic) -> None:
    network = conflist(bridge(), PORTMAP)
    asked = ports(
        port(8001, 80, "TCP"),
        port(8001, 80, "UDP"),
        port(8002, 80, hostIP=FACING[4]),
        port(8003, 80, hostIP="127.0.0.1"),
        port(8004, 80, hostIP="0.0.0.0"),
        port(8005, 80, hostIP="::"),
        port(8004, 80, "sctp"),
    )
    pod = container("c1", capabilities=asked)
    cni.add(network, pod)
    (endpoint,) = engine.state.endpoints.values()
    assert {str(one) for one in endpoint.ports} == {
        "8001:80/tcp",
        "8001:80/udp",
        f"{FACING[4]}:8002:80/tcp",
        "127.0.0.1:8003:80/tcp",
        "0.0.0.0:8004:80/tcp",
        "8004:80/sctp",
    }
    traffic.serve(Inside(engine, "id-c1"), 80)
    host = Inside(engine)
    reached = [Probe(world, FACING[4], number) for number in (8001, 8002, 8004)] + [Probe(world, FACING[4], 8001, "udp")]
    assert traffic.unanswered([*reached, Probe(host, "127.0.0.1", 8003)]) == []
    assert traffic.leaking([Probe(world, FACING[4], 8003), Probe(world, FACING[4], 8005)], reached[:1]) == []


def test_a_port_of_both_families_is_reached_by_both(engine: Engine, cni: Runtime, world: Machine, traffic: Traffic) -> None:
    dual = bridge() | {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]}}
    dual["ipam"]["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    cni.add(conflist(dual, PORTMAP), container("c1", capabilities=ports(port(8080))))
    traffic.serve(Inside(engine, "id-c1"), 80)
    assert traffic.unanswered([Probe(world, FACING[4], 8080), Probe(world, FACING[6], 8080)]) == []


BAD_PORTS: list[tuple[Json, Json]] = [
    ({"portMappings": [port(0)]}, {}),
    ({"portMappings": [port(8, 0)]}, {}),
    ({"portMappings": [port(70000)]}, {}),
    ({"portMappings": [port(8, 70000)]}, {}),
    ({"portMappings": [port(-8)]}, {}),
    ({"portMappings": [port(8, protocol="foo")]}, {}),
    ({"portMappings": [port(8, hostIP="junk")]}, {}),
    ({"portMappings": [port(8, hostIP="../../x")]}, {}),
    ({"portMappings": [port(8, hostIP="2001:db8::1")]}, {}),
    ({"portMappings": [port(8)]}, {"markMasqBit": 40}),
    ({"portMappings": [port(8)]}, {"markMasqBit": 4, "externalSetMarkChain": "X"}),
    ({"portMappings": [port(8)]}, {"conditionsV4": ["-s", "10.0.0.1"]}),
    ({"portMappings": [port(8)]}, {"conditionsV6": ["-s", "fd00::1"]}),
    ({"portMappings": [port(8)]}, {"backend": "pf"}),
]


@pytest.mark.parametrize(("asked", "options"), BAD_PORTS)
def test_ports_that_cannot_be_are_refused_and_change_nothing(engine: Engine, cni: Runtime, asked: Json, options: Json) -> None:
    pod = container("c1")
    result = cni.add(conflist(bridge()), pod)
    with refused(7):
        cni._run("ADD", conflist(bridge()), PORTMAP | options, pod._replace(capabilities=asked), result)
    (endpoint,) = engine.state.endpoints.values()
    assert endpoint.ports == ()
    assert engine.differences() == []


def test_options_that_steer_nothing_here_are_taken(engine: Engine, cni: Runtime) -> None:
    options = {"snat": False, "masqAll": True, "externalSetMarkChain": "KUBE-MARK-MASQ", "backend": "nftables", "conditionsV4": []}
    network, pod = conflist(bridge(), PORTMAP | options), container("c1", capabilities=ports(port(8080)))
    cni.add(network, pod)
    cni.check(network, pod)


def datagrams(address: str, number: int, *, to: str = "") -> socket.socket:
    """A socket of the calling thread's namespace, which waits as long as tests do."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.bind((address, number))
    if to:
        made.connect((to, 8053))
    return made


def test_a_client_that_goes_on_sending_reaches_whoever_has_the_port_now(engine: Engine, cni: Runtime, world: Machine) -> None:
    """UDP's connections live in the kernel's table as long as the client sends: with the reference plugins, those that began before the
    port was published, or while it led to another container, end nowhere (containernetworking/plugins#123)."""
    network = conflist(bridge(), PORTMAP)
    with world.run(lambda: datagrams(OUTSIDE[4], 40000, to=FACING[4])) as client:
        client.send(b"too early")
        with contextlib.suppress(ConnectionRefusedError):
            client.recv(100)
        for name in ("c1", "c2"):
            pod = container(name, capabilities=ports(port(8053, 53, "udp")))
            cni.add(network, pod)
            with Inside(engine, f"id-{name}").run(lambda: datagrams("0.0.0.0", 53)) as server:
                client.send(b"who is there?")
                question, peer = server.recvfrom(100)
                assert (question, peer[0]) == (b"who is there?", OUTSIDE[4])
                server.sendto(name.encode(), peer)
                assert client.recv(100) == name.encode()
            cni.delete(network, pod)


def test_one_port_of_several_addresses_and_protocols_may_lead_to_several_containers(
    engine: Engine, cni: Runtime, world: Machine, traffic: Traffic
) -> None:
    """As Kubernetes' own test of host ports has it (test/e2e/network/hostport.go)."""
    network = conflist(bridge(), PORTMAP)
    places = {
        "c1": port(8080, 80, hostIP="127.0.0.1"),
        "c2": port(8080, 80, hostIP=FACING[4]),
        "c3": port(8080, 80, "udp", hostIP=FACING[4]),
    }
    for name, place in places.items():
        cni.add(network, container(name, capabilities=ports(place)))
        traffic.serve(Inside(engine, f"id-{name}"), 80)
    asked = [Probe(Inside(engine), "127.0.0.1", 8080), Probe(world, FACING[4], 8080), Probe(world, FACING[4], 8080, "udp")]
    assert [seen.server if seen else "" for seen in traffic.ask(asked)] == ["id-c1", "id-c2", "id-c3"]


def test_a_port_that_is_taken_names_who_has_it(engine: Engine, cni: Runtime) -> None:
    network = conflist(bridge(), PORTMAP)
    cni.add(network, container("c1", capabilities=ports(port(8080))))
    with refused(104, "port 8080/tcp is published by id-c1"):
        cni.add(network, container("c2", capabilities=ports(port(8080))))
    cni.add(network, container("c3", capabilities=ports(port(8080, 80, "udp"))))


def test_check_sees_a_port_that_is_not_there_any_more(engine: Engine, cni: Runtime) -> None:
    network = conflist(bridge(), PORTMAP)
    pod = container("c1", capabilities=ports(port(8080)))
    cni.add(network, pod)
    subprocess.run(["nft", "delete", "element", "inet", "atoll", "ports4", "{ tcp . 8080 }"], check=True)
    kept = cni.kept(network, pod)
    with refused(5, "8080"):
        cni._run("CHECK", network, PORTMAP, pod, kept)
    engine.repair()
    cni.check(network, pod)
    engine.unpublish("id-c1", ["8080:80"])
    with refused(5, "8080:80/tcp is not published"):
        cni._run("CHECK", network, PORTMAP, pod, kept)


# --- bandwidth -----------------------------------------------------------------------------------------------------------------------


def test_check_sees_whether_the_kernel_shapes(engine: Engine, cni: Runtime) -> None:
    limits = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 400_000}
    network, pod = conflist(bridge(), BANDWIDTH | limits), container("c1")
    near = cni.add(network, pod)["interfaces"][1]["name"]
    cni.check(network, pod)
    kept = cni.kept(network, pod)
    for command in (
        f"del dev {near} root",
        f"del dev {near} ingress",
        f"replace dev ati{near[3:]} root tbf rate 1mbit burst 9000 latency 9ms",
    ):
        subprocess.run(["tc", "qdisc", *command.split()], check=True)
        with refused(5):
            cni._run("CHECK", network, network["plugins"][1], pod, kept)
        engine.repair()
        cni.check(network, pod)
    with refused(5, "not 9000000"):
        cni._run("CHECK", network, network["plugins"][1] | {"ingressRate": 9_000_000}, pod, kept)


def test_limits_come_from_the_list_or_from_the_runtime_and_go_with_delete(engine: Engine, cni: Runtime) -> None:
    asked = {"bandwidth": {"egressRate": 2_000_000, "egressBurst": 200_000}}
    network, pod = conflist(bridge(), BANDWIDTH), container("c1", capabilities=asked)
    near = cni.add(network, pod)["interfaces"][1]["name"]
    assert shaping(near) == {f"ati{near[3:]}": 2_000_000}
    cni._run("DEL", network, BANDWIDTH, pod, cni.kept(network, pod))
    assert shaping(near) == {}
    assert engine.differences() == []
    own = BANDWIDTH | {"ingressRate": 1_000_000, "ingressBurst": 100_000}
    cni._run("ADD", network, own, pod, cni.kept(network, pod))  # what the list says goes before what the runtime says
    assert shaping(near) == {near: 1_000_000}


@pytest.mark.parametrize(
    "limits",
    [
        {"ingressRate": 80_000},
        {"ingressBurst": 80_000},
        {"egressRate": 80_000},
        {"egressRate": 80_000, "egressBurst": 1 << 40},
        {"ingressRate": 8, "ingressBurst": 8},
        {"ingressRate": 80_000, "ingressBurst": 8_000, "shapedSubnets": ["10.0.0.0/8"]},
        {"ingressRate": 80_000, "ingressBurst": 8_000, "unshapedSubnets": ["10.0.0.0/8"]},
    ],
)
def test_limits_that_cannot_be_are_refused(engine: Engine, cni: Runtime, limits: Json) -> None:
    pod = container("c1")
    result = cni.add(conflist(bridge()), pod)
    with refused(7):
        cni._run("ADD", conflist(bridge()), BANDWIDTH | limits, pod, result)
    with refused(6):
        cni._run("ADD", conflist(bridge()), BANDWIDTH | {"ingressRate": -1}, pod, result)
    assert engine.differences() == []


# --- tuning --------------------------------------------------------------------------------------------------------------------------


def inside(pod: Attachment, *command: str) -> str:
    done = subprocess.run(["ip", "netns", "exec", pod.netns.rpartition("/")[2], *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def link(pod: Attachment) -> Json:
    return dict(json.loads(inside(pod, "ip", "-j", "link", "show", "eth0"))[0])


def test_tuning_holds_is_checked_and_goes_with_delete(engine: Engine, cni: Runtime) -> None:
    asked = {"sysctl": {SHELL: "77", "net/ipv4/conf/IFNAME/arp_filter": "1"}, "mtu": 1400, "allmulti": True, "txQLen": 55, "promisc": True}
    network, pod = conflist(bridge(), TUNING | asked), container("c1", capabilities={"mac": "02:00:00:00:00:09"})
    plain = cni.add(conflist(bridge()), pod)
    before, somaxconn = link(pod), inside(pod, "sysctl", "-n", SHELL)
    result = cni._run("ADD", network, network["plugins"][1], pod, plain)
    assert result is not None
    assert (result["interfaces"][2]["mac"], result["interfaces"][2]["mtu"]) == ("02:00:00:00:00:09", 1400)
    found = link(pod)
    assert {"PROMISC", "ALLMULTI", "UP"} <= set(found["flags"])
    assert (found["address"], found["mtu"], found["txqlen"]) == ("02:00:00:00:00:09", 1400, 55)
    assert (inside(pod, "sysctl", "-n", SHELL), inside(pod, "sysctl", "-n", "net.ipv4.conf.eth0.arp_filter")) == ("77", "1")
    cni._run("CHECK", network, network["plugins"][1], pod, result)
    inside(pod, "sysctl", "-w", f"{SHELL}=78")
    with refused(5, "somaxconn is 78, not 77"):
        cni._run("CHECK", network, network["plugins"][1], pod, result)
    engine.repair()
    cni._run("CHECK", network, network["plugins"][1], pod, result)
    cni._run("DEL", network, network["plugins"][1], pod, result)
    assert (link(pod), inside(pod, "sysctl", "-n", SHELL)) == (before, somaxconn)
    assert engine.differences() == []


def test_a_container_with_another_mac_address_is_reached(engine: Engine, cni: Runtime, traffic: Traffic) -> None:
    network = conflist(bridge(), TUNING)
    cni.add(network, container("c1", capabilities={"mac": "02:00:00:00:00:09"}))
    cni.add(network, container("c2", arguments={"MAC": "02:00:00:00:00:08"}))
    traffic.serve(Inside(engine, "id-c1"), 80)
    assert traffic.unanswered([Probe(Inside(engine, "id-c2"), "10.9.0.2", 80)]) == []


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"sysctl": {"kernel.pid_max": "500"}}, 7),
        ({"sysctl": {"net/../kernel/pid_max": "500"}}, 7),
        ({"sysctl": {"net.../kernel.pid_max": "500"}}, 7),
        ({"sysctl": {"/net/core/somaxconn": "500"}}, 7),
        ({"sysctl": {"net.core.nonsense": "1"}}, 7),
        ({"sysctl": {SHELL: "1\n2"}}, 7),
        ({"sysctl": {SHELL: "\0"}}, 7),
        ({"sysctl": {SHELL: "junk"}}, 5),
        ({"sysctl": {SHELL: 5}}, 6),
        ({"mac": "zz"}, 7),
        ({"mac": "01:00:5e:00:00:01"}, 7),
        ({"mtu": 5}, 7),
        ({"mtu": -5}, 7),
        ({"mtu": 1 << 40}, 7),
        ({"txQLen": -1}, 7),
        ({"promisc": "yes"}, 6),
    ],
)
def test_tuning_that_cannot_be_is_refused_and_changes_nothing(engine: Engine, cni: Runtime, asked: Json, code: int) -> None:
    pod = container("c1")
    result = cni.add(conflist(bridge()), pod)
    before, somaxconn = link(pod), inside(pod, "sysctl", "-n", SHELL)
    with refused(code):
        cni._run("ADD", conflist(bridge()), TUNING | {"sysctl": {SHELL: "70"}} | asked, pod, result)
    assert (link(pod), inside(pod, "sysctl", "-n", SHELL)) == (before, somaxconn)
    assert engine.differences() == []


# --- firewall ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "reached"), [("", True), ("open", True), ("same-bridge", False)])
def test_the_ingress_policy_says_who_reaches_a_network(engine: Engine, cni: Runtime, traffic: Traffic, policy: str, reached: bool) -> None:
    walls: Json = {"type": "firewall"} | ({"ingressPolicy": policy} if policy else {})
    for name, subnet in (("n1", "10.9.0.0/24"), ("n2", "10.8.0.0/24")):
        network = conflist(bridge(name, subnet), walls, name=name)
        for pod in (container(f"{name}a"), container(f"{name}b")):
            cni.add(network, pod)
            cni.check(network, pod)
    for name in ("id-n1a", "id-n1b", "id-n2a"):
        traffic.serve(Inside(engine, name), 80)
    client = Inside(engine, "id-n1a")
    within, across = Probe(client, "10.9.0.3", 80), Probe(client, "10.8.0.2", 80)
    if reached:
        assert traffic.unanswered([within, across]) == []
    else:
        assert traffic.leaking([across], [within]) == []
    assert engine.differences() == []


@pytest.mark.parametrize("options", [{"backend": "pf"}, {"ingressPolicy": "junk"}, {"ingressPolicy": "isolated"}])
def test_a_policy_that_cannot_be_is_refused(engine: Engine, cni: Runtime, options: Json) -> None:
    with refused(7):
        cni.add(conflist(bridge(), {"type": "firewall"} | options), container("c1"))


def test_where_packets_do_not_pass_the_host_there_is_no_wall_to_have(engine: Engine, cni: Runtime, world: Machine) -> None:
    lan: Json = {"type": "macvlan", "master": "wan0", "ipam": {"type": "host-local", "subnet": "10.7.0.0/24"}}
    network, pod = conflist(lan, {"type": "firewall"}), container("c1")
    cni.add(network, pod)
    cni.check(network, pod)
    with refused(7, "a macvlan network can't be kept apart"):
        cni._run("ADD", network, {"type": "firewall", "ingressPolicy": "same-bridge"}, pod, cni.kept(network, pod))
    cni.delete(network, pod)


def test_a_network_that_was_there_keeps_its_isolation(engine: Engine, cni: Runtime) -> None:
    engine.create_network("n1", subnets=["10.9.0.0/24"])
    cni.add(conflist(bridge(), {"type": "firewall"}), container("c1"))
    assert engine.state.network("n1").isolation == "strict"
