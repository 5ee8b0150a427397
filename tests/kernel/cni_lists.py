"""Configuration lists of CNI for tests, and what is said of their answers."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.cni_runtime import CniError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clients.cni_runtime import Json

CHAINED = ("portmap", "firewall", "bandwidth", "tuning")
SHELL = "net.core.somaxconn"


def bridge(name: str = "n1", subnet: str = "10.9.0.0/24", **more: Any) -> Json:
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    return {"type": "bridge", "bridge": f"br-{name}", "isGateway": True, "ipMasq": True, "ipam": ipam, **more}


def conflist(*plugins: Json, name: str = "n1", version: str = "1.1.0") -> Json:
    return {"cniVersion": version, "name": name, "plugins": list(plugins)}


PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}
BANDWIDTH: Json = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
TUNING: Json = {"type": "tuning", "capabilities": {"mac": True}}


def port(host_port: int, container_port: int = 80, protocol: str = "tcp", **more: Any) -> Json:
    return {"hostPort": host_port, "containerPort": container_port, "protocol": protocol, **more}


def ports(*mappings: Json) -> Json:
    return {"portMappings": list(mappings)}


@contextlib.contextmanager
def refused(code: int, words: str = "") -> Iterator[None]:
    with pytest.raises(CniError) as caught:
        yield
    assert caught.value.code == code, caught.value
    assert words in str(caught.value)


def shaping(link: str) -> dict[str, int]:
    """The token buckets of an interface of the host: its own (to the container), and the one that what arrives is led through."""
    found = json.loads(subprocess.run(["tc", "-j", "qdisc", "show"], check=True, capture_output=True).stdout)
    return {queue["dev"]: queue["options"]["rate"] * 8 for queue in found if queue["kind"] == "tbf" and queue["dev"][3:] == link[3:]}
