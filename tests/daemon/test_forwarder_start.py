"""The executed file without a daemon: it starts one, once, and the daemon keeps nothing of the caller."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from atoll.frontends.call import ANSWER, Call, encode_call
from atoll.kernel import netns
from tests.daemon.doors import EchoDaemon, Said, execute

if TYPE_CHECKING:
    from tests.daemon.processes import CommandLine

VERSION: Final = {"CNI_COMMAND": "VERSION", "CNI_PATH": "/nonexistent"}
STDIN: Final = b'{"cniVersion": "1.0.0"}'


def knows_versions(said: Said) -> bool:
    return said.code == 0 and "1.0.0" in json.loads(said.stdout)["supportedVersions"]


def test_a_call_without_a_daemon_starts_one(atoll: CommandLine, program: Path) -> None:
    assert atoll.serving() == 0
    assert knows_versions(execute(program, stdin=STDIN, environment=VERSION))
    pid = atoll.serving()
    assert pid
    assert knows_versions(execute(program, stdin=STDIN, environment=VERSION))
    assert atoll.serving() == pid
    assert "WARNING" not in (atoll.daemon.run / "daemon.log").read_text()


def test_the_folders_are_made_when_they_have_gone(atoll: CommandLine, program: Path) -> None:
    shutil.rmtree(atoll.daemon.state)
    assert not atoll.daemon.run.exists()
    assert knows_versions(execute(program, stdin=STDIN, environment=VERSION))


def test_a_hundred_calls_at_once_start_one_daemon(atoll: CommandLine, program: Path) -> None:
    calls = [
        subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=VERSION) for _ in range(100)
    ]
    for call in calls:
        out, error = call.communicate(STDIN, timeout=90)
        assert knows_versions(Said(call.returncode, out, error)), (call.returncode, out, error)
    log = (atoll.daemon.run / "daemon.log").read_text()
    assert "ERROR" not in log
    assert "another daemon" not in log


def test_the_daemon_has_nothing_of_the_caller(atoll: CommandLine, program: Path) -> None:
    # It would wait for the end of the pipes until the daemon ends, had it inherited them.
    reader, writer = os.pipe()
    environment = VERSION | {
        "CNI_ARGS": "IgnoreUnknown=1;SECRET=1",
        "PYTHONPATH": "/nonexistent",
        "HOME": "/nonexistent",
        "LD_LIBRARY_PATH": "/nonexistent",
        "OTHER": "x",
    }
    with os.fdopen(reader, "rb") as end:
        assert knows_versions(execute(program, stdin=STDIN, environment=environment, pass_fds=(writer,)))
        os.close(writer)
        assert end.read() == b""
    pid = atoll.serving()
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    names = {variable.partition(b"=")[0] for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if variable}
    assert names <= {b"ATOLL_RUN", b"ATOLL_STATE", b"LC_CTYPE"}


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_the_callers_umask_is_not_that_of_our_files(atoll: CommandLine, program: Path, mask: int) -> None:
    shutil.rmtree(atoll.daemon.run, ignore_errors=True)
    assert knows_versions(execute(program, stdin=STDIN, environment=VERSION, umask=mask))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (atoll.daemon.run, *atoll.daemon.run.iterdir())}
    assert modes[atoll.daemon.run.name] == 0o755
    assert modes["daemon.log"] == 0o644
    assert [name for name, mode in modes.items() if mode & 0o022 and name != "atoll.sock"] == []


def test_a_daemon_that_is_killed_is_started_again_by_the_next_call(atoll: CommandLine, program: Path) -> None:
    assert knows_versions(execute(program, stdin=STDIN, environment=VERSION))
    first = atoll.serving()
    pidfd = os.pidfd_open(first)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    assert knows_versions(execute(program, stdin=STDIN, environment=VERSION))
    assert atoll.serving() not in (0, first)


def test_a_call_that_may_be_repeated_goes_to_the_next_daemon_when_one_dies_in_it(atoll: CommandLine, program: Path, folders: Path) -> None:
    with EchoDaemon(folders) as daemon:
        daemon.start()
        said = execute(program, stdin=b'{"cniVersion": "1.0.0", "run": "exit"}', environment=VERSION)
        assert daemon.has_died()
    assert knows_versions(said)


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_call_that_had_not_begun_goes_to_the_next_daemon_when_one_stops(
    atoll: CommandLine, program: Path, folders: Path, command: str
) -> None:
    """Whatever call it is: nothing was done for it."""
    with EchoDaemon(folders) as daemon:
        daemon.start()
        with daemon.knock() as busy, daemon.knock() as unfinished:
            busy.sendall(encode_call(Call("cni", "/x", stdin=json.dumps({"wait": str(folders / "go")}).encode())))
            assert busy.recv(4) == ANSWER
            call = subprocess.Popen([program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={"CNI_COMMAND": command})
            daemon.call("POST", "/v1/stop")
            # From here on nothing is begun.
            assert unfinished.recv(1) == b""
            (folders / "go").touch()
            out, _ = call.communicate(timeout=60)
        assert daemon.has_died()
    # The words are those of the real door of the daemon that came next.
    assert json.loads(out)["code"] == 4


def test_a_full_disk_is_an_error_in_the_clients_form(atoll: CommandLine, program: Path, folders: Path) -> None:
    netns.mount("atoll", str(folders / "state"), "tmpfs", data="size=8k,mode=755")
    try:
        (folders / "state" / "filling").write_bytes(bytes(8192))
        error = execute(program, stdin=STDIN, environment=VERSION).error
        assert error["code"] == 11
        assert "full" in error["details"]
    finally:
        netns.unmount(str(folders / "state"))


def test_a_systemd_that_does_not_answer_keeps_no_daemon_from_starting(atoll: CommandLine, program: Path) -> None:
    netns.mount("atoll", "/run", "tmpfs", data="mode=755")
    try:
        Path("/run/systemd/system").mkdir(parents=True)
        Path("/run/netns").mkdir()
        assert knows_versions(execute(program, stdin=STDIN, environment=VERSION))
        if Path("/usr/bin/systemd-run").exists():
            assert "Failed to connect to" in (atoll.daemon.run / "daemon.log").read_text()
    finally:
        netns.unmount("/run")
