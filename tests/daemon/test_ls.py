"""`atoll ls`: everything on the host in one listing, whoever runs it; and the same in `ns`, `graph` and `explain`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from atoll import Engine
from tests.daemon.processes import eventually
from tests.others import Other, sh

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.daemon.processes import CommandLine

CONTAINER = "4c01db0b339c" + "0" * 52


@pytest.fixture
def busy(atoll: CommandLine, tmp_path: Path) -> Iterator[CommandLine]:
    """A host with something of everybody: what front doors do was done by an engine on the state that the daemon then has."""
    with Other(tmp_path, "pod") as pod, Other(tmp_path, "box") as box:
        with Engine.open(atoll.daemon.state) as engine:
            engine.create_network("web", subnets=["10.9.2.0/24"])
            engine.create_network("db", subnets=["10.9.3.0/24"])
            engine.create_external("shop", source=f"docker:{CONTAINER}", labels={"tier": "front"})
            shop = engine.connect("web", "shop", addresses=["10.9.2.11"], publish=["8080:80", "8443:443"], owner="docker:e1")
            engine.create_external("early", source="docker:2")
            engine.connect("db", "early", addresses=["10.9.3.11"], owner="docker:e2")
            box.take(shop, "eth0", "10.9.2.1")
            engine.reveal_namespace("shop", box.path)
            engine.adopt_namespace("pod", path=pod.path, follow=True, source="podman:1")
            engine.connect("web", "pod", addresses=["10.9.2.12"], owner="podman:1")
            engine.connect("db", "pod", addresses=["10.9.3.12"], owner="podman:1")
            engine.create_namespace("r1")
            engine.create_namespace("theirs")
            engine.connect("db", "theirs", addresses=["10.9.3.13"], owner="cni:1/eth0")
        yield atoll


def rows(text: str) -> list[list[str]]:
    return [re.split(r" {2,}", line) for line in text.splitlines()]


def test_one_listing_of_everything(busy: CommandLine) -> None:
    busy.says("run", "-d", "--name", "job", "--network", "db", "--ip", "10.9.3.14", "--", "sleep", "1000")
    busy.says("run", "-d", "--name", "guest", "--network", "ns:r1", "--", "sleep", "1000")
    busy.says("run", "-d", "--name", "alone", "--network", "host", "--", "sleep", "1000")
    everything = [
        ["NAME", "WHO", "NETWORK", "ADDRESS", "PORTS"],
        ["alone", "run", "host", "-", "-"],
        ["early", "docker", "db", "10.9.3.11", "-"],
        ["guest", "run", "ns:r1", "-", "-"],
        ["job", "run", "db", "10.9.3.14", "-"],
        ["pod", "podman", "web, db", "10.9.2.12, 10.9.3.12", "-"],
        ["r1", "ns", "-", "-", "-"],
        ["shop", "docker", "web", "10.9.2.11", "8080:80/tcp, 8443:443/tcp"],
        ["theirs", "cni", "db", "10.9.3.13", "-"],
    ]
    assert rows(busy.says("ls")) == everything
    assert busy.says("ls", "-q").split() == [row[0] for row in everything[1:]]
    assert rows(busy.says("ls", "--network", "web")) == [everything[0], everything[5], everything[7]]
    assert rows(busy.says("ls", "--who", "docker", "--who", "cni")) == [everything[0], everything[2], everything[7], everything[8]]
    assert busy.says("ls", "-q", "--network", "web", "--network", "db", "--who", "run") == "job\n"
    shown = {item["name"]: item for item in json.loads(busy.says("ls", "--format", "json"))}
    assert list(shown) == [row[0] for row in everything[1:]]
    assert shown["shop"] | {"created": 0} == {
        "name": "shop",
        "who": "docker",
        "source": f"docker:{CONTAINER}",
        "namespace": "shop",
        "networks": ["web"],
        "addresses": ["10.9.2.11/24"],
        "ports": ["8080:80/tcp", "8443:443/tcp"],
        "labels": {"tier": "front"},
        "created": 0,
    }
    assert "no network named nothing" in busy.fails(3, "ls", "--network", "nothing")
    assert "'nobody'" in busy.fails(2, "ls", "--who", "nobody")
    busy.says("stop", "-t", "0", "job", "guest", "alone")


def test_where_it_came_from_and_who_asked(busy: CommandLine) -> None:
    assert [row[:2] for row in rows(busy.says("ns", "ls"))[1:]] == [
        ["early", "docker:2"],
        ["pod", "podman:1"],
        ["r1", "created"],
        ["shop", "docker:4c01db0b339c"],
        ["theirs", "created"],
    ]
    (shop,) = json.loads(busy.says("ns", "inspect", "shop"))
    assert (shop["kind"], shop["source"], shop["who"]) == ("external", f"docker:{CONTAINER}", "docker")
    assert (shop["path"], shop["endpoints"][0]["owner"], shop["endpoints"][0]["interface"]) == ("/run/netns/shop", "docker:e1", "eth0")
    assert busy("ns", "exec", "shop", "ip", "-br", "address", "show", "eth0").stdout.split()[2] == "10.9.2.11/24"
    assert "isn't known yet" in busy.fails(4, "ns", "exec", "early", "true")


def test_pictures_and_explanations_say_what_runs_it(busy: CommandLine) -> None:
    scene = {item["name"]: item for item in json.loads(busy.says("graph", "--format", "json"))["namespaces"]}
    assert {name: item["about"] for name, item in scene.items()} == {
        "early": "docker",
        "pod": "podman",
        "r1": "",
        "shop": "docker",
        "theirs": "cni",
    }
    drawn = busy.says("graph")
    assert "shop" in drawn
    assert "docker" in drawn
    for form in ("dot", "mermaid", "svg"):
        assert "podman" in busy.says("graph", "--format", form)
    said = busy("explain", "pod", "shop:80").stdout
    assert "- pod is a container of podman\n- shop is a container of docker\n" in said


def test_what_its_client_ends_goes_by_itself(atoll: CommandLine, tmp_path: Path) -> None:
    with Other(tmp_path, "pod") as pod, Other(tmp_path, "box") as box:
        with Engine.open(atoll.daemon.state) as engine:
            engine.create_network("web", subnets=["10.9.2.0/24"])
            engine.adopt_namespace("pod", path=pod.path, follow=True, source="cni:1")
            engine.connect("web", "pod", publish=["8080:80"])
            engine.create_external("shop", source="docker:1")
            box.take(engine.connect("web", "shop", publish=["8081:80"]), "eth0")
            engine.reveal_namespace("shop", box.path)
        assert atoll.says("ls", "-q") == "pod\nshop\n"
        pod.end()
        eventually(lambda: atoll.says("ls", "-q") == "shop\n", "the pod goes")
        box.end()
        eventually(lambda: atoll.says("ls", "-q") == "", "the container goes")
        eventually(lambda: "atv" not in sh("ip -br link"), "their links go")
        events = [
            (event["event"], event.get("namespace")) for event in map(json.loads, atoll.says("events", "--format", "json").splitlines())
        ]
        assert events == [("namespace.vanish", "pod"), ("namespace.vanish", "shop")]
        assert atoll.says("network", "rm", "web") == "web\n"
