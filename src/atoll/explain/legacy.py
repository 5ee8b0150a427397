"""The tables of iptables-legacy, which nf_tables doesn't show, as objects like those of libnftables' JSON; so the same evaluator runs them.

Read as iptables-legacy does it: IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES on a raw socket (linux/netfilter_ipv4/ip_tables.h,
netfilter_ipv6/ip6_tables.h). A table is a chunk of entries; an entry has its addresses and interfaces, matches and a target; a jump is
the offset of another entry, and chains begin behind an entry whose target is `ERROR`, which has their name.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import struct
from itertools import pairwise
from typing import Any, Final, NamedTuple

from atoll.explain.xt import Extension
from atoll.kernel.netlink import string

#: Of a table's name here, so that it is no table of nf_tables.
PREFIX: Final = "legacy "
_HOOKS: Final = ("prerouting", "input", "forward", "output", "postrouting")
#: linux/netfilter_ipv4.h, nf_ip_hook_priorities; of raw, mangle, filter and security by table, of nat by hook.
_PRIORITIES: Final = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_NAT: Final = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
_INFO, _ENTRIES = 64, 65
_GET_INFO: Final = struct.Struct("=32sI5I5III")
#: A jump back; what isn't a verdict or an offset.
_RETURN: Final = -5
_VERDICTS: Final = {-1: "drop", -2: "accept", _RETURN: "return"}


class _Layout(NamedTuple):
    """`targets` is where an entry says where its target and the next entry begin; `matches` where its matches begin."""

    family: str
    socket_family: int
    level: int
    address: int
    targets: int
    matches: int


_LAYOUTS: Final = (
    _Layout("ip", socket.AF_INET, socket.IPPROTO_IP, 4, 88, 112),
    _Layout("ip6", socket.AF_INET6, socket.IPPROTO_IPV6, 16, 140, 168),
)


class Unreadable(Exception):
    """A table that can't be read, or is not laid out as expected."""


def objects(names: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Chains and rules of these tables, by family, in this thread's network namespace. Only tables that are there: to ask for another
    makes it. Raises `Unreadable`."""
    found: list[dict[str, Any]] = []
    for layout in _LAYOUTS:
        for name in names.get(layout.family, ()):
            try:
                found += parse(layout.family, name, *_read(layout, name))
            except (OSError, struct.error, LookupError, ValueError) as error:
                raise Unreadable(f"{layout.family} {name}: {error}") from None
    return found


def _read(layout: _Layout, name: str) -> tuple[bytes, bytes]:
    with socket.socket(layout.socket_family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as sock:
        for _ in range(5):
            info = _ask(sock, layout.level, _INFO, name.encode().ljust(_GET_INFO.size, b"\0"))
            size = _GET_INFO.unpack(info)[-1]
            try:
                # struct ipt_get_entries: the name, the size, then the entries at a multiple of eight.
                answer = _ask(sock, layout.level, _ENTRIES, struct.pack("=32sI4x", name.encode(), size) + bytes(size))
            except BlockingIOError:
                continue  # it was changed between the two
            return info, answer[40:]
    raise OSError("it changes faster than it can be read")


def _ask(sock: socket.socket, level: int, option: int, request: bytes) -> bytes:
    """getsockopt(2) with something in its buffer, which Python's has not."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(request, len(request))
    length = ctypes.c_uint32(len(request))
    if libc.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(length)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw


# --- pure ----------------------------------------------------------------------------------------------------------------------------


def words(rule: dict[str, Any]) -> str:
    """Such a rule as a line, near to how nft would say it."""
    return " ".join(_said(statement) for statement in rule["expr"])


def _said(statement: dict[str, Any]) -> str:
    ((what, body),) = statement.items()
    if what == "xt":
        return f"xt {body['type']} {body['name']}"
    if what in ("jump", "goto"):
        return f"{what} {body['target']}"
    if what != "match":
        return what
    ((kind, asked),) = body["left"].items()
    left = f"{asked['protocol']} {asked['field']}" if kind == "payload" else asked["key"]
    right = body["right"]
    return " ".join(
        [
            left,
            *(["!="] if body["op"] == "!=" else []),
            f"{right['prefix']['addr']}/{right['prefix']['len']}" if isinstance(right, dict) else str(right),
        ]
    )


class _Entry(NamedTuple):
    at: int
    expr: list[dict[str, Any]]
    target: Extension
    goes: bool


def parse(family: str, name: str, info: bytes, chunk: bytes) -> list[dict[str, Any]]:
    """Raises `ValueError`, `LookupError` or `struct.error` where the bytes are none of such a table."""
    layout = next(layout for layout in _LAYOUTS if layout.family == family)
    fields = _GET_INFO.unpack(info)
    valid, starts, ends = fields[1], fields[2:7], fields[7:12]
    entries = list(_entries(layout, chunk))
    table = {"family": family, "table": PREFIX + name}
    hooks = {starts[number]: hook for number, hook in enumerate(_HOOKS) if valid >> number & 1}
    chains = {at: hook.upper() for at, hook in hooks.items()}
    chains |= {after.at: string(entry.target.info) for entry, after in pairwise(entries) if _is_name(entry)}
    policies = {ends[_HOOKS.index(hook)]: hook for hook in hooks.values()}
    found: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    current, number, closed = "", 0, True
    for entry in entries:
        if entry.at in chains:
            current, number, closed = chains[entry.at], 0, False
            base = {}
            if hook := hooks.get(entry.at, ""):
                kind = "nat" if name == "nat" else "route" if (name, hook) == ("mangle", "output") else "filter"
                base = {"type": kind, "hook": hook, "prio": _NAT[hook] if name == "nat" else _PRIORITIES[name]}
            found.append({"chain": {**table, "name": current, **base}})
        if _is_name(entry):
            continue
        verdict = _verdict(entry, chains)
        if entry.at in policies:
            found[-1]["chain"]["policy"] = next(iter(verdict))
            closed = True
            continue
        if closed:
            raise ValueError("a rule of no chain")
        number += 1
        rules.append({"rule": {**table, "chain": current, "handle": number, "expr": [*entry.expr, verdict] if verdict else entry.expr}})
    return found + rules


def _is_name(entry: _Entry) -> bool:
    return entry.target.name == "ERROR"


def _verdict(entry: _Entry, chains: dict[int, str]) -> dict[str, Any]:
    """What a standard target means; any other one as a statement of its own. Empty where an entry only leads on to the next."""
    if entry.target.name:
        return entry.target.statement()
    (number,) = struct.unpack_from("=i", entry.target.info)
    if number < 0:
        return {_VERDICTS[number]: None}
    return {"goto" if entry.goes else "jump": {"target": chains[number]}} if number in chains else {}


def _entries(layout: _Layout, chunk: bytes) -> list[_Entry]:
    at, found = 0, []
    while at < len(chunk):
        target_at, size = struct.unpack_from("=2H", chunk, at + layout.targets)
        if not layout.matches <= target_at < size <= len(chunk) - at:
            raise ValueError("a length leaves its table")
        entry = chunk[at : at + size]
        expr, goes = _packet_matches(layout, entry)
        place = layout.matches
        while place < target_at:
            extension, length = _extension("match", entry[:target_at], place)
            expr.append(extension.statement())
            place += length
        target, _ = _extension("target", entry, target_at)
        found.append(_Entry(at, expr, target, goes))
        at += size
    return found


def _extension(kind: Any, entry: bytes, place: int) -> tuple[Extension, int]:
    size, name, revision = struct.unpack_from("=H29sB", entry, place)
    if not 32 <= size <= len(entry) - place:
        raise ValueError("a length leaves its entry")
    return Extension(kind, string(name), revision, entry[place + 32 : place + size]), size


def _packet_matches(layout: _Layout, entry: bytes) -> tuple[list[dict[str, Any]], bool]:
    """struct ipt_ip or ip6t_ip6 as matches, and whether a jump is for good."""
    size = layout.address
    src, dst, src_mask, dst_mask = (entry[size * part : size * (part + 1)] for part in range(4))
    names = struct.unpack_from("=16s16s16s16s", entry, 4 * size)
    place = 4 * size + 64
    if layout.family == "ip":
        protocol, flags, inverted = struct.unpack_from("=HBB", entry, place)
        asks_protocol, fragment, goes = bool(protocol), flags & 1, flags & 2
    else:
        protocol, _, flags, inverted = struct.unpack_from("=HBBB", entry, place)
        asks_protocol, fragment, goes = bool(flags & 1 and protocol), 0, flags & 4
    found: list[dict[str, Any]] = []
    for address, mask, field, bit in ((src, src_mask, "saddr", 0x08), (dst, dst_mask, "daddr", 0x10)):
        if any(mask) or inverted & bit:
            found.append(_match({"payload": {"protocol": layout.family, "field": field}}, _masked(address, mask), inverted & bit))
    for name, mask, key, bit in ((names[0], names[2], "iifname", 0x01), (names[1], names[3], "oifname", 0x02)):
        if any(mask) or inverted & bit:
            asked = name[: sum(map(bool, mask))]
            whole = string(name) if b"\0" in asked else string(asked) + "*"
            found.append(_match({"meta": {"key": key}}, whole, inverted & bit))
    if asks_protocol:
        found.append(_match({"meta": {"key": "l4proto"}}, protocol, inverted & 0x40))
    if fragment:
        # Nothing that is asked about is a later fragment.
        found.append(_match({"meta": {"key": "l4proto"}}, 256 if not inverted & 0x20 else 0, inverted & 0x20))
    if layout.family == "ip6" and flags & 2:
        raise ValueError("a rule for a traffic class")
    return found, bool(goes)


def _match(left: dict[str, Any], right: Any, inverted: int) -> dict[str, Any]:
    return {"match": {"op": "!=" if inverted else "==", "left": left, "right": right}}


def _masked(address: bytes, mask: bytes) -> Any:
    length = bin(int.from_bytes(mask, "big")).count("1")
    if int.from_bytes(mask, "big") != ((1 << length) - 1) << (len(mask) * 8 - length):
        raise ValueError("a mask with holes")
    return {"prefix": {"addr": str(ipaddress.ip_address(address)), "len": length}}
