"""`explain --probe`: what is really sent agrees with what was reasoned, says who dropped it, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from atoll.daemon.watcher import Watcher
from atoll.errors import Invalid
from atoll.explain import Explanation, explain, parse
from atoll.explain.snapshot import PROBE_TABLE
from atoll.firewall.elements import endpoint_elements, statement
from tests.support import FACING, OUTSIDE, Inside, Traffic, cidr, ip, lenient, outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll import Engine
    from atoll.explain.probe import Probe
    from atoll.lab.machine import Machine


@pytest.fixture
def world(engine: Engine) -> Iterator[Machine]:
    lenient()
    with outside("outside", "wan0", cidr(FACING), cidr(OUTSIDE)) as machine:
        engine.create_network("web", ipv6=True)
        engine.create_network("db", internal=True)
        for name, network in (("r1", "web"), ("r2", "web"), ("d1", "db")):
            engine.create_namespace(name)
            engine.connect(network, name)
        engine.publish("r2", ["8080:80", "8053:53/udp"])
        yield machine


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    with Traffic() as made:
        yield made


def send(engine: Engine, source: str, target: str, *, ipv6: bool = False) -> tuple[Explanation, Probe]:
    found = explain(engine, parse(source, target, ipv6=ipv6), send=True)
    assert found.probe is not None
    return found, found.probe


def nft(command: str) -> str:
    return subprocess.run(["nft", *command.split()], check=True, capture_output=True, text=True).stdout


def in_engines(engine: Engine, command: str) -> str:
    return Inside(engine).run(lambda: nft(command))


YES: Final = {
    "same network": ("r1", "r2:80", False),
    "IPv6": ("r1", "r2:80", True),
    "udp": ("r1", "r2:53/udp", False),
    "udp by IPv6": ("r1", "r2:53/udp", True),
    "ping": ("r1", "r2", False),
    "ping by IPv6": ("r1", "r2", True),
    "itself": ("r1", "r1:80", False),
    "published": ("host", "host:8080", False),
    "published by another address": ("host", f"{FACING[4]}:8080", False),
    "published udp": ("r1", f"{FACING[4]}:8053/udp", False),
    "published by IPv6": ("r1", f"[{FACING[6]}]:8080", False),
    "host": ("r1", "host", False),
    "from the host": ("host", "d1:5432", False),
    "outside": ("r1", f"{OUTSIDE[4]}:80", False),
    "outside by IPv6": ("r1", OUTSIDE[6], False),
}


@pytest.mark.parametrize("case", YES)
def test_a_yes_is_confirmed(engine: Engine, world: Machine, case: str) -> None:
    source, target, ipv6 = YES[case]
    found, sent = send(engine, source, target, ipv6=ipv6)
    assert (found.verdict, sent.outcome, sent.agrees, sent.answered, sent.dropped_by) == ("yes", "yes", True, True, ""), sent
    places = [(hop.where, hop.reply) for hop in sent.seen]
    assert places[0] == (source, False), sent.seen
    assert places[-1] == (source, True), sent.seen
    assert found.arrived == "outside" or (found.arrived, False) in places
    assert sent.words.startswith("agrees: ")


def test_the_places_are_in_order_with_what_was_rewritten(engine: Engine, world: Machine) -> None:
    _, sent = send(engine, "r1", f"{FACING[4]}:8080")
    endpoint = engine.state.endpoint(engine.state.network("web"), "r2")
    there = [hop for hop in sent.seen if not hop.reply]
    assert (there[0].where, there[-1].where) == ("r1", "r2")
    assert there[0].what.startswith("out by eth0: ")
    assert there[0].what.endswith(f"to {FACING[4]}:8080")
    assert there[-1].what.endswith(f"to {endpoint.address(4)}:80")
    assert any(endpoint.host_interface in hop.what and "(port of r2)" in hop.what for hop in there)
    assert [hop.reply for hop in sent.seen] == sorted(hop.reply for hop in sent.seen)


def test_a_server_that_is_there_is_not_disturbed(engine: Engine, world: Machine, traffic: Traffic) -> None:
    traffic.serve(Inside(engine, "r2"), 53)
    _, tcp = send(engine, "r1", "r2:53")
    _, udp = send(engine, "r1", "r2:53/udp")
    assert (tcp.agrees, tcp.answered, "refused" in tcp.words) == (True, True, False)
    assert (udp.agrees, udp.outcome, udp.answered, "another program" in udp.words) == (True, "yes", False, True)
    assert traffic.one(Inside(engine, "r1"), engine.state.endpoint(engine.state.network("web"), "r2").address(4), 53) is not None


NO: Final = {
    "other network": ("d1", "r2:80", "", None),
    "internal": ("r1", "d1:5432", "inet atoll passing handle", None),
    "internal udp": ("r1", "d1:5432/udp", "inet atoll passing handle", None),
    "no route": ("d1", OUTSIDE[4], "", None),
    "foreign rule": ("r1", f"{OUTSIDE[4]}:443", "inet evil f handle 2: tcp dport 443 drop", "tcp dport 443 drop"),
    "foreign reject": ("r1", f"{OUTSIDE[4]}:443", "inet evil f handle 2: ", "meta l4proto tcp reject with tcp reset"),
    "foreign policy": ("r1", f"[{OUTSIDE[6]}]:443", "the policy of chain inet evil f", "policy drop"),
    "reply": ("r1", f"{OUTSIDE[4]}:443", "inet evil f handle 2: tcp sport 443 drop", "tcp sport 443 drop"),
}


@pytest.mark.parametrize("case", NO)
def test_a_no_is_confirmed_and_the_rule_named(engine: Engine, world: Machine, case: str) -> None:
    source, target, rule, evil = NO[case]
    if evil:
        in_engines(engine, "add table inet evil")
        in_engines(engine, "add chain inet evil f { type filter hook forward priority 5 ; }")
        in_engines(engine, f"chain inet evil f {{ {evil} ; }}" if evil == "policy drop" else f"add rule inet evil f {evil}")
    found, sent = send(engine, source, target)
    assert (found.verdict, sent.outcome, sent.agrees) == ("no", "no", True), (found, sent)
    assert sent.dropped_by.startswith(rule), sent
    assert bool(sent.dropped_by) == bool(rule), sent
    assert rule in sent.words


@pytest.mark.parametrize("known", [False, True], ids=["address not asked for yet", "address known"])
def test_the_guard_is_named(engine: Engine, world: Machine, known: bool) -> None:
    if known:
        assert send(engine, "r1", "r2:80")[1].agrees
    network = engine.state.network("web")
    engine.host.nft.apply(statement("delete", endpoint_elements(network, engine.state.endpoint(network, "r1"))))
    found, sent = send(engine, "r1", "r2:80")
    assert (found.verdict, sent.agrees, sent.dropped_by.startswith("bridge atoll guard handle")) == ("no", True, True), sent


def test_a_rule_inside_is_named(engine: Engine, world: Machine) -> None:
    Inside(engine, "r2").run(lambda: nft("add table inet own"))
    Inside(engine, "r2").run(lambda: nft("add chain inet own in { type filter hook input priority 0 ; }"))
    Inside(engine, "r2").run(lambda: nft("add rule inet own in meta l4proto tcp reject with tcp reset"))
    found, sent = send(engine, "r1", "r2:80")
    assert (found.verdict, sent.agrees, sent.dropped_by.startswith("r2's inet own in handle")) == ("no", True, True), sent
    assert PROBE_TABLE not in Inside(engine, "r2").run(lambda: nft("list ruleset"))


def test_what_reasoning_does_not_know_is_reported_as_differing(engine: Engine, world: Machine) -> None:
    """A neighbour entry with a wrong MAC address, which `explain` doesn't look at."""
    assert send(engine, "r1", "r2:80")[1].agrees
    address = engine.state.endpoint(engine.state.network("web"), "r2").address(4)
    ip(Inside(engine, "r1"), f"neighbour replace {address} lladdr 02:00:00:00:00:99 dev eth0 nud permanent")
    found, sent = send(engine, "r1", "r2:80")
    assert (found.verdict, sent.outcome, sent.agrees, sent.answered) == ("yes", "no", False, False)
    assert sent.words.startswith("DIFFERS: the packet says no: no answer comes; last seen at ")


def test_what_cannot_be_judged_is_settled(engine: Engine, world: Machine) -> None:
    """A rule whose match depends on the time, which `explain` does not evaluate."""
    in_engines(engine, "add table inet evil")
    in_engines(engine, "add chain inet evil f { type filter hook forward priority 5 ; }")
    in_engines(engine, "add rule inet evil f tcp dport 443 meta time > 1 drop")
    found, sent = send(engine, "r1", f"{OUTSIDE[4]}:443")
    assert (found.verdict, sent.outcome, sent.agrees) == ("unsure", "no", True), (found, sent)
    assert sent.words.startswith("settles it: no: dropped by inet evil f handle 2")


def test_nothing_is_sent_from_outside(engine: Engine, world: Machine) -> None:
    for source in ("outside", f"outside:{OUTSIDE[4]}", "outside@wan0"):
        with pytest.raises(Invalid, match="nothing can be sent from outside"):
            send(engine, source, "host:8080")
    with pytest.raises(Invalid, match="sctp"):
        send(engine, "r1", "r2:80/sctp")


def test_nothing_is_left(engine: Engine, world: Machine) -> None:
    send(engine, "r1", "r2:80")
    before, rules = sorted(os.listdir("/proc/self/fd")), in_engines(engine, "list ruleset")
    for target in ("r2:80", "r2:53/udp", "d1", f"{OUTSIDE[4]}:80"):
        send(engine, "r1", target)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert in_engines(engine, "list ruleset") == rules
    assert PROBE_TABLE not in rules


def test_the_watcher_is_not_disturbed(engine: Engine, world: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher(engine)
    repairs: list[object] = []
    monkeypatch.setattr(engine, "repair", lambda **what: repairs.append(what))
    assert send(engine, "r1", "r2:80")[1].agrees
    assert (watcher.look(), repairs) == (False, [])
    in_engines(engine, "add rule inet atoll early accept")
    watcher.look()
    watcher.close()
    assert len(repairs) == 1  # so it would have been seen


KILLED: Final = """
import os, signal
from atoll.explain.snapshot import Stack
from atoll.explain.trace import script, traced
from atoll.kernel.host import Host
with traced(Stack(Host(), ""), script(["tcp sequence 1"], [])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_probe_left_changes_nothing_and_goes_with_the_next(engine: Engine, world: Machine) -> None:
    before = explain(engine, parse("r1", "r2:80"))
    done = Inside(engine).run(lambda: subprocess.run([sys.executable, "-c", KILLED], check=False))
    assert done.returncode == -9
    assert PROBE_TABLE in in_engines(engine, "list ruleset")
    assert explain(engine, parse("r1", "r2:80")) == before
    assert send(engine, "r1", "r2:80")[1].agrees
    assert PROBE_TABLE not in in_engines(engine, "list ruleset")
