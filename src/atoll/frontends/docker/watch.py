"""Follows Docker: what its networks and containers are called, what they ask for names, and what became of them while nobody told us.

dockerd starts, stops and is killed as it likes. As long as it runs there is one connection on which it tells its events. An event is only
a reason to look: the network or container is asked for, and what it says is carried over. With each new connection everything is looked
at and compared. All of it outside the driver's calls, which never wait for this.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

from atoll.errors import AtollError, NotFound, one_line
from atoll.frontends.docker import follow, stale
from atoll.frontends.docker.api import Docker, may_connect, shares, socket_path
from atoll.frontends.docker.resolv import ResolvFiles, servers_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from atoll.frontends.docker.api import Event, Info
    from atoll.frontends.docker.door import Door

T = TypeVar("T")

#: Seconds between looks for a dockerd that isn't there, and until what was missing from one of Docker's lists is looked for in another.
_LOOK: Final = 0.5
_DOUBT: Final = 3.0
#: Seconds that dockerd may take to say how it is.
_PATIENCE: Final = 2.0

log = logging.getLogger("atoll")


class Watch:
    """Belongs to the event loop; `on_engine` runs a function on the engine's thread. `state` is the folder of the state."""

    def __init__(self, door: Door, on_engine: Callable[[Callable[[], Any]], Awaitable[Any]], state: str) -> None:
        self._door, self._on_engine, self._state = door, on_engine, state
        self._namespace = door.engine.host.identity
        self._files = ResolvFiles(self._written)
        #: Gateways to ask for names, by Docker's network; and of each container by its networks.
        self._servers: dict[str, tuple[str, ...]] = {}
        self._asks: dict[str, dict[str, tuple[str, ...]]] = {}
        self._problems: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: What is being looked at, by kind and id; True where it must be looked at once more.
        self._looks: dict[tuple[str, str], bool] = {}
        self._docker: Docker | None = None
        self._info: Info | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._files.fileno(), self._files.ready)
        for container, (path, servers) in (await self._on_engine(lambda: follow.known_files(self._door))).items():
            self._files.put(container, path, servers)
        self._task = loop.create_task(self._run())

    async def stop(self) -> None:
        """Containers ask Docker's resolver from here on, as long as nobody answers at the gateways."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        asyncio.get_running_loop().remove_reader(self._files.fileno())
        self._files.drop_all()
        self._files.close()

    async def status(self) -> dict[str, Any]:
        """Whether dockerd is followed, and what it has from us."""
        served = await self._on_engine(lambda: follow.served(self._door))
        info, docker = self._info, self._docker
        if docker is not None and info is not None:
            with contextlib.suppress(AtollError, TimeoutError):
                info = await asyncio.wait_for(docker.info(), _PATIENCE)
        return {
            "socket": socket_path(self._state),
            "following": info is not None,
            "version": info.version if info else "",
            "loaded": info is not None and stale.DRIVER in (info.plugins.network or ()),
            **served,
        }

    def problems(self) -> list[dict[str, str]]:
        return [{"what": what, "help": ""} for what in self._problems.values()]

    # --- the connection ---

    async def _run(self) -> None:
        while True:
            path = socket_path(self._state)
            if may_connect(path):
                try:
                    await self._connected(path)
                except AtollError as error:
                    log.debug("%s", error)
                except Exception:
                    # A defect of ours must not end this for good.
                    log.exception("following Docker at %s", path)
            await asyncio.sleep(_LOOK)

    async def _connected(self, path: str) -> None:
        """As long as one dockerd runs."""
        if not await asyncio.to_thread(shares, path, self._namespace):
            return
        docker = Docker(path)
        try:
            # Events are listened to before anything is looked at, so that none is missed in between.
            async for event in docker.events():
                if event is None:
                    self._docker, self._info = docker, await docker.info()
                    log.info("following Docker %s at %s", self._info.version, path)
                    self._spawn(self._compare())
                else:
                    self._heard(event)
        finally:
            self._docker = self._info = None
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._looks.clear()
            await docker.close()

    def _heard(self, event: Event) -> None:
        if event.kind == "network":
            container = event.actor.attributes.get("container", "")
            if event.action in ("create", "update"):
                self._look("network", event.actor.id)
            elif event.action == "destroy":
                self._problems.pop(event.actor.id, None)
                self._servers.pop(event.actor.id, None)
                self._look_at_files()
            elif event.action == "connect" and container:
                # Docker says nothing about a container while it starts it, and its file is written before it runs.
                self._spawn(self._ask(container, event.actor.id))
                self._look("container", container)
            elif event.action == "disconnect" and container in self._files:
                self._look("container", container)
        elif event.kind == "container":
            if event.action in ("start", "rename"):
                self._look("container", event.actor.id)
            elif event.action == "destroy":
                self._forget(event.actor.id)

    # --- looking ---

    def _look(self, kind: str, id_: str) -> None:
        """Look at a network or a container, or once more if that is being done."""
        if (kind, id_) in self._looks:
            self._looks[kind, id_] = True
        else:
            self._looks[kind, id_] = False
            self._spawn(self._looked(kind, id_))

    def _look_at_files(self) -> None:
        """At the containers that ask us for names, of which some may be on none of our networks any more."""
        for container in self._files.wanted:
            self._look("container", container)

    async def _looked(self, kind: str, id_: str) -> None:
        look, again = self._network if kind == "network" else self._container, True
        try:
            while again:
                self._looks[kind, id_] = False
                try:
                    await look(id_)
                except AtollError as error:
                    # What has gone meanwhile is no news.
                    log.log(logging.DEBUG if isinstance(error, NotFound) else logging.WARNING, "looking at Docker's %s: %s", kind, error)
                again = self._looks[kind, id_]
        finally:
            self._looks.pop((kind, id_), None)

    async def _network(self, id_: str) -> None:
        assert self._docker is not None  # noqa: S101 - tasks end with the connection
        there = await self._docker.network(id_)
        self._note(id_, await self._on_engine(lambda: follow.follow_network(self._door, there)))
        self._servers[id_] = await self._on_engine(lambda: follow.servers_of(self._door, id_))

    async def _container(self, id_: str) -> None:
        assert self._docker is not None  # noqa: S101
        try:
            there = await self._docker.container(id_)
        except NotFound:
            self._forget(id_)
            return
        if id_ not in self._files and not any(a.network in self._servers for a in (there.settings.networks or {}).values()):
            return
        found = await self._on_engine(lambda: follow.follow_container(self._door, there))
        self._note(id_, found.problem)
        self._asks[id_] = dict(found.servers)
        self._point(id_, self._path(id_))

    def _note(self, key: str, problem: str) -> None:
        """Say a problem once, and keep it for `atoll status`. Docker takes any text as a name."""
        problem = one_line(problem)
        if problem and self._problems.get(key) != problem:
            log.warning("%s", problem)
        if problem:
            self._problems[key] = problem
        else:
            self._problems.pop(key, None)

    # --- names inside containers ---

    async def _ask(self, container: str, network: str) -> None:
        """A container that is about to start, or that runs, is on a network from now on."""
        servers = self._servers.get(network)
        if servers is None:  # a network that was made a moment ago, or none of ours
            servers = await self._on_engine(lambda: follow.servers_of(self._door, network))
        if servers and self._info is not None:
            self._servers[network] = servers
            path = self._path(container)
            if container in self._files or not self._asks_us(path):
                self._asks.setdefault(container, {})[network] = servers
                self._point(container, path)

    def _path(self, container: str) -> str:
        """Docker's own file for a container. What Docker says of it is another where its user has mounted one of his own there."""
        return f"{self._info.root}/containers/{container}/resolv.conf" if self._info is not None else ""

    def _asks_us(self, path: str) -> bool:
        """Whether a file that Docker alone has written yet names a gateway of ours: its user did, with `--dns`."""
        with contextlib.suppress(OSError):
            return not set().union(*self._servers.values()).isdisjoint(servers_in(path))
        return False

    def _point(self, container: str, path: str) -> None:
        servers = tuple(dict.fromkeys(server for found in self._asks.get(container, {}).values() for server in found))
        before = self._files.wanted.get(container)
        if servers and path:
            self._files.put(container, path, servers)
        else:
            self._files.drop(container)
        if self._files.wanted.get(container) != before:
            self._spawn(self._record(container))

    def _forget(self, container: str) -> None:
        self._asks.pop(container, None)
        self._problems.pop(container, None)
        self._point(container, "")

    async def _record(self, container: str) -> None:
        """So that we know the file after a restart: dockerd starts containers before it answers anybody."""
        wanted = self._files.wanted.get(container)
        await self._on_engine(lambda: follow.record_file(self._door, container, wanted))

    def _written(self, container: str) -> None:
        """Docker has written a container's file: its namespace is there."""
        self._spawn(self._reveal())

    async def _reveal(self) -> None:
        await self._on_engine(lambda: follow.reveal(self._door))

    # --- comparing ---

    async def _compare(self) -> None:
        """Until it could be done."""
        while True:
            try:
                await self._compared()
            except AtollError as error:
                log.warning("comparing with Docker: %s", error)
                await asyncio.sleep(_DOUBT)
            else:
                return

    async def _compared(self) -> None:
        """Carry everything over; take away what Docker doesn't know, and make again what we don't."""
        assert self._docker is not None  # noqa: S101
        first = await self._missing()
        for id_ in await self._on_engine(lambda: list(self._door.records.networks)):
            with contextlib.suppress(NotFound):
                await self._network(id_)
        for id_ in await self._docker.containers():
            self._look("container", id_)
        self._look_at_files()
        if not (first.stale or first.lost or first.bare):
            return
        await asyncio.sleep(_DOUBT)
        second = await self._missing()
        for error in await self._on_engine(lambda: stale.remove(self._door, first.stale & second.stale)):
            log.warning("%s", error)
        self._look_at_files()
        for network in second.there.networks:
            if network.id in first.lost & second.lost:
                self._note(network.id, await self._on_engine(functools.partial(stale.restore, self._door, network)))
                self._look("network", network.id)
        for id_ in first.bare & second.bare:
            self._note(id_, f"container {id_[:12]} is on a network of ours and has no endpoint here; docker restart {id_[:12]}")

    async def _missing(self) -> stale.Missing:
        """What Docker's list lacks of what was here before it was asked for, and what it has that we lack."""
        before = await self._on_engine(lambda: stale.here(self._door))
        there = stale.There(await self._details())
        found: stale.Missing = await self._on_engine(lambda: stale.missing(self._door, before, there))
        return found

    async def _details(self) -> list[Any]:
        """Docker's networks with their endpoints; without those that go meanwhile."""
        assert self._docker is not None  # noqa: S101
        found = []
        for network in await self._docker.networks():
            with contextlib.suppress(NotFound):
                found.append(await self._docker.network(network.id))
        return found

    # --- tasks ---

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _guarded(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except AtollError as error:
            log.warning("following Docker: %s", error)
        except Exception:
            log.exception("following Docker")
