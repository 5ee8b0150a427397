"""A daemon whose doors are the tests' own (`echo_door`), and forwarders that lead to it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import pytest

from atoll.frontends import forwarder
from tests.daemon.processes import Daemon, open_socket

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

#: Of the forwarder.
KINDS: Final = [
    pytest.param("c", marks=pytest.mark.skipif(shutil.which("cc") is None and os.environ.get("CI") != "true", reason="needs cc")),
    "python",
]
_CHECKOUT: Final = str(Path(__file__).parents[2])
_PROGRAM: Final = """
import sys
sys.path.insert(0, sys.argv[1])
from atoll.daemon import doors
doors.DOORS.update(dict.fromkeys(doors.DOORS, "tests.daemon.echo_door"))
from atoll.daemon.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


class EchoDaemon(Daemon):
    """The daemon, but for what is behind its doors."""

    def _launch(self, environment: dict[str, str], ready: int, log: BinaryIO) -> int:
        command = [sys.executable, "-P", "-c", _PROGRAM, _CHECKOUT, "--ready-fd", str(ready)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(ready,), cwd="/"
        )
        return self._process.pid

    def knock(self) -> socket.socket:
        """A connection to the doors."""
        return open_socket(self.run / "doors.sock")


class Said(NamedTuple):
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def echo(self) -> dict[str, Any]:
        """The call as the door got it."""
        assert (self.code, self.stderr) == (0, b""), self
        return dict(json.loads(self.stdout)["call"])

    @property
    def error(self) -> dict[str, Any]:
        """Of a call that must have failed in the client's form: one JSON object, on standard output."""
        assert (self.code, self.stderr) == (1, b""), self
        assert self.stdout.count(b"\n") == 1, self
        return dict(json.loads(self.stdout))


def execute(
    program: Path, *arguments: str | bytes, stdin: bytes = b"", environment: Mapping[str, str | bytes] | None = None, **options: Any
) -> Said:
    """The forwarder as a runtime executes it, with nothing in the environment but what is given."""
    done = subprocess.run(
        [str(program), *arguments], input=stdin, env=environment or {}, capture_output=True, check=False, timeout=90, **options
    )
    return Said(done.returncode, done.stdout, done.stderr)


def made(path: Path, kind: str, door: str = "cni", **options: Any) -> Path:
    """A forwarder of a kind ("c" or "python") at a path, by the folders that the environment names."""
    built = forwarder.build(door, compilers=["cc"] if kind == "c" else [], **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(built, path)
    assert forwarder.kind(str(path)) == kind
    return path
