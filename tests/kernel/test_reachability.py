"""Who reaches whom: real packets against a small model of what networks promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.support import TRANSPORTS, Inside, Probe, Seen, Traffic, ip, lenient, outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll import Engine
    from atoll.lab.machine import Machine
    from tests.support import Place, Transport

SERVED: Final = 80
FACING: Final = {4: "198.51.100.1", 6: "2001:db8:100::1"}
OUTSIDE: Final = {4: "198.51.100.9", 6: "2001:db8:100::9"}
LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}


def _cidr(addresses: dict[int, str]) -> list[str]:
    return [f"{addresses[4]}/24", f"{addresses[6]}/64"]


@pytest.fixture
def world(engine: Engine) -> Iterator[Machine]:
    """A machine outside of the host, which sends everything by the host."""
    lenient()
    with outside("outside", "wan0", _cidr(FACING), _cidr(OUTSIDE)) as machine:
        yield machine


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    with Traffic() as made:
        yield made


# --- the model -----------------------------------------------------------------------------------------------------------------------
#
# Four networks, one of each kind. On each a server, a client as it was connected, and a crafty one: root inside has given it a default
# route and has led the server's address, which it could reach directly, by the gateway.

KINDS: Final[dict[str, dict[str, bool]]] = {
    "plain": {},
    "internal": {"internal": True},
    "apart": {"icc": False},
    "routed": {"masquerade": False},
}
INHABITANTS: Final = ("server", "client", "crafty")
#: Each server but the internal one publishes its port four times: on every address of the host, or on one only.
PUBLISHED_ON: Final = ("any", "facing", "gateway", "loopback")
#: The addresses of the host by which a published port is tried: the one that faces the outside, the gateway's on the server's own
#: network, the gateway's on another network (the internal one, of all), and the loopback address.
HOST_ADDRESSES: Final = ("facing", "gateway", "foreign", "loopback")


class Source(NamedTuple):
    """`network` is empty for the host and the machine outside."""

    network: str
    name: str


class Target(NamedTuple):
    """A server's own address, or its port as published on some host address and tried by another."""

    network: str
    published_on: str = ""
    tried_by: str = ""


def sources() -> list[Source]:
    return [Source("", "host"), Source("", "outside"), *(Source(network, name) for network in KINDS for name in INHABITANTS)]


def targets(source: Source) -> Iterator[Target]:
    """What a source can try. To anyone but the host its own loopback address is itself; frames that say otherwise are forged ones."""
    for network in KINDS:
        yield Target(network)
        if network == "internal":
            continue
        for published_on in PUBLISHED_ON:
            for tried_by in HOST_ADDRESSES:
                if tried_by != "loopback" or source.name == "host":
                    yield Target(network, published_on, tried_by)


def reachable(source: Source, target: Target) -> bool:
    """The promise."""
    if not target.published_on:
        if source.network == target.network:
            # A namespace always reaches itself. Its neighbours do unless the network keeps them apart.
            return source.name == "server" or target.network != "apart"
        # Beyond its network an endpoint has no address, but for the host; and for the outside where the network is routed.
        return source.name == "host" or (source.name == "outside" and target.network == "routed")
    # A published port is there for everyone, neighbours that are kept apart and the publisher included: by every address of the host
    # or by just the one that it is published on. Only from an internal network nothing leads out.
    return source.network != "internal" and target.published_on in ("any", target.tried_by)


def client_address(source: Source, target: Target, version: int) -> str:
    """Whom the server sees: the client by its own address wherever an answer to that would come back the way the question went."""
    gateway = gateway_address(target.network, version)
    if source.network:
        # Seen by its own address, a neighbour would be answered directly, by an address that it didn't ask.
        return gateway if target.published_on and source.network == target.network else address(source, version)
    if source.name == "outside":
        return OUTSIDE[version]
    # The host asks its own address by that same address, which nobody could answer if it is the loopback one.
    return gateway if not target.published_on or target.tried_by == "loopback" else host_address(target, version)


# --- the model's addresses and ports -------------------------------------------------------------------------------------------------


def _inside(network: str, host: int, version: int) -> str:
    number = 1 + list(KINDS).index(network)
    return f"fd91:0:0:{number}::{host}" if version == 6 else f"10.91.{number}.{host}"


def gateway_address(network: str, version: int) -> str:
    return _inside(network, 1, version)


def address(source: Source, version: int) -> str:
    return _inside(source.network, 2 + INHABITANTS.index(source.name), version)


def host_address(target: Target, version: int) -> str:
    gateway, foreign = gateway_address(target.network, version), gateway_address("internal", version)
    return {"facing": FACING[version], "gateway": gateway, "foreign": foreign, "loopback": LOOPBACK[version]}[target.tried_by]


def port(target: Target) -> int:
    if not target.published_on:
        return SERVED
    return 8000 + 10 * list(KINDS).index(target.network) + PUBLISHED_ON.index(target.published_on)


def specs(network: str) -> Iterator[str]:
    for published_on in PUBLISHED_ON:
        outer = port(Target(network, published_on))
        for transport in TRANSPORTS:
            if published_on == "any":
                yield f"{outer}:{SERVED}/{transport}"
                continue
            where = Target(network, published_on, tried_by=published_on)
            yield f"{host_address(where, 4)}:{outer}:{SERVED}/{transport}"
            yield f"[{host_address(where, 6)}]:{outer}:{SERVED}/{transport}"


# --- the model against the kernel ----------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    source: Source
    target: Target
    version: int
    transport: Transport

    def __str__(self) -> str:
        source = "-".join(filter(None, self.source))
        published = f" port published on {self.target.published_on} by {self.target.tried_by}" if self.target.published_on else ""
        return f"{source} to {self.target.network}-server{published} IPv{self.version} {self.transport}"

    def expected(self) -> Seen | None:
        if not reachable(self.source, self.target):
            return None
        return Seen(f"{self.target.network}-server", client_address(self.source, self.target, self.version))

    def probe(self, place: Place) -> Probe:
        where = host_address if self.target.published_on else lambda target, version: address(Source(target.network, "server"), version)
        return Probe(place, where(self.target, self.version), port(self.target), self.transport)


def test_reachable_is_what_the_model_promises_and_nothing_else(engine: Engine, world: Machine, traffic: Traffic) -> None:
    places: dict[Source, Place] = {Source("", "host"): Inside(engine), Source("", "outside"): world}
    for network, options in KINDS.items():
        subnets, gateways = ([f"{_inside(network, 0, 4)}/24", f"{_inside(network, 0, 6)}/64"]), [gateway_address(network, v) for v in (4, 6)]
        engine.create_network(network, subnets=subnets, gateways=gateways, **options)
        for name in INHABITANTS:
            source, namespace = Source(network, name), f"{network}-{name}"
            engine.create_namespace(namespace)
            engine.connect(network, namespace, addresses=[address(source, 4), address(source, 6)])
            places[source] = Inside(engine, namespace)
        server = Source(network, "server")
        ip(places[server._replace(name="crafty")], *(
            f"route replace {where} via {gateway_address(network, version)}"
            for version in (4, 6) for where in ("default", address(server, version))
        ))
        if network != "internal":
            engine.publish(f"{network}-server", list(specs(network)))
        traffic.serve(places[server], SERVED)

    seen: dict[Cell, Seen | None] = {}
    for source in sources():
        cells = [Cell(source, target, v, transport) for target in targets(source) for v in (4, 6) for transport in TRANSPORTS]
        allowed = [cell for cell in cells if cell.expected()]
        blocked = [cell for cell in cells if not cell.expected()]
        assert {cell[2:] for cell in allowed} == {cell[2:] for cell in cells}
        canaries = [cell.probe(places[source]) for cell in allowed]
        seen |= dict(zip(allowed, traffic.ask(canaries, patience=2), strict=True))
        seen |= dict(zip(blocked, traffic.ask([cell.probe(places[source]) for cell in blocked], patience=.2), strict=True))
    wrong = [f"{cell}: expected {cell.expected()}, got {got}" for cell, got in seen.items() if got != cell.expected()]
    print("\n".join(wrong))
    assert wrong == []
