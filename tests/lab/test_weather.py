"""Weather by real packets: seeded loss, delay, duplication, rate, links down and partitions."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest

from atoll.errors import Invalid
from atoll.lab import Lab, assert_reachable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from atoll.lab.places import Place


def arrived(source: Place, target: Place, weather: Callable[[], AbstractContextManager[None]], count: int = 200) -> list[int]:
    """The numbers of the datagrams that arrive of so many, in the order in which they do. Neighbours know each other before."""
    assert source.ping(target) is not None
    with source.socket(kind=socket.SOCK_DGRAM) as sender, target.socket(kind=socket.SOCK_DGRAM) as receiver:
        receiver.bind(("0.0.0.0", 7))
        receiver.settimeout(10)
        with weather():
            for number in range(count):
                sender.sendto(b"%d" % number, (target.address_from(source), 7))
                # One at a time is under way at the most, so that no queue decides.
                time.sleep(0)
        # What is sent in good weather comes last.
        sender.sendto(b"end", (target.address_from(source), 7))
        found = []
        while (data := receiver.recv(100)) != b"end":
            found.append(int(data))
        return found


def test_the_same_seed_loses_the_same_packets_and_another_seed_others(lab: Lab) -> None:
    a, b = lab.namespaces("a", "b", network="net")
    first, again, other = (arrived(a, b, lambda seed=seed: a.links[0].loss(0.3, seed=seed, direction="out")) for seed in (7, 7, 8))  # type: ignore[misc]
    assert first == again != other
    # Thirty percent of 200, as a chance that is not once in a million tests further off.
    assert 100 < len(first) < 175
    assert arrived(a, b, lambda: a.links[0].loss(0.3, seed=7, direction="in")) == list(range(200))


def test_the_weather_of_a_wire_goes_both_ways(lab: Lab) -> None:
    wire = lab.wire(lab.host("one"), lab.host("two"), "10.0.0.0/24")
    one, two = lab["one"], lab["two"]
    assert len(arrived(one, two, lambda: wire.loss(0.5, seed=1))) < 150
    assert len(arrived(two, one, lambda: wire.loss(0.5, seed=1))) < 150
    assert arrived(two, one, lambda: wire.loss(1, direction="out")) == list(range(200))


def test_a_delayed_packet_is_late_and_not_lost(lab: Lab) -> None:
    a, b = lab.namespaces("a", "b", network="net")
    assert a.ping(b) is not None
    with a.links[0].delay(30):
        late = a.ping(b, timeout=10)
    assert late is not None
    assert late >= 60
    with a.links[0].delay(30, direction="in"), b.links[0].delay(20, direction="in"):
        late = a.ping(b, timeout=10)
    assert late is not None
    assert late >= 50


def test_duplicated_packets_arrive_twice(lab: Lab) -> None:
    a, b = lab.namespaces("a", "b", network="net")
    found = arrived(a, b, lambda: a.links[0].duplicate(0.5, seed=3, direction="out"), 100)
    assert sorted(set(found)) == list(range(100))
    assert found == arrived(a, b, lambda: a.links[0].duplicate(0.5, seed=3, direction="out"), 100)
    assert 110 < len(found) < 190


def test_a_rate_is_never_exceeded(lab: Lab) -> None:
    a, b = lab.namespaces("a", "b", network="net")

    with b.socket() as server, a.socket() as client:
        server.bind(("0.0.0.0", 80))
        server.listen()
        size = 500_000
        with a.links[0].rate("8mbit", direction="out"):
            begin = time.monotonic()
            client.settimeout(60)
            client.connect((b.address, 80))
            connection, _ = server.accept()
            with connection:
                connection.settimeout(60)
                client.setblocking(False)
                sent = got = 0
                while got < size:
                    if sent < size:
                        with contextlib.suppress(BlockingIOError):
                            sent += client.send(bytes(min(65536, size - sent)))
                    got += len(connection.recv(65536))
        assert time.monotonic() - begin >= size * 8 / 8_000_000


def test_a_link_that_is_down_has_no_carrier_and_comes_back(lab: Lab) -> None:
    a, b = lab.namespaces("a", "b", network="net")
    wire = lab.wire(lab.default, lab.host("other"), "10.0.0.0/24")
    with a.links[0].down():
        assert "NO-CARRIER" in a.check_output(["ip", "link", "show", "eth0"])
        assert a.ping(b, timeout=0.2) is None
    assert a.ping(b, timeout=10) is not None
    with wire.down():
        assert a.ping(lab["other"], timeout=0.2) is None
    assert a.ping(lab["other"], timeout=10) is not None


def test_a_partition_cuts_between_groups_and_nothing_else(lab: Lab) -> None:
    a, b, c, d = lab.namespaces("a", "b", "c", "d", network="net")
    with lab.partition({a, b}, {c}):
        assert a.ping(b) is not None
        assert a.ping(d) is not None
        assert c.ping(d) is not None
        assert [one.ping(other, timeout=0.2) for one, other in ((a, c), (b, c), (c, a))] == [None] * 3
    assert_reachable(a, c, tcp=80)


def test_weather_leaves_no_interface_behind(lab: Lab) -> None:
    (a,) = lab.namespaces("a", network="net")
    before = [place.run(socket.if_nameindex) for place in (a, lab.default)]
    with a.links[0].loss(0.1), a.links[0].delay(5):
        assert [place.run(socket.if_nameindex) for place in (a, lab.default)] != before
    assert [place.run(socket.if_nameindex) for place in (a, lab.default)] == before
    assert "clsact" not in a.check_output(["tc", "qdisc", "show"])


def test_weather_that_makes_no_sense_is_refused(lab: Lab) -> None:
    (a,) = lab.namespaces("a", network="net")
    link = a.links[0]
    for bad in (
        lambda: link.loss(5),
        lambda: link.delay(1, jitter=2),
        lambda: link.rate("0"),
        lambda: link.rate("fast"),
        lambda: lab.partition({a}).__enter__(),
        lambda: lab.partition({a}, {a}).__enter__(),
        lambda: link.loss(0.1, direction="up").__enter__(),  # type: ignore[arg-type]
    ):
        with pytest.raises(Invalid):
            bad()
