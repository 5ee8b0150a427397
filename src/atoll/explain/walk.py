"""A packet's way through the stacks of this machine, hop by hop, and its answer's way back.

Each stack is asked for itself: where the kernel would send the packet (`Stack.route`) and what its rules say (`Ruleset`). What was seen
of a connection on the way there is remembered a stack, as connection tracking does, and applied to the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import structs

from atoll.explain import advice
from atoll.explain.packet import ADVERTISE, CT_STATE, CT_STATUS, SOLICIT, Hop, Packet, answers, ends, question
from atoll.explain.rules import Chain, Outcome, Ruleset
from atoll.explain.snapshot import BROADCAST, LOCAL, MULTICAST, Route, Stack

if TYPE_CHECKING:
    from atoll.explain.names import Names
    from atoll.model import Address

#: A packet that met this many stacks goes round in circles.
_MOST: Final = 24
_CONNTRACK: Final = -200
#: br_netfilter's settings by version.
_CALLS: Final = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}


class Stopped(Exception):
    """The packet's end: why, what would help, and whether that is sure."""

    def __init__(self, where: str, why: str, fix: str = "", *, sure: bool = True) -> None:
        super().__init__(why)
        self.where, self.why, self.fix, self.sure = where, why, fix, sure


class Arrived(NamedTuple):
    """Where a packet ended: a stack, or the world outside behind `interface` of one."""

    stack: Stack
    packet: Packet
    interface: str = ""


class _Connection(NamedTuple):
    """What a stack's connection tracking knows: the first packet as it came and as it went."""

    came: Packet
    went: Packet


class Walk:
    def __init__(self, names: Names) -> None:
        self.names = names
        self.hops: list[Hop] = []
        self.reply = False
        self._connections: dict[str, _Connection] = {}
        self._rulesets: dict[str, Ruleset] = {}
        self._met = 0

    def say(self, stack: Stack, what: str) -> None:
        self.hops.append(Hop(stack.title, what, reply=self.reply))

    # --- a stack's own packets, and those that come in ---

    def send(self, stack: Stack, packet: Packet) -> Arrived:
        """A packet that a process in the stack sends."""
        route = self._out_route(stack, packet)
        packet.iif, packet.oif = "", route.oif
        before = structs.replace(packet)
        self._begin(stack, packet)
        before_dst = packet.dst
        if self._hook(stack, packet, "output") or packet.dst != before_dst:
            route = self._out_route(stack, packet)
            packet.oif = route.oif
        self._hook(stack, packet, "postrouting")
        self._remember(stack, before, packet)
        if route.kind == LOCAL or packet.oif == "lo":
            self.say(stack, f"{packet.words()}: an address of {stack.title} itself")
            packet.iif, packet.oif = "lo", ""
            return self._deliver(stack, packet, loop=True)
        return self._transmit(stack, packet, route.gateway or packet.dst)

    def receive(self, stack: Stack, packet: Packet, iif: str) -> Arrived:
        """A packet that comes in by an interface."""
        self._met += 1
        if self._met > _MOST:
            raise Stopped(stack.title, "the packet goes round in circles")
        packet.iif, packet.oif = iif, ""
        if stack.links[iif].kind != "bridge":
            packet.port = ""
        before = structs.replace(packet)
        self._begin(stack, packet)
        self._hook(stack, packet, "prerouting")
        route = stack.route(packet.dst, src=packet.src, iif=iif, mark=packet.mark, flow=(packet.protocol, packet.sport, packet.dport))
        if route.error:
            raise Stopped(stack.title, *advice.refused_in(stack, packet, route.error))
        if route.kind == LOCAL:
            arrived = self._deliver(stack, packet)
            self._remember(stack, before, packet)
            return arrived
        if route.kind in (BROADCAST, MULTICAST):
            raise Stopped(stack.title, f"{packet.dst} is no single host's address")
        family = "ipv4" if packet.version == 4 else "ipv6"
        if packet.version == 6 and stack.setting("net/ipv6/conf/all/forwarding") != "1":
            raise Stopped(
                stack.title, f"{stack.title} forwards no {family} packets", advice.sysctl(stack, "net.ipv6.conf.all.forwarding=1")
            )
        if packet.version == 6 and packet.src.is_link_local:
            raise Stopped(stack.title, "a link-local address is not routed")
        packet.oif = route.oif
        self.say(
            stack,
            f"routed from {self.names.link(iif)} to {self.names.link(route.oif)}" + (f" via {route.gateway}" if route.gateway else ""),
        )
        self._hook(stack, packet, "forward")
        if packet.port and route.oif == iif and packet.dst != before.dst and self._calls_iptables(stack, packet):
            packet.iif = ""  # br_netfilter has the bridge send it, whose last hook names no interface that it came in by
        self._hook(stack, packet, "postrouting")
        self._remember(stack, before, packet)
        return self._transmit(stack, packet, route.gateway or packet.dst)

    def _out_route(self, stack: Stack, packet: Packet) -> Route:
        route = stack.route(packet.dst, src=packet.src, mark=packet.mark, flow=(packet.protocol, packet.sport, packet.dport))
        if route.error:
            raise Stopped(stack.title, *advice.refused_out(stack, packet, route.error, self.names))
        return route

    def _deliver(self, stack: Stack, packet: Packet, *, loop: bool = False) -> Arrived:
        if loop:
            self._hook(stack, packet, "prerouting", nat=False)
        self._hook(stack, packet, "input")
        self.say(stack, f"arrives at {stack.title} as {packet.words()}")
        return Arrived(stack, packet)

    # --- connection tracking ---

    def _begin(self, stack: Stack, packet: Packet) -> None:
        """The packet's state in this stack, and for an answer, the address translation undone where the kernel undoes it first."""
        packet.tracked, packet.status, packet.connection_mark = True, 0, 0
        known = self._connections.get(stack.name)
        if known is not None and self.reply and answers(packet, known.went):
            packet.state, packet.reply = CT_STATE["established"], True
            packet.status, packet.connection_mark = known.went.status, known.went.connection_mark
        elif self.reply and packet.protocol in (1, 6, 58):
            # An answer without a question: to TCP and ping an invalid packet where its connection isn't known; at home it belongs to one.
            packet.state = CT_STATE["established"] if known is None and not packet.iif else CT_STATE["invalid"]
        else:
            packet.state = CT_STATE["new"]

    def _remember(self, stack: Stack, before: Packet, packet: Packet) -> None:
        if not self.reply and packet.tracked:
            self._connections.setdefault(stack.name, _Connection(before, structs.replace(packet)))

    def _undo(self, stack: Stack, packet: Packet, hook: str) -> None:
        """An answer's addresses are put back: its target where packets come in, its source where they go on."""
        known = self._connections.get(stack.name)
        if hook == "forward" or known is None or packet.state != CT_STATE["established"] or not packet.reply:
            return
        old = packet.words()
        if hook in ("prerouting", "output"):
            packet.dst, packet.dport = known.came.src, known.came.sport
        else:
            packet.src, packet.sport = known.came.dst, known.came.dport
        if packet.words() != old:
            self.say(stack, f"the answer's addresses are put back: {packet.words()}")

    # --- rules ---

    def rules(self, stack: Stack) -> Ruleset:
        if stack.name not in self._rulesets:
            self._rulesets[stack.name] = Ruleset(stack.ruleset, stack.fib)
        return self._rulesets[stack.name]

    def _hook(self, stack: Stack, packet: Packet, hook: str, *, nat: bool = True) -> bool:
        """Whether a chain of type `route` changed the mark, for which a new way is looked for."""
        family = "ip" if packet.version == 4 else "ip6"
        rules = self.rules(stack)
        chains = rules.base(hook, ("inet", family))
        if hook == "prerouting":
            ingress = [c for c in rules.base("ingress", ("netdev", "inet")) if packet.iif in c.devices]
            chains = ingress + chains
        state, undone, marked = packet.state, False, False
        rewritten: tuple[Chain, Packet] | None = None
        for chain in chains:
            if hook in ("prerouting", "output") and packet.tracked:
                packet.state = CT_STATE["invalid"] if chain.priority <= _CONNTRACK or chain.hook == "ingress" else state
            if not undone and chain.priority > _CONNTRACK and (hook in ("prerouting", "output") or chain.priority >= 100):
                undone = True
                self._undo(stack, packet, hook)
            if chain.kind == "nat" and (not nat or not packet.tracked or packet.state != CT_STATE["new"]):
                continue
            if chain.kind == "nat" and rewritten is not None:
                if chain.priority == rewritten[0].priority:
                    self._compare(stack, chain, *rewritten)
                continue
            mark, before = packet.mark, structs.replace(packet)
            outcome = rules.run(chain, packet)
            self._judge(stack, packet, hook, outcome)
            marked = marked or (chain.kind == "route" and packet.mark != mark)
            if outcome.nat is not None and chain.kind == "nat":
                rewritten = chain, before
                self._rewrite(stack, packet, outcome, hook)
        if packet.tracked:
            packet.state = state
        if not undone:
            self._undo(stack, packet, hook)
        return marked

    def _compare(self, stack: Stack, chain: Chain, decided: Chain, packet: Packet) -> None:
        """Two chains with one priority that both rewrite: which one is asked first depends on when they were made, which can't be seen
        for sure."""
        rules = self.rules(stack)
        first, second = (rules.run(chain, structs.replace(packet)) for chain in (decided, chain))
        if (second.nat or second.verdict != "accept") and second.nat != first.nat:
            names = " and ".join(f"{c.family} {c.table} {c.name}" for c in (decided, chain))
            raise Stopped(stack.title, f"chains {names} have the same priority and rewrite differently", sure=False)

    def _judge(self, stack: Stack, packet: Packet, hook: str, outcome: Outcome) -> None:
        if outcome.verdict == "accept":
            return
        text = "" if outcome.rule is None else stack.rule_text(*outcome.rule[:4])
        why, fix = advice.ruled_out(stack, packet, outcome, text, self.names)
        if outcome.verdict == "unsure":
            raise Stopped(stack.title, f"rule {why} at {hook} can't be judged", sure=False)
        raise Stopped(stack.title, why, fix)

    def _rewrite(self, stack: Stack, packet: Packet, outcome: Outcome, hook: str) -> None:
        nat = outcome.nat
        if nat is None:
            return
        assert outcome.rule is not None  # noqa: S101
        by, old = advice.name_of(outcome.rule), packet.words()
        port = nat.port if packet.sport else 0
        if nat.kind == "dnat":
            loopback = packet.dst.__class__("127.0.0.1" if packet.version == 4 else "::1")
            packet.dst = nat.address or (loopback if hook == "output" else self._own(stack, packet, packet.iif))
            packet.dport = port or packet.dport
            self.say(stack, f"{by}: goes on to {ends(packet.dst, packet.dport)}")
        else:
            packet.src = nat.address or self._own(stack, packet, packet.oif)
            packet.sport = port or packet.sport
            self.say(stack, f"{by}: goes on as {packet.src}")
        if packet.words() != old:
            packet.status |= CT_STATUS[nat.kind]

    def _own(self, stack: Stack, packet: Packet, interface: str) -> Address:
        if interface == "lo":
            raise Stopped(stack.title, "which address goes out by lo can't be told", sure=False)
        route = stack.route(packet.dst, oif=interface) if interface == packet.oif else None
        if route is not None and route.source is not None:
            return route.source
        rows = [row.interface.ip for row in stack.on(interface, packet.version) if not row.interface.ip.is_link_local]
        if not rows:
            raise Stopped(stack.title, f"{interface} has no IPv{packet.version} address to be seen by", "atoll doctor --fix")
        return rows[0]

    # --- cables and bridges ---

    def _transmit(self, stack: Stack, packet: Packet, next_hop: Address) -> Arrived:
        link = stack.links.get(packet.oif)
        if link is None:
            raise Stopped(stack.title, f"there is no interface {packet.oif}", "atoll doctor --fix")
        if not link.up:
            raise Stopped(stack.title, f"{self.names.link(link.name)} is down", advice.up(stack, link.name))
        if link.kind == "bridge":
            return self._from_bridge(stack, packet, next_hop)
        if link.kind in ("macvlan", "ipvlan"):
            raise Stopped(
                stack.title, f"{link.name} is a {link.kind} interface; what its parent's network does can't be seen from here", sure=False
            )
        peer = self.names.peer(stack, link.name) if link.kind == "veth" else None
        if peer is None:
            self.say(stack, f"leaves by {link.name} as {packet.words()}" + (f" via {next_hop}" if next_hop != packet.dst else ""))
            return Arrived(stack, packet, link.name)
        far, name = peer
        if not far.links[name].up:
            raise Stopped(far.title, f"{self.names.link(name)}, the other end of {link.name}, is down", advice.up(far, name))
        packet.mac = link.mac
        if far is not stack:
            packet.mark = 0  # between namespaces the kernel takes it off
        bridge = far.master(name)
        if not bridge:
            if self.names.is_port(name):
                raise Stopped(far.title, f"{self.names.link(name)} is not in its bridge any more", "atoll doctor --fix")
            return self.receive(far, packet, name)
        return self._into_bridge(far, packet, bridge, name, next_hop, (stack, link.name))

    def _into_bridge(self, host: Stack, packet: Packet, bridge: str, port: str, hop: Address, sender: tuple[Stack, str]) -> Arrived:
        """From a namespace: find who has the next hop's address, see that both can ask and answer, then send."""
        self._is_up(host, bridge)
        own = [row.interface.ip for row in sender[0].on(sender[1], packet.version)]
        asking = next((address for address in own if address == packet.src), own[0] if own else packet.src)
        ask = question(packet, asking, hop, SOLICIT)
        found = self._find(host, bridge, port, hop)
        self._frame(host, ask, port, found)
        if found is None and (strange := self._strange(host, bridge)):
            raise Stopped(host.title, f"whether anybody has {hop} behind {', '.join(strange)} can't be seen from here", sure=False)
        if found is None:
            raise Stopped(host.title, f"nobody on {self.names.link(bridge)} has {hop}", self.names.missing(hop))
        target, name, way = found
        if name:
            packet_mac = target.links[name].mac
            answer = question(packet, hop, asking, ADVERTISE)
            answer.mac, answer.iif = packet_mac, way[-1][1]
            self._bridge_hook(host, answer, "prerouting", answer=True)
        self._frame(host, packet, port, found)
        if not name:
            self.say(host, f"{self.names.link(port)}: comes to the host by {self.names.link(way[-1][0])}")
            packet.port = port
            return self.receive(target, packet, way[-1][0])
        self.say(host, f"{self.names.link(bridge)}: from {self.names.link(port)} to {self.names.link(way[-1][1])}")
        if self.reply and self._calls_iptables(host, packet):
            self._begin(host, packet)
            for hook in ("prerouting", "postrouting"):
                self._undo(host, packet, hook)
        packet.mark = 0
        return self.receive(target, packet, name)

    def _from_bridge(self, host: Stack, packet: Packet, hop: Address) -> Arrived:
        bridge = packet.oif
        found = self._find(host, bridge, "", hop, below=True)
        if found is None and (strange := self._strange(host, bridge)):
            return self._out_to(host, packet, hop, strange)
        if found is None:
            raise Stopped(host.title, f"nobody on {self.names.link(bridge)} has {hop}", self.names.missing(hop))
        target, name, way = found
        if way[-1][1] == packet.port and self._calls_iptables(host, packet):
            why = "a bridge sends nothing back by the port that it came from, and br_netfilter has it sent by the bridge"
            raise Stopped(host.title, why, advice.sysctl(host, f"net.bridge.{_CALLS[packet.version]}=0"))
        answer = question(packet, hop, packet.src, ADVERTISE)
        answer.mac, answer.iif = target.links[name].mac, way[-1][1]
        self._bridge_hook(host, answer, "prerouting", answer=True)
        packet.mac = host.links[bridge].mac
        self._bridge_hook(host, packet, "output")
        self.say(host, f"{self.names.link(bridge)}: out to {self.names.link(way[-1][1])}")
        packet.mark = 0
        return self.receive(target, packet, name)

    def _strange(self, host: Stack, bridge: str) -> list[str]:
        """Ports whose other end can't be seen: other software's containers, the world outside."""
        return [
            link.name
            for link in host.ports(bridge)
            if link.up and not self.names.is_port(link.name) and not self.names.peer(host, link.name)
        ]

    def _out_to(self, host: Stack, packet: Packet, hop: Address, strange: list[str]) -> Arrived:
        """To somebody who isn't ours: known when the kernel has heard of them by such a port."""
        port = host.port_of(packet.oif, host.neighbour(packet.oif, hop))
        if port not in strange:
            why = f"whether anybody has {hop} behind {', '.join(strange)} can't be seen: the kernel has not heard of them lately"
            raise Stopped(host.title, why, sure=False)
        self._bridge_hook(host, packet, "output")
        self.say(host, f"{self.names.link(packet.oif)}: out to {port}; what is behind it can't be seen from here")
        return Arrived(host, packet, packet.oif)

    def _find(
        self, host: Stack, bridge: str, port: str, hop: Address, *, below: bool = False
    ) -> tuple[Stack, str, list[tuple[str, str]]] | None:
        """Who answers for an address on a bridge and the bridges behind it: the stack, its interface (empty for the bridge itself), and the
        way, as pairs of a bridge and the port that is left by."""
        seen: set[str] = set()
        waiting: list[tuple[str, str, list[tuple[str, str]]]] = [(bridge, port, [])]
        while waiting:
            current, came, way = waiting.pop(0)
            seen.add(current)
            if not below and self._answers_itself(host, current, hop):
                return host, "", [*way, (current, "")]
            holder = self.names.holder(host, current, hop)
            for link in sorted(host.ports(current), key=lambda link: link.name != holder):
                if link.name == came or not link.up:
                    continue
                peer = self.names.peer(host, link.name)
                if peer is None:
                    continue
                far, name = peer
                step = [*way, (current, link.name)]
                if far is host:
                    if far.master(name) and far.master(name) not in seen and far.links[name].up:
                        waiting.append((far.master(name), name, step))
                elif far.links[name].up and far.owns(hop) and (hop.version == 4 or far.owns(hop, name)):
                    return far, name, step
        return None

    @staticmethod
    def _answers_itself(host: Stack, bridge: str, hop: Address) -> bool:
        if hop.version == 6 or host.setting(f"net/ipv4/conf/{bridge}/arp_ignore") not in ("0", ""):
            return host.owns(hop, bridge)
        return host.owns(hop)

    def _frame(self, host: Stack, frame: Packet, port: str, found: tuple[Stack, str, list[tuple[str, str]]] | None) -> None:
        """A frame from a port through the bridges: the guard, isolation, other software's bridge rules."""
        frame.iif = port
        self._bridge_hook(host, frame, "prerouting")
        came = port
        for bridge, out in found[2] if found else ():
            self._is_up(host, bridge)
            if not out:
                self._bridge_hook(host, frame, "input")
                continue
            if host.links[came].isolated and host.links[out].isolated:
                raise Stopped(host.title, *advice.isolated(self.names, bridge))
            frame.iif, frame.oif = came, out
            self._bridge_hook(host, frame, "forward")
            peer = self.names.peer(host, out)
            came = peer[1] if peer is not None else out
        frame.oif = ""

    def _bridge_hook(self, host: Stack, frame: Packet, hook: str, *, answer: bool = False) -> None:
        rules = self.rules(host)
        ether, state = frame.ether, frame.state
        for chain in rules.base(hook, ("bridge",)):
            outcome = rules.run(chain, frame)
            if outcome.verdict != "accept":
                text = "" if outcome.rule is None else host.rule_text(*outcome.rule[:4])
                why, fix = advice.ruled_out(host, frame, outcome, text, self.names)
                raise Stopped(
                    host.title, f"the neighbour's answer is held back: {why}" if answer else why, fix, sure=outcome.verdict == "drop"
                )
        if hook == "forward" and ether != "arp" and frame.icmp not in (SOLICIT, ADVERTISE) and self._calls_iptables(host, frame):
            inner = structs.replace(frame, iif=host.master(frame.iif), oif=host.master(frame.oif), state=state)
            self._hook(host, inner, "forward")

    @staticmethod
    def _calls_iptables(host: Stack, packet: Packet) -> bool:
        return host.setting(f"net/bridge/{_CALLS[packet.version]}") == "1"

    def _is_up(self, host: Stack, bridge: str) -> None:
        if not host.links[bridge].up:
            raise Stopped(host.title, f"{self.names.link(bridge)} is down", advice.up(host, bridge))
