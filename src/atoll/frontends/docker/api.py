"""What we ask Docker: its event stream, networks and containers, over its API socket. Only ever from outside a call of the driver, during
which dockerd holds locks that the answer may need."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import aiohttp
import msgspec
from msgspec import Struct, field

from atoll.errors import Failed, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEFAULT_SOCKET: Final = "/run/docker.sock"
_PID_FILE: Final = "/run/docker.pid"
_SYSTEMD: Final = "/run/systemd/system"
#: In the folder of the state: the socket that `atoll docker install --socket` named.
SOCKET_FILE: Final = "docker.socket"
#: Seconds until Docker must have accepted a connection. Its answers take as long as they take: it may be starting, or start a container.
_CONNECT: Final = 5.0
#: No answer or event is longer than this.
_MOST_BYTES: Final = 64 << 20

T = TypeVar("T")


# --- what it answers, as far as we read it -------------------------------------------------------------------------------------------


class Attachment(Struct, frozen=True):
    """A container's endpoint on a network."""

    network: str = field(name="NetworkID", default="")
    endpoint: str = field(name="EndpointID", default="")
    aliases: list[str] | None = field(name="Aliases", default=None)


class Settings(Struct, frozen=True):
    sandbox: str = field(name="SandboxKey", default="")
    networks: dict[str, Attachment] | None = field(name="Networks", default=None)


class Config(Struct, frozen=True):
    hostname: str = field(name="Hostname", default="")
    labels: dict[str, str] | None = field(name="Labels", default=None)


class HostConfig(Struct, frozen=True):
    dns: list[str] | None = field(name="Dns", default=None)


class Condition(Struct, frozen=True):
    running: bool = field(name="Running", default=False)


class Container(Struct, frozen=True):
    """`GET /containers/ID/json`."""

    id: str = field(name="Id")
    name: str = field(name="Name", default="")
    config: Config = field(name="Config", default=Config())
    host: HostConfig = field(name="HostConfig", default=HostConfig())
    settings: Settings = field(name="NetworkSettings", default=Settings())
    state: Condition = field(name="State", default=Condition())


class Listed(Struct, frozen=True):
    """One of `GET /containers/json`."""

    id: str = field(name="Id")


class EndpointThere(Struct, frozen=True):
    endpoint: str = field(name="EndpointID", default="")
    address4: str = field(name="IPv4Address", default="")
    address6: str = field(name="IPv6Address", default="")


class IpamPool(Struct, frozen=True):
    subnet: str = field(name="Subnet", default="")
    ip_range: str = field(name="IPRange", default="")
    gateway: str = field(name="Gateway", default="")
    aux: dict[str, str] | None = field(name="AuxiliaryAddresses", default=None)


class Ipam(Struct, frozen=True):
    driver: str = field(name="Driver", default="default")
    pools: list[IpamPool] | None = field(name="Config", default=None)


class DockerNetworkThere(Struct, frozen=True):
    """`GET /networks/ID`; in the list of all, `endpoints` is empty."""

    id: str = field(name="Id")
    name: str = field(name="Name", default="")
    driver: str = field(name="Driver", default="")
    internal: bool = field(name="Internal", default=False)
    ipv4: bool = field(name="EnableIPv4", default=True)
    ipv6: bool = field(name="EnableIPv6", default=False)
    options: dict[str, str] | None = field(name="Options", default=None)
    labels: dict[str, str] | None = field(name="Labels", default=None)
    ipam: Ipam = field(name="IPAM", default=Ipam())
    endpoints: dict[str, EndpointThere] | None = field(name="Containers", default=None)


class Actor(Struct, frozen=True):
    id: str = field(name="ID", default="")
    attributes: dict[str, str] = field(name="Attributes", default={})


class Event(Struct, frozen=True):
    """One line of `GET /events`. Of `kind` container the actor is the container, of `kind` network the network."""

    kind: str = field(name="Type", default="")
    action: str = field(name="Action", default="")
    actor: Actor = field(name="Actor", default=Actor())


class Plugins(Struct, frozen=True):
    """Drivers by their names; a plugin from its first use on."""

    network: list[str] | None = field(name="Network", default=None)


class Info(Struct, frozen=True):
    root: str = field(name="DockerRootDir", default="/var/lib/docker")
    version: str = field(name="ServerVersion", default="")
    plugins: Plugins = field(name="Plugins", default=Plugins())


# --- asking --------------------------------------------------------------------------------------------------------------------------


def socket_path(state: str) -> str:
    """What `atoll docker install --socket` recorded in the folder of the state, else DOCKER_HOST if it is a socket, else the usual one."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        recorded = Path(state, SOCKET_FILE).read_text(encoding="utf-8").strip()
        if recorded.startswith("/"):
            return recorded
    given = os.environ.get("DOCKER_HOST", "")
    return given.removeprefix("unix://") if given.startswith("unix:///") else DEFAULT_SOCKET


def may_connect(path: str) -> bool:
    """Whether dockerd may be listening there. Where systemd holds the socket for a dockerd that was stopped, connecting would start it."""
    if not os.path.exists(path):
        return False
    if path != DEFAULT_SOCKET or not os.path.isdir(_SYSTEMD):
        return True
    try:
        pid = int(Path(_PID_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return False
    return os.path.exists(f"/proc/{pid}")


def shares(path: str, namespace: tuple[int, int]) -> bool:
    """Whether who listens there is in this network namespace (device and inode); one on another stack is none of ours. Raises `Failed`."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_CONNECT)
        try:
            sock.connect(path)
            pid, _, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            found = os.stat(f"/proc/{pid}/ns/net")
        except OSError as error:
            raise Failed(f"asking Docker at {path}: {error.strerror}") from None
    return (found.st_dev, found.st_ino) == namespace


class Docker:
    """One dockerd, for as long as it runs. Every method raises `Failed` when it doesn't answer, `NotFound` for what it doesn't have."""

    def __init__(self, path: str) -> None:
        self.path = path
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT)
        connector = aiohttp.UnixConnector(path, limit=64)
        self._session = aiohttp.ClientSession("http://docker", connector=connector, timeout=timeout, read_bufsize=1 << 20)

    async def close(self) -> None:
        await self._session.close()

    async def info(self) -> Info:
        return await self._get("/info", Info)

    async def networks(self) -> list[DockerNetworkThere]:
        return await self._get("/networks", list[DockerNetworkThere])

    async def network(self, id_: str) -> DockerNetworkThere:
        return await self._get(f"/networks/{id_}", DockerNetworkThere)

    async def containers(self) -> list[str]:
        """The ids of all containers, stopped ones too."""
        return [listed.id for listed in await self._get("/containers/json?all=1", list[Listed])]

    async def container(self, id_: str) -> Container:
        """Waits while Docker starts or stops it."""
        return await self._get(f"/containers/{id_}/json", Container)

    async def events(self) -> AsyncIterator[Event | None]:
        """What happens to networks and containers, from the first value on, which is None; ends when dockerd does."""
        filters = json.dumps({"type": ["network", "container"]})
        try:
            async with self._session.get("/events", params={"filters": filters}) as answer:
                if answer.status != 200:
                    raise Failed(f"Docker at {self.path} answers {answer.status} when asked for its events")
                yield None
                async for line in answer.content:
                    with contextlib.suppress(msgspec.DecodeError):
                        yield msgspec.json.decode(line, type=Event)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._failure(error) from None

    async def _get(self, path: str, kind: type[T]) -> T:
        try:
            async with self._session.get(path) as answer:
                body = bytearray()
                async for part in answer.content.iter_any():
                    body += part
                    if len(body) > _MOST_BYTES:
                        raise Failed(f"Docker at {self.path} answers more than {_MOST_BYTES} bytes to {path}")
                if answer.status == 404:
                    raise NotFound(f"Docker has nothing at {path}")
                if answer.status != 200:
                    raise Failed(f"Docker at {self.path} answers {answer.status} to {path}")
                return msgspec.json.decode(body, type=kind)
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> Failed:
        return Failed(f"asking Docker at {self.path}: {str(error) or type(error).__name__}", "is dockerd running?")
