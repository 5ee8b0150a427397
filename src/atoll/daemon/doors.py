"""The doors' socket: calls of the files that runtimes execute (`atoll.frontends.call`), each carried out on the engine's thread.

Whatever a caller sends or doesn't, the others are served: a call has a limited size and time to come in, there is a limit to what is kept
of unfinished ones, and the oldest of them gives way. A door's module is imported when it is first used.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
from typing import TYPE_CHECKING, Final

from atoll.daemon.sockets import listen, peer
from atoll.errors import AtollError, Denied, Invalid
from atoll.frontends.call import ANSWER, CALL, HEAD, Answer, decode_call, encode_answer, failure, size_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from atoll.engine import Engine
    from atoll.frontends.call import Call

#: The module of each door; its `answer(engine, call)` is what carries a call out.
DOORS: Final = {"cni": "atoll.frontends.cni", "netavark": "atoll.frontends.netavark", "plugin": "atoll.frontends.netavark"}
#: Seconds for a call to come in, and for its answer to be taken.
_PATIENCE: Final = 10
#: Calls at once, those among them that have not come in yet, and the bytes of all.
_MOST_CALLS: Final = 2048
_MOST_UNFINISHED: Final = 512
_MOST_BYTES: Final = 64 << 20
_PART: Final = 1 << 18
#: Callers that the kernel keeps until they are accepted; it caps this (net.core.somaxconn).
_BACKLOG: Final = 4096

log = logging.getLogger("atoll")


class _Caller:
    """One connection: the task that serves it, and how many bytes of its call have come in."""

    task: asyncio.Task[None]

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.size = sock, 0


class Doors:
    """Serves `path` from `start` until `close`."""

    def __init__(self, engine: Engine, on_engine: Callable[[Callable[[], bytes]], Awaitable[bytes]], path: Path) -> None:
        self._engine, self._on_engine, self._path = engine, on_engine, path
        self._functions: dict[str, Callable[[Engine, Call], Answer]] = {}
        self._callers: set[_Caller] = set()
        #: Those whose call has not come in yet, the oldest first.
        self._unfinished: dict[_Caller, None] = {}
        self._bytes = 0
        self._accepting: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> None:
        """Raises `Failed`. A stale socket is replaced: holding the state proves that nobody serves it."""
        self._listener = listen(self._path, _BACKLOG)
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def close(self) -> None:
        """Calls that were begun are answered; the others' connections break before the first byte of an answer, so that they are sent
        again to the next daemon."""
        if self._accepting is None:
            return
        self._closing = True
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
        for caller in self._unfinished:
            caller.task.cancel()
        await asyncio.gather(*(caller.task for caller in self._callers), return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                # Out of descriptors or memory: for a while, as others give theirs back.
                log.warning("accepting a call: %s", error)
                await asyncio.sleep(0.1)
                continue
            caller = _Caller(sock)
            self._callers.add(caller)
            self._unfinished[caller] = None
            caller.task = loop.create_task(self._serve(caller))
            # What it has sent already is read before anybody gives way.
            await asyncio.sleep(0)
            if len(self._unfinished) > _MOST_UNFINISHED:
                self._give_way()
            while len(self._callers) >= _MOST_CALLS:
                await asyncio.wait([caller.task for caller in self._callers], return_when=asyncio.FIRST_COMPLETED)

    def _give_way(self) -> bool:
        """Whether the oldest of those that have not come in could be sent away."""
        oldest = next(iter(self._unfinished), None)
        if oldest is None:
            return False
        self._forget(oldest)
        oldest.task.cancel()
        return True

    def _forget(self, caller: _Caller) -> None:
        self._unfinished.pop(caller, None)
        self._bytes -= caller.size
        caller.size = 0

    async def _serve(self, caller: _Caller) -> None:
        try:
            with caller.sock:
                await self._answer(caller)
        except AtollError as error:
            log.warning("a call was refused: %s", error)
        except (OSError, TimeoutError):
            pass  # It has hung up, or it doesn't go on.
        except Exception:
            log.exception("serving a call")
        finally:
            self._callers.discard(caller)
            self._forget(caller)

    async def _answer(self, caller: _Caller) -> None:
        """Raises `AtollError` for what is no call, OSError or TimeoutError when the caller doesn't go on."""
        caller.sock.setblocking(False)
        _check_peer(caller.sock)
        async with asyncio.timeout(_PATIENCE):
            size = size_of(await self._receive(caller, HEAD), CALL)
            call = decode_call(await self._receive(caller, size))
        self._unfinished.pop(caller, None)
        data = await self._on_engine(lambda: self._carry_out(caller.sock, call))
        async with asyncio.timeout(_PATIENCE):
            await asyncio.get_running_loop().sock_sendall(caller.sock, data)

    async def _receive(self, caller: _Caller, size: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray()
        while len(data) < size:
            part = await loop.sock_recv(caller.sock, min(size - len(data), _PART))
            if not part:
                raise ConnectionError("it ended early")
            data += part
            caller.size += len(part)
            self._bytes += len(part)
            while self._bytes > _MOST_BYTES and self._give_way():
                pass
        return bytes(data)

    # --- on the engine's thread ---

    def _carry_out(self, sock: socket.socket, call: Call) -> bytes:
        """The answer without its first four bytes, which are sent here, before anything is changed; nothing for a caller who has gone or
        must go to the next daemon."""
        if self._closing:
            raise ConnectionError("closing")
        # Four bytes into an empty buffer: they never wait.
        sock.send(ANSWER[:4])
        try:
            return encode_answer(self._function(call.door)(self._engine, call))[4:]
        except AtollError as error:
            words = str(error)
        except Exception:
            # A defect of the door's; the client reads it in its own form, and the log says where.
            log.exception("%s: %s", call.door, call.program)
            words = "the daemon failed inside; its log says where"
        return encode_answer(failure(call.door, words))[4:]

    def _function(self, door: str) -> Callable[[Engine, Call], Answer]:
        if door not in self._functions:
            if door not in DOORS:
                raise Invalid(f"there is no door {door[:40]!r}", f"there are {', '.join(DOORS)}")
            self._functions[door] = importlib.import_module(DOORS[door]).answer
        return self._functions[door]


def _check_peer(sock: socket.socket) -> None:
    """The socket's mode decides; the peer's credentials are checked as well, should the mode ever be wrong."""
    uid, _ = peer(sock)
    if uid not in (0, os.geteuid()):
        raise Denied(f"user {uid} may not use the doors")
