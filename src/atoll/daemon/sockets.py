"""Unix sockets as the daemon makes them, and who is at their other end."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING

from atoll.errors import Failed

if TYPE_CHECKING:
    from pathlib import Path


def listen(path: Path, backlog: int = 128) -> socket.socket:
    """A socket for its owner alone (mode 0600). A stale one is replaced: the daemon holds the state, which proves that nobody serves it.
    Raises `Failed`."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise Failed(f"listening on {path}: {error.strerror or error}", "set ATOLL_RUN to a shorter or writable path") from None
    finally:
        os.umask(mask)
    return sock


def peer(sock: socket.socket) -> tuple[int, int]:
    """The uid and gid of the process that connected (unix(7), SO_PEERCRED)."""
    _, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid, gid
