"""`atoll ps`, `logs`, `stop`, `wait`."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from atoll.cli import client, output, runs
from atoll.errors import Conflict, Failed, one_line

if TYPE_CHECKING:
    from typing import BinaryIO

#: How often a log that is followed is looked at, in seconds, and how much is read of it at a time, in bytes.
_LOOK: Final = 0.1
_PART: Final = 1 << 16


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also detached programs that have ended.")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@click.option("--prune", is_flag=True, help="Forget those that have ended, with their logs; prints their names.")
@output.format_option
def ps(everything: bool, quiet: bool, prune: bool, form: str) -> None:
    """List the programs that `atoll run` has started."""
    if prune:
        for name in client.post("/v1/runs/prune")["removed"]:
            click.echo(name)
        return
    found = [item for item in client.get("/v1/runs") if everything or item["state"] != "ended"]
    headings = ("NAME", "COMMAND", "STATUS", "NETWORKS", "ADDRESSES", "PORTS")
    output.listing(found, quiet=quiet, form=form, headings=headings, row=_row)


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    ends = item["endpoints"]
    command = one_line(shlex.join(item["command"]))
    return (
        item["name"],
        command if len(command) <= 40 else f"{command[:37]}...",
        _status(item),
        _networks(item),
        output.short([address.partition("/")[0] for end in ends for address in end["addresses"]]),
        output.short([port for end in ends for port in end["ports"]]),
    )


def _status(item: dict[str, Any]) -> str:
    if item["state"] != "ended":
        return f"up {output.age(item['created'])}"
    code = "unknown" if item["exit_code"] is None else str(item["exit_code"])
    return f"exited ({code}) {output.age(item['ended'])} ago"


def _networks(item: dict[str, Any]) -> str:
    if item["state"] == "ended":
        return "-"
    if item["namespace"] == item["name"]:
        return output.short([end["network"] for end in item["endpoints"]])
    return f"ns:{item['namespace']}" if item["namespace"] else "host"


@click.command()
@click.argument("name", shell_complete=output.complete_runs)
@click.option("-f", "--follow", is_flag=True, help="Go on as it grows, until the program ends.")
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
def logs(name: str, follow: bool, tail: int | None) -> None:
    """Show what a detached program has written, to its output and its errors."""
    run = runs.find(name)
    if not run["detached"]:
        raise Conflict(f"{name} runs in the foreground and has no log", "start it with --detach")
    with _open(run["name"]) as log:
        if tail is not None:
            _skip(log, tail)
        goes_on = follow
        while True:
            _copy(log)
            if not goes_on:
                break
            # Once more after its end, for what was written last.
            goes_on = runs.goes_on(run, _LOOK)


def _open(name: str) -> BinaryIO:
    path = runs.log_path(name)
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise Failed(f"reading {path}: {error.strerror}", "it is readable for whoever started the program") from None


def _skip(log: BinaryIO, lines: int) -> None:
    """To the beginning of the last lines, read from the end."""
    end = position = log.seek(0, os.SEEK_END)
    data = b""
    # The newline that ends the last line begins no other.
    while position > 0 and data[:-1].count(b"\n") < lines:
        step = min(_PART, position)
        position -= step
        log.seek(position)
        data = log.read(step) + data
    kept = data.splitlines(keepends=True)[-lines:] if lines else []
    log.seek(end - sum(map(len, kept)))


def _copy(log: BinaryIO) -> None:
    while part := log.read(_PART):
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=output.complete_runs)
@click.option("-t", "--time", "timeout", type=click.FloatRange(0, 86400), default=10, metavar="SECONDS", help="Until SIGKILL; default 10.")
def stop(names: tuple[str, ...], timeout: float) -> None:
    """End programs: SIGTERM, and SIGKILL to those that have not ended in time. Prints the names."""

    def end(name: str) -> str:
        runs.stop(name, timeout)
        return name

    output.each(names, end)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=output.complete_runs)
def wait(names: tuple[str, ...]) -> None:
    """Wait for detached programs to end, and print their exit codes."""
    output.each(names, lambda name: str(runs.wait(name)))
