"""`atoll connect`, `disconnect`, `publish`, `unpublish`."""

from __future__ import annotations

from typing import Any

import click

from atoll.cli import client, output

_SPEC = "[HOSTIP:]HOSTPORT[-END]:PORT[-END][/tcp|udp|sctp]"


@click.command()
@click.argument("network", shell_complete=output.complete_networks)
@click.argument("namespace", metavar="NS", shell_complete=output.complete_namespaces)
@click.option("--ip", "addresses", multiple=True, metavar="IP", help="A static address; may be repeated. Chosen when none is given.")
@click.option("--mac", default="", metavar="MAC", help="The MAC address; random when none is given.")
@click.option(
    "--ifname",
    "interface",
    default="",
    metavar="NAME",
    help="The interface's name; eth0, eth1, ... when none is given. With another name a namespace may be on a network once more.",
)
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="One more name for the endpoint on this network.")
@click.option(
    "--gw-priority",
    "gateway_priority",
    type=int,
    default=0,
    metavar="N",
    help="The highest of a namespace's networks has its default route.",
)
@click.option("--route", "routes", multiple=True, metavar="ROUTE", help="A further route in the namespace; may be repeated.")
@click.option(
    "--no-default-route", "default_route", flag_value=False, type=bool, default=True, help="The default route never leads by this network."
)
@click.option("--metric", type=int, default=0, metavar="N", help="The metric of the default route.")
@click.option("-p", "--publish", "publish", multiple=True, metavar="SPEC", help=f"Publish a port: {_SPEC}")
@click.option("--ingress-rate", default="", metavar="RATE", help="What the endpoint may receive, such as 10mbit.")
@click.option("--egress-rate", default="", metavar="RATE", help="What it may send.")
@output.dry_run_option
def connect(network: str, dry_run: bool, routes: tuple[str, ...], **given: Any) -> None:
    """Connect a namespace to a network, while its processes run. Prints the endpoint's id.

    ROUTE is as `ip route` writes it: [blackhole|unreachable|prohibit] PREFIX [via IP] [metric N].

    \b
      atoll connect web r1
      atoll connect web r1 --ip 192.168.34.163 -p 8080:80 -p 127.0.0.1:5353:53/udp
      atoll connect web r1 --route '10.9.0.0/16 via 192.168.34.9' --route 'blackhole 10.0.0.0/8'
    """
    body = given | {"routes": output.parse_routes(routes)}
    answer = client.post(f"/v1/networks/{client.quote(network)}/endpoints", body, dry_run=dry_run)
    if dry_run:
        output.show_commands(answer)
    else:
        click.echo(answer["id"])


_which_option = click.option(
    "--ifname", "interface", default="", metavar="NAME", help="Which of a namespace's endpoints on one network, by its interface."
)


@click.command()
@click.argument("network", shell_complete=output.complete_networks)
@click.argument("namespace", metavar="NS", shell_complete=output.complete_namespaces)
@_which_option
@output.dry_run_option
def disconnect(network: str, namespace: str, interface: str, dry_run: bool) -> None:
    """Disconnect a namespace from a network. Prints the id of the endpoint that was."""
    path = f"/v1/networks/{client.quote(network)}/endpoints/{client.quote(namespace)}"
    answer = client.delete(path, dry_run=dry_run, interface=interface)
    if dry_run:
        output.show_commands(answer)
    else:
        click.echo(answer["id"])


def _ports(verb: str, namespace: str, specs: tuple[str, ...], dry_run: bool, **which: str) -> None:
    body = {"ports": list(specs), **which}
    answer = client.post(f"/v1/namespaces/{client.quote(namespace)}/{verb}", body, dry_run=dry_run)
    if dry_run:
        output.show_commands(answer)
    else:
        for port in answer["ports"]:
            click.echo(port)


@click.command()
@click.argument("namespace", metavar="NS", shell_complete=output.complete_namespaces)
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@click.option(
    "--network",
    default="",
    metavar="NAME",
    shell_complete=output.complete_networks,
    help="On which network; default: the one with the default route.",
)
@_which_option
@output.dry_run_option
def publish(namespace: str, specs: tuple[str, ...], network: str, interface: str, dry_run: bool) -> None:
    """Publish ports of a namespace on the host, while its processes run. Prints what it published.

    SPEC is [HOSTIP:]HOSTPORT[-END]:PORT[-END][/tcp|udp|sctp], an IPv6 host address in brackets. Of a range of the host onto one port the
    first that is free is taken, and with 0 any that is.

    \b
      atoll publish r1 8080:80
      atoll publish r1 127.0.0.1:5353:53/udp 9000-9010:9000-9010
      atoll publish r1 8000-8010:80 0:443
    """
    _ports("publish", namespace, specs, dry_run, network=network, interface=interface)


@click.command()
@click.argument("namespace", metavar="NS", shell_complete=output.complete_namespaces)
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@click.option(
    "--network",
    default="",
    metavar="NAME",
    shell_complete=output.complete_networks,
    help="On which network; default: wherever it is published.",
)
@_which_option
@output.dry_run_option
def unpublish(namespace: str, specs: tuple[str, ...], network: str, interface: str, dry_run: bool) -> None:
    """Take published ports back; connections through them end. Prints what it took back."""
    _ports("unpublish", namespace, specs, dry_run, network=network, interface=interface)
