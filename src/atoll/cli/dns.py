"""`atoll dns`."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from typing import Any, Final

import click

from atoll.cli import client, output, own_file
from atoll.cli.enter import enter
from atoll.errors import Invalid, NotFound, one_line
from atoll.words import CLIENTS

#: What has the host's own resolver ask us about names below `atoll`: the file, what it says, and what makes the resolver read it.
_DROP_INS: Final = {
    "systemd-resolved": (
        "/etc/systemd/resolved.conf.d/atoll.conf",
        "[Resolve]\nDNS={gateway}\nDomains=~atoll\n",
        "systemctl restart systemd-resolved",
    ),
    "dnsmasq": ("/etc/dnsmasq.d/atoll.conf", "server=/atoll/{gateway}\n", "systemctl restart dnsmasq"),
}
_HEAD: Final = "# Written by atoll dns install; atoll dns uninstall takes it away.\n"

_resolver = click.option(
    "--for", "resolver", type=click.Choice(list(_DROP_INS)), default="systemd-resolved", show_default=True, help="The host's resolver."
)
_print = click.option("--print", "only_print", is_flag=True, help="Print the file and its place, and change nothing.")


@click.group()
def dns() -> None:
    """Ask for names, see how the name server does, have the host know the names, too."""


@dns.command()
@click.argument("name")
@click.option("-t", "--type", "kind", default="", metavar="TYPE", help="A, AAAA, PTR, SRV, ... Default: A and AAAA; of an address PTR.")
@click.option(
    "--from", "namespace", default="", metavar="NS", shell_complete=output.complete_namespaces, help="Ask from inside a namespace."
)
@click.option("--server", default="", metavar="IP", help="Ask this server. Default: the one that the namespace, or the host, asks.")
@output.format_option
def lookup(name: str, kind: str, namespace: str, server: str, form: str) -> None:
    """Ask for a name and print the answers, one a line.

    \b
      atoll dns lookup r1.web.atoll
      atoll dns lookup r1 --from r2
      atoll dns lookup 10.1.0.2
      atoll dns lookup _80._tcp.r1.web.atoll --type SRV
    """
    from atoll.dns import ask

    name, kinds = _question(name, kind.upper(), list(ask.TYPES))
    if server:
        _check_server(server)
    server = server or (_of_container(namespace) if namespace else _gateway())
    _go(namespace)
    server = server or _first_nameserver(namespace)
    found: list[ask.Record] = []
    for wanted in kinds:
        found += ask.ask(server, name, wanted)
    if not found:
        raise NotFound(f"{name} is known to {server}, but has no {' or '.join(kinds)} record")
    if form == "json":
        output.show_json([record._asdict() for record in found])
    else:
        for record in found:
            click.echo(one_line(record.data))


def _question(name: str, kind: str, known: list[str]) -> tuple[str, list[str]]:
    """What is asked: the name, that of an address for an address, and the types of records."""
    if kind and kind not in known:
        raise Invalid(f"record type {kind[:20]!r} is unknown", f"expected one of {', '.join(known)}")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).reverse_pointer, [kind or "PTR"]
    return name, [kind] if kind else ["A", "AAAA"]


def _check_server(text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise Invalid(f"{text[:80]!r} is not an IP address", "expected that of a name server, such as 192.0.2.53") from None


def _gateway() -> str:
    """An address at which the host asks; each knows all networks."""
    for network in client.get("/v1/networks"):
        for subnet in network["subnets"] if network.get("dns") else ():
            if subnet.get("gateway"):
                return str(subnet["gateway"])
    raise NotFound("no network has names", "atoll network create NAME makes one that has")


def _of_container(namespace: str) -> str:
    """Whom a client's container asks first: its resolv.conf is in a file system of its own, where we don't get. Empty for others."""
    found = client.get(f"/v1/namespaces/{client.quote(namespace)}")
    names = [end["network"] for end in found["endpoints"]] if found["who"] in CLIENTS else []
    networks = [client.get(f"/v1/networks/{client.quote(name)}") for name in names]
    return next((gateway for network in networks if network.get("dns") for gateway in _gateways(network)), "")


def _go(namespace: str) -> None:
    """Into the namespace; or onto the daemon's host, if that isn't ours."""
    status = client.get("/v1/status")
    daemon_pid = status["pid"] if status["rootless"] and os.geteuid() != 0 else 0
    if namespace:
        found = client.get(f"/v1/namespaces/{client.quote(namespace)}")
        enter(found["path"], found["name"], daemon_pid, found["files"])
    elif daemon_pid:
        enter(f"/proc/{daemon_pid}/ns/net", "the daemon's host", daemon_pid, {})


def _first_nameserver(namespace: str) -> str:
    with contextlib.suppress(OSError), open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                return words[1]
    raise NotFound(f"{namespace} has no name server", "connect it to a network with DNS")


@dns.command()
@output.format_option
def status(form: str) -> None:
    """Show how the name server does."""
    found = client.get("/v1/status")
    served = [item for item in client.get("/v1/networks") if item.get("dns")]
    if form == "json":
        output.show_json(found["dns"] | {"networks": {item["name"]: _gateways(item) for item in served}})
        return
    if not found["dns"]["process"]:
        click.echo("no name server runs" + ("" if served else "; no network has names"))
    else:
        counts = found["dns"]
        click.echo(
            f"name server {counts['process']}: {counts['udp']} questions by UDP, {counts['tcp']} by TCP, {counts['forwarded']} forwarded"
        )
    output.table(
        ("NETWORK", "DOMAIN", "AT", "SERVERS"),
        [
            (item["name"], f"{item['name']}.atoll", ", ".join(_gateways(item)), ", ".join(item["servers"]) or "the host's")
            for item in served
        ],
    )


def _gateways(network: dict[str, Any]) -> list[str]:
    return [subnet["gateway"] for subnet in network["subnets"] if subnet.get("gateway")]


@dns.command()
@_resolver
@_print
def install(resolver: str, only_print: bool) -> None:
    """Have the host's resolver ask Atoll about names below `atoll`. Writes one file of its own.

    The file names the gateway of one network: write it anew when that network has gone.
    """
    path, text, command = _DROP_INS[resolver]
    text = _HEAD + text.format(gateway=_gateway())
    if only_print:
        click.echo(f"# {path}\n{text}", nl=False)
        return
    own_file.is_there(path, _HEAD, "atoll dns install")
    own_file.write(path, text)
    click.echo(f"{path} written; now: {command}")


@dns.command()
@_resolver
def uninstall(resolver: str) -> None:
    """Take away what `install` wrote."""
    path, _, command = _DROP_INS[resolver]
    if not own_file.is_there(path, _HEAD, "atoll dns install"):
        raise NotFound(f"no {path}", "atoll dns install writes it")
    own_file.remove(path)
    click.echo(f"{path} removed; now: {command}")
