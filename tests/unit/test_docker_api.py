"""What we ask Docker, of a server that answers as HTTP allows."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from atoll.errors import Failed
from atoll.frontends.docker import api
from atoll.frontends.docker.api import Docker, Info

if TYPE_CHECKING:
    from pathlib import Path

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def asked(folder: Path, *parts: bytes) -> Info:
    """What comes of an answer that arrives in these parts, each after the one before has been read."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, served: asyncio.Event) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                for _ in range(20):  # turns of the loop that the reader is on as well
                    await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()
        served.set()

    async def ask() -> Info:
        served = asyncio.Event()
        server = await asyncio.start_unix_server(lambda reader, writer: serve(reader, writer, served), folder / "docker.sock")
        docker = Docker(str(folder / "docker.sock"))
        try:
            return await docker.info()
        finally:
            await docker.close()
            await served.wait()
            server.close()
            await server.wait_closed()

    return asyncio.run(ask())


def test_an_answer_may_come_in_parts(tmp_path: Path) -> None:
    body = b'{"ServerVersion":"20.10","DockerRootDir":"/d"}'
    assert asked(tmp_path, HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body[:9], body[9:]) == Info(root="/d", version="20.10")


def test_an_answer_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_MOST_BYTES", 1000)
    with pytest.raises(Failed, match="more than 1000 bytes"):
        asked(tmp_path, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"40\r\n" + b" " * 64 + b"\r\n"] * 100)
