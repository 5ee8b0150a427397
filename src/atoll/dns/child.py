"""The name server's process as its parent sees it. Synchronous; one thread at a time."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from typing import Final

import msgspec

from atoll.dns.frames import STATS, UPDATE, put, take
from atoll.dns.zone import Done, Update
from atoll.errors import Failed

#: Seconds that an update may take.
PATIENCE: Final = 2.0


class NameServer:
    """A name server in the calling thread's network namespace. It ends with its parent, however that ends.

    `pidfd` is readable when the process has ended. Every method raises `Failed` when it has, or when it doesn't answer.
    """

    def __init__(self, *, resolv_conf: str = "/etc/resolv.conf", port: int = 53) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            # -P: the working directory may be anybody's, so no module is taken from there.
            command = [sys.executable, "-P", "-m", "atoll.dns", str(theirs.fileno()), resolv_conf, str(port)]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/"
            )
        self.pidfd = os.pidfd_open(self._process.pid)
        self._socket.settimeout(PATIENCE)
        self._in = bytearray()
        self._done: dict[int, Done] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    def update(self, update: Update) -> tuple[str, ...]:
        """Change what it knows; what is wrong then. The change is in effect when this returns."""
        self.send(update)
        return self.wait(update.serial)

    def send(self, update: Update) -> None:
        """The first half of `update`, to do something else meanwhile."""
        self._send(put(UPDATE, msgspec.msgpack.encode(update)))

    def wait(self, serial: int) -> tuple[str, ...]:
        """The second half: what is wrong after the update of this number."""
        deadline = time.monotonic() + PATIENCE
        while serial not in self._done:
            self._receive(deadline)
        return self._done.pop(serial).errors

    def stats(self) -> dict[str, int]:
        """Counts since the start, and how much there is now."""
        self._send(put(STATS, b""))
        deadline = time.monotonic() + PATIENCE
        while (found := self._receive(deadline)) is None:
            pass
        return found

    def close(self) -> None:
        """End the process and wait for it."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self.pidfd)

    def _send(self, message: bytes) -> None:
        try:
            self._socket.sendall(message)
        except OSError as error:
            raise self._failure(error) from None

    def _receive(self, deadline: float) -> dict[str, int] | None:
        """One message: statistics, or that an update is done, which is noted."""
        while (message := take(self._in)) is None:
            try:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise self._failure(error) from None
            finally:
                with contextlib.suppress(OSError):
                    self._socket.settimeout(PATIENCE)
            if not data:
                raise self._failure(None)
            self._in += data
        kind, body = message
        if kind == STATS:
            return msgspec.msgpack.decode(body, type=dict[str, int])
        done = msgspec.msgpack.decode(body, type=Done)
        self._done[done.serial] = done
        return None

    def _failure(self, error: OSError | None) -> Failed:
        if isinstance(error, TimeoutError) and not select.select([self.pidfd], [], [], 0)[0]:
            return Failed(f"the name server (pid {self.pid}) doesn't answer")
        return Failed(f"the name server (pid {self.pid}) has ended")
