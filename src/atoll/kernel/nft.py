"""nftables: one method applies a script, in one transaction; raw netlink reads back what is there.

Scripts go in as text, through libnftables in this process (65 us an element) or, where the library is missing, through the `nft`
command (about 4 ms). Nothing is ever decided from nft's output: what the kernel holds is read by netlink and compared as bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import hashlib
import os
import shutil
import struct
import subprocess
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from atoll.errors import Failed, Unsupported
from atoll.kernel import netlink, netns
from atoll.kernel.netlink import NETLINK_NETFILTER, attribute, attribute_list, attributes, message, nested, string

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from atoll.kernel.netns import Visitor

_SUBSYSTEM: Final = 10
NFPROTO: Final = {"inet": 1, "ip": 2, "bridge": 7, "ip6": 10}
_GET_TABLE: Final = _SUBSYSTEM << 8 | 1
_GET_CHAIN: Final = _SUBSYSTEM << 8 | 4
_GET_RULE: Final = _SUBSYSTEM << 8 | 7
_GET_SET: Final = _SUBSYSTEM << 8 | 10
_NEW_ELEMENT: Final = _SUBSYSTEM << 8 | 12
_GET_ELEMENT: Final = _SUBSYSTEM << 8 | 13
_DELETE_ELEMENT: Final = _SUBSYSTEM << 8 | 14
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_NEW_GENERATION: Final = _SUBSYSTEM << 8 | 15
#: The multicast group of all changes.
GROUP_NFTABLES: Final = 7
_ELEMENT_INTERVAL_END: Final = 2
#: What changes by itself, by kind of object: handles, use counters, positions, counts of elements.
_VOLATILE: Final = {_GET_CHAIN: {2, 6, 8}, _GET_SET: {16, 20}, _GET_RULE: {3, 6}}


class Nft(Protocol):
    """Applies scripts in one network namespace."""

    def apply(self, script: str) -> None:
        """All of the script or nothing. Raises `Failed` with nft's own words."""

    def close(self) -> None: ...


class LibNft:
    """libnftables in this process. A context belongs to the namespace that it is made in, so that is where the visitor makes it."""

    def __init__(self, library: ctypes.CDLL, visitor: Visitor, namespace: int) -> None:
        self._library = library
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
        library.nft_ctx_buffer_output.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_ctx_get_output_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._context = visitor.run(namespace, lambda: library.nft_ctx_new(0))
        if not self._context:
            raise Unsupported("libnftables can't open its netlink socket", "run as root, on a kernel with nf_tables")
        library.nft_ctx_buffer_error(self._context)
        library.nft_ctx_buffer_output(self._context)

    def apply(self, script: str) -> None:
        code = self._library.nft_run_cmd_from_buffer(self._context, script.encode())
        # The buffers are emptied by reading them; an unread one would grow for ever.
        words = self._library.nft_ctx_get_error_buffer(self._context)
        self._library.nft_ctx_get_output_buffer(self._context)
        if code != 0:
            raise Failed(f"nft: {_first_line(words.decode('utf-8', 'replace'))}")

    def close(self) -> None:
        self._library.nft_ctx_free(self._context)


class NftCommand:
    """The `nft` command, started in the namespace by the visitor."""

    def __init__(self, program: str, visitor: Visitor, namespace: int) -> None:
        self._program, self._visitor, self._namespace = program, visitor, namespace

    def apply(self, script: str) -> None:
        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run([self._program, "-f", "-"], input=script, capture_output=True, text=True, check=False)

        done = self._visitor.run(self._namespace, run)
        if done.returncode != 0:
            raise Failed(f"nft: {_first_line(done.stderr)}")

    def close(self) -> None:
        pass


def open_nft(visitor: Visitor, namespace: int) -> Nft:
    """The library if it can be loaded, else the command. Raises `Unsupported` when neither is there."""
    name = ctypes.util.find_library("nftables") if shutil.which("ldconfig") is None else "libnftables.so.1"
    try:
        return LibNft(ctypes.CDLL(name or "libnftables.so.1"), visitor, namespace)
    except OSError:
        pass
    program = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if program is None:
        raise Unsupported("neither libnftables.so.1 nor the nft command is installed", "apt-get install nftables")
    return NftCommand(program, visitor, namespace)


def _first_line(words: str) -> str:
    """nft explains over several lines; the first one that speaks says what, the position before it does not help anybody."""
    for line in words.splitlines():
        if "rror:" in line:
            return line.partition("rror:")[2].strip()
    return words.strip().splitlines()[0] if words.strip() else "refused without a word"


# --- reading back --------------------------------------------------------------------------------------------------------------------


class Element(NamedTuple):
    """A set element as bytes: its key, the end of its interval (empty when it has none) and its data (empty for a set)."""

    key: bytes
    key_end: bytes
    data: bytes


def _request(kind: int, family: str, *attrs: bytes) -> bytes:
    return message(kind, 0, struct.pack("=BBH", NFPROTO[family], 0, 0) + b"".join(attrs))


def open_socket(groups: tuple[int, ...] = ()) -> netlink.Socket:
    return netlink.Socket(NETLINK_NETFILTER, groups)


def _name(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def has_table(sock: netlink.Socket, family: str, table: str) -> bool:
    return any(
        string(attributes(answer.body, 4).get(1, b"")) == table and answer.body[:1] == bytes([NFPROTO[family]])
        for answer in sock.dump(_request(_GET_TABLE, family))
    )


# --- elements, past the text ---------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """An element of a set, to add or to delete, as bytes."""

    family: str
    table: str
    set: str
    element: Element


#: One attribute holds at most 64 KiB; more than this in all goes as text, which libnftables sends in parts.
_PER_MESSAGE: Final = 256
MOST_CHANGES: Final = 1024


def change_elements(sock: netlink.Socket, verb: str, changes: Sequence[Change]) -> None:
    """Add or delete elements in one transaction. Raises `NetlinkError` when one is refused; then nothing was changed.

    Text would have libnftables read back every set of the table first, to check its words against them; these need no check.
    """
    kind = _NEW_ELEMENT if verb == "add" else _DELETE_ELEMENT
    flags = netlink.NLM_F_CREATE if verb == "add" else 0
    requests = [message(_BATCH_BEGIN, 0, struct.pack("!BBH", 0, 0, _SUBSYSTEM))]
    for (family, table, name), group in groupby(changes, key=lambda change: change[:3]):
        items = [_element(change.element, with_data=verb == "add") for change in group]
        for start in range(0, len(items), _PER_MESSAGE):
            listed = nested(3, *items[start : start + _PER_MESSAGE])
            body = struct.pack("=BBH", NFPROTO[family], 0, 0) + _name(1, table) + _name(2, name) + listed
            requests.append(message(kind, flags, body))
    requests.append(message(_BATCH_END, 0, struct.pack("!BBH", 0, 0, _SUBSYSTEM)))
    for error in sock.request(*requests, acknowledged=-2):
        raise error


def _element(element: Element, *, with_data: bool) -> bytes:
    parts = nested(1, attribute(1, element.key))
    if element.data and with_data:
        parts += nested(2, attribute(1, element.data))
    if element.key_end:
        parts += nested(10, attribute(1, element.key_end))
    return nested(1, parts)


# --- what is there -------------------------------------------------------------------------------------------------------------------


def rules(sock: netlink.Socket, family: str) -> Iterator[bytes]:
    """All rules of a family's tables, each a message (linux/netfilter/nf_tables.h, nft_rule_attributes)."""
    return (answer.body for answer in sock.dump(_request(_GET_RULE, family)))


def elements(sock: netlink.Socket, family: str, table: str, name: str) -> Iterator[Element]:
    """All elements of a set or map. Raises `NetlinkError` ENOENT where there is none."""
    for answer in sock.dump(_request(_GET_ELEMENT, family, _name(1, table), _name(2, name))):
        yield from parse_elements(answer.body)


def parse_elements(body: bytes) -> Iterator[Element]:
    """The elements in one message of a dump. Raises `ValueError` when a length leaves it."""
    for _, item in attribute_list(attributes(body, 4).get(3, b"")):
        found = attributes(item)
        flags = int.from_bytes(found.get(3, b""), "big")
        if not flags & _ELEMENT_INTERVAL_END:
            yield Element(_value(found.get(1, b"")), _value(found.get(10, b"")), _value(found.get(2, b"")))


def _value(payload: bytes) -> bytes:
    return attributes(payload).get(1, b"")


def fingerprints_of(visitor: Visitor, script: str, families: Collection[str], table: str) -> dict[str, str]:
    """The fingerprints of the tables that a script makes, learnt in an empty namespace that is gone afterwards."""
    fd = netns.unnamed(visitor)
    try:
        with contextlib.closing(open_nft(visitor, fd)) as nft, visitor.run(fd, open_socket) as sock:
            nft.apply(script)
            return {family: fingerprint(sock, family, table) for family in families}
    finally:
        os.close(fd)


def fingerprint(sock: netlink.Socket, family: str, table: str) -> str:
    """A digest of the table's chains, sets and rules, without elements and without what changes by itself.

    Two tables that were made by the same script have the same digest (of anonymous sets, which the kernel numbers, each table has its
    own); empty when there is no table.
    """
    digest = hashlib.sha256()
    rows: list[bytes] = []
    for kind, volatile in _VOLATILE.items():
        for answer in sock.dump(_request(kind, family)):
            found = list(attribute_list(answer.body, 4))
            if answer.body[:1] != bytes([NFPROTO[family]]) or string(dict(found).get(1, b"")) != table:
                continue
            kept = b"".join(attribute(number, payload) for number, payload in found if number not in volatile)
            rows.append(kind.to_bytes(2, "big") + kept)
    for row in rows:
        digest.update(len(row).to_bytes(4, "big") + row)
    return digest.hexdigest() if rows else ""


def generation_process(event: netlink.Message) -> tuple[int, str] | None:
    """Who committed a transaction: pid and command name, from the event that closes it; None for other events."""
    if event.type != _NEW_GENERATION:
        return None
    found = attributes(event.body, 4)
    return int.from_bytes(found.get(2, b""), "big"), string(found.get(3, b""))


def event_table(event: netlink.Message) -> str:
    """The name of the table that an event speaks of; empty for others."""
    if event.type >> 8 != _SUBSYSTEM or event.type == _NEW_GENERATION:
        return ""
    return string(attributes(event.body, 4).get(1, b""))
