"""`explain`: what happens to a packet and why, reasoned from the kernel's state; the model only supplies names.

`question` takes apart what was asked, `snapshot` reads stacks, `rules` evaluates nftables, `walk` leads the packet and its answer
through all of it, `advice` has the words. What can't be judged makes the verdict `unsure`, never a guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct, structs

from atoll.errors import Invalid
from atoll.explain.names import Names
from atoll.explain.packet import ECHO, Hop, Packet, ends
from atoll.explain.places import Place, source_of, target_of
from atoll.explain.probe import Journey, Probe, probe
from atoll.explain.question import PROTOCOLS, Question, parse
from atoll.explain.walk import Arrived, Stopped, Walk
from atoll.model import address

if TYPE_CHECKING:
    from atoll.engine import Engine

__all__ = ["Explanation", "Question", "explain", "parse"]

#: A client's port, as the kernel would choose one.
_CLIENT: int = 40000
Verdict = Literal["yes", "no", "unsure"]


class Explanation(Struct, frozen=True):
    """`address` is where the question led; `why` and `fix` are empty for a yes; `notes` what else should be known."""

    verdict: Verdict
    source: str
    target: str
    address: str
    hops: tuple[Hop, ...]
    why: str = ""
    fix: str = ""
    notes: tuple[str, ...] = ()
    arrived: str = ""
    probe: Probe | None = None


def explain(engine: Engine, question: Question, *, send: bool = False) -> Explanation:
    """Raises `NotFound` or `Invalid` where the question speaks of what isn't there. `send`: also send such a packet (see `probe`)."""
    if send:
        _check_can_be_sent(question)
    names = Names(engine)
    try:
        source = source_of(engine, names, question.source)
        target = target_of(engine, names, question, source)
        asked = _Asked(names, question, source, target)
        found = asked.answer()
        return structs.replace(found, probe=probe(names, asked.journey(), found.verdict)) if send else found
    finally:
        names.close()


def _check_can_be_sent(question: Question) -> None:
    if question.source == "outside" or question.source.startswith(("outside:", "outside@")):
        raise Invalid("nothing can be sent from outside of this host", "leave --probe away, or send it from a machine there")
    if question.protocol == "sctp":
        raise Invalid("a probe can't be sctp", "expected tcp, udp or a ping")


class _Asked:
    def __init__(self, names: Names, question: Question, source: Place, target: Place) -> None:
        self.walk = Walk(names)
        self.names, self.question, self.source, self.target = names, question, source, target
        runners = {place.namespace: names.run_by(place.namespace) for place in (source, target)}
        self.notes = [f"{name} is a container of {runner}" for name, runner in runners.items() if runner]
        self.arrived = ""
        self.landed: Arrived | None = None

    def answer(self) -> Explanation:
        why = fix = ""
        verdict: Verdict = "yes"
        try:
            self._there_and_back()
        except Stopped as stopped:
            verdict = "no" if stopped.sure else "unsure"
            why, fix = stopped.why, self._command(stopped.fix)
            self.walk.hops.append(Hop(stopped.where, why, verdict, self.walk.reply))
        for stack in self.names.at([hop.where for hop in self.walk.hops]):
            if stack.unread:
                verdict, why, fix = "unsure", f"a table of iptables-legacy in {stack.title} can't be read: {stack.unread}", ""
        return Explanation(
            verdict,
            self.source.name,
            self.target.name,
            self.target.address,
            tuple(self.walk.hops),
            why,
            fix,
            tuple(self.notes),
            self.arrived,
        )

    def _there_and_back(self) -> None:
        arrived = self.landed = self._there()
        self.arrived = self._check(arrived)
        self._listening(arrived)
        self.walk.reply = True
        back = self._back(arrived)
        asked = (arrived_at_home := back.packet).dst, arrived_at_home.src
        if not self._is(self.source, back) or asked != (self.first.src, self.first.dst):
            raise Stopped(back.stack.title, f"the answer comes as {back.packet.words()}, which nobody waits for")

    def _there(self) -> Arrived:
        wanted = address(self.target.address)
        protocol = 58 if self.question.protocol == "icmp" and wanted.version == 6 else PROTOCOLS[self.question.protocol]
        packet = Packet(
            wanted.version, wanted, wanted, protocol, _CLIENT if self.question.port else 0, self.question.port,
            ECHO[wanted.version][0] if self.question.protocol == "icmp" else 0, "ip6" if wanted.version == 6 else "ip",
        )  # fmt: skip
        self.packet = self.first = packet
        if self.source.interface:
            packet.src = address(self.source.address_for(self.names.host, wanted))
            self.first = structs.replace(packet)
            return self.walk.receive(self.source.stack, packet, self.source.interface)
        route = self.source.stack.route(wanted, flow=(protocol, packet.sport, packet.dport))
        packet.src = route.source or wanted
        self.first = structs.replace(packet)
        return self.walk.send(self.source.stack, packet)

    def _back(self, arrived: Arrived) -> Arrived:
        came = arrived.packet
        answer = Packet(
            came.version, came.dst, came.src, came.protocol, came.dport, came.sport,
            ECHO[came.version][1] if came.icmp else 0, came.ether, mark=0, reply=True,
        )  # fmt: skip
        if arrived.interface:
            return self.walk.receive(arrived.stack, answer, arrived.interface)
        return self.walk.send(arrived.stack, answer)

    def journey(self) -> Journey:
        """What a probe sends, and where it should end; of a packet that was stopped, by the address that it had then."""
        final, stack = self.packet, self.source.stack
        if self.landed is not None:
            end, way_out = (None if self.landed.interface else self.landed.stack), self.landed.interface
        else:
            end = stack if stack.owns(final.dst) else self.names.owner(final.dst)
            way_out = self.names.host.route(final.dst).oif if end is None else ""
        stacks = dict.fromkeys([stack, self.names.host, *([end] if end else []), *self.names.at([hop.where for hop in self.walk.hops])])
        gateways = [stack.route(self.first.dst).gateway, end.route(self.first.src).gateway if end else None]
        asked = [self.first.src, self.first.dst, final.dst, *(gateway for gateway in gateways if gateway is not None)]
        question = self.question
        last = final.dst, final.dport
        return Journey(stack, self.first.dst, question.port, question.protocol, end, way_out, last, tuple(stacks), tuple(asked))

    def _is(self, place: Place, arrived: Arrived) -> bool:
        return place.stack.name == arrived.stack.name and bool(place.interface) == bool(arrived.interface)

    def _check(self, arrived: Arrived) -> str:
        where = "outside" if arrived.interface else arrived.stack.title
        if self.target.certain and not self._is(self.target, arrived):
            raise Stopped(arrived.stack.title, f"it comes to {where}, not to {self.target.name}")
        return where

    def _listening(self, arrived: Arrived) -> None:
        packet = arrived.packet
        if not arrived.interface and arrived.stack.listens(self.question.protocol, packet.dport, packet.dst) is False:
            self.notes.append(f"nobody listens on {self.question.protocol} {packet.dport} in {arrived.stack.title}")

    def _command(self, fix: str) -> str:
        """`connect` and `publish` with the names that the question has."""
        target, source = self.target, self.source
        publish = f"atoll publish {target.namespace} {self.question.port}:{self.question.port}/{self.question.protocol}"
        program = "docker network" if self.names.is_external(source.namespace) else "atoll"
        connect = f"{program} connect {target.network or 'NETWORK'} {source.namespace}"
        can_connect = bool(source.namespace and target.network not in source.networks)
        can_publish = bool(target.namespace and self.question.port and self.question.protocol != "icmp")
        if fix == "connect":
            return connect if can_connect else ""
        if fix == "publish":
            return publish if can_publish else connect if can_connect else ""
        return fix


def describe(explanation: Explanation, question: Question) -> str:
    """The verdict in one line."""
    where = ends(address(explanation.address), question.port)
    what = "ping" if question.protocol == "icmp" else question.protocol
    tried = f"{explanation.source} to {explanation.target}" + (f" ({where})" if explanation.target not in where else "")
    return f"{explanation.verdict}: {what} {tried}" + (f": {explanation.why}" if explanation.why else "")


def checked(source: str, target: str, *, ipv6: bool = False) -> Question:
    """A question from a request's words; an empty one is refused."""
    if not target:
        raise Invalid("the target is not named", "expected NAMESPACE, host, outside or an address, with :PORT or :PORT/PROTO")
    return parse(source, target, ipv6=ipv6)
