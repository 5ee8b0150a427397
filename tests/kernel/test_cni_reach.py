"""Who reaches a container that a CNI configuration made: what its options mean, by packets."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.kernel.cni_door import Attachment, CniError, Door
from tests.support import FACING, OUTSIDE, Inside, Traffic

if TYPE_CHECKING:
    from pathlib import Path

    from atoll import Engine
    from atoll.lab.machine import Machine

Json = dict[str, Any]

DEFAULT: Final = [{"dst": "0.0.0.0/0"}]


def conflist(name: str, subnet: str, *more: Json, kind: str = "bridge", **options: Any) -> Json:
    ipam = {"type": "host-local", "subnet": subnet, "routes": DEFAULT}
    main = {"type": kind, "ipam": ipam, **({"bridge": f"br-{name}", "isGateway": True} if kind == "bridge" else {}), **options}
    return {"cniVersion": "1.0.0", "name": name, "plugins": [main, *more]}


class Pods:
    """Containers by name, each with a server on port 80 that says the name."""

    def __init__(self, engine: Engine, folder: Path, traffic: Traffic) -> None:
        self.door, self.engine, self.traffic = Door(engine, folder / "door"), engine, traffic
        self.addresses: dict[str, str] = {}

    def add(self, name: str, network: Json) -> Inside:
        subprocess.run(["ip", "netns", "add", name], check=True)
        result = self.door.add(network, Attachment(name, f"/run/netns/{name}"))
        self.addresses[name] = result["ips"][0]["address"].partition("/")[0]
        place = Inside(self.engine, name)
        self.traffic.serve(place, 80, name=name)
        return place


@pytest.fixture
def pods(engine: Engine, world: Machine, traffic: Traffic, tmp_path: Path) -> Pods:
    return Pods(engine, tmp_path, traffic)


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
@pytest.mark.parametrize("masquerade", [True, False])
def test_containers_the_host_and_the_outside_reach_each_other(pods: Pods, world: Machine, kind: str, masquerade: bool) -> None:
    """As the reference plugins have it: whoever finds the way may. Masquerading changes what leaves, and nothing else."""
    network, other = (
        conflist(name, subnet, kind=kind, ipMasq=masquerade) for name, subnet in (("n1", "10.5.0.0/24"), ("n2", "10.6.0.0/24"))
    )
    places = {"c1": pods.add("c1", network), "c2": pods.add("c2", network), "c3": pods.add("c3", other)}
    host, traffic = Inside(pods.engine), pods.traffic
    for source, target in (("c1", "c2"), ("c1", "c3"), ("c3", "c1")):
        seen = traffic.one(places[source], pods.addresses[target], 80)
        assert seen is not None, f"{source} to {target}"
        assert seen.client == pods.addresses[source], "no address is changed between containers"
    assert traffic.one(host, pods.addresses["c1"], 80)
    assert traffic.one(world, pods.addresses["c1"], 80)
    traffic.serve(world, 81, name="world")
    seen = traffic.one(places["c1"], OUTSIDE[4], 81)
    assert seen is not None
    assert seen.client == (FACING[4] if masquerade else pods.addresses["c1"])


def test_port_isolation_keeps_containers_apart(pods: Pods) -> None:
    network = conflist("n1", "10.5.0.0/24", portIsolation=True)
    c1 = pods.add("c1", network)
    pods.add("c2", network)
    assert pods.traffic.one(Inside(pods.engine), pods.addresses["c2"], 80)
    assert pods.traffic.one(c1, pods.addresses["c2"], 80) is None


def test_the_firewall_plugin_keeps_other_networks_out(pods: Pods) -> None:
    network = conflist("n1", "10.5.0.0/24", {"type": "firewall", "ingressPolicy": "same-bridge"}, ipMasq=True)
    c1 = pods.add("c1", network)
    pods.add("c2", network)
    c3 = pods.add("c3", conflist("n2", "10.6.0.0/24", {"type": "firewall", "ingressPolicy": "same-bridge"}))
    assert pods.traffic.one(c1, pods.addresses["c2"], 80)
    assert pods.traffic.one(c3, pods.addresses["c1"], 80) is None
    assert pods.traffic.one(c1, pods.addresses["c3"], 80) is None


@pytest.mark.parametrize("guard", [True, False, None])
def test_addresses_of_ones_own_are_for_those_who_say_so(pods: Pods, guard: bool | None) -> None:
    """macspoofchk is on unless it is switched off: a floating address, or a router inside a container, need that."""
    said: Json = {} if guard is None else {"macspoofchk": guard}
    network = conflist("n1", "10.5.0.0/24", **said)
    c1 = pods.add("c1", network)
    pods.add("c2", network)
    subprocess.run(["ip", "-n", "c1", "address", "add", "10.5.0.200/24", "dev", "eth0"], check=True)
    seen = pods.traffic.one(c1, pods.addresses["c2"], 80, local="10.5.0.200")
    assert (seen is not None) == (guard is False)


def test_a_container_reaches_itself_by_its_published_port(pods: Pods) -> None:
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    network = conflist("n1", "10.5.0.0/24", portmap, ipMasq=True)
    subprocess.run(["ip", "netns", "add", "c1"], check=True)
    capabilities = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    pods.door.add(network, Attachment("c1", "/run/netns/c1", capabilities=capabilities))
    place = Inside(pods.engine, "c1")
    pods.traffic.serve(place, 80, name="c1")
    for address in (FACING[4], "10.5.0.1"):
        assert pods.traffic.one(place, address, 8080), address


def test_the_default_bridge_is_cni0_for_the_first(pods: Pods) -> None:
    for name, subnet in (("n1", "10.5.0.0/24"), ("n2", "10.6.0.0/24")):
        network = conflist(name, subnet)
        del network["plugins"][0]["bridge"]
        pods.add(f"c-{name}", network)
    bridges = {name: pods.engine.state.network(name).bridge for name in ("n1", "n2")}
    assert bridges["n1"] == "cni0"
    assert bridges["n2"].startswith("atb")
    with pytest.raises(CniError, match="belongs to another network"):
        pods.add("c3", conflist("n3", "10.7.0.0/24", bridge="cni0"))


def test_without_isgateway_the_bridge_has_no_address(pods: Pods) -> None:
    plugin = {
        "type": "bridge",
        "bridge": "br9",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd05::/64"}]]},
    }
    pods.add("c1", {"cniVersion": "1.0.0", "name": "n1", "plugins": [plugin]})
    (found,) = (link for link in json.loads(subprocess.check_output(["ip", "-j", "address"])) if link["ifname"] == "br9")
    assert [one["local"] for one in found["addr_info"] if one["scope"] == "global"] == []
