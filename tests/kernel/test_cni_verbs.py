"""Every CNI verb on a real engine: what it makes, takes away, sees and refuses."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from atoll.frontends.cni.words import VERSIONS
from tests.kernel.cni_door import Attachment, CniError, Door

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from atoll import Engine

LOCAL: Final = {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
BRIDGE: Final = {"type": "bridge", "bridge": "br9", "isGateway": True, "ipMasq": True, "ipam": LOCAL}
PORTS: Final = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}

Json = dict[str, Any]


def one(plugin: Json, version: str = "1.1.0", name: str = "n1") -> Json:
    return {"cniVersion": version, "name": name, "plugins": [plugin]}


@pytest.fixture
def door(engine: Engine, tmp_path: Path) -> Door:
    return Door(engine, tmp_path / "door")


@pytest.fixture
def container(host: None) -> Callable[[str], Attachment]:
    """A container's namespace, as a runtime makes it."""

    def make(name: str, interface: str = "eth0", **more: Any) -> Attachment:
        subprocess.run(["ip", "netns", "add", name], check=True)
        return Attachment(name, f"/run/netns/{name}", interface, **more)

    return make


def links(namespace: str = "") -> set[str]:
    argv = ["ip", *(["-n", namespace] if namespace else []), "-j", "link"]
    found = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    return {link["ifname"] for link in found}


def code_of(error: pytest.ExceptionInfo[CniError]) -> int:
    return error.value.code


# --- ADD and DEL -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_add_and_del_in_every_version(door: Door, container: Callable[..., Attachment], version: str) -> None:
    network, attachment = one(BRIDGE, version), container("c1")
    result = door.add(network, attachment)
    assert result["cniVersion"] == version
    if version < "0.3.0":
        assert result["ip4"]["ip"] == "10.5.0.2/24"
    else:
        assert [interface.get("sandbox", "") for interface in result["interfaces"]] == ["", "", "/run/netns/c1"]
        assert result["ips"][0]["address"] == "10.5.0.2/24"
        assert result["ips"][0]["interface"] == 2
        assert ("version" in result["ips"][0]) == (version < "1.0.0")
    assert links("c1") == {"lo", "eth0"}
    door.delete(network, attachment)
    assert links("c1") == {"lo"}
    assert links() == {"lo", "br9"}
    assert not door.engine.state.namespaces


def test_what_add_says_is_what_the_kernel_has(door: Door, container: Callable[..., Attachment]) -> None:
    result = door.add(one(BRIDGE), container("c1"))
    bridge, near, inside = result["interfaces"]
    found = {link["ifname"]: link for link in json.loads(subprocess.check_output(["ip", "-j", "link"]))}
    assert found["br9"]["address"] == bridge["mac"]
    assert found[near["name"]]["address"] == near["mac"]
    assert found[near["name"]]["mtu"] == near["mtu"]
    (eth0,) = (link for link in json.loads(subprocess.check_output(["ip", "-n", "c1", "-j", "link"])) if link["ifname"] == "eth0")
    assert (eth0["address"], eth0["mtu"]) == (inside["mac"], inside["mtu"])
    routes = json.loads(subprocess.check_output(["ip", "-n", "c1", "-j", "route"]))
    assert [route["gateway"] for route in routes if route["dst"] == "default"] == [result["ips"][0]["gateway"]]


def test_del_is_idempotent_whatever_is_gone(door: Door, container: Callable[..., Attachment]) -> None:
    network, attachment = one(BRIDGE), container("c1")
    door.delete(network, attachment)  # never added
    door.add(network, attachment)
    subprocess.run(["ip", "-n", "c1", "link", "delete", "eth0"], check=True)
    door.delete(network, attachment)  # its interface is gone
    door.delete(network, attachment)
    door.add(network, attachment)
    subprocess.run(["ip", "netns", "delete", "c1"], check=True)
    door.delete(network, attachment)  # its namespace is gone
    door.delete(network, attachment._replace(netns=""))
    assert links() == {"lo", "br9"}
    assert not door.engine.state.endpoints


def test_del_with_an_empty_namespace_takes_everything_away(door: Door, container: Callable[..., Attachment]) -> None:
    """The reference set leaves its masquerade rules and its port mappings then (containernetworking/plugins#810)."""
    network = one({"type": "atoll", "capabilities": {"portMappings": True}, "ipam": LOCAL})
    attachment = container("c1", capabilities=PORTS)
    before = subprocess.check_output(["nft", "list", "ruleset"])
    door.add(network, attachment)
    subprocess.run(["ip", "netns", "delete", "c1"], check=True)
    door.delete(network, attachment._replace(netns=""))
    door.engine.remove_network("n1")
    assert subprocess.check_output(["nft", "list", "ruleset"]) == before
    assert links() == {"lo"}


def test_an_add_that_fails_leaves_nothing(door: Door, container: Callable[..., Attachment]) -> None:
    """The reference set leaves the veth pair after an IPAM failure (containernetworking/plugins#29)."""
    small = {"type": "host-local", "subnet": "10.5.0.0/30"}
    network = one(BRIDGE | {"ipam": small})
    door.add(network, container("c1"))
    there = links()
    with pytest.raises(CniError, match="no free address") as error:
        door.add(network, container("c2"))
    assert code_of(error) == 107
    assert links("c2") == {"lo"}
    assert links() == there
    assert list(door.engine.state.namespaces) == ["c1"]


def test_an_interface_that_is_there_is_an_error(door: Door, container: Callable[..., Attachment]) -> None:
    network, attachment = one(BRIDGE), container("c1")
    door.add(network, attachment)
    with pytest.raises(CniError, match="eth0"):
        door.add(network, attachment)
    door.check(network, attachment)
    subprocess.run(["ip", "-n", "c1", "link", "add", "eth7", "type", "veth", "peer", "name", "eth8"], check=True)
    with pytest.raises(CniError, match="eth7"):
        door.add(network, attachment._replace(interface="eth7"))


def test_a_failed_second_network_does_not_take_the_first_one_along(door: Door, container: Callable[..., Attachment]) -> None:
    """A runtime deletes what it could not add, and both have the same container and interface."""
    first, second, attachment = one(BRIDGE), one({"type": "atoll"}, name="n2"), container("c1")
    door.add(first, attachment)
    with pytest.raises(CniError):
        door.add(second, attachment)
    door.delete(second, attachment)
    door.check(first, attachment)


def test_two_networks_and_the_same_one_twice(door: Door, container: Callable[..., Attachment]) -> None:
    first, second, attachment = one(BRIDGE), one({"type": "atoll"}, name="n2"), container("c1")
    everything = [(first, attachment), (second, attachment._replace(interface="eth1")), (first, attachment._replace(interface="eth2"))]
    for network, each in everything:
        door.add(network, each)
    assert links("c1") == {"lo", "eth0", "eth1", "eth2"}
    assert len(door.engine.state.namespaces) == 1
    for network, each in everything:
        door.check(network, each)
        door.delete(network, each)
    assert links("c1") == {"lo"}


def test_an_address_is_not_given_again_at_once(door: Door, container: Callable[..., Attachment]) -> None:
    network, attachment = one(BRIDGE), container("c1")
    given: list[str] = []
    for _ in range(3):
        given.append(door.add(network, attachment)["ips"][0]["address"])
        door.delete(network, attachment)
    assert given == ["10.5.0.2/24", "10.5.0.3/24", "10.5.0.4/24"]


def test_a_namespace_of_atolls_stays_what_it_is(door: Door) -> None:
    door.engine.create_namespace("r1")
    attachment = Attachment("c1", "/run/netns/r1")
    door.add(one(BRIDGE), attachment)
    assert [endpoint.namespace for endpoint in door.engine.state.owned("cni:c1/eth0")] == ["r1"]
    door.delete(one(BRIDGE), attachment)
    assert list(door.engine.state.namespaces) == ["r1"]


def test_a_container_of_the_same_id_takes_the_place_of_one_that_was_forgotten(door: Door, container: Callable[..., Attachment]) -> None:
    network, attachment = one(BRIDGE), container("c1")
    door.add(network, attachment)
    subprocess.run(["ip", "netns", "delete", "c1"], check=True)
    subprocess.run(["ip", "netns", "add", "c1"], check=True)
    door.add(network, attachment)
    assert len(door.engine.state.endpoints) == 1
    door.check(network, attachment)


def test_an_add_to_nowhere_leaves_what_is_there(door: Door, container: Callable[..., Attachment]) -> None:
    network, attachment = one(BRIDGE), container("c1")
    door.add(network, attachment)
    for path, code in (("/run/netns/none", 3), ("/proc/self/ns/net", 8), ("/etc/passwd", 7)):
        with pytest.raises(CniError) as error:
            door.add(network, attachment._replace(netns=path))
        assert code_of(error) == code
    door.check(network, attachment)


def test_a_pods_name_is_its_namespaces_and_labels_are_kept(door: Door, container: Callable[..., Attachment]) -> None:
    plugin = BRIDGE | {"args": {"cni": {"labels": [{"key": "tier", "value": "front"}]}}}
    arguments = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web-0"}
    for name in ("c1", "c2"):
        door.add(one(plugin), container(name, arguments=arguments))
    assert set(door.engine.state.namespaces) == {"web-0", "web-0-2"}
    labels = door.engine.state.namespaces["web-0"].labels
    assert labels == {"io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "shop", "tier": "front"}


def test_a_result_before_is_passed_on(door: Door, container: Callable[..., Attachment]) -> None:
    attachment = container("c1")
    network = one(BRIDGE) | {"plugins": [{"type": "loopback"}, BRIDGE]}
    result = door.add(network, attachment)
    assert [interface["name"] for interface in result["interfaces"]][::3] == ["lo", "eth0"]
    assert [ip["interface"] for ip in result["ips"]][-1] == 3
    door.check(network, attachment)
    door.delete(network, attachment)


# --- CHECK -------------------------------------------------------------------------------------------------------------------------------

DAMAGE: Final = {
    "interface": "ip -n c1 link delete eth0",
    "down": "ip -n c1 link set eth0 down",
    "address": "ip -n c1 address delete 10.5.0.2/24 dev eth0",
    "route": "ip -n c1 route delete default",
    "mac": "ip -n c1 link set eth0 address 02:00:00:00:00:99",
    "bridge": "ip link delete br9",
    "port": "nft delete element inet atoll ports_tcp 2>/dev/null || nft flush table inet atoll",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_check_sees_what_is_missing(door: Door, container: Callable[..., Attachment], damage: str) -> None:
    network, attachment = one(BRIDGE), container("c1")
    door.add(network, attachment)
    door.check(network, attachment)
    subprocess.run(["sh", "-c", DAMAGE[damage]], check=True)
    with pytest.raises(CniError) as error:
        door.check(network, attachment)
    assert code_of(error) == 5
    door.delete(network, attachment)


def test_check_compares_with_the_result_that_it_is_given(door: Door, container: Callable[..., Attachment]) -> None:
    network, attachment = one(BRIDGE), container("c1")
    result = door.add(network, attachment)
    environment = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}
    configuration = {**BRIDGE, "cniVersion": "1.0.0", "name": "n1"}
    changes: tuple[Json, ...] = (
        {"ips": [{"address": "10.5.0.9/24", "interface": 2}]},
        {"interfaces": []},
        {"interfaces": [*result["interfaces"][:2], {**result["interfaces"][2], "mac": "02:00:00:00:00:99"}]},
        {"interfaces": [{"name": "gone0"}, *result["interfaces"]]},
        {"routes": [{"dst": "10.77.0.0/16"}]},
    )
    for change in changes:
        code, answer = door.call("CHECK", "bridge", configuration | {"prevResult": result | change}, environment)
        assert (code, answer["code"]) == (1, 5), change
    assert door.call("CHECK", "bridge", configuration | {"prevResult": result}, environment) == (0, {})


def test_check_of_what_was_never_added(door: Door, container: Callable[..., Attachment]) -> None:
    attachment = container("c1")
    environment = {"CNI_CONTAINERID": "c1", "CNI_NETNS": attachment.netns, "CNI_IFNAME": "eth0"}
    code, answer = door.call("CHECK", "bridge", {**BRIDGE, "cniVersion": "1.0.0", "name": "n1", "prevResult": {}}, environment)
    assert (code, answer["code"]) == (1, 3)


# --- GC and STATUS -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", [BRIDGE, {"type": "atoll"}, {"type": "ptp", "ipam": LOCAL}], ids=["bridge", "atoll", "ptp"])
def test_gc_keeps_what_is_valid_and_nothing_else_of_the_network(door: Door, container: Callable[..., Attachment], plugin: Json) -> None:
    network, other = one(plugin), one({"type": "atoll"}, name="other")
    for name in ("c1", "c2", "c3"):
        door.add(network, container(name))
    door.add(other, container("c4"))
    door.engine.create_namespace("r1")
    door.engine.connect("n1", "r1")
    configuration = {**plugin, "cniVersion": "1.1.0", "name": "n1", "cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}
    assert door.call("GC", plugin["type"], configuration, {}) == (0, {})
    assert {endpoint.owner for endpoint in door.engine.state.endpoints.values()} == {"cni:c2/eth0", "cni:c4/eth0", ""}
    assert links("c1") == {"lo"}
    assert links("c2") == {"lo", "eth0"}


def test_gc_of_a_network_that_is_not_there(door: Door) -> None:
    assert door.garbage_collect(one(BRIDGE), []) == []


def test_status_says_whether_add_would_work(door: Door, container: Callable[..., Attachment]) -> None:
    network = one(BRIDGE | {"ipam": {"type": "host-local", "subnet": "10.5.0.0/30"}})
    door.status(network)
    assert not door.engine.state.networks, "STATUS changes nothing"
    door.add(network, container("c1"))
    with pytest.raises(CniError, match="no free IPv4 address") as error:
        door.status(network)
    assert code_of(error) == 50
    door.engine.create_network("n2", subnets=["10.6.0.0/24"])
    with pytest.raises(CniError, match="other subnets") as error:
        door.status(one(BRIDGE, name="n2"))
    assert code_of(error) == 50
    with pytest.raises(CniError, match="overlaps") as error:
        door.status(one(BRIDGE | {"bridge": "br8"}, name="n3"))
    assert code_of(error) == 50


def test_version_needs_nothing(door: Door) -> None:
    for plugin in ("atoll", "bridge", "ptp", "macvlan", "loopback"):
        assert door.call("VERSION", plugin, {"cniVersion": "0.4.0"}, {"CNI_PATH": ""}) == (
            0,
            {"cniVersion": "0.4.0", "supportedVersions": list(VERSIONS)},
        )


# --- what is left to others --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def replaced(door: Door) -> Path:
    """The reference plugin that ours took the place of."""
    path = door.folder / "bin" / ".atoll-replaced" / "bridge"
    path.parent.mkdir()
    path.touch(mode=0o755)
    return path


def test_what_the_replaced_plugin_made_is_left_to_it(door: Door, container: Callable[..., Attachment], replaced: Path) -> None:
    network, attachment = one(BRIDGE), container("c1")
    door.delete(network, attachment)
    environment = {"CNI_CONTAINERID": "c1", "CNI_NETNS": attachment.netns, "CNI_IFNAME": "eth0"}
    door.call("CHECK", "bridge", {**BRIDGE, "cniVersion": "1.0.0", "name": "n1", "prevResult": {}}, environment)
    assert door.left_to == [str(replaced)] * 2
    door.add(network, attachment)
    door.delete(network, attachment)
    assert len(door.left_to) == 2, "what is ours is ours"


@pytest.mark.parametrize(
    "change", [{"ipam": {"type": "dhcp"}}, {"vlan": 5}, {"enabledad": True}, {"disableContainerInterface": True}, {"ipam": {}}]
)
def test_what_atoll_does_not_do_the_replaced_plugin_does(
    door: Door, container: Callable[..., Attachment], replaced: Path, change: Json
) -> None:
    environment = {"CNI_CONTAINERID": "c1", "CNI_NETNS": container("c1").netns, "CNI_IFNAME": "eth0"}
    configuration = {**BRIDGE, "cniVersion": "1.0.0", "name": "n1", **change}
    door.call("ADD", "bridge", configuration, environment)
    assert door.left_to == [str(replaced)]
    replaced.unlink()
    code, answer = door.call("ADD", "bridge", configuration, environment)
    assert (code, answer["code"]) == (1, 2)
    assert not door.engine.state.networks


# --- hostile ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "change", "code"),
    [
        ({"CNI_NETNS": "/run/netns/none"}, {}, 3),
        ({"CNI_NETNS": "/etc/passwd"}, {}, 7),
        ({"CNI_NETNS": "/proc/self/ns/net"}, {}, 8),
        ({"CNI_NETNS": "/proc/thread-self/ns/net"}, {}, 8),
        ({"CNI_NETNS": "/proc/self/ns/mnt"}, {}, 7),
        ({"CNI_CONTAINERID": "../x"}, {}, 4),
        ({"CNI_IFNAME": "lo"}, {}, 104),
        ({"CNI_IFNAME": "all"}, {}, 7),
        ({}, {"name": "host"}, 7),
        ({}, {"name": "none"}, 7),
        ({}, {"name": "a" * 64}, 7),
        ({}, {"bridge": "../../x"}, 7),
        ({}, {"bridge": "lo"}, 104),
        ({}, {"bridge": "a" * 300}, 7),
        ({}, {"mtu": 10}, 7),
        ({}, {"mtu": 10**30}, 7),
        ({}, {"mtu": "1500"}, 6),
        ({}, {"isGateway": "yes"}, 6),
        ({}, {"ipam": []}, 6),
        ({}, {"ipam": {"type": "host-local", "subnet": {}}}, 6),
        ({}, {"ipam": {"type": "host-local", "subnet": "127.0.0.0/8"}}, 7),
        ({}, {"ipam": {"type": "host-local", "subnet": "224.0.0.0/8"}}, 7),
        ({}, {"ipam": {"type": "host-local", "subnet": "10.5.0.0/24", "resolvConf": "/nowhere"}}, 5),
        ({}, {"ipam": {"type": "host-local", "subnet": "10.5.0.0/24", "resolvConf": "/dev/zero"}}, 5),
        ({}, {"hairpinMode": True, "promiscMode": True}, 7),
        ({}, {"runtimeConfig": {"mac": "01:00:00:00:00:00"}}, 7),
        ({}, {"runtimeConfig": {"mac": "nonsense"}}, 7),
        ({}, {"args": {"cni": {"labels": [{"key": "a\nb", "value": "x"}]}}}, 7),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(
    door: Door, container: Callable[..., Attachment], environment: dict[str, str], change: Json, code: int
) -> None:
    container("c1")
    words = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"} | environment
    exit_code, answer = door.call("ADD", "bridge", {**BRIDGE, "cniVersion": "1.0.0", "name": "n1", **change}, words)
    assert (exit_code, answer["code"]) == (1, code), answer
    assert answer["msg"]
    assert "\n" not in answer["msg"]
    state = door.engine.state
    assert not any((state.endpoints, state.namespaces, state.networks))
    assert links("c1") == links() == {"lo"}
