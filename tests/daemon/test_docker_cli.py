"""`atoll docker` where no dockerd runs: what it writes, says and refuses. With dockerd: tests/clients."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from atoll.kernel import netns
from tests.daemon.processes import ATOLL, CommandLine, etc, user

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEC = Path("/etc/docker/plugins/atoll.spec")
UNIT = Path("/etc/systemd/system/atoll.service")


@pytest.fixture
def folder(host: None, tmp_path: Path) -> Iterator[Path]:
    """An /etc of the test's own, without anything of Docker's."""
    with etc(tmp_path) as made:
        for path in (SPEC, UNIT):
            path.unlink(missing_ok=True)
        yield made


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[None]:
    """A host that says it runs systemd (sd_booted(3))."""
    run = tmp_path / "systemd"
    (run / "system").mkdir(parents=True)
    if not Path("/run/systemd").is_dir():
        pytest.skip("needs /run/systemd")
    netns.mount(str(run), "/run/systemd", "none", netns.MS_BIND)
    yield
    netns.unmount("/run/systemd")


def files(folder: Path) -> dict[str, str]:
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_text(errors="replace") for path in found}


def test_install_and_uninstall_leave_etc_as_it_was(atoll: CommandLine, folder: Path, systemd: None) -> None:
    before = files(folder)
    run = atoll.daemon.environment["ATOLL_RUN"]
    printed = atoll.says("docker", "install", "--print")
    assert files(folder) == before
    said = atoll.says("docker", "install", "--force")
    assert said == f"{SPEC} written\n{UNIT} written\nnow: systemctl enable --now atoll\n"
    assert SPEC.read_text() == f"unix://{run}/docker.sock\n"
    assert f"ExecStart={ATOLL} daemon run\n" in UNIT.read_text()
    assert f"Environment=ATOLL_RUN={run}\n" in UNIT.read_text()
    assert f"ExecStartPre=-{ATOLL} daemon stop\n" in UNIT.read_text()
    assert "Before=docker.service\n" in UNIT.read_text()
    assert printed == f"# {SPEC}\n{SPEC.read_text()}# {UNIT}\n{UNIT.read_text()}"
    assert {oct(path.stat().st_mode & 0o777) for path in (SPEC, UNIT)} == {"0o644"}
    again = atoll.says("docker", "install", "--force")
    assert again == f"{SPEC} is there already\n{UNIT} is there already\nnow: systemctl enable --now atoll\n"
    # A daemon runs by now, and isn't enabled for it.
    UNIT.unlink()
    atoll.says("status")
    again = atoll.says("docker", "install", "--force")
    assert again == f"{SPEC} is there already\n{UNIT} written\nnow: systemctl enable --now atoll\n"
    assert atoll.says("docker", "uninstall").splitlines()[:2] == [f"{SPEC} removed", f"{UNIT} removed"]
    assert files(folder) == before
    done = atoll("docker", "uninstall")
    assert (done.returncode, done.stderr) == (3, f"error: no {SPEC}; atoll docker install writes it\n")


def test_without_systemd_there_is_no_unit(atoll: CommandLine, folder: Path) -> None:
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd runs here")
    assert atoll.says("docker", "install", "--force") == f"{SPEC} written\nnow: atoll daemon run, before dockerd starts\n"
    assert not UNIT.exists()


def test_where_there_is_no_dockerd_nothing_is_written(atoll: CommandLine, folder: Path) -> None:
    before = files(folder)
    done = atoll("docker", "install", PATH="/nowhere")
    assert (done.returncode, done.stderr) == (3, "error: dockerd is not installed here; install Docker first, or use --force\n")
    assert files(folder) == before


def test_a_unit_of_somebody_else_s_stays(atoll: CommandLine, folder: Path, systemd: None) -> None:
    UNIT.parent.mkdir(parents=True, exist_ok=True)
    UNIT.write_text("[Unit]\n")
    before = files(folder)
    for command in (["install", "--force"], ["uninstall"]):
        done = atoll("docker", *command)
        assert (done.returncode, done.stderr) == (4, f"error: {UNIT} isn't from atoll docker install; move it away first\n")
        assert files(folder) == before


def test_a_link_in_the_spec_s_place_is_not_written_through(atoll: CommandLine, folder: Path, tmp_path: Path) -> None:
    SPEC.parent.mkdir(parents=True, exist_ok=True)
    target = tmp_path / "target"
    target.write_text("mine\n")
    SPEC.symlink_to(target)
    atoll.says("docker", "install", "--force")
    assert not SPEC.is_symlink()
    assert target.read_text() == "mine\n"


@pytest.mark.parametrize("path", ["docker.sock", "/run/docker.sock\nx", ""])
def test_what_is_no_path_of_a_socket_is_refused(atoll: CommandLine, folder: Path, path: str) -> None:
    done = atoll("docker", "install", "--force", "--socket", path)
    if path:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert not SPEC.exists()
    else:
        assert done.returncode == 0  # the usual one


def test_another_socket_is_remembered_until_uninstall(atoll: CommandLine, folder: Path) -> None:
    atoll.says("docker", "install", "--force", "--socket", "/run/other.sock")
    atoll.says("network", "ls")  # starts the daemon
    said = atoll("docker", "status")
    assert said.returncode == 0
    assert "problem: dockerd doesn't answer at /run/other.sock; start it, or atoll docker install --socket PATH" in said.stdout
    atoll.says("docker", "uninstall")
    assert "/run/docker.sock" in atoll("docker", "status").stdout


def test_status_says_what_is_missing(atoll: CommandLine, folder: Path) -> None:
    said = atoll("docker", "status")
    assert said.returncode == 1
    assert said.stdout == (
        "driver   atoll, not installed\ndaemon   not running\ndockerd  not there\n"
        f"problem: there is no {SPEC}; atoll docker install\nproblem: no daemon is running; systemctl start atoll, or atoll daemon run\n"
    )
    SPEC.parent.mkdir(parents=True, exist_ok=True)
    SPEC.write_text("unix:///elsewhere.sock\n")
    assert f"problem: {SPEC} leads to unix:///elsewhere.sock; atoll docker install" in atoll("docker", "status").stdout


def test_an_ordinary_user_gets_one_clear_line(folder: Path) -> None:
    with user() as somebody:
        for command in (["install", "--force"], ["uninstall"]):
            if command == ["uninstall"]:
                SPEC.parent.mkdir(parents=True, exist_ok=True)
                SPEC.write_text("unix:///run/atoll/docker.sock\n")
            done = somebody("docker", *command)
            assert done.returncode == 5, done
            assert done.stderr.startswith("error: ")
            assert done.stderr.endswith("; run as root\n")
            assert done.stderr.count("\n") == 1
