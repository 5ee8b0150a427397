"""What the address management promises. Costs are counted in executed lines and allocated bytes, never in seconds."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from types import FrameType
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.errors import AtollError, Conflict, Exhausted, Invalid
from atoll.ipam import (
    COLLISION_PRONE,
    DEFAULT_POOLS_V4,
    Address,
    Chosen,
    Network,
    Pool,
    Taken,
    check_layout,
    choose_subnet,
    choose_ula,
    machine_ula,
    next_gateway,
    overlap,
    parse_address,
    parse_subnet,
)

#: A busy machine is no failure.
any_pace = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SLASH_24 = IPv4Network("192.168.34.0/24")
GATEWAY = IPv4Address("192.168.34.162")


class Layout(NamedTuple):
    """The arguments of a pool, and the addresses that it may hand out, worked out the slow way."""

    subnet: Network
    gateway: Address | None
    ranges: Sequence[Network]
    reserved: Mapping[str, Address]
    cursor: int

    def pool(self) -> Pool:
        return Pool("br0", self.subnet, gateway=self.gateway, ranges=self.ranges, reserved=self.reserved, cursor=self.cursor)

    def claimable(self) -> list[Address]:
        return [a for a in usable(self.subnet) if a != self.gateway and a not in self.reserved.values()]

    def allocatable(self) -> list[Address]:
        return [a for a in self.claimable() if not self.ranges or any(a in part for part in self.ranges)]


def every(subnet: Network) -> list[Address]:
    return list(subnet)


def usable(subnet: Network) -> list[Address]:
    return list(subnet.hosts())


@st.composite
def subnets(draw: st.DrawFn) -> Network:
    """IPv4 from /24 to /32, IPv6 from /120 to /128."""
    host_bits = draw(st.integers(0, 8))
    if draw(st.booleans()):
        return IPv4Network(((10 << 24) + (draw(st.integers(0, (1 << 24 - host_bits) - 1)) << host_bits), 32 - host_bits))
    return IPv6Network(((0xFD << 120) + (draw(st.integers(0, (1 << 120 - host_bits) - 1)) << host_bits), 128 - host_bits))


@st.composite
def parts(draw: st.DrawFn, subnet: Network) -> Network:
    """A network within the subnet, the whole of it included."""
    length = draw(st.integers(subnet.prefixlen, subnet.max_prefixlen))
    address = draw(st.sampled_from(every(subnet)))
    return ip_network(f"{address}/{length}", strict=False)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    subnet = draw(subnets())
    gateway = draw(st.none() | st.sampled_from(usable(subnet)))
    ranges = draw(st.lists(parts(subnet), max_size=3))
    reserved = draw(st.dictionaries(st.sampled_from(["router", "dns", "printer"]), st.sampled_from(every(subnet))))
    low = int(subnet.network_address)
    cursor = draw(st.just(0) | st.integers(low - 2, low + subnet.num_addresses + 2))
    return Layout(subnet, gateway, ranges, reserved, cursor)


def lines_executed(call: Callable[[], object]) -> int:
    """How many lines of Python a call runs."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def bytes_kept(make: Callable[[], object]) -> int:
    """How much memory the result of a call keeps."""
    make()  # what is allocated once, such as caches of the interpreter, doesn't count
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = make()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    del kept
    return after - before


def drain(pool: Pool) -> list[Address]:
    """Allocate until the pool says that it is exhausted."""
    addresses: list[Address] = []
    while len(addresses) <= pool.size:
        try:
            addresses.append(pool.allocate(f"c{len(addresses)}"))
        except Exhausted:
            break
    return addresses


# What a pool hands out


@any_pace
@given(layouts())
def test_a_pool_hands_out_every_allocatable_address_exactly_once_and_then_is_exhausted(layout: Layout) -> None:
    pool = layout.pool()
    expected = layout.allocatable()
    assert pool.size == len(expected)
    assert sorted(drain(pool), key=int) == expected
    assert pool.used == pool.size
    with pytest.raises(Exhausted):
        pool.allocate("late")
    assert pool.used == pool.size


@any_pace
@given(layouts())
def test_addresses_are_handed_out_in_order_from_the_cursor_on(layout: Layout) -> None:
    expected = layout.allocatable()
    later = [a for a in expected if int(a) > layout.cursor]
    assert drain(layout.pool()) == later + expected[: len(expected) - len(later)]


@any_pace
@given(layouts(), st.data())
def test_a_released_address_is_allocatable_again_but_not_next_while_others_are_free(layout: Layout, data: st.DataObject) -> None:
    assume(layout.allocatable())
    pool = layout.pool()
    held = drain(pool)
    freed = data.draw(st.lists(st.sampled_from(held), min_size=1, unique=True))
    for address in freed:
        pool.release(address)
    again = drain(pool)
    assert sorted(again, key=int) == sorted(freed, key=int)
    assert len(freed) == 1 or again[0] != freed[-1]


@any_pace
@given(layouts(), st.data())
def test_a_claimed_address_is_not_handed_out_and_a_pool_rebuilt_from_its_holders_goes_on_alike(layout: Layout, data: st.DataObject) -> None:
    assume(layout.claimable())
    pool = layout.pool()
    claims = data.draw(st.lists(st.sampled_from(layout.claimable()), unique=True))
    for address in claims:
        pool.claim(address, f"static {address}")
    free = len(set(layout.allocatable()) - set(claims))
    for _ in range(data.draw(st.integers(0, free))):
        assert pool.allocate("dynamic") not in claims

    rebuilt = layout._replace(cursor=pool.cursor).pool()
    for address, owner in pool.holders():
        rebuilt.claim(address, owner)
    assert list(rebuilt.holders()) == list(pool.holders())
    assert drain(rebuilt) == drain(pool)


class PoolAgainstSets(RuleBasedStateMachine):
    """A pool does what a list of all addresses and a dictionary of owners would do."""

    pool: Pool

    @initialize(layout=layouts())
    def create(self, layout: Layout) -> None:
        self.layout = layout
        self.pool = layout.pool()
        self.allocatable = layout.allocatable()
        self.claimable = set(layout.claimable())
        self.owners: dict[Address, str] = {}
        self.cursor = layout.cursor
        self.last_freed: Address | None = None
        self.latest: tuple[Address, int] | None = None

    def free(self) -> list[Address]:
        return [address for address in self.allocatable if address not in self.owners]

    @rule(owner=st.text(max_size=3))
    def allocate(self, owner: str) -> None:
        free = self.free()
        if not free:
            with pytest.raises(Exhausted):
                self.pool.allocate(owner)
            return
        turn = [a for a in free if int(a) > self.cursor] + [a for a in free if int(a) <= self.cursor]
        expected = turn[1] if turn[0] == self.last_freed and len(turn) > 1 else turn[0]
        assert self.pool.allocate(owner) == expected
        self.owners[expected] = owner
        self.latest = expected, self.cursor
        self.cursor = int(expected)

    @rule(data=st.data(), owner=st.text(max_size=3))
    def claim(self, data: st.DataObject, owner: str) -> None:
        address = data.draw(st.sampled_from(every(self.layout.subnet)))
        if address not in usable(self.layout.subnet):
            with pytest.raises(Invalid):
                self.pool.claim(address, owner)
        elif address in self.owners or address not in self.claimable:
            with pytest.raises(Conflict):
                self.pool.claim(address, owner)
        else:
            self.pool.claim(address, owner)
            self.owners[address] = owner

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.owners, key=int)))
        self.pool.release(address)
        del self.owners[address]
        if address in self.allocatable:
            self.last_freed = address
        if self.latest is not None and self.latest[0] == address:
            self.latest = None

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def retract(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.owners, key=int)))
        self.pool.retract(address)
        del self.owners[address]
        if self.latest is not None and self.latest[0] == address:
            self.cursor = self.latest[1]
            self.latest = None

    @rule(data=st.data())
    def give_back_what_nobody_holds(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(every(self.layout.subnet)))
        if address not in self.owners:
            self.pool.release(address)
            self.pool.retract(address)

    @invariant()
    def agrees(self) -> None:
        assert dict(self.pool.holders()) == self.owners
        assert self.pool.used == len(self.owners)
        assert self.pool.cursor == self.cursor
        runs = self.pool._free._runs
        assert [value for start, end in runs for value in range(start, end + 1)] == [int(address) for address in self.free()]
        assert len(runs) <= len(self.owners) + len(self.layout.ranges) + len(self.layout.reserved) + 2


TestPoolAgainstSets = PoolAgainstSets.TestCase
TestPoolAgainstSets.settings = any_pace


@pytest.mark.parametrize(
    ("subnet", "gateway", "expected"),
    [
        ("10.0.0.0/30", None, ["10.0.0.1", "10.0.0.2"]),
        ("10.0.0.0/30", "10.0.0.2", ["10.0.0.1"]),
        ("10.0.0.0/31", None, ["10.0.0.0", "10.0.0.1"]),
        ("10.0.0.0/31", "10.0.0.0", ["10.0.0.1"]),
        ("10.0.0.7/32", None, ["10.0.0.7"]),
        ("10.0.0.7/32", "10.0.0.7", []),
        ("fd00::/126", None, ["fd00::1", "fd00::2", "fd00::3"]),
        ("fd00::/126", "fd00::3", ["fd00::1", "fd00::2"]),
        ("fd00::/127", None, ["fd00::", "fd00::1"]),
        ("fd00::5/128", None, ["fd00::5"]),
    ],
)
def test_the_smallest_subnets_give_all_that_they_have(subnet: str, gateway: str | None, expected: list[str]) -> None:
    pool = Pool("p2p", ip_network(subnet), gateway=ip_address(gateway) if gateway else None)
    assert pool.size == len(expected)
    assert [str(address) for address in drain(pool)] == expected


def test_overlapping_and_adjacent_ranges_count_once() -> None:
    ranges = [IPv4Network("192.168.34.128/30"), IPv4Network("192.168.34.130/31"), IPv4Network("192.168.34.132/30")]
    pool = Pool("br0", SLASH_24, gateway=None, ranges=ranges)
    assert [int(address) & 0xFF for address in drain(pool)] == list(range(128, 136))


def test_a_release_outside_the_ranges_does_not_bring_the_address_freed_last_back_early() -> None:
    static = IPv4Address("192.168.34.200")
    pool = Pool("br0", SLASH_24, gateway=None, ranges=[IPv4Network("192.168.34.8/30")])
    pool.claim(static, "r1")
    for address in drain(pool)[:2][::-1]:
        pool.release(address)
    pool.release(static)
    assert str(pool.allocate("r2")) == "192.168.34.9"  # .8 was freed after it


def test_a_restarting_container_gets_another_address_and_so_does_a_pool_reopened_at_its_cursor() -> None:
    pool = Pool("br0", SLASH_24, gateway=GATEWAY)
    first = pool.allocate("web")
    pool.release(first)
    second = pool.allocate("web")
    assert (str(first), str(second)) == ("192.168.34.1", "192.168.34.2")
    pool.release(second)
    reopened = Pool("br0", SLASH_24, gateway=GATEWAY, cursor=pool.cursor)
    assert str(reopened.allocate("web")) == "192.168.34.3"


# Static claims


def test_claims_are_refused_with_the_reason_and_leave_the_pool_as_it_was() -> None:
    pool = Pool("br0", SLASH_24, gateway=GATEWAY, reserved={"printer": IPv4Address("192.168.34.9")})
    pool.claim(IPv4Address("192.168.34.163"), "r1")

    def refusal(kind: type[AtollError], address: str) -> str:
        with pytest.raises(kind) as caught:
            pool.claim(ip_address(address), "r1")
        return str(caught.value)

    assert refusal(Conflict, "192.168.34.163").startswith("192.168.34.163 is held by r1 on network br0; ")
    assert refusal(Conflict, "192.168.34.162").startswith("192.168.34.162 is the gateway on network br0; ")
    assert refusal(Conflict, "192.168.34.9").startswith("192.168.34.9 is reserved as printer on network br0; ")
    inside = "; choose one from 192.168.34.1 to 192.168.34.254"
    assert refusal(Invalid, "10.0.0.1") == f"network br0: address 10.0.0.1 is outside subnet 192.168.34.0/24{inside}"
    assert "is the network address of subnet 192.168.34.0/24;" in refusal(Invalid, "192.168.34.0")
    assert "is the broadcast address of subnet 192.168.34.0/24;" in refusal(Invalid, "192.168.34.255")
    assert "is outside subnet" in refusal(Invalid, str(IPv6Address(int(IPv4Address("192.168.34.5")))))
    assert list(pool.holders()) == [(IPv4Address("192.168.34.163"), "r1")]
    assert pool.cursor == 0


def test_the_subnet_router_anycast_address_is_refused_but_the_last_ipv6_address_is_not() -> None:
    pool = Pool("six", IPv6Network("fd00::/64"), gateway=None)
    with pytest.raises(Invalid, match="is the subnet-router anycast address of subnet fd00::/64;"):
        pool.claim(IPv6Address("fd00::"), "r1")
    pool.claim(IPv6Address("fd00::ffff:ffff:ffff:ffff"), "r1")


def test_an_address_outside_the_ranges_can_be_claimed_and_is_never_handed_out_afterwards() -> None:
    pool = Pool("br0", SLASH_24, gateway=None, ranges=[IPv4Network("192.168.34.8/31")])
    static = IPv4Address("192.168.34.200")
    pool.claim(static, "r1")
    assert (pool.holder(static), pool.used, pool.size) == ("r1", 1, 2)
    pool.release(static)
    assert pool.holder(static) is None
    assert [str(address) for address in drain(pool)] == ["192.168.34.8", "192.168.34.9"]


def test_release_and_holder_take_an_address_of_the_other_family_for_one_that_nobody_holds() -> None:
    pool = Pool("br0", SLASH_24, gateway=None)
    held = pool.allocate("r1")
    twin = IPv6Address(int(held))
    pool.release(twin)
    assert (pool.holder(twin), pool.holder(held)) == (None, "r1")


def test_holders_may_be_released_while_they_are_listed() -> None:
    pool = Pool("br0", IPv4Network("10.0.0.0/29"), gateway=None)
    drain(pool)
    for address, _ in pool.holders():
        pool.release(address)
    assert pool.used == 0


def test_the_layout_of_a_pool_is_read_only() -> None:
    pool = Pool("br0", SLASH_24, gateway=GATEWAY)
    assert (pool.subnet, pool.gateway, pool.cursor) == (SLASH_24, GATEWAY, 0)
    for name in ("subnet", "gateway", "cursor", "used"):
        with pytest.raises(AttributeError):
            setattr(pool, name, None)


# Exhaustion


def test_exhaustion_names_the_network_the_subnet_its_size_and_some_holders() -> None:
    pool = Pool("br0", SLASH_24, gateway=None)
    for owner in ["a", "b", "c", "d", "e"] + ["more"] * 249:
        pool.allocate(owner)
    with pytest.raises(Exhausted) as caught:
        pool.allocate("late")
    assert caught.value.what == ("network br0 has no free address in subnet 192.168.34.0/24, size 254 (held by a, b, c, d, e and 249 more)")
    assert caught.value.hint


def test_exhaustion_of_a_range_counts_only_the_holders_in_the_range() -> None:
    pool = Pool("br0", SLASH_24, gateway=None, ranges=[IPv4Network("192.168.34.8/31")])
    pool.claim(IPv4Address("192.168.34.77"), "static")
    drain(pool)
    with pytest.raises(Exhausted, match=r"in range 192.168.34.8/31 of subnet 192.168.34.0/24, size 2 \(held by c0, c1\);"):
        pool.allocate("late")


def test_exhaustion_of_a_subnet_that_never_had_an_address_names_no_holders() -> None:
    pool = Pool("one", IPv4Network("10.0.0.1/32"), gateway=IPv4Address("10.0.0.1"))
    with pytest.raises(Exhausted, match=r"in subnet 10.0.0.1/32, size 0; "):
        pool.allocate("late")


# Cost

WIDE: list[Network] = [IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/48"), IPv6Network("fd00::/8")]


@pytest.mark.parametrize("wide", WIDE, ids=str)
def test_a_wide_subnet_costs_no_more_memory_than_a_narrow_one(wide: Network) -> None:
    def filled(subnet: Network) -> Callable[[], Pool]:
        def make() -> Pool:
            pool = Pool("br0", subnet, gateway=None)
            for _ in range(1000):
                pool.allocate("owner")
            return pool

        return make

    narrow = IPv4Network("10.0.0.0/20") if wide.version == 4 else IPv6Network("fd00::/116")
    assert bytes_kept(lambda: Pool("br0", wide, gateway=None)) < 4096
    assert bytes_kept(filled(wide)) < bytes_kept(filled(narrow)) + 16 * 1024  # longer integers, no more


@pytest.mark.parametrize("wide", WIDE, ids=str)
def test_ten_thousand_allocations_in_a_wide_subnet_take_the_same_few_steps_each(wide: Network) -> None:
    pool = Pool("br0", wide, gateway=wide[1])
    assert lines_executed(lambda: [pool.allocate("owner") for _ in range(10_000)]) < 10_000 * 50
    assert len(pool._free._runs) == 1


def test_allocation_in_a_full_slash_16_skips_to_each_of_its_few_holes_at_once() -> None:
    pool = Pool("br0", IPv4Network("10.1.0.0/16"), gateway=None)
    drain(pool)
    assert pool._free._runs == []
    holes = [IPv4Address("10.1.0.1"), IPv4Address("10.1.77.7"), IPv4Address("10.1.200.1")]
    for hole in holes:
        pool.release(hole)
    taken: list[Address] = []
    for _ in holes:
        assert lines_executed(lambda: taken.append(pool.allocate("late"))) < 50
    assert taken == holes


def test_a_slash_16_with_every_second_address_freed_still_allocates_in_a_few_steps() -> None:
    pool = Pool("br0", IPv4Network("10.1.0.0/16"), gateway=None)
    for address in drain(pool)[::2]:
        pool.release(address)
    assert len(pool._free._runs) == 32_767
    assert lines_executed(lambda: pool.allocate("late")) < 50
    for address, _ in pool.holders():
        pool.release(address)
    assert len(pool._free._runs) == 1


def test_being_exhausted_a_thousand_times_does_not_walk_the_holders() -> None:
    pool = Pool("br0", IPv4Network("10.1.0.0/16"), gateway=None)
    drain(pool)

    def fail() -> None:
        with pytest.raises(Exhausted):
            pool.allocate("late")

    assert lines_executed(fail) < 2000  # pytest.raises included


# Choosing a subnet


def routes(*texts: str) -> Iterator[Taken]:
    return (Taken(ip_network(text), f"route via eth{index}") for index, text in enumerate(texts))


def naive_choice(taken: Sequence[Taken], pools: Sequence[tuple[Network, int]]) -> Network | None:
    real = [entry for entry in taken if entry.network.prefixlen > 1]
    for blocked in ([*real, *COLLISION_PRONE], real):
        for pool, prefix in pools:
            for subnet in pool.subnets(new_prefix=prefix):
                if not any(subnet.overlaps(entry.network) for entry in blocked):
                    return subnet
    return None


POOLS: tuple[tuple[Network, int], ...] = (
    (IPv4Network("172.30.252.0/22"), 24),
    (IPv4Network("172.31.0.0/22"), 23),
    (IPv4Network("192.168.0.0/22"), 24),
    (IPv4Network("192.168.122.0/24"), 26),
    (IPv6Network("fd00::/62"), 64),
    (IPv4Network("10.0.0.0/30"), 32),
    (IPv4Network("10.0.0.9/32"), 32),
)
pool_lists = st.lists(st.sampled_from(POOLS), min_size=1, max_size=3, unique=True)


@st.composite
def entries(draw: st.DrawFn) -> Taken:
    """Something taken at the edge of one of the candidates, wider or narrower than it."""
    pool, prefix = draw(st.sampled_from(POOLS))
    edge = int(pool.network_address) + draw(st.integers(0, 4)) * (1 << pool.max_prefixlen - prefix) + draw(st.integers(-1, 1))
    address = IPv4Address(edge) if pool.version == 4 else IPv6Address(edge)
    length = draw(st.integers(pool.prefixlen - 2, prefix) | st.sampled_from([0, 1, pool.max_prefixlen]))
    return Taken(ip_network(f"{address}/{length}", strict=False), draw(st.sampled_from(["route", "network br0"])))


@settings(any_pace, max_examples=500)
@given(st.lists(entries(), max_size=12), pool_lists)
def test_the_chosen_subnet_is_the_first_that_overlaps_nothing(taken: list[Taken], pools: list[tuple[Network, int]]) -> None:
    expected = naive_choice(taken, pools)
    if expected is None:
        with pytest.raises(Exhausted):
            choose_subnet(taken, pools)
    else:
        chosen = choose_subnet(taken, pools)
        assert chosen.subnet == expected
        assert overlap(chosen.subnet, taken) is None
        assert all(" skipped: overlap with " in line for line in chosen.skipped)


@any_pace
@given(st.lists(entries(), max_size=12), pool_lists, st.randoms())
def test_the_choice_and_its_explanation_do_not_depend_on_the_order_of_what_is_taken(
    taken: list[Taken], pools: list[tuple[Network, int]], random: Any
) -> None:
    def outcome(entries: list[Taken]) -> Chosen | str:
        try:
            return choose_subnet(entries, pools)
        except Exhausted as error:
            return str(error)

    shuffled = list(taken)
    random.shuffle(shuffled)
    assert outcome(shuffled) == outcome(taken)


def test_a_host_with_nothing_but_default_routes_gets_the_first_subnet_of_the_pools() -> None:
    expected = Chosen(IPv4Network("172.16.0.0/24"), ())
    assert choose_subnet([]) == expected
    assert choose_subnet(routes("0.0.0.0/0", "::/0")) == expected
    assert choose_subnet(routes("0.0.0.0/1", "128.0.0.0/1")) == expected  # as VPN clients write it


def test_a_skipped_run_is_one_line_that_names_what_is_in_the_way() -> None:
    assert choose_subnet(routes("172.16.0.0/24")) == Chosen(
        IPv4Network("172.16.1.0/24"), ("172.16.0.0/24 skipped: overlap with 172.16.0.0/24 (route via eth0)",)
    )
    assert choose_subnet([Taken(IPv4Network("172.16.0.53/32"), "nameserver in /etc/resolv.conf")]).skipped == (
        "172.16.0.0/24 skipped: overlap with 172.16.0.53/32 (nameserver in /etc/resolv.conf)",
    )
    assert choose_subnet(routes("172.16.0.0/24", "172.16.0.0/20", "172.16.4.0/24", "10.0.0.0/8", "fd00::/8")) == Chosen(
        IPv4Network("172.16.16.0/24"), ("172.16.0.0/24 to 172.16.15.0/24 skipped: overlap with 172.16.0.0/20 (route via eth1)",)
    )


def test_of_two_reasons_for_one_network_the_same_is_named_whatever_their_order() -> None:
    taken = [Taken(IPv4Network("172.16.0.0/24"), why) for why in ("route via br0", "network br0")]
    expected = ("172.16.0.0/24 skipped: overlap with 172.16.0.0/24 (network br0)",)
    assert choose_subnet(taken).skipped == choose_subnet(reversed(taken)).skipped == expected


def test_a_quarter_of_the_address_space_is_no_default_route() -> None:
    assert str(choose_subnet(routes("128.0.0.0/2")).subnet) == "192.168.2.0/24"


def test_the_other_family_is_not_in_the_way_even_with_the_same_integers() -> None:
    assert choose_subnet(routes("::ac10:0/108")) == Chosen(IPv4Network("172.16.0.0/24"), ())


def test_subnets_that_others_take_by_default_come_last() -> None:
    taken = list(routes("172.16.0.0/16"))
    assert choose_subnet(taken) == Chosen(
        IPv4Network("172.18.0.0/24"),
        ("172.16.0.0/24 to 172.17.255.0/24 skipped: overlap with 172.16.0.0/16 (route via eth0), 172.17.0.0/16 (the default of docker0)",),
    )
    homes = []
    for _ in range(256):
        homes.append(str(choose_subnet(taken, DEFAULT_POOLS_V4[1:]).subnet))
        taken.append(Taken(IPv4Network(homes[-1]), "network"))
    assert homes[0] == "192.168.2.0/24"
    assert homes[-3:] == ["192.168.0.0/24", "192.168.1.0/24", "192.168.122.0/24"]


def test_when_no_subnet_is_left_the_error_says_what_blocks_each_pool_widest_first() -> None:
    in_use = [Taken(IPv4Network((int(IPv4Address("172.16.0.0")) + (i << 8), 24)), f"network n{i}") for i in range(16)]
    with pytest.raises(Exhausted) as caught:
        choose_subnet([*in_use, *routes("172.16.16.0/20", "172.16.32.0/19")], [(IPv4Network("172.16.0.0/18"), 24)])
    assert caught.value.what == (
        "no subnet is free in the address pools: 172.16.0.0/24 to 172.16.63.0/24 skipped: overlap with "
        "172.16.32.0/19 (route via eth1), 172.16.16.0/20 (route via eth0), 172.16.0.0/24 (network n0), "
        "172.16.1.0/24 (network n1), 172.16.2.0/24 (network n2) and 13 more"
    )


def test_a_pool_that_one_wide_route_covers_is_skipped_in_a_few_steps() -> None:
    pools = ((IPv4Network("10.0.0.0/8"), 30), (IPv6Network("fd00::/8"), 64))
    assert lines_executed(lambda: choose_subnet(routes("10.0.0.0/8"), pools)) < 500
    assert str(choose_subnet(routes("10.0.0.0/8"), pools).subnet) == "fd00::/64"


def test_choosing_among_four_thousand_networks_takes_steps_in_proportion_to_their_number() -> None:
    def steps(count: int) -> int:
        base = int(IPv4Address("10.0.0.0"))
        taken = [Taken(IPv4Network((base + (i << 8), 24)), "network") for i in range(count)]
        return lines_executed(lambda: choose_subnet(taken, [(IPv4Network("10.0.0.0/8"), 24)]))

    assert steps(4000) < 4.5 * steps(1000)


def test_the_explanation_keeps_to_the_pool() -> None:
    for taken in (routes("10.0.0.0/8"), routes("10.1.0.0/17", "10.1.128.0/17", "10.2.0.0/24")):
        with pytest.raises(Exhausted) as caught:
            choose_subnet(taken, [(IPv4Network("10.1.0.0/16"), 24)])
        assert ": 10.1.0.0/24 to 10.1.255.0/24 skipped: " in caught.value.what
        assert "10.2.0.0" not in caught.value.what


def test_when_no_pool_is_configured_the_error_says_so() -> None:
    with pytest.raises(Exhausted, match="no subnet is free in the address pools: none is configured; "):
        choose_subnet([], [])


@pytest.mark.parametrize("prefix", [11, 33])
def test_a_prefix_length_that_does_not_fit_its_pool_is_refused(prefix: int) -> None:
    with pytest.raises(Invalid, match=rf"172.16.0.0/12 can't be cut into subnets of /{prefix}; it should be from /12 to /32"):
        choose_subnet([], [(IPv4Network("172.16.0.0/12"), prefix)])


def test_an_explicit_subnet_is_compared_with_everything_taken_but_default_routes() -> None:
    taken = list(routes("0.0.0.0/0", "128.0.0.0/1", "::/0", "10.0.0.0/8", "10.1.0.0/16"))
    assert overlap(IPv4Network("10.1.2.0/24"), taken) == taken[3]
    assert overlap(IPv4Network("10.0.0.0/7"), taken) == taken[3]
    assert overlap(IPv4Network("192.168.1.0/24"), taken) is None
    assert overlap(IPv6Network("::a00:0/104"), taken) is None  # the same integers in the other family


# Unique local addresses


@any_pace
@given(st.integers(0, (1 << 40) - 1), st.integers(0, 65535))
def test_a_machine_has_a_slash_48_of_its_own_and_a_network_starts_at_its_seed(random40: int, seed: int) -> None:
    prefix = machine_ula(random40)
    assert prefix.prefixlen == 48
    assert int(prefix.network_address) >> 80 == 0xFD << 40 | random40
    subnet = choose_ula(prefix, [], seed).subnet
    assert (int(subnet.network_address) >> 64) & 0xFFFF == seed
    assert (subnet.prefixlen, subnet[0] in prefix) == (64, True)


@any_pace
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.sampled_from([47, 48]) | st.integers(58, 128)), max_size=8),
    st.sampled_from([0, 1, 7, 65534, 65535]),
)
def test_the_next_free_slash_64_follows_the_seed_and_wraps(near: list[tuple[int, int]], seed: int) -> None:
    prefix = IPv6Network("fd12:3456:789a::/48")

    def at(subnet_id: int, length: int) -> IPv6Network:
        value = int(prefix.network_address) + (subnet_id % 65536 << 64)
        return IPv6Network((value >> 128 - length << 128 - length, length))

    taken = [Taken(at(seed + step, length), "network") for step, length in near]
    free = (at(seed + step, 64) for step in range(65536))
    if any(length <= 48 for _, length in near):
        with pytest.raises(Exhausted, match=r"no /64 is free in fd12:3456:789a::/48: .* skipped: overlap with"):
            choose_ula(prefix, taken, seed)
    else:
        assert choose_ula(prefix, taken, seed).subnet == next(subnet for subnet in free if overlap(subnet, taken) is None)


def test_what_is_skipped_on_both_sides_of_the_wrap_is_explained() -> None:
    assert choose_ula(IPv6Network("fd00::/48"), routes("fd00:0:0:fffe::/63", "fd00::/64", "::/0"), 65534) == Chosen(
        IPv6Network("fd00:0:0:1::/64"),
        (
            "fd00:0:0:fffe::/64 to fd00:0:0:ffff::/64 skipped: overlap with fd00:0:0:fffe::/63 (route via eth0)",
            "fd00::/64 skipped: overlap with fd00::/64 (route via eth1)",
        ),
    )


def test_a_span_of_one_subnet_that_something_wider_covers_is_named_alone() -> None:
    taken = routes("fd00:0:0:fffe::/63", "fd00::/64")
    assert choose_ula(IPv6Network("fd00::/48"), taken, 65535).skipped[0].startswith("fd00:0:0:ffff::/64 skipped: ")


def test_what_is_no_machine_prefix_seed_or_global_id_is_refused() -> None:
    for refused in (
        lambda: choose_ula(IPv6Network("fd00::/56"), [], 0),
        lambda: choose_ula(IPv6Network("fd00::/48"), [], 65536),
        lambda: choose_ula(IPv6Network("fd00::/48"), [], -1),
        lambda: machine_ula(1 << 40),
        lambda: machine_ula(-1),
    ):
        with pytest.raises(Invalid):
            refused()


# Parsing


@pytest.mark.parametrize("text", ["10.0.0.0/24", "10.0.0.0/31", "10.0.0.7/32", "fd00::/64", "fd00::1/128", "2001:db8::/32", "240.0.0.0/8"])
def test_a_subnet_is_read_as_it_is_written(text: str) -> None:
    assert str(parse_subnet(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.0.0.5/24", "subnet '10.0.0.5/24' has host bits set; it should be 10.0.0.0/24"),
        ("fd00::1/64", "subnet 'fd00::1/64' has host bits set; it should be fd00::/64"),
        ("10.0.0.0", "subnet '10.0.0.0' is not ADDRESS/LENGTH; write it like 10.0.0.0/24"),
        ("224.0.0.0/24", "multicast"),
        ("ff02::/64", "multicast"),
        ("127.0.0.0/24", "loopback"),
        ("::1/128", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("fe80::/64", "link-local"),
        ("0.0.0.0/8", "unspecified"),
        ("0.0.0.0/0", "unspecified"),
        ("::/0", "unspecified"),
        ("255.255.255.255/32", "broadcast"),
        ("::ffff:10.0.0.0/120", "IPv4-mapped"),
        ("126.0.0.0/7", "loopback"),
    ],
)
def test_a_wrong_subnet_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_subnet(text)
    assert words in str(caught.value)
    assert text in str(caught.value)


JUNK = ["", " ", "/", "/24", "a" * 100_000, "10.0.0.0/24\n", "10.0.0.0\n/24", "10.0.0.0/24\0", "10.0.0.0/8 ", "10.0.0.0/ 8"]
JUNK += ["10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/08", "10.0.0.0/255.0.0.0", "10.0.0.0/0.0.0.255"]
JUNK += ["10.0.0.0/24/24", "10.0.0/24", "010.0.0.0/8", "0x0a.0.0.0/8", "167772160/8", "\u0661.0.0.0/8", "10.0.0.0/\u0662"]
JUNK += ["fd00::/129", "fd00::%eth0/64", "fd00::/64%eth0", "[fd00::]/64"]


@pytest.mark.parametrize("text", JUNK, ids=lambda text: repr(text[:20]))
def test_junk_is_no_subnet_and_the_error_is_one_short_line(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_subnet(text)
    message = str(caught.value)
    assert repr(text[:80]) in message
    assert message.isprintable()
    assert len(message) < 200


@any_pace
@given(st.ip_addresses())
def test_an_address_is_read_as_it_is_written(address: Address) -> None:
    assert parse_address(str(address), "gateway") == address


@pytest.mark.parametrize("wrap", [" {}", "{} ", "{}\n", "\n{}", "{}\0", "{}/24", "{}%eth0", "{}%", "[{}]", "{}:80", "{}.", "\t{}", "{}\r"])
@pytest.mark.parametrize("address", ["10.0.0.1", "fd00:1:2:3:4:5:6:7"])
def test_an_address_with_anything_around_it_is_refused_by_role_and_text(wrap: str, address: str) -> None:
    text = wrap.format(address)
    with pytest.raises(Invalid) as caught:
        parse_address(text, "gateway")
    assert str(caught.value).startswith(f"gateway {text!r} is not an IP address; ")
    assert str(caught.value).isprintable()


@any_pace
@given(st.text(alphabet="0123456789abf.:/%x \n\0-") | st.text())
def test_no_text_makes_the_parsers_raise_anything_but_invalid(text: str) -> None:
    with suppress(Invalid):
        assert parse_address(text, "gateway") == ip_address(text)
    with suppress(Invalid):
        assert parse_subnet(text) == ip_network(text)


# The layout of a subnet


@pytest.mark.parametrize(
    ("subnet", "ranges", "reserved", "expected"),
    [
        ("10.0.0.0/24", [], [], "10.0.0.1"),
        ("10.0.0.0/24", [], ["10.0.0.1", "10.0.0.2", "10.0.0.4"], "10.0.0.3"),
        ("10.0.0.0/24", ["10.0.0.128/25"], [], "10.0.0.1"),
        ("10.0.0.0/24", ["10.0.0.0/25"], [], "10.0.0.1"),
        ("10.0.0.0/24", ["10.0.0.1/32"], [], "10.0.0.2"),
        ("10.0.0.0/31", [], [], "10.0.0.0"),
        ("10.0.0.0/32", [], [], "10.0.0.0"),
        ("fd00::/64", [], [], "fd00::1"),
        ("fd00::/127", [], ["fd00::"], "fd00::1"),
    ],
)
def test_the_default_gateway_is_the_first_usable_address(subnet: str, ranges: list[str], reserved: list[str], expected: str) -> None:
    names = {f"aux{index}": ip_address(text) for index, text in enumerate(reserved)}
    assert str(next_gateway(ip_network(subnet), [ip_network(text) for text in ranges], names)) == expected


def test_there_is_no_default_gateway_when_every_usable_address_is_reserved() -> None:
    reserved: dict[str, Address] = {"a": IPv4Address("10.0.0.1"), "b": IPv4Address("10.0.0.2")}
    with pytest.raises(Exhausted, match=r"subnet 10.0.0.0/30 has no address left for a gateway; "):
        next_gateway(IPv4Network("10.0.0.0/30"), [], reserved)


@any_pace
@given(layouts())
def test_the_default_gateway_fits_every_layout(layout: Layout) -> None:
    try:
        gateway = next_gateway(layout.subnet, layout.ranges, layout.reserved)
    except Exhausted:
        single = [part[0] for part in layout.ranges if part.num_addresses == 1]
        assert set(layout.subnet.hosts()) <= {*layout.reserved.values(), *single}
        return
    check_layout(layout.subnet, gateway, layout.ranges, layout.reserved)
    assert gateway not in layout.reserved.values()


@pytest.mark.parametrize(
    ("gateway", "part", "reserved", "words"),
    [
        ("10.0.0.1", None, None, "gateway 10.0.0.1 is outside subnet 192.168.34.0/24; choose one from 192.168.34.1 to"),
        ("fd00::1", None, None, "gateway fd00::1 is outside subnet 192.168.34.0/24; "),
        ("192.168.34.0", None, None, "gateway 192.168.34.0 is the network address of subnet 192.168.34.0/24; "),
        ("192.168.34.255", None, None, "gateway 192.168.34.255 is the broadcast address of subnet 192.168.34.0/24; "),
        (
            None,
            "10.0.0.0/25",
            None,
            "range 10.0.0.0/25 is not inside subnet 192.168.34.0/24; it should lie within 192.168.34.0 to",
        ),
        (None, "192.168.34.0/23", None, "range 192.168.34.0/23 is not inside subnet 192.168.34.0/24; "),
        (None, "192.168.0.0/16", None, "range 192.168.0.0/16 is not inside subnet 192.168.34.0/24; "),
        (None, "fd00::/64", None, "range fd00::/64 is not inside subnet 192.168.34.0/24; "),
        (None, None, "10.0.0.9", "reserved address printer=10.0.0.9 is outside subnet 192.168.34.0/24; "),
        (None, None, "fd00::9", "reserved address printer=fd00::9 is outside subnet 192.168.34.0/24; "),
    ],
)
def test_what_does_not_fit_into_the_subnet_is_refused(gateway: str | None, part: str | None, reserved: str | None, words: str) -> None:
    layout = Layout(
        SLASH_24,
        ip_address(gateway) if gateway else None,
        [ip_network(part)] if part else [],
        {"printer": ip_address(reserved)} if reserved else {},
        0,
    )
    with pytest.raises(Invalid) as caught:
        check_layout(*layout[:4])
    assert str(caught.value).startswith(words)
    with pytest.raises(Invalid):
        layout.pool()


def test_a_range_that_ends_with_the_subnet_but_begins_before_it_is_refused() -> None:
    with pytest.raises(Invalid, match=r"range 192.168.34.0/23 is not inside subnet 192.168.35.0/24; "):
        check_layout(IPv4Network("192.168.35.0/24"), None, [IPv4Network("192.168.34.0/23")], {})
