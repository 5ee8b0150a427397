"""dockerd with its defaults: its own bridge, br_netfilter and iptables; containers from an image that holds busybox alone."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.errors import Failed
from bench import private, tool
from bench.traffic import Pair

if TYPE_CHECKING:
    from bench.variant import Sample

PACKAGE = "docker.io"
_IMAGE = "bench"
_SLEEP = ("/bin/busybox", "sleep", "3600")


class Docker:
    """A daemon on the host that we are in, with everything it writes in a private place."""

    def __init__(self) -> None:
        self._client = tool.find("docker", PACKAGE, "/usr/bin")
        daemon, busybox = tool.find("dockerd", PACKAGE), tool.find("busybox", "busybox-static")
        run = Path(f"/run/bench/docker-{os.getpid()}")
        data = private.SCRATCH / f"docker-{os.getpid()}"
        run.mkdir()
        data.mkdir()
        (data / "daemon.json").write_text("{}")
        self.socket = str(run / "docker.sock")
        self._environment = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": str(run)}
        self._log = data / "log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                (
                    *(daemon, "--config-file", str(data / "daemon.json"), "--exec-root", str(run / "exec")),
                    *("--data-root", str(data / "data"), "-p", str(run / "pid"), "-H", f"unix://{self.socket}"),
                    *("--cgroup-parent", f"/{private.control_group()}"),
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._await_start()
        self._import(busybox, data / "image.tar")

    def _await_start(self) -> None:
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                tool.request(self.socket, "GET", "/_ping")
            except OSError:
                time.sleep(0.05)
            except ValueError:  # the answer is a bare OK, not JSON
                return
        raise Failed(f"dockerd did not start: {self._log.read_text().strip().splitlines()[-1]}")

    def _import(self, busybox: str, image: Path) -> None:
        program = Path(busybox).read_bytes()
        with tarfile.open(image, "w") as archive:
            member = tarfile.TarInfo("bin/busybox")
            member.mode, member.size = 0o755, len(program)
            archive.addfile(member, io.BytesIO(program))
        self("import", str(image), _IMAGE)

    def __call__(self, *arguments: str) -> str:
        """The docker command: what it printed."""
        return tool.run(self._client, *arguments, environment=self._environment).strip()

    def timed(self, *arguments: str) -> float:
        """The docker command as a whole process, in milliseconds."""
        return tool.timed(self._client, *arguments, environment=self._environment)[0]

    def start(self, name: str, *options: str) -> int:
        """A container that sleeps: its pid."""
        self("run", "-d", "--name", name, *options, _IMAGE, *_SLEEP)
        return int(self("inspect", "-f", "{{.State.Pid}}", name))

    def close(self) -> None:
        """Remove all containers, so that no shim is left behind, and end the daemon."""
        containers = self("ps", "-aq").split()
        if containers:
            self("rm", "-f", *containers)
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def running() -> Iterator[Docker]:
    docker = Docker()
    try:
        yield docker
    finally:
        docker.close()


@contextmanager
def connecting(count: int) -> Iterator[Sample]:
    """Milliseconds of the HTTP request that connects a running container to a network; it publishes no port."""
    with running() as docker:
        docker.start("bench0", "--network", "bridge")
        docker("network", "create", "bench")

        def sample() -> Sequence[float]:
            results: list[float] = []
            for _ in range(count):
                elapsed, _ = tool.request(docker.socket, "POST", "/networks/bench/connect", {"Container": "bench0"})
                results.append(elapsed)
                docker("network", "disconnect", "bench", "bench0")
            return results

        yield sample


def start(docker: Docker, network: str, count: int) -> Sample:
    """Takes the milliseconds that a network and one published port add to `docker run`: the command with them less the command without.

    The daemon offers no other way to publish a port.
    """

    def once(*options: str) -> float:
        elapsed = docker.timed("run", "-d", "--name", "bench0", *options, _IMAGE, *_SLEEP)
        docker("rm", "-f", "bench0")
        return elapsed

    return lambda: [once("--network", network, "-p", "20000:80") - once("--network", "none") for _ in range(count)]


@contextmanager
def starting(count: int, *, named: bool) -> Iterator[Sample]:
    """`docker run` on a network of Docker's bridge driver, less the same without a network: on one that was made and so has names, if
    `named`, else on the default one, which has none."""
    with running() as docker:
        if named:
            docker("network", "create", "bench")
        yield start(docker, "bench" if named else "bridge", count)


@contextmanager
def listing(count: int) -> Iterator[Sample]:
    """Milliseconds of `docker network ls` as a whole process."""
    with running() as docker:
        yield lambda: [docker.timed("network", "ls") for _ in range(count)]


@contextmanager
def memory() -> Iterator[Sample]:
    """MiB of dockerd and its containerd without any container."""
    with running() as docker:
        yield lambda: [tool.resident(docker.process.pid)]


@contextmanager
def pair() -> Iterator[Pair]:
    """Two containers on the default bridge."""
    with running() as docker:
        pids = [docker.start(name) for name in ("bench0", "bench1")]
        address = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "bench1")
        client, server = (os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC) for pid in pids)
        yield Pair(client, server, address)
