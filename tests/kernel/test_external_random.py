"""Whatever clients do in whatever order, with an engine that ends and comes back in between: the model, the kernel and what was asked for
agree after each step, and in the end nothing is left."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from atoll import Engine
from atoll.errors import Conflict, NotFound
from tests.others import Other, sh

if TYPE_CHECKING:
    from pathlib import Path

    from atoll.model import Endpoint

NETWORKS = {"web": "10.1.0.0/24", "db": "10.2.0.0/24"}

names = st.sampled_from(["a", "b", "c"])
networks = st.sampled_from([*NETWORKS])
boxes = st.sampled_from(["x", "y", "z"])


class Clients(RuleBasedStateMachine):
    """`boxes` are namespaces of theirs by name. Of each namespace of ours: its box, whether it is external, and whether its file is known.
    Of each endpoint: what its end is called in the box, empty while it lies on the host."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine.open(self.folder / "state")
        for name, subnet in NETWORKS.items():
            self.engine.create_network(name, subnets=[subnet])
        self.boxes: dict[str, Other] = {}
        self.box: dict[str, str] = {}
        self.external: set[str] = set()
        self.known: set[str] = set()
        self.ends: dict[tuple[str, str], str] = {}

    def teardown(self) -> None:
        for name in self.box:
            self.engine.remove_namespace(name)
        for name in NETWORKS:
            self.engine.remove_network(name)
        assert self.engine.differences() == []
        assert not [line for line in sh("ip -br link").splitlines() if line.startswith("at")]
        assert os.listdir("/run/netns") == []
        self.engine.close()
        for box in self.boxes.values():
            box.__exit__()

    # --- parts ---

    def free(self, box: str) -> Other | None:
        """A box that is nobody's, made when it is first asked for."""
        if box in self.box.values():
            return None
        if box not in self.boxes:
            self.boxes[box] = Other(self.folder, box)
        return self.boxes[box]

    def endpoint(self, network: str, name: str) -> Endpoint:
        return self.engine.state.endpoint(self.engine.state.network(network), name)

    def forget(self, name: str) -> None:
        del self.box[name]
        self.external.discard(name)
        self.known.discard(name)
        self.ends = {end: inside for end, inside in self.ends.items() if end[1] != name}

    # --- what is done ---

    @rule(name=names, box=boxes)
    def external_one(self, name: str, box: str) -> None:
        if name in self.box:
            with pytest.raises(Conflict, match="exists"):
                self.engine.create_external(name, source="docker:1")
        elif self.free(box):
            self.engine.create_external(name, source="docker:1")
            self.box[name] = box
            self.external.add(name)

    @rule(name=names, box=boxes)
    def adopted_one(self, name: str, box: str) -> None:
        if self.free(box) is not None and name not in self.box:
            self.engine.adopt_namespace(name, path=self.boxes[box].path, follow=True, source="podman:1")
            self.box[name] = box
            self.known.add(name)
        elif box in self.boxes and any(self.box[other] == box for other in self.known):
            with pytest.raises(Conflict):
                self.engine.adopt_namespace("other", path=self.boxes[box].path, follow=True)

    @rule(name=names)
    def file_is_known(self, name: str) -> None:
        if name in self.external:
            self.engine.reveal_namespace(name, self.boxes[self.box[name]].path)
            self.known.add(name)

    @rule(network=networks, name=names)
    def connect(self, network: str, name: str) -> None:
        if name not in self.box:
            with pytest.raises(NotFound):
                self.engine.connect(network, name)
        elif (network, name) in self.ends:
            with pytest.raises(Conflict):
                self.engine.connect(network, name)
        else:
            port = 8000 + sorted(NETWORKS).index(network) * 10 + sorted("abc").index(name)
            ports = [] if any(str(port) in str(end.ports) for end in self.engine.state.endpoints.values()) else [f"{port}:80"]
            made = self.engine.connect(network, name, publish=ports, owner=f"docker:{name}")
            self.ends[network, name] = "" if name in self.external else made.interface

    @rule(network=networks, name=names)
    def take(self, network: str, name: str) -> None:
        if name in self.external and self.ends.get((network, name)) == "":
            self.boxes[self.box[name]].take(self.endpoint(network, name), f"{network}0")
            self.ends[network, name] = f"{network}0"
            self.engine.learn_interfaces([name])

    @rule(network=networks, name=names)
    def give_back(self, network: str, name: str) -> None:
        if name in self.external and self.ends.get((network, name)):
            self.boxes[self.box[name]].give_back(self.endpoint(network, name), self.ends[network, name])
            self.ends[network, name] = ""

    @rule(network=networks, name=names, ending=st.booleans())
    def disconnect(self, network: str, name: str, ending: bool) -> None:
        if self.ends.pop((network, name), None) is not None:
            self.engine.disconnect(network, name, ending=ending)

    @rule(name=names, ending=st.booleans())
    def remove(self, name: str, ending: bool) -> None:
        if name in self.box:
            self.engine.remove_namespace(name, ending=ending)
            self.forget(name)

    @rule(old=names, new=names)
    def rename(self, old: str, new: str) -> None:
        if old not in self.box:
            with pytest.raises(NotFound):
                self.engine.rename_namespace(old, new)
        elif new in self.box and new != old:
            with pytest.raises(Conflict):
                self.engine.rename_namespace(old, new)
        elif new != old:
            self.engine.rename_namespace(old, new)
            self.box[new] = self.box.pop(old)
            for kind in (self.external, self.known):
                if old in kind:
                    kind.remove(old)
                    kind.add(new)
            self.ends = {(network, new if name == old else name): inside for (network, name), inside in self.ends.items()}

    @rule(box=boxes)
    def end(self, box: str) -> None:
        """The client has ended it without a word to us."""
        if box in self.boxes:
            self.boxes.pop(box).__exit__()
            for name in [name for name, where in self.box.items() if where == box]:
                if name in self.known:
                    self.engine.release_vanished()
                else:
                    # Nothing tells us; its client will.
                    self.engine.repair()
                    self.engine.remove_namespace(name)
                self.forget(name)

    @rule(name=names)
    def delete_the_name(self, name: str) -> None:
        if name in self.known:
            sh(f"ip netns delete {name}")
            assert self.engine.release_vanished() == []

    @precondition(lambda self: self.ends)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        network, name = data.draw(st.sampled_from(sorted(self.ends)))
        sh(f"ip link delete {self.endpoint(network, name).host_interface}")
        assert self.engine.repair()[1] == []
        if name in self.external:
            self.ends[network, name] = ""

    @rule()
    def settle(self) -> None:
        self.engine.settle()

    @rule()
    def begin_anew(self) -> None:
        self.engine.close()
        self.engine = Engine.open(self.folder / "state")

    # --- what must be so ---

    @invariant()
    def all_agree(self) -> None:
        engine = self.engine
        assert engine.release_vanished() == []
        assert engine.differences() == []
        assert set(engine.state.namespaces) == set(self.box)
        assert {(engine.state.network(end.network).name, end.namespace) for end in engine.state.endpoints.values()} == set(self.ends)
        assert set(os.listdir("/run/netns")) == self.known
        for name in self.box:
            assert [end.namespace for end in engine.state.owned(f"docker:{name}")] in ([], [name], [name, name])
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


def test_clients_in_any_order(host: None, tmp_path: Path) -> None:
    Clients.folder = tmp_path
    run_state_machine_as_test(Clients, settings=settings(max_examples=15, stateful_step_count=30, deadline=None))
