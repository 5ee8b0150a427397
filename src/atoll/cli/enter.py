"""Entering a namespace: this process moves into it, with a /sys that shows it and with files of its own in /etc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.errors import Denied, Failed

if TYPE_CHECKING:
    from collections.abc import Mapping


def enter(path: str, name: str, daemon_pid: int, files: Mapping[str, str]) -> None:
    """Move this process, which must have one thread, into the network namespace at `path`, called `name`, and into mounts of its own.

    `daemon_pid` is that of an ordinary user's daemon, whose host it is; else 0. `files` are files that stand in for others, by the path
    that they are seen at; those that the user keeps in /etc/netns/NAME come before them, as with `ip netns exec`. What isn't there
    can't be covered and is left out. Raises `Denied`, `Failed` and what `netns.open_path` raises.
    """
    from atoll.kernel import netns

    try:
        if daemon_pid:
            held = [
                (os.open(f"/proc/{daemon_pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC), flag)
                for kind, flag in (("user", netns.CLONE_NEWUSER), ("net", netns.CLONE_NEWNET), ("mnt", netns.CLONE_NEWNS))
            ]
            folder = os.getcwd()
            for fd, flag in held:
                netns.setns(fd, flag)
            with contextlib.suppress(OSError):
                os.chdir(folder)
        fd = netns.open_path(path)
        netns.setns(fd)
        os.close(fd)
        netns.unshare(netns.CLONE_NEWNS)
        netns.mount("", "/", flags=netns.MS_REC | netns.MS_SLAVE)
        with contextlib.suppress(OSError):
            netns.mount("sysfs", "/sys", "sysfs")
        for target, source in {**files, **_users_own(name)}.items():
            if os.path.exists(target) and os.path.exists(source):
                netns.mount(source, target, "none", netns.MS_BIND)
    except PermissionError:
        raise Denied(f"may not enter namespace {name}", "run as root") from None
    except OSError as error:
        raise Failed(f"entering namespace {name}: {error.strerror}", errno=error.errno or 0) from None


def _users_own(name: str) -> dict[str, str]:
    folder = Path("/etc/netns") / name
    if folder.is_symlink() and os.readlink(folder).endswith(f"/netns/{name}"):
        # Atoll's own link: what is in there is known already, or is of a namespace of that name on the machine and not on this host.
        return {}
    found = {f"/etc/{file.name}": str(file) for file in (folder.iterdir() if folder.is_dir() else ())}
    # A folder covers a folder and a file a file; nothing else can be (mount(2)).
    return {target: source for target, source in found.items() if os.path.isdir(target) == os.path.isdir(source)}
