"""`atoll run` with real programs: it is the program, with its exit code, signals and terminal, and nothing is left when it ends."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.daemon.processes import ATOLL, CommandLine, eventually, kernel, open_pidfd
from tests.kernel.kernel_state import differences

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Ends with 7 on SIGTERM and with 8 on SIGINT; says so as soon as it would.
HEARS: Final = "trap 'exit 7' TERM; trap 'exit 8' INT; echo ready; while :; do sleep 0.05; done"
#: Serves connections on port 80 until it is stopped.
SERVE: Final = """
import socket
with socket.create_server(("", 80)) as server:
    print("ready", flush=True)
    while True:
        with server.accept()[0] as sock:
            sock.sendall(b"hello")
"""


@contextlib.contextmanager
def leaves_nothing(atoll: CommandLine) -> Iterator[None]:
    """What is done inside has, a moment later, left neither a record nor anything in the kernel."""
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24")
    view = atoll.daemon.view()
    before = kernel(view)
    yield
    eventually(lambda: atoll.daemon.call("GET", "/v1/runs") == [], "runs are gone")
    assert atoll.daemon.view() == view
    eventually(lambda: not differences(before, kernel(view)), "the kernel is as it was")
    assert atoll.daemon.differences() == []


@contextlib.contextmanager
def started(atoll: CommandLine, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A foreground run that has said its first line."""
    with atoll.popen("run", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


# --- it is the program ---------------------------------------------------------------------------------------------------------------


def test_the_exit_code_is_the_programs(atoll: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "not-executable").write_text("#!/bin/sh\n")
    with leaves_nothing(atoll):
        for code, command in (
            (0, ["true"]),
            (3, ["sh", "-c", "exit 3"]),
            (-signal.SIGKILL, ["sh", "-c", "kill -9 $$"]),
            (127, ["no-such-program"]),
            (127, ["/no/such/program"]),
            (126, [str(tmp_path / "not-executable")]),
            (126, ["/etc"]),
        ):
            done = atoll("run", "--network", "web", "--", *command)
            assert done.returncode == code, (command, done)
            assert bool(done.stderr) == (code in (126, 127)), done
        assert "no command 'no-such-program'; " in atoll.fails(127, "run", "--network", "web", "no-such-program")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 7), (signal.SIGINT, 8), (signal.SIGKILL, -9)])
def test_a_signal_to_the_command_is_one_to_the_program(atoll: CommandLine, number: int, code: int) -> None:
    with leaves_nothing(atoll), started(atoll, "--network", "web", "-p", "8080:80", "--", "sh", "-c", HEARS) as process:
        process.send_signal(number)
        assert process.wait() == code


def test_a_pipeline_ends_as_it_would_without_it(atoll: CommandLine) -> None:
    """SIGPIPE, which Python ignores, ends a program that writes to nobody."""
    with leaves_nothing(atoll):
        command = f"{ATOLL} run --network web -- yes | head -1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], env=atoll.daemon.environment, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == (f"y\n{128 + signal.SIGPIPE}\n", "")


def test_input_and_output_are_the_callers(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        done = atoll("run", "-i", "--rm", "--network", "web", "--", "sh", "-c", "cat; echo wrong >&2", stdin="a\nb\n")
        assert (done.stdout, done.stderr) == ("a\nb\n", "wrong\n")


def test_a_terminal_is_the_programs_own(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        main, terminal = pty.openpty()
        command = [str(ATOLL), "run", "-it", "--network", "web", "--", "sh", "-c", "tty; read line; echo got $line"]
        with subprocess.Popen(command, env=atoll.daemon.environment, stdin=terminal, stdout=terminal, start_new_session=True) as process:
            os.close(terminal)
            os.write(main, b"hello\n")
            assert process.wait(60) == 0
        shown = os.read(main, 10000).decode()
        os.close(main)
        assert re.search(r"/dev/pts/\d+\r\n", shown)
        assert shown.endswith("got hello\r\n")


def test_folder_environment_host_name_and_user_are_as_asked_for(atoll: CommandLine, tmp_path: Path) -> None:
    def says(*arguments: str) -> list[str]:
        return atoll.says("run", "--network", "web", *arguments).splitlines()

    file = tmp_path / "variables"
    file.write_text("# a comment\n\nA=from file\nB=two words = two\nHOME\n")
    with leaves_nothing(atoll):
        assert says("-w", "/usr", "--", "pwd") == ["/usr"]
        assert says("--env-file", str(file), "-e", "A=from option", "-e", "C", "-e", "NOT_THERE", "--", "printenv", "A", "B") == [
            "from option",
            "two words = two",
        ]
        file.write_text("C=form\x0cfeed\u2028and others\n")
        assert atoll.says("run", "--network", "web", "--env-file", str(file), "printenv", "C") == "form\x0cfeed\u2028and others\n"
        assert says("--name", "shop", "--", "hostname") == ["shop"]
        assert says("--hostname", "till", "--", "hostname") == ["till"]
        assert atoll.says("run", "--network", "host", "hostname").strip() == socket.gethostname()
        # The folder of the caller, and a /sys that shows the namespace.
        assert says("--", "sh", "-c", "pwd; ls /sys/class/net") == [os.getcwd(), "eth0", "lo"]
    assert "going to /no/such: No such file" in atoll.fails(126, "run", "-w", "/no/such", "--", "true")


def test_it_runs_from_a_folder_that_has_been_removed(atoll: CommandLine, tmp_path: Path) -> None:
    with leaves_nothing(atoll):
        command = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && {ATOLL} run --network web -- echo here"
        done = subprocess.run(["sh", "-c", command], env=atoll.daemon.environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "here\n", "")


@pytest.mark.skipif(Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"], reason="there is only one user here")
def test_the_user_is_changed_for_good(atoll: CommandLine) -> None:
    ask = ["sh", "-c", "grep -E '^(Uid|Gid|Groups|CapEff)' /proc/self/status | tr -s '\\t ' ' '; echo $HOME"]
    with leaves_nothing(atoll):
        for user, uid, gid, groups in (("65534", 65534, 65534, "65534"), ("1234:5", 1234, 5, "5"), ("77777", 77777, 77777, "77777")):
            status = atoll.says("run", "--network", "web", "-u", user, "--", *ask).splitlines()
            assert status[:3] == [f"Uid: {' '.join([str(uid)] * 4)}", f"Gid: {' '.join([str(gid)] * 4)}", f"Groups: {groups} "]
            assert status[3] == "CapEff: 0000000000000000"
        for user, word in (("no-such-user", "no user 'no-such-user'"), ("0:no-such-group", "no group 'no-such-group'")):
            assert word in atoll.fails(3, "run", "-u", user, "true")


# --- the network ---------------------------------------------------------------------------------------------------------------------


def hello(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        return sock.recv(100)


def test_a_published_port_is_reached_and_is_free_again_as_soon_as_the_program_has_ended(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        arguments = ["--network", "web:ip=10.9.2.7,alias=shop,mac=02:00:00:00:00:07", "--name", "r1", "-p", "8080:80", "-l", "tier=front"]
        with started(atoll, *arguments, "python3", "-c", SERVE) as process:
            assert hello(8080) == b"hello"
            shown = atoll.daemon.call("GET", "/v1/namespaces/r1")
            assert (shown["pid"], shown["command"][0], shown["labels"]) == (process.pid, "python3", {"tier": "front"})
            (end,) = shown["endpoints"]
            assert (end["addresses"], end["aliases"], end["mac"]) == (["10.9.2.7/24"], ["shop"], "02:00:00:00:00:07")
            run = atoll.daemon.call("GET", "/v1/runs/r1")
            assert (run["state"], run["endpoints"], run["detached"]) == ("running", [end], False)
            assert "r1    python3 -c " in atoll.says("ps")
            assert atoll.says("ns", "exec", "r1", "--", "hostname", "-I").strip() == "10.9.2.7"
            assert "atoll stop r1" in atoll.fails(4, "ns", "rm", "r1")
            assert "atoll stop r1" in atoll.fails(4, "run", "--name", "r1", "--network", "web", "true")
            assert "atoll stop r1" in atoll.fails(4, "ns", "create", "r1")
            assert "foreground" in atoll.fails(4, "wait", "r1")
            assert "foreground" in atoll.fails(4, "logs", "r1")
            process.kill()
            process.wait()
        # At once, not at the watcher's next look: it is told.
        assert eventually(lambda: atoll.daemon.view()["namespaces"] == {}, "it is released")
        with started(atoll, *arguments, "python3", "-c", SERVE):
            assert hello(8080) == b"hello"


def test_sharing_is_as_docker_means_it(atoll: CommandLine) -> None:
    with leaves_nothing(atoll), contextlib.ExitStack() as shared:
        process = shared.enter_context(started(atoll, "--network", "web", "--name", "r1", "python3", "-c", SERVE))
        inside = os.readlink(f"/proc/{process.pid}/ns/net")
        for word in ("ns:r1", "container:r1"):
            assert atoll.says("run", "--network", word, "readlink", "/proc/self/ns/net").strip() == inside
        shared.enter_context(started(atoll, "--network", "ns:r1", "--name", "beside", "sh", "-c", "echo ready; exec cat"))
        assert [(run["name"], run["namespace"]) for run in atoll.shows("ps")] == [("r1", "r1"), ("beside", "r1")]
        assert re.search(r"beside +sh .* ns:r1 ", atoll.says("ps"))
        host = os.readlink("/proc/thread-self/ns/net")
        assert atoll.says("run", "--network", "host", "readlink", "/proc/self/ns/net").strip() == host
        assert atoll.says("run", "--network", "none", "ls", "/sys/class/net").strip() == "lo"
    assert "no namespace named nothing" in atoll.fails(3, "run", "--network", "ns:nothing", "true")


def test_names_are_known_inside(atoll: CommandLine) -> None:
    """As files for the program's own name and as DNS for its neighbours'."""
    with leaves_nothing(atoll), started(atoll, "--network", "web:ip=10.9.2.7,alias=shop", "--name", "r1", "python3", "-c", SERVE):
        for name in ("r1", "shop", "r1.web.atoll"):
            assert atoll.says("run", "--network", "web", "getent", "ahostsv4", name).split()[0] == "10.9.2.7"
        assert "r2.web.atoll r2" in atoll.says("run", "--network", "web", "--name", "r2", "cat", "/etc/hosts")
        assert "nameserver 10.9.2.1\n" in atoll.says("run", "--network", "web", "cat", "/etc/resolv.conf")
        assert "nameserver 192.0.2.53\n" in atoll.says("run", "--network", "none", "--dns", "192.0.2.53", "cat", "/etc/resolv.conf")
    assert "not an IP address" in atoll.fails(2, "run", "--dns", "nobody", "true")


def test_an_ended_run_is_remembered_when_its_name_is_wanted_in_vain(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        atoll.says("run", "-d", "--name", "r1", "--network", "web", "sh", "-c", "echo once; exit 4")
        assert atoll.says("wait", "r1") == "4\n"
        atoll.fails(2, "run", "--name", "r1", "--network", "web", "--ip", "10.8.0.1", "true")
        assert atoll.says("wait", "r1") == "4\n"
        assert atoll.says("logs", "r1") == "once\n"
        atoll.says("ps", "--prune")


def test_a_log_goes_when_its_name_is_that_of_a_foreground_run(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        atoll.says("run", "-d", "--name", "r1", "--network", "web", "echo", "once")
        assert atoll.says("wait", "r1") == "0\n"
        atoll.says("run", "--name", "r1", "--network", "web", "true")
        assert os.listdir(atoll.daemon.run / "logs") == []


def test_several_networks_and_the_default_one(atoll: CommandLine) -> None:
    atoll.says("network", "create", "back", "--subnet", "10.9.3.0/24", "--internal")
    networks = ["--network", "back", "--network", "name=web,ip=10.9.2.9"]
    with leaves_nothing(atoll), started(atoll, *networks, "-p", "8080:80", "python3", "-c", SERVE):
        # The ports went where they can be published.
        assert hello(8080) == b"hello"
        (shown,) = atoll.shows("ps")
        assert [(end["network"], end["ports"]) for end in shown["endpoints"]] == [("back", []), ("web", ["8080:80/tcp"])]
    atoll.says("run", "true")
    assert "default" in atoll.says("network", "ls", "-q").split()
    assert "publish from a network that isn't" in atoll.fails(2, "run", "--network", "back", "-p", "8080:80", "true")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--network", "none", "-p", "8080:80"], 2, "no address, alias or port"),
        (["--network", "host", "-p", "8080:80"], 2, "-p means nothing"),
        (["--network", "host", "--network", "web"], 2, "goes with no other"),
        (["--network", "none", "--network", "web"], 2, "goes with no other"),
        (["--network", "web", "--network", "db", "--ip", "10.9.2.5"], 2, "NAME:ip=IP"),
        (["--network", "ns:r1", "--hostname", "x"], 2, "--hostname means nothing"),
        (["--network", "ns:"], 2, "names no namespace"),
        (["--network", "web:ip"], 2, "unknown"),
        (["--network", "web:colour=red"], 2, "unknown"),
        (["--network", "nowhere"], 3, "no network named nowhere"),
        (["--network", "web", "-p", "8080"], 2, "not a port to publish"),
        (["--network", "web", "--ip", "10.8.0.1"], 2, "not in a subnet"),
        (["-d", "-t"], 2, "no terminal"),
        (["-e", "=x"], 2, "not a variable"),
        (["--env-file", "/no/such"], 2, "No such file"),
        (["--name", "../x"], 2, "not a namespace name"),
        (["--hostname", "x" * 65], 2, "not a host name"),
        (["--hostname", "\udcff"], 2, "not a host name"),
        (["--name", "\udcff"], 2, "not as expected"),
        (["--network", "web", "-w", "\udcff"], 126, "No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(atoll: CommandLine, arguments: list[str], code: int, words: str) -> None:
    with leaves_nothing(atoll):
        for detach in ([], ["-d"]):
            assert words in atoll.fails(code, "run", *detach, *arguments, "--", "true")


def test_a_failure_takes_back_the_default_network_that_was_made_for_it(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        atoll.fails(2, "run", "--ip", "1.2.3.4", "true")


def test_a_dry_run_prints_what_would_be_done_and_does_nothing(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        first = atoll.says("run", "--dry-run", "--name", "r1", "--network", "web", "--network", "default", "-p", "8080:80", "--", "true")
        for command in ("ip netns add r1", "172.16.0.1/24", "10.9.2.2/24 dev eth0", "172.16.0.2/24 dev eth1", "tcp . 8080 : 10.9.2.2 . 80"):
            assert command in first
        assert atoll.says("run", "--dry-run", "--network", "host", "true") == ""
        assert "10.9.2.2/24 dev eth0" in atoll.says("run", "--dry-run", "--network", "web", "true")


# --- detached ------------------------------------------------------------------------------------------------------------------------


def test_a_detached_program_goes_on_is_looked_at_stopped_and_remembered(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        serve = ["python3", "-c", SERVE]
        assert atoll.says("run", "-d", "--name", "r1", "--network", "web", "-p", "8080:80", *serve) == "r1\n"
        eventually(lambda: "ready" in atoll.says("logs", "r1"), "it is ready")
        assert hello(8080) == b"hello"
        run = atoll.daemon.call("GET", "/v1/runs/r1")
        assert os.getsid(run["pid"]) == run["pid"]
        assert os.stat(atoll.daemon.run / "logs" / "r1.log").st_mode & 0o777 == 0o600
        assert re.search(r"r1 +python3 -c .* up \d+s +web +10\.9\.2\.\d+ +8080:80/tcp\n", atoll.says("ps"))
        assert atoll.says("stop", "r1") == "r1\n"
        assert atoll.says("ps", "-q") == ""
        assert atoll.says("ps", "-a", "-q") == "r1\n"
        assert re.search(r"exited \(143\) \d+s ago", atoll.says("ps", "-a"))
        assert atoll.says("wait", "r1") == "143\n"
        assert atoll.says("logs", "r1") == "ready\n"
        # It holds nothing: not the port, nor the name.
        assert atoll.says("ns", "ls", "-q") == ""
        assert (
            atoll.says("run", "-d", "--name", "r1", "--network", "web", "-p", "8080:80", "sh", "-c", "echo a; echo b; echo c; exit 5")
            == "r1\n"
        )
        assert atoll.says("wait", "r1") == "5\n"
        assert atoll.says("logs", "r1") == "a\nb\nc\n"
        assert [atoll.says("logs", "--tail", n, "r1") for n in ("0", "2", "9")] == ["", "b\nc\n", "a\nb\nc\n"]
        assert atoll.says("stop", "r1") == "r1\n"
        assert atoll.says("ps", "--prune") == "r1\n"
        assert os.listdir(atoll.daemon.run / "logs") == []
        assert "no run named r1" in atoll.fails(3, "logs", "r1")


def test_a_log_is_followed_to_its_end(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        atoll.says("run", "-d", "--name", "r1", "--network", "web", "sh", "-c", "echo one; read line <&-; sleep 0.5; echo two >&2")
        assert atoll.says("logs", "-f", "r1").splitlines()[-1] == "two"
        assert atoll.says("wait", "r1") == "0\n"
        atoll.says("ps", "--prune")


def test_a_program_that_can_not_begin_is_an_error_and_leaves_nothing(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        assert "no command 'no-such-program'" in atoll.fails(127, "run", "-d", "--network", "web", "--", "no-such-program")
        assert "can't be run" in atoll.fails(126, "run", "-d", "--network", "web", "--", "/etc")


def test_closed_standard_descriptors_are_no_obstacle(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        for closed in ("<&-", "<&- >&-", "<&- >&- 2>&-"):
            command = f"{ATOLL} run --network web -d --name r1 -- sh -c 'cat; echo end' {closed}"
            done = subprocess.run(["sh", "-c", command], env=atoll.daemon.environment, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout, done.stderr) == (0, "" if ">&-" in closed else "r1\n", "")
            assert atoll.says("wait", "r1") == "0\n"
            assert atoll.says("logs", "r1") == "end\n"  # its input is empty, not a closed one
            command = f"{ATOLL} run --network web -- sh -c 'exit 3' {closed}"
            assert subprocess.run(["sh", "-c", command], env=atoll.daemon.environment, check=False).returncode == 3
        atoll.says("ps", "--prune")


def test_of_runs_that_want_one_name_and_one_port_at_once_each_is_had_by_one(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        for same in (["--name", "r1"], ["-p", "8080:80"]):
            arguments = ["run", "-d", "--network", "web", *same, "sleep", "1000"]
            several = [atoll.popen(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
            said = [process.communicate(timeout=60) for process in several]
            assert sorted(process.returncode for process in several) == [0, 4, 4, 4, 4, 4], said
            (name,) = atoll.says("ps", "-q").splitlines()
            assert f"{name}\n" in [out for out, _ in said]
            atoll.says("stop", name)
        atoll.says("ps", "--prune")


def test_stop_kills_what_does_not_end_by_itself_and_nothing_else(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        atoll.says("run", "-d", "--name", "deaf", "--network", "web", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
        eventually(lambda: atoll.says("logs", "deaf") == "ready\n", "it is ready")
        assert atoll.says("stop", "-t", "0.3", "deaf") == "deaf\n"
        assert atoll.says("wait", "deaf") == "137\n"
        assert "no run named nothing" in atoll.fails(3, "stop", "nothing")
        atoll.says("ps", "--prune")


def test_an_exit_code_that_nobody_could_tell_is_unknown_and_all_is_released(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        atoll.says("run", "-d", "--name", "r1", "--network", "web", "cat", "/dev/zero")
        run = atoll.daemon.call("GET", "/v1/runs/r1")
        os.kill(run["shepherd"], signal.SIGKILL)
        with open_pidfd(run["pid"]) as holder:
            signal.pidfd_send_signal(holder, signal.SIGKILL)
        eventually(lambda: atoll.daemon.view()["namespaces"] == {}, "it is released")
        assert "(unknown)" in atoll.says("ps", "-a")
        assert "unknown" in atoll.fails(1, "wait", "r1")
        atoll.says("ps", "--prune")


def test_numbers_that_mean_nothing_are_refused(atoll: CommandLine) -> None:
    """What `atoll wait` and `atoll stop` of others would stumble over."""
    atoll.says("network", "ls")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        body = {"name": "r1", "share": "host", "detached": True, "pid": process.pid}
        for shepherd in (-1, 2**70):
            assert atoll.daemon.send("POST", "/v1/runs", body | {"shepherd": shepherd}).status == 400
        atoll.daemon.call("POST", "/v1/runs", body)
        process.kill()
        process.wait()
        for code in (-1, 256, 2**70):
            assert atoll.daemon.send("POST", "/v1/runs/r1/exit", {"pid": process.pid, "code": code}).status == 400
        assert atoll.daemon.call("POST", "/v1/runs/r1/exit", {"pid": process.pid, "code": 255})["exit_code"] == 255


def test_at_most_a_hundred_ended_runs_are_remembered(atoll: CommandLine) -> None:
    atoll.says("network", "ls")
    for number in range(103):
        body = {"name": f"r{number}", "share": "host", "detached": True}
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            atoll.daemon.call("POST", "/v1/runs", body | {"pid": process.pid})
            process.kill()
        eventually(lambda: atoll.daemon.call("GET", "/v1/runs")[-1]["state"] == "ended", "it is seen to have ended")
    assert [run["name"] for run in atoll.daemon.call("GET", "/v1/runs")] == [f"r{number}" for number in range(3, 103)]


def test_a_namespace_stays_while_a_program_runs_in_it(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        atoll.says("ns", "create", "shared")
        atoll.says("run", "-d", "--name", "guest", "--network", "ns:shared", "--", "sleep", "1000")
        assert atoll.fails(4, "ns", "rm", "shared") == "guest runs in namespace shared; atoll stop guest"
        atoll.says("stop", "guest")
        atoll.says("ns", "rm", "shared")
        atoll.says("ps", "--prune")


def test_what_dockers_users_type_is_understood_or_answered(atoll: CommandLine) -> None:
    with leaves_nothing(atoll):
        atoll.says("ns", "create", "neighbour")
        assert atoll.says("ns", "exec", "-it", "neighbour", "--", "echo", "here") == "here\n"
        assert "no command 'nosuch'" in atoll.fails(127, "ns", "exec", "neighbour", "--", "nosuch")
        assert "can't be run" in atoll.fails(126, "ns", "exec", "neighbour", "--", "/etc")
        assert "atoll ns exec" in atoll.fails(2, "exec", "neighbour", "ls")
        assert "atoll up" in atoll.fails(2, "compose", "up")
        assert "--network web is given twice" in atoll.fails(2, "run", "--network", "web", "--network", "web", "--", "true")
        atoll.says("ns", "rm", "neighbour")
