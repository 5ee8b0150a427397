"""Asking a name server: one question, and its answer in words. For the command line; nothing here is remembered or tried twice."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import Final, NamedTuple

from atoll.dns import wire
from atoll.errors import Denied, Failed, Invalid, NotFound

TYPES: Final = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "ANY": 255}
_NAMES: Final = {number: name for name, number in TYPES.items()}
#: Seconds for an answer: longer than a server takes that asks others in turn.
_PATIENCE: Final = 8.0
_RD: Final = 0x0100
_FIXED: Final = struct.Struct(">HHIH")


class Record(NamedTuple):
    name: str
    type: str
    ttl: int
    data: str


def ask(server: str, name: str, kind: str, *, port: int = 53) -> list[Record]:
    """The records that answer. Raises `NotFound` for a name that doesn't exist, `Denied` when the question is refused, else `Failed`."""
    try:
        question = wire.encode_name(name) + struct.pack(">HH", TYPES[kind], wire.IN)
    except wire.Malformed:
        raise Invalid(f"{name[:80]!r} can't be asked for", "a name has labels of 1 to 63 bytes with dots between them") from None
    message = os.urandom(2) + struct.pack(">HHHHH", _RD, 1, 0, 0, 0) + question
    try:
        answer = _over_udp(server, port, message)
        if answer[2] & 0x02:  # cut
            answer = _over_tcp(server, port, message)
        return _records(answer, name, server)
    except TimeoutError:
        raise Failed(f"{server} doesn't answer", "is it a name server, and does a firewall let it?") from None
    except OSError as error:
        raise Failed(f"asking {server}: {error.strerror}", errno=error.errno or 0) from None
    except (IndexError, struct.error, wire.Malformed):
        raise Failed(f"the answer of {server} can't be read") from None


def _over_udp(server: str, port: int, message: bytes) -> bytes:
    with socket.socket(_family(server), socket.SOCK_DGRAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect((server, port))
        sock.send(message)
        while (answer := sock.recv(65535))[:2] != message[:2]:
            pass
        return answer


def _over_tcp(server: str, port: int, message: bytes) -> bytes:
    with socket.socket(_family(server), socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect((server, port))
        sock.sendall(struct.pack(">H", len(message)) + message)
        with sock.makefile("rb") as file:
            return file.read(struct.unpack(">H", file.read(2))[0])


def _family(server: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in server else socket.AF_INET


def _records(data: bytes, name: str, server: str) -> list[Record]:
    rcode = data[3] & wire.RCODE
    if rcode == wire.NXDOMAIN:
        raise NotFound(f"no name {name[:80]}, says {server}")
    if rcode == wire.REFUSED:
        raise Denied(f"{server} refuses to answer for {name[:80]}", "it serves its own networks, and the host for names below atoll")
    if rcode != wire.NOERROR:
        raise Failed(f"{server} can't answer for {name[:80]} (code {rcode})", "the servers that it asks don't answer")
    questions, answers = struct.unpack_from(">HH", data, 4)
    at = wire.HEADER
    for _ in range(questions):
        at = wire.skip_name(data, at) + 4
    found: list[Record] = []
    for _ in range(answers):
        owner, at = _name(data, at)
        kind, _, ttl, length = _FIXED.unpack_from(data, at)
        at += _FIXED.size
        found.append(Record(owner, _NAMES.get(kind, f"TYPE{kind}"), ttl, _words(data, at, length, kind)))
        at += length
    return found


def _words(data: bytes, at: int, length: int, kind: int) -> str:
    part = data[at : at + length]
    match _NAMES.get(kind, ""):
        case "A" | "AAAA":
            return str(ipaddress.ip_address(part))
        case "PTR" | "CNAME" | "NS":
            return _name(data, at)[0]
        case "SRV":
            return f"{' '.join(map(str, struct.unpack_from('>HHH', part)))} {_name(data, at + 6)[0]}"
        case "MX":
            return f"{struct.unpack_from('>H', part)[0]} {_name(data, at + 2)[0]}"
        case "TXT":
            texts = []
            while part:
                texts.append(part[1 : 1 + part[0]].decode("utf-8", "replace"))
                part = part[1 + part[0] :]
            return " ".join(f'"{text}"' for text in texts)
        case _:
            return part.hex()


def _name(data: bytes, at: int) -> tuple[str, int]:
    """A name that may end in pointers, and where it ends. Pointers lead backwards only, so this ends."""
    labels: list[str] = []
    end, least = 0, at
    while size := data[at]:
        if size >= 0xC0:
            end = end or at + 2
            at = struct.unpack_from(">H", data, at)[0] & 0x3FFF
            if at >= least:
                raise wire.Malformed("a pointer that leads forwards")
            least = at
        else:
            labels.append(data[at + 1 : at + 1 + size].decode("latin-1"))
            at += 1 + size
    return ".".join([*labels, ""]) if labels else ".", end or at + 1
