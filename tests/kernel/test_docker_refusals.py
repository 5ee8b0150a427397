"""Docker's calls that make no sense, on a real engine: in the wrong order, with wrong bodies and hostile words. Each is refused in one line
and changes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from atoll.frontends.docker import Door
from atoll.frontends.docker.calls import METHODS, answer
from tests.kernel.dockerd import Dockerd, endpoint_id, left, network_id, sandbox_key

if TYPE_CHECKING:
    from atoll.engine import Engine


def test_an_address_that_dockers_own_ipam_gave_twice_over_is_refused_with_its_holder(engine: Engine) -> None:
    dockerd = Dockerd(engine)
    dockerd.create_network(1, ipam="default", subnets=["10.88.0.0/24"])
    engine.create_namespace("plain")
    engine.connect(dockerd.door.network(network_id(1)).name, "plain", addresses=["10.88.0.5"])
    ids = {"NetworkID": network_id(1), "EndpointID": endpoint_id(1)}
    text = dockerd.refused("NetworkDriver.CreateEndpoint", **ids, Interface={"Address": "10.88.0.5/24"}, Options={})
    assert text.startswith("10.88.0.5 is held by plain ")
    assert dockerd.door.records.endpoints == {}


def test_a_network_that_does_not_fit_is_not_joined(engine: Engine) -> None:
    dockerd = Dockerd(engine)
    engine.create_network("front", subnets=["10.66.0.0/24"])

    def create(options: dict[str, Any], **data: Any) -> str:
        body = {"NetworkID": network_id(1), "Options": options, "IPv4Data": [{"AddressSpace": "LocalDefault", **data}]}
        return dockerd.refused("NetworkDriver.CreateNetwork", **body)

    def generic(**options: str) -> dict[str, Any]:
        return {"com.docker.network.generic": options}

    assert "no network named back" in create(generic(network="back"), Pool="10.66.0.0/24")
    assert "has the subnets 10.66.0.0/24, not 10.67.0.0/24" in create(generic(network="front"), Pool="10.67.0.0/24")
    assert "has the gateway 10.66.0.1, not 10.66.0.7" in create(generic(network="front"), Pool="10.66.0.0/24", Gateway="10.66.0.7/24")
    assert "leave out -o mtu" in create(generic(network="front", mtu="1400"), Pool="10.66.0.0/24")
    assert "is not internal" in create(generic(network="front") | {"com.docker.network.internal": True}, Pool="10.66.0.0/24")
    assert "not one for Docker's containers" in create(generic(network="host"), Pool="10.66.0.0/24")
    assert "overlaps 10.66.0.0/24 of network front" in create(generic(), Pool="10.66.0.0/25")
    for wrong in ({"network": "back"}, {"netwrok": "front"}, {"network": "none"}):
        assert dockerd.refused("IpamDriver.RequestPool", AddressSpace="AtollLocal", Options=wrong)
    assert "no IPv6" in dockerd.refused("IpamDriver.RequestPool", AddressSpace="AtollLocal", Options={"network": "front"}, V6=True)
    engine.remove_network("front")
    assert left(dockerd) == {}


def test_calls_in_the_wrong_order_are_refused_and_change_nothing(engine: Engine) -> None:
    dockerd = Dockerd(engine)
    ids = {"NetworkID": network_id(1), "EndpointID": endpoint_id(1)}
    assert "Docker's network" in dockerd.refused("NetworkDriver.CreateEndpoint", **ids, Interface=None, Options=None)
    assert "Docker's network" in dockerd.refused("NetworkDriver.Join", **ids, SandboxKey=sandbox_key(1), Options=None)
    dockerd.create_network(1)
    dockerd.create_network(2)
    assert "Docker's endpoint" in dockerd.refused("NetworkDriver.Join", **ids, SandboxKey=sandbox_key(1), Options=None)
    dockerd.call("NetworkDriver.CreateEndpoint", **ids, Interface=None, Options=None)
    assert "not joined" in dockerd.refused("NetworkDriver.ProgramExternalConnectivity", **ids, Options=None)
    for method, fields in (("CreateEndpoint", {"Interface": None}), ("Join", {"SandboxKey": sandbox_key(1)})):
        wrong = {"NetworkID": network_id(2), "EndpointID": endpoint_id(1), "Options": None}
        assert "on another network" in dockerd.refused(f"NetworkDriver.{method}", **wrong, **fields)
    # Docker moves an endpoint that has left to another sandbox.
    for number in (1, 2):
        dockerd.call("NetworkDriver.Join", **ids, SandboxKey=sandbox_key(number), Options=None)
        dockerd.call("NetworkDriver.Leave", **ids)
    assert list(engine.state.namespaces) == ["docker-000000000002"]
    # A network goes with all that Docker forgot on it.
    for number in (1, 2):
        dockerd.remove_network(number)
    assert left(dockerd) == {}


@pytest.mark.parametrize(
    "body", [b"", b" ", b"null", b"[]", b"{}", b"{", b'"x"', b"\xff\xfe", b'{"NetworkID":1,"EndpointID":[],"PoolID":{}}']
)
def test_empty_and_wrong_bodies_are_refused_and_change_nothing(engine: Engine, body: bytes) -> None:
    door = Door(engine)
    bare = ("Plugin.Activate", "GetCapabilities", "GetDefaultAddressSpaces", "Discover")
    harmless = ("GwAllocCheck", "RequestPool") if body.endswith(b"}") else ()  # they need nothing, and unknown fields are ignored
    for name in METHODS:
        if any(part in name for part in (*bare, *harmless)):
            continue
        reply = answer(door, name, body)
        text = json.loads(reply.body)["Err"]
        assert (reply.status, text.isprintable()) == (400, True), name
    assert left(Dockerd(engine)) == {}


def test_hostile_words_are_refused_in_one_line_and_change_nothing(engine: Engine) -> None:
    dockerd = Dockerd(engine)
    dockerd.create_network(1)
    dockerd.connect(1, 1, 1)
    before = left(dockerd), engine.state.networks.copy(), engine.state.endpoints.copy()
    nasty = ["../../etc/passwd", "a\0b", "a\nb", "x" * 300, "\u2028", "-", "%s", "$(reboot)", "0/0", "::/0", "999.1.1.1/8"]
    ids = {"NetworkID": network_id(2), "EndpointID": endpoint_id(2)}
    on_one = {"NetworkID": network_id(1), "EndpointID": endpoint_id(2)}
    generic = "com.docker.network.generic"
    space = {"AddressSpace": "AtollLocal"}
    pool = next(iter(dockerd.door.records.pools))
    for word in nasty:
        calls: list[tuple[str, dict[str, Any]]] = [
            ("NetworkDriver.CreateNetwork", {**ids, "Options": {generic: {"network": word}}}),
            ("NetworkDriver.CreateNetwork", {**ids, "Options": {generic: {word: "x"}}}),
            ("NetworkDriver.CreateNetwork", {**ids, "Options": {generic: {"driver": word}}}),
            ("NetworkDriver.CreateNetwork", {**ids, "Options": {generic: {"com.docker.network.bridge.name": word}}}),
            ("NetworkDriver.CreateNetwork", {**ids, "IPv4Data": [{"AddressSpace": "x", "Pool": f"{word}x"}]}),
            ("NetworkDriver.CreateNetwork", {**ids, "IPv4Data": [{"AddressSpace": "AtollLocal", "Pool": word}]}),
            ("NetworkDriver.CreateNetwork", {**ids, "IPv4Data": [{"Pool": "10.5.0.0/24", "Gateway": word}]}),
            ("NetworkDriver.CreateNetwork", {**ids, "IPv4Data": [{"Pool": "10.5.0.0/24", "AuxAddresses": {"a": word}}]}),
            ("NetworkDriver.CreateEndpoint", {**on_one, "Interface": {"Address": word}}),
            ("NetworkDriver.CreateEndpoint", {**on_one, "Interface": {"MacAddress": word}}),
            ("NetworkDriver.CreateEndpoint", {**on_one, "Options": {word: "x"}}),
            ("NetworkDriver.CreateEndpoint", {**on_one, "Options": {"com.docker.network.portmap": word}}),
            ("IpamDriver.RequestPool", {**space, "Pool": word}),
            ("IpamDriver.RequestPool", {**space, "Pool": "10.5.0.0/24", "SubPool": word}),
            ("IpamDriver.RequestPool", {**space, "Options": {"network": word}}),
            ("IpamDriver.RequestPool", {"AddressSpace": word}),
            ("IpamDriver.RequestAddress", {"PoolID": word, "Address": ""}),
            ("IpamDriver.RequestAddress", {"PoolID": pool, "Address": word}),
            ("IpamDriver.ReleaseAddress", {"PoolID": pool, "Address": word}),
        ]
        for method, fields in calls:
            reply = answer(dockerd.door, method, json.dumps(fields).encode())
            shown = json.loads(reply.body)
            assert reply.status in (200, 400), (method, fields, shown)
            assert set(shown) <= {"Err", "Error"}, (method, fields, shown)
            assert len(shown) == 1, (method, fields)
            (text,) = shown.values()
            assert text.isprintable(), text
            assert len(text) < 600
        for key in (word, f"/{word}", f"/run/../{word}"):
            reply = answer(dockerd.door, "NetworkDriver.Join", json.dumps({**ids, "SandboxKey": key}).encode())
            assert reply.status in (200, 400)
            assert "Err" in json.loads(reply.body)
    assert (left(dockerd), engine.state.networks, engine.state.endpoints) == before
    assert answer(dockerd.door, "NetworkDriver.Destroy", b"{}").status == 404
    assert answer(dockerd.door, "../../x\n", b"{}").body.decode().isprintable()


def test_a_sandbox_by_any_name_gets_a_namespace_of_a_proper_name(engine: Engine) -> None:
    dockerd = Dockerd(engine)
    dockerd.create_network(1)
    for number, key in enumerate(["/a/..", "/b/1-netid~x", "/c/1-netid~x", "/d/" + "y" * 200, "/e/"]):
        ids = {"NetworkID": network_id(1), "EndpointID": endpoint_id(number)}
        dockerd.call("NetworkDriver.CreateEndpoint", **ids, Interface=None, Options=None)
        dockerd.call("NetworkDriver.Join", **ids, SandboxKey=key, Options=None)
    assert list(engine.state.namespaces) == ["docker", "docker-1-netid-x", "docker-1-netid-x-2", "docker-yyyyyyyyyyyy", "docker-e"]


def test_a_network_that_somebody_removed_is_named_and_docker_can_remove_it(engine: Engine) -> None:
    dockerd = Dockerd(engine)
    dockerd.create_network(1)
    engine.remove_network(dockerd.door.network(network_id(1)).name)
    ids = {"NetworkID": network_id(1), "EndpointID": endpoint_id(1)}
    assert "was removed from Atoll" in dockerd.refused("NetworkDriver.CreateEndpoint", **ids, Interface=None, Options=None)
    pool = next(iter(dockerd.door.records.pools))
    assert "was removed from Atoll" in dockerd.refused("IpamDriver.RequestAddress", PoolID=pool, Address="", Options=None)
    dockerd.remove_network(1)
    assert left(dockerd) == {}
