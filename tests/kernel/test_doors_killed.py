"""kill -9 between any two steps of a call of Docker's or of a CNI runtime's: the client goes on as it does after a failure, and nothing is
left."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

from atoll import Engine
from atoll.frontends import cni
from atoll.frontends.call import Call
from tests.kernel.dockerd import Dockerd, endpoint_id, left, network_id, ports, sandbox_key

if TYPE_CHECKING:
    from pathlib import Path

#: A line on standard input is [step, state, door, call], and one on standard output what became of it. A step is one of `atoll.faults`, or
#: what the state file has taken.
_NURSERY: Final = """
import contextlib, json, os, signal, sys
from atoll import Engine, faults
from atoll.frontends import cni
from atoll.frontends.call import Call
from atoll.frontends.docker import Door
from atoll.frontends.docker.calls import answer
from atoll.store.sqlite import Store
for line in sys.stdin:
    steps, state, door, (name, environment, body) = json.loads(line)
    pid = os.fork()
    if pid == 0:
        with Engine.open(state) as engine:
            dockers = Door(engine)
            def step():
                global steps
                steps -= 1
                if not steps:
                    os.kill(os.getpid(), signal.SIGKILL)
            transaction = Store.transaction
            @contextlib.contextmanager
            def counted(store):
                with transaction(store):
                    yield
                step()
            faults.step, Store.transaction = step, counted
            stdin = json.dumps(body).encode()
            if door == "docker":
                answer(dockers, name, stdin)
            else:
                cni.answer(engine, Call("cni", name, (), environment, stdin, "/"))
        os._exit(0)
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), flush=True)
"""

#: A call: the method's or plugin's name, the environment, and what is said in JSON.
Said = tuple[str, dict[str, str], dict[str, Any]]


class Nursery:
    """Makes engines that die: a process that has imported everything and has one thread forks them."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-P", "-c", _NURSERY]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def dies(self, step: int, state: Path, door: str, call: Said) -> bool:
        """Whether the engine has died before it had carried the call out."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([step, str(state), door, call]) + "\n")
        self._process.stdin.flush()
        code = json.loads(self._process.stdout.readline())
        assert code in (0, -9)
        return bool(code)


# --- Docker --------------------------------------------------------------------------------------------------------------------------

_PORTS: Final = {"com.docker.network.portmap": ports((8080, 80))}
_POOL: Final = {"AddressSpace": "LocalDefault", "Pool": "10.8.1.0/24", "Gateway": "10.8.1.1/24"}
_METHODS: Final[dict[str, dict[str, Any]]] = {
    "CreateNetwork": {"Options": {}, "IPv4Data": [_POOL], "IPv6Data": None},
    "CreateEndpoint": {"Interface": {"Address": "10.8.1.9/24"}, "Options": _PORTS},
    "Join": {"SandboxKey": sandbox_key(1), "Options": {}},
    "ProgramExternalConnectivity": {"Options": _PORTS},
    "RevokeExternalConnectivity": {},
    "Leave": {},
    "DeleteEndpoint": {},
    "DeleteNetwork": {},
}


def docker(method: str) -> Said:
    ids = {"NetworkID": network_id(1)} | ({} if method.endswith("Network") else {"EndpointID": endpoint_id(1)})
    return f"NetworkDriver.{method}", {}, ids | _METHODS[method]


@pytest.mark.parametrize("method", _METHODS)
def test_docker_calls_again_and_goes_on(host: None, tmp_path: Path, method: str) -> None:
    order = list(_METHODS)
    with Nursery() as nursery:
        for step in itertools.count(1):
            state = tmp_path / str(step)

            def carried_out(dockerd: Dockerd, methods: list[str]) -> None:
                for name, _, fields in map(docker, methods):
                    dockerd.call(name, **fields)

            with Engine.open(state) as engine:
                carried_out(Dockerd(engine), order[: order.index(method)])
            died = nursery.dies(step, state, "docker", docker(method))
            with Engine.open(state) as engine:
                dockerd = Dockerd(engine)
                assert engine.differences() == []
                carried_out(dockerd, order[order.index(method) :])
                assert left(dockerd) == {}
                assert engine.differences() == []
            if not died:
                return


# --- CNI -----------------------------------------------------------------------------------------------------------------------------

_MAPPINGS: Final = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}
_LISTS: Final[dict[str, list[dict[str, Any]]]] = {
    "chain": [
        {"type": "bridge", "isDefaultGateway": True, "ipam": {"type": "host-local", "subnet": "10.5.0.0/24"}},
        {"type": "bandwidth", "ingressRate": 10**6, "ingressBurst": 10**6, "egressRate": 10**6, "egressBurst": 10**6},
        {"type": "tuning", "mtu": 1400, "sysctl": {"net.core.somaxconn": "500"}},
        {"type": "portmap", **_MAPPINGS},
    ],
    "one plugin": [{"type": "atoll", "network": {"subnets": ["10.5.0.0/24"]}, "sysctl": {"net.core.somaxconn": "500"}, **_MAPPINGS}],
}


def plugin(verb: str, configuration: dict[str, Any], previous: object) -> Said:
    words = {"COMMAND": verb, "CONTAINERID": "c1", "NETNS": "/run/netns/c1", "IFNAME": "eth0", "PATH": "/bin"}
    said = {"cniVersion": "1.0.0", "name": "n1", **configuration} | ({"prevResult": previous} if previous else {})
    return f"/nowhere/{configuration['type']}", {f"CNI_{name}": word for name, word in words.items()}, said


def answered(engine: Engine, said: Said) -> Any:
    name, environment, body = said
    answer = cni.answer(engine, Call("cni", name, (), environment, json.dumps(body).encode(), "/"))
    assert answer.code == 0, answer.stdout
    return json.loads(answer.stdout) if answer.stdout else None


def somaxconn() -> str:
    words = ["ip", "netns", "exec", "c1", "cat", "/proc/sys/net/core/somaxconn"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize("kind", _LISTS)
def test_a_runtime_deletes_and_adds_again(host: None, tmp_path: Path, kind: str, verb: str) -> None:
    chain = _LISTS[kind]
    calls = len(chain)
    with Nursery() as nursery:
        for position in range(calls):
            for step in itertools.count(1):
                state = tmp_path / f"{position}-{step}"
                subprocess.run(["ip", "netns", "add", "c1"], check=True)
                before, previous = somaxconn(), None
                with Engine.open(state) as engine:
                    for each in chain[:position] if verb == "ADD" else chain:
                        previous = answered(engine, plugin("ADD", each, previous))
                    for each in chain[: calls - position : -1] if verb == "DEL" and position else ():
                        answered(engine, plugin("DEL", each, previous))
                target = chain[position] if verb == "ADD" else chain[calls - 1 - position]
                died = nursery.dies(step, state, "cni", plugin(verb, target, previous))
                with Engine.open(state) as engine:
                    assert engine.differences() == []
                    for each in reversed(chain):
                        answered(engine, plugin("DEL", each, previous))
                    assert (engine.namespaces(), dict(engine.state.endpoints), somaxconn()) == ([], {}, before)
                    previous = None
                    for each in chain:
                        previous = answered(engine, plugin("ADD", each, previous))
                    assert somaxconn() == "500"
                    for each in reversed(chain):
                        answered(engine, plugin("DEL", each, previous))
                    for network in [*engine.state.networks.values()]:
                        engine.remove_network(network.id)
                    assert engine.differences() == []
                subprocess.run(["ip", "netns", "delete", "c1"], check=True)
                if not died:
                    break
