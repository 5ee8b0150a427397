"""What Docker's containers are called on Atoll's networks, and whom they know: names both ways, from the first instruction on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

import pytest

from tests.clients.docker_host import FACING, OUTSIDE, DockerHost, addresses, docker_host
from tests.clients.neighbours_host import need

#: Somebody's name server, which says the same to every question for an address.
SERVER: Final = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 53))
while True:
    data, peer = sock.recvfrom(512)
    end = data.index(0, 12) + 5
    found = data[end - 4 : end - 2] == bytes([0, 1])
    answer = bytes([192, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]) + socket.inet_aton(sys.argv[2]) if found else b""
    sock.sendto(data[:2] + bytes([0x81, 0x80, 0, 1, 0, found, 0, 0, 0, 0]) + data[12:end] + answer, peer)
"""
COMPOSE: Final = """
version: "3"
services:
  front: {image: busybox, command: sleep 600, init: false}
  back: {image: busybox, command: sleep 600, hostname: hinten, networks: {default: {aliases: [store]}}}
networks:
  default: {driver: atoll, ipam: {driver: atoll}}
"""


@pytest.fixture(scope="module")
def host() -> Iterator[DockerHost]:
    with docker_host() as made:
        made.host.start("theirs", sys.executable, "-c", SERVER, FACING, "198.51.100.1")
        made.host.start("mine", "ip", "netns", "exec", "outside", sys.executable, "-c", SERVER, OUTSIDE, "198.51.100.2")
        made.host.run("sh", "-c", f"echo nameserver {FACING} >/etc/resolv.conf")
        yield made


@pytest.fixture
def made(host: DockerHost) -> Iterator[DockerHost]:
    """A host with network web of Docker's, and the plain namespace r1 on it; afterwards nothing of either is left."""
    host.docker("network", "create", "-d", "atoll", "--ipam-driver", "atoll", "web")
    host.wait_for("the network's name", lambda: "web" in host.networks())
    host.atoll("ns", "create", "r1")
    host.atoll("connect", "web", "r1")
    yield host
    host.atoll("ns", "rm", "r1")
    host.empty()


def test_names_are_known_both_ways(made: DockerHost) -> None:
    r1 = made.place("r1")
    assert made.first("web", "nslookup", "r1") == [r1]
    made.docker("run", "-d", "--name", "box", "--network", "web", "--network-alias", "kiste", "busybox", "sleep", "600")
    made.wait_for("the container's name", lambda: "box" in made.namespaces())
    short = made.docker("inspect", "-f", "{{.Id}}", "box")[:12]
    made.wait_for("the aliases", lambda: short in made.namespaces()["box"]["endpoints"][0]["aliases"])
    box = made.place("box")
    for name in ("box", "kiste", short, "box.web", "box.web.atoll"):
        assert box in made.atoll("dns", "lookup", name, "--from", "r1")
        assert made.lookup("box", name) == [box]
    assert made.lookup("box", "r1") == made.lookup("box", "r1.web.atoll") == [r1]
    assert made.atoll("dns", "lookup", "r1", "--from", "box") == f"{r1}\n"
    assert made.lookup("box", "www.example") == ["198.51.100.1"]
    assert made.lookup("box", "nobody.atoll") == []


def test_a_container_that_is_renamed_is_known_by_its_new_name_only(made: DockerHost) -> None:
    made.docker("run", "-d", "--name", "old", "--network", "web", "busybox", "sleep", "600")
    made.wait_for("the container's name", lambda: "old" in made.namespaces())
    address = made.place("old")
    made.docker("rename", "old", "new")
    made.wait_for("the new name", lambda: "new" in made.namespaces())
    assert address in made.atoll("dns", "lookup", "new", "--from", "r1")
    assert "old" not in made.namespaces()
    made.wait_for("the old name to go", lambda: made.lookup("new", "old.web.atoll") == [])
    assert made.atoll("ns", "exec", "new", "--", "hostname").strip() != ""


def test_names_that_are_taken_are_marked_and_it_is_said(made: DockerHost) -> None:
    made.atoll("network", "create", "taken")
    id_ = made.docker("network", "create", "-d", "atoll", "taken")
    made.docker("run", "-d", "--name", "r1", "--network", "taken", "busybox", "sleep", "600")
    container = made.docker("inspect", "-f", "{{.Id}}", "r1")
    marked = f"r1-{container[:12]}"
    made.wait_for("the container's name", lambda: marked in made.namespaces())
    assert made.namespaces()[marked]["endpoints"][0]["network"] == f"docker-{id_[:12]}"
    assert {problem["what"].partition(":")[0] for problem in made.shown("status")["problems"]} >= {
        f"Docker's network taken is called docker-{id_[:12]} here",
        f"container r1 is called {marked} here",
    }
    assert made.lookup("r1", f"r1.docker-{id_[:12]}.atoll") != []  # by its alias
    made.docker("rm", "-f", "r1")
    made.docker("network", "rm", "taken")
    made.atoll("network", "rm", "taken")
    made.wait_for("the problems to go", lambda: not any("called" in problem["what"] for problem in made.shown("status")["problems"]))


def test_compose_services_are_known_by_their_names(made: DockerHost) -> None:
    need("docker-compose")
    made.host.run("sh", "-c", f"mkdir -p /tmp/shop; cat >/tmp/shop/docker-compose.yml <<'END'\n{COMPOSE}\nEND")
    made.host.run("docker-compose", "-f", "/tmp/shop/docker-compose.yml", "up", "-d")
    made.wait_for("the services", lambda: {"shop_front_1", "shop_back_1"} <= made.namespaces().keys())
    made.wait_for("their aliases", lambda: "hinten" in made.namespaces()["shop_back_1"]["endpoints"][0]["aliases"])
    back = made.place("shop_back_1")
    made.atoll("connect", "shop_default", "r1")
    for name in ("back", "store", "hinten", "back.shop_default"):
        assert made.lookup("shop_front_1", name) == [back]
        assert back in made.atoll("dns", "lookup", name, "--from", "r1")
    assert made.namespaces()["shop_back_1"]["labels"]["com.docker.compose.service"] == "back"
    made.atoll("disconnect", "shop_default", "r1")
    made.host.run("docker-compose", "-f", "/tmp/shop/docker-compose.yml", "down", "-t", "0")


def test_names_work_from_the_first_instruction_after_each_restart(made: DockerHost) -> None:
    made.docker("run", "-d", "--name", "box", "--network", "web", "busybox", "sh", "-c", "nslookup r1; sleep 600")
    for _ in range(4):
        made.docker("restart", "-t", "0", "box")
    said = made.docker("logs", "box")
    assert said.count(f"Address: {made.place('r1')}") == 5
    assert "can't" not in said


def test_names_work_from_the_first_instruction_of_many_at_once(made: DockerHost) -> None:
    running = [made.host.popen("docker", "run", "--rm", "--network", "web", "busybox", "nslookup", "r1") for _ in range(8)]
    for process in running:
        out, _ = process.communicate(timeout=60)
        assert addresses(out) == [made.place("r1")]


def test_a_running_container_learns_and_forgets_names_as_it_is_connected(made: DockerHost) -> None:
    """It keeps those of Docker's own networks, which only Docker's resolver knows."""
    made.docker("network", "create", "plain")
    made.docker("run", "-d", "--name", "other", "--network", "plain", "busybox", "sleep", "600")
    made.docker("run", "-d", "--name", "box", "--network", "plain", "busybox", "sleep", "600")
    before = made.docker("exec", "box", "cat", "/etc/resolv.conf")
    other = made.docker("inspect", "-f", "{{.NetworkSettings.Networks.plain.IPAddress}}", "other")
    assert made.lookup("box", "r1") == ["198.51.100.1"]  # the world's
    made.docker("network", "connect", "web", "box")
    made.wait_for("the name of r1", lambda: made.lookup("box", "r1") == [made.place("r1")])
    assert made.lookup("box", "other") == [other]
    assert made.lookup("box", "www.example") == ["198.51.100.1"]
    made.docker("network", "disconnect", "web", "box")
    made.wait_for("the file as it was", lambda: made.docker("exec", "box", "cat", "/etc/resolv.conf") == before)
    assert made.lookup("box", "other") == [other]


def test_what_dns_said_is_kept(made: DockerHost) -> None:
    for name, words in (("r1", [made.place("r1")]), ("www.example", ["198.51.100.2"])):
        assert made.first("web", "nslookup", name, options=("--dns", OUTSIDE)) == words
    made.docker("run", "-d", "--name", "box", "--network", "web", "--dns", OUTSIDE, "busybox", "sh", "-c", "nslookup r1; sleep 600")
    made.docker("restart", "-t", "0", "box")
    made.wait_for("the container's name", lambda: "box" in made.namespaces())
    assert made.lookup("box", "www.example") == ["198.51.100.2"]
    assert made.docker("logs", "box").count(f"Address: {made.place('r1')}") == 2


def test_with_the_gateway_as_dns_docker_s_resolver_asks_us_and_its_file_stays(made: DockerHost) -> None:
    gateway = made.networks()["web"]["subnets"][0]["gateway"]
    made.docker("run", "-d", "--name", "box", "--network", "web", "--dns", gateway, "busybox", "sleep", "600")
    made.wait_for("the container's name", lambda: "box" in made.namespaces())
    assert "nameserver 127.0.0.11" in made.docker("exec", "box", "cat", "/etc/resolv.conf").splitlines()
    assert made.lookup("box", "r1") == [made.place("r1")]
    assert made.lookup("box", "www.example") == ["198.51.100.1"]


def test_a_file_that_its_user_has_mounted_there_is_the_user_s(made: DockerHost) -> None:
    made.host.run("sh", "-c", "printf '# mine\\nnameserver 127.0.0.11\\n' > /run/own.conf")
    mount = "/run/own.conf:/etc/resolv.conf"
    made.docker("run", "-d", "--name", "box", "--network", "web", "-v", mount, "busybox", "sleep", "600")
    # With the second name everything that the first look led to is done.
    made.wait_for("the container's name", lambda: "box" in made.namespaces())
    made.docker("rename", "box", "other")
    made.wait_for("the container's other name", lambda: "other" in made.namespaces())
    assert made.host.run("cat", "/run/own.conf") == "# mine\nnameserver 127.0.0.11\n"


def test_an_internal_network_has_names_and_nothing_of_the_world(made: DockerHost) -> None:
    made.docker("network", "create", "-d", "atoll", "--internal", "inner")
    made.wait_for("the network's name", lambda: "inner" in made.networks())
    made.atoll("connect", "inner", "r1")
    inner = next(end for end in made.namespaces()["r1"]["endpoints"] if end["network"] == "inner")["addresses"][0].partition("/")[0]
    assert made.first("inner", "nslookup", "r1") == [inner]
    made.docker("run", "-d", "--name", "box", "--network", "inner", "busybox", "sleep", "600")
    made.docker("run", "-d", "--name", "peer", "--network", "inner", "busybox", "sleep", "600")
    made.wait_for("the containers' names", lambda: {"box", "peer"} <= made.namespaces().keys())
    assert made.lookup("box", "peer") == [made.place("peer")]
    assert made.lookup("box", "www.example") == []
    made.atoll("disconnect", "inner", "r1")


def test_what_looks_into_a_namespace_looks_into_a_container(made: DockerHost) -> None:
    made.docker("run", "-d", "--name", "box", "--network", "web", "-p", "8080:80", "busybox", "httpd", "-f", "-h", "/www")
    made.wait_for("the container's file", lambda: made.namespaces().get("box", {}).get("inode", 0) != 0)
    assert made.place("box") in made.atoll("ns", "exec", "box", "--", "ip", "-o", "address", "show", "dev", "eth0")
    listed = next(line for line in made.atoll("ns", "ls").splitlines() if line.startswith("box "))
    assert "8080:80/tcp" in listed
    assert "web" in listed
    assert made.shown("explain", "r1", "box:80")["verdict"] == "yes"
    assert "box" in made.atoll("graph")
    status = made.status()
    assert [item["name"] for item in status["networks"]] == ["web"]
    assert [item["name"] for item in status["containers"]] == ["box"]
    assert (status["installed"], status["loaded"], status["following"]) == (True, True, True)
