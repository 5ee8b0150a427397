"""Addresses without an endpoint: leases of pools, and what a network keeps for someone, both against a model of what must be so."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from atoll import Engine
from atoll.engine.state import State
from atoll.errors import AtollError, Conflict, Exhausted, Invalid, NotFound
from atoll.kernel import netns
from tests.others import sh

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUBNET = ipaddress.ip_network("10.7.0.0/28")
#: Of the subnet: never leased; and outside of the range, which only those get who name them.
RESERVED = "10.7.0.4"
RANGE = "10.7.0.3-10.7.0.7"
FREE = [f"10.7.0.{number}" for number in (3, 5, 6, 7)]
ADDRESSES = [*FREE, RESERVED, "10.7.0.0", "10.7.0.15", "10.7.0.12", "10.8.0.1"]

owners = st.sampled_from(["a", "b", "c/eth0"])
addresses = st.sampled_from(ADDRESSES)
ENOUGH = settings(max_examples=30, stateful_step_count=25, deadline=None)


def bare(text: str) -> str:
    assert text.endswith("/28")
    return text.removesuffix("/28")


class Leasing(RuleBasedStateMachine):
    """Leases as a dictionary: owner by address, in the order in which they were given."""

    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, str] = {}

    @initialize()
    def begin(self) -> None:
        self.engine.close_pool("p")
        self.engine.open_pool("p", str(SUBNET), [RANGE], [RESERVED])

    @rule(owner=owners)
    def one(self, owner: str) -> None:
        mine = [address for address, holder in self.model.items() if holder == owner]
        if mine:
            assert bare(self.engine.lease("p", owner)) == mine[0]
        else:
            self.one_more(owner)

    @rule(owner=owners)
    def one_more(self, owner: str) -> None:
        free = set(FREE) - set(self.model)
        if free:
            given = bare(self.engine.lease("p", owner, again=True))
            assert given in free
            self.model[given] = owner
        else:
            with pytest.raises(Exhausted, match="pool p has no free address"):
                self.engine.lease("p", owner, again=True)

    @rule(owner=owners, address=addresses)
    def that(self, owner: str, address: str) -> None:
        held = self.model.get(address)
        if held not in (None, owner) or address == RESERVED:
            with pytest.raises(Conflict, match=f"held by {held}" if held else "reserved"):
                self.engine.lease("p", owner, address)
        elif address in (*FREE, "10.7.0.12"):
            assert bare(self.engine.lease("p", owner, address)) == address
            self.model.setdefault(address, owner)
        else:
            with pytest.raises(Invalid):
                self.engine.lease("p", owner, address)

    @rule(owner=st.one_of(st.just(""), owners), address=st.one_of(st.just(""), addresses))
    def give_back(self, owner: str, address: str) -> None:
        if not owner and not address:
            with pytest.raises(Invalid):
                self.engine.release_lease("p")
            return
        self.engine.release_lease("p", address, owner)
        gone = [at for at, holder in self.model.items() if at == (address or at) and holder == (owner or holder)]
        self.model = {at: holder for at, holder in self.model.items() if at not in gone}

    @rule()
    def open_again(self) -> None:
        self.engine.open_pool("p", str(SUBNET), [RANGE], [RESERVED])
        with pytest.raises(Conflict, match="has the subnet"):
            self.engine.open_pool("p", "10.9.0.0/24")

    @rule()
    def start_anew(self) -> None:
        """What the next process finds on file."""
        cursor = self.engine.state.leases.pool("p").pool.cursor
        self.engine.state.leases = State(self.engine.store).leases
        assert self.engine.state.leases.pool("p").pool.cursor == cursor

    @invariant()
    def as_the_model_says(self) -> None:
        if self.engine.pools():
            assert self.engine.leases("p") == self.model


def test_leases_are_as_a_model_of_them(engine: Engine) -> None:
    Leasing.engine = engine
    run_state_machine_as_test(Leasing, settings=ENOUGH)


class Holding(RuleBasedStateMachine):
    """A network's addresses: those kept for a holder, and those of endpoints."""

    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, str] = {}
        self.connected: dict[str, str] = {}

    @initialize()
    def begin(self) -> None:
        for name in ("r1", "r2"):
            if self.engine.state.endpoints_of(name):
                self.engine.disconnect("web", name)
        for address in FREE:
            self.engine.drop_hold("web", address)

    @rule(holder=owners)
    def keep_the_next(self, holder: str) -> None:
        free = set(FREE) - set(self.held) - set(self.connected.values())
        if free:
            given = bare(self.engine.hold_address("web", holder))
            assert given in free
            self.held[given] = holder
        else:
            with pytest.raises(Exhausted):
                self.engine.hold_address("web", holder)

    @rule(holder=owners, address=st.sampled_from(FREE))
    def keep(self, holder: str, address: str) -> None:
        if address in self.connected.values() or self.held.get(address, holder) != holder:
            with pytest.raises(Conflict, match="held by"):
                self.engine.hold_address("web", holder, address)
        else:
            assert bare(self.engine.hold_address("web", holder, address)) == address
            self.held[address] = holder

    @rule(address=addresses)
    def let_go(self, address: str) -> None:
        self.engine.drop_hold("web", address)
        self.held.pop(address, None)

    @rule(name=st.sampled_from(["r1", "r2"]), address=st.sampled_from(FREE), holder=st.one_of(st.just(""), owners), wrong=st.booleans())
    def connect(self, name: str, address: str, holder: str, wrong: bool) -> None:
        """Of those that are `wrong` the kernel refuses what is asked for, after all was recorded."""
        taken = address in self.connected.values() or self.held.get(address, holder) != holder
        options = {"addresses": [address], "holder": holder}
        if taken or name in self.connected:
            with pytest.raises(Conflict):
                self.engine.connect("web", name, **options)
        elif wrong:
            self.engine.on_plan = refuse
            with pytest.raises(Conflict, match="refused"):
                self.engine.connect("web", name, **options)
            self.engine.on_plan = None
        else:
            self.engine.connect("web", name, **options)
            self.held.pop(address, None)
            self.connected[name] = address

    @rule(name=st.sampled_from(["r1", "r2"]))
    def disconnect(self, name: str) -> None:
        if self.connected.pop(name, None):
            self.engine.disconnect("web", name)

    @rule(address=st.sampled_from(FREE), holder=owners)
    def ask_only(self, address: str, holder: str) -> None:
        with contextlib.suppress(AtollError):
            self.engine.plan_connect("web", "r1", addresses=[address], holder=holder)

    @invariant()
    def as_the_model_says(self) -> None:
        for state in (self.engine.state, State(self.engine.store)):
            network = state.network("web")
            assert {address: holder for (_, address), holder in state.holds.items()} == self.held
            holders = {str(value): holder for value, holder in state.pools(network)[0].holders()}
            assert holders == self.held | {address: name for name, address in self.connected.items()}


def refuse(_: object) -> None:
    raise Conflict("refused")


def test_holds_are_as_a_model_of_them(engine: Engine) -> None:
    engine.create_network("web", subnets=[str(SUBNET)], ip_ranges=["10.7.0.0/29"], aux_addresses={"x": "10.7.0.2", "y": RESERVED})
    engine.create_namespace("r1")
    engine.create_namespace("r2")
    Holding.engine = engine
    run_state_machine_as_test(Holding, settings=ENOUGH)


# --- holds ---------------------------------------------------------------------------------------------------------------------------


def test_holds_in_each_family(engine: Engine) -> None:
    engine.create_network("web", subnets=["10.1.0.0/24", "fd01::/64"])
    assert engine.hold_address("web", "docker") == "10.1.0.2/24"
    assert engine.hold_address("web", "docker", version=6) == "fd01::2/64"
    assert engine.hold_address("web", "docker", "fd01::7") == "fd01::7/64"
    with pytest.raises(Conflict, match="the gateway"):
        engine.hold_address("web", "docker", "10.1.0.1")
    with pytest.raises(Invalid, match="not in a subnet"):
        engine.hold_address("web", "docker", "10.2.0.1")
    with pytest.raises(Invalid, match="not an IP address"):
        engine.hold_address("web", "docker", "x")
    with pytest.raises(Invalid, match="no IPv5"):
        engine.hold_address("web", "docker", version=5)
    with pytest.raises(Invalid, match="as a holder"):
        engine.hold_address("web", "a\nb")
    engine.create_namespace("r1")
    endpoint = engine.connect("web", "r1", addresses=["10.1.0.2", "fd01::7"], holder="docker")
    assert endpoint.addresses == ("10.1.0.2/24", "fd01::7/64")
    assert list(engine.state.holds.values()) == ["docker"]
    engine.remove_namespace("r1")
    engine.remove_network("web")
    assert not engine.state.holds
    assert not engine.store.load_holds()


# --- pools ---------------------------------------------------------------------------------------------------------------------------


def test_a_pool_may_get_other_ranges_while_it_is_in_use(engine: Engine) -> None:
    engine.open_pool("p", "10.7.0.0/24", ["10.7.0.16/28"])
    assert engine.lease("p", "a") == "10.7.0.16/24"
    engine.open_pool("p", "10.7.0.0/24", ["10.7.0.32/28"], ["10.7.0.32"])
    assert engine.lease("p", "a") == "10.7.0.16/24"
    assert engine.lease("p", "b") == "10.7.0.33/24"
    with pytest.raises(Conflict, match="reserved"):
        engine.open_pool("p", "10.7.0.0/24", [], ["10.7.0.16"])
    assert [pool.ranges for pool in engine.pools()] == [("10.7.0.32/28",)]
    engine.close_pool("p")
    engine.close_pool("p")
    assert engine.pools() == []
    with pytest.raises(NotFound):
        engine.lease("p", "a")
    with pytest.raises(NotFound):
        engine.leases("p")
    engine.release_lease("p", owner="a")


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": "x" * 256},
        {"name": "a\0b"},
        {"subnet": "10.7.0.1/24"},
        {"subnet": "10.7.0.0"},
        {"subnet": "224.0.0.0/24"},
        {"ranges": ["10.7.0.9-10.7.0.3"]},
        {"ranges": ["10.7.0.9-fd00::1"]},
        {"ranges": ["10.7.0.9-"]},
        {"ranges": ["10.8.0.0/24"]},
        {"reserved": ["10.8.0.1"]},
        {"reserved": ["x"]},
    ],
)
def test_what_means_nothing_opens_no_pool(engine: Engine, options: dict[str, Any]) -> None:
    good = {"name": "p", "subnet": "10.7.0.0/24"}
    with pytest.raises(Invalid):
        engine.open_pool(**(good | options))
    assert engine.pools() == []
    assert engine.store.load_pools() == []


def test_leases_that_last_until_the_machine_restarts(host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.open(tmp_path) as engine:
        for name, until_reboot in (("short", True), ("long", False)):
            engine.open_pool(name, "10.7.0.0/24", until_reboot=until_reboot)
            engine.lease(name, "a")
    with Engine.open(tmp_path) as engine:
        assert engine.leases("short") == engine.leases("long") == {"10.7.0.1": "a"}
    monkeypatch.setattr(netns, "boot_id", lambda: "another")
    with Engine.open(tmp_path) as engine:
        assert engine.leases("short") == {}
        assert engine.leases("long") == {"10.7.0.1": "a"}
        engine.open_pool("short", "10.7.0.0/24", until_reboot=True)
        engine.lease("short", "b")
    with Engine.open(tmp_path) as engine:
        assert list(engine.leases("short").values()) == ["b"]


# --- subnets -------------------------------------------------------------------------------------------------------------------------


def taken(engine: Engine) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for text in [
        *(subnet.subnet for network in engine.networks() for subnet in network.subnets),
        *(pool.subnet for pool in engine.pools()),
    ]:
        yield ipaddress.ip_network(text)


def test_a_free_subnet_is_nobodys(engine: Engine) -> None:
    sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip address add 172.18.0.1/16 dev up0")
    engine.create_network("web", ipv6=True)
    for number in range(8):
        for version, size in ((4, None), (6, None), (4, 20), (6, 80)):
            found = ipaddress.ip_network(engine.free_subnet(version, size))
            assert found.version == version
            assert found.prefixlen == (size or {4: 24, 6: 64}[version])
            assert not any(found.overlaps(other) for other in taken(engine) if other.version == version)
            assert not found.overlaps(ipaddress.ip_network("172.18.0.0/16"))
            engine.open_pool(f"{number} {version} {size}", str(found))
    made = engine.create_network("chosen", ipv6=True)
    for subnet in made.subnets:
        engine.close_pool("none")
        assert not any(
            ipaddress.ip_network(pool.subnet).overlaps(ipaddress.ip_network(subnet.subnet))
            for pool in engine.pools()
            if (":" in pool.subnet) == (":" in subnet.subnet)
        )
    # Who holds a pool makes its network.
    mine = engine.pools()[0].subnet
    assert engine.create_network("mine", subnets=[mine]).subnets[0].subnet == mine
    for version in (0, 5):
        with pytest.raises(Invalid):
            engine.free_subnet(version)
    with pytest.raises(Invalid):
        engine.free_subnet(4, 40)
