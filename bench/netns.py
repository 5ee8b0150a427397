"""Network namespaces by file descriptor.

A namespace is a property of a thread. Whatever enters one here comes straight back on the same thread, so no thread is left behind in
the wrong one.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from atoll.errors import Failed

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000

#: Of the thread that opens it, which need not be the first one of its process.
_OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Give this process new namespaces of the kinds in `flags`. Raises Failed."""
    if _libc.unshare(flags) != 0:
        errno = ctypes.get_errno()
        raise Failed(f"unshare({flags:#x}): {os.strerror(errno)}", "run the bench as root", errno)


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        errno = ctypes.get_errno()
        raise Failed(f"entering the network namespace of fd {fd}: {os.strerror(errno)}", "run the bench as root", errno)


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """Run the body in the network namespace `fd`; sockets that it makes stay there."""
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(fd)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def create() -> int:
    """A new network namespace with IPv6 off, as a file descriptor; it lives until that is closed."""
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        try:
            fd = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            for scope in ("all", "default"):
                with open(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "w") as switch:
                    switch.write("1")
        finally:
            _enter(home)
    finally:
        os.close(home)
    return fd


def path(fd: int) -> str:
    """A path by which another process can open the namespace `fd` as long as this process holds it."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def settle(limit: float = 60.0) -> None:
    """Wait, `limit` seconds at most, until the kernel has taken down the namespaces that were closed before.

    It does so in the background, in batches and in order. A veth whose peer sits in a namespace closed last goes with that
    namespace's batch; the second one can only be in a later batch, so its end says that the first batch is done altogether.
    """
    deadline = time.monotonic() + limit
    for _ in range(2):
        fd = create()
        subprocess.run(["ip", "link", "add", "settle0", "type", "veth", "peer", "netns", path(fd)], check=True)
        os.close(fd)
        while os.path.exists("/proc/sys/net/ipv4/conf/settle0") and time.monotonic() < deadline:
            time.sleep(0.01)
