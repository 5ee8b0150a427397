"""Network namespaces: made, entered and held by file descriptor.

A namespace is a property of a thread, so whatever must happen inside one happens on a `Visitor`, a thread that exists for that, moves
from namespace to namespace and never runs anything else. A caller's own thread never leaves its namespace, whatever goes wrong. A
netlink socket that is made inside belongs to that namespace for good and is then used from the caller's thread.

A named namespace is a bind mount at `/run/netns/NAME`, as iproute2 makes it, so `ip netns` sees ours and we see its.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import queue
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from atoll.errors import Conflict, Denied, Failed, Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

NETNS_DIR: Final = Path("/run/netns")
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_NS_GET_NSTYPE: Final = 0xB703
#: The namespace of the thread that opens it, which need not be the process's.
OWN: Final = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """Move the calling thread into a namespace (Python has `os.setns` from 3.12 on)."""
    _call("setns", fd, kind)


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own."""
    _call("unshare", flags)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None)


def unmount(target: str) -> None:
    """Unmount at once, even if busy, and never what a symbolic link leads to."""
    _call("umount2", target.encode(), _MNT_DETACH | _UMOUNT_NOFOLLOW)


class Identity(NamedTuple):
    """What tells one namespace from another as long as it lives: the device and inode of its file."""

    device: int
    inode: int


def identity(fd: int) -> Identity:
    found = os.fstat(fd)
    return Identity(found.st_dev, found.st_ino)


def identity_at(path: str) -> Identity | None:
    """What a path leads to, if it leads anywhere; that it is a namespace isn't asked."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return Identity(found.st_dev, found.st_ino)


def is_network_namespace(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def open_path(path: str | Path) -> int:
    """The namespace behind a file, as a descriptor. Raises `NotFound`, `Denied` or `Invalid`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except PermissionError:
        raise Denied(f"may not open {path}", "run as root") from None
    except OSError as error:
        raise NotFound(f"no network namespace at {path} ({error.strerror})") from None
    if not is_network_namespace(fd):
        os.close(fd)
        raise Invalid(f"{path} is not a network namespace", "expected a file such as /run/netns/NAME or /proc/PID/ns/net")
    return fd


class Visitor:
    """Visits namespaces: runs one function at a time in the namespace of a descriptor.

    It has a thread of its own for that, unless it is made `in_place`: then the thread that makes it, which must not be the main thread
    and must exist for this alone, goes there and back itself (15 us instead of 65). `home` is the descriptor of the namespace that the
    maker is in.
    """

    def __init__(self, *, in_place: bool = False) -> None:
        self.home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        self._closed = False
        self._maker = threading.get_ident() if in_place else None
        if in_place:
            if threading.current_thread() is threading.main_thread():
                raise ValueError("the main thread never leaves its namespace")
            return
        self._work: queue.SimpleQueue[tuple[int, Callable[[], object]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[BaseException | None, object]] = queue.SimpleQueue()
        self._one_at_a_time = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="atoll-visitor", daemon=True)
        self._thread.start()

    def run(self, fd: int, function: Callable[[], T]) -> T:
        """The function's result, or its exception. The function must not keep the thread (no waiting for a network)."""
        if self._maker is not None:
            if threading.get_ident() != self._maker:
                raise ValueError("this visitor belongs to another thread")
            return self._visit(fd, function)
        if threading.current_thread() is self._thread:
            # From within a visit at home: many short ones cost one change of threads then.
            return self._visit(fd, function)
        with self._one_at_a_time:
            if self._closed:
                raise Conflict("what this belongs to is closed", "use it before its lab or engine ends")
            self._work.put((fd, function))
            error, result = self._done.get()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def close(self) -> None:
        """The end of it: whoever wants to visit anything now gets a `Conflict`."""
        if self._maker is None:
            with self._one_at_a_time:
                self._closed = True
                self._work.put(None)
            self._thread.join()
        os.close(self.home)

    def _visit(self, fd: int, function: Callable[[], T]) -> T:
        try:
            setns(fd)
            return function()
        finally:
            # A thread that stays in a namespace keeps it alive; one that can't come home must not go on anywhere else.
            try:
                setns(self.home)
            except OSError:
                os.abort()

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                answer: tuple[BaseException | None, object] = (None, self._visit(*work))
            except BaseException as error:
                answer = (error, None)
            self._done.put(answer)


def prepare(directory: Path) -> None:
    """Make the folder of named namespaces ready as iproute2 does: a shared mount, so that mounts in it reach other mount namespaces."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    try:
        mount("", str(directory), flags=MS_SHARED | MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        mount(str(directory), str(directory), "none", MS_BIND | MS_REC)
        mount("", str(directory), flags=MS_SHARED | MS_REC)


def attach(directory: Path, name: str, source: str) -> None:
    """Give the namespace behind `source` (a path under /proc) a name. Raises `Conflict` when the name is a namespace's already.

    A plain file that an interrupted attempt left behind is taken over.
    """
    target = directory / name
    if is_attached(directory, name):
        raise Conflict(f"{target} is a network namespace already", f"adopt it: atoll ns adopt {name} --path {target}")
    try:
        os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0))
    except OSError as error:
        raise Failed(f"making {target}: {error.strerror}", errno=error.errno or 0) from None
    try:
        mount(source, str(target), "none", MS_BIND)
    except OSError as error:
        with contextlib.suppress(OSError):
            target.unlink()
        raise Failed(f"mounting a namespace at {target}: {error.strerror}", errno=error.errno or 0) from None


def is_attached(directory: Path, name: str) -> bool:
    try:
        fd = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return is_network_namespace(fd)
    finally:
        os.close(fd)


def release(directory: Path, name: str) -> None:
    """Take a name away; the namespace goes when nothing else holds it. Nothing there is success."""
    target = str(directory / name)
    with contextlib.suppress(OSError):
        unmount(target)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)


def create(visitor: Visitor, directory: Path, name: str, setup: Callable[[], None]) -> Identity:
    """A new named namespace, after `setup` has run inside it."""

    def make() -> Identity:
        unshare(CLONE_NEWNET)
        setup()
        attach(directory, name, OWN)
        fd = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return identity(fd)
        finally:
            os.close(fd)

    return visitor.run(visitor.home, make)


def unnamed(visitor: Visitor) -> int:
    """A new namespace that lives as long as the descriptor."""

    def make() -> int:
        unshare(CLONE_NEWNET)
        return os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)

    return visitor.run(visitor.home, make)


class Process(NamedTuple):
    """A process that can't be confused with a later one of the same number: `start` is its start time in clock ticks since boot."""

    pid: int
    start: int


def process(pid: int) -> Process:
    """Raises `NotFound` when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise NotFound(f"no process with pid {pid}") from None
    # The second field is the command in parentheses and may hold anything; the start time is the 22nd.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        raise NotFound(f"the process with pid {pid} has ended")
    return Process(pid, int(fields[19]))


def hold_process(expected: Process) -> int:
    """A pidfd of the process if it is still the one that was named. Raises `NotFound`."""
    try:
        fd = os.pidfd_open(expected.pid)
    except OSError:
        raise NotFound(f"no process with pid {expected.pid}") from None
    try:
        if process(expected.pid) != expected:
            raise NotFound(f"pid {expected.pid} is another process by now")
    except BaseException:
        os.close(fd)
        raise
    return fd


@cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
