"""Somebody else on the same host who makes namespaces and sets them up, as Docker, Podman and CNI runtimes do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from atoll.kernel import netns

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.model import Endpoint

T = TypeVar("T")


def sh(script: str) -> str:
    """What a shell script prints; it must end well."""
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stderr}"
    return done.stdout


class Other:
    """A namespace of theirs, behind a file of theirs. `take` and `give_back` are what Docker does with the interface that it is given."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = f"their {name}"
        self.path = str(folder / f"sandbox-{name}")
        self._visitor = netns.Visitor()
        fd = netns.unnamed(self._visitor)
        Path(self.path).touch()
        netns.mount(f"/proc/{os.getpid()}/fd/{fd}", self.path, "none", netns.MS_BIND)
        os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._visitor.close()

    def end(self) -> None:
        """The file leads nowhere any more."""
        if os.path.exists(self.path):
            netns.unmount(self.path)
            os.unlink(self.path)

    def run(self, function: Callable[[], T]) -> T:
        fd = netns.open_path(self.path)
        try:
            return self._visitor.run(fd, function)
        finally:
            os.close(fd)

    def ip(self, *commands: str) -> str:
        return "".join(sh(f"nsenter --net={self.path} ip {command}") for command in commands)

    def links(self) -> set[str]:
        return {line.split()[0].partition("@")[0] for line in self.ip("-br link").splitlines()}

    def take(self, endpoint: Endpoint, name: str, gateway: str = "") -> None:
        sh(f"ip link set {endpoint.spare} netns {self.path}")
        self.ip(f"link set {endpoint.spare} name {name}", "link set lo up")
        for text in endpoint.addresses:
            self.ip(f"address add {text} dev {name} {'nodad' if ':' in text else ''}")
        self.ip(f"link set {name} up")
        if gateway:
            self.ip(f"route add default via {gateway}")

    def give_back(self, endpoint: Endpoint, name: str) -> None:
        # A path, because the number of a process may be another's in there.
        self.ip(f"link set {name} down", f"link set {name} name {endpoint.spare}", f"link set {endpoint.spare} netns {os.getpid()}")
