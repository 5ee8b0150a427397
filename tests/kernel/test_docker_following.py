"""What Docker's API shows, carried over to an engine: names, aliases, labels, resolvers; and what is taken away, or made again, by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from atoll.frontends.docker import Door, follow, stale
from atoll.frontends.docker.api import Container, DockerNetworkThere, EndpointThere
from atoll.frontends.docker.watch import Watch
from tests.kernel.dockerd import Dockerd, endpoint_id, left, network_id, ports

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll import Engine
    from atoll.model import Namespace

CONTAINER = "c0ffee" * 10 + "c0de"


@pytest.fixture
def dockerd(engine: Engine) -> Dockerd:
    """Network 1 with Atoll's IPAM and two containers, network 2 with Docker's own and one, network 3 without an address."""
    made = Dockerd(engine)
    made.create_network(1, subnets=["10.5.0.0/24"], aux={"printer": "10.5.0.9"})
    made.create_network(2, ipam="default", subnets=["10.6.0.0/24", "fd06::/64"], ipv6=True)
    made.create_network(3, ipam="null", internal=True)
    made.connect(1, 11, 1, publish=ports((8080, 80)))
    made.connect(1, 12, 2)
    made.connect(2, 21, 2, address="10.6.0.2/24")
    return made


def shown(dockerd: Dockerd, *numbers: int, without: tuple[int, ...] = ()) -> list[DockerNetworkThere]:
    """These networks as Docker's API shows them, `without` some endpoints."""
    found = []
    gone = {endpoint_id(number) for number in without}
    for number in numbers:
        network = dockerd.door.network(network_id(number))
        pools = [{"Subnet": s.subnet, "Gateway": s.gateway, "AuxiliaryAddresses": s.reserved or None} for s in network.subnets]
        records = [record for record in dockerd.door.records.on_network(network_id(number)) if record.id not in gone]
        value = {
            "Id": network_id(number),
            "Name": f"net{number}",
            "Driver": "atoll",
            "Internal": number == 3,
            "EnableIPv6": number == 2,
            "Options": {},
            "Labels": {"colour": "red", "": "no key", "line": "a\nb"},
            "IPAM": {"Driver": {1: "atoll", 2: "default", 3: "null"}[number], "Config": pools},
            "Containers": {r.id: {"EndpointID": r.id, "IPv4Address": r.addresses[0] if r.addresses else ""} for r in records},
        }
        found.append(msgspec.convert(value, DockerNetworkThere))
    return found


def compare(dockerd: Dockerd, networks: list[DockerNetworkThere]) -> stale.Missing:
    return stale.missing(dockerd.door, stale.here(dockerd.door), stale.There(networks))


def test_what_docker_has_is_left_alone(dockerd: Dockerd) -> None:
    found = compare(dockerd, shown(dockerd, 1, 2, 3))
    assert (found.stale, found.lost, found.bare) == (set(), set(), set())


def test_what_docker_has_not_goes_and_nothing_else(dockerd: Dockerd) -> None:
    there = shown(dockerd, 1, 3, without=(12,))
    assert stale.remove(dockerd.door, compare(dockerd, there).stale) == []
    assert set(dockerd.door.records.endpoints) == {endpoint_id(11)}
    assert set(dockerd.door.records.networks) == {network_id(1), network_id(3)}
    assert compare(dockerd, shown(dockerd, 1, 3)).stale == set()
    # The address is free again, and what stays goes on.
    assert dockerd.connect(1, 13, 3, address="10.5.0.3")["Address"] == "10.5.0.3/24"


def test_nothing_is_left_when_docker_has_nothing(dockerd: Dockerd) -> None:
    engine = dockerd.door.engine
    dockerd.call("IpamDriver.RequestPool", AddressSpace="AtollLocal", Pool="10.7.0.0/24")  # and no network after it
    dockerd.call("IpamDriver.RequestAddress", PoolID=dockerd._pools[network_id(1)][0][0], Address="10.5.0.77")  # and no endpoint
    engine.create_external("nobody", source="docker:/var/run/docker/netns/nobody")
    engine.create_namespace("mine")
    assert stale.remove(dockerd.door, compare(dockerd, []).stale) == []
    assert left(dockerd) == {"namespaces": ["mine"]}


def test_a_pool_that_nothing_came_of_goes_though_another_has_its_subnet(dockerd: Dockerd) -> None:
    """As when we were killed in the middle of a call for one, and Docker asked anew, for the network that it then made."""
    unused = dockerd.call("IpamDriver.RequestPool", AddressSpace="AtollLocal", Pool="10.5.0.0/24")["PoolID"]
    found = compare(dockerd, shown(dockerd, 1, 2, 3)).stale
    assert found == {stale.Item("pool", unused)}
    assert stale.remove(dockerd.door, found) == []
    assert compare(dockerd, shown(dockerd, 1, 2, 3)).stale == set()


def test_a_pool_of_another_driver_s_network_stays(dockerd: Dockerd) -> None:
    dockerd.call("IpamDriver.RequestPool", AddressSpace="AtollLocal", Pool="10.7.0.0/24")
    theirs = msgspec.structs.replace(shown(dockerd, 1)[0], id="f" * 64, driver="bridge")
    pools = [msgspec.structs.replace((theirs.ipam.pools or [])[0], subnet="10.7.0.0/24")]
    theirs = msgspec.structs.replace(theirs, ipam=msgspec.structs.replace(theirs.ipam, pools=pools), endpoints=None)
    assert compare(dockerd, [*shown(dockerd, 1, 2, 3), theirs]).stale == set()


def test_a_pool_that_was_recorded_and_not_opened_is_forgotten_at_the_next_start(dockerd: Dockerd) -> None:
    engine = dockerd.door.engine
    kept = dockerd.call("IpamDriver.RequestPool", AddressSpace="AtollLocal", Pool="10.7.0.0/24")["PoolID"]
    half = dockerd.call("IpamDriver.RequestPool", AddressSpace="AtollLocal", Pool="10.8.0.0/24")["PoolID"]
    before = set(dockerd.door.records.pools)
    engine.close_pool(half)  # as if it had never come to that
    assert set(Door(engine).records.pools) == before - {half}
    assert kept in before - {half}


def test_what_came_after_the_look_is_not_missed(dockerd: Dockerd) -> None:
    before = stale.here(dockerd.door)
    there = stale.There(shown(dockerd, 1, 2, 3))
    dockerd.connect(1, 13, 3)
    dockerd.create_network(4)
    assert stale.missing(dockerd.door, before, there).stale == set()


def test_a_network_that_we_lost_is_made_again_as_it_was(dockerd: Dockerd) -> None:
    before = {number: dockerd.door.network(network_id(number)) for number in (1, 2, 3)}
    networks = shown(dockerd, 1, 2, 3)
    stale.remove(dockerd.door, compare(dockerd, []).stale)
    assert compare(dockerd, networks).lost == {network_id(number) for number in (1, 2, 3)}
    said = [stale.restore(dockerd.door, network) for network in networks]
    assert "address pool" in said[0]  # by its IPAM driver's own id, which Docker tells nobody
    assert said[1:] == ["", ""]
    after = dockerd.door.network(network_id(2))
    assert [(s.subnet, s.gateway, s.ranges) for s in after.subnets] == [(s.subnet, s.gateway, s.ranges) for s in before[2].subnets]
    assert dockerd.door.network(network_id(3)).internal
    # Its containers can't be put back from here.
    assert compare(dockerd, networks).bare == {endpoint_id(11), endpoint_id(12), endpoint_id(21)}


def test_an_endpoint_that_is_in_no_container_needs_no_restart(dockerd: Dockerd) -> None:
    (there,) = shown(dockerd, 1)
    ends = {f"ep-{endpoint_id(99)}": EndpointThere(endpoint_id(99)), CONTAINER: EndpointThere(endpoint_id(98))}
    assert compare(dockerd, [msgspec.structs.replace(there, endpoints=ends)]).bare == {CONTAINER}


def test_a_network_gets_docker_s_name_and_usable_labels(dockerd: Dockerd) -> None:
    (there,) = shown(dockerd, 1)
    for _ in range(2):
        assert follow.follow_network(dockerd.door, there) == ""
        network = dockerd.door.network(network_id(1))
        assert network.name == "net1"
        assert network.labels == {"colour": "red", "atoll.door": "docker", "atoll.docker.network": network_id(1)}


@pytest.mark.parametrize("name", ["taken", "x" * 64, "none"])
def test_a_network_keeps_its_provisional_name_where_docker_s_can_t_be(dockerd: Dockerd, name: str) -> None:
    dockerd.door.engine.create_network("taken")
    there = msgspec.structs.replace(shown(dockerd, 1)[0], name=name)
    assert follow.follow_network(dockerd.door, there).startswith(f"Docker's network {name} is called docker-{network_id(1)[:12]} here: ")


def test_problems_are_said_on_one_line_and_steer_no_terminal(dockerd: Dockerd) -> None:
    async def on_engine(function: Callable[[], Any]) -> Any:
        return function()

    watch = Watch(dockerd.door, on_engine, "/nonexistent")
    there = msgspec.structs.replace(shown(dockerd, 1)[0], name="a\n\x1b[1m")
    watch._note(there.id, follow.follow_network(dockerd.door, there))
    watch._files.close()
    (problem,) = watch.problems()
    assert problem["what"].isprintable()


def test_a_label_like_ours_makes_no_network_docker_s(dockerd: Dockerd) -> None:
    engine = dockerd.door.engine
    engine.create_network("own", labels={"atoll.docker.network": "ab" * 32, "atoll.door": "podman"})
    assert "ab" * 32 not in Door(engine).records.networks


def test_a_network_that_was_joined_is_its_own(dockerd: Dockerd) -> None:
    dockerd.door.engine.create_network("lab", subnets=["10.9.0.0/24"], labels={"mine": "yes"})
    dockerd.create_network(4, ipam_options={"network": "lab"}, options={"network": "lab"})
    there = msgspec.structs.replace(shown(dockerd, 1)[0], id=network_id(4))
    assert follow.follow_network(dockerd.door, there) == ""
    assert dockerd.door.network(network_id(4)).labels == {"mine": "yes"}


# --- containers ----------------------------------------------------------------------------------------------------------------------


def container(name: str = "/web", *, dns: tuple[str, ...] = (), labels: dict[str, str] | None = None) -> Container:
    """The container on networks 1 and 2, with endpoints 12 and 21."""
    value: dict[str, Any] = {
        "Id": CONTAINER,
        "Name": name,
        "Config": {"Hostname": CONTAINER[:12], "Labels": labels},
        "HostConfig": {"Dns": list(dns)},
        "NetworkSettings": {
            "SandboxKey": "/var/run/docker/netns/000000000002",
            "Networks": {
                "net1": {"NetworkID": network_id(1), "EndpointID": endpoint_id(12), "Aliases": ["shop", "not a name", CONTAINER[:12]]},
                "net2": {"NetworkID": network_id(2), "EndpointID": endpoint_id(21), "Aliases": None},
                "bridge": {"NetworkID": "b" * 64, "EndpointID": "b" * 64, "Aliases": None},
            },
        },
    }
    return msgspec.convert(value, Container)


def followed(dockerd: Dockerd, there: Container) -> tuple[Namespace, follow.Followed]:
    found = follow.follow_container(dockerd.door, there)
    end = next(iter(dockerd.door.engine.state.owned(f"docker:{endpoint_id(12)}")))
    return dockerd.door.engine.state.namespace(end.namespace), found


def test_a_container_s_namespace_is_called_as_docker_calls_it(dockerd: Dockerd) -> None:
    labels = {"com.docker.compose.service": "front", "team": "blue", "two\nlines": "x"}
    for _ in range(2):
        namespace, found = followed(dockerd, container(labels=labels))
        assert (namespace.name, found.problem) == ("web", "")
        assert namespace.labels == {"com.docker.compose.service": "front", "team": "blue"}
        assert (namespace.resolver, namespace.servers) == ("127.0.0.11", ())
        assert found.servers == {network_id(1): ("10.5.0.1",), network_id(2): ("10.6.0.1", "fd06::1")}
        aliases = {end.network: end.aliases for end in dockerd.door.engine.state.endpoints_of("web")}
        assert aliases == {
            dockerd.door.network(network_id(1)).id: ("shop", CONTAINER[:12], "front"),
            dockerd.door.network(network_id(2)).id: ("front", CONTAINER[:12]),
        }
    assert followed(dockerd, container("/other"))[0].name == "other"


@pytest.mark.parametrize(
    ("name", "called"),
    [("/taken", f"taken-{CONTAINER[:12]}"), (f"/{'x' * 200}", f"{'x' * 50}-{CONTAINER[:12]}"), ("/a b", "a-b"), ("", CONTAINER[:12])],
)
def test_a_name_that_can_t_be_is_made_one_that_can(dockerd: Dockerd, name: str, called: str) -> None:
    dockerd.door.engine.create_namespace("taken")
    for _ in range(2):
        namespace, found = followed(dockerd, container(name))
        assert namespace.name == called
        assert bool(found.problem) == (name == "/taken")


def test_servers_of_the_user_s_are_kept_and_a_gateway_of_ours_means_that_we_are_asked_already(dockerd: Dockerd) -> None:
    namespace, _ = followed(dockerd, container(dns=("192.0.2.53", "127.0.0.1", "nonsense", "2001:db8::53")))
    assert (namespace.resolver, namespace.servers) == ("127.0.0.11", ("192.0.2.53", "2001:db8::53"))
    namespace, found = followed(dockerd, container(dns=("10.5.0.1", "192.0.2.53")))
    assert (namespace.resolver, namespace.servers, found.servers) == ("", ("192.0.2.53",), {})


def test_a_container_that_is_on_none_of_our_networks_is_none_of_our_business(dockerd: Dockerd) -> None:
    there = msgspec.convert({"Id": CONTAINER, "Name": "/web"}, Container)
    assert follow.follow_container(dockerd.door, there) == follow.Followed()
    assert "web" not in dockerd.door.engine.state.namespaces


def test_an_endpoint_without_a_record_goes(dockerd: Dockerd) -> None:
    door = dockerd.door
    (end,) = door.engine.state.owned(f"docker:{endpoint_id(12)}")
    door.records.drop(door.records.endpoints[endpoint_id(12)])
    found = compare(dockerd, shown(dockerd, 1, 2, 3))
    assert found.stale == {stale.Item("orphan", end.id)}
    assert stale.remove(door, found.stale) == []
    assert end.id not in door.engine.state.endpoints
    assert compare(dockerd, shown(dockerd, 1, 2, 3)).stale == set()
