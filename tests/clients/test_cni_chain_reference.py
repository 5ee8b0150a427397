"""The chained and the IPAM plugins beside the reference ones of the same names: the same lists, the same results, the same to be seen."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest

from atoll.lab.machine import Machine
from tests.clients.cni_runtime import Attachment, CniError, Runtime, run_file
from tests.clients.neighbours_host import need
from tests.kernel.cni_door import runtime
from tests.support import FACING, Probe, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from atoll import Engine
    from tests.clients.cni_runtime import Json
    from tests.support import Place

T = TypeVar("T")
FOLDER: Final = "/usr/lib/cni"
PLUGINS: Final = ("bridge", "host-local", "static", "portmap", "firewall", "bandwidth", "tuning")


class Container:
    """A container's namespace as a place."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.name, self._engine = name, engine

    def run(self, function: Callable[[], T]) -> T:
        with open(f"/run/netns/{self.name}", "rb") as file:
            return self._engine.host.visitor.run(file.fileno(), function)


class Side:
    """One host with a runtime: `place` is the host itself, and its containers bear its name."""

    def __init__(self, name: str, engine: Engine, place: Place, cni: Runtime, data_dir: str) -> None:
        self.name, self.place, self.cni, self._engine, self._data_dir = name, place, cni, engine, data_dir
        place.run(lambda: subprocess.run("ip link add wan0 type veth peer name wan1; ip link set wan1 up", shell=True, check=True))
        place.run(lambda: subprocess.run(f"ip address add {FACING[4]}/24 dev wan0; ip link set wan0 up", shell=True, check=True))

    def container(self, name: str, **more: Any) -> Attachment:
        subprocess.run(["ip", "netns", "add", f"{self.name}-{name}"], check=True)
        return Attachment(name, f"/run/netns/{self.name}-{name}", **more)

    def inside(self, pod: Attachment) -> Container:
        return Container(self._engine, pod.netns.rpartition("/")[2])

    def list(self, *plugins: Json, version: str = "1.0.0") -> Json:
        ipam = {"type": "host-local", "dataDir": self._data_dir, "subnet": "10.9.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
        bridge = {"type": "bridge", "bridge": "cni7", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
        return {"cniVersion": version, "name": "n1", "plugins": [bridge, *plugins]}

    def shaping(self) -> set[int]:
        """The rates, in bits a second, of the token buckets on the host."""
        said = self.place.run(lambda: subprocess.run(["tc", "-j", "qdisc", "show"], check=True, capture_output=True).stdout)
        return {queue["options"]["rate"] * 8 for queue in json.loads(said) if queue["kind"] == "tbf"}


@pytest.fixture
def sides(engine: Engine, tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    """Atoll's host, which the test's thread is on, and the reference plugins' host."""
    need("iptables", "tc", *(f"{FOLDER}/{name}" for name in PLUGINS))
    with Machine("reference") as machine:

        def execute(program: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
            return machine.run(lambda: run_file(program, environment, stdin))

        machine.run(lambda: subprocess.run(["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"], check=True))
        theirs = Runtime([FOLDER], tmp_path / "reference", execute=execute)
        home = Home()
        yield (
            Side("ours", engine, home, runtime(engine, tmp_path), str(tmp_path / "none")),
            Side("theirs", engine, machine, theirs, str(tmp_path / "leases")),
        )


class Home:
    """The thread's own namespace as a place."""

    name = "host"

    def run(self, function: Callable[[], T]) -> T:
        return function()


def plain(result: Json) -> Json:
    """Without names and MAC addresses that are chosen anew each time."""
    text = json.loads(json.dumps(result))
    for interface in text["interfaces"]:
        if not interface["mac"].startswith("02:11"):
            del interface["mac"]
        if interface["name"].startswith(("veth", "atv")):
            interface["name"] = "veth"
        if interface["name"].startswith(("bwp", "ati")):
            interface["name"] = "shaper"
        if "sandbox" in interface:
            interface["sandbox"] = "here"
    return dict(text)


def link(side: Side, pod: Attachment) -> Json:
    said = side.inside(pod).run(lambda: subprocess.run(["ip", "-j", "-d", "link", "show", "eth0"], check=True, capture_output=True).stdout)
    found = json.loads(said)[0]
    kept = {key: found.get(key) for key in ("mtu", "address", "promiscuity", "allmulti", "ifname")}
    return kept | {"flags": sorted(found["flags"])}


def setting(side: Side, pod: Attachment, name: str) -> str:
    return side.inside(pod).run(lambda: subprocess.run(["sysctl", "-n", name], check=True, capture_output=True, text=True).stdout)


TUNING: Json = {
    "type": "tuning",
    "sysctl": {"net.core.somaxconn": "500"},
    "mtu": 1400,
    "promisc": True,
    "allmulti": True,
    "capabilities": {"mac": True},
}
BANDWIDTH: Json = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}
LIMITS: Json = {"ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 40_000_000, "egressBurst": 4_000_000}


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_a_whole_chain_is_answered_alike_and_looks_and_works_alike(sides: tuple[Side, Side], version: str) -> None:
    seen: list[Json] = []
    for side in sides:
        network = side.list(TUNING, BANDWIDTH, {"type": "firewall"}, PORTMAP, version=version)
        asked = {"mac": "02:11:22:33:44:55", "bandwidth": LIMITS}
        maps = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 8053, "containerPort": 53, "protocol": "udp"}]
        pod = side.container("c1", capabilities=asked | {"portMappings": maps})
        result = plain(side.cni.add(network, pod))
        other = side.container("c2")
        side.cni.add(network, other)
        look = {"result": result, "link": link(side, pod), "somaxconn": setting(side, pod, "net.core.somaxconn"), "shaped": side.shaping()}
        with Traffic() as traffic:
            traffic.serve(side.inside(pod), 80)
            traffic.serve(side.inside(pod), 53)
            host, neighbour, itself = side.place, side.inside(other), side.inside(pod)
            probes = [Probe(host, "127.0.0.1", 8080), Probe(host, FACING[4], 8080), Probe(neighbour, FACING[4], 8080)]
            probes += [Probe(itself, FACING[4], 8080), Probe(neighbour, "10.9.0.2", 80)]
            probes += [Probe(host, FACING[4], 8053, "udp"), Probe(neighbour, FACING[4], 8053, "udp")]
            look["reached"] = [bool(answer and answer.answered) for answer in traffic.ask(probes)]
        for attachment in (pod, other):
            side.cni.delete(network, attachment)
        look["afterwards"] = side.shaping()
        seen.append(look)
    ours, theirs = seen
    assert ours == theirs
    assert ours["reached"] == [True] * 7
    assert ours["shaped"] == {80_000_000, 40_000_000}


def test_both_put_the_interface_back_when_only_tuning_is_deleted(sides: tuple[Side, Side]) -> None:
    for side in sides:
        network = side.list(TUNING)
        pod = side.container("c1", capabilities={"mac": "02:11:22:33:44:55"})
        plain_result = side.cni.add(side.list(), pod)
        before = link(side, pod)
        result = side.cni._run("ADD", network, TUNING, pod, plain_result)
        assert link(side, pod) != before
        side.cni._run("DEL", network, TUNING, pod, result)
        assert link(side, pod) == before


#: What both must say no to, and what only ours does: the reference plugin takes these and does something else, or nothing.
REFUSED_BY_BOTH: list[Json] = [
    {"type": "tuning", "sysctl": {"kernel.pid_max": "500"}},
    {"type": "tuning", "sysctl": {"net/../kernel/pid_max": "500"}},
    {"type": "tuning", "sysctl": {"net.nonsense": "1"}},
    {"type": "tuning", "sysctl": {"net.core.somaxconn": "junk"}},
    {"type": "tuning", "sysctl": {"net.core.somaxconn": 5}},
    {"type": "tuning", "mac": "zz"},
    {"type": "tuning", "mac": "01:00:5e:00:00:01"},
    {"type": "tuning", "mtu": 5},
    {"type": "bandwidth", "ingressRate": 80_000},
    {"type": "bandwidth", "ingressBurst": 80_000},
    {"type": "bandwidth", "ingressRate": -1, "ingressBurst": 1},
    {"type": "bandwidth", "ingressRate": 80_000, "ingressBurst": 1 << 40},
    {"type": "firewall", "ingressPolicy": "junk"},
    {"type": "firewall", "ingressPolicy": "isolated"},
    PORTMAP | {"given": {"hostPort": 0, "containerPort": 80, "protocol": "tcp"}},
    PORTMAP | {"given": {"hostPort": 8, "containerPort": 0, "protocol": "tcp"}},
    PORTMAP | {"given": {"hostPort": 8, "containerPort": 70000, "protocol": "tcp"}},
    PORTMAP | {"given": {"hostPort": 8, "containerPort": 80, "protocol": "foo"}},
    PORTMAP | {"given": {"hostPort": "8", "containerPort": 80, "protocol": "tcp"}},
    PORTMAP | {"given": {"hostPort": 8, "containerPort": 80, "protocol": "tcp"}, "markMasqBit": 40},
    PORTMAP | {"given": {"hostPort": 8, "containerPort": 80, "protocol": "tcp"}, "markMasqBit": 4, "externalSetMarkChain": "X"},
]


@pytest.mark.parametrize("plugin", REFUSED_BY_BOTH, ids=lambda plugin: json.dumps({k: v for k, v in plugin.items() if k != "capabilities"}))
def test_what_the_reference_plugins_refuse_is_refused(sides: tuple[Side, Side], plugin: Json) -> None:
    for side in sides:
        given = plugin.get("given")
        pod = side.container("c1", capabilities={"portMappings": [given]} if given else {})
        result = side.cni.add(side.list(), pod)
        with pytest.raises(CniError) as caught:
            side.cni._run("ADD", side.list(), {k: v for k, v in plugin.items() if k != "given"}, pod, result)
        assert caught.value.exit_code == 1
        assert caught.value.msg


IPAM: list[tuple[Json, Json]] = [
    ({"subnet": "10.1.0.0/24"}, {}),
    ({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20", "gateway": "10.1.0.254"}, {}),
    ({"subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16", "gw": "10.1.0.9"}]}, {}),
    ({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}, {}),
    ({"subnet": "10.1.0.0/24"}, {"arguments": {"IP": "10.1.0.77"}}),
    ({"subnet": "10.1.0.0/24"}, {"arguments": {"IgnoreUnknown": "1", "FOO": "x", "IP": "10.1.0.88/24"}}),
    ({"subnet": "10.1.0.0/24"}, {"capabilities": {"ips": ["10.1.0.99/24"]}}),
    ({"subnet": "10.1.0.0/24"}, {"capabilities": {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}}),
    ({"subnet": "10.1.0.0/24", "gateway": "10.1.0.2"}, {}),
    ({"subnet": "10.1.0.0/24"}, {"arguments": {"IP": "10.1.0.1"}}),
    ({"subnet": "10.1.0.0/24"}, {"arguments": {"IP": "10.2.0.1"}}),
    ({"subnet": "10.1.0.0/24"}, {"arguments": {"FOO": "x"}}),
    ({}, {}),
    ({"subnet": "10.1.0.5/24"}, {}),
    ({"subnet": "10.1.0.4/31"}, {}),
    ({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]}, {}),
    ({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/25"}]]}, {}),
    ({"subnet": "10.1.0.0/24", "resolvConf": "/nonsense"}, {}),
    ({"type": "static", "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}]}, {}),
    ({"type": "static", "addresses": [{"address": "10.1.0.5/24"}], "dns": {"nameservers": ["192.0.2.1"]}}, {}),
    ({"type": "static", "addresses": [{"address": "10.1.0.5/24"}]}, {"arguments": {"IP": "10.1.0.6/24", "GATEWAY": "10.1.0.1"}}),
    ({"type": "static", "addresses": [{"address": "10.1.0.5/24"}]}, {"capabilities": {"ips": ["10.1.0.8/24"]}}),
    ({"type": "static", "addresses": [{"address": "10.1.0.5"}]}, {}),
    ({"type": "static", "addresses": [{"address": "10.1.0.5/24"}]}, {"capabilities": {"ips": ["10.1.0.8"]}}),
]


@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.0.0"])
@pytest.mark.parametrize(("ipam", "asked"), IPAM, ids=json.dumps)
def test_the_ipam_plugins_answer_alike(sides: tuple[Side, Side], tmp_path: Path, ipam: Json, asked: Json, version: str) -> None:
    answers: list[list[Json | str]] = []
    for side in sides:
        section = {"type": "host-local", "dataDir": str(tmp_path / f"{side.name}-ipam")} | ipam
        plugin = {"type": section["type"], "capabilities": {"ips": True, "ipRanges": True}, "ipam": section}
        network = {"cniVersion": version, "name": "n1", "plugins": [plugin]}
        said: list[Json | str] = []
        for name in ("c1", "c2"):
            try:
                result = side.cni._run("ADD", network, plugin, Attachment(name, "/run/netns/none", **asked), None)
                said.append(result or {})
            except CniError as error:
                said.append(f"refused with exit code {error.exit_code}")
            else:
                side.cni._run("DEL", network, plugin, Attachment(name, "/run/netns/none"), None)
                side.cni._run("DEL", network, plugin, Attachment(name, "/run/netns/none"), None)
        answers.append(said)
    assert answers[0] == answers[1]


def test_the_plugins_name_a_namespace_that_is_not_there(sides: tuple[Side, Side]) -> None:
    for side in sides:
        with pytest.raises(CniError):
            side.cni.add(side.list(PORTMAP), Attachment("c1", "/run/netns/nowhere"))
        side.cni.delete(side.list(PORTMAP), Attachment("c1", "/run/netns/nowhere"))
