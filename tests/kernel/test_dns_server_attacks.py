"""One client does its worst, and another is answered all the same, from a server that stays as small as it was."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import dns.message
import dns.query
import pytest

from atoll.dns import forward
from atoll.dns.stream import OF_CLIENT
from tests.kernel.dns_lab import (
    Upstream,
    answering,
    ask,
    cable,
    dgram,
    endpoint,
    name_server,
    network_names,
    query,
    silent,
    stream,
    v4,
    zone,
)
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from atoll.dns.child import NameServer
    from atoll.lab.machine import Machine

BAD, GOOD, UPSTREAM = 2, 3, 51
#: MiB that the server may grow by, whatever comes.
GROWTH = 48


@pytest.fixture
def server(host: None) -> Iterator[NameServer]:
    with name_server() as started:
        front = network_names("front", servers=(v4("out", UPSTREAM),))
        assert started.update(zone(front, endpoints=(endpoint("front", BAD, "bad"), endpoint("front", GOOD, "good")))) == ()
        yield started


@pytest.fixture
def front(server: NameServer) -> Iterator[Machine]:
    with cable("front", (BAD, GOOD)) as machine:
        yield machine


@pytest.fixture
def canary(server: NameServer, front: Machine) -> Iterator[Callable[[], None]]:
    """Asks as the good client and must be answered; the server's memory is looked at in the end."""
    sock = dgram(front, v4("front", GOOD), v4("front", 1))

    def sing() -> None:
        question = query("good")
        sock.send(question.to_wire())
        answer = dns.message.from_wire(sock.recv(512))
        assert question.is_response(answer)
        assert answer.answer[0][0].to_text() == v4("front", GOOD)

    with sock:
        sing()
        before = resident(server.pid)
        yield sing
        sing()
        assert ask(front, v4("front", GOOD), v4("front", 1), "good", transport="tcp") == [v4("front", GOOD)]
        assert resident(server.pid) - before < GROWTH


def resident(pid: int) -> float:
    return next(int(line.split()[1]) / 1024 for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))


def noise(random_: random.Random) -> bytes:
    """Bytes that look like a query more or less."""
    data = bytearray(query(random_.choice(["good", "x.atoll", "www.example", "a.b.c.d.e"]), random_.choice(["A", "ANY", "SRV"])).to_wire())
    for _ in range(random_.randrange(6)):
        match random_.randrange(5):
            case 0:
                data[random_.randrange(len(data))] = random_.choice([0, 1, 0x3F, 0x40, 0xC0, 0xFF, random_.randrange(256)])
            case 1:
                del data[random_.randrange(len(data)) :]
                data += b"\0"
            case 2:
                data += random_.randbytes(random_.randrange(40))
            case 3:
                data = bytearray(random_.randbytes(random_.randrange(1, 80)))
            case _:
                data[12:12] = b"\xc0\x0c"
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_nonsense_by_datagram(front: Machine, canary: Callable[[], None], seed: int) -> None:
    made = random.Random(seed)
    with dgram(front, v4("front", BAD), v4("front", 1)) as sock:
        sock.setblocking(False)
        for number in range(6000):
            with contextlib.suppress(BlockingIOError):
                sock.send(noise(made))
            if number % 100 == 0:
                canary()
                with contextlib.suppress(BlockingIOError):
                    while True:
                        assert sock.recv(65535)[2] & 0x80


def test_nonsense_by_stream(front: Machine, server: NameServer, canary: Callable[[], None]) -> None:
    made = random.Random(7)
    for number in range(300):
        with stream(front, v4("front", BAD), v4("front", 1)) as sock, contextlib.suppress(ConnectionError):
            data = noise(made)
            length = len(data) if number % 3 else made.randrange(65536)
            sock.sendall(length.to_bytes(2, "big") + data)
            if number % 5 == 0:
                sock.sendall(made.randbytes(made.randrange(200_000)))
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        if number % 10 == 0:
            canary()
    deadline = time.monotonic() + PATIENCE + forward.PATIENCE
    while server.stats()["connections"]:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("message", [b"\0\0", b"\0\5hello", b"\0\x0c" + bytes(2) + b"\x80" + bytes(9)])
def test_what_isnt_dns_ends_its_connection_at_once(front: Machine, canary: Callable[[], None], message: bytes) -> None:
    """A length that says zero once kept aardvark-dns busy for ever, CVE-2026-35406."""
    with stream(front, v4("front", BAD), v4("front", 1)) as sock:
        sock.sendall(message)
        begun = time.monotonic()
        assert sock.recv(1) == b""
        assert time.monotonic() - begun < 2.5
        canary()


def test_responses_are_not_answered(front: Machine, canary: Callable[[], None]) -> None:
    """Else two servers would talk for ever."""
    with dgram(front, v4("front", BAD), v4("front", 1)) as sock:
        for _ in range(100):
            response = dns.message.make_response(query("good"))
            sock.send(response.to_wire())
        canary()
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(512)


def test_one_client_has_so_many_connections_and_the_others_have_theirs(
    front: Machine, server: NameServer, canary: Callable[[], None]
) -> None:
    with contextlib.ExitStack() as stack:
        open_ = [stack.enter_context(stream(front, v4("front", BAD), v4("front", 1))) for _ in range(OF_CLIENT + 100)]
        canary()
        assert ask(front, v4("front", GOOD), v4("front", 1), "good", transport="tcp") == [v4("front", GOOD)]
        for late in open_[OF_CLIENT:]:
            with contextlib.suppress(ConnectionResetError):
                assert late.recv(1) == b""
        assert server.stats()["connections"] <= OF_CLIENT + 1
        for early in open_[:OF_CLIENT]:  # silent, or slow as one byte a second: it ends
            with contextlib.suppress(ConnectionError):
                early.send(b"\0")
        for early in open_[:OF_CLIENT]:
            with contextlib.suppress(ConnectionResetError):
                assert early.recv(1) == b""
    assert server.stats()["connections"] == 0


def test_who_takes_no_answers_is_read_no_further(front: Machine, server: NameServer, canary: Callable[[], None]) -> None:
    message = query("good").to_wire()
    with stream(front, v4("front", BAD), v4("front", 1)) as sock:
        sock.settimeout(0.2)
        data = (len(message).to_bytes(2, "big") + message) * 1000
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while sent < 100 << 20:
                sent += sock.send(data)
                canary()
        assert sent < 100 << 20


def test_a_flood_of_questions_for_others_leaves_room_for_the_rest(front: Machine, server: NameServer, canary: Callable[[], None]) -> None:
    with cable("out", (UPSTREAM,)) as out:
        with Upstream(out, [v4("out", UPSTREAM)], silent), dgram(front, v4("front", BAD), v4("front", 1)) as sock:
            sock.setblocking(False)
            for number in range(2000):
                with contextlib.suppress(BlockingIOError):
                    sock.send(query(f"w{number}.example").to_wire())
                if number % 100 == 0:
                    canary()
            found = server.stats()
            assert found["forwarding"] <= forward.OF_CLIENT
            assert found["shed"] > 0
        with Upstream(out, [v4("out", UPSTREAM)], answering("192.0.2.1")):
            assert ask(front, v4("front", GOOD), v4("front", 1), "www.other") == ["192.0.2.1"]
        deadline = time.monotonic() + PATIENCE + forward.PATIENCE
        while server.stats()["forwarding"]:
            assert time.monotonic() < deadline
        sockets = [link for link in _links(server.pid) if link.startswith("socket:")]
        assert len(sockets) <= 2 * 2 + 1 + 3


def test_a_name_spelled_in_every_way_costs_no_memory(front: Machine, server: NameServer, canary: Callable[[], None]) -> None:
    with dgram(front, v4("front", BAD), v4("front", 1)) as sock:
        sock.setblocking(False)
        for number in range(20_000):
            with contextlib.suppress(BlockingIOError):
                sock.send(query(f"n{number}.atoll").to_wire())
            if number % 200 == 0:
                canary()
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock.recv(512)


def _links(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found
