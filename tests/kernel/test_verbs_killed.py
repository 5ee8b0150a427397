"""kill -9 at every step of the verbs that front doors need: what was to be is there or it isn't, and nothing is between.

The next engine must find the model as it was before or as it is after, the kernel as that says, and the same call again must succeed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

from atoll import Engine
from atoll.engine.files import Files
from atoll.model import Tuning
from tests.kernel.deaths import Call, Deaths, call
from tests.others import Other, sh
from tests.support import Inside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Of a model: what differs from one making to the next.
_CHANCE = {"id", "created", "mac", "bridge", "inode", "device", "interface"}


def world(engine: Engine) -> dict[str, Any]:
    """All that there is, by names."""
    state = engine.state
    names = {network.id: network.name for network in state.networks.values()}
    return {
        "networks": {network.name: plain(network) for network in state.networks.values()},
        "namespaces": {name: plain(namespace) for name, namespace in state.namespaces.items()},
        "endpoints": {
            (names[end.network], end.namespace): plain(end) | {"network": names[end.network], "ports": [*map(str, end.ports)]}
            for end in state.endpoints.values()
        },
        "holds": {(names[network], address): holder for (network, address), holder in state.holds.items()},
        "pools": [plain(pool) for pool in engine.pools()],
        "leases": {pool.name: engine.leases(pool.name) for pool in engine.pools()},
        "held": {
            (name, str(value)): holder
            for network, name in names.items()
            for pool in state.pools(state.networks[network])
            for value, holder in pool.holders()
        },
        "named": set(sh("ls /run/netns").split()),
        "files": {path.name for path in engine.files.folder.iterdir()}
        if engine.files is not None and engine.files.folder.exists()
        else set(),
    }


def plain(value: Any) -> dict[str, Any]:
    return {key: item for key, item in msgspec.to_builtins(value).items() if key not in _CHANCE}


class Change(NamedTuple):
    """What is there before, one change, and what takes it back; `{path}` in words is the file of somebody's namespace."""

    given: list[Call]
    change: Call
    undo: list[Call]


WEB = call("create_network", "web", subnets=["10.1.0.0/24", "fd01::/64"])
R1 = [call("create_namespace", "r1"), call("connect", "web", "r1", addresses=["10.1.0.11", "fd01::11"], publish=["8080:80"])]
BOX = [
    call("create_external", "box", source="docker:box"),
    call("connect", "web", "box", addresses=["10.1.0.9", "fd01::9"], publish=["81:80"]),
]

TUNED = {
    "settings": {"net/core/somaxconn": "77", "net/ipv4/conf/eth0/arp_filter": "1"},
    "promisc": True,
    "queue": 55,
    "mac": "02:00:00:00:00:99",
    "mtu": 1400,
}

CHANGES = {
    "external": Change([WEB], BOX[0], [call("remove_namespace", "box")]),
    "endpoint of an external one": Change(
        [WEB, BOX[0]],
        call("connect", "web", "box", addresses=["10.1.0.9", "fd01::9"], egress_rate="9mbit", owner="docker:e"),
        [call("disconnect", "web", "box")],
    ),
    "endpoint that goes": Change([WEB, *BOX], call("disconnect", "web", "box"), [BOX[1]]),
    "external that goes": Change(
        [WEB, *BOX, call("reveal_namespace", "box", "{path}")],
        call("remove_namespace", "box"),
        [*BOX, call("reveal_namespace", "box", "{path}")],
    ),
    "external that ends": Change([WEB, *BOX], call("remove_namespace", "box", ending=True), BOX),
    "last endpoint of one that ends": Change([WEB, *BOX], call("disconnect", "web", "box", ending=True), [BOX[1]]),
    "revealing": Change([WEB, *BOX], call("reveal_namespace", "box", "{path}"), [call("remove_namespace", "box"), *BOX]),
    "following": Change(
        [WEB], call("adopt_namespace", "pod", path="{path}", follow=True, source="cni:1"), [call("remove_namespace", "pod")]
    ),
    "renaming": Change([WEB, *R1], call("rename_namespace", "r1", "front"), [call("rename_namespace", "front", "r1")]),
    "renaming an adopted one": Change(
        [WEB, call("adopt_namespace", "pod", path="{path}", follow=True), call("connect", "web", "pod")],
        call("rename_namespace", "pod", "front"),
        [call("rename_namespace", "front", "pod")],
    ),
    "renaming an external one": Change([WEB, *BOX], call("rename_namespace", "box", "front"), [call("rename_namespace", "front", "box")]),
    "renaming a revealed one": Change(
        [WEB, *BOX, call("reveal_namespace", "box", "{path}")],
        call("rename_namespace", "box", "front"),
        [call("rename_namespace", "front", "box")],
    ),
    "renaming a network": Change([WEB, *R1], call("rename_network", "web", "shop"), [call("rename_network", "shop", "web")]),
    "aliases": Change([WEB, *R1], call("set_aliases", "web", "r1", ["a", "b"]), [call("set_aliases", "web", "r1", [])]),
    "hold": Change([WEB], call("hold_address", "web", "docker", "10.1.0.9"), [call("drop_hold", "web", "10.1.0.9")]),
    "dropping": Change(
        [WEB, call("hold_address", "web", "docker", "10.1.0.9")],
        call("drop_hold", "web", "10.1.0.9"),
        [call("hold_address", "web", "docker", "10.1.0.9")],
    ),
    "taking over": Change(
        [WEB, call("create_namespace", "r1"), call("hold_address", "web", "docker", "10.1.0.9")],
        call("connect", "web", "r1", addresses=["10.1.0.9", "fd01::9"], holder="docker"),
        [call("disconnect", "web", "r1"), call("hold_address", "web", "docker", "10.1.0.9")],
    ),
    "tuning": Change([WEB, *R1], call("tune", "web", "r1", TUNED), [call("untune", "web", "r1")]),
    "tuning back": Change([WEB, *R1, call("tune", "web", "r1", TUNED)], call("untune", "web", "r1"), [call("tune", "web", "r1", TUNED)]),
    "isolation": Change([WEB, *R1], call("set_isolation", "web", "open"), [call("set_isolation", "web", "strict")]),
    "pool": Change([], call("open_pool", "p", "10.7.0.0/24", ["10.7.0.16/28"]), [call("close_pool", "p")]),
    "closing": Change(
        [call("open_pool", "p", "10.7.0.0/24"), call("lease", "p", "a", "10.7.0.9")],
        call("close_pool", "p"),
        [call("open_pool", "p", "10.7.0.0/24"), call("lease", "p", "a", "10.7.0.9")],
    ),
    "lease": Change([call("open_pool", "p", "10.7.0.0/24")], call("lease", "p", "a", "10.7.0.9"), [call("release_lease", "p", owner="a")]),
    "releasing": Change(
        [call("open_pool", "p", "10.7.0.0/24"), call("lease", "p", "a", "10.7.0.9"), call("lease", "p", "a", "10.7.0.10")],
        call("release_lease", "p", owner="a"),
        [call("lease", "p", "a", "10.7.0.9"), call("lease", "p", "a", "10.7.0.10")],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_death_at_any_step(host: None, tmp_path: Path, name: str) -> None:
    given, change, undo = CHANGES[name]
    state = tmp_path / "state"
    with Other(tmp_path, "box") as other, Deaths(state) as deaths:

        def filled(one: Call) -> Call:
            verb, words, options = one
            return (
                verb,
                [other.path if word == "{path}" else word for word in words],
                {k: other.path if v == "{path}" else v for k, v in options.items()},
            )

        def do(calls: Sequence[Call]) -> dict[str, Any]:
            """What there is when these are done; nothing may be amiss."""
            with Engine.open(state, files=Files(state / "files")) as engine:
                for verb, words, options in map(filled, calls):
                    getattr(engine, verb)(*(Tuning(**word) if isinstance(word, dict) else word for word in words), **options)
                assert engine.differences() == []
                return world(engine)

        before = do(given)
        after = do([change])
        assert do(undo) == before
        step = 1
        while deaths.dies(f"{change[0]}:{step}", [filled(change)]):
            found = do([])
            assert found in (before, after), f"after a death at step {step}"
            if found == before:
                assert do([change]) == after
            assert do(undo) == before
            step += 1
        assert step > 1, "no step was met"
        assert do([]) == after


def test_death_while_a_rename_is_finished(host: None, tmp_path: Path) -> None:
    """The recovery from one death dies as well, at each of its steps."""
    state = tmp_path / "state"
    with Deaths(state) as deaths:
        assert not deaths.dies("", [WEB, *R1])
        before = sh("stat -Lc %i /run/netns/r1")
        for step in range(1, 100):
            old, new = ("r1", "front") if sh("ls /run/netns").split() == ["r1"] else ("front", "r1")
            assert deaths.dies("rename_namespace:1", [call("rename_namespace", old, new)])
            died = deaths.dies(f"open:{step}", [])
            with Engine.open(state, files=Files(state / "files")) as engine:
                assert list(engine.state.namespaces) == [new] == sh("ls /run/netns").split()
                assert engine.differences() == []
                assert [path.name for path in (state / "files").iterdir()] == [new]
            assert sh(f"stat -Lc %i /run/netns/{new}") == before
            if not died:
                assert step > 3
                return
        pytest.fail("it always dies")


def test_a_hold_is_there_again_after_a_death_in_connect(host: None, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with Deaths(state) as deaths:
        assert not deaths.dies("", [WEB, call("create_namespace", "r1"), call("hold_address", "web", "docker", "10.1.0.9")])
        assert deaths.dies("connect:2", [call("connect", "web", "r1", addresses=["10.1.0.9"], holder="docker")])
        with Engine.open(state) as engine:
            assert [*engine.state.holds.values()] == ["docker"]
            assert engine.state.endpoints == {}
            assert engine.connect("web", "r1", addresses=["10.1.0.9"], holder="docker").addresses[0] == "10.1.0.9/24"
            assert not engine.state.holds
            assert not engine.store.load_holds()


def test_what_is_in_the_way_of_a_rename_undoes_it(host: None, tmp_path: Path) -> None:
    with Engine.open(tmp_path / "state") as engine:
        engine.create_namespace("r1")
        before = world(engine)
        sh("ip netns add taken")
        with pytest.raises(Exception, match="taken"):
            engine.rename_namespace("r1", "taken")
        sh("ip netns delete taken; mkdir /run/netns/folder")
        with pytest.raises(Exception, match="folder"):
            engine.rename_namespace("r1", "folder")
        sh("rmdir /run/netns/folder")
        assert world(engine) == before
        assert Inside(engine, "r1").run(lambda: True)
        engine.rename_namespace("r1", "r2")
        assert sh("ls /run/netns").split() == ["r2"]
