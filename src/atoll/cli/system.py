"""`atoll status`, `doctor`, `events`, `daemon`, `completion`."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import click

from atoll.cli import client, output
from atoll.errors import Failed


@click.command()
@output.format_option
def status(form: str) -> None:
    """Show what the daemon manages and whether anything is in its way."""
    _show_status(client.get("/v1/status"), form)


def _show_status(found: dict[str, Any], form: str) -> None:
    if form == "json":
        output.show_json(found)
        return
    host = "a private host of your own" if found["rootless"] else "this machine"
    click.echo(f"atoll {found['version']}, daemon {found['pid']}, up {output.age(found['started'])}, manages {host}")
    counts = ", ".join(f"{found[kind]} {kind if found[kind] != 1 else kind[:-1]}" for kind in ("networks", "namespaces", "endpoints"))
    click.echo(f"{counts}; state in {found['state']}")
    _show_problems(found["problems"])


def _show_problems(problems: list[dict[str, str]]) -> None:
    for problem in problems:
        click.echo(f"problem: {problem['what']}" + (f"; {problem['help']}" if problem["help"] else ""))


@click.command()
@click.option("--fix", is_flag=True, help="Repair what is found.")
@output.format_option
def doctor(fix: bool, form: str) -> None:
    """Compare the model with the kernel and name every difference; --fix repairs them.

    Exits 0 when all is well (or was repaired), 1 when something is wrong.
    """
    problems = client.get("/v1/status")["problems"]
    found = client.post("/v1/doctor") if fix else client.get("/v1/doctor")
    wrong = found["differences"]
    if form == "json":
        output.show_json(found | {"problems": problems})
    else:
        for difference in wrong:
            click.echo(f"{'repaired' if fix else 'differs'}: {difference['subject']}: {difference['what']}")
            for command in () if fix else difference["repair"]:
                click.echo(f"    {command}")
        for error in found["errors"]:
            click.echo(f"failed: {error}")
        _show_problems(problems)
        if not wrong and not problems:
            click.echo("all is as it should be")
        elif wrong and not fix:
            click.echo("atoll doctor --fix repairs this; a running daemon does so by itself within a second")
    if found["errors"] or (wrong and not fix):
        sys.exit(1)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on and show events as they come.")
@click.option("--since", type=int, default=0, metavar="N", help="Only events after this number.")
@output.format_option
def events(follow: bool, since: int, form: str) -> None:
    """Show what has happened since the daemon started (the last 4096 events)."""
    path = f"/v1/events?since={since}"
    try:
        for event in client.stream(path + "&follow=1") if follow else client.get(path):
            _show_event(event, form)
    except KeyboardInterrupt:
        pass


def _show_event(event: dict[str, Any], form: str) -> None:
    if form == "json":
        click.echo(json.dumps(event))
        return
    when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    fields = " ".join(f"{key}={_plain(value)}" for key, value in event.items() if key not in ("number", "time", "event") and value)
    click.echo(f"{event['number']:>6}  {when}  {event['event']:<20}  {fields}")


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@click.group()
def daemon() -> None:
    """Run, stop or look at the daemon. It starts by itself when a command needs it."""


@daemon.command()
def run() -> None:
    """Serve in the foreground, for a service manager."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "atoll.daemon"])  # noqa: S606 - ourselves


@daemon.command("status")
@output.format_option
def daemon_status(form: str) -> None:
    """Show whether a daemon runs; exits 1 when none does."""
    _show_status(client.request("GET", "/v1/status", start=False), form)


@daemon.command()
def stop() -> None:
    """Stop the daemon. Networks, connections and published ports stay as they are (a private host ends with it)."""
    pid = client.request("GET", "/v1/status", start=False)["pid"]
    client.request("POST", "/v1/stop", start=False)
    deadline = time.monotonic() + 30
    while _lives(pid):
        if time.monotonic() > deadline:
            raise Failed(f"the daemon (pid {pid}) is still stopping", "look again in a moment: atoll daemon status")
        time.sleep(0.01)
    click.echo("stopped")


def _lives(pid: int) -> bool:
    """Whether a process runs; one that has ended counts as gone though nobody has waited for it (proc_pid_stat(5))."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
      atoll completion bash > /etc/bash_completion.d/atoll
      atoll completion zsh > "${fpath[1]}/_atoll"
      atoll completion fish > ~/.config/fish/completions/atoll.fish
    """
    from click.shell_completion import get_completion_class

    from atoll.cli import cli

    found = get_completion_class(shell)
    if found is None:
        raise Failed(f"no completion for {shell}")
    click.echo(found(cli, {}, "atoll", "_ATOLL_COMPLETE").source())
