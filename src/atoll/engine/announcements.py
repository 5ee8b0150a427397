"""Which addresses have changed hands, and the neighbours' being told so."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from atoll.errors import NotFound
from atoll.kernel import announce, rtnl
from atoll.kernel.host import interface_index
from atoll.model import interface

if TYPE_CHECKING:
    from atoll.kernel.host import Host
    from atoll.model import Endpoint, Network

#: Addresses that were given up are remembered for so long that so many others were.
_MOST: Final = 4096


class Announcements:
    """A frame to everybody costs a large network dearly, so there is none for an address that nobody had before."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._given_up: dict[tuple[str, str], str] = {}

    def give_up(self, network: Network, endpoint: Endpoint) -> None:
        for text in endpoint.addresses:
            self._given_up.pop((network.id, text), None)
            self._given_up[network.id, text] = endpoint.mac
        while len(self._given_up) > _MOST:
            del self._given_up[next(iter(self._given_up))]

    def make(self, network: Network, endpoint: Endpoint) -> None:
        """Tell everyone on the endpoint's network, the host included, where its addresses are, if someone may believe otherwise."""
        if network.driver != "bridge" or network.announce == "never":
            return
        values = [
            interface(text).ip
            for text in endpoint.addresses
            if network.announce == "always" or self._given_up.pop((network.id, text), endpoint.mac) != endpoint.mac
        ]
        if not values:
            return
        with contextlib.suppress(NotFound):  # a bridge that somebody has just deleted has no neighbours
            index = interface_index(self._host.rtnl, network.bridge)
            self._host.rtnl.request(*(rtnl.delete_neighbour(index, value) for value in values))
        with contextlib.suppress(OSError):
            for value in values:
                self._host.packets.sendto(announce.frame(value, endpoint.mac, network.mac), (network.bridge, 0))
