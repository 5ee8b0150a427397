"""`netavark create`, held against what netavark's own tests expect (test/700-create.bats of netavark 2.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.podman_calls import call, done, refused
from tests.support import Inside, ip

if TYPE_CHECKING:
    from atoll import Engine

ID = "abc123def4567890123456789012345678901234567890123456789012345678"
CHECKED = {"check_used_subnets": True}
BOTH_POOLS = {"subnet_pools": [{"base": "10.89.0.0/16", "size": 24}, {"base": "fd10::/8", "size": 64}]}


def subnets(*texts: str) -> list[dict[str, str]]:
    return [{"subnet": text} for text in texts]


def request(network: dict[str, Any], used: dict[str, Any] | None = None, options: dict[str, Any] | None = None) -> dict[str, Any]:
    plain = {"name": "net1", "id": ID, "driver": "bridge", "dns_enabled": False, "internal": False, "ipv6_enabled": False}
    pools = {"subnet_pools": [{"base": "10.89.0.0/16", "size": 24}], "default_interface_name": "podman", "check_used_subnets": False}
    return {
        "network": plain | network,
        "used": {"interfaces": [], "names": {}, "subnets": []} | (used or {}),
        "options": pools | (options or {}),
    }


@pytest.fixture
def parent(engine: Engine) -> Engine:
    """With an interface that macvlan and ipvlan networks can hang on."""
    ip(Inside(engine), "link add dummy0 type veth peer name dummy1")
    return engine


@pytest.mark.parametrize(
    ("network", "used", "options", "expected"),
    [
        ({}, {}, {}, {"network_interface": "podman1", "subnets": [{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}]}),
        ({}, {}, {}, {"ipam_options": {"driver": "host-local"}, "ipv6_enabled": False, "internal": False}),
        ({"subnets": subnets("10.100.0.0/24")}, {}, {}, {"subnets": [{"subnet": "10.100.0.0/24", "gateway": "10.100.0.1"}]}),
        ({"internal": True}, {}, {}, {"internal": True, "subnets": subnets("10.89.0.0/24")}),
        ({"dns_enabled": True}, {}, {}, {"dns_enabled": True, "subnets": [{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}]}),
        (
            {"dns_enabled": True, "internal": True},
            {},
            {},
            {"dns_enabled": True, "subnets": [{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}]},
        ),
        ({"labels": {"key1": "value1", "key2": "value2"}}, {}, {}, {"labels": {"key1": "value1", "key2": "value2"}}),
        ({}, {"subnets": ["10.89.0.0/24"]}, CHECKED, {"subnets": [{"subnet": "10.89.1.0/24", "gateway": "10.89.1.1"}]}),
        ({}, {"subnets": ["10.89.0.0/23", "10.89.2.9/32"]}, CHECKED, {"subnets": [{"subnet": "10.89.3.0/24", "gateway": "10.89.3.1"}]}),
        ({}, {"names": {"podman1": ID}, "interfaces": ["podman2"]}, {}, {"network_interface": "podman3"}),
        (
            {"subnets": [{"subnet": "10.100.0.0/24", "gateway": "10.100.0.50"}]},
            {},
            {},
            {"subnets": [{"subnet": "10.100.0.0/24", "gateway": "10.100.0.50"}]},
        ),
        (
            {"subnets": [{"subnet": "10.100.0.0/24", "lease_range": {"start_ip": "10.100.0.20", "end_ip": "10.100.0.50"}}]},
            {},
            {},
            {
                "subnets": [
                    {
                        "subnet": "10.100.0.0/24",
                        "gateway": "10.100.0.1",
                        "lease_range": {"start_ip": "10.100.0.20", "end_ip": "10.100.0.50"},
                    }
                ]
            },
        ),
        (
            {"subnets": [{"subnet": "10.100.0.0/24", "lease_range": {"start_ip": "10.100.0.20"}}]},
            {},
            {},
            {"subnets": [{"subnet": "10.100.0.0/24", "gateway": "10.100.0.1", "lease_range": {"start_ip": "10.100.0.20"}}]},
        ),
        (
            {"subnets": subnets("fdcc::/64")},
            {},
            {},
            {"ipv6_enabled": True, "subnets": [{"subnet": "fdcc::/64", "gateway": "fdcc::1"}]},
        ),
        (
            {"dns_enabled": True, "network_dns_servers": ["8.8.8.8", "1.1.1.1"]},
            {},
            {},
            {"network_dns_servers": ["8.8.8.8", "1.1.1.1"]},
        ),
        ({"options": {"mtu": "1500"}}, {}, {}, {"options": {"mtu": "1500"}}),
        ({"options": {"vlan": "100"}}, {}, {}, {"options": {"vlan": "100"}}),
        ({"options": {"isolate": "true"}}, {}, {}, {"options": {"isolate": "true"}}),
        ({"options": {"isolate": "strict"}}, {}, {}, {"options": {"isolate": "strict"}}),
        (
            {"options": {"com.docker.network.driver.mtu": "1400", "com.docker.network.bridge.name": "br7"}},
            {},
            {},
            {"options": {"mtu": "1400"}, "network_interface": "br7"},
        ),
        (
            {"options": {"mode": "unmanaged"}, "network_interface": "br7"},
            {"interfaces": ["br7"]},
            CHECKED,
            {"network_interface": "br7"},
        ),
        ({"dns_enabled": True, "ipam_options": {"driver": "none"}}, {}, {}, {"ipam_options": {"driver": "none"}, "dns_enabled": False}),
        (
            {"driver": "macvlan", "network_interface": "dummy0", "dns_enabled": True},
            {},
            {},
            {"ipam_options": {"driver": "dhcp"}, "dns_enabled": False},
        ),
        (
            {"driver": "macvlan", "network_interface": "dummy0", "subnets": subnets("10.200.0.0/24"), "options": {"mode": "bridge"}},
            {},
            {},
            {"ipam_options": {"driver": "host-local"}, "dns_enabled": False, "options": {"mode": "bridge"}},
        ),
        (
            {"driver": "ipvlan", "network_interface": "dummy0", "subnets": [{"subnet": "10.200.0.0/24", "gateway": "10.200.0.1"}]},
            {},
            {},
            {"ipam_options": {"driver": "host-local"}, "dns_enabled": False},
        ),
        (
            {"subnets": subnets("10.100.0.0/24"), "routes": [{"destination": "192.168.0.0/24", "gateway": "10.100.0.254"}]},
            {},
            {},
            {"routes": [{"destination": "192.168.0.0/24", "gateway": "10.100.0.254"}]},
        ),
        (
            {"routes": [{"destination": "10.89.0.0/24", "route_type": "blackhole"}], "subnets": subnets("10.88.0.0/16")},
            {},
            {"subnet_pools": []},
            {"routes": [{"destination": "10.89.0.0/24", "route_type": "blackhole"}]},
        ),
    ],
)
def test_a_network_is_made_whole(
    parent: Engine, network: dict[str, Any], used: dict[str, Any], options: dict[str, Any], expected: dict[str, Any]
) -> None:
    asked = request(network, used, options)
    made = done(call(parent, "create", body=asked))
    assert made | expected == made
    kept = ("name", "id", "driver", "labels", "routes", "network_dns_servers")
    assert {key: made.get(key) for key in kept} == {key: asked["network"].get(key) for key in kept}
    assert re.match(r"20\d\d-\d\d-\d\dT", made["created"])
    assert not parent.state.networks


@pytest.mark.parametrize(
    ("network", "options"), [({}, BOTH_POOLS), ({"subnets": subnets("10.100.0.0/24")}, BOTH_POOLS), ({"subnets": subnets("fd99::/64")}, {})]
)
def test_with_ipv6_both_families_are_there(engine: Engine, network: dict[str, Any], options: dict[str, Any]) -> None:
    made = done(call(engine, "create", body=request({**network, "ipv6_enabled": True}, {}, options)))
    assert made["ipv6_enabled"]
    assert sorted(":" in subnet["subnet"] for subnet in made["subnets"]) == [False, True]
    assert all(subnet["gateway"] for subnet in made["subnets"])


def test_no_subnet_of_atolls_own_is_chosen(engine: Engine) -> None:
    engine.create_network("web", subnets=["10.89.0.0/23"])
    made = done(call(engine, "create", body=request({}, {}, CHECKED)))
    assert made["subnets"][0]["subnet"] == "10.89.2.0/24"


@pytest.mark.parametrize(
    ("network", "used", "options", "error"),
    [
        ({}, {"names": {"net1": ID}}, {}, "network already exists net1"),
        ({"network_interface": "used0"}, {"interfaces": ["used0"]}, {}, "bridge name used0 already in use"),
        ({"name": ""}, {}, {}, "Network name must be supplied"),
        ({"name": "badname!"}, {}, {}, 'Invalid characters in network name "badname!": must match [a-zA-Z0-9][a-zA-Z0-9_.-]*'),
        ({"id": ""}, {}, {}, "Network id must be supplied"),
        ({"id": "abc"}, {}, {}, 'Network id must be a hexadecimal string "abc"'),
        (
            {"subnets": [{"subnet": "10.100.0.0/24", "gateway": "10.200.0.1"}]},
            {},
            {},
            "gateway 10.200.0.1 not in subnet 10.100.0.0/24",
        ),
        (
            {"subnets": [{"subnet": "10.100.0.0/24", "lease_range": {"start_ip": "10.200.0.20"}}]},
            {},
            {},
            "lease range start_ip 10.200.0.20 not in subnet 10.100.0.0/24",
        ),
        (
            {"subnets": [{"subnet": "10.100.0.0/24", "lease_range": {"start_ip": "10.100.0.20", "end_ip": "10.100.0.10"}}]},
            {},
            {},
            "lease range start_ip 10.100.0.20 must be less than or equal to end_ip 10.100.0.10",
        ),
        ({"dns_enabled": True, "network_dns_servers": ["not.an.ip.address"]}, {}, {}, "invalid IP address syntax: 'not.an.ip.address'"),
        ({"network_dns_servers": ["8.8.8.8"]}, {}, {}, "cannot set NetworkDNSServers if DNS is not enabled for the network"),
        ({"options": {"mtu": "abc"}}, {}, {}, 'unable to parse "mtu": invalid digit found in string'),
        ({"options": {"mtu": "99999999999"}}, {}, {}, 'unable to parse "mtu": number too large to fit in target type'),
        ({"options": {"vlan": "5000"}}, {}, {}, "vlan must be between 0 and 4094"),
        ({"options": {"isolate": "maybe"}}, {}, {}, 'invalid isolate option "maybe"'),
        ({"options": {"mode": "maybe"}}, {}, {}, 'invalid bridge mode "maybe"'),
        ({"options": {"outbound_addr4": "10.0.0.1"}}, {}, {}, "unsupported bridge network option: outbound_addr4"),
        (
            {"ipam_options": {"driver": "none"}, "subnets": subnets("10.100.0.0/24")},
            {},
            {},
            "None ipam driver is set but subnets are given",
        ),
        ({"ipam_options": {"driver": "magic"}}, {}, {}, "Unsupported ipam driver: magic"),
        (
            {"driver": "macvlan", "network_interface": "eth999", "subnets": subnets("10.201.0.0/24")},
            {},
            {},
            "parent interface eth999 does not exist",
        ),
        (
            {"driver": "ipvlan", "network_interface": "eth999", "subnets": subnets("10.201.0.0/24")},
            {},
            {},
            "parent interface eth999 does not exist",
        ),
        ({"driver": "ipvlan", "network_interface": "dummy0"}, {}, {}, "ipam driver dhcp is not supported with ipvlan"),
        (
            {"driver": "macvlan", "ipam_options": {"driver": "host-local"}},
            {},
            {},
            "macvlan driver needs at least one subnet specified when the host-local ipam driver is set",
        ),
        (
            {"driver": "macvlan", "ipam_options": {"driver": "dhcp"}, "subnets": subnets("10.1.0.0/24")},
            {},
            {},
            "ipam driver dhcp set but subnets are set",
        ),
        (
            {"driver": "ipvlan", "options": {"bclim": "3"}, "subnets": subnets("10.1.0.0/24")},
            {},
            {},
            "unsupported ipvlan network option bclim",
        ),
        (
            {"driver": "macvlan", "options": {"vlan": "3"}, "subnets": subnets("10.1.0.0/24")},
            {},
            {},
            "unsupported vlan network option: vlan",
        ),
        ({"driver": "magic"}, {}, {}, 'plugin for driver "magic" not found in plugin directories; Atoll runs no plugins'),
        (
            {"subnets": subnets("10.100.0.0/24"), "routes": [{"destination": "192.168.0.1", "gateway": "10.100.0.254"}]},
            {},
            {},
            "invalid IP address syntax: '192.168.0.1'",
        ),
        (
            {"subnets": subnets("10.100.0.0/24"), "routes": [{"destination": "192.168.0.1/24", "gateway": "10.100.0.254"}]},
            {},
            {},
            "route destination invalid",
        ),
        (
            {"subnets": subnets("10.100.0.0/24"), "routes": [{"destination": "192.168.0.0/24", "gateway": "notanip"}]},
            {},
            {},
            "invalid IP address syntax: 'notanip'",
        ),
        (
            {"subnets": subnets("10.1.3.248/30")},
            {"subnets": ["10.1.2.0/23"]},
            CHECKED,
            "subnet 10.1.3.248/30 is already used on the host or by another config",
        ),
        (
            {"subnets": subnets("10.89.0.0/24")},
            {"subnets": ["10.89.0.0/24"]},
            CHECKED,
            "subnet 10.89.0.0/24 is already used on the host or by another config",
        ),
        ({"subnets": subnets("10.1.2.0/23", "10.1.3.248/30")}, {}, {}, "overlapping subnets: 10.1.2.0/23 and 10.1.3.248/30"),
        ({"subnets": subnets("10.100.0.0/24", "10.100.0.0/24")}, {}, {}, "duplicate subnet defined: 10.100.0.0/24"),
        (
            {"subnets": subnets("192.168.0.0/32")},
            {},
            {},
            "could not create gateway for subnet 192.168.0.0/32 because it has a 31 or greater subnet prefix",
        ),
        (
            {"routes": [{"destination": "10.89.0.0/24"}], "subnets": subnets("10.88.0.0/16")},
            {},
            {},
            "route 10.89.0.0/24 requires a gateway for type unicast",
        ),
        (
            {
                "routes": [{"destination": "10.89.0.0/24", "gateway": "10.88.0.2", "route_type": "blackhole"}],
                "subnets": subnets("10.88.0.0/16"),
            },
            {},
            {},
            "route 10.89.0.0/24 must not have a gateway for type blackhole",
        ),
        ({}, {"subnets": ["0.0.0.0/0"]}, CHECKED, "could not find free subnet from subnet pools"),
        (
            {"network_interface": "0123456789abcdef"},
            {},
            {},
            "Interface name is too long: interface names must be 15 characters or less: 0123456789abcdef",
        ),
        ({"network_interface": "a/b"}, {}, {}, 'Interface name cannot contain"/"'),
    ],
)
def test_what_can_not_be_is_refused_in_netavarks_words(
    parent: Engine, network: dict[str, Any], used: dict[str, Any], options: dict[str, Any], error: str
) -> None:
    assert refused(call(parent, "create", body=request(network, used, options))) == error


def test_as_a_plugin_it_makes_networks_of_the_driver_atoll(engine: Engine) -> None:
    asked = request({"driver": "atoll", "ipv6_enabled": True, "dns_enabled": True})["network"]
    made = done(call(engine, "create", body=asked, door="plugin"))
    assert {key: made[key] for key in ("name", "id", "driver")} == {key: asked[key] for key in ("name", "id", "driver")}
    assert sorted(":" in subnet["subnet"] for subnet in made["subnets"]) == [False, True]
    assert made["ipam_options"] == {"driver": "host-local"}


def test_as_a_plugin_it_takes_the_subnets_of_atolls_network_of_that_name(engine: Engine) -> None:
    engine.create_network("lan", subnets=["10.77.0.0/24"], gateways=["10.77.0.200"])
    made = done(call(engine, "create", body=request({"name": "lan", "driver": "atoll"})["network"], door="plugin"))
    assert made["subnets"] == [{"subnet": "10.77.0.0/24", "gateway": "10.77.0.200"}]
