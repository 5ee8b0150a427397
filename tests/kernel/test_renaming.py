"""What is called otherwise is found under its new name everywhere, and what went on goes on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from atoll import Engine
from atoll.engine.files import Files
from atoll.errors import Conflict, Denied, Invalid, NotFound
from tests.daemon.processes import flow
from tests.daemon.test_adopt_names import process
from tests.kernel.test_names import answers, unknown
from tests.others import Other, sh
from tests.support import Inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def named(host: None, tmp_path: Path) -> Iterator[Engine]:
    """An engine with names and files: r1 and r2 on web, r1 on db as well."""
    with Engine.open(dns=True, files=Files(tmp_path / "files", tmp_path / "links")) as engine:
        engine.create_network("web", subnets=["10.1.0.0/24"])
        engine.create_network("db", subnets=["10.2.0.0/24"])
        for name in ("r1", "r2"):
            engine.create_namespace(name)
            engine.connect("web", name)
        engine.connect("db", "r1", aliases=["sql"], publish=["8080:80"], owner="cni:1/eth1")
        yield engine


def test_a_namespace_is_found_under_its_new_name(named: Engine, tmp_path: Path) -> None:
    r2 = Inside(named, "r2")
    before = named.state.endpoint(named.state.network("db"), "r1")
    inode = (tmp_path / "files/r1/hosts").stat().st_ino
    assert answers(r2, "r1") == {"10.1.0.2"}
    with flow(r2, "10.1.0.2", 7, Inside(named, "r1"), 7) as going:
        made = named.rename_namespace("r1", "front")
        going.goes_on()
    assert (made.name, made.former, made.state) == ("front", "", "ready")
    assert answers(r2, "front") == {"10.1.0.2"}
    assert answers(Inside(named, "front"), "sql.db", server="10.2.0.1") == {"10.2.0.2"}
    assert unknown(r2, "r1.web.atoll")
    assert named.state.endpoint(named.state.network("db"), "front") == structs.replace(before, namespace="front")
    assert [end.namespace for end in named.state.owned("cni:1/eth1")] == ["front"]
    with pytest.raises(NotFound):
        named.state.namespace("r1")
    assert sorted(sh("ip netns list").split("\n")[:-1])[0].startswith("front")
    assert sorted(os.listdir("/run/netns")) == ["front", "r2"]
    assert (tmp_path / "files/front/hosts").stat().st_ino == inode
    assert "front.db.atoll front" in (tmp_path / "files/front/hosts").read_text()
    assert sorted(os.listdir(tmp_path / "files")) == [".links", "front", "r2"]
    assert sorted(os.listdir(tmp_path / "links")) == ["front", "r2"]
    assert named.differences() == []
    # What was the old name's is the new one's, and the old name is free.
    with pytest.raises(Conflict, match="published by front"):
        named.publish("r2", ["8080:80"])
    with pytest.raises(Conflict, match="held by front"):
        named.connect("db", "r2", addresses=["10.2.0.2"])
    named.create_namespace("r1")
    named.remove_namespace("front")
    named.connect("db", "r2", addresses=["10.2.0.2"], publish=["8080:80"])
    assert named.differences() == []


def test_what_a_dry_run_says_is_what_is_done(named: Engine) -> None:
    commands = named.plan_rename_namespace("r1", "front").commands()
    assert commands == ["touch /run/netns/front", "mount --bind /run/netns/r1 /run/netns/front", "ip netns delete r1"]
    named.rename_namespace("r1", "front")
    sh("; ".join(command.replace("front", "x").replace("r1", "front").replace("x", "r1") for command in commands))
    assert sorted(os.listdir("/run/netns")) == ["r1", "r2"]


def test_names_that_cannot_be(named: Engine) -> None:
    for new, error in (("r2", Conflict), ("../x", Invalid), ("", Invalid), ("x" * 64, Invalid), ("a\n", Invalid)):
        with pytest.raises(error):
            named.rename_namespace("r1", new)
        with pytest.raises(error):
            named.plan_rename_namespace("r1", new)
    for new, error in (("db", Conflict), ("host", Conflict), ("a b", Invalid), ("", Invalid)):
        with pytest.raises(error):
            named.rename_network("web", new)
    with pytest.raises(Denied):
        named.rename_network("none", "nothing")
    with pytest.raises(NotFound):
        named.rename_namespace("nobody", "somebody")
    with pytest.raises(NotFound):
        named.rename_network("nothing", "something")
    assert named.rename_namespace("r1", "r1").name == "r1"
    assert named.rename_network("web", "web").name == "web"
    assert named.differences() == []


def test_one_that_somebody_else_named_keeps_that_name_beside_ours(host: None, tmp_path: Path) -> None:
    with Engine.open(tmp_path) as engine:
        sh("ip netns add theirs")
        engine.adopt_namespace("theirs", path="/run/netns/theirs")
        assert engine.rename_namespace("theirs", "mine").named
        assert sorted(os.listdir("/run/netns")) == ["mine", "theirs"]
        assert not engine.rename_namespace("mine", "theirs").named
        assert os.listdir("/run/netns") == ["theirs"]
        engine.remove_namespace("theirs")
        assert os.listdir("/run/netns") == ["theirs"]


def test_one_of_a_process_is_let_go_with_it_under_its_new_name(engine: Engine) -> None:
    with process("-n") as pid:
        engine.adopt_namespace("p1", pid=pid)
        engine.rename_namespace("p1", "p2")
        assert engine.release_vanished() == []
    assert [gone.name for gone in engine.release_vanished()] == ["p2"]


def test_an_external_one_before_and_after_its_file_is_known(engine: Engine, tmp_path: Path) -> None:
    engine.create_network("web", subnets=["10.1.0.0/24"])
    engine.create_external("provisional", source="docker:1")
    endpoint = engine.connect("web", "provisional")
    engine.rename_namespace("provisional", "box")
    assert os.path.exists("/run/netns/box") is False
    with Other(tmp_path, "box") as other:
        other.take(endpoint, "eth0")
        engine.reveal_namespace("box", other.path)
        engine.rename_namespace("box", "web-1")
        assert os.listdir("/run/netns") == ["web-1"]
        found = engine.namespace_at(other.path)
        assert found is not None
        assert found.name == "web-1"
        assert engine.release_vanished() == []
    assert [gone.name for gone in engine.release_vanished()] == ["web-1"]
    assert os.listdir("/run/netns") == []


def test_an_engine_without_a_folder_of_names_renames_as_well(host: None) -> None:
    with Engine.open(netns_dir=None) as engine:
        engine.create_network("web", subnets=["10.1.0.0/24"])
        engine.create_namespace("r1")
        engine.connect("web", "r1")
        engine.rename_namespace("r1", "r2")
        assert engine.differences() == []
        assert engine.release_vanished() == []
        engine.disconnect("web", "r2")


def test_a_network_is_found_under_its_new_name(named: Engine, tmp_path: Path) -> None:
    r2 = Inside(named, "r2")
    assert answers(r2, "r1.web.atoll") == {"10.1.0.2"}
    made = named.rename_network("web", "shop")
    assert named.state.network("shop") == made == named.state.network(made.id)
    assert answers(r2, "r1.shop.atoll") == answers(r2, "r1.shop") == {"10.1.0.2"}
    assert unknown(r2, "r1.web.atoll")
    assert "r2.shop.atoll" in (tmp_path / "files/r2/hosts").read_text()
    assert "search shop.atoll" in (tmp_path / "files/r2/resolv.conf").read_text()
    named.create_network("web", subnets=["10.3.0.0/24"])
    with pytest.raises(Conflict, match="network shop"):
        named.connect("shop", named.create_namespace("r3").name, addresses=["10.1.0.2"])
    assert named.differences() == []


def test_aliases_change_while_it_runs(named: Engine) -> None:
    r1 = Inside(named, "r1")
    named.set_aliases("web", "r2", ["api", "www", "api"])
    assert answers(r1, "api") == answers(r1, "www.web") == {"10.1.0.3"}
    assert named.set_aliases("web", "r2", ["www"]).aliases == ("www",)
    assert answers(r1, "www") == {"10.1.0.3"}
    assert unknown(r1, "api.web.atoll")
    for wrong in ("", "a b", "x" * 64, "../x"):
        with pytest.raises(Invalid):
            named.set_aliases("web", "r2", [wrong])
    with pytest.raises(NotFound):
        named.set_aliases("db", "r2", ["x"])
    assert named.state.endpoint(named.state.network("web"), "r2").aliases == ("www",)


def test_labels_change(named: Engine) -> None:
    assert named.set_labels("r1", {"a": "b"}).labels == {"a": "b"} == named.state.namespace("r1").labels
    assert named.set_labels("r1", {}).labels == {}
    assert named.set_network_labels("web", {"a": "b"}).labels == {"a": "b"} == named.state.network("web").labels
    for wrong in ({"": "x"}, {"a": "b\n"}, {"k" * 256: ""}):
        with pytest.raises(Invalid):
            named.set_labels("r1", wrong)
        with pytest.raises(Invalid):
            named.set_network_labels("web", wrong)
    with pytest.raises(Denied):
        named.set_network_labels("none", {})
