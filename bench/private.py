"""A private place to run in: network, mount and process namespaces of its own, so that nothing of the machine is touched.

The outer process makes a scratch folder on disk, starts the same command again in the new namespaces and waits; when that has
ended, the kernel has ended every process that was started inside, and the outer one removes the scratch folder and the bench's
control groups. The inner process sees the machine's /etc, /opt and /var below a writable layer in memory, an empty /run, and
writes to two places only: the scratch folder and docs/.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from atoll.errors import Denied
from bench import REPOSITORY

SCRATCH = Path("/run/bench/scratch")
DOCS = Path("/run/bench/docs")

_MARK = "ATOLL_BENCH_GROUP"
_UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")


def is_private() -> bool:
    """Whether this process is the inner one."""
    return _MARK in os.environ


def control_group() -> str:
    """The name of the control group that holds the containers of this run."""
    return os.environ[_MARK]


def run_inside(arguments: list[str]) -> int:
    """Run `python -m bench` with these arguments in a private place; its exit code. Raises Denied without root."""
    if os.geteuid() != 0:
        raise Denied("the bench makes namespaces and starts peers that want root", "run it as root")
    folder = Path(tempfile.mkdtemp(prefix="atoll-bench-", dir="/var/tmp"))
    environment = {
        **os.environ,
        _MARK: folder.name,
        "ATOLL_BENCH_SCRATCH": str(folder),
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        "PYTHONPATH": str(REPOSITORY),
    }
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    inner = subprocess.Popen((*_UNSHARE, sys.executable, "-m", "bench", *arguments), env=environment)
    try:
        return inner.wait()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        inner.kill()
        inner.wait()
        shutil.rmtree(folder, ignore_errors=True)
        _remove_groups(folder.name)


def _remove_groups(name: str) -> None:
    """Remove the control groups below `name` in every hierarchy, once the kernel has buried the last process in them."""
    deadline = time.monotonic() + 5
    for group in Path("/sys/fs/cgroup").glob(f"*/{name}"):
        for below in [*sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True), group]:
            while below.exists():
                try:
                    below.rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def prepare() -> None:
    """Called once by the inner process: hide what must not be written to."""
    scratch = os.environ["ATOLL_BENCH_SCRATCH"]
    layers = SCRATCH.parent / "layers"
    _mount("-t", "tmpfs", "tmpfs", "/run")
    for folder in (SCRATCH, DOCS, layers, Path("/run/netns")):
        folder.mkdir(parents=True)
    _mount("--bind", scratch, str(SCRATCH))
    _mount("--bind", str(REPOSITORY / "docs"), str(DOCS))
    for name in ("etc", "opt", "var"):
        upper, work = layers / name / "upper", layers / name / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        _mount("-t", "overlay", "overlay", "-o", f"lowerdir=/{name},upperdir={upper},workdir={work}", f"/{name}")


def own_host() -> None:
    """Called by a forked process after it left for namespaces of its own: /sys and /run/netns belong to those from here on."""
    groups = Path("/run/bench/groups")
    groups.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "tmpfs", "/run/netns")
    _mount("--rbind", "/sys/fs/cgroup", str(groups))
    _mount("-t", "sysfs", "sysfs", "/sys")
    _mount("--rbind", str(groups), "/sys/fs/cgroup")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
