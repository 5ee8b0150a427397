"""Pools of addresses without a network, and who leases which address: the model in memory. The store holds the same rows."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from atoll import ipam
from atoll.errors import Invalid, NotFound
from atoll.model import AddressPool, address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.ipam import Address
    from atoll.model import Prefix
    from atoll.store.sqlite import Store


class Leased:
    """A pool with its leases. One owner may have several."""

    def __init__(self, record: AddressPool, cursor: int = 0) -> None:
        """Raises `Invalid` for a record that means nothing."""
        self.record = record
        self.subnet = ipam.parse_subnet(record.subnet)
        self.pool = ipam.Pool(
            record.name,
            self.subnet,
            gateway=None,
            ranges=[part for text in record.ranges for part in parse_range(text)],
            reserved={text: address(text) for text in record.reserved},
            cursor=cursor,
            kind="pool",
        )
        self._of_owner: dict[str, dict[Address, None]] = {}

    def add(self, value: Address, owner: str) -> None:
        """Of an address that the pool has given to this owner."""
        self._of_owner.setdefault(owner, {})[value] = None

    def drop(self, value: Address) -> None:
        owner = self.pool.holder(value)
        if owner is not None:
            mine = self._of_owner[owner]
            mine.pop(value, None)
            if not mine:
                del self._of_owner[owner]
            self.pool.release(value)

    def of(self, owner: str) -> list[Address]:
        """An owner's addresses, the first one first."""
        return list(self._of_owner.get(owner, ()))

    def text(self, value: Address) -> str:
        return f"{value}/{self.subnet.prefixlen}"


class Leases:
    """Pools by name."""

    def __init__(self, store: Store) -> None:
        self.pools: dict[str, Leased] = {}
        for record in store.load_pools():
            self.put(restored(record, store.pool_cursor(record), store.load_leases(record.name)))

    def put(self, leased: Leased) -> None:
        self.pools[leased.record.name] = leased

    def drop(self, name: str) -> None:
        self.pools.pop(name, None)

    def pool(self, name: str) -> Leased:
        if name not in self.pools:
            raise NotFound(f"no pool of addresses named {name[:80]}", "open it first")
        return self.pools[name]


def restored(record: AddressPool, cursor: int, leases: dict[str, str]) -> Leased:
    """A pool with leases that there were."""
    leased = Leased(record, cursor)
    for text, owner in leases.items():
        leased.pool.claim(address(text), owner)
        leased.add(address(text), owner)
    return leased


def parse_range(text: str) -> Iterator[Prefix]:
    """A part of a subnet, as a prefix or as FIRST-LAST, in prefixes."""
    first, dash, last = text.partition("-")
    if not dash:
        yield ipam.parse_subnet(text)
        return
    low, high = ipam.parse_address(first.strip(), "first address"), ipam.parse_address(last.strip(), "last address")
    if low.version != high.version or int(low) > int(high):
        raise Invalid(f"range {text[:80]!r} runs backwards", "expected FIRST-LAST of one family")
    yield from ipaddress.summarize_address_range(low, high)
