"""`atoll up`, `down`, `diff`, `schema`: a topology and the host."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from atoll import topology as topologies
from atoll.cli import client, output
from atoll.topology.difference import (
    Connect,
    CreateNamespace,
    CreateNetwork,
    Current,
    Disconnect,
    Publish,
    RemoveNamespace,
    RemoveNetwork,
    StartProgram,
    StopProgram,
    Unpublish,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atoll.topology import Change, Parsed

_file = click.option("-f", "--file", "file", default="", metavar="FILE", help="Default: atoll.yaml, compose.yaml or docker-compose.yml.")
_project = click.option("-p", "--project", default="", metavar="NAME", help="The project; the file's name:, or the folder's name.")
_profile = click.option("--profile", "profiles", multiple=True, metavar="NAME", help="With the services of this profile.")
_orphans = click.option(
    "--remove-orphans/--keep-orphans", "orphans", default=True, help="Whether what the file no longer has goes; it does."
)
_services = click.argument("services", nargs=-1, metavar="[SERVICE]...")


class DaemonHost:
    """The daemon, by its API; programs are processes of this one."""

    at_once = True

    def current(self) -> Current:
        return Current(client.get("/v1/networks"), client.get("/v1/namespaces"), client.get("/v1/runs"))

    def do(self, change: Change) -> Sequence[str]:
        match change:
            case StopProgram() | StartProgram():
                _program(change)
            case RemoveNamespace():
                client.delete(f"/v1/namespaces/{client.quote(change.name)}")
            case RemoveNetwork():
                client.delete(f"/v1/networks/{client.quote(change.name)}")
            case CreateNetwork():
                notes: list[str] = client.post("/v1/networks", msgspec.to_builtins(change.request))["notes"]
                return notes
            case CreateNamespace():
                client.post("/v1/namespaces", {"name": change.name, "labels": change.labels, "servers": list(change.servers)})
            case Connect():
                where = f"/v1/networks/{client.quote(change.connection.network)}/endpoints"
                body = msgspec.to_builtins(change.connection)
                del body["network"]
                client.post(where, body | {"namespace": change.namespace})
            case Disconnect():
                client.delete(f"/v1/networks/{client.quote(change.network)}/endpoints/{client.quote(change.namespace)}")
            case Publish() | Unpublish():
                verb = "publish" if isinstance(change, Publish) else "unpublish"
                body = {"ports": list(change.ports), "network": change.network}
                client.post(f"/v1/namespaces/{client.quote(change.namespace)}/{verb}", body)
        return ()


def _program(change: StopProgram | StartProgram) -> None:
    from atoll.cli import runs

    if isinstance(change, StopProgram):
        if change.running:
            runs.stop(change.name)
        client.delete(f"/v1/runs/{client.quote(change.name)}")
        return
    program = change.program
    runs.start(
        runs.RunRequest(
            program.command,
            name=program.name,
            share=program.share,
            labels=change.labels,
            directory=program.directory,
            environment=program.environment,
            user=program.user,
            hostname=program.hostname,
        )
    )


# --- the commands --------------------------------------------------------------------------------------------------------------------


@click.command()
@_services
@_file
@_project
@_profile
@_orphans
@click.option("-d", "--detach", is_flag=True, hidden=True)
def up(services: tuple[str, ...], file: str, project: str, profiles: tuple[str, ...], orphans: bool, detach: bool) -> None:
    """Make the host as a topology says: only what differs is changed. With SERVICEs, those and what they depend on.

    \b
      atoll up
      atoll up -f shop.yaml web
    """
    del detach  # a habit from Compose: programs are always detached
    parsed = _load(file, project, profiles, services)
    _make(parsed.topology, orphans=orphans and not services, nothing=f"{parsed.topology.project} is as the file says")


@click.command()
@_file
@_project
def down(file: str, project: str) -> None:
    """Remove what a topology has made, and nothing else. With -p no file is needed."""
    if not project:
        path = file or topologies.find()
        project = topologies.load(path, variables=os.environ).topology.project
    _make(topologies.Topology(project), orphans=True, nothing=f"nothing of {project} is there")


@click.command()
@_services
@_file
@_project
@_profile
@_orphans
@click.option("--commands", is_flag=True, help="As the ip, nft and sysctl commands that it stands for.")
@click.option("--exit-code", is_flag=True, help="End with 1 when something differs.")
@output.format_option
def diff(
    services: tuple[str, ...],
    file: str,
    project: str,
    profiles: tuple[str, ...],
    orphans: bool,
    commands: bool,
    exit_code: bool,
    form: str,
) -> None:
    """Show what `up` would change, and change nothing."""
    parsed = _load(file, project, profiles, services)
    current = DaemonHost().current()
    changes = topologies.difference(parsed.topology, current, orphans=orphans and not services)
    if commands:
        from atoll.cli import rehearsal

        for line in rehearsal.commands(changes, current, here=not client.get("/v1/status")["rootless"]):
            click.echo(line)
    elif form == "json":
        output.show_json([msgspec.to_builtins(change) for change in changes])
    elif changes:
        output.table(("CHANGE", "KIND", "NAME", "DETAILS"), [_row(change) for change in changes])
    else:
        click.echo(f"{parsed.topology.project} is as the file says")
    if exit_code and changes:
        raise SystemExit(1)


@click.command()
def schema() -> None:
    """Print the JSON schema of a topology, for editors."""
    output.show_json(topologies.schema())


def _make(topology: topologies.Topology, *, orphans: bool, nothing: str) -> None:
    """Carry the difference out, telling of each change; `nothing` is said where there is none."""
    host = DaemonHost()
    changes = topologies.difference(topology, host.current(), orphans=orphans)
    topologies.carry_out(changes, host, _told)
    if not changes:
        click.echo(nothing)


def _load(file: str, project: str, profiles: Sequence[str], services: Sequence[str]) -> Parsed:
    parsed = topologies.load(file or topologies.find(), project=project, variables=os.environ, profiles=profiles, only=services)
    for note in parsed.notes:
        click.echo(f"note: {note}", err=True)
    return parsed


# --- what a change is called ---------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    verb: str
    kind: str
    name: str
    details: str = ""


_DONE = {
    "create": "created",
    "remove": "removed",
    "connect": "connected",
    "disconnect": "disconnected",
    "publish": "published",
    "unpublish": "unpublished",
    "start": "started",
    "stop": "stopped",
}


def _row(change: Change) -> _Row:
    match change:
        case StopProgram():
            return _Row("stop", "program", change.name)
        case StartProgram():
            return _Row("start", "program", change.program.name, shlex.join(change.program.command))
        case RemoveNamespace():
            return _Row("remove", "namespace", change.name)
        case CreateNamespace():
            return _Row("create", "namespace", change.name)
        case RemoveNetwork():
            return _Row("remove", "network", change.name)
        case CreateNetwork():
            request = change.request
            words = [*request.subnets, *(["internal"] if request.internal else []), *([] if request.icc else ["no-icc"])]
            return _Row("create", "network", change.request.name, ", ".join(words))
        case Connect():
            connection = change.connection
            words = [*connection.addresses, *connection.publish]
            return _Row("connect", "endpoint", f"{connection.network}/{change.namespace}", output.short(words) if words else "")
        case Disconnect():
            return _Row("disconnect", "endpoint", f"{change.network}/{change.namespace}")
        case Publish() | Unpublish():
            verb = "publish" if isinstance(change, Publish) else "unpublish"
            return _Row(verb, "ports", f"{change.network}/{change.namespace}", output.short(change.ports))


def _told(change: Change, notes: Sequence[str]) -> None:
    row = _row(change)
    click.echo(" ".join(word for word in (row.kind, row.name, _DONE[row.verb], row.details) if word))
    for note in notes:
        click.echo(note, err=True)
