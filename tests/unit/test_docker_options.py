"""Docker's words in Atoll's: options, ports, and what is refused at the edge."""

from __future__ import annotations

import json
import string
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atoll.checks import parse_publish
from atoll.errors import Invalid
from atoll.frontends.docker import options, protocol
from atoll.ipam import parse_subnet


def binding(port: int, host_port: int = 0, *, end: int | None = None, proto: int = 6, host_ip: str = "") -> protocol.PortBinding:
    return protocol.PortBinding(
        proto=proto, port=port, host_ip=host_ip, host_port=host_port, host_port_end=host_port if end is None else end
    )


@pytest.mark.parametrize(
    ("bindings", "specs"),
    [
        ([], ()),
        ([binding(80, 8080)], ("8080:80/tcp",)),
        ([binding(80, 8080, end=0)], ("8080:80/tcp",)),
        ([binding(53, 53, proto=17), binding(53, 53)], ("53:53/tcp", "53:53/udp")),
        ([binding(9, 9, proto=132, host_ip="127.0.0.1")], ("127.0.0.1:9:9/sctp",)),
        ([binding(80, 8080, host_ip="::1")], ("[::1]:8080:80/tcp",)),
        ([binding(80, 8080, host_ip="0.0.0.0")], ("0.0.0.0:8080:80/tcp",)),
        ([binding(80)], ("0:80/tcp",)),
        ([binding(80, 8000, end=8010)], ("8000-8010:80/tcp",)),
        ([binding(9000 + n, 8000 + n) for n in (2, 0, 1)], ("8000-8002:9000-9002/tcp",)),
        ([binding(9000 + n, 8000 + n) for n in (0, 1, 3)], ("8000-8001:9000-9001/tcp", "8003:9003/tcp")),
        ([binding(80, 8000), binding(80, 8001)], ("8000:80/tcp", "8001:80/tcp")),
        ([binding(80, 8080), binding(80, 8080)], ("8080:80/tcp",)),
        ([binding(1, 1, host_ip="192.0.2.1"), binding(2, 2, host_ip="192.0.2.2")], ("192.0.2.1:1:1/tcp", "192.0.2.2:2:2/tcp")),
    ],
)
def test_bindings_become_specs_and_those_that_follow_one_another_ranges(
    bindings: list[protocol.PortBinding], specs: tuple[str, ...]
) -> None:
    assert options.publish_specs(bindings) == specs


@given(
    st.lists(
        st.builds(
            binding,
            st.integers(1, 30),
            st.integers(1, 30),
            proto=st.sampled_from([6, 17]),
            host_ip=st.sampled_from(["", "127.0.0.1", "::1"]),
        )
    )
)
def test_no_port_is_lost_or_added_by_making_ranges(bindings: list[protocol.PortBinding]) -> None:
    ports = [parse_publish(spec) for spec in options.publish_specs(bindings)]
    published = [(p.host_ip, p.protocol, p.host_port + n, p.port + n) for p in ports for n in range(p.count)]
    names = {6: "tcp", 17: "udp"}
    assert sorted(published) == sorted({(b.host_ip, names[b.proto], b.host_port, b.port) for b in bindings})


@pytest.mark.parametrize("wrong", [binding(80, proto=1), binding(80, host_ip="localhost"), binding(80, 1, host_ip="1.2.3.4\nx")])
def test_ports_that_mean_nothing_are_refused(wrong: protocol.PortBinding) -> None:
    with pytest.raises(Invalid):
        options.publish_specs([wrong])


def network(**given: Any) -> protocol.CreateNetwork:
    body = {
        "NetworkID": "ab" * 32,
        "Options": {"com.docker.network.enable_ipv6": False, "com.docker.network.generic": {}},
        "IPv4Data": [{"AddressSpace": "LocalDefault", "Pool": "172.18.0.0/16", "Gateway": "172.18.0.1/16"}],
        "IPv6Data": [],
    }
    found = protocol.decode("NetworkDriver.CreateNetwork", json.dumps(body | given).encode(), protocol.CreateNetwork)
    assert isinstance(found, protocol.CreateNetwork)
    return found


def test_what_docker_chose_is_the_networks_and_atolls_own_choices_come_from_the_other_half() -> None:
    request = options.new_network(network(), {})
    assert (request.name, request.driver) == ("docker-abababababab", "bridge")
    assert (request.subnets, request.gateways, request.ip_ranges) == (("172.18.0.0/16",), ("172.18.0.1",), ("172.18.128.0/17",))
    assert (request.ipv4, request.ipv6, request.internal, request.options) == (True, False, False, {})
    assert request.labels == {"atoll.door": "docker", "atoll.docker.network": "ab" * 32}


def test_addresses_of_our_own_pools_come_from_where_docker_was_told_to_take_them() -> None:
    assert options.new_network(network(), {parse_subnet("172.18.0.0/16"): ()}).ip_ranges == ()
    assert options.new_network(network(), {parse_subnet("172.18.0.0/16"): ("172.18.5.0/24",)}).ip_ranges == ("172.18.5.0/24",)


def test_a_subnet_too_small_to_share_is_not_halved() -> None:
    assert options.upper_half(parse_subnet("10.0.0.0/30")) == ()
    assert options.upper_half(parse_subnet("10.0.0.0/29")) == ("10.0.0.4/30",)
    assert options.upper_half(parse_subnet("fd00::/64")) == ("fd00::8000:0:0:0/65",)


def test_options_reach_the_network_but_for_those_that_docker_itself_does() -> None:
    generic = {
        "com.docker.network.bridge.enable_icc": "false",
        "com.docker.network.advertise_addr_ms": "200",
        "guard": "false",
        "driver": "macvlan",
    }
    aux = {"printer": "172.18.0.9/16"}
    request = options.new_network(
        network(
            Options={"com.docker.network.internal": True, "com.docker.network.generic": generic, "com.docker.network.enable_ipv6": True},
            IPv4Data=[{"AddressSpace": "x", "Pool": "172.18.0.0/16", "AuxAddresses": aux}],
        ),
        {},
    )
    assert (request.driver, request.internal, request.ipv6) == ("macvlan", True, True)
    assert request.options == {"com.docker.network.bridge.enable_icc": "false", "guard": "false"}
    assert request.aux_addresses == {"printer": "172.18.0.9"}


def test_the_null_ipams_pool_is_no_subnet() -> None:
    request = options.new_network(network(IPv4Data=[{"AddressSpace": "null", "Pool": "0.0.0.0/0"}]), {})
    assert (request.subnets, request.gateways) == ((), ())


@pytest.mark.parametrize(
    ("generic", "skipped"),
    [
        ({}, (False, False)),
        ({"driver": "macvlan", "parent": "eth0"}, (True, True)),
        ({"gateway-mode4": "isolated"}, (True, False)),
        ({"com.docker.network.bridge.gateway_mode_ipv6": "isolated"}, (False, True)),
        ({"com.docker.network.bridge.gateway_mode_ipv4": "routed"}, (False, False)),
    ],
)
def test_no_address_is_spent_on_a_gateway_that_is_not_there(generic: dict[str, str], skipped: tuple[bool, bool]) -> None:
    assert options.without_gateway(protocol.NetworkOptions(generic=generic)) == skipped


def test_an_endpoints_options_are_ours_or_dockers_or_refused() -> None:
    raw = {"com.docker.network.endpoint.sysctls": msgspec.Raw(b'"x"'), "ingress-rate": msgspec.Raw(b'"10mbit"')}
    assert options.endpoint_wish("m", raw) == options.EndpointWish(ingress_rate="10mbit")
    assert options.endpoint_wish("m", None) == options.EndpointWish()
    for key in ("com.docker.network.endpoint.ifname", "egres-rate"):
        with pytest.raises(Invalid, match=key):
            options.endpoint_wish("m", {key: msgspec.Raw(b'"x"')})


REQUESTS = [
    protocol.OfOptions,
    protocol.CreateNetwork,
    protocol.OfNetwork,
    protocol.OfEndpoint,
    protocol.CreateEndpoint,
    protocol.Join,
    protocol.ProgramExternalConnectivity,
    protocol.RequestPool,
    protocol.ReleasePool,
    protocol.RequestAddress,
    protocol.ReleaseAddress,
]
texts = st.text(alphabet="ab/.:\0\n\u2028é0", max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
names = st.sampled_from(["NetworkID", "EndpointID", "SandboxKey", "Options", "Interface", "IPv4Data", "PoolID", "Address", "Pool", "V6"])


@given(st.sampled_from(REQUESTS), st.binary() | st.dictionaries(names, values).map(lambda body: json.dumps(body).encode()))
@example(protocol.Join, b'{"NetworkID":"n","EndpointID":"e","SandboxKey":"/a\\u0000b"}')
@example(protocol.Join, b'{"NetworkID":"n","EndpointID":"e","SandboxKey":"' + b"/" * 2000 + b'"}')
@example(protocol.OfNetwork, b'{"NetworkID":"../../etc"}')
@example(protocol.OfNetwork, b'{"NetworkID":"n\\n"}')
@example(protocol.OfNetwork, b'{"NetworkID":"' + b"n" * 300 + b'"}')
@example(protocol.CreateNetwork, b'{"NetworkID":"n","Options":' + b"[" * 100_000)
@example(protocol.CreateEndpoint, b'{"NetworkID":"n","EndpointID":"e","Options":{"a":' + b'{"a":' * 100_000)
def test_whatever_comes_is_a_checked_request_or_one_line(kind: type[msgspec.Struct], body: bytes) -> None:
    try:
        found = protocol.decode("NetworkDriver.Method", body, kind)
    except Invalid as error:
        text = str(error)
        assert text.isprintable()
        assert len(text) < 600
    else:
        for name in ("network", "endpoint"):
            value = getattr(found, name, "x")
            assert 1 <= len(value) <= 64
            assert set(value) <= set(string.ascii_letters + string.digits)
