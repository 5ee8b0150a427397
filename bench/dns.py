"""Questions for names of containers, from one namespace to the gateway: Atoll's name server beside aardvark-dns and dnsmasq.

All know the same names. Server and client sit on one core, whatever their number of threads, as everywhere in this bench: on two, it
would be dnsperf that is measured, which does more for a question than any of the servers.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from atoll.errors import Failed
from bench import netns, tool

if TYPE_CHECKING:
    from bench.variant import Sample

GATEWAY, CLIENT, SUBNET = "10.69.0.1", "10.69.0.2", "10.69.0.0/16"
NAMES = 1000

_FOLDER = "/usr/lib/podman"
#: The address of container0, as a message.
_QUESTION = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + b"\x0acontainer0\0" + b"\0\1\0\1"
#: Seconds that a server may take until it answers.
_PATIENCE = 10.0


class _Perf(NamedTuple):
    """dnsperf in the client's namespace."""

    namespace: int
    questions: str

    def run(self, *options: str) -> str:
        cores = sorted(os.sched_getaffinity(0) - {_core()}) or [_core()]
        command = (
            "taskset",
            "-c",
            ",".join(map(str, cores)),
            tool.find("dnsperf", "dnsperf"),
            "-s",
            GATEWAY,
            "-d",
            self.questions,
            *options,
        )
        with netns.inside(self.namespace):
            return tool.run(*command)


def _core() -> int:
    return max(os.sched_getaffinity(0))


def _hosts() -> list[tuple[str, str]]:
    return [(f"container{number}", f"10.69.{1 + number // 250}.{2 + number % 250}") for number in range(NAMES)]


def _folder(name: str) -> str:
    folder = f"/run/bench/dns-{os.getpid()}/{name}"
    os.makedirs(folder, exist_ok=True)
    return folder


@contextmanager
def atoll() -> Iterator[int]:
    """Atoll's name server, by pid."""
    from atoll.dns import child, zone

    network = zone.NetworkNames("bench", "bench", (GATEWAY,), (SUBNET,), internal=True)
    asker = zone.EndpointNames("client", "bench", "client", ("client",), (CLIENT,))
    others = (zone.EndpointNames(name, "bench", name, (name,), (address,)) for name, address in _hosts())
    server = child.NameServer()
    try:
        errors = server.update(zone.Update(1, networks=(network,), endpoints=(asker, *others)))
        if errors:
            raise Failed("; ".join(errors))
        yield server.pid
    finally:
        server.close()


@contextmanager
def aardvark() -> Iterator[int]:
    """aardvark-dns, with its configuration as netavark writes it: a folder in which every file is a network."""
    folder = _folder("aardvark")
    lines = [GATEWAY, f"{'c' * 64} {CLIENT}  client", *(f"{number:064x} {host[1]}  {host[0]}" for number, host in enumerate(_hosts()))]
    with open(f"{folder}/bench%int", "w") as file:
        file.write("\n".join(lines) + "\n")
    # It goes to the background when it listens, and says as whom.
    tool.run(tool.find("aardvark-dns", "aardvark-dns", _FOLDER), "--config", folder, "-p", "53", "run")
    with open(f"{folder}/aardvark.pid") as file:
        pid = int(file.read())
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)


@contextmanager
def dnsmasq() -> Iterator[int]:
    """dnsmasq, with its names as a hosts file."""
    folder = _folder("dnsmasq")
    with open(f"{folder}/hosts", "w") as file:
        file.writelines(f"{address} {name}\n" for name, address in _hosts())
    options = ("--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", f"--addn-hosts={folder}/hosts", "--user=root")
    listen = (f"--listen-address={GATEWAY}", "--bind-interfaces", "--pid-file=", "--local-ttl=0")
    command = (tool.find("dnsmasq", "dnsmasq-base"), *options, *listen)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _answers() -> bool:
    """Whether somebody answers at the gateway, the right way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        try:
            sock.connect((GATEWAY, 53))
            sock.send(_QUESTION)
            return socket.inet_aton(dict(_hosts())["container0"]) in sock.recv(512)
        except OSError:
            return False


@contextmanager
def _asking(serve: Callable[[], AbstractContextManager[int]]) -> Iterator[_Perf]:
    """A network with one client, whose gateway serves."""
    client = netns.create()
    tool.run("ip", "link", "add", "dns0", "type", "bridge")
    tool.run("ip", "addr", "add", f"{GATEWAY}/16", "dev", "dns0")
    tool.run("ip", "link", "set", "dns0", "up")
    tool.run("ip", "link", "add", "port0", "master", "dns0", "up", "type", "veth", "peer", "name", "eth0", "netns", netns.path(client))
    with netns.inside(client):
        tool.run("ip", "addr", "add", f"{CLIENT}/16", "dev", "eth0")
        tool.run("ip", "link", "set", "eth0", "up")
    questions = f"{_folder('client')}/questions"
    with open(questions, "w") as file:
        file.writelines(f"{name} A\n" for name, _ in _hosts())
    with serve() as pid:
        deadline = time.monotonic() + _PATIENCE
        while True:
            with netns.inside(client):
                if _answers():
                    break
            if time.monotonic() > deadline:
                raise Failed(f"no answer from {GATEWAY} port 53 within {_PATIENCE:g} s")
            time.sleep(0.05)
        # All threads, and those to come.
        tool.run("taskset", "--all-tasks", "--cpu-list", "--pid", str(_core()), str(pid))
        yield _Perf(client, questions)
        os.kill(pid, signal.SIGCONT)  # raises if it has ended, so that no figure of a dead server counts


def _found(pattern: str, output: str) -> float:
    found = re.search(pattern, output)
    if found is None:
        raise Failed(f"dnsperf printed nothing like {pattern}")
    return float(found[1])


@contextmanager
def throughput(serve: Callable[[], AbstractContextManager[int]], seconds: int) -> Iterator[Sample]:
    """Thousand answers a second to a client that always has 100 questions under way; a round gives one sample. Raises Failed if one was
    lost or wrong."""
    with _asking(serve) as perf:

        def sample() -> Sequence[float]:
            output = perf.run("-l", str(seconds), "-q", "100", "-t", "2")
            if _found(r"Queries lost: +(\d+)", output) or _found(r"NOERROR \d+ \((\d+\.\d+)%\)", output) < 100:
                raise Failed(f"lost or wrong answers: {output}")
            return [_found(r"Queries per second: +([\d.]+)", output) / 1e3]

        yield sample


@contextmanager
def latency(serve: Callable[[], AbstractContextManager[int]], count: int) -> Iterator[Sample]:
    """Microseconds from question to answer, one after the other, both ends on one core; a round gives `count` samples, each the mean of
    100 questions."""
    with _asking(serve) as perf:
        os.sched_setaffinity(0, {_core()})
        with netns.inside(perf.namespace):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((GATEWAY, 53))
        sock.settimeout(2)

        def sample() -> Sequence[float]:
            results: list[float] = []
            for _ in range(count):
                begin = time.perf_counter_ns()
                for _ in range(100):
                    sock.send(_QUESTION)
                    sock.recv(512)
                results.append((time.perf_counter_ns() - begin) / 100 / 1e3)
            return results

        yield sample
        sock.close()
