"""One network for everything on the host, with everything real at once: a Docker container, a Podman container, a CNI runtime's pod and a
plain process on the same Atoll network reach each other by address and by name, publish ports through the same engine, and show up in the
same `ls`, `graph` and `explain`. Then all of it is removed, and the host is as it was.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.clients import docker_host, podman_host
from tests.clients.cni_host import FOLDER, REFERENCE, CniHost
from tests.clients.neighbours_host import Host, need, private_host
from tests.kernel.kernel_state import Shell, State, comparable, differences, exact, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.clients.cni_runtime import Json
    from tests.clients.docker_host import DockerHost
    from tests.clients.podman_host import PodmanHost

NETWORK: Final = "common"
SUBNET: Final = "10.77.0.0/24"
#: Who is on the network, with the host port that leads to each.
PORTS: Final = {"dock": 8081, "pod": 8082, "cnipod": 8083, "plain": 8084}
#: The pod as a CNI runtime is told of it.
MAPPED: Final[Json] = {"portMappings": [{"hostPort": PORTS["cnipod"], "containerPort": 80, "protocol": "tcp"}]}
LIST: Final[Json] = {"cniVersion": "1.1.0", "name": NETWORK, "plugins": [{"type": "atoll", "capabilities": {"portMappings": True}}]}
#: The same network as it stands in a list for the reference plugins.
_IPAM: Final[Json] = {"type": "host-local", "ranges": [[{"subnet": SUBNET, "rangeEnd": "10.77.0.63"}]], "routes": [{"dst": "0.0.0.0/0"}]}
CHAIN: Final[Json] = {
    "cniVersion": "1.0.0",
    "name": NETWORK,
    "plugins": [
        {"type": "bridge", "bridge": "cni7", "isGateway": True, "ipMasq": True, "ipam": _IPAM},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall"},
    ],
}
#: Its namespace, as a runtime calls one, and what Kubernetes says of it.
NETNS: Final = "cni-0f3a"
POD: Final = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "cnipod"}
FACING: Final = docker_host.FACING
_COUNTED: Final = re.compile(r'"counter": {"packets": \d+, "bytes": \d+}')


class Everyone:
    """A host with all four kinds of client."""

    def __init__(self, host: Host, docker: DockerHost, folder: Path) -> None:
        self.host, self.docker = host, docker
        self.podman: PodmanHost = podman_host.PodmanHost(host)
        self.runtime = CniHost(host, folder)
        #: What the CNI runtime is told of the network.
        self.list = LIST

    def state(self) -> State:
        """What the kernel holds of the host, and of all namespaces that have names there; what Docker counts and makes anew aside."""
        shell = Shell()
        shell.prefix = tuple(self.host.enter)
        return dict(json.loads(_COUNTED.sub('"counter": null', json.dumps(comparable(exact(read(shell)))))))

    def within(self, name: str) -> list[str]:
        """What goes before a command to have it run inside of one of the four."""
        match name:
            case "dock":
                return ["docker", "exec", name]
            case "pod":
                return ["podman", "exec", name]
            case "cnipod":
                return ["ip", "netns", "exec", NETNS, "busybox"]
            case "plain":
                return [docker_host.ATOLL, "ns", "exec", name, "--", "busybox"]
            case _:
                return ["ip", "netns", "exec", name, "busybox"]

    def fetch(self, name: str, where: str) -> str:
        """What a web server says to one of the four, or to the machine outside; empty when there is no answer."""
        return self.host.runner([*self.within(name), "wget", "-q", "-O", "-", f"http://{where}/"])[1].strip()

    def addresses(self) -> dict[str, str]:
        return {item["name"]: item["endpoints"][0]["addresses"][0].partition("/")[0] for item in self.docker.shown("ns", "ls")}

    # --- coming ---

    def make_podmans(self) -> None:
        """What Podman knows of the network. It takes addresses out of a part of its own, and refuses subnets that the host has already."""
        self.podman.podman("network", "create", "--subnet", SUBNET, "--ip-range", "10.77.0.64/26", NETWORK)

    def make_atolls(self) -> None:
        self.docker.atoll("network", "create", NETWORK, "--subnet", SUBNET, "--ip-range", "10.77.0.128/25")

    def make_dockers(self, *, join: bool) -> None:
        create = ["network", "create", "-d", "atoll", "--ipam-driver", "atoll"]
        if join:
            create += ["--ipam-opt", f"network={NETWORK}", "-o", f"network={NETWORK}"]
        else:
            create += ["--subnet", SUBNET, "--ip-range", "10.77.0.128/25"]
        self.docker.docker(*create, NETWORK)
        if not join:
            self.host.wait_for("the network's name to be known", lambda: NETWORK in self.docker.networks())

    def start(self, name: str) -> None:
        """One of the four, until it serves at the port that it publishes."""
        number = PORTS[name]
        match name:
            case "dock":
                self.docker.serve(name, "--network", NETWORK, "-p", f"{number}:80")
            case "pod":
                self.podman.serve(name, "--network", NETWORK, "-p", f"{number}:80")
            case "cnipod":
                self._start_pod()
            case _:
                self.host.run("sh", "-c", "mkdir -p /run/www-plain; echo plain >/run/www-plain/index.html")
                serve = ["busybox", "httpd", "-f", "-p", "80", "-h", "/run/www-plain"]
                self.docker.atoll("run", "-d", "--network", NETWORK, "--name", name, "-p", f"{number}:80", "--", *serve)
        self.host.wait_for(f"{name} to serve", lambda: self.docker.fetch(f"http://{FACING}:{number}/") == name)

    def _start_pod(self) -> None:
        """As a runtime does: a namespace, its interface by CNI, a resolv.conf of what the result says, and then the program."""
        pod = self.runtime.container(NETNS, arguments=POD, capabilities=MAPPED)
        dns = self.runtime.cni.add(self.list, pod)["dns"]
        # A runtime that is told of no server takes the host's; here the gateway is as good as it.
        servers = dns.get("nameservers") or ["10.77.0.1"]
        lines = [*(f"nameserver {server}" for server in servers), f"search {' '.join(dns.get('search', ['.']))}"]
        script = f"mkdir -p /etc/netns/{NETNS} /run/www; echo cnipod >/run/www/index.html; cat >/etc/netns/{NETNS}/resolv.conf"
        self.host.run("sh", "-c", f"{script} <<'END'\n" + "\n".join(lines) + "\nEND")
        self.host.start("cnipod", "ip", "netns", "exec", NETNS, "busybox", "httpd", "-f", "-p", "80", "-h", "/run/www")

    # --- going ---

    def stop(self, name: str) -> None:
        match name:
            case "dock":
                self.docker.docker("rm", "-f", name)
            case "pod":
                self.podman.podman("rm", "-f", "-t", "0", name)
            case "cnipod":
                self.runtime.cni.delete(self.list, self.runtime.known(NETNS, arguments=POD, capabilities=MAPPED))
                self.host.stop("cnipod")
                self.host.run("sh", "-c", f"ip netns delete {NETNS}; rm -r /etc/netns/{NETNS}")
            case _:
                self.docker.atoll("stop", name)
        self.host.wait_for(f"{name} to be gone", lambda: name not in self.docker.namespaces())

    def remove_networks(self, maker: str) -> None:
        """Docker's and Podman's own go with them; others stay until somebody removes them."""
        self.docker.docker("network", "rm", NETWORK)
        self.podman.podman("network", "rm", NETWORK)
        if maker in ("dock", "pod"):
            self.host.wait_for("the network to be gone", lambda: NETWORK not in self.docker.networks())
        else:
            self.docker.atoll("network", "rm", NETWORK)


@pytest.fixture
def all_four(tmp_path: Path) -> Iterator[Everyone]:
    need("podman", "crun", "conmon", "dockerd", "docker", "busybox", "curl", podman_host.ORIGINAL, f"{REFERENCE}/bridge")
    with private_host() as host:
        podman_host.prepare(host)
        made = Everyone(host, docker_host.prepare(host), tmp_path)
        made.docker.atoll("podman", "install")
        made.docker.atoll("cni", "install", "--replace", "--dir", FOLDER)
        yield made
        with contextlib.suppress(AssertionError):
            made.docker.atoll("daemon", "stop")


@pytest.mark.timeout(300)
def test_everything_on_the_host_shares_one_network(all_four: Everyone) -> None:
    before = all_four.state()
    all_four.make_podmans()
    all_four.make_atolls()
    all_four.make_dockers(join=True)
    for name in PORTS:
        all_four.start(name)
    addresses = all_four.addresses()
    assert set(addresses) == set(PORTS)
    assert len(set(addresses.values())) == 4

    # Each reaches each by address and by name, and by the port that it publishes; so does the world outside.
    pairs = list(itertools.permutations(PORTS, 2))
    assert {pair: all_four.fetch(pair[0], addresses[pair[1]]) for pair in pairs} == {pair: pair[1] for pair in pairs}
    assert {pair: all_four.fetch(*pair) for pair in pairs} == {pair: pair[1] for pair in pairs}
    # Not itself by its own port: beside Docker, bridge-nf-call-iptables stays on, and that stands in the way (`atoll status` says so).
    published = [*pairs, *(("outside", name) for name in PORTS)]
    assert {pair: all_four.fetch(pair[0], f"{FACING}:{PORTS[pair[1]]}") for pair in published} == {pair: pair[1] for pair in published}

    # They are in one list, in one picture, and what lies between them is explained.
    listed = all_four.docker.shown("ls")
    assert {item["name"]: item["who"] for item in listed} == {"dock": "docker", "pod": "podman", "cnipod": "cni", "plain": "run"}
    assert {item["name"]: item["ports"] for item in listed} == {name: [f"{number}:80/tcp"] for name, number in PORTS.items()}
    graph = json.loads(all_four.docker.atoll("graph", "--format", "json"))
    assert set(PORTS) <= words_in(graph)
    for one, other in pairs:
        code, said, _ = all_four.host.runner([docker_host.ATOLL, "explain", one, f"{other}:80"])
        assert code == 0, said
        assert other in said
    assert all_four.docker.shown("doctor")["differences"] == []

    # A daemon that is killed changes nothing for them, and knows them all when it is back.
    all_four.docker.kill("atoll")
    assert {pair: all_four.fetch(pair[0], addresses[pair[1]]) for pair in pairs} == {pair: pair[1] for pair in pairs}
    all_four.docker.start_atoll()
    all_four.docker.follows()
    assert all_four.addresses() == addresses
    assert {pair: all_four.fetch(*pair) for pair in pairs} == {pair: pair[1] for pair in pairs}

    # Gone, one after the other, and the host is as it was.
    for name in PORTS:
        all_four.stop(name)
    assert all_four.docker.shown("ns", "ls") == []
    all_four.remove_networks("plain")
    assert all_four.docker.left() == {}
    assert differences(before, all_four.state()) == []


@pytest.mark.timeout(300)
def test_whoever_makes_the_network_the_others_join_it_and_stay_when_its_maker_leaves(all_four: Everyone) -> None:
    before = all_four.state()
    for maker in ("dock", "pod", "cnipod"):
        all_four.list = CHAIN if maker == "cnipod" else LIST
        all_four.make_podmans()
        if maker == "dock":
            all_four.make_dockers(join=False)
        all_four.start(maker)
        if maker != "dock":
            all_four.make_dockers(join=True)
        others = [name for name in PORTS if name != maker]
        for name in others:
            all_four.start(name)
        all_know_each_other(all_four, [maker, *others])
        all_four.stop(maker)
        all_know_each_other(all_four, others)
        for name in others:
            all_four.stop(name)
        all_four.remove_networks(maker)
        assert all_four.docker.left() == {}, maker
    assert differences(before, all_four.state()) == []


def all_know_each_other(all_four: Everyone, names: Sequence[str]) -> None:
    addresses = all_four.addresses()
    assert set(addresses) == set(names)
    pairs = list(itertools.permutations(names, 2))
    assert {pair: all_four.fetch(pair[0], addresses[pair[1]]) for pair in pairs} == {pair: pair[1] for pair in pairs}
    assert {pair: all_four.fetch(*pair) for pair in pairs} == {pair: pair[1] for pair in pairs}
    outside = {name: all_four.fetch("outside", f"{FACING}:{PORTS[name]}") for name in names}
    assert outside == {name: name for name in names}


def words_in(value: Any) -> set[str]:
    """All texts in a JSON value."""
    if isinstance(value, dict):
        return set().union(*map(words_in, value.values()))
    if isinstance(value, list):
        return set().union(*map(words_in, value))
    return {value} if isinstance(value, str) else set()
