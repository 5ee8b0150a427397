"""A packet that is really sent, watched on its way and held against what was reasoned.

It is a TCP connection that is closed at once, a datagram, or a ping. Its arrival is seen by `sniff`, the rule that drops it is told by
`trace`. Bounded in time: whatever happens, it is over after `_PATIENCE` seconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from atoll.errors import Denied
from atoll.explain import trace
from atoll.explain.packet import ECHO, Hop, ends
from atoll.explain.question import PROTOCOLS
from atoll.explain.snapshot import Stack
from atoll.explain.sniff import ICMP, Flow, Sighting, Sniffer, new_flow
from atoll.model import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atoll.explain.names import Names
    from atoll.kernel import netlink

#: Seconds: for an answer; and for one that still comes after a rule was told to have dropped the packet (a copy of it, perhaps).
_PATIENCE: Final = 0.9
_AFTERWARDS: Final = 0.15
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ, _SEND_QUEUE = 19, 20, 21, 2


class Probe(Struct, frozen=True):
    """What became of a packet: what was sent, the places where it and its answer were seen, in order, and the verdict of that.

    `answered`: the sender got an answer. `dropped_by` is the rule or policy that dropped it, where one was told of.
    """

    sent: str
    seen: tuple[Hop, ...]
    answered: bool
    dropped_by: str
    outcome: Literal["yes", "no"]
    agrees: bool
    words: str


class Journey(Struct, frozen=True):
    """What to send: from which stack, to which address, as what; and where it should end: `end` None is the world outside.

    `way_out` is the host's interface that it leaves by then. `final` is the address and port that it has at its end, `stacks` are all that
    it may pass, `asked` the addresses that its hops ask each other for.
    """

    source: Stack
    to: Address
    port: int
    protocol: str
    end: Stack | None
    way_out: str
    final: tuple[Address, int]
    stacks: tuple[Stack, ...]
    asked: tuple[Address, ...] = ()


def probe(names: Names, journey: Journey, verdict: str) -> Probe:
    """Send it. Raises `Denied` where packet sockets may not be opened."""
    number = ICMP[journey.to.version] if journey.protocol == "icmp" else PROTOCOLS[journey.protocol]
    run = _Run(names, journey, new_flow(journey.to.version, number))
    try:
        run.go()
    except PermissionError as error:
        raise Denied(f"may not probe from {journey.source.title} ({error.strerror})", "the daemon must be root there") from None
    return run.result(verdict)


class _Run:
    def __init__(self, names: Names, journey: Journey, flow: Flow) -> None:
        self.names, self.journey, self.flow = names, journey, flow
        self.sightings: list[Sighting] = []
        self.drops: list[tuple[Stack, trace.Drop]] = []
        self.dropped_by = ""
        #: How it was answered (`refused`: by a reset), what the sender was told instead, who waits for it there.
        self.answer: Literal["", "yes", "refused"] = ""
        self.failure = ""
        self.waiting: Literal["nobody", "us", "another"] = "nobody"

    # --- sending and waiting ---

    def go(self) -> None:
        journey, flow = self.journey, self.flow
        text = trace.script(flow.matches(), journey.asked)
        with contextlib.ExitStack() as opened:
            sniffers = [opened.enter_context(Sniffer(stack, flow)) for stack in journey.stacks]
            # A namespace without rules gets none from us either.
            ruled = [stack for stack in journey.stacks if not stack.name or stack.has_rules]
            traces = [(stack, opened.enter_context(trace.traced(stack, text))) for stack in ruled]
            server = self._listen(opened)
            client = opened.enter_context(journey.source.run(self._client))
            self._send(client)
            self._wait(client, server, sniffers, traces)
            if self.drops:
                stack, drop = self.drops[0]
                inside = f"{stack.title}'s " if stack.name else ""
                self.dropped_by = f"{inside}{drop.words(stack)}"

    def _wait(
        self,
        client: socket.socket,
        server: socket.socket | None,
        sniffers: Sequence[Sniffer],
        traces: Sequence[tuple[Stack, netlink.Socket]],
    ) -> None:
        poll = select.poll()
        heard = [*(sniffer.fileno() for sniffer in sniffers), *(sock.fileno() for _, sock in traces)]
        for fd in [*heard, server.fileno()] if server else heard:
            poll.register(fd, select.POLLIN)
        poll.register(client.fileno(), select.POLLOUT if self.flow.protocol == socket.IPPROTO_TCP else select.POLLIN)
        end, told, over = time.monotonic() + _PATIENCE, False, False
        while not self.answer and (rest := end - time.monotonic()) > 0:
            if (self.failure or self.drops) and not told:
                told, end = True, min(end, time.monotonic() + _AFTERWARDS)
                continue
            if self.failure and not over:
                over = True
                poll.unregister(client.fileno())
            poll.poll(rest * 1000)
            if server is not None:
                self._serve(server)
            if not self.failure:
                self._receive(client)
            self._look(sniffers, traces)
        # What was seen on the way to an answer that is here by now has been queued before it.
        self._look(sniffers, traces)

    def _look(self, sniffers: Sequence[Sniffer], traces: Sequence[tuple[Stack, netlink.Socket]]) -> None:
        for sniffer in sniffers:
            self.sightings += sniffer.heard()
        for stack, sock in traces:
            self.drops += [(stack, drop) for drop in trace.drops(sock)]

    def _client(self) -> socket.socket:
        family = socket.AF_INET if self.flow.version == 4 else socket.AF_INET6
        kind = {socket.IPPROTO_TCP: socket.SOCK_STREAM, socket.IPPROTO_UDP: socket.SOCK_DGRAM}.get(self.flow.protocol, socket.SOCK_RAW)
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, self.flow.protocol)
        if kind != socket.SOCK_STREAM:
            return made
        try:
            # A sequence number of ours; a connection that was made is reset, so that nothing of it stays.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for option, value in (
                (_TCP_REPAIR, 1),
                (_TCP_REPAIR_QUEUE, _SEND_QUEUE),
                (_TCP_QUEUE_SEQ, self.flow.number),
                (_TCP_REPAIR, 0),
            ):
                made.setsockopt(socket.IPPROTO_TCP, option, struct.pack("=I", value))
        except BaseException:
            made.close()
            raise
        return made

    def _send(self, client: socket.socket) -> None:
        try:
            client.connect((str(self.journey.to), self.journey.port))
            if self.flow.protocol == socket.IPPROTO_UDP:
                client.send(self.flow.token + b"?")
            elif self.flow.protocol != socket.IPPROTO_TCP:
                client.send(_echo(self.flow))
        except BlockingIOError:
            pass  # the connection is being made
        except OSError as error:
            self._failed(error)

    def _receive(self, client: socket.socket) -> None:
        try:
            if self.flow.protocol == socket.IPPROTO_TCP:
                number = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    self._failed(OSError(number, os.strerror(number)))
                    return
                client.getpeername()
                self.answer = "yes"
                return
            while not self.answer:
                data = client.recv(2048)
                if self.flow.protocol == socket.IPPROTO_UDP:
                    found = data == self.flow.token + b"!"
                else:
                    kind = data[(data[0] & 15) * 4] if self.flow.version == 4 else data[0]
                    found = kind == ECHO[self.flow.version][1] and self.flow.token in data
                self.answer = "yes" if found else ""
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self._failed(error)

    def _failed(self, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED and self.flow.protocol == socket.IPPROTO_TCP:
            self.answer = "refused"
        else:
            self.failure = error.strerror or str(error)

    def _listen(self, opened: contextlib.ExitStack) -> socket.socket | None:
        """Someone who answers a datagram, where nobody listens."""
        end, (where, port) = self.journey.end, self.journey.final
        if self.flow.protocol != socket.IPPROTO_UDP or end is None:
            return None
        family = socket.AF_INET if where.version == 4 else socket.AF_INET6
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        server = opened.enter_context(end.run(lambda: socket.socket(family, kind)))
        try:
            server.bind((str(where), port))
        except OSError as error:
            self.waiting = "another" if error.errno == errno.EADDRINUSE else "nobody"
            return None
        self.waiting = "us"
        return server

    def _serve(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data, peer = server.recvfrom(2048)
            if data == self.flow.token + b"?":
                server.sendto(self.flow.token + b"!", peer)

    # --- what it means ---

    def result(self, verdict: str) -> Probe:
        self.sightings.sort(key=lambda sighting: sighting.time)
        seen = tuple(dict.fromkeys(self._place(sighting) for sighting in self.sightings))
        arrives, facts = self._judged(seen)
        outcome: Literal["yes", "no"] = "yes" if arrives else "no"
        agrees = verdict in ("unsure", outcome)
        what = f"settles it: {outcome}" if verdict == "unsure" else "agrees" if agrees else f"DIFFERS: the packet says {outcome}"
        answered = self.answer == "yes" or (self.answer == "refused" and not self.drops)
        journey = self.journey
        sent = f"{journey.protocol} from {journey.source.title} to {ends(journey.to, journey.port)}"
        # A copy that a bridge sent everywhere may have been dropped elsewhere.
        return Probe(sent, seen, answered, "" if arrives else self.dropped_by, outcome, agrees, f"{what}: {facts}")

    def _place(self, sighting: Sighting) -> Hop:
        link = sighting.link if sighting.stack.name else self.names.link(sighting.link)
        way = "out by" if sighting.outgoing else "in by"
        # On the host these are the ports of bridges, where that is as it should be.
        stray = " (for another MAC address)" if sighting.stack.name and not sighting.outgoing and not sighting.here else ""
        return Hop(sighting.stack.title, f"{way} {link}: {sighting.words()}{stray}", reply=sighting.reply)

    def _judged(self, seen: tuple[Hop, ...]) -> tuple[bool, str]:
        end, source = self.journey.end, self.journey.source
        arrived = any(self._is_arrival(sighting) for sighting in self.sightings)
        if self.answer == "yes" or (self.answer == "refused" and arrived and not self.drops):
            by = (
                " (refused: nobody listens)"
                if self.answer == "refused"
                else ", from a listener that was opened for it" * (self.waiting == "us")
            )
            return True, f"it {'leaves the host' if end is None else f'arrives at {end.title}'} and its answer comes back{by}"
        if self.dropped_by:
            return False, f"dropped by {self.dropped_by}"
        if arrived and end is None and not any(sighting.reply for sighting in self.sightings):
            return True, f"it leaves the host by {self.journey.way_out}; no answer was seen, which says nothing about this host"
        if arrived and end is not None and self.waiting == "another":
            return True, f"it arrives at {end.title}, where another program has the port and doesn't answer it"
        if self.failure:
            return False, f"{source.title} is told: {self.failure}"
        last = f"last seen at {seen[-1].where} {seen[-1].what}" if seen else "seen nowhere"
        return False, f"no answer comes; {last}"

    def _is_arrival(self, sighting: Sighting) -> bool:
        if sighting.reply:
            return False
        end = self.journey.end
        if end is None:
            return sighting.outgoing and not sighting.stack.name and sighting.link == self.journey.way_out
        return sighting.stack is end and sighting.here and end.owns(sighting.dst)


def _echo(flow: Flow) -> bytes:
    """An echo request (RFC 792, RFC 4443); the kernel fills in the checksum of IPv6's."""
    kind = ECHO[flow.version][0]
    head = struct.pack("!BBHHH", kind, 0, 0, secrets.randbits(16), 1)
    data = head + flow.token
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return data[:2] + struct.pack("!H", ~total & 0xFFFF) + data[4:]
