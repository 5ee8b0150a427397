"""`atoll run` by an ordinary user, on a private host of their own."""

from __future__ import annotations

import os
import signal
import subprocess

from tests.daemon.processes import NOBODY, User, eventually, user
from tests.daemon.test_rootless import ASK, SERVE, says


def runs(who: User) -> str:
    return says(who, "ps", "-q")


def test_an_ordinary_user_runs_programs_on_the_private_host(host: None) -> None:
    with user() as someone:
        assert someone("run", "--", "sh", "-c", "exit 3").returncode == 3
        assert says(someone, "run", "--name", "shop", "--", "sh", "-c", "id -u; hostname; ls /sys/class/net") == "0\nshop\neth0\nlo\n"
        assert someone("run", "--", "no-such-program").returncode == 127
        # A published port, by a neighbour and by a program on the private host's own network.
        serve = [someone.python, "-c", SERVE, "80"]
        with someone.popen("run", "--name", "web", "-p", "8080:80", "--", *serve, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            assert os.stat(f"/proc/{server.pid}").st_uid == NOBODY
            assert says(someone, "run", "--network", "host", "--", someone.python, "-c", ASK, "127.0.0.1", "8080").startswith("hello from ")
            assert server.wait() == 0
        eventually(lambda: runs(someone) == "", "it is released")
        assert says(someone, "ns", "ls", "-q") == ""
        assert says(someone, "doctor") == "all is as it should be\n"
        says(someone, "daemon", "stop")


def test_detached_and_signalled(host: None) -> None:
    with user() as someone:
        assert (
            says(someone, "run", "-d", "--name", "r1", "-p", "8080:80", "--", "sh", "-c", "echo begun; exec cat /dev/zero >/dev/null")
            == "r1\n"
        )
        eventually(lambda: says(someone, "logs", "r1") == "begun\n", "it has begun")
        assert says(someone, "stop", "r1") == "r1\n"
        assert says(someone, "wait", "r1") == "143\n"
        with someone.popen("run", "--", "sh", "-c", "echo begun; exec cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait() == -signal.SIGTERM
        eventually(lambda: runs(someone) == "", "it is released")
        says(someone, "daemon", "stop")


def test_only_root_is_there_to_be(host: None) -> None:
    with user() as someone:
        assert says(someone, "run", "-u", "0", "--", "id", "-u") == "0\n"
        for who in (str(NOBODY), "1234", "0:5"):
            done = someone("run", "-u", who, "--", "id", "-u")
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
            assert "there is only root, which is you" in done.stderr
        says(someone, "daemon", "stop")
