"""When to tell the host's other software about our bridges. What is told, and how, is in `atoll.neighbours`."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from atoll.errors import AtollError
from atoll.neighbours import docker, drops
from atoll.neighbours.firewalld import Firewalld

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from atoll.engine import Engine

_DOCKER_SOCKET: Final = "/run/docker.sock"
#: Seconds after dockerd made its socket at which its legacy rules are there, and between looks for those that nobody announces.
_AFTER_START: Final = (2.0, 10.0)
_LEGACY_LOOK: Final = 30.0


def run_program(command: Sequence[str]) -> tuple[int, str, str]:
    """Run a program in the namespace of the calling thread; 127 when there is none, 124 when it took too long (as timeout(1))."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    except OSError as error:
        return 127, "", str(error)
    except subprocess.TimeoutExpired as error:
        return 124, "", str(error)
    return done.returncode, done.stdout, done.stderr


class Neighbourhood:
    """Keeps Docker and firewalld in the picture for one engine. Belongs to the event loop; `on_engine` runs a function there."""

    def __init__(self, engine: Engine, on_engine: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._engine = engine
        self._on_engine = on_engine
        self._firewalld = Firewalld()
        self._bridges: list[str] | None = None
        self._socket_seen = self._socket_stamp()
        self._due: list[float] = []
        self._next_look = 0.0
        self._docker_problem = ""

    async def start(self) -> None:
        await self._firewalld.start()
        await self.refresh()

    async def stop(self) -> None:
        await self._firewalld.stop()

    async def refresh(self) -> None:
        """Tell them the bridges that there are now."""
        bridges = await self._on_engine(self._sync_docker)
        if bridges or self._bridges:
            await self._firewalld.set_bridges(bridges)
        self._bridges = bridges

    async def tick(self) -> None:
        """Twice a second: dockerd's socket was made anew, or legacy rules are due for a look."""
        now, stamp = time.monotonic(), self._socket_stamp()
        if stamp != self._socket_seen:
            self._socket_seen = stamp
            self._due = [now + delay for delay in _AFTER_START]
        due = [moment for moment in self._due if moment <= now]
        self._due = [moment for moment in self._due if moment > now]
        if now >= self._next_look:
            self._next_look = now + _LEGACY_LOOK
            due += [now] if docker.has_legacy_table("ip") or docker.has_legacy_table("ip6") else []
        if due:
            await self.refresh()

    def problems(self) -> list[dict[str, str]]:
        """What others do to forwarded packets that Atoll can't put right; on the engine's thread."""
        bridges = self._names()
        found = [{"what": what, "help": ""} for what in (*self._firewalld.problems, self._docker_problem) if what]
        if bridges:
            for drop in self._engine.host.run(lambda: drops.foreign_drops(bridges, run_program)):
                if not drop.answered:
                    where = f"{drop.family} {drop.table} {drop.chain}".strip()
                    found.append({"what": f"{drop.who}: chain {where} drops forwarded packets by its {drop.by}", "help": drop.command})
            for version, setting in (("4", "net/bridge/bridge-nf-call-iptables"), ("6", "net/bridge/bridge-nf-call-ip6tables")):
                if self._engine.read_setting(setting) == "1":
                    what = f"{setting} is 1, so an endpoint can't reach its own published IPv{version} ports"
                    what += ", and the host can't reach any by [::1]" if version == "6" else ""
                    found.append({"what": what, "help": f"sysctl -w {setting.replace('/', '.')}=0, if nothing else needs it"})
        return found

    def _names(self) -> list[str]:
        return [bridge for network in self._engine.state.bridge_networks() for bridge in network.bridges()]

    def _sync_docker(self) -> list[str]:
        bridges = self._names()
        try:
            self._engine.host.run(lambda: docker.sync(bridges, run_program))
            self._docker_problem = ""
        except AtollError as error:
            self._docker_problem = str(error)
        return bridges

    @staticmethod
    def _socket_stamp() -> tuple[int, int]:
        try:
            found = os.stat(_DOCKER_SOCKET)
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns
