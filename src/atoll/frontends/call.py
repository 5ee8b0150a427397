"""What a program that a container runtime executes hands to the daemon, and what it is to do then."""

from __future__ import annotations

from msgspec import Struct


class Call(Struct, frozen=True):
    """`program` is the path of the executed file as it was called, `environment` only what belongs to the door's protocol."""

    door: str
    program: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    stdin: bytes


class Answer(Struct, frozen=True):
    """`run` names a program to turn into, with the same arguments, environment and input: the one that stood there before ours."""

    code: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    run: str = ""
