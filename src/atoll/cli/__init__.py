"""The command line: a thin client of the daemon. Each group of commands is a module that is loaded when one of them is used."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from atoll import __version__
from atoll.errors import AtollError, one_line

#: Where each command lives, with the line that `atoll --help` shows for it, so that help loads nothing.
_COMMANDS: Final = {
    "demo": ("atoll.cli.demo", "Show the whole story in a private lab, with commands and proofs."),
    "network": ("atoll.cli.network", "Manage networks: create, ls, inspect, rm, prune."),
    "ns": ("atoll.cli.ns", "Manage namespaces: create, ls, inspect, rm, exec, adopt."),
    "ls": ("atoll.cli.ls", "List everything that has an address here, whoever runs it."),
    "connect": ("atoll.cli.endpoint", "Connect a namespace to a network."),
    "disconnect": ("atoll.cli.endpoint", "Disconnect a namespace from a network."),
    "publish": ("atoll.cli.endpoint", "Publish ports of a namespace on the host, live."),
    "unpublish": ("atoll.cli.endpoint", "Take published ports back, live."),
    "up": ("atoll.cli.topology", "Make the host as a topology file says; only what differs is changed."),
    "down": ("atoll.cli.topology", "Remove what a topology has made, and nothing else."),
    "diff": ("atoll.cli.topology", "Show what up would change, as a table or as commands."),
    "schema": ("atoll.cli.topology", "Print the JSON schema of topology files, for editors."),
    "run": ("atoll.cli.run", "Run a program in a namespace of its own, on the networks named."),
    "ps": ("atoll.cli.ps", "List the programs that run; with -a, those that have ended, too."),
    "logs": ("atoll.cli.ps", "Show what a detached program has written."),
    "stop": ("atoll.cli.ps", "End programs: SIGTERM, then SIGKILL."),
    "wait": ("atoll.cli.ps", "Wait for detached programs to end, and print their exit codes."),
    "dns": ("atoll.cli.dns", "Ask for names, and have the host know them: lookup, status, install, uninstall."),
    "docker": ("atoll.cli.docker", "Make Docker's networks with Atoll: install, uninstall, status."),
    "cni": ("atoll.cli.cni", "Serve CNI runtimes (Kubernetes, containerd, Podman): install, uninstall, status."),
    "podman": ("atoll.cli.podman", "Make Podman's networks with Atoll: install, uninstall, status."),
    "graph": ("atoll.cli.graph", "Draw what there is: a picture for the terminal, SVG, PNG, dot, Mermaid or JSON."),
    "explain": ("atoll.cli.explain", "Say what happens to a packet from one place to another, and why."),
    "status": ("atoll.cli.system", "Show what the daemon manages and whether anything is in its way."),
    "doctor": ("atoll.cli.system", "Compare the model with the kernel, name every difference, repair it with --fix."),
    "events": ("atoll.cli.system", "Show what has happened; with --follow, as it happens."),
    "daemon": ("atoll.cli.system", "Run, stop or look at the daemon."),
    "completion": ("atoll.cli.system", "Print the completion script of a shell."),
}

#: What Docker's users look for here, and where it is.
_ELSEWHERE: Final = {
    "exec": "atoll ns exec",
    "inspect": "atoll ns inspect, or atoll network inspect",
    "rm": "atoll stop, atoll ns rm, or atoll network rm",
    "kill": "atoll stop -t 0",
    "compose": "atoll up, atoll down, atoll diff",
    "port": "atoll ls",
    "info": "atoll status",
    "version": "atoll --version",
}


class _Lazy(click.Group):
    """A group whose commands are imported when they are looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _ELSEWHERE:
            ctx.fail(f"there is no command {name!r}: it is {_ELSEWHERE[name]}")
        if name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(_COMMANDS[name][0]), name)
        assert isinstance(command, click.Command)  # noqa: S101
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="atoll")
def cli() -> None:
    """Container networks for Linux: namespaces, networks, published ports.

    \b
    Start here:
      atoll demo                                   see it work, in a private lab
      atoll network create web                     a network with addresses of its own
      atoll ns create r1                           a namespace
      atoll connect web r1 -p 8080:80              r1 on the network, its port 80 at the host's 8080
      atoll ns exec r1 -- python3 -m http.server 80
      atoll run --network web -- bash              a shell on the network, for as long as it runs

    The daemon starts by itself when it is needed. As root it manages this machine; as an ordinary user, a private host of your own.
    Every listing takes --format json, and every change --dry-run, which prints the ip, nft and sysctl commands that it stands for.
    """


def main() -> None:
    """The entry point: an error is one line on stderr and an exit code of its own."""
    try:
        code = cli.main(prog_name="atoll", standalone_mode=False)
    except AtollError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context is not None else ""
        click.echo(f"error: {one_line(error.format_message()).rstrip('.')}{hint}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
