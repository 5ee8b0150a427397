"""What CNI runtimes say, and the forms that they are answered in: no kernel, no engine."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.frontends.call import Call
from atoll.frontends.cni.addressing import read_scheme
from atoll.frontends.cni.fold import fold
from atoll.frontends.cni.refusal import Refusal, Unserved, error_object
from atoll.frontends.cni.results import Dns, Interface, Ip, Result, Route, form, read_result
from atoll.frontends.cni.words import VERSIONS, Request, attachment_of, owner_of, read_request, version_said


class _Inner(msgspec.Struct):
    band_width: int = msgspec.field(name="bandWidth", default=0)


class _Outer(msgspec.Struct):
    one: _Inner = msgspec.field(default_factory=_Inner)
    many: list[_Inner] = []
    named: dict[str, _Inner] = {}


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    mtu: int = 0


ENVIRONMENT = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}


def ask(verb: str, configuration: object, **environment: str) -> Request:
    stdin = configuration if isinstance(configuration, bytes) else json.dumps(configuration).encode()
    words = {"CNI_COMMAND": verb} | ENVIRONMENT | environment
    return read_request(Call("cni", "/opt/cni/bin/bridge", (), words, stdin, "/"))


def refused(verb: str, configuration: object, **environment: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        ask(verb, configuration, **environment)
    return caught.value


def conf(version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": "n1", "type": "bridge", **more}


# --- keys --------------------------------------------------------------------------------------------------------------------------------


def test_known_keys_match_whatever_their_case_at_every_depth() -> None:
    raw = {"ONE": {"bandwidth": 1}, "many": [{"BandWidth": 2}], "Named": {"KeepMe": {"BANDWIDTH": 3}}, "unknown": 4}
    assert msgspec.convert(fold(_Outer, raw), _Outer) == _Outer(_Inner(1), [_Inner(2)], {"KeepMe": _Inner(3)})


def test_the_last_of_two_keys_wins_and_null_says_nothing() -> None:
    assert fold(_Inner, {"bandWidth": 1, "bandwidth": 2}) == {"bandWidth": 2}
    assert fold(_Inner, {"bandwidth": 2, "BANDWIDTH": None}) == {"bandWidth": 2}


def test_a_struct_that_forbids_unknown_keys_still_does() -> None:
    with pytest.raises(msgspec.ValidationError, match="mtus"):
        msgspec.convert(fold(_Strict, {"MTU": 1, "mtus": 2}), _Strict)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)))
def test_any_json_can_be_folded(value: Any) -> None:
    fold(_Outer, value)


# --- environment -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "needed"),
    [
        ("ADD", {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"}),
        ("DEL", {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"}),
        ("CHECK", {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"}),
        ("GC", {"CNI_PATH"}),
        ("STATUS", {"CNI_PATH"}),
        ("VERSION", set()),
    ],
)
def test_each_verb_needs_what_the_spec_says_and_nothing_else(verb: str, needed: set[str]) -> None:
    configuration = conf("1.1.0", prevResult={}, **{"cni.dev/valid-attachments": []})
    nothing = dict.fromkeys(ENVIRONMENT, "")
    assert ask(verb, configuration, **(nothing | {name: ENVIRONMENT[name] for name in needed})).environment.command == verb
    for name in needed:
        error = refused(verb, configuration, **{name: ""})
        assert error.code == 4
        assert name in error.message


@pytest.mark.parametrize("verb", ["", "add", "REMOVE", "ADD\n", "A" * 300])
def test_an_unknown_verb_is_refused(verb: str) -> None:
    assert refused(verb, conf()).code == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CNI_CONTAINERID", "../../etc"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_CONTAINERID", "a\nb"),
        ("CNI_CONTAINERID", "-a"),
        ("CNI_CONTAINERID", "a" * 300),
        ("CNI_IFNAME", "eth0/1"),
        ("CNI_IFNAME", "eth0:1"),
        ("CNI_IFNAME", "eth 0"),
        ("CNI_IFNAME", "eth0\n"),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a" * 16),
        ("CNI_IFNAME", "eth\udcff"),
        ("CNI_NETNS", "/run/netns/a\nb"),
        ("CNI_NETNS", "/run/netns/\udcff"),
        ("CNI_NETNS", "/" + "a" * 5000),
        ("CNI_ARGS", "IP"),
        ("CNI_ARGS", "UNKNOWN=1"),
    ],
)
def test_a_bad_variable_is_refused_and_named(name: str, value: str) -> None:
    error = refused("ADD", conf(), **{name: value})
    assert error.code == 4
    assert name in error.message
    assert b"\n" not in json.loads(error_object("1.0.0", error.code, error.message, error.details))["msg"].encode()


def test_arguments_are_read_and_unknown_ones_left_out_if_that_is_asked_for() -> None:
    request = ask("ADD", conf(), CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=web;FOO=bar;MAC=02:00:00:00:00:01")
    assert request.environment.arguments == {"K8S_POD_NAME": "web", "MAC": "02:00:00:00:00:01"}


def test_a_relative_namespace_is_the_callers() -> None:
    assert ask("ADD", conf(), CNI_NETNS="netns").environment.netns == "/netns"


def test_an_owner_says_container_and_interface() -> None:
    assert attachment_of(owner_of("a.b_c-d", "eth0")) == ("a.b_c-d", "eth0")


# --- configurations ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        (b"", 6),
        (b"garbage", 6),
        (b"[]", 6),
        (b'"text"', 6),
        (b"\xff\xfe", 6),
        (b'{"name":"\xff"}', 6),
        (b"[" * 200_000, 6),
        (b'{"cniVersion":"1.0.0","name":"n1","x":' + b"[" * 200_000, 6),
        (b'{"cniVersion":"1.0.0","name":"n1","x":"' + b"a" * (1 << 20) + b'"}', 6),
        (b'{"cniVersion":1,"name":"n1"}', 6),
        (b'{"cniVersion":"1.0.0","name":["n1"]}', 6),
        (b'{"cniVersion":"1.0.0","name":""}', 7),
        (b'{"cniVersion":"1.0.0"}', 7),
        (b'{"cniVersion":"1.0.0","name":"../x"}', 7),
        (b'{"cniVersion":"1.0.0","name":"a\\u0000b"}', 7),
        (b'{"cniVersion":"1.0.0","name":"a\\nb"}', 7),
        (b'{"cniVersion":"1.0.0","name":"' + b"a" * 300 + b'"}', 7),
        (b'{"cniVersion":"1.0.0","name":"n1","prevResult":"x"}', 6),
        (b'{"cniVersion":"1.0.0","name":"n1","prevResult":{"ips":[{"address":1}]}}', 6),
        (b'{"cniVersion":"1.0.0","name":"n1","prevResult":{"ips":[{"address":"x"}]}}', 6),
        (b'{"cniVersion":"1.0.0","name":"n1","prevResult":{"routes":[{"dst":"0.0.0.0/99"}]}}', 6),
        (b'{"cniVersion":"9.9.9","name":"n1"}', 1),
        (b'{"cniVersion":"1.0","name":"n1"}', 1),
    ],
)
def test_a_bad_configuration_is_refused_with_the_specs_code(stdin: bytes, code: int) -> None:
    assert refused("ADD", stdin).code == code
    assert version_said(stdin) in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("verb", "since"), [("ADD", "0.1.0"), ("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
def test_a_verb_is_served_from_its_version_on(version: str, verb: str, since: str) -> None:
    configuration = conf(version, prevResult={}, **{"cni.dev/valid-attachments": []})
    if VERSIONS.index(version) >= VERSIONS.index(since):
        assert ask(verb, configuration).version == version
    else:
        assert refused(verb, configuration).code == 1


def test_a_configuration_without_a_version_is_of_the_oldest() -> None:
    assert ask("ADD", {"name": "n1", "type": "bridge"}).version == "0.1.0"


def test_check_needs_a_result_and_gc_what_to_keep() -> None:
    assert refused("CHECK", conf()).code == 7
    assert refused("GC", conf("1.1.0")).code == 7
    kept = [{"containerID": "c1", "ifname": "eth0"}]
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments", "CNI.dev/Valid-Attachments"):
        assert ask("GC", conf("1.1.0", **{key: kept})).valid == {("c1", "eth0")}


# --- results -----------------------------------------------------------------------------------------------------------------------------

RESULT = Result(
    interfaces=(Interface("br0", mac="02:00:00:00:00:01", mtu=1500), Interface("eth0", mac="02:00:00:00:00:02", sandbox="/run/netns/c1")),
    ips=(Ip("10.1.0.2/24", gateway="10.1.0.1", interface=1), Ip("fd00::2/64", gateway="fd00::1", interface=1)),
    routes=(Route("0.0.0.0/0", priority=7), Route("fd01::/64", gw="fd00::9")),
    dns=Dns(nameservers=("10.1.0.1",), search=("n1.atoll",)),
)


def test_the_form_of_1_1_says_everything() -> None:
    said = json.loads(form(RESULT, "1.1.0"))
    assert said["interfaces"][0] == {"name": "br0", "mac": "02:00:00:00:00:01", "mtu": 1500}
    assert said["ips"][0] == {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1}
    assert said["routes"] == [{"dst": "0.0.0.0/0", "priority": 7}, {"dst": "fd01::/64", "gw": "fd00::9"}]
    assert said["dns"] == {"nameservers": ["10.1.0.1"], "search": ["n1.atoll"]}


def test_the_form_of_1_0_has_no_later_words() -> None:
    said = json.loads(form(RESULT, "1.0.0"))
    assert said["interfaces"][0] == {"name": "br0", "mac": "02:00:00:00:00:01"}
    assert "version" not in said["ips"][0]
    assert said["routes"][0] == {"dst": "0.0.0.0/0"}


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_addresses_say_their_family_before_1_0(version: str) -> None:
    assert [ip["version"] for ip in json.loads(form(RESULT, version))["ips"]] == ["4", "6"]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_the_oldest_forms_have_one_address_a_family_with_its_routes(version: str) -> None:
    said = json.loads(form(RESULT, version))
    assert said["ip4"] == {"ip": "10.1.0.2/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]}
    assert said["ip6"] == {"ip": "fd00::2/64", "gateway": "fd00::1", "routes": [{"dst": "fd01::/64", "gw": "fd00::9"}]}
    assert not {"interfaces", "ips", "routes"} & set(said)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_of_any_version_is_read_back(version: str) -> None:
    said = json.loads(form(RESULT, version))
    assert said["cniVersion"] == version
    read = read_result(said)
    assert [ip.address for ip in read.ips] == [ip.address for ip in RESULT.ips]
    assert [route.dst for route in read.routes] == [route.dst for route in RESULT.routes]
    assert read.dns == RESULT.dns


def test_a_result_after_another_counts_interfaces_on() -> None:
    after = RESULT.after(Result(interfaces=(Interface("lo"),), ips=(Ip("127.0.0.1/8", interface=0),)))
    assert [interface.name for interface in after.interfaces] == ["lo", "br0", "eth0"]
    assert [ip.interface for ip in after.ips] == [0, 2, 2]


# --- addresses ---------------------------------------------------------------------------------------------------------------------------


def scheme(ipam: dict[str, Any], version: str = "1.0.0", arguments: str = "", **more: Any) -> Any:
    return read_scheme(ask("ADD", conf(version, ipam=ipam, **more), CNI_ARGS=arguments))


def local(**ipam: Any) -> dict[str, Any]:
    return {"type": "host-local", **ipam}


def test_host_local_fills_in_what_is_left_out() -> None:
    (found,) = scheme(local(subnet="10.1.2.0/24")).ranges()
    assert (str(found.first), str(found.last), str(found.gateway)) == ("10.1.2.1", "10.1.2.254", "10.1.2.1")
    (found,) = scheme(local(ranges=[[{"subnet": "fd00::/64"}]])).ranges()
    assert (str(found.first), str(found.gateway)) == ("fd00::1", "fd00::1")


def test_ranges_of_the_runtime_come_first_then_the_old_form_then_ranges() -> None:
    found = scheme(
        local(subnet="10.2.0.0/24", ranges=[[{"subnet": "10.3.0.0/24"}]]), runtimeConfig={"ipRanges": [[{"subnet": "10.1.0.0/24"}]]}
    )
    assert [str(one.subnet) for one in found.ranges()] == ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"]


def test_addresses_are_asked_for_in_three_ways() -> None:
    ipam = local(ranges=[[{"subnet": "10.1.0.0/24"}]])
    for said in (
        {"arguments": "IP=10.1.0.9"},
        {"args": {"cni": {"ips": ["10.1.0.9"]}}},
        {"runtimeConfig": {"ips": ["10.1.0.9/24"]}},
    ):
        found = scheme(ipam, **said)
        assert [str(value) for value in found.wanted] == ["10.1.0.9"]


def test_static_addresses_of_the_runtime_override_the_configurations() -> None:
    ipam = {"type": "static", "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]}
    assert scheme(ipam).fixed == ("10.1.0.5/24",)
    assert scheme(ipam, arguments="IP=10.2.0.5/24;GATEWAY=10.2.0.1").fixed == ("10.1.0.5/24", "10.2.0.5/24")
    assert scheme(ipam, args={"cni": {"ips": ["10.3.0.5/24"]}}).fixed == ("10.3.0.5/24",)
    assert scheme(ipam, args={"cni": {"ips": ["10.3.0.5/24"]}}, runtimeConfig={"ips": ["10.4.0.5/24"]}).fixed == ("10.4.0.5/24",)


@pytest.mark.parametrize(
    "ipam",
    [
        local(),
        local(subnet="10.1.0.5/24"),
        local(subnet="10.1.0.0/31"),
        local(subnet="nonsense"),
        local(subnet="10.1.0.0/24", rangeStart="10.2.0.1"),
        local(subnet="10.1.0.0/24", rangeEnd="10.2.0.1"),
        local(subnet="10.1.0.0/24", rangeStart="10.1.0.9", rangeEnd="10.1.0.5"),
        local(subnet="10.1.0.0/24", ranges=[[{"subnet": "10.1.0.0/25"}]]),
        local(ranges=[[]]),
        local(ranges=[[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]),
        local(subnet="10.1.0.0/24", routes=[{"dst": "nowhere"}]),
        local(subnet="10.1.0.0/24", routes=[{"dst": "10.0.0.0/8", "gw": "fd00::1"}]),
        {"type": "static"},
        {"type": "static", "addresses": [{"address": "10.1.0.5"}]},
        {"type": "static", "addresses": [{"address": "10.1.0.500/24"}]},
        {"type": "static", "addresses": [{"address": "10.1.0.5/24", "gateway": "x"}]},
    ],
)
def test_an_ipam_section_that_means_nothing_is_refused(ipam: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as caught:
        scheme(ipam)
    assert caught.value.code == 7


def test_an_address_outside_of_all_ranges_is_refused() -> None:
    with pytest.raises(Refusal, match="not in any range"):
        scheme(local(subnet="10.1.0.0/24"), arguments="IP=10.2.0.5")


def test_old_versions_have_one_address_a_family() -> None:
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]
    with pytest.raises(Refusal, match="more than 1 address"):
        scheme(local(ranges=ranges), "0.2.0")
    assert len(scheme(local(ranges=ranges), "0.3.0").sets) == 2


def test_other_ipam_plugins_are_not_served() -> None:
    for section in ({"type": "dhcp"}, {"type": "whereabouts"}, local(subnet="10.1.0.0/24", gateway="10.2.0.1")):
        with pytest.raises(Unserved):
            scheme(section)
