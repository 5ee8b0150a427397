"""A host of its own for the tests of Atoll's neighbours: private network, mount, pid and cgroup namespaces with real daemons in
them.

Everything outside is read-only there, /etc is a copy, and whatever a daemon writes to is a tmpfs. All processes end with the
first one, a `cat` whose input is a pipe from the test: so also when the test itself is killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from atoll.kernel import netns

T = TypeVar("T")

_CHECKOUT = str(Path(__file__).parents[2])

_SETUP = """
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/etc /run/lock /run/cgroup
cp -a /etc/. /run/etc
mount --bind /run/etc /etc
# sysfs shows the network namespace that it was mounted in, and the cgroups are mounted in it.
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
# The program under test and its interpreter stay where they are, should they be in a folder that is replaced.
number=0
for kept in "$@"; do
    number=$((number + 1))
    mkdir -p /run/kept/$number
    mount --rbind "$kept" /run/kept/$number
done
# Podman's locks are in shared memory.
for folder in /var/lib /var/log /var/cache /opt /tmp /dev/shm; do mount -t tmpfs tmpfs $folder; done
number=0
for kept in "$@"; do
    number=$((number + 1))
    case $kept in
    /var/lib/*|/var/log/*|/var/cache/*|/opt/*|/tmp/*) mkdir -p "$kept"; mount --rbind /run/kept/$number "$kept" ;;
    esac
    umount -l /run/kept/$number
done
# Of the sysctls only those of the network are the namespace's own.
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys
# What nobody thought of fails instead of reaching the machine.
mount -o remount,bind,ro /
if [ -e /sbin/modprobe ]; then mount --bind /bin/true /sbin/modprobe; fi
for back_end in nft legacy; do
    mkdir -p /run/iptables-$back_end
    for family in ip ip6; do
        for tool in "" -save -restore; do
            ln -s "$(command -v ${family}tables-$back_end$tool)" /run/iptables-$back_end/${family}tables$tool || true
        done
    done
done
ip link set lo up
echo ready
exec cat
"""

#: A bridge with one namespace behind it, and a namespace on another wire; the host is the gateway of both.
_TOPOLOGY = """
set -eu
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip link add "$1" type bridge
ip link set "$1" up
ip netns add inside
ip netns add outside
ip link add port0 type veth peer name eth0 netns inside
ip link add wire0 type veth peer name eth0 netns outside
ip link set port0 master "$1" up
ip link set wire0 up
ip address add 10.90.1.1/24 dev "$1"
ip address add fd90:1::1/64 dev "$1" nodad
ip address add 10.90.2.1/24 dev wire0
ip address add fd90:2::1/64 dev wire0 nodad
for side in inside:1 outside:2; do
    name=${side%:*} number=${side#*:}
    ip -n $name link set eth0 up
    ip -n $name address add 10.90.$number.2/24 dev eth0
    ip -n $name address add fd90:$number::2/64 dev eth0 nodad
    ip -n $name route add default via 10.90.$number.1
    ip -n $name route add default via fd90:$number::1
done
"""


def need(*programs: str) -> None:
    """Skip the test where root or a program is missing; in CI, where everything must be there, fail it."""
    missing = [program for program in programs if shutil.which(program) is None]
    if os.geteuid() != 0:
        missing.insert(0, "root")
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {', '.join(missing)}")


class Host:
    """The private host, seen from outside: `pid` is a process in its network and mount namespaces."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.enter = ["nsenter", "-t", str(pid), "-n", "-m", f"--pid=/proc/{pid}/ns/pid_for_children", "--"]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def runner(self, argv: Sequence[str]) -> tuple[int, str, str]:
        done = subprocess.run([*self.enter, *argv], capture_output=True, text=True, check=False, timeout=30)
        return done.returncode, done.stdout, done.stderr

    def run(self, *argv: str) -> str:
        code, out, words = self.runner(argv)
        assert code == 0, f"{' '.join(argv)}: {words}"
        return out

    def popen(self, *argv: str) -> subprocess.Popen[str]:
        """A process on the host that is talked to by lines."""
        return subprocess.Popen([*self.enter, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def here(self, function: Callable[[], T]) -> T:
        """The function's result on a thread in the host's network namespace."""
        results: list[T] = []
        errors: list[Exception] = []

        def visit() -> None:
            fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                netns.setns(fd)
                results.append(function())
            except Exception as error:
                errors.append(error)
            finally:
                os.close(fd)

        thread = threading.Thread(target=visit)
        thread.start()
        thread.join()
        for error in errors:
            raise error
        return results[0]

    def start(self, name: str, *argv: str) -> None:
        """A daemon. Its process id on the host is in /run/NAME.id, what it says in /run/NAME.log."""
        script = 'echo $$ >/run/$0.id; exec "$@" >/run/$0.log 2>&1'
        self._daemons[name] = subprocess.Popen([*self.enter, "sh", "-c", script, name, *argv], stdin=subprocess.DEVNULL)

    def stop(self, name: str) -> None:
        """End a daemon, or one that has ended already."""
        self.runner(["sh", "-c", f"kill $(cat /run/{name}.id)"])
        self._daemons.pop(name).wait(20)

    def pause(self, name: str) -> None:
        self.run("sh", "-c", f"kill -STOP $(cat /run/{name}.id)")

    def resume(self, name: str) -> None:
        # nsenter stops itself when its child was stopped.
        self._daemons[name].send_signal(signal.SIGCONT)
        self.runner(["sh", "-c", f"kill -CONT $(cat /run/{name}.id)"])

    def start_dockerd(self, back_end: str, *options: str) -> None:
        path = f"PATH=/run/iptables-{back_end}:{os.environ['PATH']}"
        self.start("dockerd", "env", path, "dockerd", "--storage-driver", "vfs", "-H", "unix:///run/docker.sock", *options)
        self.wait_for("dockerd to answer", self._dockerd_answers)

    def _dockerd_answers(self) -> bool:
        # Its listening socket is there before its rules are; it answers when all is set up.
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.settimeout(5)
            client.connect(f"/proc/{self.pid}/root/run/docker.sock")
            client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return client.recv(100).startswith(b"HTTP/1.0 200")
        return False

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float = 20) -> float:
        """How long it took, in seconds."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > seconds:
                logs = self.runner(["sh", "-c", "tail -n 20 /run/*.log"])[1]
                pytest.fail(f"waited {seconds} s for {what}\n{logs}")
            time.sleep(0.02)
        return time.monotonic() - started

    def wire(self, bridge: str) -> None:
        """Two networks: `inside` behind the bridge (10.90.1.2, fd90:1::2), `outside` on a wire (10.90.2.2, fd90:2::2)."""
        self.run("sh", "-c", _TOPOLOGY, "wire", bridge)

    def passes(self, version: int = 4) -> bool:
        """Whether a packet from inside to outside is forwarded, and one the other way: both or, asserted, none."""
        out, back = ("10.90.2.2", "10.90.1.2") if version == 4 else ("fd90:2::2", "fd90:1::2")
        pings = [
            subprocess.Popen(
                [*self.enter, "ip", "netns", "exec", name, "ping", "-q", "-n", "-c", "3", "-i", "0.2", "-W", "1", address],
                stdout=subprocess.DEVNULL,
            )
            for name, address in (("inside", out), ("outside", back))
        ]
        answered = [ping.wait(20) == 0 for ping in pings]
        assert answered[0] == answered[1], f"inside to outside: {answered[0]}, outside to inside: {answered[1]}"
        return answered[0]


@contextlib.contextmanager
def private_host() -> Iterator[Host]:
    namespaces = ["-n", "-m", "-p", "-C", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
    argv = ["unshare", *namespaces, "sh", "-c", _SETUP, "setup", *sorted({_CHECKOUT, sys.prefix, sys.base_prefix})]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        host = Host(process.pid)
        try:
            yield host
        finally:
            for name in host._daemons:
                host.resume(name)
            process.communicate(timeout=20)
            for daemon in host._daemons.values():
                daemon.wait(20)
