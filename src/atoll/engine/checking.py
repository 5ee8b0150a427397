"""Whether what was made for one endpoint is there: what a front door's CHECK asks. The same comparison as repair's, of that part alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.drivers import of
from atoll.engine.base import Base
from atoll.engine.reconcile import describe
from atoll.firewall.elements import Element, encode, endpoint_elements, network_elements
from atoll.firewall.elements import text as element_text
from atoll.firewall.skeleton import SETS, TABLE
from atoll.kernel import nft
from atoll.kernel.netlink import NetlinkError
from atoll.plan import operations as op
from atoll.plan.observe import Observed, repairs

if TYPE_CHECKING:
    from atoll.model import Endpoint, Network


class CheckVerbs(Base):
    def rule_faults(self, network: Network, endpoint: Endpoint) -> list[str]:
        """What the firewall lacks of an endpoint's elements and of its network's, in words; empty when all is there.

        Only the sets that they are in are read.
        """
        wanted: dict[str, list[Element]] = {}
        for element in [*network_elements(network), *endpoint_elements(network, endpoint)]:
            wanted.setdefault(element.set, []).append(element)
        faults: list[str] = []
        for name, elements in wanted.items():
            try:
                there = {(row.key, row.key_end, row.data) for row in nft.elements(self.host.nfnl, SETS[name].family, TABLE, name)}
            except NetlinkError:
                faults.append(f"set {name} is missing")
                continue
            faults += [f"element {element_text(one)} of {name} is missing" for one in elements if tuple(encode(one)) not in there]
        return faults

    def shaping_faults(self, network: Network, endpoint: Endpoint) -> list[str]:
        """What isn't so of an endpoint's rate limits, in words; empty when the kernel has them as they were asked for."""
        observed = Observed(self.host)
        faults: list[str] = []
        for operation in of(network).endpoint_up(network, endpoint, self.state.namespace(endpoint.namespace)):
            if isinstance(operation, (op.RateSet, op.ShaperAdd, op.Redirect)):
                todo = repairs(operation, observed, set())
                if todo:
                    faults.append(describe(operation, todo, observed))
        return faults
