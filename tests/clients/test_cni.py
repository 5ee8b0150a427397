"""Real CNI runtimes with Atoll in the plugins' place: Podman with libcni, containerd with go-cni."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import pytest

from tests.clients.cni_hosts import FOLDER, ContainerdHost, containerd_host, podman_with_cni
from tests.docs.pages import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.neighbours_host import Host
    from tests.clients.podman_host import PodmanHost


@pytest.fixture
def podman() -> Iterator[PodmanHost]:
    with podman_with_cni() as there:
        yield there


@pytest.fixture
def containerd() -> Iterator[ContainerdHost]:
    with containerd_host() as there:
        yield there


def links(host: Host, beginning: str) -> list[str]:
    return [link["ifname"] for link in json.loads(host.run("ip", "-j", "link")) if link["ifname"].startswith(beginning)]


def namespaces(there: PodmanHost | ContainerdHost) -> list[str]:
    return [namespace["name"] for namespace in there.shown("ns", "ls")]


def answers(podman: PodmanHost, text: str, *addresses: str, place: str = "") -> None:
    """That a container's server answers, as soon as it has started."""

    def all_do() -> bool:
        return all(podman.fetch(address, place) == text for address in addresses)

    podman.host.wait_for(f"{text} from {', '.join(addresses)}", all_do, 10)


# --- Podman --------------------------------------------------------------------------------------------------------------------------


def test_podman_switches_over_and_back(podman: PodmanHost) -> None:
    before = podman.host.run("sh", "-c", f"cd {FOLDER}; cksum $(ls -A)")
    podman.serve("old", "-p", "8081:80")
    podman.atoll("cni", "install", "--replace")
    answers(podman, "old", "127.0.0.1:8081")

    podman.serve("new", "-p", "8080:80")
    assert namespaces(podman) == ["new"]
    answers(podman, "new", "127.0.0.1:8080", "198.51.100.1:8080", "10.88.0.3")
    assert podman.fetch("198.51.100.1:8080", "outside") == "new"
    assert podman.fetch("198.51.100.1:8081", "outside") == "old"
    assert podman.pings("new", "198.51.100.9")
    assert podman.ask("new", "10.88.0.2") == "old"
    assert podman.ask("old", "10.88.0.3") == "new"

    podman.podman("rm", "-f", "-t", "0", "old")
    assert links(podman.host, "veth") == []
    assert "8081" not in podman.host.run("iptables-save"), "the plugins that made it took it away"
    podman.podman("rm", "-f", "-t", "0", "new")
    assert links(podman.host, "atv") == namespaces(podman) == []

    podman.serve("left", "-p", "8082:80")
    podman.atoll("cni", "uninstall")
    lease = "/var/lib/cni/networks/podman/10.88.0.4"
    podman.host.run("test", "-e", lease)
    answers(podman, "left", "127.0.0.1:8082")
    podman.serve("again", "-p", "8080:80")
    answers(podman, "again", "127.0.0.1:8080")
    assert (len(links(podman.host, "veth")), namespaces(podman)) == (1, ["left"])
    podman.podman("rm", "-f", "-t", "0", "left")
    assert namespaces(podman) == []
    podman.host.run("test", "!", "-e", lease)
    podman.atoll("cni", "uninstall")
    assert podman.host.run("sh", "-c", f"cd {FOLDER}; cksum $(ls -A)") == before
    podman.podman("rm", "-f", "-t", "0", "again")
    assert links(podman.host, "veth") == []


def test_podmans_own_networks_are_atolls(podman: PodmanHost) -> None:
    podman.atoll("cni", "install", "--replace")
    for name, subnet in (("web", "10.90.0.0/24"), ("db", "10.91.0.0/24")):
        podman.podman("network", "create", "--subnet", subnet, name)
    podman.serve("a", "--network", "web", "--ip", "10.90.0.50", "--mac-address", "02:00:00:00:00:50")
    podman.serve("b", "--network", "db")
    answers(podman, "a", "10.90.0.50")
    podman.podman("network", "connect", "db", "a")
    assert podman.ask("b", "10.91.0.3") == "a"
    (a,) = (namespace for namespace in podman.shown("ns", "ls") if namespace["name"] == "a")
    assert [(end["network"], end["interface"], end["addresses"]) for end in a["endpoints"]] == [
        ("web", "eth0", ["10.90.0.50/24"]),
        ("db", "eth1", ["10.91.0.3/24"]),
    ]
    assert a["endpoints"][0]["mac"] == "02:00:00:00:00:50"
    podman.podman("network", "disconnect", "db", "a")
    assert podman.ask("b", "10.91.0.3") == ""
    podman.podman("rm", "-f", "-t", "0", "a", "b")
    assert namespaces(podman) == []
    assert podman.shown("doctor")["differences"] == []


def test_podmans_containers_know_each_other_by_name(podman: PodmanHost) -> None:
    """Podman adds the plugin dnsname to its networks as soon as it finds it."""
    podman.atoll("cni", "install", "--replace")
    podman.podman("network", "create", "web")
    assert json.loads(podman.podman("network", "inspect", "web"))[0]["dns_enabled"]
    podman.serve("a", "--network", "web", "--network-alias", "alpha")
    podman.serve("b", "--network", "web")
    podman.host.wait_for("a to serve", lambda: podman.ask("b", "a") == "a")
    for name in ("a.dns.podman", "alpha", "a.web.atoll"):
        assert podman.ask("b", name) == "a", name
    podman.podman("rm", "-f", "-t", "0", "a", "b")
    assert namespaces(podman) == []


def test_podmans_containers_outlive_a_daemon_that_is_killed(podman: PodmanHost) -> None:
    podman.atoll("cni", "install", "--replace")
    podman.serve("a", "-p", "8080:80")
    answers(podman, "a", "127.0.0.1:8080")
    podman.host.run("kill", "-KILL", str(podman.shown("status")["pid"]))
    answers(podman, "a", "198.51.100.1:8080", place="outside")
    podman.serve("b", "-p", "8081:80")
    answers(podman, "a", "127.0.0.1:8080")
    answers(podman, "b", "127.0.0.1:8081")
    podman.podman("rm", "-f", "-t", "0", "a", "b")
    assert namespaces(podman) == []


# --- containerd ----------------------------------------------------------------------------------------------------------------------


def test_containerd_has_its_containers_on_a_network_of_atolls(containerd: ContainerdHost) -> None:
    containerd.atoll("network", "create", "web", "--subnet", "10.9.0.0/24")
    containerd.atoll("cni", "install", "--conf", "web")
    addresses = {name: containerd.run(name) for name in ("c1", "c2")}
    assert set(addresses.values()) == {"10.9.0.2", "10.9.0.3"}
    containerd.inside("c1", "ping", "-q", "-c", "1", "-W", "2", addresses["c2"])
    containerd.atoll("run", "--network", "web", "--", "ping", "-q", "-c", "1", "-W", "2", addresses["c1"])
    assert addresses["c1"] in containerd.atoll("dns", "lookup", "default-c1.web.atoll")
    containerd.remove("c1")
    assert namespaces(containerd) == ["default-c2"]
    # One that ends without a word to CNI.
    containerd.ctr("task", "kill", "-s", "SIGKILL", "c2")
    containerd.host.wait_for("c2 to be let go", lambda: not namespaces(containerd))


def test_containerd_with_the_reference_plugins_configuration(containerd: ContainerdHost) -> None:
    """The one of containerd's own documentation."""
    plugins = [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "promiscMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:db8:4860::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    text = json.dumps({"cniVersion": "1.0.0", "name": "containerd-net", "plugins": plugins})
    containerd.host.run("mkdir", "-p", "/etc/cni/net.d")
    containerd.host.run("sh", "-c", 'printf %s "$0" >/etc/cni/net.d/10-containerd-net.conflist', text)
    old = containerd.run("old")
    containerd.atoll("cni", "install", "--replace")
    new = containerd.run("new")
    assert (old, new) == ("10.88.0.2", "10.88.0.3")
    for one, other in (("old", new), ("new", old), ("new", "2001:db8:4860::1"), ("new", "2001:db8:4860::2")):
        containerd.inside(one, "ping", "-q", "-c", "1", "-W", "2", other)
    # `ctr` says nothing to CNI when a detached task is deleted: its interfaces go with its namespace.
    containerd.remove("old")
    containerd.host.wait_for("the kernel to take its pair away", lambda: links(containerd.host, "veth") == [])
    containerd.remove("new")
    containerd.host.wait_for("it to be let go", lambda: links(containerd.host, "atv") == namespaces(containerd) == [])


# --- the documentation ---------------------------------------------------------------------------------------------------------------


def type_in(host: Host, kind: str) -> None:
    """The commands of the how-to that need this runtime, as a reader types them."""
    text = (ROOT / "docs" / "howto" / "cni.md").read_text()
    (block,) = re.findall(rf"^```shell {kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for command in block.splitlines():
        host.run("sh", "-c", f"PATH={sys.prefix}/bin:$PATH; {command}")


def test_the_how_to_with_podman(podman: PodmanHost) -> None:
    type_in(podman.host, "podman")


def test_the_how_to_with_containerd(containerd: ContainerdHost) -> None:
    type_in(containerd.host, "containerd")
