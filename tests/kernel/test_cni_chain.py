"""The chained plugins of CNI, in lists as people write them, on a real engine."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.cni_runtime import Attachment, CniError
from tests.kernel.cni_door import container, runtime
from tests.kernel.kernel_state import Shell, differences, exact, read
from tests.support import FACING, Inside, Probe, Traffic, ip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from atoll.engine import Engine
    from atoll.lab.machine import Machine
    from tests.clients.cni_runtime import Json, Runtime

CHAINED = ("portmap", "firewall", "bandwidth", "tuning")
SHELL = "net.core.somaxconn"


def bridge(name: str = "n1", subnet: str = "10.9.0.0/24", **more: Any) -> Json:
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    return {"type": "bridge", "bridge": f"br-{name}", "isGateway": True, "ipMasq": True, "ipam": ipam, **more}


def conflist(*plugins: Json, name: str = "n1", version: str = "1.1.0") -> Json:
    return {"cniVersion": version, "name": name, "plugins": list(plugins)}


PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}
BANDWIDTH: Json = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
TUNING: Json = {"type": "tuning", "capabilities": {"mac": True}}


def port(host_port: int, container_port: int = 80, protocol: str = "tcp", **more: Any) -> Json:
    return {"hostPort": host_port, "containerPort": container_port, "protocol": protocol, **more}


def ports(*mappings: Json) -> Json:
    return {"portMappings": list(mappings)}


@pytest.fixture
def cni(engine: Engine, tmp_path: Path) -> Runtime:
    return runtime(engine, tmp_path)


@contextlib.contextmanager
def refused(code: int, words: str = "") -> Iterator[None]:
    with pytest.raises(CniError) as caught:
        yield
    assert caught.value.code == code, caught.value
    assert words in str(caught.value)


def shaping(link: str) -> dict[str, int]:
    """The token buckets of an interface of the host: its own (to the container), and the one that what arrives is led through."""
    found = json.loads(subprocess.run(["tc", "-j", "qdisc", "show"], check=True, capture_output=True).stdout)
    return {queue["dev"]: queue["options"]["rate"] * 8 for queue in found if queue["kind"] == "tbf" and queue["dev"][3:] == link[3:]}


# --- the whole chain -----------------------------------------------------------------------------------------------------------------


def test_a_chain_of_all_works_from_the_first_packet_to_the_last_trace(
    engine: Engine, cni: Runtime, world: Machine, traffic: Traffic
) -> None:
    limits = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 400_000}
    network = conflist(bridge(), TUNING | {"sysctl": {SHELL: "77"}, "promisc": True}, BANDWIDTH | limits, {"type": "firewall"}, PORTMAP)
    pod = container("c1", capabilities=ports(port(8080), port(8080, 53, "udp")) | {"mac": "02:11:22:33:44:55"})
    before = exact(read(Shell()))
    result = cni.add(network, pod)
    assert [one["name"] for one in result["interfaces"]][0::2] == ["br-n1", "eth0"]
    assert result["interfaces"][2] == {"name": "eth0", "mac": "02:11:22:33:44:55", "mtu": 1500, "sandbox": pod.netns}
    assert result["ips"] == [{"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 2}]
    inside = Inside(engine, "id-c1")
    traffic.serve(inside, 80)
    traffic.serve(inside, 53)
    probes = [Probe(world, FACING[4], 8080), Probe(world, FACING[4], 8080, "udp"), Probe(inside, FACING[4], 8080)]
    assert traffic.unanswered([*probes, Probe(Inside(engine), "127.0.0.1", 8080)]) == []
    near = result["interfaces"][1]["name"]
    assert set(shaping(near).values()) == {8_000_000, 4_000_000}
    cni.check(network, pod)
    assert engine.differences() == []
    cni.delete(network, pod)
    assert engine.state.endpoints == {}
    assert engine.state.namespaces == {}
    assert engine.differences() == []
    engine.remove_network("n1")
    assert differences(before, exact(read(Shell()))) == []


def test_a_runtime_that_says_it_twice_in_the_wrong_order_or_too_late_is_understood(engine: Engine, cni: Runtime) -> None:
    network = conflist(bridge(), TUNING | {"mtu": 1400}, BANDWIDTH, {"type": "firewall"}, PORTMAP)
    limits = {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000}}
    pod = container("c1", capabilities=ports(port(8080)) | limits)
    cni.delete(network, pod)
    cni.add(network, pod)
    kept = cni.kept(network, pod)
    assert kept is not None
    for plugin in reversed(network["plugins"][1:]):  # each again, with the result that is there
        again = cni._run("ADD", network, plugin, pod, kept)
        assert again == kept
    cni.check(network, pod)
    for plugin in network["plugins"]:  # in the wrong order
        cni._run("DEL", network, plugin, pod, kept)
    assert engine.state.endpoints == {}
    cni.delete(network, pod)
    cni.delete(network, pod._replace(netns=""))
    assert engine.differences() == []


def test_a_namespace_that_is_gone_or_not_named_is_no_obstacle_to_taking_away(engine: Engine, cni: Runtime) -> None:
    network = conflist(bridge(), TUNING | {"sysctl": {SHELL: "77"}}, BANDWIDTH, {"type": "firewall"}, PORTMAP)
    for number, netns in enumerate(("", "/run/netns/c1", "/nonsense")):
        pod = container(f"c{number}", capabilities=ports(port(8080)))
        cni.add(network, pod)
        subprocess.run(["ip", "netns", "delete", f"c{number}"], check=True)
        cni.delete(network, pod._replace(netns=netns))
        assert engine.state.endpoints == {}
        assert engine.state.namespaces == {}
    assert engine.differences() == []


@pytest.mark.parametrize("plugin", CHAINED)
def test_a_chained_plugin_alone_is_told_that_it_is_none(engine: Engine, cni: Runtime, plugin: str) -> None:
    alone = conflist({"type": plugin})
    pod = container("c1")
    with refused(7, "must be called as chained plugin"):
        cni.add(alone, pod)
    with refused(7):
        cni.check(alone, pod)
    cni.delete(alone, pod)
    cni.status(alone)
    assert cni.garbage_collect(alone, []) == []


FOREIGN: dict[str, Json] = {
    "portmap": PORTMAP,
    "firewall": {"type": "firewall"},
    "bandwidth": {"type": "bandwidth", "ingressRate": 80_000, "ingressBurst": 80_000},
    "tuning": {"type": "tuning", "mtu": 1400},
}


@pytest.mark.parametrize("plugin", CHAINED)
def test_an_interface_of_someone_elses_is_left_to_the_plugin_that_stood_here_before(
    engine: Engine, cni: Runtime, tmp_path: Path, plugin: str
) -> None:
    pod = container("c1", capabilities=ports(port(8080)))
    ip(Inside(engine), "link add far type veth peer name eth0 netns c1")
    interfaces = [{"name": "eth0", "sandbox": pod.netns}]
    previous = {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": [{"address": "10.1.0.5/24", "interface": 0}]}
    network, configuration = conflist(FOREIGN[plugin]), FOREIGN[plugin]
    with refused(3, "id-c1 has no interface eth0"):
        cni._run("ADD", network, configuration, pod, previous)
    with refused(3, "id-c1 has no interface eth0"):
        cni._run("CHECK", network, configuration, pod, previous)
    cni._run("DEL", network, configuration, pod, previous)
    replaced = tmp_path / "bin" / ".atoll-replaced"
    replaced.mkdir()
    (replaced / plugin).write_text('#!/bin/sh\ncat >/dev/null\necho "{\\"said\\": \\"$CNI_COMMAND\\"}"\n')
    (replaced / plugin).chmod(0o755)
    for verb in ("ADD", "CHECK", "DEL"):
        assert cni._run(verb, network, configuration, pod, previous) == {"said": verb}


@pytest.mark.parametrize("plugin", CHAINED)
def test_with_nothing_to_do_a_chained_plugin_hands_on_what_it_was_given(engine: Engine, cni: Runtime, plugin: str) -> None:
    if plugin == "firewall":
        pytest.skip("it always has something to do")
    previous = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth9", "sandbox": "/run/netns/c1"}], "dns": {"domain": "x"}}
    assert cni._run("ADD", conflist({"type": plugin}), {"type": plugin}, container("c1"), previous) == previous


def test_collecting_garbage_leaves_what_is_alive_and_nothing_else(engine: Engine, cni: Runtime, tmp_path: Path) -> None:
    network = conflist(bridge(), TUNING | {"sysctl": {SHELL: "77"}}, BANDWIDTH, {"type": "firewall"}, PORTMAP)
    other = conflist(bridge("n2", "10.8.0.0/24"), PORTMAP, name="n2")
    pods = [container(f"c{number}", capabilities=ports(port(8080 + number))) for number in range(3)]
    for pod in pods:
        cni.add(network, pod)
    neighbour = container("d1", capabilities=ports(port(9000)))
    cni.add(other, neighbour)
    # The runtime has lost its cache, so all that is known is what the plugins know.
    forgetful = runtime(engine, tmp_path)
    forgetful._cache = tmp_path / "empty"
    assert forgetful.garbage_collect(network, [("id-c1", "eth0")]) == []
    assert {endpoint.owner for endpoint in engine.state.endpoints.values()} == {"cni:id-c1/eth0", "cni:id-d1/eth0"}
    cni.check(network, pods[1])
    cni.check(other, neighbour)
    assert engine.differences() == []


@pytest.mark.parametrize("plugin", CHAINED)
def test_garbage_of_one_plugin_alone_is_what_that_plugin_did(engine: Engine, cni: Runtime, plugin: str) -> None:
    limits = {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000}}
    network = conflist(bridge(), TUNING | {"sysctl": {SHELL: "77"}}, BANDWIDTH, {"type": "firewall"}, PORTMAP)
    pod = container("c1", capabilities=ports(port(8080)) | limits)
    cni.add(network, pod)
    words = {"cniVersion": "1.1.0", "name": "n1", "type": plugin, "cni.dev/valid-attachments": []}
    assert cni.raw("GC", plugin, words, {})[0] == 0
    (endpoint,) = engine.state.endpoints.values()
    left = {"portmap": bool(endpoint.ports), "bandwidth": bool(endpoint.ingress_rate), "tuning": bool(endpoint.tuning.settings)}
    assert left == {name: name != plugin for name in left}
    assert engine.differences() == []


@pytest.mark.parametrize("plugin", CHAINED)
def test_every_version_is_spoken_and_an_unknown_one_refused(engine: Engine, cni: Runtime, plugin: str) -> None:
    assert cni.versions(plugin) == ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    code, out, _ = cni.raw("ADD", plugin, {"cniVersion": "9.0.0", "name": "n", "type": plugin}, environment())
    assert (code, json.loads(out)["code"]) == (1, 1)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_a_chain_of_an_older_version_is_answered_in_its_form(engine: Engine, cni: Runtime, version: str) -> None:
    network = conflist(bridge(), TUNING | {"mtu": 1400}, PORTMAP, version=version)
    pod = container("c1", capabilities=ports(port(8080)))
    result = cni.add(network, pod)
    assert result["cniVersion"] == version
    assert ("version" in result["ips"][0]) == (version < "1.0.0")
    assert result["interfaces"][2].get("mtu") == (1400 if version == "1.1.0" else None)
    cni.delete(network, pod)
    assert engine.state.endpoints == {}


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


def test_a_network_that_was_there_keeps_its_isolation(engine: Engine, cni: Runtime) -> None:
    engine.create_network("n1", subnets=["10.9.0.0/24"])
    cni.add(conflist(bridge(), {"type": "firewall"}), container("c1"))
    assert engine.state.network("n1").isolation == "strict"


# --- hostile input -------------------------------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    return {"CNI_CONTAINERID": "id-c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"} | more


def deep(depth: int) -> bytes:
    return b'{"cniVersion":"1.0.0","name":"n1","prevResult":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"


HOSTILE: list[bytes] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"\xff\xfe",
    b'{"cniVersion": 5}',
    b'{"cniVersion": "1.0.0"}',
    b'{"cniVersion": "1.0.0", "name": "../../x"}',
    b'{"cniVersion": "1.0.0", "name": "a\\u0000b"}',
    b'{"cniVersion": "1.0.0", "name": "n1", "prevResult": 5}',
    b'{"cniVersion": "1.0.0", "name": "n1", "prevResult": {"interfaces": [5], "ips": "x"}}',
    b'{"cniVersion": "1.0.0", "name": "n1", "prevResult": {}, "runtimeConfig": []}',
    b'{"cniVersion": "1.0.0", "name": "n1", "prevResult": {}, "runtimeConfig": {"portMappings": {"a": 1}, "bandwidth": 5}, "sysctl": []}',
    b'{"cniVersion": "1.0.0", "name": "n1", "ipam": {"type": 5}}',
    b'{"cniVersion": "1.0.0", "name": "n1", "ipam": {"type": "host-local", "ranges": [[[[]]]]}}',
    b'{"cniVersion": "1.0.0", "name": "' + b"n" * 5000 + b'"}',
    deep(100),
    deep(100_000),
    b" " * (2 << 20),
]


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize("plugin", [*CHAINED, "host-local", "static"])
def test_hostile_input_is_answered_and_changes_nothing(engine: Engine, cni: Runtime, plugin: str, verb: str) -> None:
    pod = container("c1", capabilities=ports(port(8080)))
    cni.add(conflist(bridge(), PORTMAP), pod)
    before = dict(engine.state.endpoints)
    for stdin in HOSTILE:
        code, out, _ = cni.raw(verb, plugin, stdin, environment())
        assert code in (0, 1), stdin[:80]
        if code == 1:
            said = json.loads(out)
            assert set(said) <= {"cniVersion", "code", "msg", "details"}
            assert said["code"] < 999, (stdin[:80], said)
    for words in (
        environment(CNI_CONTAINERID="../x"),
        environment(CNI_CONTAINERID="a" * 3000),
        environment(CNI_IFNAME="a/b"),
        environment(CNI_IFNAME="a" * 300),
        environment(CNI_NETNS="/run/netns/c1\n"),
        environment(CNI_ARGS="nonsense"),
        environment(CNI_CONTAINERID=""),
    ):
        code, out, _ = cni.raw(verb, plugin, {"cniVersion": "1.1.0", "name": "n1", "type": plugin}, words)
        assert code in (0, 1)
    assert engine.state.endpoints == before or verb in ("DEL", "GC")
    assert engine.differences() == []
