"""Podman's front door on a real engine: what netavark is told, and what is so afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.podman_calls import call, container, done, namespace, network, port

if TYPE_CHECKING:
    from pathlib import Path

    from atoll import Engine


def test_setup_and_teardown(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    asked = container((network(), {"static_ips": ["10.89.0.2"]}), port_mappings=[port(8080)])
    answer = done(call(engine, "setup", path, body=asked))
    endpoint = engine.state.endpoints_of("c1")[0]
    assert answer == {
        "web": {
            "dns_search_domains": [],
            "dns_server_ips": [],
            "interfaces": {"eth0": {"mac_address": endpoint.mac, "subnets": [{"ipnet": "10.89.0.2/24", "gateway": "10.89.0.1"}]}},
        }
    }
    assert call(engine, "teardown", path, body=asked).stdout == b""
    assert not engine.state.namespaces
    assert not engine.state.networks
