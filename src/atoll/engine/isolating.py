"""The verb for how a network keeps apart from the others, while it is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from atoll import faults
from atoll.engine.base import Base
from atoll.errors import Conflict, Invalid
from atoll.firewall.elements import change, network_elements
from atoll.model import ISOLATIONS, Network
from atoll.plan.operations import ConntrackDelete, Plan

if TYPE_CHECKING:
    from atoll.model import Isolation


class IsolationVerbs(Base):
    def set_isolation(self, network: str, isolation: Isolation) -> Network:
        """Whether a network reaches others and is reached from them, from now on; see `Network.isolation`.

        Recorded first: what a crash leaves undone is then a difference that recovery puts right. Connections that came in under a laxer
        rule end.
        """
        faults.begin("set_isolation")
        before, after = self._isolated(network, isolation)
        if before == after:
            return before
        self._put_isolated(after)
        try:
            self.do(self._isolation_plan(before, after))
        except BaseException:
            self._put_isolated(before)
            self.rebuild_firewall()
            raise
        self.emit("network.change", network=after.name, isolation=isolation)
        return after

    def plan_set_isolation(self, network: str, isolation: Isolation) -> Plan:
        return self._isolation_plan(*self._isolated(network, isolation))

    # --- parts ---

    def _isolated(self, network: str, isolation: Isolation) -> tuple[Network, Network]:
        """The network before and after."""
        before = self.state.network(network)
        if isolation not in ISOLATIONS:
            raise Invalid(f"isolation {str(isolation)[:40]!r} is unknown", f"one of {', '.join(ISOLATIONS)}")
        if before.driver != "bridge":
            raise Invalid(f"a {before.driver} network can't be isolated", "its packets don't pass the host")
        if before.state != "ready":
            raise Conflict(f"network {before.name} is {before.state}", "try again in a moment")
        return before, structs.replace(before, isolation=isolation)

    def _put_isolated(self, network: Network) -> None:
        with self.store.transaction():
            self.store.put(network)
        self.state.update_network(network)
        faults.step()

    def _isolation_plan(self, before: Network, after: Network) -> Plan:
        known, wanted = network_elements(before), network_elements(after)
        added = [element for element in wanted if element not in known]
        gone = [element for element in known if element not in wanted]
        laxer = ISOLATIONS.index(after.isolation) > ISOLATIONS.index(before.isolation)
        held = [text.partition("/")[0] for endpoint in self.state.endpoints_on(after) for text in endpoint.addresses]
        forget = [] if laxer else [ConntrackDelete(address=text) for text in held]
        return Plan.of(change("add", added), change("delete", gone), forget)
