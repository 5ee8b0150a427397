"""Who else on the host drops forwarded packets, and the command that helps.

A base chain at the forward hook drops what Atoll allows when its policy is drop, or when its last rule drops or rejects whatever
comes that far; RHEL's and some clouds' default rules are of the second kind. nf_tables is read by netlink in one dump of all
chains and one of the rules of each table concerned; legacy iptables, which has no netlink, through `iptables-legacy -S`, and
only where it has a table at all.

A chain is `answered` when its table has an accept for each of the bridges, as incoming and as outgoing interface, in whatever
chain: that is what our own hooks, `ufw route allow` and the commands given here all leave behind. It is a sign, not a proof: a
rule of the admin's may drop before.
"""

from __future__ import annotations

import errno
import shlex
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from atoll.kernel import netlink
from atoll.kernel.netlink import attribute_list, attributes, string
from atoll.model import BRIDGE_PREFIX, TRUNK_PREFIX, VETH_PREFIX
from atoll.neighbours import docker, interfaces

if TYPE_CHECKING:
    from atoll.neighbours import Runner

Family = Literal["ip", "ip6", "inet", "bridge"]
Who = Literal["docker", "ufw", "firewalld", "unknown"]

_FAMILIES: Final[dict[int, Family]] = {1: "inet", 2: "ip", 7: "bridge", 10: "ip6"}
_OURS: Final = "atoll"
#: linux/netfilter/nf_tables.h
_GET_CHAIN: Final = 10 << 8 | 4
_GET_RULE: Final = 10 << 8 | 7
_HOOK_FORWARD: Final = 2
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_VERDICT_DROP, _VERDICT_ACCEPT, _VERDICT_JUMP, _VERDICT_GOTO = 0, 1, -3, -4
#: Keys of the expression `meta`: iifname, oifname.
_INTERFACE_KEYS: Final[dict[int, Literal["in", "out"]]] = {6: "in", 7: "out"}
#: In the bridge family a packet goes from port to port, so these are the interfaces there, and the incoming one is enough.
_PORTS: Final = [f"{VETH_PREFIX}+", f"{TRUNK_PREFIX}+"]


@dataclass(frozen=True)
class Drop:
    """A chain of someone else's that drops forwarded packets which nobody accepted before."""

    family: Family
    table: str
    chain: str
    #: Legacy iptables or nf_tables (iptables-nft included).
    back_end: Literal["nft", "legacy"]
    #: By its policy or by its last rule.
    by: Literal["policy", "rule"]
    who: Who
    #: The chain's table has accepts for the bridges.
    answered: bool
    #: The shell command that lets the bridges' packets through.
    command: str
    hook: Literal["forward"] = "forward"


class _Rule(NamedTuple):
    """As much of a rule as matters here: what it does with a packet of which interface.

    `interface` is as iptables writes it, with a closing + for any ending; empty when the rule asks for something else. `always`
    when it asks for nothing.
    """

    chain: str
    verdict: Literal["accept", "drop", "other"]
    direction: Literal["in", "out", ""] = ""
    interface: str = ""
    always: bool = False


@dataclass
class _Table:
    back_end: Literal["nft", "legacy"]
    family: Family
    name: str
    chains: set[str] = field(default_factory=set)
    #: The base chains at the forward hook: whether the policy is drop.
    forward: dict[str, bool] = field(default_factory=dict)
    rules: list[_Rule] = field(default_factory=list)


def foreign_drops(bridges: Collection[str], run: Runner) -> list[Drop]:
    """Every chain at the forward hook, outside Atoll's own tables, that drops by policy or by its last rule.

    `bridges` are those that `answered` and `command` speak of; without any, those that Atoll would make. Raises `NetlinkError`
    when nf_tables can't be read (EPERM without CAP_NET_ADMIN).
    """
    wanted = interfaces(bridges) or [f"{BRIDGE_PREFIX}+"]
    return [drop for table in [*_modern_tables(), *_legacy_tables(run)] for drop in _judge(table, wanted)]


def _judge(table: _Table, bridges: list[str]) -> Iterator[Drop]:
    who = _who(table)
    wanted = _PORTS if table.family == "bridge" else bridges
    directions = _directions(table)
    answered = all(_accepts(table, direction, name) for name in wanted for direction in directions)
    for chain, drops_by_policy in table.forward.items():
        rules = [rule for rule in table.rules if rule.chain == chain]
        drops_by_rule = bool(rules) and rules[-1].always and rules[-1].verdict == "drop"
        if drops_by_policy or drops_by_rule:
            by: Literal["policy", "rule"] = "policy" if drops_by_policy else "rule"
            command = _command(table, chain, who, wanted)
            yield Drop(table.family, table.name, chain, table.back_end, by, who, answered, command)


def _who(table: _Table) -> Who:
    # Docker before ufw: where both use one FORWARD chain, DOCKER-USER is asked first, and that is where our own hook is.
    if docker.CHAIN in table.chains or table.name.startswith("docker-"):
        return "docker"
    if any(chain.startswith(("ufw-", "ufw6-")) for chain in table.chains):
        return "ufw"
    if table.name.startswith("firewalld") or "FORWARD_direct" in table.chains:
        return "firewalld"
    return "unknown"


def _directions(table: _Table) -> tuple[Literal["in", "out"], ...]:
    return ("in",) if table.family == "bridge" else ("in", "out")


def _accepts(table: _Table, direction: Literal["in", "out"], wanted: str) -> bool:
    return any(
        rule.verdict == "accept"
        and rule.direction == direction
        and (wanted.startswith(rule.interface[:-1]) if rule.interface.endswith("+") else wanted == rule.interface)
        for rule in table.rules
    )


def _command(table: _Table, chain: str, who: Who, wanted: list[str]) -> str:
    if who == "ufw":
        return _each(wanted, "ufw route allow in on {}", "ufw route allow out on {}")
    if who == "firewalld":
        zone = _OURS if any(_OURS in name for name in table.chains) else "trusted"
        return _each(wanted, f"firewall-cmd --zone={zone} --add-interface={{}}")
    if table.back_end == "legacy" or (table.family in ("ip", "ip6") and (table.name, chain) == ("filter", "FORWARD")):
        program = f"{table.family}tables-{table.back_end}"
        target = docker.CHAIN if who == "docker" else chain
        return _each(wanted, f"{program} -I {target} -i {{}} -j ACCEPT", f"{program} -I {target} -o {{}} -j ACCEPT")
    return "nft " + shlex.quote(
        "; ".join(
            f'insert rule {table.family} {table.name} {chain} {direction[0]}ifname "{name.replace("+", "*")}" accept'
            for name in wanted
            for direction in _directions(table)
        )
    )


def _each(wanted: list[str], *templates: str) -> str:
    return " && ".join(template.format(shlex.quote(name)) for name in wanted for template in templates)


# --- nf_tables
# -----------------------------------------------------------------------------------------------------------------------


def _modern_tables() -> list[_Table]:
    """The tables of others that have a base chain at the forward hook, with their rules."""
    with netlink.Socket(netlink.NETLINK_NETFILTER) as sock:
        try:
            chains = sock.dump(netlink.message(_GET_CHAIN, 0, bytes(4)))
        except netlink.NetlinkError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return []  # a kernel without nf_tables
            raise
        tables: dict[tuple[int, str], _Table] = {}
        for answer in chains:
            number, found = answer.body[0], attributes(answer.body, 4)
            name = string(found[_CHAIN_TABLE])
            if number not in _FAMILIES or name == _OURS:
                continue
            table = tables.setdefault((number, name), _Table("nft", _FAMILIES[number], name))
            chain = string(found[_CHAIN_NAME])
            table.chains.add(chain)
            if _CHAIN_HOOK in found and _big(attributes(found[_CHAIN_HOOK])[1]) == _HOOK_FORWARD:
                table.forward[chain] = _CHAIN_POLICY in found and _big(found[_CHAIN_POLICY]) == _VERDICT_DROP
        concerned = {key: table for key, table in tables.items() if table.forward}
        for (number, name), table in concerned.items():
            body = struct.pack("=BBH", number, 0, 0) + netlink.text(_RULE_TABLE, name)
            table.rules = [_decode(answer.body) for answer in sock.dump(netlink.message(_GET_RULE, 0, body))]
    return list(concerned.values())


def _decode(body: bytes) -> _Rule:
    found = attributes(body, 4)
    verdict: Literal["accept", "drop", "other"] = "other"
    direction: Literal["in", "out", ""] = ""
    interface, conditions = "", 0
    for _, element in attribute_list(found.get(_RULE_EXPRESSIONS, b"")):
        parts = attributes(element)
        kind, data = string(parts[1]), attributes(parts.get(2, b""))
        if kind == "immediate":
            verdict = _verdict(data)
        elif kind == "reject" or (kind == "target" and string(data[1]) in ("DROP", "REJECT")):
            verdict = "drop"
        elif kind == "meta" and 1 in data and _big(data[2]) in _INTERFACE_KEYS:
            direction = _INTERFACE_KEYS[_big(data[2])]
        elif kind == "cmp" and direction and not interface and _big(data[2]) == 0:
            interface = _interface(attributes(data[3])[1])
        elif kind not in ("counter", "log") and not (kind == "match" and string(data[1]) == "comment"):
            conditions += 1
    if conditions or (direction and not interface):
        return _Rule(string(found[_RULE_CHAIN]), verdict)
    return _Rule(string(found[_RULE_CHAIN]), verdict, direction, interface, always=not direction)


def _verdict(immediate: dict[int, bytes]) -> Literal["accept", "drop", "other"]:
    verdict = attributes(attributes(immediate[2]).get(2, b""))
    if 1 not in verdict:
        return "other"  # a value for a register
    code = _big(verdict[1])
    if code in (_VERDICT_JUMP, _VERDICT_GOTO):
        # firewalld sends the packets of a zone's interfaces into that zone's chain; that of ours accepts.
        return "accept" if _OURS in string(verdict[2]) else "other"
    return {_VERDICT_ACCEPT: "accept", _VERDICT_DROP: "drop"}.get(code, "other")  # type: ignore[return-value]


def _interface(value: bytes) -> str:
    """A compared name: with its NUL it is a whole name, without it any name that begins so."""
    return string(value) + ("" if b"\0" in value else "+")


def _big(payload: bytes) -> int:
    return int.from_bytes(payload, "big", signed=True)


# --- legacy iptables
# -----------------------------------------------------------------------------------------------------------------


def _legacy_tables(run: Runner) -> Iterator[_Table]:
    families: tuple[Family, ...] = ("ip", "ip6")
    for family in families:
        if not docker.has_legacy_table(family):
            continue
        code, listing, _ = run([f"{family}tables-legacy", "-w", "5", "-S"])
        if code == 0:
            yield _parse(family, listing)


def _parse(family: Family, listing: str) -> _Table:
    """`iptables-legacy -S`: there is no other way to read these tables short of their binary form (see docker.py)."""
    table = _Table("legacy", family, "filter")
    for line in listing.splitlines():
        words = docker.words(line)
        table.chains.add(words[1])
        if words[0] == "-P" and words[1] == "FORWARD":
            table.forward["FORWARD"] = words[2] == "DROP"
        elif words[0] == "-A":
            table.rules.append(_parse_rule(words[1], words[2:]))
    return table


def _parse_rule(chain: str, words: list[str]) -> _Rule:
    if "--comment" in words:
        comment = words.index("--comment")
        words = words[: comment - 2] + words[comment + 2 :]
    at = next((index for index, word in enumerate(words) if word in ("-j", "-g")), len(words))
    target = words[at + 1] if at < len(words) else ""
    verdict: Literal["accept", "drop", "other"] = "other"
    if target == "ACCEPT" or _OURS in target:
        verdict = "accept"
    elif target in ("DROP", "REJECT"):
        verdict = "drop"
    conditions = words[:at]
    if len(conditions) == 2 and conditions[0] in ("-i", "-o"):
        return _Rule(chain, verdict, "in" if conditions[0] == "-i" else "out", conditions[1])
    return _Rule(chain, verdict, always=not conditions)
