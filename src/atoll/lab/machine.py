"""Machines around a host under test: a network namespace each, joined to the host by a wire, with no name anywhere.

What runs on a machine is Python in this process (`run`), or a process of its own (`popen`); results are values, never parsed text.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any, Self, TypeVar

from atoll.kernel import netlink, netns, rtnl
from atoll.kernel.host import interface_index
from atoll.lab import private
from atoll.model import address, interface

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


class Machine:
    """A machine of its own. Made in whatever namespace the calling thread is in, and independent of it from then on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._visitor = netns.Visitor()

        def make() -> int:
            netns.unshare(netns.CLONE_NEWNET)
            private.fresh()
            return os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)

        self.fd = self._visitor.run(self._visitor.home, make)

    def close(self) -> None:
        os.close(self.fd)
        self._visitor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Callable[[], T]) -> T:
        """The function's result, run in this machine's namespace (sockets that it makes stay there). It must not take long."""
        return self._visitor.run(self.fd, function)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """A process on this machine, as `subprocess.Popen`."""
        return self.run(lambda: subprocess.Popen(command, **options))

    def configure(self, link: str, addresses: Sequence[str] = (), gateways: Sequence[str] = ()) -> None:
        """Bring an interface up with addresses (with prefix length) and default routes."""

        def requests() -> None:
            with netlink.Socket() as sock:
                index = interface_index(sock, link)
                sock.execute(rtnl.set_link(index, up=True), *(rtnl.add_address(index, interface(text)) for text in addresses))
                for gateway in map(address, gateways):
                    sock.execute(rtnl.add_route(gateway.version, destination=None, gateway=gateway, index=index))

        self.run(requests)


def wire(here: str, machine: Machine, there: str, *, mtu: int = 1500) -> None:
    """A cable between interface `here` of the calling thread's namespace and `there` of a machine; both are down."""
    with netlink.Socket() as sock:
        sock.execute(rtnl.add_veth(here, peer=there, peer_netns=machine.fd, peer_mac="", mtu=mtu))
