"""The client of the daemon: HTTP/1.0 on its unix socket. Starts the daemon when none answers.

Written by hand on a bare socket, because importing an HTTP library takes longer than everything else that a short command does.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from atoll import paths
from atoll.errors import BY_NAME, AtollError, Conflict, Denied, Failed, Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A change waits its turn behind others; a daemon that says nothing for this long (seconds) is stuck.
_PATIENCE: Final = 120
#: For how long a daemon is started anew while another one has the state, and how long each time for that one to serve (seconds).
_START: Final = 30
_PAUSE: Final = 0.5
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def quote(name: str) -> str:
    """A name as one part of a path. What can't be a name is refused by the daemon, with its own words, but for the empty one, which no
    path can carry; of a long one the beginning does, as nothing has a name of that length."""
    if not name:
        raise Invalid("a name is empty", "atoll network ls and atoll ns ls show what there is")
    data = name[:200].encode("utf-8", "replace")
    return "".join(chr(byte) if chr(byte) in _PLAIN else f"%{byte:02X}" for byte in data)


def get(path: str) -> Any:
    return request("GET", path)


def post(path: str, body: dict[str, Any] | None = None, *, dry_run: bool = False) -> Any:
    return request("POST", path + ("?dry_run=1" if dry_run else ""), body)


def delete(path: str, *, dry_run: bool = False, interface: str = "") -> Any:
    words = ["dry_run=1"] * dry_run + ([f"interface={quote(interface)}"] if interface else [])
    return request("DELETE", "?".join([path, "&".join(words)] if words else [path]))


def request(method: str, path: str, body: dict[str, Any] | None = None, *, start: bool = True) -> Any:
    """The answer's JSON. Raises the error that the daemon answers with, as its own class."""
    with _connect(start) as sock:
        data = bytearray()
        try:
            _send(sock, method, path, body)
            while part := sock.recv(1 << 20):
                data += part
        except TimeoutError:
            raise Failed(f"the daemon at {paths.socket_path()} does not answer", "its log is beside its socket") from None
        except ConnectionError:
            pass  # It has ended. What it said before, if anything, counts.
    return _parse(bytes(data))


def stream(path: str) -> Iterator[dict[str, Any]]:
    """The events of a followed stream, as they come, until the daemon ends."""
    with _connect(start=True) as sock, sock.makefile("rb") as lines:
        status = b""
        with contextlib.suppress(ConnectionError):
            _send(sock, "GET", path, None)
            status = lines.readline()
        if b" 200 " not in status:
            _parse(status + lines.read())
        sock.settimeout(None)
        with contextlib.suppress(ConnectionError):
            for line in lines:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])


def running() -> bool:
    try:
        _open().close()
    except OSError:
        return False
    return True


def _check_folder() -> None:
    """In /tmp anybody may have made the folder that is a user's without XDG_RUNTIME_DIR, and would choose who answers there."""
    above = os.path.dirname(paths.run_folder())
    if above != f"/tmp/atoll-{os.geteuid()}":  # noqa: S108 - that is what is looked at
        return
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(above).st_uid != os.geteuid():
            raise Denied(f"{above} belongs to another user", "set XDG_RUNTIME_DIR or ATOLL_RUN to a folder of your own")


def _open() -> socket.socket:
    _check_folder()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_PATIENCE)
        sock.connect(paths.socket_path())
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(start: bool) -> socket.socket:
    try:
        return _open()
    except PermissionError:
        path = paths.socket_path()
        raise Denied(
            f"may not use the daemon at {path}", "be root or in the group atoll, or unset ATOLL_RUN for a host of your own"
        ) from None
    except OSError:
        if not start:
            raise Failed("no daemon is running", "atoll daemon run, or any command that needs one") from None
    start_daemon()
    try:
        return _open()
    except OSError as error:
        raise Failed(f"the daemon has ended again ({error.strerror})", f"see {paths.run_folder()}/daemon.log") from None


def ensure_daemon() -> None:
    """Start the daemon, if none runs, from a process that ends: it must be no child of a program that this process turns into.

    Why it can't be started is left for the first request to say.
    """
    if running():
        return
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            start_daemon()
        os._exit(0)
    os.waitpid(child, 0)


def start_daemon() -> None:
    """Start a daemon of our own and wait until it answers. Raises the error that kept it from that."""
    deadline = time.monotonic() + _START
    while error := _start():
        # Another client may have started one in the same moment, and that one serves us, too; or one is about to end.
        pause = time.monotonic() + _PAUSE
        if not isinstance(error, Conflict) or pause > deadline:
            raise error
        while time.monotonic() < pause:
            if running():
                return
            time.sleep(0.02)


def _start() -> AtollError | None:
    """Start a daemon and wait until it serves. The error that it ends with when it doesn't."""
    import subprocess

    run = paths.run_folder()
    try:
        os.makedirs(run, exist_ok=True, mode=0o755)
        log = open(os.path.join(run, "daemon.log"), "ab")  # noqa: SIM115 - the daemon keeps it
    except OSError as error:
        raise Denied(f"may not write to {run} ({error.strerror})", "run as root, or set ATOLL_RUN to a folder of your own") from None
    reader, writer = os.pipe()
    # Without `-P` a file called atoll.py in the current folder would be run instead.
    command = [sys.executable, "-P", "-m", "atoll.daemon", "--ready-fd", str(writer)]
    with log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writer,), start_new_session=True, cwd="/"
        )
    os.close(writer)
    words = _read_all(reader)
    if words:
        code = process.wait()
        kind = next((kind for kind in BY_NAME.values() if kind.exit_code == code), Failed)
        return kind(f"the daemon did not start: {words}")
    if not running():
        return Failed(f"the daemon did not start (exit code {process.poll()})", f"see {run}/daemon.log")
    return None


def _read_all(fd: int) -> str:
    data = b""
    with os.fdopen(fd, "rb") as reader:
        data = reader.read()
    return data.decode("utf-8", "replace")


def _send(sock: socket.socket, method: str, path: str, body: dict[str, Any] | None) -> None:
    payload = json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/1.0\r\nHost: atoll\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    sock.sendall(head.encode() + payload)


def _parse(data: bytes) -> Any:
    head, separator, body = data.partition(b"\r\n\r\n")
    try:
        status = int(head.split(None, 2)[1])
        found = json.loads(body) if separator else None
    except (ValueError, IndexError):
        raise Failed("the daemon ended before it had answered", "try again; atoll doctor shows whether anything is amiss") from None
    if status < 400:
        return found
    error = found.get("error", {}) if isinstance(found, dict) else {}
    kind = BY_NAME.get(str(error.get("kind")), AtollError)
    raise kind(str(error.get("what") or f"the daemon answered {status}"), str(error.get("hint", "")))
