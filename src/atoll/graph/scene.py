"""What a picture shows, as one frozen value, made from the API's views. Every form of picture is drawn from it, and JSON is this itself."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from atoll.errors import NotFound
from atoll.words import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

View = dict[str, Any]


class Uplink(Struct, frozen=True):
    """An interface of the host that leads outside, with its addresses (with prefix length)."""

    interface: str
    addresses: tuple[str, ...] = ()


class Subnet(Struct, frozen=True):
    subnet: str
    gateway: str = ""


class Network(Struct, frozen=True):
    """`out` says how its endpoints come outside, empty if they don't; `parent` is the uplink of a macvlan or ipvlan network.
    `colour` numbers the networks of a picture from 0."""

    name: str
    driver: str
    colour: int
    subnets: tuple[Subnet, ...] = ()
    out: str = ""
    parent: str = ""
    options: tuple[str, ...] = ()


class Port(Struct, frozen=True):
    """`outer` is the host's port or range, with the address if it is published on one only; `inner` the endpoint's."""

    outer: str
    inner: str
    protocol: str

    def __str__(self) -> str:
        return f"{self.outer}:{self.inner}/{self.protocol}"


class Endpoint(Struct, frozen=True):
    """`addresses` are without prefix length."""

    network: str
    interface: str
    addresses: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()


class Namespace(Struct, frozen=True):
    """`about` says what is in it: the command that runs there, what runs its container, or where an adopted one came from."""

    name: str
    about: str = ""
    endpoints: tuple[Endpoint, ...] = ()


class Scene(Struct, frozen=True):
    """`outside` names who is there, if that is known."""

    host: str
    uplinks: tuple[Uplink, ...] = ()
    networks: tuple[Network, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    outside: str = ""

    def published(self) -> list[tuple[Port, Namespace]]:
        """All published ports, by number."""
        found = [(port, namespace) for namespace in self.namespaces for end in namespace.endpoints for port in end.ports]
        return sorted(found, key=lambda pair: (_number(pair[0].outer), pair[0].protocol, pair[0].outer, pair[1].name))

    def json(self) -> dict[str, Any]:
        shown: dict[str, Any] = msgspec.to_builtins(self)
        return shown


def read(
    networks: Sequence[View], namespaces: Sequence[View], host: View | None = None, *, only: Collection[str] = (), outside: str = ""
) -> Scene:
    """A scene from what `GET /v1/networks`, `/v1/namespaces` and `/v1/host` answer.

    `only`: these networks with the namespaces on them, and nothing else. Raises `NotFound` for one that isn't there.
    """
    names = {network["name"] for network in networks}
    for name in only:
        if name not in names:
            raise NotFound(f"no network {name!r}", "atoll network ls shows which there are")
    used = {end["network"] for namespace in namespaces for end in namespace["endpoints"]}
    usual = {item["name"] for item in networks if item["driver"] not in ("host", "none")} | used
    shown = [item for item in networks if item["name"] in (only or usual)]
    kept = [_network(view, colour) for colour, view in enumerate(shown)]
    places = {network.name for network in kept}
    inside = [_namespace(view, places) for view in namespaces]
    host = host or {}
    return Scene(
        host=host.get("hostname", "host"),
        uplinks=_uplinks(host.get("uplinks", ()), kept),
        networks=tuple(kept),
        namespaces=tuple(item for item in inside if item.endpoints or not only),
        outside=outside,
    )


def _uplinks(views: Iterable[View], networks: Sequence[Network]) -> tuple[Uplink, ...]:
    """Those that the host named, and parents of networks that aren't among them."""
    found = {view["interface"]: Uplink(view["interface"], tuple(view["addresses"])) for view in views}
    for network in networks:
        if network.parent:
            found.setdefault(network.parent, Uplink(network.parent))
    return tuple(found.values())


def _network(view: View, colour: int) -> Network:
    flags = {"internal": view.get("internal"), "no-icc": not view.get("icc", True), "no-guard": not view.get("guard", True)}
    options = [word for word, is_set in flags.items() if is_set]
    if view["driver"] in ("macvlan", "ipvlan") and view.get("mode"):
        options.append(f"mode {view['mode']}")
    return Network(
        name=view["name"],
        driver=view["driver"],
        colour=colour,
        subnets=tuple(Subnet(subnet["subnet"], subnet.get("gateway", "")) for subnet in view.get("subnets", ())),
        out=_way_out(view),
        parent=view.get("parent", ""),
        options=tuple(options),
    )


def _way_out(view: View) -> str:
    if view.get("internal") or view["driver"] in ("host", "none"):
        return ""
    if view["driver"] != "bridge":
        return f"on {view['parent']}" if view.get("parent") else ""
    nat = str(view.get("nat", "masquerade"))
    return f"snat {', '.join(view.get('snat', ()))}".rstrip() if nat == "snat" else nat


def _namespace(view: View, places: Collection[str]) -> Namespace:
    return Namespace(
        name=view["name"],
        about=shlex.join(view.get("command", ())) or _runner(view) or view.get("source", ""),
        endpoints=tuple(_endpoint(end) for end in view["endpoints"] if end["network"] in places),
    )


def _runner(view: View) -> str:
    return view["who"] if view.get("who") in CLIENTS else ""


def _endpoint(view: View) -> Endpoint:
    return Endpoint(
        network=view["network"],
        interface=view["interface"],
        addresses=tuple(text.partition("/")[0] for text in view["addresses"]),
        aliases=tuple(view.get("aliases", ())),
        ports=tuple(map(_port, view.get("ports", ()))),
    )


def _port(text: str) -> Port:
    """`[2001:db8::1]:8080:80/tcp` in parts."""
    mapping, _, protocol = text.partition("/")
    outer, _, inner = mapping.rpartition(":")
    return Port(outer, inner, protocol)


def _number(outer: str) -> int:
    digits = outer.rpartition(":")[2].partition("-")[0]
    return int(digits) if digits.isdecimal() else 0
