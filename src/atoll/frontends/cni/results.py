"""Results: what a plugin answers to ADD, and what it is told of the ones before it, in the form of each version of the specification.

0.1.0, 0.2.0           one address a family: ip4, ip6, each with its gateway and routes
0.3.0, 0.3.1, 0.4.0    lists of interfaces, ips (each says its family) and routes
1.0.0                  the family is left out
1.1.0                  interfaces say their MTU, routes more than where they lead
"""

from __future__ import annotations

import ipaddress
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from atoll.frontends.cni.refusal import UNDECODABLE, Refusal, convert

_WITH_FAMILY: Final = ("0.3.0", "0.3.1", "0.4.0")
_SINGLE: Final = ("0.1.0", "0.2.0")


class Dns(Struct, frozen=True, omit_defaults=True):
    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Interface(Struct, frozen=True, omit_defaults=True):
    """`sandbox` is the network namespace's path; empty for one of the host."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = field(name="socketPath", default="")
    pci_id: str = field(name="pciID", default="")


class Ip(Struct, frozen=True, omit_defaults=True):
    """`interface` is the position of the one that has the address."""

    address: str
    gateway: str = ""
    interface: int | None = None

    @property
    def version(self) -> int:
        return 6 if ":" in self.address else 4


class Route(Struct, frozen=True, omit_defaults=True):
    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class Result(Struct, frozen=True, omit_defaults=True):
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()

    def after(self, previous: Result | None) -> Result:
        """This result as one after another: what was there stays, and positions of interfaces count on."""
        if previous is None:
            return self
        offset = len(previous.interfaces)
        moved = tuple(msgspec.structs.replace(ip, interface=None if ip.interface is None else ip.interface + offset) for ip in self.ips)
        return Result(
            interfaces=previous.interfaces + self.interfaces,
            ips=previous.ips + moved,
            routes=previous.routes + self.routes,
            dns=self.dns if self.dns != Dns() else previous.dns,
        )


class _Single(Struct, frozen=True, omit_defaults=True):
    ip: str
    gateway: str = ""
    routes: tuple[Route, ...] = ()


class _Any(Result, frozen=True, omit_defaults=True):
    """A result of whichever version."""

    ip4: _Single | None = None
    ip6: _Single | None = None


def read_result(raw: Any) -> Result:
    """A result of any version, as it is given for `prevResult`. Raises `Refusal`."""
    found = convert(_Any, raw)
    singles = [single for single in (found.ip4, found.ip6) if single is not None]
    made = Result(
        interfaces=found.interfaces,
        ips=found.ips + tuple(Ip(single.ip, single.gateway) for single in singles),
        routes=found.routes + tuple(route for single in singles for route in single.routes),
        dns=found.dns,
    )
    try:
        for text in (*(ip.address for ip in made.ips), *(route.dst for route in made.routes)):
            ipaddress.ip_interface(text)
    except ValueError as error:
        raise Refusal(UNDECODABLE, "the result of the plugins before can't be read", str(error)[:200]) from None
    return made


def form(result: Result, version: str) -> bytes:
    """The result as JSON in a version's form, laid out as the reference plugins do."""
    said: dict[str, Any] = {"cniVersion": version}
    said |= _singles(result) if version in _SINGLE else _lists(result, version)
    said["dns"] = msgspec.to_builtins(result.dns)
    return msgspec.json.format(msgspec.json.encode(said), indent=4) + b"\n"


def _lists(result: Result, version: str) -> dict[str, Any]:
    said: dict[str, Any] = msgspec.to_builtins(result)
    said.pop("dns", None)
    if version in _WITH_FAMILY:
        for ip, value in zip(said.get("ips", ()), result.ips, strict=True):
            ip["version"] = str(value.version)
    if version != "1.1.0":
        for interface in said.get("interfaces", ()):
            for later in ("mtu", "socketPath", "pciID"):
                interface.pop(later, None)
        if "routes" in said:
            said["routes"] = [_short(route) for route in result.routes]
    return said


def _singles(result: Result) -> dict[str, Any]:
    """The first address of each family. Routes go with the family that they are of."""
    said: dict[str, Any] = {}
    for version in (4, 6):
        ip = next((ip for ip in result.ips if ip.version == version), None)
        if ip is not None:
            single: dict[str, Any] = {"ip": ip.address}
            if ip.gateway:
                single["gateway"] = ip.gateway
            routes = [_short(route) for route in result.routes if _family(route) == version]
            if routes:
                single["routes"] = routes
            said[f"ip{version}"] = single
    return said


def _short(route: Route) -> dict[str, str]:
    return {"dst": route.dst} | ({"gw": route.gw} if route.gw else {})


def _family(route: Route) -> int:
    return ipaddress.ip_network(route.dst, strict=False).version
