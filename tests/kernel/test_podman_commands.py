"""netavark's command line, and its plugins'."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from atoll.frontends import netavark
from atoll.frontends.call import Answer, Call
from atoll.frontends.netavark import helpers
from tests.podman_calls import (
    call,
    container,
    done,
    namespace,
    network,
    nothing_is_left,
    only,
    port,
    refused,
)

if TYPE_CHECKING:
    from pathlib import Path

    from atoll import Engine


# --- the command line ----------------------------------------------------------------------------------------------------------------


def raw(engine: Engine, *arguments: str, body: bytes = b"", **environment: str) -> Answer:
    return netavark.answer(engine, Call("netavark", "/x/netavark", arguments, environment, body))


def test_versions(engine: Engine) -> None:
    assert raw(engine, "--version").stdout == raw(engine, "-V").stdout == b"netavark 2.1.0\n"
    assert raw(engine, "--version", NETAVARK_VERSION="1.17.0").stdout == b"netavark 1.17.0\n"
    found = done(raw(engine, "version"))
    assert set(found) == {"version", "commit", "build_time", "target", "default_fw_driver"}
    assert raw(engine, "version").stdout.startswith(b'{\n  "version": "2.1.0"')
    assert b"Usage: netavark" in raw(engine, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "netavark requires a subcommand; netavark --help"),
        (("fly",), "unrecognized subcommand 'fly'; netavark --help"),
        (("setup",), "netavark setup takes NETWORK_NAMESPACE_PATH; netavark --help"),
        (("setup", "a", "b"), "netavark setup takes NETWORK_NAMESPACE_PATH; netavark --help"),
        (("setup", "/x"), "--config not specified but required for netavark setup"),
        (("teardown", "/x"), "--config not specified but required for netavark teardown"),
        (("update", "web", "--network-dns-servers", ""), "--config not specified but required for netavark update"),
        (("--config", "/x", "update", "web"), "netavark update requires --network-dns-servers"),
        (("--config",), "a value is required for '--config'; netavark --help"),
        (("--colour", "x", "version"), "unexpected argument '--colour'; netavark --help"),
        (("--rootless=maybe", "version"), "invalid value 'maybe' for --rootless; expected true or false"),
        (("-c", "/x", "-c", "/y", "setup", "/x"), "--config is given twice"),
        (("-c", "/x", "--firewall-driver", "pf", "setup", "/x"), "Must provide a valid firewall backend, got pf"),
        (
            ("-c", "/x", "--firewall-driver=none", "setup", "/x"),
            "Atoll has no network without its firewall; leave out firewall_driver=none in containers.conf",
        ),
        (("-c/x", "-f", "/nowhere", "setup", "/x"), "failed to load network options: IO error: No such file or directory (os error 2)"),
        (("-c/x", "-f", "/", "setup", "/x"), "failed to load network options: IO error: Is a directory (os error 21)"),
        (("-c/x", "-f", "/dev/zero", "setup", "/x"), "failed to load network options: IO error: Not a regular file (os error 22)"),
        (("-c/x", "-f", "/a\0b", "setup", "/x"), "failed to load network options: IO error: embedded null byte (os error 22)"),
    ],
)
def test_command_lines_that_mean_nothing(engine: Engine, arguments: tuple[str, ...], error: str) -> None:
    assert refused(raw(engine, *arguments)) == error


def test_what_podman_says_in_the_environment_is_checked(engine: Engine) -> None:
    assert refused(raw(engine, "-c", "/x", "setup", "/x", NETAVARK_FW="pf")) == "Must provide a valid firewall backend, got pf"
    assert refused(raw(engine, "-c", "/x", "setup", "/x", NETAVARK_DNS_PORT="99999")).startswith("Invalid NETAVARK_DNS_PORT 99999")


def test_the_request_from_a_file(engine: Engine, tmp_path: Path) -> None:
    asked = container((network(), {"static_ips": ["10.89.0.2"]}))
    (tmp_path / "request.json").write_bytes(msgspec.json.encode(asked))
    path = namespace(tmp_path)
    done(call(engine, "-f", "request.json", "setup", path, folder=str(tmp_path)))
    done(call(engine, "teardown", path, "--file=/dev/stdin", body=asked))
    nothing_is_left(engine)


def test_what_is_not_ours_is_left_to_the_netavark_before(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tmp_path / "before" / "netavark"
    before.parent.mkdir()
    before.write_text("#!/bin/sh\n")
    before.chmod(0o755)
    asked = container((network(), {"static_ips": ["10.89.0.2"]}))
    foreign = container((network(driver="host-device"), {"static_ips": ["10.89.0.2"]}))
    monkeypatch.setattr(helpers, "CONFIGURATION", str(tmp_path / "containers.conf"))
    for folders in ([], [str(before.parent)]):
        monkeypatch.setattr(helpers, "DEFAULT_FOLDERS", folders)
        expected = Answer(run=str(before)) if folders else None
        for arguments, body in (
            (("dhcp-proxy", "--dir", "/x"), {}),
            (("--rootless=true", "setup", "/x"), asked),
            (("setup", "/x"), foreign),
        ):
            answer = netavark.answer(engine, Call("netavark", "/x/netavark", ("-c", "/x", *arguments), {}, _json(body)))
            assert answer == expected if expected else refused(answer)
        assert call(engine, "teardown", "/nowhere", body=asked) == (expected or Answer())


def _json(body: Any) -> bytes:
    return msgspec.json.encode(body)


def test_other_servers_for_a_network_that_runs(engine: Engine, tmp_path: Path) -> None:
    update = "update", "web", "--network-dns-servers"
    done(call(engine, *update, "192.0.2.1"))  # of one that isn't there nothing is asked
    done(call(engine, "setup", namespace(tmp_path), body=container((network(dns_enabled=True), {"static_ips": ["10.89.0.2"]}))))
    done(call(engine, *update, "192.0.2.1,192.0.2.2"))
    assert engine.state.network("web").servers == ("192.0.2.1", "192.0.2.2")
    assert "forward queries to itself" in refused(call(engine, *update, "10.89.0.1"))
    assert refused(call(engine, *update, "here")) == "invalid IP address syntax: 'here'"
    done(call(engine, *update, ""))
    assert engine.state.network("web").servers == ()


@pytest.mark.parametrize("command", ["firewall-reload", "firewalld-reload"])
def test_rules_that_somebody_flushed_come_back(engine: Engine, tmp_path: Path, command: str) -> None:
    asked = container((network(), {"static_ips": ["10.89.0.2"]}), port_mappings=[port(8080)])
    done(call(engine, "setup", namespace(tmp_path), body=asked))
    engine.host.run(lambda: subprocess.run(["nft", "flush", "ruleset"], check=True))
    assert engine.differences()
    answer = raw(engine, command, RUST_LOG="netavark=info")
    assert answer.stderr == b"[INFO  netavark::commands::firewall_reload] Successfully reloaded firewall rules\n"
    assert not engine.differences()


# --- as a plugin ---------------------------------------------------------------------------------------------------------------------


def test_as_netavarks_plugin(engine: Engine, tmp_path: Path) -> None:
    path = namespace(tmp_path)
    asked = {
        "container_id": f"{1:064x}",
        "container_name": "c1",
        "port_mappings": [port(8080)],
        "network": network(driver="atoll", dns_enabled=True),
        "network_options": {"interface_name": "eth0", "static_ips": ["10.89.0.2"], "aliases": ["one"]},
    }
    answer = done(call(engine, "setup", path, body=asked, door="plugin"))
    assert answer["dns_server_ips"] == ["10.89.0.1"]
    assert list(answer["interfaces"]) == ["eth0"]
    assert list(map(str, only(engine).ports)) == ["8080:80/tcp"]
    for _ in range(2):
        assert call(engine, "teardown", path, body=asked, door="plugin") == Answer()
    nothing_is_left(engine)
    assert done(call(engine, "info", door="plugin"))["api_version"] == "1.0.0"
    assert done(call(engine, door="plugin"))["api_version"] == "1.0.0"
    assert refused(call(engine, "fly", door="plugin")).startswith("unknown subcommand: fly")
