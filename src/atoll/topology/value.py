"""A whole topology as a value: what a document says, and what Python may say without one.

Names in it are those of the host: the project's name is in them already. Lists are sorted or in the order in which things are made.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from msgspec import Struct, structs

from atoll.engine.network_request import NetworkRequest

#: Labels of what a topology makes; `CONFIG` tells whether it was asked for in the same words.
PROJECT: Final = "atoll.project"
SERVICE: Final = "atoll.service"
CONFIG: Final = "atoll.config"


class Connection(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A namespace's place on a network. What is left empty is chosen; `publish` are specs of ports in their long form."""

    network: str
    addresses: tuple[str, ...] = ()
    mac: str = ""
    interface: str = ""
    aliases: tuple[str, ...] = ()
    gateway_priority: int = 0
    publish: tuple[str, ...] = ()


class Program(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A command that runs, detached, in the namespace that it `share`s: `ns:NAME`, or `host`. `after` are programs that start before."""

    name: str
    share: str
    command: tuple[str, ...]
    service: str = ""
    environment: dict[str, str] = {}
    directory: str = ""
    user: str = ""
    hostname: str = ""
    after: tuple[str, ...] = ()


class Place(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A namespace with its connections, in the order in which they are made."""

    name: str
    service: str = ""
    connections: tuple[Connection, ...] = ()
    servers: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class Topology(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Networks, namespaces and programs of one project. `external` are networks that must be there and are never touched."""

    project: str
    networks: tuple[NetworkRequest, ...] = ()
    external: tuple[str, ...] = ()
    namespaces: tuple[Place, ...] = ()
    programs: tuple[Program, ...] = ()

    def network_labels(self, network: NetworkRequest) -> dict[str, str]:
        return network.labels | {PROJECT: self.project, CONFIG: fingerprint(network)}

    def namespace_labels(self, place: Place) -> dict[str, str]:
        own = {PROJECT: self.project} | ({SERVICE: place.service} if place.service else {})
        return place.labels | own | ({CONFIG: fingerprint(place.servers)} if place.servers else {})

    def program_labels(self, program: Program) -> dict[str, str]:
        own = {PROJECT: self.project, CONFIG: fingerprint(structs.replace(program, after=()))}
        return own | ({SERVICE: program.service} if program.service else {})


def fingerprint(value: object) -> str:
    """Short, and the same for equal values."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]
