"""Whatever clients do in whatever order, with an engine that ends and comes back in between: the model, the kernel and what was asked for
agree after each step, and in the end nothing is left."""

from __future__ import annotations

import contextlib
import os
import random
from functools import partial
from typing import TYPE_CHECKING

import pytest

from atoll import Engine
from atoll.errors import Conflict, NotFound
from tests.others import Other, sh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from atoll.model import Endpoint

NETWORKS = {"web": "10.1.0.0/24", "db": "10.2.0.0/24"}
NAMES = ("a", "b", "c")
STEPS = 120


class Clients:
    """`boxes` are namespaces of theirs by name. Of each namespace of ours: its box, whether it is external, and whether its file is known.
    Of each endpoint: what its end is called in the box, empty while it lies on the host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened = contextlib.ExitStack()
        self.engine = Engine.open(folder / "state")
        for name, subnet in NETWORKS.items():
            self.engine.create_network(name, subnets=[subnet])
        self._made = 0
        self.boxes: dict[str, Other] = {}
        self.box: dict[str, str] = {}
        self.external: set[str] = set()
        self.known: set[str] = set()
        self.ends: dict[tuple[str, str], str] = {}

    def close(self) -> None:
        self.engine.close()
        self._opened.close()

    def possible(self) -> list[Callable[[], None]]:
        """Everything that can be done now, and some of what can't."""
        found: list[Callable[[], None]] = [self.begin_anew, self.engine.settle, self.refused]
        unused = [name for name in NAMES if name not in self.box]
        for name in unused:
            found += [partial(self.create_external, name), partial(self.adopt, name)]
            found += [partial(self.rename, old, name) for old in self.box]
        for name in self.box:
            found += [partial(self.remove, name, ending) for ending in (False, True)]
            found += [partial(self.connect, network, name) for network in NETWORKS if (network, name) not in self.ends]
            found.append(partial(self.end, name))
            if name in self.external:
                found.append(partial(self.reveal, name))
            if name in self.known:
                found.append(partial(self.delete_the_name, name))
        for (network, name), inside in self.ends.items():
            found += [partial(self.disconnect, network, name, ending) for ending in (False, True)]
            found.append(partial(self.damage, network, name))
            if name in self.external:
                found.append(partial(self.give_back if inside else self.take, network, name))
        return found

    # --- what is done ---

    def new_box(self) -> str:
        self._made += 1
        name = f"box{self._made}"
        self.boxes[name] = self._opened.enter_context(Other(self._folder, name))
        return name

    def create_external(self, name: str) -> None:
        self.engine.create_external(name, source="docker:1")
        self.box[name] = self.new_box()
        self.external.add(name)

    def adopt(self, name: str) -> None:
        box = self.new_box()
        self.engine.adopt_namespace(name, path=self.boxes[box].path, follow=True, source="podman:1")
        self.box[name] = box
        self.known.add(name)

    def reveal(self, name: str) -> None:
        self.engine.reveal_namespace(name, self.boxes[self.box[name]].path)
        self.known.add(name)

    def connect(self, network: str, name: str) -> None:
        port = 8000 + 10 * int(self.box[name].removeprefix("box")) + sorted(NETWORKS).index(network)
        made = self.engine.connect(network, name, publish=[f"{port}:80"], owner=f"docker:{name}")
        self.ends[network, name] = "" if name in self.external else made.interface

    def take(self, network: str, name: str) -> None:
        inside = f"{network}0"
        self.boxes[self.box[name]].take(self.endpoint(network, name), inside)
        self.ends[network, name] = inside
        self.engine.learn_interfaces([name])

    def give_back(self, network: str, name: str) -> None:
        self.boxes[self.box[name]].give_back(self.endpoint(network, name), self.ends[network, name])
        self.ends[network, name] = ""

    def disconnect(self, network: str, name: str, ending: bool) -> None:
        self.engine.disconnect(network, name, ending=ending)
        del self.ends[network, name]

    def remove(self, name: str, ending: bool) -> None:
        self.engine.remove_namespace(name, ending=ending)
        self.forget(name)

    def rename(self, old: str, new: str) -> None:
        self.engine.rename_namespace(old, new)
        self.box[new] = self.box.pop(old)
        for kind in (self.external, self.known):
            if old in kind:
                kind.remove(old)
                kind.add(new)
        self.ends = {(network, new if name == old else name): inside for (network, name), inside in self.ends.items()}

    def end(self, name: str) -> None:
        """The client has ended it without a word to us."""
        self.boxes.pop(self.box[name]).end()
        if name in self.known:
            assert [gone.name for gone in self.engine.release_vanished()] == [name]
        else:
            # Nothing tells us; its client will.
            self.engine.repair()
            self.engine.remove_namespace(name)
        self.forget(name)

    def delete_the_name(self, name: str) -> None:
        sh(f"ip netns delete {name}")
        assert self.engine.release_vanished() == []

    def damage(self, network: str, name: str) -> None:
        sh(f"ip link delete {self.endpoint(network, name).host_interface}")
        assert self.engine.repair()[1] == []
        if name in self.external:
            self.ends[network, name] = ""

    def begin_anew(self) -> None:
        self.engine.close()
        self.engine = Engine.open(self._folder / "state")

    def refused(self) -> None:
        """What can't be says so and changes nothing, as is seen afterwards."""
        with pytest.raises(NotFound):
            self.engine.connect("web", "nobody")
        with pytest.raises(NotFound):
            self.engine.rename_namespace("nobody", "somebody")
        for name, box in self.box.items():
            with pytest.raises(Conflict):
                self.engine.create_external(name, source="docker:1")
            for other in set(self.box) - {name}:
                with pytest.raises(Conflict):
                    self.engine.rename_namespace(name, other)
                if other in self.external and name in self.known:
                    with pytest.raises(Conflict, match=f"under our care as {name}"):
                        self.engine.reveal_namespace(other, self.boxes[box].path)
        for network, name in self.ends:
            if name not in self.external:  # Docker may put a container on a network twice
                with pytest.raises(Conflict):
                    self.engine.connect(network, name)

    # --- what must be so ---

    def all_agree(self) -> None:
        engine = self.engine
        assert engine.release_vanished() == []
        assert engine.differences() == []
        assert set(engine.state.namespaces) == set(self.box)
        assert {(engine.state.network(end.network).name, end.namespace) for end in engine.state.endpoints.values()} == set(self.ends)
        assert set(os.listdir("/run/netns")) == self.known
        for box, other in self.boxes.items():
            mine = [name for name in self.known if self.box[name] == box]
            found = engine.namespace_at(other.path)
            assert [found.name] == mine if found is not None else not mine
        here = {line.split()[0].partition("@")[0] for line in sh("ip -br link").splitlines()}
        for (network, name), inside in self.ends.items():
            end = self.endpoint(network, name)
            assert end.host_interface in here
            assert (end.spare in here) == (inside == "")
            if name in self.external and inside and name in self.known:
                assert end.interface == inside

    def nothing_is_left(self) -> None:
        for name in list(self.box):
            self.engine.remove_namespace(name)
        for name in NETWORKS:
            self.engine.remove_network(name)
        self.engine.settle()
        assert self.engine.differences() == []
        assert not [line for line in sh("ip -br link").splitlines() if line.startswith("at")]
        assert os.listdir("/run/netns") == []

    # --- parts ---

    def endpoint(self, network: str, name: str) -> Endpoint:
        return self.engine.state.endpoint(self.engine.state.network(network), name)

    def forget(self, name: str) -> None:
        self.boxes.pop(self.box.pop(name), None)
        self.external.discard(name)
        self.known.discard(name)
        self.ends = {end: inside for end, inside in self.ends.items() if end[1] != name}


@pytest.mark.parametrize("seed", range(3))
def test_clients_in_any_order(host: None, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with contextlib.closing(Clients(tmp_path)) as clients:
        for _ in range(STEPS):
            chance.choice(clients.possible())()
            clients.all_agree()
        clients.nothing_is_left()
