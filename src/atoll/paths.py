"""Where Atoll keeps its state and its socket, for root and for ordinary users.

Text, not `pathlib`: the command line imports this, and pathlib takes as long to import as a short command takes to run.
"""

from __future__ import annotations

import os


def state_folder() -> str:
    """`ATOLL_STATE`, else /var/lib/atoll, or an ordinary user's own."""
    if given := os.environ.get("ATOLL_STATE"):
        return given
    if os.geteuid() == 0:
        return "/var/lib/atoll"
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "atoll")


def run_folder() -> str:
    """`ATOLL_RUN`, else /run/atoll, or an ordinary user's own. The socket is `atoll.sock` in it."""
    if given := os.environ.get("ATOLL_RUN"):
        return given
    if os.geteuid() == 0:
        return "/run/atoll"
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/atoll-{os.geteuid()}", "atoll")  # noqa: S108 - its owner is checked


def socket_path() -> str:
    return os.path.join(run_folder(), "atoll.sock")
