"""Names below further domains of a network: there as long as the network has the domain, and never asked of others."""

from __future__ import annotations

import pytest
from msgspec import structs

from atoll.checks import check_domains
from atoll.dns.zone import EndpointNames, NetworkNames, Update, Zone
from atoll.errors import Invalid
from tests.unit.test_dns_zone import told

WEB = NetworkNames("w", "web", ("10.1.0.1",), ("10.1.0.0/24",), internal=False, domains=("dns.podman",))
LAN = NetworkNames("l", "lan", ("10.2.0.1",), ("10.2.0.0/24",), internal=False)
A = EndpointNames("1", "w", "a", ("a", "Alpha"), ("10.1.0.2",))
B = EndpointNames("2", "w", "b", ("b",), ("10.1.0.3",))
C = EndpointNames("3", "l", "c", ("c",), ("10.2.0.4",))


def filled() -> Zone:
    made = Zone()
    made.apply(Update(1, networks=(WEB, LAN), endpoints=(A, B, C)))
    return made


@pytest.mark.parametrize(
    ("source", "name", "kind", "answer"),
    [
        ("10.1.0.3", "a.dns.podman", "A", ["10.1.0.2"]),
        ("10.1.0.3", "ALPHA.DNS.Podman", "A", ["10.1.0.2"]),
        ("10.1.0.3", "a.web.atoll", "A", ["10.1.0.2"]),
        ("10.1.0.3", "a", "A", ["10.1.0.2"]),
        ("10.1.0.3", "a.dns.podman", "AAAA", "NOERROR"),
        ("10.1.0.3", "c.dns.podman", "A", "NXDOMAIN"),
        ("10.1.0.3", "x.a.dns.podman", "A", "NXDOMAIN"),
        ("10.1.0.3", "dns.podman", "A", "NOERROR"),
        ("10.1.0.3", "podman", "A", None),
        ("10.1.0.3", "mydns.podman", "A", None),
        ("10.2.0.4", "a.dns.podman", "A", None),
        ("10.2.0.4", "c.dns.podman", "A", None),
        ("the host", "a.dns.podman", "A", ["10.1.0.2"]),
        ("the host", "a", "A", None),
    ],
)
def test_what_is_below_a_domain(source: str, name: str, kind: str, answer: object) -> None:
    assert told(filled(), source, name, kind) == answer


def test_kept_answers_follow_changes() -> None:
    known = filled()
    assert told(known, "10.1.0.3", "a.dns.podman") == ["10.1.0.2"]
    known.apply(Update(2, endpoints=(structs.replace(A, addresses=("10.1.0.9",)),)))
    assert told(known, "10.1.0.3", "a.dns.podman") == ["10.1.0.9"]
    known.apply(Update(3, gone_endpoints=("1",)))
    assert told(known, "10.1.0.3", "a.dns.podman") == "NXDOMAIN"
    known.apply(Update(4, networks=(structs.replace(WEB, domains=()),), endpoints=(A,)))
    assert told(known, "10.1.0.3", "a.dns.podman") is None
    known.apply(Update(5, networks=(WEB,)))
    assert told(known, "10.1.0.3", "a.dns.podman") == ["10.1.0.2"]


@pytest.mark.parametrize("text", ["podman", "x.atoll", "atoll", "", "a..b", "-a.b", "a b.c", "a." + "x" * 64, "a." * 120 + "b"])
def test_what_is_no_further_domain(text: str) -> None:
    with pytest.raises(Invalid):
        check_domains([text])


def test_domains_are_in_lower_case_and_named_once() -> None:
    assert check_domains(["DNS.Podman.", ".dns.podman", "a.b"]) == ("dns.podman", "a.b")
