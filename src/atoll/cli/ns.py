"""`atoll ns`."""

from __future__ import annotations

import os
from typing import Any

import click

from atoll.cli import client, output, program
from atoll.cli.enter import enter
from atoll.errors import Conflict


@click.group()
def ns() -> None:
    """Manage namespaces."""


@ns.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--dns", "servers", multiple=True, metavar="IP", help="Ask this server about names outside, and not its network's.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label.")
@output.dry_run_option
def create(names: tuple[str, ...], servers: tuple[str, ...], labels: tuple[str, ...], dry_run: bool) -> None:
    """Create namespaces. `ip netns list` shows them, too."""
    body = {"servers": list(servers), "labels": output.parse_pairs(labels, "--label")}
    if dry_run:
        for name in names:
            output.show_commands(client.post("/v1/namespaces", body | {"name": name}, dry_run=True))
        return
    output.each(names, lambda name: str(client.post("/v1/namespaces", body | {"name": name})["name"]))


@ns.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@output.format_option
def list_namespaces(form: str, quiet: bool) -> None:
    """List namespaces."""
    found = client.get("/v1/namespaces")
    headings = ("NAME", "SOURCE", "NETWORKS", "ADDRESSES", "PORTS", "AGE")
    output.listing(found, quiet=quiet, form=form, headings=headings, row=_row)


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    ends = item["endpoints"]
    return (
        item["name"],
        output.source(item["source"]) or "created",
        output.short([end["network"] for end in ends]),
        output.short([address.partition("/")[0] for end in ends for address in end["addresses"]]),
        output.short([port for end in ends for port in end["ports"]]),
        output.age(item["created"]),
    )


@ns.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=output.complete_namespaces)
def inspect(names: tuple[str, ...]) -> None:
    """Show everything about namespaces, as JSON."""
    output.inspect("/v1/namespaces", names)


@ns.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=output.complete_namespaces)
@output.dry_run_option
def rm(names: tuple[str, ...], dry_run: bool) -> None:
    """Disconnect namespaces from everything and let them go. One that was created ends with its last process."""
    output.remove("/v1/namespaces", names, dry_run=dry_run)


@ns.command()
@click.argument("name")
@click.option("--pid", type=int, default=0, metavar="PID", help="The namespace of a process, for as long as that process lives.")
@click.option("--path", default="", metavar="PATH", help="A file such as /run/netns/NAME or /proc/PID/ns/net.")
@click.option("--docker", default="", metavar="CONTAINER", help="The namespace of a Docker container.")
@click.option("--podman", default="", metavar="CONTAINER", help="The namespace of a Podman container.")
@click.option("--dns", is_flag=True, help="Names, for the process and for what `atoll ns exec` runs in it.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label.")
@output.dry_run_option
def adopt(name: str, dry_run: bool, dns: bool, labels: tuple[str, ...], **source: Any) -> None:
    """Take a namespace that someone else made under Atoll's care.

    \b
      atoll ns adopt web --docker my-nginx
      atoll ns adopt mine --pid 4711
      atoll ns adopt lab1 --path /run/netns/lab1
    """
    if not any(source.values()):
        raise click.UsageError("say where the namespace is: --pid, --path, --docker or --podman")
    body = source | {"name": name, "dns": dns, "labels": output.parse_pairs(labels, "--label")}
    answer = client.post("/v1/namespaces", body, dry_run=dry_run)
    if dry_run:
        output.show_commands(answer)
    else:
        click.echo(answer["name"])


@ns.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", shell_complete=output.complete_namespaces)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, hidden=True)
@click.option("-t", "--tty", is_flag=True, hidden=True)
def execute(name: str, command: tuple[str, ...], interactive: bool, tty: bool) -> None:
    """Run a command in a namespace. Its files in /etc/netns/NAME stand in for those in /etc, as with `ip netns exec`.

    \b
      atoll ns exec r1 -- ip address
      atoll ns exec r1 -- bash
    """
    del interactive, tty  # a habit from Docker: the terminal is this one anyway
    if command[0] == "--":
        command = command[1:]
        if not command:
            raise click.UsageError("no command to run was given after --")
    found = client.get(f"/v1/namespaces/{client.quote(name)}")
    if not found["path"]:
        raise Conflict(f"what leads to {found['name']} isn't known yet", "try again when its container has started")
    status = client.get("/v1/status")
    daemon_pid = status["pid"] if status["rootless"] and os.geteuid() != 0 else 0
    enter(found["path"], found["name"], daemon_pid, found.get("files", {}))
    program.execute(command, os.environ)
