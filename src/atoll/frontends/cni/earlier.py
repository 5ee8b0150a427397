"""Leases of the reference host-local, which stood here before us: one file an address in DATADIR/NETWORK.

Its containers may still run after a switch to Atoll, and it frees their addresses itself. What it wrote before the machine was started
last is of nobody: that it never forgets those is one of its known faults.
"""

from __future__ import annotations

import ipaddress
import os
import time
from typing import Final

_DATA_DIR: Final = "/var/lib/cni/networks"


def leased_before(data_dir: str, network: str) -> set[str]:
    """The addresses that are leased there; none where there is no such folder."""
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    found: set[str] = set()
    try:
        with os.scandir(os.path.join(data_dir or _DATA_DIR, network)) as entries:
            for entry in entries:
                value = _address(entry.name)
                if value and entry.stat(follow_symlinks=False).st_mtime >= started:
                    found.add(value)
    except OSError:
        return set()
    return found


def _address(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name.replace("_", ":")))
    except ValueError:
        return ""
