"""What an endpoint or a machine outside can't make others believe: frames written byte by byte, and what became of them."""

from __future__ import annotations

import itertools
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

import pytest

from atoll.kernel import sysctl
from tests.support import PATIENCE, Inside, ip, lenient, outside

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from atoll import Engine
    from atoll.lab.machine import Machine
    from tests.support import Place

# --- frames --------------------------------------------------------------------------------------------------------------------------

ARP: Final = 0x0806
IPV4: Final = 0x0800
IPV6: Final = 0x86DD
BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
ALL_NODES: Final = "33:33:00:00:00:01"
UDP: Final = 17
ICMP6: Final = 58


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(to: str, by: str, kind: int, payload: bytes) -> bytes:
    return mac(to) + mac(by) + struct.pack("!H", kind) + payload


def arp(operation: int, by: str, address: str, to: str = BROADCAST, asked: str = "0.0.0.0") -> bytes:
    return struct.pack("!HHBBH", 1, IPV4, 6, 4, operation) + mac(by) + packed(address) + mac(to) + packed(asked)


def ipv4(source: str, to: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, packed(source), packed(to))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(source: str, to: str, next_header: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), next_header, 255) + packed(source) + packed(to) + payload


def _summed(source: str, to: str, protocol: int, data: bytes, at: int) -> bytes:
    """With the checksum over data and pseudo header put where it belongs."""
    size = struct.pack("!IHBB", len(data), 0, 0, protocol) if ":" in to else struct.pack("!BBH", 0, protocol, len(data))
    return data[:at] + struct.pack("!H", checksum(packed(source) + packed(to) + size + data) or 0xFFFF) + data[at + 2 :]


def udp(source: str, to: str, port: int, from_port: int = 4000, payload: bytes = b"") -> bytes:
    """A whole packet, of the addresses' family."""
    data = _summed(source, to, UDP, struct.pack("!HHHH", from_port, port, 8 + len(payload), 0) + payload, 6)
    return ipv6(source, to, UDP, data) if ":" in to else ipv4(source, to, UDP, data)


def icmp6(source: str, to: str, kind: int, body: bytes) -> bytes:
    return _summed(source, to, ICMP6, struct.pack("!BBH", kind, 0, 0) + body, 2)

class Tap:
    """An interface's frames, seen and sent whole."""

    def __init__(self, place: Place, link: str = "eth0") -> None:
        def opened():
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
            made.bind((link, 3))
            return made
        self.socket = place.run(opened)
        TAPS.append(self.socket)


TAPS = []
N = itertools.count()

def volley(sender: socket.socket, receivers: Sequence[socket.socket], frames: Mapping[str, bytes], canary: bytes) -> set[str]:
    got = b""
    def wait(token: bytes) -> None:
        nonlocal got
        end = time.monotonic() + PATIENCE
        while token not in got:
            rest = end - time.monotonic()
            assert rest > 0, "canary lost"
            for ready in select.select(receivers, [], [], rest)[0]:
                got += ready.recv(65536) + b"\n"
    def token():
        return b"<%d>" % next(N)
    tokens = {}
    for name, frame in frames.items():
        for one in (token(),):
            sender.send(canary + one); wait(one)
        tokens[name] = token()
        sender.send(frame + tokens[name])
        one = token()
        sender.send(canary+one); wait(one)
    return {name for name, one in tokens.items() if one in got}


def test_explore(engine: Engine) -> None:
    lenient()
    for name, guard in (("a", True), ("open", False)):
        engine.create_network(name, subnets=[f"10.5.{guard:d}.0/24", f"fd05:{guard:d}::/64"], guard=guard)
        for who in ("x", "v"):
            engine.create_namespace(f"{name}-{who}")
        x, v = engine.connect(name, f"{name}-x"), engine.connect(name, f"{name}-v")
        xm, vm = x.mac, v.mac
        x4, v4 = x.address(4), v.address(4)
        x6, v6 = x.address(6), v.address(6)
        gw4, gw6 = f"10.5.{guard:d}.1", f"fd05:{guard:d}::1"
        from atoll.firewall.elements import link_local
        xl, vl = link_local(xm), link_local(vm)
        X, V = Tap(Inside(engine, f"{name}-x")).socket, Tap(Inside(engine, f"{name}-v")).socket
        other = "02:00:00:00:00:99"
        canary = ether(vm, xm, IPV4, udp(x4, v4, 9))
        ra = icmp6(xl, "ff02::1", 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0))
        na = icmp6(x6, "ff02::1", 136, struct.pack("!I", 0x20000000) + packed(gw6) + b"\x02\x01" + mac(xm))
        shots = {
            "ok arp": ether(BROADCAST, xm, ARP, arp(1, xm, x4, asked=v4)),
            "ok v6": ether(vm, xm, IPV6, udp(x6, v6, 9)),
            "ok na": ether(ALL_NODES, xm, IPV6, ipv6(x6, "ff02::1", ICMP6, icmp6(x6, "ff02::1", 136, struct.pack("!I", 0x20000000) + packed(x6) + b"\x02\x01" + mac(xm)))),
            "arp ip": ether(vm, xm, ARP, arp(2, xm, gw4)),
            "arp mac": ether(vm, xm, ARP, arp(2, other, x4)),
            "arp eth": ether(vm, other, ARP, arp(2, xm, x4)),
            "v4 spoof": ether(vm, xm, IPV4, udp(gw4, v4, 9)),
            "v4 mac": ether(vm, other, IPV4, udp(x4, v4, 9)),
            "v6 spoof": ether(vm, xm, IPV6, udp(gw6, v6, 9)),
            "v6 ll spoof": ether(vm, xm, IPV6, udp(vl, v6, 9)),
            "v6 unspec": ether(vm, xm, IPV6, udp("::", v6, 9)),
            "ra": ether(ALL_NODES, xm, IPV6, ipv6(xl, "ff02::1", ICMP6, ra)),
            "ra hbh": ether(ALL_NODES, xm, IPV6, ipv6(xl, "ff02::1", 0, bytes((ICMP6, 0, 1, 4, 0, 0, 0, 0)) + ra)),
            "ra dst": ether(ALL_NODES, xm, IPV6, ipv6(xl, "ff02::1", 60, bytes((ICMP6, 0, 1, 4, 0, 0, 0, 0)) + ra)),
            "ra frag visible": ether(ALL_NODES, xm, IPV6, ipv6(xl, "ff02::1", 44, bytes((ICMP6, 0, 0, 1, 0, 0, 0, 7)) + ra)),
            "ra frag hidden": ether(ALL_NODES, xm, IPV6, ipv6(xl, "ff02::1", 44, bytes((60, 0, 0, 1, 0, 0, 0, 7)) + bytes((ICMP6, 1, 1, 4, 0, 0, 0, 0)))),
            "frag hidden 2nd": ether(ALL_NODES, xm, IPV6, ipv6(xl, "ff02::1", 44, bytes((60, 0, 0, 8, 0, 0, 0, 7)) + bytes((1, 4, 0, 0, 0, 0,0,0)) + ra)),
            "na": ether(ALL_NODES, xm, IPV6, ipv6(x6, "ff02::1", ICMP6, na)),
            "na short": ether(ALL_NODES, xm, IPV6, ipv6(x6, "ff02::1", ICMP6, na[:8])),
            "na frag": ether(ALL_NODES, xm, IPV6, ipv6(x6, "ff02::1", 44, bytes((ICMP6, 0, 0, 1, 0, 0, 0, 7)) + na[:8])),
            "redirect": ether(vm, xm, IPV6, ipv6(xl, v6, ICMP6, icmp6(xl, v6, 137, bytes(36)))),
            "redirect4": ether(vm, xm, IPV4, ipv4(x4, v4, 1, b"\x05\x00\0\0" + bytes(4) + ipv4(v4,"8.8.8.8",17,bytes(8)))),
            "dhcp": ether(BROADCAST, xm, IPV4, udp(x4, "255.255.255.255", 68, 67)),
            "dhcp other port": ether(BROADCAST, xm, IPV4, udp(x4, "255.255.255.255", 68, 1067)),
            "dhcp6": ether(vm, xm, IPV6, udp(xl, vl, 546, 547)),
            "dhcp6 other port": ether(vm, xm, IPV6, udp(xl, vl, 546, 1547)),
            "vlan ok inner": ether(vm, xm, 0x8100, struct.pack("!HH", 5, IPV4) + udp(x4, v4, 9)),
            "vlan0 ok inner": ether(vm, xm, 0x8100, struct.pack("!HH", 0, IPV4) + udp(x4, v4, 9)),
            "vlan0 spoof": ether(vm, xm, 0x8100, struct.pack("!HH", 0, IPV4) + udp(gw4, v4, 9)),
            "vlan0 arp spoof": ether(vm, xm, 0x8100, struct.pack("!HH", 0, ARP) + arp(2, xm, gw4)),
            "vlan0 ra": ether(ALL_NODES, xm, 0x8100, struct.pack("!HH", 0, IPV6) + ipv6(xl, "ff02::1", ICMP6, ra)),
            "vlan na": ether(ALL_NODES, xm, 0x8100, struct.pack("!HH", 0, IPV6) + ipv6(x6, "ff02::1", ICMP6, na)),
            "qinq": ether(vm, xm, 0x88a8, struct.pack("!HHHH", 5, 0x8100, 6, IPV4) + udp(x4, v4, 9)),
            "lldp": ether("01:80:c2:00:00:0e", xm, 0x88cc, bytes(40)),
            "lldp uni": ether(vm, xm, 0x88cc, bytes(40)),
            "mpls": ether(vm, xm, 0x8847, bytes(40)),
            "llc": ether(vm, xm, 40, b"\xaa\xaa\x03\0\0\0\x08\0" + udp(x4, v4, 9)),
            "stp": ether("01:80:c2:00:00:00", xm, 38, b"\x42\x42\x03" + bytes(35)),
            "pause": ether("01:80:c2:00:00:01", xm, 0x8808, bytes(40)),
        }
        print(name, "delivered:", sorted(volley(X, [V], shots, canary)))
        print(name, "  dropped:", sorted(set(shots)-volley(X, [V], shots, canary)))
    [s.close() for s in TAPS]
