"""Running other programs: one function for what is set up, one for what is timed."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from atoll.errors import Failed, Unsupported

_PR_SET_CHILD_SUBREAPER = 36


def find(name: str, package: str, folder: str = "") -> str:
    """The path of a program, looked for in `folder` before PATH. Raises Unsupported."""
    found = (shutil.which(name, path=folder) if folder else None) or shutil.which(name)
    if found is None:
        raise Unsupported(f"{name} is not installed", f"apt-get install {package}")
    return found


def run(*command: str, text: str = "", environment: Mapping[str, str] | None = None) -> str:
    """What the command printed. Raises Failed with the command and its complaint."""
    done = subprocess.run(command, input=text, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        complaint = " | ".join((done.stderr.strip() or done.stdout.strip() or "no message").splitlines())
        raise Failed(f"{' '.join(command)[:100]}: exit {done.returncode}: {complaint[:400]}")
    return done.stdout


def timed(*command: str, text: str = "", environment: Mapping[str, str] | None = None) -> tuple[float, str]:
    """The command as a whole process: milliseconds from start to end, and what it printed. Raises Failed."""
    begin = time.perf_counter_ns()
    output = run(*command, text=text, environment=environment)
    return (time.perf_counter_ns() - begin) / 1e6, output


def processes(root: int) -> Sequence[int]:
    """The process `root` and all below it, by pid."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    parent = int(stat.read().rpartition(")")[2].split()[1])
            except FileNotFoundError:
                continue
            children.setdefault(parent, []).append(int(entry))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def adopt_orphans() -> None:
    """Be the parent of every process below this one whose own parent ends, prctl(2)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def resident(root: int) -> float:
    """The resident memory of a process and all below it, MiB; shared pages count once for each, as `ps` shows them."""
    total = 0
    for pid in processes(root):
        with open(f"/proc/{pid}/status") as status:
            total += sum(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
    return total / 1024


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def request(path: str, method: str, target: str, body: object = None) -> tuple[float, Any]:
    """One HTTP request over the unix socket `path`, connection included: milliseconds, the decoded answer. Raises Failed."""
    begin = time.perf_counter_ns()
    connection = _UnixConnection(path)
    text = None if body is None else json.dumps(body)
    connection.request(method, target, text, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    elapsed = (time.perf_counter_ns() - begin) / 1e6
    if response.status >= 300:
        raise Failed(f"{method} {target}: HTTP {response.status}: {answer.decode(errors='replace').strip()}")
    return elapsed, json.loads(answer) if answer.strip() else None


def package_version(package: str) -> str:
    """The version of a Debian package, or "missing"."""
    try:
        done = subprocess.run(("dpkg-query", "-W", "-f", "${Version}", package), capture_output=True, text=True)
    except FileNotFoundError:
        return "of unknown version"
    return done.stdout if done.returncode == 0 and done.stdout else "missing"
