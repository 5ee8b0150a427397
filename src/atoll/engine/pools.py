"""The verbs for pools of addresses without a network: for clients that only ask for addresses (Docker's IPAM, CNI's host-local).

Each changes one row or a few in one transaction, first on file and then in memory, so there is nothing to be half done.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from msgspec import structs

from atoll import faults, ipam
from atoll.checks import check_key
from atoll.engine.leases import Leased, restored
from atoll.engine.networks import NetworkVerbs
from atoll.errors import Conflict, Invalid
from atoll.kernel import netns
from atoll.model import AddressPool

if TYPE_CHECKING:
    from collections.abc import Sequence


class PoolVerbs(NetworkVerbs):
    def open_pool(
        self, name: str, subnet: str, ranges: Sequence[str] = (), reserved: Sequence[str] = (), *, until_reboot: bool = False
    ) -> None:
        """Make a pool of addresses. The same again is success, with other `ranges` and `reserved` it has those from now on.

        `ranges` are prefixes or FIRST-LAST. With `until_reboot` leases are forgotten when the machine has been started anew. Raises
        `Conflict` where the pool has another subnet, or a lease on what would be reserved.
        """
        faults.begin("open_pool")
        check_key(name, "a pool's name")
        record = AddressPool(
            name=name,
            subnet=str(ipam.parse_subnet(subnet)),
            ranges=tuple(ranges),
            reserved=tuple(str(ipam.parse_address(text, "reserved address")) for text in reserved),
            until_reboot=until_reboot,
            boot=netns.boot_id() if until_reboot else "",
        )
        known = self.state.leases.pools.get(name)
        if known is not None and known.record == record:
            return
        if known is not None and known.record.subnet != record.subnet:
            raise Conflict(f"pool {name} has the subnet {known.record.subnet}", "close it first, or use that")
        made = restored(record, known.pool.cursor, self.leases(name)) if known is not None else Leased(record)
        faults.step()
        with self.store.transaction():
            self.store.put_pool(record)
        faults.step()
        self.state.leases.put(made)

    def close_pool(self, name: str) -> None:
        """Take a pool away with its leases. Nothing there is success."""
        faults.begin("close_pool")
        if name in self.state.leases.pools:
            with self.store.transaction():
                self.store.delete_pool(name)
            faults.step()
            self.state.leases.drop(name)

    def pools(self) -> list[AddressPool]:
        """In the order in which they were opened."""
        return [leased.record for leased in self.state.leases.pools.values()]

    def lease(self, pool: str, owner: str, address: str = "", *, again: bool = False) -> str:
        """An address of a pool for `owner`, with its prefix length: this one, or the next free one.

        An owner that has one gets the same, unless another one is named or `again` asks for one more. Raises `Conflict` where somebody
        else has it, and `Exhausted`.
        """
        faults.begin("lease")
        leased = self.state.leases.pool(pool)
        check_key(owner, "an owner")
        mine = leased.of(owner)
        if address:
            value = ipam.parse_address(address, "address")
            if value in mine:
                return leased.text(value)
            leased.pool.claim(value, owner)
        elif mine and not again:
            return leased.text(mine[0])
        else:
            value = leased.pool.allocate(owner)
        faults.step()
        try:
            with self.store.transaction():
                self.store.put_lease(pool, str(value), owner)
                self.store.set_pool_cursor(leased.record, leased.pool.cursor)
        except BaseException:
            leased.pool.retract(value)
            raise
        faults.step()
        leased.add(value, owner)
        return leased.text(value)

    def release_lease(self, pool: str, address: str = "", owner: str = "") -> None:
        """Give back an owner's addresses, or one address (of that owner only, if one is named). Nothing there is success."""
        faults.begin("release_lease")
        leased = self.state.leases.pools.get(pool)
        if leased is None:
            return
        if not address and not owner:
            raise Invalid("neither an address nor an owner was named", "name what is to be released")
        held = [ipam.parse_address(address, "address")] if address else leased.of(owner)
        gone = [value for value in held if (holder := leased.pool.holder(value)) is not None and owner in ("", holder)]
        with self.store.transaction():
            for value in gone:
                self.store.delete_lease(pool, str(value))
        faults.step()
        for value in gone:
            leased.drop(value)

    def leases(self, pool: str) -> dict[str, str]:
        """The owners of a pool's addresses that are leased, by address. Raises `NotFound`."""
        return {str(value): owner for value, owner in self.state.leases.pool(pool).pool.holders()}

    def free_subnet(self, version: int, size: int | None = None) -> str:
        """A subnet that nothing here has: no network, pool, interface or route. `size` is its prefix length."""
        if version not in (4, 6):
            raise Invalid(f"there is no IPv{version}", "4 or 6")
        taken = [*self._facts().everything(self.state.networks.values())]
        if version == 4:
            pools = [(pool, prefix if size is None else size) for pool, prefix in ipam.DEFAULT_POOLS_V4]
            return str(ipam.choose_subnet(taken, pools).subnet)
        ula = ipam.machine_ula(int(self.store.fact("ula")))
        if size in (None, 64):
            return str(ipam.choose_ula(ula, taken, secrets.randbits(16)).subnet)
        return str(ipam.choose_subnet(taken, [(ula, size or 64)]).subnet)

    def forget_rebooted(self) -> None:
        """End the leases that were to last until the machine's end, if that has come."""
        for leased in list(self.state.leases.pools.values()):
            record = leased.record
            if record.until_reboot and record.boot != netns.boot_id():
                made = structs.replace(record, boot=netns.boot_id())
                with self.store.transaction():
                    self.store.delete_pool(record.name)
                    self.store.put_pool(made)
                self.state.leases.put(Leased(made))
