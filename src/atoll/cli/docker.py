"""`atoll docker`: switch Docker over to Atoll, look at it, switch back."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from typing import Any, Final

import click

from atoll import paths
from atoll.cli import client, output
from atoll.errors import AtollError, Conflict, Denied, Failed, Invalid, NotFound
from atoll.neighbours import containers

#: Where dockerd finds a driver's socket by the driver's name: the file's own (docs.docker.com/engine/extend/plugin_api).
_SPEC: Final = "/etc/docker/plugins/atoll.spec"
_DRIVER: Final = "atoll"
_UNIT: Final = "/etc/systemd/system/atoll.service"
#: There when systemd runs (sd_booted(3)).
_SYSTEMD: Final = "/run/systemd/system"
_HEAD: Final = "# Written by atoll docker install; atoll docker uninstall takes it away.\n"
#: dockerd asks the driver as soon as it starts, and waits for it, so Atoll must answer before. A daemon that some command has started
#: by itself gives way.
_SERVICE: Final = """
[Unit]
Description=Atoll container networks
Before=docker.service

[Service]
Type=notify
ExecStartPre=-{command} daemon stop
ExecStart={command} daemon run
Restart=always
{environment}
[Install]
WantedBy=multi-user.target
"""
_SOCKET: Final = "/run/docker.sock"

_print = click.option("--print", "--dry-run", "only_print", is_flag=True, help="Print what would be written, and change nothing.")


@click.group()
def docker() -> None:
    """Make Docker's networks with Atoll: install, uninstall, status."""


@docker.command()
@click.option("--socket", default="", metavar="PATH", help=f"dockerd's API socket, if it isn't {_SOCKET}.")
@click.option("--force", is_flag=True, help="Even if dockerd isn't installed yet.")
@_print
def install(socket: str, force: bool, only_print: bool) -> None:
    """Have dockerd find Atoll as the driver `atoll`, and systemd, where it runs, start Atoll before Docker.

    \b
    Writes /etc/docker/plugins/atoll.spec and /etc/systemd/system/atoll.service. Docker needs no restart, and its own networks stay
    as they are. Then:
      docker network create -d atoll --ipam-driver atoll web
    """
    if socket and (not socket.startswith("/") or not socket.isprintable()):
        raise Invalid(f"{socket[:80]!r} is not the path of a socket", f"expected one such as {_SOCKET}")
    files = _files(socket)
    if only_print:
        for path, text in files.items():
            click.echo(f"# {path}\n{text}", nl=False)
        return
    if not force and shutil.which("dockerd") is None and not os.path.exists(socket or _SOCKET):
        raise NotFound("dockerd is not installed here", "install Docker first, or use --force")
    for path in files:
        _check_ours(path)
    written = [path for path, text in files.items() if _write(path, text)]
    for path in files:
        click.echo(f"{path} {'written' if path in written else 'is there already'}")
    if not socket:
        _unlink(_recorded_socket())
    if _UNIT in written or not _daemon():
        command = "systemctl enable --now atoll" if _UNIT in files else "atoll daemon run, before dockerd starts"
        click.echo(f"now: {command}")


@docker.command()
@click.option("--force", is_flag=True, help="Even if Docker has networks of the driver; they are of no use then.")
def uninstall(force: bool) -> None:
    """Take away what `install` wrote. Docker's networks of the driver must be removed first."""
    written = [path for path in (_SPEC, _UNIT, _recorded_socket()) if os.path.lexists(path)]
    if not written:
        raise NotFound(f"no {_SPEC}", "atoll docker install writes it")
    for path in written:
        _check_ours(path)
    if os.geteuid() != 0:
        raise Denied(f"may not remove {written[0]}", "run as root")
    if left := _networks():
        if not force:
            some = " ".join(left[:8])
            raise Conflict(f"Docker has networks of the driver {_DRIVER}: {output.short(left, 8)}", f"docker network rm {some}, or --force")
        click.echo(f"Docker's networks {output.short(left, 8)} have no driver any more", err=True)
    for path in written:
        _unlink(path)
        click.echo(f"{path} removed")
    if _UNIT in written:
        click.echo("now: systemctl disable --now atoll, if nothing else needs it; systemctl daemon-reload")


@docker.command()
@output.format_option
def status(form: str) -> None:
    """Show whether Docker has Atoll as a driver, and which of its networks and containers are served.

    Exits 1 when Docker can't find Atoll or no daemon runs.
    """
    found = _status()
    if form == "json":
        output.show_json(found)
    else:
        _show(found)
    if not (found["installed"] and found["daemon"]):
        sys.exit(1)


# --- the files -----------------------------------------------------------------------------------------------------------------------


def _files(socket: str) -> dict[str, str]:
    """What is written, by its place."""
    found = {_SPEC: f"unix://{paths.run_folder()}/docker.sock\n"}
    if os.path.isdir(_SYSTEMD):
        folders = (("ATOLL_STATE", paths.state_folder()), ("ATOLL_RUN", paths.run_folder()))
        environment = "".join(f"Environment={name}={folder}\n" for name, folder in folders if name in os.environ)
        found[_UNIT] = _HEAD.rstrip("\n") + _SERVICE.format(command=os.path.abspath(sys.argv[0]), environment=environment)
    if socket:
        found[_recorded_socket()] = f"{socket}\n"
    return found


def _recorded_socket() -> str:
    """Where the daemon reads which socket is dockerd's."""
    return os.path.join(paths.state_folder(), "docker.socket")


def _check_ours(path: str) -> None:
    """Raises `Conflict` for a unit that somebody else wrote. The other files are ours by their names."""
    if path == _UNIT and (text := _read(path)) and not text.startswith(_HEAD):
        raise Conflict(f"{path} isn't from atoll docker install", "move it away first")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise _refused(f"reading {path}", error) from None


def _write(path: str, text: str) -> bool:
    """Put a file in its place as a whole; whether it wasn't there already."""
    if _read(path) == text:
        return False
    beside = f"{path}.new"
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        _unlink(beside)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
    except OSError as error:
        raise _refused(f"writing {path}", error) from None
    return True


def _unlink(path: str) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise _refused(f"removing {path}", error) from None


def _refused(doing: str, error: OSError) -> AtollError:
    if isinstance(error, PermissionError):
        return Denied(f"{doing}: {error.strerror}", "run as root")
    return Failed(f"{doing}: {error.strerror}", errno=error.errno or 0)


# --- what there is -------------------------------------------------------------------------------------------------------------------


def _daemon() -> dict[str, Any]:
    """The daemon's own status; empty when none runs."""
    try:
        found: dict[str, Any] = client.request("GET", "/v1/status", start=False)
    except AtollError:
        return {}
    return found


def _networks() -> list[str]:
    """Docker's networks of the driver; by what we know where Docker doesn't answer."""
    try:
        return containers.docker_networks(_DRIVER, _read(_recorded_socket()).strip())
    except Failed:
        if not _daemon():
            return []
        return sorted(network["name"] for network in client.get("/v1/docker")["networks"])


def _status() -> dict[str, Any]:
    daemon = _daemon()
    spec = _read(_SPEC).strip()
    found: dict[str, Any] = {
        "spec": _SPEC if spec else "",
        "installed": spec == _files("")[_SPEC].strip(),
        "daemon": daemon.get("pid", 0),
        "socket": _SOCKET,
        "following": False,
        "version": "",
        "loaded": False,
        "networks": [],
        "namespaces": [],
    }
    if daemon:
        found |= client.get("/v1/docker")
    served = set(found.pop("namespaces"))
    found["containers"] = [item for item in client.get("/v1/namespaces") if item["name"] in served] if served else []
    problems = list(daemon.get("problems", ()))
    if not spec:
        problems.append({"what": f"there is no {_SPEC}", "help": "atoll docker install"})
    elif not found["installed"]:
        problems.append(
            {"what": f"{_SPEC} leads to {spec[:200]}", "help": "atoll docker install; then restart dockerd, which keeps the address"}
        )
    if not daemon:
        problems.append({"what": "no daemon is running", "help": "systemctl start atoll, or atoll daemon run"})
    elif not found["following"]:
        problems.append({"what": f"dockerd doesn't answer at {found['socket']}", "help": "start it, or atoll docker install --socket PATH"})
    return found | {"problems": problems}


def _show(found: dict[str, Any]) -> None:
    click.echo(f"driver   {_DRIVER}, {'installed' if found['installed'] else 'not installed'}")
    click.echo(f"daemon   {found['daemon'] or 'not running'}")
    used = ", has used the driver" if found["loaded"] else ""
    click.echo(f"dockerd  {found['version'] + used if found['following'] else 'not there'}")
    if found["networks"]:
        output.table(("NETWORK", "DOCKER ID"), [(item["name"], item["id"][:12]) for item in found["networks"]])
    if found["containers"]:
        output.table(("CONTAINER", "NETWORKS", "ADDRESSES", "PORTS"), [_row(item) for item in found["containers"]])
    for problem in found["problems"]:
        click.echo(f"problem: {problem['what']}" + (f"; {problem['help']}" if problem["help"] else ""))


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    ends = item["endpoints"]
    return (
        item["name"],
        output.short([end["network"] for end in ends]),
        output.short([address.partition("/")[0] for end in ends for address in end["addresses"]]),
        output.short([port for end in ends for port in end["ports"]]),
    )
