"""What the file that a runtime executes (the forwarder) and the daemon say to each other on `ATOLL_RUN/doors.sock`.

One connection is one call. The forwarder sends a call; the daemon sends the answer's four magic bytes at the moment when it begins to
carry the call out, and the rest when that is done. So a connection that breaks before those bytes has changed nothing, and the call can
be sent again, whatever it is; after them nobody knows.

    call    "ATC1"  SIZE  door program folder [arguments] [environment] stdin
    answer  "ATA1"  SIZE  CODE stdout stderr run

All numbers (SIZE, CODE, lengths, counts) are 32 bits, unsigned, the most significant byte first. SIZE counts the bytes that follow it, at
most 16 MiB. A field is its length and its bytes; [a list] is its count, at most 4096, and that many fields. Nothing may be left over.
A field of `environment` is NAME=VALUE. `stdin`, `stdout` and `stderr` hold any bytes; the others hold what the kernel passes to a
program: any bytes but NUL, here decoded as `os.fsdecode` does, UTF-8 with surrogate escapes.

The other two who speak this are forward.c and forward.py.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
from msgspec import Struct

from atoll.errors import Invalid

CALL: Final = b"ATC1"
ANSWER: Final = b"ATA1"
#: The bytes of magic and SIZE.
HEAD: Final = 8
#: The most that SIZE may say.
MOST: Final = 16 << 20
_MOST_ITEMS: Final = 4096
_NUMBER: Final = struct.Struct(">I")
_HELP: Final = "is the forwarder as new as the daemon? put it there again with `atoll cni install` or `atoll podman install`"


class Call(Struct, frozen=True):
    """What a runtime executed. Text may hold surrogate escapes, where the runtime passed bytes that aren't UTF-8."""

    door: str
    """"cni", "netavark" or "plugin" (a plugin of netavark)."""
    program: str
    """The path of the executed file as it was called; its last part is the plugin's name: bridge, portmap ..."""
    arguments: tuple[str, ...] = ()
    """Those after the program's name."""
    environment: dict[str, str] = {}
    """Only CNI_*, NETAVARK_* and RUST_LOG."""
    stdin: bytes = b""
    folder: str = ""
    """The caller's current folder, which relative paths among the arguments start from; "" when it has none."""


class Answer(Struct, frozen=True):
    """What the executed file prints and ends with; or `run`, a program to turn into, with the same arguments, environment and stdin: the
    one that stood there before us."""

    code: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    run: str = ""


def failure(door: str, what: str, *, code: int = 999, details: str = "") -> Answer:
    """An error as the client of this door reads it. `code` is CNI's: 11 try again later, 5 input or output failed, 999 anything (the code
    that the reference plugins use for that)."""
    if door == "cni":
        words = {"cniVersion": "1.0.0", "code": code, "msg": _printable(what), "details": _printable(details)}
        return Answer(1, msgspec.json.encode(words) + b"\n")
    return Answer(1, msgspec.json.encode({"error": _printable(f"{what}; {details}" if details else what)}) + b"\n")


def _printable(text: str) -> str:
    """Without the surrogate escapes, which JSON can't carry."""
    return text.encode("utf-8", "replace").decode()


# --- to bytes ------------------------------------------------------------------------------------------------------------------------


def encode_call(call: Call) -> bytes:
    """Raises `Invalid` for a call that is too large."""
    environment = tuple(f"{name}={value}" for name, value in call.environment.items())
    fields = [_text(call.door), _text(call.program), _text(call.folder), *_list(call.arguments), *_list(environment), _field(call.stdin)]
    return _frame(CALL, b"".join(fields))


def encode_answer(answer: Answer) -> bytes:
    """Raises `Invalid` for an answer that is too large, or whose code isn't an exit code."""
    if not 0 <= answer.code <= 255:
        raise Invalid(f"an answer has the code {answer.code}", "an exit code is 0 to 255")
    return _frame(ANSWER, _NUMBER.pack(answer.code) + _field(answer.stdout) + _field(answer.stderr) + _text(answer.run))


def _frame(magic: bytes, body: bytes) -> bytes:
    if len(body) > MOST:
        raise Invalid(f"a message of {len(body)} bytes is too large", f"the limit is {MOST}")
    return magic + _NUMBER.pack(len(body)) + body


def _field(data: bytes) -> bytes:
    return _NUMBER.pack(len(data)) + data


def _text(text: str) -> bytes:
    return _field(text.encode("utf-8", "surrogateescape"))


def _list(items: tuple[str, ...]) -> list[bytes]:
    return [_NUMBER.pack(len(items)), *map(_text, items)]


# --- from bytes ----------------------------------------------------------------------------------------------------------------------


def size_of(head: bytes, magic: bytes) -> int:
    """How many bytes follow these first eight. Raises `Invalid`."""
    if head[:4] != magic:
        raise Invalid("a message doesn't begin as one", _HELP)
    (size,) = _NUMBER.unpack_from(head, 4)
    if size > MOST:
        raise Invalid(f"a message of {size} bytes is announced", f"the limit is {MOST}")
    return int(size)


def decode_call(body: bytes) -> Call:
    """From what follows the first eight bytes. Raises `Invalid` for anything that `encode_call` would not make."""
    rest = _Rest(body)
    door, program, folder = rest.text(), rest.text(), rest.text()
    arguments = tuple(rest.text() for _ in range(rest.count()))
    environment: dict[str, str] = {}
    for _ in range(rest.count()):
        name, separator, value = rest.text().partition("=")
        if not separator or name in environment or not (name.startswith(("CNI_", "NETAVARK_")) or name == "RUST_LOG"):
            raise Invalid("a call has a variable that has no place in it", _HELP)
        environment[name] = value
    stdin = rest.field()
    rest.end()
    return Call(door, program, arguments, environment, stdin, folder)


def decode_answer(body: bytes) -> Answer:
    """From what follows the first eight bytes. Raises `Invalid`."""
    rest = _Rest(body)
    code, stdout, stderr, run = rest.number(), rest.field(), rest.field(), rest.text()
    rest.end()
    if code > 255:
        raise Invalid(f"an answer has the code {code}", "an exit code is 0 to 255")
    return Answer(code, stdout, stderr, run)


class _Rest:
    """What is still unread of a message's body."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    def number(self) -> int:
        if self._at + 4 > len(self._body):
            raise Invalid("a message is shorter than it says", _HELP)
        (number,) = _NUMBER.unpack_from(self._body, self._at)
        self._at += 4
        return int(number)

    def count(self) -> int:
        count = self.number()
        if count > _MOST_ITEMS:
            raise Invalid(f"a message announces a list of {count}", f"the limit is {_MOST_ITEMS}")
        return count

    def field(self) -> bytes:
        length = self.number()
        if self._at + length > len(self._body):
            raise Invalid("a message is shorter than it says", _HELP)
        self._at += length
        return bytes(self._body[self._at - length : self._at])

    def text(self) -> str:
        data = self.field()
        if b"\0" in data:
            raise Invalid("a message has a NUL in a text", _HELP)
        return data.decode("utf-8", "surrogateescape")

    def end(self) -> None:
        if self._at != len(self._body):
            raise Invalid("a message is longer than it says", _HELP)
