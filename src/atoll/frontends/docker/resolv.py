"""A container's resolv.conf: our gateways in the place of Docker's own resolver, which they pass on to what they don't know.

Docker's resolver (127.0.0.11 in every container on a network of its users') knows the names of Docker's networks and asks the servers of
the host, or of `--dns`, about everything else; it can't be told of names that aren't Docker's, nor of other servers once the container
has been created (libnetwork: sandbox_dns_unix.go, setupDNS; rebuildDNS only takes the file's servers where the host has none). So the
container asks our gateway, which knows everything on the network, and the gateway asks 127.0.0.11 from inside the container.

Docker writes the file twice for each start of a container: with the host's servers, and, when the container's namespace is there, with
127.0.0.11. The second time is what we wait for. Between it and the container's first instruction there are the set-up of the resolver
(several programs), the end of the container's creation, and its start.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
from typing import TYPE_CHECKING, Final

from atoll.frontends.files import read_file
from atoll.model import MAX_SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

#: Where Docker's resolver is in every container.
RESOLVER: Final = "127.0.0.11"
_LINE: Final = f"nameserver {RESOLVER}\n"
_HEAD: Final = f"# Atoll's gateways: they ask Docker's resolver, {RESOLVER}, about what they don't know.\n"
_FOOT: Final = "# (end of Atoll's gateways)\n"
_OURS: Final = re.compile(f"{re.escape(_HEAD)}(?:nameserver .*\n)*{re.escape(_FOOT)}")
_MOST_BYTES: Final = 1 << 16
#: How often a file is looked at between two words of Docker's: a container can write its own as often as it likes.
_PATIENCE: Final = 64

_IN_CLOSE_WRITE: Final = 0x008
_IN_IGNORED: Final = 0x8000
_IN_Q_OVERFLOW: Final = 0x4000
_IN_CLOEXEC: Final = 0o2000000
_IN_NONBLOCK: Final = 0o4000
_EVENT: Final = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


# --- the text ------------------------------------------------------------------------------------------------------------------------


def pointed(text: str, servers: Sequence[str]) -> str:
    """The text with these servers in the place of Docker's resolver, or of those that we put there; without any, Docker's again.

    A text that has neither is somebody's own, and stays as it is.
    """
    named = "".join(f"nameserver {server}\n" for server in servers[:MAX_SERVERS])
    ours = f"{_HEAD}{named}{_FOOT}" if named else _LINE
    if _OURS.search(text):
        return _OURS.sub(lambda _: ours, text, count=1)
    lines = text.splitlines(keepends=True)
    if _LINE not in lines:
        return text
    at = lines.index(_LINE)
    return "".join([*lines[:at], ours, *lines[at + 1 :]])


def servers_in(path: str) -> list[str]:
    """What a container's file names. Raises OSError."""
    return nameservers(read_file(path, _MOST_BYTES, follow=False).decode("utf-8", "replace"))


def nameservers(text: str) -> list[str]:
    return [words[1] for line in text.splitlines() if len(words := line.split()) > 1 and words[0] == "nameserver"]


def rewrite(path: str, servers: Sequence[str]) -> bool:
    """Have a container's file name these servers; whether it didn't. Written in place: the container has this very file. Raises OSError."""
    data = read_file(path, _MOST_BYTES, follow=False)
    wanted = pointed(data.decode("utf-8", "surrogateescape"), servers).encode("utf-8", "surrogateescape")
    if wanted == data:
        # Not even opened for writing: closed again it would count as written, and be looked at again.
        return False
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        # In one go, so that a reader finds either.
        os.pwrite(fd, wanted.ljust(len(data), b"\n"), 0)
        os.ftruncate(fd, len(wanted))
    finally:
        os.close(fd)
    return True


# --- the files -----------------------------------------------------------------------------------------------------------------------


class ResolvFiles:
    """The files that name our gateways, held to that whenever somebody has written them. `fileno` is readable when `ready` is due.

    `written` is told whose file Docker has just written. All on one thread.
    """

    def __init__(self, written: Callable[[str], None] = lambda _: None) -> None:
        self._fd: int = _libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._written = written
        self._wanted: dict[str, tuple[str, tuple[str, ...]]] = {}  # container to path and servers
        self._left: dict[str, int] = {}
        self._watches: dict[int, str] = {}
        self._watch_of: dict[str, int] = {}

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def __contains__(self, container: str) -> bool:
        return container in self._wanted

    @property
    def wanted(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        """By container: the path of its file, and the servers that it is to name."""
        return self._wanted

    def put(self, container: str, path: str, servers: Sequence[str]) -> None:
        """Have a container's file name these servers, now and whenever Docker has written it. One that isn't there yet is left to the next
        call."""
        self._wanted[container] = path, tuple(servers)
        self._left[container] = _PATIENCE
        self._watch(container, path)
        self._rewrite(container)

    def drop(self, container: str) -> None:
        """Give Docker's resolver its place back."""
        path, _ = self._wanted.pop(container, ("", ()))
        self._left.pop(container, None)
        self._unwatch(container)
        if path:
            with contextlib.suppress(OSError):
                rewrite(path, ())

    def drop_all(self) -> None:
        for container in list(self._wanted):
            self.drop(container)

    def ready(self) -> None:
        """Look at what was written."""
        for watch, mask in self._events():
            if mask & _IN_Q_OVERFLOW:
                for container in self._wanted:
                    self._rewrite(container)
                continue
            found = self._watches.get(watch)
            if found is None:
                continue
            if mask & _IN_IGNORED:  # the file has gone
                del self._watches[watch], self._watch_of[found]
                continue
            if self._rewrite(found):
                self._written(found)
            self._left[found] -= 1
            if not self._left[found]:
                self._unwatch(found)

    def _rewrite(self, container: str) -> bool:
        """Whether the file needed it."""
        path, servers = self._wanted[container]
        with contextlib.suppress(OSError):
            return rewrite(path, servers)
        return False

    def _watch(self, container: str, path: str) -> None:
        if container in self._watch_of:
            return
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_CLOSE_WRITE)
        if watch >= 0:
            self._watches[watch], self._watch_of[container] = container, watch

    def _unwatch(self, container: str) -> None:
        watch = self._watch_of.pop(container, -1)
        if watch >= 0:
            self._watches.pop(watch, None)
            _libc.inotify_rm_watch(self._fd, watch)

    def _events(self) -> Iterator[tuple[int, int]]:
        """Of one read: others have their turn before the next."""
        try:
            data = os.read(self._fd, 1 << 12)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size + size
            yield watch, mask
