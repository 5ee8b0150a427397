"""Around a name server under test: networks with clients, servers of others to forward to, and questions.

A network here is a cable to one machine that has the addresses of all clients, since it is the source address that tells them apart.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rrset

from atoll.dns.child import NameServer
from atoll.dns.zone import EndpointNames, NetworkNames, Update
from atoll.kernel import netlink, rtnl
from atoll.kernel.host import interface_index
from atoll.lab.machine import Machine, wire
from atoll.model import interface
from tests.support import PATIENCE, lenient

if TYPE_CHECKING:
    from pathlib import Path

#: network id -> its /24 and /64 by number: 10.N.0.0/24 and fd00:N::/64, the gateway being 1.
NUMBERS: Final = {"front": 1, "back": 2, "out": 9}


def v4(network: str, last: int) -> str:
    return f"10.{NUMBERS[network]}.0.{last}"


def v6(network: str, last: int) -> str:
    return f"fd00:{NUMBERS[network]}::{last:x}"


def network_names(network: str, *, internal: bool = False, servers: tuple[str, ...] = ()) -> NetworkNames:
    n = NUMBERS[network]
    return NetworkNames(network, network, (v4(network, 1), v6(network, 1)), (f"10.{n}.0.0/24", f"fd00:{n}::/64"), internal, servers)


def endpoint(network: str, last: int, name: str, *aliases: str, services: tuple[tuple[int, str], ...] = ()) -> EndpointNames:
    return EndpointNames(f"{network}{last}", network, name, (name, *aliases), (v4(network, last), v6(network, last)), services)


@contextlib.contextmanager
def cable(network: str, lasts: Iterable[int]) -> Iterator[Machine]:
    """A machine with these addresses of a network, on a cable to the host, which has the gateway's."""
    with Machine(network) as machine:
        machine.run(lenient)
        wire(network, machine, "eth0")
        with netlink.Socket() as sock:
            index = interface_index(sock, network)
            sock.execute(rtnl.set_link(index, up=True))
            sock.execute(*(rtnl.add_address(index, interface(text)) for text in (f"{v4(network, 1)}/24", f"{v6(network, 1)}/64")))
        machine.configure("eth0", [text for last in lasts for text in (f"{v4(network, last)}/24", f"{v6(network, last)}/64")])
        yield machine


@contextlib.contextmanager
def name_server(resolv_conf: Path | str = "/nonexistent") -> Iterator[NameServer]:
    """One on this host, whose own errors are errors of the test."""
    server = NameServer(resolv_conf=str(resolv_conf))
    try:
        yield server
        assert server.stats()["errors"] == 0
    finally:
        server.close()


def dgram(machine: Machine, source: str, server: str) -> socket.socket:
    return _socket(machine, source, server, socket.SOCK_DGRAM)


def stream(machine: Machine, source: str, server: str) -> socket.socket:
    return _socket(machine, source, server, socket.SOCK_STREAM)


def _socket(machine: Machine, source: str, server: str, kind: int) -> socket.socket:
    made = machine.run(lambda: socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, kind))
    made.settimeout(PATIENCE)
    if source:
        made.bind((source, 0))
    made.connect((server, 53))
    return made


def query(name: str, kind: str = "A", **options: Any) -> dns.message.QueryMessage:
    return dns.message.make_query(name, kind, **options)


def exchange(
    machine: Machine, source: str, server: str, question: dns.message.QueryMessage, *, transport: str = "udp"
) -> dns.message.Message:
    """The answer to a question, which must come from the address that was asked: the socket is connected."""
    if transport == "tcp":
        with stream(machine, source, server) as sock:
            dns.query.send_tcp(sock, question)
            answer, _ = dns.query.receive_tcp(sock)
    else:
        with dgram(machine, source, server) as sock:
            sock.send(question.to_wire())
            answer = dns.message.from_wire(sock.recv(65535))
    assert question.is_response(answer)
    return answer


def ask(machine: Machine, source: str, server: str, name: str, kind: str = "A", *, transport: str = "udp") -> list[str] | str:
    """What the answer section says, or the rcode where it is empty."""
    answer = exchange(machine, source, server, query(name, kind), transport=transport)
    found = sorted(rdata.to_text() for rrset in answer.answer for rdata in rrset)
    return found or dns.rcode.to_text(answer.rcode())


Reply = Callable[[dns.message.Message, str], "Iterable[bytes]"]


class Upstream:
    """Somebody's name server on a machine: `reply` gives what is sent back to a query by its transport, raw; nothing is silence.

    `asked` is what came: transport, source port, query.
    """

    def __init__(self, machine: Machine, addresses: Iterable[str], reply: Reply) -> None:
        self.asked: list[tuple[str, int, dns.message.Message]] = []
        self._reply = reply
        self._selector = selectors.DefaultSelector()
        self._stop, self._stopped = socket.socketpair()
        self._selector.register(self._stopped, selectors.EVENT_READ, None)
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for kind, handler in ((socket.SOCK_DGRAM, self._datagram), (socket.SOCK_STREAM, self._connection)):
                made = machine.run(lambda family=family, kind=kind: socket.socket(family, kind))  # type: ignore[misc]
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                text, _, scope = address.partition("%")
                made.bind((text, 53, 0, int(scope or 0)) if ":" in text else (text, 53))
                if kind == socket.SOCK_STREAM:
                    made.listen()
                self._selector.register(made, selectors.EVENT_READ, handler)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Upstream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def questions(self) -> list[tuple[str, str]]:
        return [(transport, message.question[0].to_text()) for transport, _, message in self.asked]

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                key.data(key.fileobj)

    def _datagram(self, server: socket.socket) -> None:
        data, peer = server.recvfrom(65535)
        for answer in self._replies(data, "udp", peer[1]):
            server.sendto(answer, peer)

    def _connection(self, listener: socket.socket) -> None:
        made, peer = listener.accept()
        made.settimeout(PATIENCE)
        with made, contextlib.suppress(OSError, EOFError, dns.exception.DNSException):
            message, _ = dns.query.receive_tcp(made)
            for answer in self._replies(message.to_wire(), "tcp", peer[1]):
                made.sendall(len(answer).to_bytes(2, "big") + answer)

    def _replies(self, data: bytes, transport: str, port: int) -> Iterable[bytes]:
        message = dns.message.from_wire(data)
        self.asked.append((transport, port, message))
        return self._reply(message, transport)


def answering(*addresses: str, ttl: int = 60, rcode: str = "NOERROR", soa: int | None = None, tc: bool = False) -> Reply:
    """A server that says the same to every question."""

    def reply(message: dns.message.Message, transport: str) -> Iterable[bytes]:
        answer = dns.message.make_response(message, recursion_available=True)
        answer.set_rcode(dns.rcode.from_text(rcode))
        name = message.question[0].name
        if addresses and not (tc and transport == "udp"):
            answer.answer.append(dns.rrset.from_text_list(name, ttl, "IN", "A", addresses))
        if soa is not None:
            answer.authority.append(dns.rrset.from_text(name, ttl, "IN", "SOA", f"ns.example. root.example. 1 2 3 4 {soa}"))
        if tc and transport == "udp":
            answer.flags |= dns.flags.TC
        return [answer.to_wire()]

    return reply


def silent(message: dns.message.Message, transport: str) -> Iterable[bytes]:
    return []


def zone(*networks: NetworkNames, endpoints: tuple[EndpointNames, ...] = (), serial: int = 1) -> Update:
    return Update(serial, reset=True, networks=networks, endpoints=endpoints)
