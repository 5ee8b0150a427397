"""`atoll run`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

from atoll.cli import output
from atoll.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPEC: Final = "[HOSTIP:]HOSTPORT[-END]:PORT[-END][/tcp|udp|sctp]"
#: The options of one network, under the names that Docker and Podman have for them, and the API's field for each.
_FIELDS: Final = {
    "ip": "addresses",
    "ip6": "addresses",
    "alias": "aliases",
    "mac": "mac",
    "mac-address": "mac",
    "interface_name": "interface",
    "ifname": "interface",
    "gw-priority": "gateway_priority",
}
_LISTS: Final = ("addresses", "aliases")


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@click.option("--name", default="", metavar="NAME", help="Its name, and its namespace's; a readable one is chosen when none is given.")
@click.option(
    "--network",
    "--net",
    "networks",
    multiple=True,
    metavar="NETWORK",
    shell_complete=output.complete_networks,
    help="NAME, NAME:ip=IP,alias=A,mac=M, host, none or ns:NAME; may be repeated. Default: default, made when missing.",
)
@click.option("-p", "--publish", "publish", multiple=True, metavar="SPEC", help=f"Publish a port: {_SPEC}")
@click.option("--ip", "addresses", multiple=True, metavar="IP", help="A static address on the network; may be repeated.")
@click.option("--alias", "--network-alias", "aliases", multiple=True, metavar="NAME", help="One more name on its networks.")
@click.option("--dns", "servers", multiple=True, metavar="IP", help="Ask this server about names outside, and not its network's.")
@click.option("-d", "--detach", is_flag=True, help="In the background, its output in a log. Prints the name once it runs.")
@click.option("-w", "--workdir", "directory", default="", metavar="FOLDER", help="The folder to run in; default: this one.")
@click.option("-e", "--env", "variables", multiple=True, metavar="K=V", help="An environment variable, beside those that there are.")
@click.option("--env-file", "files", multiple=True, metavar="FILE", help="A file of such lines; # begins a comment.")
@click.option("-u", "--user", default="", metavar="USER", help="NAME or UID, with :GROUP or :GID if need be.")
@click.option("--hostname", default="", metavar="NAME", help="The host name that it sees; default: its namespace's name.")
@click.option("-l", "--label", "labels", multiple=True, metavar="K=V", help="A label.")
@click.option("--rm", is_flag=True, help="Without effect, as are -i and -t: nothing is left of a run, and the terminal is this one.")
@click.option("-i", "--interactive", is_flag=True, hidden=True)
@click.option("-t", "--tty", is_flag=True, hidden=True)
@output.dry_run_option
def run(
    command: tuple[str, ...],
    networks: tuple[str, ...],
    addresses: tuple[str, ...],
    aliases: tuple[str, ...],
    variables: tuple[str, ...],
    files: tuple[str, ...],
    labels: tuple[str, ...],
    detach: bool,
    dry_run: bool,
    rm: bool,
    interactive: bool,
    tty: bool,
    **given: Any,
) -> None:
    """Run a program in a namespace of its own, on the networks named. It goes, with addresses and ports, when the program ends.

    \b
      atoll run -- bash
      atoll run --network web -p 8080:80 -- python3 -m http.server 80
      atoll run --network web:ip=10.1.0.7 --network db -d --name shop -- ./shop
      atoll run --network ns:shop -- ss -tln

    The exit code is the program's; 127 when there is no such program, 126 when it can't be run.
    """
    from atoll.cli import runs

    shared, attachments = _placement(networks, addresses, aliases, given["publish"])
    if shared:
        _check_shared(shared, given, addresses, aliases)
    request = runs.RunRequest(
        command=command,
        share=shared,
        networks=attachments,
        labels=output.parse_pairs(labels, "--label"),
        environment=_environment(variables, files),
        **given,
    )
    if dry_run:
        output.show_commands(runs.plan(request))
    elif detach:
        if interactive or tty:
            raise click.UsageError("a detached program has no terminal: leave out -d, or -i and -t")
        click.echo(runs.start(request))
    else:
        runs.foreground(request)


# --- networks ------------------------------------------------------------------------------------------------------------------------


def _placement(
    words: Sequence[str], addresses: Sequence[str], aliases: Sequence[str], publish: Sequence[str]
) -> tuple[str, list[dict[str, Any]]]:
    """What is shared, or else the attachments to make."""
    shared = [word for word in map(_shared, words) if word]
    if shared and len(words) > 1:
        raise click.UsageError(f"--network {words[[bool(_shared(w)) for w in words].index(True)]} goes with no other network")
    if shared:
        return shared[0], []
    found = [_attachment(word) for word in words or ("default",)]
    named = [attachment["network"] for attachment in found]
    if twice := next((name for name in named if named.count(name) > 1), ""):
        raise click.UsageError(f"--network {twice} is given twice")
    if any(attachment["network"] == "none" for attachment in found) and (len(found) > 1 or addresses or aliases or publish):
        raise click.UsageError("--network none goes with no other network, and with no address, alias or port")
    if addresses and len(found) > 1:
        raise click.UsageError("--ip is of one network, and there are several: --network NAME:ip=IP")
    for attachment in found:
        attachment["addresses"] = [*attachment.get("addresses", []), *addresses]
        attachment["aliases"] = [*attachment.get("aliases", []), *aliases]
    return "", found


def _shared(word: str) -> str:
    """`host`, `ns:NAME` for that and for Docker's `container:NAME`; empty for a network."""
    if word == "host":
        return word
    kind, colon, name = word.partition(":")
    if not colon or kind not in ("ns", "container"):
        return ""
    if not name:
        raise click.UsageError(f"--network {word} names no namespace: ns:NAME")
    return f"ns:{name}"


def _attachment(word: str) -> dict[str, Any]:
    """`NAME`, Podman's `NAME:K=V,...` or Docker's `name=NAME,K=V,...`."""
    name, colon, rest = word.partition(":")
    if word.startswith("name="):
        name, _, rest = word.removeprefix("name=").partition(",")
    elif not colon:
        rest = ""
    if not name or (colon and not rest and not word.startswith("name=")):
        raise Invalid(f"{word[:80]!r} is not a network", "expected NAME, or NAME:ip=IP,alias=A,mac=M")
    found: dict[str, Any] = {"network": name}
    for pair in rest.split(",") if rest else ():
        key, equals, value = pair.partition("=")
        field = _FIELDS.get(key)
        if field is None or not equals or not value:
            raise Invalid(f"{pair[:80]!r} of network {name[:80]} is unknown", f"expected K=V, K one of {', '.join(_FIELDS)}")
        if field in _LISTS:
            found.setdefault(field, []).append(value)
        elif field == "gateway_priority":
            found[field] = _number(value, pair)
        else:
            found[field] = value
    return found


def _number(text: str, pair: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Invalid(f"{pair[:80]!r} is not a number", "expected such as gw-priority=10") from None


def _check_shared(shared: str, given: dict[str, Any], addresses: Sequence[str], aliases: Sequence[str]) -> None:
    """What belongs to a namespace of one's own can't be had in another's."""
    refused = [("-p", given["publish"]), ("--ip", addresses), ("--alias", aliases), ("--dns", given["servers"])]
    if shared != "host":
        refused.append(("--hostname", given["hostname"]))
    for option, value in refused:
        if value:
            raise click.UsageError(f"{option} means nothing in the network of {shared}")


# --- environment ---------------------------------------------------------------------------------------------------------------------


def _environment(variables: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    """Docker's rules: `K=V`, or `K` for what is in the environment already; what is given by option comes before what is in a file."""
    found: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                _set(found, line.lstrip(), f"{file}:{number}")
    for variable in variables:
        _set(found, variable, "--env")
    return found


def _lines(file: str) -> list[str]:
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as opened:
            return opened.read().split("\n")  # and at nothing else that Unicode has for an end of a line
    except OSError as error:
        raise Invalid(f"reading {file[:200]}: {error.strerror}", "expected a file of K=V lines") from None


def _set(found: dict[str, str], pair: str, where: str) -> None:
    key, equals, value = pair.partition("=")
    if not key or any(c.isspace() for c in key) or "\0" in pair:
        raise Invalid(f"{where}: {pair[:80]!r} is not a variable", "expected K=V, or K")
    if equals:
        found[key] = value
    elif key in os.environ:
        found[key] = os.environ[key]
