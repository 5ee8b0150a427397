"""The floor: what the kernel itself asks for the objects of one attached namespace.

No engine: messages packed by hand and filled in before the clock starts, one netlink socket a namespace already open, libnftables
in the process. For each namespace the objects are one veth pair (host end up, enslaved, with MTU and alias; the peer in the
namespace with its final name and MAC), lo up, eth0 up, address and default route inside, and in one nft transaction an element in
the map of published ports, one in the set of our interfaces and one in the set of guarded senders. Linux ignores the alias, and
the wish for no IPv6 address on the host end, in the message that creates a link; they follow in the same datagram.

Layouts: linux/rtnetlink.h, linux/if_link.h, linux/veth.h; libnftables(3).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from atoll.errors import Failed, Unsupported
from bench import netns, tool

GATEWAY = IPv4Address("10.66.0.1")
PREFIX = 16
MTU = 1500

_NEWLINK, _DELLINK, _SETLINK, _NEWADDR, _NEWROUTE = 16, 17, 19, 20, 24
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_IFF_UP = 0x1
_ERROR = 2

# The skeleton is what published ports, isolation and guards need at the least; it never changes, only its elements do.
SKELETON = """
table inet floor {
    map ports { type inet_proto . inet_service : ipv4_addr . inet_service; }
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local meta l4proto { tcp, udp } dnat ip to meta l4proto . th dport map @ports
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 10.66.0.0/16 ip daddr != 10.66.0.0/16 masquerade
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state established,related accept
        ct status dnat accept
        oifname "floor0" drop
    }
}
table bridge floor {
    set interfaces { type ifname; }
    set senders { type ifname . ether_addr . ipv4_addr; }
    chain prerouting {
        type filter hook prerouting priority filter; policy accept;
        iifname != @interfaces accept
        ether type ip iifname . ether saddr . ip saddr @senders accept
        ether type arp accept
        drop
    }
}
"""


class Nftables:
    """libnftables in this process, on the network namespace in which it was made."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libnftables.so.1")
        except OSError:
            raise Unsupported("libnftables.so.1 is not installed", "apt-get install libnftables1") from None
        self._library.nft_ctx_new.restype = ctypes.c_void_p
        self._library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def apply(self, text: bytes) -> None:
        """One transaction. Raises Failed with what nft says."""
        if self._library.nft_run_cmd_from_buffer(self._context, ctypes.c_char_p(text)) != 0:
            words = self._library.nft_ctx_get_error_buffer(self._context) or b""
            raise Failed(f"nft: {words.decode(errors='replace').strip()}")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=LHHLL", len(body) + 16, kind, flags, 0, 0) + body


def _link(index: int, up: bool) -> bytes:
    flag = _IFF_UP if up else 0
    return struct.pack("=BxHiII", 0, 0, index, flag, flag)


def _exchange(sock: socket.socket, datagram: bytes) -> None:
    """Send one datagram whose last message alone asks for an answer; any refusal before it comes first. Raises Failed."""
    sock.send(datagram)
    answer = sock.recv(65536)
    kind, error = struct.unpack_from("=4xH10xi", answer)
    if kind == _ERROR and error != 0:
        raise Failed(f"netlink: {os.strerror(-error)}", errno=-error)


def _netlink() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    sock.bind((0, 0))
    return sock


@dataclass(frozen=True)
class Target:
    """A given namespace and everything to be sent for it, ready."""

    namespace: int
    socket: socket.socket
    address: IPv4Address
    link: bytes
    setup: bytes
    elements: bytes
    removal: bytes
    fewer: bytes


class Floor:
    """A bridge and the skeleton on the host that we are in; `connect` is what is timed."""

    def __init__(self) -> None:
        tool.run("ip", "link", "add", "floor0", "address", "02:42:00:00:00:01", "type", "bridge", "mcast_snooping", "0")
        tool.run("ip", "addr", "add", f"{GATEWAY}/{PREFIX}", "dev", "floor0")
        tool.run("ip", "link", "set", "floor0", "up")
        with open("/proc/sys/net/ipv4/ip_forward", "w") as forward:
            forward.write("1")
        self.nftables = Nftables()
        self.nftables.apply(SKELETON.encode())
        self._bridge = socket.if_nametoindex("floor0")
        self._socket = _netlink()
        self._made = 0

    def prepare(self) -> Target:
        """A new namespace and its messages."""
        self._made += 1
        namespace = netns.create()
        with netns.inside(namespace):
            inner = _netlink()
            index = max(number for number, _ in socket.if_nameindex()) + 1
        address = GATEWAY + self._made
        name, mac = f"f{self._made}", b"\x02\x42" + address.packed
        # enums of linux/if_link.h: IFLA_ADDRESS 1, IFNAME 3, MTU 4, MASTER 10, LINKINFO 18, IFALIAS 20, NET_NS_FD 28
        peer = _link(0, up=False) + b"".join(
            (
                _attribute(3, b"eth0\0"),
                _attribute(1, mac),
                _attribute(4, struct.pack("=I", MTU)),
                _attribute(28, struct.pack("=i", namespace)),
            )
        )
        link = _link(0, up=True) + b"".join(
            (
                _attribute(3, name.encode() + b"\0"),
                _attribute(4, struct.pack("=I", MTU)),
                _attribute(10, struct.pack("=i", self._bridge)),
                # IFLA_INFO_KIND 1, IFLA_INFO_DATA 2, VETH_INFO_PEER 1
                _attribute(18, _attribute(1, b"veth") + _attribute(2, _attribute(1, peer))),
            )
        )
        # IFLA_AF_SPEC 26 with, for AF_INET6, IFLA_INET6_ADDR_GEN_MODE 8: none
        silent = _attribute(26, _attribute(socket.AF_INET6, _attribute(8, b"\x01")))
        change = _link(0, up=False) + _attribute(3, name.encode() + b"\0") + _attribute(20, f"floor:{name}".encode()) + silent
        # struct ifaddrmsg with IFA_LOCAL 2, IFA_ADDRESS 1; struct rtmsg in the main table with RTA_GATEWAY 5
        inet = struct.pack("=BBBBi", socket.AF_INET, PREFIX, 0, 0, index) + _attribute(2, address.packed) + _attribute(1, address.packed)
        route = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 4, 0, 1, 0) + _attribute(5, GATEWAY.packed)
        setup = (
            _message(_NEWLINK, _REQUEST, _link(1, up=True))
            + _message(_NEWLINK, _REQUEST, _link(index, up=True))
            + _message(_NEWADDR, _REQUEST | _CREATE | _EXCL, inet)
            + _message(_NEWROUTE, _REQUEST | _CREATE | _EXCL | _ACK, route)
        )
        colons = mac.hex(":")
        port = 1024 + self._made
        changes = (
            f"inet floor ports {{ tcp . {port} : {address} . 80 }}; %s element bridge floor interfaces {{ {name} }}; "
            f"%s element bridge floor senders {{ {name} . {colons} . {address} }}"
        )
        return Target(
            namespace=namespace,
            socket=inner,
            address=address,
            link=_message(_NEWLINK, _REQUEST | _CREATE | _EXCL, link) + _message(_SETLINK, _REQUEST | _ACK, change),
            setup=setup,
            elements=f"add element {changes % ('add', 'add')}".encode(),
            removal=_message(_DELLINK, _REQUEST | _ACK, _link(0, up=False) + _attribute(3, name.encode() + b"\0")),
            fewer=f"delete element {changes.replace(f' : {address} . 80', '') % ('delete', 'delete')}".encode(),
        )

    def connect(self, target: Target) -> None:
        """The objects of one endpoint: rules before the link, as they must be to fail closed."""
        self.nftables.apply(target.elements)
        _exchange(self._socket, target.link)
        _exchange(target.socket, target.setup)

    def disconnect(self, target: Target) -> None:
        _exchange(self._socket, target.removal)
        self.nftables.apply(target.fewer)

    def release(self, target: Target) -> None:
        """Let the namespace go."""
        target.socket.close()
        os.close(target.namespace)

    def publish(self, ports: Sequence[int], address: IPv4Address) -> None:
        """Lead these TCP ports of the host to port 80 of the address, in one transaction."""
        self.nftables.apply(f"add element inet floor ports {{ {', '.join(f'tcp . {port} : {address} . 80' for port in ports)} }}".encode())

    def unpublish(self, port: int) -> None:
        self.nftables.apply(f"delete element inet floor ports {{ tcp . {port} }}".encode())


@contextmanager
def attached(count: int) -> Iterator[Floor]:
    """A floor with `count` endpoints connected."""
    floor = Floor()
    targets = [floor.prepare() for _ in range(count)]
    for target in targets:
        floor.connect(target)
    yield floor
