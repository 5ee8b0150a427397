"""DNS messages: what dnspython writes we read alike, what we write it reads, and whatever bytes come, nothing but `Malformed` is raised."""

from __future__ import annotations

import contextlib
import ipaddress

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atoll.dns import wire
from atoll.dns.cache import ENTRIES, Cache

pytestmark = pytest.mark.timeout(60, method="thread")

labels = st.binary(min_size=1, max_size=63)
names = (
    st.lists(labels, max_size=8)
    .filter(lambda found: sum(len(label) + 1 for label in found) < 255)
    .map(lambda found: dns.name.Name([*found, b""]))
)
kinds = st.sampled_from(["A", "AAAA", "PTR", "SRV", "ANY", "MX", "TXT", "HTTPS", "SOA"])
addresses = st.lists(st.ip_addresses(v=4).map(str), max_size=200, unique=True)


@st.composite
def queries(draw: st.DrawFn) -> dns.message.QueryMessage:
    query = dns.message.make_query(draw(names), draw(kinds))
    if draw(st.booleans()):
        options: list[dns.edns.Option] = (
            [dns.edns.GenericOption(dns.edns.OptionType.COOKIE, draw(st.binary(min_size=8, max_size=8)))] if draw(st.booleans()) else []
        )
        query.use_edns(0, dns.flags.DO if draw(st.booleans()) else 0, draw(st.integers(0, 65535)), options=options)
    for flag in (dns.flags.RD, dns.flags.CD, dns.flags.AD):
        query.flags = query.flags | flag if draw(st.booleans()) else query.flags & ~flag
    return query


@settings(deadline=None)
@given(queries())
def test_a_query_is_read_as_dnspython_wrote_it(query: dns.message.QueryMessage) -> None:
    found = wire.read_query(query.to_wire())
    (question,) = query.question
    assert (found.id, found.flags, found.kind, found.cls) == (query.id, int(query.flags), question.rdtype, question.rdclass)
    assert found.question[:-4] == question.name.to_wire()
    assert (found.edns is None) == (query.edns < 0)
    if found.edns:
        assert found.edns == (query.payload, 0, bool(query.ednsflags & dns.flags.DO), bool(query.options))
    plain = [label.replace(b".", b"\\.").lower().decode("latin-1") for label in question.name.labels[:-1]]
    assert found.name == ".".join(plain)


@settings(deadline=None)
@given(queries(), addresses, st.sampled_from([wire.NOERROR, wire.NXDOMAIN, wire.SERVFAIL, wire.REFUSED]))
def test_an_answer_is_read_by_dnspython_as_one_to_the_query(query: dns.message.QueryMessage, found: list[str], rcode: int) -> None:
    if rcode:
        found = []
    data = query.to_wire()
    read = wire.read_query(data)
    built = wire.build(read, rcode, read.room, [wire.record(wire.A, ipaddress.ip_address(text).packed) for text in found])
    for answer_bytes in (data[:2] + built.message(), data[:2] + built.message()):
        assert len(answer_bytes) <= read.room
        answer = dns.message.from_wire(answer_bytes, raise_on_truncation=False)
        assert query.is_response(answer)
        assert answer.rcode() == rcode
        assert answer.question[0].name.labels == query.question[0].name.labels  # in its own spelling
        assert (answer.edns >= 0) == (query.edns >= 0)
        given_back = {rdata.address for rrset in answer.answer for rdata in rrset}
        cut = bool(answer.flags & dns.flags.TC)
        assert given_back < set(found) if cut else given_back == set(found)
        assert bool(answer.authority) == (not found and rcode in (wire.NOERROR, wire.NXDOMAIN))


def test_several_addresses_come_in_any_order() -> None:
    query = wire.read_query(dns.message.make_query("db", "A").to_wire())
    built = wire.build(query, wire.NOERROR, 512, [wire.record(wire.A, bytes((10, 0, 0, last))) for last in range(1, 5)])
    assert len({built.message() for _ in range(1000)}) == 24


@settings(deadline=None)
@given(st.binary(max_size=600))
@example(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1")  # a pointer to itself
@example(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\1a\xc0\x0c\0\1\0\1")
@example(b"\x12\x34\x01\0\0\1\0\0\0\0\xff\xff\0\0\1\0\1")
def test_arbitrary_bytes_are_malformed_or_a_query(data: bytes) -> None:
    for read in (wire.read_query, wire.read_response):
        with contextlib.suppress(wire.Malformed):
            read(data)
    wire.complaint(data)


@settings(deadline=None)
@given(queries(), st.lists(st.tuples(st.integers(0, 600), st.binary(max_size=3)), max_size=4))
def test_damaged_queries_are_malformed_or_a_query(query: dns.message.QueryMessage, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(query.to_wire())
    for at, new in changes:
        at %= len(data) + 1
        data[at : at + len(new)] = new
    with contextlib.suppress(wire.Malformed):
        found = wire.read_query(bytes(data))
        assert len(wire.build(found, wire.NXDOMAIN, found.room).message()) < 512


@pytest.mark.parametrize("broken", ["two questions", "an answer", "trailing bytes", "two OPT", "cut short", "a long name"])
def test_a_query_has_one_question_and_nothing_else(broken: str) -> None:
    query = dns.message.make_query("db", "A", use_edns=0)
    data = query.to_wire()
    match broken:
        case "two questions":
            data = data[:5] + b"\2" + data[6:]
        case "an answer":
            data = data[:7] + b"\1" + data[8:]
        case "trailing bytes":
            data += b"\0"
        case "two OPT":
            data = data[:11] + b"\2" + data[12:] + data[-11:]
        case "cut short":
            data = data[:-1]
        case _:
            data = data[:12] + b"\x3f" + b"x" * 63 + (b"\x3f" + b"x" * 63) * 3 + b"\0\0\1\0\1" + data[-11:]
    with pytest.raises(wire.Malformed):
        wire.read_query(data)


def response(query: dns.message.QueryMessage, *records: str, rcode: str = "NOERROR", authority: str = "") -> bytes:
    answer = dns.message.make_response(query)
    answer.set_rcode(dns.rcode.from_text(rcode))
    for text in records:
        name, ttl, kind, data = text.split(" ", 3)
        answer.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, data))
    if authority:
        name, ttl, kind, data = authority.split(" ", 3)
        answer.authority.append(dns.rrset.from_text(name, int(ttl), "IN", kind, data))
    return answer.to_wire()


SOA = "example. 600 SOA ns.example. root.example. 1 2 3 4 60"


@pytest.mark.parametrize(
    ("records", "rcode", "authority", "lifetime"),
    [
        (("www.example. 300 A 192.0.2.1",), "NOERROR", "", 300),
        (("www.example. 300 CNAME w.example.", "w.example. 20 A 192.0.2.1"), "NOERROR", "", 20),
        ((), "NXDOMAIN", SOA, 60),
        ((), "NOERROR", SOA, 60),
        ((), "NXDOMAIN", "", 0),
        ((), "SERVFAIL", SOA, 0),
        (("www.example. 0 A 192.0.2.1",), "NOERROR", "", 0),
    ],
)
def test_how_long_an_answer_holds(records: tuple[str, ...], rcode: str, authority: str, lifetime: int) -> None:
    query = dns.message.make_query("www.example.", "A", use_edns=0)
    assert wire.read_response(response(query, *records, rcode=rcode, authority=authority)).lifetime == lifetime


@settings(deadline=None)
@given(st.integers(0, 1 << 31))
def test_an_aged_answer_differs_in_its_ttls_only(age: int) -> None:
    query = dns.message.make_query("www.example.", "A", use_edns=0, want_dnssec=True)
    data = response(query, "www.example. 300 CNAME w.example.", "w.example. 2000000000 A 192.0.2.1", authority=SOA)
    before = dns.message.from_wire(data)
    after = dns.message.from_wire(wire.aged(data, wire.read_response(data).ttls, age))
    for old, new in zip(before.answer + before.authority, after.answer + after.authority, strict=True):
        assert new == old
        assert new.ttl == max(0, old.ttl - age)
    assert (after.edns, after.ednsflags, after.payload) == (before.edns, before.ednsflags, before.payload)


def test_the_cache_keeps_what_may_be_kept_and_no_more_than_its_number() -> None:
    cache = Cache()
    query = dns.message.make_query("www.example.", "A")
    lasting, fleeting = (response(query, f"www.example. {ttl} A 192.0.2.1") for ttl in (300, 0))
    cache.put("fleeting", fleeting, wire.read_response(fleeting))
    assert cache.get("fleeting") is None
    for number in range(ENTRIES + 10):
        cache.put(number, lasting, wire.read_response(lasting))
    assert len(cache) == ENTRIES
    assert cache.get(9) is None
    assert cache.get(10) == lasting


def test_another_spelling_gets_its_own_back() -> None:
    asked, other = dns.message.make_query("www.example.", "A"), dns.message.make_query("WWW.eXample.", "A")
    answer = wire.respell(response(asked, "www.example. 300 A 192.0.2.1"), wire.read_query(other.to_wire()))
    found = dns.message.from_wire(answer)
    assert other.is_response(found)
    assert found.question[0].name.labels == other.question[0].name.labels
    assert found.answer[0].name.labels == other.question[0].name.labels


@settings(deadline=None)
@given(st.ip_addresses())
def test_the_reverse_of_an_address_is_its_own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert wire.address_of(wire.reverse_of(str(address))) == str(address)


@pytest.mark.parametrize(
    "name", ["1.0.0.10.in-addr.arpa.", "0.0.10.in-addr.arpa", "x.0.0.10.in-addr.arpa", "1.ip6.arpa", "300.0.0.10.in-addr.arpa"]
)
def test_no_address_comes_of_less_than_one(name: str) -> None:
    assert wire.address_of(name) == ""


def test_the_type_of_a_question_has_no_case() -> None:
    """HTTPS is 65, an `A`, and 97 is an `a`: another question, for which no answer of the first may be given."""
    https, other = (wire.read_query(dns.message.make_query("www.example", kind).to_wire()) for kind in ("HTTPS", "TYPE97"))
    assert wire.folded(https.question) != wire.folded(other.question)
    upper = wire.read_query(dns.message.make_query("WWW.Example", "HTTPS").to_wire())
    assert wire.folded(https.question) == wire.folded(upper.question)
    answer = dns.message.make_response(dns.message.make_query("www.example", "TYPE97")).to_wire()
    assert wire.respell(answer, https)[wire.HEADER :] == answer[wire.HEADER :]
