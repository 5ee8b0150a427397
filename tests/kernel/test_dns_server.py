"""The name server on a real host: who is told what, over UDP and TCP, IPv4 and IPv6, while names come and go."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.query
import dns.rcode
import pytest

from atoll.dns.child import NameServer
from atoll.dns.zone import Update
from atoll.errors import Failed
from tests.kernel.dns_lab import ask, cable, dgram, endpoint, exchange, name_server, network_names, query, stream, v4, v6, zone
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.lab.machine import Machine

WEB, DB, BACK_DB = 2, 3, 2


@pytest.fixture
def server(host: None) -> Iterator[NameServer]:
    with name_server() as started:
        endpoints = (
            endpoint("front", WEB, "web", "www", services=((80, "tcp"),)),
            endpoint("front", DB, "db"),
            endpoint("back", BACK_DB, "db", "secret"),
        )
        assert started.update(zone(network_names("front", internal=True), network_names("back", internal=True), endpoints=endpoints)) == ()
        yield started


@pytest.fixture
def front(server: NameServer) -> Iterator[Machine]:
    with cable("front", (WEB, DB, 200)) as machine:
        yield machine


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("address", [v4, v6])
def test_names_are_answered_over_every_transport(front: Machine, transport: str, address: type) -> None:
    gateway, source = address("front", 1), address("front", WEB)
    for _ in range(2):  # the second one is answered from what was kept
        assert ask(front, source, gateway, "db", transport=transport) == [v4("front", DB)]
        assert ask(front, source, gateway, "DB.front.Atoll.", "AAAA", transport=transport) == [v6("front", DB)]
        assert ask(front, source, gateway, "_http._tcp.web", "SRV", transport=transport) == ["0 1 80 web.front.atoll."]
        assert ask(front, source, gateway, "3.0.1.10.in-addr.arpa", "PTR", transport=transport) == ["db.front.atoll."]
        assert ask(front, source, gateway, "db", "TXT", transport=transport) == "NOERROR"
        assert ask(front, source, gateway, "secret", transport=transport) == "NXDOMAIN"
        assert ask(front, source, gateway, "secret.back.atoll", transport=transport) == "NXDOMAIN"
        assert ask(front, source, gateway, "example.com", transport=transport) == "NXDOMAIN"


def test_a_namespace_on_two_networks_sees_both_from_either(front: Machine) -> None:
    address = v4("front", DB)
    assert ask(front, address, v4("front", 1), "secret") == [v4("back", BACK_DB)]
    assert ask(front, address, v4("front", 1), "db") == [v4("front", DB), v4("back", BACK_DB)]
    assert ask(front, v6("front", DB), v6("front", 1), "db.back.atoll") == [v4("back", BACK_DB)]


def test_strangers_are_refused(front: Machine) -> None:
    for transport in ("udp", "tcp"):
        assert ask(front, v4("front", 200), v4("front", 1), "db", transport=transport) == "REFUSED"


def test_the_host_is_answered_full_names_and_refused_others(server: NameServer) -> None:
    with cable("front", ()):
        for question, expected in (("db.back.atoll.", v4("back", BACK_DB)), ("db.", None), ("example.com.", None)):
            answer = dns.query.udp(query(question), v4("front", 1), timeout=PATIENCE, source=v4("front", 1))
            if expected is None:
                assert answer.rcode() == dns.rcode.REFUSED
            else:
                assert answer.answer[0][0].to_text() == expected


def test_only_the_domain_answers_for_itself(front: Machine) -> None:
    assert ask(front, v4("front", WEB), v4("front", 1), "atoll", "SOA") != "NXDOMAIN"
    assert ask(front, v4("front", WEB), v4("front", 1), "atoll", "A") == "NOERROR"
    answer = exchange(front, v4("front", WEB), v4("front", 1), query("db", "ANY"))
    assert len(answer.answer) == 1
    answer = exchange(front, v4("front", WEB), v4("front", 1), query("db", "AXFR"), transport="tcp")
    assert answer.rcode() == dns.rcode.REFUSED


def test_edns_is_answered_in_kind(front: Machine) -> None:
    def options(question: dns.message.QueryMessage) -> dns.message.Message:
        return exchange(front, v4("front", WEB), v4("front", 1), question)

    assert options(query("db", use_edns=False)).edns < 0
    answer = options(query("db", use_edns=0, payload=4096, want_dnssec=True))
    assert (answer.edns, answer.payload, bool(answer.ednsflags & dns.flags.DO)) == (0, 1232, True)
    assert options(query("db", use_edns=1)).rcode() == dns.rcode.BADVERS
    question = query("db")
    question.set_opcode(dns.opcode.STATUS)
    assert options(question).rcode() == dns.rcode.NOTIMP


@pytest.mark.parametrize(("payload", "room"), [(0, 512), (900, 900), (4096, 1232)])
def test_what_is_too_long_for_udp_comes_over_tcp(server: NameServer, payload: int, room: int) -> None:
    many = tuple(endpoint("front", last, f"web{last}", "all") for last in range(2, 250))
    server.update(zone(network_names("front"), endpoints=many))
    with cable("front", (WEB,)) as front, dgram(front, v4("front", WEB), v4("front", 1)) as sock:
        question = query("all", use_edns=0, payload=payload) if payload else query("all")
        sock.send(question.to_wire())
        data = sock.recv(65535)
        assert room - 16 < len(data) <= room
        assert dns.message.from_wire(data).flags & dns.flags.TC
        whole = exchange(front, v4("front", WEB), v4("front", 1), question, transport="tcp")
        assert not whole.flags & dns.flags.TC
        assert {rdata.address for rdata in whole.answer[0]} == {v4("front", last) for last in range(2, 250)}


def test_a_change_is_in_effect_when_it_is_done(server: NameServer, front: Machine) -> None:
    for serial in range(2, 60):
        last = 3 + serial
        server.update(Update(serial, endpoints=(endpoint("front", last, f"name{serial}", "moving"),), gone_endpoints=(f"front{last - 1}",)))
        assert ask(front, v4("front", WEB), v4("front", 1), "moving") == [v4("front", last)]
        assert ask(front, v4("front", WEB), v4("front", 1), f"name{serial}") == [v4("front", last)]
        assert ask(front, v4("front", WEB), v4("front", 1), f"name{serial - 1}") == "NXDOMAIN"
        assert ask(front, v4("front", WEB), v4("front", 1), f"{last - 1}.0.1.10.in-addr.arpa", "PTR") == "NXDOMAIN"


def test_no_question_is_lost_while_names_change(server: NameServer, front: Machine) -> None:
    stop = threading.Event()

    def change() -> None:
        serial = 100
        while not stop.is_set():
            serial += 2
            server.update(Update(serial, endpoints=(endpoint("front", 100, "web100", "moving", "db"),)))
            server.update(Update(serial + 1, gone_endpoints=("front100",)))

    changing = threading.Thread(target=change)
    changing.start()
    try:
        with dgram(front, v4("front", WEB), v4("front", 1)) as sock:
            for _ in range(100):
                questions = {made.id: made for made in (query("db") for _ in range(20))}
                for question in questions.values():
                    sock.send(question.to_wire())
                while questions:
                    answer = dns.message.from_wire(sock.recv(65535))
                    assert questions.pop(answer.id).is_response(answer)
                    found = {rdata.address for rdata in answer.answer[0]}
                    assert found - {v4("front", 100)} == {v4("front", DB)}
    finally:
        stop.set()
        changing.join()


def test_several_questions_share_a_connection_and_silence_ends_it(front: Machine) -> None:
    with stream(front, v4("front", WEB), v4("front", 1)) as sock:
        questions = [query(name) for name in ("db", "web", "nobody", "www")]
        data = b"".join(len(made).to_bytes(2, "big") + made for made in (question.to_wire() for question in questions))
        for byte in data:  # in the smallest pieces there are
            sock.send(bytes((byte,)))
        for question in questions:
            assert question.is_response(dns.query.receive_tcp(sock)[0])
        begun = time.monotonic()
        assert sock.recv(1) == b""
        assert time.monotonic() - begun > 2


def test_who_ends_its_side_of_the_connection_is_still_answered(front: Machine) -> None:
    with stream(front, v4("front", WEB), v4("front", 1)) as sock:
        question = query("db")
        dns.query.send_tcp(sock, question)
        sock.shutdown(socket.SHUT_WR)
        assert question.is_response(dns.query.receive_tcp(sock)[0])
        assert sock.recv(1) == b""


def test_a_network_may_be_announced_before_its_gateway_has_the_address(server: NameServer) -> None:
    assert server.update(Update(2, networks=(network_names("out", internal=True),), endpoints=(endpoint("out", 2, "late"),))) == ()
    with cable("out", (2,)) as machine:
        assert ask(machine, v4("out", 2), v4("out", 1), "late") == [v4("out", 2)]
        assert server.update(Update(3, gone_networks=("out",))) == ()
        with dgram(machine, v4("out", 2), v4("out", 1)) as sock:
            sock.send(query("late").to_wire())
            with pytest.raises(ConnectionRefusedError):
                sock.recv(512)


def test_an_address_that_is_taken_is_told_and_tried_again(host: None) -> None:
    with cable("front", (WEB,)) as machine, name_server() as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("0.0.0.0", 53))
            (error,) = server.update(zone(network_names("front"), endpoints=(endpoint("front", WEB, "web"),)))
            assert error == f"can't listen on {v4('front', 1)} port 53: Address already in use"
            assert ask(machine, v6("front", WEB), v6("front", 1), "web") == [v4("front", WEB)]
            assert server.update(Update(2)) == (error,)
        deadline = time.monotonic() + PATIENCE
        while server.stats()["listening"] < 2:  # it tries by itself
            assert time.monotonic() < deadline
            select.select([], [], [], 0.05)
        assert server.update(Update(3)) == ()
        assert ask(machine, v4("front", WEB), v4("front", 1), "web") == [v4("front", WEB)]


def test_an_address_that_is_taken_is_forgotten_with_its_network(host: None) -> None:
    """Also when all is told anew: nobody may listen on it later for a network that isn't there."""
    with cable("front", (WEB,)), name_server() as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("0.0.0.0", 53))
            assert len(server.update(zone(network_names("front")))) == 1
            assert server.update(zone(serial=2)) == ()
        server.update(Update(3))
        assert server.stats()["listening"] == 0


# --- the process


def test_the_process_ends_when_its_parent_is_killed(host: None) -> None:
    program = "from atoll.dns.child import NameServer; import sys; s = NameServer(); print(s.pid, flush=True); sys.stdin.read()"
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        assert select.select([pidfd], [], [], PATIENCE)[0]
    finally:
        os.close(pidfd)


def test_what_the_terminal_sends_is_for_others(server: NameServer) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(server.pid, number)
    assert server.update(Update(2)) == ()
    assert os.getsid(server.pid) != os.getsid(0)


def test_it_holds_no_descriptor_of_its_parents(host: None) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        server = NameServer()
        server.update(Update(1))
        os.close(write)
        assert os.read(read, 1) == b""
        names = {os.readlink(entry) for entry in Path(f"/proc/{server.pid}/fd").iterdir()}
        assert not any("pipe" in name for name in names if name != os.readlink("/proc/self/fd/2"))
        server.close()
    finally:
        os.close(read)


def test_a_dead_process_is_an_error_and_its_pidfd_is_readable(host: None) -> None:
    server = NameServer()
    try:
        assert server.update(Update(1)) == ()
        assert not select.select([server.pidfd], [], [], 0)[0]
        os.kill(server.pid, signal.SIGKILL)
        assert select.select([server.pidfd], [], [], PATIENCE)[0]
        with pytest.raises(Failed, match="has ended"):
            server.update(Update(2))
    finally:
        server.close()


def test_updates_may_be_sent_together_and_waited_for_in_any_order(server: NameServer) -> None:
    for serial in (2, 3, 4):
        server.send(Update(serial))
    assert [server.wait(serial) for serial in (4, 2, 3)] == [(), (), ()]
    assert server.stats()["networks"] == 2


def test_a_parent_that_does_not_wait_holds_up_nobody(server: NameServer, front: Machine) -> None:
    for serial in range(2, 3000):
        server.send(Update(serial, endpoints=(endpoint("front", 100, f"name{serial}"),)))
        if serial % 500 == 0:
            assert ask(front, v4("front", WEB), v4("front", 1), "db") == [v4("front", DB)]
    assert server.wait(2999) == ()
    assert ask(front, v4("front", WEB), v4("front", 1), "name2999") == [v4("front", 100)]
