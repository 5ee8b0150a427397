"""The daemon's edge: HTTP on a unix socket in front of one engine on one thread.

Everything that touches the engine goes through `Server.on_engine`, one call at a time in the order of arrival, so the engine has a
single writer and needs no lock. The event loop only moves bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import pwd
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from aiohttp import web

import atoll
from atoll.daemon.calls import ROUTES, decode, flag
from atoll.daemon.doors import Doors
from atoll.daemon.events import Events
from atoll.daemon.neighbourhood import Neighbourhood
from atoll.daemon.sockets import listen, peer
from atoll.daemon.watcher import Watcher
from atoll.engine import Engine
from atoll.engine.files import Files, links_of_the_machine
from atoll.errors import AtollError, Denied, Failed, Invalid
from atoll.frontends import docker

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from atoll.daemon.calls import Call

T = TypeVar("T")

_GROUP: Final = "atoll"
_MOST_BYTES: Final = 1 << 20
#: From the first event of a burst to the look at it: long enough that one look serves many, short against the second that repair may take.
_GATHER: Final = 0.03
_TICK: Final = 0.5
#: Nothing was removed for this long, so what was is settled.
_IDLE: Final = 0.1
#: Others change rules in many transactions; the last one counts.
_SETTLED: Final = 0.2

_DNS_HELP: Final = "names are not answered there until that is put right"

log = logging.getLogger("atoll")


class Server:
    def __init__(self, state: Path, run: Path) -> None:
        self._state, self._run = state, run
        self._thread = ThreadPoolExecutor(1, "atoll-engine")
        self._events = Events()
        self._stopping = asyncio.Event()
        self._started = time.time()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refresh_due: asyncio.TimerHandle | None = None
        self._settle_due: asyncio.TimerHandle | None = None
        self._names_fd = -1

    async def on_engine(self, function: Callable[[], T]) -> T:
        """Run a function on the engine's thread, after what was asked before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def serve(self, ready: Callable[[], None]) -> None:
        """Until a signal or a request says stop. Raises `Conflict` when another daemon serves this state."""
        loop = asyncio.get_running_loop()
        files = Files(self._run / "netns", links_of_the_machine())
        self._engine = await self.on_engine(lambda: Engine.open(self._state, own_thread=True, dns=True, files=files))

        def hear(kind: str, fields: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(self._heard, kind, fields)

        self._engine.listener = hear
        self._engine.logs = self._run / "logs"
        self._watcher = await self.on_engine(lambda: Watcher(self._engine))
        self._neighbourhood = Neighbourhood(self._engine, self.on_engine)
        await self._neighbourhood.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=1)
        await runner.setup()
        doors = Doors(self._engine, self.on_engine, self._run / "doors.sock")
        door = await self.on_engine(lambda: docker.Door(self._engine))
        plugin = web.AppRunner(docker.application(door, self.on_engine), access_log=None, shutdown_timeout=1)
        await plugin.setup()
        self._docker = docker.Watch(door, self.on_engine, str(self._state))
        try:
            await web.SockSite(runner, self._listen()).start()
            await web.SockSite(plugin, listen(self._run / "docker.sock")).start()
            doors.start()
            await self._docker.start()
            self._watch(loop)
            self._watch_names()
            ready()
            await self._stopping.wait()
        finally:
            for name in ("atoll.sock", "docker.sock"):
                with contextlib.suppress(OSError):
                    (self._run / name).unlink()
            await doors.close()
            await self._docker.stop()
            for task in self._tasks:
                task.cancel()
            self._forget_names()
            await runner.cleanup()
            await plugin.cleanup()
            await self._neighbourhood.stop()
            await self.on_engine(self._watcher.close)
            await self.on_engine(self._engine.close)
            self._thread.shutdown()

    # --- the socket ---

    def _listen(self) -> socket.socket:
        """The socket for the owner and the group `atoll`."""
        self._run.mkdir(parents=True, exist_ok=True, mode=0o755)
        if self._run.stat().st_uid != os.geteuid():
            raise Denied(f"{self._run} belongs to another user", "set ATOLL_RUN to a folder of your own")
        path = self._run / "atoll.sock"
        sock = listen(path)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(path, -1, grp.getgrnam(_GROUP).gr_gid)
            path.chmod(0o660)
        return sock

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._guarded], client_max_size=_MOST_BYTES)
        for (method, path), call in ROUTES.items():
            app.router.add_route(method, path, self._handler(call))
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/docker", self._docker_status)
        app.router.add_get("/v1/events", self._follow)
        app.router.add_post("/v1/stop", self._stop)
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """Every error is one line in the API's own form, and nobody is served who may not be."""
        try:
            self._check_peer(request)
            return await handler(request)
        except AtollError as error:
            return _refusal(error)
        except web.HTTPException as error:
            return _refusal(Invalid(f"{request.method} {request.path}: {error.reason}", "see docs/api.md"), error.status)
        except Exception:
            log.exception("%s %s", request.method, request.path)
            return _refusal(Failed(f"{request.method} {request.path} failed inside", "the daemon's log says where"))

    def _check_peer(self, request: web.Request) -> None:
        """The socket's mode decides; the peer's credentials are checked as well, should the mode ever be wrong."""
        sock = request.transport.get_extra_info("socket") if request.transport else None
        if sock is None:
            raise Denied("the caller has hung up")
        uid, gid = peer(sock)
        if uid in (0, os.geteuid()):
            return
        with contextlib.suppress(KeyError):
            allowed = grp.getgrnam(_GROUP).gr_gid
            if os.geteuid() == 0 and (gid == allowed or allowed in os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)):
                return
        raise Denied(f"user {uid} may not use this daemon", f"be root or a member of the group {_GROUP}")

    # --- requests ---

    def _handler(self, call: Call) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            body = decode(call.body, await request.read())
            where = {**request.query, **request.match_info}
            dry_run = flag(request.query, "dry_run")
            if dry_run and call.plan is None:
                raise Invalid(f"{request.method} {request.path} has no dry run")

            def work() -> tuple[Any, float]:
                start = time.perf_counter()
                if dry_run and call.plan is not None:
                    found: Any = {"commands": call.plan(self._engine, where, body).commands()}
                else:
                    found = call.do(self._engine, where, body)
                return found, time.perf_counter() - start

            found, seconds = await self.on_engine(work)
            # Server-Timing (W3C) in milliseconds: what the engine took, without the way to it.
            return _json(found, headers={"Server-Timing": f"engine;dur={seconds * 1000:.3f}"})

        return answer

    async def _status(self, _: web.Request) -> web.Response:
        engine = self._engine

        def look() -> dict[str, Any]:
            return {
                "version": atoll.__version__,
                "pid": os.getpid(),
                "started": self._started,
                "state": str(self._state),
                "socket": str(self._run / "atoll.sock"),
                "rootless": Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"],
                "networks": len(engine.state.networks),
                "namespaces": len(engine.state.namespaces),
                "endpoints": len(engine.state.endpoints),
                "dns": {"process": engine.names.pid, **engine.names.stats()},
                "problems": [
                    *self._neighbourhood.problems(),
                    *self._docker.problems(),
                    *({"what": what, "help": _DNS_HELP} for what in engine.names.faults()),
                ],
            }

        return _json(await self.on_engine(look))

    async def _docker_status(self, _: web.Request) -> web.Response:
        return _json(await self._docker.status())

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        """Events as server-sent events; without `follow` those that are still remembered, as JSON."""
        try:
            since = int(request.query.get("since", request.headers.get("Last-Event-ID", "0")))
        except ValueError:
            raise Invalid("`since` is not a number", "expected the number of an event") from None
        if not flag(request.query, "follow"):
            return _json(self._events.since(since))
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await answer.prepare(request)
        # A first comment, so that a follower knows that it misses nothing from here on.
        await answer.write(b":\n\n")
        with contextlib.suppress(ConnectionError):
            async for event in self._events.follow(since):
                await answer.write(b":\n\n" if event is None else f"id: {event['number']}\ndata: ".encode() + _dump(event) + b"\n\n")
        return answer

    async def _stop(self, _: web.Request) -> web.Response:
        asyncio.get_running_loop().call_later(0.05, self._stopping.set)
        return _json({})

    # --- watching ---

    def _heard(self, kind: str, fields: dict[str, Any]) -> None:
        self._events.add(kind, fields)
        log.info("%s %s", kind, fields)
        if kind.startswith("network."):
            self._ask_refresh(0)
        if kind in ("network.create", "dns.restart"):
            self._watch_names()
        if kind in ("namespace.remove", "namespace.vanish", "endpoint.disconnect", "run.end"):
            # Not while more of them come: settling costs as much for one as for many. The watcher's tick is the latest.
            if self._settle_due is not None:
                self._settle_due.cancel()
            loop = asyncio.get_running_loop()
            self._settle_due = loop.call_later(_IDLE, lambda: self._spawn(self._safely(self._engine.settle)))

    def _ask_refresh(self, delay: float) -> None:
        if self._refresh_due is not None:
            self._refresh_due.cancel()
        loop = asyncio.get_running_loop()
        self._refresh_due = loop.call_later(delay, lambda: self._spawn(self._neighbourhood.refresh()))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        for sock in (self._watcher.links, self._watcher.rules):
            loop.add_reader(sock.fileno(), self._bell, loop)
        loop.add_reader(self._engine.ends.fileno(), self._end, loop)
        self._spawn(self._tick())

    def _bell(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop listening, let the burst gather, look once, listen again."""
        for sock in (self._watcher.links, self._watcher.rules):
            loop.remove_reader(sock.fileno())
        loop.call_later(_GATHER, lambda: self._spawn(self._look(loop)))

    async def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            if await self._safely(self._watcher.look):
                self._ask_refresh(_SETTLED)
        finally:
            if not self._stopping.is_set():
                for sock in (self._watcher.links, self._watcher.rules):
                    loop.add_reader(sock.fileno(), self._bell, loop)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        """A process has ended. What could not be released then is the tick's, so this isn't called for it again and again."""
        loop.remove_reader(self._engine.ends.fileno())
        self._spawn(self._release(loop))

    async def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        if await self._safely(self._engine.release_ended) is None:
            await asyncio.sleep(_TICK)
        if not self._stopping.is_set():
            loop.add_reader(self._engine.ends.fileno(), self._end, loop)

    def _watch_names(self) -> None:
        """Ring when the name server's process ends. Our own descriptor of it: the engine closes its own when it likes."""
        self._forget_names()
        pid = self._engine.names.pid
        if not pid:
            return
        try:
            self._names_fd = os.pidfd_open(pid)
        except OSError:
            self._spawn(self._safely(self._engine.names.heal))
        else:
            asyncio.get_running_loop().add_reader(self._names_fd, self._names_ended)

    def _forget_names(self) -> None:
        if self._names_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._names_fd)
            os.close(self._names_fd)
            self._names_fd = -1

    def _names_ended(self) -> None:
        self._forget_names()
        self._spawn(self._safely(self._engine.names.heal))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            await self._safely(self._engine.names.heal)
            await self._safely(self._watcher.tick)
            with contextlib.suppress(AtollError, OSError):
                await self._neighbourhood.tick()

    async def _safely(self, function: Callable[[], T]) -> T | None:
        """The watcher must outlive whatever it meets; what it could not do it says in the log and tries again."""
        try:
            return await self.on_engine(function)
        except (AtollError, OSError, ValueError):
            log.exception("watching")
            return None


def _dump(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=_dump(value), status=status, headers=headers, content_type="application/json")


def _refusal(error: AtollError, status: int = 0) -> web.Response:
    kind = type(error).__name__ if type(error).__name__ != "NetlinkError" else "Failed"
    return _json({"error": {"kind": kind, "what": error.what, "hint": error.hint}}, status or error.http_status)
