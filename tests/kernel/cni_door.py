"""The CNI door of an engine in the test's own process, as a runtime's way to execute plugins."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

from atoll.frontends.call import Call
from atoll.frontends.cni import answer
from atoll.frontends.cni.plugins import PLUGINS
from tests.clients.cni_runtime import Attachment, CniError, Runtime, run_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from atoll import Engine
    from tests.clients.cni_runtime import Execute

__all__ = ["Attachment", "CniError", "Door", "container", "runtime", "through"]


class Door(Runtime):
    """`add`, `delete` ... of lists, and `call` for one plugin by hand."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        #: What a call that isn't ours was left to, in order.
        self.left_to: list[str] = []
        super().__init__([_plugins(folder)], folder / "results", execute=self._answer)

    def _answer(self, program: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
        said = answer(self.engine, Call("cni", program, (), dict(environment), stdin, "/"))
        if said.run:
            self.left_to.append(said.run)
        return said.code, said.stdout, said.stderr

    def call(self, verb: str, plugin: str, config: object, environment: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """Exit code and what was printed, which is JSON or nothing."""
        code, out, _ = self.raw(verb, plugin, config, environment)
        return code, json.loads(out) if out.strip() else {}


def through(engine: Engine) -> Execute:
    """What the executed file does: it sends the call, prints the answer, or becomes the program that the answer names."""

    def execute(program: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
        words = {name: value for name, value in environment.items() if name.startswith("CNI_")}
        said = answer(engine, Call("cni", program, (), words, stdin, os.getcwd()))
        return run_file(said.run, environment, stdin) if said.run else (said.code, said.stdout, said.stderr)

    return execute


def runtime(engine: Engine, folder: Path) -> Runtime:
    """A runtime whose CNI_PATH has Atoll's plugins, and which executes what an answer leaves a call to."""
    return Runtime([_plugins(folder)], folder / "results", execute=through(engine))


def container(name: str, **more: Any) -> Attachment:
    """A container's namespace, as a runtime makes it, on the caller's host."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    return Attachment(f"id-{name}", f"/run/netns/{name}", **more)


def _plugins(folder: Path) -> str:
    bin_ = folder / "bin"
    bin_.mkdir(parents=True, exist_ok=True)
    for name in PLUGINS:
        (bin_ / name).touch()
    return str(bin_)
