"""kill -9 of the daemon, the program, or both, at every step of a run: what is left is a whole run whose program goes on, or nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any, Final

from tests.daemon.processes import CommandLine, Died, QuickDaemon, eventually, kernel, open_pidfd
from tests.daemon.test_kill import connect, create_network, settled
from tests.kernel.kernel_state import State, differences
from tests.support import lenient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: On two networks, with ports: several steps of each kind.
BODY: Final[dict[str, Any]] = {
    "name": "r1",
    "networks": [
        {key: value for key, value in (connect("web", 2, "r1", 21).body or {}).items() if key != "namespace"} | {"network": "web"},
        {"network": "db", "publish": ["9000:90"]},
    ],
    "publish": ["8080:80", "7000-7009:7000-7009/udp"],
    "detached": True,
}


class Host:
    """A daemon that dies, on a host with two networks."""

    def __init__(self, daemon: QuickDaemon) -> None:
        self.daemon = daemon
        daemon.start()
        for request in (create_network("web", 2), create_network("db", 3, icc=False)):
            daemon.call(*request[1:])
        self.view = daemon.view()
        self.kernel: State = settled(self.view)

    def is_empty(self) -> bool:
        """Whether all is as it was before any run, but for what is remembered."""
        view = self.daemon.view()
        return view == self.view and not differences(self.kernel, settled(view))

    def runs(self) -> list[tuple[str, str]]:
        return [(run["name"], run["state"]) for run in self.daemon.call("GET", "/v1/runs")]


@contextlib.contextmanager
def host_with_daemon(folder: Path) -> Iterator[Host]:
    lenient()
    with QuickDaemon(folder) as daemon:
        yield Host(daemon)


@contextlib.contextmanager
def program() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def dies_creating(host: Host, step: int, pid: int) -> bool:
    """Whether there is such a step, and the daemon died at it."""
    host.daemon.kill()
    host.daemon.start(fault=f"create_run:{step}")
    try:
        host.daemon.call("POST", "/v1/runs", BODY | {"pid": pid})
    except Died:
        host.daemon.bury()
        return True
    return False


def test_death_of_the_daemon_at_any_step_of_a_start(host: None, tmp_path: Path) -> None:
    with host_with_daemon(tmp_path) as here:
        whole = 0
        for step in range(1, 200):
            with program() as process:
                died = dies_creating(here, step, process.pid)
                if died:
                    here.daemon.start()
                where = f"at step {step}"
                assert here.daemon.differences() == [], where
                if here.runs():
                    # All of it was there, and only the answer was missing.
                    assert here.runs() == [("r1", "running")], where
                    (run,) = here.daemon.call("GET", "/v1/runs")
                    assert [(end["network"], len(end["ports"])) for end in run["endpoints"]] == [("web", 2), ("db", 1)], where
                    whole += 1
                else:
                    assert here.is_empty(), where
                    here.daemon.call("POST", "/v1/runs", BODY | {"pid": process.pid})
            eventually(here.is_empty, f"all is given back {where}")
            assert here.runs() == [("r1", "ended")]
            if not died:
                break
            here.daemon.call("DELETE", "/v1/runs/r1")
        assert step > 15
        assert whole >= 1


def test_death_of_the_daemon_at_any_step_of_a_release(host: None, tmp_path: Path) -> None:
    with host_with_daemon(tmp_path) as here:
        for step in range(1, 200):
            here.daemon.kill()
            here.daemon.start(fault=f"end_run:{step}")
            with program() as process:
                here.daemon.call("POST", "/v1/runs", BODY | {"pid": process.pid})
            died = dies_releasing(here)
            if died:
                here.daemon.bury()
                here.daemon.start()
                assert released(here), f"at step {step}"
            if not died:
                break
        assert step > 5


def dies_releasing(here: Host) -> bool:
    """Whether the daemon dies of the end of a program, or after it, as it forgets connections. If it doesn't, it has released the run."""
    try:
        eventually(lambda: here.runs() == [("r1", "ended")], "the run has ended")
        assert released(here)
    except Died:
        return True
    return False


def released(here: Host) -> bool:
    return here.daemon.differences() == [] and here.is_empty() and here.runs() == [("r1", "ended")]


def test_death_of_both_leaves_nothing(host: None, tmp_path: Path) -> None:
    with host_with_daemon(tmp_path) as here:
        for step in (3, 9, 15, 10_000):
            with program() as process:
                if not dies_creating(here, step, process.pid):
                    here.daemon.kill()
            here.daemon.start()
            assert here.daemon.differences() == []
            assert here.is_empty()
            for name, _ in here.runs():
                here.daemon.call("DELETE", f"/v1/runs/{name}")


def test_a_run_outlives_its_daemon_and_is_released_by_the_next(atoll: CommandLine) -> None:
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24")
    view = atoll.daemon.view()
    before = kernel(view)
    atoll.says("run", "-d", "--name", "r1", "--network", "web", "-p", "8080:80", "cat", "/dev/zero")
    run = atoll.daemon.call("GET", "/v1/runs/r1")
    there = atoll.daemon.view()
    with open_pidfd(atoll.daemon.call("GET", "/v1/status")["pid"]) as daemon:
        signal.pidfd_send_signal(daemon, signal.SIGKILL)
        eventually(lambda: not _answers(atoll), "the daemon is gone")
    assert atoll.says("ps", "-q") == "r1\n"
    assert atoll.daemon.view() == there
    assert atoll.daemon.differences() == []
    assert atoll.says("stop", "r1") == "r1\n"
    assert atoll.says("wait", "r1") == "143\n"
    assert atoll.daemon.view() == view
    eventually(lambda: not differences(before, kernel(view)), "the kernel is as it was")

    # One that ends while there is no daemon: the next one sees it.
    atoll.says("run", "-d", "--name", "r1", "--network", "web", "-p", "8080:80", "cat", "/dev/zero")
    run = atoll.daemon.call("GET", "/v1/runs/r1")
    with open_pidfd(run["pid"]) as process, open_pidfd(run["shepherd"]) as shepherd:
        assert atoll.says("daemon", "stop") == "stopped\n"
        signal.pidfd_send_signal(process, signal.SIGKILL)
        signal.pidfd_send_signal(shepherd, signal.SIGKILL)
    assert "(unknown)" in atoll.says("ps", "-a")
    assert atoll.daemon.view() == view
    eventually(lambda: not differences(before, kernel(view)), "the kernel is as it was")


def _answers(atoll: CommandLine) -> bool:
    try:
        atoll.daemon.call("GET", "/v1/status")
    except (Died, OSError):
        return False
    return True


#: Stops the command when it calls a function of the name `name`, of its own or of Python, from or in the file `file`.
STOP_AT: Final = """
import os, signal, sys
def stop(frame, event, called):
    name = frame.f_code.co_name if event == "call" else getattr(called, "__name__", "") if event == "c_call" else ""
    if name == {name!r} and frame.f_code.co_filename.endswith({file!r}):
        os.kill(os.getpid(), signal.SIGSTOP)
sys.setprofile(stop)
"""


def test_death_of_the_command_before_its_program_begins(atoll: CommandLine, tmp_path: Path) -> None:
    """Stopped, and then killed, before it asks, while it waits for the answer, and between every two things that it does then."""
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24")
    view = atoll.daemon.view()
    before = kernel(view)
    path = [part for part in [os.environ.get("PYTHONPATH", "")] if part]
    for number, (file, name) in enumerate(
        (
            ("client.py", "_send"),
            ("client.py", "recv"),
            ("client.py", "_parse"),
            ("program.py", "become"),
            ("program.py", "_rename"),
            ("program.py", "_turn_into"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(STOP_AT.format(file=file, name=name))
        atoll.daemon.environment["PYTHONPATH"] = os.pathsep.join([str(folder), *path])
        arguments = ["run", "--network", "web", "-p", "8080:80", "-u", "0", "--", "cat", "/dev/zero"]
        with atoll.popen(*arguments, stdout=subprocess.DEVNULL) as command:
            pid = os.waitid(os.P_PID, command.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            assert pid is not None
            assert pid.si_code == os.CLD_STOPPED, (file, name)
            command.kill()
        eventually(lambda: atoll.daemon.call("GET", "/v1/runs") == [], f"it is released after {name}")
        assert atoll.daemon.view() == view
        eventually(lambda: not differences(before, kernel(view)), f"the kernel is as it was after {name}")
