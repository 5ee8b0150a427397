"""What Podman's front door makes of a request, on a real engine: every option of netavark's, and what is so afterwards."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from atoll.frontends.call import Answer
from atoll.frontends.netavark import helpers
from tests.podman_calls import (
    DUAL,
    TWO,
    call,
    container,
    done,
    host_links,
    inside,
    namespace,
    network,
    nothing_is_left,
    only,
    port,
    refused,
)
from tests.support import Inside, ip

if TYPE_CHECKING:
    from pathlib import Path

    from atoll import Engine


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


# --- the way there and back ----------------------------------------------------------------------------------------------------------


def test_setup_and_teardown(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "DEFAULT_FOLDERS", ())  # a second teardown is nobody else's
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


def test_an_interface_on_the_host_has_the_name_that_was_asked_for(engine: Engine, tmp_path: Path) -> None:
    """As a further name, by which ip and tc find it; a repair makes it anew with the name."""
    path = namespace(tmp_path)
    asked = container((network(), {"static_ips": ["10.89.0.2"], "options": {"host_interface_name": "web-c1"}}))
    done(call(engine, "setup", path, body=asked))
    assert f"{only(engine).host_interface}@" in inside(engine, "link", "show", "web-c1", name="")
    other = container((network(), {"static_ips": ["10.89.0.3"], "options": {"host_interface_name": "web-c1"}}), number=2)
    assert (
        refused(call(engine, "setup", namespace(tmp_path, "n2"), body=other))
        == "an interface of the host is called web-c1; choose another name"
    )
    for damage in (f"link delete {only(engine).host_interface}", f"link property del dev {only(engine).host_interface} altname web-c1"):
        ip(Inside(engine), damage)
        assert engine.differences()
        engine.repair()
        assert not engine.differences()
        inside(engine, "link", "show", "web-c1", name="")
    done(call(engine, "teardown", path, body=asked))
    nothing_is_left(engine)


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
