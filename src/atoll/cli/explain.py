"""`atoll explain`."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from atoll.cli import client, output

_SIGN: Final = {"ok": "\N{CHECK MARK}", "no": "\N{BALLOT X}", "unsure": "?", "note": "-"}
#: Apart from the codes of errors (see `atoll.errors`).
_CODES: Final = {"yes": 0, "no": 1, "unsure": 8}
_DIFFERS: Final = 9


@click.command()
@click.argument("source", metavar="FROM", shell_complete=output.complete_namespaces)
@click.argument("target", metavar="TO[:PORT[/PROTO]]", shell_complete=output.complete_namespaces)
@click.option("-6", "--ipv6", is_flag=True, help="By IPv6, where the target is a name.")
@click.option("--probe", is_flag=True, help="Really send such a packet, and say whether it agrees.")
@output.format_option
def explain(source: str, target: str, ipv6: bool, probe: bool, form: str) -> None:
    """Say what happens to a packet, hop by hop, and what would change a no. Without --probe nothing is sent.

    FROM is a namespace, host, outside, outside:ADDRESS or outside@INTERFACE. TO is a namespace, NAMESPACE@NETWORK, host, outside or an
    address. Without a port it is a ping; PROTO is tcp, udp or sctp. Exits 0 for yes, 1 for no, 8 when a rule can't be judged, 9 when a
    probe differs.

    \b
      atoll explain r1 r2:80
      atoll explain outside host:8080
      atoll explain r1 [fd00::9]:53/udp
    """
    query = f"from={client.quote(source)}&to={client.quote(target)}&ipv6={int(ipv6)}"
    found = client.request("POST" if probe else "GET", f"/v1/explain?{query}")
    if form == "json":
        output.show_json(found)
    else:
        _show(found)
    sys.exit(_code(found))


def _code(found: dict[str, Any]) -> int:
    sent = found["probe"]
    if sent is None:
        return _CODES[found["verdict"]]
    return _CODES[sent["outcome"]] if sent["agrees"] else _DIFFERS


def _show(found: dict[str, Any]) -> None:
    for hop in found["hops"]:
        click.echo(f"{_SIGN[hop['mark']]} {'<' if hop['reply'] else '>'} {hop['where']}: {hop['what']}")
    for note in found["notes"]:
        click.echo(f"- {note}")
    click.echo(found["summary"])
    if found["fix"]:
        click.echo(f"try: {found['fix']}")
    if found["probe"]:
        for hop in found["probe"]["seen"]:
            click.echo(f"seen {'<' if hop['reply'] else '>'} {hop['where']}: {hop['what']}")
        click.echo(f"probe: {found['probe']['words']}")
