"""From one topology to another, in an engine: what comes of it is what a fresh host would be, and nothing more was done than needed."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from atoll import Engine
from atoll.engine.network_request import NetworkRequest
from atoll.errors import Conflict, NotFound
from atoll.topology import Connection, EngineHost, Place, Topology, apply, difference, load
from atoll.topology.difference import Connect, Disconnect, Publish, Unpublish
from tests.docs.pages import ROOT
from tests.kernel import kernel_state
from tests.support import Inside, Probe, Traffic, lenient

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

EMPTY: Final = Topology("p")
SERVICES: Final = ("s1", "s2", "s3", "s4")
NETWORKS: Final = (1, 2, 3)


@st.composite
def topologies(draw: DrawFn) -> Topology:
    numbers = draw(st.sets(st.sampled_from(NETWORKS)))
    requests = [_request(draw, number) for number in sorted(numbers)]
    ports = draw(st.permutations(range(8000, 8008)))
    names = sorted(draw(st.sets(st.sampled_from(SERVICES))))
    hosts = {number: draw(st.permutations(range(2, 2 + len(SERVICES)))) for number in numbers}
    places: list[Place] = []
    for position, name in enumerate(names):
        chosen = draw(st.permutations(sorted(numbers))) if numbers else []
        connections: list[Connection] = []
        for number in chosen[: draw(st.integers(0, len(chosen)))]:
            request = next(request for request in requests if request.name == f"p_{number}")
            publishes = not request.internal and not any(connection.publish for connection in connections) and draw(st.booleans())
            connections.append(
                Connection(
                    network=request.name,
                    addresses=(f"10.20.{number}.{hosts[number][position]}",) if draw(st.booleans()) else (),
                    aliases=(name, *draw(st.sampled_from([(), ("other",)]))),
                    # Among equals the one that was connected first is the gateway, and that is history.
                    gateway_priority=10 * number + draw(st.integers(0, 1)),
                    publish=(f"{ports[position]}:80/tcp",) if publishes else (),
                )
            )
        labels = draw(st.sampled_from([{}, {"tier": "one"}]))
        places.append(Place(f"p-{name}", name, tuple(connections), labels=labels))
    return Topology("p", networks=tuple(requests), namespaces=tuple(places))


def _request(draw: DrawFn, number: int) -> NetworkRequest:
    six = draw(st.booleans())
    return NetworkRequest(
        name=f"p_{number}",
        subnets=(f"10.20.{number}.0/24", *([f"fd20:{number}::/64"] if six else [])),
        internal=draw(st.booleans()),
        icc=draw(st.booleans()),
    )


def seen(engine: Engine, topology: Topology) -> dict[str, Any]:
    """The views and what the kernel has, without what nobody asked for by name."""
    current = EngineHost(engine).current()
    static = {address for place in topology.namespaces for connection in place.connections for address in connection.addresses}
    networks = {
        view["name"]: {key: value for key, value in view.items() if key not in ("id", "created", "mac", "bridge", "endpoints")}
        for view in current.networks
    }
    namespaces = {
        view["name"]: {
            "labels": view["labels"],
            "endpoints": {end["network"]: _end(end, static) for end in view["endpoints"]},
            "kernel": _kernel(view, static),
        }
        for view in current.namespaces
    }
    return {"networks": networks, "namespaces": namespaces}


def _end(end: dict[str, Any], static: set[str]) -> dict[str, Any]:
    kept = {key: end[key] for key in ("aliases", "gateway_priority", "state")}
    return kept | {"ports": sorted(end["ports"]), "addresses": _addresses(end["addresses"], static)}


def _addresses(texts: list[str], static: set[str]) -> list[str]:
    """Static ones as they are; of a chosen one its network."""
    return sorted(text if text.partition("/")[0] in static else text.rpartition("." if "." in text else ":")[0] for text in texts)


def _kernel(view: dict[str, Any], static: set[str]) -> dict[str, Any]:
    """The links with addresses and the way out, by the network that they belong to."""
    networks = {end["interface"]: end["network"] for end in view["endpoints"]}

    def shown(*arguments: str) -> Any:
        return json.loads(subprocess.run(["ip", "-n", view["name"], "-j", *arguments], check=True, capture_output=True, text=True).stdout)

    found: dict[str, Any] = {}
    for link in shown("address"):
        if link["ifname"] != "lo":
            texts = [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] == "global"]
            found[networks[link["ifname"]]] = _addresses(texts, static)
    ways = {family: [networks[row["dev"]] for row in shown(family, "route", "show", "default")] for family in ("-4", "-6")}
    return found | ways


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=topologies(), after=topologies())
def test_from_any_topology_to_any_other_is_as_a_fresh_one(host: None, before: Topology, after: Topology) -> None:
    with Engine.open() as engine:
        untouched = kernel_state.read(kernel_state.Shell())
        apply(before, engine)
        assert difference(before, EngineHost(engine).current()) == ()
        apply(after, engine)
        assert difference(after, EngineHost(engine).current()) == ()
        changed = seen(engine, after)
        assert [str(found) for found in engine.differences()] == []
        apply(EMPTY, engine)
        engine.settle()
        assert not kernel_state.differences(untouched, kernel_state.read(kernel_state.Shell()))
        apply(after, engine)
        assert changed == seen(engine, after)
        apply(EMPTY, engine)


# --- nothing more than needed --------------------------------------------------------------------------------------------------------

TWO: Final = Topology(
    "p",
    networks=(NetworkRequest(name="p_1", subnets=("10.20.1.0/24",)), NetworkRequest(name="p_2", subnets=("10.20.2.0/24",))),
    namespaces=(
        Place("p-a", "a", (Connection("p_1", aliases=("a",), publish=("80:80/tcp", "81:81/tcp")),)),
        Place("p-b", "b", (Connection("p_1", aliases=("b",)),)),
    ),
)


def _with(connection: Connection) -> Topology:
    return structs.replace(TWO, namespaces=(structs.replace(TWO.namespaces[0], connections=(connection,)), TWO.namespaces[1]))


def test_only_what_differs_is_changed(engine: Engine) -> None:
    apply(TWO, engine)
    first = TWO.namespaces[0].connections[0]
    assert apply(_with(structs.replace(first, publish=("80:80/tcp", "82:82/tcp"))), engine) == (
        Unpublish("p-a", "p_1", ("81:81/tcp",)),
        Publish("p-a", "p_1", ("82:82/tcp",)),
    )
    other = structs.replace(first, aliases=("a", "x"))
    assert apply(_with(other), engine) == (Disconnect("p-a", "p_1"), Connect("p-a", other))
    both = structs.replace(
        TWO,
        namespaces=(
            *TWO.namespaces[:1],
            structs.replace(TWO.namespaces[1], connections=(*TWO.namespaces[1].connections, Connection("p_2", aliases=("b",)))),
        ),
    )
    apply(TWO, engine)
    assert apply(both, engine) == (Connect("p-b", Connection("p_2", aliases=("b",))),)


def test_a_port_moves_from_one_namespace_to_another(engine: Engine) -> None:
    apply(TWO, engine)
    moved = structs.replace(
        TWO,
        namespaces=(
            Place("p-a", "a", (Connection("p_1", aliases=("a",), publish=("81:81/tcp",)),)),
            Place("p-b", "b", (Connection("p_1", aliases=("b",), publish=("80:80/tcp",)),)),
        ),
    )
    apply(moved, engine)
    assert [str(engine.state.endpoints_of(name)[0].ports[0]) for name in ("p-a", "p-b")] == ["81:81/tcp", "80:80/tcp"]


def test_static_addresses_are_not_given_to_those_who_take_any(engine: Engine) -> None:
    """The namespace that comes last wants the first address; each of the first two waits for the other's network."""
    made = Topology(
        "p",
        networks=TWO.networks,
        namespaces=(
            Place("p-a", "a", (Connection("p_1", aliases=("a",)), Connection("p_2", addresses=("10.20.2.2",)))),
            Place("p-b", "b", (Connection("p_2", aliases=("b",)), Connection("p_1", addresses=("10.20.1.2",)))),
            Place("p-c", "c", (Connection("p_1", addresses=("10.20.1.3",)),)),
        ),
    )
    apply(made, engine)
    assert difference(made, EngineHost(engine).current()) == ()


def test_a_chosen_address_makes_room_for_a_static_one(engine: Engine) -> None:
    apply(TWO, engine)
    chosen = engine.state.endpoints_of("p-a")[0].address(4)
    wanted = structs.replace(TWO.namespaces[1], connections=(Connection("p_1", addresses=(chosen,), aliases=("b",)),))
    made = structs.replace(TWO, namespaces=(TWO.namespaces[0], wanted))
    apply(made, engine)
    assert engine.state.endpoints_of("p-b")[0].address(4) == chosen
    assert difference(made, EngineHost(engine).current()) == ()


def test_what_is_in_the_way_is_named_before_anything_is_done(engine: Engine) -> None:
    engine.create_network("mine", subnets=["10.30.0.0/24"])
    engine.create_namespace("own")
    engine.connect("mine", "own", addresses=["10.30.0.9"], publish=["80:80"])

    def refused(topology: Topology, words: str, kind: type[Exception] = Conflict) -> None:
        with pytest.raises(kind, match=words):
            apply(topology, engine)
        assert [network.name for network in engine.networks()] == ["host", "none", "mine"]

    refused(TWO, "p-a would publish 80:80/tcp, and port 80 is published by own")
    refused(Topology("p", networks=(NetworkRequest(name="mine"),)), "network mine is there and is not project p's")
    refused(Topology("p", networks=(NetworkRequest(name="x", subnets=("10.30.0.0/16",)),)), "overlaps 10.30.0.0/24 of network mine")
    refused(Topology("p", external=("missing",)), "external network missing is not there", NotFound)
    taken = Place("p-a", "a", (Connection("mine", addresses=("10.30.0.9",)),))
    refused(Topology("p", networks=TWO.networks, external=("mine",), namespaces=(taken,)), "10.30.0.9 on network mine, and that is own")
    apply(Topology("other", namespaces=(Place("p-a"),)), engine)
    refused(Topology("p", namespaces=(Place("p-a"),)), "namespace p-a is there and belongs to project other")


# --- a file of a real project --------------------------------------------------------------------------------------------------------


def test_wordpress_reaches_what_its_file_lets_it_reach(engine: Engine) -> None:
    lenient()
    apply(load(str(ROOT / "tests/data/compose/wordpress.yml"), variables={}).topology, engine)
    database, app, web = (Inside(engine, name) for name in ("blog-mysql", "blog-wordpress", "blog-webserver"))
    app_front = next(
        end for end in engine.state.endpoints_of("blog-wordpress") if engine.state.network(end.network).name == "blog_frontend"
    )
    with Traffic() as traffic:
        traffic.serve(database, 3306)
        traffic.serve(app, 9000)
        traffic.serve(web, 80)
        allowed = [
            Probe(app, "172.28.1.10", 3306),
            Probe(web, app_front.address(4), 9000),
            Probe(app, "172.28.0.80", 80),
            Probe(Inside(engine), "172.28.0.254", 8000),
        ]
        assert traffic.unanswered(allowed) == []
        assert traffic.leaking([Probe(web, "172.28.1.10", 3306)], [Probe(web, app_front.address(4), 9000)]) == []
        assert traffic.leaking([Probe(database, "172.28.0.80", 80)], [Probe(database, _back(engine), 9000)]) == []


def _back(engine: Engine) -> str:
    ends = engine.state.endpoints_of("blog-wordpress")
    return next(end.address(4) for end in ends if engine.state.network(end.network).name == "blog_backend")
