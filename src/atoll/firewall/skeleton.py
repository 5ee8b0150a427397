"""The fixed part of the ruleset: two tables, the same on every host, whatever networks it has.

Nothing in here is ever edited. A network, an endpoint and a published range are elements of the sets and maps below, so what a packet
passes is the same few lookups with ten endpoints or ten thousand.

Reading order: `published` says where a published port leads, `forward` who may reach whom, `postrouting` whose source is rewritten, and
the bridge table which frames an endpoint may send at all. Interfaces are always named (`iifname`), because they come and go.

Every network's packets that leave or enter it pass one kernel bridge, the one with the gateway addresses; the further bridges of a
large network hang behind it.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Field = Literal["ifname", "way", "ether", "ipv4", "ipv6", "raw6", "proto", "port"]

TABLE: Final = "atoll"


class SetSpec(NamedTuple):
    """A set, or a map when `data` is not empty, by the types of its fields. `interval` ones take port ranges as keys."""

    family: Literal["inet", "bridge"]
    key: tuple[Field, ...]
    data: tuple[Field, ...] = ()
    interval: bool = False


_NFT_TYPE: Final[dict[Field, str]] = {
    "ifname": "ifname",
    "ether": "ether_addr",
    "ipv4": "ipv4_addr",
    "ipv6": "ipv6_addr",
    "proto": "inet_proto",
    "port": "inet_service",
}

#: Fields that have no name as a type in nft 1.0.6 and are declared by what is looked up: the interface by which an address is reached,
#: and the target of an advertisement.
_NFT_TYPEOF: Final[dict[Field, str]] = {"way": "fib saddr oifname", "raw6": "@th,64,128"}
_NFT_EXPRESSION: Final[dict[Field, str]] = {"ifname": "iifname", "ether": "ether saddr", **_NFT_TYPEOF}

#: What changes. Each comment says what an element means.
SETS: Final[dict[str, SetSpec]] = {
    # a kernel bridge of ours
    "ours": SetSpec("inet", ("ifname",)),
    # endpoints are behind this bridge of ours, and so are their addresses
    "homes": SetSpec("inet", ("way",)),
    # a further bridge of a network; its packets are on their way to or from the first one
    "shards": SetSpec("inet", ("ifname",)),
    # packets may pass from the first bridge to the second: both are of one network
    "within": SetSpec("inet", ("ifname", "ifname")),
    # the network of this bridge is open to others that are in `unstrict`, and they to it
    "open": SetSpec("inet", ("ifname",)),
    # the network of this bridge is open or isolated
    "unstrict": SetSpec("inet", ("ifname",)),
    # the endpoints behind this bridge reach each other by published ports only
    "isolated": SetSpec("inet", ("ifname",)),
    # nothing passes in or out of this bridge
    "internals": SetSpec("inet", ("ifname",)),
    # endpoints behind this bridge, or this host (lo), ask for names at that address, the gateway's
    "resolvers4": SetSpec("inet", ("ifname", "ipv4")),
    "resolvers6": SetSpec("inet", ("ifname", "ipv6")),
    # what comes from this bridge leaves with the host's address
    "masqueraded": SetSpec("inet", ("ifname",)),
    # the same in one family only
    "masqueraded4": SetSpec("inet", ("ifname",)),
    "masqueraded6": SetSpec("inet", ("ifname",)),
    # what comes from this bridge leaves with that address
    "sourced4": SetSpec("inet", ("ifname",), ("ipv4",)),
    "sourced6": SetSpec("inet", ("ifname",), ("ipv6",)),
    # the outside may reach the endpoints behind this bridge by their own addresses
    "routable": SetSpec("inet", ("ifname",)),
    # the same in one family only
    "routable4": SetSpec("inet", ("ifname",)),
    "routable6": SetSpec("inet", ("ifname",)),
    # what `served4` and `served6` say holds for some who come from elsewhere to the endpoints behind this bridge
    "direct": SetSpec("inet", ("ifname",)),
    # for all: published ports are reached by the endpoints' own addresses
    "routed4": SetSpec("inet", ("ifname",)),
    "routed6": SetSpec("inet", ("ifname",)),
    # for those who come by the first interface, which isn't ours, to the endpoints behind the second
    "trusted": SetSpec("inet", ("ifname", "ifname")),
    # an endpoint's address, and the ports that it publishes
    "served4": SetSpec("inet", ("ipv4", "proto", "port"), interval=True),
    "served6": SetSpec("inet", ("ipv6", "proto", "port"), interval=True),
    # these interfaces were there before forwarding in this family was switched on for us; nothing of it passes between them
    "fenced4": SetSpec("inet", ("ifname",)),
    "fenced6": SetSpec("inet", ("ifname",)),
    # the protocols that have ports to publish; always these
    "carried": SetSpec("inet", ("proto",)),
    # a host port on every address, or on one, and where it leads
    "ports4": SetSpec("inet", ("proto", "port"), ("ipv4", "port")),
    "ports6": SetSpec("inet", ("proto", "port"), ("ipv6", "port")),
    "hostports4": SetSpec("inet", ("ipv4", "proto", "port"), ("ipv4", "port")),
    "hostports6": SetSpec("inet", ("ipv6", "proto", "port"), ("ipv6", "port")),
    # the same for ranges that keep the port: one element however long
    "ranges4": SetSpec("inet", ("proto", "port"), ("ipv4",), interval=True),
    "ranges6": SetSpec("inet", ("proto", "port"), ("ipv6",), interval=True),
    "hostranges4": SetSpec("inet", ("ipv4", "proto", "port"), ("ipv4",), interval=True),
    "hostranges6": SetSpec("inet", ("ipv6", "proto", "port"), ("ipv6",), interval=True),
    # what may come out of this port of a bridge: MAC and address together
    "senders4": SetSpec("bridge", ("ifname", "ether", "ipv4")),
    "senders6": SetSpec("bridge", ("ifname", "ether", "ipv6")),
    # the addresses that may be announced from it
    "targets6": SetSpec("bridge", ("ifname", "ether", "raw6")),
    # ports whose network has the guard off
    "unguarded": SetSpec("bridge", ("ifname",)),
}

#: Elements that are there from the beginning.
CONSTANT: Final[dict[str, tuple[str, ...]]] = {"carried": ("tcp", "udp", "sctp")}


def _declare(name: str, spec: SetSpec) -> str:
    kind = "map" if spec.data else "set"
    if not _NFT_TYPEOF.keys().isdisjoint(spec.key):
        return f"\tset {name} {{ typeof {' . '.join(_NFT_EXPRESSION[field] for field in spec.key)}; }}"
    key = " . ".join(_NFT_TYPE[field] for field in spec.key)
    data = " : " + " . ".join(_NFT_TYPE[field] for field in spec.data) if spec.data else ""
    flags = " flags interval;" if spec.interval else ""
    elements = f" elements = {{ {', '.join(CONSTANT[name])} }}" if name in CONSTANT else ""
    return f"\t{kind} {name} {{ type {key}{data};{flags}{elements} }}"


def _declarations(family: str) -> str:
    return "\n".join(_declare(name, spec) for name, spec in SETS.items() if spec.family == family)


SKELETON: Final = f"""\
table inet {TABLE} {{
{_declarations("inet")}

	chain early {{
		type filter hook prerouting priority raw; policy accept;
		iifname "lo" accept
		# A port published on 127.0.0.1 needs route_localnet on our bridges; this is why that opens nothing.
		ip daddr 127.0.0.0/8 drop
		ip saddr 127.0.0.0/8 drop
		# To a server with one socket for both families ::ffff:127.0.0.1 looks the same.
		ip6 saddr ::ffff:0.0.0.0/96 drop
		# What is sent to a link-local group (01:80:c2:00:00:0x) a bridge hands up from the port itself, past the guard below. The same
		# goes for a port that somebody took out of its bridge.
		iifname "atv*" drop
		iifname "att*" drop
		# Nobody elsewhere is an endpoint: not to a server that trusts its neighbours, nor in a connection that an endpoint has.
		iifname != @ours fib saddr oifname @homes drop
		# Where frames pass this table too (br_netfilter), a connection must be seen first where its NAT is decided.
		iifname @shards notrack
	}}

	chain published {{
		dnat ip to ip daddr . meta l4proto . th dport map @hostports4
		dnat ip to meta l4proto . th dport map @ports4
		dnat ip to ip daddr . meta l4proto . th dport map @hostranges4
		dnat ip to meta l4proto . th dport map @ranges4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @hostports6
		dnat ip6 to meta l4proto . th dport map @ports6
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @hostranges6
		dnat ip6 to meta l4proto . th dport map @ranges6
	}}

	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		# Names are asked for at the gateway, whoever publishes port 53 on every address.
		iifname . ip daddr @resolvers4 meta l4proto {{ tcp, udp }} th dport 53 accept
		iifname . ip6 daddr @resolvers6 meta l4proto {{ tcp, udp }} th dport 53 accept
		# Only what is addressed to this host: transit traffic to the same port number is not ours.
		meta l4proto @carried fib daddr type local jump published
	}}

	chain output {{
		type nat hook output priority -100; policy accept;
		oifname . ip daddr @resolvers4 meta l4proto {{ tcp, udp }} th dport 53 accept
		oifname . ip6 daddr @resolvers6 meta l4proto {{ tcp, udp }} th dport 53 accept
		meta l4proto @carried fib daddr type local jump published
	}}

	chain inside {{
		fib daddr . iif type local accept
		fib daddr . iif type broadcast accept
		fib daddr . iif type multicast accept
		drop
	}}

	chain input {{
		type filter hook input priority filter; policy accept;
		# An internal network reaches the host by its own gateway address and by no other.
		iifname @internals goto inside
	}}

	chain neighbours {{
		ct status dnat accept
		# A bridge keeps them apart by itself, but not if one of them sends by the gateway.
		iifname @isolated drop
		accept
	}}

	chain direct {{
		oifname @routed4 ip daddr . meta l4proto . th dport @served4 accept
		oifname @routed6 ip6 daddr . meta l4proto . th dport @served6 accept
		oifname @routed4 meta l4proto icmp accept
		oifname @routed6 meta l4proto ipv6-icmp accept
		iifname . oifname @trusted ip daddr . meta l4proto . th dport @served4 accept
		iifname . oifname @trusted ip6 daddr . meta l4proto . th dport @served6 accept
	}}

	chain passing {{
		iifname . oifname @within goto neighbours
		iifname @internals drop
		oifname @internals drop
		ct state established accept
		ct state invalid drop
		# What this host sends itself doesn't come this way (of IPv4 the kernel sees to that, of IPv6 it doesn't).
		fib saddr type local drop
		# Nor what comes from the endpoints of another network, were they not guarded.
		fib saddr oifname @homes fib saddr . iif oif missing drop
		# Nothing is routed by a bridge that is not a network's first, nor by one with our kind of name that no element speaks of.
		iifname @shards drop
		iifname "atb*" iifname != @ours drop
		oifname "atb*" oifname != @ours drop
		ct status dnat accept
		oifname @direct jump direct
		iifname @open oifname @unstrict accept
		iifname @unstrict oifname @open accept
		iifname @ours oifname @ours drop
		# Only here: an endpoint could answer for the far end of another network's connection by an ICMP error.
		ct state related accept
		iifname @ours accept
		oifname @routable accept
		meta nfproto ipv4 oifname @routable4 accept
		meta nfproto ipv6 oifname @routable6 accept
		drop
	}}

	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname @ours goto passing
		oifname @ours goto passing
		# An interface with our kind of name that no element speaks of.
		iifname "atb*" drop
		oifname "atb*" drop
		meta nfproto ipv4 iifname @fenced4 oifname @fenced4 drop
		meta nfproto ipv6 iifname @fenced6 oifname @fenced6 drop
	}}

	chain departing {{
		type filter hook output priority filter; policy accept;
		# A client that reaches its neighbour through a published port must not be told the short cut.
		oifname @ours icmp type redirect drop
		oifname @ours icmpv6 type nd-redirect drop
	}}

	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		# The host itself by a loopback address, and a neighbour (or the publisher itself) through the host's address: an answer
		# must come back this way, so these are the two cases where the client's address can't be kept.
		oifname @ours ip saddr 127.0.0.0/8 masquerade
		oifname @ours ip6 saddr ::1 masquerade
		iifname . oifname @within ct status dnat masquerade
		oifname @ours accept
		snat ip to iifname map @sourced4
		snat ip6 to iifname map @sourced6
		iifname @masqueraded masquerade
		meta nfproto ipv4 iifname @masqueraded4 masquerade
		meta nfproto ipv6 iifname @masqueraded6 masquerade
	}}
}}

table bridge {TABLE} {{
{_declarations("bridge")}

	chain sent4 {{
		# No endpoint is a router or a DHCP server (whose clients may take an answer from any port).
		icmp type redirect drop
		udp sport 67 drop
		udp dport 68 drop
		accept
	}}

	chain sent6 {{
		# Without an address one may ask for routers, whether an address is free, and for multicast.
		ip6 saddr :: icmpv6 type != {{ nd-neighbor-solicit, nd-router-solicit, mld-listener-report, mld2-listener-report }} drop
		ip6 saddr :: meta l4proto != icmpv6 drop
		ip6 nexthdr tcp accept
		# What is in a fragment must show in the first one: no header between that and the protocol's own (RFC 7112), and no neighbour
		# discovery in parts (RFC 6980).
		frag nexthdr {{ 0, 43, 44, 51, 60, 135, 139, 140 }} drop
		exthdr frag exists icmpv6 type 133-137 drop
		# No endpoint is a router or a DHCPv6 server, or speaks for an address that it doesn't have.
		icmpv6 type nd-neighbor-advert iifname . ether saddr . @th,64,128 @targets6 accept
		icmpv6 type {{ nd-neighbor-advert, nd-router-advert, nd-redirect }} drop
		udp sport 547 drop
		udp dport 546 drop
		accept
	}}

	chain guard {{
		type filter hook prerouting priority dstnat; policy accept;
		iifname != "atv*" accept
		ether type ip iifname . ether saddr . ip saddr @senders4 goto sent4
		ether type arp iifname . ether saddr . arp saddr ip @senders4 iifname . arp saddr ether . arp saddr ip @senders4 accept
		ether type ip6 iifname . ether saddr . ip6 saddr @senders6 goto sent6
		iifname @unguarded accept
		# All else: another's address, another ethertype, or an interface with our kind of name that no element speaks of.
		drop
	}}
}}
"""

#: Makes both tables anew in one transaction, whether they exist or not; `nft` before 1.0.7 has no `destroy`.
RESET: Final = "\n".join(f"add table {family} {TABLE}\ndelete table {family} {TABLE}" for family in ("inet", "bridge")) + "\n"
FAMILIES: Final = ("inet", "bridge")
#: The sets of fenced interfaces by family.
FENCES: Final = {4: "fenced4", 6: "fenced6"}
