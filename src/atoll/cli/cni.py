"""`atoll cni`: put Atoll in the place where CNI runtimes look for plugins, and take it away again."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from typing import TYPE_CHECKING, Any, Final

import click

from atoll.checks import check_name
from atoll.cli import client, output
from atoll.errors import AtollError, Conflict, Denied, Failed
from atoll.model import PREDEFINED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Where runtimes look for plugins: containerd, CRI-O and Kubernetes in the first, Debian's Podman in the second, Fedora's in the third.
_FOLDERS: Final = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
_CONFIGURATIONS: Final = "/etc/cni/net.d"
_FILE: Final = "10-atoll.conflist"
#: Where the reference host-local keeps who has which address.
_LEASES: Final = "/var/lib/cni/networks"
#: libcni reads the first key only by name, so a list may say where it comes from.
_MARK: Final = "written by atoll cni install"
_CAPABILITIES: Final = ("portMappings", "bandwidth", "ips", "ipRanges", "mac", "aliases", "dns")

_dir_option = click.option("--dir", "folders", multiple=True, metavar="DIR", help="A folder of plugins, instead of those that there are.")


@click.group()
def cni() -> None:
    """Serve CNI runtimes: Kubernetes, containerd, CRI-O, Podman."""


@cni.command()
@_dir_option
@click.option("--conf", "network", default="", metavar="NETWORK", help=f"Write a configuration for a network: {_CONFIGURATIONS}/{_FILE}.")
@click.option("--replace", is_flag=True, help="Serve the reference plugins' names, too, so that configurations work as they are.")
@output.dry_run_option
def install(folders: tuple[str, ...], network: str, replace: bool, dry_run: bool) -> None:
    """Put the plugin `atoll` where runtimes look for it. What stood in a place that is taken is kept, for `uninstall` to put back.

    \b
      atoll cni install --conf web          runtimes put their containers on the network web
      atoll cni install --replace           what uses bridge, portmap, firewall ... uses Atoll from now on
    """
    from atoll.frontends import forwarder

    text = _configuration(network) if network else ""
    if text:
        _check_place(text)
    places = _folders(folders) or _FOLDERS[:1]
    if not dry_run:
        for folder in [*places, *([_folder()] if text else [])]:
            _check_writable(folder)
    for folder in places:
        for name in _names(folder, replace=replace):
            path = os.path.join(folder, name)
            if dry_run:
                kept = os.path.lexists(path) and not forwarder.is_ours(path)
                if kept:
                    replaced = os.path.join(folder, forwarder.REPLACED)
                    click.echo(f"mkdir -p {shlex.quote(replaced)}\nmv {shlex.quote(path)} {shlex.quote(replaced)}/")
                click.echo(f"install -D FORWARDER {shlex.quote(path)}")
                continue
            with _said(f"making {folder}"):
                os.makedirs(folder, mode=0o755, exist_ok=True)
            _retire(folder, retired=False)
            forwarder.place(path, "cni")
            click.echo(path)
    if text:
        _write(text, dry_run=dry_run)


@cni.command()
@_dir_option
@click.option("--now", is_flag=True, help="Also while containers that Atoll made go on: what is put back must then delete them.")
@output.dry_run_option
def uninstall(folders: tuple[str, ...], now: bool, dry_run: bool) -> None:
    """Take Atoll's plugins and its configuration away, and put back what stood in their places.

    As long as containers that Atoll made go on, its plugins stay for them alone: new ones are made by what is put back. Once they have
    ended, say it again.
    """
    from atoll.frontends import forwarder

    ours = [path for folder in _folders(folders) for path in _paths(folder) if forwarder.is_ours(path) or forwarder.replaced(path)]
    left = [] if now or not ours else _attachments()
    if dry_run:
        _show_removal(ours, left)
        return
    if left and any(forwarder.replaced(path) for path in ours if os.path.basename(path) == "host-local"):
        _leave_leases(left)
    for folder in dict.fromkeys(map(os.path.dirname, ours)):
        _retire(folder, retired=bool(left))
    for path in () if left else ours:
        forwarder.remove(path)
        click.echo(path)
    if _is_ours(_place()):
        with _said(f"removing {_place()}"):
            os.unlink(_place())
        click.echo(_place())
    if left:
        names = output.short([name for name, _ in left])
        click.echo(f"note: still there: {names}; Atoll's plugins stay for them until they end, then again: atoll cni uninstall", err=True)


@cni.command()
@_dir_option
@output.format_option
def status(folders: tuple[str, ...], form: str) -> None:
    """Show which plugins are Atoll's, and which network configurations runtimes find, in their order."""
    found = {"plugins": [_state(folder, name) for folder in _folders(folders) for name in _every_name()], "configurations": _lists()}
    if form == "json":
        output.show_json(found)
        return
    rows = [(item["path"], item["served_by"], item["kept"] or "-") for item in found["plugins"] if item["served_by"] != "nobody"]
    if rows:
        output.table(("PLUGIN", "SERVED BY", "KEPT"), rows)
    else:
        click.echo("no folder of plugins has any that Atoll could serve; atoll cni install makes one")
    if found["configurations"]:
        click.echo()
        output.table(
            ("CONFIGURATION", "NETWORK", "PLUGINS"), [(c["path"], c["name"], ", ".join(c["plugins"])) for c in found["configurations"]]
        )


# --- plugins -------------------------------------------------------------------------------------------------------------------------


def _folders(given: Sequence[str]) -> list[str]:
    """Those that were named, here or by CNI_PATH, else the usual ones that there are, each once though some are links to others."""
    if named := list(given) or [folder for folder in os.environ.get("CNI_PATH", "").split(":") if folder]:
        return [os.path.abspath(folder) for folder in named]
    there = {os.path.realpath(folder): folder for folder in reversed(_FOLDERS) if os.path.isdir(folder)}
    return sorted(there.values(), key=_FOLDERS.index)


def _check_writable(folder: str) -> None:
    """Before anything is put anywhere: a folder, or the nearest one above it that there is, can be written to."""
    above = folder
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above) or not os.access(above, os.W_OK):
        what = f"may not write to {folder}" if os.path.isdir(above) else f"{above} is not a folder"
        raise Denied(what, "run as root, or name another folder: --dir DIR")


def _every_name() -> list[str]:
    """All names that Atoll answers to, its own first."""
    from atoll.frontends.cni.plugins import PLUGINS

    return ["atoll", *sorted(set(PLUGINS) - {"atoll"})]


def _names(folder: str, *, replace: bool) -> list[str]:
    """Those to put in a folder. containerd asks for `loopback` whatever the network, so it gets one where there is none."""
    from atoll.frontends import forwarder

    if replace:
        return _every_name()
    loopback = os.path.join(folder, "loopback")
    return ["atoll"] if os.path.lexists(loopback) and not forwarder.is_ours(loopback) else ["atoll", "loopback"]


def _state(folder: str, name: str) -> dict[str, str]:
    from atoll.frontends import forwarder

    path = os.path.join(folder, name)
    ours = forwarder.is_ours(path)
    served = f"atoll ({forwarder.kind(path)})" if ours else "its own program" if os.path.lexists(path) else "nobody"
    return {"path": path, "served_by": served, "kept": forwarder.replaced(path)}


def _paths(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in _every_name()]


def _attachments() -> list[tuple[str, dict[str, Any]]]:
    """The endpoints that were made for CNI, each with its namespace's name."""
    found = [(namespace["name"], end) for namespace in client.get("/v1/namespaces") for end in namespace["endpoints"]]
    return [(name, end) for name, end in found if end["owner"].startswith("cni:")]


def _show_removal(ours: list[str], left: list[tuple[str, dict[str, Any]]]) -> None:
    from atoll.frontends import forwarder
    from atoll.frontends.cni import RETIRED

    if left:
        for folder in dict.fromkeys(map(os.path.dirname, ours)):
            click.echo(f"touch {shlex.quote(os.path.join(folder, RETIRED))}")
    for path in () if left else ours:
        kept = forwarder.replaced(path)
        click.echo(f"mv {shlex.quote(kept)} {shlex.quote(path)}" if kept else f"rm {shlex.quote(path)}")
    if _is_ours(_place()):
        click.echo(f"rm {shlex.quote(_place())}")


def _retire(folder: str, *, retired: bool) -> None:
    """Whether Atoll's plugins in a folder are there for the containers that they made and for no others."""
    from atoll.frontends.cni import RETIRED

    path = os.path.join(folder, RETIRED)
    with _said(f"writing {path}"):
        if retired:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _leave_leases(left: list[tuple[str, dict[str, Any]]]) -> None:
    """So that no new container gets the address of one that goes on; nor of one that has just ended, still known to neighbours: host-local
    goes on after the last one given out."""
    for _, end in sorted(left, key=lambda pair: float(pair[1]["created"])):
        container, _, interface = end["owner"].removeprefix("cni:").partition("/")
        folder = os.path.join(_LEASES, end["network"])
        with _said(f"writing to {folder}"):
            os.makedirs(folder, mode=0o755, exist_ok=True)
            for number, address in enumerate(text.partition("/")[0] for text in end["addresses"]):
                for name, words in ((address, f"{container}\r\n{interface}"), (f"last_reserved_ip.{number}", address)):
                    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                        file.write(words)


# --- configurations ------------------------------------------------------------------------------------------------------------------


def _configuration(network: str) -> str:
    """A list of one plugin, in the version that every runtime has; newer ones choose the newest of `cniVersions`."""
    check_name(network, "network")
    if network in PREDEFINED:
        raise Conflict(f"network {network} is predefined", "name another")
    plugin = {"type": "atoll", "capabilities": dict.fromkeys(_CAPABILITIES, True)}
    said = {"//": _MARK, "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": network, "plugins": [plugin]}
    return json.dumps(said, indent=2) + "\n"


def _place() -> str:
    """Where our configuration is, or would be; NETCONFPATH says where others are to be looked for, as it does to cnitool."""
    return os.path.join(_folder(), _FILE)


def _folder() -> str:
    return os.path.abspath(os.environ.get("NETCONFPATH") or _CONFIGURATIONS)


def _check_place(text: str) -> None:
    path = _place()
    there = _read(path)
    if there is not None and there != text and not _is_ours(path):
        raise Conflict(f"{path} exists and isn't from atoll cni install", "move it away first")


def _write(text: str, *, dry_run: bool) -> None:
    path, folder = _place(), _folder()
    if dry_run:
        click.echo(f"mkdir -p {shlex.quote(folder)}\ncat > {shlex.quote(path)} <<'END'\n{text}END")
        return
    with _said(f"writing {path}"):
        os.makedirs(folder, mode=0o755, exist_ok=True)
        fresh = f"{folder}/.10-atoll.{os.getpid()}"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        # At once: a runtime may watch the folder and read what it sees.
        os.rename(fresh, path)
    click.echo(path)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failed(f"reading {path}: {error.strerror}", errno=error.errno or 0) from None


def _parsed(path: str) -> dict[str, Any]:
    try:
        found = json.loads(_read(path) or "")
    except (ValueError, RecursionError, AtollError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_ours(path: str) -> bool:
    return _parsed(path).get("//") == _MARK


def _lists() -> list[dict[str, Any]]:
    """The network configurations in the order in which runtimes look at them, by name."""
    folder = _folder()
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for name in names:
        if name.endswith((".conflist", ".conf", ".json")):
            path = os.path.join(folder, name)
            said = _parsed(path)
            plugins = said.get("plugins") if isinstance(said.get("plugins"), list) else [said]
            types = [str(plugin.get("type", "?")) for plugin in plugins or [] if isinstance(plugin, dict)]
            found.append({"path": path, "name": str(said.get("name", "?")), "plugins": types})
    return found


@contextlib.contextmanager
def _said(doing: str) -> Iterator[None]:
    """Errors of files as errors of ours."""
    try:
        yield
    except PermissionError as error:
        raise Denied(f"{doing}: {error.strerror}", "run as root") from None
    except OSError as error:
        raise Failed(f"{doing}: {error.strerror}", errno=error.errno or 0) from None
