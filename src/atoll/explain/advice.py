"""Words for what stops a packet, and the command that would change it. Pure, but for a rule's text which is handed in."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from atoll.explain.snapshot import LOCAL
from atoll.firewall.skeleton import TABLE

if TYPE_CHECKING:
    from atoll.explain.names import Names
    from atoll.explain.packet import Packet
    from atoll.explain.rules import Outcome, Rule
    from atoll.explain.snapshot import Stack


def up(stack: Stack, link: str) -> str:
    return f"ip {f'-n {stack.name} ' if stack.name else ''}link set {link} up"


def sysctl(stack: Stack, setting: str) -> str:
    return f"{_inside(stack)}sysctl -w {setting}"


def _inside(stack: Stack) -> str:
    return f"atoll ns exec {stack.name} -- " if stack.name else ""


def refused_out(stack: Stack, packet: Packet, error: int, names: Names) -> tuple[str, str]:
    """No route for what a stack itself sends."""
    what = f"{stack.title} has no route to {packet.dst}"
    if stack.name and not names.leads_out(stack.name, packet.version):
        return f"{what}: none of its networks leads out by IPv{packet.version}", "connect"
    if error == errno.EINVAL:
        what = f"{stack.title} can't send from {packet.src} to {packet.dst}"
    elif error == errno.EACCES:
        what = f"a route of {stack.title} prohibits {packet.dst}"
    return what, "atoll doctor --fix" if stack.name else ""


def refused_in(stack: Stack, packet: Packet, error: int) -> tuple[str, str]:
    """The kernel doesn't route what came in."""
    back = stack.route(packet.src)
    if back.kind == LOCAL:
        return f"{stack.title} takes no packet from {packet.src}, its own address, on {packet.iif}", ""
    forwarding = f"net/ipv4/conf/{packet.iif}/forwarding"
    if packet.version == 4 and error == errno.EHOSTUNREACH and stack.setting(forwarding) == "0":
        if stack.setting("net/ipv4/ip_forward") == "0":
            return f"{stack.title} forwards no IPv4 packets", sysctl(stack, "net.ipv4.ip_forward=1")
        return f"{stack.title} forwards no IPv4 packets from {packet.iif}", sysctl(stack, f"net.ipv4.conf.{packet.iif}.forwarding=1")
    checks = {name: stack.setting(f"net/ipv4/conf/{name}/rp_filter") for name in ("all", packet.iif)} if packet.version == 4 else {}
    strictest = max(checks, key=lambda name: checks[name], default="")
    # The kernel says the same of a source that it checked and of one that can't be (EINVAL), so its check is made again.
    by_another = back.error or back.oif != packet.iif
    if checks and ((checks[strictest] == "1" and by_another) or (checks[strictest] == "2" and back.error)):
        words = f"rp_filter of {packet.iif} drops it: the way back to {packet.src} is not by {packet.iif}"
        return words, sysctl(stack, f"net.ipv4.conf.{strictest}.rp_filter={'0' if back.error else '2'}")
    if error == errno.EINVAL:
        return f"{stack.title} takes nothing from {packet.src} on {packet.iif} (a martian source or target)", ""
    return f"{stack.title} has no route to {packet.dst}", ""


def isolated(names: Names, bridge: str) -> tuple[str, str]:
    return f"network {names.network_of(bridge)} keeps its endpoints apart (--no-icc)", "publish"


def name_of(rule: Rule) -> str:
    """What a rule that rewrites is called: ours by what it means, others by where it is."""
    if rule.table == TABLE and rule.family == "inet":
        return {"published": "published port", "postrouting": "source address rewritten"}.get(rule.chain, rule.where())
    return f"rule {rule.where()}"


def ruled_out(stack: Stack, packet: Packet, outcome: Outcome, text: str, names: Names) -> tuple[str, str]:
    """Why a rule drops, and how to change that. `publish`, `connect` stand for commands whose names the caller fills in."""
    rule, chain = outcome.rule, outcome.chain
    if not stack.name and rule is not None and rule.table == TABLE and rule.family in ("inet", "bridge"):
        return _ours(packet, rule, text, names)
    if rule is None:
        assert chain is not None  # noqa: S101
        where = f"{chain.family} {chain.table} {chain.name}"
        command = (
            f"{chain.family}tables-legacy -t {chain.legacy} -P {chain.name} ACCEPT"
            if chain.legacy
            else f"nft 'chain {where} {{ policy accept; }}'"
        )
        return f"the policy of chain {where} is drop", f"{_inside(stack)}{command}"
    return f"{rule.where()} drops it: {text}" if outcome.verdict == "drop" else f"{rule.where()} ({text})", (
        f"{_inside(stack)}{rule.remove()}"
    )


def _ours(packet: Packet, rule: Rule, text: str, names: Names) -> tuple[str, str]:
    """A rule of the skeleton, in the model's words."""
    came, goes = names.network_of(packet.iif), names.network_of(packet.oif)
    if rule.family == "bridge":
        who = names.namespace_of(packet.iif)
        if rule.chain == "guard":
            return f"the guard: {who or packet.iif} may not send as {packet.src} with {packet.mac}", "atoll doctor --fix"
        return f"the guard: no endpoint may send this ({text})", ""
    if "@internals" in text or rule.chain == "inside":
        inner = came if names.is_internal(packet.iif) else goes
        return f"network {inner} is internal: nothing passes in or out", "connect"
    if "@isolated" in text:
        return f"network {came} keeps its endpoints apart (--no-icc)", "publish"
    if "@fenced" in text:
        return f"this host did not forward between {packet.iif} and {packet.oif} before Atoll did, and doesn't now", ""
    if rule.chain == "early":
        if packet.iif.startswith(("atv", "att")):
            return f"{names.link(packet.iif)} is not in its bridge any more", "atoll doctor --fix"
        return f"from {packet.iif} nobody may send {packet.src} to {packet.dst}", ""
    if rule.chain == "passing" and "@ours" in text and "atb" not in text:
        return f"networks {came} and {goes} are apart", "connect"
    if rule.chain == "passing" and text == "drop":
        return f"network {goes} is reached from outside by published ports only", "publish"
    if "atb" in text:
        return f"no element of the firewall speaks of {packet.iif} and {packet.oif}", "atoll doctor --fix"
    return f"the firewall drops it: {rule.where()} ({text})", "atoll doctor --fix"
