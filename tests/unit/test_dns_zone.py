"""What a client is told: its own networks' names in every way to say them, nobody else's; and a change is as good as a new start."""

from __future__ import annotations

from typing import Any

import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from atoll.dns import wire, zone
from atoll.dns.zone import EndpointNames, NamespaceServers, NetworkNames, Update, Zone

FRONT = NetworkNames("f", "Front", ("10.1.0.1", "fd01::1"), ("10.1.0.0/24", "fd01::/64"), internal=False, servers=("192.0.2.53",))
BACK = NetworkNames("b", "back", ("10.2.0.1",), ("10.2.0.0/24",), internal=True)
WEB = EndpointNames("1", "f", "web", ("web", "WWW"), ("10.1.0.2", "fd01::2"), ((80, "tcp"),))
WEB_BACK = EndpointNames("2", "b", "web", ("web",), ("10.2.0.2",))
DB = EndpointNames("3", "b", "db", ("db", "www"), ("10.2.0.3",), ((5432, "tcp"), (53, "udp")))
SHOP = EndpointNames("4", "f", "shop", ("shop", "a.b"), ("10.1.0.4",))


def filled() -> Zone:
    made = Zone()
    made.apply(Update(1, networks=(FRONT, BACK), endpoints=(WEB, WEB_BACK, DB, SHOP)))
    return made


def view(known: Zone, source: str) -> zone.View:
    client = next((found for network in known.networks if (found := known.client(network, source))), None)
    return client.view if client else known.host.view


def told(known: Zone, source: str, name: str, kind: str = "A") -> Any:
    """Rcode, or the answer section as text, or None for what is asked of others."""
    data = dns.message.make_query(name, kind).to_wire()
    query = wire.read_query(data)
    seen = view(known, source)
    kept = seen.answers.get(data[2:])
    if kept is None:
        found = known.find(seen, query)
        if found is None:
            return None
        answer = wire.build(query, found.rcode, wire.LARGEST, found.answers, found.extra)
        if not query.name.startswith("_"):
            known.keep(seen, query, data[2:], answer)
        kept = answer
    message = dns.message.from_wire(data[:2] + (kept if isinstance(kept, bytes) else kept.message()))
    if message.rcode() or not message.answer:
        assert message.authority
        return message.rcode().name
    return sorted(rdata.to_text() for rrset in message.answer for rdata in rrset)


@pytest.mark.parametrize(
    ("name", "kind", "answer"),
    [
        ("db", "A", ["10.2.0.3"]),
        ("db.back", "A", ["10.2.0.3"]),
        ("DB.Back.ATOLL", "A", ["10.2.0.3"]),
        ("db.front.atoll", "A", "NXDOMAIN"),
        ("www", "A", ["10.1.0.2", "10.2.0.3"]),
        ("www.front", "A", ["10.1.0.2"]),
        ("web", "A", ["10.1.0.2", "10.2.0.2"]),
        ("web", "AAAA", ["fd01::2"]),
        ("db", "AAAA", "NOERROR"),
        ("db", "MX", "NOERROR"),
        ("db", "TXT", "NOERROR"),
        ("db", "HTTPS", "NOERROR"),
        ("a.b", "A", ["10.1.0.4"]),
        ("a.b.front.atoll", "A", ["10.1.0.4"]),
        ("back.atoll", "A", "NOERROR"),
        ("atoll", "A", "NOERROR"),
        ("nobody", "A", None),
        ("nobody.atoll", "A", "NXDOMAIN"),
        ("nobody.front", "A", None),
        ("example.com", "A", None),
        ("_5432._tcp.db", "SRV", ["0 1 5432 db.back.atoll."]),
        ("_domain._udp.db.back", "SRV", ["0 1 53 db.back.atoll."]),
        ("_http._tcp.web.front.atoll", "SRV", ["0 1 80 web.Front.atoll."]),
        ("_80._udp.web.front.atoll", "SRV", "NXDOMAIN"),
        ("_80._tcp.db.back.atoll", "SRV", "NXDOMAIN"),
        ("_80._tcp.web", "A", "NOERROR"),
        ("2.0.1.10.in-addr.arpa", "PTR", ["web.Front.atoll."]),
        ("9.0.1.10.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("9.0.9.10.in-addr.arpa", "PTR", None),
        (wire.reverse_of("fd01::2"), "PTR", ["web.Front.atoll."]),
        (wire.reverse_of("fd01::3"), "PTR", "NXDOMAIN"),
    ],
)
def test_what_a_client_of_both_networks_is_told(name: str, kind: str, answer: object) -> None:
    assert told(filled(), "10.1.0.2", name, kind) == answer


@pytest.mark.parametrize("name", ["db", "db.back", "web.back"])
def test_what_is_on_another_network_only_is_as_unknown_as_anything(name: str) -> None:
    known = filled()
    assert told(known, "10.1.0.4", name) is None
    assert told(known, "10.1.0.4", f"{name}.atoll") == "NXDOMAIN"
    assert told(known, "10.1.0.4", "3.0.2.10.in-addr.arpa", "PTR") is None


def test_the_host_sees_every_network_by_full_names() -> None:
    known = filled()
    assert told(known, "10.1.0.1", "db.back.atoll") == ["10.2.0.3"]
    assert told(known, "10.1.0.1", "db.back") is None
    assert told(known, "10.1.0.1", "db") is None
    assert not known.forwards(known.host.view)


def test_only_who_is_on_an_open_network_may_ask_others() -> None:
    known = filled()
    assert known.forwards(view(known, "10.1.0.2"))
    assert known.forwards(view(known, "10.1.0.4"))
    assert not known.forwards(view(known, "10.2.0.3"))


def test_the_namespaces_own_servers_go_before_the_networks() -> None:
    known = filled()
    client = known.client("f", "10.1.0.2")
    assert client is not None
    assert known.upstream(client, "f") == ("192.0.2.53",)
    assert known.upstream(client, "b") == ()
    known.apply(Update(2, namespaces=(NamespaceServers("web", ("192.0.2.1",)),)))
    assert known.upstream(client, "b") == ("192.0.2.1",)
    known.apply(Update(3, namespaces=(NamespaceServers("web", ()),)))
    assert known.upstream(client, "b") == ()


def test_names_that_dns_cant_say_are_no_targets() -> None:
    known = filled()
    known.apply(Update(2, endpoints=(EndpointNames("9", "f", "a..b", ("a..b",), ("10.1.0.9",)),)))
    assert told(known, "10.1.0.2", "9.0.1.10.in-addr.arpa", "PTR") == "NXDOMAIN"


def test_an_address_that_went_to_another_is_not_taken_along_by_the_first() -> None:
    known = filled()
    known.apply(Update(2, endpoints=(EndpointNames("9", "f", "new", ("new",), ("10.1.0.4",)),)))
    known.apply(Update(3, gone_endpoints=("4",)))
    client = known.client("f", "10.1.0.4")
    assert client is not None
    assert client.namespace == "new"
    assert told(known, "10.1.0.2", "4.0.1.10.in-addr.arpa", "PTR") == ["new.Front.atoll."]
    assert told(known, "10.1.0.2", "shop.front.atoll") == "NXDOMAIN"


# --- changes

_IDS = "123456"
_NETWORKS = ("f", "b", "c")


def _network(identity: str, name: str, internal: bool) -> NetworkNames:
    number = _NETWORKS.index(identity) + 1
    return NetworkNames(identity, name, (f"10.{number}.0.1",), (f"10.{number}.0.0/24",), internal)


#: The engine never gives an address to two endpoints at once, so each of ours has its own: those of the filled zone, and others.
_LAST = {("f", "1"): 2, ("b", "2"): 2, ("b", "3"): 3, ("f", "4"): 4}


def _address(identity: str, network: str) -> str:
    return f"10.{_NETWORKS.index(network) + 1}.0.{_LAST.get((network, identity), int(identity) + 4)}"


networks = st.builds(_network, st.sampled_from(_NETWORKS), st.sampled_from(["Front", "back", "c"]), st.booleans())
endpoints = st.builds(
    lambda identity, network, namespace, aliases: EndpointNames(
        identity, network, namespace, (namespace, *aliases), (_address(identity, network),), ((80, "tcp"),)
    ),
    st.sampled_from(_IDS),
    st.sampled_from(_NETWORKS),
    st.sampled_from(["web", "db", "x"]),
    st.lists(st.sampled_from(["www", "Web", "a.b"]), max_size=2).map(tuple),
)
updates = st.lists(
    st.builds(
        Update,
        st.just(1),
        reset=st.sampled_from([False, False, False, False, False, True]),
        networks=st.lists(networks, max_size=2, unique_by=lambda network: network.id).map(tuple),
        gone_networks=st.lists(st.sampled_from(_NETWORKS), max_size=1).map(tuple),
        endpoints=st.lists(endpoints, max_size=3, unique_by=lambda endpoint: endpoint.id).map(tuple),
        gone_endpoints=st.lists(st.sampled_from(_IDS), max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=8,
)
QUESTIONS = [
    *((name, "A") for name in ("web", "www.front", "db.back.atoll", "web.c.atoll", "a.b", "x", "front.atoll", "nobody.atoll")),
    *((f"{last}.0.{number}.10.in-addr.arpa", "PTR") for number in (1, 2) for last in (2, 3)),
    ("_80._tcp.web", "SRV"),
]
SOURCES = [f"10.{number}.0.{last}" for number in (1, 2) for last in (1, 2, 3)]


@settings(deadline=None, max_examples=50)  # each one asks hundreds of questions
@given(updates)
def test_changes_one_by_one_leave_what_a_new_start_would(changes: list[Update]) -> None:
    known = filled()
    for change in changes:
        for source in SOURCES:  # so that there are answers to take back
            for name, kind in QUESTIONS:
                told(known, source, name, kind)
        known.apply(change)
        fresh = Zone()
        fresh.apply(
            Update(
                0,
                networks=tuple(network.names for network in known.networks.values()),
                endpoints=tuple(endpoint for network in known.networks.values() for endpoint in network.endpoints.values()),
            )
        )
        for source in SOURCES:
            clients = [[found.client(network, source) for network in sorted(found.networks)] for found in (known, fresh)]
            before, after = ([client and client.namespace for client in each] for each in clients)
            assert before == after
            seen, anew = view(known, source), view(fresh, source)
            assert known.forwards(seen) == fresh.forwards(anew)
            for name, kind in QUESTIONS:
                assert told(known, source, name, kind) == told(fresh, source, name, kind), (source, name)
        views = {*known._views.values(), known.host.view}
        assert known.kept == sum(len(each.answers) for each in views)


def test_what_was_unknown_is_known_once_it_is_there_and_what_is_shared_is_shared() -> None:
    known = filled()
    reverse = "9.0.1.10.in-addr.arpa"
    for _ in range(2):
        assert told(known, "10.1.0.2", "new.front.atoll") == "NXDOMAIN"
        assert told(known, "10.1.0.1", "new.front.atoll") == "NXDOMAIN"
        assert told(known, "10.1.0.2", reverse, "PTR") == "NXDOMAIN"
        assert told(known, "10.1.0.2", "www") == ["10.1.0.2", "10.2.0.3"]
    known.apply(Update(2, endpoints=(EndpointNames("9", "f", "new", ("new", "www"), ("10.1.0.9",)),)))
    assert told(known, "10.1.0.2", "new.front.atoll") == ["10.1.0.9"]
    assert told(known, "10.1.0.1", "new.front.atoll") == ["10.1.0.9"]
    assert told(known, "10.1.0.2", reverse, "PTR") == ["new.Front.atoll."]
    assert told(known, "10.1.0.2", "www") == ["10.1.0.2", "10.1.0.9", "10.2.0.3"]


def test_a_network_that_is_renamed_takes_its_names_along() -> None:
    known = filled()
    assert told(known, "10.1.0.2", "web.front.atoll") == ["10.1.0.2"]
    assert told(known, "10.1.0.2", "web.other.atoll") == "NXDOMAIN"
    known.apply(Update(2, networks=(structs.replace(FRONT, name="other"),)))
    assert told(known, "10.1.0.2", "web.front.atoll") == "NXDOMAIN"
    assert told(known, "10.1.0.2", "web.other.atoll") == ["10.1.0.2"]


def test_a_change_takes_back_only_what_it_touches() -> None:
    known = filled()
    for name in ("db", "web", "www", "shop"):
        told(known, "10.1.0.2", name)
    before = known.kept
    known.apply(Update(2, endpoints=(DB,)))
    assert known.kept == before - 2  # db, and www, which db is called as well


def test_answers_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zone, "KEPT", 10)
    known = filled()
    for number in range(35):
        told(known, f"10.1.0.{2 + number % 3}", f"no{number}.atoll")
    assert known.kept <= 10
