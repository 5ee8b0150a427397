"""Docker's and Podman's containers by name: which process is theirs. Both speak Docker's API over a unix socket."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from typing import Final

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
    connection = _Unix(path)
    try:
        connection.request("GET", f"/v1.24/containers/{container}/json")
        answer = connection.getresponse()
        body = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"asking {kind} at {path}: {getattr(error, 'strerror', None) or error}", f"is {kind} running?") from None
    finally:
        connection.close()
    if answer.status == 404:
        raise NotFound(f"{kind} has no container {container}", f"{kind} ps shows what runs")
    try:
        found = json.loads(body)["State"]["Pid"]
    except (ValueError, KeyError, TypeError):
        raise Failed(f"{kind} at {path} answered {answer.status} without a pid") from None
    if not isinstance(found, int) or found <= 0:
        raise NotFound(f"container {container} is not running", f"{kind} start {container}")
    return found
