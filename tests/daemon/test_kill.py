"""kill -9, at every step of every verb and at moments of chance: the next daemon finds nothing half made, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from tests.daemon.processes import Died, Flow, Inside, QuickDaemon, eventually, flow, kernel, named, open_socket
from tests.kernel.kernel_state import State, differences
from tests.support import lenient, outside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: The outside's addresses and the host's towards it (RFC 5737, RFC 3849).
HOST: Final = ("192.0.2.1", "2001:db8::1")
CLIENT: Final = ("192.0.2.2", "2001:db8::2")


class Request(NamedTuple):
    """One change, by the verb of the engine that carries it out."""

    verb: str
    method: str
    target: str
    body: dict[str, Any] | None = None


def create_network(name: str, number: int, *, dual: bool = True, **options: Any) -> Request:
    body = {"name": name, "subnets": subnets(number)[: 1 + dual], "options": {"mac": f"02:00:00:00:00:{number:02x}"}} | options
    return Request("create_network", "POST", "/v1/networks", body)


def subnets(number: int) -> list[str]:
    return [f"10.9.{number}.0/24", f"fd09:{number}::/64"]


def remove_network(name: str) -> Request:
    return Request("remove_network", "DELETE", f"/v1/networks/{name}")


def create_namespace(name: str) -> Request:
    return Request("create_namespace", "POST", "/v1/namespaces", {"name": name})


def adopt_namespace(name: str, **source: Any) -> Request:
    return Request("adopt_namespace", "POST", "/v1/namespaces", {"name": name} | source)


def remove_namespace(name: str) -> Request:
    return Request("remove_namespace", "DELETE", f"/v1/namespaces/{name}")


def connect(network: str, number: int, namespace: str, host: int, *, dual: bool = True, **options: Any) -> Request:
    addresses = [f"10.9.{number}.{host}", f"fd09:{number}::{host:x}"][: 1 + dual]
    body = {"namespace": namespace, "addresses": addresses, "mac": f"02:00:00:00:{number:02x}:{host:02x}"} | options
    return Request("connect", "POST", f"/v1/networks/{network}/endpoints", body)


def disconnect(network: str, namespace: str) -> Request:
    return Request("disconnect", "DELETE", f"/v1/networks/{network}/endpoints/{namespace}")


def publish(namespace: str, *ports: str) -> Request:
    return Request("publish", "POST", f"/v1/namespaces/{namespace}/publish", {"ports": ports})


def unpublish(namespace: str, *ports: str) -> Request:
    return Request("unpublish", "POST", f"/v1/namespaces/{namespace}/unpublish", {"ports": ports})


# --- what is there all along ---------------------------------------------------------------------------------------------------------


class Stage:
    """A host with a daemon on it, a machine outside, and two namespaces on a network that have connections when the daemon dies."""

    def __init__(self, daemon: QuickDaemon, flows: list[Flow]) -> None:
        self.daemon = daemon
        self._flows = flows
        self._before = daemon.view() if daemon.pid else {}

    def flows_go_on(self) -> None:
        for one in self._flows:
            one.goes_on()

    def others_are_untouched(self, view: dict[str, Any]) -> None:
        for kind, items in self._before.items():
            for name, item in items.items():
                assert view[kind][name] == item


@contextlib.contextmanager
def stage(folder: Path, *, bystanders: bool = True, **environment: str) -> Iterator[Stage]:
    lenient()
    with QuickDaemon(folder, **environment) as daemon, contextlib.ExitStack() as opened:
        client = opened.enter_context(outside("client", "up0", [f"{HOST[0]}/24", f"{HOST[1]}/64"], [f"{CLIENT[0]}/24", f"{CLIENT[1]}/64"]))
        flows: list[Flow] = []
        if bystanders:
            daemon.start()
            for request in (create_network("old", 1), create_namespace("old1"), create_namespace("old2")):
                daemon.call(*request[1:])
            for request in (connect("old", 1, "old1", 11, publish=["9000:9000"]), connect("old", 1, "old2", 12)):
                daemon.call(*request[1:])
            for one, address, port in (
                (client, HOST[0], 9000),
                (client, HOST[1], 9000),
                (Inside("old2"), "10.9.1.11", 9001),
                (Inside("old2"), HOST[0], 9000),
            ):
                flows.append(opened.enter_context(flow(one, address, port, Inside("old1"), port)))
        made = Stage(daemon, flows)
        if bystanders:
            daemon.kill()
        yield made


# --- every step ----------------------------------------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """Changes and those that undo them, on what is given. `crowded`: a bridge takes one endpoint, so a second one needs another bridge."""

    add: list[Request]
    remove: list[Request]
    given: Sequence[Request] = ()
    bystanders: bool = True
    crowded: bool = False


def scenes(pid: int) -> dict[str, Scene]:
    """All that is tried, by name. `pid` is a process in a network namespace of its own."""
    limits: dict[str, Any] = {"ingress_rate": "50mbit", "egress_rate": "50mbit"}
    many = ["8080:80", "8000-8009:8000-8009/udp", "7000-7004:6000-6004", "127.0.0.1:5353:53"]
    on_web = [create_network("web", 2), create_namespace("r1"), connect("web", 2, "r1", 21)]
    return {
        "network": Scene([create_network("web", 2, dual=False)], [remove_network("web")]),
        "first network": Scene([create_network("web", 2)], [remove_network("web")], bystanders=False),
        "namespace": Scene([create_namespace("r1")], [remove_namespace("r1")]),
        "endpoint": Scene(
            [connect("web", 2, "r1", 21, dual=False)],
            [disconnect("web", "r1")],
            [create_network("web", 2, dual=False), create_namespace("r1")],
        ),
        "endpoint with everything": Scene(
            [connect("web", 2, "r1", 21, publish=many, **limits)],
            [disconnect("web", "r1")],
            [create_network("web", 2, icc=False), create_namespace("r1")],
        ),
        "endpoint with the default routes": Scene(
            [connect("old", 1, "r1", 15, gateway_priority=9, publish=["8080:80"])],
            [disconnect("old", "r1")],
            [create_network("web", 2, dual=False), create_namespace("r1"), connect("web", 2, "r1", 21, dual=False)],
        ),
        "ports": Scene([publish("r1", *many)], [unpublish("r1", *many)], on_web),
        "namespace with everything": Scene(
            [*on_web[1:], connect("db", 3, "r1", 31, gateway_priority=5, publish=many, **limits)],
            [remove_namespace("r1")],
            [on_web[0], create_network("db", 3)],
        ),
        "process": Scene([adopt_namespace("p1", pid=pid)], [remove_namespace("p1")]),
        "endpoint of a process": Scene(
            [connect("web", 2, "p1", 21, publish=["8080:80"])],
            [disconnect("web", "p1")],
            [create_network("web", 2), adopt_namespace("p1", pid=pid)],
        ),
        "network with a parent that is made": Scene(
            [create_network("lan", 2, driver="macvlan", options={})],
            [remove_network("lan")],
        ),
        "endpoint with routes that end": Scene(
            [connect("web", 2, "p1", 21, routes=[{"destination": "10.77.0.0/16", "kind": "blackhole"}, {"destination": "10.78.0.0/16"}])],
            [disconnect("web", "p1")],
            [create_network("web", 2, isolation="open", routes=[{"destination": "fd77::/16"}]), adopt_namespace("p1", pid=pid)],
        ),
        "further bridge": Scene(
            [create_network("web", 2, icc=False, guard=False), connect("web", 2, "r1", 21), connect("web", 2, "r2", 22)],
            [disconnect("web", "r2"), disconnect("web", "r1"), remove_network("web")],
            [create_namespace("r1"), create_namespace("r2")],
            bystanders=False,
            crowded=True,
        ),
    }


@pytest.mark.parametrize("name", [name for name in scenes(0) if name != "namespace with everything"])
def test_death_at_any_step_of_a_change(host: None, tmp_path: Path, name: str) -> None:
    with set_up(tmp_path, name) as (here, scene):
        Sweep(here, scene.given, scene.add, scene.remove, grows=scene.crowded).run(scene.add[-1].verb)


@pytest.mark.parametrize("name", scenes(0))
def test_death_at_any_step_of_its_undoing(host: None, tmp_path: Path, name: str) -> None:
    with set_up(tmp_path, name) as (here, scene):
        Sweep(here, [*scene.given, *scene.add], scene.remove, scene.add).run(scene.remove[-1].verb)


@contextlib.contextmanager
def set_up(folder: Path, name: str) -> Iterator[tuple[Stage, Scene]]:
    environment = {}
    with sleeper() as pid:
        scene = scenes(pid)[name]
        if scene.crowded:
            (folder / "sitecustomize.py").write_text("import atoll.model\natoll.model.SHARD_PORTS = 1\n")
            environment["PYTHONPATH"] = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        with stage(folder, bystanders=scene.bystanders, **environment) as here:
            yield here, scene


class Known(NamedTuple):
    """What there is at some time: for the API, and for the kernel."""

    view: dict[str, Any]
    kernel: State


class Sweep:
    """Changes that are made again and again, with a death at another step each time, then finished and taken back."""

    def __init__(
        self, here: Stage, given: Sequence[Request], forth: Sequence[Request], back: Sequence[Request], *, grows: bool = False
    ) -> None:
        """`grows`: the changes make a network grow. It stays so, and is then as it is on the way back."""
        self._here, self._daemon = here, here.daemon
        self._forth, self._back = forth, back
        self._daemon.start()
        self._do(given)
        self._going = [self._look(), *map(self._after, forth)]
        self._coming: list[Known] = []
        for request in back:
            self._do([request])
            self._coming += [self._look()] if grows else []
        self._daemon.kill()

    def run(self, verb: str) -> None:
        step = 1
        while self._dies_at(f"{verb}:{step}"):
            step += 1
        assert step > 2, f"hardly any steps were met in {verb}"
        self._daemon.start()
        same(self._look(), self._going[0], "after all")

    def _dies_at(self, fault: str) -> bool:
        """Whether there is such a step."""
        daemon = self._daemon
        daemon.start(fault=fault)
        acknowledged = 0
        with contextlib.suppress(Died):
            for request in self._forth:
                self._do([request])
                acknowledged += 1
        if acknowledged == len(self._forth):
            self._do(self._back)
            daemon.kill()
            return False
        daemon.bury()
        self._here.flows_go_on()

        daemon.start()
        where = f"after a death at {fault}, {acknowledged} of {len(self._forth)} acknowledged"
        assert daemon.differences() == [], where
        self._here.flows_go_on()
        self._here.others_are_untouched(daemon.view())
        found = self._look()
        undone, done = self._going[acknowledged : acknowledged + 2]
        same(found, next((known for known in (done, *self._coming) if known.view == found.view), undone), where)

        self._do(self._forth[acknowledged + (found.view == done.view) :])
        assert named(daemon.view()) == self._going[-1].view, where
        assert daemon.differences() == [], where
        self._do(self._back)
        assert named(daemon.view()) == self._going[0].view, where
        daemon.kill()
        return True

    def _do(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._daemon.call(request.method, request.target, request.body)

    def _after(self, request: Request) -> Known:
        self._do([request])
        return self._look()

    def _look(self) -> Known:
        view = self._daemon.view()
        return Known(named(view), settled(view))


def same(found: Known, expected: Known, where: str) -> None:
    wrong = differences(expected.view, found.view) or differences(expected.kernel, found.kernel)
    assert not wrong, "\n".join([where, *wrong])


def settled(view: dict[str, Any]) -> State:
    """The kernel's state when the links of removed namespaces, which go a moment later and together, have gone."""
    eventually(
        lambda: not subprocess.run(["ip", "link", "show", "group", str(0x61746F6C)], capture_output=True, check=True).stdout, "links go"
    )
    return kernel(view)


@contextlib.contextmanager
def sleeper() -> Iterator[int]:
    """A process in a network namespace of its own."""
    with subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_death_at_any_step_of_the_recovery_from_a_death_and_from_damage(host: None, tmp_path: Path) -> None:
    with stage(tmp_path) as here:
        daemon = here.daemon
        daemon.start()
        for request in (create_network("web", 2), create_namespace("r1"), create_namespace("r2")):
            daemon.call(*request[1:])
        daemon.call(*connect("web", 2, "r1", 21, publish=["8080:80"])[1:])
        view = daemon.view()
        whole = settled(view)
        bridge = view["networks"]["web"]["bridge"]
        daemon.kill()

        for step in range(1, 100):
            daemon.start(fault="connect:4")
            with pytest.raises(Died):
                daemon.call(*connect("web", 2, "r2", 22, publish=["7000:70"])[1:])
            daemon.bury()
            damage = f"nft flush ruleset; ip address flush dev {bridge}; ip link set {bridge} down; sysctl -qw net.ipv4.ip_forward=0"
            subprocess.run(["sh", "-ec", damage], check=True)
            if survived := daemon.start(fault=f"open:{step}"):
                assert step > 5, "hardly any steps were met"
            else:
                daemon.bury()
                daemon.start()
            assert daemon.view() == view, f"after a death at open:{step}"
            assert daemon.differences() == [], f"after a death at open:{step}"
            wrong = differences(whole, settled(view))
            assert not wrong, "\n".join([f"after a death at open:{step}", *wrong])
            here.flows_go_on()
            daemon.kill()
            if survived:
                return


# --- any moment ----------------------------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """What there is: networks, namespaces, who is connected to what, and which of these publish their port."""

    networks: frozenset[str] = frozenset()
    namespaces: frozenset[str] = frozenset()
    endpoints: frozenset[tuple[str, str]] = frozenset()
    published: frozenset[tuple[str, str]] = frozenset()


NETWORKS: Final = {"a": 5, "b": 6}
NAMESPACES: Final = {"r1": 1, "r2": 2, "r3": 3}


def possible(model: Model) -> list[tuple[Request, Model]]:
    """Every change that can be made, with what there is then."""
    found: list[tuple[Request, Model]] = []
    for name, number in NETWORKS.items():
        if name not in model.networks:
            found.append((create_network(name, number), model._replace(networks=model.networks | {name})))
        elif all(network != name for network, _ in model.endpoints):
            found.append((remove_network(name), model._replace(networks=model.networks - {name})))
    for name in NAMESPACES:
        mine = {end for end in model.endpoints if end[1] == name}
        if name not in model.namespaces:
            found.append((create_namespace(name), model._replace(namespaces=model.namespaces | {name})))
        else:
            left = Model(model.networks, model.namespaces - {name}, model.endpoints - mine, model.published - mine)
            found.append((remove_namespace(name), left))
    for end in ((network, namespace) for network in model.networks for namespace in model.namespaces):
        network, namespace = end
        host = NAMESPACES[namespace]
        port = f"{8000 + 10 * NETWORKS[network] + host}:80"
        if end not in model.endpoints:
            found.append((connect(network, NETWORKS[network], namespace, 10 + host), model._replace(endpoints=model.endpoints | {end})))
            continue
        gone = model._replace(endpoints=model.endpoints - {end}, published=model.published - {end})
        found.append((disconnect(network, namespace), gone))
        if end in model.published:
            found.append((unpublish(namespace, port), model._replace(published=model.published - {end})))
        else:
            request = publish(namespace, port)
            named_network = request._replace(body={"network": network, **(request.body or {})})
            found.append((named_network, model._replace(published=model.published | {end})))
    return found


def model_of(view: dict[str, Any]) -> Model:
    ends = [end for name in NAMESPACES if name in view["namespaces"] for end in view["namespaces"][name]["endpoints"]]
    return Model(
        frozenset(NETWORKS.keys() & view["networks"].keys()),
        frozenset(NAMESPACES.keys() & view["namespaces"].keys()),
        frozenset((end["network"], end["namespace"]) for end in ends),
        frozenset((end["network"], end["namespace"]) for end in ends if end["ports"]),
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_death_at_any_moment_loses_nothing_that_was_acknowledged(host: None, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with stage(tmp_path) as here:
        daemon, model = here.daemon, Model()
        daemon.start()
        empty = settled(daemon.view())
        for _ in range(15):
            for _ in range(chance.randrange(6)):
                request, model = chance.choice(possible(model))
                daemon.call(*request[1:])
            request, after = chance.choice(possible(model))
            if killed_within(daemon, request, chance.uniform(0, 0.015)):
                model = after
            here.flows_go_on()
            daemon.start()
            assert daemon.differences() == [], request
            found = daemon.view()
            assert model_of(found) in (model, after), request
            model = model_of(found)
            here.others_are_untouched(found)
            here.flows_go_on()
        for name in sorted(model.namespaces):
            daemon.call(*remove_namespace(name)[1:])
        for name in sorted(model.networks):
            daemon.call(*remove_network(name)[1:])
        assert differences(empty, settled(daemon.view())) == []


def killed_within(daemon: QuickDaemon, request: Request, seconds: float) -> bool:
    """Kill the daemon some time after a request was sent; whether it was acknowledged before."""
    body = json.dumps(request.body).encode() if request.body else b""
    with open_socket(daemon.socket) as sock:
        sock.sendall(
            b"%s %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (request.method.encode(), request.target.encode(), len(body), body)
        )
        time.sleep(seconds)
        daemon.kill()
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(1 << 16):
                answer += part
    assert not answer or b" 200 " in answer.split(b"\r\n")[0], answer
    return bool(answer)
