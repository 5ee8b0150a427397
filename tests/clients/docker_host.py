"""A private host with the real dockerd on it and Atoll's daemon as its network driver."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.clients.neighbours_host import Host, need, private_host

ATOLL: Final = str(Path(sys.executable).with_name("atoll"))
_APPLETS: Final = "sh cat grep hostname httpd ip ls nc nslookup ping sleep wget"
#: An image of busybox alone. Its name resolution is its own, so `nslookup` is what containers ask with.
_IMAGE: Final = f"""
mkdir -p /tmp/image/bin /tmp/image/www
cp "$(command -v busybox)" /tmp/image/bin/
for applet in {_APPLETS}; do ln -s busybox /tmp/image/bin/$applet; done
echo a page >/tmp/image/www/index.html
tar -C /tmp/image -c . | docker import - busybox
"""


class DockerHost:
    """`host` with dockerd and Atoll; `docker` and `atoll` are their command lines."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def docker(self, *words: str) -> str:
        return self.host.run("docker", *words).strip()

    def atoll(self, *words: str) -> str:
        return self.host.run(ATOLL, *words)

    def json(self, *words: str) -> Any:
        return json.loads(self.atoll(*words, "--format", "json"))

    def start_atoll(self) -> None:
        self.host.run("mkdir", "-p", "/run/atoll")
        self.host.start("atoll", ATOLL, "daemon", "run")
        self.host.wait_for("Atoll to answer", lambda: self.host.runner([ATOLL, "daemon", "status"])[0] == 0)

    def kill(self, name: str) -> None:
        """As if the machine's memory had run out: no goodbye."""
        self.host.run("sh", "-c", f"kill -KILL $(cat /run/{name}.id)")
        self.host._daemons.pop(name).wait(20)

    def follows(self) -> None:
        """Return when Atoll follows dockerd's events."""
        self.host.wait_for("Atoll to follow Docker", lambda: bool(self.status()["following"]))

    def status(self) -> Any:
        return self.json("docker", "status")

    def namespaces(self) -> dict[str, Any]:
        return {item["name"]: item for item in self.json("ns", "ls")}

    def networks(self) -> dict[str, Any]:
        return {item["name"]: item for item in self.json("network", "ls")}

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float = 20) -> float:
        return self.host.wait_for(what, condition, seconds)

    def lookup(self, container: str, name: str) -> list[str]:
        """What a container finds for a name, by what its resolv.conf says."""
        code, out, _ = self.host.runner(["docker", "exec", container, "nslookup", name])
        return addresses(out) if code == 0 else []


def addresses(nslookup: str) -> list[str]:
    """The addresses in the answer of busybox's nslookup, whose first two lines are about the server."""
    _, _, answer = nslookup.partition("\n\n")
    return sorted({line.split()[-1] for line in answer.splitlines() if line.startswith("Address")})


@contextlib.contextmanager
def docker_host(*options: str, back_end: str = "nft") -> Iterator[DockerHost]:
    """Atoll is there first, as it should be; dockerd has it as a driver named atoll."""
    need("unshare", "nsenter", "ip", "nft", "dockerd", "docker", "containerd", "busybox", f"iptables-{back_end}")
    with private_host() as host:
        made = DockerHost(host)
        made.start_atoll()
        made.atoll("docker", "install")
        host.start_dockerd(back_end, *options)
        host.run("sh", "-c", _IMAGE)
        made.follows()
        yield made
        made.atoll("daemon", "stop")
