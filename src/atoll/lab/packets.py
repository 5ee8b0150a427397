"""Frames as one line each, for reports: who to whom, and what."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

_TCP_FLAGS: Final = ((2, "SYN"), (1, "FIN"), (4, "RST"), (8, "PSH"), (16, "ACK"))
_ICMP: Final = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
_ICMP6: Final = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
    143: "multicast listener report",
}


def line(frame: bytes) -> str:
    """Never raises: what can't be read is shown by its length."""
    try:
        kind = int.from_bytes(frame[12:14], "big")
        body = frame[14:]
        if kind == 0x0806:
            return _arp(body)
        if kind == 0x0800:
            header, rest = (body[0] & 15) * 4, struct.unpack_from("!H", body, 6)[0] & 0x1FFF
            source, target = (str(ipaddress.IPv4Address(body[at : at + 4])) for at in (12, 16))
            size = struct.unpack_from("!H", body, 2)[0] - header
            return f"{source} > {target} fragment" if rest else _inner(source, target, body[9], body[header:], size)
        if kind == 0x86DD:
            source, target = (str(ipaddress.IPv6Address(body[at : at + 16])) for at in (8, 24))
            return _inner(source, target, body[6], body[40:], struct.unpack_from("!H", body, 4)[0])
        return f"{frame[6:12].hex(':')} > {frame[:6].hex(':')} ethertype {kind:#06x}, {len(frame)} bytes"
    except (struct.error, IndexError, ValueError):
        return f"{len(frame)} bytes that end too early"


def _arp(body: bytes) -> str:
    (operation,) = struct.unpack_from("!H", body, 6)
    sender, target = (ipaddress.IPv4Address(body[at : at + 4]) for at in (14, 24))
    return f"ARP who has {target}, tell {sender}" if operation == 1 else f"ARP {sender} is at {body[8:14].hex(':')}"


def _inner(source: str, target: str, protocol: int, data: bytes, size: int) -> str:
    match protocol:
        case 6:
            ports = struct.unpack_from("!HH", data)
            sequence, answered = struct.unpack_from("!II", data, 4)
            flags = " ".join(name for bit, name in _TCP_FLAGS if data[13] & bit) or "none"
            length = max(size - (data[12] >> 4) * 4, 0)
            return f"{source}:{ports[0]} > {target}:{ports[1]} TCP {flags} seq {sequence} ack {answered}, {length} bytes"
        case 17:
            ports = struct.unpack_from("!HH", data)
            return f"{source}:{ports[0]} > {target}:{ports[1]} UDP, {size - 8} bytes"
        case 1 | 58:
            names = _ICMP if protocol == 1 else _ICMP6
            number = f" {struct.unpack_from('!H', data, 6)[0]}" if "echo" in names.get(data[0], "") else ""
            return f"{source} > {target} ICMP{'' if protocol == 1 else 'v6'} {names.get(data[0], f'type {data[0]}')}{number}"
        case _:
            return f"{source} > {target} protocol {protocol}, {size} bytes"
