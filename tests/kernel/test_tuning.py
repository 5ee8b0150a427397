"""Tuning: what is asked of an interface and its namespace holds, is kept, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from atoll import Engine
from atoll.errors import Conflict, Failed, Invalid
from atoll.kernel import sysctl
from atoll.model import Tuning
from tests.support import Inside

if TYPE_CHECKING:
    from pathlib import Path

    from atoll.engine import Engine as Opened

SOMAXCONN = "net/core/somaxconn"
ARP_FILTER = "net/ipv4/conf/eth0/arp_filter"


def link(engine: Opened, namespace: str, name: str = "eth0") -> dict[str, Any]:
    words = Inside(engine, namespace).run(lambda: subprocess.run(["ip", "-d", "-j", "link", "show", name], capture_output=True, check=True))
    return dict(json.loads(words.stdout)[0])


def setting(engine: Opened, namespace: str, name: str) -> str | None:
    return Inside(engine, namespace).run(lambda: sysctl.read(name))


@pytest.fixture
def r1(engine: Opened) -> str:
    engine.create_network("br0", subnets=["10.5.0.0/24"])
    engine.create_namespace("r1")
    engine.connect("br0", "r1")
    return "r1"


def test_what_is_asked_holds_and_untuning_puts_back_what_was_there(engine: Opened, r1: str) -> None:
    before, somaxconn = link(engine, r1), setting(engine, r1, SOMAXCONN)
    asked = Tuning(settings={SOMAXCONN: "77", ARP_FILTER: "1"}, promisc=True, allmulti=True, queue=123)
    engine.tune("br0", r1, asked)
    found = link(engine, r1)
    assert {"PROMISC", "ALLMULTI"} <= set(found["flags"])
    assert found["txqlen"] == 123
    assert (setting(engine, r1, SOMAXCONN), setting(engine, r1, ARP_FILTER)) == ("77", "1")
    assert engine.tuning_faults("br0", r1, asked) == []
    assert engine.differences() == []
    engine.untune("br0", r1)
    assert link(engine, r1) == before
    assert (setting(engine, r1, SOMAXCONN), setting(engine, r1, ARP_FILTER)) == (somaxconn, "0")
    assert engine.differences() == []
    engine.untune("br0", r1)


def test_what_was_asked_later_is_added_and_the_first_state_comes_back(engine: Opened, r1: str) -> None:
    somaxconn = setting(engine, r1, SOMAXCONN)
    engine.tune("br0", r1, Tuning(settings={SOMAXCONN: "77"}))
    engine.tune("br0", r1, Tuning(settings={SOMAXCONN: "78"}, promisc=True))
    assert setting(engine, r1, SOMAXCONN) == "78"
    engine.untune("br0", r1)
    assert setting(engine, r1, SOMAXCONN) == somaxconn
    assert "PROMISC" not in link(engine, r1)["flags"]


def test_repair_puts_back_what_somebody_changed_and_a_new_link_is_tuned_too(engine: Opened, r1: str) -> None:
    asked = Tuning(settings={SOMAXCONN: "77", ARP_FILTER: "1"}, promisc=True, queue=55)
    engine.tune("br0", r1, asked)
    Inside(engine, r1).run(lambda: sysctl.write(SOMAXCONN, "99"))
    Inside(engine, r1).run(lambda: subprocess.run(["ip", "link", "set", "eth0", "promisc", "off"], check=True))
    assert len(engine.tuning_faults("br0", r1, asked)) == 2
    assert len(engine.differences()) == 2
    engine.repair()
    assert engine.tuning_faults("br0", r1, asked) == []
    assert engine.differences() == []
    Inside(engine, r1).run(lambda: subprocess.run(["ip", "link", "del", "eth0"], check=True))
    engine.repair()
    assert engine.tuning_faults("br0", r1, asked) == []
    assert engine.differences() == []


def test_a_value_that_the_kernel_puts_in_other_words_is_no_difference(engine: Opened, r1: str) -> None:
    ports, ranges = "net/ipv4/ip_local_reserved_ports", "net/ipv4/ip_local_port_range"
    asked = Tuning(settings={ports: "8080,8081", ranges: "2000 3001"})
    engine.tune("br0", r1, asked)
    assert (setting(engine, r1, ports), setting(engine, r1, ranges)) == ("8080-8081", "2000\t3001")
    assert engine.tuning_faults("br0", r1, asked) == []
    assert engine.differences() == []
    assert engine.tuning_faults("br0", r1, Tuning(settings={ports: "9000"})) == [f"{ports} is 8080-8081, not 9000"]


def test_a_value_that_the_kernel_refuses_changes_nothing(engine: Opened, r1: str) -> None:
    somaxconn, before = setting(engine, r1, SOMAXCONN), engine.state.endpoints_of(r1)
    with pytest.raises(Failed, match="arp_filter=many"):
        engine.tune("br0", r1, Tuning(settings={SOMAXCONN: "77", ARP_FILTER: "many"}, promisc=True))
    assert setting(engine, r1, SOMAXCONN) == somaxconn
    assert engine.state.endpoints_of(r1) == before
    assert engine.differences() == []


@pytest.mark.parametrize(
    "name",
    [
        "kernel/pid_max",
        "net/../kernel/pid_max",
        "net/./core/somaxconn",
        "net//core/somaxconn",
        "/net/core/somaxconn",
        "net",
        "net/",
        "net/core/somaxconn/",
        "net/core/somaxconn\n",
        "net/core/some\0thing",
        "net/core/nonsense",
        "net/" + "x" * 300,
    ],
)
def test_a_name_that_is_no_setting_of_the_network_is_refused(engine: Opened, r1: str, name: str) -> None:
    with pytest.raises(Invalid):
        engine.tune("br0", r1, Tuning(settings={name: "1"}))
    assert engine.differences() == []


@pytest.mark.parametrize("value", ["", "1\n2", "1\0", "1" * 5000])
def test_a_value_that_is_no_value_is_refused(engine: Opened, r1: str, value: str) -> None:
    with pytest.raises(Invalid):
        engine.tune("br0", r1, Tuning(settings={SOMAXCONN: value}))


def test_switching_ipv6_off_under_an_ipv6_address_is_refused(engine: Opened) -> None:
    engine.create_network("br6", ipv6=True)
    engine.create_namespace("r6")
    engine.connect("br6", "r6")
    with pytest.raises(Invalid, match="IPv6 address"):
        engine.tune("br6", "r6", Tuning(settings={"net/ipv6/conf/all/disable_ipv6": "1"}))


def test_two_endpoints_of_a_namespace_share_a_setting_until_the_last_one_goes(engine: Opened, r1: str) -> None:
    somaxconn = setting(engine, r1, SOMAXCONN)
    engine.create_network("br1", subnets=["10.6.0.0/24"])
    engine.connect("br1", r1)
    engine.tune("br0", r1, Tuning(settings={SOMAXCONN: "77"}))
    engine.tune("br1", r1, Tuning(settings={SOMAXCONN: "77"}))
    with pytest.raises(Conflict, match="somaxconn is 77 for eth0 of r1"):
        engine.tune("br1", r1, Tuning(settings={SOMAXCONN: "78"}))
    engine.untune("br0", r1)
    assert setting(engine, r1, SOMAXCONN) == "77"
    engine.disconnect("br1", r1)
    assert setting(engine, r1, SOMAXCONN) == somaxconn


def test_disconnecting_puts_the_namespaces_settings_back(engine: Opened, r1: str) -> None:
    somaxconn = setting(engine, r1, SOMAXCONN)
    engine.tune("br0", r1, Tuning(settings={SOMAXCONN: "77", ARP_FILTER: "1"}))
    engine.disconnect("br0", r1)
    assert setting(engine, r1, SOMAXCONN) == somaxconn


def test_the_next_process_knows_what_was_there_before(host: None, tmp_path: Path) -> None:
    with Engine.open(tmp_path) as engine:
        engine.create_network("br0", subnets=["10.5.0.0/24"])
        engine.create_namespace("r1")
        engine.connect("br0", "r1")
        somaxconn = setting(engine, "r1", SOMAXCONN)
        engine.tune("br0", "r1", Tuning(settings={SOMAXCONN: "77"}, promisc=True))
        Inside(engine, "r1").run(lambda: sysctl.write(SOMAXCONN, "99"))
    with Engine.open(tmp_path) as engine:
        assert setting(engine, "r1", SOMAXCONN) == "77"
        engine.untune("br0", "r1")
        assert setting(engine, "r1", SOMAXCONN) == somaxconn
        assert "PROMISC" not in link(engine, "r1")["flags"]


def test_the_hosts_own_settings_are_never_touched(engine: Opened, r1: str) -> None:
    before = setting(engine, "", SOMAXCONN)
    engine.tune("br0", r1, Tuning(settings={SOMAXCONN: "77"}))
    assert setting(engine, "", SOMAXCONN) == before
