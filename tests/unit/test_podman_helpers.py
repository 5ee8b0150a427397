"""Where Podman looks for its helpers, read from its configuration as Podman reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from atoll.cli import podman
from atoll.errors import Denied
from atoll.frontends.netavark import helpers

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(helpers, "DISTRIBUTED", str(tmp_path / "distributed.conf"))
    monkeypatch.setattr(helpers, "CONFIGURATION", str(tmp_path / "containers.conf"))
    (tmp_path / "containers.conf.d").mkdir()
    return tmp_path


def helper_dirs(*folders: str) -> str:
    return f"[engine]\nhelper_binaries_dir = [{', '.join(folders)}]\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, list(helpers.DEFAULT_FOLDERS)),
        ({"distributed.conf": helper_dirs('"/a"')}, ["/a"]),
        ({"distributed.conf": helper_dirs('"/a"'), "containers.conf": helper_dirs('"/b"', '"/c"')}, ["/b", "/c"]),
        ({"containers.conf": helper_dirs('"/b"'), "containers.conf.d/z.conf": helper_dirs('"/z"')}, ["/z"]),
        ({"containers.conf.d/z.conf": helper_dirs('"/z"'), "containers.conf.d/y.conf": helper_dirs('"/y"')}, ["/z"]),
        ({"containers.conf.d/z.txt": helper_dirs('"/z"')}, list(helpers.DEFAULT_FOLDERS)),
        ({"containers.conf": helper_dirs('"/b"', "{append=true}")}, [*helpers.DEFAULT_FOLDERS, "/b"]),
        ({"containers.conf": helper_dirs()}, []),
        ({"containers.conf": "[engine"}, list(helpers.DEFAULT_FOLDERS)),
        ({"containers.conf": "engine = 7\n"}, list(helpers.DEFAULT_FOLDERS)),
        ({"containers.conf": "[engine]\nhelper_binaries_dir = 7\n"}, list(helpers.DEFAULT_FOLDERS)),
    ],
)
def test_the_last_word_of_the_configuration(folder: Path, files: dict[str, str], expected: list[str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    assert helpers.folders() == expected


def test_a_file_can_be_left_out(folder: Path) -> None:
    ours = folder / "containers.conf.d/atoll.conf"
    ours.write_text(helper_dirs('"/ours"'))
    assert helpers.folders() == ["/ours"]
    assert helpers.folders(without=str(ours)) == list(helpers.DEFAULT_FOLDERS)


def test_the_netavark_before_us_is_the_first_that_can_be_executed(folder: Path) -> None:
    for name, mode in (("ours", 0o755), ("broken", 0o644), ("theirs", 0o755)):
        (folder / name).mkdir()
        (folder / name / "netavark").write_text("#!/bin/sh\n")
        (folder / name / "netavark").chmod(mode)
    listed = [f'"{folder / name}"' for name in ("empty", "ours", "broken", "theirs")]
    (folder / "containers.conf").write_text(helper_dirs(*listed))
    assert helpers.original(str(folder / "ours" / "netavark")) == str(folder / "theirs" / "netavark")
    (folder / "containers.conf").write_text(helper_dirs(*listed[:3]))
    assert helpers.original(str(folder / "ours" / "netavark")) == ""


def test_an_ordinary_user_is_told_why_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("ATOLL_STATE", str(folder / "state"))
    refused = CliRunner().invoke(podman.podman, ["install"]).exception
    assert isinstance(refused, Denied)
    assert str(refused).startswith("rootless Podman can't use Atoll: its networks are in a host of its own")
    assert not (folder / "state").exists()
