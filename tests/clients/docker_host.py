"""A private host with the real dockerd on it and Atoll's daemon as its network driver, and a machine outside."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.neighbours_host import Host, need, private_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ATOLL = str(Path(sys.executable).with_name("atoll"))
#: Of the host, and of the machine outside.
FACING, OUTSIDE = "192.0.2.1", "192.0.2.2"

_OUTSIDE = """
ip link add wire0 type veth peer name eth0
ip address add 192.0.2.1/24 dev wire0
ip address add 2001:db8::1/64 dev wire0 nodad
ip link set wire0 up
ip netns add outside
ip link set eth0 netns outside
ip -n outside address add 192.0.2.2/24 dev eth0
ip -n outside address add 2001:db8::2/64 dev eth0 nodad
ip -n outside link set eth0 up
ip -n outside link set lo up
"""
IMAGE = """
mkdir -p /tmp/image/bin
cp $(command -v busybox) /tmp/image/bin/busybox
mkdir /tmp/image/www
echo a page >/tmp/image/www/index.html
cd /tmp/image/bin
for applet in $(./busybox --list); do ln -s busybox $applet || true; done
tar -C /tmp/image -c . | docker import -c 'ENV PATH=/bin' - busybox
"""
#: A web server that says its container's host name.
SERVER = "mkdir -p /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www"


class DockerHost:
    """The host with what people type on it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def docker(self, *words: str) -> str:
        return self.host.run("docker", *words).strip()

    def refused(self, *words: str) -> str:
        """What docker says of a command that must fail."""
        code, _, text = self.host.runner(["docker", *words])
        assert code != 0, words
        return text

    def run(self, *words: str) -> str:
        """What a container printed, which is gone after."""
        return self.docker("run", "--rm", *words)

    def serve(self, name: str, *options: str) -> None:
        self.docker("run", "-d", "--name", name, "--hostname", name, *options, "busybox", "sh", "-c", SERVER)

    def atoll(self, *words: str) -> str:
        return self.host.run(ATOLL, *words)

    def shown(self, *words: str) -> Any:
        return json.loads(self.atoll(*words, "--format", "json"))

    def fetch(self, url: str, *, place: str = "") -> str:
        """What a web server answers, asked from the host, or from a named namespace; empty when there is no answer."""
        where = ["ip", "netns", "exec", place] if place else []
        return self.host.runner([*where, "curl", "-s", "-g", "-m", "3", url])[1].strip()

    def answers(self, text: str, url: str, *, place: str = "") -> None:
        """That a web server answers so, as soon as it has started."""
        self.host.wait_for(f"{text} from {url}", lambda: self.fetch(url, place=place) == text, 5)

    def address(self, container: str, network: str, *, version: int = 4) -> str:
        field = "IPAddress" if version == 4 else "GlobalIPv6Address"
        return self.docker("inspect", container, "--format", f'{{{{(index .NetworkSettings.Networks "{network}").{field}}}}}')

    def start_atoll(self) -> None:
        self.host.run("mkdir", "-p", "/run/atoll")
        self.host.start("atoll", ATOLL, "daemon", "run")
        self.host.wait_for("Atoll to answer", lambda: self.host.runner([ATOLL, "daemon", "status"])[0] == 0)

    def kill(self, name: str) -> None:
        """As if the machine's memory had run out: no goodbye."""
        self.host.run("sh", "-c", f"kill -KILL $(cat /run/{name}.id)")
        self.host._daemons.pop(name).wait(20)
        if name == "dockerd":
            # Its containerd has died with it; nobody on this host waits for the dead, so dockerd would take it for alive.
            self.host.run("rm", "-f", "/run/docker.pid", "/run/docker/containerd/containerd.pid")

    def follows(self) -> None:
        """Return when Atoll follows dockerd's events."""
        command = f"{ATOLL} docker status --format json | grep -q '\"following\": true'"
        self.host.wait_for("Atoll to follow Docker", lambda: self.host.runner(["sh", "-c", command])[0] == 0)

    def status(self) -> Any:
        return self.shown("docker", "status")

    def namespaces(self) -> dict[str, Any]:
        return {item["name"]: item for item in self.shown("ns", "ls")}

    def networks(self) -> dict[str, Any]:
        return {item["name"]: item for item in self.shown("network", "ls")}

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float = 20) -> float:
        return self.host.wait_for(what, condition, seconds)

    def place(self, name: str) -> str:
        """The first address of a namespace: a plain one's, or a container's by its name."""
        return str(self.namespaces()[name]["endpoints"][0]["addresses"][0].partition("/")[0])

    def first(self, network: str, *command: str, options: Sequence[str] = ()) -> list[str]:
        """What a container finds whose first and only instruction it is to ask."""
        return addresses(self.host.runner(["docker", "run", "--rm", "--network", network, *options, "busybox", *command])[1])

    def empty(self) -> None:
        """Remove what there is of Docker's; nothing of it may be left of ours, nor anything that isn't as it should be."""
        if containers := self.docker("ps", "-aq").split():
            self.docker("rm", "-f", *containers)
        for name in self.docker("network", "ls", "--format", "{{.Name}}").split():
            if name not in ("bridge", "host", "none"):
                self.docker("network", "rm", name)
        try:
            self.wait_for("everything of Docker's to be gone", lambda: not self.left())
        except pytest.fail.Exception as error:
            pytest.fail(f"{self.left()}\n{error}")
        said = ""

        def fine() -> bool:
            nonlocal said
            said = self.atoll("doctor")
            return "all is as" in said

        try:
            # Docker's rules are looked at a moment after the last network has gone.
            self.wait_for("all to be as it should be", fine, 5)
        except pytest.fail.Exception:
            pytest.fail(said)

    def lookup(self, container: str, name: str) -> list[str]:
        """What a container finds for a name, by what its resolv.conf says."""
        code, out, _ = self.host.runner(["docker", "exec", container, "nslookup", name])
        return addresses(out) if code == 0 else []

    def left(self) -> dict[str, list[str]]:
        """What there is of Docker's in Atoll and on the host: nothing when all its networks are gone."""
        facts = self.host.run(sys.executable, "-c", _FACTS).split()
        links = [link["ifname"] for link in json.loads(self.host.run("ip", "-j", "link"))]
        found = {
            "networks": [network["name"] for network in self.shown("network", "ls") if network["id"] not in ("host", "none")],
            "namespaces": [namespace["name"] for namespace in self.shown("ns", "ls")],
            "kept": facts,
            "links": [name for name in links if name.startswith("at")],
        }
        return {kind: values for kind, values in found.items() if values}


_FACTS = """
import sqlite3
db = sqlite3.connect("file:/var/lib/atoll/state.db?mode=ro", uri=True)
queries = "key FROM facts WHERE key LIKE 'docker.%'", "address FROM holds", "key FROM pools", "address FROM leases"
for query in map("SELECT {}".format, queries):
    print(*(row[0] for row in db.execute(query)))
"""


def addresses(nslookup: str) -> list[str]:
    """The addresses in the answer of busybox's nslookup, whose first two lines are about the server."""
    _, _, answer = nslookup.partition("\n\n")
    return sorted({line.split()[-1] for line in answer.splitlines() if line.startswith("Address")})


@contextlib.contextmanager
def docker_host(*options: str, back_end: str = "nft") -> Iterator[DockerHost]:
    """Atoll is there first, as it should be; dockerd (with `options`) has it as a driver named atoll."""
    need("dockerd", "docker", "containerd", "busybox", "curl", "ip", "nft", "unshare", "nsenter", f"iptables-{back_end}")
    with private_host() as host:
        made = prepare(host, *options, back_end=back_end)
        yield made
        made.atoll("daemon", "stop")


def prepare(host: Host, *options: str, back_end: str = "nft") -> DockerHost:
    """Make Atoll's daemon and dockerd run on a private host, with an image and a machine outside."""
    host.run("sh", "-ec", _OUTSIDE)
    made = DockerHost(host)
    made.start_atoll()
    made.atoll("docker", "install")
    host.start_dockerd(back_end, *options)
    host.run("sh", "-ec", IMAGE)
    made.follows()
    return made
