"""`atoll podman`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from typing import Any, Final

import click

from atoll import paths
from atoll.cli import output, own_file
from atoll.errors import Conflict, Denied, NotFound
from atoll.frontends import forwarder
from atoll.frontends.netavark import helpers
from atoll.frontends.netavark.networks import PLUGIN

_HEAD: Final = "# Written by atoll podman install; atoll podman uninstall takes it away.\n"
_COMMAND: Final = "atoll podman install"
_HELPERS: Final = """\
# Podman looks for its helpers in Atoll's folder first, where it finds netavark, and then where it did before.
[engine]
helper_binaries_dir = {folders}
"""
_PLUGINS: Final = """\
# The driver `atoll`, for networks beside those of netavark (Podman 4.5 and newer).
[network]
netavark_plugin_dirs = {folders}
"""
#: Podman looks at its whole storage (seconds).
_PATIENCE: Final = 30

_dry_run = click.option("--dry-run", "--print", "dry_run", is_flag=True, help="Print what would be written, and change nothing.")


@click.group()
def podman() -> None:
    """Have Podman use Atoll's networks: install, uninstall, status."""


@podman.command()
@click.option("--plugin", "only_plugin", is_flag=True, help="Only as a driver: podman network create -d atoll (Podman 4.5 and newer).")
@_dry_run
def install(only_plugin: bool, dry_run: bool) -> None:
    """Put Atoll in the place of netavark. Containers that run keep what netavark gave them until they end.

    Writes a drop-in of containers.conf and, below Atoll's state folder, what Podman executes. Run it again after changing
    helper_binaries_dir or netavark_plugin_dirs in containers.conf.
    """
    text = _drop_in(only_plugin)
    own_file.is_there(helpers.DROP_IN, _HEAD, _COMMAND)
    if dry_run:
        for path, door in _places(only_plugin):
            click.echo(f"# {path}: Atoll's forwarder of the door {door}")
        click.echo(f"# {helpers.DROP_IN}\n{text}", nl=False)
        return
    if os.geteuid() != 0:
        raise Denied("rootless Podman can't use Atoll: its networks are in a host of its own, out of the daemon's reach", "run it as root")
    otherwise = helpers.original(_forwarder())
    for path, door in _places(only_plugin):
        _place(path, door, otherwise if door == "netavark" else "")
    if only_plugin:
        _remove(_forwarder())
    own_file.write(helpers.DROP_IN, text)
    click.echo(f"{helpers.DROP_IN} written")
    if not only_plugin and _used() != _forwarder():
        raise Conflict(
            f"Podman still uses {_used() or 'no netavark'}", f"a file that is read after {helpers.DROP_IN} sets helper_binaries_dir"
        )
    if not only_plugin and _backend() == "cni":
        click.echo("note: Podman's network backend here is CNI, which doesn't call netavark: see atoll cni install")


@podman.command()
@_dry_run
def uninstall(dry_run: bool) -> None:
    """Give Podman back to netavark. Containers that run keep Atoll's networks until they end."""
    placed = [path for path in (_forwarder(), _plugin()) if forwarder.is_ours(path)]
    drop_in = own_file.is_there(helpers.DROP_IN, _HEAD, _COMMAND)
    if not placed and not drop_in:
        raise NotFound("Atoll isn't in netavark's place", f"{_COMMAND} puts it there")
    if dry_run:
        for path in [*([helpers.DROP_IN] if drop_in else []), *placed]:
            click.echo(f"rm {path}")
        return
    # In this order Podman is never sent to a program that is gone.
    if drop_in:
        own_file.remove(helpers.DROP_IN)
        click.echo(f"{helpers.DROP_IN} removed")
    for path in placed:
        _remove(path)


@podman.command()
@output.format_option
def status(form: str) -> None:
    """Show which netavark Podman uses, and for which backend."""
    used = _used()
    found: dict[str, Any] = {
        "installed": used == _forwarder() and forwarder.is_ours(used),
        "netavark": used,
        "before": helpers.original(_forwarder()),
        "driver": os.path.dirname(_plugin()) in helpers.plugin_folders() and forwarder.is_ours(_plugin()),
        "backend": _backend(),
    }
    if form == "json":
        output.show_json(found)
        return
    click.echo(f"netavark  {used or 'none'} ({'Atoll' if found['installed'] else 'not Atoll'})")
    if found["installed"]:
        click.echo(f"before    {found['before'] or 'none'} (serves the containers that it has set up, and rootless ones)")
    driver = "atoll (podman network create -d atoll, from Podman 4.5 on)" if found["driver"] else f"none ({_COMMAND})"
    click.echo(f"driver    {driver}")
    note = " (Podman doesn't call netavark: see atoll cni install)" if found["backend"] == "cni" else ""
    click.echo(f"backend   {found['backend'] or 'unknown (only root may ask, where podman is installed)'}{note}")


# --- parts ---------------------------------------------------------------------------------------------------------------------------


def _forwarder() -> str:
    return os.path.join(os.path.abspath(paths.state_folder()), "podman", "netavark")


def _plugin() -> str:
    """Its file is named as the driver."""
    return os.path.join(os.path.abspath(paths.state_folder()), "podman", "plugins", PLUGIN)


def _places(only_plugin: bool) -> list[tuple[str, str]]:
    return [*([] if only_plugin else [(_forwarder(), "netavark")]), (_plugin(), "plugin")]


def _drop_in(only_plugin: bool) -> str:
    helper_folders = helpers.folders(without=helpers.DROP_IN)
    plugin_folders = helpers.plugin_folders(without=helpers.DROP_IN)
    parts = [_HEAD]
    if not only_plugin:
        parts.append(_HELPERS.format(folders=json.dumps([os.path.dirname(_forwarder()), *helper_folders])))
    parts.append(_PLUGINS.format(folders=json.dumps([os.path.dirname(_plugin()), *plugin_folders])))
    return "".join(parts)


def _place(path: str, door: str, otherwise: str) -> None:
    try:
        os.makedirs(paths.state_folder(), mode=0o700, exist_ok=True)  # root's alone, as the engine makes it
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    except OSError as error:
        raise own_file.refused(f"making {os.path.dirname(path)}", error) from None
    kind = forwarder.place(path, door, otherwise)
    click.echo(f"{path} written ({'compiled' if kind == 'c' else 'a script, as there is no C compiler'})")


def _remove(path: str) -> None:
    """A forwarder and its folder, if that is empty then."""
    if forwarder.is_ours(path):
        forwarder.remove(path)
        click.echo(f"{path} removed")
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(path))


def _used() -> str:
    """The netavark that Podman would find."""
    candidates = (os.path.join(folder, "netavark") for folder in helpers.folders())
    return next((path for path in candidates if os.path.isfile(path)), "")


def _backend() -> str:
    """Which backend root's Podman has; it decides that for good when it first makes its storage."""
    program = shutil.which("podman")
    if program is None or os.geteuid() != 0:
        return ""
    try:
        done = subprocess.run(
            [program, "info", "--format", "{{.Host.NetworkBackend}}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
