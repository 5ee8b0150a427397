"""Routing netlink: links, addresses, neighbours, routes and rules, as messages to send and as dumps to read.

The builders return bytes for `netlink.Socket.execute`; a datagram may carry several. Verbs and words are iproute2's. Numbers are those
of linux/rtnetlink.h, if_link.h, if_addr.h and fib_rules.h. Queues are in `tc`.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from atoll.kernel.netlink import (
    CREATE,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    Socket,
    attribute,
    attribute_list,
    attributes,
    message,
    nested,
    number,
    string,
    text,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_NEWLINKPROP: Final = 108
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_DELNEIGH: Final = 29
RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34
RTM_NEWNSID: Final = 88
RTM_GETNSID: Final = 90

#: Multicast groups for `netlink.Socket(groups=...)`.
GROUP_LINK: Final = 1
GROUP_IPV4_ADDRESS: Final = 5
GROUP_IPV4_ROUTE: Final = 7
GROUP_IPV4_RULE: Final = 8
GROUP_IPV6_ADDRESS: Final = 9
GROUP_IPV6_ROUTE: Final = 11
GROUP_IPV6_RULE: Final = 19
GROUP_TC: Final = 4

#: The family of messages that show a link as the port of a bridge.
AF_BRIDGE: Final = 7

IFF_UP: Final = 0x1
_IFF_PROMISC: Final = 0x100
_IFF_ALLMULTI: Final = 0x200
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_PROTINFO: Final = 12
_IFLA_TXQLEN: Final = 13
_IFLA_LINKINFO: Final = 18
_IFLA_NET_NS_FD: Final = 28
_IFLA_IFALIAS: Final = 20
_IFLA_GROUP: Final = 27
_IFLA_EXT_MASK: Final = 29
_IFLA_PROP_LIST: Final = 52
_IFLA_ALT_IFNAME: Final = 53
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_IFLA_INFO_SLAVE_KIND: Final = 4
_IFLA_INFO_SLAVE_DATA: Final = 5
_RTEXT_FILTER_SKIP_STATS: Final = 8
_VETH_INFO_PEER: Final = 1
_IFLA_BR_MCAST_SNOOPING: Final = 23
_IFLA_BR_MULTI_BOOLOPT: Final = 46
_BR_BOOLOPT_NO_LL_LEARN: Final = 1
_IFLA_BRPORT_ISOLATED: Final = 33
_IFLA_MACVLAN_MODE: Final = 1
_IFLA_IPVLAN_MODE: Final = 1
_IFLA_IPVLAN_FLAGS: Final = 2
_IFLA_VLAN_ID: Final = 1

MACVLAN_MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES: Final = {"l2": 0, "l3": 1, "l3s": 2}
IPVLAN_FLAGS: Final = {"bridge": 0, "private": 1, "vepa": 2}

_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_IFA_F_NODAD: Final = 0x02

_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_TABLE: Final = 15
TABLE_MAIN: Final = 254
TABLE_LOCAL: Final = 255
RTN_LOCAL: Final = 2
#: The kinds of routes that can be asked for; the last three end there.
ROUTE_KINDS: Final = {"unicast": 1, "blackhole": 6, "unreachable": 7, "prohibit": 8}
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_SCOPE_HOST: Final = 254
RTPROT_KERNEL: Final = 2
#: Marks the routes and rules that Atoll made (`ip route` shows `proto 167`); the number is free in rt_protos.
RTPROT_ATOLL: Final = 167

_FRA_SRC: Final = 2
_FRA_PRIORITY: Final = 6
_FRA_TABLE: Final = 15
_FRA_PROTOCOL: Final = 21
_FR_ACT_TO_TBL: Final = 1

_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_RTM_GETNEIGH: Final = 30
#: linux/neighbour.h: the states in which a link address is known.
_NUD_VALID: Final = 0xDE
_NEIGHBOUR = struct.Struct("=BxxxiHBB")

_NETNSA_NSID: Final = 1
_NETNSA_FD: Final = 3

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Link(NamedTuple):
    """An interface as the kernel has it. `master` and `link` are interface indexes, 0 for none; `isolated` is the bridge port's flag;
    `queue` how many packets may wait to be sent; `altnames` are further names."""

    ifindex: int
    name: str
    kind: str
    up: bool
    mtu: int
    mac: str
    master: int
    link: int
    alias: str
    isolated: bool
    group: int = 0
    promisc: bool = False
    allmulti: bool = False
    queue: int = 0
    altnames: tuple[str, ...] = ()


class AddressRow(NamedTuple):
    ifindex: int
    interface: Interface


class RouteRow(NamedTuple):
    """`destination` is None for a default route; `gateway` None for one that is on the link; `ifindex` 0 when it has no interface."""

    destination: Network | None
    gateway: Address | None
    ifindex: int
    table: int
    protocol: int
    metric: int
    kind: int
    family: int


class RuleRow(NamedTuple):
    source: Network | None
    table: int
    priority: int
    protocol: int
    family: int


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


# --- links ---------------------------------------------------------------------------------------------------------------------------


def _link_body(index: int, *, up: bool | None, attrs: bytes) -> bytes:
    flags = IFF_UP if up else 0
    change = 0 if up is None else IFF_UP
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, change) + attrs


def _common(name: str, mtu: int, mac: str, master: int) -> bytes:
    parts = b""
    if name:
        parts += text(_IFLA_IFNAME, name)
    if mtu:
        parts += u32(_IFLA_MTU, mtu)
    if mac:
        parts += attribute(_IFLA_ADDRESS, mac_bytes(mac))
    if master:
        parts += u32(_IFLA_MASTER, master)
    return parts


def add_bridge(name: str, *, mac: str) -> bytes:
    """A bridge, down. Snooping is off: with it every attachment floods all ports, and link-local frames teach it nothing."""
    data = attribute(_IFLA_BR_MCAST_SNOOPING, b"\0") + attribute(
        _IFLA_BR_MULTI_BOOLOPT, struct.pack("=II", _BR_BOOLOPT_NO_LL_LEARN, _BR_BOOLOPT_NO_LL_LEARN)
    )
    info = nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "bridge"), attribute(_IFLA_INFO_DATA, data))
    return message(RTM_NEWLINK, CREATE, _link_body(0, up=None, attrs=_common(name, 0, mac, 0) + info))


def add_veth(name: str, *, peer: str, peer_netns: int | None, peer_mac: str, mtu: int, master: int = 0, up: bool = False) -> bytes:
    """A veth pair: `name` here, enslaved and up as asked; `peer` down, with its final name and MAC, in the namespace of that fd.

    The peer can't be brought up in the same message (veth_open answers ENOTCONN before the pair is complete).
    """
    far = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _common(peer, mtu, peer_mac, 0)
    if peer_netns is not None:
        far += u32(_IFLA_NET_NS_FD, peer_netns)
    data = attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, far))
    info = nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "veth"), data)
    return message(RTM_NEWLINK, CREATE, _link_body(0, up=up or None, attrs=_common(name, mtu, "", master) + info))


def add_macvlan(name: str, *, parent: int, netns: int, mac: str, mtu: int, mode: str) -> bytes:
    return _add_child("macvlan", u32(_IFLA_MACVLAN_MODE, MACVLAN_MODES[mode]), name, parent, netns, mac, mtu)


def add_ipvlan(name: str, *, parent: int, netns: int, mtu: int, mode: str, flag: str) -> bytes:
    data = attribute(_IFLA_IPVLAN_MODE, struct.pack("=H", IPVLAN_MODES[mode]))
    data += attribute(_IFLA_IPVLAN_FLAGS, struct.pack("=H", IPVLAN_FLAGS[flag]))
    return _add_child("ipvlan", data, name, parent, netns, "", mtu)


def _add_child(kind: str, data: bytes, name: str, parent: int, netns: int, mac: str, mtu: int) -> bytes:
    info = nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, kind), attribute(_IFLA_INFO_DATA, data))
    attrs = u32(_IFLA_LINK, parent) + _common(name, mtu, mac, 0) + u32(_IFLA_NET_NS_FD, netns) + info
    return message(RTM_NEWLINK, CREATE, _link_body(0, up=None, attrs=attrs))


def add_ifb(name: str, *, mtu: int = 0, up: bool = True) -> bytes:
    info = nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "ifb"))
    return message(RTM_NEWLINK, CREATE, _link_body(0, up=up or None, attrs=_common(name, mtu, "", 0) + info))


def add_vlan(name: str, *, base: int, number: int) -> bytes:
    """What arrives at an interface with the tag `number` (IEEE 802.1Q)."""
    data = attribute(_IFLA_INFO_DATA, attribute(_IFLA_VLAN_ID, struct.pack("=H", number)))
    info = nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "vlan"), data)
    return message(RTM_NEWLINK, CREATE, _link_body(0, up=None, attrs=u32(_IFLA_LINK, base) + _common(name, 0, "", 0) + info))


def set_link(index: int, *, up: bool | None = None, mtu: int = 0, mac: str = "", alias: str = "", master: int | None = None) -> bytes:
    """Change what is given of one interface; `master` 0 takes it out of its bridge."""
    attrs = _common("", mtu, mac, 0)
    if alias:
        attrs += attribute(_IFLA_IFALIAS, alias.encode())
    if master is not None:
        attrs += u32(_IFLA_MASTER, master)
    return message(RTM_NEWLINK, 0, _link_body(index, up=up, attrs=attrs))


def tune_link(index: int, *, promisc: bool | None = None, allmulti: bool | None = None, queue: int | None = None) -> bytes:
    """Change what is given: the flags that let in frames for others, and how many packets may wait to be sent."""
    flags = change = 0
    for flag, wanted in ((_IFF_PROMISC, promisc), (_IFF_ALLMULTI, allmulti)):
        if wanted is not None:
            change |= flag
            flags |= flag if wanted else 0
    attrs = u32(_IFLA_TXQLEN, queue) if queue is not None else b""
    return message(RTM_NEWLINK, 0, _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, change) + attrs)


def add_altname(index: int, name: str) -> bytes:
    """A further name of an interface (Linux 5.5), under which ip, tc and others find it as well."""
    names = nested(_IFLA_PROP_LIST, text(_IFLA_ALT_IFNAME, name))
    return message(RTM_NEWLINKPROP, CREATE | NLM_F_APPEND, _link_body(index, up=None, attrs=names))


def set_alias(name: str, alias: str, *, mtu: int = 0) -> bytes:
    """The alias of an interface that was made a message before: the kernel takes none in the message that makes it.

    So it is with a bridge's MTU: one that it was made with lasts until its ports change (br_mtu_auto_adjust).
    """
    attrs = _common(name, mtu, "", 0) + attribute(_IFLA_IFALIAS, alias.encode())
    return message(RTM_NEWLINK, 0, _link_body(0, up=None, attrs=attrs))


def set_isolated(index: int, isolated: bool) -> bytes:
    """The bridge port flag: isolated ports reach only ports that are not, and the bridge itself (since Linux 4.18)."""
    data = attribute(_IFLA_BRPORT_ISOLATED, bytes([isolated]))
    info = nested(_IFLA_LINKINFO, text(_IFLA_INFO_SLAVE_KIND, "bridge"), nested(_IFLA_INFO_SLAVE_DATA, data))
    return message(RTM_NEWLINK, 0, _link_body(index, up=None, attrs=info))


def delete_link(name: str) -> bytes:
    return message(RTM_DELLINK, 0, _link_body(0, up=None, attrs=text(_IFLA_IFNAME, name)))


def set_group(name: str, group: int) -> bytes:
    return message(RTM_NEWLINK, 0, _link_body(0, up=None, attrs=text(_IFLA_IFNAME, name) + u32(_IFLA_GROUP, group)))


def delete_group(group: int) -> bytes:
    """All interfaces of a group at once: the kernel waits for a grace period a deletion, however many interfaces it takes away."""
    return message(RTM_DELLINK, 0, _link_body(0, up=None, attrs=u32(_IFLA_GROUP, group)))


def get_link(name: str) -> bytes:
    attrs = text(_IFLA_IFNAME, name) + u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
    return message(RTM_GETLINK, 0, _link_body(0, up=None, attrs=attrs))


def parse_link(body: bytes) -> Link:
    """Raises `ValueError` on a message that is cut short."""
    if len(body) < _IFINFO.size:
        raise ValueError("link message cut short")
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attributes(body, _IFINFO.size)
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    port = b""
    if body[0] == AF_BRIDGE:
        port = found.get(_IFLA_PROTINFO, b"")
    elif info.get(_IFLA_INFO_SLAVE_KIND, b"").startswith(b"bridge"):
        port = info.get(_IFLA_INFO_SLAVE_DATA, b"")
    return Link(
        ifindex=index,
        name=string(found.get(_IFLA_IFNAME, b"")),
        kind=string(info.get(_IFLA_INFO_KIND, b"")),
        up=bool(flags & IFF_UP),
        mtu=number(found.get(_IFLA_MTU, b"")),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        master=number(found.get(_IFLA_MASTER, b"")),
        link=number(found.get(_IFLA_LINK, b"")),
        alias=string(found.get(_IFLA_IFALIAS, b"")),
        isolated=any(attributes(port).get(_IFLA_BRPORT_ISOLATED, b"")),
        group=number(found.get(_IFLA_GROUP, b"")),
        promisc=bool(flags & _IFF_PROMISC),
        allmulti=bool(flags & _IFF_ALLMULTI),
        queue=number(found.get(_IFLA_TXQLEN, b"")),
        altnames=tuple(string(value) for kind, value in attribute_list(found[_IFLA_PROP_LIST]) if kind == _IFLA_ALT_IFNAME)
        if _IFLA_PROP_LIST in found
        else (),
    )


def links(sock: Socket) -> list[Link]:
    """All interfaces of the socket's namespace."""
    request = message(RTM_GETLINK, 0, _link_body(0, up=None, attrs=u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)))
    return [parse_link(answer.body) for answer in sock.dump(request) if answer.type == RTM_NEWLINK]


# --- addresses -----------------------------------------------------------------------------------------------------------------------


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _address_body(index: int, interface: Interface) -> bytes:
    packed = interface.ip.packed
    attrs = attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    flags = _IFA_F_NODAD if interface.version == 6 else 0
    if flags:
        attrs += u32(_IFA_FLAGS, flags)
    return _IFADDR.pack(_family(interface.version), interface.network.prefixlen, flags, 0, index) + attrs


def add_address(index: int, interface: Interface) -> bytes:
    """An address with its prefix length; IPv6 without duplicate address detection, because IPAM owns it and it must work at once."""
    return message(RTM_NEWADDR, CREATE, _address_body(index, interface))


def delete_address(index: int, interface: Interface) -> bytes:
    return message(RTM_DELADDR, 0, _address_body(index, interface))


def parse_address(body: bytes) -> AddressRow:
    if len(body) < _IFADDR.size:
        raise ValueError("address message cut short")
    family, prefix, _, _, index = _IFADDR.unpack_from(body)
    found = attributes(body, _IFADDR.size)
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    return AddressRow(index, ipaddress.ip_interface((_unpack(family, packed), prefix)))


def addresses(sock: Socket) -> list[AddressRow]:
    request = message(RTM_GETADDR, 0, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    # The kernel answers for every family that has addresses, MCTP among them.
    families = (bytes([socket.AF_INET]), bytes([socket.AF_INET6]))
    return [parse_address(answer.body) for answer in sock.dump(request) if answer.type == RTM_NEWADDR and answer.body[:1] in families]


def _unpack(family: int, packed: bytes) -> Address:
    size = 4 if family == socket.AF_INET else 16
    if len(packed) != size:
        raise ValueError(f"address of {len(packed)} bytes in family {family}")
    return ipaddress.IPv4Address(packed) if size == 4 else ipaddress.IPv6Address(packed)


# --- neighbours ----------------------------------------------------------------------------------------------------------------------


class NeighbourRow(NamedTuple):
    """Of the bridges' table of link addresses `address` is empty, and `ifindex` the port."""

    ifindex: int
    address: bytes
    mac: str


def neighbours(sock: Socket, family: int) -> list[NeighbourRow]:
    """Those of a family whose link address is known, AF_BRIDGE for the bridges' own (linux/neighbour.h)."""
    found = []
    for answer in sock.dump(message(_RTM_GETNEIGH, 0, _NEIGHBOUR.pack(family, 0, 0, 0, 0))):
        _, ifindex, state, _, _ = _NEIGHBOUR.unpack_from(answer.body)
        known = attributes(answer.body, _NEIGHBOUR.size)
        if state & _NUD_VALID and _NDA_LLADDR in known:
            found.append(NeighbourRow(ifindex, known.get(_NDA_DST, b""), known[_NDA_LLADDR].hex(":")))
    return found


def delete_neighbour(index: int, neighbour: Address) -> bytes:
    """Forget where an address is on an interface's network."""
    return message(
        RTM_DELNEIGH, 0, struct.pack("=BxxxiHBB", _family(neighbour.version), index, 0, 0, 0) + attribute(_NDA_DST, neighbour.packed)
    )


# --- routes and rules ----------------------------------------------------------------------------------------------------------------


def _route(
    message_type: int,
    version: int,
    *,
    destination: Network | None,
    gateway: Address | None,
    index: int = 0,
    table: int = TABLE_MAIN,
    metric: int = 0,
    kind: str = "unicast",
) -> bytes:
    """A route with our protocol mark; `destination` None is the default route, in the local table it is a `local` route. One of a kind
    that ends has neither gateway nor index."""
    family = _family(version)
    scope = _SCOPE_LINK if gateway is None and version == 4 and kind == "unicast" else _SCOPE_UNIVERSE
    route_type = ROUTE_KINDS[kind]
    flags = CREATE if message_type == RTM_NEWROUTE else 0
    attrs = b""
    if table == TABLE_LOCAL:
        scope, route_type = (_SCOPE_UNIVERSE if family == socket.AF_INET6 else _SCOPE_HOST), RTN_LOCAL
        # Several local routes may differ by interface only (::1 on each bridge); elsewhere that would hide a mistake.
        flags = NLM_F_CREATE | NLM_F_APPEND if flags else 0
    if destination is not None:
        attrs += attribute(_RTA_DST, destination.network_address.packed)
    if gateway is not None:
        attrs += attribute(_RTA_GATEWAY, gateway.packed)
    if index:
        attrs += u32(_RTA_OIF, index)
    attrs += u32(_RTA_TABLE, table)
    if metric:
        attrs += u32(_RTA_PRIORITY, metric)
    length = destination.prefixlen if destination is not None else 0
    # Tables past 255 travel in the attribute; the old field then says "unspecified".
    old_table = table if table < 256 else 0
    return message(message_type, flags, _ROUTE.pack(family, length, 0, 0, old_table, RTPROT_ATOLL, scope, route_type, 0) + attrs)


add_route = partial(_route, RTM_NEWROUTE)
delete_route = partial(_route, RTM_DELROUTE)


def get_route(to: Address) -> bytes:
    """Asks which route a packet to this address would take."""
    return message(
        RTM_GETROUTE, 0, _ROUTE.pack(_family(to.version), to.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, to.packed)
    )


def parse_route(body: bytes) -> RouteRow:
    if len(body) < _ROUTE.size:
        raise ValueError("route message cut short")
    family, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    found = attributes(body, _ROUTE.size)
    destination: Network | None = None
    if _RTA_DST in found:
        destination = ipaddress.ip_network((_unpack(family, found[_RTA_DST]), length), strict=False)
    gateway = _unpack(family, found[_RTA_GATEWAY]) if _RTA_GATEWAY in found else None
    return RouteRow(
        destination=destination,
        gateway=gateway,
        ifindex=number(found.get(_RTA_OIF, b"")),
        table=number(found.get(_RTA_TABLE, b"")) or table,
        protocol=protocol,
        metric=number(found.get(_RTA_PRIORITY, b"")),
        kind=kind,
        family=family,
    )


def routes(sock: Socket) -> Iterator[RouteRow]:
    """All IPv4 and IPv6 routes of all tables."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for answer in sock.dump(message(RTM_GETROUTE, 0, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))):
            if answer.type == RTM_NEWROUTE:
                yield parse_route(answer.body)


def _rule(kind: int, flags: int, source: Network, table: int, priority: int) -> bytes:
    attrs = attribute(_FRA_SRC, source.network_address.packed) + u32(_FRA_PRIORITY, priority) + u32(_FRA_TABLE, table)
    attrs += attribute(_FRA_PROTOCOL, bytes([RTPROT_ATOLL]))
    body = _ROUTE.pack(_family(source.version), 0, source.prefixlen, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0)
    return message(kind, flags, body + attrs)


def add_rule(source: Network, *, table: int, priority: int) -> bytes:
    """`ip rule add from SOURCE lookup TABLE pref PRIORITY`."""
    return _rule(RTM_NEWRULE, CREATE, source, table, priority)


def delete_rule(source: Network, *, table: int, priority: int) -> bytes:
    return _rule(RTM_DELRULE, 0, source, table, priority)


def parse_rule(body: bytes) -> RuleRow:
    if len(body) < _ROUTE.size:
        raise ValueError("rule message cut short")
    family, _, length, _, table, _, _, _, _ = _ROUTE.unpack_from(body)
    found = attributes(body, _ROUTE.size)
    source: Network | None = None
    if _FRA_SRC in found:
        source = ipaddress.ip_network((_unpack(family, found[_FRA_SRC]), length), strict=False)
    return RuleRow(
        source=source,
        table=number(found.get(_FRA_TABLE, b"")) or table,
        priority=number(found.get(_FRA_PRIORITY, b"")),
        protocol=number(found.get(_FRA_PROTOCOL, b"")),
        family=family,
    )


def rules(sock: Socket) -> Iterator[RuleRow]:
    for family in (socket.AF_INET, socket.AF_INET6):
        for answer in sock.dump(message(RTM_GETRULE, 0, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))):
            if answer.type == RTM_NEWRULE:
                yield parse_rule(answer.body)


# --- namespaces ----------------------------------------------------------------------------------------------------------------------


def namespace_id(sock: Socket, fd: int) -> int:
    """The id by which the socket's namespace knows another (made when a veth pair joins them); -1 when it knows none."""
    answer = sock.ask(message(RTM_GETNSID, 0, struct.pack("=Bxxx", socket.AF_UNSPEC) + u32(_NETNSA_FD, fd)))
    for kind, payload in attribute_list(answer.body, 4):
        if kind == _NETNSA_NSID and len(payload) == 4:
            return int(struct.unpack("=i", payload)[0])
    return -1


def parse_event(event: Message) -> Link | AddressRow | RouteRow | RuleRow | None:
    """What an event speaks of; None for kinds that nobody here asks about."""
    if event.type in (RTM_NEWLINK, RTM_DELLINK):
        return parse_link(event.body)
    if event.type in (RTM_NEWADDR, RTM_DELADDR):
        return parse_address(event.body)
    if event.type in (RTM_NEWROUTE, RTM_DELROUTE):
        return parse_route(event.body)
    if event.type in (RTM_NEWRULE, RTM_DELRULE):
        return parse_rule(event.body)
    return None
