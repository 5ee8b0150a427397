"""The commands that changes stand for, found by making them: on a private host that is given the same networks and namespaces first.

What one change needs from another (a bridge, an address, an interface's name) is then as it will be. Ids that are drawn by chance when
it is done in earnest are drawn by chance here, too. Programs aren't run; they are no ip or nft commands.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from atoll.engine import Engine
from atoll.engine.network_request import HostFacts, NetworkRequest
from atoll.errors import BY_NAME, AtollError, Failed
from atoll.kernel import netlink, rtnl
from atoll.lab import private
from atoll.model import PREDEFINED, Route
from atoll.topology import EngineHost, carry_out
from atoll.topology.difference import Disconnect, RemoveNamespace, RemoveNetwork, StartProgram, StopProgram, Unpublish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atoll.ipam import Taken
    from atoll.plan.operations import Plan
    from atoll.topology import Change, Current

View = dict[str, Any]


def commands(changes: Sequence[Change], current: Current, *, here: bool) -> list[str]:
    """`here`: whether the host is the network namespace of this process. Raises what kept a change from being made."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(changes, current, here, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        data = answer.read()
    os.waitpid(child, 0)
    found = json.loads(data) if data else {"kind": "Failed", "what": "the rehearsal ended early", "hint": ""}
    if isinstance(found, dict):
        raise BY_NAME.get(found["kind"], Failed)(found["what"], found["hint"])
    return [str(line) for line in found]


def _in_child(changes: Sequence[Change], current: Current, here: bool, writer: int) -> None:
    try:
        said: Any
        try:
            said = _rehearse(changes, current, here)
        except AtollError as error:
            kind = next(kind for kind in type(error).__mro__ if kind in BY_NAME.values())
            said = {"kind": kind.__name__, "what": error.what, "hint": error.hint}
        with os.fdopen(writer, "wb") as answer:
            answer.write(json.dumps(said).encode())
    finally:
        os._exit(0)


class _Twin(Engine):
    """An engine that gives what it makes the ids that it is told, and chooses subnets as on the host that it stands for."""

    next_id = ""
    taken: Sequence[Taken] = ()
    mtu = 0

    def new_id(self) -> str:
        given, self.next_id = self.next_id, ""
        return given or super().new_id()

    def _facts(self) -> HostFacts:
        facts = super()._facts()
        return facts._replace(taken=[*facts.taken, *self.taken], mtu=self.mtu or facts.mtu)


def _rehearse(changes: Sequence[Change], current: Current, here: bool) -> list[str]:
    from atoll.engine.networks import routes_taken

    taken: list[Taken] = []
    mtu = 0
    links: dict[str, rtnl.Link] = {}
    if here:
        with netlink.Socket() as sock:
            by_index = {link.ifindex: link for link in rtnl.links(sock)}
            rows = list(rtnl.routes(sock))
        links = {link.name: link for link in by_index.values()}
        ours = {name for name in links if name.startswith("atb")} | {view.get("bridge", "") for view in current.networks}
        taken = list(routes_taken(rows, by_index, ours))
        mtu = next((by_index[row.ifindex].mtu for row in rows if row.destination is None and row.ifindex in by_index), 0)
    private.enter()
    with _Twin.open() as engine:
        _stand_ins(changes, current, links)
        _load(engine, current)
        engine.taken, engine.mtu = taken, mtu
        lines: list[str] = []
        engine.on_plan = lambda plan: lines.extend(plan.commands())
        host = _Recorder(engine, lines)
        carry_out([change for change in changes if not isinstance(change, StartProgram | StopProgram)], host)
    return lines


class _Recorder(EngineHost):
    """What gives something up is written down before it is done: an engine does that in many small steps."""

    def __init__(self, engine: Engine, lines: list[str]) -> None:
        super().__init__(engine)
        self._engine = engine
        self._lines = lines

    def do(self, change: Change) -> Sequence[str]:
        if plan := self._plan(change):
            self._lines += plan.commands()
            self._engine.on_plan, told = None, self._engine.on_plan
            try:
                return super().do(change)
            finally:
                self._engine.on_plan = told
        return super().do(change)

    def _plan(self, change: Change) -> Plan | None:
        match change:
            case Unpublish():
                return self._engine.plan_unpublish(change.namespace, change.ports, network=change.network)
            case Disconnect():
                return self._engine.plan_disconnect(change.network, change.namespace)
            case RemoveNamespace():
                return self._engine.plan_remove_namespace(change.name)
            case RemoveNetwork():
                return self._engine.plan_remove_network(change.name)
        return None


def _stand_ins(changes: Sequence[Change], current: Current, links: dict[str, rtnl.Link]) -> None:
    """Interfaces of the host that networks hang on and that aren't ours: bridges of the same name do for them."""
    from atoll.topology.difference import CreateNetwork

    # A parent that leads nowhere comes with the first network on it.
    made = {view["parent"] for view in current.networks if view.get("made_parent") and "parent" not in view.get("options", {})}
    wanted = {view.get("parent", "") for view in current.networks} - made
    wanted |= {view["bridge"] for view in current.networks if view.get("bridge") and not view.get("made_bridge", True)}
    for change in changes:
        if isinstance(change, CreateNetwork):
            options = change.request.options
            wanted |= {options[key] for key in ("parent", "bridge", "com.docker.network.bridge.name") if options.get(key, "") in links}
    with netlink.Socket() as sock:
        for name in sorted(wanted - {""}):
            sock.execute(rtnl.add_bridge(name, mac="02:00:00:00:00:01"))


def _load(engine: _Twin, current: Current) -> None:
    for view in current.networks:
        if view["id"] not in PREDEFINED:
            engine.next_id = view["id"]
            engine.create_network_explained(_request(view))
    for view in current.namespaces:
        engine.create_namespace(view["name"], view["labels"], servers=view.get("servers", ()))
    drivers = {view["name"]: view["driver"] for view in current.networks}
    for end in sorted((end for view in current.namespaces for end in view["endpoints"]), key=lambda end: float(end["created"])):
        engine.next_id = end["id"]
        driver = drivers[end["network"]]
        engine.connect(
            end["network"],
            end["namespace"],
            addresses=[text.partition("/")[0] for text in end["addresses"]],
            mac="" if driver in ("ipvlan", "none") else end["mac"],
            interface="" if driver == "none" else end["interface"],
            aliases=end["aliases"],
            gateway_priority=end["gateway_priority"],
            publish=end["ports"],
            ingress_rate=_rate(end["ingress_rate"]),
            egress_rate=_rate(end["egress_rate"]),
            routes=[Route(**route) for route in end["routes"]],
            default_route=end["default_route"],
            metric=end["metric"],
        )


def _request(view: View) -> NetworkRequest:
    """The request that makes just this network."""
    subnets = view["subnets"]
    bridge = view["driver"] == "bridge"
    return NetworkRequest(
        name=view["name"],
        driver=view["driver"],
        subnets=tuple(subnet["subnet"] for subnet in subnets),
        gateways=tuple(subnet["gateway"] for subnet in subnets if subnet.get("gateway")),
        ip_ranges=tuple(part for subnet in subnets for part in subnet.get("ranges", ())),
        aux_addresses={name: value for subnet in subnets for name, value in subnet.get("reserved", {}).items()},
        ipv4=any(":" not in subnet["subnet"] for subnet in subnets),
        ipv6=any(":" in subnet["subnet"] for subnet in subnets),
        internal=view.get("internal", False),
        isolation=view.get("isolation", "strict"),
        icc=view.get("icc", True),
        masquerade=not bridge or view["nat"] != "routed",
        guard=view.get("guard", True),
        mtu=view["mtu"],
        ingress_rate=_rate(view.get("ingress_rate", 0)),
        egress_rate=_rate(view.get("egress_rate", 0)),
        dns=view.get("dns", True),
        servers=tuple(view.get("servers", ())),
        options={key: value for key, value in view.get("options", {}).items() if not key.endswith("-rate")},
        labels=view.get("labels", {}),
    )


def _rate(bits: int) -> str:
    return f"{bits}bit" if bits else ""
