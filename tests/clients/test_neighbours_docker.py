"""Beside a real dockerd, on each iptables back end: what Atoll's bridges forward passes, and Docker's chain stays its admin's."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import Failed, Invalid
from atoll.kernel import netlink, nft
from atoll.neighbours import docker
from tests.clients.neighbours_host import Host, need, private_host

OURS = "-m comment --comment atoll -j ACCEPT"
PAIR = [f"-A DOCKER-USER -i atb+ {OURS}", f"-A DOCKER-USER -o atb+ {OURS}"]
RETURN = "-A DOCKER-USER -j RETURN"
ADMIN = "-A DOCKER-USER -s 192.0.2.7/32 -j DROP"
COMMENTED = '-A DOCKER-USER -s 192.0.2.8/32 -m comment --comment "atoll is nice" -j ACCEPT'

back_ends = pytest.mark.parametrize("back_end", ["nft", "legacy"])


# --- the decision, without a kernel
# --------------------------------------------------------------------------------------------------


def apply(rules: list[str], calls: list[list[str]]) -> list[str]:
    """What iptables does with the calls."""
    rules = list(rules)
    for verb, chain, *rest in calls:
        if verb == "-I":
            position = int(rest.pop(0))
            assert position <= len(rules) + 1
            rules.insert(position - 1, shlex.join(["-A", chain, *rest]))
        elif verb == "-A":
            rules.append(shlex.join(["-A", chain, *rest]))
        else:
            rules.remove(shlex.join(["-A", chain, *rest]))
    return rules


def changed(rules: list[str], bridges: list[str]) -> list[str]:
    listing = "\n".join(["-N DOCKER-USER", *rules]) + "\n"
    return apply(rules, docker.changes(listing, bridges))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([RETURN], [*PAIR, RETURN]),
        ([], PAIR),
        ([ADMIN, RETURN], [ADMIN, *PAIR, RETURN]),
        ([ADMIN], [ADMIN, *PAIR]),
        ([*PAIR, ADMIN], [ADMIN, *PAIR]),
        ([*PAIR, RETURN, ADMIN], [*PAIR, RETURN, ADMIN]),
        ([RETURN, *PAIR], [*PAIR, RETURN]),
        ([*PAIR, *PAIR, RETURN], [*PAIR, RETURN]),
        ([PAIR[1], RETURN], [PAIR[1], PAIR[0], RETURN]),
        ([COMMENTED, RETURN], [COMMENTED, *PAIR, RETURN]),
    ],
)
def test_our_rules_come_last_among_those_that_are_reached(before: list[str], after: list[str]) -> None:
    assert changed(before, ["atb0", "atb1"]) == after


def test_each_bridge_with_a_chosen_name_has_its_own_pair() -> None:
    assert changed([RETURN], ["lan7", "atb0", "lan3"]) == [
        *PAIR,
        *(f"-A DOCKER-USER {flag} {name} {OURS}" for name in ("lan3", "lan7") for flag in ("-i", "-o")),
        RETURN,
    ]
    assert changed([*PAIR, RETURN], ["lan3"]) == [f"-A DOCKER-USER -i lan3 {OURS}", f"-A DOCKER-USER -o lan3 {OURS}", RETURN]


def test_a_bridge_that_iptables_would_read_as_a_pattern_is_refused() -> None:
    with pytest.raises(Invalid, match="lan\\+"):
        docker.changes(RETURN, ["lan+"])


@given(
    st.lists(st.sampled_from([*PAIR, RETURN, ADMIN, COMMENTED, f"-A DOCKER-USER -i lan3 {OURS}"]), max_size=8),
    st.lists(st.sampled_from(["atb0", "atb1", "lan3", "lan4"]), unique=True),
)
def test_one_pass_is_enough_and_no_rule_of_others_is_touched(before: list[str], bridges: list[str]) -> None:
    def foreign(rules: list[str]) -> list[str]:
        return [rule for rule in rules if OURS not in rule]

    after = changed(before, bridges)
    assert changed(after, bridges) == after
    assert foreign(after) == foreign(before)
    reached = after[: after.index(RETURN)] if RETURN in after else after
    count = 2 * (any(name.startswith("atb") for name in bridges) + sum(name.startswith("lan") for name in bridges))
    assert len(after) - len(foreign(after)) == count
    assert foreign(reached[len(reached) - count :]) == []


# --- on the real dockerd
# -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[Host]:
    need("dockerd", "containerd", "iptables-nft", "iptables-legacy", "unshare", "nsenter", "ip", "ping", "sysctl")
    with private_host() as private:
        yield private


def sync(host: Host, *bridges: str) -> list[str]:
    return host.here(lambda: docker.sync(bridges, host.runner))


def listed(host: Host, back_end: str, family: str = "ip") -> list[str]:
    return host.run(f"{family}tables-{back_end}", "-w", "5", "-S", "DOCKER-USER").splitlines()[1:]


@back_ends
def test_what_docker_drops_passes_after_sync_and_after_a_restart_of_dockerd(host: Host, back_end: str) -> None:
    host.start_dockerd(back_end)
    host.wire("atb0")
    assert not host.passes()

    commands = sync(host, "atb0")

    assert commands == [
        f"iptables-{back_end} -w 5 -I DOCKER-USER 1 -i atb+ {OURS}",
        f"iptables-{back_end} -w 5 -I DOCKER-USER 2 -o atb+ {OURS}",
    ]
    assert host.passes()
    assert sync(host, "atb0") == []
    host.stop("dockerd")
    host.start_dockerd(back_end)
    assert sync(host, "atb0") == []
    assert host.passes()


@back_ends
def test_a_bridge_with_a_chosen_name_passes_and_a_stranger_is_still_dropped(host: Host, back_end: str) -> None:
    host.start_dockerd(back_end)
    host.wire("lan7")
    sync(host, "atb0", "lan8")
    assert not host.passes()
    sync(host, "atb0", "lan7")
    assert host.passes()


@back_ends
def test_what_was_flushed_is_put_back(host: Host, back_end: str) -> None:
    host.start_dockerd(back_end)
    host.wire("atb0")
    sync(host, "atb0")
    host.run(f"iptables-{back_end}", "-F", "DOCKER-USER")
    assert not host.passes()
    assert len(sync(host, "atb0")) == 2
    assert host.passes()


@back_ends
def test_the_admins_rules_come_first_and_stay_when_ours_go(host: Host, back_end: str) -> None:
    host.start_dockerd(back_end)
    host.wire("atb0")
    host.run(f"iptables-{back_end}", "-I", "DOCKER-USER", "-s", "192.0.2.7", "-j", "DROP")
    before = listed(host, back_end)
    sync(host, "atb0")
    assert listed(host, back_end) == [before[0], *PAIR, *before[1:]]

    later = ["-d", "10.90.2.2", "-m", "comment", "--comment", "atoll isn't asked", "-j", "DROP"]
    host.run(f"iptables-{back_end}", "-D", "DOCKER-USER", "-j", "RETURN")
    host.run(f"iptables-{back_end}", "-A", "DOCKER-USER", *later)
    sync(host, "atb0")
    assert listed(host, back_end)[-2:] == PAIR
    assert host.runner(["ip", "netns", "exec", "inside", "ping", "-q", "-c", "1", "-W", "1", "10.90.2.2"])[0] != 0

    host.run(f"iptables-{back_end}", "-D", "DOCKER-USER", *later)
    host.run(f"iptables-{back_end}", "-A", "DOCKER-USER", "-j", "RETURN")
    assert len(sync(host)) == 2
    assert listed(host, back_end) == before
    assert sync(host) == []


@back_ends
def test_the_chain_of_ipv6_has_the_same_rules(host: Host, back_end: str) -> None:
    host.start_dockerd(back_end)
    host.wire("atb0")
    # What dockerd does for IPv6 itself in later releases than Debian's 20.10.
    for rule in ("-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-P FORWARD DROP"):
        host.run(f"ip6tables-{back_end}", *rule.split())
    assert not host.passes(6)
    sync(host, "atb0")
    assert listed(host, back_end, "ip6")[:2] == PAIR
    assert host.passes(6)
    assert len(sync(host)) == 4


def test_a_chain_that_an_earlier_dockerd_left_in_the_other_back_end_is_answered_too(host: Host) -> None:
    host.start_dockerd("legacy")
    host.stop("dockerd")
    host.start_dockerd("nft")
    host.wire("atb0")
    assert host.here(docker.programs) == ["iptables-nft", "iptables-legacy"]
    assert len(sync(host, "atb0")) == 4
    assert host.passes()
    assert len(sync(host)) == 4


def test_without_docker_nothing_is_run_and_no_legacy_table_appears(host: Host) -> None:
    def forbidden(argv: object) -> tuple[int, str, str]:
        raise AssertionError(f"ran {argv}")

    assert host.here(docker.programs) == []
    assert host.here(lambda: docker.sync(["atb0"], forbidden)) == []
    assert host.here(lambda: docker.has_legacy_table("ip")) is False
    assert host.run("nft", "list", "ruleset") == ""


def test_legacy_rules_without_docker_are_left_alone(host: Host) -> None:
    host.run("iptables-legacy", "-A", "FORWARD", "-s", "192.0.2.7", "-j", "DROP")
    before = host.run("iptables-legacy", "-S")
    assert sync(host, "atb0") == []
    assert host.run("iptables-legacy", "-S") == before


def test_a_missing_program_is_told_with_what_it_means(host: Host) -> None:
    host.start_dockerd("nft")
    with pytest.raises(Failed, match=r"iptables.* not installed; Docker drops what Atoll forwards"):
        host.here(lambda: docker.sync(["atb0"], lambda argv: (127, "", "")))


def test_a_start_of_dockerd_and_a_flush_are_events_of_the_table_filter(host: Host) -> None:
    with host.here(lambda: netlink.Socket(netlink.NETLINK_NETFILTER, groups=(nft.GROUP_NFTABLES,))) as watch:

        def tables() -> set[str]:
            return {nft.event_table(event) for event in watch.events()}

        host.start_dockerd("nft")
        assert "filter" in tables()
        time.sleep(0.2)
        tables()
        host.run("iptables-nft", "-F", "DOCKER-USER")
        assert "filter" in tables()
