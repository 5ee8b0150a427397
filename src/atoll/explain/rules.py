"""nftables by its own rules: what the chains of a hook do to a packet, from the ruleset as libnftables' JSON. Pure.

A match is true, false, or unknown; a rule with an unknown match casts doubt, and the verdict is `unsure` wherever that rule could have
changed it. Nothing is guessed.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from msgspec import structs

from atoll.explain import xt
from atoll.explain.fields import READERS, Absent, Unknown, Value, bits, constant, unknown
from atoll.explain.legacy import PREFIX
from atoll.explain.packet import CT_STATE, Nat, Packet

if TYPE_CHECKING:
    from atoll.explain.xt import Fib

Kind = Literal["accept", "drop", "unsure"]

#: Statements that neither decide nor change anything that is looked at here.
_HARMLESS: Final = frozenset({"counter", "log", "comment", "quota", "flow", "meter", "ct helper", "ct timeout", "secmark", "last"})
#: Statements that let a packet on to the next one or not: like a match, when they can't be judged.
_GATES: Final = frozenset({"match", "limit", "set", "map", "ct count"})
#: What may be written to a packet without changing what is looked at here.
_UNSEEN: Final = frozenset(
    {("meta", "nftrace"), ("meta", "priority"), ("ct", "event"), ("ct", "label"), ("payload", "dscp"), ("payload", "ecn"),
     ("tcp option", "size")}
)  # fmt: skip


class Rule(NamedTuple):
    family: str
    table: str
    chain: str
    handle: int
    expr: tuple[dict[str, Any], ...]

    @property
    def legacy(self) -> str:
        """Its table in iptables-legacy; empty for a rule of nftables."""
        return _legacy_table(self.table)

    def where(self) -> str:
        return f"{self.family} {self.table} {self.chain} {'number' if self.legacy else 'handle'} {self.handle}"

    def remove(self) -> str:
        """The command that would."""
        if self.legacy:
            return f"{self.family}tables-legacy -t {self.legacy} -D {self.chain} {self.handle}"
        return f"nft delete rule {self.where()}"


class Chain(NamedTuple):
    """A base chain when it has a hook."""

    family: str
    table: str
    name: str
    kind: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    devices: tuple[str, ...] = ()

    @property
    def legacy(self) -> str:
        return _legacy_table(self.table)


class Outcome(NamedTuple):
    """`rule` decided (None: the chain's policy); `chain` is the base chain; `nat` what is rewritten."""

    verdict: Kind
    chain: Chain | None = None
    rule: Rule | None = None
    nat: Nat | None = None


def _legacy_table(table: str) -> str:
    return table.removeprefix(PREFIX) if table.startswith(PREFIX) else ""


def is_extension(statement: dict[str, Any], kind: str) -> bool:
    return (statement.get("xt") or {}).get("type") == kind


def _written(packet: Packet) -> tuple[int, int, bool]:
    return packet.mark, packet.connection_mark, packet.tracked


class _Stop(Exception):
    def __init__(self, verdict: Literal["accept", "drop"], rule: Rule, nat: Nat | None = None) -> None:
        super().__init__(verdict)
        self.verdict, self.rule, self.nat = verdict, rule, nat


class Ruleset:
    """The tables of one namespace."""

    def __init__(self, objects: list[dict[str, Any]], fib: Fib) -> None:
        self._fib = fib
        self.chains: dict[tuple[str, str, str], Chain] = {}
        self.rules: dict[tuple[str, str, str], list[Rule]] = {}
        self._sets: dict[tuple[str, str, str], dict[str, Any]] = {}
        dormant: set[tuple[str, str]] = set()
        for entry in objects:
            for what, body in entry.items():
                if what == "table" and "dormant" in (body.get("flags") or ()):
                    dormant.add((body["family"], body["name"]))
                elif what == "chain":
                    device = body.get("dev", ())
                    self.chains[body["family"], body["table"], body["name"]] = Chain(
                        body["family"], body["table"], body["name"], body.get("type", ""), body.get("hook", ""), int(body.get("prio", 0)),
                        body.get("policy", "accept"), (device,) if isinstance(device, str) else tuple(device),
                    )  # fmt: skip
                elif what == "rule":
                    rule = Rule(body["family"], body["table"], body["chain"], body["handle"], tuple(body["expr"]))
                    self.rules.setdefault(rule[:3], []).append(rule)
                elif what in ("set", "map"):
                    self._sets[body["family"], body["table"], body["name"]] = body
        self._dormant = dormant

    def base(self, hook: str, families: tuple[str, ...]) -> list[Chain]:
        """The base chains of a hook, in the order in which a packet meets them: of those with one priority the newest comes first."""
        found = [
            c
            for c in reversed(self.chains.values())
            if c.hook == hook and c.family in families and (c.family, c.table) not in self._dormant
        ]
        return sorted(found, key=lambda chain: chain.priority)

    def run(self, chain: Chain, packet: Packet) -> Outcome:
        """What one base chain does. Marks that it sets are written to the packet."""
        doubts: list[tuple[Rule, str]] = []
        before = _written(packet)
        try:
            self._walk(chain[:3], packet, doubts, 0)
            result = Outcome("drop" if chain.policy == "drop" else "accept", chain)
        except _Stop as stop:
            result = Outcome(stop.verdict, chain, stop.rule, stop.nat)
        for rule, effect in doubts:
            if effect != result.verdict or result.nat is not None or _written(packet) != before:
                return Outcome("unsure", chain, rule)
        return result

    def _walk(self, key: tuple[str, str, str], packet: Packet, doubts: list[tuple[Rule, str]], depth: int) -> None:
        if depth > 32:  # the kernel allows 16
            raise Unknown("chains call each other too deeply")
        for rule in self.rules.get(key, ()):
            target, goes = self._rule(rule, packet, doubts, depth)
            if target == "return":
                return
            if target:
                self._walk((rule.family, rule.table, target), packet, doubts, depth + 1)
                if goes:
                    return

    def _rule(self, rule: Rule, packet: Packet, doubts: list[tuple[Rule, str]], depth: int) -> tuple[str, bool]:
        """The chain to go to and whether it doesn't come back; raises `_Stop` for a verdict."""
        doubtful = False
        for statement in rule.expr:
            ((what, body),) = statement.items()
            try:
                if what == "match" or is_extension(statement, "match"):
                    if not (self._match(rule, body, packet) if what == "match" else self._extension(rule, body, packet)):
                        return "", False
                    continue
                if what == "vmap":
                    found = self._lookup(rule, body, packet)
                    if found is None:
                        return "", False
                    ((what, body),) = found.items()
                if doubtful:
                    self._suppose(rule, what, body, packet, doubts, depth)
                    continue
                done = self._act(rule, what, body, packet)
                if done is not None:
                    return done
            except Absent:
                return "", False
            except (Unknown, KeyError, TypeError, ValueError):
                # The last three: words of a later nft, which are as unknown as those that are named so.
                doubtful = True
                if what not in _GATES and not is_extension(statement, "match"):
                    doubts.append((rule, "unknown"))
        return "", False

    def _suppose(self, rule: Rule, what: str, body: Any, packet: Packet, doubts: list[tuple[Rule, str]], depth: int) -> None:
        """What a statement would do that may be reached or not: the doubt that it casts."""
        trial = structs.replace(packet)
        try:
            goes_to, for_good = self._act(rule, what, body, trial) or ("", False)
            if goes_to and goes_to != "return" and not for_good:
                self._walk((rule.family, rule.table, goes_to), trial, doubts, depth + 1)
                goes_to = ""
            if goes_to or trial != packet:
                doubts.append((rule, "unknown"))
        except _Stop as stop:
            doubts.append((rule, "unknown" if stop.nat is not None else stop.verdict))

    def _act(self, rule: Rule, what: str, body: Any, packet: Packet) -> tuple[str, bool] | None:
        if what in ("accept", "drop", "reject"):
            raise _Stop("accept" if what == "accept" else "drop", rule)
        if what == "return":
            return "return", False
        if what in ("jump", "goto"):
            return body["target"], what == "goto"
        if what in ("dnat", "snat", "masquerade", "redirect"):
            raise _Stop("accept", rule, self._nat(rule, what, body or {}, packet))
        if what == "notrack":
            packet.tracked, packet.state = False, CT_STATE["untracked"]
        elif what == "mangle":
            key = body["key"]
            ((kind, field),) = key.items()
            if key == {"meta": {"key": "mark"}}:
                packet.mark = int(self._value(rule, body["value"], packet).value)
            elif key == {"ct": {"key": "mark"}}:
                packet.connection_mark = int(self._value(rule, body["value"], packet).value) if packet.is_known else 0
            elif (kind, field.get("key") or field.get("field")) not in _UNSEEN:
                raise Unknown(what)
        elif what == "xt":
            self._target(rule, body or {}, packet)
        elif what == "limit":
            # It lets through what comes now and then, which is what one packet is.
            if isinstance(body, dict) and body.get("inv"):
                raise Unknown(what)
        elif what not in _HARMLESS and what != "continue":
            raise Unknown(what)
        return None

    @staticmethod
    def _target(rule: Rule, body: dict[str, Any], packet: Packet) -> None:
        if body.get("type") != "target" or rule.family not in ("ip", "ip6"):
            raise Unknown("xt")
        done = xt.act(body, packet)
        if done is not None:
            raise _Stop("drop", rule) if done == "drop" else _Stop("accept", rule, done)

    def _extension(self, rule: Rule, body: dict[str, Any], packet: Packet) -> bool:
        """Those of ebtables and arptables have names of their own, and the same ones for other structs."""
        if body["name"] == "comment":
            return True
        if rule.family not in ("ip", "ip6"):
            raise Unknown("xt")
        return xt.matches(body, packet, self._fib)

    def _nat(self, rule: Rule, what: str, body: dict[str, Any], packet: Packet) -> Nat:
        kind: Literal["dnat", "snat"] = "dnat" if what in ("dnat", "redirect") else "snat"
        family = body.get("family", rule.family)
        if (family == "ip" and packet.version != 4) or (family == "ip6" and packet.version != 6):
            raise Absent
        port = self._constant_port(rule, body.get("port"), packet)
        if what in ("masquerade", "redirect") or "addr" not in body:
            return Nat(kind, None, port)
        target = body["addr"]
        if isinstance(target, dict) and "map" in target:
            target = self._lookup(rule, target["map"], packet)
            if target is None:
                raise Absent
        parts = target["concat"] if isinstance(target, dict) and "concat" in target else [target]
        try:
            chosen = ipaddress.ip_address(parts[0])
        except ValueError:
            raise Unknown(what) from None
        return Nat(kind, chosen, int(parts[1]) if len(parts) > 1 else port)

    def _constant_port(self, rule: Rule, port: Any, packet: Packet) -> int:
        if isinstance(port, dict) and "map" in port:
            found = self._lookup(rule, port["map"], packet)
            if found is None:
                raise Absent
            port = found
        if isinstance(port, dict):
            raise Unknown("port")
        return int(port or 0)

    # --- matches ---

    def _match(self, rule: Rule, body: dict[str, Any], packet: Packet) -> bool:
        left = self._value(rule, body["left"], packet)
        right, operator = body["right"], body["op"]
        if operator in ("<", ">", "<=", ">="):
            limit = constant(left.kind, right)
            return bool({"<": left.value < limit, ">": left.value > limit, "<=": left.value <= limit, ">=": left.value >= limit}[operator])
        if operator == "in" and not (isinstance(right, str) and right.startswith("@")) and not (isinstance(right, dict) and "set" in right):
            return bool(left.value & bits(left.kind, right))
        found = self._among(rule, left, right)
        return found if operator in ("==", "in") else not found

    def _lookup(self, rule: Rule, body: dict[str, Any], packet: Packet) -> Any:
        """What a map says of a key; None when it says nothing."""
        key = self._value(rule, body["key"], packet)
        for candidate, result in self._elements(rule, body["data"]):
            if self._among(rule, key, candidate):
                return result
        return None

    def _elements(self, rule: Rule, data: Any) -> list[Any]:
        if isinstance(data, str):
            return list(self._sets[rule.family, rule.table, data[1:]].get("elem", ()))
        return list(data["set"])

    def _among(self, rule: Rule, left: Value, right: Any) -> bool:
        if isinstance(right, str) and right.startswith("@"):
            return any(self._among(rule, left, element) for element in self._elements(rule, right))
        if isinstance(right, dict):
            if "set" in right:
                return any(self._among(rule, left, element) for element in right["set"])
            if "elem" in right:
                return self._among(rule, left, right["elem"]["val"])
            if "concat" in right:
                return all(self._among(rule, part, wanted) for part, wanted in zip(left.value, right["concat"], strict=True))
            if "range" in right:
                low, high = (constant(left.kind, end) for end in right["range"])
                return bool(type(low) is type(left.value) and low <= left.value <= high)
            if "prefix" in right:
                network = ipaddress.ip_network((right["prefix"]["addr"], right["prefix"]["len"]), strict=False)
                return left.value in network
            if "|" in right:
                return bool(left.value == bits(left.kind, right))
            raise Unknown("constant")
        if isinstance(right, bool):
            return bool(left.value) == right
        if isinstance(right, list):
            return bool(left.value == bits(left.kind, right))
        if left.kind == "ifname" and isinstance(right, str) and right.endswith("*"):
            return str(left.value).startswith(right[:-1])
        return bool(left.value == constant(left.kind, right))

    def _value(self, rule: Rule, expression: Any, packet: Packet) -> Value:
        if isinstance(expression, int):
            return Value("number", expression)
        if not isinstance(expression, dict):
            raise Unknown(str(expression))
        ((what, body),) = expression.items()
        if what == "concat":
            return Value("concat", [self._value(rule, part, packet) for part in body])
        if what in ("&", "|", "^"):
            left = self._value(rule, body[0], packet)
            mask = bits(left.kind, body[1])
            return Value(left.kind, {"&": left.value & mask, "|": left.value | mask, "^": left.value ^ mask}[what])
        if what == "map":
            found = self._lookup(rule, body, packet)
            if found is None:
                raise Absent
            return self._value(rule, found, packet)
        if what == "fib":
            flags = body["flags"] if isinstance(body["flags"], list) else [body["flags"]]
            if packet.ether == "arp":
                raise Absent
            return Value(
                {"type": "fib", "oifname": "ifname", "oif": "ifname"}[body["result"]], self._fib(body["result"], tuple(flags), packet)
            )
        return READERS.get(what, unknown)(body, packet)
