"""Docker's and Podman's containers by name: which process is theirs. Both speak Docker's API over a unix socket."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from typing import Any, Final

from atoll.errors import Failed, Invalid, NotFound

_SOCKETS: Final = {"docker": "/run/docker.sock", "podman": "/run/podman/podman.sock"}
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}\Z")
#: No answer about one container is longer than this.
_MOST_BYTES: Final = 4 << 20


class _Unix(http.client.HTTPConnection):
    """HTTP over a unix socket; five seconds a step."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(5)
        self.sock.connect(self._path)


def _socket_path(kind: str) -> str:
    """`DOCKER_HOST`/`CONTAINER_HOST` as the clients know them, if they name a unix socket."""
    given = os.environ.get("DOCKER_HOST" if kind == "docker" else "CONTAINER_HOST", "")
    return given.removeprefix("unix://") if given.startswith("unix:///") else _SOCKETS[kind]


def pid(kind: str, container: str) -> int:
    """The pid of a running container's first process. Raises `NotFound`, `Invalid` or `Failed`."""
    if not _NAME.match(container):
        raise Invalid(f"{container[:80]!r} is not a container's name or id", "letters, digits, '_', '.' and '-'")
    path = _socket_path(kind)
    status, answer = _ask(kind, path, f"/containers/{container}/json")
    if status == 404:
        raise NotFound(f"{kind} has no container {container}", f"{kind} ps shows what runs")
    try:
        found = answer["State"]["Pid"]
    except (KeyError, TypeError):
        raise Failed(f"{kind} at {path} answered {status} without a pid") from None
    if not isinstance(found, int) or found <= 0:
        raise NotFound(f"container {container} is not running", f"{kind} start {container}")
    return found


def docker_networks(driver: str, path: str = "") -> list[str]:
    """The names of Docker's networks of a driver; `path` is its socket, if it is another than usual. Raises `Failed`."""
    path = path or _socket_path("docker")
    status, answer = _ask("docker", path, "/networks")
    try:
        return sorted(network["Name"] for network in answer if network["Driver"] == driver)
    except (KeyError, TypeError):
        raise Failed(f"docker at {path} answered {status} without networks") from None


def _ask(kind: str, path: str, what: str) -> tuple[int, Any]:
    """Status and JSON of an answer. Raises `Failed`."""
    connection = _Unix(path)
    try:
        connection.request("GET", what)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read(_MOST_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"asking {kind} at {path}: {getattr(error, 'strerror', None) or error}", f"is {kind} running?") from None
    except ValueError:
        raise Failed(f"{kind} at {path} answered with what is no JSON") from None
    finally:
        connection.close()
