"""The lab's places: what runs there, what it sees, and that nothing is left."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atoll.errors import Conflict, Invalid, NotFound
from atoll.lab import Inconclusive, Lab, assert_blocked, assert_reachable


def test_three_lines_are_a_network_with_two_namespaces(lab: Lab) -> None:
    a, b = lab.namespaces("a", "b", network="net")
    assert a.ping(b) is not None
    assert b.ping(a.address) is not None
    assert lab["a"] is a


def test_a_function_runs_inside_and_its_value_and_its_exception_come_back(lab: Lab) -> None:
    (a,) = lab.namespaces("a", network="net")
    assert a.run(int, "11", base=2) == 3
    assert sorted(name for _, name in a.run(socket.if_nameindex)) == ["eth0", "lo"]
    error = ValueError("real")
    with pytest.raises(ValueError, match="real") as caught:
        a.run(_raise, error)
    assert caught.value is error


def _raise(error: Exception) -> None:
    raise error


def test_functions_and_processes_know_everyone_by_name(lab: Lab) -> None:
    a, b = lab.namespaces("a", "b", network="net")
    other = lab.host("other")
    lab.wire(lab.default, other, "10.0.0.0/24")
    assert a.run(socket.gethostbyname, "b") == b.address
    assert a.check_output(["getent", "ahostsv4", "other"]).split()[0] == "10.0.0.2"
    (c,) = lab.namespaces("c", network="net")
    assert b.run(socket.gethostbyname, "c") == c.address
    assert "b" not in Path("/etc/hosts").read_text().split()


def test_a_process_inside_sees_its_own_interfaces_in_sys_and_keeps_its_folder(lab: Lab) -> None:
    (a,) = lab.namespaces("a", network="net")
    assert a.check_output(["ls", "/sys/class/net"]).split() == ["eth0", "lo"]
    assert a.check_output(["pwd"]).strip() == os.getcwd()
    process = a.popen(["sh", "-c", "echo out; echo error >&2; exit 3"])
    assert (process.wait(), process.output) == (3, "out\nerror\n")
    with pytest.raises(subprocess.CalledProcessError):
        a.check_output(["false"])


def test_packets_pass_between_hosts_and_from_behind_them(lab: Lab) -> None:
    one, two = lab.host("one"), lab.host("two")
    lab.wire(one, two, "10.0.0.0/24")
    inner = one.namespace("inner", network="net")
    inner.publish("8080:80")

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.client_address[0].encode())

        def log_message(self, *_: object) -> None: ...

    two.serve(80, Page)
    assert inner.get("http://two/") == "10.0.0.1"
    inner.serve(80, Page)
    assert two.get("http://one:8080/") == "10.0.0.2"


def test_bad_input_changes_nothing(lab: Lab) -> None:
    (a,) = lab.namespaces("a", network="net")
    one, two = lab.host("one"), lab.host("two")
    with pytest.raises(Conflict):
        lab.namespace("a")
    with pytest.raises(Conflict):
        lab.host("a")
    with pytest.raises(NotFound):
        lab["nobody"]
    with pytest.raises(Invalid):
        lab.wire(one, one, "10.0.0.0/24")
    with pytest.raises(Invalid):
        lab.wire(one, two, "10.0.0.0/31")
    with pytest.raises(Invalid):
        one.connect("net", a)
    assert [place.name for place in lab.places()] == ["host", "a", "one", "two"]
    assert len(lab.links) == 1


def test_a_namespace_that_leaves_a_network_is_off_it(lab: Lab) -> None:
    a, b = lab.namespaces("a", "b", network="net")
    address = b.address
    b.disconnect("net")
    assert a.ping(address, timeout=0.2) is None
    with pytest.raises(NotFound):
        _ = b.address
    b.connect("net")
    assert a.ping(b) is not None


def test_reachable_and_blocked_are_told_apart_by_packets(lab: Lab) -> None:
    a, b = lab.namespaces("a", "b", network="net")
    (c,) = lab.namespaces("c", network="other")
    assert_reachable(a, b, tcp=80)
    assert_reachable(a, b, udp=53)
    assert_blocked(a, c, tcp=80)
    assert_blocked(a, c, udp=53)
    with pytest.raises(AssertionError, match="not blocked"):
        assert_blocked(a, b, tcp=80, canary=lab.namespace("d", network="net"))
    b.nft("table inet t { chain c { type filter hook input priority 0; tcp dport 80 reject; }; }\n")
    with pytest.raises(AssertionError, match="nothing arrived"):
        assert_reachable(a, b, tcp=80)


def test_what_can_not_be_told_is_inconclusive(lab: Lab) -> None:
    a, b = lab.namespaces("a", "b", network="net")
    (c,) = lab.namespaces("c", network="other")
    with pytest.raises(Inconclusive, match="no neighbour"):
        assert_blocked(c, a, tcp=80)
    # The only way that is known to be open is closed: then silence towards c proves nothing.
    with lab.partition({a}, {b}), pytest.raises(Inconclusive, match="canaries before"):
        assert_blocked(a, c, tcp=80)
    with b.socket(kind=socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 53))
        with pytest.raises(Inconclusive, match="itself"):
            assert_blocked(a, b, udp=53, canary=b)


def test_a_server_that_is_there_answers_for_itself(lab: Lab) -> None:
    a, b = lab.namespaces("a", "b", network="net")
    with b.socket() as server:
        server.bind(("0.0.0.0", 80))
        server.listen()
        assert_reachable(a, b, tcp=80)


_BUILD = """
import sys
from atoll.lab import Lab, private
lab = Lab()
a, b = lab.namespaces("a", "b", network="net")
h = lab.host("h2")
lab.wire(lab.default, h, "10.0.0.0/24")
sleepers = [place.popen(["sh", "-c", "sleep 4242 & sleep 4242"]) for place in (a, h)]
print(*{__import__("os").fstat(place.fd).st_ino for place in lab.places()}, flush=True)
sys.stdin.read()
"""


def test_a_killed_lab_leaves_no_namespace_link_or_process(host: None) -> None:
    before = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    with subprocess.Popen([sys.executable, "-c", _BUILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        inodes = {int(text) for text in process.stdout.readline().split()}
        assert len(inodes) == 4
        assert inodes <= _inodes()
        sleeping = _sleepers(inodes)
        assert len(sleeping) >= 2
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The kernel ends the processes in its own time; a process's end can be waited for.
    for fd in sleeping.values():
        assert _ended(fd), "a process of the lab is still there"
        os.close(fd)
    assert not inodes & _inodes()
    listed = subprocess.run(["lsns", "-n", "-t", "net", "-o", "NS"], capture_output=True, text=True, check=True).stdout
    assert not inodes & {int(text) for text in listed.split()}
    assert subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout == before


def _inodes() -> set[int]:
    """The network namespaces that processes and their descriptors hold."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        for link in (*_listed(process / "task"), process):
            found.add(_inode(link / "ns/net"))
        found |= {_inode(fd) for fd in _listed(process / "fd")}
    return found - {0}


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _inode(path: Path) -> int:
    try:
        target = os.readlink(path)
    except OSError:
        return 0
    return int(target[5:-1]) if target.startswith("net:[") else 0


def _sleepers(inodes: set[int]) -> dict[int, int]:
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        if _inode(process / "ns/net") in inodes and b"4242" in (process / "cmdline").read_bytes():
            found[int(process.name)] = os.pidfd_open(int(process.name))
    return found


def _ended(pidfd: int) -> bool:
    import select

    return bool(select.select([pidfd], [], [], 10)[0])


def _state() -> list[object]:
    """Everything that `ip` says of a lab, with MAC addresses and ids."""
    with Lab() as lab:
        lab.network("net", "10.9.0.0/24", "fd09::/64")
        lab.namespaces("a", "b", network="net")
        lab.wire(lab.default, lab.host("h2"), "10.0.0.0/24")
        said: list[object] = []
        for place in lab.places():
            for what in ("address", "route", "-6 route"):
                output = place.check_output(["ip", "-j", *what.split()])
                said.append([_lasting(row) for row in json.loads(output or "[]")])
        return said


def _lasting(row: dict[str, object]) -> dict[str, object]:
    # A bridge port's own MAC address is the kernel's to choose; nobody sees it.
    return {key: value for key, value in row.items() if key != "address" or not str(row.get("ifname")).startswith("atv")}


def test_a_topology_that_is_built_twice_is_the_same_to_the_last_byte(host: None) -> None:
    assert json.dumps(_state()) == json.dumps(_state())


def test_labs_side_by_side_do_not_see_each_other(host: None) -> None:
    together = threading.Barrier(4, timeout=60)

    def one(number: int) -> bool:
        with Lab() as lab:
            a, b = lab.namespaces("a", "b", network="net")
            together.wait()
            with a.links[0].loss(1) if number % 2 else b.links[0].delay(1):
                reached = a.ping(b, timeout=1 if number % 2 else 10) is not None
                together.wait()
            return reached and len(lab.default.engine.namespaces()) == 2

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [True, False, True, False]


def test_a_closed_lab_holds_no_descriptor_and_no_thread(host: None) -> None:
    def build() -> None:
        with Lab() as lab:
            a, b = lab.namespaces("a", "b", network="net")
            lab.wire(lab.default, lab.host("h2"), "10.0.0.0/24")
            a.popen(["sleep", "4242"])
            with a.links[0].loss(0), lab.partition({a}, {b}):
                a.run(int)

    build()
    before = (len(os.listdir("/proc/self/fd")), {thread.name for thread in threading.enumerate()})
    build()
    assert len(os.listdir("/proc/self/fd")) == before[0]
    assert {thread.name for thread in threading.enumerate()} == before[1]


def test_a_closed_lab_says_so() -> None:
    with Lab() as lab:
        a, b = lab.namespaces("a", "b", network="net")
    with pytest.raises(Conflict, match="closed"):
        a.ping(b)


def test_a_ping_of_a_name_that_nobody_has_is_an_error_and_not_a_loss() -> None:
    with Lab() as lab:
        a, b = lab.namespaces("a", "b", network="net")
        assert a.ping("b") is not None
        assert a.ping(b.address) is not None
        with pytest.raises(NotFound, match="zzz"):
            a.ping("zzz")
