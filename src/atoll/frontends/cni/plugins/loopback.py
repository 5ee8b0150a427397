"""`loopback`: a container's `lo`, up. Nothing is recorded: it is there with the namespace and goes with it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from atoll.errors import NotFound
from atoll.frontends.cni.attachments import open_netns
from atoll.frontends.cni.refusal import IO_FAILURE, Refusal
from atoll.frontends.cni.results import Interface, Ip, Result
from atoll.kernel import netlink, rtnl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.engine import Engine
    from atoll.frontends.cni.words import Request

_NO_MAC = "00:00:00:00:00:00"


def add(engine: Engine, request: Request) -> Result:
    with _lo(engine, request) as (sock, link):
        sock.execute(rtnl.set_link(link.ifindex, up=True))
        addresses = [str(row.interface) for row in rtnl.addresses(sock) if row.ifindex == link.ifindex]
    if request.previous is not None:
        return request.previous
    made = Interface(link.name, mac=_NO_MAC, mtu=link.mtu, sandbox=request.environment.netns)
    return Result(interfaces=(made,), ips=tuple(Ip(text, interface=0) for text in addresses))


def delete(engine: Engine, request: Request) -> None:
    """Down, as the reference plugin leaves it; but not in a namespace that Atoll made, whose `lo` is up by its own rules."""
    if not request.environment.netns:
        return
    with contextlib.suppress(NotFound):
        known = engine.namespace_at(request.environment.netns)
        if known is None or known.kind != "created":
            with _lo(engine, request) as (sock, link):
                sock.execute(rtnl.set_link(link.ifindex, up=False))


def check(engine: Engine, request: Request) -> None:
    with _lo(engine, request) as (_, link):
        if not link.up:
            raise Refusal(IO_FAILURE, "interface lo is down in the container")


def gc(engine: Engine, request: Request) -> None:
    """Nothing of it outlives a namespace."""
    del engine, request


def status(engine: Engine, request: Request) -> None:
    """It is always ready."""
    del engine, request


@contextlib.contextmanager
def _lo(engine: Engine, request: Request) -> Iterator[tuple[netlink.Socket, rtnl.Link]]:
    fd = open_netns(engine, request)
    try:
        sock = engine.host.visitor.run(fd, netlink.Socket)
    finally:
        os.close(fd)
    with sock:
        yield sock, rtnl.parse_link(sock.ask(rtnl.get_link("lo")).body)
