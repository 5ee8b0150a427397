"""The plugin socket's HTTP. It only moves bytes; calls go to the engine's thread in the order in which they come."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from aiohttp import web

from atoll.errors import one_line
from atoll.frontends.docker.calls import Reply, answer, refusal
from atoll.frontends.docker.protocol import MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from atoll.frontends.docker.door import Door

    OnEngine = Callable[[Callable[[], Reply]], Awaitable[Reply]]

#: A container may publish tens of thousands of ports, and each is about a hundred bytes.
_MOST_BYTES: Final = 16 << 20


def application(door: Door, on_engine: OnEngine) -> web.Application:
    """What answers dockerd. `on_engine` runs a function on the engine's thread."""

    async def call(request: web.Request) -> web.Response:
        body = await request.read()
        name = request.path.removeprefix("/")
        return _response(await on_engine(lambda: answer(door, name, body)))

    app = web.Application(middlewares=[_guarded], client_max_size=_MOST_BYTES)
    app.router.add_post("/{name:.*}", call)
    return app


@web.middleware
async def _guarded(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Every refusal is in Docker's form, and nobody is served who may not be."""
    if not _may(request):
        return _response(refusal(403, "only root may speak for Docker"))
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _response(refusal(error.status, one_line(f"{request.method} {request.path[:80]}: {error.reason}")))


def _may(request: web.Request) -> bool:
    """The socket's mode decides; the peer's credentials are checked as well, should the mode ever be wrong."""
    peer: socket.socket | None = request.transport.get_extra_info("socket") if request.transport else None
    if peer is None:
        return False
    _, uid, _ = struct.unpack("iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.geteuid())


def _response(reply: Reply) -> web.Response:
    return web.Response(body=reply.body, status=reply.status, content_type=MEDIA_TYPE)
