"""What all doors decide alike about a network that a client shares with others: whether one that is there is the one that is meant, and
which part of a subnet Atoll's own choices come from where the client chooses as well. Pure; each door says it in its client's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from atoll.model import Network, Prefix

#: Subnets with less than this many bits for hosts aren't halved.
_LEAST_BITS: Final = 3


class Mismatch(NamedTuple):
    """What the network that is there has, and what was wanted of it instead."""

    what: Literal["driver", "subnet", "gateway"]
    there: str
    wanted: str


def mismatch(network: Network, driver: str, subnets: Iterable[str], gateways: Iterable[str]) -> Mismatch | None:
    """The first reason why a network isn't the one that is meant, though it has its name; it may have further subnets."""
    if network.driver != driver:
        return Mismatch("driver", network.driver, driver)
    there = {subnet.subnet: subnet.gateway for subnet in network.subnets}
    for what, has, wanted in (("subnet", list(there), subnets), ("gateway", list(filter(None, there.values())), gateways)):
        for text in wanted:
            if text not in has:
                return Mismatch(what, ", ".join(has) or "none", text)  # type: ignore[arg-type]
    return None


def can_be_halved(subnet: Prefix) -> bool:
    return bool(subnet.max_prefixlen - subnet.prefixlen >= _LEAST_BITS)


def halves(subnet: Prefix) -> tuple[Prefix, Prefix]:
    """Clients that choose by themselves begin at the low end, so what Atoll chooses comes from the upper one."""
    lower, upper = subnet.subnets(prefixlen_diff=1)
    return lower, upper
