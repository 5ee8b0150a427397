"""netavark's command line (its manual, netavark(1)): the same options, and the same liberty to write them before or after the command."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from atoll.errors import Invalid

#: Commands and how many words follow them.
_COMMANDS: Final = {
    "setup": ("NETWORK_NAMESPACE_PATH",),
    "teardown": ("NETWORK_NAMESPACE_PATH",),
    "create": (),
    "update": ("NETWORK_NAME",),
    "version": (),
    "firewall-reload": (),
    "firewalld-reload": (),
    "dhcp-proxy": (),
    "help": (),
}
_VALUED: Final = {
    "-f": "file",
    "--file": "file",
    "-c": "config",
    "--config": "config",
    "-r": "rootless",
    "--rootless": "rootless",
    "-a": "aardvark_binary",
    "--aardvark-binary": "aardvark_binary",
    "--firewall-driver": "firewall_driver",
    "--plugin-directory": "plugin_directory",
    "--network-dns-servers": "network_dns_servers",
}

HELP: Final = """\
Atoll in the place of netavark: networks of Podman's containers.

Usage: netavark [OPTIONS] COMMAND

Commands:
  create            Create a network config
  setup             Configure the network namespace NETWORK_NAMESPACE_PATH as the JSON on stdin says
  update            Update the DNS servers of NETWORK_NAME (--network-dns-servers LIST)
  teardown          Undo what setup did
  version           Display info about this netavark
  firewalld-reload  Re-apply the firewall's rules
  firewall-reload   Re-apply the firewall's rules

Options:
  -f, --file FILE              Read the configuration from a file instead of stdin
      --firewall-driver NAME   Accepted: nftables, firewalld, iptables; the rules are Atoll's own [env: NETAVARK_FW]
  -c, --config DIR             Accepted; the state is Atoll's own
  -r, --rootless BOOL          Rootless containers are left to the netavark that stood here before
  -a, --aardvark-binary PATH   Accepted; names are answered by Atoll
      --plugin-directory DIR   Where plugins of netavark are
  -V, --version                Print the version
  -h, --help                   Print this
"""


class Arguments(Struct, frozen=True):
    """A command with its operand (a path, or a network's name) and options. `command` is also "--version" or "--help"."""

    command: str
    operand: str = ""
    file: str | None = None
    config: str | None = None
    rootless: bool = False
    firewall_driver: str = ""
    plugin_directories: tuple[str, ...] = ()
    network_dns_servers: tuple[str, ...] | None = None


def parse(words: tuple[str, ...]) -> Arguments:
    """Raises `Invalid` for what netavark's own command line would refuse."""
    found: dict[str, list[str]] = {}
    operands: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-V", "--version"):
            return Arguments("--version")
        if word in ("-h", "--help"):
            return Arguments("--help")
        if not word.startswith("-") or word == "-":
            operands.append(word)
            if word == "dhcp-proxy":
                break  # what follows is its own
            continue
        option, value = _option(word, rest)
        found.setdefault(option, []).append(value)
    return _arguments(operands, found)


def _option(word: str, rest: list[str]) -> tuple[str, str]:
    """An option's field and value: `--name value`, `--name=value`, `-n value`, `-nvalue` or `-n=value`."""
    name, separator, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:].removeprefix("="))
    if name not in _VALUED:
        raise Invalid(f"unexpected argument {word[:80]!r}", "netavark --help")
    if separator:
        return _VALUED[name], value
    if not rest:
        raise Invalid(f"a value is required for {name!r}", "netavark --help")
    return _VALUED[name], rest.pop(0)


def _arguments(operands: list[str], found: dict[str, list[str]]) -> Arguments:
    if not operands:
        raise Invalid("netavark requires a subcommand", "netavark --help")
    command, *others = operands
    if command not in _COMMANDS:
        raise Invalid(f"unrecognized subcommand {command[:80]!r}", "netavark --help")
    expected = _COMMANDS[command]
    if len(others) != len(expected) or not all(others):
        raise Invalid(f"netavark {command} takes {' '.join(expected) or 'no argument'}", "netavark --help")
    for field, values in found.items():
        if len(values) > 1 and field not in ("plugin_directory", "network_dns_servers"):
            raise Invalid(f"--{field.replace('_', '-')} is given twice")
    servers = found.get("network_dns_servers")
    rootless = found.get("rootless", ["false"])[0]
    if rootless not in ("true", "false"):
        raise Invalid(f"invalid value {rootless[:20]!r} for --rootless", "expected true or false")
    return Arguments(
        command="--help" if command == "help" else command,
        operand=others[0] if others else "",
        file=found.get("file", [None])[0],
        config=found.get("config", [None])[0],
        rootless=rootless == "true",
        firewall_driver=found.get("firewall_driver", [""])[0],
        plugin_directories=tuple(found.get("plugin_directory", ())),
        network_dns_servers=None if servers is None else tuple(text for value in servers for text in value.split(",") if text),
    )
