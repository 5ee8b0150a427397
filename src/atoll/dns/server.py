"""The name server: sockets on every gateway address, what is done with a question, and the line to the parent.

A socket is bound to one address, so that an answer comes from where it was asked. Answers that were given before go out by the bytes
of the question alone (`_Listener._datagrams`); the rest is decided in `Server.resolve`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from atoll.dns import wire
from atoll.dns.batch import SIZE, Batch
from atoll.dns.forward import Forwarder, HostServers, Waiter
from atoll.dns.frames import STATS, put, take
from atoll.dns.loop import READ, WRITE, Loop
from atoll.dns.stream import Streams
from atoll.dns.zone import Client, Done, Update, Zone

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.dns.batch import Peer

#: Datagrams taken one by one until it is tried whether several wait, and how many are several.
ALONE: Final = 16
SEVERAL: Final = 4
#: Bytes of questions that wait for us while we are busy.
WAITING: Final = 4 << 20
#: Bytes that the kernel keeps each way for a TCP connection.
STREAM: Final = 64 << 10
_SO_RCVBUFFORCE: Final = 33
_IP_FREEBIND: Final = 15
_IPV6_FREEBIND: Final = 78
#: Seconds until an address that can't be listened on is tried again.
RETRY: Final = 1.0


class Server:
    """Everything that answers. `serve` returns when the parent has gone."""

    def __init__(self, line: socket.socket, resolv_conf: str, port: int) -> None:
        self.loop = Loop()
        self.zone = Zone()
        self.forwarder = Forwarder(self.loop)
        self.streams = Streams(self)
        self.counts = dict.fromkeys(("udp", "tcp", "malformed", "refused", "unsent"), 0)
        self.batches = {version: Batch(version) for version in (4, 6)}
        self.host_servers = HostServers(resolv_conf)
        self._port = port
        self._listeners: dict[str, _Listener] = {}
        self._failing: dict[str, str] = {}
        self._retrying = False
        self._line = Line(line, self)

    def serve(self) -> None:
        self.loop.run()

    # --- the parent

    def update(self, update: Update) -> Done:
        """What was asked for is in effect when this returns."""
        names = {network.id for network in update.networks}.union(update.gone_networks)
        before = {*self._listeners, *self._failing} if update.reset else self._addresses(names)
        self.zone.apply(update)
        after = self._addresses(set(self.zone.networks) if update.reset else names)
        for address in before - after:
            if self.zone.listens(address):  # another network's too
                after.add(address)
                continue
            if (listener := self._listeners.pop(address, None)) is not None:
                listener.close()
            self._failing.pop(address, None)
        for address in sorted(after):
            self._listen(address)
        self._retry()
        return Done(update.serial, tuple(self._failing.values()))

    def stats(self) -> dict[str, int]:
        return {
            **self.counts,
            "errors": self.loop.errors,
            "networks": len(self.zone.networks),
            "listening": len(self._listeners),
            "kept": self.zone.kept,
            "connections": len(self.streams),
            "cached": len(self.forwarder.cache),
            "forwarded": self.forwarder.sent,
            "forwarding": len(self.forwarder.flights),
            "shed": self.forwarder.shed,
        }

    def _addresses(self, networks: set[str]) -> set[str]:
        return {address for name in networks if name in self.zone.networks for address in self.zone.networks[name].names.listen}

    # --- listening

    def _listen(self, address: str) -> None:
        network = self.zone.listens(address)
        listener = self._listeners.get(address)
        if listener is not None:
            listener.network = network
            return
        try:
            self._listeners[address] = _Listener(self, address, self._port, network)
            self._failing.pop(address, None)
        except OSError as error:
            self._failing[address] = f"can't listen on {address} port {self._port}: {error.strerror or error}"

    def _retry(self) -> None:
        """Try what failed again, now and every second from now on."""
        for address in list(self._failing):
            self._listen(address)
        if self._failing and not self._retrying:
            self._retrying = True
            self.loop.after(RETRY, self._retry_later)

    def _retry_later(self) -> None:
        self._retrying = False
        self._retry()

    # --- questions

    def client(self, network: str, source: str) -> Client | None:
        """Who asks from this address on this network: one of its endpoints, or the host by an address of a gateway."""
        return self.zone.client(network, source) or (self.zone.host if self.zone.listens(source) else None)

    def resolve(self, data: bytes, network: str, client: Client | None, transport: str, tell: Callable[[bytes], None]) -> bool:
        """Tell the answer to a message, now or later, or nothing where silence is best. Whether there will be one."""
        try:
            if len(data) >= wire.HEADER and data[2] & 0xF8:  # a response, or another operation than to query
                raise wire.Malformed("no query")
            query = wire.read_query(data)
        except wire.Malformed:
            self.counts["malformed"] += 1
            answer = wire.complaint(data)
            if answer is not None:
                tell(answer)
            return answer is not None
        room = query.room if transport == "udp" else wire.LARGEST
        if query.edns and query.edns.version:
            return self._say(query, wire.BADVERS, room, tell)
        if client is None or query.cls != wire.IN or query.kind in (wire.AXFR, wire.IXFR):
            self.counts["refused"] += 1
            return self._say(query, wire.REFUSED, room, tell)
        found = self.zone.find(client.view, query)
        if found is not None:
            answer_of_ours = wire.build(query, found.rcode, room, found.answers, found.extra)
            first = answer_of_ours.message()
            tell(data[:2] + first)
            # A service's answer holds more names than the one asked for, and an option may be of one question only.
            if transport == "udp" and not query.name.startswith("_") and not (query.edns and query.edns.options):
                self.zone.keep(client.view, query, data[2:], answer_of_ours if len(found.answers) > 1 else first)
            return True
        resolver = self.zone.resolver(client)
        servers: tuple[str, ...] = ()
        if self.zone.forwards(client.view):
            servers = self.zone.upstream(client, network) or self.host_servers.get()
        elif resolver is None:
            return self._say(query, wire.REFUSED if client.view.networks is None else wire.NXDOMAIN, room, tell)
        # Never ourselves: what we don't know, we would ask us for ever. A resolver that asks us in turn waits for the same answer.
        servers = tuple(server for server in servers if not self.zone.listens(server))
        self.forwarder.ask(Waiter(query, client.namespace, room, tell), data, (resolver, *servers) if resolver else servers, transport)
        return True

    def _say(self, query: wire.Query, rcode: int, room: int, tell: Callable[[bytes], None]) -> bool:
        tell(query.id.to_bytes(2, "big") + wire.build(query, rcode, room).message())
        return True


class _Listener:
    """UDP and TCP on one gateway address. Raises OSError, and then holds nothing."""

    def __init__(self, server: Server, address: str, port: int, network: str) -> None:
        self.network = network
        self._server = server
        self._alone = ALONE
        self._batch = server.batches[6 if ":" in address else 4]
        with contextlib.ExitStack() as stack:
            self._udp = stack.enter_context(_bound(address, port, socket.SOCK_DGRAM))
            self._tcp = stack.enter_context(_bound(address, port, socket.SOCK_STREAM))
            self._tcp.listen(128)
            stack.pop_all()
        server.loop.watch(self._udp.fileno(), READ, self._datagrams)
        server.loop.watch(self._tcp.fileno(), READ, self._connection)

    def close(self) -> None:
        for each in (self._udp, self._tcp):
            self._server.loop.unwatch(each.fileno())
            each.close()

    def _connection(self, _: int) -> None:
        self._server.streams.accept(self._tcp, self.network)

    def _datagrams(self, _: int) -> None:
        """One datagram, which is answered soonest, or as many as there are, which is the least work for each: whichever suits."""
        if self._alone:
            self._alone -= 1
            self._one()
        elif self._many() < SEVERAL:
            self._alone = ALONE

    def _one(self) -> None:
        server, network = self._server, self.network
        try:
            data, peer = self._udp.recvfrom(SIZE)
        except OSError:
            return
        server.counts["udp"] += 1
        client = server.zone.networks[network].clients.get(peer[0])
        if client is not None and (answer := client.view.answers.get(data[2:])) is not None:
            self._send(peer, data[:2] + (answer if isinstance(answer, bytes) else answer.message()))
        else:
            server.resolve(data, network, client or server.client(network, peer[0]), "udp", partial(self._send, peer))

    def _many(self) -> int:
        """How many there were."""
        server, network, batch, fd = self._server, self.network, self._batch, self._udp.fileno()
        clients = server.zone.networks[network].clients
        first = slot = 0
        for slot, ((source,), (size,), (data,)) in enumerate(batch.receive(fd), 1):
            client = clients.get(source)
            if client is not None and (answer := client.view.answers.get(data[2:size])) is not None:
                batch.answer(slot - 1, answer if isinstance(answer, bytes) else answer.message())
                continue
            # Answers leave in runs, which this one ends: its own may take a while.
            server.counts["unsent"] += batch.send(fd, first, slot - 1)
            first = slot
            peer = batch.peer(slot - 1)
            server.resolve(data[:size], network, client or server.client(network, peer[0]), "udp", partial(self._send, peer))
        server.counts["unsent"] += batch.send(fd, first, slot)
        server.counts["udp"] += slot
        return slot

    def _send(self, peer: Peer, answer: bytes) -> None:
        try:
            self._udp.sendto(answer, peer)
        except OSError:  # the peer has gone, or its queue is full: it will ask again
            self._server.counts["unsent"] += 1


def _bound(address: str, port: int, kind: int) -> socket.socket:
    """A socket on an address that need not be there yet."""
    six = ":" in address
    made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        if six:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(*((socket.IPPROTO_IPV6, _IPV6_FREEBIND) if six else (socket.IPPROTO_IP, _IP_FREEBIND)), 1)
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # of each connection, of which there may be many
                made.setsockopt(socket.SOL_SOCKET, option, STREAM)
        else:
            try:
                made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, WAITING)
            except PermissionError:  # as much as the sysctl net.core.rmem_max lets us have
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WAITING)
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made


class Line:
    """The line to the parent, which has one answer to each of its messages. A parent that doesn't read them keeps nobody waiting but
    itself."""

    def __init__(self, line: socket.socket, server: Server) -> None:
        self._socket, self._server = line, server
        self._in, self._out = bytearray(), bytearray()
        self._decoder = msgspec.msgpack.Decoder(Update)
        line.setblocking(False)
        server.loop.watch(line.fileno(), READ, self._ready)

    def _ready(self, events: int) -> None:
        try:
            if events & WRITE:
                self._flush()
            if not events & ~WRITE:
                return
            data = self._socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._server.loop.stop()
            return
        self._in += data
        while (message := take(self._in)) is not None:
            kind, body = message
            answer = self._server.stats() if kind == STATS else self._server.update(self._decoder.decode(body))
            self._out += put(kind, msgspec.msgpack.encode(answer))
        self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:  # the parent has gone, as will be read
            self._out.clear()
        self._server.loop.change(self._socket.fileno(), READ | WRITE if self._out else READ)


def close_others(keep: int) -> None:
    """Close every descriptor that was inherited but this one and the standard ones."""
    os.closerange(3, keep)
    os.closerange(max(keep + 1, 3), 1 << 20)
