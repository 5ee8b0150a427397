"""CNI's plugins as a runtime meets them: files that are executed, in a folder where the reference plugins stood before."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.cni_host import FOLDER, CniHost, cni_host, conflist
from tests.clients.cni_runtime import Attachment, CniError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.clients.cni_runtime import Json


@pytest.fixture
def host(tmp_path: Path) -> Iterator[CniHost]:
    with cni_host(tmp_path) as made:
        yield made


HOST_LOCAL: Json = {"type": "host-local", "subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
MAIN: dict[str, Json] = {
    "ipvlan": {"type": "ipvlan", "master": "wire0", "mode": "l3"},
    "vlan": {"type": "vlan", "master": "wire0", "vlanId": 7},
    "host-device": {"type": "host-device", "device": "wire9"},
}


@pytest.mark.parametrize("plugin", MAIN)
def test_reference_plugins_delegate_to_our_host_local(host: CniHost, plugin: str) -> None:
    network = conflist(MAIN[plugin] | {"ipam": HOST_LOCAL})
    if plugin == "host-device":
        host.host.run("ip", "link", "add", "wire9", "type", "veth", "peer", "name", "wire8")
    pod = host.container("c1")
    try:
        result = host.cni.add(network, pod)
    except CniError as error:
        if "operation not supported" in str(error):
            pytest.skip(f"this kernel has no {plugin}")
        raise
    assert host.addresses(pod) == [ip["address"] for ip in result["ips"]] == ["10.1.0.2/24"]
    host.cni.check(network, pod)
    host.cni.delete(network, pod)
    if plugin == "host-device":
        host.host.run("ip", "link", "show", "wire9")
    assert [ip["address"] for ip in host.cni.add(network, pod)["ips"]] == ["10.1.0.3/24"]
    host.cni.delete(network, pod._replace(netns=""))


def test_a_container_from_before_the_switch_goes_on_and_is_torn_down_by_what_set_it_up(host: CniHost) -> None:
    ipam = HOST_LOCAL | {"dataDir": "/run/leases"}
    bridge = {"type": "bridge", "bridge": "cni7", "isGateway": True, "ipMasq": True, "ipam": ipam}
    network = conflist(bridge, {"type": "portmap", "capabilities": {"portMappings": True}}, {"type": "tuning", "mtu": 1400})
    host.atoll("cni", "uninstall", "--dir", FOLDER)
    maps = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    old = host.container("old", capabilities=maps)
    host.cni.add(network, old)
    assert host.host.run("ls", "/run/leases/n1").split() == ["10.1.0.2", "last_reserved_ip.0", "lock"]
    host.atoll("cni", "install", "--replace", "--dir", FOLDER)
    host.cni.delete(network, old)
    assert host.host.run("ls", "/run/leases/n1").split() == ["last_reserved_ip.0", "lock"]
    assert "8080" not in host.host.run("iptables-save", "-t", "nat")
    assert host.inside(old, "ip", "-j", "link").count("ifname") == 1


def chain() -> Json:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    return conflist(
        {"type": "bridge", "bridge": "cni7", "isGateway": True, "ipMasq": True, "ipam": ipam},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "77"}, "capabilities": {"mac": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "firewall"},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        version="1.1.0",
    )


def test_twenty_containers_come_and_go_at_once(host: CniHost) -> None:
    network = chain()
    limits = {"ingressRate": 80_000_000, "ingressBurst": 8_000_000}
    pods = [
        host.container(
            f"c{number}",
            capabilities={
                "portMappings": [{"hostPort": 8000 + number, "containerPort": 80, "protocol": "tcp"}],
                "bandwidth": limits,
                "mac": f"02:00:00:00:00:{number + 1:02x}",
            },
        )
        for number in range(20)
    ]
    results = at_once(lambda pod: host.cni.add(network, pod), pods)
    assert len({result["ips"][0]["address"] for result in results}) == 20
    assert all(host.addresses(pod) == [result["ips"][0]["address"]] for pod, result in zip(pods, results, strict=True))
    assert [link["address"] for pod in pods for link in json.loads(host.inside(pod, "ip", "-j", "link", "show", "eth0"))] == [
        pod.capabilities["mac"] for pod in pods
    ]
    published = sorted(port for namespace in host.shown("ns", "ls") for end in namespace["endpoints"] for port in end["ports"])
    assert published == [f"{8000 + number}:80/tcp" for number in range(20)]
    at_once(lambda pod: host.cni.check(network, pod), pods)
    assert "nothing" in host.atoll("doctor") or host.shown("doctor")["differences"] == []
    at_once(lambda pod: host.cni.delete(network, pod), pods)
    assert host.shown("ns", "ls") == []


def test_without_a_daemon_the_first_call_starts_it(host: CniHost) -> None:
    network, pod = chain(), host.container("c1")
    host.cni.status(network)
    host.cni.add(network, pod)
    host.atoll("daemon", "stop")
    host.cni.check(network, pod)
    host.cni.delete(network, pod)
    assert host.shown("ns", "ls") == []


def test_a_lost_machine_leaves_nothing_leased(host: CniHost) -> None:
    """Not a machine's start, but what it comes to for leases: the boot that they were made in is another one."""
    network = conflist(MAIN["ipvlan"] | {"ipam": HOST_LOCAL})
    plugin = {"type": "host-local", "ipam": HOST_LOCAL}
    for number in range(3):
        host.cni._run("ADD", network, plugin, Attachment(f"c{number}", "/run/netns/gone"), None)
    host.atoll("daemon", "stop")
    host.host.run("/usr/bin/python3", "-c", _ANOTHER_BOOT)
    assert host.cni._run("ADD", network, plugin, Attachment("c1", "/run/netns/gone"), None) is not None


_ANOTHER_BOOT = """
import json, sqlite3
with sqlite3.connect("/var/lib/atoll/state.db") as db:
    for name, value in db.execute("SELECT key, value FROM pools").fetchall():
        db.execute("UPDATE pools SET value = ? WHERE key = ?", (json.dumps(json.loads(value) | {"boot": "another"}).encode(), name))
"""


def at_once(do: Any, pods: list[Attachment]) -> list[Any]:
    """A thread for each, and what came of it, in their order."""
    results: list[Any] = [None] * len(pods)

    def one(number: int) -> None:
        try:
            results[number] = do(pods[number])
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(pods))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
