"""Fixtures for the tests of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.daemon.doors import KINDS, EchoDaemon, made
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


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State and run folders of the test's own, which the forwarders that it makes lead to."""
    monkeypatch.setenv("ATOLL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("ATOLL_RUN", str(tmp_path / "run"))
    return tmp_path


@pytest.fixture
def echoing(host: None, folders: Path) -> Iterator[EchoDaemon]:
    """A daemon whose doors are the tests' own."""
    lenient()
    with EchoDaemon(folders) as daemon:
        daemon.start()
        yield daemon


@pytest.fixture(params=KINDS)
def program(request: pytest.FixtureRequest, folders: Path) -> Path:
    """A forwarder of each kind, called bridge."""
    return made(folders / "bin" / "bridge", request.param)
