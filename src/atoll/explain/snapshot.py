"""What a network stack is like now: links, addresses, settings, routes and the whole ruleset, each read when it is first asked for.

Routes are never computed here: the kernel is asked which one a packet would take. The ruleset is read through libnftables as JSON,
because other software's rules must be understood as well as ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import socket
import struct
import subprocess
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from atoll.errors import Failed, Unsupported
from atoll.explain import legacy, xt
from atoll.kernel import netlink, rtnl, sysctl
from atoll.kernel.netlink import attribute, attributes, message, number, u32
from atoll.kernel.nft import Nft, open_nft, open_socket, rules
from atoll.model import address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from atoll.explain.packet import Packet
    from atoll.kernel.host import Host
    from atoll.model import Address

T = TypeVar("T")

#: nftables/libnftables.h
_STATELESS, _HANDLE, _JSON = 1 << 2, 1 << 3, 1 << 4
#: linux/rtnetlink.h
_DST, _SRC, _IIF, _OIF, _GATEWAY, _PREFSRC, _MARK, _PROTO, _SPORT, _DPORT = 1, 2, 3, 4, 5, 7, 16, 27, 28, 29
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
#: linux/sock_diag.h, net/tcp_states.h
_SOCK_DIAG, _BY_FAMILY, _CLOSE, _LISTEN = 4, 20, 7, 10
LOCAL, BROADCAST, MULTICAST = 2, 3, 5
#: The table of a probe, which one that was killed leaves behind. It decides nothing.
PROBE_TABLE: Final = "atoll_probe"


class Route(NamedTuple):
    """The kernel's answer: `kind` is RTN_*; `error` an errno when there is no way."""

    kind: int = 0
    oif: str = ""
    gateway: Address | None = None
    source: Address | None = None
    error: int = 0


class Stack:
    """One network stack; the host's own has the empty name."""

    def __init__(self, host: Host, name: str) -> None:
        self.name = name
        self.title = name or "host"
        self._visitor = host.visitor
        self._owned = bool(name)
        self._fd = host.open_namespace(name) if name else host.netns
        self._sock: netlink.Socket = self.run(netlink.Socket)
        self._routes: dict[bytes, Route] = {}
        #: The first of iptables-legacy's tables that couldn't be read, and why; known with the ruleset.
        self.unread = ""

    def close(self) -> None:
        self._sock.close()
        if self._owned:
            os.close(self._fd)

    def run(self, function: Callable[[], T]) -> T:
        return self._visitor.run(self._fd, function)

    # --- links and addresses ---

    @cached_property
    def links(self) -> dict[str, rtnl.Link]:
        return {link.name: link for link in rtnl.links(self._sock)}

    @cached_property
    def by_index(self) -> dict[int, rtnl.Link]:
        return {link.ifindex: link for link in self.links.values()}

    @cached_property
    def addresses(self) -> list[rtnl.AddressRow]:
        return rtnl.addresses(self._sock)

    def on(self, name: str, version: int) -> list[rtnl.AddressRow]:
        index = self.links[name].ifindex if name in self.links else 0
        return [row for row in self.addresses if row.ifindex == index and row.interface.version == version]

    def owns(self, wanted: Address, name: str = "") -> bool:
        """Whether it is a local address: of any interface, or of that one."""
        if not name:
            return self.route(wanted).kind == LOCAL
        return any(row.interface.ip == wanted for row in self.on(name, wanted.version))

    def master(self, name: str) -> str:
        link = self.links.get(name)
        return self.by_index[link.master].name if link and link.master in self.by_index else ""

    def ports(self, bridge: str) -> list[rtnl.Link]:
        return [link for link in self.links.values() if link.master == self.links[bridge].ifindex]

    def setting(self, name: str) -> str:
        return self.run(lambda: sysctl.read(name)) or ""

    # --- who is behind a link ---

    def neighbour(self, name: str, wanted: Address) -> str:
        """The link address that the kernel knows of an address, empty when it knows none."""
        family = socket.AF_INET if wanted.version == 4 else socket.AF_INET6
        rows = rtnl.neighbours(self._sock, family)
        return next((row.mac for row in rows if row.address == wanted.packed and row.ifindex == self.links[name].ifindex), "")

    def port_of(self, bridge: str, mac: str) -> str:
        """The port of a bridge behind which a link address was seen."""
        ports = {link.ifindex: link.name for link in self.ports(bridge)}
        rows = rtnl.neighbours(self._sock, socket.AF_BRIDGE) if mac else []
        return next((ports[row.ifindex] for row in rows if row.mac == mac and row.ifindex in ports), "")

    # --- routes ---

    def route(
        self,
        dst: Address,
        *,
        src: Address | None = None,
        iif: str = "",
        oif: str = "",
        mark: int = 0,
        flow: tuple[int, int, int] = (0, 0, 0),
    ) -> Route:
        """Which way a packet goes, the kernel says. With `iif` as one that comes in there, all checks of the source included."""
        protocol, sport, dport = flow
        bits = dst.max_prefixlen
        attrs = attribute(_DST, dst.packed)
        if src is not None:
            attrs += attribute(_SRC, src.packed)
        for kind, name in ((_IIF, iif), (_OIF, oif)):
            if name:
                if name not in self.links:
                    return Route(error=errno.ENODEV)
                attrs += u32(kind, self.links[name].ifindex)
        if mark:
            attrs += u32(_MARK, mark)
        if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
            attrs += (
                attribute(_PROTO, bytes([protocol]))
                + attribute(_SPORT, struct.pack("!H", sport))
                + attribute(_DPORT, struct.pack("!H", dport))
            )
        family = socket.AF_INET if dst.version == 4 else socket.AF_INET6
        request = _ROUTE.pack(family, bits, bits if src is not None else 0, 0, 0, 0, 0, 0, 0) + attrs
        if request not in self._routes:
            self._routes[request] = self._ask(request)
        return self._routes[request]

    def routes(self) -> list[rtnl.RouteRow]:
        return self._table

    @cached_property
    def _table(self) -> list[rtnl.RouteRow]:
        return list(rtnl.routes(self._sock))

    def _ask(self, request: bytes) -> Route:
        try:
            answer = self._sock.ask(message(rtnl.RTM_GETROUTE, 0, request)).body
        except netlink.NetlinkError as error:
            return Route(error=error.errno)
        found = attributes(answer, _ROUTE.size)
        link = self.by_index.get(number(found.get(_OIF, b"")))
        kind = _ROUTE.unpack_from(answer)[7]
        refused = {6: errno.EINVAL, 7: errno.EHOSTUNREACH, 8: errno.EACCES}.get(kind, 0)
        return Route(kind, link.name if link else "", _address(found.get(_GATEWAY)), _address(found.get(_PREFSRC)), refused)

    def fib(self, result: str, flags: tuple[str, ...], packet: Packet) -> str | int:
        """What nftables' `fib` finds, asked of the kernel's routes (nft_fib(8): a local address is reached by no interface)."""
        about = packet.src if "saddr" in flags else packet.dst
        bound = packet.iif if "iif" in flags else packet.oif if "oif" in flags else ""
        route = self.route(about, mark=packet.mark if "mark" in flags else 0)
        if result == "type":
            if about.is_multicast:
                return MULTICAST
            kind = route.kind if route.kind in (LOCAL, BROADCAST) else 1
            if bound and kind == LOCAL and not (self.owns(about, bound) or (bound == "lo" and about.is_loopback)):
                return 1
            return kind
        if packet.iif == "lo" and "saddr" in flags:
            return "lo"
        if route.error not in (0, errno.ENETUNREACH, errno.EHOSTUNREACH) or route.error or route.kind == LOCAL:
            return ""
        return route.oif if not bound or bound == route.oif else ""

    # --- rules and sockets ---

    @cached_property
    def ruleset(self) -> list[dict[str, Any]]:
        """As libnftables says it, with the expressions of iptables as the kernel holds them (see `xt`)."""
        data = json.loads(self.nft("list ruleset", _JSON | _STATELESS) or "{}")
        found = [item for item in data.get("nftables", ()) if not any(_is_probes(name, value) for name, value in item.items())]
        if families := xt.families(found):
            with self.run(open_socket) as sock:
                xt.complete(found, (body for family in families for body in rules(sock, family)))
        return found + self._legacy

    @property
    def has_rules(self) -> bool:
        """Whether anything could drop a packet here, or a probe's table was left."""
        return any("table" in item for item in self.ruleset) or self.nft("list tables").find(PROBE_TABLE) >= 0

    @contextlib.contextmanager
    def open_nft(self) -> Iterator[Nft]:
        """For changes, in this stack."""
        with contextlib.closing(open_nft(self._visitor, self._fd)) as opened:
            yield opened

    def nft(self, command: str, flags: int = _HANDLE) -> str:
        """What nft prints, in this namespace."""
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError:
            return self.run(lambda: _nft_command(command, flags))
        return self.run(lambda: _nft_library(library, command, flags))

    def rule_text(self, family: str, table: str, chain: str, handle: int) -> str:
        if table.startswith(legacy.PREFIX):
            same = [item["rule"] for item in self._legacy if "rule" in item and item["rule"]["handle"] == handle]
            return next(legacy.words(rule) for rule in same if (rule["family"], rule["table"], rule["chain"]) == (family, table, chain))
        with contextlib.suppress(Failed):
            for line in self.nft(f"list chain {family} {table} {chain}").splitlines():
                if line.endswith(f"# handle {handle}"):
                    return line.rpartition("#")[0].strip()
        return ""

    @cached_property
    def _legacy(self) -> list[dict[str, Any]]:
        """The tables of iptables-legacy, which nf_tables doesn't show."""
        try:
            return self.run(lambda: legacy.objects({family: _legacy_tables(family) for family in ("ip", "ip6")}))
        except legacy.Unreadable as error:
            self.unread = str(error)
            return []

    def listens(self, protocol: str, port: int, to: Address) -> bool | None:
        """Whether a socket would take it; None where that can't be seen."""
        if protocol not in ("tcp", "udp"):
            return None
        try:
            seen = self.run(lambda: [_sockets(protocol, version) for version in (4, 6)])
        except netlink.NetlinkError:
            return None  # a kernel without sock_diag for this protocol
        return any(
            local == port
            and (not int.from_bytes(where.packed, "big") or where == to or getattr(where, "ipv4_mapped", None) == to)
            and (where.version == to.version or to.version == 4)
            for rows in seen
            for where, local in rows
        )


def _legacy_tables(family: str) -> list[str]:
    try:
        return Path(f"/proc/thread-self/net/{family}_tables_names").read_text().split()
    except OSError:
        return []


def _is_probes(kind: str, value: dict[str, Any]) -> bool:
    return value.get("name" if kind == "table" else "table") == PROBE_TABLE


def _address(packed: bytes | None) -> Address | None:
    return address(socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)) if packed else None


def _sockets(protocol: str, version: int) -> list[tuple[Address, int]]:
    """Sockets that wait for anyone: TCP in LISTEN, UDP without a peer. By sock_diag(7), because reading /proc/net/tcp makes the kernel
    walk all connections of the machine."""
    family, number = (socket.AF_INET if version == 4 else socket.AF_INET6), {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}[protocol]
    states = 1 << (_LISTEN if protocol == "tcp" else _CLOSE)
    request = message(_BY_FAMILY, 0, struct.pack("=BBBxI48x", family, number, 0, states))
    with netlink.Socket(_SOCK_DIAG) as sock:
        answers = [answer.body for answer in sock.dump(request) if len(answer.body) >= 72]
    size = 4 if version == 4 else 16
    return [(address(socket.inet_ntop(family, body[8 : 8 + size])), int.from_bytes(body[4:6], "big")) for body in answers]


def _nft_library(library: ctypes.CDLL, command: str, flags: int) -> str:
    library.nft_ctx_new.restype = ctypes.c_void_p
    address_of = library.nft_ctx_new(0)
    context = ctypes.c_void_p(address_of)
    if not address_of:
        raise Unsupported("libnftables can't open its netlink socket", "run as root, on a kernel with nf_tables")
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_output_set_flags(context, ctypes.c_uint(flags))
        if library.nft_run_cmd_from_buffer(context, command.encode()) != 0:
            raise Failed(f"nft {command}: {library.nft_ctx_get_error_buffer(context).decode('utf-8', 'replace')}")
        output: bytes = library.nft_ctx_get_output_buffer(context)
        return output.decode("utf-8", "replace")
    finally:
        library.nft_ctx_free(context)


def _nft_command(command: str, flags: int) -> str:
    program = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if program is None:
        raise Unsupported("neither libnftables.so.1 nor the nft command is installed", "apt-get install nftables")
    options = [option for bit, option in ((_STATELESS, "-s"), (_HANDLE, "-a"), (_JSON, "-j")) if flags & bit]
    done = subprocess.run([program, *options, *command.split()], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"nft {command}: {done.stderr.strip()}")
    return done.stdout
