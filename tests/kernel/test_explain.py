"""What `explain` says against what real packets do."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from atoll import Engine
from atoll.errors import NotFound
from atoll.explain import Explanation, explain, parse
from atoll.firewall.elements import endpoint_elements, statement
from atoll.kernel import sysctl
from tests.kernel.test_reachability import Cell, address, populate, port, sources, targets
from tests.support import OUTSIDE, Inside, Probe, Traffic, ip

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.lab.machine import Machine

SERVED: Final = 80


def ask(engine: Engine, source: str, target: str) -> Explanation:
    return explain(engine, parse(source, target))


def spell(to: str, number: int, transport: str) -> str:
    where = f"[{to}]" if ":" in to else to
    return f"{where}:{number}/{transport}" if number else to


def test_it_says_what_the_model_promises(engine: Engine, world: Machine) -> None:
    """The same table of who reaches whom that real packets are held against, client addresses included."""
    populate(engine, world)
    wrong = []
    cells = [Cell(source, target, version, "udp") for source in sources() for target in targets(source) for version in (4, 6)]
    for cell in cells:
        source, target, version, _ = cell
        who = f"outside:{OUTSIDE[version]}" if source.name == "outside" else "-".join(source).strip("-")
        found = ask(engine, who, spell(address(target, version), port(target), cell.transport))
        expected = cell.expected()
        server = found.arrived if found.verdict == "yes" else ""
        if server == "host" and target.published_on:
            server = ""  # the host itself, where nobody listens on that port
        if found.verdict == "unsure" or server != (expected.server if expected else ""):
            wrong.append(f"{cell}: {found.verdict} {found.arrived} {found.why}")
        elif expected and not any(f"as {_end(expected.client)}" in hop.what for hop in found.hops if not hop.reply):
            wrong.append(f"{cell}: expected {expected.client}: {[hop.what for hop in found.hops]}")
    assert wrong == []


def _end(client: str) -> str:
    return f"[{client}]:" if ":" in client else f"{client}:"


# --- changes by hand -----------------------------------------------------------------------------------------------------------------


def shell(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True)


def in_r1(command: str) -> Callable[[Engine], None]:
    return lambda engine: ip(Inside(engine, "r1"), command)


def on_host(command: str) -> Callable[[Engine], None]:
    def change(engine: Engine) -> None:
        network = engine.state.network("web")
        names = {name: engine.state.endpoint(network, name).host_interface for name in ("r1", "r2")}
        shell(command.format(bridge=network.bridge, **names))

    return change


def elements_gone(engine: Engine) -> None:
    network = engine.state.network("web")
    engine.host.nft.apply(statement("delete", endpoint_elements(network, engine.state.endpoint(network, "r1"))))


def rule_inside(engine: Engine) -> None:
    script = "table inet own { chain in { type filter hook input priority 0; ip protocol tcp drop; }; }"
    Inside(engine, "r2").run(lambda: subprocess.run(["nft", script], check=True))


def no_forwarding(engine: Engine) -> None:
    sysctl.write("net/ipv4/ip_forward", "0")


EVIL: Final = "nft 'table inet evil {{ chain f {{ type filter hook forward priority 5; policy drop; }}; }}'"
#: What is done, whom r1 then doesn't reach (and did before), words of the reason, the command that is named.
CHANGES: Final[dict[str, tuple[Callable[[Engine], None], str, str, str]]] = {
    "bridge down": (on_host("ip link set {bridge} down"), "r2", "is down", "ip link set atb"),
    "port taken out": (on_host("ip link set {r1} nomaster"), "r2", "not in its bridge", "atoll doctor --fix"),
    "neighbour's port down": (on_host("ip link set {r2} down"), "r2", "", ""),
    "link down inside": (in_r1("link set eth0 down"), "r2", "no route", "atoll doctor --fix"),
    "route deleted": (in_r1("route del default"), "outside", "no route", "atoll doctor --fix"),
    "forward policy": (on_host(EVIL), "outside", "policy of chain inet evil f", "nft 'chain inet evil f { policy accept; }'"),
    "forward rule": (
        on_host(
            "nft 'table ip evil {{ chain f {{ type filter hook forward priority 5;"
            " ip saddr 172.16.0.0/12 tcp dport {{ 80, 90-99 }} drop; }}; }}'"
        ),
        "outside", "ip evil f handle", "nft delete rule ip evil f handle",
    ),
    "iptables": (
        on_host("iptables -A FORWARD -p tcp --dport 80 -j DROP"),
        "outside", "ip filter FORWARD handle", "nft delete rule ip filter FORWARD",
    ),
    "no forwarding": (no_forwarding, "outside", "forwards no IPv4", "sysctl -w net.ipv4.ip_forward=1"),
    "elements deleted": (elements_gone, "r2", "the guard", "atoll doctor --fix"),
    "rule inside": (rule_inside, "r2", "inet own in handle", "atoll ns exec r2 -- nft delete rule inet own in handle"),
    "isolated ports": (on_host("bridge link set dev {r1} isolated on && bridge link set dev {r2} isolated on"), "r2", "apart", ""),
    "own rule inside": (
        lambda engine: Inside(engine, "r1").run(
            lambda: shell("nft 'table ip own { chain out { type filter hook output priority 0; meta l4proto tcp reject; }; }'")
        ),
        "r2", "ip own out handle", "atoll ns exec r1 -- nft delete rule ip own out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_by_hand_is_found(engine: Engine, world: Machine, traffic: Traffic, change: str) -> None:
    do, target, words, fix = CHANGES[change]
    engine.create_network("web")
    for name in ("r1", "r2"):
        engine.create_namespace(name)
        engine.connect("web", name)
        traffic.serve(Inside(engine, name), SERVED)
    traffic.serve(world, SERVED)
    endpoint = engine.state.endpoint(engine.state.network("web"), "r2")
    where = OUTSIDE[4] if target == "outside" else endpoint.address(4)
    probe = Probe(Inside(engine, "r1"), where, SERVED)
    before = ask(engine, "r1", spell(where, SERVED, "tcp"))
    assert (before.verdict, before.notes, traffic.unanswered([probe])) == ("yes", (), []), before
    if (
        change == "iptables"
        and subprocess.run(["sh", "-c", "iptables -V | grep nf_tables"], check=False, capture_output=True).returncode != 0
    ):
        pytest.skip("iptables-nft is not installed")
    do(engine)
    after = ask(engine, "r1", spell(where, SERVED, "tcp"))
    assert traffic.ask([probe], patience=0.3) == [None]
    assert (after.verdict, words in after.why, after.fix.startswith(fix)) == ("no", True, True), after


def test_a_strict_source_check_on_the_way_in_is_named(engine: Engine, world: Machine) -> None:
    engine.create_network("open", masquerade=False)
    engine.create_namespace("r1")
    where = engine.connect("open", "r1").address(4)
    assert ask(engine, "outside:203.0.113.5", where).verdict == "no"  # no way back
    ip(Inside(engine), "link add br9 type bridge", "address add 203.0.113.1/24 dev br9", "link set br9 up")
    question = parse("outside:203.0.113.5@wan0", where)
    assert "rp_filter" not in explain(engine, question).why
    sysctl.write("net/ipv4/conf/wan0/rp_filter", "1")
    found = explain(engine, question)
    assert (found.verdict, found.fix) == ("no", "sysctl -w net.ipv4.conf.wan0.rp_filter=2")
    assert "rp_filter of wan0" in found.why


def test_on_a_host_without_a_way_out_the_outside_is_nowhere(host: None) -> None:
    with Engine.open() as engine, pytest.raises(NotFound, match="no interface that leads outside"):
        explain(engine, parse("outside", "host:80"))
