"""The options of networks (`--opt K=V`): under which names, ours and Docker's, and what they say. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from atoll import ipam
from atoll.checks import check_interface
from atoll.errors import Invalid
from atoll.model import ANNOUNCE, DRIVERS, GATEWAY_MODES, Announce, GatewayMode

if TYPE_CHECKING:
    from collections.abc import Mapping

_DOCKER: Final = "com.docker.network."
#: Options under Docker's names (libnetwork's netlabel and drivers/bridge/labels.go), by ours.
_SYNONYMS: Final = {
    f"{_DOCKER}bridge.name": "bridge",
    f"{_DOCKER}bridge.enable_icc": "icc",
    f"{_DOCKER}bridge.gateway_mode_ipv4": "gateway-mode4",
    f"{_DOCKER}bridge.gateway_mode_ipv6": "gateway-mode6",
    f"{_DOCKER}bridge.host_binding_ipv4": "host-binding",
    f"{_DOCKER}bridge.inhibit_ipv4": "inhibit-ipv4",
    f"{_DOCKER}bridge.trusted_host_interfaces": "trusted-interfaces",
    f"{_DOCKER}driver.mtu": "mtu",
    f"{_DOCKER}host_ipv4": "snat",
    f"{_DOCKER}host_ipv6": "snat6",
    f"{_DOCKER}container_iface_prefix": "interface-prefix",
    f"{_DOCKER}enable_ipv4": "ipv4",
    f"{_DOCKER}enable_ipv6": "ipv6",
    "macvlan_mode": "mode",
    "ipvlan_mode": "mode",
    "ipvlan_flag": "flag",
}
_MASQUERADE: Final = f"{_DOCKER}bridge.enable_ip_masquerade"
_MESSAGES: Final = f"{_DOCKER}advertise_addr_nmsgs"
_INTERVAL: Final = f"{_DOCKER}advertise_addr_ms"
_OF_ALL: Final = ("mtu", "interface-prefix", "no-default-route", "metric", "ipv4", "ipv6", "fleeting")
KNOWN: Final = {
    "bridge": (
        "bridge", "icc", "isolation", "masquerade", "nat", "guard", "snat", "snat6", "mac", "ingress-rate", "egress-rate", "domain",
        "gateway-mode4", "gateway-mode6", "host-binding", "inhibit-ipv4", "inhibit-ipv6", "trusted-interfaces", "announce", *_OF_ALL,
    ),
    "macvlan": ("parent", "mode", *_OF_ALL),
    "ipvlan": ("parent", "mode", "flag", *_OF_ALL),
}  # fmt: skip
NATS: Final = ("masquerade", "routed", "kept")


class Folded(NamedTuple):
    """Fields of the request that options say as well, and the other options under our names."""

    fields: dict[str, object]
    options: dict[str, str]


def fold(driver: str, given: Mapping[str, str]) -> Folded:
    """Raises `Invalid` for a driver that there isn't, and for options that it doesn't know."""
    if driver not in DRIVERS:
        raise Invalid(f"driver {driver[:40]!r} is unknown", f"expected one of {', '.join(DRIVERS)}")
    known = KNOWN.get(driver, ())
    fields: dict[str, object] = {}
    options: dict[str, str] = {}
    for key, value in given.items():
        name = _SYNONYMS.get(key, key)
        if key == _MASQUERADE and driver == "bridge":
            # To Docker it is only about the source of what leaves; it opens the network to nobody.
            name, value = "nat", "masquerade" if _boolean(key, value) else "kept"
        if key in (_MESSAGES, _INTERVAL) and driver == "bridge":
            if announced := _announced(key, value):
                options["announce"] = announced
            continue
        if name not in known:
            raise Invalid(f"option {key[:80]!r} is unknown to driver {driver}", f"it knows {', '.join(known) or 'none'}")
        if name in _FIELDS:
            field, read = _FIELDS[name]
            fields[field] = read(name, value)
        else:
            options[name] = value
    return Folded(fields, options)


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise Invalid(f"option {name}={text[:20]!r} is neither true nor false", f"write {name}=true or {name}=false")
    return text.lower() in ("true", "1")


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise Invalid(f"{name} {text[:20]!r} is not a number", f"expected one such as {name}=1500")
    return int(text[:10])


#: Options that are fields of the request, too, and how they are read.
_FIELDS: Final[dict[str, tuple[str, Callable[[str, str], object]]]] = {
    "icc": ("icc", _boolean),
    "masquerade": ("masquerade", _boolean),
    "guard": ("guard", _boolean),
    "ipv4": ("ipv4", _boolean),
    "ipv6": ("ipv6", _boolean),
    "fleeting": ("fleeting", _boolean),
    "mtu": ("mtu", _number),
    "metric": ("metric", _number),
    "no-default-route": ("default_route", lambda name, text: not _boolean(name, text)),
    "isolation": ("isolation", lambda _, text: text),
}


def _announced(key: str, text: str) -> str:
    """Docker repeats its announcements, at an interval of so many ms. On a bridge nothing is lost, so one is enough."""
    lowest, highest = (0, 3) if key == _MESSAGES else (100, 2000)
    number = _number(key, text)
    if not lowest <= number <= highest:
        raise Invalid(f"option {key}={text[:20]} is out of range", f"expected {lowest} to {highest}")
    return "" if key == _INTERVAL else "always" if number else "never"


# --- what only a bridge has ----------------------------------------------------------------------------------------------------------


def gateway_modes(options: Mapping[str, str], *, internal: bool) -> tuple[GatewayMode, GatewayMode]:
    """For IPv4 and for IPv6."""
    found: list[GatewayMode] = []
    for name in ("gateway-mode4", "gateway-mode6"):
        mode = options.get(name, "nat")
        if mode not in GATEWAY_MODES:
            raise Invalid(f"{name} {mode[:20]!r} is unknown", f"expected one of {', '.join(GATEWAY_MODES)}")
        if mode == "isolated" and not internal:
            raise Invalid(f"{name}=isolated is for a network without a way out", "add --internal")
        found.append(mode)
    return found[0], found[1]


def host_binding(options: Mapping[str, str]) -> str:
    """The host's address on which ports are published when none is named; empty for all."""
    text = options.get("host-binding", "")
    value = ipam.parse_address(text, "option host-binding") if text else None
    return "" if value is None or value == ipaddress.IPv4Address(0) else str(value)


def inhibits(options: Mapping[str, str], version: int) -> bool:
    name = f"inhibit-ipv{version}"
    return _boolean(name, options.get(name, "false"))


def trusted_interfaces(options: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(check_interface(name) for name in options.get("trusted-interfaces", "").split(":") if name))


def announce(options: Mapping[str, str]) -> Announce:
    found = options.get("announce", "changed")
    if found not in ANNOUNCE:
        raise Invalid(f"announce {found[:20]!r} is unknown", f"expected one of {', '.join(ANNOUNCE)}")
    return found


def nat(options: Mapping[str, str], *, masquerade: bool) -> str:
    found = options.get("nat", "masquerade" if masquerade else "routed")
    if found not in NATS:
        raise Invalid(f"nat {found[:20]!r} is unknown", f"expected one of {', '.join(NATS)}")
    return found


def interface_prefix(options: Mapping[str, str]) -> str:
    """What the names of interfaces begin with. A number of up to three digits follows."""
    text = options.get("interface-prefix", "eth")
    check_interface(text + "999" if text else text)
    if text == "lo":
        raise Invalid("interfaces can't be called lo and a number", "choose another prefix")
    return text
