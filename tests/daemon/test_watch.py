"""The watcher: what others break is whole again within a second, what is none of its business it leaves alone, and a restart of the
daemon is nobody's business either."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.daemon.processes import Daemon, Flow, Inside, eventually, flow, kernel
from tests.kernel.kernel_state import State, differences
from tests.support import lenient, outside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What the watcher promises, in seconds.
PROMISE: Final = 1.0

#: What people and programs do by accident. `web`, `ports` and `db` are bridges, `veth` and `other` the host's ends of r1 and r2.
RULES: Final = (
    "nft flush ruleset",
    "nft delete table bridge atoll",
    "nft flush chain inet atoll passing",
    "nft insert rule inet atoll forward accept",
    "nft delete element inet atoll ports4 '{ tcp . 8080 }'",
    "nft add element inet atoll ports4 '{ tcp . 8081 : 10.9.2.21 . 80 }'",
    "nft delete element inet atoll ours '{ %(web)s }'",
    "nft flush set bridge atoll senders6",
)
HOST_LINKS: Final = (
    "ip link del %(web)s",
    "ip link set %(web)s down",
    "ip link set %(web)s mtu 1400",
    "ip link del %(veth)s",
    "ip link set %(veth)s down",
    "ip link set %(veth)s nomaster",
    "ip link set %(veth)s mtu 1400",
    "bridge link set dev %(other)s isolated off",
    "tc qdisc del dev %(veth)s root",
    "tc qdisc del dev %(veth)s ingress",
)
HOST_ADDRESSES: Final = (
    "ip addr del 10.9.2.1/24 dev %(web)s",
    "ip addr del fd09:2::1/64 dev %(web)s",
    "ip addr flush dev %(web)s",
    "ip -6 route del local ::1 dev %(web)s table local",
)
INSIDE: Final = (
    "ip -n r1 addr del 10.9.2.21/24 dev eth0",
    "ip -n r1 addr del fd09:2::15/64 dev eth0",
    "ip -n r1 route del default",
    "ip -n r1 -6 route del default",
    "ip -n r1 link set eth0 down",
    "ip -n r1 link del eth0",
    "ip -n r1 link set lo down",
    "ip -n r1 link set eth0 mtu 1400",
    "ip -n r1 link set eth0 address 02:00:00:00:00:99",
    "ip -n r1 link set eth0 down && ip -n r1 link set eth0 name lan0",
    "ip netns exec r1 sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1",
    "ip -n r2 rule del from 10.9.3.22",
    "ip -n r2 -6 rule del from fd09:3::16",
    "ip -n r2 route flush table 1001",
)
SETTINGS: Final = (
    "sysctl -qw net.ipv4.ip_forward=0",
    "sysctl -qw net.ipv6.conf.all.forwarding=0",
    "sysctl -qw net.ipv4.conf.%(web)s.route_localnet=0",
    "sysctl -qw net.ipv6.conf.%(web)s.accept_ra=2",
)


def subnets(number: int) -> list[str]:
    return [f"10.9.{number}.0/24", f"fd09:{number}::/64"]


@contextlib.contextmanager
def two_networks(folder: Path) -> Iterator[Daemon]:
    """r1 and r2 on one network, r2 on another as well."""
    lenient()
    with Daemon(folder) as daemon:
        daemon.start()
        daemon.call("POST", "/v1/networks", {"name": "web", "subnets": subnets(2)})
        daemon.call("POST", "/v1/networks", {"name": "db", "subnets": subnets(3), "icc": False})
        for name in ("r1", "r2"):
            daemon.call("POST", "/v1/namespaces", {"name": name})
        limits = {"ingress_rate": "1gbit", "egress_rate": "1gbit"}
        for network, name, number, options in (
            ("web", "r1", 2, {"publish": ["8080:80"], **limits}),
            ("web", "r2", 2, {}),
            ("db", "r2", 3, {"publish": ["9090:90"]}),
        ):
            host = {"r1": 21, "r2": 22}[name]
            body = {"namespace": name, "addresses": [f"10.9.{number}.{host}", f"fd09:{number}::{host:x}"]} | options
            daemon.call("POST", f"/v1/networks/{network}/endpoints", body)
        yield daemon


def names(view: dict[str, Any]) -> dict[str, str]:
    ends = {end["network"]: end for end in view["namespaces"]["r2"]["endpoints"]}
    return {
        "web": view["networks"]["web"]["bridge"],
        "veth": view["namespaces"]["r1"]["endpoints"][0]["host_interface"],
        "other": ends["db"]["host_interface"],
    }


def run(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True, capture_output=True, text=True)


@pytest.mark.parametrize(
    "damages", [RULES, HOST_LINKS, HOST_ADDRESSES, INSIDE, SETTINGS], ids=["rules", "links", "addresses", "inside", "settings"]
)
def test_damage_is_repaired_within_a_second(host: None, tmp_path: Path, damages: tuple[str, ...]) -> None:
    with two_networks(tmp_path) as daemon:
        view = daemon.view()
        whole = kernel(view)
        for damage in damages:
            command = damage % names(view)
            seen = daemon.last_event()
            start = time.time()
            run(command)
            repairs = eventually(lambda: repairs_since(daemon, seen), f"a repair after: {command}")  # noqa: B023
            wrong = state_differs(whole, view)
            assert not wrong, "\n".join([command, *map(str, repairs), *wrong])
            assert daemon.differences() == [], command
            took = max(event["time"] for event in repairs_since(daemon, seen)) - start
            assert took < PROMISE, f"{command}: {took:.2f} s, {repairs}"
        assert daemon.view() == view


def repairs_since(daemon: Daemon, number: int) -> list[dict[str, Any]]:
    return [event for event in daemon.events(number) if event["event"] == "repair"]


def state_differs(whole: State, view: dict[str, Any]) -> list[str]:
    """What is still different a moment later: a repair may take two looks."""
    end = time.monotonic() + 2
    while (wrong := differences(whole, kernel(view))) and time.monotonic() < end:
        pass
    return wrong


# --- namespaces that end -------------------------------------------------------------------------------------------------------------


def vanishes(daemon: Daemon, name: str, end: Callable[[], None]) -> None:
    """The namespace is let go within a second after `end`, and all that it had can be had by another one."""
    endpoint = daemon.view()["namespaces"][name]["endpoints"][0]
    seen = daemon.last_event()
    start = time.time()
    end()

    def gone() -> list[dict[str, Any]]:
        return [event for event in daemon.events(seen) if event["event"] == "namespace.vanish"]

    (event,) = eventually(gone, f"{name} is let go")
    assert event["namespace"] == name
    assert event["time"] - start < PROMISE
    assert name not in daemon.view()["namespaces"]
    assert daemon.differences() == []
    body = {
        "namespace": "r2",
        "addresses": [address.partition("/")[0] for address in endpoint["addresses"]],
        "mac": endpoint["mac"],
        "publish": endpoint["ports"],
    }
    daemon.call("DELETE", "/v1/networks/web/endpoints/r2")
    heir = daemon.call("POST", "/v1/networks/web/endpoints", body)
    assert {key: heir[key] for key in ("addresses", "mac", "ports")} == {key: endpoint[key] for key in ("addresses", "mac", "ports")}
    assert repairs_since(daemon, seen) == []


def test_a_namespace_whose_name_is_deleted_is_let_go(host: None, tmp_path: Path) -> None:
    with two_networks(tmp_path) as daemon:
        vanishes(daemon, "r1", lambda: run("ip netns del r1"))


def test_a_namespace_whose_name_is_deleted_while_a_process_runs_in_it_is_let_go(host: None, tmp_path: Path) -> None:
    with two_networks(tmp_path) as daemon, subprocess.Popen(["ip", "netns", "exec", "r1", "cat"], stdin=subprocess.PIPE) as process:
        eventually(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "cat\n", "the process is in its namespace")
        vanishes(daemon, "r1", lambda: run("ip netns del r1"))


@pytest.mark.parametrize("restarted", [False, True], ids=["", "after a restart"])
def test_the_namespace_of_a_process_is_let_go_when_that_ends(host: None, tmp_path: Path, restarted: bool) -> None:
    with two_networks(tmp_path) as daemon, subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE) as process:
        own = os.stat("/proc/thread-self/ns/net").st_ino
        eventually(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != own, "the process is in its namespace")
        daemon.call("POST", "/v1/namespaces", {"name": "p1", "pid": process.pid})
        daemon.call("POST", "/v1/networks/web/endpoints", {"namespace": "p1", "publish": ["7000:70"]})
        if restarted:
            daemon.kill()
            daemon.start()
        vanishes(daemon, "p1", process.kill)


def test_what_ended_while_no_daemon_ran_is_let_go_at_the_start(host: None, tmp_path: Path) -> None:
    with two_networks(tmp_path) as daemon:
        daemon.stop()
        run("ip netns del r1")
        daemon.start()
        assert list(daemon.view()["namespaces"]) == ["r2"]
        assert daemon.differences() == []


# --- what is none of its business ----------------------------------------------------------------------------------------------------

MANY: Final = 200

#: What others do on the same host, all day.
FOREIGN: Final = """
set -e
ip link add dev foreign0 type bridge
ip link set foreign0 up
ip addr add 10.200.0.1/24 dev foreign0
for n in $(seq 1 15); do
    ip link add dev f$n mtu 1400 type veth peer name eth0 netns other
    ip link set f$n master foreign0 up
    ip -n other link set eth0 up
    ip -n other addr add 10.200.0.$((n + 1))/24 dev eth0
    ip -n other route add default via 10.200.0.1
    nft add table ip foreign
    nft add chain ip foreign c '{ type filter hook forward priority 0; }'
    nft add rule ip foreign c counter
    nft delete table ip foreign
    ip -n other link set eth0 down
    ip link del f$n
    ip route add 10.201.$n.0/24 via 10.200.0.254
    ip route del 10.201.$n.0/24
    ip rule add from 10.201.$n.1 table 77
    ip rule del from 10.201.$n.1 table 77
done
ip link del foreign0
"""


def test_its_own_work_and_that_of_others_is_no_damage(host: None, tmp_path: Path) -> None:
    with two_networks(tmp_path) as daemon:
        for number in range(MANY):
            daemon.call("POST", "/v1/namespaces", {"name": f"n{number}"})
            body = {"namespace": f"n{number}", "publish": [f"{10000 + number}:80"]}
            daemon.call("POST", f"/v1/networks/{('web', 'db')[number % 2]}/endpoints", body)
        before = daemon.view()
        run("ip netns add other")
        is_idle(daemon)
        start, used = time.monotonic(), daemon.cpu()
        run(FOREIGN)
        # Some of it needs a look (any veth inside a namespace could be one of ours); a look is a dump, never one a namespace.
        assert daemon.cpu() - used < 0.25 * (time.monotonic() - start)
        assert daemon.view() == before
        for number in range(0, 20, 2):
            daemon.call("DELETE", f"/v1/networks/web/endpoints/n{number}")
        for number in range(1, MANY, 2):
            daemon.call("DELETE", f"/v1/namespaces/n{number}")
        is_idle(daemon)
        assert repairs_since(daemon, 0) == []
        assert daemon.differences() == []


def is_idle(daemon: Daemon) -> None:
    """It comes to rest: in some second it needs less than 5% of a processor."""

    def rests() -> bool:
        before = daemon.cpu()
        time.sleep(1)
        return daemon.cpu() - before < 0.05

    eventually(rests, "the daemon rests", patience=5)


# --- restarts ------------------------------------------------------------------------------------------------------------------------


class Pump:
    """Sends over connections, one after the other and all the time, and keeps the longest time that one took."""

    def __init__(self, flows: list[Flow]) -> None:
        self.flows = flows
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent, self.longest = 0, 0.0
        self._failure: OSError | None = None

    def __enter__(self) -> Pump:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.0005):
                for one in self.flows:
                    start = time.perf_counter()
                    one.goes_on()
                    self.longest = max(self.longest, time.perf_counter() - start)
                    self.sent += 1
        except OSError as error:
            self._failure = error


def test_a_restart_interrupts_no_connection(host: None, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    with (
        two_networks(tmp_path) as daemon,
        outside("client", "up0", ["192.0.2.1/24", "2001:db8::1/64"], ["192.0.2.2/24", "2001:db8::2/64"]) as client,
        flow(client, "192.0.2.1", 8080, Inside("r1"), 80) as published,
        flow(client, "2001:db8::1", 8080, Inside("r1"), 80) as published6,
        flow(Inside("r2"), "10.9.2.21", 5000, Inside("r1"), 5000) as between,
        flow(Inside("r2"), "fd09:2::15", 5000, Inside("r1"), 5000) as between6,
        flow(Inside("r1"), "192.0.2.2", 5000, client, 5000) as outward,
    ):
        view = daemon.view()
        with Pump([published, published6, between, between6, outward]) as pump:
            for end in (daemon.stop, daemon.kill) * 3:
                end()
                daemon.start()
                assert daemon.view() == view
        record_property("longest_stall_ms", round(pump.longest * 1000, 2))
        assert pump.sent > 500
        assert [one.retransmissions() for one in pump.flows] == [0] * len(pump.flows)
        assert pump.longest < PROMISE, f"stalled for {pump.longest:.2f} s"
        assert repairs_since(daemon, 0) == []
