"""Address management: which subnet a network gets, and which address of it an endpoint gets.

Pure: no I/O, no clock, no randomness; what is taken, seeds and cursors come in as arguments. Addresses are `ipaddress` objects at
the edges and integers inside. Two decisions shape it:

- A pool keeps the runs of free addresses, not a bit for every address. A fresh /8 is one run, a full /16 is none: memory follows
  the number of addresses in use, and the next free one is found by binary search however full the subnet is.
- Allocation goes on after the address handed out last and wraps at the end, so that a container which crashes and restarts
  doesn't inherit the connections still aimed at the address it had. The cursor is stored with the network.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import islice
from operator import itemgetter
from typing import Final, NamedTuple

from atoll.errors import Conflict, Exhausted, Invalid

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Taken(NamedTuple):
    """Addresses that are not ours to give, and why: "route via eth0", "network br0", "nameserver in /etc/resolv.conf".

    A default route may be among them: it is ignored wherever a subnet is chosen or checked.
    """

    network: Network
    why: str


class Chosen(NamedTuple):
    """The subnet chosen for a network, and a line for each run of candidates that was passed over, with what they overlap."""

    subnet: Network
    skipped: tuple[str, ...]


#: (pool, prefix length of the subnets cut from it), tried in this order: many and small.
DEFAULT_POOLS_V4: tuple[tuple[Network, int], ...] = ((IPv4Network("172.16.0.0/12"), 24), (IPv4Network("192.168.0.0/16"), 24))

#: Chosen last. The routing table of this moment doesn't show them: a VPC's other hosts are behind the default route, Docker or
#: libvirt may start later, and a laptop comes home later.
COLLISION_PRONE: tuple[Taken, ...] = (
    Taken(IPv4Network("172.17.0.0/16"), "the default of docker0"),
    Taken(IPv4Network("172.31.0.0/16"), "the default VPC of AWS"),
    Taken(IPv4Network("192.168.0.0/23"), "the default of many home routers"),
    Taken(IPv4Network("192.168.122.0/24"), "the default of libvirt"),
)

#: No subnet for endpoints: these don't address one interface on a routed network (RFC 6890, RFC 4291).
_NOT_UNICAST: dict[str, tuple[Network, ...]] = {
    "unspecified": (IPv4Network("0.0.0.0/8"), IPv6Network("::/128")),
    "loopback": (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
    "link-local": (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10")),
    "multicast": (IPv4Network("224.0.0.0/4"), IPv6Network("ff00::/8")),
    "broadcast": (IPv4Network("255.255.255.255/32"),),
    "IPv4-mapped": (IPv6Network("::ffff:0:0/96"),),
}


class _Runs:
    """A set of integers as disjoint ascending runs, both ends included. A change is a binary search and a shift of the list."""

    def __init__(self, runs: Iterable[tuple[int, int]]) -> None:
        self._runs = list(runs)

    def count(self) -> int:  # not __len__, which can't exceed 2^63 - 1
        return sum(end - start + 1 for start, end in self._runs)

    def next_from(self, value: int) -> int | None:
        """The smallest member that is `value` or more, else the smallest of all, None in an empty set."""
        index = bisect_right(self._runs, value, key=itemgetter(0))
        if index and self._runs[index - 1][1] >= value:
            return value
        return self._runs[index % len(self._runs)][0] if self._runs else None

    def add(self, value: int) -> None:
        """Add a value that isn't a member, joining it with the runs on either side."""
        first = last = bisect_right(self._runs, value, key=itemgetter(0))
        start = end = value
        if first and self._runs[first - 1][1] == value - 1:
            first -= 1
            start = self._runs[first][0]
        if last < len(self._runs) and self._runs[last][0] == value + 1:
            end = self._runs[last][1]
            last += 1
        self._runs[first:last] = [(start, end)]

    def discard(self, value: int) -> None:
        index = bisect_right(self._runs, value, key=itemgetter(0)) - 1
        if index >= 0 and self._runs[index][1] >= value:
            start, end = self._runs[index]
            self._runs[index : index + 1] = [run for run in ((start, value - 1), (value + 1, end)) if run[0] <= run[1]]


class Pool:
    """The addresses of one subnet of one network, and who holds them. For one thread, the engine's.

    Never handed out: the gateway, reserved addresses, and what `check_layout` calls unusable. `ranges` limit `allocate`; `claim`
    may take any other address of the subnet. The address freed last is handed out only when no other is free. `size` is how many
    addresses `allocate` can hand out while nobody holds any.
    """

    def __init__(
        self,
        network: str,
        subnet: Network,
        *,
        gateway: Address | None,
        ranges: Sequence[Network] = (),
        reserved: Mapping[str, Address] = {},
        cursor: int = 0,
        kind: str = "network",
    ) -> None:
        """`network` is the network's name and `kind` what it is, for messages; `reserved` maps a name to its address; `cursor` is the
        integer value of the address handed out last, 0 for none yet (128 bits wide for IPv6). Raises Invalid as `check_layout` does.
        """
        check_layout(subnet, gateway, ranges, reserved)
        self._network = f"{kind} {network}"
        self._subnet = subnet
        self._gateway = gateway
        self._ranges = tuple(ranges)
        self._cursor = cursor
        self._fixed = {int(address): f"reserved as {name}" for name, address in reserved.items()}
        if gateway is not None:
            self._fixed[int(gateway)] = "the gateway"
        self._free = _Runs(_usable_runs(subnet, ranges))
        for value in self._fixed:
            self._free.discard(value)
        self.size: Final = self._free.count()
        self._owners: dict[int, str] = {}
        self._last_freed: int | None = None
        self._before_latest: tuple[int, int] | None = None  # the latest allocation that stands, and the cursor before it

    @property
    def subnet(self) -> Network:
        return self._subnet

    @property
    def gateway(self) -> Address | None:
        return self._gateway

    @property
    def cursor(self) -> int:
        """The integer value of the address handed out last, 0 for none yet."""
        return self._cursor

    @property
    def used(self) -> int:
        """How many addresses are held, those claimed outside the ranges included."""
        return len(self._owners)

    def allocate(self, owner: str) -> Address:
        """Hand out the next free address after the cursor, wrapping. Raises Exhausted."""
        value = self._next_free(self._cursor)
        if value == self._last_freed:
            value = self._next_free(value)  # itself again when no other is free
        self._free.discard(value)
        self._owners[value] = owner
        self._before_latest = value, self._cursor
        self._cursor = value
        return _address(self._subnet, value)

    def choose(self, first: Address, last: Address, but: Collection[Address] = ()) -> Address | None:
        """The next free address from `first` to `last` after the one handed out last, which this one becomes; whoever wants it claims it.

        None when all are taken. `but` are addresses that aren't to be chosen.
        """
        low, high = max(int(first), _usable(self._subnet)[0]), min(int(last), _usable(self._subnet)[1])
        value = self._cursor + 1 if low <= self._cursor < high else low
        taken = {int(address) for address in but}
        # One more than can be taken is enough to find a free one.
        for _ in range(min(high - low + 1, len(self._owners) + len(self._fixed) + len(taken) + 1)):
            if value not in self._owners and value not in self._fixed and value not in taken:
                self._cursor = value
                return _address(self._subnet, value)
            value = value + 1 if value < high else low
        return None

    def claim(self, address: Address, owner: str) -> None:
        """Take a static address, anywhere in the subnet; the cursor stays.

        Raises Invalid outside the subnet or where no endpoint can be, Conflict if the gateway, a reserved name or an owner (even
        the same one) has it.
        """
        _check_usable(self._subnet, address, f"{self._network}: address")
        value = int(address)
        state = f"held by {self._owners[value]}" if value in self._owners else self._fixed.get(value)
        if state:
            raise Conflict(f"{address} is {state} on {self._network}", "choose another, or name none to get a free one")
        self._free.discard(value)
        self._owners[value] = owner

    def hand_over(self, address: Address, owner: str) -> bool:
        """Give an address that is held a new owner; false where nobody holds it."""
        held = address in self._subnet and int(address) in self._owners
        if held:
            self._owners[int(address)] = owner
        return held

    def rename(self, network: str, kind: str = "network") -> None:
        """Under another name in messages."""
        self._network = f"{kind} {network}"

    def release(self, address: Address) -> None:
        """Give an address back. One that nobody holds is left alone."""
        value = int(address)
        if self._give_back(address):
            if self._in_ranges(value):
                self._last_freed = value
            if self._before_latest is not None and self._before_latest[0] == value:
                self._before_latest = None

    def retract(self, address: Address) -> None:
        """Give back an address that nobody has used yet, as if it had never been taken; of allocations, the latest."""
        if self._give_back(address) and self._before_latest is not None and self._before_latest[0] == int(address):
            self._cursor = self._before_latest[1]
            self._before_latest = None

    def _give_back(self, address: Address) -> bool:
        value = int(address)
        if address not in self._subnet or self._owners.pop(value, None) is None:
            return False
        if self._in_ranges(value):
            self._free.add(value)
        return True

    def holder(self, address: Address) -> str | None:
        """Who holds the address; None for nobody and for an address outside the subnet."""
        return self._owners.get(int(address)) if address in self._subnet else None

    def holders(self) -> Iterator[tuple[Address, str]]:
        """Every held address with its owner, ascending, as they are when the iteration begins."""
        for value, owner in sorted(self._owners.items()):
            yield _address(self._subnet, value), owner

    def _next_free(self, after: int) -> int:
        value = self._free.next_from(after + 1)
        if value is not None:
            return value
        within = f"range {', '.join(map(str, self._ranges))} of " if self._ranges else ""
        holders = list(islice((owner for held, owner in self._owners.items() if self._in_ranges(held)), 5))
        raise Exhausted(
            f"{self._network} has no free address in {within}subnet {self._subnet}, size {self.size}"
            + (f" (held by {_shortened(holders, self.size)})" if holders else ""),
            "disconnect what is no longer needed, or create the network with a larger subnet",
        )

    def _in_ranges(self, value: int) -> bool:
        return not self._ranges or any(low <= value <= high for low, high in map(_bounds, self._ranges))


def choose_subnet(taken: Iterable[Taken], pools: Sequence[tuple[Network, int]] = DEFAULT_POOLS_V4) -> Chosen:
    """The first subnet of the pools that overlaps nothing in `taken`; those in `COLLISION_PRONE` come last.

    `pools` are pairs of a network and the prefix length of the subnets to cut from it. Raises Exhausted saying what blocks each
    pool, Invalid for a prefix length that doesn't fit its pool.
    """
    for pool, prefix in pools:
        if not pool.prefixlen <= prefix <= pool.max_prefixlen:
            hint = f"it should be from /{pool.prefixlen} to /{pool.max_prefixlen}"
            raise Invalid(f"address pool {pool} can't be cut into subnets of /{prefix}", hint)
    taken = list(taken)
    spans = [(pool.version, prefix, *_bounds(pool)) for pool, prefix in pools]
    subnet, skipped = _first_free(spans, [*taken, *COLLISION_PRONE])
    if subnet is None:
        subnet, skipped = _first_free(spans, taken)
    if subnet is None:
        why = "; ".join(skipped) or "none is configured"
        raise Exhausted(f"no subnet is free in the address pools: {why}", "remove networks not needed, or name a subnet")
    return Chosen(subnet, skipped)


def choose_ula(prefix48: IPv6Network, taken: Iterable[Taken], seed: int) -> Chosen:
    """The first /64 of a machine's /48 that overlaps nothing in `taken`, from subnet id `seed` (0 to 65535) on, wrapping.

    Raises Exhausted saying what blocks the /48, Invalid for another prefix or seed.
    """
    if prefix48.prefixlen != 48 or not 0 <= seed < 1 << 16:
        raise Invalid(f"{prefix48} has no /64 of subnet id {seed}", "the prefix should be a /48 and the id from 0 to 65535")
    low, high = _bounds(prefix48)
    start = low + (seed << 64)
    subnet, skipped = _first_free([(6, 64, start, high), (6, 64, low, start - 1)], list(taken))
    if subnet is None:
        raise Exhausted(f"no /64 is free in {prefix48}: {'; '.join(skipped)}", "remove networks not needed, or name a subnet")
    return Chosen(subnet, skipped)


def _first_free(spans: Sequence[tuple[int, int, int, int]], taken: Sequence[Taken]) -> tuple[Network | None, tuple[str, ...]]:
    """The first subnet of the spans that overlaps nothing taken, if any, and for each span a line on what was skipped before it.

    A span is (IP version, prefix length of the subnets, first address, last address). One walk over the taken entries by address:
    each that overlaps the candidate moves it behind its own end at once, however wide it is.
    """
    skipped: list[str] = []
    for version, prefix, low, high in spans:
        entries = [(*_bounds(entry.network), entry) for entry in taken if entry.network.version == version]
        entries.sort(key=lambda item: (item[0], -item[1], item[2].why))  # of nested entries the widest comes first
        size = 1 << ((32 if version == 4 else 128) - prefix)
        candidate = low
        blockers: list[Taken] = []
        for first, last, entry in entries:
            if candidate > high or first >= candidate + size:
                break
            if last >= candidate and not _is_default(entry.network):
                candidate = (last // size + 1) * size
                blockers.append(entry)
        if blockers:
            end = min(candidate, high + 1) - size
            run = str(_network(version, low, prefix)) + (f" to {_network(version, end, prefix)}" if end > low else "")
            blockers.sort(key=lambda entry: entry.network.prefixlen)  # the widest say most
            names = [f"{entry.network} ({entry.why})" for entry in blockers[:5]]
            skipped.append(f"{run} skipped: overlap with {_shortened(names, len(blockers))}")
        if candidate <= high:
            return _network(version, candidate, prefix), tuple(skipped)
    return None, tuple(skipped)


def machine_ula(random40: int) -> IPv6Network:
    """The unique local /48 of a machine, from the 40 random bits of its global id (RFC 4193, section 3). Raises Invalid."""
    if not 0 <= random40 < 1 << 40:
        raise Invalid(f"global id {random40} does not fit into a unique local prefix", "it should be from 0 to 2^40 - 1")
    return IPv6Network((0xFD << 120 | random40 << 80, 48))


def overlap(subnet: Network, taken: Iterable[Taken]) -> Taken | None:
    """The first entry of `taken` that shares an address with the subnet, None if there is none."""
    return next((entry for entry in taken if entry.network.overlaps(subnet) and not _is_default(entry.network)), None)


def parse_subnet(text: str) -> Network:
    """A subnet written as ADDRESS/LENGTH, IPv4 or IPv6. Raises Invalid for anything else and for what isn't unicast."""
    address, _, length = text.partition("/")
    try:
        if not re.fullmatch(r"0|[1-9][0-9]{0,2}", length):
            raise ValueError(length)  # missing, or a netmask, which ip_network would take
        base = parse_address(address, "subnet")
        subnet = ip_network(f"{base}/{length}", strict=False)
    except (ValueError, Invalid):
        raise Invalid(f"subnet {text[:80]!r} is not ADDRESS/LENGTH", "write it like 10.0.0.0/24 or fd00:1:2:3::/64") from None
    if base != subnet.network_address:
        raise Invalid(f"subnet {text!r} has host bits set", f"it should be {subnet}")
    for kind, networks in _NOT_UNICAST.items():
        if any(network.overlaps(subnet) for network in networks):
            raise Invalid(f"subnet {text!r} holds {kind} addresses", "choose one of unicast addresses")
    return subnet


def parse_address(text: str, what: str) -> Address:
    """An IPv4 or IPv6 address without a zone id. Raises Invalid naming `what`, the address's role: "gateway", "host address"."""
    try:
        if "%" not in text:
            return IPv6Address(text) if ":" in text else IPv4Address(text)
    except ValueError:
        pass
    raise Invalid(f"{what} {text[:80]!r} is not an IP address", "write it like 10.0.0.1 or fd00:1:2:3::1, without a zone id")


def next_gateway(subnet: Network, ranges: Sequence[Network], reserved: Mapping[str, Address]) -> Address:
    """The default gateway: the first usable address of the subnet that isn't reserved. Raises Exhausted if there is none.

    It is the subnet's first, not a range's, as people expect. Only a range of one address is left alone: an endpoint needs it.
    """
    refused = {int(address) for address in reserved.values()} | {int(r[0]) for r in ranges if r.num_addresses == 1}
    first, last = _usable(subnet)
    while first in refused:
        first += 1
    if first > last:
        raise Exhausted(f"subnet {subnet} has no address left for a gateway", "reserve fewer, or create the network without one")
    return _address(subnet, first)


def check_layout(subnet: Network, gateway: Address | None, ranges: Sequence[Network], reserved: Mapping[str, Address]) -> None:
    """Check that gateway, ranges and reserved addresses are inside the subnet, and that the gateway is usable. Raises Invalid.

    Unusable are the network and broadcast address (IPv4, but for /31 and /32, RFC 3021) and the subnet-router anycast address
    (IPv6, RFC 4291 section 2.6.1, but for /127, RFC 6164, and /128).
    """
    if gateway is not None:
        _check_usable(subnet, gateway, "gateway")
    hint = f"it should lie within {subnet[0]} to {subnet[-1]}"
    for part in ranges:
        if part[0] not in subnet or part[-1] not in subnet:
            raise Invalid(f"range {part} is not inside subnet {subnet}", hint)
    for name, address in reserved.items():
        if address not in subnet:
            raise Invalid(f"reserved address {name}={address} is outside subnet {subnet}", hint)


def _is_default(network: Network) -> bool:
    return network.prefixlen <= 1  # VPN clients often replace the default route by two halves of length 1


def _bounds(network: Network) -> tuple[int, int]:
    return int(network.network_address), int(network.broadcast_address)


def _usable(subnet: Network) -> tuple[int, int]:
    """The first and the last address that an interface can have, see `check_layout`."""
    first, last = _bounds(subnet)
    if last - first <= 1:
        return first, last
    return first + 1, last - 1 if subnet.version == 4 else last


def _usable_runs(subnet: Network, ranges: Sequence[Network]) -> Iterator[tuple[int, int]]:
    """The usable addresses of the ranges, or of the whole subnet if there are none, as disjoint ascending runs."""
    first, last = _usable(subnet)
    for low, high in sorted(map(_bounds, ranges or (subnet,))):
        start, end = max(low, first), min(high, last)
        if start <= end:
            yield start, end
            first = end + 1


def _check_usable(subnet: Network, address: Address, what: str) -> None:
    first, last = _usable(subnet)
    if address in subnet and first <= int(address) <= last:
        return
    lowest = "network" if subnet.version == 4 else "subnet-router anycast"
    fault = f"the {lowest if int(address) < first else 'broadcast'} address of" if address in subnet else "outside"
    hint = f"choose one from {_address(subnet, first)} to {_address(subnet, last)}"
    raise Invalid(f"{what} {address} is {fault} subnet {subnet}", hint)


def _shortened(names: Sequence[str], count: int) -> str:
    """The first few names of `count`: "a, b, c, d, e and 249 more"."""
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


def _address(subnet: Network, value: int) -> Address:
    return IPv4Address(value) if subnet.version == 4 else IPv6Address(value)


def _network(version: int, value: int, prefix: int) -> Network:
    return IPv4Network((value, prefix)) if version == 4 else IPv6Network((value, prefix))
