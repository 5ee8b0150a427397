"""Docker's plugin protocol: what comes in and goes out, checked, and in Docker's own names.

Every call is `POST /<Type>.<Method>` with JSON, or with nothing for those that take no arguments. Go writes `null` for an empty list or
map. Fields that we don't know are ignored, since each version of Docker may add some; all that we do know has its type.
(moby: daemon/libnetwork/drivers/remote/api, daemon/libnetwork/ipams/remote/api, pkg/plugins/client.go)
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw, Struct, field

from atoll.errors import Invalid

MEDIA_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"
#: Whose pools they are, as Docker tells the driver when it makes a network of one.
ADDRESS_SPACE: Final = "AtollLocal"

#: 64 hex digits, or 25 letters and digits for what a swarm made.
Id = Annotated[str, Meta(pattern=r"\A[a-zA-Z0-9]{1,64}\Z")]
#: `/var/run/docker/netns/<12 hex digits>`, or wherever --exec-root says.
SandboxKey = Annotated[str, Meta(pattern=r"\A/[\x21-\x7e]{1,1000}\Z")]
Text = Annotated[str, Meta(max_length=4096)]
Number = Annotated[int, Meta(ge=0, le=65535)]


class Nothing(Struct, frozen=True):
    """A call without arguments; the one kind whose body may be empty."""


# --- requests: NetworkDriver ---------------------------------------------------------------------------------------------------------


class PoolData(Struct, frozen=True, kw_only=True):
    """One subnet of a new network; all addresses carry a prefix length."""

    address_space: Text = field(name="AddressSpace", default="")
    pool: Text = field(name="Pool", default="")
    gateway: Text = field(name="Gateway", default="")
    aux: dict[Text, Text] | None = field(name="AuxAddresses", default=None)


class NetworkOptions(Struct, frozen=True, kw_only=True):
    """`generic` holds what was given with `-o`."""

    ipv4: bool = field(name="com.docker.network.enable_ipv4", default=True)
    ipv6: bool = field(name="com.docker.network.enable_ipv6", default=False)
    internal: bool = field(name="com.docker.network.internal", default=False)
    generic: dict[Text, Text] | None = field(name="com.docker.network.generic", default=None)


class OfOptions(Struct, frozen=True, kw_only=True):
    options: NetworkOptions | None = field(name="Options", default=None)


class CreateNetwork(OfOptions, frozen=True, kw_only=True):
    network: Id = field(name="NetworkID")
    ipv4: list[PoolData] | None = field(name="IPv4Data", default=None)
    ipv6: list[PoolData] | None = field(name="IPv6Data", default=None)


class OfNetwork(Struct, frozen=True, kw_only=True):
    network: Id = field(name="NetworkID")


class OfEndpoint(OfNetwork, frozen=True, kw_only=True):
    endpoint: Id = field(name="EndpointID")


class EndpointInterface(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """In a request: what is settled already. In an answer: only what the request left open, anything else is an error for Docker."""

    address: Text = field(name="Address", default="")
    address6: Text = field(name="AddressIPv6", default="")
    mac: Text = field(name="MacAddress", default="")


class CreateEndpoint(OfEndpoint, frozen=True, kw_only=True):
    interface: EndpointInterface | None = field(name="Interface", default=None)
    options: dict[Text, Raw] | None = field(name="Options", default=None)


class Join(OfEndpoint, frozen=True, kw_only=True):
    sandbox: SandboxKey = field(name="SandboxKey")
    options: dict[Text, Raw] | None = field(name="Options", default=None)


class ProgramExternalConnectivity(OfEndpoint, frozen=True, kw_only=True):
    options: dict[Text, Raw] | None = field(name="Options", default=None)


class PortBinding(Struct, frozen=True, kw_only=True):
    """One `-p`. `proto` is the IP protocol's number; host port 0 is one to be chosen, and `host_port_end` ends the range to choose from."""

    proto: int = field(name="Proto")
    port: Number = field(name="Port")
    host_ip: Text = field(name="HostIP", default="")
    host_port: Number = field(name="HostPort", default=0)
    host_port_end: Number = field(name="HostPortEnd", default=0)


# --- requests: IpamDriver ------------------------------------------------------------------------------------------------------------


class RequestPool(Struct, frozen=True, kw_only=True):
    address_space: Text = field(name="AddressSpace", default="")
    pool: Text = field(name="Pool", default="")
    sub_pool: Text = field(name="SubPool", default="")
    options: dict[Text, Text] | None = field(name="Options", default=None)
    v6: bool = field(name="V6", default=False)


class ReleasePool(Struct, frozen=True, kw_only=True):
    pool: Text = field(name="PoolID")


class RequestAddress(Struct, frozen=True, kw_only=True):
    pool: Text = field(name="PoolID")
    address: Text = field(name="Address", default="")
    options: dict[Text, Text] | None = field(name="Options", default=None)


class ReleaseAddress(Struct, frozen=True, kw_only=True):
    pool: Text = field(name="PoolID")
    address: Text = field(name="Address", default="")


# --- answers -------------------------------------------------------------------------------------------------------------------------


class Done(Struct, frozen=True):
    """`{}`: success, and nothing to say."""


class Activated(Struct, frozen=True, kw_only=True):
    implements: tuple[str, ...] = field(name="Implements", default=("NetworkDriver", "IpamDriver"))


class DriverCapabilities(Struct, frozen=True, kw_only=True):
    scope: str = field(name="Scope", default="local")
    connectivity: str = field(name="ConnectivityScope", default="local")
    gateway_check: bool = field(name="GwAllocChecker", default=True)


class GatewayCheck(Struct, frozen=True, kw_only=True):
    skip4: bool = field(name="SkipIPv4")
    skip6: bool = field(name="SkipIPv6")


class CreatedEndpoint(Struct, frozen=True, kw_only=True):
    interface: EndpointInterface = field(name="Interface")


class OperInfo(Struct, frozen=True, kw_only=True):
    value: dict[str, Any] = field(name="Value", default={})


class InterfaceName(Struct, frozen=True, kw_only=True):
    """Docker moves `source` into the sandbox and calls it `prefix` with the lowest number that is free there."""

    source: str = field(name="SrcName")
    prefix: str = field(name="DstPrefix", default="eth")


class StaticRoute(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`kind` 0 goes by `next_hop`, 1 is reached on the interface itself."""

    destination: str = field(name="Destination")
    kind: int = field(name="RouteType")
    next_hop: str = field(name="NextHop", default="")


class Joined(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Without a gateway and `no_gateway_service` Docker would add an interface on its own `docker_gwbridge`."""

    interface: InterfaceName = field(name="InterfaceName")
    gateway: str = field(name="Gateway", default="")
    gateway6: str = field(name="GatewayIPv6", default="")
    routes: tuple[StaticRoute, ...] = field(name="StaticRoutes", default=())
    no_gateway_service: bool = field(name="DisableGatewayService", default=False)


class IpamCapabilities(Struct, frozen=True, kw_only=True):
    """No replay after a restart of dockerd: what it was given is in our state."""

    needs_mac: bool = field(name="RequiresMACAddress", default=False)
    needs_replay: bool = field(name="RequiresRequestReplay", default=False)


class AddressSpaces(Struct, frozen=True, kw_only=True):
    local: str = field(name="LocalDefaultAddressSpace", default=ADDRESS_SPACE)
    world: str = field(name="GlobalDefaultAddressSpace", default="AtollGlobal")


class Pool(Struct, frozen=True, kw_only=True):
    pool: str = field(name="PoolID")
    subnet: str = field(name="Pool")
    data: dict[str, str] = field(name="Data", default={})


class Address(Struct, frozen=True, kw_only=True):
    address: str = field(name="Address")
    data: dict[str, str] = field(name="Data", default={})


def decode(method: str, body: bytes, kind: type[Struct]) -> Any:
    """A request, checked. Raises `Invalid` with the place and what was expected.

    Docker sends an empty body when it tries a call again, its first body is used up by then; that means nothing and is refused.
    """
    if kind is Nothing:
        return Nothing()
    if not body.strip():
        raise Invalid(f"{method} came without a body", "a call that Docker repeats has none; start what failed anew")
    return _checked(method, body, kind)


def option(method: str, options: dict[str, Raw] | None, key: str, kind: Any) -> Any:
    """One of the options of an endpoint; None when it isn't given. Raises `Invalid`."""
    given = (options or {}).get(key)
    return None if given is None else _checked(f"{method}, option {key}", given, kind | None)


def _checked(what: str, data: bytes | Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"{what} is not as expected: {str(error)[:300]}", "expected what Docker 20.10 to 29 sends") from None
