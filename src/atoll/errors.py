"""Every error that Atoll raises on purpose.

    AtollError
    ├── Invalid        exit 2, HTTP 400   the request itself is wrong
    ├── NotFound       exit 3, HTTP 404   no such network, namespace, endpoint
    ├── Conflict       exit 4, HTTP 409   taken, in use, already there
    ├── Denied         exit 5, HTTP 403   the caller may not
    ├── Unsupported    exit 6, HTTP 501   this kernel lacks it
    ├── Exhausted      exit 7, HTTP 507   no address, port or name is left
    └── Failed         exit 1, HTTP 500   the kernel or a tool refused; carries its own words

An error is one line, `what; hint`. `what` says what was being done to which object and what is wrong with it; `hint` says what to
do about it. A front door shows `str(error)` and nothing else.
"""

from __future__ import annotations

from typing import ClassVar


def one_line(words: str) -> str:
    """On one line, and with nothing in it that a terminal would obey: names come from anywhere."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(words.split()))


class AtollError(Exception):
    """The root of the tree: a sentence, an optional hint, and how each front door reports it."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return one_line(f"{self.what}; {self.hint}" if self.hint else self.what)


class Invalid(AtollError):
    """The request is wrong in itself, whatever the state of the host."""

    exit_code = 2
    http_status = 400


class NotFound(AtollError):
    """The object that was named does not exist."""

    exit_code = 3
    http_status = 404


class Conflict(AtollError):
    """The request is sound but something else holds what it asks for."""

    exit_code = 4
    http_status = 409


class Denied(AtollError):
    """The caller lacks the permission."""

    exit_code = 5
    http_status = 403


class Unsupported(AtollError):
    """The kernel or a tool on this machine lacks the feature."""

    exit_code = 6
    http_status = 501


class Exhausted(AtollError):
    """A pool of addresses, ports or bridge ports is used up."""

    exit_code = 7
    http_status = 507


class Failed(AtollError):
    """The kernel or a tool refused an operation that should have worked.

    `errno` is the kernel's number where there is one, else 0.
    """

    def __init__(self, what: str, hint: str = "", errno: int = 0) -> None:
        super().__init__(what, hint)
        self.errno = errno


#: The errors by the name that travels in the API's answers.
BY_NAME: dict[str, type[AtollError]] = {
    kind.__name__: kind for kind in (AtollError, Invalid, NotFound, Conflict, Denied, Unsupported, Exhausted, Failed)
}
