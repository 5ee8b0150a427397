"""Telling the neighbours on a bridge that an address is somewhere else from now on: gratuitous ARP and unsolicited advertisements.

Who has spoken to an address before goes on sending to the MAC address that it had, for up to a minute after that has gone.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, Final

from atoll.kernel import rtnl

if TYPE_CHECKING:
    from atoll.kernel.rtnl import Address

_ARP: Final = 0x0806
_IPV6: Final = 0x86DD
_ALL_NODES: Final = ipaddress.IPv6Address("ff02::1")
_ICMPV6: Final = 58
_ADVERTISEMENT: Final = 136
_OVERRIDE: Final = 0x20000000
_TARGET_LINK_ADDRESS: Final = 2


def open_socket() -> socket.socket:
    """For frames that leave by interfaces of the calling thread's namespace; it receives none."""
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)


def frame(address: Address, mac: str, sender: str) -> bytes:
    """That `address` is at `mac` (RFC 5227 section 3, RFC 4861 section 7.2.6), as a frame from `sender`.

    It is not from `mac` itself: a bridge that it passes on its way would look for that where the frame came from.
    """
    packed, at, source = address.packed, rtnl.mac_bytes(mac), rtnl.mac_bytes(sender)
    if address.version == 4:
        request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        return b"\xff" * 6 + source + struct.pack("!H", _ARP) + request + at + packed + bytes(6) + packed
    message = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + packed + bytes((_TARGET_LINK_ADDRESS, 1)) + at
    total = _checksum(packed + _ALL_NODES.packed + struct.pack("!II", len(message), _ICMPV6) + message)
    message = message[:2] + struct.pack("!H", total) + message[4:]
    header = struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, 255) + packed + _ALL_NODES.packed
    return b"\x33\x33\x00\x00\x00\x01" + source + struct.pack("!H", _IPV6) + header + message


def _checksum(data: bytes) -> int:
    """Of an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
