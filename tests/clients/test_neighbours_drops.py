"""Who drops what Atoll forwards: found in real rule sets of real programs, and the command that is given really helps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from atoll.neighbours import docker
from atoll.neighbours.drops import Drop, foreign_drops
from tests.clients.neighbours_host import Host, need, private_host


@pytest.fixture
def host() -> Iterator[Host]:
    need("nft", "iptables-nft", "iptables-legacy", "unshare", "nsenter", "ip", "ping", "sysctl")
    with private_host() as private:
        yield private


def drops(host: Host, *bridges: str) -> list[Drop]:
    return host.here(lambda: foreign_drops(bridges, host.runner))


def only(host: Host, *bridges: str) -> Drop:
    (found,) = drops(host, *bridges)
    return found


def test_a_host_of_its_own_has_none_and_is_left_untouched(host: Host) -> None:
    host.run("nft", "add table inet atoll; add chain inet atoll forward { type filter hook forward priority 0; policy drop; }")
    host.run("nft", "add table ip accepts; add chain ip accepts forward { type filter hook forward priority 0; }")
    host.run("nft", "add rule ip accepts forward ip saddr 192.0.2.7 drop; add rule ip accepts forward ct state invalid drop")
    host.run("nft", "add table inet other; add chain inet other input { type filter hook input priority 0; policy drop; }")
    host.run("nft", "add table netdev wide; add table arp arps")
    before = host.run("nft", "list", "ruleset")
    assert drops(host, "atb0") == []
    assert host.run("nft", "list", "ruleset") == before
    assert not host.here(lambda: docker.has_legacy_table("ip"))


@pytest.mark.parametrize("bridge", ["atb0", "lan7"])
@pytest.mark.parametrize("family", ["ip", "ip6", "inet"])
def test_a_policy_of_drop_is_found_and_the_command_lets_the_bridge_through(host: Host, family: str, bridge: str) -> None:
    host.wire(bridge)
    host.run("nft", f"add table {family} guard; add chain {family} guard on-the-way {{ type filter hook forward priority 5; }}")
    assert drops(host, bridge) == []
    host.run("nft", f"add chain {family} guard on-the-way {{ policy drop; }}")
    version = 6 if family == "ip6" else 4
    assert not host.passes(version)

    drop = only(host, bridge)

    assert (drop.family, drop.table, drop.chain, drop.hook) == (family, "guard", "on-the-way", "forward")
    assert (drop.by, drop.who, drop.back_end, drop.answered) == ("policy", "unknown", "nft", False)
    host.run("sh", "-c", drop.command)
    assert host.passes(version)
    assert only(host, bridge).answered
    assert not only(host, bridge, "lan9").answered


def test_a_drop_between_the_ports_of_a_bridge_is_found_and_the_command_helps(host: Host) -> None:
    host.wire("atb0")
    host.run("ip", "link", "set", "port0", "name", "atv0")
    host.run("ip", "link", "set", "wire0", "name", "atv1", "master", "atb0")
    host.run("ip", "-n", "outside", "address", "add", "10.90.1.3/24", "dev", "eth0")
    host.run("nft", "add table bridge l2; add chain bridge l2 way { type filter hook forward priority 0; policy drop; }")
    ping = ["ip", "netns", "exec", "inside", "ping", "-q", "-c", "1", "-W", "1", "10.90.1.3"]
    assert host.runner(ping)[0] != 0
    drop = only(host, "atb0")
    assert (drop.family, drop.answered) == ("bridge", False)
    host.run("sh", "-c", drop.command)
    assert only(host, "atb0").answered
    host.run(*ping[:-1], "-c", "5", "-i", "0.3", ping[-1])


@pytest.mark.parametrize("back_end", ["nft", "legacy"])
@pytest.mark.parametrize(
    "rule",
    ["-P FORWARD DROP", "-A FORWARD -j DROP", "-A FORWARD -m comment --comment last -j REJECT --reject-with icmp-host-prohibited"],
)
def test_iptables_rules_that_drop_the_rest_are_found_and_the_command_helps(host: Host, back_end: str, rule: str) -> None:
    host.wire("atb0")
    program = f"iptables-{back_end}"
    host.run(program, "-A", "FORWARD", "-s", "192.0.2.7", "-j", "DROP")
    odd = ["-m", "comment", "--comment", 'it\'s "odd" -j', "-m", "conntrack", "--ctstate", "INVALID"]
    host.run(program, "-A", "FORWARD", *odd, "-j", "DROP")
    assert drops(host, "atb0") == []
    host.run(program, *rule.split())
    assert not host.passes()

    drop = only(host, "atb0")

    assert (drop.family, drop.table, drop.chain, drop.back_end) == ("ip", "filter", "FORWARD", back_end)
    assert (drop.by, drop.who, drop.answered) == ("policy" if "-P" in rule else "rule", "unknown", False)
    host.run("sh", "-c", drop.command)
    assert host.passes()
    assert only(host, "atb0").answered


def test_an_accept_for_one_direction_or_with_a_condition_is_no_answer(host: Host) -> None:
    host.run("iptables-nft", "-P", "FORWARD", "DROP")
    host.run("iptables-nft", "-A", "FORWARD", "-i", "atb+", "-j", "ACCEPT")
    assert not only(host, "atb0").answered
    host.run("iptables-nft", "-A", "FORWARD", "-o", "atb+", "-p", "tcp", "-j", "ACCEPT")
    assert not only(host, "atb0").answered
    host.run("iptables-nft", "-A", "FORWARD", "!", "-o", "atb+", "-j", "ACCEPT")
    assert not only(host, "atb0").answered
    host.run("iptables-nft", "-A", "FORWARD", "-i", "wire0", "-o", "atb+", "-j", "ACCEPT")
    assert not only(host, "atb0").answered
    host.run("iptables-nft", "-A", "FORWARD", "-o", "at+", "-m", "comment", "--comment", "wide", "-j", "ACCEPT")
    assert only(host, "atb0").answered


@pytest.mark.parametrize("back_end", ["nft", "legacy"])
def test_dockers_drop_is_dockers_and_our_hook_answers_it(host: Host, back_end: str) -> None:
    need("dockerd", "containerd")
    host.start_dockerd(back_end)
    host.wire("atb0")
    drop = only(host, "atb0")
    assert (drop.who, drop.back_end, drop.by, drop.answered) == ("docker", back_end, "policy", False)
    host.run("sh", "-c", drop.command)
    assert host.passes()
    assert only(host, "atb0").answered
    host.run(f"iptables-{back_end}", "-F", "DOCKER-USER")
    host.here(lambda: docker.sync(["atb0"], host.runner))
    assert only(host, "atb0").answered


def test_ufws_drop_is_ufws_and_its_own_command_answers_it(host: Host) -> None:
    need("ufw", "iptables")
    host.run("ufw", "--force", "enable")
    host.wire("atb0")
    # ufw lets echo requests through, so this is asked with TCP: a port that nobody listens on refuses at once when it is reached.
    connect = ["ip", "netns", "exec", "inside", "timeout", "1", "bash", "-c", "echo >/dev/tcp/10.90.2.2/7"]
    assert host.runner(connect)[0] == 124
    found = drops(host, "atb0")
    assert {(drop.who, drop.family, drop.by, drop.answered) for drop in found} == {
        ("ufw", "ip", "policy", False),
        ("ufw", "ip6", "policy", False),
    }
    assert {drop.command for drop in found} == {"ufw route allow in on atb+ && ufw route allow out on atb+"}
    host.run("sh", "-c", found[0].command)
    assert "refused" in host.runner(connect)[2]
    assert all(drop.answered for drop in drops(host, "atb0"))
