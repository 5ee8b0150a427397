"""`atoll up`, `down` and `diff` as processes: a file becomes what it describes, and nothing else changes."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any, Final

from tests.daemon.processes import kernel, named, user

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.daemon.processes import CommandLine

SHOP: Final = """
name: shop
networks:
  front:
    ipam: {config: [{subnet: 10.7.0.0/24}]}
  back:
    internal: true
    ipam: {config: [{subnet: 10.8.0.0/24}]}
services:
  web:
    networks: [front, back]
    ports: ["8080:80"]
  db:
    networks: {back: {ipv4_address: 10.8.0.7, aliases: [database]}}
"""


def write(atoll: CommandLine, text: str) -> str:
    path = atoll.daemon.run.parent / "atoll.yaml"
    path.write_text(text)
    return str(path)


def view(atoll: CommandLine) -> dict[str, Any]:
    return named(atoll.daemon.view())


def test_up_makes_what_the_file_says_and_twice_changes_nothing(atoll: CommandLine) -> None:
    file = write(atoll, SHOP)
    assert atoll.says("diff", "-f", file) == (
        "CHANGE   KIND       NAME                 DETAILS\n"
        "create   network    shop_back            10.8.0.0/24, internal\n"
        "create   network    shop_front           10.7.0.0/24\n"
        "create   namespace  shop-web\n"
        "create   namespace  shop-db\n"
        "connect  endpoint   shop_front/shop-web  8080:80/tcp\n"
        "connect  endpoint   shop_back/shop-web\n"
        "connect  endpoint   shop_back/shop-db    10.8.0.7\n"
    )
    assert atoll("diff", "-f", file, "--exit-code").returncode == 1
    assert sorted(atoll.says("up", "-f", file).splitlines()) == [
        "endpoint shop_back/shop-db connected 10.8.0.7",
        "endpoint shop_back/shop-web connected",
        "endpoint shop_front/shop-web connected 8080:80/tcp",
        "namespace shop-db created",
        "namespace shop-web created",
        "network shop_back created 10.8.0.0/24, internal",
        "network shop_front created 10.7.0.0/24",
    ]
    before = atoll.daemon.view()
    assert atoll.says("up", "-f", file) == "shop is as the file says\n"
    assert atoll.says("diff", "-f", file, "--exit-code") == "shop is as the file says\n"
    assert atoll.daemon.view() == before
    ends = {end["network"]: end for end in before["namespaces"]["shop-web"]["endpoints"]}
    assert [ends[name]["interface"] for name in ("shop_front", "shop_back")] == ["eth0", "eth1"]
    assert before["namespaces"]["shop-db"]["endpoints"][0]["aliases"] == ["db", "database"]


def test_a_port_that_changes_is_published_without_reconnecting(atoll: CommandLine) -> None:
    atoll.says("up", "-f", write(atoll, SHOP))
    before = {end["id"] for item in atoll.daemon.view()["namespaces"].values() for end in item["endpoints"]}
    file = write(atoll, SHOP.replace("8080:80", "9090:80"))
    assert atoll.says("up", "-f", file) == (
        "ports shop_front/shop-web unpublished 8080:80/tcp\nports shop_front/shop-web published 9090:80/tcp\n"
    )
    assert {end["id"] for item in atoll.daemon.view()["namespaces"].values() for end in item["endpoints"]} == before


def test_down_removes_what_the_project_has_and_nothing_else(atoll: CommandLine) -> None:
    atoll.says("network", "create", "mine", "--subnet", "10.1.0.0/24")
    atoll.says("ns", "create", "own")
    atoll.says("connect", "mine", "own")
    before = atoll.daemon.view()
    kept = kernel(before)
    file = write(atoll, SHOP)
    atoll.says("up", "-f", file)
    assert len(atoll.says("down", "-p", "shop").splitlines()) == 4
    assert atoll.daemon.view() == before
    assert kernel(before) == kept
    assert atoll.says("down", "-f", file) == "nothing of shop is there\n"


def test_what_is_there_of_every_kind_does_not_keep_diff_from_saying_the_commands(atoll: CommandLine) -> None:
    docker = "com.docker.network.bridge."
    atoll.says("network", "create", "lab", "-d", "macvlan")
    atoll.says("network", "create", "wide", "--isolation", "open", "-o", f"{docker}gateway_mode_ipv4=routed", "--metric", "7")
    atoll.says("network", "create", "kept", "-o", f"{docker}enable_ip_masquerade=false", "--route", "10.99.0.0/16")
    atoll.says("ns", "create", "own")
    for words in (["lab"], ["wide", "--route", "blackhole 10.98.0.0/16"], ["wide", "--ifname", "again", "--no-default-route"], ["kept"]):
        atoll.says("connect", words[0], "own", *words[1:])
    atoll.says("publish", "own", "0:80", "--network", "kept")
    before = atoll.daemon.view()
    said = atoll.says("diff", "-f", write(atoll, SHOP), "--commands")
    assert "ip netns add shop-web" in said
    assert atoll.daemon.view() == before
    atoll.says("disconnect", "wide", "own", "--ifname", "again")
    assert "is connected to wide by eth1, not by again" in atoll.fails(3, "disconnect", "wide", "own", "--ifname", "again")


def test_what_the_file_no_longer_has_goes_unless_it_is_to_stay(atoll: CommandLine) -> None:
    atoll.says("up", "-f", write(atoll, SHOP))
    file = write(atoll, SHOP[: SHOP.index("  db:")])
    assert atoll.says("up", "-f", file, "--keep-orphans") == "shop is as the file says\n"
    assert atoll.says("up", "-f", file) == "namespace shop-db removed\n"


def test_one_service_comes_with_what_it_needs_and_others_are_left_alone(atoll: CommandLine) -> None:
    file = write(atoll, SHOP)
    atoll.says("up", "-f", file, "db")
    assert list(atoll.daemon.view()["namespaces"]) == ["shop-db"]
    atoll.says("up", "-f", file, "web")
    assert list(atoll.daemon.view()["namespaces"]) == ["shop-db", "shop-web"]
    assert "no service 'cache' in the file" in atoll.fails(3, "up", "-f", file, "cache")


def test_something_foreign_in_the_way_is_an_error_before_anything_is_changed(atoll: CommandLine) -> None:
    atoll.says("ns", "create", "shop-db")
    before = atoll.daemon.view()
    assert "namespace shop-db is there and is not project shop's" in atoll.fails(4, "up", "-f", write(atoll, SHOP))
    assert atoll.daemon.view() == before
    atoll.says("ns", "rm", "shop-db")
    atoll.says("network", "create", "mine", "--subnet", "10.8.0.0/16")
    assert "overlaps 10.8.0.0/16 of network mine" in atoll.fails(4, "up", "-f", write(atoll, SHOP))
    atoll.says("network", "rm", "mine")
    atoll.says("network", "create", "mine", "--subnet", "10.1.0.0/24")
    atoll.says("ns", "create", "own")
    atoll.says("connect", "mine", "own", "-p", "8080:1")
    before = atoll.daemon.view()
    assert "port 8080 is published by own" in atoll.fails(4, "up", "-f", write(atoll, SHOP))
    assert atoll.daemon.view() == before


def test_a_foreign_namespace_on_the_projects_network_keeps_it(atoll: CommandLine) -> None:
    atoll.says("up", "-f", write(atoll, SHOP))
    atoll.says("ns", "create", "own")
    atoll.says("connect", "shop_back", "own")
    before = atoll.daemon.view()
    assert "own, which is not the project's, is on it; atoll disconnect shop_back own" in atoll.fails(4, "down", "-p", "shop")
    assert atoll.daemon.view() == before


def test_up_finishes_what_an_interrupted_up_has_begun(atoll: CommandLine) -> None:
    """As an `up` that was killed leaves it: with some of its requests made and others not."""
    file = write(atoll, SHOP)
    atoll.says("up", "-f", file)
    whole = view(atoll)
    for undo in (
        [("disconnect", "shop_back", "shop-web")],
        [("ns", "rm", "shop-db")],
        [("ns", "rm", "shop-db"), ("ns", "rm", "shop-web"), ("network", "rm", "shop_back")],
    ):
        for command in undo:
            atoll.says(*command)
        atoll.says("up", "-f", file)
        found = view(atoll)
        for item in found["networks"].values():
            item["endpoints"].sort(key=lambda end: str(end["namespace"]))
        assert _without_chance(found) == _without_chance(whole)


def test_up_goes_on_after_a_kill(atoll: CommandLine) -> None:
    services = "".join(f"  s{number}: {{networks: [back, front]}}\n" for number in range(20))
    file = write(atoll, SHOP + services)
    atoll.says("status")
    for lines in (1, 8, 20):
        with atoll.popen("up", "-f", file, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
    atoll("up", "-f", file)
    assert atoll.says("up", "-f", file) == "shop is as the file says\n"
    assert len(atoll.daemon.view()["namespaces"]) == 22
    assert atoll.says("doctor") == "all is as it should be\n"


def _without_chance(found: dict[str, Any]) -> Any:
    """But for addresses and MAC addresses that nobody asked for."""
    text = re.sub(r'"mac": "[^"]*"', '"mac": ""', json.dumps(found, sort_keys=True))
    return json.loads(re.sub(r"10\.[78]\.0\.[0-6]/24", "chosen", text))


def test_services_find_each_other_by_name(atoll: CommandLine) -> None:
    file = write(atoll, SHOP.replace("  db:\n", "  db:\n    dns: [192.0.2.53]\n"))
    atoll.says("up", "-f", file)
    for name in ("db", "database", "shop-db", "db.shop_back"):
        assert atoll.says("ns", "exec", "shop-web", "--", "getent", "ahostsv4", name).split()[0] == "10.8.0.7"
    assert atoll.daemon.view()["namespaces"]["shop-db"]["servers"] == ["192.0.2.53"]
    assert atoll.says("up", "-f", file) == "shop is as the file says\n"


# --- commands ------------------------------------------------------------------------------------------------------------------------


def test_commands_start_in_their_namespaces_in_order_and_end_with_down(atoll: CommandLine) -> None:
    text = SHOP + "    command: sh -c 'cat /proc/net/fib_trie; exec sleep 1000'\n    environment: {A: b}\n"
    file = write(atoll, text.replace("  web:\n", "  web:\n    command: [sleep, '1000']\n    depends_on: [db]\n"))
    lines = atoll.says("up", "-f", file).splitlines()
    assert [line for line in lines if line.startswith("program")] == [
        "program shop-db.run started sh -c 'cat /proc/net/fib_trie; exec sleep 1000'",
        "program shop-web.run started sleep 1000",
    ]
    assert atoll.says("up", "-f", file) == "shop is as the file says\n"
    assert "10.8.0.7" in atoll.says("logs", "shop-db.run")
    (web,) = [run for run in atoll.shows("ps") if run["name"] == "shop-web.run"]
    assert web["namespace"] == "shop-web"
    file = write(atoll, text.replace("  web:\n", "  web:\n    command: [sleep, '2000']\n    depends_on: [db]\n"))
    assert atoll.says("up", "-f", file) == "program shop-web.run stopped\nprogram shop-web.run started sleep 2000\n"
    atoll.says("stop", "shop-web.run")
    assert atoll.says("up", "-f", file).endswith("program shop-web.run started sleep 2000\n")
    atoll.says("down", "-f", file)
    assert atoll.shows("ps", "-a") == []
    assert atoll.daemon.view()["namespaces"] == {}


# --- what diff says ------------------------------------------------------------------------------------------------------------------


def test_the_commands_of_diff_make_the_same_on_another_host(atoll: CommandLine) -> None:
    file = write(atoll, SHOP)
    said = atoll.says("diff", "-f", file, "--commands")
    assert atoll.daemon.view()["namespaces"] == {}
    tried = "mount -t tmpfs other /run/netns; ip link set lo up\n" + said + "\nip netns exec shop-web ping -c1 -W5 -q 10.8.0.7\n"
    done = subprocess.run(["unshare", "-n", "-m", "bash", "-e"], input=tried, capture_output=True, text=True, check=False)
    assert " 0% packet loss" in done.stdout, done


def test_the_commands_of_diff_speak_of_what_is_there_by_its_names(atoll: CommandLine) -> None:
    file = write(atoll, SHOP)
    atoll.says("up", "-f", file)
    found = atoll.daemon.view()
    assert atoll.says("diff", "-f", file, "--commands") == ""
    wanted = [
        *(f"atv{end['id']}" for end in found["namespaces"]["shop-db"]["endpoints"]),
        f"atb{found['networks']['shop_back']['id']}",
        "shop-db",
    ]
    changed = SHOP[: SHOP.index("  db:")].replace(", back]", "]").replace("  back:\n    internal: true\n", "  back:\n")
    said = atoll.says("diff", "-f", write(atoll, changed), "--commands")
    assert [name for name in wanted if name not in said] == []
    assert f"atb{found['networks']['shop_front']['id']}" not in said
    assert atoll.daemon.view() == found


def test_without_a_file_the_error_says_so(atoll: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert atoll.fails(3, "up").startswith("no topology in this folder")
    assert atoll.fails(3, "up", "-f", "other.yaml") == "no file other.yaml; give one with -f"
    (tmp_path / "compose.yaml").write_text("services:\n  web:\n    portz: []\n")
    assert atoll.fails(2, "up") == "compose.yaml:3:5: 'portz' is unknown in service web; did you mean ports?"


def test_the_schema_is_printed(atoll: CommandLine) -> None:
    assert json.loads(atoll.says("schema"))["title"] == "Atoll topology"


def test_an_ordinary_user_has_topologies_too(host: None) -> None:
    with user() as atoll:
        path = atoll.folder / "atoll.yaml"
        path.write_text(SHOP + "    command: [sleep, '1000']\n")
        file = str(path)
        assert "10.8.0.7/24" in atoll.says("diff", "-f", file, "--commands")
        assert "program shop-db.run started" in atoll.says("up", "-f", file)
        assert atoll.says("up", "-f", file) == "shop is as the file says\n"
        assert atoll.says("ns", "exec", "shop-web", "--", "ping", "-c1", "-W5", "-q", "10.8.0.7").count(" 0% packet loss")
        assert "network shop_back removed" in atoll.says("down", "-p", "shop")
