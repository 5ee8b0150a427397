"""Networks of configurations: the Atoll network of that name, made when there is none."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import TYPE_CHECKING

from msgspec import structs

from atoll.engine.network_request import NetworkRequest
from atoll.errors import AtollError, Conflict
from atoll.frontends import DOOR_LABEL
from atoll.frontends.cni import leases
from atoll.frontends.cni.attachments import network_named
from atoll.frontends.cni.refusal import BAD_CONFIG, NOT_READY, Refusal
from atoll.frontends.sharing import mismatch
from atoll.model import PREDEFINED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from atoll.engine import Engine
    from atoll.frontends.cni.addressing import Range, Scheme
    from atoll.model import Network


@contextlib.contextmanager
def joined(engine: Engine, wanted: NetworkRequest, scheme: Scheme) -> Iterator[Network]:
    """The network that a configuration speaks of; one that is made for it goes again when the block fails.

    Raises `Conflict` where one of that name is another network.
    """
    _check_name(wanted.name)
    there = network_named(engine, wanted.name)
    if there is not None and _is_outdated(engine, there, wanted):
        engine.remove_network(there.id)
        there = None
    if there is not None:
        check_agrees(there, wanted)
        yield there
        return
    made = engine.create_network_explained(structs.replace(wanted, labels={**wanted.labels, DOOR_LABEL: "cni"})).network
    try:
        if scheme.kind == "host-local":
            leases.keep(engine, made, made.name, scheme.data_dir)
        yield made
    except BaseException:
        engine.remove_network(made.id)
        raise


def check_ready(engine: Engine, wanted: NetworkRequest) -> None:
    """STATUS: whether an ADD could be served now. Raises `Refusal` with the spec's code."""
    _check_name(wanted.name)
    there = network_named(engine, wanted.name)
    if there is not None and _is_outdated(engine, there, wanted):
        return
    try:
        if there is None:
            engine.plan_create_network(**structs.asdict(wanted))
        else:
            check_agrees(there, wanted)
    except AtollError as error:
        raise Refusal(NOT_READY, f"network {wanted.name} is not available: {error.what}", error.hint) from None
    if there is not None and there.subnets:
        pools = engine.state.pools(there)
        for version in {pool.subnet.version for pool in pools}:
            if all(pool.used >= pool.size for pool in pools if pool.subnet.version == version):
                raise Refusal(
                    NOT_READY, f"network {wanted.name} has no free IPv{version} address", "delete containers, or use a larger subnet"
                )


def _is_outdated(engine: Engine, network: Network, wanted: NetworkRequest) -> bool:
    """Whether a network is of a configuration that has been changed since, and nobody is on it: then the new one counts."""
    used = engine.state.count_on(network) or any(held == network.id for held, _ in engine.state.holds)
    if used or network.labels.get(DOOR_LABEL) != "cni":
        return False
    try:
        check_agrees(network, wanted)
    except Conflict:
        return True
    return False


def check_agrees(network: Network, wanted: NetworkRequest) -> None:
    """A network that is there keeps its options; but driver and subnets must be those that were meant."""
    subnets = (str(ipaddress.ip_network(text)) for text in wanted.subnets)
    match mismatch(network, wanted.driver, subnets, wanted.gateways):
        case ("driver", there, meant):
            raise Conflict(f"network {network.name} exists and is a {there} network, not {meant}", "use another name")
        case ("subnet", there, meant):
            raise Conflict(f"network {network.name} exists with other subnets ({there}), not {meant}", "use another name, or its subnets")
        case (_, there, meant):
            raise Conflict(f"network {network.name} exists with another gateway ({there}), not {meant}", "use another name, or its gateway")


def requested(name: str, driver: str, scheme: Scheme, **options: object) -> NetworkRequest:
    """What addresses a network must have for a scheme to work on it; `options` are further fields."""
    ranges = scheme.ranges()
    gateways: dict[str, str] = {}
    for one in ranges:
        there = gateways.setdefault(str(one.subnet), str(one.gateway or ""))
        if one.gateway and there != str(one.gateway):
            raise Refusal(BAD_CONFIG, f"subnet {one.subnet} has two gateways, {there} and {one.gateway}", "give one")
    versions = {one.subnet.version for one in ranges}
    return NetworkRequest(
        name=name,
        driver=driver,
        subnets=tuple(gateways),
        gateways=tuple(filter(None, gateways.values())),
        ip_ranges=tuple(_parts(ranges)) if scheme.kind == "host-local" else (),
        ipv4=not versions or 4 in versions,
        **options,  # type: ignore[arg-type]
    )


def _parts(ranges: Iterable[Range]) -> Iterable[str]:
    """The ranges that aren't their whole subnet, as prefixes."""
    for one in ranges:
        if one.first > one.subnet[1] or one.last < one.subnet[-2 if one.subnet.version == 4 else -1]:  # type: ignore[operator]
            yield from map(str, ipaddress.summarize_address_range(one.first, one.last))


def _check_name(name: str) -> None:
    if name in PREDEFINED:
        raise Refusal(BAD_CONFIG, f"network {name} is predefined in Atoll", "give the configuration another name")
