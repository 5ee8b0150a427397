"""`atoll network`."""

from __future__ import annotations

from typing import Any

import click

from atoll.cli import client, output


@click.group()
def network() -> None:
    """Manage networks."""


@network.command()
@click.argument("name")
@click.option("-d", "--driver", default="bridge", show_default=True, metavar="DRIVER", help="bridge, macvlan or ipvlan.")
@click.option("--subnet", "subnets", multiple=True, metavar="CIDR", help="A subnet; may be repeated. Chosen when none is given.")
@click.option("--gateway", "gateways", multiple=True, metavar="IP", help="The gateway of the subnet that it lies in.")
@click.option("--ip-range", "ip_ranges", multiple=True, metavar="CIDR", help="Hand out addresses from this part of a subnet only.")
@click.option("--aux-address", "aux", multiple=True, metavar="NAME=IP", help="An address that is never handed out.")
@click.option("--ipv4/--no-ipv4", default=True, help="Whether the network has IPv4.")
@click.option("--ipv6/--no-ipv6", default=False, help="Whether it has IPv6; a subnet is chosen when none is given.")
@click.option("--internal", is_flag=True, help="Nothing in or out beyond the network; the host reaches it by the gateway address.")
@click.option(
    "--isolation",
    default="strict",
    show_default=True,
    metavar="KIND",
    help="strict: reaches no other network. open: other open and isolated ones. isolated: open ones.",
)
@click.option("--icc/--no-icc", default=True, help="Whether endpoints of the network may talk to each other.")
@click.option("--mtu", type=int, default=0, metavar="BYTES", help="Default: that of the host's way out.")
@click.option(
    "--masquerade/--no-masquerade",
    default=True,
    help="Whether what leaves gets the host's address. Without, the network is routed: addresses are kept, and the outside may reach them.",
)
@click.option("--guard/--no-guard", default=True, help="Whether an endpoint may send only from its own addresses, and only IP and ARP.")
@click.option("--ingress-rate", default="", metavar="RATE", help="What each endpoint may receive, such as 10mbit.")
@click.option("--egress-rate", default="", metavar="RATE", help="What each endpoint may send.")
@click.option("--route", "routes", multiple=True, metavar="ROUTE", help="A further route in each namespace, as of `atoll connect`.")
@click.option(
    "--no-default-route", "default_route", flag_value=False, type=bool, default=True, help="No default route leads by this network."
)
@click.option("--metric", type=int, default=0, metavar="N", help="The metric of the default routes.")
@click.option(
    "--dns", "servers", multiple=True, metavar="IP", help="Ask this server about names outside; may be repeated. Default: the host's."
)
@click.option("--no-dns", "dns", flag_value=False, type=bool, default=True, help="No names: the gateway answers no DNS questions.")
@click.option(
    "-o", "--opt", "options", multiple=True, metavar="K=V", help="bridge=NAME, snat=IP, parent=INTERFACE, mode=...; Docker's names work."
)
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label.")
@output.dry_run_option
def create(
    dry_run: bool, aux: tuple[str, ...], options: tuple[str, ...], labels: tuple[str, ...], routes: tuple[str, ...], **given: Any
) -> None:
    """Create a network.

    \b
      atoll network create web
      atoll network create db --subnet 192.168.34.0/24 --gateway 192.168.34.162 --internal
      atoll network create six --ipv6 --subnet 10.5.0.0/24
      atoll network create lan -d macvlan --subnet 192.168.1.0/24 -o parent=eth0
    """
    body = given | {
        "aux_addresses": output.parse_pairs(aux, "--aux-address"),
        "options": output.parse_pairs(options, "--opt"),
        "labels": output.parse_pairs(labels, "--label"),
        "routes": output.parse_routes(routes),
    }
    answer = client.post("/v1/networks", body, dry_run=dry_run)
    if dry_run:
        output.show_commands(answer)
        return
    for note in answer["notes"]:
        click.echo(note, err=True)
    click.echo(answer["name"])


@network.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@output.format_option
def list_networks(form: str, quiet: bool) -> None:
    """List networks."""
    found = client.get("/v1/networks")
    headings = ("NAME", "DRIVER", "SUBNETS", "GATEWAY", "FLAGS", "ENDPOINTS")
    output.listing(found, quiet=quiet, form=form, headings=headings, row=_row)


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    subnets = item["subnets"]
    flags = [word for word, on in (("internal", item.get("internal")), ("no-icc", not item.get("icc", True))) if on]
    if item.get("isolation", "strict") != "strict":
        flags.append(item["isolation"])
    if item["driver"] == "bridge" and item["nat"] != "masquerade":
        flags.append(item["nat"])
    return (
        item["name"],
        item["driver"],
        ", ".join(subnet["subnet"] for subnet in subnets) or "-",
        ", ".join(subnet["gateway"] for subnet in subnets if subnet.get("gateway")) or "-",
        ", ".join(flags) or "-",
        str(len(item["endpoints"])),
    )


@network.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=output.complete_networks)
def inspect(names: tuple[str, ...]) -> None:
    """Show everything about networks, as JSON."""
    output.inspect("/v1/networks", names)


@network.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=output.complete_networks)
@click.option("--force", is_flag=True, help="Even one of Docker's networks, which is of no use to Docker then.")
@output.dry_run_option
def rm(names: tuple[str, ...], force: bool, dry_run: bool) -> None:
    """Remove networks. One with endpoints is refused, and one of Docker's."""
    output.remove("/v1/networks", names, dry_run=dry_run, force=force)


@network.command()
def prune() -> None:
    """Remove all networks without endpoints, but Docker's."""
    for name in client.post("/v1/networks/prune")["removed"]:
        click.echo(name)
