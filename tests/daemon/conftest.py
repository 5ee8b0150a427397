"""Fixtures for the tests of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.daemon.processes import CommandLine
from tests.support import lenient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def atoll(host: None, tmp_path: Path) -> Iterator[CommandLine]:
    """The command line on a fresh host, without a daemon yet."""
    lenient()
    with CommandLine(tmp_path) as commands:
        yield commands
