"""The CNI door of an engine in the test's own process, as a runtime's way to execute plugins."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from atoll.frontends.call import Call
from atoll.frontends.cni import answer
from tests.clients.cni_runtime import Attachment, CniError, Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from atoll import Engine

__all__ = ["Attachment", "CniError", "Door"]

PLUGINS = ("atoll", "bridge", "ptp", "macvlan", "loopback")


class Door(Runtime):
    """`add`, `delete` ... of lists, and `call` for one plugin by hand."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        #: What a call that isn't ours was left to, in order.
        self.left_to: list[str] = []
        bin_ = folder / "bin"
        bin_.mkdir(parents=True)
        for name in PLUGINS:
            (bin_ / name).touch()
        super().__init__([str(bin_)], folder / "results", execute=self._answer)

    def _answer(self, program: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
        said = answer(self.engine, Call("cni", program, (), dict(environment), stdin, "/"))
        if said.run:
            self.left_to.append(said.run)
        return said.code, said.stdout, said.stderr

    def call(self, verb: str, plugin: str, config: object, environment: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """Exit code and what was printed, which is JSON or nothing."""
        code, out, _ = self.raw(verb, plugin, config, environment)
        return code, json.loads(out) if out.strip() else {}
