"""The host: one network stack, with everything that is open towards it.

A `Host` belongs to the network namespace that the thread which makes it is in. Several hosts may live in one process (labs do that),
each in its own namespace; nothing is shared between them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from atoll.errors import Conflict, Denied, NotFound
from atoll.kernel import announce, netlink, netns, nft, rtnl
from atoll.kernel.unlink import delete_link

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_SIOCGIFINDEX: Final = 0x8933


class Host:
    """What is open towards one network stack. `netns_dir` is where its named namespaces are mounted; with None they have names in this
    object only, which holds each by a descriptor, and end with it.

    `in_place`: the calling thread exists for this host alone and may visit namespaces itself (see `netns.Visitor`).
    """

    def __init__(self, netns_dir: Path | None = netns.NETNS_DIR, *, in_place: bool = False) -> None:
        # Of a host without such a folder it is one in which nothing can ever be.
        self.netns_dir = netns_dir or Path(os.devnull)
        self._held: dict[str, int] | None = {} if netns_dir is None else None
        self.visitor = netns.Visitor(in_place=in_place)
        self.netns = self.visitor.home
        self.identity = netns.identity(self.netns)
        self._deleting: list[threading.Thread] = []
        try:
            self.rtnl = netlink.Socket()
        except PermissionError:
            raise Denied("may not open a netlink socket", "run as root") from None

    @cached_property
    def nft(self) -> nft.Nft:
        return nft.open_nft(self.visitor, self.netns)

    @cached_property
    def nfnl(self) -> netlink.Socket:
        """For what libnftables can't do: reading the ruleset as bytes, and connection tracking."""
        return self.visitor.run(self.netns, nft.open_socket)

    @cached_property
    def packets(self) -> socket.socket:
        """For frames that the host itself sends, whole."""
        return self.visitor.run(self.netns, announce.open_socket)

    def delete_link(self, name: str) -> None:
        """Returns when a link of the host's own, and its peer, are gone; sooner than a request by `rtnl`. Raises `NetlinkError`."""
        self._deleting = [thread for thread in self._deleting if thread.is_alive()]
        sender, listener = self.run(lambda: (netlink.Socket(), netlink.Socket(groups=(rtnl.GROUP_LINK,))))
        with listener:
            self._deleting.append(delete_link(name, sender, listener))

    def close(self) -> None:
        for thread in self._deleting:
            thread.join()
        for name in ("nft", "nfnl", "packets"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
        self.rtnl.close()
        self.visitor.close()
        for fd in (self._held or {}).values():
            os.close(fd)
        self._held = None if self._held is None else {}

    def run(self, function: Callable[[], T]) -> T:
        """Run a function in the host's namespace, whichever the calling thread is in."""
        return self.visitor.run(self.netns, function)

    def open_namespace(self, name: str) -> int:
        """A named namespace as a descriptor. Raises `NotFound`."""
        if self._held is not None:
            if name not in self._held:
                raise NotFound(f"no network namespace named {name} is held")
            return os.dup(self._held[name])
        return netns.open_path(self.netns_dir / name)

    def namespace_path(self, name: str) -> Path:
        """The file that leads to a named namespace, as long as there is one."""
        if self._held is not None:
            return Path(f"/proc/{os.getpid()}/fd/{self._held.get(name, 'none')}")
        return self.netns_dir / name

    def has_namespace(self, name: str) -> bool:
        return name in self._held if self._held is not None else netns.is_attached(self.netns_dir, name)

    def create_namespace(self, name: str) -> None:
        """Raises `Conflict` when the name is taken."""
        if self._held is not None:
            self._hold(self._held, name, lambda: netns.unnamed(self.visitor))
            return
        netns.prepare(self.netns_dir)
        netns.create(self.visitor, self.netns_dir, name, lambda: None)

    def attach_namespace(self, name: str, source: str) -> None:
        """Give the namespace behind a file a name. Raises `Conflict` when that is taken."""
        if self._held is not None:
            self._hold(self._held, name, lambda: netns.open_path(source))
            return
        netns.prepare(self.netns_dir)
        netns.attach(self.netns_dir, name, source)

    def release_namespace(self, name: str) -> None:
        """Take a name away. Nothing there is success."""
        if self._held is None:
            netns.release(self.netns_dir, name)
        elif name in self._held:
            os.close(self._held.pop(name))

    @staticmethod
    def _hold(held: dict[str, int], name: str, make: Callable[[], int]) -> None:
        if name in held:
            raise Conflict(f"a network namespace named {name} is held already", "choose another name")
        held[name] = make()

    @contextlib.contextmanager
    def namespace(self, name: str) -> Iterator[int]:
        """The descriptor of a named namespace, or of the host for the empty name, for the time of a `with` block."""
        if not name:
            yield self.netns
            return
        fd = self.open_namespace(name)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def socket_in(self, name: str) -> Iterator[netlink.Socket]:
        """A routing socket of a named namespace (the host's own for the empty name)."""
        if not name:
            yield self.rtnl
            return
        with self.namespace(name) as fd:
            sock = self.visitor.run(fd, netlink.Socket)
        with sock:
            yield sock


def interface_index(sock: netlink.Socket, name: str) -> int:
    """The index of an interface in the socket's namespace. Raises `NotFound`."""
    try:
        answer = fcntl.ioctl(sock.fileno(), _SIOCGIFINDEX, struct.pack("16si12x", name.encode(), 0))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise NotFound(f"no interface {name}") from None
        raise
    return int(struct.unpack("16si12x", answer)[1])


def port_is_free(address: str, port: int, protocol: str) -> bool:
    """Whether a server could bind this port now, in the namespace of the calling thread. An address that the host lacks counts as free."""
    try:
        # Connections that linger in TIME_WAIT don't hold the port; a listener does in spite of this.
        taken = take_port(address, port, protocol, beside_old=protocol == "tcp")
    except OSError:
        return False
    if taken is not None:
        taken.close()
    return True


def take_port(address: str, port: int, protocol: str, *, beside_old: bool = False) -> socket.socket | None:
    """A socket that keeps everyone else from a port of the calling thread's namespace as long as it is open; None where nobody can have
    it, because the host lacks the address or the kernel the protocol. Raises `OSError` when it is taken, be it by connections that linger
    in TIME_WAIT; with `beside_old` these don't count, and the socket keeps nobody away."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    number = socket.IPPROTO_SCTP if protocol == "sctp" else 0
    try:
        taken = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    except OSError:
        return None
    try:
        if beside_old:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind((address, port))
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise
        return None
    return taken


def has_other_holder(port: int, protocol: str, pid: int) -> bool:
    """Whether a process other than this one has a port open, on whatever address, in the namespace of the calling thread."""
    inodes = {inode for version in ("", "6") for inode in _socket_inodes(f"{protocol}{version}", port)}
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.discard(os.readlink(fd).removeprefix("socket:[").rstrip("]"))
    return bool(inodes)


def port_holder(port: int, protocol: str) -> str:
    """Which process has a port open, for a message: `nginx (pid 12)`, or empty when it can't be seen."""
    inodes = {f"socket:[{inode}]" for version in ("", "6") for inode in _socket_inodes(f"{protocol}{version}", port)}
    if not inodes:
        return ""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) in inodes for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text(errors='replace').strip()} (pid {process.name})"
    return ""


def _socket_inodes(table: str, port: int) -> Iterator[str]:
    """Sockets bound to a port without a peer, from the calling thread's /proc/thread-self/net (proc_net(5))."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[2].endswith(":0000"):
                yield fields[9]
