"""nftables as `explain` evaluates it: one rule, one packet."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import Invalid
from atoll.explain import legacy, parse
from atoll.explain.packet import CT_STATE, Nat, Packet
from atoll.explain.rules import Outcome, Ruleset
from atoll.explain.xt import MATCHES, TARGETS, Extension


def packet(**fields: Any) -> Packet:
    src, dst = ipaddress.ip_address("10.0.0.2"), ipaddress.ip_address("10.0.1.3")
    return Packet(
        **{"version": 4, "src": src, "dst": dst, "protocol": 6, "sport": 40000, "dport": 80, "ether": "ip", "iif": "br0"} | fields
    )


def run(*statements: dict[str, Any], policy: str = "accept", others: list[dict[str, Any]] | None = None, **fields: Any) -> Outcome:
    chain = {"family": "inet", "table": "t", "name": "c", "type": "filter", "hook": "forward", "prio": 0, "policy": policy}
    rule = {"family": "inet", "table": "t", "chain": "c", "handle": 7, "expr": list(statements)}
    rules = Ruleset([{"chain": chain}, {"rule": rule}, *(others or [])], lambda result, flags, packet: 2 if result == "type" else "br0")
    return rules.run(rules.base("forward", ("inet",))[0], packet(**fields))


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


DPORT, SADDR, IIF = payload("tcp", "dport"), payload("ip", "saddr"), {"meta": {"key": "iifname"}}
STATE, DROP, ACCEPT = {"ct": {"key": "state"}}, {"drop": None}, {"accept": None}


@pytest.mark.parametrize(
    ("matches", "hit"),
    [
        ([match(DPORT, 80)], True),
        ([match(DPORT, 81)], False),
        ([match(DPORT, 81, "!=")], True),
        ([match(payload("udp", "dport"), 81, "!=")], False),  # no such field, so the rule ends whatever it asks
        ([match(DPORT, {"range": [70, 80]})], True),
        ([match(DPORT, {"set": [22, {"range": [81, 90]}]})], False),
        ([match(DPORT, 80, "<")], False),
        ([match(SADDR, {"prefix": {"addr": "10.0.0.0", "len": 24}})], True),
        ([match(SADDR, {"prefix": {"addr": "10.0.1.0", "len": 24}}, "!=")], True),
        ([match(SADDR, {"range": ["10.0.0.3", "10.0.0.9"]})], False),
        ([match(payload("ip6", "saddr"), "::1", "!=")], False),
        ([match(IIF, "br*")], True),
        ([match(IIF, {"set": ["br1", "b*"]})], True),
        ([match({"meta": {"key": "oifname"}}, "br0")], False),
        ([match(STATE, ["new", "established"], "in")], True),
        ([match(STATE, "established", "in")], False),
        ([match({"ct": {"key": "status"}}, "dnat", "in")], False),
        ([match({"meta": {"key": "l4proto"}}, {"set": ["udp", "tcp"]})], True),
        ([match({"concat": [SADDR, DPORT]}, {"set": [{"concat": ["10.0.0.2", {"range": [1, 99]}]}]})], True),
        ([match({"fib": {"result": "type", "flags": ["daddr"]}}, "local")], True),
        ([match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False)], False),
        ([match({"&": [{"meta": {"key": "mark"}}, 255]}, 3)], True),
        ([match(payload("tcp", "flags"), "syn", "in")], True),
        ([{"limit": {"rate": 5, "per": "second"}}], True),
        ([{"xt": {"type": "match", "name": "comment"}}], True),
    ],
)
def test_a_rule_drops_exactly_what_it_matches(matches: list[dict[str, Any]], hit: bool) -> None:
    assert run(*matches, DROP, mark=0x103).verdict == ("drop" if hit else "accept")


def test_sets_and_maps_are_looked_up() -> None:
    named = {"set": {"family": "inet", "table": "t", "name": "s", "elem": [{"elem": {"val": "10.0.0.2", "timeout": 5}}]}}
    assert run(match(SADDR, "@s"), DROP, others=[named]).verdict == "drop"
    assert run({"vmap": {"key": DPORT, "data": {"set": [[22, ACCEPT], [80, DROP]]}}}).verdict == "drop"
    leads = {"map": {"family": "inet", "table": "t", "name": "m", "elem": [[{"concat": ["tcp", 80]}, {"concat": ["10.9.9.9", 8080]}]]}}
    key = {"concat": [{"meta": {"key": "l4proto"}}, payload("th", "dport")]}
    found = run({"dnat": {"family": "ip", "addr": {"map": {"key": key, "data": "@m"}}}}, others=[leads])
    assert found.nat == Nat("dnat", ipaddress.ip_address("10.9.9.9"), 8080)
    assert run({"dnat": {"family": "ip", "addr": {"map": {"key": key, "data": "@m"}}}}, others=[leads], dport=81).nat is None


def test_chains_are_called_returned_from_and_gone_to() -> None:
    def chain(name: str, *statements: dict[str, Any]) -> list[dict[str, Any]]:
        place = {"family": "inet", "table": "t"}
        rules = [{"rule": {**place, "chain": name, "handle": number, "expr": [said]}} for number, said in enumerate(statements)]
        return [{"chain": {**place, "name": name}}, *rules]

    last = {"rule": {"family": "inet", "table": "t", "chain": "c", "handle": 9, "expr": [DROP]}}
    assert run({"jump": {"target": "o"}}, others=[*chain("o", {"return": None}, ACCEPT), last]).verdict == "drop"
    assert run({"jump": {"target": "o"}}, others=[*chain("o", ACCEPT), last]).verdict == "accept"
    assert run({"goto": {"target": "o"}}, others=[*chain("o", {"counter": None}), last]).verdict == "accept"


def test_what_cannot_be_judged_is_unsure_only_where_it_matters() -> None:
    strange = {"xt": {"type": "match", "name": "u32"}}
    assert run(strange, DROP).verdict == "unsure"
    assert run(strange, ACCEPT).verdict == "accept"
    assert run(strange, ACCEPT, policy="drop").verdict == "unsure"
    assert run(match(DPORT, 81), strange, DROP).verdict == "accept"
    assert run(strange, {"counter": None}).verdict == "accept"


def test_a_chain_that_a_packet_comes_back_from_unchanged_casts_no_doubt() -> None:
    addrtype = {"xt": {"type": "match", "name": "addrtype"}}
    to_nat = {"jump": {"target": "o"}}

    def nat_chain(*statements: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"chain": {"family": "inet", "table": "t", "name": "o"}},
            {"rule": {"family": "inet", "table": "t", "chain": "o", "handle": 8, "expr": list(statements)}},
        ]

    dnat = {"dnat": {"addr": "10.0.0.9", "port": 8080}}
    assert run(addrtype, to_nat, others=nat_chain(match(DPORT, 81), dnat)).verdict == "accept"
    assert run(addrtype, to_nat, others=nat_chain(match(DPORT, 80), dnat)).verdict == "unsure"
    assert run(addrtype, to_nat, others=nat_chain(match(DPORT, 81), DROP)).verdict == "accept"
    assert run(addrtype, to_nat, others=nat_chain(match(DPORT, 80), DROP)).verdict == "unsure"
    assert run(addrtype, to_nat, others=nat_chain(match(DPORT, 80), ACCEPT)).verdict == "accept"
    assert run(addrtype, to_nat, others=nat_chain(match(DPORT, 80), ACCEPT), policy="drop").verdict == "unsure"
    assert run(addrtype, to_nat, others=nat_chain({"xt": {"type": "match", "name": "u32"}}, DROP)).verdict == "unsure"
    assert run(addrtype, to_nat, others=nat_chain({"mangle": {"key": {"meta": {"key": "mark"}}, "value": 7}})).verdict == "unsure"
    # Whoever may be let through before it is rewritten may not be rewritten.
    rewrites = {"rule": {"family": "inet", "table": "t", "chain": "c", "handle": 9, "expr": [dnat]}}
    assert run(addrtype, to_nat, others=[*nat_chain(match(DPORT, 80), ACCEPT), rewrites]).verdict == "unsure"
    assert run(addrtype, to_nat, others=[*nat_chain(match(DPORT, 81), ACCEPT), rewrites]).nat is not None


def test_a_mark_and_notrack_stay_with_the_packet() -> None:
    seen = packet()
    rules = Ruleset(
        [
            {"chain": {"family": "ip", "table": "t", "name": "c", "type": "filter", "hook": "prerouting", "prio": -300}},
            {"rule": {"family": "ip", "table": "t", "chain": "c", "handle": 1, "expr": [
                {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 7}}, {"notrack": None}]}},
        ],
        lambda *_: "",
    )  # fmt: skip
    rules.run(rules.base("prerouting", ("ip",))[0], seen)
    assert (seen.mark, seen.tracked, seen.state) == (7, False, CT_STATE["untracked"])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("r1", ("r1", 0, "icmp", 0)),
        ("r1:80", ("r1", 80, "tcp", 0)),
        ("r1@web:53/udp", ("r1@web", 53, "udp", 0)),
        ("10.0.0.1:5/sctp", ("10.0.0.1", 5, "sctp", 4)),
        ("::1", ("::1", 0, "icmp", 6)),
        ("[fd00::9]:53/udp", ("fd00::9", 53, "udp", 6)),
    ],
)
def test_a_target_is_taken_apart(target: str, expected: tuple[str, int, str, int]) -> None:
    question = parse("r2", target)
    assert (question.target, question.port, question.protocol, question.version) == expected


@pytest.mark.parametrize("target", ["r1:0", "r1:70000", "r1:80/icmp", "r1/tcp", "r1:80/gre", "r1:x", "", "a:b:c"])
def test_a_target_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(Invalid):
        parse("r2", target)


# --- expressions of iptables ---------------------------------------------------------------------------------------------------------


def xt(name: str, revision: int, info: bytes, kind: Literal["match", "target"] = "match") -> dict[str, Any]:
    return Extension(kind, name, revision, info).statement()


def of_iptables(*statements: dict[str, Any], policy: str = "accept", hook: str = "forward", **fields: Any) -> Outcome:
    chain = {"family": "ip", "table": "t", "name": "c", "type": "filter", "hook": hook, "prio": 0, "policy": policy}
    rule = {"family": "ip", "table": "t", "chain": "c", "handle": 7, "expr": list(statements)}
    rules = Ruleset([{"chain": chain}, {"rule": rule}], lambda result, flags, packet: 2 if result == "type" else "br0")
    return rules.run(rules.base(hook, ("ip",))[0], packet(**fields))


TCP_80 = xt("tcp", 0, struct.pack("=4H4B4x", 0, 65535, 80, 80, 0, 0, 0, 0))
LOCAL = xt("addrtype", 1, struct.pack("=2HI", 0, 1 << 2, 0))
DNAT = xt("DNAT", 2, struct.pack("=I16s16s2s2s4x", 3, bytes([10, 9, 9, 9]), bytes([10, 9, 9, 9]), b"\x00\x50", b"\x00\x50"), "target")
SEVERAL = xt("DNAT", 2, struct.pack("=I16s16s2s2s4x", 1, bytes([10, 9, 9, 9]), bytes([10, 9, 9, 10]), bytes(2), bytes(2)), "target")


@pytest.mark.parametrize(
    ("statements", "verdict"),
    [
        ([TCP_80, DROP], "drop"),
        ([LOCAL, TCP_80, DROP], "drop"),
        ([xt("tcp", 0, TCP_80["xt"]["info"][:11]), DROP], "unsure"),  # shorter than its struct
        ([xt("tcp", 1, TCP_80["xt"]["info"]), DROP], "unsure"),  # a revision that nobody knows
        ([xt("owner", 1, bytes(64)), DROP], "unsure"),
        ([xt("owner", 1, bytes(64)), xt("LOG", 0, bytes(32), "target")], "accept"),
        ([xt("owner", 1, bytes(64)), DNAT], "unsure"),
        ([xt("REJECT", 0, bytes(8), "target")], "drop"),
        ([xt("NFQUEUE", 3, bytes(8), "target")], "unsure"),
        ([xt("owner", 1, bytes(64)), TCP_80, xt("udp", 0, bytes(10)), DROP], "unsure"),
        ([{"xt": {"type": "match", "name": "tcp"}}, DROP], "unsure"),  # what the kernel holds of it could not be read
        ([{"xt": None}, DROP], "unsure"),
        ([SEVERAL], "unsure"),
        ([{"tproxy": {"port": 1}}], "unsure"),
    ],
)
def test_an_expression_of_iptables_is_judged_or_unsure(statements: list[dict[str, Any]], verdict: str) -> None:
    assert of_iptables(*statements).verdict == verdict


def test_a_target_rewrites() -> None:
    assert of_iptables(LOCAL, TCP_80, DNAT).nat == Nat("dnat", ipaddress.ip_address("10.9.9.9"), 80)
    assert of_iptables(LOCAL, TCP_80, DNAT, dport=81).nat is None
    # Whether something else stands before it isn't known, so where it goes isn't either.
    chain = {"family": "ip", "table": "t", "name": "c", "type": "nat", "hook": "prerouting", "prio": -100}
    place = {"family": "ip", "table": "t", "chain": "c"}
    unknown = {"rule": {**place, "handle": 1, "expr": [xt("owner", 1, bytes(64)), ACCEPT]}}
    rules = Ruleset([{"chain": chain}, unknown, {"rule": {**place, "handle": 2, "expr": [DNAT]}}], lambda *_: "")
    assert rules.run(rules.base("prerouting", ("ip",))[0], packet()).verdict == "unsure"


@given(st.sampled_from(sorted(MATCHES)), st.binary(max_size=200), st.sampled_from([6, 17, 1, 132]))
def test_no_bytes_are_an_error(kind: tuple[str, int], info: bytes, protocol: int) -> None:
    assert of_iptables(xt(*kind, info), DROP, protocol=protocol).verdict in ("accept", "drop", "unsure")


@given(st.sampled_from(sorted(TARGETS)), st.binary(max_size=200))
def test_no_bytes_of_a_target_are_an_error(kind: tuple[str, int], info: bytes) -> None:
    assert of_iptables(xt(*kind, info, "target")).verdict in ("accept", "drop", "unsure")


@given(st.binary(min_size=84, max_size=84), st.binary(max_size=400))
def test_no_bytes_of_a_legacy_table_are_an_error(info: bytes, chunk: bytes) -> None:
    with contextlib.suppress(ValueError, LookupError, struct.error):
        legacy.parse("ip", "filter", info, chunk)
