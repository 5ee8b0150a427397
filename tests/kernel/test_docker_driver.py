"""Docker's calls on a real engine: what each makes, again and in the wrong order, and that nothing is left of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from atoll.engine import Engine
from atoll.frontends.docker import Door
from atoll.frontends.docker.calls import answer
from atoll.frontends.docker.records import namespace_of
from atoll.model import Route
from tests.kernel.dockerd import Dockerd, endpoint_id, left, network_id, ports, sandbox_key
from tests.kernel.kernel_state import Shell, differences, exact, read

if TYPE_CHECKING:
    from atoll.model import Network


@pytest.fixture(params=[False, True], ids=["once", "each call twice"])
def dockerd(engine: Engine, request: pytest.FixtureRequest) -> Dockerd:
    return Dockerd(engine, again=request.param)


def atolls(dockerd: Dockerd, number: int) -> Network:
    return dockerd.door.network(network_id(number))


def settle_in(joined: dict[str, Any], namespace: str) -> None:
    """What Docker does with a link after Join."""
    name, address = joined["InterfaceName"], joined["Address"]
    Shell().run(
        f"ip link set {name['SrcName']} netns {namespace} name {name['DstPrefix']}0\n"
        f"ip -n {namespace} link set lo up\nip -n {namespace} link set eth0 address {joined['MacAddress']}\n"
        f"ip -n {namespace} address add {address} dev eth0\nip -n {namespace} link set eth0 up\n"
        f"ip -n {namespace} route add default via {joined['Gateway']}"
    )


def test_two_containers_and_a_process_of_atolls_reach_each_other_and_nothing_is_left(dockerd: Dockerd, engine: Engine) -> None:
    before = exact(read(Shell()))
    dockerd.create_network(1)
    for number in (1, 2):
        Shell().run(f"ip netns add box{number}")
        settle_in(dockerd.connect(1, number, number), f"box{number}")
    network = atolls(dockerd, 1)
    engine.create_namespace("plain")
    engine.connect(network.name, "plain")
    addresses = [endpoint.address(4) for endpoint in engine.state.endpoints_on(network)]
    assert len(set(addresses)) == 3
    for place in ("box1", "box2", "plain"):
        for address in addresses:
            assert Shell().succeeds(f"ip netns exec {place} ping -c1 -W2 {address}"), f"{place} to {address}"
    assert engine.differences() == []
    for number in (1, 2):
        # As Docker gives the link back between Leave and DeleteEndpoint, or doesn't when the container's namespace has gone.
        Shell().run(f"ip netns delete box{number}" if number == 1 else "true")
        dockerd.disconnect(1, number)
    Shell().run("ip netns delete box2")
    engine.remove_namespace("plain")
    dockerd.remove_network(1)
    assert left(dockerd) == {}
    engine.settle()
    assert differences(before, exact(read(Shell()))) == []


def test_the_link_for_docker_has_the_networks_mtu_and_the_endpoints_mac(dockerd: Dockerd, engine: Engine) -> None:
    dockerd.create_network(1, options={"com.docker.network.driver.mtu": "1400"})
    joined = dockerd.connect(1, 1, 1, mac="02:42:ac:11:00:02")
    link = engine.links()[joined["InterfaceName"]["SrcName"]]
    assert (link.mtu, link.mac) == (1400, "02:42:ac:11:00:02")
    assert engine.links()[joined["InterfaceName"]["SrcName"].replace("atc", "atv")].mtu == 1400
    assert joined["InterfaceName"]["DstPrefix"] == "eth"
    network = atolls(dockerd, 1)
    assert joined["Gateway"] == network.subnets[0].gateway
    assert "DisableGatewayService" not in joined


def test_a_sandbox_is_one_namespace_from_the_first_join_to_the_last_delete(dockerd: Dockerd, engine: Engine) -> None:
    dockerd.create_network(1)
    dockerd.create_network(2)
    dockerd.connect(1, 1, 7)
    dockerd.connect(2, 2, 7)
    dockerd.connect(2, 3, 8)
    assert sorted(engine.state.namespaces) == ["docker-000000000007", "docker-000000000008"]
    assert len(engine.state.endpoints_of("docker-000000000007")) == 2
    engine.rename_namespace("docker-000000000007", "web")
    found = namespace_of(engine, dockerd.door.records, sandbox_key(7))
    assert found is not None
    assert (found.name, found.kind) == ("web", "external")
    dockerd.disconnect(1, 1)
    dockerd.connect(1, 4, 7)
    assert len(engine.state.endpoints_of("web")) == 2
    for network, endpoint in ((2, 2), (1, 4), (2, 3)):
        dockerd.disconnect(network, endpoint)
    assert engine.state.namespaces == {}


def test_ports_are_open_from_external_connectivity_until_it_is_revoked(dockerd: Dockerd, engine: Engine) -> None:
    dockerd.create_network(1)
    ids = {"NetworkID": network_id(1), "EndpointID": endpoint_id(1)}
    options = {"com.docker.network.portmap": ports((8080, 80), (9000, 90), (9001, 91))}

    def published() -> list[str]:
        return [str(port) for endpoint in engine.state.endpoints.values() for port in endpoint.ports]

    dockerd.call("NetworkDriver.CreateEndpoint", **ids, Interface={}, Options=options)
    dockerd.call("NetworkDriver.Join", **ids, SandboxKey=sandbox_key(1), Options=options)
    assert published() == []
    dockerd.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options=options)
    assert published() == ["8080:80/tcp", "9000-9001:90-91/tcp"]
    dockerd.call("NetworkDriver.RevokeExternalConnectivity", **ids)
    assert published() == []
    dockerd.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options=None)
    assert published() == ["8080:80/tcp", "9000-9001:90-91/tcp"]
    dockerd.call("NetworkDriver.Leave", **ids)
    assert published() == []


def test_what_was_published_by_hand_outlives_a_change_of_the_gateway(dockerd: Dockerd, engine: Engine) -> None:
    dockerd.create_network(1)
    dockerd.connect(1, 1, 1, publish=[{"Proto": 6, "Port": 80, "HostPort": 8000, "HostPortEnd": 8009}, *ports((0, 81))])
    (end,) = engine.state.endpoints.values()
    engine.publish(end.namespace, ["9999:99"])
    ids = {"NetworkID": network_id(1), "EndpointID": endpoint_id(1)}
    dockerd.call("NetworkDriver.RevokeExternalConnectivity", **ids)
    assert [str(port) for port in engine.state.endpoints[end.id].ports] == ["9999:99/tcp"]
    dockerd.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options=None)
    assert "8000:80/tcp" in [str(port) for port in engine.state.endpoints[end.id].ports]
    assert len(engine.state.endpoints[end.id].ports) == 3
    dockerd.disconnect(1, 1)
    dockerd.remove_network(1)
    assert left(dockerd) == {}


def test_a_port_that_is_taken_is_refused_with_its_holder_and_can_be_tried_again(engine: Engine) -> None:
    dockerd = Dockerd(engine)
    dockerd.create_network(1)
    dockerd.connect(1, 1, 1, publish=ports((8080, 80)))
    dockerd.connect(1, 2, 2)
    ids = {"NetworkID": network_id(1), "EndpointID": endpoint_id(2)}
    options = {"com.docker.network.portmap": ports((8080, 80))}
    text = dockerd.refused("NetworkDriver.ProgramExternalConnectivity", **ids, Options=options)
    assert text.startswith("port 8080/tcp is published by docker-000000000001; ")
    dockerd.disconnect(1, 1)
    dockerd.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options=options)


@pytest.mark.parametrize("ipam", ["atoll", "default", "null"])
def test_each_ipam_gives_addresses_that_are_on_the_network_and_nobody_elses(dockerd: Dockerd, engine: Engine, ipam: str) -> None:
    dockerd.create_network(1, ipam=ipam, subnets=["10.88.0.0/24"] if ipam == "default" else [""])
    network = atolls(dockerd, 1)
    engine.create_namespace("plain")
    taken = [engine.connect(network.name, "plain").address(4)]
    for number in (2, 3):
        joined = dockerd.connect(1, number, number, address=f"10.88.0.{number}/24" if ipam == "default" else "")
        address, _, length = joined["Address"].partition("/")
        assert length == network.subnets[0].subnet.partition("/")[2]
        taken.append(address)
    assert len({*taken, network.subnets[0].gateway}) == 4
    assert sorted(taken) == sorted(endpoint.address(4) for endpoint in engine.state.endpoints_on(network))
    for number in (2, 3):
        dockerd.disconnect(1, number)
    engine.remove_namespace("plain")
    dockerd.remove_network(1)
    assert left(dockerd) == {}


def test_static_addresses_ranges_gateways_and_reserved_ones(dockerd: Dockerd, engine: Engine) -> None:
    aux = {"printer": "10.77.1.1", "DefaultGatewayIPv4": "10.77.0.9"}
    dockerd.create_network(1, subnets=["10.77.0.0/16"], gateway="10.77.0.200", ip_range="10.77.1.0/30", aux=aux)
    subnet = atolls(dockerd, 1).subnets[0]
    assert (subnet.gateway, subnet.ranges, subnet.reserved) == ("10.77.0.200", ("10.77.1.0/30",), aux)
    joined = [dockerd.connect(1, number, number) for number in (1, 2, 3)]
    assert {one["Address"] for one in joined} == {"10.77.1.0/16", "10.77.1.2/16", "10.77.1.3/16"}
    assert joined[0]["Gateway"] == "10.77.0.9"
    assert dockerd.connect(1, 4, 4, address="10.77.3.3")["Address"] == "10.77.3.3/16"
    pool = next(iter(dockerd.door.records.pools))
    for wanted, why in (
        ("10.77.3.3", "in use|held by"),
        ("10.77.1.1", "reserved as printer"),
        ("10.99.0.1", "not in a subnet"),
        ("", "no free"),
    ):
        text = dockerd.refused("IpamDriver.RequestAddress", PoolID=pool, Address=wanted, Options={})
        assert any(words in text for words in why.split("|")), text
    for number in (1, 2, 3, 4):
        dockerd.disconnect(1, number)
    dockerd.remove_network(1)
    assert left(dockerd) == {}


def test_an_address_is_dockers_until_it_is_released(engine: Engine) -> None:
    dockerd = Dockerd(engine)
    dockerd.create_network(1, subnets=["10.77.0.0/29"])
    joined = dockerd.connect(1, 1, 1)
    address = joined["Address"].partition("/")[0]
    ids = {"NetworkID": network_id(1), "EndpointID": endpoint_id(1)}
    for method in ("Leave", "DeleteEndpoint"):
        dockerd.call(f"NetworkDriver.{method}", **ids)
    engine.create_namespace("plain")
    name = atolls(dockerd, 1).name
    with pytest.raises(Exception, match=f"{address} is held by docker"):
        engine.connect(name, "plain", addresses=[address])
    pool = next(iter(dockerd.door.records.pools))
    dockerd.call("IpamDriver.ReleaseAddress", PoolID=pool, Address=address)
    engine.connect(name, "plain", addresses=[address])
    # It is somebody else's now, and another release changes nothing.
    dockerd.call("IpamDriver.ReleaseAddress", PoolID=pool, Address=address)
    assert engine.state.endpoint(atolls(dockerd, 1), "plain").address(4) == address
    assert "is held by plain" in dockerd.refused("IpamDriver.RequestAddress", PoolID=pool, Address=address, Options={})


def test_pools_are_different_ones_while_they_are_held(engine: Engine) -> None:
    dockerd = Dockerd(engine)
    engine.create_network("plain")
    found = [dockerd.call("IpamDriver.RequestPool", AddressSpace="AtollLocal", Pool="", V6=v6) for v6 in (False, True) for _ in range(5)]
    subnets = {pool["Pool"] for pool in found} | {engine.state.network("plain").subnets[0].subnet}
    assert len(subnets) == 11
    for pool in found:
        dockerd.call("IpamDriver.ReleasePool", PoolID=pool["PoolID"])
    assert engine.pools() == []
    sized = dockerd.call("IpamDriver.RequestPool", AddressSpace="AtollLocal", Pool="0.0.0.0/28")
    assert sized["Pool"].endswith("/28")


def test_a_network_of_atolls_is_joined_with_its_addresses_and_stays(dockerd: Dockerd, engine: Engine) -> None:
    engine.create_network("front", subnets=["10.66.0.0/24", "fd66::/64"], gateways=["10.66.0.254"])
    engine.create_namespace("plain")
    engine.connect("front", "plain")
    dockerd.create_network(1, ipam_options={"network": "front"}, subnets=["", "fd66::/64"], ipv6=True)
    dockerd.create_network(2, ipam_options={"network": "front"}, options={"network": "front"})
    assert atolls(dockerd, 1) == atolls(dockerd, 2) == engine.state.network("front")
    joined = dockerd.connect(1, 1, 1)
    assert (joined["Gateway"], joined["GatewayIPv6"]) == ("10.66.0.254", "fd66::1")
    dockerd.connect(2, 2, 2)
    dockerd.disconnect(2, 2)
    dockerd.remove_network(2)
    assert [endpoint.namespace for endpoint in engine.state.endpoints_on(engine.state.network("front"))] == ["plain", "docker-000000000001"]
    dockerd.disconnect(1, 1)
    dockerd.remove_network(1)
    engine.remove_namespace("plain")
    engine.remove_network("front")
    assert left(dockerd) == {}


def test_a_container_may_be_twice_on_one_network_of_atolls(dockerd: Dockerd, engine: Engine) -> None:
    engine.create_network("front", subnets=["10.66.0.0/24"])
    for number in (1, 2):
        dockerd.create_network(number, ipam_options={"network": "front"})
    first = dockerd.connect(1, 1, 7, publish=ports((8080, 80)))
    second = dockerd.connect(2, 2, 7, publish=ports((8081, 80)))
    assert first["Address"] != second["Address"]
    assert first["InterfaceName"] != second["InterfaceName"]
    ends = engine.state.endpoints_of("docker-000000000007")
    assert sorted(str(port) for end in ends for port in end.ports) == ["8080:80/tcp", "8081:80/tcp"]
    dockerd.disconnect(1, 1)
    assert [end.address(4) for end in engine.state.endpoints_of("docker-000000000007")] == [second["Address"].partition("/")[0]]
    dockerd.disconnect(2, 2)
    for number in (1, 2):
        dockerd.remove_network(number)
    engine.remove_network("front")
    assert left(dockerd) == {}


def test_an_internal_network_has_no_way_out_and_docker_adds_none(dockerd: Dockerd) -> None:
    dockerd.create_network(1, internal=True)
    joined = dockerd.connect(1, 1, 1)
    assert "Gateway" not in joined
    assert joined["DisableGatewayService"] is True
    assert atolls(dockerd, 1).internal


def test_both_families_and_one_that_docker_left_open(dockerd: Dockerd, engine: Engine) -> None:
    dockerd.create_network(1, subnets=["", "fd12:1::/64"], ipv6=True)
    joined = dockerd.connect(1, 1, 1, address="fd12:1::5")
    assert (joined["AddressIPv6"], joined["GatewayIPv6"]) == ("fd12:1::5/64", "fd12:1::1")
    # dockerd 20.10 asks for no IPv6 pool when none is named.
    dockerd.create_network(2, ipv6=True)
    joined = dockerd.connect(2, 2, 2)
    assert joined["AddressIPv6"].endswith("/64")
    assert engine.state.networks[atolls(dockerd, 2).id].has(6)
    for number in (1, 2):
        dockerd.disconnect(number, number)
        dockerd.remove_network(number)
    assert left(dockerd) == {}


def test_what_is_long_gone_is_taken_away_with_success(dockerd: Dockerd) -> None:
    ids = {"NetworkID": network_id(9), "EndpointID": endpoint_id(9)}
    for method in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint", "EndpointOperInfo"):
        dockerd.call(f"NetworkDriver.{method}", **ids)
    dockerd.call("NetworkDriver.DeleteNetwork", NetworkID=network_id(9))
    dockerd.call("IpamDriver.ReleaseAddress", PoolID="docker-0123456789", Address="10.0.0.1")
    dockerd.call("IpamDriver.ReleasePool", PoolID="docker-0123456789")
    assert left(dockerd) == {}


def test_a_network_that_others_use_by_now_stays_as_theirs(dockerd: Dockerd, engine: Engine) -> None:
    dockerd.create_network(1)
    network = atolls(dockerd, 1)
    engine.create_namespace("plain")
    engine.connect(network.name, "plain")
    dockerd.connect(1, 1, 1)
    dockerd.disconnect(1, 1)
    dockerd.remove_network(1)
    assert engine.state.network(network.id).labels == {}
    assert left(dockerd) == {
        "networks": [network.name],
        "namespaces": ["plain"],
        "endpoints": [engine.state.endpoints_on(network)[0].id],
        "links": left(dockerd)["links"],
    }


def test_everything_goes_on_after_a_restart_of_the_daemon(host: None, tmp_path: Path) -> None:
    with Engine.open(tmp_path) as engine:
        dockerd = Dockerd(engine)
        dockerd.create_network(1, subnets=["10.77.0.0/24"])
        dockerd.connect(1, 1, 1, publish=ports((8080, 80)))
        unused = dockerd.call("IpamDriver.RequestPool", AddressSpace="AtollLocal", Pool="10.78.0.0/24")["PoolID"]
        taken = dockerd.call("IpamDriver.RequestAddress", PoolID=unused, Address="10.78.0.9", Options={})["Address"]
    with Engine.open(tmp_path) as engine:
        dockerd.door = Door(engine)
        assert "in use" in dockerd.refused("IpamDriver.RequestAddress", PoolID=unused, Address=taken.partition("/")[0], Options={})
        ids = {"NetworkID": network_id(1), "EndpointID": endpoint_id(1)}
        again = dockerd.call("NetworkDriver.Join", **ids, SandboxKey=sandbox_key(1), Options=None)
        assert again["InterfaceName"]["SrcName"] in engine.links()
        dockerd.connect(1, 2, 2)
        dockerd.call("IpamDriver.ReleasePool", PoolID=unused)
        for number in (1, 2):
            dockerd.disconnect(1, number)
        dockerd.remove_network(1)
        assert left(dockerd) == {}


def test_a_session_of_dockerd_as_it_was_recorded(engine: Engine) -> None:
    """docker_calls.jsonl: what dockerd 20.10.24 called and what it was answered, a line each, while somebody typed:

    docker network create -d atoll --ipam-driver atoll --subnet 10.5.0.0/24 --ip-range 10.5.0.128/25 --gateway 10.5.0.254
        --aux-address printer=10.5.0.9 -o com.docker.network.driver.mtu=1400 n1
    docker network create -d atoll --subnet 10.6.0.0/24 --ipv6 --subnet fd06::/64 n2
    docker network create -d atoll --internal --ipam-driver null n3
    docker run -d --name web --network n1 -p 8080:80 -p 127.0.0.1:8443:443 -p 9000-9002:9000-9002/udp busybox sleep 600
    docker network connect --ip 10.6.0.77 --alias www n2 web; docker network connect n3 web; docker network disconnect n1 web
    docker restart -t 0 web
    docker run --rm --network n2 -p 7000-7005:70 -p 71 --expose 72 -P busybox true
    docker rm -f web; docker network rm n1 n2 n3
    """
    door = Door(engine)
    published: list[set[str]] = []
    same: dict[str, str] = {}
    for line in Path(__file__).with_name("docker_calls.jsonl").read_text().splitlines():
        method, request, recorded = json.loads(line)
        if "PoolID" in (request or {}):
            request["PoolID"] = same[request["PoolID"]]
        reply = answer(door, method, b"" if request is None else json.dumps(request).encode())
        shown = json.loads(reply.body)
        if "PoolID" in shown:
            same[recorded["PoolID"]] = shown["PoolID"]
        for part, name in (
            (recorded, "PoolID"),
            (recorded.get("InterfaceName", {}), "SrcName"),
            (recorded.get("Interface", {}), "Address"),
        ):
            if name in part:  # these are drawn by chance, or chosen by what else there is on a host
                part[name] = (shown | shown.get("InterfaceName", {}) | shown.get("Interface", {}))[name]
        assert (reply.status, shown) == (200, recorded), method
        published.append({str(port) for end in engine.state.endpoints.values() for port in end.ports})
    assert {"8080:80/tcp", "127.0.0.1:8443:443/tcp", "9000-9002:9000-9002/udp"} in published
    assert any("7000:70/tcp" in ports and len(ports) == 6 for ports in published)
    assert left(Dockerd(engine)) == {}


def test_macvlan_puts_containers_on_the_parents_network(dockerd: Dockerd, engine: Engine) -> None:
    Shell().run("ip link add wan0 type veth peer name wan1\nip link set wan0 up\nip link set wan1 up\nip netns add box1")
    dockerd.create_network(1, subnets=["10.44.0.0/24"], gateway="10.44.0.1", options={"driver": "macvlan", "parent": "wan0"})
    joined = dockerd.connect(1, 1, 1)
    spare = engine.links()[joined["InterfaceName"]["SrcName"]]
    assert (spare.kind, spare.mac) == ("macvlan", joined["MacAddress"])
    settle_in(joined, "box1")
    ids = {"NetworkID": network_id(1), "EndpointID": endpoint_id(1)}
    options = {"com.docker.network.portmap": ports((8080, 80))}
    refused = dockerd.refused("NetworkDriver.ProgramExternalConnectivity", **ids, Options=options)
    assert "driver macvlan can't publish ports" in refused
    dockerd.disconnect(1, 1)
    dockerd.remove_network(1)
    Shell().run("ip netns delete box1")
    assert left(dockerd) == {}
    assert [name for name in engine.links() if name not in ("lo", "wan0", "wan1")] == []


@pytest.mark.parametrize(
    ("options", "internal", "answer"),
    [
        ({"com.docker.network.container_iface_prefix": "net"}, False, {"DstPrefix": "net", "Gateway": "10.45.0.1"}),
        ({"com.docker.network.bridge.inhibit_ipv4": "true"}, False, {"DstPrefix": "eth", "Gateway": "10.45.0.1"}),
        ({"no-default-route": "true"}, False, {"DstPrefix": "eth", "DisableGatewayService": True}),
        ({"com.docker.network.bridge.gateway_mode_ipv4": "routed"}, False, {"DstPrefix": "eth", "Gateway": "10.45.0.1"}),
        ({"com.docker.network.bridge.gateway_mode_ipv4": "isolated"}, True, {"DstPrefix": "eth", "DisableGatewayService": True}),
    ],
)
def test_what_a_network_is_like_is_said_at_join(dockerd: Dockerd, options: dict[str, str], internal: bool, answer: dict[str, Any]) -> None:
    dockerd.create_network(1, subnets=["10.45.0.0/24"], options=options, internal=internal)
    joined = dockerd.connect(1, 1, 1)
    said = {"DstPrefix": joined["InterfaceName"]["DstPrefix"]} | {
        name: joined[name] for name in ("Gateway", "DisableGatewayService") if name in joined
    }
    assert said == answer


def test_the_routes_of_a_network_are_docker_to_set(dockerd: Dockerd, engine: Engine) -> None:
    routes = [Route("10.99.0.0/16", "10.66.0.7"), Route("10.98.0.0/16"), Route("10.97.0.0/16", kind="blackhole")]
    engine.create_network("front", subnets=["10.66.0.0/24"], routes=routes)
    dockerd.create_network(1, ipam_options={"network": "front"})
    assert dockerd.connect(1, 1, 1)["StaticRoutes"] == [
        {"Destination": "10.99.0.0/16", "RouteType": 0, "NextHop": "10.66.0.7"},
        {"Destination": "10.98.0.0/16", "RouteType": 1},
    ]


def test_what_newer_versions_of_docker_say_as_well(dockerd: Dockerd, engine: Engine) -> None:
    """Since 28: GwAllocCheck, a network without IPv4, no_proxy_6to4, MAC addresses as bytes, and fields that nobody knows yet."""
    network, endpoint = network_id(1), endpoint_id(1)
    options = {
        "com.docker.network.enable_ipv4": False,
        "com.docker.network.enable_ipv6": True,
        "com.docker.network.generic": {"com.docker.network.bridge.gateway_mode_ipv6": "routed", "com.docker.network.enable_ipv4": "false"},
        "com.docker.network.later": {"a": [1]},
    }
    assert dockerd.call("NetworkDriver.GwAllocCheck", Options=options, Later=1) == {"SkipIPv4": False, "SkipIPv6": False}
    data = [{"AddressSpace": "LocalDefault", "Pool": "fd12::/64", "Gateway": "fd12::1/64"}]
    dockerd.call("NetworkDriver.CreateNetwork", NetworkID=network, Options=options, IPv4Data=None, IPv6Data=data)
    assert not atolls(dockerd, 1).has(4)
    ids = {"NetworkID": network, "EndpointID": endpoint}
    flat = {"com.docker.network.endpoint.macaddress": "AkKsEgAC", "com.docker.network.endpoint.dnsservers": ["192.0.2.53"]}
    interface = {"Address": "", "AddressIPv6": "fd12::2/64", "MacAddress": "02:42:ac:12:00:02"}
    assert dockerd.call("NetworkDriver.CreateEndpoint", **ids, Interface=interface, Options=flat) == {"Interface": {}}
    joined = dockerd.call("NetworkDriver.Join", **ids, SandboxKey=sandbox_key(1), Options={})
    assert (joined["GatewayIPv6"], "Gateway" in joined, "DisableGatewayService" in joined) == ("fd12::1", False, False)
    said = {"com.docker.network.portmap": ports((8080, 80)), "com.docker.network.driver.private.no_proxy_6to4": True}
    dockerd.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options=said)
    assert [str(port) for end in engine.state.endpoints.values() for port in end.ports] == ["8080:80/tcp"]
