"""The verbs for addresses that are kept for someone: a client that chooses an endpoint's addresses before it asks for the endpoint.

A hold ends when an endpoint has taken the address over (`connect` with the same `holder`) or when it is dropped. While the endpoint is
being made the hold is still recorded, so that it is there again if that fails or dies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll import faults, ipam
from atoll.checks import check_key
from atoll.engine.base import Base
from atoll.errors import Exhausted, Invalid

if TYPE_CHECKING:
    from atoll.model import Network


class HoldVerbs(Base):
    def hold_address(self, network: str, holder: str, address: str = "", version: int = 4) -> str:
        """Keep an address of a network for `holder`: this one, or the next free one of a family. With its prefix length.

        The same one for the same holder again is success. Raises `Conflict` with the name of who has it.
        """
        faults.begin("hold_address")
        where = self.state.network(network)
        check_key(holder, "a holder")
        pool, value = self._kept(where, holder, address) if address else self._next(where, holder, version)
        text = str(value)
        faults.step()
        try:
            with self.store.transaction():
                self.store.put_hold(where.id, text, holder)
                self.store.set_cursor(where.id, str(pool.subnet), pool.cursor)
        except BaseException:
            if (where.id, text) not in self.state.holds:
                pool.retract(value)
            raise
        faults.step()
        self.state.put_hold(where.id, text, holder)
        return f"{text}/{pool.subnet.prefixlen}"

    def drop_hold(self, network: str, address: str) -> None:
        """Give a kept address back. Nothing there is success; an endpoint's stays the endpoint's."""
        faults.begin("drop_hold")
        where, text = self.state.network(network), str(ipam.parse_address(address, "address"))
        if (where.id, text) not in self.state.holds:
            return
        with self.store.transaction():
            self.store.delete_hold(where.id, text)
        faults.step()
        self.state.drop_hold(where.id, text)

    # --- parts ---

    def _kept(self, network: Network, holder: str, text: str) -> tuple[ipam.Pool, ipam.Address]:
        value = ipam.parse_address(text, "address")
        pool = self.state.pool_of(network, value)
        if pool is None:
            subnets = ", ".join(subnet.subnet for subnet in network.subnets) or "none"
            raise Invalid(f"address {value} is not in a subnet of {network.name}", f"its subnets: {subnets}")
        if self.state.holds.get((network.id, str(value))) != holder or pool.holder(value) != holder:
            pool.claim(value, holder)
        return pool, value

    def _next(self, network: Network, holder: str, version: int) -> tuple[ipam.Pool, ipam.Address]:
        pools = [pool for pool in self.state.pools(network) if pool.subnet.version == version]
        if not pools:
            raise Invalid(f"network {network.name} has no IPv{version} addresses", "give it a subnet of that family")
        for pool in pools[:-1]:
            try:
                return pool, pool.allocate(holder)
            except Exhausted:
                continue
        return pools[-1], pools[-1].allocate(holder)
