"""Every test that touches a network gets a host of its own: fresh network namespace, empty /run/netns, nothing of the machine's.

The worker process leaves the machine's namespaces before its first test; a test then moves its thread into a new network namespace, and
threads and processes that it starts follow. Nothing has to be cleaned up: the kernel takes all of it back.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from atoll.engine import Engine
from atoll.errors import Unsupported
from atoll.kernel import netns
from atoll.lab import private

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def private_process() -> None:
    """This worker as a private host."""
    try:
        private.enter()
    except Unsupported as error:
        pytest.skip(str(error))


@pytest.fixture
def host(private_process: None) -> Iterator[None]:
    """A fresh host for one test, in the test's own thread."""
    home = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
    netns.mount("atoll", str(netns.NETNS_DIR), "tmpfs", data="mode=755")
    netns.unshare(netns.CLONE_NEWNET)
    private.fresh()
    try:
        yield
    finally:
        netns.setns(home)
        os.close(home)
        # `prepare` mounts the folder onto itself, so there may be two layers.
        for _ in range(2):
            if os.path.ismount(netns.NETNS_DIR) and list(Path("/proc/self/mountinfo").read_text().split()).count(str(netns.NETNS_DIR)) > 1:
                netns.unmount(str(netns.NETNS_DIR))


@pytest.fixture
def engine(host: None) -> Iterator[Engine]:
    """An engine in memory on a fresh host."""
    with Engine.open() as opened:
        yield opened
