"""Reaching the daemon, and starting it when none answers: for the command line, and for the front doors that runtimes execute.

Imported by every command, so it imports as little as it can.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from typing import Final

from atoll import paths
from atoll.errors import BY_NAME, AtollError, Conflict, Denied, Failed

#: A change waits its turn behind others; a daemon that says nothing for this long (seconds) is stuck.
_PATIENCE: Final = 120
#: For how long a daemon is started anew while another one has the state, and how long each time for that one to serve (seconds).
_START: Final = 30
_PAUSE: Final = 0.5
#: There when systemd runs (sd_booted(3)).
_SYSTEMD: Final = "/run/systemd/system"
_SYSTEMD_RUN: Final = "/usr/bin/systemd-run"


def open_socket() -> socket.socket:
    """A connection to the daemon that serves the run folder. Raises OSError without one."""
    _check_folder()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_PATIENCE)
        sock.connect(paths.socket_path())
    except BaseException:
        sock.close()
        raise
    return sock


def _check_folder() -> None:
    """In /tmp anybody may have made the folder that is a user's without XDG_RUNTIME_DIR, and would choose who answers there."""
    above = os.path.dirname(paths.run_folder())
    if above != f"/tmp/atoll-{os.geteuid()}":  # noqa: S108 - that is what is looked at
        return
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(above).st_uid != os.geteuid():
            raise Denied(f"{above} belongs to another user", "set XDG_RUNTIME_DIR or ATOLL_RUN to a folder of your own")


def running() -> bool:
    try:
        open_socket().close()
    except OSError:
        return False
    return True


def ensure_daemon() -> None:
    """Start the daemon, if none runs, from a process that ends: it must be no child of a program that this process turns into.

    Why it can't be started is left for the first request to say.
    """
    if running():
        return
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            start_daemon()
        os._exit(0)
    os.waitpid(child, 0)


def start_daemon() -> None:
    """Start a daemon of our own and wait until it answers. Raises the error that kept it from that."""
    deadline = time.monotonic() + _START
    while error := _start():
        # Another client may have started one in the same moment, and that one serves us, too; or one is about to end.
        pause = time.monotonic() + _PAUSE
        if not isinstance(error, Conflict) or pause > deadline:
            raise error
        while time.monotonic() < pause:
            if running():
                return
            time.sleep(0.02)


def _start() -> AtollError | None:
    """Start a daemon and wait until it serves. The error that it ends with when it doesn't."""
    import subprocess

    run = paths.run_folder()
    # Whatever the caller's is: runtimes have 0, with which anybody could write.
    mask = os.umask(0o022)
    try:
        os.makedirs(run, exist_ok=True, mode=0o755)
        log = open(os.path.join(run, "daemon.log"), "ab")  # noqa: SIM115 - the daemon keeps it
    except OSError as error:
        raise Denied(f"may not write to {run} ({error.strerror})", "run as root, or set ATOLL_RUN to a folder of your own") from None
    finally:
        os.umask(mask)
    with log:
        failed: AtollError | None = None
        for before in _apart():
            reader, writer = os.pipe()
            # Without `-P` a file called atoll.py in the current folder would be run instead.
            command = [*before, sys.executable, "-P", "-m", "atoll.daemon", "--ready-fd", str(writer)]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writer,), start_new_session=True, cwd="/"
            )
            os.close(writer)
            if words := _read_all(reader):
                code = process.wait()
                kind = next((kind for kind in BY_NAME.values() if kind.exit_code == code), Failed)
                return kind(f"the daemon did not start: {words}")
            if running():
                return None
            failed = Failed(f"the daemon did not start (exit code {process.poll()})", f"see {run}/daemon.log")
    return failed


def _apart() -> list[list[str]]:
    """What to run the daemon by, the better way first. Where systemd runs, it needs a scope of its own: systemd ends all that is left in a
    unit's control group when the unit stops, and the caller may be the unit of one container."""
    if os.geteuid() == 0 and os.path.isdir(_SYSTEMD) and os.access(_SYSTEMD_RUN, os.X_OK):
        return [[_SYSTEMD_RUN, "--quiet", "--scope", "--collect", "--"], []]
    return [[]]


def _read_all(fd: int) -> str:
    data = b""
    with os.fdopen(fd, "rb") as reader:
        data = reader.read()
    return data.decode("utf-8", "replace")
