"""CNI through the file that runtimes execute: `atoll cni install`, then networks as a runtime makes them."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.clients.cni_runtime import Attachment, CniError, Runtime
from tests.daemon.processes import CommandLine, Here, Inside, eventually, flow, kernel, user
from tests.kernel.kernel_state import differences

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIST: Final = {
    "cniVersion": "1.1.0",
    "name": "web",
    "plugins": [{"type": "atoll", "network": {"subnets": ["10.5.0.0/24"]}, "capabilities": {"portMappings": True}}],
}
REFERENCE: Final = {
    "cniVersion": "1.0.0",
    "name": "web",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni7",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "subnet": "10.5.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
        }
    ],
}


def container(name: str, *ports: int) -> Attachment:
    subprocess.run(["ip", "netns", "add", name], check=True)
    mappings = [{"hostPort": port, "containerPort": 80, "protocol": "tcp"} for port in ports]
    return Attachment(name, f"/run/netns/{name}", capabilities={"portMappings": mappings})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bin"


@pytest.fixture
def runtime(atoll: CommandLine, folder: Path, tmp_path: Path) -> Runtime:
    """A runtime that finds Atoll under every name. No daemon runs yet."""
    atoll.says("cni", "install", "--dir", str(folder), "--replace")
    return Runtime([str(folder)], tmp_path / "results")


@pytest.mark.parametrize("network", [LIST, REFERENCE], ids=["atoll", "bridge"])
def test_a_container_comes_and_goes(atoll: CommandLine, runtime: Runtime, network: dict[str, Any]) -> None:
    attachment = container("c1", 8080)
    assert not atoll.serving()
    result = runtime.add(network, attachment)
    assert atoll.serving(), "the first call starts the daemon"
    runtime.check(network, attachment)
    runtime.status(network)
    if network is LIST:
        with flow(Here(), "127.0.0.1", 8080, Inside("c1"), 80) as connection:
            connection.goes_on()
    address = result["ips"][0]["address"].partition("/")[0]
    with flow(Here(), address, 80, Inside("c1"), 80) as connection:
        connection.goes_on()
    runtime.delete(network, attachment)
    view = atoll.daemon.view()
    assert not view["namespaces"]
    before = kernel(view)
    for _ in range(2):
        runtime.add(network, attachment)
        runtime.delete(network, attachment)
    eventually(lambda: not differences(before, kernel(view)), "the kernel is as it was")
    assert atoll.daemon.differences() == []


def test_twenty_containers_at_once(atoll: CommandLine, runtime: Runtime) -> None:
    attachments = [container(f"c{number}", 9000 + number) for number in range(20)]
    with ThreadPoolExecutor(20) as threads:
        results = list(threads.map(lambda attachment: runtime.add(LIST, attachment), attachments))
        assert len({result["ips"][0]["address"] for result in results}) == 20
        assert atoll.daemon.differences() == []
        list(threads.map(lambda attachment: runtime.check(LIST, attachment), attachments))
        list(threads.map(lambda attachment: runtime.delete(LIST, attachment), attachments))
    assert not atoll.daemon.view()["namespaces"]


def test_a_container_outlives_a_daemon_that_is_killed(atoll: CommandLine, runtime: Runtime) -> None:
    attachment = container("c1", 8080)
    atoll.daemon.start()
    runtime.add(LIST, attachment)
    with flow(Here(), "127.0.0.1", 8080, Inside("c1"), 80) as connection:
        atoll.daemon.kill()
        connection.goes_on()
        runtime.check(LIST, attachment)
        connection.goes_on()
    runtime.delete(LIST, attachment)
    assert not atoll.daemon.view()["namespaces"]


def test_a_container_whose_runtime_says_nothing_is_forgotten(atoll: CommandLine, runtime: Runtime) -> None:
    runtime.add(LIST, container("c1", 8080))
    subprocess.run(["ip", "netns", "delete", "c1"], check=True)
    eventually(lambda: not atoll.daemon.view()["namespaces"], "its namespace is let go")
    runtime.add(LIST, container("c2", 8080))


def test_a_plain_process_is_on_a_containers_network(atoll: CommandLine, runtime: Runtime) -> None:
    result = runtime.add(LIST, container("c1"))
    address = result["ips"][0]["address"].partition("/")[0]
    assert result["dns"]["nameservers"] == ["10.5.0.1"]
    assert atoll.says("run", "--network", "web", "--", "ping", "-q", "-c", "1", "-W", "2", address)
    assert address in atoll.says("dns", "lookup", "c1.web.atoll")


def test_the_file_answers_errors_as_the_spec_has_them(runtime: Runtime) -> None:
    for network, code in (({**LIST, "name": "../x"}, 7), ({**LIST, "cniVersion": "7.0.0"}, 1)):
        with pytest.raises(CniError) as error:
            runtime.add(network, Attachment("c1", "/run/netns/none"))
        assert error.value.code == code
    with pytest.raises(CniError) as error:
        runtime.add(LIST, Attachment("c1", "/run/netns/none"))
    assert error.value.code == 3


# --- the command ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(host: None, tmp_path: Path) -> Iterator[CommandLine]:
    """The command line where configurations are in a folder of the test's."""
    with CommandLine(tmp_path, NETCONFPATH=str(tmp_path / "net.d")) as commands:
        yield commands


def original(folder: Path, name: str) -> Path:
    """What a distribution has put there."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho original {name}\n")
    path.chmod(0o755)
    return path


def test_install_replace_and_back(atoll: CommandLine, folder: Path) -> None:
    bridge = original(folder, "bridge")
    dhcp = original(folder, "dhcp")
    text = bridge.read_text()
    shown = atoll.says("cni", "install", "--dir", str(folder), "--replace", "--dry-run")
    assert f"mv {bridge} {folder}/.atoll-replaced/" in shown
    assert sorted(path.name for path in folder.iterdir()) == ["bridge", "dhcp"], "a dry run changes nothing"
    for _ in range(2):
        atoll.says("cni", "install", "--dir", str(folder), "--replace")
        assert bridge.read_bytes() != text.encode()
        assert (folder / ".atoll-replaced" / "bridge").read_text() == text
    served = {item["path"]: item for item in atoll.shows("cni", "status", "--dir", str(folder))["plugins"]}
    assert served[str(bridge)]["served_by"].startswith("atoll (")
    assert served[str(bridge)]["kept"] == f"{folder}/.atoll-replaced/bridge"
    assert str(bridge) in atoll.says("cni", "status", "--dir", str(folder))
    assert f"mv {folder}/.atoll-replaced/bridge {bridge}" in atoll.says("cni", "uninstall", "--dir", str(folder), "--dry-run")
    for _ in range(2):
        atoll.says("cni", "uninstall", "--dir", str(folder))
        assert sorted(path.name for path in folder.iterdir()) == ["bridge", "dhcp"]
        assert bridge.read_text() == text
    assert dhcp.read_text().endswith("original dhcp\n")


def test_uninstall_waits_for_containers_that_atoll_made(atoll: CommandLine, runtime: Runtime, folder: Path) -> None:
    attachment = container("c1")
    runtime.add(LIST, attachment)
    assert f"touch {folder}/.atoll-retired" in atoll.says("cni", "uninstall", "--dir", str(folder), "--dry-run")
    done = atoll("cni", "uninstall", "--dir", str(folder))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("note: still there: c1;")
    with pytest.raises(CniError, match="no new containers") as error:
        runtime.add(LIST, container("c2"))
    assert error.value.code == 2
    runtime.check(LIST, attachment)
    runtime.delete(LIST, attachment)
    atoll.says("cni", "uninstall", "--dir", str(folder))
    assert list(folder.iterdir()) == []
    atoll.says("cni", "install", "--dir", str(folder))
    runtime.add(LIST, attachment)
    atoll.says("cni", "uninstall", "--dir", str(folder), "--now")
    assert list(folder.iterdir()) == []


def test_without_replace_only_what_is_missing_comes(atoll: CommandLine, folder: Path) -> None:
    original(folder, "bridge")
    loopback = original(folder, "loopback")
    assert atoll.says("cni", "install", "--dir", str(folder)) == f"{folder}/atoll\n"
    loopback.unlink()
    assert atoll.says("cni", "install", "--dir", str(folder)) == f"{folder}/atoll\n{folder}/loopback\n"
    atoll.says("cni", "uninstall", "--dir", str(folder))
    assert [path.name for path in folder.iterdir()] == ["bridge"]


def test_a_configuration_is_written_and_taken_away(elsewhere: CommandLine, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.d" / "10-atoll.conflist"
    install = ("cni", "install", "--dir", str(folder), "--conf")
    assert f"cat > {path}" in elsewhere.says(*install, "web", "--dry-run")
    assert not path.exists()
    for _ in range(2):
        assert elsewhere.says(*install, "web").endswith(f"{path}\n")
    found = json.loads(path.read_text())
    assert (found["name"], found["plugins"][0]["type"]) == ("web", "atoll")
    assert elsewhere.shows("cni", "status", "--dir", str(folder))["configurations"] == [
        {"path": str(path), "name": "web", "plugins": ["atoll"]}
    ]
    elsewhere.says("cni", "uninstall", "--dir", str(folder))
    assert list(path.parent.iterdir()) == []
    path.write_text('{"name": "mine", "plugins": []}')
    assert "isn't from atoll cni install" in elsewhere.fails(4, *install, "web")
    elsewhere.says("cni", "uninstall", "--dir", str(folder))
    assert path.exists(), "somebody else's stays"
    assert "network name" in elsewhere.fails(2, *install, "../x")
    assert "predefined" in elsewhere.fails(4, *install, "host")


def test_an_ordinary_user_is_told_to_be_root(host: None) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    with user() as commands:
        where = str(commands.folder / "home" / "bin")
        assert "root" in commands.fails(5, "cni", "install", "--dir", where)
        assert commands.says("cni", "status", "--dir", where).startswith("no folder of plugins")
