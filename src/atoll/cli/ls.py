"""`atoll ls`."""

from __future__ import annotations

from typing import Any, Final

import click

from atoll.cli import client, output
from atoll.errors import NotFound
from atoll.words import CLIENTS

#: What a program of `atoll run` and a namespace without one are called in the column WHO.
_WHO: Final = (*CLIENTS, "run", "ns")


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NETWORK",
    shell_complete=output.complete_networks,
    help="Only on this one; may be repeated.",
)
@click.option("--who", "runners", multiple=True, type=click.Choice(_WHO), help="Only what this runs; may be repeated.")
@output.format_option
def ls(quiet: bool, networks: tuple[str, ...], runners: tuple[str, ...], form: str) -> None:
    """List everything that has an address here, whoever runs it: containers of Docker, Podman and CNI runtimes, programs of
    `atoll run`, and other namespaces. With the ports that are published, also those that `docker ps` can't show.

    \b
      atoll ls
      atoll ls --network web --who docker --who podman
    """
    items = [_namespace(view) for view in client.get("/v1/namespaces")]
    items += [_guest(run) for run in client.get("/v1/runs") if run["state"] != "ended" and run["namespace"] != run["name"]]
    if networks:
        _check_networks(networks)
    found = [
        item
        for item in sorted(items, key=lambda item: str(item["name"]))
        if (not networks or set(networks) & set(item["networks"])) and (not runners or item["who"] in runners)
    ]
    headings = ("NAME", "WHO", "NETWORK", "ADDRESS", "PORTS")
    output.listing(found, quiet=quiet, form=form, headings=headings, row=_row)


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    where = item["networks"] or ([f"ns:{item['namespace']}"] if item["namespace"] != item["name"] else [])
    addresses = [address.partition("/")[0] for address in item["addresses"]]
    return item["name"], item["who"], output.short(where), output.short(addresses), output.short(item["ports"])


def _namespace(view: dict[str, Any]) -> dict[str, Any]:
    ends = view["endpoints"]
    return {
        "name": view["name"],
        "who": view["who"],
        "source": view["source"],
        "namespace": view["name"],
        "networks": list(dict.fromkeys(end["network"] for end in ends)),
        "addresses": [address for end in ends for address in end["addresses"]],
        "ports": [port for end in ends for port in end["ports"]],
        "labels": view["labels"],
        "created": view["created"],
    }


def _guest(run: dict[str, Any]) -> dict[str, Any]:
    """A program without a namespace of its own: its addresses are another's, or the host's."""
    return {
        "name": run["name"],
        "who": "run",
        "source": "",
        "namespace": run["namespace"],
        "networks": [] if run["namespace"] else ["host"],
        "addresses": [],
        "ports": [],
        "labels": run["labels"],
        "created": run["created"],
    }


def _check_networks(names: tuple[str, ...]) -> None:
    known = {network["name"] for network in client.get("/v1/networks")}
    for name in names:
        if name not in known:
            raise NotFound(f"no network named {name[:80]}", "atoll network ls shows what there is")
