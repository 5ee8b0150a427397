"""The client of the daemon: HTTP/1.0 on its unix socket. Starts the daemon when none answers.

Written by hand on a bare socket, because importing an HTTP library takes longer than everything else that a short command does.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

from atoll import paths, starting
from atoll.errors import BY_NAME, AtollError, Denied, Failed, Invalid

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

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


def delete(path: str, *, dry_run: bool = False, force: bool = False, interface: str = "") -> Any:
    words = ["dry_run=1"] * dry_run + ["force=1"] * force + ([f"interface={quote(interface)}"] if interface else [])
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


def _connect(start: bool) -> socket.socket:
    try:
        return starting.open_socket()
    except PermissionError:
        path = paths.socket_path()
        raise Denied(
            f"may not use the daemon at {path}", "be root or in the group atoll, or unset ATOLL_RUN for a host of your own"
        ) from None
    except OSError:
        if not start:
            raise Failed("no daemon is running", "atoll daemon run, or any command that needs one") from None
    starting.start_daemon()
    try:
        return starting.open_socket()
    except OSError as error:
        raise Failed(f"the daemon has ended again ({error.strerror})", f"see {paths.run_folder()}/daemon.log") from None


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
