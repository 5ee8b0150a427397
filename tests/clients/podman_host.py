"""Podman in a host of its own, with an image of busybox and room for Atoll beside it.

There are no cgroups for it (`--cgroups=disabled`), its state is on a tmpfs, and /etc/containers is a copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

from tests.clients.neighbours_host import Host, need, private_host

IMAGE: Final = "localhost/busybox"
ORIGINAL: Final = "/usr/lib/podman/netavark"

_SETUP: Final = """
set -eu
umount -l /sys/fs/cgroup/unified 2>/dev/null || true
rm -rf /etc/containers/containers.conf /etc/containers/containers.conf.d /etc/containers/networks
mkdir -p /etc/containers /run/netns
mount -t tmpfs tmpfs /var/tmp
cat >/etc/containers/storage.conf <<'END'
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
END
cat >/etc/containers/containers.conf <<'END'
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "netavark"
[engine]
events_logger = "file"
cgroup_manager = "cgroupfs"
runtime = "crun"
END
mkdir -p /tmp/image/bin /tmp/image/etc /tmp/image/tmp
cp /bin/busybox /tmp/image/bin
/bin/busybox --install -s /tmp/image/bin
for link in /tmp/image/bin/*; do [ -L "$link" ] && ln -sf busybox "$link"; done
echo root:x:0:0:root:/:/bin/sh >/tmp/image/etc/passwd
tar -C /tmp/image -c . | podman import - "$1" >/dev/null
rm -r /tmp/image
"""

#: A machine outside the host, at 198.51.100.9; the host's address there is 198.51.100.1.
_OUTSIDE: Final = """
set -eu
ip netns add outside
ip link add wire0 type veth peer name eth0 netns outside
ip link set wire0 up
ip address add 198.51.100.1/24 dev wire0
ip address add 2001:db8:100::1/64 dev wire0 nodad
ip -n outside link set lo up
ip -n outside link set eth0 up
ip -n outside address add 198.51.100.9/24 dev eth0
ip -n outside address add 2001:db8:100::9/64 dev eth0 nodad
ip -n outside route add default via 198.51.100.1
ip -n outside route add default via 2001:db8:100::1
"""


class PodmanHost:
    """The host with `podman` and `atoll` on it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def podman(self, *argv: str) -> str:
        """What a command prints; it must succeed, and what it cleans up as well."""
        code, out, words = self.host.runner(["podman", *argv])
        assert code == 0, f"podman {' '.join(argv)}: {words}"
        assert "level=error" not in words, f"podman {' '.join(argv)}: {words}"
        return out

    def atoll(self, *argv: str) -> str:
        return self.host.run(*self.command(*argv))

    @property
    def path(self) -> str:
        """Where programs are, `atoll` first."""
        return f"{sys.prefix}/bin:{os.environ['PATH']}"

    @staticmethod
    def command(*argv: str) -> list[str]:
        return [f"{sys.prefix}/bin/atoll", *argv]

    def run(self, name: str, *options: str, command: Sequence[str] = ("sleep", "1000")) -> str:
        """A container that runs on; its id."""
        return self.podman("run", "-d", "--name", name, "--cap-add", "NET_RAW", *options, IMAGE, *command).strip()

    def serve(self, name: str, *options: str) -> str:
        """A container that says its name to whoever asks its port 80; it does when this returns."""
        page = f"mkdir /www; echo {name} >/www/index.html; exec httpd -f -p 80 -h /www"
        made = self.run(name, *options, command=("sh", "-c", page))
        listens = f"grep -q ':0050 .* 0A ' /proc/{self.inspect(name)['State']['Pid']}/net/tcp*"
        self.host.wait_for(f"{name} to serve", lambda: self.host.runner(["sh", "-c", listens])[0] == 0)
        return made

    def define(self, name: str, stem: str, **changes: Any) -> None:
        """A network as Podman keeps it, with what its command line may not have yet; of the /24 that begins so."""
        made = {
            "name": name,
            "id": f"{sum(map(ord, name)):064x}",
            "driver": "bridge",
            "network_interface": f"br-{name}",
            "created": "2026-01-01T00:00:00Z",
            "subnets": [{"subnet": f"{stem}.0/24", "gateway": f"{stem}.1"}],
            "ipv6_enabled": False,
            "internal": False,
            "dns_enabled": True,
            "ipam_options": {"driver": "host-local"},
            **changes,
        }
        script = 'mkdir -p /etc/containers/networks; echo "$1" >/etc/containers/networks/$0.json'
        self.host.run("sh", "-c", script, name, json.dumps(made))

    def exec(self, name: str, *argv: str) -> str:
        return self.podman("exec", name, *argv)

    def inspect(self, name: str) -> Any:
        return json.loads(self.podman("inspect", name))[0]

    def fetch(self, address: str, place: str = "") -> str:
        """What is said at ADDRESS:PORT to the host, or to the machine outside; empty when nobody answers."""
        enter = ["ip", "netns", "exec", place] if place else []
        return self.host.runner([*enter, "curl", "-s", "-m", "5", f"http://{address}/"])[1].strip()

    def ask(self, name: str, host: str, port: int = 80) -> str:
        """The same to a container, by an address or a name."""
        script = 'printf "GET / HTTP/1.0\\r\\n\\r\\n" | nc -w 3 "$0" "$1"'
        return "".join(self.host.runner(["podman", "exec", name, "sh", "-c", script, host, str(port)])[1].splitlines()[-1:])

    def pings(self, name: str, address: str) -> bool:
        return self.host.runner(["podman", "exec", name, "ping", "-c", "1", "-W", "2", address])[0] == 0

    def shown(self, *argv: str) -> Any:
        """What one of Atoll's commands says as JSON."""
        return json.loads(self.atoll(*argv, "--format", "json"))

    def outside(self, *argv: str) -> tuple[int, str, str]:
        return self.host.runner(["ip", "netns", "exec", "outside", *argv])


@contextlib.contextmanager
def podman_host() -> Iterator[PodmanHost]:
    need("podman", "crun", "conmon", "busybox", "curl", ORIGINAL)
    with private_host() as host:
        prepare(host)
        host.run("sh", "-c", _OUTSIDE)
        yield PodmanHost(host)


def prepare(host: Host) -> None:
    """Make Podman run on a private host, with its image."""
    host.run("sh", "-c", _SETUP, "setup", IMAGE)
