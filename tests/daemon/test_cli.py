"""The command line as processes: what each command prints and ends with, and that nothing that is wrong does any harm."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.daemon.processes import ATOLL, CommandLine, Daemon, etc, eventually, kernel, open_pidfd, open_socket, send, user
from tests.kernel.kernel_state import State, differences

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG: Final = "x" * 300


def everything(atoll: CommandLine) -> tuple[dict[str, Any], State]:
    """All that there is, for the API and for the kernel."""
    view = atoll.daemon.view()
    return view, kernel(view)


def same(before: tuple[dict[str, Any], State], after: tuple[dict[str, Any], State]) -> None:
    assert after[0] == before[0]
    wrong = differences(before[1], after[1])
    assert not wrong, "\n".join(wrong)


@contextlib.contextmanager
def process_with_network() -> Iterator[int]:
    with subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


# --- what it does --------------------------------------------------------------------------------------------------------------------


def test_the_commands_tell_a_story(atoll: CommandLine) -> None:
    create = ["network", "create", "web", "--subnet", "10.9.2.0/24", "--gateway", "10.9.2.254", "--ip-range", "10.9.2.64/26"]
    assert atoll.says(*create, "--aux-address", "printer=10.9.2.65", "--mtu", "1400", "--label", "team=blue") == "web\n"
    assert atoll.says("network", "create", "db", "--subnet", "10.9.3.0/24", "--subnet", "fd09:3::/64", "--internal", "--no-icc") == "db\n"
    assert atoll.says("network", "ls") == (
        "NAME  DRIVER  SUBNETS                   GATEWAY              FLAGS             ENDPOINTS\n"
        "host  host    -                         -                    -                 0\n"
        "none  none    -                         -                    -                 0\n"
        "db    bridge  10.9.3.0/24, fd09:3::/64  10.9.3.1, fd09:3::1  internal, no-icc  0\n"
        "web   bridge  10.9.2.0/24               10.9.2.254           -                 0\n"
    )
    assert atoll.says("network", "ls", "-q") == "host\nnone\ndb\nweb\n"
    assert atoll.says("ns", "create", "r1", "r2", "--label", "tier=front") == "r1\nr2\n"

    endpoint = atoll.says("connect", "web", "r1", "-p", "8080:80", "--egress-rate", "10mbit", "--alias", "shop").strip()
    second = atoll.says("connect", "db", "r1", "--ip", "10.9.3.7", "--ifname", "back0", "--mac", "02:00:00:00:00:07").strip()
    shown, second_shown = json.loads(atoll.says("ns", "inspect", "r1"))[0]["endpoints"]
    assert (shown["id"], shown["addresses"], shown["interface"]) == (endpoint, ["10.9.2.64/24"], "eth0")
    assert (shown["ports"], shown["egress_rate"], shown["aliases"]) == (["8080:80/tcp"], 10_000_000, ["shop"])
    assert (second_shown["id"], second_shown["interface"], second_shown["mac"]) == (second, "back0", "02:00:00:00:00:07")
    assert second_shown["addresses"][0] == "10.9.3.7/24"
    ports = ["9000-9001:9000-9001/udp", "127.0.0.1:5353:53/tcp"]
    assert atoll.says("publish", "r1", *ports).splitlines() == ports
    assert re.fullmatch(
        r"NAME +SOURCE +NETWORKS +ADDRESSES +PORTS +AGE\n"
        r"r1 +created +web, db +10\.9\.2\.64, 10\.9\.3\.7, fd09:3::\S* "
        r"+8080:80/tcp, 9000-9001:9000-9001/udp, 127\.0\.0\.1:5353:53/tcp +\d+s\n"
        r"r2 +created +- +- +- +\d+s\n",
        atoll.says("ns", "ls"),
    )
    assert atoll.says("ns", "ls", "-q") == "r1\nr2\n"
    assert [network["name"] for network in json.loads(atoll.says("network", "inspect", "web", "db"))] == ["web", "db"]
    assert atoll.says("doctor") == "all is as it should be\n"
    assert re.match(r"atoll \S+, daemon \d+, up \d+s, manages ", atoll.says("status"))

    assert atoll.says("unpublish", "r1", "9000-9001:9000-9001/udp") == "9000-9001:9000-9001/udp\n"
    assert json.loads(atoll.says("ns", "inspect", "r1"))[0]["endpoints"][0]["ports"] == ["8080:80/tcp", "127.0.0.1:5353:53/tcp"]
    assert atoll.says("disconnect", "web", "r1") == f"{endpoint}\n"
    assert atoll.says("ns", "rm", "r1", "r2") == "r1\nr2\n"
    assert atoll.says("network", "rm", "web") == "web\n"
    assert atoll.says("network", "prune") == "db\n"
    kinds = [event["event"] for event in map(json.loads, atoll.says("events", "--format", "json").splitlines())]
    assert kinds == [
        *["network.create"] * 2,
        *["namespace.create"] * 2,
        *["endpoint.connect"] * 2,
        *["port.publish", "port.unpublish", "endpoint.disconnect"],
        *["namespace.remove"] * 2,
        *["network.remove"] * 2,
    ]
    assert atoll.says("daemon", "stop") == "stopped\n"


def test_a_namespace_is_adopted_and_goes_on_after_it_is_let_go(atoll: CommandLine) -> None:
    with process_with_network() as pid:
        assert atoll.says("ns", "adopt", "p1", "--pid", str(pid), "--label", "team=blue") == "p1\n"
        subprocess.run(["ip", "netns", "add", "lab1"], check=True)
        assert atoll.says("ns", "adopt", "lab1", "--path", "/run/netns/lab1") == "lab1\n"
        assert {item["name"]: item["source"] for item in atoll.shows("ns", "ls")} == {"p1": f"pid:{pid}", "lab1": "path:/run/netns/lab1"}
        assert atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24") == "web\n"
        for name in ("p1", "lab1"):
            atoll.says("connect", "web", name)
        assert atoll.says("ns", "exec", "p1", "--", "ping", "-c1", "-W5", "-q", "10.9.2.3").count(" 0% packet loss")
        assert atoll.says("ns", "rm", "p1", "lab1") == "p1\nlab1\n"
        left = subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", "-o", "link"], check=True, capture_output=True, text=True).stdout
        assert left.count("\n") == 1
        assert os.listdir("/run/netns") == ["lab1"]


def test_every_command_explains_itself(atoll: CommandLine) -> None:
    """And help starts no daemon."""
    waiting: list[tuple[str, ...]] = [()]
    seen = 0
    while waiting:
        command = waiting.pop()
        shown = atoll.says(*command, "--help")
        assert shown.startswith(f"Usage: {' '.join(('atoll', *command))} ")
        seen += 1
        inner = shown.partition("\nCommands:\n")[2]
        waiting += [(*command, word) for word in re.findall(r"^  (\w+)", inner, re.MULTILINE)]
    assert seen > 25
    assert atoll.says("--version").startswith("atoll, version ")
    assert not atoll.serving()


def test_listings_are_json_too(atoll: CommandLine) -> None:
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24")
    atoll.says("ns", "create", "r1")
    endpoint = atoll.says("connect", "web", "r1", "-p", "8080:80").strip()
    networks = {item["name"]: item for item in atoll.shows("network", "ls")}
    assert [end["id"] for end in networks["web"]["endpoints"]] == [endpoint]
    assert [end["id"] for item in atoll.shows("ns", "ls") for end in item["endpoints"]] == [endpoint]
    assert atoll.shows("status") | {"problems": []} == atoll.shows("daemon", "status") | {"problems": []}
    assert atoll.shows("status")["pid"] == atoll.serving()
    assert atoll.shows("doctor")["differences"] == []
    lines = atoll.says("events", "--format", "json").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["network.create", "namespace.create", "endpoint.connect"]
    assert len(atoll.says("events", "--since", "2").splitlines()) == 1


def test_a_dry_run_changes_nothing(atoll: CommandLine) -> None:
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24", "--subnet", "fd09:2::/64")
    atoll.says("network", "create", "empty", "--subnet", "10.9.4.0/24")
    atoll.says("ns", "create", "r1", "r2")
    atoll.says("connect", "web", "r1", "-p", "8080:80")
    before = everything(atoll)
    with process_with_network() as pid:
        for command in (
            ("network", "create", "db", "--ipv6", "--internal"),
            ("network", "rm", "empty"),
            ("ns", "create", "r3", "r4"),
            ("ns", "adopt", "p1", "--pid", str(pid)),
            ("ns", "rm", "r1", "r2"),
            ("connect", "web", "r2", "-p", "9000:90", "--ingress-rate", "10mbit"),
            ("disconnect", "web", "r1"),
            ("publish", "r1", "7000:70"),
            ("unpublish", "r1", "8080:80"),
        ):
            assert re.match(r"(ip|nft|touch|conntrack) ", atoll.says(*command, "--dry-run")), command
    same(before, everything(atoll))
    assert len(atoll.says("events").splitlines()) == 5
    # Nor does it use up an address.
    atoll.says("connect", "web", "r2")
    assert atoll.shows("ns", "ls")[1]["endpoints"][0]["addresses"] == ["10.9.2.3/24", "fd09:2::3/64"]


def test_doctor_names_damage_and_repairs_it(atoll: CommandLine) -> None:
    """By what rings no bell, so that the watcher doesn't come first: a setting inside a namespace."""
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24", "--subnet", "fd09:2::/64")
    atoll.says("ns", "create", "r1")
    atoll.says("connect", "web", "r1")
    before = everything(atoll)
    subprocess.run(["ip", "netns", "exec", "r1", "sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1"], check=True)
    done = atoll("doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[:2] == [
        "differs: endpoint r1 on web: net/ipv6/conf/eth0/accept_ra in r1 is not 0",
        "    ip netns exec r1 sysctl -qw net/ipv6/conf/eth0/accept_ra=0",
    ]
    assert atoll("doctor", "--format", "json").returncode == 1
    assert atoll.says("doctor", "--fix") == "repaired: endpoint r1 on web: net/ipv6/conf/eth0/accept_ra in r1 is not 0\n"
    assert atoll.says("doctor") == "all is as it should be\n"
    same(before, everything(atoll))


# --- what is wrong -------------------------------------------------------------------------------------------------------------------

USAGE: Final = (
    ("bogus",),
    ("--bogus",),
    ("network", "bogus"),
    ("network", "create"),
    ("network", "create", "a", "b"),
    ("network", "create", "a", "--bogus"),
    ("network", "create", "a", "--mtu", "many"),
    ("network", "create", "a", "--label", "=b"),
    ("network", "create", "a", "--aux-address", "=10.0.0.1"),
    ("network", "ls", "--format", "yaml"),
    ("ns", "adopt", "a"),
    ("ns", "exec", "r1"),
    ("ns", "exec", "r1", "--"),
    ("connect", "web"),
    ("publish", "r1"),
    ("events", "--since", "yesterday"),
    ("completion",),
    ("completion", "tcsh"),
    ("a\nb",),
    ("network", "create", "a", "--a\nb"),
)
NAMES: Final = (
    "../x",
    "..",
    ".",
    "a/b",
    "a b",
    " a",
    "a\nb",
    "a\n",
    "\x1b[31m",
    "é",
    "\udcff",
    LONG,
    "-",
    "",
    "%2e",
    "a;b",
    "$(id)",
    "0\u0660",
)
INVALID: Final = (
    *(("network", "create", "--", name) for name in NAMES),
    *(("ns", "create", "--", name) for name in NAMES[::3]),
    ("network", "create", "--", "--internal"),
    ("network", "create", "a", "--subnet", "10.9.9.0/33"),
    ("network", "create", "a", "--subnet", "10.9.9.1/24"),
    ("network", "create", "a", "--subnet", "127.0.0.0/24"),
    ("network", "create", "a", "--subnet", "10.9.9.0/24", "--subnet", "10.9.9.128/25"),
    ("network", "create", "a", "--gateway", "10.9.9.1"),
    ("network", "create", "a", "--subnet", "10.9.9.0/24", "--gateway", "10.9.9.0"),
    ("network", "create", "a", "--subnet", "10.9.9.0/24", "--ip-range", "10.9.8.0/25"),
    ("network", "create", "a", "--aux-address", "printer"),
    ("network", "create", "a", "--mtu", "10"),
    ("network", "create", "a", "--mtu", "9" * 40),
    ("network", "create", "a", "--no-ipv4"),
    ("network", "create", "a", "--opt", "colour=red"),
    ("network", "create", "a", "--opt", "icc=perhaps"),
    ("network", "create", "a", "--opt", "bridge=../etc"),
    ("network", "create", "a", "--opt", f"bridge={LONG}"),
    ("network", "create", "a", "--opt", "mac=01:00:00:00:00:00"),
    ("network", "create", "a", "--label", "a\nb=c"),
    ("network", "create", "a", "-d", "token-ring"),
    ("network", "create", "a", "-d", "macvlan", "-o", "parent=lo"),
    ("network", "create", "a", "--isolation", "none"),
    ("network", "create", "a", "--route", "10.9.0.0/16 via here"),
    ("network", "create", "a", "--metric", "-1"),
    ("connect", "web", "r2", "--route", "10.9.0.0/16 by way"),
    ("connect", "web", "r2", "--route", "somewhere"),
    ("connect", "web", "r2", "--route", "10.9.0.0/16 via"),
    ("network", "create", "a", "-d", "macvlan", "--subnet", "10.9.9.0/24", "-o", "parent=lo"),
    ("network", "create", "a", "--egress-rate", "fast"),
    ("network", "create", "a", "--egress-rate", "1bit"),
    ("network", "inspect", ""),
    ("ns", "adopt", "a", "--pid", "-1"),
    ("ns", "adopt", "a", "--pid", "9" * 40),
    ("ns", "adopt", "a", "--pid", "1", "--path", "/run/netns/r1"),
    ("ns", "adopt", "a", "--path", "relative"),
    ("ns", "adopt", "a", "--path", "/etc/passwd"),
    ("ns", "adopt", "a", "--path", "/dev/zero"),
    ("ns", "adopt", "a", "--path", "/proc/self/ns/mnt"),
    ("ns", "adopt", "a", "--docker", "../a"),
    ("connect", "host", "r2"),
    ("connect", "web", "r2", "--ip", "nowhere"),
    ("connect", "web", "r2", "--ip", "10.9.9.9"),
    ("connect", "web", "r2", "--ip", "fe80::1%eth0"),
    ("connect", "web", "r2", "--mac", "02:00"),
    ("connect", "web", "r2", "--mac", "ff:ff:ff:ff:ff:ff"),
    ("connect", "web", "r2", "--ifname", "../eth0"),
    ("connect", "web", "r2", "--ifname", "a-name-of-16-byte"),
    ("connect", "web", "r2", "--alias", "a b"),
    ("connect", "web", "r2", "--gw-priority", "9" * 40),
    ("connect", "web", "r2", "--egress-rate", "0"),
    ("connect", "web", "r2", "-p", "80"),
    ("publish", "r1", "0:80-81"),
    ("publish", "r1", "65536:80"),
    ("publish", "r1", "90-80:90-80"),
    ("publish", "r1", "80-90:80-91"),
    ("publish", "r1", "80:80/icmp"),
    ("publish", "r1", "300.1.1.1:80:80"),
    ("publish", "r1", "[::1:80:80"),
    ("publish", "r1", "80:80\n"),
    ("publish", "r1", "٨٠:80"),
    ("publish", "r1", "[fd00::1]:80:80"),
    ("publish", "r1", LONG),
    ("unpublish", "r1", ""),
)
NOT_FOUND: Final = (
    *(("network", "inspect", "--", name) for name in NAMES if name),
    *(("ns", "inspect", "--", name) for name in NAMES[::3]),
    ("network", "inspect", "x" * 20_000),
    ("network", "rm", "nope"),
    ("network", "rm", "--dry-run", "nope"),
    ("network", "create", "a", "-d", "macvlan", "--subnet", "10.9.9.0/24", "-o", "parent=nope"),
    ("ns", "rm", "nope"),
    ("ns", "exec", "nope", "--", "true"),
    ("ns", "adopt", "a", "--pid", "4194304"),
    ("ns", "adopt", "a", "--path", "/nope"),
    ("connect", "nope", "r1"),
    ("connect", "web", "nope"),
    ("disconnect", "web", "r2"),
    ("disconnect", "nope", "r1"),
    ("publish", "nope", "80:80"),
    ("publish", "r1", "80:80", "--network", "nope"),
    ("unpublish", "nope", "80:80"),
)
CONFLICT: Final = (
    ("network", "create", "web"),
    ("network", "create", "host"),
    ("network", "create", "a", "-d", "none"),
    ("network", "create", "a", "--subnet", "10.9.2.128/25"),
    ("network", "create", "a", "--opt", "bridge=lo"),
    ("network", "rm", "web"),
    ("ns", "create", "r1"),
    ("ns", "create", "foreign"),
    ("ns", "adopt", "a", "--path", "/run/netns/r1"),
    ("ns", "adopt", "a", "--path", "/proc/self/ns/net"),
    ("connect", "web", "r1"),
    ("connect", "none", "r1"),
    ("connect", "web", "r2", "--ip", "10.9.2.2"),
    ("connect", "web", "r2", "--ip", "10.9.2.1"),
    ("connect", "web", "r2", "--mac", "02:00:00:00:00:01"),
    ("connect", "web", "r2", "-p", "8080:80"),
    ("connect", "web", "r2", "-p", "80:80", "-p", "80:80"),
    ("connect", "web", "r2", "--ifname", "lo"),
    ("publish", "r1", "8080:81"),
    ("publish", "r1", "8000-8100:8000-8100"),
    ("unpublish", "r1", "81:81"),
)
DENIED: Final = (("network", "rm", "host"), ("network", "rm", "none"))
EXHAUSTED: Final = (("connect", "tiny", "r2"),)


@pytest.mark.parametrize(
    ("code", "commands"),
    [(2, USAGE), (2, INVALID), (3, NOT_FOUND), (4, CONFLICT), (5, DENIED), (7, EXHAUSTED)],
    ids=["usage", "invalid", "not found", "conflict", "denied", "exhausted"],
)
def test_an_error_is_one_line_and_an_exit_code_and_changes_nothing(
    atoll: CommandLine, code: int, commands: tuple[tuple[str, ...], ...]
) -> None:
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24", "--no-icc")
    atoll.says("network", "create", "tiny", "--subnet", "10.9.3.0/30")
    atoll.says("ns", "create", "r1", "r2", "r3")
    atoll.says("connect", "web", "r1", "-p", "8080:80", "--mac", "02:00:00:00:00:01")
    atoll.says("connect", "tiny", "r3")
    subprocess.run(["ip", "netns", "add", "foreign"], check=True)
    before = everything(atoll)
    events = len(atoll.daemon.events())
    for command in commands:
        words = atoll.fails(code, *command)
        assert "Error" not in words, (command, words)
        assert len(words) < 400, (command, words)
        assert atoll.daemon.view() == before[0], command
    same(before, everything(atoll))
    assert len(atoll.daemon.events()) == events
    # Not even an address was used up.
    atoll.says("connect", "web", "r2")
    assert atoll.daemon.view()["namespaces"]["r2"]["endpoints"][0]["addresses"] == ["10.9.2.3/24"]


def test_of_several_names_the_good_ones_are_served(atoll: CommandLine) -> None:
    atoll.says("ns", "create", "r1")
    done = atoll("ns", "create", "a", "r1", "../b", "c")
    assert (done.returncode, done.stdout) == (2, "a\nc\n")
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == ["error:", "error:"]
    done = atoll("ns", "rm", "nope", "a", "c")
    assert (done.returncode, done.stdout) == (3, "a\nc\n")
    assert atoll.says("ns", "ls", "-q") == "r1\n"


def test_a_daemon_that_dies_is_one_line_too(atoll: CommandLine) -> None:
    atoll.daemon.start()
    os.kill(atoll.daemon.pid, signal.SIGSTOP)
    for command in (("network", "ls"), ("events", "--follow")):
        waiting = atoll.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        eventually(lambda: is_connected(waiting.pid), "the client asks")  # noqa: B023
        atoll.daemon.kill()
        out, error = waiting.communicate()
        assert "Traceback" not in error
        assert (out, error.count("\n"), waiting.returncode) == ("", 1, 1), command
        atoll.daemon.start()
        os.kill(atoll.daemon.pid, signal.SIGSTOP)
    atoll.daemon.kill()
    atoll.daemon.start(fault="create_network:3")
    assert "the daemon ended" in atoll.fails(1, "network", "create", "web")


def is_connected(pid: int) -> bool:
    """Whether a client has got as far as to a socket."""
    with contextlib.suppress(OSError):
        return any(os.readlink(fd).startswith("socket:") for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


# --- what is wrong, straight at the socket -------------------------------------------------------------------------------------------

DEEP: Final = 100_000
BODIES: Final = (
    b"{",
    b"{}",
    b"[]",
    b"null",
    b'"web"',
    b"\x00",
    b'\xef\xbb\xbf{"name": "a"}',
    b'{"name": "\xff"}',
    b'{"name": "\\ud800"}',
    b'{"name": "a"} x',
    b'{"name": "a", "name": 1}',
    b'{"name": 1}',
    b'{"name": null}',
    b'{"name": ["a"]}',
    b'{"name": "a\\u0000b"}',
    b'{"name": "a\\nb"}',
    b'{"name": "../a"}',
    b'{"name": "%s"}' % LONG.encode(),
    b'{"name": "--help"}',
    b'{"name": "a", "colour": "red"}',
    b'{"name": "a", "labels": []}',
    b'{"name": "a", "labels": {"a": 1}}',
    b'{"name": "a", "labels": {"a": "\\u0000"}}',
    b'{"name": "a", "labels": {"a": "%s"}}' % (b"x" * 5000),
    b"[" * DEEP,
    b'{"name":' * DEEP,
    b'{"name": "a", "labels": %s' % (b'{"a":' * DEEP),
)
NETWORK_BODIES: Final = (
    b'{"name": "a", "subnets": "10.9.9.0/24"}',
    b'{"name": "a", "subnets": [10]}',
    b'{"name": "a", "subnets": [["10.9.9.0/24"]]}',
    b'{"name": "a", "subnets": ["10.9.9.0/24", "10.9.9.0/24"]}',
    b'{"name": "a", "mtu": "1500"}',
    b'{"name": "a", "mtu": 1500.5}',
    b'{"name": "a", "mtu": -1}',
    b'{"name": "a", "mtu": 1e999}',
    b'{"name": "a", "mtu": NaN}',
    b'{"name": "a", "mtu": %s}' % (b"9" * 5000),
    b'{"name": "a", "icc": "yes"}',
    b'{"name": "a", "icc": 1}',
    b'{"name": "a", "options": {"mac": null}}',
    b'{"name": "a", "aux_addresses": {"a": {}}}',
)
CONNECT_BODIES: Final = (
    b"{}",
    b'{"namespace": 1}',
    b'{"namespace": "r2", "addresses": "10.9.2.9"}',
    b'{"namespace": "r2", "addresses": [%s]}' % b", ".join([b'"10.9.2.9"'] * 1000),
    b'{"namespace": "r2", "gateway_priority": 1e3}',
    b'{"namespace": "r2", "gateway_priority": 18446744073709551616}',
    b'{"namespace": "r2", "publish": [80]}',
    b'{"namespace": "r2", "publish": ["1-65535:1-65535", "1-65535:1-65535/udp"], "interface": "\\u0000"}',
)
PORT_BODIES: Final = (b"{}", b'{"ports": "80:80"}', b'{"ports": []}', b'{"ports": [""]}', b'{"ports": ["80:80"], "a": 1}')


def test_no_body_does_any_harm(atoll: CommandLine) -> None:
    with web(atoll) as daemon:
        for target, bodies in (
            ("/v1/namespaces", BODIES),
            ("/v1/networks", (*BODIES, *NETWORK_BODIES)),
            ("/v1/networks/web/endpoints", CONNECT_BODIES),
            (
                "/v1/namespaces/r1/publish",
                (b"{}", b'{"ports": "80:80"}', b'{"ports": []}', b'{"ports": [""]}', b'{"ports": ["80:80"], "a": 1}'),
            ),
            ("/v1/networks/prune", (b'{"all": true}', b"[]")),
        ):
            for body in bodies:
                answer = send(daemon.socket, "POST", target, body)
                # Twice the same address is a conflict; all else is wrong in itself.
                assert answer.status in (400, 409), (target, body[:100], answer)
                is_error(answer.value, body)
        assert send(daemon.socket, "POST", "/v1/namespaces", b'{"name": "%s"}' % (b"a" * (2 << 20))).status == 413


def test_no_target_does_any_harm(atoll: CommandLine) -> None:
    with web(atoll) as daemon:
        for method, target, status in (
            ("GET", "/", 404),
            ("GET", "/v1", 404),
            ("GET", "/v2/networks", 404),
            ("GET", "/v1/networks/", 404),
            ("GET", "/v1/networks/web/", 404),
            ("GET", "/v1/networks/web/endpoints", 405),
            ("GET", "/v1/networks/..%2F..%2Fetc%2Fpasswd", 404),
            ("GET", "/v1/networks/%00", 404),
            ("GET", "/v1/networks/%0a", 404),
            ("GET", "/v1/networks/%ff%fe", 404),
            ("GET", "/v1/networks/%", 404),
            ("GET", f"/v1/networks/{LONG}", 404),
            ("GET", "/v1/namespaces/..", 404),
            ("GET", "/v1/namespaces/.", 404),
            ("PUT", "/v1/networks", 405),
            ("PATCH", "/v1/networks/web", 405),
            ("DELETE", "/v1/networks", 405),
            ("POST", "/v1/networks/web", 405),
            ("POST", "/v1/networks/nope/endpoints?dry_run=1", 400),
            ("OPTIONS", "/v1/networks", 405),
            ("TRACE", "/v1/networks", 405),
            ("DELETE", "/v1/namespaces/r1?dry_run=maybe", 400),
            ("POST", "/v1/networks/prune?dry_run=1", 400),
            ("GET", "/v1/events?since=yesterday", 400),
            ("GET", f"/v1/events?since={'9' * 5000}", 400),
        ):
            answer = send(daemon.socket, method, target)
            assert answer.status == status, (method, target, answer)
            is_error(answer.value, target)


def test_no_bytes_do_any_harm(atoll: CommandLine) -> None:
    """What isn't even HTTP, what never ends, and what ends early."""
    with web(atoll) as daemon, contextlib.ExitStack() as opened:
        for data in (
            b"\x00" * 100,
            b"GET\r\n\r\n",
            b"GET /v1/networks HTTP/9.9\r\n\r\n",
            b"GET /v1/networks HTTP/1.1\r\nHost\r\n\r\n",
            b"GET /v1/networks HTTP/1.1\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"POST /v1/namespaces HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /v1/namespaces HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /v1/namespaces HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00",
        ):
            # Some are answered, and hung up on, before they are read to the end.
            with open_socket(daemon.socket) as sock, contextlib.suppress(ConnectionError):
                sock.sendall(data)
                if data[0] < 127:
                    answer = b"".join(iter(lambda: sock.recv(1 << 16), b""))
                    assert b" 400 " in answer.split(b"\r\n")[0], (data[:60], answer)
        body = b'{"name": "slow"}'
        head = b"POST /v1/namespaces HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        slow = opened.enter_context(open_socket(daemon.socket))
        slow.sendall(head + body[:5])
        for data in (b"", b"POST", head) * 20:
            opened.enter_context(open_socket(daemon.socket)).sendall(data)
        # Meanwhile others are served, and a body that comes late is a body.
        atoll.says("network", "ls")
        slow.sendall(body[5:])
        assert b" 200 " in slow.recv(100)
        atoll.says("ns", "rm", "slow")
        # A request whose sender has gone is carried out or not; nobody minds.
        with open_socket(daemon.socket) as gone:
            gone.sendall(b"GET /v1/doctor HTTP/1.1\r\nHost: a\r\n\r\n")
        assert daemon.differences() == []
        start = time.monotonic()
        daemon.stop()
        # Not kept by those that are slow.
        assert time.monotonic() - start < 5
        daemon.start()


@contextlib.contextmanager
def web(atoll: CommandLine) -> Iterator[Daemon]:
    """A daemon with something to lose, and that nothing is lost."""
    daemon = atoll.daemon
    daemon.start()
    daemon.call("POST", "/v1/networks", {"name": "web", "subnets": ["10.9.2.0/24"]})
    for name in ("r1", "r2"):
        daemon.call("POST", "/v1/namespaces", {"name": name})
    daemon.call("POST", "/v1/networks/web/endpoints", {"namespace": "r1", "publish": ["8080:80"]})
    before = everything(atoll)
    yield daemon
    same(before, everything(atoll))


def is_error(value: Any, what: object) -> None:
    """The API's own form of an error."""
    assert isinstance(value, dict), (what, value)
    assert value.keys() == {"error"}, what
    assert value["error"].keys() == {"kind", "what", "hint"}, what
    assert len(str(value)) < 1000, what


# --- other programs around it --------------------------------------------------------------------------------------------------------


def test_events_are_followed_as_they_come(atoll: CommandLine) -> None:
    atoll.says("ns", "create", "r1")
    with atoll.popen("events", "--follow", "--format", "json", stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        events = map(json.loads, follower.stdout)
        assert next(events)["namespace"] == "r1"
        atoll.says("ns", "create", "r2")
        created = next(events)
        assert (created["event"], created["namespace"], created["number"]) == ("namespace.create", "r2", 2)
        atoll.says("ns", "rm", "r1")
        assert next(events)["event"] == "namespace.remove"
        atoll.says("daemon", "stop")
        assert list(events) == []
        assert follower.wait() == 0
    with atoll.popen("events", "--follow", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower:
        assert follower.stderr is not None
        eventually(lambda: is_connected(follower.pid), "it follows")
        follower.send_signal(signal.SIGINT)
        assert follower.wait() in (0, 130, -signal.SIGINT)
        assert follower.stderr.read() == ""


def test_a_reader_that_has_had_enough_is_no_error(atoll: CommandLine) -> None:
    atoll.says("ns", "create", *(f"r{number}" for number in range(50)))
    for command in (
        "ns ls",
        "ns ls -q",
        "ns ls --format json",
        "network ls",
        "events",
        "events --format json",
        "ns rm --dry-run r1 r2",
        "--help",
    ):
        # The reader is gone before the first line.
        done = subprocess.run(
            ["sh", "-c", f"{ATOLL} {command} | true"], env=atoll.daemon.environment, capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr) == ("", ""), command


def test_bash_completes_words(atoll: CommandLine) -> None:
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24")
    atoll.says("network", "create", "wild", "--subnet", "10.9.3.0/24")
    atoll.says("ns", "create", "r1", "r2")
    script = """
        source <("$1" completion bash)
        shift
        COMP_WORDS=(atoll "$@") COMP_CWORD=$#
        $(complete -p atoll | sed 's/.*-F \\([^ ]*\\).*/\\1/') atoll
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    environment = atoll.daemon.environment | {"PATH": f"{ATOLL.parent}:{os.environ['PATH']}"}
    for words, expected in (
        (["network", "rm", "w"], {"web", "wild"}),
        (["network", "inspect", "web", ""], {"host", "none", "web", "wild"}),
        (["connect", "wi"], {"wild"}),
        (["connect", "web", ""], {"r1", "r2"}),
        (["ns", "exec", "r"], {"r1", "r2"}),
        (["netw"], {"network"}),
        (["ns", "ad"], {"adopt"}),
        (["network", "create", "x", "--inter"], {"--internal"}),
    ):
        done = subprocess.run(["bash", "-c", script, "bash", ATOLL, *words], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert set(done.stdout.split()) == expected, words


def test_completion_starts_no_daemon(atoll: CommandLine) -> None:
    done = atoll(_ATOLL_COMPLETE="bash_complete", COMP_WORDS="atoll network rm w", COMP_CWORD="3")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
    assert not atoll.serving()
    for shell in ("zsh", "fish"):
        assert "atoll" in atoll.says("completion", shell)


# --- commands in namespaces ----------------------------------------------------------------------------------------------------------


def test_a_command_in_a_namespace_is_itself(atoll: CommandLine, tmp_path: Path) -> None:
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24")
    atoll.says("ns", "create", "r1")
    atoll.says("connect", "web", "r1")

    def inside(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return atoll("ns", "exec", "r1", "--", *command, **options)

    assert sorted(inside("ls", "/sys/class/net").stdout.split()) == ["eth0", "lo"]
    assert "10.9.2.2/24" in inside("ip", "-o", "address").stdout
    assert inside("cat", stdin="through and through").stdout == "through and through"
    assert inside("sh", "-c", "exit 7").returncode == 7
    assert inside("sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL
    assert inside("sh", "-c", "echo out; echo err >&2").stderr == "err\n"
    # As in a shell that never was Python: no signal is ignored or blocked, no descriptor left open.
    assert re.search(r"SigIgn:\s0+\n", inside("cat", "/proc/self/status").stdout)
    assert re.search(r"SigBlk:\s0+\n", inside("cat", "/proc/self/status").stdout)
    assert len(inside("ls", "/proc/self/fd").stdout.split()) == 4
    assert atoll("ns", "exec", "r1", "pwd").stdout == f"{os.getcwd()}\n"
    assert atoll("ns", "exec", "r1", "ls", "--help").returncode == 0

    with atoll.popen("ns", "exec", "r1", "--", "cat", stdin=subprocess.PIPE) as command:
        eventually(lambda: Path(f"/proc/{command.pid}/comm").read_text() == "cat\n", "the command has taken the process over")
        command.terminate()
        assert command.wait() == -signal.SIGTERM


def test_a_namespace_has_files_of_its_own_in_etc(atoll: CommandLine, tmp_path: Path) -> None:
    with etc(tmp_path) as folder:
        atoll.says("ns", "create", "r1", "r2")
        (folder / "netns" / "r1").mkdir(parents=True)
        (folder / "netns" / "r1" / "resolv.conf").write_text("nameserver 192.0.2.53\n")
        (folder / "netns" / "r1" / "nowhere.conf").write_text("for a file that isn't there\n")
        assert atoll.says("ns", "exec", "r1", "--", "cat", "/etc/resolv.conf") == "nameserver 192.0.2.53\n"
        assert atoll.says("ns", "exec", "r2", "--", "cat", "/etc/resolv.conf") == Path("/etc/resolv.conf").read_text()
        assert Path("/etc/resolv.conf").read_text() != "nameserver 192.0.2.53\n"


# --- the daemon's life ---------------------------------------------------------------------------------------------------------------


def test_commands_that_start_at_the_same_moment_share_one_daemon(atoll: CommandLine) -> None:
    commands = [atoll.popen("ns", "create", f"r{number}", stdout=subprocess.PIPE, stderr=subprocess.PIPE) for number in range(6)]
    for number, command in enumerate(commands):
        assert command.communicate() == (f"r{number}\n", "")
    assert atoll.says("ns", "ls", "-q").split() == [f"r{number}" for number in range(6)]
    assert atoll.shows("status")["pid"] == atoll.serving()


def test_a_command_while_the_daemon_ends_gets_the_next_one(atoll: CommandLine) -> None:
    atoll.says("ns", "create", "r1")
    first = atoll.serving()
    with open_socket(atoll.daemon.socket) as follower:
        # Somebody who follows events keeps the daemon a moment longer.
        follower.sendall(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: a\r\n\r\n")
        follower.recv(1)
        os.kill(first, signal.SIGTERM)
        eventually(lambda: not atoll.daemon.socket.exists(), "it has begun to end")
        assert atoll.says("ns", "ls", "-q") == "r1\n"
    assert atoll.serving() not in (0, first)


def test_the_daemon_is_run_looked_at_and_stopped(atoll: CommandLine, tmp_path: Path) -> None:
    assert "no daemon is running" in atoll.fails(1, "daemon", "status")
    assert "no daemon is running" in atoll.fails(1, "daemon", "stop")
    with atoll.popen("daemon", "run", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as service:
        eventually(atoll.serving, "it serves")
        assert atoll.serving() == service.pid
        assert atoll.says("daemon", "status").startswith("atoll ")
        # One state, one daemon; wherever the second one would listen.
        for environment in ({}, {"ATOLL_RUN": str(tmp_path / "elsewhere")}):
            second = atoll("daemon", "run", **environment)
            assert (second.returncode, second.stdout, second.stderr.count("\n")) == (4, "", 1), second
            assert second.stderr.startswith("error: another atoll has the state in ")
        assert atoll.says("daemon", "stop") == "stopped\n"
        assert service.wait() == 0
        assert service.stderr is not None
        assert "Traceback" not in service.stderr.read()
    assert not atoll.daemon.socket.exists()
    with atoll.popen("daemon", "run", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as service:
        eventually(atoll.serving, "it serves")
        service.send_signal(signal.SIGINT)
        assert service.wait() == 0


def test_a_daemon_that_cannot_start_says_why(atoll: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = atoll("network", "ls", ATOLL_STATE=str(tmp_path / "file" / "state"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    assert "Not a directory" in done.stderr
    done = atoll("network", "ls", ATOLL_RUN=str(tmp_path / ("long" * 40)))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
    atoll.daemon.state.mkdir(exist_ok=True)
    (atoll.daemon.state / "state.db").write_bytes(b"this is no database, and never was one" * 100)
    assert "state.db" in atoll.fails(1, "network", "ls")


def test_a_socket_that_a_killed_daemon_left_is_no_obstacle(atoll: CommandLine) -> None:
    atoll.says("ns", "create", "r1")
    with open_pidfd(atoll.serving()) as pidfd:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])
    assert atoll.daemon.socket.exists()
    assert atoll.says("ns", "ls", "-q") == "r1\n"


# --- who may -------------------------------------------------------------------------------------------------------------------------


def test_only_root_may_use_roots_daemon(host: None) -> None:
    with user() as nobody, CommandLine(nobody.folder) as atoll:
        atoll.says("ns", "create", "r1")
        where = {"ATOLL_RUN": str(atoll.daemon.run), "ATOLL_STATE": str(atoll.daemon.state)}
        assert stat.S_IMODE(atoll.daemon.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(atoll.daemon.state.stat().st_mode) == 0o700

        def refused(*command: str) -> None:
            done = nobody(*command, **where)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1), done
            assert done.stderr.startswith("error: "), done

        for command in (
            ("ns", "ls"),
            ("ns", "create", "r2"),
            ("ns", "exec", "r1", "--", "id"),
            ("status",),
            ("daemon", "status"),
            ("daemon", "stop"),
        ):
            refused(*command)
        # Nor if somebody got the mode wrong.
        atoll.daemon.socket.chmod(0o666)
        refused("ns", "create", "r2")
        refused("daemon", "stop")
        assert atoll.says("ns", "ls", "-q") == "r1\n"
        atoll.says("daemon", "stop")
        refused("ns", "ls")


def test_members_of_the_group_may(host: None, tmp_path: Path) -> None:
    group = 54321
    with user(gid=group) as member, user() as nobody, etc(tmp_path) as folder, CommandLine(member.folder) as atoll:
        with open(folder / "group", "a") as file:
            file.write(f"atoll:x:{group}:\n")
        atoll.says("ns", "create", "r1")
        found = atoll.daemon.socket.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group)
        where = {"ATOLL_RUN": str(atoll.daemon.run), "ATOLL_STATE": str(atoll.daemon.state)}
        assert member("ns", "ls", "-q", **where).stdout == "r1\n"
        assert member("ns", "create", "r2", **where).returncode == 0
        assert nobody("ns", "ls", **where).returncode == 5
