"""Docker's calls: which function answers which method, and how an error is said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from atoll.errors import AtollError, Failed
from atoll.frontends.docker import endpoints, ipam, networks, protocol

if TYPE_CHECKING:
    from atoll.frontends.docker.door import Door

log = logging.getLogger("atoll")


class Method(NamedTuple):
    request: type[Struct]
    answer: Callable[[Door, Any], Struct]


class Reply(NamedTuple):
    status: int
    body: bytes


def _nothing(_: Door, __: Struct) -> protocol.Done:
    return protocol.Done()


#: AllocateNetwork and FreeNetwork are for drivers that span a swarm; asked all the same they are unknown.
METHODS: Final[dict[str, Method]] = {
    "Plugin.Activate": Method(protocol.Nothing, lambda _, __: protocol.Activated()),
    "NetworkDriver.GetCapabilities": Method(protocol.Nothing, lambda _, __: protocol.DriverCapabilities()),
    "NetworkDriver.GwAllocCheck": Method(protocol.OfOptions, networks.gateway_check),
    "NetworkDriver.CreateNetwork": Method(protocol.CreateNetwork, networks.create_network),
    "NetworkDriver.DeleteNetwork": Method(protocol.OfNetwork, networks.delete_network),
    "NetworkDriver.CreateEndpoint": Method(protocol.CreateEndpoint, endpoints.create_endpoint),
    "NetworkDriver.EndpointOperInfo": Method(protocol.OfEndpoint, endpoints.operational_info),
    "NetworkDriver.Join": Method(protocol.Join, endpoints.join),
    "NetworkDriver.ProgramExternalConnectivity": Method(protocol.ProgramExternalConnectivity, endpoints.program_external_connectivity),
    "NetworkDriver.RevokeExternalConnectivity": Method(protocol.OfEndpoint, endpoints.revoke_external_connectivity),
    "NetworkDriver.Leave": Method(protocol.OfEndpoint, endpoints.leave),
    "NetworkDriver.DeleteEndpoint": Method(protocol.OfEndpoint, endpoints.delete_endpoint),
    "NetworkDriver.DiscoverNew": Method(protocol.Nothing, _nothing),
    "NetworkDriver.DiscoverDelete": Method(protocol.Nothing, _nothing),
    "IpamDriver.GetCapabilities": Method(protocol.Nothing, lambda _, __: protocol.IpamCapabilities()),
    "IpamDriver.GetDefaultAddressSpaces": Method(protocol.Nothing, lambda _, __: protocol.AddressSpaces()),
    "IpamDriver.RequestPool": Method(protocol.RequestPool, ipam.request_pool),
    "IpamDriver.ReleasePool": Method(protocol.ReleasePool, ipam.release_pool),
    "IpamDriver.RequestAddress": Method(protocol.RequestAddress, ipam.request_address),
    "IpamDriver.ReleaseAddress": Method(protocol.ReleaseAddress, ipam.release_address),
}


def answer(door: Door, name: str, body: bytes) -> Reply:
    """A call carried out, on the engine's thread. Never raises: what goes wrong is said in Docker's form, and has changed nothing."""
    method = METHODS.get(name)
    if method is None:
        return refusal(404, f"no method {name[:80]}")
    try:
        request = protocol.decode(name, body, method.request)
    except AtollError as error:
        return refusal(400, str(error))
    try:
        return Reply(200, msgspec.json.encode(method.answer(door, request)))
    except AtollError as error:
        # An IPAM driver's errors are in another field than a network driver's.
        return refusal(200, str(error), "Error" if name.startswith("IpamDriver.") else "Err")
    except Exception:
        log.exception("%s", name)
        return refusal(500, str(Failed(f"{name} failed inside", "the daemon's log says where")))


def refusal(status: int, text: str, name: str = "Err") -> Reply:
    return Reply(status, msgspec.json.encode({name: text}))
