"""Whatever a runtime says, the CNI door answers in the spec's form, and what failed has changed nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.frontends.call import Call
from atoll.frontends.cni import answer
from atoll.frontends.cni.plugins import PLUGINS

if TYPE_CHECKING:
    from atoll import Engine

#: Every key that some plugin knows, and a few that none does.
KEYS: Final = (
    "cniVersion", "name", "type", "ipam", "dns", "prevResult", "runtimeConfig", "args", "cni", "cni.dev/valid-attachments", "bridge", "mtu",
    "isGateway", "isDefaultGateway", "ipMasq", "hairpinMode", "promiscMode", "vlan", "vlanTrunk", "macspoofchk", "portIsolation", "master",
    "mode", "linkInContainer", "network", "subnet", "subnets", "ranges", "rangeStart", "rangeEnd", "gateway", "gateways", "routes", "dst",
    "gw", "addresses", "address", "resolvConf", "dataDir", "portMappings", "hostPort", "containerPort", "protocol", "hostIP", "bandwidth",
    "ingressRate", "ingressBurst", "egressRate", "egressBurst", "ips", "ipRanges", "mac", "aliases", "sysctl", "promisc", "ingressPolicy",
    "backend", "interfaces", "sandbox", "containerID", "ifname", "labels", "key", "value", "options", "driver", "x", "",
)  # fmt: skip
WORDS: Final = (
    "", "n1", "../../etc", "a" * 300, "a\nb", "a\0b", "\u202e", "1.0.0", "1.1.0", "0.2.0", "host-local", "static", "dhcp", "bridge",
    "atoll",
    "10.5.0.0/24", "10.5.0.7/24", "10.5.0.7", "fd00::/64", "0.0.0.0/0", "999.1.1.1/99", "02:00:00:00:00:01", "tcp", "eth0", "lo", "none",
    "/dev/zero", "/proc/self/mem", "true", "8kbit",
)  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=9)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5), max_leaves=25
)
configurations = st.dictionaries(st.sampled_from(KEYS), values, max_size=8)
sound = st.fixed_dictionaries({"cniVersion": st.sampled_from(["0.2.0", "0.4.0", "1.0.0", "1.1.0"]), "name": st.just("n1")})


@pytest.mark.parametrize("plugin", sorted(PLUGINS))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(said=configurations, right=sound, verb=st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]))
def test_any_json_gets_an_answer_and_makes_nothing(
    engine: Engine, plugin: str, said: dict[str, Any], right: dict[str, Any], verb: str
) -> None:
    """There is no such container, so nothing can be made for it."""
    environment = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/none", "CNI_IFNAME": "eth0", "CNI_PATH": "/bin"}
    stdin = json.dumps(said | right).encode("utf-8", "replace")
    found = answer(engine, Call("cni", f"/nowhere/{plugin}", (), environment, stdin, "/"))
    assert not found.run
    if found.code:
        error = json.loads(found.stdout)
        assert error["cniVersion"] == right["cniVersion"]
        assert isinstance(error["code"], int)
        assert error["code"] > 0
        assert error["msg"].isprintable()
    state = engine.state
    assert not any((state.networks, state.namespaces, state.endpoints, state.holds))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stdin=st.binary(max_size=200),
    environment=st.dictionaries(st.sampled_from(["CNI_COMMAND", "CNI_ARGS", "CNI_IFNAME", "CNI_NETNS"]), st.text()),
)
def test_any_bytes_get_an_answer(engine: Engine, stdin: bytes, environment: dict[str, str]) -> None:
    found = answer(engine, Call("cni", "bridge", (), environment, stdin, ""))
    assert found.code == 1
    assert json.loads(found.stdout)["code"] > 0
