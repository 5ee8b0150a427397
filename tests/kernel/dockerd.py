"""Calls as dockerd makes them, for an engine in this process: in its order, with its bodies, and each again if that is asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from atoll.frontends.docker import Door
from atoll.frontends.docker.calls import answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atoll import Engine

#: What gives something new each time; Docker gives back each.
_ANOTHER: Final = ("IpamDriver.RequestPool", "IpamDriver.RequestAddress")
_GATEWAY: Final = "com.docker.network.gateway"
_PORTMAP: Final = "com.docker.network.portmap"


def network_id(number: int) -> str:
    return f"{number:02x}" * 32


def endpoint_id(number: int) -> str:
    return f"e{number:02x}0" * 16


def sandbox_key(number: int) -> str:
    return f"/var/run/docker/netns/{number:012x}"


def ports(*bindings: tuple[int, int], host_ip: str = "", proto: int = 6) -> list[dict[str, Any]]:
    """Host port and port of each."""
    return [
        {"Proto": proto, "IP": "", "Port": inner, "HostIP": host_ip, "HostPort": outer, "HostPortEnd": outer} for outer, inner in bindings
    ]


class Dockerd:
    """`again`: each call that may be repeated is made twice, and answered the same way."""

    def __init__(self, engine: Engine, *, again: bool = False) -> None:
        self.door = Door(engine)
        self._again = again
        self._pools: dict[str, list[tuple[str, str]]] = {}
        self._addresses: dict[str, list[tuple[str, str]]] = {}

    # --- single calls ---

    def call(self, method: str, **fields: Any) -> dict[str, Any]:
        body = json.dumps(fields).encode() if fields else b""
        reply = answer(self.door, method, body)
        shown = json.loads(reply.body)
        assert (reply.status, shown.get("Err"), shown.get("Error")) == (200, None, None), f"{method} {fields}: {shown}"
        if self._again and method not in _ANOTHER:
            assert answer(self.door, method, body) == reply
        assert isinstance(shown, dict)
        return shown

    def refused(self, method: str, **fields: Any) -> str:
        """The error's text; the call must have been understood."""
        reply = answer(self.door, method, json.dumps(fields).encode())
        field = "Error" if method.startswith("IpamDriver") else "Err"
        assert reply.status == 200
        shown = json.loads(reply.body)
        assert set(shown) == {field}, shown
        return str(shown[field])

    # --- what people ask of dockerd ---

    def create_network(
        self,
        number: int,
        *,
        ipam: str = "atoll",
        subnets: Sequence[str] = ("",),
        gateway: str = "",
        ip_range: str = "",
        aux: dict[str, str] | None = None,
        ipam_options: dict[str, str] | None = None,
        options: dict[str, str] | None = None,
        internal: bool = False,
        ipv6: bool = False,
    ) -> str:
        network = network_id(number)
        given = {"com.docker.network.enable_ipv6": ipv6, "com.docker.network.generic": options or {}}
        if internal:
            given["com.docker.network.internal"] = True
        data: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for subnet in subnets:
            v6 = ":" in subnet
            if ipam == "atoll":
                data[v6].append(self._pool(network, subnet, v6, gateway, ip_range, aux or {}, ipam_options or {}))
            elif ipam == "null":
                data[v6].append({"AddressSpace": "null", "Pool": "0.0.0.0/0"})
            else:
                base, _, length = subnet.partition("/")
                first = gateway or base.rpartition("::" if v6 else ".")[0] + ("::1" if v6 else ".1")
                named = {name: f"{text}/{length}" for name, text in (aux or {}).items()}
                data[v6].append({"AddressSpace": "LocalDefault", "Pool": subnet, "Gateway": f"{first}/{length}", "AuxAddresses": named})
        self.call("NetworkDriver.CreateNetwork", NetworkID=network, Options=given, IPv4Data=data[False], IPv6Data=data[True])
        return network

    def _pool(
        self, network: str, subnet: str, v6: bool, gateway: str, ip_range: str, aux: dict[str, str], options: dict[str, str]
    ) -> dict[str, Any]:
        spaces = self.call("IpamDriver.GetDefaultAddressSpaces")
        space = spaces["LocalDefaultAddressSpace"]
        pool = self.call("IpamDriver.RequestPool", AddressSpace=space, Pool=subnet, SubPool=ip_range, Options=options, V6=v6)
        self._pools.setdefault(network, []).append((pool["PoolID"], pool["Pool"]))
        found: dict[str, Any] = {"AddressSpace": space, "Pool": pool["Pool"]}
        if _GATEWAY in pool.get("Data", {}):
            found["Gateway"] = pool["Data"][_GATEWAY]
        else:
            kind = {"RequestAddressType": _GATEWAY}
            found["Gateway"] = self.call("IpamDriver.RequestAddress", PoolID=pool["PoolID"], Address=gateway, Options=kind)["Address"]
        self._took(network, pool["PoolID"], found["Gateway"])
        for name, text in aux.items():
            made = self.call("IpamDriver.RequestAddress", PoolID=pool["PoolID"], Address=text, Options=None)["Address"]
            self._took(network, pool["PoolID"], made)
            found.setdefault("AuxAddresses", {})[name] = made
        return found

    def _took(self, holder: str, pool: str, address: str) -> None:
        self._addresses.setdefault(holder, []).append((pool, address.partition("/")[0]))

    def remove_network(self, number: int) -> None:
        network = network_id(number)
        self._release(network)
        for pool, _ in self._pools.pop(network, []):
            self.call("IpamDriver.ReleasePool", PoolID=pool)
        self.call("NetworkDriver.DeleteNetwork", NetworkID=network)

    def _release(self, holder: str) -> None:
        for pool, address in self._addresses.pop(holder, []):
            self.call("IpamDriver.ReleaseAddress", PoolID=pool, Address=address)

    def connect(
        self,
        network: int,
        endpoint: int,
        sandbox: int,
        *,
        address: str = "",
        mac: str = "",
        publish: Sequence[dict[str, Any]] = (),
        options: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A container on a network: what Join answered, with the endpoint's addresses and MAC as Docker would set them."""
        ids = {"NetworkID": network_id(network), "EndpointID": endpoint_id(endpoint)}
        interface = {"Address": "", "AddressIPv6": "", "MacAddress": mac}
        pools = self._pools.get(ids["NetworkID"], [])
        for pool, subnet in pools:
            wanted = address if pools and (":" in subnet) == (":" in address) else ""
            given = self.call("IpamDriver.RequestAddress", PoolID=pool, Address=wanted, Options={})["Address"]
            self._took(ids["EndpointID"], pool, given)
            interface["AddressIPv6" if ":" in subnet else "Address"] = given
        if not pools and address:
            interface["AddressIPv6" if ":" in address else "Address"] = address
        flat = {_PORTMAP: list(publish), "com.docker.network.endpoint.exposedports": [], **(options or {})}
        made = self.call("NetworkDriver.CreateEndpoint", **ids, Interface=interface, Options=flat)["Interface"]
        assert not [name for name in made if interface[name]], "what Docker has settled must not be answered"
        labels = {_PORTMAP: list(publish)}
        joined = self.call("NetworkDriver.Join", **ids, SandboxKey=sandbox_key(sandbox), Options=labels)
        if joined.get("Gateway") or joined.get("GatewayIPv6"):
            self.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options=labels)
        self.call("NetworkDriver.EndpointOperInfo", **ids)
        return joined | {name: made.get(name) or text for name, text in interface.items()}

    def disconnect(self, network: int, endpoint: int) -> None:
        ids = {"NetworkID": network_id(network), "EndpointID": endpoint_id(endpoint)}
        for method in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"):
            self.call(f"NetworkDriver.{method}", **ids)
        self._release(ids["EndpointID"])


def left(dockerd: Dockerd) -> dict[str, list[str]]:
    """All that the door and the engine keep for Docker, by kind: nothing when everything was given back."""
    engine, records = dockerd.door.engine, dockerd.door.records
    found = {
        "records": [*records.networks, *records.endpoints, *records.pools],
        "facts": list(engine.store.facts("docker.")),
        "networks": [network.name for network in engine.state.networks.values()],
        "namespaces": list(engine.state.namespaces),
        "endpoints": list(engine.state.endpoints),
        "holds": [address for _, address in engine.state.holds],
        "pools": [pool.name for pool in engine.pools()],
        "links": [name for name in engine.links() if name.startswith("at")],
    }
    return {kind: values for kind, values in found.items() if values}
