"""Podman's front door: the command line and JSON of netavark (containers/netavark, netavark(1) and plugin-API.md), served by the daemon.

`answer` is the whole of it. Words come in through `arguments` and `words`, `networks` translates them, `setup`, `teardown` and `create`
have the engine do what they say. What isn't ours is handed back to the netavark that stood here before (`helpers.original`): rootless
containers, containers that it had set up, and its DHCP proxy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from atoll import __version__
from atoll.errors import AtollError, Denied, Invalid
from atoll.frontends.call import Answer, failure
from atoll.frontends.files import read_file
from atoll.frontends.netavark import networks, words
from atoll.frontends.netavark.arguments import HELP, Arguments, parse
from atoll.frontends.netavark.create import create, create_for_plugin
from atoll.frontends.netavark.helpers import original
from atoll.frontends.netavark.setup import setup
from atoll.frontends.netavark.teardown import is_also_anothers, is_ours, teardown
from atoll.model import MAX_SERVERS

if TYPE_CHECKING:
    from msgspec import Struct

    from atoll.engine import Engine
    from atoll.frontends.call import Call

__all__ = ["answer"]

#: The version of netavark whose words these are. Podman shows it and checks nothing; netavark's own tests do, so it can be set
#: (the environment's NETAVARK_VERSION).
VERSION: Final = "2.1.0"
#: Of netavark's plugins, plugin-API.md.
PLUGIN_API: Final = "1.0.0"
_FIREWALLS: Final = ("", "nftables", "firewalld", "iptables")
_MOST_BYTES: Final = 16 << 20


def answer(engine: Engine, call: Call) -> Answer:
    """What the executed file is to print. Never raises for what it was given: an error is netavark's {"error": ...} and exit code 1."""
    try:
        if call.door == "plugin":
            return _plugin(engine, call)
        return _netavark(engine, call, parse(call.arguments))
    except AtollError as error:
        return failure(call.door, str(error))


def _netavark(engine: Engine, call: Call, arguments: Arguments) -> Answer:
    match arguments.command:
        case "--version":
            return Answer(stdout=f"netavark {_version(call)}\n".encode())
        case "--help":
            return Answer(stdout=HELP.encode())
        case "version":
            return _printed(_info(call), pretty=True)
        case "dhcp-proxy":
            return _hand_over(call, "Atoll asks no DHCP server; give the network a subnet")
    if arguments.rootless:
        return _hand_over(call, "Atoll's daemon is root's and serves no rootless containers; there is no other netavark here")
    match arguments.command:
        case "create":
            made = create(engine, words.decode(_input(call, arguments), words.CreateCall, "network create"))
            return _printed(made)
        case "update":
            _need_config(arguments, "update")
            _update(engine, arguments)
            return Answer()
        case "firewall-reload" | "firewalld-reload":
            _, errors = engine.repair(namespaces=(), links=False)
            if errors:
                raise errors[0]
            return Answer(stderr=_said(call, "netavark::commands::firewall_reload", "Successfully reloaded firewall rules"))
    _check_surroundings(call, arguments)
    container = words.decode(_input(call, arguments), words.Container, "network options")
    if networks.all_foreign(container):
        return _hand_over(call, "its networks have drivers of netavark's plugins, which Atoll doesn't run")
    if arguments.command == "setup":
        return _printed(setup(engine, arguments.operand, container))
    ours, anothers = is_ours(engine, container), is_also_anothers(engine, container)
    if ours:
        teardown(engine, container)
    # What isn't ours was set up by the netavark before us, or it has ended, and we have let go of it.
    found = original(call.program) if anothers or not ours else ""
    return Answer(run=found) if found else Answer()


def _plugin(engine: Engine, call: Call) -> Answer:
    """netavark's plugin, whose networks have the driver that its file is named after."""
    command, *operands = call.arguments or ("info",)
    match command, len(operands):
        case "info", 0:
            return _printed({"version": __version__, "api_version": PLUGIN_API})
        case "create", 0:
            return _printed(create_for_plugin(engine, words.decode(call.stdin, words.Network, "network")))
        case "setup", 1:
            asked = words.decode(call.stdin, words.PluginCall, "network options")
            return _printed(setup(engine, operands[0], asked.container())[asked.network.name])
        case "teardown", 1:
            teardown(engine, words.decode(call.stdin, words.PluginCall, "network options").container())
            return Answer()
    raise Invalid(f"unknown subcommand: {' '.join(call.arguments)[:80]}", "expected create, setup PATH, teardown PATH or info")


# --- parts ---------------------------------------------------------------------------------------------------------------------------


def _hand_over(call: Call, otherwise: str) -> Answer:
    found = original(call.program)
    if not found:
        raise Denied(otherwise)
    return Answer(run=found)


def _need_config(arguments: Arguments, command: str) -> None:
    """netavark wants it, so we do; we keep nothing there."""
    if not arguments.config:
        raise Invalid(f"--config not specified but required for netavark {command}")


def _check_surroundings(call: Call, arguments: Arguments) -> None:
    _need_config(arguments, arguments.command)
    firewall = arguments.firewall_driver or call.environment.get("NETAVARK_FW", "")
    if firewall.lower() == "none":
        raise Invalid("Atoll has no network without its firewall", "leave out firewall_driver=none in containers.conf")
    if firewall.lower() not in _FIREWALLS:
        raise Invalid(f"Must provide a valid firewall backend, got {firewall[:80]}")
    port = call.environment.get("NETAVARK_DNS_PORT", "53")
    if not port.isascii() or not port.isdigit() or int(port[:9]) > 65535:
        raise Invalid(f"Invalid NETAVARK_DNS_PORT {port[:80]}: invalid digit found in string")


def _input(call: Call, arguments: Arguments) -> bytes:
    """The JSON: from stdin, or from the file that is named, which is read here, by root: the socket is root's as well."""
    if arguments.file in (None, "/dev/stdin"):
        return call.stdin
    path = os.path.join(call.folder or "/", arguments.file or "")
    try:
        return read_file(path, _MOST_BYTES)
    except OSError as error:
        raise Invalid(f"failed to load network options: IO error: {error.strerror} (os error {error.errno})") from None


def _update(engine: Engine, arguments: Arguments) -> None:
    """Other servers for a network that is there; of one that isn't, Podman tells us the servers when it is."""
    if arguments.network_dns_servers is None:
        raise Invalid("netavark update requires --network-dns-servers")
    servers = words.addresses(arguments.network_dns_servers)[:MAX_SERVERS]
    for network in engine.state.networks.values():
        if network.name == arguments.operand and network.resolvers():
            for server in servers:
                if server in network.resolvers():
                    raise Invalid(
                        f"unable to modify network dns servers: {server} is the gateway of {network.name}",
                        "using it would cause the name server to forward queries to itself",
                    )
            engine.serve_names(network.name, servers=servers)
            return


def _version(call: Call) -> str:
    wanted = call.environment.get("NETAVARK_VERSION", "")
    return wanted if wanted and len(wanted) < 20 and wanted.isprintable() else VERSION


def _info(call: Call) -> dict[str, str]:
    return {
        "version": _version(call),
        "commit": f"atoll {__version__}",
        "build_time": "",
        "target": f"{os.uname().machine}-linux",
        "default_fw_driver": "nftables",
    }


def _printed(found: Struct | dict[str, words.Status] | dict[str, str], *, pretty: bool = False) -> Answer:
    data = msgspec.json.encode(found)
    return Answer(stdout=(msgspec.json.format(data, indent=2) if pretty else data) + b"\n")


def _said(call: Call, place: str, line: str) -> bytes:
    """A line of netavark's log, where the caller wants to read such lines (RUST_LOG)."""
    level = call.environment.get("RUST_LOG", "").rpartition("=")[2]
    return f"[INFO  {place}] {line}\n".encode() if level in ("info", "debug", "trace") else b""
