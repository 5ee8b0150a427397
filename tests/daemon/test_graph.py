"""`atoll graph` as a process: what it draws is what the daemon manages, and what is wrong is one line."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Final

import pytest

from tests.daemon.processes import ATOLL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.daemon.processes import CommandLine

SVG: Final = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def drawn(atoll: CommandLine) -> Iterator[CommandLine]:
    """Two networks with namespaces on each and one on both, on a host with an uplink that another network has as its parent."""
    for command in ("ip link add up0 type veth peer name other0", "ip address add 192.0.2.1/24 dev up0", "ip link set up0 up"):
        subprocess.run(command.split(), check=True)
    atoll.says("network", "create", "web", "--subnet", "10.9.2.0/24", "--subnet", "fd09:2::/64")
    atoll.says("network", "create", "db", "--subnet", "10.9.3.0/24", "--internal", "--no-icc")
    atoll.says("network", "create", "lan", "-d", "macvlan", "-o", "parent=up0", "--subnet", "192.0.2.0/24")
    atoll.says("ns", "create", "r1", "r2", "r3")
    atoll.says("connect", "web", "r1", "-p", "8080:80", "--alias", "shop")
    atoll.says("connect", "db", "r1")
    atoll.says("connect", "db", "r2")
    atoll.says("run", "--detach", "--name", "r4", "--network", "web", "--", "sleep", "600")
    yield atoll
    atoll.says("stop", "-t", "0", "r4")


def test_the_host_says_where_it_is_joined_to_the_outside(drawn: CommandLine) -> None:
    found = drawn.daemon.call("GET", "/v1/host")
    assert found == {"hostname": os.uname().nodename, "uplinks": [{"interface": "up0", "addresses": ["192.0.2.1/24"]}]}
    # What a default route leads to is the uplink, whatever else has addresses.
    for command in ("ip link add up1 type veth peer name other1", "ip link set up1 up", "ip route add default dev up1"):
        subprocess.run(command.split(), check=True)
    ups = drawn.daemon.call("GET", "/v1/host")["uplinks"]
    assert ups == [{"interface": "up1", "addresses": []}, {"interface": "up0", "addresses": ["192.0.2.1/24"]}]


def test_a_terminal_gets_a_drawing_and_a_file_the_form_that_its_name_says(drawn: CommandLine, tmp_path: Path) -> None:
    text = drawn.says("graph")
    assert "db  bridge internal no-icc  10.9.3.0/24 by 10.9.3.1\n" in text
    assert "│ ◂ 8080 → 80" in text
    assert max(map(len, text.splitlines())) == 80
    for ending, start in {
        "svg": b"<svg ",
        "png": b"\x89PNG\r\n",
        "dot": b"graph atoll {",
        "gv": b"graph atoll {",
        "mmd": b"flowchart TB\n",
        "json": b'{\n  "host": ',
        "txt": text.encode(),
    }.items():
        file = tmp_path / f"picture.{ending}"
        assert drawn.says("graph", "-o", str(file)) == ""
        assert file.read_bytes().startswith(start), ending
    assert drawn.says("graph", "-o", str(tmp_path / "any"), "--format", "dot") == ""
    assert (tmp_path / "any").read_bytes() == (tmp_path / "picture.dot").read_bytes()
    root = ElementTree.parse(tmp_path / "picture.svg").getroot()
    words = {element.text for element in root.iter(f"{SVG}text")}
    assert {"web", "db", "lan", "r1", "r2", "r3", "8080 → r1:80", "eth0  10.9.2.2", "up0", "no network", "aka shop"} <= words


def test_json_is_what_the_other_forms_are_drawn_from(drawn: CommandLine) -> None:
    shown = drawn.shows("graph")
    assert [(network["name"], network["out"], network["parent"]) for network in shown["networks"]] == [
        ("db", "", ""),
        ("lan", "on up0", "up0"),
        ("web", "masquerade", ""),
    ]
    assert [(item["name"], [end["network"] for end in item["endpoints"]]) for item in shown["namespaces"]] == [
        ("r1", ["web", "db"]),
        ("r2", ["db"]),
        ("r3", []),
        ("r4", ["web"]),
    ]
    assert shown["uplinks"] == [{"interface": "up0", "addresses": ["192.0.2.1/24"]}]
    part = json.loads(drawn.says("graph", "--format", "json", "--network", "web"))
    assert [network["name"] for network in part["networks"]] == ["web"]
    assert [item["name"] for item in part["namespaces"]] == ["r1", "r4"]
    assert [item["about"] for item in part["namespaces"]] == ["", "sleep 600"]


def test_the_drawing_is_as_wide_as_the_terminal_and_coloured_only_there(drawn: CommandLine) -> None:
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        text = on_terminal(drawn, {"TERM": "xterm", "COLUMNS": "50"} | environment)
        assert ("\x1b[" in text) is coloured, environment
        assert max(map(len, re.findall("═+", text))) in range(20, 50)
    assert "\x1b" not in drawn.says("graph")
    assert "error: a terminal can't show PNG; name a file: -o FILE.png\r\n" in on_terminal(drawn, {}, "--format", "png")


def on_terminal(atoll: CommandLine, environment: dict[str, str], *arguments: str) -> str:
    reader, terminal = pty.openpty()
    process = subprocess.Popen(
        [ATOLL, "graph", *arguments], env=atoll.daemon.environment | environment, stdout=terminal, stderr=terminal, stdin=terminal
    )
    os.close(terminal)
    data = b""
    try:
        while part := os.read(reader, 4096):
            data += part
    except OSError:  # the other end is closed
        pass
    os.close(reader)
    process.wait()
    return data.decode()


def test_what_is_wrong_is_said_in_one_line_and_writes_nothing(drawn: CommandLine, tmp_path: Path) -> None:
    wrong = tmp_path / "picture.bmp"
    assert drawn.fails(2, "graph", "-o", str(wrong)).startswith(f"{wrong} doesn't say which format it should have; end it with .svg, ")
    file = tmp_path / "picture.svg"
    assert drawn.fails(3, "graph", "-o", str(file), "--network", "nope") == "no network 'nope'; atoll network ls shows which there are"
    assert not wrong.exists()
    assert not file.exists()
    nowhere = tmp_path / "nowhere" / "picture.svg"
    assert drawn.fails(1, "graph", "-o", str(nowhere)) == f"can't write {nowhere} (No such file or directory)"
    drawn.fails(2, "graph", "--format", "bmp")
    drawn.fails(2, "graph", "--theme", "pink")


def test_the_command_line_loads_no_picture_before_one_is_drawn() -> None:
    program = (
        "import sys, atoll.cli, atoll.cli.graph\n"
        "assert not {name for name in sys.modules if name.startswith(('atoll.graph', 'PIL', 'msgspec'))}\n"
        "import atoll.graph.scene, atoll.graph.svg, atoll.graph.layout, atoll.graph.terminal\n"
        "assert 'PIL' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
