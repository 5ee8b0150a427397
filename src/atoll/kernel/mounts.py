"""Files of ours over those of a process that runs: bind mounts in its mount namespace.

A mount namespace is a property of a thread as well, and a thread that has entered one with its root does not come home: each look
inside has a thread that ends with it. What is mounted is private and read-only, and what a target is called is never a link. Inside,
nothing may be imported, not even a codec by `open` or `decode`: it would come out of the process's tree.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.errors import AtollError, Conflict, Failed, Invalid, NotFound
from atoll.kernel import netns

if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE_FS: Final = 0x200
#: The same on every architecture that Python runs on.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
#: MOVE_MOUNT_F_EMPTY_PATH and MOVE_MOUNT_T_EMPTY_PATH: from this descriptor to that one.
_MOVE_BY_DESCRIPTORS: Final = 0x04 | 0x40
_MOUNT_ATTR_RDONLY: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _syscall(number: int, *args: int | bytes) -> int:
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


class _Inside(NamedTuple):
    """What was opened outside, for a look inside: the process's table of mounts, and what is known here of descriptors."""

    mounts: bytes
    descriptors: int


def check(process: netns.Process, target: str) -> None:
    """Whether `cover` could do it. Raises `Conflict` or `Invalid` with what to do, `NotFound` when the process has ended."""
    _run(process, target, lambda inside: os.close(_open_target(process, target, inside)))


def cover(process: netns.Process, target: str, source: str) -> None:
    """Have the process see our file `source` at `target`. If it does already nothing is done. Raises as `check`, and `Failed`."""
    with contextlib.ExitStack() as opened:

        def descriptor(fd: int) -> int:
            opened.callback(os.close, fd)
            return fd

        def work(inside: _Inside) -> None:
            if _is(target, ours):
                return
            _syscall(_MOVE_MOUNT, tree, b"", descriptor(_open_target(process, target, inside)), b"", _MOVE_BY_DESCRIPTORS)

        try:
            ours = os.stat(source, follow_symlinks=False)
            tree = descriptor(_syscall(_OPEN_TREE, _AT_FDCWD, source.encode(), _OPEN_TREE_CLONE | os.O_CLOEXEC))
            # Else what the process mounts over it would be mounted over our own file as well.
            attributes = struct.pack("=4Q", _MOUNT_ATTR_RDONLY, 0, netns.MS_PRIVATE, 0)
            _syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        except OSError as error:
            raise Failed(f"making a mount of {source}: {error.strerror}", errno=error.errno or 0) from None
        _run(process, target, work)


def uncover(process: netns.Process, target: str, source: str) -> None:
    """The opposite of `cover`. What isn't our file stays, and a process that has ended needs nothing. Raises `Failed`."""
    try:
        ours = os.stat(source, follow_symlinks=False)
    except OSError:
        return

    def work(inside: _Inside) -> None:
        del inside
        if _is(target, ours):
            netns.unmount(target)

    with contextlib.suppress(NotFound):
        if not _is_hosts(process):
            _run(process, target, work)


def are_same(one: int, other: int) -> bool:
    """Whether two processes have the same mounts."""
    try:
        return os.path.samestat(os.stat(f"/proc/{one}/ns/mnt"), os.stat(f"/proc/{other}/ns/mnt"))
    except OSError:
        return False


def _is(target: str, ours: os.stat_result) -> bool:
    try:
        found = os.stat(target, follow_symlinks=False)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def _is_hosts(process: netns.Process) -> bool:
    """Whether a process has the mounts of ours, or of the machine's first process: what is mounted there is the host's."""
    try:
        found = os.stat(f"/proc/{process.pid}/ns/mnt")
    except OSError as error:
        netns.process(process.pid)
        raise Failed(f"looking at pid {process.pid}'s mounts: {error.strerror}", errno=error.errno or 0) from None
    for path in ("/proc/thread-self/ns/mnt", "/proc/1/ns/mnt"):
        with contextlib.suppress(OSError):
            if os.path.samestat(found, os.stat(path)):
                return True
    return False


def _open_target(process: netns.Process, target: str, inside: _Inside) -> int:
    """The file that is to be covered, after all that must be so. Runs inside."""
    try:
        fd = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Invalid(f"pid {process.pid} has no {target}", "make it there, or adopt without --dns") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Invalid(f"{target} of pid {process.pid} is not a regular file", "make it one there, or adopt without --dns")
        if _is_shared(fd, inside):
            what = f"a mount over {target} of pid {process.pid} would reach other mount namespaces"
            raise Conflict(what, "start it with `unshare --mount`, which makes mounts private, or adopt without --dns")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_shared(fd: int, inside: _Inside) -> bool:
    """Whether the mount that holds a file has peers, which what is mounted there would reach (proc_pid_mountinfo(5))."""
    about = os.open(str(fd), os.O_RDONLY | os.O_CLOEXEC, dir_fd=inside.descriptors)
    try:
        number = os.read(about, 4096).partition(b"mnt_id:")[2].split()[0]
    finally:
        os.close(about)
    fields = next((fields for fields in map(bytes.split, inside.mounts.splitlines()) if fields[0] == number), None)
    # One that the process's table doesn't have is beyond its root, and nothing is known of it.
    return fields is None or any(field.startswith(b"shared:") for field in fields[6 : fields.index(b"-")])


def _run(process: netns.Process, target: str, work: Callable[[_Inside], None]) -> None:
    """Run something with the process's mounts and root, in a thread that ends with it."""
    failed: list[BaseException] = []

    def thread() -> None:
        try:
            with contextlib.ExitStack() as opened:
                _enter(process, opened, work)
        except BaseException as error:
            failed.append(error)

    if _is_hosts(process):
        what = f"pid {process.pid} has the host's own mounts, so {target} there is the host's"
        raise Conflict(what, "start it with `unshare --mount`, or adopt without --dns")
    runs = threading.Thread(target=thread, name="atoll-mounts", daemon=True)
    runs.start()
    runs.join()
    for error in failed:
        if isinstance(error, AtollError) or not isinstance(error, OSError):
            raise error
        if error.errno in (errno.ENOENT, errno.ESRCH):
            netns.process(process.pid)
        raise Failed(f"{target} of pid {process.pid}: {error.strerror}", errno=error.errno or 0) from None


def _enter(process: netns.Process, opened: contextlib.ExitStack, work: Callable[[_Inside], None]) -> None:
    def descriptor(path: str, flags: int) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        opened.callback(os.close, fd)
        return fd

    folder = f"/proc/{process.pid}"
    namespace = descriptor(f"{folder}/ns/mnt", os.O_RDONLY)
    root = descriptor(f"{folder}/root", os.O_PATH | os.O_DIRECTORY)
    inside = _Inside(Path(f"{folder}/mountinfo").read_bytes(), descriptor("/proc/self/fdinfo", os.O_RDONLY | os.O_DIRECTORY))
    if netns.process(process.pid) != process:
        raise NotFound(f"pid {process.pid} is another process by now")
    netns.unshare(_CLONE_FS)
    netns.setns(namespace, netns.CLONE_NEWNS)
    os.fchdir(root)
    os.chroot(".")
    work(inside)
