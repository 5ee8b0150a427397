"""`python -m atoll.daemon`: serve in the foreground until told to stop.

Run by an ordinary user it makes itself a private host first (user, network and mount namespaces) and manages that. `--ready-fd N` closes
that descriptor when requests are answered, after one line that says what went wrong if something did.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys

from atoll import paths
from atoll.errors import AtollError, Denied
from atoll.lab import private


def main(arguments: list[str]) -> int:
    ready_fd = int(arguments[1]) if len(arguments) == 2 and arguments[0] == "--ready-fd" and arguments[1].isdigit() else -1
    if arguments and ready_fd < 0:
        print("usage: python -m atoll.daemon [--ready-fd N]", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # A namespace that is visited is a descriptor for that time; one that was adopted from a process is one for good.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o022)
    # The folders are named for the user outside; inside the user is root.
    state, run = paths.state_folder(), paths.run_folder()
    try:
        if os.geteuid() != 0:
            _make_folders(state, run)
            private.enter(keep=(state, run))
        _serve(state, run, ready_fd)
    except AtollError as error:
        if ready_fd < 0:
            print(f"error: {error}", file=sys.stderr)
        else:
            _tell(ready_fd, str(error))
            logging.getLogger("atoll").error("%s", error)
        return error.exit_code
    except Exception as error:
        # A defect of ours: whoever waits for the daemon gets a line, the log the rest.
        _tell(ready_fd, f"{type(error).__name__}: {error}; the log says where: {run}/daemon.log")
        logging.getLogger("atoll").exception("starting")
        return 1
    return 0


def _make_folders(*folders: str) -> None:
    """While they are still where the user outside sees them."""
    for folder in folders:
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise Denied(f"may not make {folder} ({error.strerror})", "set ATOLL_STATE and ATOLL_RUN to folders of your own") from None


def _serve(state: str, run: str, ready_fd: int) -> None:
    from pathlib import Path

    import uvloop

    from atoll.daemon.server import Server

    async def serve() -> None:
        await Server(Path(state), Path(run)).serve(lambda: _ready(ready_fd))

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # What was imported lives for ever; without it a collection is short and memory stays shared.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def _ready(ready_fd: int) -> None:
    _tell(ready_fd, "")
    if path := os.environ.get("NOTIFY_SOCKET"):
        # sd_notify(3)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + path[1:] if path.startswith("@") else path)
            sock.send(b"READY=1")


def _tell(ready_fd: int, words: str) -> None:
    if ready_fd >= 0:
        with contextlib.suppress(OSError):
            os.write(ready_fd, words.encode())
            os.close(ready_fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
