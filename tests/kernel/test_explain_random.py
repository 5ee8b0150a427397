"""Random topologies, three answers for every pair and published port: the model's promise, `explain`, and real packets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from atoll import Engine
from atoll.explain import Question, explain, parse
from atoll.kernel import netns
from atoll.lab import private
from tests.support import FACING, OUTSIDE, Inside, Probe, Traffic, cidr, lenient, outside

if TYPE_CHECKING:
    from tests.support import Place

SERVED = 80
#: How many of an example's attempts are probed, and as what in turn.
PROBES = 8
PROTOCOLS = ("tcp", "udp")


class Net(NamedTuple):
    kind: str
    ipv6: bool
    guard: bool


class Member(NamedTuple):
    networks: frozenset[int]
    #: Host address by its name and the host port's offset, by network.
    published: tuple[tuple[int, str], ...]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "internal": {"internal": True},
    "apart": {"icc": False},
    "routed": {"masquerade": False},
    "snat": {"options": {"snat": "198.51.100.1"}},
}
nets = st.lists(st.builds(Net, st.sampled_from(sorted(KINDS)), st.booleans(), st.booleans()), min_size=1, max_size=6)


@st.composite
def topologies(draw: st.DrawFn) -> tuple[list[Net], list[Member]]:
    made = draw(nets)
    inside = st.frozensets(st.integers(0, len(made) - 1), max_size=3)
    where = st.tuples(st.integers(0, len(made) - 1), st.sampled_from(["any", "facing", "loopback"]))
    member = st.builds(Member, inside, st.lists(where, max_size=2, unique_by=lambda pair: pair[0]).map(tuple))
    return made, draw(st.lists(member, min_size=2, max_size=12))


class Attempt(NamedTuple):
    source: str
    address: str
    port: int
    #: Who should get it, by the model; empty for nobody, None where the model doesn't say.
    promised: str | None


def build(engine: Engine, made: list[Net], members: list[Member]) -> list[Attempt]:
    for number, net in enumerate(made):
        options = dict(KINDS[net.kind])
        if net.kind == "snat" and net.ipv6:
            options["options"] = {"snat": FACING[4], "snat6": FACING[6]}
        engine.create_network(f"n{number}", subnets=[f"10.80.{number}.0/24"], ipv6=net.ipv6, guard=net.guard, **options)
    for number, member in enumerate(members):
        engine.create_namespace(f"m{number}")
        for network in sorted(member.networks):
            engine.connect(f"n{network}", f"m{number}")
    attempts = []
    for number, member in enumerate(members):
        for network, scope in member.published:
            if network in member.networks and made[network].kind != "internal":
                outer = 8000 + 10 * number + network
                host = {"any": "", "facing": f"{FACING[4]}:", "loopback": "127.0.0.1:"}[scope]
                engine.publish(f"m{number}", [f"{host}{outer}:{SERVED}/{kind}" for kind in ("tcp", "udp")], network=f"n{network}")
                attempts += _of_a_port(made, members, number, network, scope, outer)
    for number, member in enumerate(members):
        for network in sorted(member.networks):
            endpoint = engine.state.endpoint(engine.state.network(f"n{network}"), f"m{number}")
            for version in (4, 6):
                if endpoint.address(version):
                    attempts += _direct(made, members, number, network, endpoint.address(version))
    for number, member in enumerate(members):
        for version in (4, 6):
            out = any(made[network].kind != "internal" and (version == 4 or made[network].ipv6) for network in member.networks)
            attempts.append(Attempt(f"m{number}", OUTSIDE[version], SERVED, "outside" if out else ""))
    return attempts


def _of_a_port(made: list[Net], members: list[Member], owner: int, network: int, scope: str, outer: int) -> list[Attempt]:
    name = f"m{owner}"
    found = [Attempt("host", "127.0.0.1", outer, name if scope != "facing" else "")]
    found += [Attempt(source, FACING[4], outer, name if scope != "loopback" else "") for source in ("host", "outside")]
    for number, member in enumerate(members):
        ways = sorted(way for way in member.networks if made[way].kind != "internal")
        # One that leaves by another of its networks than it publishes on would get its own packet from its own address: martian.
        reaches = bool(ways) and scope != "loopback" and (number != owner or ways[0] == network)
        found.append(Attempt(f"m{number}", FACING[4], outer, name if reaches else ""))
    return found


def _direct(made: list[Net], members: list[Member], owner: int, network: int, address: str) -> list[Attempt]:
    kind, name = made[network].kind, f"m{owner}"
    found = [Attempt("host", address, SERVED, name), Attempt("outside", address, SERVED, name if kind == "routed" else "")]
    for number, member in enumerate(members):
        if number == owner:
            promised = name
        elif network in member.networks:
            # Of several networks the way may be another one; what is surely so is that an open network joins its members.
            promised = name if kind != "apart" else ""
        else:
            promised = ""
        found.append(Attempt(f"m{number}", address, SERVED, promised))
    return found


def compare(made: list[Net], members: list[Member]) -> None:
    lenient()
    with Engine.open() as engine, outside("outside", "wan0", cidr(FACING), cidr(OUTSIDE)) as machine, Traffic() as traffic:
        attempts = build(engine, made, members)
        places: dict[str, Place] = {"host": Inside(engine), "outside": machine}
        places |= {f"m{number}": Inside(engine, f"m{number}") for number in range(len(members))}
        for name, place in places.items():
            if name != "host":
                traffic.serve(place, SERVED)
        explained = {attempt: _explained(engine, attempt) for attempt in attempts}
        probes = {attempt: Probe(places[attempt.source], attempt.address, attempt.port) for attempt in attempts}
        yes = [attempt for attempt in attempts if explained[attempt][0]]
        no = [attempt for attempt in attempts if not explained[attempt][0]]
        canaries = [probes[attempt] for attempt in yes]
        wrong = []
        for attempt, seen in zip(yes, traffic.ask([probes[attempt] for attempt in yes]), strict=True):
            if seen is None or not seen.answered or seen.server != explained[attempt][0]:
                wrong.append(f"{attempt}: explained {explained[attempt]}, seen {seen}")
        if not wrong:
            for attempt, seen in zip(no, traffic.silence([probes[attempt] for attempt in no], canaries), strict=True):
                if seen is not None and seen.answered:
                    wrong.append(f"{attempt}: explained {explained[attempt]}, seen {seen}")
        wrong += _probed(engine, [attempt for attempt in attempts if attempt.source != "outside"])
        wrong += [f"{attempt}: explained {explained[attempt]}" for attempt in attempts if attempt.promised != explained[attempt][0]]
        assert wrong == []


def _probed(engine: Engine, attempts: list[Attempt]) -> list[str]:
    """What the explanation's own probe finds wrong with some of them, spread over all: one that gets nowhere takes a second."""
    found = []
    for number, attempt in enumerate(attempts[:: len(attempts) // PROBES + 1]):
        explained = explain(engine, _question(attempt, PROTOCOLS[number % len(PROTOCOLS)]), send=True)
        if explained.probe is None or not explained.probe.agrees:
            found.append(f"{attempt}: {explained}")
    return found


def _question(attempt: Attempt, protocol: str = "tcp") -> Question:
    source = f"outside:{OUTSIDE[6 if ':' in attempt.address else 4]}" if attempt.source == "outside" else attempt.source
    where = f"[{attempt.address}]" if ":" in attempt.address else attempt.address
    return parse(source, f"{where}:{attempt.port}/{protocol}")


def _explained(engine: Engine, attempt: Attempt) -> tuple[str, str]:
    """Who gets it, empty for nobody; and why."""
    found = explain(engine, _question(attempt))
    assert found.verdict != "unsure", found
    arrived = found.arrived if found.verdict == "yes" else ""
    return ("" if arrived == "host" else arrived), f"{found.why} {found.notes}"


def check(topology: tuple[list[Net], list[Member]]) -> None:
    """One example, on a host of its own."""
    home = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
    netns.unshare(netns.CLONE_NEWNET)
    netns.mount("atoll", str(netns.NETNS_DIR), "tmpfs", data="mode=755")
    try:
        private.fresh()
        compare(*topology)
    finally:
        netns.setns(home)
        os.close(home)
        for _ in range(2):
            if Path("/proc/self/mountinfo").read_text().split().count(str(netns.NETNS_DIR)) > 2:
                netns.unmount(str(netns.NETNS_DIR))


@pytest.mark.parametrize("same", [True, False], ids=["the same every time", "others each time"])
def test_the_model_the_reasoning_and_real_packets_agree(host: None, same: bool) -> None:
    few = settings(
        max_examples=3, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=same
    )
    few(given(topologies())(check))()
