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
#: Reference plugins that make interfaces, in a folder before Atoll's: whatever they delegate to is Atoll's.
REAL = "/opt/real"
MAIN: dict[str, Json] = {
    "ipvlan": {"type": "ipvlan", "master": "wire0", "mode": "l3"},
    "macvlan": {"type": "macvlan", "master": "wire0"},
    "ptp": {"type": "ptp", "ipMasq": True},
    "host-device": {"type": "host-device", "device": "wire9"},
}


def add(host: CniHost, network: Json, pod: Attachment) -> Json:
    try:
        return host.cni.add(network, pod)
    except CniError as error:
        if "operation not supported" in str(error):
            pytest.skip(f"this kernel has no {error.plugin}")
        raise


@pytest.fixture
def real(host: CniHost, tmp_path: Path) -> CniHost:
    script = "mkdir -p $0; cd /opt/cni/bin; cp ipvlan host-device .atoll-replaced/ptp .atoll-replaced/macvlan $0"
    host.host.run("sh", "-ec", script, REAL)
    host.host.run("ip", "link", "add", "wire9", "type", "veth", "peer", "name", "wire8")
    return host.with_path(REAL, FOLDER)


@pytest.mark.parametrize("plugin", MAIN)
def test_reference_plugins_delegate_to_our_host_local(real: CniHost, plugin: str) -> None:
    network = conflist(MAIN[plugin] | {"ipam": HOST_LOCAL})
    pod = real.container("c1")
    result = add(real, network, pod)
    assert [ip["address"] for ip in result["ips"]] == ["10.1.0.2/24"]
    assert real.addresses(pod)[0].split("/")[0] == "10.1.0.2"
    real.cni.check(network, pod)
    real.cni.delete(network, pod)
    if plugin == "host-device":
        real.host.run("ip", "link", "show", "wire9")
    assert [ip["address"] for ip in real.cni.add(network, pod)["ips"]] == ["10.1.0.3/24"]
    real.cni.delete(network, pod._replace(netns=""))
    assert "10.1.0" not in real.host.run("sh", "-c", "ls /var/lib/cni/networks/n1 2>/dev/null || true")


def test_a_plugin_that_fails_the_second_time_does_not_free_what_the_first_time_got(real: CniHost) -> None:
    """The reference ptp frees its address when it fails, also that of a container that runs, if IPAM gave it the same one again."""
    network = conflist(MAIN["ptp"] | {"ipam": HOST_LOCAL})
    pod = real.container("c1")
    real.cni.add(network, pod)
    with pytest.raises(CniError, match="allocated to id-c1/eth0 already"):
        real.cni.add(network, pod)
    assert real.cni.add(network, real.container("c2"))["ips"][0]["address"] == "10.1.0.3/24"
    real.cni.check(network, pod)


def test_chained_plugins_after_a_foreign_one_are_the_reference_plugins(real: CniHost) -> None:
    maps = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    network = conflist(MAIN["ptp"] | {"ipam": HOST_LOCAL}, portmap, {"type": "tuning", "mtu": 1400})
    pod = real.container("c1", capabilities=maps)
    real.cni.add(network, pod)
    assert "--to-destination 10.1.0.2:80" in real.host.run("iptables-save", "-t", "nat")
    assert json.loads(real.inside(pod, "ip", "-j", "link", "show", "eth0"))[0]["mtu"] == 1400
    real.cni.delete(network, pod)
    assert "10.1.0.2" not in real.host.run("iptables-save", "-t", "nat")


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
    network = conflist({"type": "any", "ipam": HOST_LOCAL})
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
