"""What a failed test's report says of its lab: sections of text."""

from __future__ import annotations

import shlex
import subprocess
import time
from typing import TYPE_CHECKING

from atoll.firewall.skeleton import CONSTANT, FAMILIES, TABLE
from atoll.lab import packets
from atoll.lab.places import Host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.lab.lab import Lab
    from atoll.lab.places import Place

#: The most lines of one process's output, and of one place's rules.
_LINES = 40
_TABLES = tuple(f"table {family} {TABLE} {{" for family in FAMILIES)


def sections(lab: Lab) -> Iterator[tuple[str, str]]:
    """Titles and texts; nothing about what is empty."""
    for title, text in (
        ("lab: topology", topology(lab)),
        ("lab: addresses and routes", "\n".join(filter(None, map(_addresses, lab.places())))),
        ("lab: firewall", "\n".join(filter(None, map(_rules, lab.places())))),
        ("lab: last packets", last_packets(lab)),
        ("lab: processes", _processes(lab)),
    ):
        if text:
            yield title, text


def topology(lab: Lab) -> str:
    lines = []
    for host in lab.hosts.values():
        lines.append(f"host {host.name}")
        for link in host.links:
            device, other = (link.near, link.far) if link.near.place is host else (link.far, link.near)
            there = f"{other.place.name} {other.name} {', '.join(link.addresses_of(other.place))}"
            lines.append(f"  {device.name} {', '.join(link.addresses_of(host))} -- {there}")
        for network in sorted({link.medium[1] for name in host.namespaces.values() for link in name.links}):
            subnets = ", ".join(subnet.subnet for subnet in host.engine.state.network(network).subnets)
            lines.append(f"  network {network} {subnets}")
            for namespace in host.namespaces.values():
                for link in namespace.links:
                    if link.medium[1] == network:
                        ports = host.engine.state.endpoint(host.engine.state.network(network), namespace.name).ports
                        published = "".join(f", publishes {port}" for port in ports)
                        lines.append(f"    {namespace.name} {link.near.name} {', '.join(link.addresses_of(namespace))}{published}")
        lines += [f"  {namespace.name}, on no network" for namespace in host.namespaces.values() if not namespace.links]
    return "\n".join(lines)


def last_packets(lab: Lab) -> str:
    lines = []
    for link in lab.links:
        kept = lab.watcher.packets(link)
        if kept:
            lines.append(f"{link.name} ({link.near.place.name} {link.near.name} -- {link.far.place.name} {link.far.name})")
        for packet in kept:
            clock = time.strftime("%H:%M:%S", time.localtime(packet.time)) + f"{packet.time % 1:.6f}"[1:]
            lines.append(f"  {clock} {packets.line(packet.data)}")
    return "\n".join(lines)


def _run(place: Place, *command: str) -> str:
    def run() -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{command[0]}: {error}"
        return (done.stdout or done.stderr).rstrip()

    return place.visit(run)


def _addresses(place: Place) -> str:
    text = "\n".join(filter(None, (_run(place, "ip", "-br", "address"), _run(place, "ip", "route"), _run(place, "ip", "-6", "route"))))
    return f"{place.name}\n{_indented(text)}"


def _rules(place: Place) -> str:
    """The ruleset; of Atoll's own tables, as long as they are as they should be, what is in them and not the rules, which never change."""
    text = _run(place, "nft", "list", "ruleset")
    if isinstance(place, Host) and not place.engine.differences(namespaces=(), links=False):
        text = _without_skeleton(text)
    return f"{place.name}\n{_indented(text)}" if text else ""


def _without_skeleton(text: str) -> str:
    """nft's listing with only those sets of Atoll's tables that have elements."""
    shown: list[str] = []
    block: list[str] = []
    ours = False
    for line in text.splitlines():
        if line.startswith("table "):
            ours = line in _TABLES
        if not ours or not line.startswith("\t"):
            shown += [line] if line else []
            continue
        block.append(line)
        if line == "\t}":
            if any("elements = " in part for part in block) and not any(f" {name} {{" in block[0] for name in CONSTANT):
                shown += block
            block = []
    return "\n".join(shown)


def _processes(lab: Lab) -> str:
    lines = []
    for process in lab.processes.started:
        code = process.poll()
        state = "running" if code is None else f"ended with {code}"
        lines.append(f"{process.place} $ {shlex.join(process.command)} ({state})")
        if output := process.output.rstrip():
            lines.append(_indented("\n".join(output.splitlines()[-_LINES:])))
    return "\n".join(lines)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
