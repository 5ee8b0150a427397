"""The CNI door in this process, under the runtime of `tests.clients.cni_runtime`: the same lists as against files, on one engine."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

from atoll.frontends.call import Call
from atoll.frontends.cni import answer
from atoll.frontends.cni.plugins import PLUGINS
from tests.clients.cni_runtime import Attachment, Runtime, run_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from atoll.engine import Engine
    from tests.clients.cni_runtime import Execute


def through(engine: Engine) -> Execute:
    """What the executed file does: it sends the call, prints the answer, or becomes the program that the answer names."""

    def execute(program: str, environment: Mapping[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
        words = {name: value for name, value in environment.items() if name.startswith("CNI_")}
        said = answer(engine, Call("cni", program, (), words, stdin, os.getcwd()))
        return run_file(said.run, environment, stdin) if said.run else (said.code, said.stdout, said.stderr)

    return execute


def runtime(engine: Engine, folder: Path) -> Runtime:
    """A runtime whose CNI_PATH has Atoll's plugins."""
    plugins = folder / "bin"
    plugins.mkdir(exist_ok=True)
    for name in PLUGINS:
        (plugins / name).touch()
    return Runtime([str(plugins)], folder / "cache", execute=through(engine))


def container(name: str, **more: Any) -> Attachment:
    """A container's namespace, as a runtime makes it, on the caller's host."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    return Attachment(f"id-{name}", f"/run/netns/{name}", **more)
