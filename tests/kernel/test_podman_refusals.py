"""What Podman's front door refuses, in netavark's form, with nothing left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.podman_calls import (
    DUAL,
    call,
    container,
    done,
    namespace,
    network,
    nothing_is_left,
    only,
    port,
    refused,
)

if TYPE_CHECKING:
    from pathlib import Path

    from atoll import Engine


# --- failing -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "per", "changes", "error"),
    [
        ({"options": {"vrf": "red"}}, {}, {}, "network web: Atoll puts no bridge into a VRF; leave out the option vrf"),
        ({"options": {"vlan": "7"}}, {}, {}, "network web: Atoll tags no bridge ports; use a macvlan network on a VLAN interface"),
        ({}, {"options": {"host_interface_name": "a/b"}}, {}, "'a/b' is not an interface name; 1 to 15 letters, digits, '_', '.' or '-'"),
        ({}, {"options": {"host_interface_name": "lo"}}, {}, "an interface of the host is called lo; choose another name"),
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
        ({"subnets": [{"subnet": f"10.{n}.0.0/16"} for n in range(65)]}, {}, {}, "65 subnets are too many; at most 64"),
        (
            {"routes": [{"destination": f"10.1.{n >> 5}.{8 * n & 255}/29", "gateway": "10.89.0.9"} for n in range(1001)]},
            {},
            {},
            "1001 routes are too many; at most 1000",
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
