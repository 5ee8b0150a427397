"""Our netlink against pyroute2's, which shares no line with it: it reads what we send, we read what it makes, and both read the kernel."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
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
from atoll.firewall.elements import Element, Value, change, encode, statement
from atoll.firewall.skeleton import RESET, SETS, SKELETON, TABLE, Field
from atoll.kernel import netlink, nft, rtnl, tc
from atoll.kernel.host import Host, interface_index
from atoll.plan.operations import NftScript
from tests.kernel.kernel_state import Shell

if TYPE_CHECKING:
    from collections.abc import Iterator

AF_INET, AF_INET6 = socket.AF_INET, socket.AF_INET6
ADDRESSES = {"IFA_LOCAL", "IFA_ADDRESS", "RTA_DST", "RTA_GATEWAY", "FRA_SRC", "NDA_DST"}
REPLACE = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
EXISTS_NOT = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL

macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
names = st.from_regex(r"[a-z0-9_.-]{1,15}", fullmatch=True)
indexes = st.integers(1, 2**31 - 1)
numbers = st.integers(1, 2**32 - 1)
mtus = st.integers(68, 65535)
interfaces = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map(ipaddress.IPv4Interface),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 128)).map(ipaddress.IPv6Interface),
)


def family(value: Any) -> int:
    return AF_INET if value.version == 4 else AF_INET6


# --- what we send --------------------------------------------------------------------------------------------------------------------


def read_by_pyroute2(request: bytes) -> dict[str, Any]:
    """The one message that we made: header fields and attributes by name; header fields that are zero are left out."""
    (message,) = MarshalRtnl().parse(request)
    header = message["header"]
    assert header["length"] == len(request)
    assert header["flags"] & netlink.NLM_F_REQUEST
    fields = {name: value for name, value in message.items() if name not in ("header", "state") and isinstance(value, int | str) and value}
    return {"send": header["flags"] & ~netlink.NLM_F_REQUEST, **fields, **attributes(message)}


def attributes(message: Any) -> dict[str, Any]:
    """Attributes by name, addresses as values, nested attributes as dictionaries; those that pyroute2 doesn't know are left out."""
    found: dict[str, Any] = {}
    for name, value, *_ in message["attrs"]:
        if isinstance(value, dict) and "attrs" in value:
            found[name] = attributes(value)
        elif name != "UNKNOWN":
            found[name] = ipaddress.ip_address(value) if name in ADDRESSES else value
    return found


@given(names, macs)
def test_making_a_bridge(name: str, mac: str) -> None:
    assert read_by_pyroute2(rtnl.add_bridge(name, mac=mac)) == {
        "event": "RTM_NEWLINK",
        "send": EXISTS_NOT,
        "IFLA_IFNAME": name,
        "IFLA_ADDRESS": mac,
        "IFLA_LINKINFO": {"IFLA_INFO_KIND": "bridge", "IFLA_INFO_DATA": {"IFLA_BR_MCAST_SNOOPING": 0}},
    }


@given(names, names, st.none() | st.integers(0, 1000), st.just("") | macs, mtus, st.integers(0, 2**31 - 1), st.booleans())
def test_making_a_veth_pair(name: str, peer: str, fd: int | None, mac: str, mtu: int, master: int, up: bool) -> None:
    found = read_by_pyroute2(rtnl.add_veth(name, peer=peer, peer_netns=fd, peer_mac=mac, mtu=mtu, master=master, up=up))
    far = found["IFLA_LINKINFO"]["IFLA_INFO_DATA"]["VETH_INFO_PEER"]
    assert far == {
        "IFLA_IFNAME": peer,
        "IFLA_MTU": mtu,
        **({"IFLA_ADDRESS": mac} if mac else {}),
        **({"IFLA_NET_NS_FD": fd} if fd is not None else {}),
    }
    assert found == {
        "event": "RTM_NEWLINK",
        "send": EXISTS_NOT,
        "IFLA_IFNAME": name,
        "IFLA_MTU": mtu,
        **({"IFLA_MASTER": master} if master else {}),
        **({"flags": rtnl.IFF_UP, "change": rtnl.IFF_UP} if up else {}),
        "IFLA_LINKINFO": {"IFLA_INFO_KIND": "veth", "IFLA_INFO_DATA": {"VETH_INFO_PEER": far}},
    }


@given(names, indexes, st.integers(0, 1000), macs, mtus, st.sampled_from(sorted(rtnl.MACVLAN_MODES)))
def test_making_a_macvlan(name: str, parent: int, fd: int, mac: str, mtu: int, mode: str) -> None:
    assert read_by_pyroute2(rtnl.add_macvlan(name, parent=parent, netns=fd, mac=mac, mtu=mtu, mode=mode)) == {
        "event": "RTM_NEWLINK",
        "send": EXISTS_NOT,
        "IFLA_LINK": parent,
        "IFLA_IFNAME": name,
        "IFLA_MTU": mtu,
        "IFLA_ADDRESS": mac,
        "IFLA_NET_NS_FD": fd,
        "IFLA_LINKINFO": {"IFLA_INFO_KIND": "macvlan", "IFLA_INFO_DATA": {"IFLA_MACVLAN_MODE": mode}},
    }


@given(names, indexes, st.integers(0, 1000), mtus, st.sampled_from(sorted(rtnl.IPVLAN_MODES)), st.sampled_from(sorted(rtnl.IPVLAN_FLAGS)))
def test_making_an_ipvlan(name: str, parent: int, fd: int, mtu: int, mode: str, flag: str) -> None:
    found = read_by_pyroute2(rtnl.add_ipvlan(name, parent=parent, netns=fd, mtu=mtu, mode=mode, flag=flag))
    assert found.pop("IFLA_LINKINFO") == {"IFLA_INFO_KIND": "ipvlan", "IFLA_INFO_DATA": {"IFLA_IPVLAN_MODE": rtnl.IPVLAN_MODES[mode]}}
    assert found == {
        "event": "RTM_NEWLINK",
        "send": EXISTS_NOT,
        "IFLA_LINK": parent,
        "IFLA_IFNAME": name,
        "IFLA_MTU": mtu,
        "IFLA_NET_NS_FD": fd,
    }


@given(names, indexes, st.integers(1, 4094))
def test_making_a_vlan(name: str, base: int, number: int) -> None:
    assert read_by_pyroute2(rtnl.add_vlan(name, base=base, number=number)) == {
        "event": "RTM_NEWLINK",
        "send": EXISTS_NOT,
        "IFLA_LINK": base,
        "IFLA_IFNAME": name,
        "IFLA_LINKINFO": {"IFLA_INFO_KIND": "vlan", "IFLA_INFO_DATA": {"IFLA_VLAN_ID": number}},
    }


@given(indexes, st.ip_addresses())
def test_forgetting_a_neighbour(index: int, neighbour: rtnl.Address) -> None:
    assert read_by_pyroute2(rtnl.delete_neighbour(index, neighbour)) == {
        "event": "RTM_DELNEIGH",
        "send": 0,
        "family": family(neighbour),
        "ifindex": index,
        "NDA_DST": neighbour,
    }


@given(names, names, mtus)
def test_making_an_ifb_naming_a_link_and_deleting_it(name: str, alias: str, mtu: int) -> None:
    assert read_by_pyroute2(rtnl.add_ifb(name)) == {
        "event": "RTM_NEWLINK",
        "send": EXISTS_NOT,
        "flags": rtnl.IFF_UP,
        "change": rtnl.IFF_UP,
        "IFLA_IFNAME": name,
        "IFLA_LINKINFO": {"IFLA_INFO_KIND": "ifb"},
    }
    assert read_by_pyroute2(rtnl.add_ifb(name, mtu=mtu, up=False)) == {
        "event": "RTM_NEWLINK",
        "send": EXISTS_NOT,
        "IFLA_IFNAME": name,
        "IFLA_MTU": mtu,
        "IFLA_LINKINFO": {"IFLA_INFO_KIND": "ifb"},
    }
    found = {"event": "RTM_NEWLINK", "send": 0, "IFLA_IFNAME": name, "IFLA_IFALIAS": alias}
    assert read_by_pyroute2(rtnl.set_alias(name, alias)) == found
    assert read_by_pyroute2(rtnl.set_alias(name, alias, mtu=mtu)) == found | {"IFLA_MTU": mtu}
    assert read_by_pyroute2(rtnl.delete_link(name)) == {"event": "RTM_DELLINK", "send": 0, "IFLA_IFNAME": name}


@given(names, numbers)
def test_deleting_a_group_of_links(name: str, group: int) -> None:
    found = {"event": "RTM_NEWLINK", "send": 0, "IFLA_IFNAME": name, "IFLA_GROUP": group}
    assert read_by_pyroute2(rtnl.set_group(name, group)) == found
    assert read_by_pyroute2(rtnl.delete_group(group)) == {"event": "RTM_DELLINK", "send": 0, "IFLA_GROUP": group}


@given(
    indexes, st.none() | st.booleans(), st.just(0) | mtus, st.just("") | macs, st.just("") | names, st.none() | st.integers(0, 2**31 - 1)
)
def test_changing_a_link(index: int, up: bool | None, mtu: int, mac: str, alias: str, master: int | None) -> None:
    assert read_by_pyroute2(rtnl.set_link(index, up=up, mtu=mtu, mac=mac, alias=alias, master=master)) == {
        "event": "RTM_NEWLINK",
        "send": 0,
        "index": index,
        **({"flags": rtnl.IFF_UP} if up else {}),
        **({"change": rtnl.IFF_UP} if up is not None else {}),
        **({"IFLA_MTU": mtu} if mtu else {}),
        **({"IFLA_ADDRESS": mac} if mac else {}),
        **({"IFLA_IFALIAS": alias} if alias else {}),
        **({"IFLA_MASTER": master} if master is not None else {}),
    }


@given(indexes, st.booleans())
def test_isolating_a_port(index: int, isolated: bool) -> None:
    found = read_by_pyroute2(rtnl.set_isolated(index, isolated))
    slave = {"IFLA_INFO_SLAVE_KIND": "bridge", "IFLA_INFO_SLAVE_DATA": {"IFLA_BRPORT_ISOLATED": int(isolated)}}
    assert found == {"event": "RTM_NEWLINK", "send": 0, "index": index, "IFLA_LINKINFO": slave}


@given(indexes, interfaces)
def test_adding_and_deleting_an_address(index: int, interface: Any) -> None:
    nodad = {"flags": 2, "IFA_FLAGS": 2} if interface.version == 6 else {}
    prefix = {"prefixlen": interface.network.prefixlen} if interface.network.prefixlen else {}
    address = {"family": family(interface), **prefix, "index": index, "IFA_LOCAL": interface.ip, "IFA_ADDRESS": interface.ip}
    assert read_by_pyroute2(rtnl.add_address(index, interface)) == {"event": "RTM_NEWADDR", "send": EXISTS_NOT, **address, **nodad}
    assert read_by_pyroute2(rtnl.delete_address(index, interface)) == {"event": "RTM_DELADDR", "send": 0, **address, **nodad}


@given(
    indexes, interfaces, st.booleans(), st.booleans(), st.sampled_from([rtnl.TABLE_MAIN, rtnl.TABLE_LOCAL]) | numbers, st.just(0) | numbers
)
def test_adding_and_deleting_a_route(index: int, way: Any, default: bool, direct: bool, table: int, metric: int) -> None:
    destination, gateway = None if default else way.network, None if direct else way.ip
    arguments: dict[str, Any] = {"destination": destination, "gateway": gateway, "index": index, "table": table, "metric": metric}
    local = table == rtnl.TABLE_LOCAL
    route = {
        "family": family(way),
        "proto": rtnl.RTPROT_ATOLL,
        "type": 2 if local else 1,
        "RTA_OIF": index,
        "RTA_TABLE": table,
        **({"table": table} if table < 256 else {}),
        **({"RTA_PRIORITY": metric} if metric else {}),
        **({"RTA_DST": way.network.network_address} if not default else {}),
        **({"dst_len": way.network.prefixlen} if not default and way.network.prefixlen else {}),
        **({"RTA_GATEWAY": way.ip} if not direct else {}),
    }
    # IPv6 has no scopes; for IPv4 a neighbour's is "link" and one's own is "host", as iproute2 has it.
    scope = 254 if local else 253 if direct else 0
    scopes = {"scope": scope} if way.version == 4 and scope else {}
    how = netlink.NLM_F_CREATE | netlink.NLM_F_APPEND if local else EXISTS_NOT
    assert read_by_pyroute2(rtnl.add_route(way.version, **arguments)) == {"event": "RTM_NEWROUTE", "send": how, **route, **scopes}
    assert read_by_pyroute2(rtnl.delete_route(way.version, **arguments)) == {"event": "RTM_DELROUTE", "send": 0, **route, **scopes}


@given(interfaces, numbers, numbers)
def test_adding_and_deleting_a_rule(way: Any, table: int, priority: int) -> None:
    rule = {
        "family": family(way),
        **({"src_len": way.network.prefixlen} if way.network.prefixlen else {}),
        "action": 1,
        "FRA_SRC": way.network.network_address,
        "FRA_TABLE": table,
        "FRA_PRIORITY": priority,
        "FRA_PROTOCOL": rtnl.RTPROT_ATOLL,
    }
    assert read_by_pyroute2(rtnl.add_rule(way.network, table=table, priority=priority)) == {
        "event": "RTM_NEWRULE",
        "send": EXISTS_NOT,
        **rule,
    }
    assert read_by_pyroute2(rtnl.delete_rule(way.network, table=table, priority=priority)) == {"event": "RTM_DELRULE", "send": 0, **rule}


@given(indexes, st.integers(8_000, 400 * 10**9))
def test_limiting_a_rate(index: int, rate: int) -> None:
    found = read_by_pyroute2(tc.add_tbf(index, rate))
    parms = found.pop("TCA_OPTIONS")["TCA_TBF_PARMS"]
    assert found == {"event": "RTM_NEWQDISC", "send": REPLACE, "index": index, "parent": 2**32 - 1, "TCA_KIND": "tbf"}
    assert (parms["rate"], parms["limit"]) == (min(rate // 8, 2**32 - 1), tc.tbf_limit(rate))
    # The bucket in ticks of 64 ns.
    assert parms["buffer"] == pytest.approx(tc.tbf_burst(rate) / (rate // 8) * 1e9 / 64, rel=1e-3)


@given(indexes, indexes)
def test_redirecting_what_arrives(index: int, target: int) -> None:
    queue = {"send": REPLACE, "index": index, "handle": 0xFFFF0000, "parent": 0xFFFFFFF1, "TCA_KIND": "ingress"}
    assert read_by_pyroute2(tc.add_ingress(index)) == {"event": "RTM_NEWQDISC", **queue}
    found = read_by_pyroute2(tc.add_redirect(index, target))
    assert (found["event"], found["index"], found["parent"], found["TCA_KIND"]) == ("RTM_NEWTFILTER", index, 0xFFFF0000, "u32")
    assert (found["send"], found["handle"]) == (REPLACE, 0x80000800)
    assert found["info"] == 1 << 16 | socket.htons(3)  # priority 1, every protocol
    (key,) = found["TCA_OPTIONS"]["TCA_U32_SEL"]["keys"]
    assert key["key_mask"] == 0
    action = found["TCA_OPTIONS"]["TCA_U32_ACT"]["TCA_ACT_PRIO_1"]
    assert action["TCA_ACT_KIND"] == "mirred"
    redirect = action["TCA_ACT_OPTIONS"]["TCA_MIRRED_PARMS"]
    assert (redirect["eaction"], redirect["action"], redirect["ifindex"]) == (1, 4, target)


# --- what we read --------------------------------------------------------------------------------------------------------------------


def made_by_pyroute2(kind: type[Any], fields: dict[str, int], attrs: list[tuple[str, Any]]) -> bytes:
    """The body of a message."""
    message = kind()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attrs
    message.encode()
    (made,) = netlink.messages(bytes(message.data))
    return made.body


@given(
    indexes, names, macs, mtus, st.integers(0, 2**31 - 1), st.booleans(), st.sampled_from(["veth", "bridge", "ifb"]), st.booleans(), names
)
def test_reading_a_link(index: int, name: str, mac: str, mtu: int, master: int, up: bool, kind: str, isolated: bool, alias: str) -> None:
    port = [["IFLA_INFO_SLAVE_KIND", "bridge"], ["IFLA_INFO_SLAVE_DATA", {"attrs": [["IFLA_BRPORT_ISOLATED", int(isolated)]]}]]
    attrs: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", mac),
        ("IFLA_MTU", mtu),
        ("IFLA_MASTER", master),
        ("IFLA_LINK", 7),
        ("IFLA_IFALIAS", alias),
        ("IFLA_LINKINFO", {"attrs": [["IFLA_INFO_KIND", kind], *port]}),
    ]
    body = made_by_pyroute2(ifinfmsg, {"index": index, "flags": int(up), "change": 0}, attrs)
    assert rtnl.parse_link(body) == rtnl.Link(index, name, kind, up, mtu, mac, master, 7, alias, isolated)


@given(indexes, interfaces, st.booleans())
def test_reading_an_address(index: int, interface: Any, with_peer: bool) -> None:
    # On a point-to-point link the own address is in IFA_LOCAL and the other end's in IFA_ADDRESS; IPv6 alone has no IFA_LOCAL.
    own, other = str(interface.ip), str(type(interface.ip)(1))
    attrs = [("IFA_LOCAL", own), ("IFA_ADDRESS", other)] if with_peer else [("IFA_ADDRESS", own)]
    fields = {"family": family(interface), "prefixlen": interface.network.prefixlen, "index": index}
    assert rtnl.parse_address(made_by_pyroute2(ifaddrmsg, fields, attrs)) == rtnl.AddressRow(index, interface)


@given(indexes, interfaces, st.booleans(), st.booleans(), numbers, st.just(0) | numbers)
def test_reading_a_route(index: int, way: Any, default: bool, direct: bool, table: int, metric: int) -> None:
    attrs: list[tuple[str, Any]] = [("RTA_TABLE", table), ("RTA_OIF", index), ("RTA_PRIORITY", metric)]
    attrs += [] if default else [("RTA_DST", str(way.network.network_address))]
    attrs += [] if direct else [("RTA_GATEWAY", str(way.ip))]
    length = 0 if default else way.network.prefixlen
    fields = {"family": family(way), "dst_len": length, "table": 0, "proto": 167, "type": 1}
    destination, gateway = None if default else way.network, None if direct else way.ip
    expected = rtnl.RouteRow(destination, gateway, index, table, 167, metric, 1, family(way))
    assert rtnl.parse_route(made_by_pyroute2(rtmsg, fields, attrs)) == expected


@given(interfaces, st.booleans(), numbers, numbers)
def test_reading_a_rule(way: Any, everything: bool, table: int, priority: int) -> None:
    attrs: list[tuple[str, Any]] = [("FRA_TABLE", table), ("FRA_PRIORITY", priority), ("FRA_PROTOCOL", 2)]
    attrs += [] if everything else [("FRA_SRC", str(way.network.network_address))]
    fields = {"family": family(way), "src_len": 0 if everything else way.network.prefixlen, "table": 0, "action": 1}
    expected = rtnl.RuleRow(None if everything else way.network, table, priority, 2, family(way))
    assert rtnl.parse_rule(made_by_pyroute2(fibmsg, fields, attrs)) == expected


# --- what the kernel says ------------------------------------------------------------------------------------------------------------

#: A host with something of everything.
VARIETY = """
ip link add br0 mtu 1450 address 02:00:00:00:00:01 type bridge
ip link set br0 up alias 'a bridge with a long alias, ü and all'
ip link add veth0 master br0 up type veth peer name veth1
ip link set veth0 type bridge_slave isolated on
ip link add ifb9 type ifb
ip link add mac0 link ifb9 type macvlan mode private
ip link set ifb9 up
ip link set mac0 up
ip link add vx0 type vxlan id 7 dstport 4789 local 127.0.0.1
ip tuntap add tun0 mode tun
ip link set tun0 up
ip address add 10.0.0.1/24 dev br0
ip address add 10.0.0.2/24 dev br0 label br0:second
ip address add 10.9.0.1 peer 10.9.0.2/30 dev tun0
ip address add fd00::1/64 dev br0 nodad
ip address add fd09::1 peer fd09::2/127 dev tun0 nodad
ip route add default via 10.0.0.254
ip route add default via 10.0.0.253 metric 500
ip route add 10.1.0.0/16 dev br0 table 1000 proto 167 scope link
ip route add 10.2.0.0/16 nexthop via 10.0.0.3 weight 1 nexthop via 10.0.0.4 weight 2
ip route add 10.3.0.0/16 via inet6 fd00::9 dev br0
ip route add blackhole 10.4.0.0/16
ip route add unreachable 10.5.0.0/16 table 4000000000
ip -6 route add default via fd00::254 dev br0 metric 7
ip -6 route add fd01::/48 via fd00::3 dev br0 table 1001 proto 167
ip -6 route add prohibit fd02::/48
ip rule add from 10.1.0.0/16 table 1000 priority 1000 protocol 167
ip rule add to 10.2.0.1 fwmark 0x7 lookup 4000000000 priority 5
ip rule add iif br0 blackhole priority 6
ip rule add from all goto 1000 priority 7
ip -6 rule add from fd01::/48 table 1001 priority 1001
"""


@pytest.fixture
def oracle(host: None) -> Iterator[IPRoute]:
    Shell().run(VARIETY)
    with IPRoute() as opened:
        yield opened


def of(message: Any, name: str, default: Any = None) -> Any:
    return message.get_attr(name) if message.get_attr(name) is not None else default


def link_of(message: Any) -> rtnl.Link:
    info = of(message, "IFLA_LINKINFO")
    slave = of(info, "IFLA_INFO_SLAVE_DATA") if info else None
    return rtnl.Link(
        ifindex=message["index"],
        name=of(message, "IFLA_IFNAME"),
        kind=of(info, "IFLA_INFO_KIND", "") if info else "",
        up=bool(message["flags"] & 1),
        mtu=of(message, "IFLA_MTU"),
        mac=of(message, "IFLA_ADDRESS", ""),
        master=of(message, "IFLA_MASTER", 0),
        link=of(message, "IFLA_LINK", 0),
        alias=of(message, "IFLA_IFALIAS", ""),
        isolated=bool(slave and of(slave, "IFLA_BRPORT_ISOLATED", 0)),
        promisc=bool(message["flags"] & 0x100),
        allmulti=bool(message["flags"] & 0x200),
        queue=of(message, "IFLA_TXQLEN", 0),
    )


def address_of(message: Any) -> rtnl.AddressRow:
    text = of(message, "IFA_LOCAL") or of(message, "IFA_ADDRESS")
    return rtnl.AddressRow(message["index"], ipaddress.ip_interface(f"{text}/{message['prefixlen']}"))


def route_of(message: Any) -> rtnl.RouteRow:
    destination, gateway = of(message, "RTA_DST"), of(message, "RTA_GATEWAY")
    return rtnl.RouteRow(
        destination=ipaddress.ip_network(f"{destination}/{message['dst_len']}") if destination else None,
        gateway=ipaddress.ip_address(gateway) if gateway else None,
        ifindex=of(message, "RTA_OIF", 0),
        table=of(message, "RTA_TABLE"),
        protocol=message["proto"],
        metric=of(message, "RTA_PRIORITY", 0),
        kind=message["type"],
        family=message["family"],
    )


def rule_of(message: Any) -> rtnl.RuleRow:
    source = of(message, "FRA_SRC")
    return rtnl.RuleRow(
        source=ipaddress.ip_network(f"{source}/{message['src_len']}") if source else None,
        table=of(message, "FRA_TABLE", 0),
        priority=of(message, "FRA_PRIORITY", 0),
        protocol=of(message, "FRA_PROTOCOL", 0),
        family=message["family"],
    )


def test_both_read_the_same_from_the_kernel(oracle: IPRoute) -> None:
    with netlink.Socket() as sock:
        links = rtnl.links(sock)
        assert links == [link_of(message) for message in oracle.get_links()]
        assert {link.kind for link in links} >= {"bridge", "veth", "ifb", "macvlan", "vxlan", "tun"}
        assert [link.name for link in links if link.isolated] == ["veth0"]
        assert "ü" in next(link.alias for link in links if link.name == "br0")
        assert {link.name: link.ifindex for link in links} == {link.name: interface_index(sock, link.name) for link in links}

        addresses = rtnl.addresses(sock)
        assert addresses == [address_of(message) for message in oracle.get_addr()]
        assert {"10.9.0.1/30", "fd09::1/127", "127.0.0.1/8"} <= {str(row.interface) for row in addresses}

        routes = list(rtnl.routes(sock))
        assert routes == [route_of(message) for version in (AF_INET, AF_INET6) for message in oracle.get_routes(family=version)]
        assert {row.table for row in routes} >= {254, 255, 1000, 1001, 4_000_000_000}

        rules = list(rtnl.rules(sock))
        assert rules == [rule_of(message) for version in (AF_INET, AF_INET6) for message in oracle.get_rules(family=version)]
        assert len(rules) == 3 + 2 + 5


def test_both_read_the_same_from_events(host: None) -> None:
    groups = (
        rtnl.GROUP_LINK,
        rtnl.GROUP_IPV4_ADDRESS,
        rtnl.GROUP_IPV6_ADDRESS,
        rtnl.GROUP_IPV4_ROUTE,
        rtnl.GROUP_IPV6_ROUTE,
        rtnl.GROUP_IPV4_RULE,
        rtnl.GROUP_IPV6_RULE,
        rtnl.GROUP_TC,
    )
    readers = {rtnl.Link: link_of, rtnl.AddressRow: address_of, rtnl.RouteRow: route_of, rtnl.RuleRow: rule_of}
    seen: set[type[object]] = set()
    with netlink.Socket(groups=groups) as sock:
        Shell().run(VARIETY + "tc qdisc add dev br0 root tbf rate 1mbit burst 10kb latency 50ms\nip rule del priority 5\nip link del br0")
        for event in sock.events():
            ours = rtnl.parse_event(event)
            (theirs,) = MarshalRtnl().parse(netlink.message(event.type, event.flags, event.body))
            if ours is None:
                assert theirs["event"] in ("RTM_NEWQDISC", "RTM_DELQDISC")
            elif event.body[0] != 7:  # a bridge's view of its port has other attributes
                assert ours == readers[type(ours)](theirs)
            seen.add(type(ours))
    assert seen == {*readers, type(None)}


def test_a_refusal_carries_the_kernels_number_and_words(host: None) -> None:
    with netlink.Socket() as sock:
        gateway = ipaddress.ip_address("192.0.2.1")
        with pytest.raises(netlink.NetlinkError, match=r"Nexthop has invalid gateway.*unreachable") as caught:
            sock.execute(rtnl.set_alias("lo", "x"), rtnl.add_route(4, destination=None, gateway=gateway, index=1))
        assert (caught.value.errno, caught.value.index) == (101, 1)
        with pytest.raises(netlink.NetlinkError, match="No such device"):
            sock.execute(rtnl.delete_link("nothere"))
        # All refusals of one datagram, each with its place; what is between them is done.
        refused = sock.request(rtnl.delete_link("a"), rtnl.set_alias("lo", "y"), rtnl.delete_link("b"))
        assert [(error.errno, error.index) for error in refused] == [(19, 0), (19, 2)]
        assert rtnl.links(sock)[0].alias == "y"
        with pytest.raises(NotFound):
            interface_index(sock, "nothere")


# --- set elements --------------------------------------------------------------------------------------------------------------------

interface_names = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,14}", fullmatch=True)
FIELDS: dict[Field, st.SearchStrategy[Value]] = {
    "ifname": interface_names,
    "way": interface_names,
    "ether": macs,
    "ipv4": st.ip_addresses(v=4).map(str),
    "ipv6": st.ip_addresses(v=6).map(str),
    "raw6": st.ip_addresses(v=6).map(str),
    "proto": st.sampled_from(["tcp", "udp", "sctp"]),
    "port": st.integers(1, 65535),
}
ranges = st.tuples(st.integers(1, 65534), st.integers(1, 65535)).map(lambda pair: (pair[0], min(65535, pair[0] + pair[1])))


def elements_of(name: str) -> st.SearchStrategy[Element]:
    spec = SETS[name]
    key = [ranges if spec.interval and field == "port" else FIELDS[field] for field in spec.key]
    return st.builds(Element, st.just(name), st.tuples(*key), st.tuples(*(FIELDS[field] for field in spec.data)))


@pytest.mark.parametrize("name", SETS)
def test_an_element_is_encoded_as_the_kernel_holds_it(host: None, name: str) -> None:
    spec = SETS[name]
    kind = "map" if spec.data else "set"
    # Ranges that overlap are refused, so of those there is one at a time.
    lists = st.lists(elements_of(name), min_size=1, max_size=1 if spec.interval else 20, unique_by=lambda element: element.key)

    def held() -> list[nft.Element]:
        return sorted(nft.elements(kernel.nfnl, spec.family, TABLE, name))

    def listed() -> Any:
        (row,) = (row for row in json.loads(Shell().run(f"nft -j list {kind} {spec.family} {TABLE} {name}"))["nftables"] if kind in row)
        return sorted(row[kind].get("elem", []), key=json.dumps)

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(lists)
    def check(elements: list[Element]) -> None:
        # By text, and read as bytes.
        kernel.nft.apply(f"flush {kind} {spec.family} {TABLE} {name}\n" + statement("add", elements))
        assert held() == sorted(map(encode, elements))
        as_text = listed()
        # By bytes, and read as text; the same to take them away.
        for verb, expected in (("delete", []), ("add", as_text)):
            (script,) = change(verb, elements)
            assert isinstance(script, NftScript)
            nft.change_elements(kernel.nfnl, script.verb, script.changes)
            assert listed() == expected
        kernel.nft.apply(statement("delete", elements))
        assert held() == []

    with contextlib.closing(Host()) as kernel:
        kernel.nft.apply(RESET + SKELETON)
        check()


def test_elements_are_changed_all_or_none(host: None) -> None:
    with contextlib.closing(Host()) as kernel:
        kernel.nft.apply(RESET + SKELETON)
        many = [Element("ours", (f"br{number}",)) for number in range(1000)]
        stranger = Element("ours", ("nothere",))
        for verb, elements, left in (("add", many, 1000), ("delete", [*many, stranger], 1000), ("delete", many, 0), ("add", many[:1], 1)):
            (script,) = change(verb, elements)
            assert isinstance(script, NftScript)
            refused = pytest.raises(netlink.NetlinkError, match="No such file") if stranger in elements else contextlib.nullcontext()
            with refused:
                nft.change_elements(kernel.nfnl, script.verb, script.changes)
            assert len(list(nft.elements(kernel.nfnl, "inet", TABLE, "ours"))) == left
