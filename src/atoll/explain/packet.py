"""What travels: a packet as the hooks see it, and the lines that its journey leaves behind."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from msgspec import Struct, structs

from atoll.model import Address

Mark = Literal["ok", "no", "unsure", "note"]

#: Names of bits and numbers as nft writes them.
CT_STATE: Final = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
CT_STATUS: Final = {"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32, "dying": 512}
#: Neighbour discovery, and the ping: IPv4 and IPv6.
ECHO: Final = {4: (8, 0), 6: (128, 129)}
SOLICIT, ADVERTISE = 135, 136


class Packet(Struct):
    """`ether` is the frame's type by name (ip, ip6, arp). `mac` its sender's; `target` the address that neighbour discovery speaks of."""

    version: int
    src: Address
    dst: Address
    protocol: int
    sport: int = 0
    dport: int = 0
    icmp: int = 0
    ether: str = ""
    mac: str = ""
    target: Address | None = None
    iif: str = ""
    oif: str = ""
    mark: int = 0
    connection_mark: int = 0
    state: int = CT_STATE["new"]
    status: int = 0
    reply: bool = False
    tracked: bool = True
    #: The port of a bridge by which it came up to this host.
    port: str = ""

    @property
    def is_known(self) -> bool:
        """Whether it belongs to a connection, for whoever sees it now."""
        return self.state not in (CT_STATE["invalid"], CT_STATE["untracked"])

    def words(self) -> str:
        return f"{ends(self.src, self.sport)} to {ends(self.dst, self.dport)}"


class Nat(NamedTuple):
    """How a rule rewrites: `address` None is the interface's own (masquerade, redirect); `port` 0 keeps it."""

    kind: Literal["dnat", "snat"]
    address: Address | None
    port: int


class Hop(Struct, frozen=True):
    """One line: where, what happens there, and whether it goes on."""

    where: str
    what: str
    mark: Mark = "ok"
    reply: bool = False


def ends(address: Address, port: int) -> str:
    if not port:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def answers(packet: Packet, went: Packet) -> bool:
    return (packet.src, packet.dst, packet.sport, packet.dport) == (went.dst, went.src, went.dport, went.sport)


def question(packet: Packet, src: Address, about: Address, kind: int) -> Packet:
    """An ARP packet, or the neighbour discovery that does its work."""
    if packet.version == 4:
        return structs.replace(packet, src=src, dst=about, ether="arp", protocol=0, sport=0, dport=0)
    target = about if kind == SOLICIT else src
    return structs.replace(packet, src=src, dst=about, protocol=58, icmp=kind, target=target, sport=0, dport=0)
