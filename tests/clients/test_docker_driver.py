"""The real dockerd with its networks made by Atoll: what people do with Docker's networks, and that nothing is left of it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.clients.docker_host import FACING, DockerHost, docker_host
from tests.clients.neighbours_host import need

if TYPE_CHECKING:
    from collections.abc import Iterator

BOTH = ["--ipam-driver", "atoll"]


@pytest.fixture(scope="module")
def shared() -> Iterator[DockerHost]:
    with docker_host() as made:
        yield made


@pytest.fixture
def docker(shared: DockerHost) -> Iterator[DockerHost]:
    """The host of all tests here; each takes away what it made, and that nothing is left of it is part of each."""
    yield shared
    for container in shared.docker("ps", "-aq").split():
        shared.docker("rm", "-f", container)
    shared.docker("network", "prune", "-f")
    for namespace in shared.shown("ns", "ls"):
        if namespace["kind"] == "created":
            shared.atoll("ns", "rm", namespace["name"])
    for network in shared.shown("network", "ls"):
        if network["id"] not in ("host", "none") and "labels" not in network:
            shared.atoll("network", "rm", network["name"])
    shared.host.wait_for("everything to be gone", lambda: shared.left() == {}, 5)


def create(docker: DockerHost, name: str, *options: str) -> None:
    docker.docker("network", "create", "-d", "atoll", *options, name)


@pytest.mark.parametrize("ipam", [[], BOTH, ["--ipam-driver", "null"]], ids=["Docker's IPAM", "Atoll's IPAM", "null IPAM"])
def test_containers_of_a_network_reach_each_other_and_the_world_their_ports(docker: DockerHost, ipam: list[str]) -> None:
    create(docker, "net1", *ipam)
    docker.serve("web", "--network", "net1", "-p", "8080:80", "-p", "127.0.0.1:8081:80")
    address = json.loads(docker.atoll("ns", "ls", "--format", "json"))[0]["endpoints"][0]["addresses"][0].partition("/")[0]
    assert docker.run("--network", "net1", "busybox", "wget", "-qO-", f"http://{address}/") == "web"
    if ipam != ["--ipam-driver", "null"]:
        # Docker's own resolver knows the addresses that Docker was told of.
        assert docker.address("web", "net1") == address
        assert docker.run("--network", "net1", "busybox", "wget", "-qO-", "http://web/") == "web"
    assert docker.run("--network", "net1", "busybox", "ping", "-c1", "-W2", "192.0.2.2")
    for url in ("http://127.0.0.1:8080/", f"http://{FACING}:8080/", "http://127.0.0.1:8081/"):
        docker.answers("web", url)
    docker.answers("web", f"http://{FACING}:8080/", place="outside")
    assert docker.fetch(f"http://{FACING}:8081/", place="outside") == ""
    create(docker, "net2", *ipam)
    assert docker.host.runner(["docker", "run", "--rm", "--network", "net2", "busybox", "ping", "-c1", "-W1", address])[0] != 0
    docker.docker("stop", "-t", "0", "web")
    assert docker.shown("ns", "ls") == []
    docker.docker("start", "web")
    docker.answers("web", "http://127.0.0.1:8080/")
    docker.docker("rm", "-f", "web")
    docker.docker("network", "rm", "net1", "net2")
    docker.host.wait_for("everything to be gone", lambda: docker.left() == {}, 5)


def test_a_container_on_several_networks_is_one_namespace_and_its_ports_follow_the_gateway(docker: DockerHost) -> None:
    for number in (1, 2):
        create(docker, f"net{number}", *BOTH)
    docker.serve("web", "--network", "net1", "-p", "8080:80")
    docker.docker("network", "connect", "net2", "web")
    (namespace,) = docker.shown("ns", "ls")
    assert (namespace["kind"], len(namespace["endpoints"])) == ("external", 2)
    assert docker.run("--network", "net2", "busybox", "wget", "-qO-", "http://web/") == "web"
    docker.answers("web", "http://127.0.0.1:8080/")
    docker.docker("network", "disconnect", "net1", "web")
    (endpoint,) = docker.shown("ns", "ls")[0]["endpoints"]
    assert endpoint["ports"] == ["8080:80/tcp"]
    docker.answers("web", f"http://{FACING}:8080/", place="outside")
    docker.docker("network", "disconnect", "net2", "web")
    assert docker.shown("ns", "ls") == []
    assert docker.fetch("http://127.0.0.1:8080/") == ""
    docker.docker("network", "connect", "net2", "web")
    docker.answers("web", "http://127.0.0.1:8080/")
    assert "has active endpoints" in docker.refused("network", "rm", "net2")


def test_containers_join_a_network_of_atolls_beside_plain_processes(docker: DockerHost) -> None:
    docker.atoll("network", "create", "front", "--subnet", "10.66.0.0/28", "--gateway", "10.66.0.14")
    docker.atoll("ns", "create", "plain")
    docker.atoll("connect", "front", "plain")
    create(docker, "net1", *BOTH, "--ipam-opt", "network=front")
    create(docker, "net2", *BOTH, "--ipam-opt", "network=front", "-o", "network=front")
    docker.serve("web", "--network", "net1", "-p", "8080:80")
    docker.serve("other", "--network", "net2")
    addresses = {docker.address("web", "net1"), docker.address("other", "net2")}
    assert docker.host.run("ip", "netns", "exec", "plain", "curl", "-s", "-m", "3", f"http://{docker.address('web', 'net1')}/") == "web\n"
    plain = json.loads(docker.atoll("ns", "inspect", "plain"))[0]["endpoints"][0]["addresses"][0].partition("/")[0]
    assert len({*addresses, plain}) == 3
    assert docker.run("--network", "net1", "busybox", "wget", "-qO-", f"http://{docker.address('other', 'net2')}/") == "other"
    assert docker.run("--network", "net1", "busybox", "ping", "-c1", "-W2", plain)
    assert "10.66.0.14" in docker.run("--network", "net2", "busybox", "ip", "route")
    taken = docker.refused("run", "--rm", "--network", "net1", "--ip", plain, "busybox", "true")
    assert f"{plain} is held by plain" in taken or "user configured subnets" in taken


def test_static_addresses_ranges_and_reserved_ones(docker: DockerHost) -> None:
    options = ["--subnet", "10.77.0.0/24", "--ip-range", "10.77.0.64/30", "--gateway", "10.77.0.254", "--aux-address", "printer=10.77.0.65"]
    create(docker, "net1", *BOTH, *options)
    inspected = json.loads(docker.docker("network", "inspect", "net1"))[0]["IPAM"]["Config"]
    assert inspected == [
        {"Subnet": "10.77.0.0/24", "IPRange": "10.77.0.64/30", "Gateway": "10.77.0.254", "AuxiliaryAddresses": {"printer": "10.77.0.65"}}
    ]
    docker.serve("web", "--network", "net1", "--ip", "10.77.0.9")
    shown = docker.run("--network", "net1", "busybox", "sh", "-c", "ip address show eth0; ip route; wget -qO- http://10.77.0.9/")
    assert re.search(r"inet 10\.77\.0\.6[467]/24", shown)
    assert "default via 10.77.0.254" in shown
    assert shown.endswith("web")
    assert "10.77.0.9 is held by" in docker.refused("run", "--rm", "--network", "net1", "--ip", "10.77.0.9", "busybox", "true")
    assert "Pool overlaps" not in docker.refused("network", "create", "-d", "atoll", *BOTH, "--subnet", "10.77.0.0/25", "net2")
    docker.docker("restart", "-t", "0", "web")
    assert docker.address("web", "net1") == "10.77.0.9"


def test_a_mac_address_that_was_asked_for_and_its_guard(docker: DockerHost) -> None:
    create(docker, "net1", *BOTH)
    docker.host.run("sh", "-ec", _WITH_MAC)
    docker.docker("start", "fixed")
    assert "02:00:00:00:00:99" in docker.docker("exec", "fixed", "ip", "link", "show", "eth0")
    assert docker.docker("exec", "fixed", "ping", "-c1", "-W2", "192.0.2.2")


#: The command line of today says it in a way that dockerd 20.10 doesn't know.
_WITH_MAC = """
body='{"Image":"busybox","Cmd":["sleep","600"],"MacAddress":"02:00:00:00:00:99","HostConfig":{"NetworkMode":"net1"}}'
curl -sf --unix-socket /run/docker.sock -H 'Content-Type: application/json' -d "$body" http://docker/v1.41/containers/create?name=fixed
"""


def test_ipv6_with_a_subnet_that_was_named_or_chosen(docker: DockerHost) -> None:
    docker.host.run("ip", "netns", "exec", "outside", "ip", "-6", "route", "replace", "default", "via", "2001:db8::1")
    create(docker, "net1", *BOTH, "--ipv6", "--subnet", "fd77::/64")
    create(docker, "net2", *BOTH, "--ipv6")
    docker.serve("web", "--network", "net1", "--ip6", "fd77::99", "-p", "8080:80")
    for url in ("http://127.0.0.1:8080/", "http://[2001:db8::1]:8080/"):
        docker.answers("web", url)
    docker.answers("web", "http://[2001:db8::1]:8080/", place="outside")
    assert docker.fetch("http://[fd77::99]:80/", place="outside") == ""
    shown = docker.run("--network", "net1", "busybox", "sh", "-c", "ping -c1 -W2 fd77::99 && ping -c1 -W2 2001:db8::2 && ip -6 route")
    assert "default via fd77::1" in shown
    assert re.search(r"inet6 fd[0-9a-f:]+/64", docker.run("--network", "net2", "busybox", "ip", "address", "show", "eth0"))


def test_an_internal_network_reaches_nothing_beyond_it(docker: DockerHost) -> None:
    create(docker, "net1", *BOTH, "--internal")
    docker.serve("web", "--network", "net1", "-p", "8080:80")
    shown = docker.run(
        "--network", "net1", "busybox", "sh", "-c", "ip route; ip -o link; wget -qO- http://web/; ping -c1 -W1 192.0.2.2 2>&1 || true"
    )
    assert "default" not in shown
    assert "eth1" not in shown
    assert "web" in shown
    assert "unreachable" in shown
    assert docker.fetch("http://127.0.0.1:8080/") == ""
    docker.answers("web", f"http://{docker.address('web', 'net1')}/")
    create(docker, "net2", *BOTH)
    docker.docker("network", "connect", "net2", "web")
    docker.answers("web", "http://127.0.0.1:8080/")


def test_ports_by_range_at_random_and_all_that_are_exposed(docker: DockerHost) -> None:
    create(docker, "net1", *BOTH)
    docker.serve("one", "--network", "net1", "-p", "8100-8103:80")
    docker.serve("two", "--network", "net1", "-p", "8100-8103:80")
    docker.serve("any", "--network", "net1", "-p", "80")
    docker.serve("all", "--network", "net1", "-P", "--expose", "80", "--expose", "53/udp")
    docker.serve("long", "--network", "net1", "-p", "9000-9020:80-100", "-p", "9000-9020:80-100/udp")
    ports = {n["name"]: [p for e in n["endpoints"] for p in e["ports"]] for n in docker.shown("ns", "ls")}
    published = {
        docker.fetch(f"http://127.0.0.1:{port.partition(':')[0]}/"): port for texts in ports.values() for port in texts if ":80/tcp" in port
    }
    assert published["one"] == "8100:80/tcp"
    assert published["two"] == "8101:80/tcp"
    assert {"any", "all"} <= set(published)
    assert sorted(len(texts) for texts in ports.values()) == [1, 1, 1, 2, 2]
    assert ["9000-9020:80-100/tcp", "9000-9020:80-100/udp"] in ports.values()
    docker.answers("long", "http://127.0.0.1:9000/")


def test_many_containers_that_start_and_end_at_once(docker: DockerHost) -> None:
    create(docker, "net1", *BOTH, "--subnet", "10.78.0.0/28")
    at_once = "for number in $(seq 10); do docker run -d --network net1 -p 80 busybox httpd -f -p 80 -h /www & done; wait"
    started = docker.host.run("sh", "-c", at_once).split()
    ends = [end for namespace in docker.shown("ns", "ls") for end in namespace["endpoints"]]
    assert len(started) == len({end["addresses"][0] for end in ends}) == len({end["ports"][0] for end in ends}) == 10
    for end in ends:
        docker.answers("a page", f"http://127.0.0.1:{end['ports'][0].partition(':')[0]}/")
    docker.docker("rm", "-f", *started)
    assert docker.shown("ns", "ls") == []


def test_a_taken_port_is_refused_with_the_one_who_has_it(docker: DockerHost) -> None:
    create(docker, "net1", *BOTH)
    docker.atoll("network", "create", "front")
    docker.atoll("ns", "create", "plain")
    docker.atoll("connect", "front", "plain", "-p", "8080:80")
    text = docker.refused("run", "--name", "late", "--network", "net1", "-p", "8080:80", "busybox", "true")
    assert "port 8080/tcp is published by plain; atoll unpublish plain ..., or choose another" in text
    docker.atoll("unpublish", "plain", "8080:80")
    docker.docker("start", "late")


def test_options_are_atolls_and_dockers_and_none_is_ignored(docker: DockerHost) -> None:
    create(docker, "net1", *BOTH, "-o", "com.docker.network.driver.mtu=1400", "-o", "com.docker.network.bridge.enable_icc=false")
    docker.serve("web", "--network", "net1")
    shown = docker.run("--network", "net1", "busybox", "sh", "-c", "ip link show eth0; wget -qO- -T1 http://web/ || echo isolated")
    assert "mtu 1400" in shown
    assert shown.endswith("isolated")
    text = docker.refused("network", "create", "-d", "atoll", "-o", "colour=blue", "net2")
    assert "option 'colour' is unknown to driver bridge; it knows " in text
    assert "no network named back; " in docker.refused("network", "create", "-d", "atoll", "-o", "network=back", "net2")


def test_compose_makes_and_takes_away_a_project(docker: DockerHost) -> None:
    need("docker-compose")
    docker.host.run("sh", "-ec", f"mkdir -p /tmp/shop && cat >/tmp/shop/docker-compose.yml <<'END'\n{_COMPOSE}\nEND\n")
    compose = ["docker-compose", "--project-directory", "/tmp/shop", "-f", "/tmp/shop/docker-compose.yml"]
    docker.host.run(*compose, "up", "-d")
    docker.answers("shopfront", "http://127.0.0.1:8080/")
    assert docker.host.run(*compose, "exec", "-T", "front", "wget", "-qO-", "http://back/").strip() == "backroom"
    assert docker.host.run(*compose, "exec", "-T", "back", "ip", "route").count("default") == 0
    docker.host.run(*compose, "down", "-t", "0")
    docker.host.wait_for("everything to be gone", lambda: docker.left() == {}, 5)


_COMPOSE = """
version: "3.8"
services:
  front:
    image: busybox
    hostname: shopfront
    command: sh -c 'mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www'
    ports: ["8080:80"]
    networks: [public, private]
  back:
    image: busybox
    hostname: backroom
    command: sh -c 'mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www'
    networks: [private]
networks:
  public:
    driver: atoll
    ipam: {driver: atoll}
  private:
    driver: atoll
    internal: true
    ipam: {driver: atoll, config: [{subnet: 10.79.0.0/24}]}
"""
