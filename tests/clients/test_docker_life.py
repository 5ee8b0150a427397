"""What happens around Docker's calls: names both ways, renaming, restarts and kills of dockerd and of Atoll, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.docker_host import DockerHost, addresses, docker_host


@pytest.fixture
def made() -> Iterator[DockerHost]:
    with docker_host() as host:
        yield host


def test_names_are_known_both_ways(made: DockerHost) -> None:
    """A container resolves a plain process, from its first instruction on, and the other way round."""
    made.docker("network", "create", "-d", "atoll", "web")
    made.wait_for("the network's name", lambda: "web" in made.networks())
    made.atoll("ns", "create", "r1")
    made.atoll("connect", "web", "r1")
    address = made.namespaces()["r1"]["endpoints"][0]["addresses"][0].partition("/")[0]
    assert addresses(made.docker("run", "--rm", "--network", "web", "busybox", "nslookup", "r1")) == [address]
    made.docker("run", "-d", "--name", "box", "--network", "web", "--network-alias", "kiste", "busybox", "sleep", "600")
    made.wait_for("the container's name", lambda: "box" in made.namespaces())
    box = made.namespaces()["box"]["endpoints"][0]["addresses"][0].partition("/")[0]
    for name in ("box", "kiste", "box.web", "box.web.atoll"):
        made.wait_for(name, lambda name=name: box in made.atoll("dns", "lookup", name, "--from", "r1"))  # type: ignore[misc]
        assert made.lookup("box", name) == [box]
    assert made.lookup("box", "r1") == [address]
