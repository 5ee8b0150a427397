"""The plugin `atoll`: one that does what others need a chain for, on networks that anybody may have made."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.kernel.cni_door import Attachment, CniError, Door

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from atoll import Engine

Json = dict[str, Any]

CAPABILITIES: Final = dict.fromkeys(("portMappings", "bandwidth", "ips", "ipRanges", "mac", "aliases", "dns"), True)


def web(**more: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "web", "plugins": [{"type": "atoll", "capabilities": CAPABILITIES, **more}]}


@pytest.fixture
def door(engine: Engine, tmp_path: Path) -> Door:
    return Door(engine, tmp_path / "door")


@pytest.fixture
def container(host: None) -> Callable[..., Attachment]:
    def make(name: str = "c1", **capabilities: Any) -> Attachment:
        subprocess.run(["ip", "netns", "add", name], check=True)
        return Attachment(name, f"/run/netns/{name}", capabilities=capabilities)

    return make


def ports(*mappings: tuple[str, int, int, str]) -> list[Json]:
    return [{"hostIP": host, "hostPort": outer, "containerPort": inner, "protocol": proto} for host, outer, inner, proto in mappings]


def test_it_joins_a_network_that_is_there(door: Door, container: Callable[..., Attachment]) -> None:
    door.engine.create_network("web", subnets=["10.7.0.0/24"], gateways=["10.7.0.254"])
    result = door.add(web(), container())
    assert result["ips"] == [{"address": "10.7.0.1/24", "gateway": "10.7.0.254", "interface": 2}]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.7.0.254"}]
    assert result["dns"] == {"nameservers": ["10.7.0.254"], "search": ["web.atoll"]}
    assert door.engine.state.network("web").labels == {}


def test_it_makes_the_network_that_is_described(door: Door, container: Callable[..., Attachment]) -> None:
    described = {"subnets": ["10.8.0.0/24", "fd08::/64"], "mtu": 1400, "icc": False, "isolation": "open", "labels": {"a": "b"}}
    result = door.add(web(network=described), container())
    assert [ip["address"] for ip in result["ips"]] == ["10.8.0.2/24", "fd08::2/64"]
    made = door.engine.state.network("web")
    assert (made.mtu, made.icc, made.isolation, made.labels) == (1400, False, "open", {"a": "b", "atoll.door": "cni"})
    again = door.add(web(network=described), container("c2"))
    assert again["ips"][0]["address"] == "10.8.0.3/24"


def test_a_network_with_other_addresses_is_refused(door: Door, container: Callable[..., Attachment]) -> None:
    door.engine.create_network("web", subnets=["10.7.0.0/24"])
    for described in ({"subnets": ["10.8.0.0/24"]}, {"gateways": ["10.7.0.9"]}, {"driver": "macvlan"}):
        with pytest.raises(CniError) as error:
            door.add(web(network=described), Attachment("c1", "/run/netns/c1"))
        assert error.value.code == 104
    with pytest.raises(CniError, match="unknown field") as error:
        door.add(web(network={"subnet": "10.8.0.0/24"}), container())
    assert error.value.code == 6


def test_ports_are_published_where_they_mean_something(door: Door, container: Callable[..., Attachment]) -> None:
    asked = ports(("", 8080, 80, "tcp"), ("127.0.0.1", 8081, 80, "TCP"), ("0.0.0.0", 5353, 53, "udp"), ("::", 5353, 53, "udp"))
    network, attachment = web(network={"subnets": ["10.8.0.0/24"]}), container(portMappings=asked)
    door.add(network, attachment)
    (endpoint,) = door.engine.state.owned("cni:c1/eth0")
    assert [str(port) for port in endpoint.ports] == ["8080:80/tcp", "127.0.0.1:8081:80/tcp", "0.0.0.0:5353:53/udp"]
    door.check(network, attachment)
    door.engine.unpublish("c1", ["8080:80"])
    with pytest.raises(CniError, match="8080"):
        door.check(network, attachment)
    with pytest.raises(CniError, match="8081"):
        door.add(network, container("c2", portMappings=ports(("", 8081, 80, "tcp"))))


def test_bandwidth_is_limited(door: Door, container: Callable[..., Attachment]) -> None:
    limits = {"ingressRate": 10_000_000, "ingressBurst": 1_000_000, "egressRate": 20_000_000, "egressBurst": 1_000_000}
    network, attachment = web(network={"subnets": ["10.8.0.0/24"]}), container(bandwidth=limits)
    door.add(network, attachment)
    (endpoint,) = door.engine.state.owned("cni:c1/eth0")
    assert (endpoint.ingress_rate, endpoint.egress_rate) == (10_000_000, 20_000_000)
    door.check(network, attachment)
    subprocess.run(["tc", "qdisc", "delete", "dev", endpoint.host_interface, "root"], check=True)
    with pytest.raises(CniError):
        door.check(network, attachment)


def test_names_addresses_and_mac_are_the_runtimes(door: Door, container: Callable[..., Attachment]) -> None:
    network = web(network={"subnets": ["10.8.0.0/24"]})
    asked = {"mac": "02:00:00:00:00:09", "ips": ["10.8.0.77/24"], "aliases": ["db", "cache"], "dns": {"servers": ["192.0.2.53"]}}
    result = door.add(network, container(**asked))
    assert result["ips"][0]["address"] == "10.8.0.77/24"
    (endpoint,) = door.engine.state.owned("cni:c1/eth0")
    assert (endpoint.mac, endpoint.aliases) == ("02:00:00:00:00:09", ("db", "cache"))
    assert door.engine.state.namespaces["c1"].servers == ("192.0.2.53",)
    assert result["dns"]["nameservers"] == ["10.8.0.1"]
    door.add(network, container("c2", aliases={"web": ["front"], "other": ["back"]}))
    assert door.engine.state.owned("cni:c2/eth0")[0].aliases == ("front",)


def test_ranges_are_the_runtimes(door: Door, container: Callable[..., Attachment]) -> None:
    ranges = [[{"subnet": "10.8.0.0/24", "rangeStart": "10.8.0.100", "rangeEnd": "10.8.0.101"}]]
    network = web(ipam={"type": "host-local"})
    given = [door.add(network, container(name, ipRanges=ranges))["ips"][0]["address"] for name in ("c1", "c2")]
    assert given == ["10.8.0.100/24", "10.8.0.101/24"]
    with pytest.raises(CniError) as error:
        door.add(network, container("c3", ipRanges=ranges))
    assert error.value.code == 107


def test_settings_are_made_and_put_back(door: Door, container: Callable[..., Attachment]) -> None:
    network = web(sysctl={"net.core.somaxconn": "512", "net/ipv4/conf/IFNAME/arp_filter": "1"}, network={"subnets": ["10.8.0.0/24"]})
    attachment = container()

    def setting(name: str) -> str:
        return subprocess.check_output(["ip", "netns", "exec", "c1", "cat", f"/proc/sys/net/{name}"], text=True).strip()

    before = setting("core/somaxconn")
    door.add(network, attachment)
    assert (setting("core/somaxconn"), setting("ipv4/conf/eth0/arp_filter")) == ("512", "1")
    door.check(network, attachment)
    door.delete(network, attachment)
    assert setting("core/somaxconn") == before
    with pytest.raises(CniError, match="net"):
        door.add(web(sysctl={"kernel.hostname": "x"}), attachment)
    assert not door.engine.state.endpoints


def test_an_internal_network_has_no_way_out(door: Door, container: Callable[..., Attachment]) -> None:
    door.add(web(network={"subnets": ["10.8.0.0/24"], "internal": True}), container())
    routes = json.loads(subprocess.check_output(["ip", "-n", "c1", "-j", "route"]))
    assert [route["dst"] for route in routes] == ["10.8.0.0/24"]


def test_one_chain_or_one_plugin_make_the_same(door: Door, container: Callable[..., Attachment]) -> None:
    """The same container by `atoll` and by the chain that it stands for."""
    ipam = {"type": "host-local", "subnet": "10.8.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
    chain = {
        "cniVersion": "1.1.0",
        "name": "chain",
        "plugins": [
            {"type": "bridge", "bridge": "cni8", "isGateway": True, "ipMasq": True, "ipam": ipam | {"subnet": "10.9.0.0/24"}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall"},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}},
        ],
    }
    single = web(ipam=ipam, sysctl={"net.core.somaxconn": "512"})
    made: list[Any] = []
    for number, network in enumerate((single, chain)):
        limits = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}
        attachment = container(f"c{number}", portMappings=ports(("", 8080 + number, 80, "tcp")), bandwidth=limits)
        door.add(network, attachment)
        door.check(network, attachment)
        (endpoint,) = door.engine.state.owned(f"cni:c{number}/eth0")
        made.append((endpoint.ingress_rate, endpoint.egress_rate, len(endpoint.ports), endpoint.tuning, endpoint.addresses[0][-4:]))
        door.delete(network, attachment)
    assert made[0] == made[1]
    assert not door.engine.state.endpoints


def test_a_configuration_that_was_changed_counts_as_soon_as_nobody_is_on_the_network(
    door: Door, container: Callable[..., Attachment]
) -> None:
    before, after = (web(network={"subnets": [subnet]}) for subnet in ("10.8.0.0/24", "10.9.0.0/24"))
    one, other = container("c1"), container("c2")
    door.add(before, one)
    with pytest.raises(CniError, match="other subnets"):
        door.add(after, other)
    door.delete(before, one)
    door.status(after)
    assert door.add(after, other)["ips"][0]["address"] == "10.9.0.2/24"


def test_an_mtu_is_each_containers_own(door: Door, container: Callable[..., Attachment]) -> None:
    described = {"subnets": ["10.8.0.0/24"]}
    results = [door.add(web(network=described, **said), container(name)) for name, said in (("c1", {}), ("c2", {"mtu": 1300}))]
    assert [result["interfaces"][-1]["mtu"] for result in results] == [1500, 1300]
    found = json.loads(subprocess.check_output(["ip", "-n", "c2", "-j", "link", "show", "eth0"]))
    assert found[0]["mtu"] == 1300
    with pytest.raises(CniError, match="out of range"):
        door.add(web(network=described, mtu=20), container("c3"))
    assert not door.engine.state.owned("cni:c3/eth0")


def test_dnsname_has_names_below_its_domain(door: Door, container: Callable[..., Attachment]) -> None:
    bridge = {"type": "bridge", "bridge": "cni9", "isGateway": True, "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}
    names = {"type": "dnsname", "domainName": "dns.podman", "capabilities": {"aliases": True}}
    network: Json = {"cniVersion": "1.0.0", "name": "shop", "plugins": [bridge, names]}
    attachment = container(aliases={"shop": ["front"], "other": ["back"]})
    result = door.add(network, attachment)
    assert result["dns"] == {"nameservers": ["10.9.0.1"], "domain": "dns.podman", "search": ["dns.podman"]}
    assert door.engine.state.network("shop").domains == ("dns.podman",)
    assert door.engine.state.owned("cni:c1/eth0")[0].aliases == ("front",)
    door.check(network, attachment)
    door.engine.set_aliases("shop", "c1", [])
    with pytest.raises(CniError, match="front"):
        door.check(network, attachment)
    door.delete(network, attachment)
    door.engine.remove_network("shop")
    with pytest.raises(CniError, match="no gateway"):
        door.add({**network, "plugins": [{**bridge, "isGateway": False}, names]}, attachment)
