"""Our netlink against pyroute2's, which shares no line with it: it reads what we send, we read what it makes, and both read the kernel."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroute2 import IPRoute
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from atoll.errors import NotFound
from atoll.firewall.elements import Element, Value, encode, statement
from atoll.firewall.skeleton import RESET, SETS, SKELETON, TABLE, Field
from atoll.kernel import netlink, nft, rtnl
from atoll.kernel.host import Host, interface_index
from tests.kernel.kernel_state import Shell

if TYPE_CHECKING:
    from collections.abc import Iterator

macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
names = st.from_regex(r"[a-z0-9_.-]{1,15}", fullmatch=True)
indexes = st.integers(1, 2**31 - 1)
numbers = st.integers(1, 2**32 - 1)
mtus = st.integers(68, 65535)
interfaces = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map(ipaddress.IPv4Interface),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 128)).map(ipaddress.IPv6Interface),
)
networks = interfaces.map(lambda interface: interface.network)


def tree(value: Any) -> Any:
    """What pyroute2 decoded, as plain values: attributes by name, padding and headers left out."""
    if isinstance(value, dict) and "attrs" in value:
        fields = {name: tree(inner) for name, inner in value.items() if name not in ("attrs", "header", "event", "state", "__align")}
        return fields | {entry[0]: tree(entry[1]) for entry in value["attrs"]}
    return value


def decoded(request: bytes) -> dict[str, Any]:
    """The one message that we made, as pyroute2 reads it, with its kind and flags."""
    (message,) = MarshalRtnl().parse(request)
    assert message["header"]["length"] == len(request)
    assert message["header"]["flags"] & netlink.NLM_F_REQUEST
    kind = next(name for name, number in KINDS.items() if number == message["header"]["type"])
    found: dict[str, Any] = tree(message)
    return {"kind": kind, "flags": message["header"]["flags"] & ~netlink.NLM_F_REQUEST, **without_zeros(found)}


KINDS = {name: number for name, number in vars(rtnl).items() if name.startswith("RTM_")}


def without_zeros(fields: dict[str, Any]) -> dict[str, Any]:
    """A header's zeros say nothing; neither do empty attributes."""
    return {name: value for name, value in fields.items() if value not in (0, "")}


CREATE = netlink.CREATE

# --- what we send --------------------------------------------------------------------------------------------------------------------


@given(names, mtus, macs)
def test_a_bridge(name: str, mtu: int, mac: str) -> None:
    found = decoded(rtnl.add_bridge(name, mtu=mtu, mac=mac))
    data = found.pop("IFLA_LINKINFO")
    assert found == {"kind": "RTM_NEWLINK", "flags": CREATE, "IFLA_IFNAME": name, "IFLA_MTU": mtu, "IFLA_ADDRESS": mac}
    assert data["IFLA_INFO_KIND"] == "bridge"
    assert data["IFLA_INFO_DATA"]["IFLA_BR_MCAST_SNOOPING"] == 0
