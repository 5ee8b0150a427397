"""host-local and static as plugins that any main plugin delegates to."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from atoll import Engine
from tests.clients.cni_runtime import Attachment, CniError
from tests.kernel.cni_door import runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.clients.cni_runtime import Json, Runtime


class Delegating:
    """A main plugin as far as IPAM sees one: it executes the IPAM plugin with its own configuration and environment."""

    def __init__(self, cni: Runtime, data_dir: Path) -> None:
        self._cni, self._data_dir = cni, str(data_dir)

    def network(self, ipam: Json, name: str = "n1", **more: Any) -> Json:
        ipam = {"type": "host-local", "dataDir": self._data_dir} | ipam
        return {"cniVersion": "1.1.0", "name": name, "plugins": [{"type": ipam["type"], "ipam": ipam, **more}]}

    def run(self, verb: str, network: Json, container: str = "c1", previous: Json | None = None, **more: Any) -> Json | None:
        plugin = network["plugins"][0] | {"capabilities": {"ips": True, "ipRanges": True}}
        return self._cni._run(verb, network, plugin, Attachment(container, "/run/netns/none", **more), previous)

    def add(self, network: Json, container: str = "c1", **more: Any) -> list[str]:
        """The addresses."""
        result = self.run("ADD", network, container, **more)
        assert result is not None
        return [ip["address"] for ip in result.get("ips", [])]

    def delete(self, network: Json, container: str = "c1", **more: Any) -> None:
        assert self.run("DEL", network, container, **more) is None

    def collect(self, network: Json, valid: list[tuple[str, str]]) -> list[CniError]:
        return self._cni.garbage_collect(network, valid)

    def status(self, network: Json) -> None:
        self._cni.status(network)


@pytest.fixture
def main(engine: Engine, tmp_path: Path) -> Delegating:
    return Delegating(runtime(engine, tmp_path), tmp_path / "networks")


SUBNET: Json = {"subnet": "10.1.0.0/24"}


def small(first: int, last: int) -> Json:
    return {"subnet": "10.1.0.0/24", "rangeStart": f"10.1.0.{first}", "rangeEnd": f"10.1.0.{last}"}


def test_the_result_is_the_reference_plugins(main: Delegating) -> None:
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16", "gw": "10.1.0.9"}]
    network = main.network({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]], "routes": routes})
    assert main.run("ADD", network) == {
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"address": "fd00::2/64", "gateway": "fd00::1"}],
        "routes": routes,
        "dns": {},
    }


def test_addresses_go_round_and_a_freed_one_is_not_the_next(main: Delegating) -> None:
    network = main.network(SUBNET)
    assert [main.add(network, f"c{number}") for number in range(3)] == [["10.1.0.2/24"], ["10.1.0.3/24"], ["10.1.0.4/24"]]
    main.delete(network, "c2")
    assert main.add(network, "c2") == ["10.1.0.5/24"]


def test_networks_have_addresses_of_their_own(main: Delegating) -> None:
    assert main.add(main.network(SUBNET, "a")) == main.add(main.network(SUBNET, "b")) == ["10.1.0.2/24"]
    assert main.add(main.network(SUBNET, "a"), interface="eth1") == ["10.1.0.3/24"]
    main.delete(main.network(SUBNET, "a"))
    with pytest.raises(CniError, match=r"10\.1\.0\.2 is allocated to c1/eth0 already"):
        main.add(main.network(SUBNET, "b"))


def test_an_attachment_that_has_an_address_gets_no_other(main: Delegating) -> None:
    """A plugin that delegates frees what it got when it fails: it must not get what a running container has."""
    network = main.network(SUBNET)
    main.add(network)
    with pytest.raises(CniError) as caught:
        main.add(network)
    assert caught.value.code == 104
    assert main.add(network, "c2") == ["10.1.0.3/24"]


def test_when_full_the_error_names_pool_size_and_holders(main: Delegating) -> None:
    network = main.network(small(1, 3))
    main.status(network)
    for number in range(2):
        main.add(network, f"c{number}")
    with pytest.raises(CniError) as caught:
        main.add(network, "c9")
    assert caught.value.code == 107
    for words in ("cni:n1:10.1.0.0/24", "size 2", "c0/eth0", "c1/eth0"):
        assert words in str(caught.value)
    with pytest.raises(CniError, match=r"no address is left in 10\.1\.0\.1 to 10\.1\.0\.3") as full:
        main.status(network)
    assert full.value.code == 50
    main.delete(network, "c0")
    main.status(network)
    assert main.add(network, "c9") == ["10.1.0.2/24"]


def test_of_two_sets_a_full_one_leaves_nothing_taken_of_the_other(main: Delegating, engine: Engine) -> None:
    network = main.network({"ranges": [[SUBNET], [{"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.9", "rangeEnd": "10.2.0.9"}]]})
    assert main.add(network) == ["10.1.0.2/24", "10.2.0.9/24"]
    with pytest.raises(CniError):
        main.add(network, "c2")
    assert sum(len(engine.leases(pool.name)) for pool in engine.pools()) == 2


def test_the_next_range_of_a_set_serves_when_one_is_full(main: Delegating) -> None:
    network = main.network({"ranges": [[small(10, 10), small(20, 20), {"subnet": "10.2.0.0/24"}]]})
    assert [main.add(network, f"c{number}") for number in range(3)] == [["10.1.0.10/24"], ["10.1.0.20/24"], ["10.2.0.2/24"]]


@pytest.mark.parametrize(
    "asked",
    [
        {"arguments": {"IP": "10.1.0.77"}},
        {"arguments": {"IP": "10.1.0.77/24", "IgnoreUnknown": "1", "FOO": "x"}},
        {"capabilities": {"ips": ["10.1.0.77/24"]}},
        {"capabilities": {"ips": ["10.1.0.77"]}},
    ],
)
def test_an_address_that_is_asked_for_is_given(main: Delegating, asked: Json) -> None:
    network = main.network(SUBNET)
    assert main.add(network, **asked) == ["10.1.0.77/24"]
    with pytest.raises(CniError, match=r"10\.1\.0\.77"):
        main.add(network, "c2", **asked)
    assert main.add(network, "c2") == ["10.1.0.2/24"]


def test_an_address_may_be_asked_for_by_args_of_the_list(main: Delegating) -> None:
    assert main.add(main.network(SUBNET, args={"cni": {"ips": ["10.1.0.98"]}})) == ["10.1.0.98/24"]


@pytest.mark.parametrize("address", ["10.1.0.1", "10.2.0.1", "10.1.0.0", "10.1.0.255", "junk", "10.1.0.5,10.1.0.6", "::1"])
def test_an_address_that_cannot_be_is_refused(main: Delegating, engine: Engine, address: str) -> None:
    with pytest.raises(CniError):
        main.add(main.network(SUBNET), arguments={"IP": address})
    assert [engine.leases(pool.name) for pool in engine.pools()] in ([], [{}])


def test_ranges_of_the_runtime_come_first(main: Delegating) -> None:
    asked = {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}
    assert main.add(main.network(SUBNET), capabilities=asked) == ["10.7.0.2/24", "10.1.0.2/24"]


@pytest.mark.parametrize(
    "ipam",
    [
        {},
        {"ranges": []},
        {"ranges": [[]]},
        {"ranges": [[{"subnet": f"10.1.{n}.0/24"}] for n in range(200)] + [[{"subnet": f"10.2.{n}.0/24"}] for n in range(57)]},
        {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]},
        {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/25"}]]},
        {"subnet": "10.1.0.5/24"},
        {"subnet": "10.1.0.4/31"},
        {"subnet": "junk"},
        {"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"},
        {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.7"},
        {"subnet": "10.1.0.0/24", "resolvConf": "/nonsense"},
        {"subnet": "10.1.0.0/24", "routes": [{"dst": "junk"}]},
        {"subnet": 5},
    ],
)
def test_a_section_that_means_nothing_is_refused(main: Delegating, ipam: Json) -> None:
    with pytest.raises(CniError):
        main.add(main.network(ipam))


def test_resolv_conf_is_read_as_the_reference_plugin_reads_it(main: Delegating, tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 192.0.2.4\n# no\nnameserver fd00::1\nsearch a.b c.d\ndomain q.r\noptions ndots:3 rotate\n")
    result = main.run("ADD", main.network(SUBNET | {"resolvConf": str(file)}))
    assert result is not None
    expected = {"nameservers": ["192.0.2.4", "fd00::1"], "domain": "q.r", "search": ["a.b", "c.d"], "options": ["ndots:3", "rotate"]}
    assert result["dns"] == expected


def test_a_resolv_conf_or_folder_of_leases_that_is_none_is_refused_or_passed_over_and_not_waited_for(
    main: Delegating, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (str(tmp_path / "fifo"), "/dev/zero", "a\0b"):
        with pytest.raises(CniError) as caught:
            main.run("ADD", main.network(SUBNET | {"resolvConf": path}))
        assert caught.value.code == 5
    leases = tmp_path / "n1"
    leases.mkdir()
    os.mkfifo(leases / "10.1.0.2")
    for number, path in enumerate((str(tmp_path), "a\0b")):
        assert main.run("ADD", main.network(SUBNET | {"dataDir": path}), f"c{number}")


def test_check_asks_whether_the_address_is_reserved_and_the_one_of_the_result(main: Delegating) -> None:
    network = main.network(SUBNET)
    result = main.run("ADD", network)
    main.run("CHECK", network, previous=result)
    with pytest.raises(CniError, match="c2/eth0 has no address") as caught:
        main.run("CHECK", network, "c2", previous=result)
    assert caught.value.code == 3
    with pytest.raises(CniError, match="not in its result"):
        main.run("CHECK", network, previous={"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.9/24"}]})
    main.delete(network)
    with pytest.raises(CniError):
        main.run("CHECK", network, previous=result)


def test_deleting_is_repeatable_and_needs_nothing_but_the_name(main: Delegating) -> None:
    network = main.network(SUBNET)
    main.delete(network)
    main.add(network)
    main.delete(main.network({"subnet": "10.99.0.0/24"}))  # the list was edited meanwhile
    main.delete(network)
    assert main.add(network) == ["10.1.0.3/24"]


def test_collecting_garbage_frees_what_is_stale_in_this_network_alone(main: Delegating) -> None:
    one, other = main.network(small(2, 3)), main.network(small(2, 3), "n2")
    for network in (one, other):
        main.add(network, "c1")
        main.add(network, "c2")
    assert main.collect(one, [("c1", "eth0")]) == []
    assert main.add(one, "c3") == ["10.1.0.3/24"]
    with pytest.raises(CniError):
        main.add(one, "c4")
    with pytest.raises(CniError):
        main.add(other, "c4")


def test_a_list_that_was_edited_gives_no_address_twice(main: Delegating) -> None:
    assert main.add(main.network(small(10, 12)), "c1") == ["10.1.0.10/24"]
    assert main.add(main.network(small(10, 20)), "c2") == ["10.1.0.11/24"]
    assert main.add(main.network({"subnet": "10.1.0.0/16", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.13"}), "c3") == ["10.1.0.12/16"]
    assert main.add(main.network({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "gateway": "10.1.0.13"}), "c4") == ["10.1.0.14/24"]


def test_what_the_reference_plugin_leased_before_is_not_given_unless_it_is_of_an_earlier_boot(main: Delegating, tmp_path: Path) -> None:
    folder = tmp_path / "networks" / "n1"
    folder.mkdir(parents=True)
    for name in ("10.1.0.2", "10.1.0.3", "last_reserved_ip.0", "lock"):
        (folder / name).write_text("cid\neth0")
    os.utime(folder / "10.1.0.3", (1, 1))
    network = main.network(SUBNET)
    assert main.add(network, "c1") == ["10.1.0.3/24"]
    (folder / "10.1.0.2").unlink()
    for number in range(5, 256):
        (folder / f"10.1.0.{number}").write_text("cid\neth0")
    assert [main.add(network, "c2"), main.add(network, "c3")] == [["10.1.0.4/24"], ["10.1.0.2/24"]]


def test_leases_outlive_the_daemon_but_not_the_machines_start(host: None, tmp_path: Path) -> None:
    def opened() -> tuple[Engine, Delegating]:
        engine = Engine.open(tmp_path / "state")
        return engine, Delegating(runtime(engine, tmp_path), tmp_path / "networks")

    engine, main = opened()
    network = main.network(SUBNET)
    assert main.add(network) == ["10.1.0.2/24"]
    engine.close()
    engine, main = opened()
    assert main.add(network, "c2") == ["10.1.0.3/24"]
    (pool,) = engine.pools()
    with engine.store.transaction():
        engine.store.put_pool(structs.replace(pool, boot="another"))  # as if the machine had been started anew
    engine.close()
    engine, main = opened()
    assert [engine.leases(pool.name) for pool in engine.pools()] == [{}]
    assert len(main.add(network)) == 1
    engine.close()


# --- static --------------------------------------------------------------------------------------------------------------------------


def static(main: Delegating, *addresses: Json, **more: Any) -> Json:
    return main.network({"type": "static", "addresses": list(addresses)} | more)


def test_static_gives_what_it_is_told(main: Delegating) -> None:
    dns = {"nameservers": ["192.0.2.1"], "domain": "d", "search": ["x"]}
    both = ({"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"})
    network = static(main, *both, routes=[{"dst": "0.0.0.0/0"}], dns=dns)
    result = main.run("ADD", network)
    assert result == {"cniVersion": "1.1.0", "ips": list(both), "routes": [{"dst": "0.0.0.0/0"}], "dns": dns}
    main.run("CHECK", network, previous=result)
    with pytest.raises(CniError, match="fd00::5/64 is not in the result"):
        main.run("CHECK", network, previous={"ips": [{"address": "10.1.0.5/24"}]})
    main.delete(network)
    main.delete(network)
    main.status(network)
    main.status(static(main))
    assert main.collect(network, []) == []


def test_static_is_told_by_the_runtime_too_and_what_comes_later_overrides(main: Delegating) -> None:
    network = static(main, {"address": "10.1.0.5/24"})
    words = {"IP": "10.1.0.6/24", "GATEWAY": "10.1.0.1"}
    result = main.run("ADD", network, arguments=words)
    assert result is not None
    assert result["ips"] == [{"address": "10.1.0.5/24"}, {"address": "10.1.0.6/24", "gateway": "10.1.0.1"}]
    assert main.add(network, capabilities={"ips": ["10.1.0.8/24"]}) == ["10.1.0.8/24"]


@pytest.mark.parametrize("address", ["10.1.0.5", "junk", "10.1.0.5/99", "../../x/24", ""])
def test_static_refuses_what_is_no_address(main: Delegating, address: str) -> None:
    with pytest.raises(CniError):
        main.add(static(main, {"address": address}))


# --- host-local against a small model ------------------------------------------------------------------------------------------------

_WORDS = st.lists(st.tuples(st.sampled_from(["ADD", "DEL", "ASK", "GC"]), st.integers(0, 9), st.integers(0, 11)), max_size=40)


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return iter(range(1 << 30))


@given(words=_WORDS, ranges=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=3, unique_by=lambda r: r[0]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_address_is_given_twice_and_none_is_lost(
    main: Delegating, numbers: Iterator[int], words: list[tuple[str, int, int]], ranges: list[tuple[int, int]]
) -> None:
    # Ranges of at most three addresses, four apart, so that they don't overlap; .1 is the gateway.
    group = [small(4 * start + 1, 4 * start + size) for start, size in ranges]
    network = main.network({"ranges": [group]}, f"n{next(numbers)}")
    usable = {f"10.1.0.{4 * start + 1 + offset}" for start, size in ranges for offset in range(size)} - {"10.1.0.1"}
    held: dict[str, str] = {}
    for verb, number, place in words:
        name = f"c{number}"
        asked = f"10.1.0.{1 + place}"
        match verb:
            case "ADD" | "ASK":
                arguments = {"IP": asked} if verb == "ASK" else {}
                free = usable - set(held.values())
                if name in held or (asked not in free if arguments else not free):
                    with pytest.raises(CniError):
                        main.add(network, name, arguments=arguments)
                else:
                    (text,) = main.add(network, name, arguments=arguments)
                    given = str(ipaddress.ip_interface(text).ip)
                    assert given in free
                    assert not arguments or given == asked
                    held[name] = given
            case "DEL":
                main.delete(network, name)
                held.pop(name, None)
            case _:
                kept = [name for name in held if int(name[1:]) % 2 == number % 2]
                assert main.collect(network, [(name, "eth0") for name in kept]) == []
                held = {name: held[name] for name in kept}
