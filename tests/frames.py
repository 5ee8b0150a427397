"""Ethernet frames written byte by byte, with checksums that are right, for what no socket would send."""

from __future__ import annotations

import socket
import struct
from typing import Final

IPV4: Final = 0x0800
ARP: Final = 0x0806
VLAN: Final = 0x8100
IPV6: Final = 0x86DD
MPLS: Final = 0x8847
SERVICE_VLAN: Final = 0x88A8
LLDP: Final = 0x88CC
ICMP: Final = 1
UDP: Final = 17
HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
ICMP6: Final = 58
DESTINATION_OPTIONS: Final = 60

EVERYBODY: Final = "ff:ff:ff:ff:ff:ff"
ALL_NODES: Final = "33:33:00:00:00:01"
#: Groups that a bridge keeps to its port (IEEE 802.1D, table 7-10), and the one of them that LLDP is sent to.
PORT_GROUPS: Final = [f"01:80:c2:00:00:{number:02x}" for number in range(2, 16)]
LLDP_GROUP: Final = "01:80:c2:00:00:0e"


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF) or 0xFFFF


def _with_checksum(data: bytes, at: int, pseudo_header: bytes = b"") -> bytes:
    return data[:at] + struct.pack("!H", _checksum(pseudo_header + data)) + data[at + 2 :]


def frame(to: str, by: str, kind: int, payload: bytes) -> bytes:
    """An Ethernet frame of an ethertype."""
    return mac_bytes(to) + mac_bytes(by) + struct.pack("!H", kind) + payload


def around(to: str, by: str, packet: bytes) -> bytes:
    """The frame around an IP packet."""
    return frame(to, by, IPV6 if packet[0] >> 4 == 6 else IPV4, packet)


def tagged(plain: bytes, vlan: int, kind: int = VLAN) -> bytes:
    return plain[:12] + struct.pack("!HH", kind, vlan) + plain[12:]


def arp(operation: int, by: str, address: str) -> bytes:
    """RFC 826; 1 asks, 2 answers."""
    return struct.pack("!HHBBH6s4s6s4s", 1, IPV4, 6, 4, operation, mac_bytes(by), packed(address), mac_bytes(EVERYBODY), packed(address))


def ip_packet(source: str, to: str, protocol: int, payload: bytes) -> bytes:
    if ":" in to:
        return struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, 255, packed(source), packed(to)) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, packed(source), packed(to))
    return _with_checksum(head, 10) + payload


def udp(source: str, to: str, port: int, payload: bytes = b"", *, by: int = 4000) -> bytes:
    """A packet to a port from port `by`."""
    size = 8 + len(payload)
    head = packed(source) + packed(to) + (struct.pack("!IHBB", size, 0, 0, UDP) if ":" in to else struct.pack("!BBH", 0, UDP, size))
    return ip_packet(source, to, UDP, _with_checksum(struct.pack("!HHHH", by, port, size, 0) + payload, 6, head))


def icmp6(source: str, to: str, kind: int, body: bytes, *, code: int = 0) -> bytes:
    """The message without the packet around it."""
    head = packed(source) + packed(to) + struct.pack("!IHBB", 4 + len(body), 0, 0, ICMP6)
    return _with_checksum(struct.pack("!BBH", kind, code, 0) + body, 2, head)


def icmp(kind: int, body: bytes, *, code: int = 0) -> bytes:
    return _with_checksum(struct.pack("!BBH", kind, code, 0) + body, 2)


def router_advertisement(source: str) -> bytes:
    """RFC 4861 section 4.2: the sender is a default router for half an hour."""
    return icmp6(source, "ff02::1", 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0))


def neighbor_advertisement(source: str, target: str, mac: str) -> bytes:
    """RFC 4861 section 4.4, overriding what is known."""
    return icmp6(source, "ff02::1", 136, struct.pack("!I", 0x20000000) + packed(target) + b"\2\1" + mac_bytes(mac))


def fragment(protocol: int, part: bytes, *, offset: int = 0, more: bool = True) -> bytes:
    """RFC 8200 section 4.5."""
    return struct.pack("!BBHI", protocol, 0, offset | more, 7) + part


def options(protocol: int, size: int = 8) -> bytes:
    """A header of destination or hop-by-hop options that is all padding."""
    return struct.pack("!BBBB", protocol, size // 8 - 1, 1, size - 4) + bytes(size - 4)
