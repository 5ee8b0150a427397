"""How answers are shown: tables for people, JSON for programs. Options that many commands share are here too."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from atoll.cli import client
from atoll.errors import AtollError
from atoll.words import ROUTE_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

F = TypeVar("F", bound="Callable[..., Any]")

#: An id as containers have it, and perhaps the interface.
_CONTAINER: Final = re.compile(r"[0-9a-f]{64}(/.*)?\Z")
#: How a route is written on the command line.
ROUTE = "[blackhole|unreachable|prohibit] PREFIX [via IP] [metric N]"

format_option = click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="A table for people, or JSON.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the commands that this stands for, and change nothing.")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as they need to be, two spaces apart."""
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def listing(
    found: Sequence[dict[str, Any]], *, quiet: bool, form: str, headings: Sequence[str], row: Callable[[Any], Sequence[str]]
) -> None:
    """A list as names only, as JSON or as a table."""
    if quiet:
        for item in found:
            click.echo(item["name"])
    elif form == "json":
        show_json(found)
    else:
        table(headings, [row(item) for item in found])


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def show_commands(answer: dict[str, Any]) -> None:
    for command in answer["commands"]:
        click.echo(command)


def inspect(path: str, names: Sequence[str]) -> None:
    show_json([client.get(f"{path}/{client.quote(name)}") for name in names])


def remove(path: str, names: Sequence[str], *, dry_run: bool, force: bool = False) -> None:
    if dry_run:
        for name in names:
            show_commands(client.delete(f"{path}/{client.quote(name)}", dry_run=True, force=force))
        return
    each(names, lambda name: str(client.delete(f"{path}/{client.quote(name)}", force=force)["name"]))


def short(words: Sequence[str], most: int = 4) -> str:
    """A list in one cell: all of a few, of many the first and how many more."""
    shown = ", ".join(words[:most]) or "-"
    return shown if len(words) <= most else f"{shown} and {len(words) - most} more"


def source(text: str) -> str:
    """Where a namespace came from; of a container's id as much as Docker and Podman show."""
    kind, colon, name = text.partition(":")
    return f"{kind}:{name[:12]}" if colon and _CONTAINER.match(name) else text


def age(created: float) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0, int(time.time() - created))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def each(names: Sequence[str], do: Callable[[str], str]) -> None:
    """Do one thing after the other and print each as it is done. What fails is said and the rest still done, as Docker does."""
    failed: AtollError | None = None
    for name in names:
        try:
            click.echo(do(name))
        except AtollError as error:
            if failed is not None:
                click.echo(f"error: {failed}", err=True)
            failed = error
    if failed is not None:
        raise failed


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, str]:
    """`K=V` words as a dictionary; a word without `=` is a key with an empty value, as in Docker's --label."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if not key:
            raise click.BadParameter(f"{pair!r} has no name before the '='", param_hint=option)
        found[key] = value
    return found


def parse_routes(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Routes as `ip route` writes them: `[KIND] PREFIX [via IP] [metric N]`."""
    return [_parse_route(text) for text in texts]


def _parse_route(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    words = text.split()
    if len(words) > 1 and words[0] in ROUTE_KINDS:
        found["kind"] = words.pop(0)
    found["destination"] = words.pop(0) if words else ""
    for key, value in zip(words[::2], words[1::2], strict=False):
        if key == "via":
            found["gateway"] = value
        elif key == "metric" and value.isdecimal():
            found["metric"] = int(value)
        else:
            raise click.BadParameter(f"{key} {value} is not part of a route here", param_hint="--route")
    if len(words) % 2 or not found["destination"]:
        raise click.BadParameter(f"{text!r} is not a route; expected {ROUTE}", param_hint="--route")
    return found


def complete_networks(_: click.Context, __: click.Parameter, beginning: str) -> list[str]:
    return _complete("/v1/networks", beginning)


def complete_namespaces(_: click.Context, __: click.Parameter, beginning: str) -> list[str]:
    return _complete("/v1/namespaces", beginning)


def complete_runs(_: click.Context, __: click.Parameter, beginning: str) -> list[str]:
    return _complete("/v1/runs", beginning)


def _complete(path: str, beginning: str) -> list[str]:
    """Names for the shell; a daemon is not started for that."""
    try:
        found = client.request("GET", path, start=False)
    except AtollError:
        return []
    return [item["name"] for item in found if item["name"].startswith(beginning)]
