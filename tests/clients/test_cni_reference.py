"""Atoll's CNI plugins and the reference ones on the same configurations: the same results, and the same inside the container."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from atoll.lab.machine import Machine, wire
from tests.clients.cni_runtime import Attachment, CniError, Runtime, run_file
from tests.clients.neighbours_host import need
from tests.kernel.cni_door import Door

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from atoll import Engine

FOLDER: Final = "/usr/lib/cni"

Json = dict[str, Any]


class Pair:
    """Two hosts, each with a container `c1`: Atoll's, which the test's thread is on, and the reference plugins'."""

    def __init__(self, engine: Engine, machine: Machine, folder: Path) -> None:
        self._machine, self._folder = machine, folder
        self.ours = Door(engine, folder / "door")
        self.theirs = Runtime([FOLDER], folder / "reference", execute=self._run)
        subprocess.run(["ip", "netns", "add", "ours"], check=True)
        subprocess.run(["ip", "netns", "add", "theirs"], check=True)

    def _run(self, program: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
        return self._machine.run(lambda: run_file(program, environment, stdin))

    def add(self, plugin: Json, version: str = "1.0.0", **more: Any) -> tuple[Json, Json]:
        """The results, with what must differ taken out, after a look at what is inside both containers."""
        name = more.pop("name", "n1")
        network = {"cniVersion": version, "name": name, "plugins": [plugin]}
        reference = {"cniVersion": version, "name": name, "plugins": [self._apart(plugin)]}
        mine = self.ours.add(network, Attachment("c1", "/run/netns/ours", **more))
        other = self.theirs.add(reference, Attachment("c1", "/run/netns/theirs", **more))
        return plain(mine), plain(other)

    def delete(self, plugin: Json, version: str = "1.0.0", **more: Any) -> None:
        network = {"cniVersion": version, "name": "n1", "plugins": [plugin]}
        self.ours.delete(network, Attachment("c1", "/run/netns/ours", **more))
        self.theirs.delete(network | {"plugins": [self._apart(plugin)]}, Attachment("c1", "/run/netns/theirs", **more))

    def _apart(self, plugin: Json) -> Json:
        """host-local's files in a folder of the test's, never in the machine's /var/lib/cni."""
        return {
            key: value | {"dataDir": str(self._folder / "leases")} if key.lower() == "ipam" and value else value
            for key, value in plugin.items()
        }


@pytest.fixture
def pair(engine: Engine, tmp_path: Path) -> Iterator[Pair]:
    need(f"{FOLDER}/bridge", f"{FOLDER}/host-local")
    with Machine("reference") as machine:
        yield Pair(engine, machine, tmp_path)


def plain(result: Json) -> Json:
    """A result without the names and MAC addresses that are chosen anew each time, and in one order."""
    for interface in result.get("interfaces", ()):
        if not interface.get("sandbox"):
            interface["name"] = "veth" if interface["name"].startswith(("veth", "atv")) else interface["name"]
            interface.pop("mac")
        else:
            interface["sandbox"] = "/run/netns/c1"
            if not interface["mac"].startswith("02:00:00"):
                interface.pop("mac")
    return result


def inside(name: str) -> Json:
    """What a container has: its interfaces, addresses and routes."""
    found: Json = {}
    for link in _ip(name, "address"):
        if link["ifname"] != "lo":
            addresses = {f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["scope"] != "link"}
            found[link["ifname"]] = (link["mtu"], "UP" in link["flags"], addresses)
    routes = [*_ip(name, "route"), *_ip(name, "-6", "route")]
    found["routes"] = {
        (route["dst"], route.get("gateway", ""), route["dev"]) for route in routes if not _is_link_local(route["dst"]) and "dev" in route
    }
    return found


def _ip(name: str, *words: str) -> list[Json]:
    out = subprocess.run(["ip", "-n", name, "-j", *words], check=True, capture_output=True, text=True).stdout
    return list(json.loads(out or "[]"))


def _is_link_local(text: str) -> bool:
    return text != "default" and (ipaddress.ip_network(text).is_link_local or ipaddress.ip_network(text).is_multicast)


def local(*subnets: str, **more: Any) -> Json:
    return {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in subnets], **more}


DEFAULT: Final = [{"dst": "0.0.0.0/0"}]
BRIDGE: Final = {"type": "bridge", "bridge": "br9", "isGateway": True}
CASES: Final[dict[str, tuple[Json, Json]]] = {
    "plain": (BRIDGE | {"ipam": local("10.5.0.0/24")}, {}),
    "no gateway": ({"type": "bridge", "bridge": "br9", "ipam": local("10.5.0.0/24")}, {}),
    "default route": (BRIDGE | {"ipam": local("10.5.0.0/24", routes=DEFAULT)}, {}),
    "default gateway": ({"type": "bridge", "bridge": "br9", "isDefaultGateway": True, "ipam": local("10.5.0.0/24")}, {}),
    "both families": (BRIDGE | {"ipam": local("10.5.0.0/24", "fd05::/64", routes=[*DEFAULT, {"dst": "::/0"}])}, {}),
    "both families, one default route": (BRIDGE | {"ipam": local("10.5.0.0/24", "fd05::/64", routes=DEFAULT)}, {}),
    "only IPv6": (BRIDGE | {"ipam": local("fd05::/64", routes=[{"dst": "::/0"}])}, {}),
    "routes by others": (BRIDGE | {"ipam": local("10.5.0.0/24", routes=[*DEFAULT, {"dst": "10.77.0.0/16", "gw": "10.5.0.9"}])}, {}),
    "routes by the gateway": (BRIDGE | {"ipam": local("10.5.0.0/24", routes=[{"dst": "10.77.0.0/16"}])}, {}),
    "default route by another": (BRIDGE | {"ipam": local("10.5.0.0/24", routes=[{"dst": "0.0.0.0/0", "gw": "10.5.0.9"}])}, {}),
    "the old form": (BRIDGE | {"ipam": {"type": "host-local", "subnet": "10.5.0.0/24", "rangeStart": "10.5.0.50"}}, {}),
    "a range": (
        BRIDGE
        | {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24", "rangeStart": "10.5.0.50", "rangeEnd": "10.5.0.60"}]]}},
        {},
    ),
    "another gateway": (
        BRIDGE | {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24", "gateway": "10.5.0.254"}]], "routes": DEFAULT}},
        {},
    ),
    "two sets of one family": ({"type": "bridge", "bridge": "br9", "ipam": local("10.5.0.0/24", "10.6.0.0/24")}, {}),
    "mtu": (BRIDGE | {"mtu": 1400, "ipam": local("10.5.0.0/24")}, {}),
    "masquerade": (BRIDGE | {"ipMasq": True, "ipam": local("10.5.0.0/24", routes=DEFAULT)}, {}),
    "hairpin": (BRIDGE | {"hairpinMode": True, "ipam": local("10.5.0.0/24")}, {}),
    "keys in another case": (BRIDGE | {"ISGateway": True, "IPAM": local("10.5.0.0/24"), "Mtu": 1300}, {}),
    "dns of the configuration": (
        BRIDGE | {"dns": {"nameservers": ["10.9.9.9"], "domain": "x.y", "search": ["x.y"]}, "ipam": local("10.5.0.0/24")},
        {},
    ),
    "an address that is asked for": (BRIDGE | {"ipam": local("10.5.0.0/24")}, {"arguments": {"IP": "10.5.0.77", "IgnoreUnknown": "1"}}),
    "an address by capability": (
        BRIDGE | {"capabilities": {"ips": True}, "ipam": local("10.5.0.0/24")},
        {"capabilities": {"ips": ["10.5.0.78/24"]}},
    ),
    "ranges by capability": (
        BRIDGE | {"capabilities": {"ipRanges": True}, "ipam": {"type": "host-local", "routes": DEFAULT}},
        {"capabilities": {"ipRanges": [[{"subnet": "10.8.0.0/24"}]]}},
    ),
    "mac by capability": (
        BRIDGE | {"capabilities": {"mac": True}, "ipam": local("10.5.0.0/24")},
        {"capabilities": {"mac": "02:00:00:00:00:07"}},
    ),
    "mac by argument": (BRIDGE | {"ipam": local("10.5.0.0/24")}, {"arguments": {"MAC": "02:00:00:00:00:08", "IgnoreUnknown": "1"}}),
    "static": (
        BRIDGE
        | {
            "ipam": {
                "type": "static",
                "addresses": [{"address": "10.5.0.5/24", "gateway": "10.5.0.1"}, {"address": "fd05::5/64", "gateway": "fd05::1"}],
                "routes": [*DEFAULT, {"dst": "::/0"}],
            }
        },
        {},
    ),
    "static without gateway": (BRIDGE | {"ipam": {"type": "static", "addresses": [{"address": "10.5.0.5/24"}]}}, {}),
    "another interface": (BRIDGE | {"ipam": local("10.5.0.0/24")}, {"interface": "net1"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bridge_is_the_same(pair: Pair, case: str) -> None:
    plugin, more = CASES[case]
    ours, theirs = pair.add(plugin, **more)
    assert ours == theirs
    assert inside("ours") == inside("theirs")
    pair.delete(plugin, **more)
    assert inside("ours") == inside("theirs") == {"routes": set()}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_each_version_has_the_same_form(pair: Pair, version: str) -> None:
    plugin = BRIDGE | {"ipam": local("10.5.0.0/24", "fd05::/64", routes=[*DEFAULT, {"dst": "::/0"}])}
    ours, theirs = pair.add(plugin, version)
    assert ours == theirs
    pair.delete(plugin, version)


def test_resolv_conf_is_read_the_same(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text(
        "# by hand\nnameserver 10.0.0.1\nnameserver 10.0.0.2\ndomain a.b\nsearch c.d e.f\noptions ndots:2 rotate\n; and this\n"
    )
    ours, theirs = pair.add({"type": "ptp", "ipam": local("10.5.0.0/24", resolvConf=str(tmp_path / "resolv.conf"))})
    assert ours == theirs
    assert ours["dns"]["nameservers"] == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("more", [{}, {"mtu": 1400}, {"ipMasq": True}], ids=str)
def test_ptp_has_the_same_result_and_addresses(pair: Pair, more: Json) -> None:
    """Its routes differ: those of the reference plugin lead to the container's neighbours through the host."""
    need(f"{FOLDER}/ptp")
    plugin = {"type": "ptp", "ipam": local("10.5.0.0/24", routes=DEFAULT), **more}
    ours, theirs = pair.add(plugin)
    assert ours == theirs
    mine, other = inside("ours"), inside("theirs")
    assert mine["eth0"] == other["eth0"]
    assert ("default", "10.5.0.1", "eth0") in mine["routes"] & other["routes"]
    pair.delete(plugin)
    assert inside("ours") == inside("theirs") == {"routes": set()}


@pytest.mark.parametrize("more", [{}, {"mode": "private"}, {"mtu": 1400}, {"mode": "vepa"}], ids=str)
def test_macvlan_is_the_same(pair: Pair, more: Json) -> None:
    need(f"{FOLDER}/macvlan")
    wire("eth5", pair._machine, "eth5")
    for host in (lambda function: function(), pair._machine.run):
        host(lambda: subprocess.run(["ip", "link", "set", "eth5", "up"], check=True))
    plugin = {"type": "macvlan", "master": "eth5", "ipam": local("10.5.0.0/24", routes=DEFAULT), **more}
    ours, theirs = pair.add(plugin)
    assert ours == theirs
    assert inside("ours") == inside("theirs")
    pair.delete(plugin)
    assert inside("ours") == inside("theirs") == {"routes": set()}


def test_loopback_is_the_same(pair: Pair) -> None:
    plugin = {"type": "loopback"}
    ours, theirs = pair.add(plugin, interface="lo")
    assert ours == theirs
    assert _ip("ours", "address") == _ip("theirs", "address")
    pair.delete(plugin, interface="lo")
    assert _ip("ours", "address") == _ip("theirs", "address")


@pytest.mark.parametrize(
    "plugin",
    [
        BRIDGE | {"ipam": {"type": "host-local"}},
        BRIDGE | {"ipam": local("10.5.0.1/24")},
        BRIDGE | {"ipam": local("10.5.0.0/31")},
        BRIDGE | {"ipam": local("10.5.0.0/24", "10.5.0.0/25")},
        BRIDGE | {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24", "rangeStart": "10.6.0.1"}]]}},
        BRIDGE | {"ipam": {"type": "static"}},
        BRIDGE | {"ipam": {"type": "static", "addresses": [{"address": "10.5.0.5"}]}},
        BRIDGE | {"hairpinMode": True, "promiscMode": True, "ipam": local("10.5.0.0/24")},
        BRIDGE | {"isGateway": "yes", "ipam": local("10.5.0.0/24")},
        BRIDGE | {"mtu": "1500", "ipam": local("10.5.0.0/24")},
    ],
    ids=str,
)
def test_both_refuse_the_same(pair: Pair, plugin: Json) -> None:
    network = {"cniVersion": "1.0.0", "name": "n1", "plugins": [plugin]}
    with pytest.raises(CniError):
        pair.ours.add(network, Attachment("c1", "/run/netns/ours"))
    with pytest.raises(CniError):
        pair.theirs.add(network, Attachment("c1", "/run/netns/theirs"))


def test_containers_from_before_go_on_and_their_addresses_are_kept(engine: Engine, tmp_path: Path) -> None:
    """The switch: the reference plugin has made c1; then Atoll has its place, and makes c2 on the same bridge."""
    need(f"{FOLDER}/bridge", f"{FOLDER}/host-local", "ping")
    plugin = BRIDGE | {"ipam": local("10.5.0.0/24", routes=DEFAULT, dataDir=str(tmp_path / "leases"))}
    network = {"cniVersion": "1.0.0", "name": "n1", "plugins": [plugin]}
    theirs, ours = Runtime([FOLDER], tmp_path / "results"), Door(engine, tmp_path)
    containers = {name: Attachment(name, f"/run/netns/{name}") for name in ("c0", "c1", "c2")}
    for name in containers:
        subprocess.run(["ip", "netns", "add", name], check=True)
    for name in ("c0", "c1"):
        theirs.add(network, containers[name])
    # One from before the last boot, that nobody will ever delete.
    stale = tmp_path / "leases" / "n1" / "10.5.0.2"
    os.utime(stale, (1, 1))
    results = [ours.add(network, containers["c2"])]
    addresses = [result["ips"][0]["address"].partition("/")[0] for result in results]
    assert addresses == ["10.5.0.2"], "a stale lease holds nothing, and 10.5.0.3 is c1's"
    assert engine.state.holds == {(engine.state.network("n1").id, "10.5.0.3"): "cni:c1/eth0"}
    for name, address in (("c1", "10.5.0.1"), ("c2", "10.5.0.1"), ("c2", "10.5.0.3"), ("c1", "10.5.0.2")):
        subprocess.run(["ip", "netns", "exec", name, "ping", "-q", "-c", "1", "-W", "2", address], check=True, capture_output=True)
    ours.delete(network, containers["c1"])
    assert not engine.state.holds
