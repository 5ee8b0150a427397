"""Addresses of containers that were there before Atoll: host-local's files, one an address, in a folder a network.

They are kept out of a network's pool when it is made, until their containers are deleted. Those from before the last boot mean nothing any
more: that they stay for ever is a known fault of host-local (containernetworking/plugins#252).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time
from typing import TYPE_CHECKING, Final

from atoll.errors import AtollError
from atoll.frontends.cni.words import attachment_of, owner_of
from atoll.frontends.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.engine import Engine
    from atoll.frontends.cni.words import Request
    from atoll.model import Endpoint, Network

_FOLDER: Final = "/var/lib/cni/networks"
_MOST: Final = 1 << 16
_LONGEST: Final = 1000


def keep(engine: Engine, network: Network, name: str, data_dir: str) -> None:
    """Hold the addresses that host-local has given out on a network. One that can't be held was somebody's mistake, and is left."""
    for text, owner in files(data_dir, name):
        try:
            engine.hold_address(network.id, owner, text)
        except AtollError as error:
            engine.emit("cni.lease", network=name, address=text, owner=owner, what=str(error))


def drop(engine: Engine, request: Request) -> None:
    """An attachment from before Atoll is being deleted, by whoever made it."""
    for (network, text), holder in list(engine.state.holds.items()):
        if holder == request.owner and engine.state.networks[network].name == request.network:
            engine.drop_hold(network, text)


def erase(network: Network, endpoint: Endpoint) -> None:
    """An attachment of ours has ended: what `atoll cni uninstall` has told host-local of it is true no more."""
    written = "\r\n".join(attachment_of(endpoint.owner)).encode()
    for text in endpoint.addresses:
        path = os.path.join(_FOLDER, network.name, text.partition("/")[0])
        with contextlib.suppress(OSError):
            with open(path, "rb") as file:
                ours = file.read(1000) == written
            if ours:
                os.unlink(path)


def collect(engine: Engine, request: Request) -> None:
    """Drop those of attachments that aren't valid any more."""
    for (network, text), holder in list(engine.state.holds.items()):
        valid = not holder.startswith("cni:") or attachment_of(holder) in request.valid
        if not valid and engine.state.networks[network].name == request.network:
            engine.drop_hold(network, text)


def files(data_dir: str, name: str) -> Iterator[tuple[str, str]]:
    """Address and owner of each lease of a network since the last boot."""
    folder = os.path.join(data_dir or _FOLDER, name)
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):
        return
    for name in names[:_MOST]:
        try:
            address = str(ipaddress.ip_address(name))
            path = os.path.join(folder, name)
            if os.stat(path).st_mtime >= booted:
                container, _, interface = read_file(path, _LONGEST).decode("utf-8", "replace").strip().partition("\n")
                yield address, owner_of(container.strip()[:200], interface.strip()[:15] or "eth0")
        except (ValueError, OSError):
            continue
