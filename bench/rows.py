"""The rows: which variants are measured side by side, and which figures must come out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench import bare, dns, doors, ours, tool, traffic
from bench.peers import cni, docker, iptables, netavark, recipe
from bench.stats import Check, Result, median, ratio
from bench.variant import Sample, Series, Variant, compare

if TYPE_CHECKING:
    from bench.traffic import Published


@dataclass(frozen=True)
class Effort:
    """How much is done: a full run answers the targets, a quick one shows that all works."""

    rounds: int
    few: int
    many: int
    ports: int
    own_ports: int
    rules: tuple[int, ...]
    churn_rounds: int
    client_rounds: int
    present: int
    storm: int
    mappings: int


FULL = Effort(
    rounds=20,
    few=10,
    many=1000,
    ports=60_000,
    own_ports=1000,
    rules=(1, 1000, 10_000),
    churn_rounds=3,
    client_rounds=15,
    present=200,
    storm=100,
    mappings=200,
)
QUICK = Effort(
    rounds=5,
    few=5,
    many=100,
    ports=2000,
    own_ports=500,
    rules=(1, 500),
    churn_rounds=1,
    client_rounds=3,
    present=20,
    storm=20,
    mappings=20,
)

Measured = Mapping[str, Series]


@dataclass(frozen=True)
class Row:
    """`variants` and `checks` say what is compared at this effort and what must come out of it."""

    key: str
    title: str
    unit: str
    rounds: Callable[[Effort], int]
    variants: Callable[[Effort], Sequence[Variant]]
    checks: Callable[[Effort, Measured], Sequence[Check]]
    more_is_better: bool = False

    def run(self, effort: Effort) -> Result:
        begin = time.monotonic()
        series = compare(self.variants(effort), self.rounds(effort))
        checks, seconds = self.checks(effort, series), time.monotonic() - begin
        return Result(self.key, self.title, self.unit, series, checks, seconds, self.more_is_better)


def _connect_variants(effort: Effort) -> list[Variant]:
    return [
        Variant(f"{who}, {endpoints} endpoints", partial(build, endpoints, 5))
        for endpoints in (effort.few, effort.many)
        for who, build in (("Atoll engine", ours.connecting), ("floor", bare.connecting))
    ]


def _connect_checks(effort: Effort, measured: Measured) -> list[Check]:
    few, few_bare, many, many_bare = measured.values()
    return [
        Check("connect with one published port, in the engine, against the floor", ratio(few, few_bare), "x", 1.6),
        Check(f"connect at {effort.many} endpoints against {effort.few}", ratio(many, few), "x", 1.5),
        Check(f"the floor itself at {effort.many} endpoints against {effort.few}", ratio(many_bare, few_bare), "x"),
        Check(f"connect at {effort.many} endpoints against the floor at as many", ratio(many, many_bare), "x"),
    ]


def _lab_variants(_: Effort) -> list[Variant]:
    return [Variant("Atoll lab, 10 namespaces", partial(ours.laboratory, 10))]


def _lab_checks(_: Effort, measured: Measured) -> list[Check]:
    (lab,) = measured.values()
    return [Check("a lab of 10 namespaces on a network", median(lab), "ms", 25)]


def _client_variants(effort: Effort) -> list[Variant]:
    return [
        Variant("Atoll, HTTP request", partial(ours.requesting, effort.few, 2)),
        Variant("Atoll, command line", partial(ours.commanding, effort.few, 2)),
        Variant("recipe of ip and nft commands", partial(recipe.connecting, effort.few, 2)),
        Variant("dockerd, HTTP network connect, no port", partial(docker.connecting, 1)),
    ]


def _client_checks(_: Effort, measured: Measured) -> list[Check]:
    http, command, by_hand = list(measured.values())[:3]
    return [
        Check("whole operation, recipe against Atoll by HTTP", ratio(by_hand, http), "x"),
        Check("whole operation, recipe against Atoll's command line", ratio(by_hand, command), "x"),
    ]


def _faster(what: str, theirs: Series, ours: Series, limit: float | None = None) -> Check:
    return Check(what, ratio(theirs, ours), "x", limit, at_least=True)


def _cni_variants(effort: Effort) -> list[Variant]:
    parts = ("ADD", "DEL")
    return [
        variant
        for present in (effort.few, effort.present)
        for variant in (
            Variant(f"Atoll, one plugin, {present} present", partial(doors.adding, present, 2, one=True), parts),
            Variant(f"Atoll as bridge and portmap, {present} present", partial(doors.adding, present, 2, one=False), parts),
            Variant(f"bridge, host-local, portmap, {present} present", partial(cni.attaching, present, 1), parts),
        )
    ]


def _cni_checks(effort: Effort, measured: Measured) -> list[Check]:
    def compared(present: int, limit: float, series: Sequence[Series]) -> Iterator[Check]:
        one_add, one_del, same_add, same_del, add, delete = series
        yield _faster(f"CNI ADD with one port, {present} present, against the reference plugins", add, one_add, limit)
        yield _faster(f"CNI DEL, {present} present, against the reference plugins", delete, one_del, 6)
        yield _faster(f"CNI ADD by the reference plugins' configuration, {present} present", add, same_add)
        yield _faster(f"CNI DEL by the reference plugins' configuration, {present} present", delete, same_del)

    series = list(measured.values())
    return [*compared(effort.few, 6, series[:6]), *compared(effort.present, 10, series[6:])]


def _storm_variants(effort: Effort) -> list[Variant]:
    return [
        Variant("Atoll, one plugin", partial(doors.storming, effort.storm, one=True)),
        Variant("Atoll as bridge and portmap", partial(doors.storming, effort.storm, one=False)),
        Variant("bridge, host-local, portmap", partial(cni.storming, effort.storm)),
    ]


def _storm_checks(effort: Effort, measured: Measured) -> list[Check]:
    one, same, plugins = measured.values()
    return [
        _faster(f"{effort.storm} CNI ADDs at once, against the reference plugins", plugins, one, 5),
        _faster(f"{effort.storm} CNI ADDs at once, by the reference plugins' configuration", plugins, same),
    ]


def _netavark_variants(effort: Effort) -> list[Variant]:
    parts = ("setup", "teardown")
    return [
        Variant("Atoll", partial(doors.setting_up, 1, effort.few, 2), parts),
        Variant("netavark", partial(netavark.attaching, 1, effort.few, 1), parts),
    ]


def _netavark_checks(_: Effort, measured: Measured) -> list[Check]:
    setup, teardown, their_setup, their_teardown = measured.values()
    return [
        _faster("netavark setup with 1 port, against netavark's own", their_setup, setup, 6),
        _faster("netavark teardown with 1 port, against netavark's own", their_teardown, teardown),
    ]


def _ports_variants(effort: Effort) -> list[Variant]:
    parts = ("setup", "teardown")
    return [
        Variant("Atoll", partial(doors.setting_up, effort.mappings, 0, 5), parts),
        Variant("netavark", partial(netavark.attaching, effort.mappings, 0, 1), parts),
    ]


def _ports_checks(effort: Effort, measured: Measured) -> list[Check]:
    setup, teardown, their_setup, their_teardown = measured.values()
    return [
        _faster(f"netavark setup with {effort.mappings} ports, against netavark's own", their_setup, setup, 50),
        _faster(f"netavark teardown with {effort.mappings} ports, against netavark's own", their_teardown, teardown, 100),
    ]


def _docker_variants(_: Effort) -> list[Variant]:
    return [
        Variant("on an Atoll network", partial(doors.starting, 1)),
        Variant("on a bridge network of Docker's", partial(docker.starting, 1, named=True)),
        Variant("on Docker's default bridge, which has no names", partial(docker.starting, 1, named=False)),
    ]


def _docker_checks(_: Effort, measured: Measured) -> list[Check]:
    atoll, bridge, default = measured.values()
    return [
        Check("docker run, what the network and a port add, against Docker's bridge network", ratio(atoll, bridge), "x", 0.5),
        Check("docker run, what the network and a port add, against Docker's default bridge", ratio(atoll, default), "x"),
    ]


def _publish_variants(effort: Effort) -> list[Variant]:
    return [
        Variant("Atoll engine, 1 port", partial(ours.publishing, 1, 20, alone=False)),
        Variant(f"Atoll engine, {effort.ports} ports of others", partial(ours.publishing, effort.ports, 20, alone=False)),
        Variant(f"Atoll engine, {effort.own_ports} ports of its own", partial(ours.publishing, effort.own_ports, 3, alone=True)),
        Variant(f"Atoll engine, {effort.ports} ports of its own", partial(ours.publishing, effort.ports, 3, alone=True)),
        Variant("floor, 1 port", partial(bare.publishing, 1, 20)),
        Variant(f"floor, {effort.ports} ports", partial(bare.publishing, effort.ports, 20)),
        *(Variant(f"iptables command, {rules} ports", partial(iptables.publishing, rules, 3)) for rules in effort.rules),
    ]


def _publish_checks(effort: Effort, measured: Measured) -> list[Check]:
    one, many, some_own, many_own, one_bare, many_bare, *_ = measured.values()
    return [
        Check(f"publish one port with {effort.ports} published by others against 1", ratio(many, one), "x", 1.2),
        Check(f"publish one port with {effort.ports} published by others", median(many), "ms", 2),
        Check(f"publish one port with {effort.ports} published by the same namespace against 1", ratio(many_own, one), "x", 1.2),
        Check(f"publish one port with {effort.ports} published by the same namespace", median(many_own), "ms", 2),
        Check(f"publish one port with {effort.own_ports} published by the same namespace against 1", ratio(some_own, one), "x", 1.2),
        Check(f"the floor itself with {effort.ports} published against 1", ratio(many_bare, one_bare), "x"),
    ]


def _open_variants(effort: Effort) -> list[Variant]:
    def variant(name: str, build: Callable[[int], AbstractContextManager[Published]], ports: int) -> Variant:
        return Variant(f"{name}, {ports} published", partial(traffic.connections, partial(build, ports), 100))

    return [
        variant("Atoll", ours.published, 1),
        variant("Atoll", ours.published, effort.ports),
        variant("floor's map", bare.published, 1),
        variant("floor's map", bare.published, effort.ports),
        *(variant("iptables rules", iptables.published, rules) for rules in effort.rules),
    ]


def _open_checks(effort: Effort, measured: Measured) -> list[Check]:
    one, many, one_bare, many_bare, one_rule, *_, most_rules = measured.values()
    return [
        Check(f"new connection with {effort.ports} published against 1", ratio(many, one), "x", 1.05),
        Check(f"the floor's map with {effort.ports} published against 1", ratio(many_bare, one_bare), "x"),
        Check(f"iptables with {effort.rules[-1]} published against 1", ratio(most_rules, one_rule), "x"),
        Check(f"iptables with {effort.rules[-1]} against Atoll with {effort.ports}", ratio(most_rules, many), "x"),
    ]


def _churn_variants(effort: Effort) -> list[Variant]:
    return [Variant("Atoll engine", partial(ours.churning, effort.many)), Variant("floor", partial(bare.churning, effort.many))]


def _churn_checks(effort: Effort, measured: Measured) -> list[Check]:
    engine, floor = measured.values()
    return [
        Check(f"{effort.many} namespaces created, connected and removed", median(engine), "s", 10),
        Check(f"{effort.many} namespaces, against the floor", ratio(engine, floor), "x"),
    ]


@contextmanager
def _interpreter(count: int) -> Iterator[Sample]:
    """Milliseconds of the interpreter's own start and end: what no command written in Python can be faster than."""
    yield lambda: [tool.timed("/usr/bin/python3", "-IS", "-c", "pass")[0] for _ in range(count)]


def _list_variants(effort: Effort) -> list[Variant]:
    return [
        Variant("Atoll, network ls", partial(ours.listing, 5)),
        Variant("docker network ls", partial(docker.listing, 5)),
        Variant("python3 -IS -c pass", partial(_interpreter, 5)),
    ]


def _list_checks(effort: Effort, measured: Measured) -> list[Check]:
    command, *_ = measured.values()
    return [Check("atoll network ls as a whole process", median(command), "ms", 60)]


def _memory_variants(effort: Effort) -> list[Variant]:
    return [
        Variant(f"Atoll daemon, {effort.many} endpoints", partial(ours.memory, effort.many)),
        Variant("dockerd and containerd, no container", docker.memory),
    ]


def _memory_checks(effort: Effort, measured: Measured) -> list[Check]:
    daemon, _ = measured.values()
    return [Check(f"daemon with {effort.many} endpoints, resident", median(daemon), "MiB", 60)]


def _repair_variants(effort: Effort) -> list[Variant]:
    return [Variant("Atoll daemon", partial(ours.repairing, effort.many)), Variant("floor", partial(bare.repairing, effort.many))]


def _repair_checks(effort: Effort, measured: Measured) -> list[Check]:
    engine, _ = measured.values()
    return [Check(f"repair of a flushed ruleset with {effort.many} endpoints", median(engine), "s", 0.5)]


_PAIRS = {
    "Atoll": ours.pair,
    "bare veth pair": traffic.veth_pair,
    "bare bridge": traffic.plain_bridge,
    "dockerd's bridge": docker.pair,
}


def _trip_variants(effort: Effort) -> list[Variant]:
    return [Variant(name, partial(traffic.round_trips, make, 10)) for name, make in _PAIRS.items()]


def _trip_checks(effort: Effort, measured: Measured) -> list[Check]:
    atoll, veth, _, dockerd = measured.values()
    return [
        Check("TCP round trip, against dockerd's bridge", ratio(atoll, dockerd), "x", 1),
        Check("TCP round trip, against a bare veth pair", ratio(atoll, veth), "x"),
    ]


def _stream_variants(effort: Effort) -> list[Variant]:
    return [Variant(name, partial(traffic.stream, make, 0.2)) for name, make in _PAIRS.items()]


def _stream_checks(effort: Effort, measured: Measured) -> list[Check]:
    atoll, veth, _, dockerd = measured.values()
    return [
        Check("TCP throughput, against dockerd's bridge", ratio(atoll, dockerd), "x", 1, at_least=True),
        Check("TCP throughput, against a bare veth pair", ratio(atoll, veth), "x"),
    ]


_NAME_SERVERS = {"Atoll": dns.atoll, "aardvark-dns": dns.aardvark, "dnsmasq": dns.dnsmasq}


def _answer_variants(effort: Effort) -> list[Variant]:
    return [Variant(name, partial(dns.throughput, serve, 1)) for name, serve in _NAME_SERVERS.items()]


def _answer_checks(effort: Effort, measured: Measured) -> list[Check]:
    atoll, aardvark, dnsmasq = measured.values()
    return [
        Check("DNS answers a second, against aardvark-dns", ratio(atoll, aardvark), "x", 1, at_least=True),
        Check("DNS answers a second, against dnsmasq", ratio(atoll, dnsmasq), "x", 1, at_least=True),
    ]


def _question_variants(effort: Effort) -> list[Variant]:
    return [Variant(name, partial(dns.latency, serve, 10)) for name, serve in _NAME_SERVERS.items()]


def _question_checks(effort: Effort, measured: Measured) -> list[Check]:
    atoll, aardvark, dnsmasq = measured.values()
    return [
        Check("one DNS question, against aardvark-dns", ratio(atoll, aardvark), "x", 1),
        Check("one DNS question, against dnsmasq", ratio(atoll, dnsmasq), "x"),
    ]


def _rounds(effort: Effort) -> int:
    return effort.rounds


def _client_rounds(effort: Effort) -> int:
    return effort.client_rounds


def _one_round(_: Effort) -> int:
    return 1


def _churn_rounds(effort: Effort) -> int:
    return effort.churn_rounds


ROWS = (
    Row("connect", "Connect one namespace with one published port", "ms", _rounds, _connect_variants, _connect_checks),
    Row("client", "The whole operation as a client sees it", "ms", _client_rounds, _client_variants, _client_checks),
    Row("cni", "A CNI runtime's ADD and DEL with one published port, as whole processes", "ms", _client_rounds, _cni_variants, _cni_checks),
    Row("storm", "Many CNI ADDs at once, all done", "s", _churn_rounds, _storm_variants, _storm_checks),
    Row("netavark", "Podman's call of netavark, one port", "ms", _client_rounds, _netavark_variants, _netavark_checks),
    Row("mappings", "Podman's call of netavark, many ports", "ms", _one_round, _ports_variants, _ports_checks),
    Row("docker", "What a network and one port add to docker run", "ms", _client_rounds, _docker_variants, _docker_checks),
    Row("publish", "Publish one port beside others", "ms", _rounds, _publish_variants, _publish_checks),
    Row("open", "A new TCP connection through a published port", "µs", _rounds, _open_variants, _open_checks),
    Row("churn", "Many namespaces created, connected and removed", "s", _churn_rounds, _churn_variants, _churn_checks),
    Row("list", "A listing as a whole process", "ms", _client_rounds, _list_variants, _list_checks),
    Row("memory", "Resident memory of the daemon", "MiB", _churn_rounds, _memory_variants, _memory_checks),
    Row("repair", "Repair of a flushed ruleset", "s", _client_rounds, _repair_variants, _repair_checks),
    Row("trip", "TCP round trip between two namespaces, one core", "µs", _rounds, _trip_variants, _trip_checks),
    Row("lab", "A lab of 10 namespaces on one network", "ms", _rounds, _lab_variants, _lab_checks),
    Row(
        "stream",
        "TCP throughput between two namespaces, one core",
        "Gbit/s",
        _rounds,
        _stream_variants,
        _stream_checks,
        more_is_better=True,
    ),
    Row(
        "answers",
        "DNS answers to 100 questions under way, one core",
        "1,000/s",
        _client_rounds,
        _answer_variants,
        _answer_checks,
        more_is_better=True,
    ),
    Row("question", "One DNS question for a container's name, one core", "µs", _rounds, _question_variants, _question_checks),
)
