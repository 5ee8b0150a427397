"""DNS over TCP (RFC 7766): several questions on a connection, answered as they come, within limits.

A connection that asks nothing for `IDLE` seconds is closed. One that doesn't take its answers is read no further, so that what is kept
for it stays bounded.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final

from atoll.dns.loop import BROKEN, READ, WRITE

if TYPE_CHECKING:
    import socket

    from atoll.dns.server import Server
    from atoll.dns.zone import Client

#: Connections in total and of one client, seconds without a question until one is closed.
CONNECTIONS: Final = 512
OF_CLIENT: Final = 32
IDLE: Final = 3.0
#: Questions of a connection under way, and bytes of answers that it hasn't taken, until it is read no further.
UNDER_WAY: Final = 64
UNTAKEN: Final = 64 << 10
_CHUNK: Final = 64 << 10
_SWEEP: Final = 0.5


class Streams:
    """All connections."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._all: set[_Connection] = set()
        self._of: dict[str, int] = {}
        self._sweeping = False

    def __len__(self) -> int:
        return len(self._all)

    def accept(self, listener: socket.socket, network: str) -> None:
        try:
            made, peer = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._all:
                min(self._all, key=lambda connection: connection.last).close()
            return
        client = self.server.client(network, peer[0])
        # A namespace's name can't begin so; strangers share one allowance, and so do the host's programs.
        name = f"/{network}" if client is None else client.namespace
        if len(self._all) >= CONNECTIONS or self._of.get(name, 0) >= OF_CLIENT:
            made.close()
            return
        made.setblocking(False)
        self._of[name] = self._of.get(name, 0) + 1
        self._all.add(_Connection(self, made, network, peer[0], name))
        if not self._sweeping:
            self._sweeping = True
            self.server.loop.after(_SWEEP, self._sweep)

    def left(self, connection: _Connection) -> None:
        self._all.discard(connection)
        self._of[connection.name] -= 1
        if not self._of[connection.name]:
            del self._of[connection.name]

    def _sweep(self) -> None:
        oldest = time.monotonic() - IDLE
        for connection in [each for each in self._all if each.last < oldest and not each.waiting]:
            connection.close()
        self._sweeping = bool(self._all)
        if self._sweeping:
            self.server.loop.after(_SWEEP, self._sweep)


class _Connection:
    """One client's connection. `last` is when it last asked, was answered or took something; `waiting` its questions under way."""

    def __init__(self, owner: Streams, made: socket.socket, network: str, source: str, name: str) -> None:
        self.name, self.last, self.waiting = name, time.monotonic(), 0
        self._owner, self._socket, self._network, self._source = owner, made, network, source
        self._in, self._out = bytearray(), bytearray()
        self._ended = self._closed = self._flushing = False
        self._events = READ
        owner.server.loop.watch(made.fileno(), READ, self._ready)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._owner.server.loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._owner.left(self)

    def _ready(self, events: int) -> None:
        try:
            if events & BROKEN and not events & READ:
                self.close()
                return
            if events & READ and self._reading:
                data = self._socket.recv(_CHUNK)
                self._in += data
                self._ended = not data
            self._write()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._go_on()

    @property
    def _reading(self) -> bool:
        return not self._ended and self.waiting < UNDER_WAY and len(self._out) < UNTAKEN and len(self._in) < _CHUNK + 2

    def _go_on(self) -> None:
        """Take up whatever questions are whole and may be, then wait for what comes next."""
        while self.waiting < UNDER_WAY and len(self._out) < UNTAKEN and len(self._in) >= 2:
            size = int.from_bytes(self._in[:2], "big")
            if len(self._in) < size + 2:
                break
            message = bytes(self._in[2 : size + 2])
            del self._in[: size + 2]
            self.last = time.monotonic()
            server = self._owner.server
            server.counts["tcp"] += 1
            self.waiting += 1
            # Whom the network knows may have changed since the connection was made.
            client: Client | None = server.client(self._network, self._source)
            if not server.resolve(message, self._network, client, "tcp", self._tell):
                self.close()  # what isn't DNS ends the connection, an empty message first of all
            if self._closed:
                return
        if self._ended and not self.waiting and not self._out:
            self.close()
            return
        events = (READ if self._reading else 0) | (WRITE if self._out else 0)
        if events != self._events:
            self._events = events
            self._owner.server.loop.change(self._socket.fileno(), events)

    def _tell(self, answer: bytes) -> None:
        self.waiting -= 1
        if self._closed:
            return
        self._out += len(answer).to_bytes(2, "big") + answer
        self.last = time.monotonic()
        if not self._flushing:  # all that are answered in one go leave together
            self._flushing = True
            self._owner.server.loop.after(0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._closed:
            return
        try:
            self._write()
        except OSError:
            self.close()
            return
        self._go_on()

    def _write(self) -> None:
        while self._out:
            try:
                sent = self._socket.send(self._out)
            except BlockingIOError:
                return
            self.last = time.monotonic()
            del self._out[:sent]
