"""Podman's front door on a real engine: what netavark is told, and what is so afterwards."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from atoll import Engine
from atoll.frontends import netavark
from atoll.frontends.call import Answer, Call
from atoll.frontends.netavark import helpers
from tests.podman_calls import call, container, done, end, namespace, network, port, refused
from tests.support import Inside, ip

if TYPE_CHECKING:
    from pathlib import Path

    from atoll.model import Endpoint

DUAL: dict[str, Any] = {
    "subnets": [{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}, {"subnet": "fd89::/64", "gateway": "fd89::1"}],
    "ipv6_enabled": True,
}
TWO: dict[str, Any] = {"subnets": [{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}, {"subnet": "10.89.9.0/24", "gateway": "10.89.9.1"}]}


def inside(engine: Engine, *argv: str, name: str = "c1") -> str:
    """What `ip` says in a container."""
    return Inside(engine, name).run(lambda: subprocess.run(["ip", *argv], capture_output=True, text=True, check=True).stdout)


def host_links(engine: Engine) -> set[str]:
    return set(engine.links())


def only(engine: Engine) -> Endpoint:
    (endpoint,) = engine.state.endpoints.values()
    return endpoint


def nothing_is_left(engine: Engine) -> None:
    engine.settle()
    assert not engine.state.namespaces
    assert not engine.state.networks
    assert host_links(engine) <= {"lo", "parent0", "parent1"}
    assert not engine.differences()


@pytest.fixture
def parent(engine: Engine) -> Engine:
    """With an interface by which the host's default route leads."""
    ip(
        Inside(engine),
        "link add parent0 type veth peer name parent1",
        "link set parent0 up",
        "link set parent1 up",
        "address add 198.51.100.1/24 dev parent0",
        "route add default via 198.51.100.9",
    )
    return engine


@pytest.fixture(autouse=True)
def nobody_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a netavark."""
    monkeypatch.setattr(helpers, "DEFAULT_FOLDERS", ())
    monkeypatch.setattr(helpers, "CONFIGURATION", str(tmp_path / "containers.conf"))


# --- the way there and back ----------------------------------------------------------------------------------------------------------


def test_setup_and_teardown(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    asked = container((network(), {"static_ips": ["10.89.0.2"]}), port_mappings=[port(8080)])
    answer = done(call(engine, "setup", path, body=asked))
    interface = {"mac_address": only(engine).mac, "subnets": [{"ipnet": "10.89.0.2/24", "gateway": "10.89.0.1"}]}
    assert answer == {"web": {"dns_search_domains": [], "dns_server_ips": [], "interfaces": {"eth0": interface}}}
    assert engine.state.network("web").bridge in host_links(engine)
    assert only(engine).owner == f"podman:{1:064x}"
    for _ in range(2):
        assert call(engine, "teardown", path, body=asked) == Answer()
        nothing_is_left(engine)


def test_a_map_and_a_list_mean_the_same_and_a_list_has_an_order(engine: Engine, tmp_path: Path) -> None:
    infos = network("b"), network("a", "10.89.1.0/24", "10.89.1.1")
    said = {"static_ips": ["10.89.0.2"], "interface_name": "eth0"}, {"static_ips": ["10.89.1.2"], "interface_name": "eth1"}
    answers = []
    for number, (as_list, pairs) in enumerate(
        [(False, [(0, 0), (1, 1)]), (False, [(1, 1), (0, 0)]), (True, [(0, 0), (1, 1)]), (True, [(1, 1), (0, 0)])]
    ):
        asked = container(*((infos[info], said[per]) for info, per in pairs), as_list=as_list)
        path = namespace(tmp_path, f"n{number}")
        answers.append(done(call(engine, "setup", path, body=asked)))
        numbers = [endpoint.interface for endpoint in sorted(engine.state.endpoints.values(), key=lambda endpoint: endpoint.number)]
        assert numbers == (["eth1", "eth0"] if number == 3 else ["eth0", "eth1"])
        call(engine, "teardown", path, body=asked)
    for answer in answers:
        for status in answer.values():
            for interface in status["interfaces"].values():
                interface.pop("mac_address")
    assert answers[0] == answers[1] == answers[2] == answers[3]


@pytest.mark.parametrize(
    ("info", "per", "commands"),
    [
        ({"options": {"mtu": "1400"}}, {}, {"link show eth0": ["mtu 1400"]}),
        ({"options": {"metric": "200"}}, {}, {"route": ["default via 10.89.0.1 dev eth0 proto 167 metric 200"]}),
        ({}, {}, {"route": ["default via 10.89.0.1 dev eth0 proto 167 metric 100"], "link show lo": ["UP"]}),
        ({"options": {"no_default_route": "true"}}, {}, {"route": ["!default"]}),
        ({"internal": True}, {}, {"route": ["!default"]}),
        ({}, {"static_mac": "92-D0-C6-0A-29-33"}, {"link show eth0": ["92:d0:c6:0a:29:33"]}),
        ({}, {"interface_name": "net7"}, {"addr show net7": ["10.89.0.2/24"]}),
        (
            DUAL,
            {"static_ips": ["10.89.0.2", "fd89::2"]},
            {"addr show eth0": ["10.89.0.2/24", "fd89::2/64"], "-6 route": ["default via fd89::1"]},
        ),
        (
            {"subnets": [{"subnet": "fd89::/64", "gateway": "fd89::1"}], "ipv6_enabled": True},
            {"static_ips": ["fd89::2"]},
            {"addr show eth0": ["fd89::2/64", "!inet "]},
        ),
        (TWO, {"static_ips": ["10.89.9.2", "10.89.0.2"]}, {"addr show eth0": ["10.89.0.2/24", "10.89.9.2/24"]}),
        ({}, {"static_ips": ["10.89.0.2", "10.89.0.3"]}, {"addr show eth0": ["10.89.0.2/24", "10.89.0.3/24"]}),
        (
            {
                "routes": [
                    {"destination": "10.91.0.0/24", "gateway": "10.89.0.9"},
                    {"destination": "10.92.0.0/24", "gateway": "10.89.0.9", "metric": 7},
                    {"destination": "10.93.0.0/24", "route_type": "blackhole"},
                    {"destination": "10.94.0.0/24", "route_type": "unreachable"},
                    {"destination": "10.95.0.0/24", "route_type": "prohibit", "metric": 3},
                ]
            },
            {},
            {
                "route": [
                    "10.91.0.0/24 via 10.89.0.9 dev eth0 proto 167 metric 100",
                    "10.92.0.0/24 via 10.89.0.9 dev eth0 proto 167 metric 7",
                    "blackhole 10.93.0.0/24 proto 167 metric 100",
                    "unreachable 10.94.0.0/24 proto 167 metric 100",
                    "prohibit 10.95.0.0/24 proto 167 metric 3",
                ]
            },
        ),
    ],
)
def test_options_of_bridge_networks(
    engine: Engine, tmp_path: Path, info: dict[str, Any], per: dict[str, Any], commands: dict[str, list[str]]
) -> None:
    asked = container((network(**info), {"static_ips": ["10.89.0.2"], **per}))
    path = namespace(tmp_path)
    done(call(engine, "setup", path, body=asked))
    for command, expected in commands.items():
        shown = inside(engine, *command.split())
        for words in expected:
            assert (words.removeprefix("!") in shown) != words.startswith("!"), (words, shown)
    assert not engine.differences()
    call(engine, "teardown", path, body=asked)
    nothing_is_left(engine)


@pytest.mark.parametrize(
    ("info", "field", "value"),
    [
        ({"options": {"isolate": "false"}}, "isolation", "open"),
        ({"options": {"isolate": "true"}}, "isolation", "isolated"),
        ({"options": {"isolate": "strict"}}, "isolation", "strict"),
        ({}, "isolation", "strict"),
        ({"options": {"outbound_addr4": "198.51.100.7"}}, "snat", ("198.51.100.7",)),
        (DUAL | {"options": {"outbound_addr6": "2001:DB8::7"}}, "snat", ("2001:db8::7",)),
        ({"dns_enabled": True, "network_dns_servers": ["192.0.2.53", "192.0.2.54"]}, "servers", ("192.0.2.53", "192.0.2.54")),
        ({"dns_enabled": True}, "domains", ("dns.podman",)),
        ({"labels": {"a": "b"}}, "labels", {"a": "b", "atoll.door": "podman"}),
    ],
)
def test_options_that_are_the_networks(engine: Engine, tmp_path: Path, info: dict[str, Any], field: str, value: object) -> None:
    said = {"static_ips": ["10.89.0.2", *(["fd89::2"] if "ipv6_enabled" in info else [])]}
    done(call(engine, "setup", namespace(tmp_path), body=container((network(**info), said))))
    assert getattr(engine.state.network("web"), field) == value


def test_what_a_container_is_told_of_names(engine: Engine, tmp_path: Path) -> None:
    info = network(dns_enabled=True, **DUAL)
    per = {"static_ips": ["10.89.0.2", "fd89::2"], "aliases": ["ok", "space 1", "comma,1", "newline\n2", "x" * 300, "c1"]}
    asked = container((info, per), dns_servers=["192.0.2.53", "192.0.2.54", "192.0.2.55", "192.0.2.56"])
    answer = done(call(engine, "setup", namespace(tmp_path), body=asked))["web"]
    assert answer["dns_search_domains"] == ["dns.podman"]
    assert answer["dns_server_ips"] == ["10.89.0.1", "fd89::1"]
    assert only(engine).aliases == ("c1", "ok")
    assert engine.state.namespace("c1").servers == ("192.0.2.53", "192.0.2.54", "192.0.2.55")


def test_without_names_a_containers_own_servers_are_echoed(engine: Engine, tmp_path: Path) -> None:
    asked = container((network(), {"static_ips": ["10.89.0.2"]}), dns_servers=["192.0.2.53"])
    answer = done(call(engine, "setup", namespace(tmp_path), body=asked))["web"]
    assert answer["dns_search_domains"] == []
    assert answer["dns_server_ips"] == ["192.0.2.53"]


@pytest.mark.parametrize(
    ("driver", "mode", "shown"),
    [
        ("macvlan", "", "macvlan mode bridge"),
        ("macvlan", "private", "macvlan mode private"),
        ("macvlan", "vepa", "macvlan mode vepa"),
        ("macvlan", "passthru", "macvlan mode passthru"),
        ("ipvlan", "", "ipvlan  mode l2"),
        ("ipvlan", "l3", "ipvlan  mode l3"),
        ("ipvlan", "l3s", "ipvlan  mode l3s"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_macvlan_and_ipvlan(parent: Engine, tmp_path: Path, driver: str, mode: str, shown: str, named: bool) -> None:
    """Without a parent the interface of the default route is it, as with netavark."""
    options = {"mtu": "1300", "metric": "55", **({"mode": mode} if mode else {})}
    info = network(driver=driver, network_interface="parent0" if named else ..., options=options)
    asked = container((info, {"static_ips": ["10.89.0.2"]}))
    path = namespace(tmp_path)
    said = call(parent, "setup", path, body=asked)
    if b"this kernel has no" in said.stdout:
        pytest.skip(f"this kernel has no {driver}")
    answer = done(said)
    found = inside(parent, "-d", "link", "show", "eth0")
    assert shown in found
    assert "mtu 1300" in found
    assert answer["web"]["interfaces"]["eth0"]["mac_address"] in found
    assert "metric 55" in inside(parent, "route") or mode in ("l3", "l3s")
    assert not parent.differences()
    call(parent, "teardown", path, body=asked)
    nothing_is_left(parent)


def test_without_ipam_a_container_finds_its_own_addresses(engine: Engine, tmp_path: Path) -> None:
    info = network(subnets=..., ipam_options={"driver": "none"})
    asked = container((info, {}))
    path = namespace(tmp_path)
    answer = done(call(engine, "setup", path, body=asked))
    assert answer["web"]["interfaces"]["eth0"]["subnets"] == []
    other = namespace(tmp_path, "other")
    done(call(engine, "setup", other, body=container((info, {}), number=2)))
    for number in (1, 2):
        inside(engine, "address", "add", f"10.55.0.{number}/24", "dev", "eth0", name=f"c{number}")
    ping = ["ping", "-c", "1", "-W", "2", "10.55.0.2"]
    assert Inside(engine, "c1").run(lambda: subprocess.run(ping, stdout=subprocess.DEVNULL, check=False)).returncode == 0


def test_an_unmanaged_bridge_stays_as_it_is(engine: Engine, tmp_path: Path) -> None:
    info = network(options={"mode": "unmanaged"}, network_interface="br7", dns_enabled=True)
    asked = container((info, {"static_ips": ["10.89.0.2"]}), dns_servers=["192.0.2.53"])
    path = namespace(tmp_path)
    assert refused(call(engine, "setup", path, body=asked)).startswith("in unmanaged mode, the bridge must already exist on the host")
    ip(Inside(engine), "link add br7 type bridge", "link set br7 up")
    answer = done(call(engine, "setup", path, body=asked))
    assert answer["web"]["dns_server_ips"] == ["192.0.2.53"]
    assert "10.89.0.1" not in inside(engine, "address", name="")
    assert "default via 10.89.0.1 dev eth0" in inside(engine, "route")
    done(call(engine, "teardown", path, body=asked))
    assert host_links(engine) == {"lo", "br7"}
    assert not engine.state.networks


def test_a_network_without_a_gateway_leaves_all_addresses_to_podman(engine: Engine, tmp_path: Path) -> None:
    asked = container((network(internal=True, subnets=[{"subnet": "10.89.0.0/24"}]), {"static_ips": ["10.89.0.1"]}))
    answer = done(call(engine, "setup", namespace(tmp_path), body=asked))
    assert answer["web"]["interfaces"]["eth0"]["subnets"] == [{"ipnet": "10.89.0.1/24", "gateway": None}]


def test_a_bridge_that_netavark_made_goes_with_its_last_port(engine: Engine, tmp_path: Path) -> None:
    ip(
        Inside(engine),
        "link add podman0 type bridge",
        "address add 10.89.0.1/24 dev podman0",
        "link set podman0 up",
        "link add old type veth peer name older",
        "link set old master podman0 up",
    )
    asked = container((network(network_interface="podman0"), {"static_ips": ["10.89.0.2"]}))
    path = namespace(tmp_path)
    done(call(engine, "setup", path, body=asked))
    done(call(engine, "teardown", path, body=asked))
    assert host_links(engine) == {"lo", "podman0", "old", "older"}
    done(call(engine, "setup", path, body=asked))
    ip(Inside(engine), "link delete old")
    done(call(engine, "teardown", path, body=asked))
    assert host_links(engine) == {"lo"}


# --- ports ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        (port(8080), ["8080:80/tcp"]),
        (port(8080, range=0), ["8080:80/tcp"]),
        (port(8080, protocol=""), ["8080:80/tcp"]),
        (port(8080, protocol="udp"), ["8080:80/udp"]),
        (port(8080, protocol="sctp"), ["8080:80/sctp"]),
        (port(8080, protocol="tcp,udp"), ["8080:80/tcp", "8080:80/udp"]),
        (port(8080, protocol="TCP, udp,tcp"), ["8080:80/tcp", "8080:80/udp"]),
        (port(8080, 8080, range=100), ["8080-8179:8080-8179/tcp"]),
        (port(8080, 80, range=3), ["8080-8082:80-82/tcp"]),
        (port(8080, host_ip="0.0.0.0"), ["0.0.0.0:8080:80/tcp"]),
        (port(8080, host_ip="::"), ["[::]:8080:80/tcp"]),
        (port(8080, host_ip="127.0.0.1"), ["127.0.0.1:8080:80/tcp"]),
        (port(8080, host_ip="2001:DB8::1"), ["[2001:db8::1]:8080:80/tcp"]),
        (port(1, 1, range=65535), ["1-65535:1-65535/tcp"]),
    ],
)
def test_port_mappings(engine: Engine, tmp_path: Path, mapping: dict[str, Any], expected: list[str]) -> None:
    asked = container((network(**DUAL), {"static_ips": ["10.89.0.2", "fd89::2"]}), port_mappings=[mapping])
    done(call(engine, "setup", namespace(tmp_path), body=asked))
    assert list(map(str, only(engine).ports)) == expected


def test_each_family_is_published_on_the_first_network_that_has_it(engine: Engine, tmp_path: Path) -> None:
    v6 = network("six", subnets=[{"subnet": "fd90::/64", "gateway": "fd90::1"}], ipv6_enabled=True)
    inner = network("inner", "10.90.0.0/24", "10.90.0.1", internal=True)
    asked = container(
        (inner, {"static_ips": ["10.90.0.2"]}),
        (network(), {"static_ips": ["10.89.0.2"]}),
        (v6, {"static_ips": ["fd90::2"]}),
        port_mappings=[port(8080), port(8081, host_ip="::1"), port(8082, host_ip="0.0.0.0")],
    )
    done(call(engine, "setup", namespace(tmp_path), body=asked))
    found = {engine.state.network(endpoint.network).name: sorted(map(str, endpoint.ports)) for endpoint in engine.state.endpoints.values()}
    assert found == {
        "inner": [],
        "web": ["0.0.0.0:8080:80/tcp", "0.0.0.0:8082:80/tcp"],
        "six": ["[::1]:8081:80/tcp", "[::]:8080:80/tcp"],
    }


def test_a_mapping_on_an_address_of_a_family_that_is_not_there_is_left_out(engine: Engine, tmp_path: Path) -> None:
    asked = container((network(), {"static_ips": ["10.89.0.2"]}), port_mappings=[port(8080, host_ip="::1"), port(8081)])
    done(call(engine, "setup", namespace(tmp_path), body=asked))
    assert list(map(str, only(engine).ports)) == ["8081:80/tcp"]


# --- failing -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "per", "changes", "error"),
    [
        ({"options": {"vrf": "red"}}, {}, {}, "network web: Atoll puts no bridge into a VRF; leave out the option vrf"),
        ({"options": {"vlan": "7"}}, {}, {}, "network web: Atoll tags no bridge ports; use a macvlan network on a VLAN interface"),
        (
            {},
            {"options": {"host_interface_name": "x"}},
            {},
            "network web: interfaces of the host have Atoll's names; leave out host_interface_name",
        ),
        (
            {"options": {"mode": "unmanaged"}, **DUAL},
            {},
            {},
            "network web: an unmanaged bridge has no IPv6 here; leave out its IPv6 subnets",
        ),
        ({"options": {"mtu": "many"}}, {}, {}, 'unable to parse "mtu": invalid digit found in string'),
        ({"options": {"isolate": "maybe"}}, {}, {}, 'invalid isolate option "maybe"'),
        ({"options": {"mode": "maybe"}}, {}, {}, 'invalid bridge mode "maybe"'),
        ({"options": {"metric": "-1"}}, {}, {}, 'unable to parse "metric": invalid digit found in string'),
        ({"options": {"no_default_route": "yes"}}, {}, {}, 'unable to parse "no_default_route": provided string was not `true` or `false`'),
        ({"options": {"outbound_addr4": "::1"}}, {}, {}, 'unable to parse "outbound_addr4": invalid IPv4 address syntax'),
        (
            {"ipam_options": {"driver": "dhcp"}},
            {},
            {},
            "network web: Atoll asks no DHCP server; create it with --subnet, or with --ipam-driver none",
        ),
        ({"ipam_options": {"driver": "magic"}}, {}, {}, "unsupported ipam driver magic"),
        ({"network_interface": ...}, {}, {}, "no bridge interface name given"),
        ({"driver": "macvlan", "options": {"bclim": "7"}}, {}, {}, "network web: Atoll knows no bclim; leave out the option bclim"),
        ({"driver": "macvlan", "options": {"mode": "maybe"}}, {}, {}, 'invalid macvlan mode "maybe"'),
        ({"driver": "ipvlan", "options": {"mode": "bridge"}}, {}, {}, 'invalid ipvlan mode "bridge"'),
        ({"name": "host"}, {}, {}, "a network named host exists; choose another name"),
        ({"subnets": [{"subnet": "10.89.0.0/24"}, {"subnet": "10.89.0.0/24"}]}, {}, {}, "duplicate subnet defined: 10.89.0.0/24"),
        (
            {"subnets": [{"subnet": "10.89.0.0/24"}, {"subnet": "10.89.0.8/30"}]},
            {},
            {},
            "overlapping subnets: 10.89.0.0/24 and 10.89.0.8/30",
        ),
        ({"subnets": [{"subnet": "10.89.0.0/33"}]}, {}, {}, "invalid IP address syntax: '10.89.0.0/33'"),
        ({"routes": [{"destination": "10.1.0.0/16"}]}, {}, {}, "route 10.1.0.0/16 requires a gateway for type unicast"),
        (
            {"routes": [{"destination": "10.1.0.0/16", "gateway": "10.89.0.9", "route_type": "blackhole"}]},
            {},
            {},
            "route 10.1.0.0/16 must not have a gateway for type blackhole",
        ),
        ({"routes": [{"destination": "10.1.0.0/16", "route_type": "magic"}]}, {}, {}, 'invalid route type "magic"'),
        (
            {"routes": [{"destination": "10.1.0.0/16", "gateway": "fd00::1"}]},
            {},
            {},
            "route with ipv4 destination and ipv6 gateway (10.1.0.0/16 via fd00::1)",
        ),
        ({}, {"static_ips": ["10.99.0.2"]}, {}, "not all static IPs matched a subnet: expected 1, got 0"),
        ({}, {"static_ips": ["10.89.0.2", "fd00::2"]}, {}, "not all static IPs matched a subnet: expected 2, got 1"),
        ({}, {"static_ips": None}, {}, "no static ips provided"),
        ({}, {"static_ips": ["nowhere"]}, {}, "invalid IP address syntax: 'nowhere'"),
        ({}, {"interface_name": ""}, {}, "no container interface name given"),
        (
            {},
            {"interface_name": "0123456789abcdef"},
            {},
            "'0123456789abcdef' is not an interface name; 1 to 15 letters, digits, '_', '.' or '-'",
        ),
        (
            {},
            {"static_mac": "01:02:03"},
            {},
            "'01:02:03' is not a MAC address; expected six pairs of hex digits, such as 02:42:ac:11:00:02",
        ),
        ({}, {}, {"container_id": "../etc"}, "invalid container id '../etc'"),
        ({}, {}, {"container_id": ""}, "invalid container id ''"),
        ({}, {}, {"network_info": {}}, "network info for network web not found"),
        ({}, {}, {"port_mappings": [port(8080, host_ip="abcd")]}, 'invalid host ip "abcd" provided for port 8080'),
        ({}, {}, {"port_mappings": [port(8080, protocol="icmp")]}, 'unknown port protocol "icmp" provided for port 8080'),
        ({}, {}, {"port_mappings": [port(0)]}, "port mapping 0:80 has a port 0; expected 1 to 65535"),
        ({}, {}, {"port_mappings": [port(65000, range=1000)]}, "1000 ports from 65000 on go beyond 65535"),
        ({}, {}, {"port_mappings": [port(80), port(80)]}, None),
        (
            {"dns_enabled": True},
            {},
            {"dns_servers": ["10.89.0.1"]},
            "DNS server 10.89.0.1 is the gateway of the network; using it would cause the name server to forward queries to itself",
        ),
        (
            {"dns_enabled": True, "network_dns_servers": ["10.89.0.1"]},
            {},
            {},
            "DNS server 10.89.0.1 is the gateway of the network; using it would cause the name server to forward queries to itself",
        ),
    ],
)
def test_what_can_not_be_is_refused_and_nothing_is_left(
    engine: Engine, tmp_path: Path, info: dict[str, Any], per: dict[str, Any], changes: dict[str, Any], error: str | None
) -> None:
    described = network(**info)
    asked = container((described, {"static_ips": ["10.89.0.2"], **per}), **changes)
    answer = call(engine, "setup", namespace(tmp_path), body=asked)
    if error is None:
        done(answer)  # the same port twice is said once
        return
    assert refused(answer) == error
    nothing_is_left(engine)


def test_the_failure_of_one_network_undoes_all(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    engine.create_network("other", subnets=["10.90.0.0/24"])
    before = engine.networks()
    overlapping = network("late", "10.90.0.128/25", "10.90.0.129")
    asked = container((network(), {"static_ips": ["10.89.0.2"]}), (overlapping, {"static_ips": ["10.90.0.130"]}))
    assert "overlaps 10.90.0.0/24 of network other" in refused(call(engine, "setup", path, body=asked))
    taken = container(
        (network(), {"static_ips": ["10.89.0.2"]}), (network("two", "10.91.0.0/24", "10.91.0.1"), {"static_ips": ["10.91.0.1"]})
    )
    assert "10.91.0.1 is" in refused(call(engine, "setup", path, body=taken))
    assert engine.networks() == before
    assert not engine.state.namespaces
    assert not engine.differences()


def test_a_port_that_another_has(engine: Engine, tmp_path: Path) -> None:
    done(call(engine, "setup", namespace(tmp_path), body=container((network(), {"static_ips": ["10.89.0.2"]}), port_mappings=[port(8080)])))
    second = container((network(), {"static_ips": ["10.89.0.3"]}), number=2, port_mappings=[port(8080)])
    assert "port 8080/tcp is published by c1" in refused(call(engine, "setup", namespace(tmp_path, "n2"), body=second))
    assert list(engine.state.namespaces) == ["c1"]


@pytest.mark.parametrize("path", ["/proc/self/ns/net", "/proc/thread-self/ns/net", "/", "/dev/null", "/nowhere", "relative", "", "/a\0b"])
def test_paths_that_lead_to_no_container(engine: Engine, path: str) -> None:
    refused(call(engine, "setup", path, body=container((network(), {"static_ips": ["10.89.0.2"]}))))
    nothing_is_left(engine)


@pytest.mark.parametrize("command", ["setup", "teardown", "create"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"container_id": 1}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"container_id": "' + b"x" * 1_000_000 + b'"}',
        b'{"container_id": "a", "container_name": "b", "networks": 7, "network_info": {}}',
        b'{"container_id": "a", "container_name": "b", "networks": {"x": {"interface_name": 3}}, "network_info": {}}',
        b'{"network": {"name": "x"}, "used": {}, "options": {}}',
    ],
)
def test_what_is_no_request(engine: Engine, tmp_path: Path, command: str, body: bytes) -> None:
    operands = [namespace(tmp_path)] if command != "create" else []
    error = refused(call(engine, command, *operands, body=body))
    assert len(error) < 1000
    nothing_is_left(engine)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\0b", "a\nb", "x" * 300, "", "-rf", "a b", "é", "..", "con'; drop"])
def test_hostile_names(engine: Engine, tmp_path: Path, name: str) -> None:
    """A container may be called anything, and its namespace has a name that is one; a network may not."""
    asked = container((network(), {"static_ips": ["10.89.0.2"], "aliases": [name]}), container_name=name)
    path = namespace(tmp_path)
    done(call(engine, "setup", path, body=asked))
    (made,) = engine.state.namespaces
    assert "/" not in made
    assert made.isascii()
    assert made.isprintable()
    call(engine, "teardown", path, body=asked)
    nothing_is_left(engine)
    refused(call(engine, "setup", path, body=container((network() | {"name": name}, {"static_ips": ["10.89.0.2"]}))))
    refused(call(engine, "setup", path, body=container((network(network_interface=name), {"static_ips": ["10.89.0.2"]}))))
    nothing_is_left(engine)


def test_a_name_that_is_taken_gets_a_number_and_still_is_a_name(engine: Engine, tmp_path: Path) -> None:
    engine.create_namespace("c1")
    done(call(engine, "setup", namespace(tmp_path), body=container((network(), {"static_ips": ["10.89.0.2"]}))))
    assert sorted(engine.state.namespaces) == ["c1", "c1-2"]
    assert only(engine).aliases == ("c1",)


# --- one container, several calls ----------------------------------------------------------------------------------------------------


def test_a_container_joins_and_leaves_networks_and_its_ports_stay(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    web = network(), {"static_ips": ["10.89.0.2"]}
    db = network("db", "10.90.0.0/24", "10.90.0.1"), {"static_ips": ["10.90.0.2"], "interface_name": "eth1"}
    ports = [port(8080), port(9000, protocol="udp")]
    done(call(engine, "setup", path, body=container(web, port_mappings=ports)))
    assert list(done(call(engine, "setup", path, body=container(db, port_mappings=ports)))) == ["db"]
    assert len(engine.state.endpoints_of("c1")) == 2
    done(call(engine, "teardown", path, body=container(web, port_mappings=ports)))
    assert engine.state.network(only(engine).network).name == "db"
    assert sorted(map(str, only(engine).ports)) == ["8080:80/tcp", "9000:80/udp"]
    done(call(engine, "teardown", path, body=container(db, port_mappings=ports)))
    nothing_is_left(engine)


def test_a_container_that_is_back_in_another_namespace_leaves_the_former(engine: Engine, tmp_path: Path) -> None:
    asked = container((network(), {"static_ips": ["10.89.0.2"]}), port_mappings=[port(8080)])
    former = namespace(tmp_path, "former")
    done(call(engine, "setup", former, body=asked))
    end(former)
    done(call(engine, "setup", namespace(tmp_path, "later"), body=asked))
    assert only(engine).namespace == "c1"
    later = namespace(tmp_path, "once-more")
    done(call(engine, "setup", later, body=asked))
    assert engine.namespace_at(later) == engine.state.namespaces[only(engine).namespace]


def test_an_address_whose_holder_has_ended_is_free(engine: Engine, tmp_path: Path) -> None:
    former = namespace(tmp_path, "former")
    said = {"static_ips": ["10.89.0.2"]}
    done(call(engine, "setup", former, body=container((network(), said), port_mappings=[port(8080)])))
    end(former)
    done(call(engine, "setup", namespace(tmp_path), body=container((network(), said), number=2, port_mappings=[port(8080)])))
    assert only(engine).namespace == "c2"


def test_a_network_goes_when_its_last_container_vanishes(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    done(call(engine, "setup", path, body=container((network(), {"static_ips": ["10.89.0.2"]}))))
    end(path)
    engine.release_vanished()
    engine.release_idle()
    nothing_is_left(engine)


def test_an_engine_that_died_leaves_no_network_without_containers(host: None, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    with Engine.open(tmp_path / "state") as engine:
        done(call(engine, "setup", path, body=container((network(), {"static_ips": ["10.89.0.2"]}))))
        end(path)
    with Engine.open(tmp_path / "state") as engine:
        nothing_is_left(engine)


# --- sharing networks ----------------------------------------------------------------------------------------------------------------


def test_a_network_of_atolls_own_is_joined_and_stays(engine: Engine, tmp_path: Path) -> None:
    engine.create_network("web", subnets=["10.89.0.0/24"])
    path = namespace(tmp_path)
    asked = container((network(dns_enabled=True), {"static_ips": ["10.89.0.9"]}))
    answer = done(call(engine, "setup", path, body=asked))
    assert answer["web"]["dns_search_domains"] == ["dns.podman"]
    assert engine.state.network("web").domains == ("dns.podman",)
    call(engine, "teardown", path, body=asked)
    assert [network.name for network in engine.networks()] == ["host", "none", "web"]


@pytest.mark.parametrize(
    ("ours", "error"),
    [
        ({"subnets": ["10.99.0.0/24"]}, "network web of Atoll has the subnets 10.99.0.0/24, Podman's has 10.89.0.0/24"),
        ({"subnets": ["10.89.0.0/24"], "gateways": ["10.89.0.7"]}, "network web of Atoll hasn't the gateway 10.89.0.1, Podman's has"),
    ],
)
def test_another_network_of_the_same_name_is_not_joined(engine: Engine, tmp_path: Path, ours: dict[str, Any], error: str) -> None:
    engine.create_network("web", **ours)
    answer = call(engine, "setup", namespace(tmp_path), body=container((network(), {"static_ips": ["10.89.0.9"]})))
    assert refused(answer).startswith(error)
    assert not engine.state.namespaces


@pytest.mark.parametrize(
    ("lease_range", "address"),
    [
        (None, "10.89.0.128"),
        ({"start_ip": "10.89.0.200"}, "10.89.0.2"),
        ({"start_ip": "10.89.0.20", "end_ip": "10.89.0.30"}, "10.89.0.128"),
    ],
)
def test_atolls_own_choices_keep_clear_of_podmans(engine: Engine, tmp_path: Path, lease_range: dict[str, str] | None, address: str) -> None:
    info = network(subnets=[{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1", "lease_range": lease_range}])
    done(call(engine, "setup", namespace(tmp_path), body=container((info, {"static_ips": ["10.89.0.210"]}))))
    engine.create_namespace("plain")
    assert engine.connect("web", "plain").address(4) == address


def test_a_network_with_a_plain_process_on_it_outlives_podmans_last_container(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    asked = container((network(), {"static_ips": ["10.89.0.2"]}))
    done(call(engine, "setup", path, body=asked))
    engine.create_namespace("plain")
    engine.connect("web", "plain")
    done(call(engine, "teardown", path, body=asked))
    assert engine.state.network("web").name == "web"
    engine.disconnect("web", "plain")
    engine.release_idle()
    assert not engine.state.networks


# --- the command line ----------------------------------------------------------------------------------------------------------------


def raw(engine: Engine, *arguments: str, body: bytes = b"", **environment: str) -> Answer:
    return netavark.answer(engine, Call("netavark", "/x/netavark", arguments, environment, body))


def test_versions(engine: Engine) -> None:
    assert raw(engine, "--version").stdout == raw(engine, "-V").stdout == b"netavark 2.1.0\n"
    assert raw(engine, "--version", NETAVARK_VERSION="1.17.0").stdout == b"netavark 1.17.0\n"
    found = done(raw(engine, "version"))
    assert set(found) == {"version", "commit", "build_time", "target", "default_fw_driver"}
    assert raw(engine, "version").stdout.startswith(b'{\n  "version": "2.1.0"')
    assert b"Usage: netavark" in raw(engine, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "netavark requires a subcommand; netavark --help"),
        (("fly",), "unrecognized subcommand 'fly'; netavark --help"),
        (("setup",), "netavark setup takes NETWORK_NAMESPACE_PATH; netavark --help"),
        (("setup", "a", "b"), "netavark setup takes NETWORK_NAMESPACE_PATH; netavark --help"),
        (("setup", "/x"), "--config not specified but required for netavark setup"),
        (("teardown", "/x"), "--config not specified but required for netavark teardown"),
        (("update", "web", "--network-dns-servers", ""), "--config not specified but required for netavark update"),
        (("--config", "/x", "update", "web"), "netavark update requires --network-dns-servers"),
        (("--config",), "a value is required for '--config'; netavark --help"),
        (("--colour", "x", "version"), "unexpected argument '--colour'; netavark --help"),
        (("--rootless=maybe", "version"), "invalid value 'maybe' for --rootless; expected true or false"),
        (("-c", "/x", "-c", "/y", "setup", "/x"), "--config is given twice"),
        (("-c", "/x", "--firewall-driver", "pf", "setup", "/x"), "Must provide a valid firewall backend, got pf"),
        (
            ("-c", "/x", "--firewall-driver=none", "setup", "/x"),
            "Atoll has no network without its firewall; leave out firewall_driver=none in containers.conf",
        ),
        (("-c/x", "-f", "/nowhere", "setup", "/x"), "failed to load network options: IO error: No such file or directory (os error 2)"),
        (("-c/x", "-f", "/", "setup", "/x"), "failed to load network options: IO error: Is a directory (os error 21)"),
        (("-c/x", "-f", "/dev/zero", "setup", "/x"), "failed to load network options: /dev/zero is no file of at most 16777216 bytes"),
        (("-c/x", "-f", "/a\0b", "setup", "/x"), "failed to load network options: IO error: embedded null byte"),
    ],
)
def test_command_lines_that_mean_nothing(engine: Engine, arguments: tuple[str, ...], error: str) -> None:
    assert refused(raw(engine, *arguments)) == error


def test_what_podman_says_in_the_environment_is_checked(engine: Engine) -> None:
    assert refused(raw(engine, "-c", "/x", "setup", "/x", NETAVARK_FW="pf")) == "Must provide a valid firewall backend, got pf"
    assert refused(raw(engine, "-c", "/x", "setup", "/x", NETAVARK_DNS_PORT="99999")).startswith("Invalid NETAVARK_DNS_PORT 99999")


def test_the_request_from_a_file(engine: Engine, tmp_path: Path) -> None:
    asked = container((network(), {"static_ips": ["10.89.0.2"]}))
    (tmp_path / "request.json").write_bytes(msgspec.json.encode(asked))
    path = namespace(tmp_path)
    done(call(engine, "-f", "request.json", "setup", path, folder=str(tmp_path)))
    done(call(engine, "teardown", path, "--file=/dev/stdin", body=asked))
    nothing_is_left(engine)


def test_what_is_not_ours_is_left_to_the_netavark_before(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tmp_path / "before" / "netavark"
    before.parent.mkdir()
    before.write_text("#!/bin/sh\n")
    before.chmod(0o755)
    asked = container((network(), {"static_ips": ["10.89.0.2"]}))
    foreign = container((network(driver="host-device"), {"static_ips": ["10.89.0.2"]}))
    for folders in ([], [str(before.parent)]):
        monkeypatch.setattr(helpers, "DEFAULT_FOLDERS", folders)
        expected = Answer(run=str(before)) if folders else None
        for arguments, body in (
            (("dhcp-proxy", "--dir", "/x"), {}),
            (("--rootless=true", "setup", "/x"), asked),
            (("setup", "/x"), foreign),
        ):
            answer = netavark.answer(engine, Call("netavark", "/x/netavark", ("-c", "/x", *arguments), {}, _json(body)))
            assert answer == expected if expected else refused(answer)
        assert call(engine, "teardown", "/nowhere", body=asked) == (expected or Answer())


def _json(body: Any) -> bytes:
    return msgspec.json.encode(body)


def test_other_servers_for_a_network_that_runs(engine: Engine, tmp_path: Path) -> None:
    update = "update", "web", "--network-dns-servers"
    done(call(engine, *update, "192.0.2.1"))  # of one that isn't there nothing is asked
    done(call(engine, "setup", namespace(tmp_path), body=container((network(dns_enabled=True), {"static_ips": ["10.89.0.2"]}))))
    done(call(engine, *update, "192.0.2.1,192.0.2.2"))
    assert engine.state.network("web").servers == ("192.0.2.1", "192.0.2.2")
    assert "forward queries to itself" in refused(call(engine, *update, "10.89.0.1"))
    assert refused(call(engine, *update, "here")) == "invalid IP address syntax: 'here'"
    done(call(engine, *update, ""))
    assert engine.state.network("web").servers == ()


@pytest.mark.parametrize("command", ["firewall-reload", "firewalld-reload"])
def test_rules_that_somebody_flushed_come_back(engine: Engine, tmp_path: Path, command: str) -> None:
    asked = container((network(), {"static_ips": ["10.89.0.2"]}), port_mappings=[port(8080)])
    done(call(engine, "setup", namespace(tmp_path), body=asked))
    engine.host.run(lambda: subprocess.run(["nft", "flush", "ruleset"], check=True))
    assert engine.differences()
    answer = raw(engine, command, RUST_LOG="netavark=info")
    assert answer.stderr == b"[INFO  netavark::commands::firewall_reload] Successfully reloaded firewall rules\n"
    assert not engine.differences()


# --- as a plugin ---------------------------------------------------------------------------------------------------------------------


def test_as_netavarks_plugin(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    asked = {
        "container_id": f"{1:064x}",
        "container_name": "c1",
        "port_mappings": [port(8080)],
        "network": network(driver="atoll", dns_enabled=True),
        "network_options": {"interface_name": "eth0", "static_ips": ["10.89.0.2"], "aliases": ["one"]},
    }
    answer = done(call(engine, "setup", path, body=asked, door="plugin"))
    assert answer["dns_server_ips"] == ["10.89.0.1"]
    assert list(answer["interfaces"]) == ["eth0"]
    assert list(map(str, only(engine).ports)) == ["8080:80/tcp"]
    for _ in range(2):
        assert call(engine, "teardown", path, body=asked, door="plugin") == Answer()
    nothing_is_left(engine)
    assert done(call(engine, "info", door="plugin"))["api_version"] == "1.0.0"
    assert done(call(engine, door="plugin"))["api_version"] == "1.0.0"
    assert refused(call(engine, "fly", door="plugin")).startswith("unknown subcommand: fly")
