"""Names as an engine has them answered: asked for from inside namespaces, at the gateways."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest

from atoll import Engine
from atoll.engine.files import Files
from tests.support import PATIENCE, Inside, Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import Place, Transport


IP_FREEBIND: Final = 15


@pytest.fixture
def named(host: None, tmp_path: Path) -> Iterator[Engine]:
    """An engine with names and files: networks web and db, r1 on web, r2 on both, r3 on db."""
    with Engine.open(dns=True, files=Files(tmp_path / "files", tmp_path / "links")) as engine:
        engine.create_network("web", subnets=["10.1.0.0/24", "fd01::/64"])
        engine.create_network("db", subnets=["10.2.0.0/24"], internal=True)
        for name in ("r1", "r2", "r3"):
            engine.create_namespace(name)
        engine.connect("web", "r1", addresses=["10.1.0.11", "fd01::11"], aliases=["www"], publish=["8080:80"])
        engine.connect("web", "r2", addresses=["10.1.0.12"])
        engine.connect("db", "r2", addresses=["10.2.0.12"])
        engine.connect("db", "r3", addresses=["10.2.0.13"])
        yield engine


def query(place: Place, name: str, kind: str = "A", *, server: str = "10.1.0.1", transport: Transport = "udp") -> dns.message.Message:
    """One question, sent once: an answer that isn't there at once is missing."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    sock = place.run(lambda: socket.socket(family, socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM))
    message = dns.message.make_query(name, kind)
    with sock:
        if transport == "tcp":
            sock.settimeout(PATIENCE)
            sock.connect((server, 53))
            return dns.query.tcp(message, server, timeout=PATIENCE, sock=sock)
        return dns.query.udp(message, server, timeout=PATIENCE, sock=sock)


def answers(place: Place, name: str, kind: str = "A", **options: Any) -> set[str]:
    found = query(place, name, kind, **options)
    assert found.rcode() == dns.rcode.NOERROR, found
    return {str(item) for records in found.answer for item in records}


def unknown(place: Place, name: str, kind: str = "A", **options: Any) -> bool:
    return query(place, name, kind, **options).rcode() == dns.rcode.NXDOMAIN


# --- who is answered what ------------------------------------------------------------------------------------------------------------


def test_names_are_answered_as_soon_as_connect_has_returned(named: Engine) -> None:
    r2 = Inside(named, "r2")
    for number in range(20, 30):
        named.create_namespace(f"n{number}")
        named.connect("web", f"n{number}", addresses=[f"10.1.0.{number}"])
        assert answers(r2, f"n{number}") == {f"10.1.0.{number}"}


@pytest.mark.parametrize("server", ["10.1.0.1", "fd01::1"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_name_an_alias_and_an_address_are_answered_at_each_gateway_address(named: Engine, server: str, transport: Transport) -> None:
    r1 = Inside(named, "r1")
    for name in ("r1", "R1.web", "r1.web.atoll", "www", "www.web.atoll"):
        assert answers(r1, name, server=server, transport=transport) == {"10.1.0.11"}
        assert answers(r1, name, "AAAA", server=server, transport=transport) == {"fd01::11"}
    assert answers(r1, str(dns.reversename.from_address("10.1.0.12")), "PTR", server=server, transport=transport) == {"r2.web.atoll."}
    assert answers(r1, "_80._tcp.r1", "SRV", server=server, transport=transport) == {"0 1 80 r1.web.atoll."}


def test_a_namespace_sees_the_names_of_its_own_networks_and_no_others(named: Engine) -> None:
    assert answers(Inside(named, "r2"), "r3") == {"10.2.0.13"}
    assert answers(Inside(named, "r2"), "r2") == {"10.1.0.12", "10.2.0.12"}
    assert answers(Inside(named, "r1"), "r2") == {"10.1.0.12"}
    assert query(Inside(named, "r1"), "r3").answer == []
    for name in ("r3.db.atoll", "r2.db.atoll", "nobody.atoll"):
        assert unknown(Inside(named, "r1"), name), name
    assert unknown(Inside(named, "r3"), "r1.web.atoll", server="10.2.0.1")
    assert answers(Inside(named), "r3.db.atoll", server="10.2.0.1") == {"10.2.0.13"}


def test_names_go_with_what_they_name(named: Engine) -> None:
    r2 = Inside(named, "r2")
    named.disconnect("web", "r1")
    assert unknown(r2, "r1.atoll")
    assert unknown(r2, "www.web.atoll")
    named.connect("web", "r1", addresses=["10.1.0.21"])
    assert answers(r2, "r1") == {"10.1.0.21"}
    named.remove_namespace("r1")
    assert unknown(r2, "r1.web.atoll")
    named.disconnect("db", "r2")
    assert unknown(r2, "r3.db.atoll")
    named.remove_namespace("r3")
    named.remove_network("db")
    named.create_network("db", subnets=["10.2.0.0/24"])
    named.connect("db", "r2", addresses=["10.2.0.77"])
    assert answers(r2, "r2.db") == {"10.2.0.77"}


def test_services_follow_the_published_ports(named: Engine) -> None:
    r2 = Inside(named, "r2")
    named.publish("r1", ["5353:53/udp"])
    assert answers(r2, "_domain._udp.r1.web.atoll", "SRV") == {"0 1 53 r1.web.atoll."}
    named.unpublish("r1", ["5353:53/udp"])
    assert unknown(r2, "_domain._udp.r1.web.atoll", "SRV")


def test_a_network_without_dns_has_a_gateway_that_refuses_and_names_that_nobody_knows(named: Engine) -> None:
    named.create_network("mute", subnets=["10.3.0.0/24"], dns=False)
    named.connect("mute", "r1", addresses=["10.3.0.11"])
    with pytest.raises(ConnectionRefusedError):
        query(Inside(named, "r1"), "r1", server="10.3.0.1", transport="tcp")
    assert answers(Inside(named, "r1"), "r1") == {"10.1.0.11"}
    assert unknown(Inside(named), "r1.mute.atoll")


def test_the_servers_of_a_namespace_come_before_those_of_its_network(named: Engine) -> None:
    named.create_network("out", subnets=["10.4.0.0/24"], servers=["127.0.0.8"])
    for name, servers in (("a", []), ("b", ["127.0.0.9"])):
        named.create_namespace(name, servers=servers)
        named.connect("out", name)
        with contextlib.ExitStack() as stack:
            upstream = {}
            for server in ("127.0.0.8", "127.0.0.9"):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind((server, 53))
                upstream[sock] = server
            client = stack.enter_context(Inside(named, name).run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            client.sendto(dns.message.make_query("www.example", "A").to_wire(), ("10.4.0.1", 53))
            heard, _, _ = select.select(list(upstream), [], [], PATIENCE)
            assert [upstream[sock] for sock in heard] == [servers[0] if servers else "127.0.0.8"]
            assert dns.message.from_wire(heard[0].recv(4096)).question[0].name == dns.name.from_text("www.example")


# --- beside others on port 53 --------------------------------------------------------------------------------------------------------


def test_a_published_port_53_takes_no_question_away_from_a_gateway(named: Engine) -> None:
    named.create_network("dmz", subnets=["10.5.0.0/24", "fd05::/64"])
    for name in ("server", "other"):
        named.create_namespace(name)
    named.connect("dmz", "server", publish=["53:53/udp", "53:53/tcp"])
    named.connect("dmz", "other", addresses=["10.5.0.9", "fd05::9"])
    other = Inside(named, "other")
    with Traffic() as traffic:
        traffic.serve(Inside(named, "server"), 53)
        for transport in ("udp", "tcp"):
            for server in ("10.5.0.1", "fd05::1"):
                assert answers(other, "other", server=server, transport=transport) == {"10.5.0.9"}
            # It is published all the same: at every other address of the host, and for the host itself.
            seen = traffic.one(other, "10.1.0.1", 53, transport)
            assert seen is not None
            assert seen.server == "server"
    assert named.differences() == []


def test_an_address_whose_port_is_taken_is_a_problem_and_no_failure(named: Engine) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        taken.bind(("10.6.0.1", 53))
        named.create_network("late", subnets=["10.6.0.0/24"])
        named.create_namespace("n1")
        named.connect("late", "n1", addresses=["10.6.0.9"])
        (problem,) = named.names.faults()
        assert "10.6.0.1" in problem
        assert "in use" in problem
    named.names.reset()
    named.names.wait()
    assert named.names.faults() == ()
    assert answers(Inside(named, "n1"), "n1", server="10.6.0.1") == {"10.6.0.9"}


# --- the process -----------------------------------------------------------------------------------------------------------------------


def kill(engine: Engine) -> None:
    pidfd = os.pidfd_open(engine.names.pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)


def test_a_verb_succeeds_without_the_process_and_brings_it_back_with_all_that_was_known(named: Engine) -> None:
    events: list[str] = []
    named.listener = lambda kind, _: events.append(kind)
    kill(named)
    named.connect("db", "r1", addresses=["10.2.0.11"])
    assert answers(Inside(named, "r3"), "r1", server="10.2.0.1") == {"10.2.0.11"}
    assert answers(Inside(named, "r1"), "www") == {"10.1.0.11"}
    assert events == ["dns.restart", "endpoint.connect"]


def test_a_process_that_stops_answering_delays_a_verb_but_never_fails_it(named: Engine) -> None:
    os.kill(named.names.pid, signal.SIGSTOP)
    named.disconnect("db", "r2")
    assert unknown(Inside(named, "r2"), "r3.db.atoll")


def test_a_process_that_dies_again_and_again_is_left_dead_for_a_while(named: Engine) -> None:
    for _ in range(10):
        if named.names.pid:
            kill(named)
        named.names.heal()
    assert named.names.pid == 0
    assert named.names.faults() != ()
    named.disconnect("db", "r2")
    assert named.differences() == []


def test_without_a_network_that_has_names_there_is_no_process(named: Engine) -> None:
    pidfd = os.pidfd_open(named.names.pid)
    for name in ("r1", "r2", "r3"):
        named.remove_namespace(name)
    for network in ("web", "db"):
        named.remove_network(network)
    assert named.names.pid == 0
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)


# --- files -----------------------------------------------------------------------------------------------------------------------------


def test_files_say_what_the_networks_are_and_go_with_the_namespace(named: Engine, tmp_path: Path) -> None:
    head = "# Written by Atoll for the namespace r2, and again when its networks change.\n"
    folder = tmp_path / "links" / "r2"
    assert (folder / "resolv.conf").read_text() == (
        f"{head}nameserver 10.1.0.1\nnameserver fd01::1\nnameserver 10.2.0.1\nsearch web.atoll db.atoll\noptions ndots:0\n"
    )
    named.disconnect("web", "r2")
    assert (folder / "resolv.conf").read_text() == f"{head}nameserver 10.2.0.1\nsearch db.atoll\noptions ndots:0\n"
    text = (folder / "hosts").read_text()
    assert text.startswith(f"{head}10.2.0.12\tr2.db.atoll r2\n")
    assert text.endswith(Path("/etc/hosts").read_text())
    for name in ("r1", "r2", "r3"):
        named.remove_namespace(name)
    assert os.listdir(tmp_path / "files") == []
    assert not (tmp_path / "links").exists()
