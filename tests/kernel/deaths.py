"""An engine in a process of its own that is killed at a step of a verb (`atoll.faults`), again and again.

The process that forks it has imported everything and has one thread, so that hundreds of deaths take seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: A line on standard input is [fault, state, calls], and one on standard output what became of it. An object among a call's words is what
#: `tune` takes.
_NURSERY: Final = """
import importlib, json, os, sys
from pathlib import Path
from atoll import Engine, faults
from atoll.engine.files import Files
from atoll.model import Tuning
for line in sys.stdin:
    fault, state, calls = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.environ["ATOLL_FAULT"] = fault
        importlib.reload(faults)
        with Engine.open(state, files=Files(Path(state) / "files")) as engine:
            for verb, words, options in calls:
                getattr(engine, verb)(*(Tuning(**word) if isinstance(word, dict) else word for word in words), **options)
        os._exit(0)
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), flush=True)
"""

Call = tuple[str, list[Any], dict[str, Any]]


def call(verb: str, *words: Any, **options: Any) -> Call:
    return verb, list(words), options


class Deaths:
    """Engines on the calling thread's host, with their state in a folder."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def dies(self, fault: str, calls: Sequence[Call]) -> bool:
        """Whether the engine has died of the fault before it had done everything."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([fault, str(self._state), calls]) + "\n")
        self._process.stdin.flush()
        code = json.loads(self._process.stdout.readline())
        assert code in (0, -9), f"the engine ended with {code} at {fault}"
        return bool(code)
