"""A document: Compose's `name:`, `networks:` and `services:`, as far as they speak of networks and commands.

    parsed = parse(text, "atoll.yaml", folder=".", variables=os.environ)
    parsed.topology      the value
    parsed.notes         what is in the file and not used

Namespaces are called PROJECT-SERVICE and networks PROJECT_NETWORK, for names are the whole host's; each service answers to SERVICE on
its networks. Raises `Invalid` with FILE:LINE:COLUMN, what is wrong there and what was expected.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import structs

from atoll.checks import check_name
from atoll.errors import NotFound
from atoll.topology import keys, services, source
from atoll.topology.networks import default, networks
from atoll.topology.source import Map, Mark, as_map, as_text, at, check_keys
from atoll.topology.value import Topology

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from atoll.topology.services import Service
    from atoll.topology.value import Place, Program

#: What a file is called when nobody says; the first that is there.
FILES: Final = (
    "atoll.yaml",
    "atoll.yml",
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
)


class Parsed(NamedTuple):
    """A topology, and lines that say what is in the file and not used."""

    topology: Topology
    notes: tuple[str, ...] = ()


def load(path: str, *, project: str = "", variables: Mapping[str, str], profiles: Collection[str] = (), only: Sequence[str] = ()) -> Parsed:
    """The document in a file; an `.env` beside it gives variables that the environment hasn't."""
    folder = os.path.dirname(os.path.abspath(path))
    beside = os.path.join(folder, ".env")
    own = source.dotenv(beside) if os.path.exists(beside) else {}
    return parse(source.read(path), path, folder=folder, variables=own | dict(variables), project=project, profiles=profiles, only=only)


def find(folder: str = ".") -> str:
    """The file that is meant when none is named. Raises `NotFound`."""
    for name in FILES:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return name if folder == "." else path
    raise NotFound(f"no topology in this folder ({', '.join(FILES[:3])}, ...)", "give a file with -f")


def folder_project(folder: str) -> str:
    """A project's name from a folder's, by Compose's rule."""
    return re.sub(r"[^a-z0-9_-]", "", os.path.basename(os.path.abspath(folder)).lower()).lstrip("_-")


def parse(
    text: str,
    file: str,
    *,
    folder: str = ".",
    variables: Mapping[str, str] | None = None,
    project: str = "",
    profiles: Collection[str] = (),
    only: Sequence[str] = (),
) -> Parsed:
    """The topology of a document's text. `only` are the services wanted, with what they depend on; none means all."""
    variables = variables or {}
    root = source.parse(text, file, variables)
    _check_top(root)
    project = project or _project(root, folder, Mark(file, 1, 1))
    unused: Counter[str] = Counter(key for key in root.entries if key in keys.DOCUMENT_UNUSED)

    def note(key: str) -> None:
        unused[key] += 1

    described = networks(_section(root, "networks"), project, note)
    listed = _section(root, "services")
    outlines = {
        name: services.outline(name, listed.keys[name], as_map(node, f"service {name}"), listed, note)
        for name, node in listed.entries.items()
    }
    context = services.Context(project, folder, {"default": default(project)} | described, variables, note)
    order = _order(outlines)
    read = _read(outlines, context)
    active = _active(outlines, order, only, profiles)
    places = tuple(place for name in active for place in read[name][0])
    used = {connection.network for place in places for connection in place.connections}
    wanted = described.values() if not only else [made for made in described.values() if made.name in used]
    if context.networks["default"].name in used and "default" not in described:
        wanted = [*wanted, context.networks["default"]]
    topology = Topology(
        project=project,
        networks=tuple(sorted((made.request for made in wanted if made.request is not None), key=lambda request: request.name)),
        external=tuple(sorted(made.name for made in wanted if made.request is None and made.name in used)),
        namespaces=places,
        programs=_in_order(active, outlines, {name: read[name][1] for name in active}),
    )
    return Parsed(topology, _notes(unused))


def _section(root: Map, key: str) -> Map:
    return as_map(root.entries[key], key) if key in root.entries else Map(root.mark, {}, {})


def _check_top(root: Map) -> None:
    for key, hint in keys.REFUSED.items():
        if key in root.entries:
            raise root.keys[key].error(f"{key} is not supported", hint)
    check_keys(root, (*keys.DOCUMENT, *keys.DOCUMENT_UNUSED), "a topology")


def _project(root: Map, folder: str, mark: Mark) -> str:
    if "name" in root.entries:
        mark = root.entries["name"].mark
        found = as_text(root.entries["name"], "name")
    else:
        found = folder_project(folder)
        if not found:
            raise mark.error("the folder's name makes no project's name", "write name: NAME, or give -p NAME")
    with at(mark):
        return check_name(found, "project")


def _read(outlines: Mapping[str, Service], context: services.Context) -> dict[str, tuple[list[Place], list[Program]]]:
    """Every service, also those that aren't wanted now: what is wrong in a file is wrong at once."""
    found: dict[str, tuple[list[Place], list[Program]]] = {}
    names: dict[str, Service] = {}
    for name, service in outlines.items():
        host = service
        while host.shares in outlines:
            host = outlines[host.shares]
        shared = services.full_name(host, context) if service.shares and not host.shares else ""
        found[name] = services.read(service, context, shared)
        for place in found[name][0]:
            if place.name in names:
                raise service.mark.error(
                    f"services {names[place.name].name} and {name} would both be namespace {place.name}", "rename one of them"
                )
            names[place.name] = service
    return found


def _active(outlines: Mapping[str, Service], order: Sequence[str], only: Sequence[str], profiles: Collection[str]) -> list[str]:
    """The services that are wanted, each after those that it needs."""
    for name in only:
        if name not in outlines:
            raise NotFound(f"no service {name[:60]!r} in the file", f"it has: {', '.join(outlines) or 'none'}")
    wanted = set(only) or {name for name, service in outlines.items() if not service.profiles or set(service.profiles) & set(profiles)}
    for name in reversed(order):
        if name in wanted:
            wanted |= {*outlines[name].after, outlines[name].shares} & set(outlines)
    return [name for name in order if name in wanted]


def _in_order(active: Sequence[str], outlines: Mapping[str, Service], programs: Mapping[str, list[Program]]) -> tuple[Program, ...]:
    """The programs with the names of those that they start after."""
    found: list[Program] = []
    for name in active:
        after = tuple(other.name for service in outlines[name].after for other in programs.get(service, ()))
        found += [structs.replace(program, after=after) for program in programs[name]]
    return tuple(found)


def _notes(unused: Counter[str]) -> tuple[str, ...]:
    if not unused:
        return ()
    words = [f"{key} ({count} times)" if count > 1 else key for key, count in sorted(unused.items())]
    return (f"not used: {', '.join(words)}",)


def _order(outlines: Mapping[str, Service]) -> list[str]:
    """Services so that each comes after those that it depends on or shares with, else as they are written. Any number of them, so no
    recursion."""
    needs = {name: [other for other in (*service.after, service.shares) if other in outlines] for name, service in outlines.items()}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = error.args[1][:0:-1]
        start = min(range(len(circle)), key=lambda position: list(outlines).index(circle[position]))
        circle = [*circle[start:], *circle[: start + 1]]
        raise outlines[circle[0]].mark.error(f"services depend on each other: {' -> '.join(circle)}", "break the circle") from None
    order: dict[str, None] = {}
    for name in outlines:
        under_way = [name]
        while under_way:
            missing = next((other for other in needs[under_way[-1]] if other not in order), None)
            if missing is None:
                order[under_way.pop()] = None
            else:
                under_way.append(missing)
    return list(order)
