"""Topologies in a lab: documents become its namespaces, links and processes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from atoll.errors import Conflict, Failed, Invalid, NotFound
from atoll.lab import Lab, assert_reachable
from atoll.topology import parse
from tests.lab.test_pytest_plugin import run

if TYPE_CHECKING:
    from pathlib import Path

SHOP = """\
name: shop
networks:
  front:
  back:
    internal: true
services:
  web:
    networks: [front, back]
    ports: ["8080:80"]
    environment: {GREETING: hello}
    command: sh -c "echo $$GREETING from $$(hostname); exec sleep 1000"
  db:
    networks: [back]
"""


def test_a_document_becomes_places_links_and_processes(lab: Lab) -> None:
    lab.apply(SHOP)
    web, db = lab["shop-web"], lab["shop-db"]
    assert lab["web"] is web
    assert [link.name for link in web.links] == ["shop-web.shop_front", "shop-web.shop_back"]
    assert web.run(socket.gethostbyname, "db") == db.address
    assert web.ping(db) is not None
    client = lab.host("client")
    lab.wire(lab.default, client, "203.0.113.0/24")
    assert_reachable(client, web, tcp=8080, address="203.0.113.1", inner=80)
    (process,) = lab.processes.started
    assert (process.place, process.poll()) == ("shop-web", None)
    while not process.output:
        assert process.poll() is None
    assert process.output == "hello from shop-web\n"


def test_another_document_of_the_project_changes_what_differs(lab: Lab) -> None:
    lab.apply(SHOP)
    web, (process,) = lab["web"], lab.processes.started
    assert lab.apply(SHOP) == ()
    lab.apply(parse(SHOP.partition("  db:")[0].replace("8080", "8081"), "shop.yaml").topology)
    assert lab["web"] is web
    assert process.poll() is None
    assert "8081" in str(lab.default.engine.state.endpoints_of("shop-web"))
    with pytest.raises(NotFound):
        lab["db"]
    assert "db" not in web.check_output(["cat", "/etc/hosts"]).split()
    lab.apply("name: shop\nservices: {}\n")
    assert lab.default.namespaces == {}
    assert lab.links == []
    assert not [network for network in lab.default.engine.networks() if network.driver == "bridge"]
    assert process.poll() is not None


def test_a_service_of_several_namespaces_has_no_one_place(lab: Lab) -> None:
    lab.apply("name: p\nservices:\n  many: {scale: 2}\n")
    with pytest.raises(Conflict, match="p-many-1, p-many-2"):
        lab["many"]
    found = lab["p-many-1"].run(socket.gethostbyname_ex, "many")[2]
    assert sorted(found) == sorted([lab["p-many-1"].address, lab["p-many-2"].address])


def test_programs_share_namespaces_and_are_whom_the_document_says(lab: Lab) -> None:
    lab.apply("""
name: p
services:
  web: {command: sleep 1000}
  side: {command: readlink /proc/self/ns/net, network_mode: "service:web"}
  outside: {command: readlink /proc/self/ns/net, network_mode: host}
  other: {command: [sh, -c, "id -u; hostname"], user: "0:0", hostname: elsewhere}
""")
    _, side, outside, other = lab.processes.started
    assert [process.wait() for process in (side, outside, other)] == [0, 0, 0]
    assert side.output.strip() == lab["web"].check_output(["readlink", "/proc/self/ns/net"]).strip()
    assert outside.output.strip() == lab.default.check_output(["readlink", "/proc/self/ns/net"]).strip()
    assert other.output == "0\nelsewhere\n"
    lab.apply("name: p\nservices:\n  web: {command: sleep 1000}\n")
    assert [process.poll() for process in lab.processes.started[:1]] == [None]


def test_what_is_wrong_is_said_and_nothing_is_made(lab: Lab) -> None:
    with pytest.raises(Invalid, match=r"^topology:4:5: "):
        lab.apply("name: p\nservices:\n  web:\n    prots: [80]\n")
    assert lab.hosts == {}
    with pytest.raises(Failed, match=r"^starting p-web\.run: /no/such/program"):
        lab.apply("name: p\nservices:\n  web: {command: /no/such/program}\n")


def test_the_marker_takes_a_file_beside_the_test_or_text(host: None, tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(SHOP)
    program = f"""
import pytest

@pytest.mark.topology("shop.yaml")
def test_file(lab):
    assert lab["web"].ping(lab["db"]) is not None
    assert not lab.processes.started, "see what it said"

@pytest.mark.topology({SHOP!r})
def test_text(lab):
    assert lab["web"].ping(lab["db"]) is not None
"""
    done = run(tmp_path, program)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "shop-web $ sh -c" in done.stdout


def test_an_error_in_a_document_is_a_line_with_its_place(host: None, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: p\nservices:\n  web:\n    prots: [80]\n")
    done = run(tmp_path, 'import pytest\n\n@pytest.mark.topology("bad.yaml")\ndef test_it(lab):\n    pass\n')
    assert done.returncode == 1
    assert f"{tmp_path / 'bad.yaml'}:4:5: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
