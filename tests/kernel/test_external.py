"""Namespaces whose inside somebody else sets up: we make the host's side, they take the other end, and both live with that."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from atoll.daemon.watcher import Watcher
from atoll.errors import Conflict, Invalid, NotFound
from atoll.explain import checked, describe, explain
from atoll.kernel import netns
from tests.others import Other, sh
from tests.support import FACING, TRANSPORTS, Inside, Probe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from atoll import Engine
    from atoll.lab.machine import Machine
    from tests.support import Place, Traffic

SUBNETS = ("10.1.0.0/24", "fd01::/64")


@pytest.fixture
def other(host: None, tmp_path: Path) -> Iterator[Other]:
    with Other(tmp_path, "box") as made:
        yield made


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """With a network that a namespace of ours is on, and a box that somebody else will set up."""
    engine.create_network("web", subnets=SUBNETS)
    engine.create_namespace("r1")
    engine.connect("web", "r1", addresses=["10.1.0.11", "fd01::11"])
    engine.create_external("box", source="docker:box", labels={"a": "b"})
    return engine


def links() -> set[str]:
    """What of ours is on the host."""
    found = {line.split()[0].partition("@")[0] for line in sh("ip -br link").splitlines()}
    return {name for name in found if name.startswith(("atv", "atc", "ati"))}


# --- its side and ours ---------------------------------------------------------------------------------------------------------------


def test_it_reaches_and_is_reached_as_any_other(engine: Engine, other: Other, world: Machine, traffic: Traffic) -> None:
    endpoint = engine.connect("web", "box", addresses=["10.1.0.9", "fd01::9"], publish=["8080:80", "5353:53/udp"])
    assert endpoint.interface == endpoint.spare
    assert links() == {endpoint.spare, endpoint.host_interface, engine.state.endpoint(engine.state.network("web"), "r1").host_interface}
    other.take(endpoint, "eth0", "10.1.0.1")
    other.ip("-6 route add default via fd01::1")
    r1 = Inside(engine, "r1")
    for place in (other, r1, world):
        for port in (80, 53, 7):
            traffic.serve(place, port)
    ways: list[tuple[Place, str, int]] = [(r1, "10.1.0.9", 7), (r1, "fd01::9", 7), (other, "10.1.0.11", 7), (other, "fd01::11", 7)]
    probes = [Probe(source, address, port, transport) for source, address, port in ways for transport in TRANSPORTS]
    probes += [Probe(world, FACING[4], 8080), Probe(world, FACING[6], 8080), Probe(world, FACING[4], 5353, "udp")]
    probes += [Probe(other, "198.51.100.9", 7), Probe(other, "2001:db8:100::9", 7)]
    assert traffic.unanswered(probes) == []
    closed = [Probe(world, "10.1.0.9", 7), Probe(world, "fd01::9", 7)]
    assert traffic.leaking(closed, [Probe(world, FACING[4], 8080)]) == []


def test_what_it_may_not_send_is_dropped(engine: Engine, other: Other, traffic: Traffic) -> None:
    endpoint = engine.connect("web", "box", addresses=["10.1.0.9", "fd01::9"])
    other.take(endpoint, "eth0")
    r1 = Inside(engine, "r1")
    traffic.serve(r1, 7)
    right = Probe(other, "10.1.0.11", 7, local="10.1.0.9")
    assert traffic.unanswered([right]) == []
    other.ip("address add 10.1.0.77/24 dev eth0")
    assert traffic.leaking([Probe(other, "10.1.0.11", 7, "udp", "10.1.0.77")], [right]) == []


def test_limits_hold_on_our_side(engine: Engine, other: Other) -> None:
    endpoint = engine.connect("web", "box", ingress_rate="50mbit", egress_rate="50mbit")
    other.take(endpoint, "eth0")
    assert "rate 50Mbit" in sh(f"tc qdisc show dev {endpoint.host_interface}")
    assert "rate 50Mbit" in sh(f"tc qdisc show dev {endpoint.shaper}")
    engine.disconnect("web", "box")
    assert len(links()) == 1


def test_its_interfaces_are_not_ours_to_name(engine: Engine) -> None:
    with pytest.raises(Invalid, match="names its interfaces"):
        engine.connect("web", "box", interface="eth7")
    assert len(links()) == 1


def test_a_macvlan_interface_lies_on_the_host_until_it_is_taken(engine: Engine, other: Other) -> None:
    sh("ip link add parent0 type veth peer name parent1; ip link set parent0 up")
    engine.create_network("lan", driver="macvlan", subnets=["10.2.0.0/24"], options={"parent": "parent0"})
    endpoint = engine.connect("lan", "box", addresses=["10.2.0.9"])
    assert endpoint.spare in links()
    other.take(endpoint, "eth0")
    assert engine.differences() == []
    assert engine.repair() == ([], [])
    other.give_back(endpoint, "eth0")
    engine.disconnect("lan", "box")
    assert endpoint.spare not in links()

    endpoint = engine.connect("lan", "box")
    other.take(endpoint, "eth0")
    engine.reveal_namespace("box", other.path)
    engine.remove_namespace("box")
    assert other.links() == {"lo"}


def test_it_can_be_on_no_network_at_all(engine: Engine) -> None:
    engine.connect("none", "box")
    engine.disconnect("none", "box")


# --- repair --------------------------------------------------------------------------------------------------------------------------


def test_nothing_is_amiss_wherever_its_end_is(engine: Engine, other: Other) -> None:
    endpoint = engine.connect("web", "box")
    assert engine.differences() == []
    other.take(endpoint, "whatever")
    assert engine.differences() == []
    other.ip("link set whatever down", "address flush dev whatever", "link set whatever mtu 1300")
    engine.reveal_namespace("box", other.path)
    assert engine.differences() == []
    other.give_back(endpoint, "whatever")
    assert engine.differences() == []


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ("ip link set {near} down", "is down"),
        ("ip link set {near} nomaster", "is not a port of"),
        ("ip link set {near} mtu 1300", "has MTU 1300"),
        ("ip link set {near} alias none", "has lost its mark"),
        ("nft flush ruleset", "is missing"),
    ],
)
def test_damage_to_our_side_is_put_right_and_theirs_left_alone(
    engine: Engine, other: Other, traffic: Traffic, damage: str, what: str
) -> None:
    endpoint = engine.connect("web", "box", addresses=["10.1.0.9", "fd01::9"])
    other.take(endpoint, "eth0")
    traffic.serve(other, 7)
    sh(damage.format(near=endpoint.host_interface))
    found, errors = engine.repair()
    assert not errors
    assert any(what in difference.what for difference in found)
    assert engine.differences() == []
    assert other.links() == {"lo", "eth0"}
    assert traffic.unanswered([Probe(Inside(engine, "r1"), "10.1.0.9", 7)]) == []


def test_a_lost_pair_is_made_anew_with_a_spare_end(engine: Engine, other: Other) -> None:
    endpoint = engine.connect("web", "box")
    other.take(endpoint, "eth0")
    sh(f"ip link delete {endpoint.host_interface}")
    found, errors = engine.repair()
    assert (found[0].what, errors) == (f"link {endpoint.host_interface} is missing", [])
    assert engine.differences() == []
    assert endpoint.spare in links()


# --- its file ------------------------------------------------------------------------------------------------------------------------


def test_when_its_file_is_known_it_can_be_entered(engine: Engine, other: Other) -> None:
    endpoint = engine.connect("web", "box")
    assert engine.namespace_at(other.path) is None
    with pytest.raises(NotFound), engine.host.namespace("box"):
        pass
    other.take(endpoint, "eth7")
    engine.reveal_namespace("box", other.path)
    found = engine.namespace_at(other.path)
    assert found == engine.state.namespace("box") == engine.namespace_at("/run/netns/box")
    assert engine.state.endpoint(engine.state.network("web"), "box").interface == "eth7"
    assert "eth7" in sh("ip -n box -br link")
    again = engine.reveal_namespace("box", other.path)
    assert again == found


def test_an_interface_that_is_taken_later_is_learnt_then(engine: Engine, other: Other) -> None:
    with contextlib.closing(Watcher(engine)) as watcher:
        endpoint = engine.connect("web", "box")
        engine.reveal_namespace("box", other.path)
        watcher.look()
        assert engine.state.endpoints[endpoint.id].interface == endpoint.spare
        other.take(endpoint, "eth3")
        watcher.look()
        assert engine.state.endpoints[endpoint.id].interface == "eth3"


def test_it_goes_when_its_file_leads_elsewhere(engine: Engine, other: Other, tmp_path: Path) -> None:
    endpoint = engine.connect("web", "box", publish=["8080:80"])
    other.take(endpoint, "eth0")
    engine.reveal_namespace("box", other.path)
    assert engine.release_vanished() == []
    inside = os.open(other.path, os.O_RDONLY)  # even while a process lives on in it
    other.end()
    assert [gone.name for gone in engine.release_vanished()] == ["box"]
    os.close(inside)
    assert not engine.host.has_namespace("box")
    engine.publish("r1", ["8080:80"])  # its port is free again
    engine.settle()
    assert len(links()) == 1

    engine.create_external("box", source="docker:box")
    with Other(tmp_path, "one") as one, Other(tmp_path, "two") as two:
        engine.reveal_namespace("box", one.path)
        one.end()
        (tmp_path / "sandbox-one").touch()
        netns.mount(two.path, one.path, "none", netns.MS_BIND)
        assert engine.namespace_at(one.path) is None
        assert [gone.name for gone in engine.release_vanished()] == ["box"]


def test_a_name_that_was_deleted_is_given_again(engine: Engine, other: Other) -> None:
    engine.reveal_namespace("box", other.path)
    sh("ip netns delete box")
    assert engine.release_vanished() == []
    assert engine.host.has_namespace("box")


def test_its_file_must_be_a_namespace_of_its_own(engine: Engine, other: Other, tmp_path: Path) -> None:
    before = engine.state.namespace("box")
    with pytest.raises(Conflict, match="host's own"):
        engine.reveal_namespace("box", "/proc/self/ns/net")
    with pytest.raises(Conflict, match="under our care as r1"):
        engine.reveal_namespace("box", "/run/netns/r1")
    (tmp_path / "file").touch()
    for path in (str(tmp_path / "file"), "relative", "/no/such/file", "/dev/null", "/nul\0"):
        with pytest.raises((Invalid, NotFound)):
            engine.reveal_namespace("box", path)
    with pytest.raises(Conflict, match="r1 is another namespace"):
        engine.reveal_namespace("r1", other.path)
    assert engine.reveal_namespace("r1", "/run/netns/r1").name == "r1"
    sh("ip netns add other")
    with pytest.raises(Conflict, match="a namespace other exists"):
        engine.create_external("other", source="docker:x")
    assert engine.state.namespace("box") == before
    assert engine.free_name("other") == "other-2"
    assert engine.free_name("box") == "box-2"
    assert engine.free_name("../../etc/passwd") == "etc-passwd"
    assert engine.free_name("/a_b.c-" + "x" * 80) == "a_b.c-" + "x" * 57
    assert engine.free_name("\0\n") == "namespace"


def test_explain_looks_into_one_that_is_known(engine: Engine, other: Other) -> None:
    endpoint = engine.connect("web", "box", addresses=["10.1.0.9", "fd01::9"])
    with pytest.raises(Conflict, match="isn't known yet"):
        explain(engine, checked("box", "r1:80"))
    other.take(endpoint, "eth0", "10.1.0.1")
    engine.reveal_namespace("box", other.path)
    for question in (checked("box", "r1:80"), checked("r1", "box:80"), checked("outside@lo", "box:80")):
        assert describe(explain(engine, question), question)
    assert explain(engine, checked("r1", "box")).verdict == "yes"


# --- namespaces that we adopt by a path, and follow ------------------------------------------------------------------------------------


def test_an_adopted_one_lives_as_long_as_its_path(engine: Engine, other: Other, traffic: Traffic) -> None:
    made = engine.adopt_namespace("pod", path=other.path, follow=True, source="cni:4711", labels={"k": "v"})
    assert (made.path, made.source, made.labels) == (other.path, "cni:4711", {"k": "v"})
    assert engine.namespace_at(other.path) == made
    engine.connect("web", "pod", addresses=["10.1.0.9", "fd01::9"], owner="cni:4711/eth0")
    traffic.serve(other, 7)
    assert traffic.unanswered([Probe(Inside(engine, "r1"), "10.1.0.9", 7)]) == []
    assert engine.release_vanished() == []
    assert [end.namespace for end in engine.state.owned("cni:4711/eth0")] == ["pod"]
    assert [end.namespace for end in engine.state.owned_by("cni:")] == ["pod"]
    assert engine.state.owned_by("podman:") == []
    other.end()
    assert [gone.name for gone in engine.release_vanished()] == ["pod"]
    assert engine.state.owned_by("cni:") == []
    engine.settle()
    assert len(links()) == 1
    assert not engine.host.has_namespace("pod")


@pytest.mark.parametrize("whole", [True, False])
def test_links_of_one_that_ends_may_go_later_and_are_never_in_the_way(engine: Engine, other: Other, traffic: Traffic, whole: bool) -> None:
    traffic.serve(Inside(engine, "r1"), 7)
    canary = Probe(Inside(engine, "r1"), "10.1.0.11", 7)
    for _ in range(3):
        engine.adopt_namespace("pod", path=other.path, follow=True)
        engine.connect("web", "pod", addresses=["10.1.0.9", "fd01::9"], interface="eth0", publish=["8080:80"], egress_rate="50mbit")
        assert traffic.unanswered([Probe(other, "10.1.0.11", 7)]) == []
        if whole:
            engine.remove_namespace("pod", ending=True)
        else:
            engine.disconnect("web", "pod", ending=True)
            engine.remove_namespace("pod")
        assert engine.differences() == []
        assert "eth0" in other.links()
        assert traffic.leaking([Probe(other, "10.1.0.11", 7)], [canary]) == []
    engine.settle()
    assert other.links() == {"lo"}
    assert len(links()) == 1


def test_one_that_is_not_followed_lives_by_our_name(engine: Engine, other: Other) -> None:
    engine.adopt_namespace("pod", path=other.path)
    other.end()
    assert engine.release_vanished() == []
    sh("ip netns delete pod")
    assert [gone.name for gone in engine.release_vanished()] == ["pod"]


def test_a_new_namespace_behind_a_followed_path_can_be_adopted_at_once(engine: Engine, other: Other, tmp_path: Path) -> None:
    engine.adopt_namespace("old", path=other.path, follow=True)
    copy = str(tmp_path / "copy")
    (tmp_path / "copy").touch()
    netns.mount(other.path, copy, "none", netns.MS_BIND)
    other.end()
    assert engine.adopt_namespace("new", path=copy, follow=True).name == "new"
    assert "old" not in engine.state.namespaces
    netns.unmount(copy)


def test_a_path_of_bytes_that_are_no_text_is_refused(engine: Engine, tmp_path: Path) -> None:
    with Other(tmp_path, "box") as other:
        link = tmp_path / os.fsdecode(b"d\xff")
        link.symlink_to(other.path)
        with pytest.raises(Invalid, match="is not an absolute path"):
            engine.adopt_namespace("pod", path=str(link), follow=True)
    assert "pod" not in engine.state.namespaces


def test_only_a_path_can_be_followed(engine: Engine) -> None:
    with pytest.raises(Invalid, match="only a path"):
        engine.adopt_namespace("pod", pid=os.getpid(), follow=True)
