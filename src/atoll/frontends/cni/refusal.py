"""What a plugin answers instead of a result (CNI spec 1.1.0, section 5, "Error").

Refusal            the spec's code, a line, details
├── Unserved       nothing is wrong, but Atoll doesn't do it: the plugin that stood here before may
└── Unknown        an attachment that Atoll didn't make
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from atoll.errors import one_line
from atoll.frontends.cni.fold import fold

T = TypeVar("T")

#: The spec's error codes; 100 and above are a plugin's own: 100 and the exit code of Atoll's error.
INCOMPATIBLE: Final = 1
UNSUPPORTED: Final = 2
UNKNOWN_CONTAINER: Final = 3
BAD_ENVIRONMENT: Final = 4
IO_FAILURE: Final = 5
UNDECODABLE: Final = 6
BAD_CONFIG: Final = 7
TRY_AGAIN: Final = 11
NOT_READY: Final = 50
OWN: Final = 100


class Refusal(Exception):
    """What a plugin answers instead of a result; `details` may be empty."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(code, message, details)
        self.code, self.message, self.details = code, message, details


class Unserved(Refusal):
    """A sound request for something that Atoll doesn't do. Where the plugin that ours replaced is still there, it does it."""

    def __init__(self, what: str, instead: str) -> None:
        super().__init__(UNSUPPORTED, what, instead)


class Unknown(Refusal):
    """An attachment that isn't of our making: gone, never made, or the work of the plugin that ours replaced."""

    def __init__(self, what: str) -> None:
        super().__init__(UNKNOWN_CONTAINER, what, "nothing of it is known here")


def convert(kind: type[T], value: Any) -> T:
    """JSON as a struct, its keys matched as Go does. Raises `Refusal` where it isn't one."""
    try:
        return msgspec.convert(fold(kind, value), kind)
    except msgspec.ValidationError as error:
        raise Refusal(UNDECODABLE, "the network configuration can't be read", str(error)) from None


def error_object(version: str, code: int, message: str, details: str = "") -> bytes:
    """The error object, for standard output."""
    said: dict[str, Any] = {"cniVersion": version, "code": code, "msg": one_line(message)}
    if details:
        said["details"] = one_line(details)
    return msgspec.json.format(msgspec.json.encode(said), indent=4) + b"\n"
