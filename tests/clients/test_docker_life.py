"""Restarts and kills of dockerd and of Atoll, whatever they are in the middle of: nothing is lost, nothing is left, nobody waits."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from tests.clients.docker_host import ATOLL, DockerHost, docker_host

#: Steps of Atoll's verbs in the middle of `docker run -p`, of `docker rm -f` and of `docker network create`.
STEPS = {
    "run": ("hold_address:1", "create_external:1", "connect:2", "publish:1", "reveal_namespace:1", "rename_namespace:1"),
    "rm": ("unpublish:1", "remove_namespace:1", "hold_address:1"),
    "network": ("open_pool:1", "lease:1", "create_network:2", "rename_network:1", "close_pool:1"),
}


@pytest.fixture
def made() -> Iterator[DockerHost]:
    with docker_host() as host:
        yield host


def network(made: DockerHost, name: str = "web", *options: str) -> None:
    made.docker("network", "create", "-d", "atoll", *options, name)
    made.wait_for("the network's name", lambda: name in made.networks())


def box(made: DockerHost, name: str, *options: str) -> str:
    """The address of a container that runs."""
    made.docker("run", "-d", "--name", name, "--network", "web", *options, "busybox", "sleep", "600")
    made.wait_for("the container's file", lambda: bool(made.namespaces().get(name, {}).get("inode")))
    return made.place(name)


def restart_dockerd(made: DockerHost, *options: str, kill: bool = True) -> None:
    if kill:
        made.kill("dockerd")
    else:
        made.host.stop("dockerd")
    made.host.start_dockerd("nft", *options)
    made.follows()


def restart_atoll(made: DockerHost, *, kill: bool = True) -> None:
    if kill:
        made.kill("atoll")
    else:
        made.atoll("daemon", "stop")
        made.host._daemons.pop("atoll").wait(20)
    made.start_atoll()
    made.follows()


def said(made: DockerHost) -> str:
    return made.host.run("cat", "/run/atoll.log")


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_containers_that_start_with_dockerd_are_there_again(made: DockerHost, kill: bool) -> None:
    network(made, "web", "--ipam-driver", "atoll")
    made.atoll("ns", "create", "r1")
    made.atoll("connect", "web", "r1")
    made.docker(
        "run", "-d", "--name", "box", "--restart", "always", "--network", "web", "-p", "8080:80", "busybox", "sh", "-c",
        "nslookup r1; exec httpd -f -h /www",
    )  # fmt: skip
    made.answers("a page", "http://127.0.0.1:8080/")
    restart_dockerd(made, kill=kill)
    made.answers("a page", "http://127.0.0.1:8080/")
    made.wait_for("its name", lambda: bool(made.namespaces().get("box", {}).get("inode")))
    assert made.lookup("box", "r1") == [made.place("r1")]
    assert made.docker("logs", "box").count(f"Address: {made.place('r1')}") == 2
    assert len(made.namespaces()) == 2
    made.atoll("ns", "rm", "r1")
    made.empty()


def test_with_live_restore_containers_go_on(made: DockerHost) -> None:
    made.host.stop("dockerd")
    made.host.start_dockerd("nft", "--live-restore")
    network(made)
    made.atoll("ns", "create", "r1")
    made.atoll("connect", "web", "r1")
    made.docker("run", "-d", "--name", "box", "--network", "web", "-p", "8080:80", "busybox", "httpd", "-f", "-h", "/www")
    made.answers("a page", "http://127.0.0.1:8080/")
    made.wait_for("its name", lambda: bool(made.namespaces().get("box", {}).get("inode")))
    before = made.namespaces()["box"]
    made.kill("dockerd")
    made.answers("a page", "http://127.0.0.1:8080/")
    restart_atoll(made_with_dockerd(made))
    assert made.namespaces()["box"] == before
    made.answers("a page", "http://127.0.0.1:8080/")
    assert made.lookup("box", "r1") == [made.place("r1")]
    # Longer than what Docker doesn't know would be taken for stale.
    restart_dockerd(made, "--live-restore")
    made.docker("run", "--rm", "--network", "web", "busybox", "sleep", "5")
    assert made.namespaces()["box"] == before
    made.atoll("ns", "rm", "r1")
    made.empty()


def made_with_dockerd(made: DockerHost) -> DockerHost:
    made.host.start_dockerd("nft", "--live-restore")
    return made


def test_what_docker_forgot_while_atoll_was_away_goes(made: DockerHost) -> None:
    network(made, "web", "--ipam-driver", "atoll")
    network(made, "other")
    box(made, "one", "-p", "8080:80")
    box(made, "two")
    made.kill("atoll")
    # Docker waits for nobody to say goodbye to a driver; these are said in its log.
    removal = made.host.popen("docker", "rm", "-f", "one")
    with contextlib.suppress(subprocess.TimeoutExpired):
        removal.wait(2)
    made.kill("dockerd")
    removal.communicate(timeout=20)
    made.host.run("sh", "-c", "rm -rf /var/lib/docker/network/files/local-kv.db")
    made.start_atoll()
    made.host.start_dockerd("nft")
    made.follows()
    made.wait_for("everything to be gone", lambda: not made.left())
    made.docker("rm", "-f", "one", "two")


def test_what_atoll_forgot_is_made_again(made: DockerHost) -> None:
    network(made, "web", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.9", "--label", "colour=red", "-o", "mtu=1400")
    box(made, "box")
    before = made.networks()["web"]
    made.kill("atoll")
    made.host.run("sh", "-c", "rm -rf /var/lib/atoll/*; ip netns delete box")
    made.start_atoll()
    made.follows()
    made.wait_for("the network", lambda: "web" in made.networks())
    after = made.networks()["web"]
    assert {key: after[key] for key in ("subnets", "mtu", "labels")} == {key: before[key] for key in ("subnets", "mtu", "labels")}
    made.wait_for("a word about the container", lambda: any("docker restart" in p["what"] for p in made.status()["problems"]))
    made.docker("restart", "-t", "0", "box")
    made.wait_for("its name", lambda: "box" in made.namespaces())
    made.empty()


def test_dockerd_is_killed_in_the_middle_of_docker_run(made: DockerHost) -> None:
    """At each word that Atoll says of it. The next container gets the same address, as Docker's IPAM hands out the first that is free."""
    network(made)
    for number, word in enumerate(("namespace.create", "endpoint.connect", "port.publish", "namespace.reveal", "namespace.rename")):
        count = said(made).count(word)
        run = made.host.popen(
            "docker", "run", "-d", "--name", f"box{number}", "--network", "web", "-p", "8080:80", "busybox", "sleep", "600"
        )
        made.wait_for(word, lambda count=count, word=word: said(made).count(word) > count)  # type: ignore[misc]
        restart_dockerd(made)
        run.communicate(timeout=20)
        # Docker starts none of these by itself.
        made.docker("run", "--rm", "--network", "web", "-p", "8080:80", "busybox", "hostname")
    made.empty()


@pytest.mark.parametrize(("command", "step"), [(command, step) for command, steps in STEPS.items() for step in steps])
def test_atoll_is_killed_at_a_step_in_the_middle_of_a_command_of_docker_s(made: DockerHost, command: str, step: str) -> None:
    """Docker gets an error, or what it wanted; whichever, it can be done anew at once."""
    making = command == "network"
    if not making:
        network(made, "web", "--ipam-driver", "atoll")
    if command == "rm":
        box(made, "box", "-p", "8080:80")
    made.atoll("daemon", "stop")
    made.host._daemons.pop("atoll").wait(20)
    made.host.start("atoll", "env", f"ATOLL_FAULT={step}", ATOLL, "daemon", "run")
    made.follows()
    if making:
        running = made.host.popen("docker", "network", "create", "-d", "atoll", "--ipam-driver", "atoll", "web")
    elif command == "rm":
        running = made.host.popen("docker", "rm", "-f", "box")
    else:
        running = made.host.popen("docker", "run", "-d", "--name", "box", "--network", "web", "-p", "8080:80", "busybox", "sleep", "600")
    made.host._daemons.pop("atoll").wait(30)  # it has died
    made.start_atoll()
    running.communicate(timeout=30)
    made.follows()
    made.host.runner(["docker", "network", "rm", "web"] if making else ["docker", "rm", "-f", "box"])
    if making:
        network(made, "web", "--ipam-driver", "atoll")
    made.docker("run", "--rm", "--name", "box", "--network", "web", "-p", "8080:80", "busybox", "hostname")
    made.empty()
