"""Kernel settings under /proc/sys/net, of the network namespace that the calling thread is in."""

from __future__ import annotations

import os
from typing import Final

from atoll.errors import Failed

_ROOT: Final = "/proc/sys/"


def path(name: str) -> str:
    """`net/ipv4/conf/eth0.5/forwarding` as a file; the name uses slashes, because interface names may hold dots."""
    if ".." in name.split("/") or not name.startswith("net/"):
        raise ValueError(f"not a network setting: {name!r}")
    return _ROOT + name


def read(name: str) -> str | None:
    """The value, or None where the kernel has no such setting."""
    try:
        fd = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failed(f"reading {name}: {error.strerror}", errno=error.errno or 0) from None
    try:
        return os.read(fd, 4096).decode().strip()
    finally:
        os.close(fd)


def write(name: str, value: str) -> None:
    """Write unless it is so already (a read-only /proc is no obstacle then)."""
    if read(name) == value:
        return
    try:
        fd = os.open(path(name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise Failed(f"setting {name}={value}: {error.strerror}", errno=error.errno or 0) from None
