"""Names for the very process that a namespace is adopted from: our files over its own, and its own back afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.daemon.processes import CommandLine, Died, QuickDaemon, eventually, open_pidfd
from tests.support import lenient

if TYPE_CHECKING:
    from collections.abc import Iterator

PRIVATE = ("-n", "-m")
FILES = ("resolv.conf", "hosts")


@contextlib.contextmanager
def process(*flags: str, setup: str = "true") -> Iterator[int]:
    """A process with namespaces of its own, after `setup` was run in it."""
    command = ["unshare", *flags, "sh", "-ec", f"{setup}; echo; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"\n"
        yield started.pid
        started.kill()


def seen(pid: int) -> list[str]:
    return [Path(f"/proc/{pid}/root/etc/{file}").read_text() for file in FILES]


def mounts(pid: int) -> list[str]:
    """What is mounted for it in /etc, in order."""
    found = (line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    return [path for path in found if path.startswith("/etc")]


def adopt(atoll: CommandLine, pid: int) -> None:
    atoll.says("ns", "adopt", "p1", "--pid", str(pid), "--dns")


def resolves(pid: int, name: str) -> str:
    command = ["nsenter", "-t", str(pid), "-n", "-m", "getent", "ahostsv4", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition(" ")[0]


def make(atoll: CommandLine) -> None:
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24")
    atoll.says("ns", "create", "r1")
    atoll.says("connect", "web", "r1", "--ip", "10.9.2.11")


@pytest.mark.parametrize("flags", [PRIVATE, (*PRIVATE, "--user", "--map-root-user")])
def test_the_process_itself_has_names_until_it_is_let_go(atoll: CommandLine, flags: tuple[str, ...]) -> None:
    make(atoll)
    atoll.says("network", "create", "db", "--subnet", "10.9.3.0/24")
    host = [Path(f"/etc/{file}").read_text() for file in FILES]
    with process(*flags) as pid:
        own, before = seen(pid), mounts(pid)
        adopt(atoll, pid)
        atoll.says("connect", "web", "p1")
        assert "nameserver 10.9.2.1\n" in seen(pid)[0]
        assert resolves(pid, "r1") == "10.9.2.11"
        atoll.says("connect", "db", "p1", "--ip", "10.9.3.12")
        assert "nameserver 10.9.3.1\n" in seen(pid)[0]
        assert "10.9.3.12\tp1.db.atoll p1\n" in seen(pid)[1]
        with pytest.raises(OSError, match="Read-only"):
            Path(f"/proc/{pid}/root/etc/resolv.conf").write_text("nameserver 10.9.9.9\n")
        assert atoll("ns", "adopt", "p2", "--pid", str(pid), "--dns").returncode != 0
        assert mounts(pid) == [*before, "/etc/resolv.conf", "/etc/hosts"]
        atoll.says("ns", "rm", "p1")
        assert (seen(pid), mounts(pid)) == (own, before)
        adopt(atoll, pid)
        assert mounts(pid) == [*before, "/etc/resolv.conf", "/etc/hosts"]
        atoll.says("ns", "rm", "p1")
        assert (seen(pid), mounts(pid)) == (own, before)
    assert [Path(f"/etc/{file}").read_text() for file in FILES] == host


@pytest.mark.parametrize(
    ("flags", "setup", "words"),
    [
        (("-n",), "true", "has the host's own mounts"),
        (PRIVATE, "mount --bind /etc /etc; mount --make-shared /etc", "would reach other mount namespaces"),
        (PRIVATE, "mount -t tmpfs none /etc; touch /etc/hosts; ln -s hosts /etc/resolv.conf", "resolv.conf of pid"),
        (PRIVATE, "mount -t tmpfs none /etc; touch /etc/resolv.conf", "has no /etc/hosts"),
    ],
)
def test_what_would_reach_others_is_refused_before_anything_is_changed(
    atoll: CommandLine, flags: tuple[str, ...], setup: str, words: str
) -> None:
    make(atoll)
    with process(*flags, setup=setup) as pid:
        before = mounts(pid)
        answer = atoll("ns", "adopt", "p1", "--pid", str(pid), "--dns")
        assert answer.returncode != 0
        assert words in answer.stderr
        assert "adopt without --dns" in answer.stderr
        assert mounts(pid) == before
        assert atoll.says("ns", "ls", "-q") == "r1\n"
        atoll.says("ns", "adopt", "p1", "--pid", str(pid))
        assert mounts(pid) == before


def test_a_process_that_ended_needs_nothing(atoll: CommandLine) -> None:
    make(atoll)
    with process(*PRIVATE) as pid:
        adopt(atoll, pid)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: atoll.says("ns", "ls", "-q") == "r1\n", "it is let go")
    assert os.listdir(atoll.daemon.run / "netns") == ["r1"]


def test_a_daemon_that_comes_back_covers_what_was_uncovered(atoll: CommandLine) -> None:
    make(atoll)
    with process(*PRIVATE) as pid:
        before = mounts(pid)
        adopt(atoll, pid)
        with open_pidfd(atoll.serving()) as pidfd:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        subprocess.run(["nsenter", "-t", str(pid), "-m", "umount", "/etc/hosts"], check=True)
        eventually(lambda: not atoll("status").returncode, "the next daemon serves")
        assert sorted(mounts(pid)) == sorted([*before, "/etc/resolv.conf", "/etc/hosts"])
        atoll.says("ns", "rm", "p1")
        assert mounts(pid) == before


def test_two_that_share_their_mounts_are_not_both_given_files(atoll: CommandLine) -> None:
    make(atoll)
    with process(*PRIVATE) as pid:
        adopt(atoll, pid)
        covered = mounts(pid)
        command = ["nsenter", "-t", str(pid), "-m", "unshare", "-n", "sh", "-c", "echo; exec cat"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
            assert second.stdout is not None
            second.stdout.readline()
            assert "has the mounts of p1" in atoll("ns", "adopt", "p2", "--pid", str(second.pid), "--dns").stderr
            assert mounts(pid) == covered
            second.kill()


@pytest.mark.parametrize("verb", ["adopt_namespace", "remove_namespace", "open"])
def test_death_at_any_step_leaves_all_or_nothing(host: None, tmp_path: Path, verb: str) -> None:
    lenient()
    with process(*PRIVATE) as pid, QuickDaemon(tmp_path) as daemon:
        before, own = mounts(pid), seen(pid)
        add = ("POST", "/v1/namespaces", {"name": "p1", "pid": pid, "dns": True})
        remove = ("DELETE", "/v1/namespaces/p1", None)
        for step in range(1, 100):
            if verb == "open":
                daemon.start()
                daemon.call(*add)
                daemon.kill()
            survived = daemon.start(fault=f"{verb}:{step}")
            if survived:
                try:
                    if verb != "open":
                        daemon.call(*add)
                    daemon.call(*remove)
                    daemon.kill()
                except Died:
                    survived = False
            if not survived:
                daemon.bury()
                daemon.start()
                there = "p1" in daemon.view()["namespaces"]
                assert mounts(pid) == before + ["/etc/resolv.conf", "/etc/hosts"] * there, f"{verb}:{step}"
                if there:
                    daemon.call(*remove)
                daemon.kill()
            assert (mounts(pid), seen(pid)) == (before, own), f"{verb}:{step}"
            if survived:
                assert step > 5, "hardly any steps were met"
                return
