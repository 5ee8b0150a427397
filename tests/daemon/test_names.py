"""Names as the daemon and the command line have them: resolvers in namespaces, files, and a name server that comes back."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any

from atoll import Engine
from atoll.engine.files import ETC_NETNS, Files
from tests.daemon.processes import PATIENCE, CommandLine, etc, open_pidfd, user

if TYPE_CHECKING:
    from pathlib import Path


def make(atoll: CommandLine) -> None:
    """Networks web and db; r1 on web, r2 on both."""
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24", "--subnet", "fd09:2::/64")
    atoll.says("network", "create", "db", "--subnet", "10.9.3.0/24", "--internal")
    atoll.says("ns", "create", "r1", "r2")
    atoll.says("connect", "web", "r1", "--ip", "10.9.2.11", "--ip", "fd09:2::11", "--alias", "www", "-p", "8080:80")
    atoll.says("connect", "web", "r2", "--ip", "10.9.2.12", "--ip", "fd09:2::12")
    atoll.says("connect", "db", "r2", "--ip", "10.9.3.12")


def resolved(atoll: CommandLine, namespace: str, *names: str) -> dict[str, list[str]]:
    """What getaddrinfo says in a namespace."""
    script = (
        "import json, socket, sys\n"
        "def ask(name):\n"
        "    try:\n"
        "        return sorted({found[4][0] for found in socket.getaddrinfo(name, None)})\n"
        "    except socket.gaierror:\n"
        "        return []\n"
        "print(json.dumps({name: ask(name) for name in sys.argv[1:]}))"
    )
    found: dict[str, list[str]] = json.loads(atoll.says("ns", "exec", namespace, "--", "python3", "-c", script, *names))
    return found


def test_programs_in_a_namespace_find_each_other_by_name(atoll: CommandLine) -> None:
    make(atoll)
    both = ["10.9.2.11", "fd09:2::11"]
    names = ["r1", "R1.Web", "r1.web.atoll", "www"]
    found = resolved(atoll, "r2", *names)
    assert [found[name] for name in names] == [both] * 4
    found = resolved(atoll, "r1", "r2.web", "r2.db.atoll", "r1", "localhost")
    assert "127.0.0.1" in found.pop("localhost")
    assert found == {"r2.web": ["10.9.2.12", "fd09:2::12"], "r2.db.atoll": [], "r1": both}


def test_a_process_that_runs_sees_names_come_and_go(atoll: CommandLine) -> None:
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24")
    atoll.says("ns", "create", "r1", "r2")
    atoll.says("connect", "web", "r2", "--ip", "10.9.2.12")
    # The shell runs before its namespace is on any network.
    with atoll.popen("ns", "exec", "r1", "--", "sh", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None

        def says(command: str) -> str:
            shell.stdin.write(f"{command}; echo\n")  # type: ignore[union-attr]
            shell.stdin.flush()  # type: ignore[union-attr]
            return str(shell.stdout.readline()).strip()  # type: ignore[union-attr]

        assert says("true") == ""
        atoll.says("connect", "web", "r1")
        assert says("getent hosts r2 | tr -s ' \\n' ' '") == "10.9.2.12 r2"
        atoll.says("ns", "rm", "r2")
        assert says("getent hosts r2.web.atoll || printf gone") == "gone"
        shell.stdin.close()


def test_a_name_server_that_was_killed_is_back_within_a_moment_and_an_event_says_so(atoll: CommandLine) -> None:
    make(atoll)
    with atoll.popen("events", "--follow", "--format", "json", stdout=subprocess.PIPE) as events:
        assert events.stdout is not None
        while json.loads(events.stdout.readline())["event"] != "endpoint.connect":
            pass
        killed = atoll.shows("status")["dns"]["process"]
        with open_pidfd(killed) as pidfd:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        while (event := json.loads(events.stdout.readline()))["event"] != "dns.restart":
            pass
        assert resolved(atoll, "r2", "r1") == {"r1": ["10.9.2.11", "fd09:2::11"]}
        found = atoll.shows("status")
        assert found["dns"]["process"] == event["pid"] != killed
        assert found["problems"] == []
        events.terminate()


def test_the_name_server_ends_with_its_daemon_however_that_ends(atoll: CommandLine) -> None:
    make(atoll)
    for number in (signal.SIGKILL, signal.SIGTERM):
        found = atoll.shows("status")
        with open_pidfd(found["dns"]["process"]) as server, open_pidfd(found["pid"]) as daemon:
            signal.pidfd_send_signal(daemon, number)
            assert select.select([server], [], [], PATIENCE)[0]
        # The next daemon, which this starts, knows everything.
        assert resolved(atoll, "r2", "r1") == {"r1": ["10.9.2.11", "fd09:2::11"]}


def test_a_port_that_is_taken_is_a_problem_that_status_and_doctor_name(atoll: CommandLine) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 53))
        make(atoll)
        (problem, _) = atoll.shows("status")["problems"]
        assert problem["what"].startswith("can't listen on 10.9.")
        assert "in use" in problem["what"]
        assert "problem: can't listen on 10.9.2.1" in atoll.says("doctor")


def test_lookup_asks_as_the_host_or_as_a_namespace(atoll: CommandLine) -> None:
    assert "no network has names" in atoll.fails(3, "dns", "lookup", "r1.web.atoll")
    make(atoll)
    assert atoll.says("dns", "lookup", "r1.web.atoll") == "10.9.2.11\nfd09:2::11\n"
    assert atoll.says("dns", "lookup", "r2", "--from", "r1") == "10.9.2.12\nfd09:2::12\n"
    assert atoll.says("dns", "lookup", "10.9.3.12") == "r2.db.atoll.\n"
    assert atoll.says("dns", "lookup", "fd09:2::11", "--from", "r2", "--server", "fd09:2::1") == "r1.web.atoll.\n"
    assert atoll.shows("dns", "lookup", "_80._tcp.r1", "--type", "srv", "--from", "r2") == [
        {"name": "_80._tcp.r1.", "type": "SRV", "ttl": 0, "data": "0 1 80 r1.web.atoll."}
    ]
    for code, words in (
        (3, ["r2.db.atoll", "--from", "r1"]),
        (3, ["r1.web.atoll", "--type", "MX"]),
        (5, ["www.example"]),
        (2, ["r1.web.atoll", "--type", "WHAT"]),
        (2, ["a..b"]),
        (3, ["r1", "--from", "nobody"]),
        (2, ["r1", "--server", "nobody.example"]),
    ):
        atoll.fails(code, "dns", "lookup", *words)


def test_status_says_what_is_served_where(atoll: CommandLine) -> None:
    assert atoll.says("dns", "status") == "no name server runs; no network has names\nNETWORK  DOMAIN  AT  SERVERS\n"
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24", "--dns", "192.0.2.53", "--dns", "192.0.2.54")
    atoll.says("network", "create", "mute", "--subnet", "10.9.3.0/24", "--no-dns")
    first, *table = atoll.says("dns", "status").splitlines()
    assert first.endswith("0 questions by UDP, 0 by TCP, 0 forwarded")
    assert table == ["NETWORK  DOMAIN     AT        SERVERS", "web      web.atoll  10.9.2.1  192.0.2.53, 192.0.2.54"]
    atoll.fails(2, "network", "create", "n", "--no-dns", "--dns", "192.0.2.53")
    atoll.fails(2, "ns", "create", "n", "--dns", "nobody")


def test_files_are_in_the_run_folder_and_nowhere_else(atoll: CommandLine) -> None:
    before = os.path.lexists("/etc/netns")
    make(atoll)
    folder = atoll.daemon.run / "netns"
    assert sorted(os.listdir(folder)) == ["r1", "r2"]
    assert json.loads(atoll.says("ns", "inspect", "r1"))[0]["files"] == {
        "/etc/resolv.conf": str(folder / "r1" / "resolv.conf"),
        "/etc/hosts": str(folder / "r1" / "hosts"),
    }
    assert os.path.lexists("/etc/netns") == before, "a private host must leave the machine's /etc alone"
    atoll.says("ns", "rm", "r1", "r2")
    assert os.listdir(folder) == []


def test_what_etc_netns_has_for_others_is_left_out(atoll: CommandLine, tmp_path: Path) -> None:
    """The link of the machine's own Atoll for a namespace of the same name, and a folder where a file should be."""
    machines = tmp_path / "machine" / "netns" / "r1"
    machines.mkdir(parents=True)
    (machines / "hosts").write_text("192.0.2.1 r1\n")
    with etc(tmp_path) as copy:
        (copy / "netns" / "r2" / "hosts").mkdir(parents=True)
        (copy / "netns" / "r1").symlink_to(machines)
        make(atoll)
        for name in ("r1", "r2"):
            assert f"{name}.web.atoll {name}\n" in atoll.says("ns", "exec", name, "cat", "/etc/hosts")


def test_ip_netns_exec_has_the_files_but_for_those_that_the_user_keeps(host: None, tmp_path: Path) -> None:
    with etc(tmp_path), Engine.open(dns=True, files=Files(tmp_path / "files", ETC_NETNS)) as engine:
        (ETC_NETNS / "r3").mkdir(parents=True)
        (ETC_NETNS / "r3" / "resolv.conf").write_text("# mine\n")
        engine.create_network("web", subnets=["10.9.2.0/24"])
        for name in ("r1", "r2", "r3"):
            engine.create_namespace(name)
            engine.connect("web", name)
        assert in_netns("r2", "getent", "ahostsv4", "r1").startswith("10.9.2.2 ")
        assert in_netns("r3", "cat", "/etc/resolv.conf") == "# mine\n"
        for name in ("r1", "r2", "r3"):
            engine.remove_namespace(name)
        assert os.listdir(ETC_NETNS) == ["r3"]
        assert os.listdir(ETC_NETNS / "r3") == ["resolv.conf"]


def test_a_change_of_the_hosts_own_files_reaches_namespaces_that_have_a_copy(host: None, tmp_path: Path) -> None:
    with etc(tmp_path) as folder, Engine.open(dns=True, files=Files(tmp_path / "files")) as engine:
        engine.create_network("web", subnets=["10.9.2.0/24"])
        for name in ("r1", "r2"):
            engine.create_namespace(name)
        engine.connect("web", "r1")
        before = (tmp_path / "files/r1/resolv.conf").read_text()
        (folder / "resolv.conf").write_text("nameserver 192.0.2.53\n")
        (folder / "hosts").write_text("192.0.2.9 printer\n")
        engine.refresh_files()
        assert (tmp_path / "files/r2/resolv.conf").read_text() == "nameserver 192.0.2.53\n"
        assert (tmp_path / "files/r1/resolv.conf").read_text() == before
        for name in ("r1", "r2"):
            assert (tmp_path / f"files/{name}/hosts").read_text().endswith("::1\tlocalhost ip6-localhost ip6-loopback\n192.0.2.9 printer\n")


def test_files_that_cannot_be_written_stop_nothing_and_are_told_of(host: None, tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way\n")
    with Engine.open(dns=True, files=Files(tmp_path / "files")) as engine:
        events: list[tuple[str, dict[str, Any]]] = []
        engine.listener = lambda kind, fields: events.append((kind, fields))
        engine.create_namespace("r1")
        assert [kind for kind, _ in events] == ["files.fail", "namespace.create"]
        assert events[0][1]["namespace"] == "r1"
        engine.remove_namespace("r1")
    assert (tmp_path / "files").read_text() == "in the way\n"


def in_netns(name: str, *command: str) -> str:
    return subprocess.run(["ip", "netns", "exec", name, *command], capture_output=True, text=True, check=True).stdout


def test_what_a_daemon_that_was_killed_left_goes_when_the_next_one_starts(atoll: CommandLine, tmp_path: Path) -> None:
    make(atoll)
    folder = atoll.daemon.run / "netns"
    (folder / "stray").mkdir()
    (folder / "stray" / "hosts").write_text("old")
    (folder / "r1" / "resolv.conf").write_text("damaged")
    with open_pidfd(atoll.serving()) as pidfd:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], PATIENCE)[0]
    atoll.says("status")
    assert sorted(os.listdir(folder)) == ["r1", "r2"]
    assert "nameserver 10.9.2.1\n" in (folder / "r1" / "resolv.conf").read_text()


def test_an_adopted_namespace_has_files_if_asked_for(atoll: CommandLine) -> None:
    make(atoll)
    with subprocess.Popen(["unshare", "-n", "-m", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        atoll.says("ns", "adopt", "p1", "--pid", str(process.pid), "--dns")
        atoll.says("connect", "web", "p1", "--ip", "10.9.2.21")
        assert resolved(atoll, "p1", "www") == {"www": ["10.9.2.11", "fd09:2::11"]}
        assert resolved(atoll, "r1", "p1.web")["p1.web"][0] == "10.9.2.21"
        process.kill()


def test_an_ordinary_user_has_names_too(host: None) -> None:
    with user() as someone:
        make(someone)
        assert resolved_by(someone, "r2", "r1") == ["10.9.2.11", "fd09:2::11"]
        assert someone.says("dns", "lookup", "r2.db.atoll") == "10.9.3.12\n"


def resolved_by(someone: Any, namespace: str, name: str) -> list[str]:
    return sorted({line.split()[0] for line in someone.says("ns", "exec", namespace, "--", "getent", "ahosts", name).splitlines()})


def test_the_hosts_resolver_is_told_by_one_file(atoll: CommandLine) -> None:
    make(atoll)
    assert atoll.says("dns", "install", "--print") == (
        "# /etc/systemd/resolved.conf.d/atoll.conf\n# Written by atoll dns install; atoll dns uninstall takes it away.\n"
        "[Resolve]\nDNS=10.9.3.1\nDomains=~atoll\n"
    )
