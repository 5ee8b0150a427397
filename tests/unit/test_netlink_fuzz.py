"""Whatever bytes come, the decoders end and either give values or raise `ValueError` (a socket also `NetlinkError`: the refusal it read).

The bytes are arbitrary, or real messages with bytes overwritten, cut out, put in or repeated, lengths first of all.
"""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atoll.kernel import conntrack, netlink, nft, rtnl, tc
from atoll.kernel.netlink import HEADER_SIZE, Message, NetlinkError, Socket
from tests.unit.netlink_samples import SAMPLES

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

#: A decoder that never ends can't be interrupted kindly; hypothesis would try the same again.
pytestmark = pytest.mark.timeout(60, method="thread")

REAL = {kind: tuple(map(bytes.fromhex, texts)) for kind, texts in SAMPLES.items()}
ALL_REAL = tuple(sample for samples in REAL.values() for sample in samples)


@st.composite
def mutated(draw: st.DrawFn, samples: tuple[bytes, ...] = ALL_REAL) -> bytes:
    """A real message, a little or much damaged."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["length", "bytes", "cut", "insert", "repeat", "end"])):
            case "length":  # attributes begin at multiples of four
                at -= at % 4
                data[at : at + 2] = struct.pack("=H", draw(st.integers(0, 40) | st.integers(0, 65535)))
            case "bytes":
                new = draw(st.binary(min_size=1, max_size=8))
                data[at : at + len(new)] = new
            case "cut":
                del data[at : at + draw(st.integers(1, 8))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case _:
                del data[at:]
    return bytes(data)


def body_of(data: bytes) -> bytes:
    return data[HEADER_SIZE:]


bodies = mutated().map(body_of) | st.binary(max_size=200)
numbers16 = st.integers(0, 65535)
messages = st.builds(Message, numbers16, numbers16, st.just(1), st.just(0), bodies)


def real_messages(kind: str) -> st.SearchStrategy[Message]:
    """A real message's header before a damaged body."""
    kinds = st.sampled_from([struct.unpack_from("=H", sample, 4)[0] for sample in REAL[kind]])
    return st.builds(Message, kinds, numbers16, st.just(1), st.just(0), mutated(REAL[kind]).map(body_of))


class Dump:
    """A socket that answers every dump with the same messages."""

    def __init__(self, answers: list[Message]) -> None:
        self._answers = answers

    def dump(self, request: bytes) -> list[Message]:
        del request
        return self._answers

    def request(self, *requests: bytes) -> list[NetlinkError]:
        assert all(len(tuple(netlink.messages(request))) == 1 for request in requests)
        return []


def try_to(decode: Callable[[], object]) -> None:
    """Any result will do, and of the errors `ValueError`."""
    with contextlib.suppress(ValueError):
        decode()


# --- framing -------------------------------------------------------------------------------------------------------------------------


def test_the_samples_are_read_without_error() -> None:
    for data in ALL_REAL:
        (message,) = netlink.messages(data)
        assert len(message.body) == len(data) - HEADER_SIZE
    for kind, parse in (
        ("links", rtnl.parse_link),
        ("addresses", rtnl.parse_address),
        ("routes", rtnl.parse_route),
        ("rules", rtnl.parse_rule),
    ):
        for data in REAL[kind]:
            assert parse(body_of(data))
    assert sum(len(list(nft.parse_elements(body_of(data)))) for data in REAL["elements"]) == 6


@given(st.binary(max_size=300) | mutated())
def test_messages_lie_inside_their_datagram(data: bytes) -> None:
    try:
        found = list(islice(netlink.messages(data), len(data) + 1))
    except ValueError:
        return
    assert sum(HEADER_SIZE + len(message.body) for message in found) <= len(data)
    assert len(found) <= len(data) // HEADER_SIZE


@given(bodies, st.integers(0, 300))
def test_attributes_lie_inside_their_message(data: bytes, offset: int) -> None:
    try:
        found = list(islice(netlink.attribute_list(data, offset), len(data) + 1))
    except ValueError:
        return
    assert len(found) <= len(data) // 4
    assert sum(4 + len(payload) for _, payload in found) <= max(len(data) - offset, 0)
    assert netlink.attributes(data, offset) == dict(found)
    for _, payload in found:
        assert len(netlink.string(payload)) <= len(payload)
        assert netlink.number(payload) >= 0


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=10))
def test_what_is_written_is_read(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(netlink.attribute(kind, payload) for kind, payload in pairs)
    assert list(netlink.attribute_list(data)) == pairs
    (whole,) = netlink.messages(netlink.message(16, 0, netlink.nested(5, data)))
    assert whole.type == 16
    assert list(netlink.attribute_list(netlink.attributes(whole.body)[5])) == pairs


# --- decoders ------------------------------------------------------------------------------------------------------------------------

PARSERS: dict[str, Callable[[bytes], object]] = {
    "links": rtnl.parse_link,
    "addresses": rtnl.parse_address,
    "routes": rtnl.parse_route,
    "rules": rtnl.parse_rule,
    "elements": lambda body: list(nft.parse_elements(body)),
}


@pytest.mark.parametrize("kind", PARSERS)
def test_parsers_take_anything(kind: str) -> None:
    @given(bodies | mutated(REAL[kind]).map(body_of))
    @example(b"")
    def check(body: bytes) -> None:
        try_to(lambda: PARSERS[kind](body))

    check()


@given(messages | real_messages("links") | real_messages("routes") | real_messages("ruleset"))
def test_events_may_say_anything(event: Message) -> None:
    try_to(lambda: rtnl.parse_event(event))
    try_to(lambda: nft.generation_process(event))
    try_to(lambda: nft.event_table(event))


@given(st.lists(messages | real_messages("ruleset") | real_messages("elements"), max_size=4))
def test_dumps_of_rules_may_say_anything(answers: list[Message]) -> None:
    sock = cast("Socket", Dump(answers))
    try_to(lambda: nft.has_table(sock, "inet", "atoll"))
    try_to(lambda: nft.fingerprint(sock, "inet", "atoll"))
    try_to(lambda: list(nft.elements(sock, "inet", "atoll", "ours")))


@given(
    st.lists(messages | real_messages("links") | real_messages("addresses") | real_messages("routes") | real_messages("rules"), max_size=4)
)
def test_dumps_of_links_may_say_anything(answers: list[Message]) -> None:
    sock = cast("Socket", Dump(answers))
    try_to(lambda: rtnl.links(sock))
    try_to(lambda: rtnl.addresses(sock))
    try_to(lambda: list(rtnl.routes(sock)))
    try_to(lambda: list(rtnl.rules(sock)))
    try_to(lambda: list(tc.queues(sock)))


ADDRESSES = {ipaddress.ip_address("10.77.0.2"), ipaddress.ip_address("fd77::2")}


@given(
    st.lists(messages | real_messages("connections"), max_size=4), st.sets(st.sampled_from(sorted(ADDRESSES, key=str))), st.integers(1, 3)
)
def test_dumps_of_connections_may_say_anything(answers: list[Message], addresses: set[Any], count: int) -> None:
    try_to(lambda: conntrack.forget(cast("Socket", Dump(answers)), addresses, {("tcp", 80, count)}))


# --- sockets -------------------------------------------------------------------------------------------------------------------------


def acknowledgement(sequence: int, code: int = 0) -> bytes:
    return struct.pack("=IHHIIi", 36, netlink.NLMSG_ERROR, 0, sequence, 0, code) + bytes(HEADER_SIZE)


def done(sequence: int, code: int = 0) -> bytes:
    return struct.pack("=IHHIIi", 20, netlink.NLMSG_DONE, 0, sequence, 0, code)


def numbered(data: bytes) -> bytes:
    """As an answer to the first request of a socket."""
    return data[:8] + struct.pack("=I", 1) + data[12:] if len(data) >= HEADER_SIZE else data


answers = st.lists(st.binary(min_size=1, max_size=200) | mutated().map(numbered) | mutated(REAL["refusals"]).map(numbered), max_size=4)


class Wire:
    """In the place of the kernel, which would never send this: one datagram after the other."""

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, size: int) -> bytes:
        return self.datagrams.pop(0)[:size]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("ask", [Socket.request, Socket.execute, Socket.ask, Socket.dump], ids=lambda ask: ask.__name__)
def test_a_socket_hears_anything_until_its_answer_comes(ask: Callable[[Socket, bytes], object]) -> None:
    # A dump that is marked as interrupted is asked again.
    endings = [done(sequence) for sequence in range(1, 6)] if ask is Socket.dump else [acknowledgement(1)]
    wire = Wire()

    @given(answers)
    @example([acknowledgement(1, -(2**31))])
    @example([acknowledgement(1, 5)])
    @example([done(1, -(2**31))])
    def check(before: list[bytes]) -> None:
        sock._sequence = 0
        wire.datagrams = [*before, *endings]
        with contextlib.suppress(ValueError, NetlinkError):
            ask(sock, netlink.message(rtnl.RTM_GETLINK, 0, b""))

    with Socket() as sock:
        sock.close()
        sock._socket = cast("socket.socket", wire)
        check()
