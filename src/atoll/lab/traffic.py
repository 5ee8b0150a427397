"""Traffic: servers that say whom they saw, and probes that ask many of them at once.

One loop in the caller's own thread both serves and asks, so nothing runs in the background. A socket stays in the namespace that it was
made in; a `Place` is where to make one.
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
Transport = Literal["tcp", "udp"]
TRANSPORTS: Final[tuple[Transport, ...]] = ("tcp", "udp")

#: How long, in seconds, an answer that must come may take on a busy machine, and how long one that must not come is waited for. The
#: second is short because `Traffic.silence` doesn't rely on it alone.
PATIENCE: Final = 8.0
QUIET: Final = 0.2

_MOST: Final = 65536
#: Level, option that asks for the address a datagram came to, and the message that holds it and pins the answer's source (ip(7), ipv6(7)).
_CAME_TO: Final = {4: (socket.IPPROTO_IP, 8, 8), 6: (socket.IPPROTO_IPV6, 49, 50)}


class Place(Protocol):
    """Where sockets are made: a place of a lab, a `Machine`, or a namespace by its descriptor."""

    name: str

    def run(self, function: Callable[[], T]) -> T: ...


def version_of(address: str) -> Literal[4, 6]:
    return 6 if ":" in address else 4


class Blind(AssertionError):
    """What proves that silence means something wasn't heard itself."""


class Probe(NamedTuple):
    """A question to a port. `local` is the source address to use, else the kernel chooses it; `size` the least number of bytes."""

    source: Place
    address: str
    port: int
    transport: Transport = "tcp"
    local: str = ""
    size: int = 0

    def __str__(self) -> str:
        return f"{self.source.name} to {self.address} port {self.port}/{self.transport}"


class Seen(NamedTuple):
    """What a probe came to: the server that got it and the client's address there; `answered` is false when the answer was lost."""

    server: str
    client: str
    answered: bool = True


class Traffic:
    """Servers and probes in one loop; a context manager that closes all of them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._open = contextlib.ExitStack()
        self._numbers = itertools.count()
        #: Who got which question. Those that nobody waits for an answer to any more are in here as well.
        self._arrivals: dict[bytes, Seen] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._selector.close()

    def serve(self, place: Place, port: int, *, address: str = "", name: str = "") -> None:
        """TCP and UDP servers for both families, or on one address; `name` is what `Seen` calls them (the place's if there is none)."""
        for version in (version_of(address),) if address else (4, 6):
            tcp, udp = place.run(lambda where=(version, address, port): _listeners(*where))  # type: ignore[misc]
            for made, handler in ((tcp, self._accept), (udp, self._datagram)):
                self._open.enter_context(made)
                self._selector.register(made, selectors.EVENT_READ, (handler, made, name or place.name))

    def ask(self, probes: Sequence[Probe], *, patience: float = PATIENCE) -> list[Seen | None]:
        """What became of each probe; None if nothing. All are sent at once. It takes as long as the slowest answer or refusal, at most
        `patience` seconds."""
        questions = self._send(probes, patience)
        return [self._seen(question) for question in questions]

    def unanswered(self, probes: Sequence[Probe]) -> list[str]:
        """Those of the probes, in words, that got no answer."""
        return [str(probe) for probe, seen in zip(probes, self.ask(probes), strict=True) if not (seen and seen.answered)]

    def leaking(self, probes: Sequence[Probe], canaries: Sequence[Probe]) -> list[str]:
        """Those of the probes, in words, that got somewhere though they should not; as `silence` sees it."""
        return [f"{probe}: {seen}" for probe, seen in zip(probes, self.silence(probes, canaries), strict=True) if seen]

    def one(self, source: Place, address: str, port: int, transport: Transport = "tcp", *, local: str = "") -> Seen | None:
        return self.ask([Probe(source, address, port, transport, local)])[0]

    def silence(self, probes: Sequence[Probe], canaries: Sequence[Probe]) -> list[Seen | None]:
        """As `ask`, for probes of which none is expected to get anywhere. That nothing comes of them is believed because `canaries`,
        which differ from them in the target alone, get their answers before and after. Raises `Blind` if not."""
        self._hear(canaries, "before")
        questions = self._send(probes, QUIET)
        self._hear(canaries, "after")
        return [self._seen(question) for question in questions]

    def _hear(self, canaries: Sequence[Probe], when: str) -> None:
        if lost := self.unanswered(canaries):
            raise Blind(f"canaries {when} the probes got no answer: {', '.join(lost)}")

    def _send(self, probes: Sequence[Probe], patience: float) -> list[_Question]:
        end = time.monotonic() + patience
        with contextlib.ExitStack() as stack:
            questions = [_Question(probe, (b"%06d" % next(self._numbers)).ljust(probe.size, b".")) for probe in probes]
            for question in questions:
                stack.callback(self._forget, question)
                if not question.done:
                    self._watch(question)
            while not all(question.done for question in questions) and (rest := end - time.monotonic()) > 0:
                for key, _ in self._selector.select(rest):
                    handler, *arguments = key.data
                    handler(*arguments)
        return questions

    def _seen(self, question: _Question) -> Seen | None:
        arrived = self._arrivals.get(question.token)
        return arrived._replace(answered=question.answered) if arrived else None

    def _watch(self, question: _Question) -> None:
        events = selectors.EVENT_READ if question.sent else selectors.EVENT_WRITE
        self._selector.register(question.socket, events, (self._progress, question))

    def _progress(self, question: _Question) -> None:
        self._selector.unregister(question.socket)
        question.proceed()
        if not question.done:
            self._watch(question)

    def _forget(self, question: _Question) -> None:
        if not question.done:
            self._selector.unregister(question.socket)
            question.close()

    def _accept(self, listener: socket.socket, name: str) -> None:
        connection, peer = listener.accept()
        connection.setblocking(False)
        self._open.enter_context(connection)
        self._selector.register(connection, selectors.EVENT_READ, (self._stream, connection, name, peer[0]))

    def _stream(self, connection: socket.socket, name: str, client: str) -> None:
        self._selector.unregister(connection)
        with connection, contextlib.suppress(ConnectionError):
            token = connection.recv(_MOST)
            self._arrivals[token] = Seen(name, client)
            connection.send(token)

    def _datagram(self, server: socket.socket, name: str) -> None:
        token, ancillary, _, peer = server.recvmsg(_MOST, 100)
        self._arrivals[token] = Seen(name, peer[0])
        version = 6 if server.family == socket.AF_INET6 else 4
        level, _, kind = _CAME_TO[version]
        ((_, _, told),) = ancillary
        # in6_pktinfo is the address and an interface; in_pktinfo an interface, the address to answer from and that in the header.
        pinned = told[:16] + bytes(4) if version == 6 else bytes(4) + told[4:8] + bytes(4)
        with contextlib.suppress(OSError):
            server.sendmsg([token], [(level, kind, pinned)], 0, peer)


class _Question:
    """A probe under way; done when it was answered, refused or closed."""

    def __init__(self, probe: Probe, token: bytes) -> None:
        self.token = token
        self.answered = self.sent = self.done = False
        version = version_of(probe.address)
        self.socket = probe.source.run(lambda: _socket(version, probe.transport))
        with self._failure_is_the_end():
            if probe.local:
                self.socket.bind((probe.local, 0))
            try:
                self.socket.connect((probe.address, probe.port))
            except BlockingIOError:
                return
            self._send()

    def proceed(self) -> None:
        """The socket is connected, or has an answer."""
        with self._failure_is_the_end():
            if self.sent:
                self.answered = self.socket.recv(_MOST) == self.token
                self.close()
            else:
                self._send()

    def _send(self) -> None:
        self.socket.send(self.token)
        self.sent = True

    @contextlib.contextmanager
    def _failure_is_the_end(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.close()

    def close(self) -> None:
        self.done = True
        self.socket.close()


def _socket(version: int, transport: Transport) -> socket.socket:
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    return socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, kind | socket.SOCK_NONBLOCK)


def _listeners(version: int, address: str, port: int) -> tuple[socket.socket, socket.socket]:
    tcp, udp = (_socket(version, transport) for transport in TRANSPORTS)
    # Connections of an earlier server that linger in TIME_WAIT don't hold its port; a server does in spite of this.
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        for made in (tcp, udp):
            if version == 6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((address or ("::" if version == 6 else "0.0.0.0"), port))
    except OSError:
        tcp.close()
        udp.close()
        raise
    tcp.listen(1024)
    level, option, _ = _CAME_TO[version]
    udp.setsockopt(level, option, 1)
    return tcp, udp
