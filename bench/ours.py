"""Atoll's own variants. Everything that the bench knows of the engine's interface is in this module.

The library is imported by the forked process that measures it and nowhere else, so an engine that is missing or unfinished is a
note in the table, and the floor and the peers are measured all the same.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll.errors import Failed, Unsupported
from bench import netns, private, tool, traffic
from bench.bare import FIRST
from bench.floor import Nftables
from bench.traffic import Pair, Published

if TYPE_CHECKING:
    from bench.variant import Sample

NETWORK = "bench"
SUBNET = "10.66.0.0/16"

#: How many ports one namespace publishes where many namespaces publish many between them.
_EACH = 100
#: How many ports go into one call where one namespace publishes them all.
_BATCH = 1000


def _state() -> Path:
    """A folder on disk of this variant's own."""
    folder = private.SCRATCH / f"atoll-{os.getpid()}"
    folder.mkdir()
    return folder


class Opened(NamedTuple):
    """An engine and the thread that is its own, as in the daemon; `run` runs a function there."""

    engine: Any
    run: Callable[[Callable[[], Any]], Any]


@contextmanager
def _opened() -> Iterator[Opened]:
    """An engine in this process, on a thread of its own, with one empty network. Raises Unsupported."""
    with ThreadPoolExecutor(1) as thread:

        def run(function: Callable[[], Any]) -> Any:
            return thread.submit(function).result()

        try:
            engine = run(lambda: importlib.import_module("atoll").Engine.open(state=str(_state()), own_thread=True))
        except (ImportError, AttributeError) as error:
            raise Unsupported(f"not available: {error}") from error
        run(lambda: engine.create_network(NETWORK, subnets=[SUBNET]))
        try:
            yield Opened(engine, run)
        finally:
            run(engine.close)


def _attach(engine: Any, first: int, count: int) -> None:
    """Namespaces n<first>..., each connected with one published port."""
    for number in range(first, first + count):
        engine.create_namespace(f"n{number}")
        engine.connect(NETWORK, f"n{number}", publish=[f"{FIRST + number}:{traffic.PORT}"])


def _namespace(name: str) -> int:
    """A descriptor of a namespace that the engine made, found as `ip netns` finds it."""
    return os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def connecting(endpoints: int, count: int) -> Iterator[Sample]:
    """Milliseconds of engine.connect with one published port for a given namespace, beside `endpoints` others."""
    with _opened() as (engine, run):
        run(lambda: _attach(engine, 0, endpoints))
        names = [f"n{endpoints + number}" for number in range(count)]

        def sample() -> Sequence[float]:
            results: list[float] = []
            for name in names:
                engine.create_namespace(name)
            for number, name in enumerate(names):
                begin = time.perf_counter_ns()
                engine.connect(NETWORK, name, publish=[f"{1000 + number}:{traffic.PORT}"])
                results.append((time.perf_counter_ns() - begin) / 1e6)
            for name in names:
                engine.remove_namespace(name)
            engine.settle()
            return results

        yield lambda: run(sample)


@contextmanager
def laboratory(namespaces: int) -> Iterator[Sample]:
    """Milliseconds until a new lab has so many namespaces on a network; one lab a round."""

    def sample() -> Sequence[float]:
        with importlib.import_module("atoll.lab").Lab() as lab:
            begin = time.perf_counter_ns()
            lab.namespaces(*(f"n{number}" for number in range(namespaces)), network=NETWORK)
            return [(time.perf_counter_ns() - begin) / 1e6]

    yield sample


def _publish(engine: Any, ports: int) -> None:
    """`ports` ports of the host, one element each, lead to namespaces of which each has _EACH; one more is called `spare`."""
    for first in range(0, ports, _EACH):
        name = f"n{first // _EACH}"
        engine.create_namespace(name)
        specs = [f"{FIRST + port}:{traffic.PORT}" for port in range(first, min(first + _EACH, ports))]
        engine.connect(NETWORK, name, publish=specs)
    engine.create_namespace("spare")
    engine.connect(NETWORK, "spare")


def _publish_alone(engine: Any, ports: int) -> None:
    """`ports` ports of the host, one element each, all lead to the namespace `spare`."""
    engine.create_namespace("spare")
    engine.connect(NETWORK, "spare")
    for first in range(0, ports, _BATCH):
        engine.publish("spare", [f"{FIRST + port}:{traffic.PORT}" for port in range(first, min(first + _BATCH, ports))])


@contextmanager
def publishing(ports: int, count: int, *, alone: bool) -> Iterator[Sample]:
    """Milliseconds of engine.publish for one port beside `ports` others: of the same namespace if `alone`, else of others."""
    with _opened() as (engine, run):
        load = _publish_alone if alone else _publish
        run(lambda: load(engine, ports))
        specs = [f"1000:{traffic.PORT}"]

        def sample() -> Sequence[float]:
            results: list[float] = []
            for _ in range(count):
                begin = time.perf_counter_ns()
                engine.publish("spare", specs)
                results.append((time.perf_counter_ns() - begin) / 1e6)
                engine.unpublish("spare", specs)
            return results

        yield lambda: run(sample)


@contextmanager
def published(ports: int) -> Iterator[Published]:
    """A client outside and the middle one of `ports` published ports."""
    with _opened() as (engine, run):
        run(lambda: _publish(engine, ports))
        middle = ports // 2
        yield Published(traffic.outside(), _namespace(f"n{middle // _EACH}"), f"{traffic.OUTSIDE}.1", FIRST + middle)


@contextmanager
def pair() -> Iterator[Pair]:
    """Two namespaces on one network, with the guards that are on by default."""
    with _opened() as (engine, run):

        def attach() -> None:
            for name, address in (("a", "10.66.0.2"), ("b", "10.66.0.3")):
                engine.create_namespace(name)
                engine.connect(NETWORK, name, addresses=[address])

        run(attach)
        yield Pair(_namespace("a"), _namespace("b"), "10.66.0.3")


@contextmanager
def churning(count: int) -> Iterator[Sample]:
    """Seconds to create `count` namespaces, connect and remove them, until the kernel has taken the last one down."""
    with _opened() as (engine, run):

        def sample() -> Sequence[float]:
            begin = time.perf_counter()
            _attach(engine, 0, count)
            for number in range(count):
                engine.remove_namespace(f"n{number}")
            engine.settle()
            netns.settle()
            return [time.perf_counter() - begin]

        yield lambda: run(sample)


def _ruleset() -> list[str]:
    """The words of the ruleset without counters, in an order that doesn't depend on how the kernel hashes elements."""
    return sorted(tool.run("nft", "-s", "list", "ruleset").replace(",", " ").split())


class Daemon:
    """`atoll daemon run` on the host that we are in, its command line and its socket."""

    def __init__(self) -> None:
        beside = Path(sys.executable).with_name("atoll")
        program = str(beside) if beside.exists() else shutil.which("atoll")
        if program is None:
            raise Unsupported("not available: no atoll command", "pip install -e .")
        self._program = program
        self.run, state = Path(f"/run/bench/atoll-{os.getpid()}"), _state()
        self._socket = str(self.run / "atoll.sock")
        self.folders = {"ATOLL_STATE": str(state), "ATOLL_RUN": str(self.run)}
        self._environment = {**os.environ, **self.folders}
        log = state / "log"
        with log.open("w") as output:
            self.process = subprocess.Popen(
                (program, "daemon", "run"), env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + 15
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                tool.request(self._socket, "GET", "/v1/networks")
            except OSError:
                time.sleep(0.02)
            else:
                return
        self.close()
        raise Failed(f"atoll daemon run does not answer: {' '.join(log.read_text().split()) or 'it said nothing'}")

    def __call__(self, *arguments: str) -> float:
        """The command as a whole process, in milliseconds."""
        return tool.timed(self._program, *arguments, environment=self._environment)[0]

    def _post(self, target: str, **body: object) -> float:
        return tool.request(self._socket, "POST", target, body)[0]

    def create_network(self, name: str, subnet: str) -> None:
        self._post("/v1/networks", name=name, subnets=[subnet])

    def create_namespace(self, name: str) -> None:
        self._post("/v1/namespaces", name=name)

    def connect(self, name: str, port: int) -> float:
        """Milliseconds of the request."""
        return self._post(f"/v1/networks/{NETWORK}/endpoints", namespace=name, publish=[f"{port}:{traffic.PORT}"])

    def remove(self, name: str) -> None:
        """Remove the namespace and its endpoint."""
        tool.request(self._socket, "DELETE", f"/v1/namespaces/{name}")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def _daemon(endpoints: int) -> Iterator[Daemon]:
    """A daemon with `endpoints` endpoints on one network."""
    daemon = Daemon()
    try:
        daemon.create_network(NETWORK, SUBNET)
        for number in range(endpoints):
            daemon.create_namespace(f"n{number}")
            daemon.connect(f"n{number}", FIRST + number)
        yield daemon
    finally:
        daemon.close()


@contextmanager
def requesting(endpoints: int, count: int) -> Iterator[Sample]:
    """Milliseconds of the HTTP request that connects a given namespace with one published port."""
    with _daemon(endpoints) as daemon:

        def sample() -> Sequence[float]:
            results: list[float] = []
            for number in range(count):
                daemon.create_namespace("given")
                results.append(daemon.connect("given", 1000 + number))
                daemon.remove("given")
            # Ports that were given up are settled before they are used again.
            time.sleep(0.3)
            return results

        yield sample


@contextmanager
def commanding(endpoints: int, count: int) -> Iterator[Sample]:
    """Milliseconds of `atoll connect` as a whole process for a given namespace with one published port."""
    with _daemon(endpoints) as daemon:

        def sample() -> Sequence[float]:
            results: list[float] = []
            for _ in range(count):
                daemon.create_namespace("given")
                results.append(daemon("connect", NETWORK, "given", "-p", f"1000:{traffic.PORT}"))
                daemon.remove("given")
            return results

        yield sample


@contextmanager
def listing(count: int) -> Iterator[Sample]:
    """Milliseconds of `atoll network ls` as a whole process, with the daemon running."""
    with _daemon(0) as daemon:
        yield lambda: [daemon("network", "ls") for _ in range(count)]


@contextmanager
def memory(endpoints: int) -> Iterator[Sample]:
    """MiB of the daemon and all its processes with `endpoints` endpoints."""
    with _daemon(endpoints) as daemon:
        yield lambda: [tool.resident(daemon.process.pid)]


@contextmanager
def repairing(endpoints: int) -> Iterator[Sample]:
    """Seconds from the start of a flush of the whole ruleset until the daemon has put it back, all of it in one transaction."""
    nft = importlib.import_module("atoll.kernel.nft")
    with _daemon(endpoints), nft.open_socket() as sock:
        flusher = Nftables()

        def sample() -> Sequence[float]:
            before = _ruleset()
            # In the process and with the clock running: by the time that an `nft` process has ended, the daemon may be done.
            begin = time.perf_counter()
            flusher.apply(b"flush ruleset")
            while not nft.has_table(sock, "inet", "atoll"):
                if time.perf_counter() - begin > 10:
                    raise Failed("the daemon did not repair the flushed ruleset", "see its log")
                time.sleep(0.0005)
            elapsed = time.perf_counter() - begin
            # A listing that meets the transaction may show tables without content; and the daemon looks again after it has repaired,
            # which is not part of the next sample.
            time.sleep(0.2)
            if _ruleset() != before:
                raise Failed("repairing the flushed ruleset: it is not what it was before", "see engine.repair")
            return [elapsed]

        yield sample
