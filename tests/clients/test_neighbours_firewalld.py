"""Beside a real firewalld on a private bus: the bridges are in a zone of our own whenever it runs, whatever happens to it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from atoll.kernel import nft
from atoll.neighbours import docker
from atoll.neighbours.drops import foreign_drops
from tests.clients.neighbours_host import Host, need, private_host

if TYPE_CHECKING:
    from subprocess import Popen

_BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <listen>unix:path=/run/other_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
"""

#: A daemon, on the event loop that Atoll's has. It does what each line says (`bridges NAMES...`, `state`, `stop`) and answers with a line.
_DAEMON = """
import asyncio, json, sys, time, uvloop
from atoll.neighbours.firewalld import Firewalld

async def main():
    firewalld = Firewalld()
    await firewalld.start()
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, *names = line.split()
        started = time.monotonic()
        if verb == "bridges":
            await firewalld.set_bridges(names)
        elif verb == "stop":
            await firewalld.stop()
        state = {"running": firewalld.running, "problems": firewalld.problems, "seconds": time.monotonic() - started,
                 "library": "dbus_fast" in sys.modules}
        print(json.dumps(state), flush=True)

with asyncio.Runner(debug=True, loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


class Daemon:
    """A `Firewalld` in a process on the host, from the first word on that it is told."""

    def __init__(self, host: Host, *prefix: str) -> None:
        self._host, self._prefix = host, prefix
        self._process: Popen[str] | None = None

    def tell(self, *words: str) -> Any:
        if self._process is None:
            self._process = self._host.popen(*self._prefix, sys.executable, "-c", _DAEMON)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(words) + "\n")
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        assert self._process is not None
        self._process.communicate(timeout=20)
        assert self._process.returncode == 0


@pytest.fixture
def host() -> Iterator[Host]:
    need("firewalld", "firewall-cmd", "dbus-daemon", "nft", "iptables", "unshare", "nsenter", "ip", "ping", "sysctl")
    with private_host() as private:
        yield private


@pytest.fixture
def daemon(host: Host) -> Iterator[Daemon]:
    daemon = Daemon(host)
    yield daemon
    daemon.end()


def start_bus(host: Host) -> None:
    host.run("sh", "-c", "mkdir -p /run/dbus; rm -f /run/dbus/system_bus_socket /run/other_bus_socket")
    host.run("sh", "-c", 'printf %s "$1" >/run/bus.conf', "bus", _BUS_CONFIG)
    host.start("bus", "dbus-daemon", "--config-file=/run/bus.conf", "--nofork", "--nopidfile")
    host.wait_for("the bus", lambda: host.runner(["test", "-S", "/run/dbus/system_bus_socket"])[0] == 0)


def start_firewalld(host: Host) -> None:
    host.start("firewalld", "firewalld", "--nofork", "--nopid")
    host.wait_for("firewalld", lambda: host.runner(["firewall-cmd", "--state"])[0] == 0)


def in_zone(host: Host) -> set[str]:
    """The interfaces in the zone at run time; none without the zone."""
    return set(host.runner(["firewall-cmd", "--zone=atoll", "--list-interfaces"])[1].split())


def drops(host: Host) -> set[tuple[str, str, bool]]:
    return {(drop.who, drop.by, drop.answered) for drop in host.here(lambda: foreign_drops(["atb0"], host.runner))}


def in_kernel(host: Host) -> bool:
    """Whether firewalld's rules speak of the bridges `atb*` and `lan7`. Quicker to ask than firewall-cmd."""
    rules = host.runner(["nft", "list", "chain", "inet", "firewalld", "filter_FORWARD_ZONES"])[1]
    return all(f'iifname "{name}" goto filter_FWD_atoll' in rules for name in ("atb*", "lan7"))


@pytest.mark.parametrize("back_end", ["nftables", "iptables"])
def test_packets_pass_while_the_bridge_is_in_the_zone_and_nothing_stays_after(host: Host, daemon: Daemon, back_end: str) -> None:
    host.run("sed", "-i", f"s/^FirewallBackend=.*/FirewallBackend={back_end}/", "/etc/firewalld/firewalld.conf")
    start_bus(host)
    start_firewalld(host)
    host.wire("atb0")
    before = host.run("sh", "-c", "cd /etc/firewalld && find . -type f -name '*.xml' -exec md5sum {} + | sort")
    assert not host.passes()
    assert drops(host) == {("firewalld", "rule", False)}

    state = daemon.tell("bridges", "atb0")

    assert state["running"]
    assert state["problems"] == []
    assert in_zone(host) == {"atb+"}
    assert host.passes()
    assert host.passes(6)
    assert drops(host) == {("firewalld", "rule", True)}

    assert daemon.tell("bridges")["problems"] == []
    assert not host.passes()
    assert in_zone(host) == set()
    assert host.run("sh", "-c", "cd /etc/firewalld && find . -type f -name '*.xml' -exec md5sum {} + | sort") == before
    host.run("firewall-cmd", "--reload")
    assert "atoll" not in host.run("firewall-cmd", "--get-zones") + host.run("firewall-cmd", "--get-policies")


@pytest.mark.parametrize("how", ["--reload", "--complete-reload"])
def test_after_a_reload_the_bridges_are_back_within_a_second(host: Host, daemon: Daemon, how: str) -> None:
    start_bus(host)
    start_firewalld(host)
    host.wire("lan7")
    daemon.tell("bridges", "atb0", "lan7")
    assert in_zone(host) == {"atb+", "lan7"}

    host.run("firewall-cmd", how)

    assert host.wait_for("the bridges", lambda: in_kernel(host)) < 1
    assert in_zone(host) == {"atb+", "lan7"}
    assert host.passes()


def test_a_firewalld_that_starts_later_or_again_gets_the_bridges(host: Host, daemon: Daemon) -> None:
    start_bus(host)
    state = daemon.tell("bridges", "atb0", "lan7")
    assert not state["running"]
    assert state["seconds"] < 0.5
    host.wire("atb0")
    for _ in range(2):
        start_firewalld(host)
        host.wait_for("the bridges", lambda: in_kernel(host), 5)
        host.run("firewall-cmd", "--reload")
        assert host.wait_for("the bridges", lambda: in_kernel(host)) < 1
        assert daemon.tell("state")["running"]
        assert host.passes()
        host.stop("firewalld")
        host.wait_for("firewalld's end to be noticed", lambda: not daemon.tell("state")["running"], 5)


def test_without_a_bus_nothing_is_loaded_and_nothing_waits(host: Host, daemon: Daemon) -> None:
    for state in (daemon.tell("bridges", "atb0"), daemon.tell("bridges"), daemon.tell("stop")):
        assert state == {"running": False, "problems": [], "library": False, "seconds": pytest.approx(0, abs=0.1)}


def test_a_bus_that_goes_away_and_comes_back_is_found_again(host: Host, daemon: Daemon) -> None:
    start_bus(host)
    start_firewalld(host)
    daemon.tell("bridges", "atb0")
    host.stop("bus")
    host.wait_for("the bus's end to be noticed", lambda: not daemon.tell("state")["running"], 5)
    assert daemon.tell("bridges", "lan7")["seconds"] < 0.5
    host.stop("firewalld")

    start_bus(host)
    start_firewalld(host)

    host.wait_for("the bridges", lambda: in_zone(host) == {"lan7"})
    assert daemon.tell("state")["running"]


def test_only_the_first_network_reloads_firewalld(host: Host, daemon: Daemon) -> None:
    start_bus(host)
    start_firewalld(host)
    daemon.tell("bridges", "atb0")
    # A setting at run time only is what a reload loses.
    host.run("firewall-cmd", "--zone=public", "--add-port=7/tcp")
    for bridges in (["atb0", "lan7"], [], ["lan7"]):
        assert daemon.tell("bridges", *bridges)["problems"] == []
    assert host.run("firewall-cmd", "--zone=public", "--list-ports").split() == ["7/tcp"]
    assert in_zone(host) == {"lan7"}
    host.run("firewall-cmd", "--reload")
    host.wait_for("the bridges", lambda: in_zone(host) == {"lan7"})


def test_a_bridge_that_was_put_elsewhere_is_moved_and_a_stranger_leaves_the_zone(host: Host, daemon: Daemon) -> None:
    start_bus(host)
    start_firewalld(host)
    host.run("firewall-cmd", "--zone=work", "--add-interface=lan7")
    daemon.tell("bridges", "lan7")
    assert in_zone(host) == {"lan7"}
    host.run("firewall-cmd", "--zone=atoll", "--add-interface=wire9")
    daemon.tell("bridges", "lan7", "lan8")
    assert in_zone(host) == {"lan7", "lan8"}


def test_a_firewalld_that_hangs_keeps_nobody_waiting_for_more_than_5_seconds(host: Host, daemon: Daemon) -> None:
    start_bus(host)
    start_firewalld(host)
    host.pause("firewalld")
    assert 4.5 < daemon.tell("bridges", "atb0")["seconds"] < 6
    host.resume("firewalld")
    host.wait_for("the bridges", lambda: in_zone(host) == {"atb+"})


def test_a_refusal_is_a_problem_in_firewallds_own_words(host: Host, daemon: Daemon) -> None:
    start_bus(host)
    host.run("sed", "-i", "s/^Lockdown=.*/Lockdown=yes/", "/etc/firewalld/firewalld.conf")
    host.run("sh", "-c", "echo '<whitelist><user id=\"4242\"/></whitelist>' >/etc/firewalld/lockdown-whitelist.xml")
    start_firewalld(host)
    state = daemon.tell("bridges", "atb0")
    assert state["running"]
    (problem,) = state["problems"]
    assert "lockdown is enabled" in problem


def test_a_reload_that_fails_is_a_problem_until_the_admin_has_mended_what_is_wrong(host: Host, daemon: Daemon) -> None:
    start_bus(host)
    start_firewalld(host)
    host.run("sh", "-c", "echo '<zone' >/etc/firewalld/zones/broken.xml")
    (problem,) = daemon.tell("bridges", "atb0")["problems"]
    assert "reload" in problem
    host.run("rm", "/etc/firewalld/zones/broken.xml")
    host.run("firewall-cmd", "--reload")
    host.wait_for("the bridges", lambda: in_zone(host) == {"atb+"})
    assert daemon.tell("state")["problems"] == []


def test_beside_docker_a_reload_flushes_dockers_chain_which_is_an_event_and_both_hooks_come_back(host: Host, daemon: Daemon) -> None:
    need("dockerd", "containerd", "iptables-nft")
    start_bus(host)
    start_firewalld(host)
    host.start_dockerd("nft")
    host.wire("atb0")
    daemon.tell("bridges", "atb0")
    assert not host.passes()
    host.here(lambda: docker.sync(["atb0"], host.runner))
    assert host.passes()
    with host.here(lambda: nft.open_socket((nft.GROUP_NFTABLES,))) as watch:
        host.run("firewall-cmd", "--reload")
        host.wait_for("dockerd's rules", lambda: "filter" in {nft.event_table(event) for event in watch.events()})
        # As the daemon does: when dockerd is done with its many transactions.
        quiet = [time.monotonic()]

        def settled() -> bool:
            if watch.events():
                quiet.append(time.monotonic())
            return time.monotonic() - quiet[-1] > 1

        host.wait_for("the end of dockerd's changes", settled)
    assert len(host.here(lambda: docker.sync(["atb0"], host.runner))) == 2
    assert host.passes()
    assert all(drop.answered for drop in host.here(lambda: foreign_drops(["atb0"], host.runner)))


def test_the_firewalld_of_another_namespace_is_left_alone(host: Host) -> None:
    start_bus(host)
    start_firewalld(host)
    stranger = Daemon(host, "unshare", "-n")
    state = stranger.tell("bridges", "atb0")
    assert not state["running"]
    assert state["problems"] == []
    assert "atoll" not in host.run("firewall-cmd", "--permanent", "--get-zones")
    stranger.end()


def test_the_address_of_the_bus_is_taken_from_the_environment(host: Host) -> None:
    start_bus(host)
    start_firewalld(host)
    host.run("rm", "/run/dbus/system_bus_socket")
    address = "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/other_bus_socket"
    elsewhere = Daemon(host, "env", address)
    assert elsewhere.tell("bridges", "atb0")["running"]
    # The bridges outlive the daemon.
    elsewhere.tell("stop")
    elsewhere.end()
    assert host.run("env", address, "firewall-cmd", "--zone=atoll", "--list-interfaces").split() == ["atb+"]


def test_a_network_beyond_the_first_costs_nothing_and_one_with_a_chosen_name_little(host: Host, daemon: Daemon) -> None:
    start_bus(host)
    start_firewalld(host)
    daemon.tell("bridges", "atb0")
    assert daemon.tell("bridges", "atb0", "atb1")["seconds"] < 0.001
    assert daemon.tell("bridges", "atb0", "atb1", "lan7")["seconds"] < 0.5
