"""Processes of a lab: they see the lab's names and end with it, however it ends.

A lab has a process namespace whose first process does nothing but wait for the lab's end of a pipe to close. When it ends, the kernel
ends every process that was started in the lab, and theirs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from atoll.kernel import netns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

CLONE_FS: Final = 0x00000200
CLONE_NEWPID: Final = 0x20000000
#: Whoever loses its parent becomes a child of the first process; a process that ignores SIGCHLD has nothing to bury.
_FIRST: Final = ("sh", "-c", "trap '' CHLD; exec cat")


def in_thread(function: Callable[[], T]) -> T:
    """The function's result or exception, from a thread that exists for it alone and may go wherever it wants."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="atoll-lab-run", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


class Process(subprocess.Popen[Any]):
    """A process on a place of a lab. Unless it was told where else to write, what it wrote is its `output`."""

    def __init__(self, place: str, command: Sequence[str], **options: Any) -> None:
        self.place, self.command = place, tuple(command)
        self._written = -1
        if not {"stdout", "stderr", "capture_output"} & set(options):
            self._written = os.memfd_create("output", os.MFD_CLOEXEC)
            options |= {"stdout": self._written, "stderr": self._written}
        options.setdefault("stdin", subprocess.DEVNULL)
        try:
            super().__init__(command, **options)
        except BaseException:
            self.forget()
            raise

    @property
    def output(self) -> str:
        """What it wrote so far, standard output and errors in one."""
        if self._written < 0:
            return ""
        return os.pread(self._written, os.fstat(self._written).st_size, 0).decode(errors="replace")

    def forget(self) -> None:
        if self._written >= 0:
            os.close(self._written)
            self._written = -1


class Processes:
    """What a lab started."""

    def __init__(self) -> None:
        self.started: list[Process] = []
        self._first: subprocess.Popen[bytes] | None = None
        self._namespace = -1

    def start(self, enter: Callable[[], None], place: str, command: Sequence[str], options: dict[str, Any]) -> Process:
        """Start a process in the namespaces that `enter` leads to."""
        if self._first is None:
            self._first = in_thread(_start_first)
            self._namespace = os.open(f"/proc/{self._first.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

        def run() -> Process:
            enter()
            # A thread with this can start no thread any more, only processes.
            netns.setns(self._namespace, CLONE_NEWPID)
            return Process(place, command, **options)

        made = in_thread(run)
        self.started.append(made)
        return made

    def close(self) -> None:
        """End all of them."""
        if self._first is None:
            return
        first, self._first = self._first, None
        first.kill()
        # The first of a process namespace is gone when all others are buried.
        for process in self.started:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.forget()
        # Closes its pipe as well.
        first.communicate()
        os.close(self._namespace)


def _start_first() -> subprocess.Popen[bytes]:
    netns.unshare(CLONE_NEWPID)
    return subprocess.Popen(_FIRST, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)


class Names:
    """The lab's own /etc/hosts, in a mount namespace of the lab; what the machine's says comes first."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._namespace = self._file = -1
        self._base = ""

    def add(self, name: str, addresses: Sequence[str]) -> None:
        self._names.setdefault(name, []).extend(addresses)
        self._write()

    def remove(self, name: str, addresses: Sequence[str] | None = None) -> None:
        kept = [text for text in self._names.pop(name, []) if addresses is not None and text not in addresses]
        if kept:
            self._names[name] = kept
        self._write()

    def text(self) -> str:
        return "".join(f"{address}\t{name}\n" for name, addresses in self._names.items() for address in addresses)

    def place(self) -> int:
        """A mount namespace for the network namespace that the calling thread is in: the lab's names, and /sys as seen from here."""
        if self._namespace < 0:
            in_thread(self._make)

        def make() -> int:
            self._visit()
            netns.unshare(netns.CLONE_NEWNS)
            with contextlib.suppress(OSError):
                netns.mount("sysfs", "/sys", "sysfs")
            return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

        return in_thread(make)

    def close(self) -> None:
        for fd in (self._namespace, self._file):
            if fd >= 0:
                os.close(fd)
        self._namespace = self._file = -1

    def _visit(self) -> None:
        enter_mounts(self._namespace)

    def _make(self) -> None:
        with contextlib.suppress(OSError):
            self._base = Path("/etc/hosts").read_text(encoding="utf-8")
        netns.unshare(netns.CLONE_NEWNS)
        netns.mount("", "/", flags=netns.MS_REC | netns.MS_SLAVE)
        # Any folder will do, for a moment, to have a file of the lab's own that can be mounted.
        folder = tempfile.gettempdir()
        netns.mount("atoll", folder, "tmpfs")
        hosts = f"{folder}/hosts"
        self._file = os.open(hosts, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with contextlib.suppress(OSError):
            netns.mount(hosts, "/etc/hosts", "none", netns.MS_BIND)
        netns.unmount(folder)
        self._namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._write()

    def _write(self) -> None:
        if self._file >= 0:
            data = (self._base + self.text()).encode()
            os.pwrite(self._file, data, 0)
            os.ftruncate(self._file, len(data))


def enter_mounts(fd: int) -> None:
    """Move the calling thread into a mount namespace, in the working directory that it had."""
    folder = os.getcwd()
    netns.unshare(CLONE_FS)
    netns.setns(fd, netns.CLONE_NEWNS)
    with contextlib.suppress(OSError):
        os.chdir(folder)
