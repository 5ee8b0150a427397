"""What the model means as names, byte for byte, and the files that say it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.checks import check_servers, parse_publish
from atoll.engine import names
from atoll.engine.files import Files
from atoll.errors import Invalid
from atoll.firewall.elements import Element, network_elements
from atoll.model import Endpoint, Namespace, Network, Subnet

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "# Written by Atoll for the namespace r1, and again when its networks change.\n"
R1 = Namespace(name="r1")


def network(name: str, number: int, *, six: bool = False, **options: Any) -> Network:
    subnets = [Subnet(f"10.9.{number}.0/24", f"10.9.{number}.1"), Subnet(f"fd09:{number}::/64", f"fd09:{number}::1")]
    return Network(id=f"id{number}", name=name, driver="bridge", bridge=f"atb{number}", subnets=tuple(subnets[: 1 + six]), **options)


def on(where: Network, host: int = 2, **options: Any) -> tuple[Network, Endpoint]:
    addresses = tuple(f"{subnet.gateway[:-1]}{host}/{subnet.subnet.rpartition('/')[2]}" for subnet in where.subnets)
    return where, Endpoint(id=f"e{where.id}", network=where.id, namespace="r1", interface="eth0", addresses=addresses, **options)


# --- resolv.conf and hosts -----------------------------------------------------------------------------------------------------------


def test_resolv_conf_names_the_gateways_of_the_default_route_first() -> None:
    attached = [on(network("web", 1)), on(network("db", 2, six=True, internal=True)), on(network("dmz", 3), gateway_priority=5)]
    assert names.resolv_conf(R1, attached, "nameserver 192.0.2.53\n") == (
        f"{HEAD}nameserver 10.9.3.1\nnameserver 10.9.1.1\nnameserver 10.9.2.1\nsearch dmz.atoll web.atoll db.atoll\noptions ndots:0\n"
    )


def test_without_a_network_that_has_dns_a_namespace_has_the_hosts_resolv_conf_or_its_own_servers() -> None:
    attached = [on(network("web", 1, dns=False))]
    assert names.resolv_conf(R1, attached, "nameserver 192.0.2.53\n") == "nameserver 192.0.2.53\n"
    own = Namespace(name="r1", servers=("192.0.2.1", "2001:db8::1"))
    assert names.resolv_conf(own, attached, "nameserver 192.0.2.53\n") == f"{HEAD}nameserver 192.0.2.1\nnameserver 2001:db8::1\n"


def test_hosts_has_the_namespaces_own_name_at_each_of_its_addresses_and_what_the_host_has() -> None:
    attached = [on(network("web", 1, six=True)), on(network("db", 2), gateway_priority=1)]
    own = "10.9.2.2\tr1.db.atoll r1\n10.9.1.2\tr1.web.atoll r1\nfd09:1::2\tr1.web.atoll r1\n"
    loopback = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    assert names.hosts(R1, attached, "127.0.0.1 localhost\n127.0.1.1 machine\n") == f"{HEAD}{own}127.0.0.1 localhost\n127.0.1.1 machine\n"
    assert names.hosts(R1, attached, "127.0.1.1 machine") == f"{HEAD}{own}{loopback}127.0.1.1 machine"


@given(st.lists(st.text("abc.-_", min_size=1, max_size=63), max_size=20))
def test_a_search_list_is_never_longer_than_resolvers_take(found: list[str]) -> None:
    text = names.resolv_conf(R1, [on(network(name, number % 200)) for number, name in enumerate(found)], "")
    search = [line.removeprefix("search ") for line in text.splitlines() if line.startswith("search ")]
    assert len(search) == bool(found)
    assert all(len(line) < 256 and len(line.split()) <= 6 for line in search)
    assert text.count("nameserver") <= 3


# --- what the server is told ---------------------------------------------------------------------------------------------------------


def test_an_endpoint_is_known_by_its_namespaces_name_its_aliases_and_what_it_publishes() -> None:
    ports = tuple(map(parse_publish, ("8080:80", "8081:80", "9000-9002:7000-7002/udp", "127.0.0.1:443:443")))
    _, endpoint = on(network("web", 1, six=True), aliases=("www", "r1", "www"), ports=ports)
    found = names.endpoint_names(endpoint)
    assert found.names == ("r1", "www")
    assert found.addresses == ("10.9.1.2", "fd09:1::2")
    assert found.services == ((80, "tcp"), (7000, "udp"), (7001, "udp"), (7002, "udp"), (443, "tcp"))


def test_of_a_long_range_of_ports_only_the_beginning_has_names() -> None:
    found = names.services([parse_publish("1-65535:1-65535"), parse_publish("80:80/udp")])
    assert found == tuple((port, "tcp") for port in range(1, names.MOST_SERVICES + 1))


@pytest.mark.parametrize("options", [{"dns": False}, {"driver": "macvlan"}])
def test_a_network_without_dns_has_no_resolvers_in_the_firewall(options: dict[str, Any]) -> None:
    known, other = network("web", 1, six=True), network("web", 1, six=True)
    other = Network(**{name: getattr(other, name) for name in other.__struct_fields__} | options)
    elements = {Element(f"resolvers{6 if ':' in at else 4}", (link, at)) for at in ("10.9.1.1", "fd09:1::1") for link in ("atb1", "lo")}
    assert elements <= set(network_elements(known))
    assert elements.isdisjoint(network_elements(other))


@pytest.mark.parametrize(
    "servers", [["nobody"], ["0.0.0.0"], ["ff02::1"], ["fe80::1%eth0"], ["192.0.2.1/24"], [f"192.0.2.{n}" for n in range(4)]]
)
def test_what_is_no_server_is_refused(servers: list[str]) -> None:
    with pytest.raises(Invalid):
        check_servers(servers)


def test_servers_are_kept_in_their_order_and_once() -> None:
    assert check_servers(["192.0.2.2", "2001:DB8::1", "192.0.2.2"]) == ("192.0.2.2", "2001:db8::1")


# --- files ---------------------------------------------------------------------------------------------------------------------------


def test_files_are_written_in_place_and_taken_away_with_their_link(tmp_path: Path) -> None:
    links = tmp_path / "etc" / "netns"
    links.parent.mkdir()
    files = Files(tmp_path / "run", links)
    files.write("r1", {"resolv.conf": "long and old\n", "hosts": "h\n"})
    inode = (tmp_path / "run/r1/resolv.conf").stat().st_ino
    files.write("r1", {"resolv.conf": "new\n", "hosts": "h\n"})
    assert (links / "r1" / "resolv.conf").read_text() == "new\n"
    assert (links / "r1" / "resolv.conf").stat().st_ino == inode
    assert files.of("r1") == {"/etc/resolv.conf": f"{tmp_path}/run/r1/resolv.conf", "/etc/hosts": f"{tmp_path}/run/r1/hosts"}
    files.remove("r1")
    files.remove("r1")
    assert not links.exists()
    assert os.listdir(tmp_path / "run") == []


def test_a_users_own_folder_and_a_link_of_someone_elses_stay(tmp_path: Path) -> None:
    links = tmp_path / "netns"
    (links / "r1").mkdir(parents=True)
    (links / "r1" / "resolv.conf").write_text("mine\n")
    (links / "r2").symlink_to(tmp_path / "elsewhere")
    files = Files(tmp_path / "run", links)
    for name in ("r1", "r2"):
        files.write(name, {"resolv.conf": "ours\n"})
    files.keep_only([])
    assert (links / "r1" / "resolv.conf").read_text() == "mine\n"
    assert os.readlink(links / "r2") == str(tmp_path / "elsewhere")
    assert os.listdir(tmp_path / "run") == []
    assert sorted(os.listdir(links)) == ["r1", "r2"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    files = Files(tmp_path / "run")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "resolv.conf").write_text("precious\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "r1").symlink_to(victim)
    with pytest.raises(OSError, match="Not a directory"):
        files.write("r1", {"resolv.conf": "ours\n"})
    files.write("r2", {})
    (tmp_path / "run" / "r2" / "resolv.conf").symlink_to(victim / "resolv.conf")
    with pytest.raises(OSError, match="Too many levels"):
        files.write("r2", {"resolv.conf": "ours\n"})
    files.remove("r1")
    files.remove("r2")
    assert (victim / "resolv.conf").read_text() == "precious\n"


def test_what_an_earlier_process_left_is_taken_away(tmp_path: Path) -> None:
    files = Files(tmp_path / "run", tmp_path / "netns")
    for name in ("r1", "r2", "r3"):
        files.write(name, {"resolv.conf": "x\n", "hosts": "y\n"})
    (tmp_path / "run/r2/resolv.conf").unlink()
    (tmp_path / "run/r2/hosts").unlink()
    (tmp_path / "run/r2").rmdir()
    files.keep_only(["r3"])
    assert sorted(os.listdir(tmp_path / "netns")) == ["r3"]
    assert sorted(os.listdir(tmp_path / "run")) == [".links", "r3"]
