"""Docker's hook point: the chain DOCKER-USER, which Docker jumps to first when a packet is forwarded and never changes itself.

dockerd sets the policy of the FORWARD chain to drop, so what Atoll forwards would be dropped there. Our rules in DOCKER-USER
accept the packets of Atoll's bridges; each carries the comment `atoll`, and a rule without it is never touched. The chain is in
the iptables back end that dockerd found when it started (nf_tables or legacy), for IPv4 and perhaps for IPv6; it may be left
over in another. With Docker's nftables back end (since 29) there is no such chain and nothing to do: its chains drop only what
concerns its own bridges.

When `sync` has to run, besides after each change of the set of bridges (a call that finds nothing to do costs 0.1 ms on a host
without Docker, and about 2 ms, a fork, for each chain that there is):

- nf_tables: every start of dockerd that finds rules missing, `iptables -F`, `nft flush ruleset` and a reload of firewalld (after
  which dockerd makes its rules again) is an event of the netlink group NFNLGRP_NFTABLES that speaks of the table `filter`.
  dockerd builds its rules in many transactions, and the last one decides: call when no such event came for 200 ms. Our own
  changes are events, too; the call that they lead to finds nothing to do.
- legacy: the kernel tells nobody. A dockerd that starts makes the socket /run/docker.sock anew (inotify on the folder) and
  builds its rules within seconds after that: call then, after 2 s and after 10 s. For those who flush the rules by hand, call
  every 30 s.
- a restart of dockerd keeps what DOCKER-USER holds, so nothing is lost while none of this has happened yet.
"""

from __future__ import annotations

import errno
import shlex
import struct
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

from atoll.errors import Failed, Invalid
from atoll.kernel import netlink
from atoll.neighbours import interfaces

if TYPE_CHECKING:
    from atoll.neighbours import Runner

CHAIN: Final = "DOCKER-USER"
_COMMENT: Final = "atoll"
_RETURN: Final = ["-j", "RETURN"]
#: linux/netfilter/nf_tables.h: NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN, and the attributes that name a chain.
_GET_CHAIN: Final = 10 << 8 | 4
_CHAIN_TABLE: Final = 1
_CHAIN_NAME: Final = 3
#: iptables' names of the two families, with the numbers that netfilter has for them.
_FAMILIES: Final = {"ip": 2, "ip6": 10}
#: How long iptables waits for another one that holds its lock, in seconds.
_LOCK_WAIT: Final = "5"
#: iptables' exit code when it did not get the lock (RESOURCE_PROBLEM in its xtables.h).
_LOCKED: Final = 4
#: A runner's exit code when there is no such program.
_MISSING: Final = 127


def has_legacy_table(family: str) -> bool:
    """Whether legacy iptables has a table `filter` for `ip` or `ip6` here.

    To be asked before any `iptables-legacy`: that would make an empty table, hooks included, only by listing it.
    """
    try:
        names = Path(f"/proc/thread-self/net/{family}_tables_names").read_text()
    except OSError:
        return False
    return "filter" in names.split()


def programs() -> list[str]:
    """The iptables programs whose back end holds DOCKER-USER (nf_tables) or may hold it (legacy); empty on a host without Docker.

    Forks nothing. The order is fixed: nf_tables before legacy, IPv4 before IPv6.
    """
    with netlink.Socket(netlink.NETLINK_NETFILTER) as sock:
        modern = [f"{family}tables-nft" for family, number in _FAMILIES.items() if _has_chain(sock, number)]
    return modern + [f"{family}tables-legacy" for family in _FAMILIES if has_legacy_table(family)]


def _has_chain(sock: netlink.Socket, family: int) -> bool:
    body = struct.pack("=BBH", family, 0, 0) + netlink.text(_CHAIN_TABLE, "filter") + netlink.text(_CHAIN_NAME, CHAIN)
    try:
        sock.ask(netlink.message(_GET_CHAIN, 0, body))
    except netlink.NetlinkError as error:
        # No such table or chain, or a kernel without nf_tables at all, which does not know the request.
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True


def changes(listing: str, bridges: Collection[str]) -> list[list[str]]:
    """What turns DOCKER-USER as `iptables -S DOCKER-USER` lists it into what it should be: the arguments of each iptables call.

    Our rules come behind all rules of others that can still be reached, so before the first unconditional RETURN. Empty when
    they are there already. Raises `Invalid` for a bridge that iptables can't name.
    """
    # Reading a tool's text is the one exception to the rule of deciding from netlink only: legacy tables have no netlink, and a
    # rule of iptables is a blob of its extensions there. `-S` prints what iptables itself takes, which hasn't changed in its
    # lifetime.
    rules = [words(line)[2:] for line in listing.splitlines() if line.startswith(f"-A {CHAIN} ")]
    wanted = _wanted(bridges)
    end = rules.index(_RETURN) if _RETURN in rules else len(rules)
    last_foreign = max((at for at in range(end) if not _is_ours(rules[at])), default=-1)
    in_place = all(last_foreign < at < end for at, rule in enumerate(rules) if _is_ours(rule))
    # Rules in the wrong place (the admin appended one behind them) are all made anew, which leaves a gap of milliseconds.
    missing = [rule for rule in wanted if rule not in rules or not in_place]
    stale: list[int] = []
    for at, rule in enumerate(rules):
        if _is_ours(rule) and (rule not in wanted or not in_place or rule in rules[:at]):
            stale.append(at)
    calls = [["-D", CHAIN, *rules[at]] for at in stale]
    if end == len(rules):
        return calls + [["-A", CHAIN, *rule] for rule in missing]
    position = end + 1 - sum(at < end for at in stale)
    return calls + [["-I", CHAIN, str(position + offset), *rule] for offset, rule in enumerate(missing)]


def words(line: str) -> list[str]:
    """A line of `iptables -S`. It quotes as a shell does, but for the names of interfaces, which may hold a quote."""
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _wanted(bridges: Collection[str]) -> list[list[str]]:
    for name in bridges:
        if name.endswith("+"):
            raise Invalid(f"iptables can't name the bridge {name!r}: a closing + means any ending", "choose another bridge name")
    return [[flag, name, "-m", "comment", "--comment", _COMMENT, "-j", "ACCEPT"] for name in interfaces(bridges) for flag in ("-i", "-o")]


def _is_ours(rule: list[str]) -> bool:
    return "--comment" in rule and rule[rule.index("--comment") + 1 :][:1] == [_COMMENT]


def sync(bridges: Collection[str], run: Runner) -> list[str]:
    """Make every DOCKER-USER on the host let these bridges through, and nothing of ours remain where there are none.

    Returns the commands that it ran; empty when all was well. Goes on after a command that fails and raises `Failed` at the end,
    with the first one's words.
    """
    done: list[str] = []
    failed: list[Failed] = []
    for program in programs():
        code, listing, stderr = run([program, "-w", _LOCK_WAIT, "-S", CHAIN])
        if code == _MISSING:
            # Some distributions have one back end only and call it plainly by its family, as dockerd does.
            program = program.partition("-")[0]
            code, listing, stderr = run([program, "-w", _LOCK_WAIT, "-S", CHAIN])
        if code in (_LOCKED, _MISSING):
            failed.append(_failure([program, "-w", _LOCK_WAIT, "-S", CHAIN], code, stderr))
        if code != 0:
            continue  # a legacy table without that chain
        for arguments in changes(listing, bridges):
            command = [program, "-w", _LOCK_WAIT, *arguments]
            code, _, stderr = run(command)
            if code == 0:
                done.append(shlex.join(command))
            else:
                failed.append(_failure(command, code, stderr))
    for failure in failed:
        raise failure
    return done


def _failure(command: list[str], code: int, stderr: str) -> Failed:
    reason = "not installed" if code == _MISSING else stderr.strip().replace("\n", " ") or f"exit code {code}"
    hint = f"Docker drops what Atoll forwards until this works: {shlex.join(command)}"
    return Failed(f"{command[0]} on Docker's chain {CHAIN}: {reason}", hint)
