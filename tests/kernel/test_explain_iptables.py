"""Random rules of the real iptables, by both of its back ends: what `explain` says of them against what real packets do."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from atoll.explain import Explanation, explain, parse
from atoll.kernel import netlink
from tests.support import FACING, OUTSIDE, PATIENCE, QUIET, Inside, Probe, Traffic, version_of

if TYPE_CHECKING:
    from pathlib import Path

    from atoll import Engine
    from atoll.lab.machine import Machine
    from tests.support import Place, Transport

SERVED: Final = (80, 90)
PUBLISHED: Final = 8080
#: Of the endpoints, which iptables' rules name as well.
R1, R2 = {4: "10.80.0.11", 6: "fd80::11"}, {4: "10.80.0.12", 6: "fd80::12"}


class Way(NamedTuple):
    source: str
    address: str
    port: int
    transport: Transport


def ways(version: int) -> list[Way]:
    led = [("r1", OUTSIDE[version], 80), ("r1", OUTSIDE[version], 90), ("host", OUTSIDE[version], 80), ("host", R1[version], 90)]
    led += [("outside", FACING[version], PUBLISHED), ("outside", FACING[version], 80), ("r1", FACING[version], PUBLISHED)]
    return [Way(*way, transport) for way in led for transport in ("tcp", "udp")]


# --- rules ---------------------------------------------------------------------------------------------------------------------------

CHAINS: Final = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
STATES: Final = ("NEW", "ESTABLISHED", "RELATED,ESTABLISHED", "INVALID", "UNTRACKED", "SNAT", "DNAT", "NEW,DNAT")
#: What can't be judged: it may make an answer unsure, but never wrong.
DARK: Final = ("-m length --length 0:4000", "-m statistic --mode nth --every 1 --packet 0", "-m string --string x --algo bm")


def matches(version: int, chain: str) -> st.SearchStrategy[str]:
    """One match, or several that belong together."""
    unless = st.sampled_from(["", "! "])
    ports = st.sampled_from(["80", "81:90", "8080", "0:79", "1024:65535", "32768:60999"])
    several = st.sampled_from(["80", "80,8080", "1:79,90", "22,32768:60999,80"])
    ended = "-m {0} -p {0}"
    proto = st.sampled_from(["tcp", "udp"])
    icmp = "icmp --icmp-type 8" if version == 4 else "ipv6-icmp --icmpv6-type 128"
    address = st.sampled_from([R1[version], R2[version], OUTSIDE[version], FACING[version], {4: "10.0.0.0/8", 6: "fd00::/8"}[version]])
    first, last = {4: ("10.80.0.0", "10.80.0.11"), 6: ("fd80::", "fd80::11")}[version]
    kinds = [
        st.just(""),
        proto.map("-p {}".format),
        st.builds("! -p {}".format, proto),
        st.just(f"-p {icmp}"),
        st.builds(f"{ended} {{1}}--{{2}} {{3}}".format, proto, unless, st.sampled_from(["sport", "dport"]), ports),
        st.builds("-p {} -m multiport {}--{} {}".format, proto, unless, st.sampled_from(["sports", "dports", "ports"]), several),
        st.builds("-p tcp -m tcp {}{}".format, unless, st.sampled_from(["--syn", "--tcp-flags SYN,RST SYN", "--tcp-flags ACK ACK"])),
        st.builds("-m addrtype {}--{}-type {}".format, unless, st.sampled_from(["src", "dst"]), st.sampled_from(["LOCAL", "UNICAST"])),
        st.builds("-m conntrack {}--ctstate {}".format, unless, st.sampled_from(STATES)),
        st.builds("-m conntrack --ctstate {} --ctdir {}".format, st.sampled_from(STATES), st.sampled_from(["ORIGINAL", "REPLY"])),
        st.builds("-m conntrack {}--ctproto {}".format, unless, st.sampled_from(["tcp", "udp"])),
        st.builds("-m state {}--state {}".format, unless, st.sampled_from(["NEW", "ESTABLISHED", "INVALID,UNTRACKED"])),
        st.builds("-m mark {}--mark {}".format, unless, st.sampled_from(["1/1", "2", "0/3"])),
        st.builds("-m connmark {}--mark {}".format, unless, st.sampled_from(["1/1", "2", "0/3"])),
        st.builds(f"-m iprange {{}}--{{}}-range {first}-{last}".format, unless, st.sampled_from(["src", "dst"])),
        st.builds("-m pkttype {}--pkt-type {}".format, unless, st.sampled_from(["unicast", "broadcast"])),
        st.sampled_from(["-m comment --comment words", "-m limit --limit 1000/s --limit-burst 1000"]),
        st.builds("{}-{} {}".format, unless, st.sampled_from("sd"), address),
    ]
    if chain in ("PREROUTING", "INPUT", "FORWARD"):
        kinds.append(st.builds("{}-i {}".format, unless, st.sampled_from(["wan0", "wa+", "atb+"])))
        kinds.append(st.builds("-m addrtype {}--dst-type LOCAL --limit-iface-in".format, unless))
    if chain in ("FORWARD", "OUTPUT", "POSTROUTING"):
        kinds.append(st.builds("{}-o {}".format, unless, st.sampled_from(["wan0", "wa+", "lo"])))
    return st.one_of(kinds)


def actions(version: int, table: str, chain: str) -> st.SearchStrategy[str]:
    to = (lambda address: f"[{address}]") if version == 6 else str
    common = ["ACCEPT", "RETURN", "LOG --log-prefix x"] + ([] if table == "nat" else ["DROP"])
    if chain == "side":
        return st.sampled_from(common)
    arriving = ["REDIRECT", f"DNAT --to-destination {to(R2[version])}", f"DNAT --to-destination {to(R1[version])}:90"]
    marks = ["MARK --set-xmark 1/3", "MARK --or-mark 2", *(f"CONNMARK --{how}" for how in ("save-mark", "restore-mark", "set-xmark 2/2"))]
    own = {
        "raw": ["CT --notrack", "NOTRACK"] if version == 4 else ["CT --notrack"],
        "mangle": marks,
        "filter": ["REJECT", "DROP"],
        "nat": [f"SNAT --to-source {FACING[version]}", "MASQUERADE"] if chain == "POSTROUTING" else [*arriving, "REDIRECT --to-ports 80"],
    }[table]
    needs_protocol = ("--to-ports", "]:", ":90")
    return st.sampled_from([*common, *own, *own, "side"]).map(
        lambda said: f"{said} -p tcp" if any(word in said for word in needs_protocol) else said
    )


class Rule(NamedTuple):
    table: str
    chain: str
    match: str
    target: str

    def words(self) -> str:
        match, target = self.match, self.target
        if " -p tcp" in target:
            target = target.removesuffix(" -p tcp")
            match = (
                match if "-p " in match and "! -p" not in match and "icmp" not in match else f"{match.replace('! -p ', '-s ::/0 ')} -p tcp"
            )
        if self.chain != "side" and target == "side":
            return f"-A {self.chain} {match} -{'g' if len(match) % 3 == 0 else 'j'} side"
        return f"-A {self.chain} {match} -j {target}"


@st.composite
def rules(draw: st.DrawFn, version: int) -> list[Rule]:
    found = []
    for _ in range(draw(st.integers(3, 12))):
        table = draw(st.sampled_from(sorted(CHAINS)))
        chain = draw(st.sampled_from([*CHAINS[table], "side"]))
        match = draw(matches(version, chain))
        if draw(st.integers(0, 3)) == 0:
            match = f"{match} {draw(st.sampled_from(['-m comment --comment also', '-m mark ! --mark 7', *DARK]))}"
        found.append(Rule(table, chain, match, draw(actions(version, table, chain))))
    return found


def script(made: list[Rule]) -> str:
    """As iptables-restore reads it; what was there before goes."""
    lines = []
    for table in CHAINS:
        lines += [f"*{table}", ":side -", *(rule.words() for rule in made if rule.table == table), "COMMIT"]
    return "\n".join(lines) + "\n"


# --- the comparison ------------------------------------------------------------------------------------------------------------------


class World:
    def __init__(self, engine: Engine, machine: Machine, traffic: Traffic, lock: Path) -> None:
        self.engine, self.traffic = engine, traffic
        self.environment = {**os.environ, "XTABLES_LOCKFILE": str(lock)}
        engine.create_network("web", subnets=["10.80.0.0/24", "fd80::/64"])
        for name, addresses in (("r1", R1), ("r2", R2)):
            engine.create_namespace(name)
            engine.connect("web", name, addresses=list(addresses.values()))
        engine.publish("r2", [f"{PUBLISHED}:80/{kind}" for kind in ("tcp", "udp")])
        self.places: dict[str, Place] = {"host": Inside(engine), "outside": machine, "r1": Inside(engine, "r1")}
        for place in (*self.places.values(), Inside(engine, "r2")):
            for port in SERVED:
                traffic.serve(place, port)

    def load(self, program: str, made: list[Rule]) -> bool:
        """Whether it takes them: of random rules some are refused."""
        # A client's port that comes again must not belong to a connection of before: delete all of them.
        with netlink.Socket(netlink.NETLINK_NETFILTER) as sock:
            sock.execute(netlink.message(1 << 8 | 2, 0, bytes(4)))
        done = subprocess.run([program], input=script(made), text=True, capture_output=True, check=False, env=self.environment)
        return done.returncode == 0

    def explained(self, way: Way) -> Explanation:
        source = f"outside:{OUTSIDE[version_of(way.address)]}" if way.source == "outside" else way.source
        where = f"[{way.address}]" if ":" in way.address else way.address
        return explain(self.engine, parse(source, f"{where}:{way.port}/{way.transport}"))

    def seen(self, asked: list[Way], patience: float) -> list[str | None]:
        """Who answered, where that can be told (to a connection it can be, when more than its first packets pass); None for nobody."""
        probes = [Probe(self.places[way.source], way.address, way.port, way.transport) for way in asked]
        questions = self.traffic._send(probes, patience)
        found: list[str | None] = []
        for way, question in zip(asked, questions, strict=True):
            arrived = self.traffic._seen(question)
            if way.transport == "udp":
                found.append(arrived.server if arrived and arrived.answered else None)
            else:
                found.append((arrived.server if arrived else "?") if question.sent else None)
        return found

    def wrong(self, version: int) -> list[str]:
        """Where the explanation and the packets differ."""
        answers = {way: self.explained(way) for way in ways(version)}
        promised = {
            way: found.verdict == "yes" and not any("nobody listens" in note for note in found.notes) for way, found in answers.items()
        }
        sure = [way for way, found in answers.items() if found.verdict != "unsure"]
        yes, no = ([way for way in sure if promised[way] is wanted] for wanted in (True, False))
        seen = dict(zip([*yes, *no], [*self.seen(yes, PATIENCE), *self.seen(no, QUIET)], strict=True))
        return [
            f"{way}: {answers[way].verdict} {answers[way].arrived} {answers[way].why}, seen {who}"
            for way, who in seen.items()
            if (who not in ("?", answers[way].arrived) if promised[way] else who is not None)
        ]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("back_end", ["nft", "legacy"])
def test_random_rules_do_what_is_said(
    engine: Engine, world: Machine, traffic: Traffic, tmp_path: Path, back_end: str, version: int
) -> None:
    program = f"{'ip' if version == 4 else 'ip6'}tables-{back_end}-restore"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    made = World(engine, world, traffic, tmp_path / "lock")
    assert made.wrong(version) == []
    judged = 0

    def check(drawn: list[Rule]) -> None:
        nonlocal judged
        if made.load(program, drawn):
            assert made.wrong(version) == [], script(drawn)
            judged += 1

    few = settings(
        max_examples=int(os.environ.get("EXAMPLES", "15")),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    few(given(rules(version))(check))()
    assert judged > 0
