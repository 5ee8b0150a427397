"""Questions for others: whom they go to, what may come back, and what happens when nobody answers or somebody lies."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from atoll.dns.zone import NamespaceServers, NetworkNames, Update
from tests.kernel.dns_lab import (
    Upstream,
    answering,
    ask,
    cable,
    dgram,
    endpoint,
    exchange,
    name_server,
    network_names,
    query,
    silent,
    v4,
    v6,
    zone,
)
from tests.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from atoll.dns.child import NameServer
    from atoll.lab.machine import Machine
    from tests.kernel.dns_lab import Reply

WEB, DB = 2, 3
#: Where others' servers are, in the order in which they are asked.
S1, S2, S3 = 51, 52, 53
SERVERS = tuple(v4("out", last) for last in (S1, S2, S3))


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    return tmp_path / "resolv.conf"


@pytest.fixture
def server(host: None, resolv_conf: Path) -> Iterator[NameServer]:
    with name_server(resolv_conf) as started:
        tell(started, network_names("front", servers=SERVERS))
        yield started


def tell(server: NameServer, front: NetworkNames, serial: int = 1) -> None:
    endpoints = (endpoint("front", WEB, "web"), endpoint("front", DB, "db"))
    assert server.update(zone(front, endpoints=endpoints, serial=serial)) == ()


@pytest.fixture
def front(server: NameServer) -> Iterator[Machine]:
    with cable("front", (WEB, DB)) as machine:
        yield machine


@pytest.fixture
def out(host: None) -> Iterator[Machine]:
    with cable("out", (S1, S2, S3)) as machine:
        yield machine


@contextlib.contextmanager
def upstreams(out: Machine, *replies: Reply) -> Iterator[list[Upstream]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Upstream(out, [v4("out", S1 + n), v6("out", S1 + n)], reply)) for n, reply in enumerate(replies)]


def asked(front: Machine, name: str, kind: str = "A", *, transport: str = "udp", last: int = WEB) -> list[str] | str:
    return ask(front, v4("front", last), v4("front", 1), name, kind, transport=transport)


def test_what_isnt_ours_is_passed_on_word_for_word_and_by_the_same_transport(front: Machine, out: Machine) -> None:
    with upstreams(out, answering("192.0.2.1")) as (upstream,):
        for transport in ("udp", "tcp"):
            question = query(f"{transport}.Example.COM", "A", use_edns=0, payload=1400, want_dnssec=True)
            answer = exchange(front, v4("front", WEB), v4("front", 1), question, transport=transport)
            assert answer.answer[0][0].to_text() == "192.0.2.1"
            kind, _, message = upstream.asked[-1]
            assert kind == transport
            assert message.id != question.id
            message.id = question.id
            assert message.to_wire() == question.to_wire()
        assert asked(front, "nobody") == ["192.0.2.1"]  # a short name that nobody here has
        assert asked(front, "nobody.atoll") == "NXDOMAIN"
        assert asked(front, "9.0.1.10.in-addr.arpa", "PTR") == "NXDOMAIN"
        assert len(upstream.asked) == 3  # what is ours never left


def test_every_question_has_a_port_and_an_id_of_its_own(front: Machine, out: Machine) -> None:
    with upstreams(out, answering("192.0.2.1", ttl=0)) as (upstream,):
        for number in range(60):
            asked(front, f"w{number}.example")
        assert len({port for _, port, _ in upstream.asked}) > 50
        assert len({message.id for _, _, message in upstream.asked}) > 50


def test_an_answer_is_kept_as_long_as_it_holds(front: Machine, out: Machine) -> None:
    with upstreams(out, answering("192.0.2.1", ttl=2)) as (upstream,):
        begun = time.monotonic()
        ttls = []
        while len(upstream.asked) < 2:
            answer = exchange(front, v4("front", WEB), v4("front", 1), query("WWW.example"))
            assert answer.question[0].name.labels[0] == b"WWW"
            ttls.append(answer.answer[0].ttl)
            assert asked(front, "www.example", last=DB) == ["192.0.2.1"]
            assert time.monotonic() - begun < PATIENCE
        assert time.monotonic() - begun >= 1.9
        assert set(ttls) >= {2, 1}


@pytest.mark.parametrize(("soa", "questions"), [(60, 1), (None, 3), (0, 3)])
def test_what_does_not_exist_is_kept_as_long_as_its_soa_says(front: Machine, out: Machine, soa: int | None, questions: int) -> None:
    with upstreams(out, answering(rcode="NXDOMAIN", soa=soa), answering("192.0.2.1")) as (first, second):
        for _ in range(3):
            assert asked(front, "nobody.example") == "NXDOMAIN"
        assert len(first.asked) == questions
        assert not second.asked


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("first", [silent, answering(rcode="SERVFAIL"), answering(rcode="REFUSED")], ids=["silent", "servfail", "refused"])
def test_the_next_server_is_asked_where_one_fails(front: Machine, out: Machine, first: Reply, transport: str) -> None:
    with upstreams(out, first, answering("192.0.2.2")):
        assert asked(front, "www.example", transport=transport) == ["192.0.2.2"]


def test_the_next_server_is_asked_where_there_is_none(front: Machine, out: Machine) -> None:
    with Upstream(out, [v4("out", S3)], answering("192.0.2.3")):
        for transport in ("udp", "tcp"):
            assert asked(front, f"{transport}.example", transport=transport) == ["192.0.2.3"]


def test_a_lost_question_is_asked_again(front: Machine, out: Machine, server: NameServer) -> None:
    seen: list[int] = []

    def second_time(message: dns.message.Message, transport: str) -> Iterable[bytes]:
        seen.append(message.id)
        return answering("192.0.2.1")(message, transport) if len(seen) == 2 else []

    tell(server, network_names("front", servers=SERVERS[:1]), serial=2)
    with upstreams(out, second_time):
        assert asked(front, "www.example") == ["192.0.2.1"]
    assert len(set(seen)) == 2


def test_when_nobody_answers_that_is_the_answer(front: Machine, out: Machine, server: NameServer) -> None:
    with upstreams(out, silent, silent, silent) as servers:
        begun = time.monotonic()
        assert asked(front, "www.example") == "SERVFAIL"
        assert 4.5 < time.monotonic() - begun < PATIENCE
        assert all(each.asked for each in servers)
        assert server.stats()["forwarding"] == 0
    with upstreams(out, answering(rcode="REFUSED"), answering(rcode="SERVFAIL"), answering(rcode="REFUSED")):
        assert asked(front, "other.example") in ("REFUSED", "SERVFAIL")  # theirs


def test_no_server_is_a_failure_at_once(front: Machine, server: NameServer) -> None:
    tell(server, network_names("front"), serial=2)
    assert asked(front, "www.example") == "SERVFAIL"


def test_lies_are_not_believed(front: Machine, out: Machine) -> None:
    def lies(message: dns.message.Message, transport: str) -> Iterable[bytes]:
        def forged(question: dns.message.Message) -> bytes:
            return b"".join(answering("203.0.113.6")(question, transport))

        other = dns.message.make_query("other.example", "A")
        other.id = message.id
        true = forged(message)
        yield forged(other)  # another question
        yield ((message.id + 1) & 0xFFFF).to_bytes(2, "big") + true[2:]  # another id
        yield true[:2] + bytes((true[2] & 0x7F,)) + true[3:]  # no response
        yield true[:-1]  # cut short
        yield true[:1]
        yield b""
        yield b"".join(answering("192.0.2.1")(message, transport))

    with upstreams(out, lies):
        assert asked(front, "www.example") == ["192.0.2.1"]


def test_an_answer_to_one_type_is_none_to_another(front: Machine, out: Machine) -> None:
    """HTTPS is 65, `A` as a byte, and TYPE97 `a`: whoever asks for the one must not decide what others hear of the other."""
    with upstreams(out, answering(soa=60)) as (upstream,):
        for kind in ("TYPE97", "HTTPS"):
            asked(front, "www.example", kind)
        assert [message.question[0].rdtype for _, _, message in upstream.asked] == [97, 65]


def test_one_who_says_nonsense_on_a_stream_is_heard_no_further(front: Machine, out: Machine) -> None:
    """What comes after it would only pile up."""
    taken = []

    def nonsense(message: dns.message.Message, transport: str) -> Iterable[bytes]:
        yield b"".join(answering("203.0.113.6")(message, transport))[:-1]
        for _ in range(300):  # 20 MB, more than any queue holds
            yield bytes(65535)
        taken.append(message)

    with upstreams(out, nonsense):
        assert asked(front, "www.example", transport="tcp") == "SERVFAIL"
    assert not taken


def test_a_forged_answer_from_elsewhere_is_not_heard(front: Machine, out: Machine) -> None:
    """An attacker who even knows port and id still has the wrong address."""
    with upstreams(out, silent) as (upstream,), dgram(front, v4("front", WEB), v4("front", 1)) as sock:
        question = query("www.example")
        sock.send(question.to_wire())
        deadline = time.monotonic() + PATIENCE
        while not upstream.asked:
            assert time.monotonic() < deadline
        _, port, message = upstream.asked[0]
        with dgram(out, v4("out", S2), v4("out", 1)) as attacker:
            attacker.connect((v4("out", 1), port))
            attacker.send(b"".join(answering("203.0.113.6")(message, "udp")))
        assert dns.message.from_wire(sock.recv(512)).rcode() == dns.rcode.SERVFAIL


def test_what_is_too_long_upstream_comes_over_tcp(front: Machine, out: Machine) -> None:
    many = [f"198.18.{number // 250}.{1 + number % 250}" for number in range(500)]
    with upstreams(out, answering(*many, tc=True)) as (upstream,):
        cut = exchange(front, v4("front", WEB), v4("front", 1), query("many.example"))
        assert cut.flags & dns.flags.TC
        assert len(asked(front, "many.example", transport="tcp")) == 500
        assert [transport for transport, _ in upstream.questions()] == ["udp", "tcp"]


def test_the_same_question_waits_for_the_same_answer(front: Machine, out: Machine) -> None:
    with upstreams(out, answering("192.0.2.1", ttl=0)) as (upstream,):
        with dgram(front, v4("front", WEB), v4("front", 1)) as sock:
            questions = [query(name) for name in ("www.example", "WWW.example", "www.EXAMPLE") * 10]
            for question in questions:
                sock.send(question.to_wire())
            answers = {made.id: made for made in (dns.message.from_wire(sock.recv(512)) for _ in questions)}
        for question in questions:
            assert question.is_response(answers[question.id])
            assert answers[question.id].question[0].name.labels == question.question[0].name.labels
        assert len(upstream.asked) < len(questions)


# --- whom to ask


def test_the_namespaces_servers_go_before_the_networks_and_those_before_the_hosts(
    front: Machine, out: Machine, server: NameServer, resolv_conf: Path
) -> None:
    with upstreams(out, answering("192.0.2.1"), answering("192.0.2.2"), answering("192.0.2.3")):
        resolv_conf.write_text(f"# comment\nsearch example\nnameserver {v4('out', S3)}\noptions edns0\n")
        server.update(Update(2, namespaces=(NamespaceServers("web", (v4("out", S2),)),)))
        assert asked(front, "www.example", last=WEB) == ["192.0.2.2"]
        assert asked(front, "www.example", last=DB) == ["192.0.2.1"]  # nor what others were told
        tell(server, network_names("front"), serial=3)
        assert asked(front, "www.example", last=DB) == ["192.0.2.3"]
        resolv_conf.write_text(f"nameserver {v6('out', S1)}\n")
        assert asked(front, "www.example", last=DB) == ["192.0.2.1"]


def test_a_scoped_address_is_a_server(front: Machine, out: Machine, server: NameServer, resolv_conf: Path) -> None:
    out.configure("eth0", ["fe80::53/64"])
    with Upstream(out, [f"fe80::53%{out.run(lambda: socket.if_nametoindex('eth0'))}"], answering("192.0.2.9")):
        resolv_conf.write_text("nameserver fe80::53%out\n")
        tell(server, network_names("front"), serial=2)
        assert asked(front, "www.example") == ["192.0.2.9"]


def test_we_never_ask_ourselves(front: Machine, server: NameServer, resolv_conf: Path) -> None:
    resolv_conf.write_text(f"nameserver {v4('front', 1)}\nnameserver {v6('front', 1)}\nnameserver nonsense\n")
    tell(server, network_names("front"), serial=2)
    assert asked(front, "www.example") == "SERVFAIL"
    assert server.stats()["forwarded"] == 0


def test_what_can_be_no_address_is_passed_over(front: Machine, out: Machine, server: NameServer, resolv_conf: Path) -> None:
    tell(server, network_names("front"), serial=2)
    with Upstream(out, [v4("out", S1)], answering("192.0.2.1")):
        for number, nonsense in enumerate(("192.0.2.1\0", f"fe80::1%{'9' * 5000}", "\xff", "fe80::1%nowhere")):
            resolv_conf.write_text(f"nameserver {nonsense}\nnameserver {v4('out', S1)}\n", encoding="latin-1")
            assert asked(front, f"w{number}.example") == ["192.0.2.1"]


def test_an_internal_network_lets_nothing_out(front: Machine, out: Machine, server: NameServer) -> None:
    tell(server, network_names("front", internal=True, servers=SERVERS), serial=2)
    with upstreams(out, answering("192.0.2.1")) as (upstream,):
        for name in ("secret.evil.example", "evil", "4.2.0.192.in-addr.arpa"):
            assert asked(front, name) == "NXDOMAIN"
        assert upstream.asked == []


def test_dnsmasq_is_a_server_like_any(front: Machine, out: Machine) -> None:
    program = shutil.which("dnsmasq", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        pytest.skip("dnsmasq is not installed: apt-get install dnsmasq-base")
    command = [program, "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
    command += [f"--listen-address={v4('out', S1)}", "--bind-interfaces", "--host-record=www.example,192.0.2.7", "--local=/example/"]
    with out.popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while asked(front, "www.example") != ["192.0.2.7"]:
                assert time.monotonic() < deadline
            for transport in ("udp", "tcp"):
                assert asked(front, "nobody.example", transport=transport) == "NXDOMAIN"
        finally:
            process.kill()
