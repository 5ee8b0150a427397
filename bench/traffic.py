"""Packets between namespaces that the bench made: round trips, a stream, new connections.

Both ends sit on one core: where a second core would help one variant on one run and not on the next, figures move by a factor of
two. Round trips and new connections are made by one thread that holds both ends, so that what is timed is the path and not the
scheduler.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import netns, tool

if TYPE_CHECKING:
    from bench.variant import Sample

PORT = 80
OUTSIDE = "198.51.100"  # RFC 5737, TEST-NET-2

_MESSAGE = b"x" * 64
_CHUNK = 1 << 17
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Pair:
    """Two attached namespaces, as file descriptors, and the address by which the first one reaches the second."""

    client: int
    server: int
    address: str


@dataclass(frozen=True)
class Published:
    """A client, a server that listens on PORT, and the address and port under which the one is to reach the other."""

    client: int
    server: int
    address: str
    port: int


def pin() -> None:
    """Keep this process, and what it forks, on the last of its cores."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def outside() -> int:
    """A namespace beyond the host, on a wire of its own: the host is OUTSIDE.1, the namespace OUTSIDE.2."""
    fd = netns.create()
    tool.run("ip", "link", "add", "uplink0", "type", "veth", "peer", "name", "eth0", "netns", netns.path(fd))
    tool.run("ip", "addr", "add", f"{OUTSIDE}.1/24", "dev", "uplink0")
    tool.run("ip", "link", "set", "uplink0", "up")
    with netns.inside(fd):
        tool.run("ip", "addr", "add", f"{OUTSIDE}.2/24", "dev", "eth0")
        tool.run("ip", "link", "set", "eth0", "up")
    return fd


@contextmanager
def veth_pair() -> Iterator[Pair]:
    """The least there can be between two namespaces: one veth pair."""
    client, server = netns.create(), netns.create()
    with netns.inside(client):
        tool.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", netns.path(server))
    for fd, address in ((client, "10.65.0.2"), (server, "10.65.0.3")):
        with netns.inside(fd):
            tool.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
            tool.run("ip", "link", "set", "eth0", "up")
    yield Pair(client, server, "10.65.0.3")


@contextmanager
def plain_bridge() -> Iterator[Pair]:
    """Two namespaces on a bridge without any rules."""
    tool.run("ip", "link", "add", "plain0", "type", "bridge", "mcast_snooping", "0")
    tool.run("ip", "link", "set", "plain0", "up")
    ends = {"10.65.0.2": netns.create(), "10.65.0.3": netns.create()}
    for number, (address, fd) in enumerate(ends.items()):
        tool.run(
            *("ip", "link", "add", f"port{number}", "master", "plain0", "up", "type", "veth"),
            *("peer", "name", "eth0", "netns", netns.path(fd)),
        )
        with netns.inside(fd):
            tool.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
            tool.run("ip", "link", "set", "eth0", "up")
    client, server = ends.values()
    yield Pair(client, server, "10.65.0.3")


def _listen(fd: int) -> socket.socket:
    with netns.inside(fd):
        return socket.create_server(("0.0.0.0", PORT), backlog=1024)


def _connected(pair: Pair) -> tuple[socket.socket, socket.socket]:
    with _listen(pair.server) as listener:
        with netns.inside(pair.client):
            near = socket.create_connection((pair.address, PORT), timeout=5)
        far, _ = listener.accept()
    for end in (near, far):
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


@contextmanager
def round_trips(make: Callable[[], AbstractContextManager[Pair]], count: int) -> Iterator[Sample]:
    """Microseconds for 64 bytes there and back; a round gives `count` samples, each the mean of 100 trips."""
    with make() as pair:
        pin()
        near, far = _connected(pair)

        def sample() -> Sequence[float]:
            results: list[float] = []
            for _ in range(count):
                begin = time.perf_counter_ns()
                for _ in range(100):
                    near.send(_MESSAGE)
                    far.recv(64)
                    far.send(_MESSAGE)
                    near.recv(64)
                results.append((time.perf_counter_ns() - begin) / 100 / 1e3)
            return results

        yield sample


def _drain(sock: socket.socket) -> None:
    buffer = bytearray(_CHUNK)
    while sock.recv_into(buffer):
        pass


@contextmanager
def stream(make: Callable[[], AbstractContextManager[Pair]], seconds: float) -> Iterator[Sample]:
    """Gbit/s of one TCP stream to a process that only reads; a round gives one sample over `seconds`."""
    with make() as pair:
        pin()
        near, far = _connected(pair)
        reader = os.fork()
        if reader == 0:
            near.close()
            _drain(far)
            os._exit(0)
        far.close()
        chunk = bytes(_CHUNK)

        def sample() -> Sequence[float]:
            sent, begin = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - begin) < seconds:
                near.sendall(chunk)
                sent += _CHUNK
            return [sent * 8 / elapsed / 1e9]

        try:
            yield sample
        finally:
            near.close()
            with suppress(ProcessLookupError):
                os.kill(reader, signal.SIGKILL)
            os.waitpid(reader, 0)


@contextmanager
def connections(make: Callable[[], AbstractContextManager[Published]], count: int) -> Iterator[Sample]:
    """Microseconds until connect() returns, which is before the server accepts; a round gives `count` samples."""
    with make() as published:
        pin()
        listener = _listen(published.server)

        def sample() -> Sequence[float]:
            results: list[float] = []
            with netns.inside(published.client):
                clients = [socket.socket() for _ in range(count)]
            for client in clients:
                client.settimeout(5)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                begin = time.perf_counter_ns()
                client.connect((published.address, published.port))
                results.append((time.perf_counter_ns() - begin) / 1e3)
                server, _ = listener.accept()
                client.close()
                server.close()
            return results

        yield sample
