"""The shortest story, end to end: a network, two namespaces, a published port, and nothing left."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll import Engine


def _ping(namespace: str, address: str) -> bool:
    command = ["ip", "netns", "exec", namespace, "ping", "-c1", "-W1", address]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_two_namespaces_of_a_network_reach_each_other_and_another_network_does_not(engine: Engine) -> None:
    engine.create_network("br0", subnets=["192.168.34.0/24"], gateways=["192.168.34.162"])
    engine.create_network("other")
    for name, network, addresses in (("r1", "br0", ["192.168.34.163"]), ("r2", "br0", ["192.168.34.164"]), ("r3", "other", [])):
        engine.create_namespace(name)
        engine.connect(network, name, addresses=addresses)
    assert _ping("r1", "192.168.34.164")
    assert not _ping("r3", "192.168.34.163")
    assert engine.differences() == []
