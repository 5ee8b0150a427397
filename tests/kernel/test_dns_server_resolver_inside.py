"""A namespace with a resolver of somebody else's inside, as Docker's containers have: it is asked first what we don't know."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import dns.message
import pytest

from atoll.dns.zone import NamespaceServers, Update
from tests.kernel.dns_lab import Upstream, answering, ask, cable, dgram, endpoint, name_server, network_names, query, silent, v4, zone

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from atoll.dns.child import NameServer
    from atoll.lab.machine import Machine

WEB, DB = 2, 3
SERVER = v4("out", 51)
RESOLVER = "127.0.0.11"


@pytest.fixture
def server(host: None) -> Iterator[NameServer]:
    with name_server() as started:
        yield started


@pytest.fixture
def front(server: NameServer) -> Iterator[Machine]:
    with cable("front", (WEB, DB)) as machine:
        tell(server, machine)
        yield machine


@pytest.fixture
def out(server: NameServer) -> Iterator[Machine]:
    with cable("out", (51,)) as machine:
        yield machine


def tell(server: NameServer, machine: Machine, *, internal: bool = False, serial: int = 1) -> None:
    """web has a resolver inside, db has none."""
    network = network_names("front", internal=internal, servers=(SERVER,))
    server.update(zone(network, endpoints=(endpoint("front", WEB, "web"), endpoint("front", DB, "db")), serial=serial))
    path = f"/proc/{os.getpid()}/fd/{machine.fd}"
    server.update(Update(serial + 1, namespaces=(NamespaceServers("web", resolver=RESOLVER, path=path),)))


def asked(machine: Machine, name: str, last: int = WEB, transport: str = "udp") -> list[str] | str:
    return ask(machine, v4("front", last), v4("front", 1), name, transport=transport)


def test_it_is_asked_first_and_says_what_there_is_and_what_there_isn_t(front: Machine, out: Machine) -> None:
    with Upstream(front, [RESOLVER], answering("192.0.2.1")) as inside, Upstream(out, [SERVER], answering("192.0.2.2")) as outside:
        for transport in ("udp", "tcp"):
            assert asked(front, "other", transport=transport) == ["192.0.2.1"]
        assert asked(front, "db") == [v4("front", DB)]  # ours
        assert asked(front, "nobody.atoll") == "NXDOMAIN"
        assert asked(front, "other", last=DB) == ["192.0.2.2"]  # whose namespace has none
        assert [name.split()[0] for _, name in inside.questions()] == ["other.", "other."]
        assert len(outside.asked) == 1


def test_what_it_says_is_not_kept(front: Machine) -> None:
    """Its names may be others' a moment later."""
    with Upstream(front, [RESOLVER], answering("192.0.2.1", ttl=600)) as inside:
        for _ in range(2):
            assert asked(front, "other") == ["192.0.2.1"]
        assert len(inside.asked) == 2


def test_that_it_knows_of_nobody_is_final(front: Machine, out: Machine) -> None:
    with Upstream(front, [RESOLVER], answering(rcode="NXDOMAIN")), Upstream(out, [SERVER], answering("192.0.2.2")) as outside:
        assert asked(front, "nobody") == "NXDOMAIN"
        assert outside.asked == []


def test_it_is_asked_from_an_internal_network_too_and_nobody_else_is(front: Machine, out: Machine, server: NameServer) -> None:
    tell(server, front, internal=True, serial=3)
    with Upstream(front, [RESOLVER], answering("192.0.2.1")), Upstream(out, [SERVER], answering("192.0.2.2")) as outside:
        assert asked(front, "other") == ["192.0.2.1"]
        assert asked(front, "other", last=DB) == "NXDOMAIN"
        assert outside.asked == []


@pytest.mark.parametrize("how", ["silent", "failing", "missing", "ended"])
def test_where_it_does_not_help_the_servers_do(front: Machine, out: Machine, server: NameServer, how: str) -> None:
    with Upstream(out, [SERVER], answering("192.0.2.2")):
        if how in ("silent", "failing"):
            with Upstream(front, [RESOLVER], silent if how == "silent" else answering(rcode="SERVFAIL")):
                assert asked(front, "www.example") == ["192.0.2.2"]
            return
        if how == "ended":
            gone = NamespaceServers("web", resolver=RESOLVER, path="/run/netns/gone")
            server.update(Update(3, namespaces=(gone,)))
        assert asked(front, "www.example") == ["192.0.2.2"]


def test_one_that_asks_us_in_turn_keeps_nobody_waiting(front: Machine, out: Machine) -> None:
    """Docker's asks the host's servers, and one of these may be a gateway of ours (atoll dns install)."""
    with dgram(front, v4("front", WEB), v4("front", 1)) as back:

        def forwards(message: dns.message.Message, transport: str) -> Iterable[bytes]:
            back.send(query(message.question[0].name.to_text()).to_wire())
            answer = dns.message.from_wire(back.recv(512))
            answer.id = message.id
            return [answer.to_wire()]

        with Upstream(front, [RESOLVER], forwards), Upstream(out, [SERVER], answering("192.0.2.2")):
            assert asked(front, "www.example") == ["192.0.2.2"]
