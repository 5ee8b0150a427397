"""The `networks:` of a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from atoll import ipam
from atoll.checks import check_labels, check_name, check_servers
from atoll.engine.network_request import HostFacts, NetworkRequest, choose
from atoll.model import DRIVERS, PREDEFINED
from atoll.topology import keys
from atoll.topology.source import List, Map, Mark, as_boolean, as_list, as_map, as_number, as_pairs, as_text, as_texts, at, check_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.model import Network, Prefix
    from atoll.topology.source import Node

#: What a check is done with that needs no host.
_NOWHERE = HostFacts(links={}, addresses=(), taken=(), mtu=1500, ula=0)
_DRIVERS = tuple(driver for driver in DRIVERS if driver not in PREDEFINED)


class Described(NamedTuple):
    """A network of a document. `request` is None for an external one; `subnets` are those that the document names."""

    name: str
    request: NetworkRequest | None
    subnets: tuple[Prefix, ...] = ()

    @property
    def publishes(self) -> bool:
        """Whether ports can be published from it; of an external one the host will say."""
        return self.request is None or (self.request.driver == "bridge" and not self.request.internal)


def networks(section: Map, project: str, unused: Callable[[str], None]) -> dict[str, Described]:
    """The networks by their names in the document, every check done that needs no host."""
    found: dict[str, Described] = {}
    names: dict[str, Mark] = {}
    others: list[Network] = []
    for key, node in section.entries.items():
        mark = section.keys[key]
        made = _network(key, mark, as_map(node, f"network {key}"), project, unused)
        if made.name in names:
            raise mark.error(f"two networks are named {made.name}", f"the other is at line {names[made.name].line}")
        names[made.name] = mark
        if made.request is not None and made.request.driver == "bridge" and "bridge" not in made.request.options:
            others.append(_check(made, mark, others))
        found[key] = made
    return found


def default(project: str) -> Described:
    """The network of services that name none, as in Compose."""
    name = f"{project}_default"
    return Described(name, NetworkRequest(name=name))


def _check(made: Described, mark: Mark, others: list[Network]) -> Network:
    assert made.request is not None  # noqa: S101
    with at(mark):
        network = choose(made.request, _NOWHERE, others, f"{len(others):010x}", "02:00:00:00:00:00", 0.0).network
    # What is left to be chosen will be chosen so that it is in nobody's way.
    named = {str(subnet) for subnet in made.subnets}
    return structs.replace(network, subnets=tuple(subnet for subnet in network.subnets if subnet.subnet in named))


def _network(key: str, mark: Mark, node: Map, project: str, unused: Callable[[str], None]) -> Described:
    check_keys(node, keys.NETWORK, f"network {key}")
    entries = node.entries
    name = f"{project}_{key}"
    if "name" in entries:
        name = as_text(entries["name"], "name")
    external = _external(node)
    if external is not None:
        name = external or (name if "name" in entries else key)
        with at(mark):
            check_name(name, "network")
        for other in entries:
            if other not in ("name", "external") and not other.startswith("x-"):
                raise node.keys[other].error(f"{other} of an external network", "it is there already; leave this out")
        return Described(name, None)
    with at(entries["name"].mark if "name" in entries else mark):
        check_name(name, "network")
    request = NetworkRequest(name=name, driver=_driver(entries["driver"]) if "driver" in entries else "bridge")
    changes: dict[str, object] = {}
    for yaml_key, field in (("internal", "internal"), ("enable_ipv6", "ipv6"), ("enable_ipv4", "ipv4")):
        if yaml_key in entries:
            changes[field] = as_boolean(entries[yaml_key], yaml_key)
    if "driver_opts" in entries:
        changes["options"] = as_pairs(entries["driver_opts"], "driver_opts")
    if "labels" in entries:
        changes["labels"] = as_pairs(entries["labels"], "labels")
        with at(entries["labels"].mark):
            check_labels(as_pairs(entries["labels"], "labels"), "label")
    if "x-atoll" in entries:
        changes |= _extras(as_map(entries["x-atoll"], "x-atoll"))
    subnets: tuple[Prefix, ...] = ()
    if "ipam" in entries:
        addresses, subnets = _ipam(as_map(entries["ipam"], "ipam"), unused)
        changes |= addresses
        if any(subnet.version == 6 for subnet in subnets):
            changes["ipv6"] = True
    return Described(name, structs.replace(request, **changes), subnets)


def _external(node: Map) -> str | None:
    """The name that `external` gives, empty when it only says yes, None when it isn't external."""
    found = node.entries.get("external")
    if found is None:
        return None
    if isinstance(found, Map):
        check_keys(found, ("name",), "external")
        return as_text(found.entries["name"], "name") if "name" in found.entries else ""
    return "" if as_boolean(found, "external") else None


def _driver(node: Node) -> str:
    name = as_text(node, "driver")
    if name == "default":
        return "bridge"
    if name not in _DRIVERS:
        raise node.mark.error(f"driver {name[:40]!r} is unknown", f"expected one of {', '.join(_DRIVERS)}")
    return name


def _extras(node: Map) -> dict[str, object]:
    check_keys(node, keys.NETWORK_EXTRAS, "x-atoll")
    changes: dict[str, object] = {}
    for key, value in node.entries.items():
        if key == "mtu":
            changes["mtu"] = as_number(value, "mtu", 68, 65535)
        elif key == "nat":
            if as_text(value, "nat") not in ("masquerade", "routed"):
                raise value.mark.error(f"nat {as_text(value, 'nat')[:40]!r} is unknown", "expected masquerade or routed")
            changes["masquerade"] = as_text(value, "nat") == "masquerade"
        elif key == "dns" and isinstance(value, List):
            with at(value.mark):
                changes["servers"] = check_servers(as_texts(value, "dns"))
        elif key in ("icc", "guard", "dns"):
            changes[key] = as_boolean(value, key)
    return changes


def _ipam(node: Map, unused: Callable[[str], None]) -> tuple[dict[str, object], tuple[Prefix, ...]]:
    check_keys(node, (*keys.IPAM, *keys.IPAM_UNUSED), "ipam")
    driver = node.entries.get("driver")
    if driver is not None and as_text(driver, "driver") != "default":
        raise driver.mark.error(f"ipam driver {as_text(driver, 'driver')[:40]!r} is unknown", "expected default")
    if "options" in node.entries:
        unused("ipam.options")
    subnets: list[Prefix] = []
    gateways: list[str] = []
    ranges: list[str] = []
    reserved: dict[str, str] = {}
    for item in as_list(node.entries["config"], "config") if "config" in node.entries else ():
        entry = as_map(item, "an entry of config")
        check_keys(entry, keys.IPAM_CONFIG, "config")
        if "subnet" not in entry.entries:
            raise item.mark.error("an entry of config has no subnet", "expected subnet: ADDRESS/LENGTH")
        where = entry.entries["subnet"]
        with at(where.mark):
            subnet = ipam.parse_subnet(as_text(where, "subnet"))
        subnets.append(subnet)
        if "gateway" in entry.entries:
            gateways.append(_inside(entry.entries["gateway"], "gateway", subnet))
        if "ip_range" in entry.entries:
            part = entry.entries["ip_range"]
            with at(part.mark):
                prefix = ipam.parse_subnet(as_text(part, "ip_range"))
            if prefix.version != subnet.version or not prefix.subnet_of(subnet):  # type: ignore[arg-type]
                raise part.mark.error(f"ip_range {prefix} is not in subnet {subnet}", "choose a range inside the subnet")
            ranges.append(str(prefix))
        if "aux_addresses" in entry.entries:
            for name, value in as_map(entry.entries["aux_addresses"], "aux_addresses").entries.items():
                reserved[name] = _inside(value, f"reserved address {name}", subnet)
    changes: dict[str, object] = {
        "subnets": tuple(map(str, subnets)),
        "gateways": tuple(gateways),
        "ip_ranges": tuple(ranges),
        "aux_addresses": reserved,
    }
    return changes, tuple(subnets)


def _inside(node: Node, what: str, subnet: Prefix) -> str:
    """An address that must be in a subnet; as Compose lets a gateway have a prefix length, that is left out."""
    text = as_text(node, what)
    with at(node.mark):
        value = ipam.parse_address(text.partition("/")[0], what)
    if value not in subnet:
        raise node.mark.error(f"{what} {value} is not in subnet {subnet}", "choose an address inside the subnet")
    return str(value)


def address_in(node: Node, version: int, described: Described) -> str:
    """A static address of a service, checked against what the document says of the network."""
    key = f"ipv{version}_address"
    with at(node.mark):
        value = ipam.parse_address(as_text(node, key), key)
    if value.version != version:
        raise node.mark.error(f"{key} {value} is an IPv{value.version} address", f"expected an IPv{version} address")
    own = [subnet for subnet in described.subnets if subnet.version == version]
    if own and not any(value in subnet for subnet in own):
        raise node.mark.error(f"{key} {value} is in no subnet of network {described.name}", f"its subnets: {', '.join(map(str, own))}")
    if described.request is not None and not own:
        raise node.mark.error(
            f"{key} {value}, and network {described.name} has no IPv{version} subnet in the file", "give it one under ipam.config"
        )
    return str(value)
