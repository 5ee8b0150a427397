#!/usr/bin/env python3
"""Two networks and three namespaces in a private host: neighbours reach each other, strangers don't.

Needs no root and touches nothing of the machine:

    python3 examples/two_networks.py
"""

from __future__ import annotations

import subprocess

import atoll
from atoll.lab import private


def reaches(source: str, address: str) -> bool:
    """Whether a ping from a namespace is answered within a second."""
    command = ["ip", "netns", "exec", source, "ping", "-c", "1", "-W", "1", address]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def main() -> None:
    private.enter()
    with atoll.Engine.open() as engine:
        engine.create_network("br0", subnets=["192.168.34.0/24"], gateways=["192.168.34.162"])
        engine.create_network("other", subnets=["10.5.0.0/24"])
        for name, network in (("r1", "br0"), ("r2", "br0"), ("r3", "other")):
            engine.create_namespace(name)
            endpoint = engine.connect(network, name)
            print(f"{name} is {endpoint.address(4)} on {network}")

        target = engine.state.endpoints_of("r1")[0].address(4)
        for source, expected in (("r2", True), ("r3", False)):
            found = reaches(source, target)
            print(f"{source} {'reaches' if found else 'does not reach'} r1")
            if found is not expected:
                raise SystemExit("that is wrong")


if __name__ == "__main__":
    main()
