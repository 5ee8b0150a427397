"""Containers that come, go, move and vanish, and networks that Podman and others share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from atoll import Engine
from tests.podman_calls import (
    call,
    container,
    done,
    end,
    inside,
    namespace,
    network,
    nothing_is_left,
    only,
    port,
    refused,
)

if TYPE_CHECKING:
    from pathlib import Path


# --- one container, several calls ----------------------------------------------------------------------------------------------------


def test_a_container_joins_and_leaves_networks_and_its_ports_stay(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    web = network(), {"static_ips": ["10.89.0.2"]}
    db = network("db", "10.90.0.0/24", "10.90.0.1"), {"static_ips": ["10.90.0.2"], "interface_name": "eth1"}
    ports = [port(8080), port(9000, protocol="udp")]
    done(call(engine, "setup", path, body=container(web, port_mappings=ports)))
    assert list(done(call(engine, "setup", path, body=container(db, port_mappings=ports)))) == ["db"]
    assert len(engine.state.endpoints_of("c1")) == 2
    done(call(engine, "teardown", path, body=container(web, port_mappings=ports)))
    assert engine.state.network(only(engine).network).name == "db"
    assert sorted(map(str, only(engine).ports)) == ["8080:80/tcp", "9000:80/udp"]
    done(call(engine, "teardown", path, body=container(db, port_mappings=ports)))
    nothing_is_left(engine)


def test_a_teardown_that_does_not_describe_its_networks(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    asked = container((network(), {"static_ips": ["10.89.0.2"]}))
    done(call(engine, "setup", path, body=asked))
    done(call(engine, "teardown", path, body=asked | {"network_info": {}}))
    assert not engine.state.namespaces
    assert not engine.state.networks


def test_networks_are_reloaded_in_the_same_namespace(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    asked = container((network(), {"static_ips": ["10.89.0.2"]}), port_mappings=[port(8080)])
    done(call(engine, "setup", namespace(tmp_path, "other"), body=container((network(), {"static_ips": ["10.89.0.3"]}), number=2)))
    for _ in range(3):
        done(call(engine, "setup", path, body=asked))
        assert "10.89.0.2/24" in inside(engine, "address", "show", "eth0")
        assert not engine.differences()
        done(call(engine, "teardown", path, body=asked))


def test_a_container_that_is_back_in_another_namespace_leaves_the_former(engine: Engine, tmp_path: Path) -> None:
    asked = container((network(), {"static_ips": ["10.89.0.2"]}), port_mappings=[port(8080)])
    former = namespace(tmp_path, "former")
    done(call(engine, "setup", former, body=asked))
    end(former)
    done(call(engine, "setup", namespace(tmp_path, "later"), body=asked))
    assert only(engine).namespace == "c1"
    later = namespace(tmp_path, "once-more")
    done(call(engine, "setup", later, body=asked))
    assert engine.namespace_at(later) == engine.state.namespaces[only(engine).namespace]


def test_an_address_whose_holder_has_ended_is_free(engine: Engine, tmp_path: Path) -> None:
    former = namespace(tmp_path, "former")
    said = {"static_ips": ["10.89.0.2"]}
    done(call(engine, "setup", former, body=container((network(), said), port_mappings=[port(8080)])))
    end(former)
    done(call(engine, "setup", namespace(tmp_path), body=container((network(), said), number=2, port_mappings=[port(8080)])))
    assert only(engine).namespace == "c2"


def test_a_network_goes_when_its_last_container_vanishes(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    done(call(engine, "setup", path, body=container((network(), {"static_ips": ["10.89.0.2"]}))))
    end(path)
    engine.release_vanished()
    engine.release_idle()
    nothing_is_left(engine)


def test_an_engine_that_died_leaves_no_network_without_containers(host: None, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    with Engine.open(tmp_path / "state") as engine:
        done(call(engine, "setup", path, body=container((network(), {"static_ips": ["10.89.0.2"]}))))
        end(path)
    with Engine.open(tmp_path / "state") as engine:
        nothing_is_left(engine)


# --- sharing networks ----------------------------------------------------------------------------------------------------------------


def test_a_network_of_atolls_own_is_joined_and_stays(engine: Engine, tmp_path: Path) -> None:
    engine.create_network("web", subnets=["10.89.0.0/24"])
    path = namespace(tmp_path)
    asked = container((network(dns_enabled=True), {"static_ips": ["10.89.0.9"]}))
    answer = done(call(engine, "setup", path, body=asked))
    assert answer["web"]["dns_search_domains"] == ["dns.podman"]
    assert engine.state.network("web").domains == ("dns.podman",)
    call(engine, "teardown", path, body=asked)
    assert [network.name for network in engine.networks()] == ["host", "none", "web"]


@pytest.mark.parametrize(
    ("ours", "error"),
    [
        ({"subnets": ["10.99.0.0/24"]}, "network web of Atoll has the subnets 10.99.0.0/24, Podman's has 10.89.0.0/24"),
        ({"subnets": ["10.89.0.0/24"], "gateways": ["10.89.0.7"]}, "network web of Atoll hasn't the gateway 10.89.0.1, Podman's has"),
    ],
)
def test_another_network_of_the_same_name_is_not_joined(engine: Engine, tmp_path: Path, ours: dict[str, Any], error: str) -> None:
    engine.create_network("web", **ours)
    answer = call(engine, "setup", namespace(tmp_path), body=container((network(), {"static_ips": ["10.89.0.9"]})))
    assert refused(answer).startswith(error)
    assert not engine.state.namespaces


@pytest.mark.parametrize(
    ("lease_range", "address"),
    [
        (None, "10.89.0.128"),
        ({"start_ip": "10.89.0.200"}, "10.89.0.2"),
        ({"start_ip": "10.89.0.20", "end_ip": "10.89.0.30"}, "10.89.0.128"),
    ],
)
def test_atolls_own_choices_keep_clear_of_podmans(engine: Engine, tmp_path: Path, lease_range: dict[str, str] | None, address: str) -> None:
    info = network(subnets=[{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1", "lease_range": lease_range}])
    done(call(engine, "setup", namespace(tmp_path), body=container((info, {"static_ips": ["10.89.0.210"]}))))
    engine.create_namespace("plain")
    assert engine.connect("web", "plain").address(4) == address


def test_a_network_with_a_plain_process_on_it_outlives_podmans_last_container(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    asked = container((network(), {"static_ips": ["10.89.0.2"]}))
    done(call(engine, "setup", path, body=asked))
    engine.create_namespace("plain")
    engine.connect("web", "plain")
    done(call(engine, "teardown", path, body=asked))
    assert engine.state.network("web").name == "web"
    engine.disconnect("web", "plain")
    engine.release_idle()
    assert not engine.state.networks
