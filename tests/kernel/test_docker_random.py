"""Docker's calls in any order, each perhaps twice, with a daemon that ends and comes back in between and processes of Atoll's beside: what
is there is what was asked for after each of them, and in the end nothing is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec import Struct

from atoll import Engine
from atoll.frontends.docker import Door
from tests.kernel.dockerd import Dockerd, endpoint_id, left, network_id, ports, sandbox_key

if TYPE_CHECKING:
    from pathlib import Path

networks = st.integers(1, 3)
endpoints = st.integers(1, 4)
sandboxes = st.integers(1, 2)
PORT = {"com.docker.network.portmap": ports((8080, 80))}


class Net(Struct):
    """A network of Docker's; of the pool only where our IPAM driver gave it."""

    pool: str = ""
    subnet: str = ""


class End(Struct):
    """An endpoint: the sandbox that it is in or was last, whether it has left it, and whether its port is to be open."""

    network: int
    address: str
    sandbox: int = 0
    left: bool = True
    open: bool = False


class Calls(RuleBasedStateMachine):
    folder: Path
    tries = 0

    def __init__(self) -> None:
        super().__init__()
        Calls.tries += 1
        self.state = self.folder / str(Calls.tries)
        self.engine = Engine.open(self.state)
        self.dockerd = Dockerd(self.engine, again=True)
        self.nets: dict[int, Net] = {}
        self.ends: dict[int, End] = {}
        #: Addresses that Docker has requested and not released, by network.
        self.taken: dict[int, set[str]] = {}
        self.plain: int = 0

    def teardown(self) -> None:
        try:
            if self.plain:
                self.a_process_comes_or_goes(self.plain)
            for number in [*self.ends]:
                self.delete_endpoint(number)
            for number in [*self.nets]:
                self.delete_network(number)
            assert left(self.dockerd) == {}
            assert self.engine.differences() == []
        finally:
            # After a failure the next try must begin on an empty host.
            for namespace in self.engine.namespaces():
                self.engine.remove_namespace(namespace.name)
            self.engine.prune_networks()
            self.engine.close()

    def call(self, method: str, *, network: int, endpoint: int = 0, fine: bool = True, **fields: Any) -> dict[str, Any]:
        """A call that is answered or, when it makes no sense, refused."""
        ids = {"NetworkID": network_id(network)} | ({"EndpointID": endpoint_id(endpoint)} if endpoint else {})
        if fine:
            return self.dockerd.call(f"NetworkDriver.{method}", **ids, **fields)
        assert "; " in self.dockerd.refused(f"NetworkDriver.{method}", **ids, **fields)
        return {}

    # --- what is called ---

    @rule(number=networks, ours=st.booleans())
    def create_network(self, number: int, ours: bool) -> None:
        if number in self.nets:
            return
        net = Net()
        data = {"AddressSpace": "LocalDefault", "Pool": f"10.8.{number}.0/24", "Gateway": f"10.8.{number}.1/24"}
        if ours:
            made = self.dockerd.call("IpamDriver.RequestPool", AddressSpace="AtollLocal", Pool="")
            net = Net(made["PoolID"], made["Pool"])
            kind = {"RequestAddressType": "com.docker.network.gateway"}
            gateway = self.dockerd.call("IpamDriver.RequestAddress", PoolID=net.pool, Options=kind)["Address"]
            data = {"AddressSpace": "AtollLocal", "Pool": net.subnet, "Gateway": gateway}
        self.call("CreateNetwork", network=number, Options={}, IPv4Data=[data], IPv6Data=None)
        self.nets[number], self.taken[number] = net, set()

    @rule(number=networks)
    def delete_network(self, number: int) -> None:
        """Also with endpoints on it, which then are gone for us."""
        net = self.nets.pop(number, None)
        if net is not None and net.pool:
            for address in self.taken[number]:
                self.dockerd.call("IpamDriver.ReleaseAddress", PoolID=net.pool, Address=address)
            self.dockerd.call("IpamDriver.ReleasePool", PoolID=net.pool)
        if self.plain == number:
            self.engine.disconnect(self.door_network(number), "plain")
            self.plain = 0
            self.engine.remove_namespace("plain")
        self.call("DeleteNetwork", network=number)
        self.taken.pop(number, None)
        self.ends = {key: end for key, end in self.ends.items() if end.network != number}

    @rule(number=endpoints, network=networks)
    def create_endpoint(self, number: int, network: int) -> None:
        if number in self.ends:
            return
        net = self.nets.get(network)
        address = f"10.8.{network}.{100 + number}/24"
        if net is not None and net.pool:
            address = self.dockerd.call("IpamDriver.RequestAddress", PoolID=net.pool, Address="", Options=None)["Address"]
            self.taken[network].add(address.partition("/")[0])
        made = self.call(
            "CreateEndpoint", network=network, endpoint=number, fine=net is not None, Interface={"Address": address}, Options=PORT
        )
        if net is not None:
            assert set(made["Interface"]) == {"MacAddress"}
            self.ends[number] = End(network, address.partition("/")[0])

    @rule(number=endpoints, network=networks, sandbox=sandboxes)
    def join(self, number: int, network: int, sandbox: int) -> None:
        end = self.ends.get(number)
        fine = end is not None and end.network == network
        made = self.call("Join", network=network, endpoint=number, fine=fine, SandboxKey=sandbox_key(sandbox), Options={})
        if end is not None and fine:
            assert made["Gateway"]
            end.open = end.open and end.sandbox == sandbox
            end.sandbox, end.left = sandbox, False

    @rule(number=endpoints)
    def program(self, number: int) -> None:
        end = self.ends.get(number)
        others = any(other.open for key, other in self.ends.items() if key != number)
        fine = end is not None and end.sandbox != 0 and (end.open or not others)
        network = end.network if end is not None else 1
        self.call("ProgramExternalConnectivity", network=network, endpoint=number, fine=fine, Options=PORT)
        if end is not None and fine:
            end.open = True

    @rule(number=endpoints)
    def revoke(self, number: int) -> None:
        end = self.ends.get(number)
        self.call("RevokeExternalConnectivity", network=end.network if end is not None else 1, endpoint=number)
        if end is not None:
            end.open = False

    @rule(number=endpoints)
    def leave(self, number: int) -> None:
        end = self.ends.get(number)
        self.call("Leave", network=end.network if end is not None else 1, endpoint=number)
        if end is not None:
            end.open, end.left = False, True

    @rule(number=endpoints)
    def delete_endpoint(self, number: int) -> None:
        end = self.ends.pop(number, None)
        self.call("DeleteEndpoint", network=end.network if end is not None else 1, endpoint=number)
        if end is not None and (pool := self.nets[end.network].pool):
            self.dockerd.call("IpamDriver.ReleaseAddress", PoolID=pool, Address=end.address)
            self.taken[end.network].discard(end.address)

    @rule(network=networks)
    def a_process_comes_or_goes(self, network: int) -> None:
        if self.plain:
            self.engine.remove_namespace("plain")
            self.plain = 0
        elif network in self.nets:
            self.engine.create_namespace("plain")
            self.engine.connect(self.door_network(network), "plain")
            self.plain = network

    @rule()
    def restart(self) -> None:
        self.engine.close()
        self.engine = Engine.open(self.state)
        self.dockerd.door = Door(self.engine)

    # --- what must be so ---

    def door_network(self, number: int) -> str:
        return self.dockerd.door.network(network_id(number)).name

    @invariant()
    def all_agree(self) -> None:
        engine, records = self.engine, self.dockerd.door.records
        assert set(records.networks) == {network_id(number) for number in self.nets}
        assert set(records.endpoints) == {endpoint_id(number) for number in self.ends}
        assert len(engine.state.networks) == len(self.nets)
        attached = {key: end for key, end in self.ends.items() if end.sandbox}
        owners = {endpoint.owner for endpoint in engine.state.owned_by("docker:")}
        assert owners == {f"docker:{endpoint_id(key)}" for key in attached}
        names = {f"docker-{end.sandbox:012x}" for end in attached.values()} | ({"plain"} if self.plain else set())
        assert set(engine.state.namespaces) == names
        for key, record in records.endpoints.items():
            end = next(end for number, end in self.ends.items() if endpoint_id(number) == key)
            assert (record.joined, record.external) == (not end.left, end.open)
        published = [str(port) for endpoint in engine.state.endpoints.values() for port in endpoint.ports]
        assert published == ["8080:80/tcp"] * any(end.open for end in self.ends.values())
        for network in engine.state.networks.values():
            used = [endpoint.address(4) for endpoint in engine.state.endpoints_on(network)]
            held = [address for where, address in engine.state.holds if where == network.id]
            assert len({*used, *held}) == len(used) + len(held)
        assert len(records.pools) == sum(1 for net in self.nets.values() if net.pool)
        assert engine.pools() == []
        assert engine.differences() == []


def test_calls_in_any_order(host: None, tmp_path: Path) -> None:
    Calls.folder = tmp_path
    # Not made smaller: with links to be made and taken away that would take longer than a test may.
    run_state_machine_as_test(Calls, settings=settings(max_examples=12, stateful_step_count=30, deadline=None, phases=[Phase.generate]))
