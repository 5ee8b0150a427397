"""`atoll explain --probe` as a command: exit codes, JSON, and one line for what can't be."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.daemon.processes import CommandLine


def code(atoll: CommandLine, *arguments: str) -> int:
    return atoll("explain", *arguments, "--probe").returncode


def test_a_probe_has_its_exit_codes(atoll: CommandLine) -> None:
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24")
    atoll.says("network", "create", "db", "--subnet", "10.9.3.0/24", "--internal")
    for name, network in (("r1", "web"), ("r2", "web"), ("d1", "db")):
        atoll.says("ns", "create", name)
        atoll.says("connect", network, name)
    assert code(atoll, "r1", "r2:80") == 0
    assert code(atoll, "r1", "d1:80") == 1
    assert atoll.shows("explain", "r1", "r2:53/udp", "--probe")["probe"]["answered"] is True
    assert atoll.shows("explain", "r1", "r2:53/udp")["probe"] is None
    assert code(atoll, "outside", "r2:80") == 2
    before = len(atoll.says("events").splitlines())
    subprocess.run(["ip", "-n", "r1", "neighbour", "replace", "10.9.2.3", "lladdr", "02:00:00:00:00:99", "dev", "eth0"], check=True)
    assert code(atoll, "r1", "r2:80") == 9
    assert len(atoll.says("events").splitlines()) == before
