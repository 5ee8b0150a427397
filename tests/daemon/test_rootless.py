"""An ordinary user, without any privilege, on a private host of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.daemon.processes import NOBODY, CommandLine, User, eventually, kernel, user
from tests.kernel.kernel_state import differences

#: Sends what it is told to an address and port, and prints the answer.
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as sock:
    sock.sendall(b"hello")
    print(sock.recv(100).decode(), end="")
"""
#: Serves one connection; says so as soon as it can.
SERVE = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    print("ready", flush=True)
    sock, peer = server.accept()
    sock.sendall(sock.recv(100) + b" from " + peer[0].encode())
"""
NOTHING: dict[str, Any] = {"networks": {}, "namespaces": {}}


def says(who: CommandLine, *arguments: str) -> str:
    done = who(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def serve(who: User, namespace: str, port: int) -> subprocess.Popen[str]:
    """A server of the user's in one of the user's namespaces."""
    process = who.popen("ns", "exec", namespace, "--", who.python, "-c", SERVE, str(port), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_an_ordinary_user_has_networks_namespaces_and_ports_and_touches_nothing_else(host: None) -> None:
    with user() as someone:
        before = kernel(NOTHING)
        mounts = Path("/proc/self/mountinfo").read_text()
        assert says(someone, "network", "create", "web", "--subnet", "10.9.2.0/24", "--subnet", "fd09:2::/64") == "web\n"
        assert says(someone, "network", "create", "db", "--subnet", "10.9.3.0/24", "--egress-rate", "1gbit") == "db\n"
        assert says(someone, "ns", "create", "r1", "r2", "r3") == "r1\nr2\nr3\n"
        says(someone, "connect", "web", "r1", "-p", "8080:80")
        says(someone, "connect", "web", "r2")
        says(someone, "connect", "db", "r3", "-p", "9090:90")
        # Neighbours reach each other, by both families; another network is out of reach.
        assert " 0% packet loss" in says(someone, "ns", "exec", "r1", "--", "ping", "-c1", "-W10", "-q", "10.9.2.3")
        assert " 0% packet loss" in says(someone, "ns", "exec", "r2", "--", "ping", "-c1", "-W10", "-q", "fd09:2::2")
        assert someone("ns", "exec", "r3", "--", "ping", "-c1", "-W1", "-q", "10.9.2.2").returncode == 1
        # A published port, from another network and from a neighbour by the host's address.
        for client, address, source in (("r3", "10.9.3.1", "10.9.3.2"), ("r2", "10.9.2.1", "10.9.2.1")):
            with serve(someone, "r1", 80) as server:
                answer = says(someone, "ns", "exec", client, "--", someone.python, "-c", ASK, address, "8080")
                assert answer == f"hello from {source}"
                assert server.wait() == 0
        assert says(someone, "doctor") == "all is as it should be\n"
        assert re.match(r"atoll \S+, daemon \d+, up \d+s, manages a private host of your own\n", says(someone, "status"))
        # Inside, a user is root of that host, and still nobody on the machine.
        assert says(someone, "ns", "exec", "r1", "--", "id", "-u") == "0\n"
        secret = someone.folder / "secret"
        secret.write_text("not for others")
        secret.chmod(0o600)
        assert someone("ns", "exec", "r1", "--", "cat", str(secret)).returncode == 1

        assert os.stat(f"/proc/{someone.serving()}").st_uid == NOBODY
        wrong = differences(before, kernel(NOTHING))
        assert not wrong, "\n".join(wrong)
        assert os.listdir("/run/netns") == []
        assert Path("/proc/self/mountinfo").read_text() == mounts
        assert says(someone, "daemon", "stop") == "stopped\n"


def test_a_private_host_is_made_anew_from_the_state(host: None) -> None:
    """It ends with its daemon; networks are there again afterwards, and what was in its namespaces has gone with them."""
    with user() as someone:
        says(someone, "network", "create", "web", "--subnet", "10.9.2.0/24")
        says(someone, "ns", "create", "r1")
        says(someone, "connect", "web", "r1", "-p", "8080:80")
        says(someone, "daemon", "stop")
        assert says(someone, "network", "ls", "-q") == "host\nnone\nweb\n"
        assert says(someone, "ns", "ls", "-q") == ""
        assert says(someone, "doctor") == "all is as it should be\n"
        says(someone, "ns", "create", "r1")
        says(someone, "connect", "web", "r1", "--ip", "10.9.2.2", "-p", "8080:80")


def test_users_are_apart(host: None) -> None:
    with user() as one, user(uid=NOBODY - 1, gid=NOBODY - 1) as other:
        for who in (one, other):
            says(who, "network", "create", "web", "--subnet", "10.9.2.0/24")
            says(who, "ns", "create", "r1")
            says(who, "connect", "web", "r1", "-p", "8080:80")
        assert one.serving() != other.serving()
        done = one("ns", "ls", ATOLL_RUN=str(other.daemon.run), ATOLL_STATE=str(other.daemon.state))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)


#: Run in a new user namespace; goes on when its users have been mapped, and may make no further one then. The shell in between is for
#: the capabilities, which a program has only if it was root when it began.
WITHOUT = """
read line
exec sh -ec 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@" </dev/null' sh "$@"
"""


def test_a_kernel_without_user_namespaces_is_an_error_of_its_own(host: None) -> None:
    """Exit code 6. The limit is that of a user namespace of the test's own; the machine's stays as it is."""
    with user() as someone:
        for arguments in (("daemon", "run"), ("network", "ls")):
            command = ["unshare", "--user", "sh", "-ec", WITHOUT, "sh", *someone.become, *someone.command(*arguments)]
            own = os.stat("/proc/self/ns/user").st_ino
            with subprocess.Popen(
                command, env=someone.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as process:
                proc = Path(f"/proc/{process.pid}")
                eventually(lambda: os.stat(proc / "ns/user").st_ino != own, "it has a user namespace")  # noqa: B023
                for name in ("uid_map", "gid_map"):
                    (proc / name).write_text("0 0 65536")
                out, error = process.communicate("\n")
            assert (process.returncode, out, error.count("\n")) == (6, "", 1), error
            assert "max_user_namespaces" in error


def test_a_folder_in_tmp_that_another_user_made_is_not_used() -> None:
    """Its owner could put another daemon's socket there."""
    uid = 61234
    with user(uid, uid) as someone:
        del someone.environment["XDG_RUNTIME_DIR"]
        planted = Path(f"/tmp/atoll-{uid}")
        planted.mkdir()
        try:
            planted.chmod(0o777)
            for command in (["network", "ls"], ["run", "true"]):
                done = someone(*command)
                assert (done.returncode, done.stdout) == (5, ""), done
                assert "belongs to another user; " in done.stderr
            assert os.listdir(planted) == []
        finally:
            shutil.rmtree(planted)
