"""The chained plugins of CNI, in lists as people write them, on a real engine."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.kernel.cni_door import container, runtime
from tests.kernel.cni_lists import BANDWIDTH, CHAINED, PORTMAP, SHELL, TUNING, bridge, conflist, port, ports, refused, shaping
from tests.kernel.kernel_state import Shell, differences, exact, read
from tests.support import FACING, Inside, Probe, Traffic, ip

if TYPE_CHECKING:
    from pathlib import Path

    from atoll.engine import Engine
    from atoll.lab.machine import Machine
    from tests.clients.cni_runtime import Json, Runtime


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


@pytest.mark.parametrize("plugin", ["portmap", "bandwidth", "tuning"])
def test_with_nothing_to_do_a_chained_plugin_hands_on_what_it_was_given(engine: Engine, cni: Runtime, plugin: str) -> None:
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
