"""Questions passed on to other servers, word for word.

Each goes out with a new id from a new socket, so from a port that the kernel chose at random, and only an answer of that server, to that
id and that question counts. The servers race: the next one is asked when the one before failed or was silent for a moment, and the
first good answer wins. The same question asked meanwhile waits for the same answer, so that asking often makes forging no easier.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import socket
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.dns import wire
from atoll.dns.cache import Cache
from atoll.dns.loop import READ, WRITE
from atoll.dns.zone import Inside

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.dns.loop import Loop
    from atoll.kernel.netns import Visitor

PORT: Final = 53
#: Servers asked at most; seconds until the next one is, until all are asked again, and until we give up.
SERVERS: Final = 3
HEAD_START: Final = 0.1
AGAIN: Final = 1.5
PATIENCE: Final = 5.0
#: Questions under way, and who waits for them, in total and of one client; and how many questions of a client's are taken a second,
#: which may pile up to twice as many.
UNDER_WAY: Final = 2048
WAITING: Final = 8192
OF_CLIENT: Final = 256
RATE: Final = 2000

Address = tuple[str, int] | tuple[str, int, int, int]


class Target(NamedTuple):
    """Where to send; with `path` from within the namespace of that file."""

    address: Address
    path: str = ""


class Waiter(NamedTuple):
    """Who wants the answer: the query it made, its namespace, the bytes it has room for, and how to tell it."""

    query: wire.Query
    client: str
    room: int
    tell: Callable[[bytes], None]


class _Budget:
    """What a client may still ask."""

    __slots__ = ("_since", "_tokens", "waiting")

    def __init__(self) -> None:
        self.waiting, self._tokens, self._since = 0, 2.0 * RATE, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._tokens = min(2.0 * RATE, self._tokens + (now - self._since) * RATE)
        self._since = now
        if self._tokens < 1 or self.waiting >= OF_CLIENT:
            return False
        self._tokens -= 1
        return True


class HostServers:
    """The servers of the host's resolv.conf, read again whenever the file has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._servers: tuple[str, ...] = ()

    def get(self) -> tuple[str, ...]:
        try:
            found = os.stat(self._path)
            seen = (found.st_mtime_ns, found.st_ino, found.st_size)
            if seen != self._seen:
                with open(self._path, encoding="latin-1") as lines:
                    self._servers = tuple(words[1] for line in lines if len(words := line.split()) > 1 and words[0] == "nameserver")
                self._seen = seen
        except OSError:
            self._seen, self._servers = None, ()
        return self._servers


def target(server: str | Inside) -> Target | None:
    """Where to send for a server as resolv.conf has it (`fe80::1%eth0` included), or None for what is no address."""
    if isinstance(server, Inside):
        found = target(server.server)
        return found and found._replace(path=server.path)
    text, _, scope = server.partition("%")
    try:
        if ":" not in text:
            socket.inet_pton(socket.AF_INET, text)
            return Target((text, PORT))
        socket.inet_pton(socket.AF_INET6, text)
        return Target((text, PORT, 0, int(scope) if scope.isdecimal() else socket.if_nametoindex(scope) if scope else 0))
    except (OSError, ValueError):  # also for a NUL, or more digits than int() takes
        return None


class Forwarder:
    """Passes questions on. `flights` are those under way."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.cache = Cache()
        self.flights: dict[object, _Flight] = {}
        self.sent = self.shed = self.waiting = 0
        self._budgets: dict[str, _Budget] = {}

    def ask(self, waiter: Waiter, data: bytes, servers: tuple[str | Inside, ...], transport: str) -> None:
        """Tell the waiter the answer to the message `data`, at once or later; after `PATIENCE` at the latest that there is none."""
        query = waiter.query
        edns = query.edns
        plain = not (edns and edns.options) and len(query.question) + wire.HEADER + (11 if edns else 0) == len(data)
        flags = query.flags & (wire.RD | wire.AD | wire.CD)
        key = (servers, wire.folded(query.question), flags, edns and (edns.version, edns.do))
        if plain and (known := self.cache.get(key)) is not None:
            self.tell(waiter, known)
            return
        targets = [found for found in map(target, servers) if found is not None][:SERVERS]
        budget = self._budget(waiter.client)
        # What is like no other question waits for nobody.
        together: object = (key, transport, edns and edns.payload) if plain else object()
        flight = self.flights.get(together)
        full = self.waiting >= WAITING or (flight is None and len(self.flights) >= UNDER_WAY)
        if not targets or full or not budget.take():
            self.shed += bool(targets)
            waiter.tell(_failure(waiter))
            return
        budget.waiting += 1
        self.waiting += 1
        if flight is None:
            # What a resolver inside says of its own names may be over before the time that it names.
            lasting = plain and not targets[0].path
            flight = self.flights[together] = _Flight(self, together, key if lasting else None, data, query, targets, transport)
            flight.waiters.append(waiter)
            flight.next()
        else:
            flight.waiters.append(waiter)
            flight.joined()

    def tell(self, waiter: Waiter, data: bytes) -> None:
        waiter.tell(wire.cut(wire.respell(data, waiter.query), waiter.query, waiter.room))

    def end(self, flight: _Flight, data: bytes | None) -> None:
        """A question has its answer, or none."""
        del self.flights[flight.together]
        self.waiting -= len(flight.waiters)
        for waiter in flight.waiters:
            self._budgets[waiter.client].waiting -= 1
            if data is None:
                waiter.tell(_failure(waiter))
            else:
                self.tell(waiter, data)
        flight.waiters = []

    def _budget(self, client: str) -> _Budget:
        budget = self._budgets.get(client)
        if budget is None:
            if len(self._budgets) >= 2 * UNDER_WAY:
                self._budgets = {name: old for name, old in self._budgets.items() if old.waiting}
            budget = self._budgets[client] = _Budget()
        return budget


def _failure(waiter: Waiter) -> bytes:
    return waiter.query.id.to_bytes(2, "big") + wire.build(waiter.query, wire.SERVFAIL, waiter.room).message()


class _Flight:
    """One question under way, to one server after the other."""

    def __init__(
        self, owner: Forwarder, together: object, key: object, data: bytes, query: wire.Query, targets: list[Target], transport: str
    ) -> None:
        self.together, self.waiters = together, list[Waiter]()
        self._owner, self._key, self._data, self._transport = owner, key, data, transport
        self._question = wire.folded(query.question)
        self._targets = targets
        self._begun = time.monotonic()
        self._asked = 0
        self._attempts: set[_Attempt] = set()
        self._refusal: bytes | None = None
        self._done = False
        self._turn = 0

    def next(self) -> None:
        """Ask the next server, and see to it that the one after gets its turn. All are asked twice, as datagrams get lost."""
        self._turn += 1
        turn, rounds, count = self._turn, 2 if self._transport == "udp" else 1, len(self._targets)
        if self._asked < rounds * count:
            where = self._targets[self._asked % count]
            self._asked += 1
            self._owner.sent += 1
            self._attempts.add(_Attempt(self, self._owner.loop, where, self._data, self._transport))
            last = self._asked == rounds * count
            # One inside knows best, unless it asks us: see `joined`.
            pause = PATIENCE if last else HEAD_START if self._asked % count and not where.path else AGAIN
        else:
            pause = PATIENCE
        left = self._begun + PATIENCE - time.monotonic()
        self._owner.loop.after(min(pause, left), lambda: self._time(turn))

    def joined(self) -> None:
        """Another waits for the answer: perhaps the resolver inside itself, whose servers we may be. Then it is others' turn."""
        if self._asked == 1 and self._targets[0].path:
            turn = self._turn
            self._owner.loop.after(HEAD_START, lambda: self._time(turn))

    def _time(self, turn: int) -> None:
        if self._done or turn != self._turn:
            return
        if time.monotonic() - self._begun >= PATIENCE - 0.001:
            self._end(self._refusal)
        else:
            self.next()

    def failed(self, attempt: _Attempt, data: bytes | None = None) -> None:
        """A server can't be reached, or can't answer (`data` is how it said so)."""
        self._drop(attempt)
        self._refusal = data or self._refusal
        # The next one's turn is now; after the last one, the silent ones may still answer.
        if self._asked < len(self._targets):
            self._owner.loop.after(0, self._hurry)
        elif not self._attempts:
            self._owner.loop.after(0, lambda: None if self._done else self._end(self._refusal))

    def _hurry(self) -> None:
        if not self._done and self._asked < len(self._targets):
            self.next()

    def heard(self, attempt: _Attempt, data: bytes) -> None:
        """A server said something, with the right id."""
        try:
            response = wire.read_response(data)
        except wire.Malformed:
            return
        rcode = response.flags & wire.RCODE
        refused = rcode not in (wire.NOERROR, wire.NXDOMAIN)
        # One who doesn't understand may leave the question out.
        if not response.flags & wire.QR or (wire.folded(response.question) != self._question and not (refused and not response.question)):
            return
        if refused:
            self.failed(attempt, data)
            return
        if self._key is not None:
            self._owner.cache.put(self._key, data, response)
        self._end(data)

    def _end(self, data: bytes | None) -> None:
        self._done = True
        for attempt in list(self._attempts):
            self._drop(attempt)
        self._owner.end(self, data)

    def _drop(self, attempt: _Attempt) -> None:
        self._attempts.discard(attempt)
        attempt.close()


def _socket(where: Target, kind: int) -> socket.socket:
    """A socket for a target; it stays in the namespace that it was made in. Raises OSError."""

    def make() -> socket.socket:
        return socket.socket(socket.AF_INET6 if len(where.address) == 4 else socket.AF_INET, kind | socket.SOCK_NONBLOCK)

    if not where.path:
        return make()
    fd = os.open(where.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        return _visitor().run(fd, make)
    finally:
        os.close(fd)


@functools.cache
def _visitor() -> Visitor:
    """Only where a namespace has a resolver of its own: it is a thread."""
    from atoll.kernel.netns import Visitor

    return Visitor()


class _Attempt:
    """One server asked once, from a socket for that alone."""

    def __init__(self, flight: _Flight, loop: Loop, where: Target, data: bytes, transport: str) -> None:
        self._flight, self._loop = flight, loop
        self._id = secrets.token_bytes(2)
        message = self._id + data[2:]
        self._stream = transport == "tcp"
        self._out = len(message).to_bytes(2, "big") + message if self._stream else message
        self._in = b""
        self._socket: socket.socket | None = None
        try:
            self._socket = made = _socket(where, socket.SOCK_STREAM if self._stream else socket.SOCK_DGRAM)
            with contextlib.suppress(BlockingIOError):
                made.connect(where.address)
            if not self._stream:
                made.send(message)
            loop.watch(made.fileno(), WRITE if self._stream else READ, self._ready)
        except OSError:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            loop.after(0, lambda: flight.failed(self))

    def close(self) -> None:
        if self._socket is not None:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _ready(self, _: int) -> None:
        if self._socket is None:
            return
        try:
            if self._stream and self._out:
                self._out = self._out[self._socket.send(self._out) :]
                if not self._out:
                    self._loop.change(self._socket.fileno(), READ)
                return
            data = self._socket.recv(wire.LARGEST + 2)
        except BlockingIOError:
            return
        except OSError:
            self._flight.failed(self)
            return
        if self._stream:
            if not data:
                self._flight.failed(self)
                return
            self._in += data
            size = int.from_bytes(self._in[:2], "big")
            if len(self._in) < size + 2:
                return
            data = self._in[2 : size + 2]
        if data[:2] == self._id:
            self._flight.heard(self, data)
        # One who says anything else on a stream is asked no more: what comes after it would only pile up.
        if self._stream and self._socket is not None:
            self._flight.failed(self)
