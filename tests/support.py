"""What surrounds a host in tests, and where traffic is made."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from typing import TYPE_CHECKING, Final, TypeVar

from atoll.kernel import netlink, rtnl, sysctl
from atoll.kernel.host import interface_index
from atoll.lab.machine import Machine, wire
from atoll.lab.traffic import PATIENCE, QUIET, TRANSPORTS, Place, Probe, Seen, Traffic, Transport, version_of
from atoll.model import interface

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from atoll import Engine

T = TypeVar("T")
__all__ = [
    "FACING",
    "OUTSIDE",
    "PATIENCE",
    "QUIET",
    "TRANSPORTS",
    "Inside",
    "Place",
    "Probe",
    "Seen",
    "Traffic",
    "Transport",
    "cidr",
    "ip",
    "lenient",
    "meet",
    "outside",
    "settle",
    "version_of",
]


class Inside:
    """A namespace of an engine by its name, or its host for the empty name."""

    def __init__(self, engine: Engine, namespace: str = "") -> None:
        self.name = namespace or "host"
        self._host, self._namespace = engine.host, namespace

    def run(self, function: Callable[[], T]) -> T:
        with self._host.namespace(self._namespace) as fd:
            return self._host.visitor.run(fd, function)


def ip(place: Place, *commands: str) -> None:
    """`ip` commands in a place, one after the other."""
    batch = "\n".join(commands)
    place.run(lambda: subprocess.run(["ip", "-b", "-"], input=batch, text=True, check=True, capture_output=True))


# --- the host's surroundings ---------------------------------------------------------------------------------------------------------

#: The host's address that faces the outside, and the address of the machine there.
FACING: Final = {4: "198.51.100.1", 6: "2001:db8:100::1"}
OUTSIDE: Final = {4: "198.51.100.9", 6: "2001:db8:100::9"}


def cidr(addresses: dict[int, str]) -> list[str]:
    return [f"{addresses[4]}/24", f"{addresses[6]}/64"]


def lenient() -> None:
    """Make the calling thread's namespace a host that checks nothing by itself, so that what is blocked was blocked by Atoll; and one
    whose new IPv6 addresses serve at once."""
    for setting, value in (("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "0"), ("ipv6/conf/default/accept_dad", "0")):
        sysctl.write(f"net/{setting}", value)


@contextlib.contextmanager
def outside(name: str, link: str, here: Sequence[str], there: Sequence[str]) -> Iterator[Machine]:
    """A machine on a cable to the host's interface `link`, which gets the addresses `here`; the machine's `eth0` gets `there` and sends
    everything that it doesn't know to the host, so it also tries the way to addresses that it should know nothing of."""
    with Machine(name) as machine:
        machine.run(lenient)
        wire(link, machine, "eth0")
        with netlink.Socket() as sock:
            index = interface_index(sock, link)
            sock.execute(rtnl.set_link(index, up=True), *(rtnl.add_address(index, interface(text)) for text in here))
        gateways = {version_of(text): text.partition("/")[0] for text in reversed(here)}
        machine.configure("eth0", there, list(gateways.values()))
        settle(link)
        meet(*(text.partition("/")[0] for text in there if version_of(text) in gateways))
        yield machine


def meet(*addresses: str) -> None:
    """Return when packets pass to and from these addresses of others: when each refuses a connection."""
    for address in addresses:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((address, 1), timeout=PATIENCE):
            pass


def settle(*links: str) -> None:
    """Return when packets flow through links of the calling thread's namespace that were just made: asked about a link, the kernel first
    does the work that it puts off when a carrier comes."""
    with netlink.Socket() as sock:
        for link in links:
            sock.ask(rtnl.get_link(link))
