"""Atoll's own daemon on a host where dockerd or firewalld runs: what it publishes and forwards keeps passing, whoever starts when."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.neighbours_host import Host, need, private_host

ATOLL = str(Path(sys.executable).with_name("atoll"))
SERVER = "import http.server as h; h.ThreadingHTTPServer(('', 80), h.SimpleHTTPRequestHandler).serve_forever()"
FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=1).status)"


@pytest.fixture
def host() -> Iterator[Host]:
    need("unshare", "nsenter", "ip", "nft", "iptables-nft", "ping")
    with private_host() as made:
        made.run("sh", "-c", "ip link add wire0 type veth peer name eth0; ip address add 192.0.2.1/24 dev wire0; ip link set wire0 up")
        made.run("sh", "-c", "ip netns add outside; ip link set eth0 netns outside; ip -n outside link set eth0 up")
        made.run("sh", "-c", "ip -n outside address add 192.0.2.2/24 dev eth0; ip -n outside link set lo up")
        yield made


def atoll(host: Host, *words: str) -> str:
    return host.run(ATOLL, *words)


def network_with_server(host: Host) -> None:
    """r1 on network web with a web server at 80, published at the host's 8080."""
    atoll(host, "network", "create", "web")
    atoll(host, "ns", "create", "r1")
    atoll(host, "connect", "web", "r1", "-p", "8080:80")
    host.start("server", "ip", "netns", "exec", "r1", sys.executable, "-c", SERVER)


def is_open(host: Host) -> bool:
    """Whether the outside gets a page through the published port, and r1 reaches the outside."""
    fetched = host.runner(["ip", "netns", "exec", "outside", sys.executable, "-c", FETCH, "http://192.0.2.1:8080/"])
    pinged = host.runner(["ip", "netns", "exec", "r1", "ping", "-c", "1", "-W", "1", "192.0.2.2"])
    return fetched[0] == 0 and pinged[0] == 0


def problems(host: Host) -> list[str]:
    return [problem["what"] for problem in json.loads(atoll(host, "status", "--format", "json"))["problems"]]


@pytest.mark.parametrize("back_end", ["nft", "legacy"])
def test_a_dockerd_that_starts_later_and_again_stops_nothing(host: Host, back_end: str) -> None:
    need("dockerd")
    network_with_server(host)
    host.wait_for("the published port", lambda: is_open(host))
    host.start_dockerd(back_end)
    host.wait_for("the published port beside dockerd", lambda: is_open(host), 15)
    host.run(f"iptables-{back_end}", "-F", "DOCKER-USER")
    if back_end == "nft":
        host.wait_for("our rules after a flush", lambda: is_open(host), 5)
    assert problems(host) == []
    atoll(host, "ns", "rm", "r1")
    atoll(host, "network", "rm", "web")
    chain = [f"iptables-{back_end}", "-S", "DOCKER-USER"]
    host.wait_for("our rules to go with the last network", lambda: "atoll" not in host.run(*chain), 5)
    atoll(host, "daemon", "stop")


def test_with_dockerd_there_first_its_containers_can_be_adopted(host: Host) -> None:
    need("dockerd", "docker", "busybox")
    host.start_dockerd("nft")
    busybox = "mkdir -p /tmp/image/bin && cp $(command -v busybox) /tmp/image/bin/ && tar -C /tmp/image -c . | docker import - busybox"
    host.run("sh", "-c", busybox)
    container = host.run("docker", "run", "-d", "--network", "none", "busybox", "/bin/busybox", "sleep", "600").strip()
    network_with_server(host)
    host.wait_for("the published port", lambda: is_open(host))
    atoll(host, "ns", "adopt", "box", "--docker", container)
    atoll(host, "connect", "web", "box")
    shown = json.loads(atoll(host, "ns", "ls", "--format", "json"))
    address = next(item["endpoints"][0]["addresses"][0].partition("/")[0] for item in shown if item["name"] == "r1")
    assert "1 packets received" in host.run("docker", "exec", container, "/bin/busybox", "ping", "-c", "1", "-W", "2", address)
    host.run("docker", "rm", "-f", container)
    host.wait_for("the container's namespace to be let go", lambda: "box" not in atoll(host, "ns", "ls", "-q").split(), 5)
    code, _, words = host.runner([ATOLL, "ns", "adopt", "box", "--docker", "nobody"])
    assert (code, words) == (3, "error: docker has no container nobody; docker ps shows what runs\n")
    atoll(host, "daemon", "stop")


def test_a_firewalld_that_starts_later_and_reloads_stops_nothing(host: Host) -> None:
    need("firewalld", "dbus-daemon", "firewall-cmd")
    from tests.clients.test_neighbours_firewalld import start_bus, start_firewalld

    network_with_server(host)
    host.wait_for("the published port", lambda: is_open(host))
    start_bus(host)
    start_firewalld(host)
    # The daemon looks for a bus that wasn't there at longer and longer intervals, at most half a minute.
    host.wait_for("the published port beside firewalld", lambda: is_open(host), 45)
    host.run("firewall-cmd", "--reload")
    host.wait_for("the published port after a reload", lambda: is_open(host), 5)
    assert problems(host) == []
    atoll(host, "daemon", "stop")
