"""What the model calls the things that the kernel has, and which cable leads where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.errors import AtollError, Conflict
from atoll.explain.snapshot import Stack
from atoll.model import BRIDGE_PREFIX, TRUNK_PREFIX, VETH_PREFIX
from atoll.words import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Collection

    from atoll.engine import Engine
    from atoll.model import Address, Endpoint, Network


class Names:
    """The model as a dictionary, with the stacks that were opened so far."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stacks: dict[str, Stack | None] = {}
        self.host = Stack(engine.host, "")
        self._bridges: dict[str, Network] = {bridge: network for network in engine.state.bridge_networks() for bridge in network.bridges()}
        self._ports: dict[str, Endpoint] = {endpoint.host_interface: endpoint for endpoint in engine.state.endpoints.values()}
        self._holders: dict[str, list[Endpoint]] = {}
        for endpoint in engine.state.endpoints.values():
            for text in endpoint.addresses:
                self._holders.setdefault(text.partition("/")[0], []).append(endpoint)

    def close(self) -> None:
        for stack in (self.host, *self._stacks.values()):
            if stack is not None:
                stack.close()

    def stack(self, name: str) -> Stack:
        """A namespace's stack. Raises `NotFound` where it has gone."""
        found = self._stacks.get(name)
        if found is None:
            if not self._engine.state.namespace(name).can_be_entered:
                raise Conflict(f"what leads to {name} isn't known yet", "try again when its container has started")
            found = self._stacks[name] = Stack(self._engine.host, name)
        return found

    def at(self, titles: Collection[str]) -> list[Stack]:
        """The stacks of these titles, of those that were opened."""
        return [stack for stack in (self.host, *self._stacks.values()) if stack is not None and stack.title in titles]

    def owner(self, address: Address) -> Stack | None:
        """Whose address it is: the host's or a namespace's; None outside."""
        if self.host.owns(address):
            return self.host
        holders = self._holders.get(str(address))
        return self.stack(holders[0].namespace) if holders else None

    # --- words ---

    def run_by(self, namespace: str) -> str:
        """What runs a namespace's container; empty for one that isn't a container's."""
        known = self._engine.state.namespaces.get(namespace)
        word = self._engine.state.who(known) if known is not None else ""
        return word if word in CLIENTS else ""

    def is_external(self, namespace: str) -> bool:
        """Whether somebody else sets up its inside: Docker, who must be told then."""
        known = self._engine.state.namespaces.get(namespace)
        return known is not None and known.is_external

    def network_of(self, bridge: str) -> str:
        return self._bridges[bridge].name if bridge in self._bridges else bridge

    def is_internal(self, bridge: str) -> bool:
        return bridge in self._bridges and self._bridges[bridge].internal

    def namespace_of(self, port: str) -> str:
        return self._ports[port].namespace if port in self._ports else ""

    def link(self, name: str) -> str:
        if name in self._bridges:
            return f"{name} (network {self._bridges[name].name})"
        if name in self._ports:
            endpoint = self._ports[name]
            return f"{name} (port of {endpoint.namespace})"
        return name

    @staticmethod
    def is_port(name: str) -> bool:
        return name.startswith((VETH_PREFIX, TRUNK_PREFIX, BRIDGE_PREFIX))

    def leads_out(self, namespace: str, version: int) -> bool:
        """Whether one of a namespace's networks has a gateway for a family, and may have its default route."""
        return any(network.gateway(version) and endpoint.default_route for network, endpoint in self._engine.state.attached(namespace))

    def missing(self, address: Address) -> str:
        """What helps where an address that the model gives to someone is nowhere on the wire."""
        return "atoll doctor --fix" if str(address) in self._holders else ""

    # --- cables ---

    def holder(self, host: Stack, bridge: str, address: Address) -> str:
        """The port behind which the model has an address, to be asked first."""
        for endpoint in self._holders.get(str(address), ()):
            if host.master(endpoint.host_interface) == bridge:
                return endpoint.host_interface
        return ""

    def peer(self, stack: Stack, name: str) -> tuple[Stack, str] | None:
        """The other end of a veth pair, where it can be found: on the host, in a namespace that the model knows; None elsewhere."""
        link = stack.links[name]
        if not link.link:
            return None
        for candidate in self._candidates(stack, name):
            far = candidate.by_index.get(link.link)
            if far is not None and far.kind == "veth" and far.link == link.ifindex and (candidate is not stack or far.name != name):
                return candidate, far.name
        return None

    def _candidates(self, stack: Stack, name: str) -> list[Stack]:
        if stack.name:
            return [self.host]
        if name.startswith(TRUNK_PREFIX):
            return [self.host]
        if name not in self._ports:
            return []
        try:
            return [self.stack(self._ports[name].namespace)]
        except AtollError:
            return []
