"""The doors' socket against whoever may connect to it: nothing that one sends keeps the others waiting."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import stat
import struct
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from atoll.frontends import forwarder
from atoll.frontends.call import ANSWER, CALL, HEAD, MOST, Answer, Call, decode_answer, encode_call, size_of
from tests.daemon.doors import EchoDaemon
from tests.daemon.processes import NOBODY
from tests.support import lenient


def read(sock: socket.socket) -> bytes:
    """All that comes until the daemon hangs up."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(1 << 20):
            data += part
    return data


def ask(echoing: EchoDaemon, call: Call) -> Answer:
    with echoing.knock() as sock:
        sock.sendall(encode_call(call))
        data = read(sock)
    assert size_of(data[:HEAD], ANSWER) == len(data) - HEAD
    return decode_answer(data[HEAD:])


def serves(echoing: EchoDaemon) -> bool:
    """Whether a good call is answered as ever."""
    answer = ask(echoing, Call("cni", "/opt/cni/bin/bridge", ("a",), {"CNI_COMMAND": "ADD"}, b"{}", "/"))
    return answer.code == 0 and json.loads(answer.stdout)["call"]["program"] == "/opt/cni/bin/bridge" and echoing.alive


def refused(echoing: EchoDaemon, data: bytes) -> bool:
    """Whether these bytes get no answer at all, and the others still get theirs."""
    with echoing.knock() as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        answer = read(sock)
    return answer == b"" and serves(echoing)


def test_the_socket_is_its_owners_alone(echoing: EchoDaemon) -> None:
    about = os.stat(echoing.run / "doors.sock")
    assert (stat.S_IMODE(about.st_mode), about.st_uid) == (0o600, os.geteuid())


def test_a_call_is_answered_and_the_next_one_too(echoing: EchoDaemon) -> None:
    assert serves(echoing)
    assert serves(echoing)


def test_an_unknown_door_is_an_error_for_the_caller(echoing: EchoDaemon) -> None:
    for door in ("docker", "", "../cni", "os", "x" * 100_000, "\udcff"):
        answer = ask(echoing, Call(door, "/x"))
        assert answer.code == 1
        assert json.loads(answer.stdout)["error"].startswith("there is no door")
    assert serves(echoing)


def test_an_answer_that_is_too_large_is_an_error_for_the_caller(echoing: EchoDaemon) -> None:
    answer = ask(echoing, Call("cni", "/x", stdin=json.dumps({"say": {"stdout": "x", "times": MOST}}).encode()))
    assert answer.code == 1
    assert "too large" in json.loads(answer.stdout)["msg"]
    answer = ask(echoing, Call("cni", "/x", stdin=json.dumps({"say": {"code": 256}}).encode()))
    assert "256" in json.loads(answer.stdout)["msg"]


GOOD = encode_call(Call("cni", "/opt/cni/bin/bridge", ("a", "b"), {"CNI_COMMAND": "ADD"}, b"{}", "/"))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"A", id="one byte"),
        pytest.param(GOOD[:HEAD], id="head alone"),
        pytest.param(GOOD[:-1], id="cut"),
        pytest.param(b"GET /v1/status HTTP/1.1\r\nHost: atoll\r\n\r\n", id="HTTP"),
        pytest.param(CALL + struct.pack(">I", 0), id="empty"),
        pytest.param(CALL + struct.pack(">I", MOST + 1) + GOOD[HEAD:], id="too large"),
        pytest.param(CALL + b"\xff\xff\xff\xff" + bytes(1000), id="huge"),
        pytest.param(CALL + struct.pack(">I", 4) + b"\xff\xff\xff\xff", id="huge field"),
        pytest.param(CALL + struct.pack(">I", MOST) + bytes(MOST), id="zeros"),
        pytest.param(GOOD.replace(b"bridge", b"br\0dge"), id="NUL"),
        pytest.param(GOOD.replace(b"CNI_COMMAND", b"LD_PRELOAD_"), id="another variable"),
    ],
)
def test_what_is_no_call_is_hung_up_on(echoing: EchoDaemon, data: bytes) -> None:
    assert refused(echoing, data)


def test_random_bytes_and_spoiled_calls_never_stop_the_daemon(echoing: EchoDaemon) -> None:
    chance = random.Random(4)
    for _ in range(150):
        data = bytearray(GOOD)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with echoing.knock() as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data if chance.random() < 0.7 else chance.randbytes(chance.randint(1, 500)))
            sock.shutdown(socket.SHUT_WR)
            read(sock)
    assert serves(echoing)


def test_a_thousand_who_say_nothing_keep_nobody_waiting(echoing: EchoDaemon) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(1000):
            sock = stack.enter_context(echoing.knock())
            sock.sendall(GOOD[: number % len(GOOD)])
        assert serves(echoing)
        assert echoing.call("GET", "/v1/status")["pid"] == echoing.pid


def test_unfinished_calls_never_take_more_memory_than_their_limit(echoing: EchoDaemon) -> None:
    head = CALL + struct.pack(">I", MOST)
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            sock = stack.enter_context(echoing.knock())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(head + bytes(MOST - 1))
        assert serves(echoing)
        status = dict(line.split(":", 1) for line in Path(f"/proc/{echoing.pid}/status").read_text().splitlines())
    assert int(status["VmHWM"].split()[0]) < 250 * 1024


def test_a_caller_who_takes_no_answer_keeps_nobody_waiting(echoing: EchoDaemon) -> None:
    call = encode_call(Call("cni", "/x", stdin=json.dumps({"say": {"stdout": "x" * 4_000_000}}).encode()))
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(echoing.knock()).sendall(call)
        assert serves(echoing)


def test_a_call_of_one_who_has_gone_is_not_carried_out(echoing: EchoDaemon, tmp_path: Path) -> None:
    """The engine is busy with another call when it comes in: by the time that it could begin, nobody wants it."""
    with echoing.knock() as first, echoing.knock() as second:
        first.sendall(encode_call(Call("cni", "/x", stdin=json.dumps({"wait": str(tmp_path / "go")}).encode())))
        assert first.recv(4) == ANSWER
        second.sendall(encode_call(Call("cni", "/x", stdin=json.dumps({"make": str(tmp_path / "made")}).encode())))
        second.close()
        third = threading.Thread(target=serves, args=(echoing,))
        third.start()
        (tmp_path / "go").touch()
        third.join()
    assert not (tmp_path / "made").exists()


def test_a_daemon_that_is_stopped_answers_what_it_has_begun_and_nothing_else(echoing: EchoDaemon, tmp_path: Path) -> None:
    with echoing.knock() as first, echoing.knock() as second, echoing.knock() as third:
        first.sendall(encode_call(Call("cni", "/x", stdin=json.dumps({"wait": str(tmp_path / "go")}).encode())))
        assert first.recv(4) == ANSWER
        second.sendall(encode_call(Call("cni", "/x", stdin=json.dumps({"make": str(tmp_path / "made")}).encode())))
        third.sendall(GOOD[:20])
        echoing.call("POST", "/v1/stop")
        assert read(third) == b""
        (tmp_path / "go").touch()
        assert read(first)[4:] != b""
        assert read(second) == b""
        assert echoing.has_died()
    assert not (tmp_path / "made").exists()
    assert not (echoing.run / "doors.sock").exists()


_KNOCK = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
try:
    sock.sendall(bytes.fromhex(sys.argv[2]))
    answer = sock.recv(1)
except ConnectionError:
    answer = b""
print("served" if answer else "hung up")
"""


def test_another_user_is_not_served_even_if_the_mode_is_wrong(host: None) -> None:
    lenient()
    with tempfile.TemporaryDirectory(prefix="atoll-") as folder, EchoDaemon(Path(folder)) as echoing:
        echoing.start()
        Path(folder).chmod(0o755)
        (echoing.run / "doors.sock").chmod(0o666)
        command = [forwarder.interpreter(), "-ISBc", _KNOCK, str(echoing.run / "doors.sock"), GOOD.hex()]
        try:
            done = subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, check=False)
        except OSError as error:
            pytest.skip(f"needs root, to become user {NOBODY}, and an interpreter for that user: {error}")
        assert (done.stdout, done.stderr) == (b"hung up\n", b"")
        assert serves(echoing)
