"""Where Atoll keeps its state and its socket, for root and for ordinary users."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """`ATOLL_STATE`, else /var/lib/atoll, or an ordinary user's own."""
    if given := os.environ.get("ATOLL_STATE"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/atoll")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "atoll"


def run_folder() -> Path:
    """`ATOLL_RUN`, else /run/atoll, or an ordinary user's own. The socket is `atoll.sock` in it."""
    if given := os.environ.get("ATOLL_RUN"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/atoll")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/atoll-{os.geteuid()}") / "atoll"  # noqa: S108 - its owner is checked


def socket_path() -> Path:
    return run_folder() / "atoll.sock"
