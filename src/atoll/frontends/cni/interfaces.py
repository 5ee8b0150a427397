"""What the plugins that make interfaces have in common: from a configuration's addresses to an endpoint, and from it to a result."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from atoll.errors import Exhausted
from atoll.frontends.cni import attachments, leases
from atoll.frontends.cni.refusal import IO_FAILURE, Refusal, Unknown
from atoll.frontends.cni.results import Dns, Interface, Ip, Result, Route
from atoll.frontends.cni.words import Common
from atoll.kernel import rtnl
from atoll.kernel.netlink import NetlinkError
from atoll.model import Route as ModelRoute
from atoll.model import address
from atoll.plan.operations import RouteAdd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll import ipam
    from atoll.engine import Engine
    from atoll.frontends.cni.addressing import Scheme
    from atoll.frontends.cni.words import Request
    from atoll.model import Endpoint, Network


class _Mac(Struct, frozen=True):
    mac: str = ""


class _Args(Struct, frozen=True):
    cni: _Mac = _Mac()


class InterfaceConfiguration(Common, frozen=True):
    """What every plugin that makes an interface may be told."""

    mtu: int = 0
    ip_masq: bool = field(name="ipMasq", default=False)
    dns: Dns = Dns()
    args: _Args = _Args()
    runtime: _Mac = field(name="runtimeConfig", default=_Mac())

    def reach(self) -> dict[str, Any]:
        """Who reaches the containers of a bridge, as options of its network. The reference plugins only change the source of what leaves:
        whoever finds the way, from another network or from outside, reaches containers by their addresses."""
        modes = dict.fromkeys(("gateway-mode4", "gateway-mode6"), "nat-unprotected") if self.ip_masq else {}
        return {"masquerade": self.ip_masq, "isolation": "open", "options": modes}

    def mac(self, request: Request) -> str:
        """What was asked for last counts: CNI_ARGS, then `args`, then the capability `mac`."""
        return self.runtime.mac or self.args.cni.mac or request.environment.arguments.get("MAC", "")


def attach(engine: Engine, request: Request, network: Network, scheme: Scheme, *, mtu: int = 0, **options: Any) -> Endpoint:
    """Connect the container, with the scheme's addresses and routes. `mtu` is asked for this one, should the network have another;
    `options` are further ones of `connect`."""
    chosen = choose(engine, network, scheme)
    default, routes = _ways(network, scheme, chosen)
    # What the caller says of default routes goes before what the scheme says.
    options = dict[str, Any](default_route=default, routes=routes) | options
    endpoint = attachments.attach(engine, request, network, addresses=[str(value) for value in chosen], **options)
    if mtu not in (0, network.mtu):
        with attachments.kept_if_whole(engine, network, endpoint):
            endpoint = engine.retune(network.id, endpoint.namespace, mtu=mtu, interface=endpoint.interface)
    return endpoint


def choose(engine: Engine, network: Network, scheme: Scheme) -> list[ipam.Address]:
    """An address from each set; those that were asked for first. Without sets the network's own choice serves, but for those asked for."""
    if not scheme.sets:
        return list(scheme.wanted)
    chosen: list[ipam.Address] = []
    for group in scheme.sets:
        value = next((wanted for wanted in scheme.wanted if any(wanted in one for one in group) and wanted not in chosen), None)
        for one in group:
            if value is None and (pool := engine.state.pool_of(network, one.first)) is not None:
                value = one.first if scheme.fixed else pool.choose(one.first, one.last, chosen)
        if value is None:
            shown = ", ".join(f"{one.first}-{one.last}" for one in group)
            raise Exhausted(f"network {network.name} has no free address in {shown}", "delete containers, or use a larger range")
        chosen.append(value)
    return chosen


def _ways(network: Network, scheme: Scheme, chosen: list[ipam.Address]) -> tuple[bool, tuple[ModelRoute, ...]]:
    """Whether the network's own default routes are what the scheme's routes say, and the routes beside them."""
    if not scheme.kind:
        return True, tuple(_model_route(route, "") for route in scheme.routes)
    versions = {value.version for value in chosen}
    gateways = {version: next((scheme.gateway(value) for value in chosen if value.version == version), "") for version in versions}
    defaults: set[int] = set()
    others: list[ModelRoute] = []
    partial: list[ModelRoute] = []
    for route in scheme.routes:
        version = ipaddress.ip_network(route.dst, strict=False).version
        if version not in versions:
            continue  # no address of that family, so nothing could be sent (pkg/ipam.ConfigureIface leaves it out as well)
        made = _model_route(route, gateways[version])
        if made.destination in ("0.0.0.0/0", "::/0") and made.gateway == network.gateway(version):
            defaults.add(version)
            partial.append(made)
        else:
            others.append(made)
    reachable = {version for version in versions if network.gateway(version)}
    if defaults == reachable and defaults:
        return True, tuple(others)
    return False, tuple(partial + others)


def _model_route(route: Route, gateway: str) -> ModelRoute:
    return ModelRoute(destination=str(ipaddress.ip_network(route.dst, strict=False)), gateway=route.gw or gateway, metric=route.priority)


# --- results -------------------------------------------------------------------------------------------------------------------------


def result(engine: Engine, request: Request, network: Network, endpoint: Endpoint, scheme: Scheme, *, dns: Dns, bridge: bool) -> Result:
    """What ADD answers: the bridge (if it is to be shown), the host's end of a veth pair, the container's interface, its addresses."""
    interfaces: list[Interface] = []
    if bridge:
        interfaces.append(Interface(network.bridge, mac=network.mac, mtu=network.mtu))
    if network.driver == "bridge":
        near = rtnl.parse_link(engine.host.rtnl.ask(rtnl.get_link(endpoint.host_interface)).body)
        interfaces.append(Interface(near.name, mac=near.mac, mtu=near.mtu))
    interfaces.append(Interface(endpoint.interface, mac=endpoint.mac, mtu=endpoint.mtu or network.mtu, sandbox=request.environment.netns))
    position = len(interfaces) - 1
    ips = tuple(Ip(text, gateway=_gateway(network, scheme, text), interface=position) for text in endpoint.addresses)
    routes = scheme.routes if scheme.kind else (*_default_routes(engine, endpoint), *scheme.routes)
    made = Result(interfaces=tuple(interfaces), ips=ips, routes=routes, dns=dns)
    return made.after(request.previous)


def _default_routes(engine: Engine, endpoint: Endpoint) -> Iterator[Route]:
    """Those that lead by this interface, where it is the network that says so."""
    namespace = engine.state.namespace(endpoint.namespace)
    (wanted,) = engine.wanted_routes(namespace, engine.state.attached(namespace.name))
    for way in wanted:
        if isinstance(way, RouteAdd) and (way.destination, way.link, way.table) == ("default", endpoint.interface, rtnl.TABLE_MAIN):
            yield Route("0.0.0.0/0" if way.version == 4 else "::/0", gw=way.gateway)


def _gateway(network: Network, scheme: Scheme, text: str) -> str:
    value = address(text.partition("/")[0])
    return scheme.gateway(value) if scheme.kind else network.gateway(value.version)


# --- the other verbs -----------------------------------------------------------------------------------------------------------------


def delete(engine: Engine, request: Request) -> None:
    try:
        network, endpoint = attachments.require(engine, request)
    except Unknown:
        attachments.let_go(engine, request)
        leases.drop(engine, request)
        raise
    attachments.detach(engine, network, endpoint, ending=not request.environment.netns)
    leases.erase(network, endpoint)


def gc(engine: Engine, request: Request) -> None:
    leases.collect(engine, request)
    attachments.collect(engine, request)


def check(engine: Engine, request: Request) -> None:
    """Whether the attachment is as the model says, and as the runtime was told when it was made. Raises `Refusal`."""
    network, endpoint = attachments.require(engine, request)
    if engine.namespace_at(request.environment.netns) != engine.state.namespace(endpoint.namespace):
        raise Refusal(IO_FAILURE, f"{request.environment.netns} is not the namespace that {endpoint.interface} was made in")
    ours = (f"endpoint {endpoint.namespace} on {network.name}", f"namespace {endpoint.namespace}", f"network {network.name}", "firewall")
    wrong = [found for found in engine.differences(namespaces=[endpoint.namespace]) if found.subject in ours]
    if wrong:
        raise Refusal(IO_FAILURE, f"{wrong[0].subject}: {wrong[0].what}", "; ".join(found.what for found in wrong[1:8]))
    _check_said(engine, request, endpoint)


def _check_said(engine: Engine, request: Request, endpoint: Endpoint) -> None:
    """The previous result, as far as it speaks of this container, against the kernel."""
    assert request.previous is not None, "CHECK has one"  # noqa: S101
    said = request.previous
    with engine.host.socket_in(endpoint.namespace) as sock:
        links = {link.name: link for link in rtnl.links(sock)}
        addresses = {str(row.interface) for row in rtnl.addresses(sock)}
        ways = {(str(row.destination or ""), str(row.gateway or "")) for row in rtnl.routes(sock)}
    inside = [one for one in said.interfaces if one.sandbox]
    if not any(one.name == endpoint.interface for one in inside):
        raise Refusal(IO_FAILURE, f"the result to check says nothing of {endpoint.interface}")
    for one in inside:
        if one.name not in links:
            raise Refusal(IO_FAILURE, f"interface {one.name} is missing in the container")
        if one.mac and one.mac.lower() != links[one.name].mac:
            raise Refusal(IO_FAILURE, f"interface {one.name} has MAC address {links[one.name].mac}, not {one.mac}")
    for one in said.interfaces:
        if not one.sandbox and not _is_on_host(engine, one.name):
            raise Refusal(IO_FAILURE, f"interface {one.name} is missing on the host")
    for ip in said.ips:
        if str(ipaddress.ip_interface(ip.address)) not in addresses:
            raise Refusal(IO_FAILURE, f"address {ip.address} is missing in the container")
    for route in said.routes:
        destination = ipaddress.ip_network(route.dst, strict=False)
        text = "" if destination.prefixlen == 0 else str(destination)
        if not any(text == to and (not route.gw or route.gw == by) for to, by in ways):
            raise Refusal(IO_FAILURE, f"route to {route.dst} is missing in the container")


def _is_on_host(engine: Engine, name: str) -> bool:
    try:
        engine.host.rtnl.ask(rtnl.get_link(name))
    except NetlinkError:
        return False
    return True
