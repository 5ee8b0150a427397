"""Documents: what they say, and every way in which one can be wrong, with the place and what was expected."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from atoll.errors import Invalid, NotFound
from atoll.topology import Parsed, Topology, find, folder_project, load, parse, schema
from tests.docs.pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from atoll.topology import Place

COMPOSE = ROOT / "tests" / "data" / "compose"


def topology(text: str, **options: Any) -> Topology:
    return parse(text, "t.yaml", **({"project": "p"} | options)).topology


def place(found: Topology, name: str) -> Place:
    return next(place for place in found.namespaces if place.name == name)


def compose(name: str, **variables: str) -> Parsed:
    return load(str(COMPOSE / name), variables=variables)


# --- real ones -----------------------------------------------------------------------------------------------------------------------


def test_the_voting_app() -> None:
    parsed = compose("voting.yml")
    found = parsed.topology
    assert found.project == "compose"
    assert [network.name for network in found.networks] == ["compose_back-tier", "compose_front-tier"]
    on = {place.service: [connection.network.partition("_")[2] for connection in place.connections] for place in found.namespaces}
    assert on == {
        "vote": ["front-tier", "back-tier"],
        "result": ["front-tier", "back-tier"],
        "worker": ["back-tier"],
        "redis": ["back-tier"],
        "db": ["back-tier"],
    }
    assert place(found, "compose-result").connections[0].publish == ("8081:80/tcp", "127.0.0.1:9229:9229/tcp")
    assert found.programs == ()
    assert parsed.notes == (
        "not used: build (4 times), entrypoint of an image, healthcheck (3 times), image (2 times), restart, volumes (5 times)",
    )


def test_wordpress() -> None:
    found = compose("wordpress.yml", HTTP_PORT="8001").topology
    back, front = found.networks
    assert (back.name, back.internal, back.subnets, back.ip_ranges) == ("blog_backend", True, ("172.28.1.0/24",), ("172.28.1.128/25",))
    assert back.aux_addresses == {"router": "172.28.1.2"}
    assert (front.gateways, front.options) == (("172.28.0.254",), {"com.docker.network.driver.mtu": "1450"})
    db = place(found, "blog-mysql").connections[0]
    assert (db.addresses, db.aliases) == (("172.28.1.10",), ("db", "mysql", "database"))
    assert place(found, "blog-webserver").connections[0].publish == ("8001:80/tcp", "8443:443/tcp")
    assert [place.service for place in found.namespaces] == ["db", "wordpress", "webserver"]


def test_monitoring() -> None:
    parsed = compose("monitoring.yml")
    found = parsed.topology
    assert [network.name for network in found.networks] == ["monitor-net", "monitoring_kafka"]
    assert found.external == ("outside",)
    assert found.networks[1].ipv6
    assert [place.name for place in found.namespaces] == [
        "monitoring-zookeeper",
        "monitoring-kafka",
        "monitoring-prometheus",
        "monitoring-node-exporter-1",
        "monitoring-node-exporter-2",
        "monitoring-grafana",
    ]
    kafka, monitor = place(found, "monitoring-kafka").connections
    assert kafka.publish == ("9092:9092/tcp", "9101-9102:9101-9102/tcp")
    assert (kafka.aliases, monitor.gateway_priority) == (("kafka", "broker", "broker.kafka"), -1)
    assert place(found, "monitoring-node-exporter-2").connections[0].aliases == ("node-exporter",)
    assert "extra_hosts" in parsed.notes[0]
    assert "deploy.resources" in parsed.notes[0]


@pytest.mark.parametrize("name", ["voting.yml", "wordpress.yml", "monitoring.yml"])
def test_a_topology_is_a_value_that_goes_through_json(name: str) -> None:
    found = compose(name).topology
    assert msgspec.json.decode(msgspec.json.encode(found), type=Topology) == found


# --- what a document says ------------------------------------------------------------------------------------------------------------


def test_services_without_networks_are_on_a_default_one() -> None:
    found = topology("services: {a: , b: {network_mode: none}}")
    assert [network.name for network in found.networks] == ["p_default"]
    assert place(found, "p-a").connections[0].network == "p_default"
    assert place(found, "p-b").connections == ()
    own = topology("networks: {default: {internal: true}}\nservices: {a: {}}")
    assert [(network.name, network.internal) for network in own.networks] == [("p_default", True)]


def test_networks_are_there_without_services() -> None:
    assert [network.name for network in topology("networks: {a: , b: {name: other}}").networks] == ["other", "p_a"]


def test_x_atoll_says_what_compose_has_no_words_for() -> None:
    (network,) = topology("networks: {a: {x-atoll: {icc: false, mtu: 1400, nat: routed, guard: no}}}").networks
    assert (network.icc, network.mtu, network.masquerade, network.guard) == (False, 1400, False, False)


def test_name_servers_are_a_services_or_a_networks() -> None:
    found = topology("networks: {a: {x-atoll: {dns: no}}, b: {x-atoll: {dns: [192.0.2.1]}}}\nservices: {s: {dns: 192.0.2.2}}")
    assert [(network.name, network.dns, network.servers) for network in found.networks[:2]] == [
        ("p_a", False, ()),
        ("p_b", True, ("192.0.2.1",)),
    ]
    assert place(found, "p-s").servers == ("192.0.2.2",)


def test_commands_are_words_and_those_of_images_are_left_out() -> None:
    text = """
services:
  a: {command: "python3 -c 'print(1)'", working_dir: sub, user: 1000, hostname: h}
  b: {image: x, command: --flag}
  c: {image: x, command: --flag, x-atoll: {command: [sleep, 1]}}
  d: {entrypoint: [run], command: [me], depends_on: [c, a]}
  e: {network_mode: "service:a", command: e}
  f: {network_mode: host, command: f}
"""
    parsed = parse(text, "t.yaml", project="p", folder="/f")
    programs = {program.service: program for program in parsed.topology.programs}
    assert {name: program.command for name, program in programs.items()} == {
        "a": ("python3", "-c", "print(1)"),
        "c": ("sleep", "1"),
        "d": ("run", "me"),
        "e": ("e",),
        "f": ("f",),
    }
    assert (programs["a"].directory, programs["a"].user, programs["a"].hostname) == ("/f/sub", "1000", "h")
    assert programs["d"].after == ("p-c.run", "p-a.run")
    assert (programs["e"].share, programs["f"].share, programs["a"].share) == ("ns:p-a", "host", "ns:p-a")
    assert {place.service for place in parsed.topology.namespaces} == {"a", "b", "c", "d"}
    order = [program.service for program in parsed.topology.programs]
    assert order.index("d") > max(order.index("a"), order.index("c"))


def test_environment_comes_from_files_and_the_document(tmp_path: Path) -> None:
    (tmp_path / "one.env").write_text("# first\nexport A='x y'\nB=2 # two\nC=\"3\"\n")
    (tmp_path / ".env").write_text("FROM_DOTENV=d\nBOTH=dotenv\n")
    (tmp_path / "atoll.yaml").write_text(
        "name: p\nservices:\n  a:\n    command: x\n    env_file: one.env\n    environment: {B: , D: '${FROM_DOTENV}$$', E: '${BOTH}'}\n"
    )
    (program,) = load(str(tmp_path / "atoll.yaml"), variables={"B": "env", "BOTH": "env"}).topology.programs
    assert program.environment == {"A": "x y", "B": "env", "C": "3", "D": "d$", "E": "env"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A", "a"),
        ("${A}-$$A", "a-$A"),
        ("${NO:-x}${NO-y}", "xy"),
        ("${EMPTY:-x}${EMPTY-y}", "x"),
        ("${NO:-${A}b}", "ab"),
        ("${A:+set}${NO:+set}", "set"),
        ("$NO", ""),
        ("${A:?needed}", "a"),
    ],
)
def test_variables(text: str, expected: str) -> None:
    (program,) = topology(f"services: {{a: {{command: [x, '{text}']}}}}", variables={"A": "a", "EMPTY": ""}).programs
    assert program.command[1] == expected


def test_profiles_and_chosen_services() -> None:
    text = "services: {a: {depends_on: [b]}, b: {profiles: [x]}, c: {}, d: {profiles: [y]}}\nnetworks: {unused: {}}"

    def names(**options: Any) -> list[str]:
        return [place.service for place in topology(text, **options).namespaces]

    assert names() == ["b", "a", "c"]
    assert names(profiles=["y"]) == ["b", "a", "c", "d"]
    assert names(only=["a"]) == ["b", "a"]
    assert [network.name for network in topology(text, only=["a"]).networks] == ["p_default"]


def test_a_long_chain_of_services_is_in_order() -> None:
    chain = "".join(f"  s{number}: {{depends_on: [s{number + 1}]}}\n" for number in range(3000))
    places = topology(f"services:\n{chain}  s3000: {{}}\n").namespaces
    assert [place.service for place in places] == [f"s{number}" for number in reversed(range(3001))]


def test_projects_are_named_by_the_folder(tmp_path: Path) -> None:
    assert folder_project("/some/My Shop.2") == "myshop2"
    with pytest.raises(NotFound, match=r"no topology in this folder"):
        find(str(tmp_path))
    (tmp_path / "docker-compose.yml").touch()
    (tmp_path / "compose.yaml").touch()
    assert find(str(tmp_path)) == str(tmp_path / "compose.yaml")


# --- what is wrong -------------------------------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 10)}]\n" for n in range(8)
)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "t.yaml:1:1: the file is empty; expected services: and networks:"),
        ("- a", "t.yaml:1:1: a list where the document begins; expected a map with services: and networks:"),
        ("services:\n  a: {\n", "t.yaml:3:1: not YAML: "),
        ("a: b: c", "t.yaml:1:5: not YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "t.yaml:2:1: not YAML: but found another document"),
        ("a: !!python/object:os.system x", "t.yaml:1:4: a tag (tag:yaml.org,2002:python/object:os.s"),
        ("a: !reset 1", "t.yaml:1:4: a tag (!reset)"),
        ("a: \x01", "t.yaml:1:4: a character that YAML doesn't allow"),
        ("[" * 40, "t.yaml:1:33: nested deeper than 32 levels"),
        (BOMB, "t.yaml:1:"),
        ("a: *b", "t.yaml:1:4: not YAML: found undefined alias 'b'"),
        ("&a a: &b [*b]", "t.yaml:1:"),
        ("services: {}\nservices: {}", "t.yaml:2:1: 'services' is here twice; it was at line 1 already"),
        ("? [a]\n: b", "t.yaml:1:3: a key that isn't a plain word; expected a name"),
        ("a: {<<: 1}", "t.yaml:1:9: a number to merge; expected a map, or a list of maps"),
        ("servces: {}", "t.yaml:1:1: 'servces' is unknown in a topology; did you mean services?"),
        ("include: [a]", "t.yaml:1:1: include is not supported"),
        ("services:\n  a: {extends: b}", "t.yaml:2:7: extends is not supported"),
        ("services: 1", "t.yaml:1:11: services is a number; expected a map"),
        ("services: {a: {prts: []}}", "t.yaml:1:16: 'prts' is unknown in service a; did you mean ports?"),
        ("services: {-a: {}}", "t.yaml:1:12: '-a' is not a service name; 1 to 63 letters"),
        ("services: {a: {ports: 80}}", "t.yaml:1:23: ports is a number; expected a list"),
        ("services: {a: {ports: ['1:2:3:4']}}", "t.yaml:1:24: '1:2:3:4' is not a port to publish; expected [HOSTIP:]HOSTPORT"),
        ("services: {a: {ports: ['70000:80']}}", "t.yaml:1:24: port 70000 in '70000:80' is out of range"),
        ("services: {a: {ports: ['80-81:80']}}", "t.yaml:1:24: 80-81:80/tcp leaves the port of the host open"),
        ("services: {a: {ports: ['0:80']}}", "t.yaml:1:24: 0:80/tcp leaves the port of the host open"),
        ("services: {a: {ports: ['80-82:80-81']}}", "t.yaml:1:24: '80-82:80-81' maps 3 host ports onto 2"),
        ("services: {a: {ports: ['80:80', '80:80']}}", "t.yaml:1:33: 80:80/tcp is published twice"),
        ("services: {a: {ports: [{published: 80}]}}", "t.yaml:1:24: a port has no target"),
        ("services: {a: {ports: [{target: x}]}}", "t.yaml:1:33: target is not a whole number from 1 to 65535"),
        ("services: {a: {ports: ['80:80'], scale: 2}}", "t.yaml:1:24: a published port, and 2 replicas"),
        ("services: {a: {dns: x}}", "t.yaml:1:21: DNS server 'x' is not an IP address"),
        ("networks: {a: {x-atoll: {dns: [x]}}}", "t.yaml:1:31: DNS server 'x' is not an IP address"),
        ("services: {a: {scale: x}}", "t.yaml:1:23: the number of replicas is not a whole number"),
        ("services: {a: {networks: [b]}}", "t.yaml:1:27: network 'b' is not under networks:; it has: default"),
        ("services: {a: {networks: {b: }}}", "t.yaml:1:27: network 'b' is not under networks:"),
        ("networks: {b: }\nservices: {a: {networks: [b, b]}}", "t.yaml:2:30: network b is named twice"),
        ("services: {a: {networks: {default: {ip: 1}}}}", "t.yaml:1:37: 'ip' is unknown in a service's network"),
        ("services: {a: {networks: {default: {aliases: [-x]}}}}", "t.yaml:1:47: '-x' is not a alias name"),
        ("services: {a: {networks: {default: {mac_address: x}}}}", "t.yaml:1:50: 'x' is not a MAC address"),
        ("services: {a: {networks: {default: {interface_name: a/b}}}}", "t.yaml:1:53: 'a/b' is not an interface name"),
        (
            "services: {a: {networks: {default: {ipv4_address: 10.0.0.2}}}}",
            "t.yaml:1:51: ipv4_address 10.0.0.2, and network p_default has no",
        ),
        ("services: {a: {networks: {default: {ipv4_address: x}}}}", "t.yaml:1:51: "),
        ("services: {a: {networks: {default: {ipv6_address: 10.0.0.2}}}}", "t.yaml:1:51: ipv6_address 10.0.0.2 is an IPv4 address"),
        (
            "networks: {b: {ipam: {config: [{subnet: 10.1.0.0/24}]}}}\nservices: {a: {networks: {b: {ipv4_address: 10.2.0.2}}}}",
            "t.yaml:2:45: ipv4_address 10.2.0.2 is in no subnet of network p_b; its subnets: 10.1.0.0/24",
        ),
        (
            "networks: {b: {internal: true}}\nservices: {a: {networks: [b], ports: ['1:1']}}",
            "t.yaml:2:39: service a is on no network that can",
        ),
        ("services: {a: {network_mode: ipsec}}", "t.yaml:1:30: network_mode 'ipsec' is unknown; expected none, host or service:NAME"),
        ("services: {a: {network_mode: 'service:b'}}", "t.yaml:1:30: no other service 'b'"),
        ("services: {a: {network_mode: host, ports: ['1:1']}}", "t.yaml:1:36: ports of a service in the network of another"),
        ("services: {a: {network_mode: none, networks: [default]}}", "t.yaml:1:36: networks beside network_mode"),
        ("services: {a: {depends_on: [b]}}", "t.yaml:1:29: no service 'b' to depend on; the services: a"),
        ("services: {a: {depends_on: [b]}, b: {depends_on: {a: {}}}}", "t.yaml:1:12: services depend on each other: a -> b -> a"),
        ('services: {a: {command: "\'"}}', "t.yaml:1:25: command can't be split into words: No closing quotation"),
        ("services: {a: {env_file: none.env, command: x}}", "t.yaml:1:26: no file "),
        ("services: {a: {command: x, environment: {A: [b]}}}", "t.yaml:1:45: A is a list; expected text"),
        ("services: {a-1: {}, a: {scale: 2}}", "t.yaml:1:21: services a-1 and a would both be namespace p-a-1; rename one of them"),
        ("services: {a: {container_name: b, scale: 2}}", "t.yaml:1:32: container_name, and 2 replicas"),
        ("networks: {b: {drivr: x}}", "t.yaml:1:16: 'drivr' is unknown in network b; did you mean driver?"),
        ("networks: {b: {driver: overlay}}", "t.yaml:1:24: driver 'overlay' is unknown; expected one of bridge, macvlan, ipvlan"),
        ("networks: {b: {internal: maybe}}", "t.yaml:1:26: internal is neither true nor false"),
        ("networks: {b: {external: true, internal: true}}", "t.yaml:1:32: internal of an external network"),
        ("networks: {b: {name: x}, c: {name: x}}", "t.yaml:1:26: two networks are named x; the other is at line 1"),
        ("networks: {b: {name: /}}", "t.yaml:1:22: '/' is not a network name"),
        ("networks: {b: {ipam: {driver: x}}}", "t.yaml:1:31: ipam driver 'x' is unknown"),
        ("networks: {b: {ipam: {config: [{gateway: 10.0.0.1}]}}}", "t.yaml:1:32: an entry of config has no subnet"),
        ("networks: {b: {ipam: {config: [{subnet: 10.0.0.1/24}]}}}", "t.yaml:1:41: "),
        ("networks: {b: {ipam: {config: [{subnet: 10.0.0.0/24, gateway: 10.0.1.1}]}}}", "t.yaml:1:63: gateway 10.0.1.1 is not in subnet"),
        ("networks: {b: {ipam: {config: [{subnet: 10.0.0.0/24, ip_range: 10.1.0.0/28}]}}}", "t.yaml:1:64: ip_range 10.1.0.0/28 is not in"),
        (
            "networks: {a: {ipam: {config: [{subnet: 10.0.0.0/16}]}}, b: {ipam: {config: [{subnet: 10.0.1.0/24}]}}}",
            "t.yaml:1:58: subnet 10.0.1.0/24 overlaps 10.0.0.0/16 of network p_a",
        ),
        ("networks: {b: {driver_opts: {foo: bar}}}", "t.yaml:1:12: option 'foo' is unknown to driver bridge"),
        ("networks: {b: {x-atoll: {mtu: 10}}}", "t.yaml:1:31: mtu is not a whole number from 68 to 65535"),
        ("networks: {b: {x-atoll: {nat: x}}}", "t.yaml:1:31: nat 'x' is unknown; expected masquerade or routed"),
        ("networks: {b: {x-atoll: {gard: x}}}", "t.yaml:1:26: 'gard' is unknown in x-atoll; did you mean guard?"),
        ("name: ${NO:?set me}", "t.yaml:1:7: variable NO is not set: set me"),
        ("name: a$-", "t.yaml:1:7: a $ that begins no variable in 'a$-'"),
        ("name: ${1}", "t.yaml:1:7: '${1}' has a variable that isn't one"),
        ("name: ${A:-b", "t.yaml:1:7: a variable in '${A:-b' is not closed"),
        ("name: a/b", "t.yaml:1:7: 'a/b' is not a project name"),
    ],
)
def test_errors_name_the_place_and_what_was_expected(text: str, error: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(text, "t.yaml", project="" if text.startswith("name") else "p")
    assert str(caught.value).startswith(error)
    assert str(caught.value).isprintable()


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "atoll.yaml"
    path.write_text("a: " + "x" * 300_000)
    with pytest.raises(Invalid, match=r"atoll.yaml:1:1: larger than 256 KiB"):
        load(str(path), variables={})
    path.write_bytes(b"a: b\nc: \xff")
    with pytest.raises(Invalid, match=r"atoll.yaml:2:4: not UTF-8"):
        load(str(path), variables={})


# --- the schema ----------------------------------------------------------------------------------------------------------------------


def test_the_schema_in_the_documentation_is_the_one_that_is_printed() -> None:
    assert json.loads((ROOT / "docs" / "atoll.schema.json").read_text()) == schema()


def test_a_port_without_a_port_of_the_host_is_for_neighbours_and_named() -> None:
    text = "name: shop\nservices: {a: {ports: [80, '127.0.0.1::81', 90-99/udp, {target: 82}, '8080:80']}}\n"
    parsed = parse(text, "t.yaml")
    (place,) = parsed.topology.namespaces
    assert [connection.publish for connection in place.connections] == [("8080:80/tcp",)]
    assert parsed.notes == ("not used: ports without a port of the host (4 times)",)
