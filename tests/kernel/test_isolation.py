"""How networks stand to each other: strict, isolated and open ones."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from atoll.errors import Invalid
from atoll.explain import explain, parse
from tests.kernel.kernel_state import Shell
from tests.kernel.test_limits import left_as_it_was
from tests.support import FACING, OUTSIDE, Inside, Probe, Traffic

if TYPE_CHECKING:
    from atoll import Engine
    from atoll.lab.machine import Machine

#: Two networks of each kind, and one that is open and yet internal.
NETWORKS = {
    "strict1": "strict", "strict2": "strict", "isolated1": "isolated", "isolated2": "isolated", "open1": "open", "open2": "open",
    "inner": "open",
}  # fmt: skip


def reach(source: str, target: str) -> bool:
    """netavark's words for whether one network reaches another."""
    kinds = {NETWORKS[source], NETWORKS[target]}
    return source == target or ("inner" not in (source, target) and "open" in kinds and "strict" not in kinds)


@pytest.fixture
def networks(engine: Engine, world: Machine, traffic: Traffic) -> dict[str, Inside]:
    places: dict[str, Inside] = {}
    for number, (name, isolation) in enumerate(NETWORKS.items()):
        subnets = [f"10.{number + 1}.0.0/24", f"fd0{number + 1}::/64"]
        engine.create_network(name, subnets=subnets, isolation=isolation, internal=name == "inner")
        for namespace in (name, f"{name}b"):
            engine.create_namespace(namespace)
            ports = [f"{8000 + number}:80"] if namespace == name and name != "inner" else []
            engine.connect(name, namespace, publish=ports)
        places[name] = Inside(engine, name)
        traffic.serve(places[name], 80)
    traffic.serve(world, 80)
    return places


def targets(engine: Engine, name: str) -> list[str]:
    """The addresses of a network's server, which is not the one that asks."""
    endpoint = engine.state.endpoints_of(name)[0]
    return [endpoint.address(4), endpoint.address(6)]


def test_who_reaches_whom(engine: Engine, world: Machine, traffic: Traffic, networks: dict[str, Inside]) -> None:
    through: list[Probe] = []
    apart: list[Probe] = []
    for source, target in product(NETWORKS, NETWORKS):
        place = Inside(engine, f"{source}b")
        for address in targets(engine, target):
            (through if reach(source, target) else apart).append(Probe(place, address, 80))
    for source in set(NETWORKS) - {"inner"}:
        place = Inside(engine, f"{source}b")
        through += [Probe(place, OUTSIDE[version], 80) for version in (4, 6)]
        # What is published is there for everyone, whatever keeps the networks apart.
        through += [Probe(place, FACING[version], 8000 + number) for number in range(6) for version in (4, 6)]
    through += [Probe(world, FACING[version], 8000 + number) for number in range(6) for version in (4, 6)]
    apart += [Probe(world, address, 80) for name in NETWORKS for address in targets(engine, name)]
    seen = traffic.ask(through)
    assert [probe for probe, answer in zip(through, seen, strict=True) if answer is None] == []
    assert not any(traffic.silence(apart, through[:1]))
    # Between networks a client keeps its address.
    clients = {
        probe.address: answer.client for probe, answer in zip(through, seen, strict=True) if answer and probe.source.name == "open1b"
    }
    assert clients[targets(engine, "isolated2")[0]] == "10.5.0.3"
    assert engine.differences() == []


def test_explain_says_the_same(engine: Engine, networks: dict[str, Inside]) -> None:
    wrong = []
    for source, target in product(NETWORKS, NETWORKS):
        if source == target:
            continue
        found = explain(engine, parse(f"{source}b", f"{target}:80"))
        if found.verdict != ("yes" if reach(source, target) else "no"):
            wrong.append(f"{source} to {target}: {found.verdict} {found.why}")
        elif found.verdict == "no" and "inner" not in (source, target):
            assert found.why == f"networks {source} and {target} are apart"
    assert wrong == []


def test_the_rules_do_not_grow_with_the_networks(engine: Engine) -> None:
    engine.create_network("first")
    rules = len([line for line in Shell().run("nft list table inet atoll").splitlines() if "@" in line])
    for number in range(5):
        engine.create_network(f"open{number}", isolation="open")
        engine.create_network(f"isolated{number}", isolation="isolated")
    assert len([line for line in Shell().run("nft list table inet atoll").splitlines() if "@" in line]) == rules
    for network in engine.networks():
        if network.driver == "bridge":
            engine.remove_network(network.name)
    assert Shell().run("nft list tables") == ""


def test_what_is_no_isolation_is_refused(engine: Engine) -> None:
    Shell().run("ip link add lan0 type ifb; ip link set lan0 up")
    with left_as_it_was(engine), pytest.raises(Invalid, match="isolation 'true' is unknown; expected one of strict, isolated, open"):
        engine.create_network("net", isolation="true")
    with left_as_it_was(engine), pytest.raises(Invalid, match="--isolation means nothing for driver macvlan"):
        engine.create_network("net", driver="macvlan", subnets=["10.0.0.0/24"], isolation="open", options={"parent": "lan0"})
