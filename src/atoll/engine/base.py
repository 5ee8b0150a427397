"""What all verbs share: the host, the store, the model in memory, and how a change is carried out and undone."""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from msgspec import structs

from atoll import faults
from atoll.drivers import of, routing
from atoll.drivers.tuning import put_back
from atoll.engine import host_side, names
from atoll.engine.announcements import Announcements
from atoll.engine.name_service import NameService
from atoll.engine.state import State
from atoll.errors import AtollError, Conflict, Denied, Failed, NotFound
from atoll.firewall.elements import Element, change, endpoint_elements, network_elements, statement
from atoll.firewall.skeleton import FENCES, RESET, SKELETON
from atoll.kernel import netns, rtnl, sysctl
from atoll.kernel.host import Host, interface_index
from atoll.model import Namespace
from atoll.plan.execute import dismantle, execute
from atoll.plan.operations import ConntrackDelete, Operation, Plan
from atoll.store.sqlite import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from atoll.engine.files import Files
    from atoll.model import Endpoint, Network

#: The interface group of links that wait to be deleted together.
DOOMED: Final = 0x61746F6C


class Base:
    """One engine: one host, one state, one thread at a time."""

    def __init__(self, host: Host, store: Store, lock: int | None, *, dns: bool = False, files: Files | None = None) -> None:
        self.host = host
        self.store = store
        if not store.fact("ula"):
            # The random part of this host's ULA prefix, chosen once, and before any plan speaks of it.
            with store.transaction():
                store.set_fact("ula", str(secrets.randbits(40)))
        self.state = State(store)
        self.listener: Callable[[str, dict[str, Any]], None] | None = None
        self.on_plan: Callable[[Plan], None] | None = None
        self.names = NameService(host, self.state, self.emit, enabled=dns)
        self.announcements = Announcements(host)
        self.files = files
        self._hosts_files: tuple[str, ...] = ()
        self._lock = lock
        self._pidfds: dict[str, int] = {}
        #: Of runs, by name.
        self._held: dict[str, int] = {}
        #: Readable when a process that something hangs on has ended.
        self.ends = select.epoll()
        self._stale: set[ConntrackDelete] = set()
        self._doomed = False

    @classmethod
    def open(
        cls,
        state: str | Path | None = None,
        *,
        netns_dir: Path | None = netns.NETNS_DIR,
        own_thread: bool = False,
        dns: bool = False,
        files: Files | None = None,
    ) -> Self:
        """An engine for the network namespace that the caller is in; `state` is a folder, or None to keep nothing.

        What an earlier one left half done is undone, and the kernel is brought to what the state says. Raises `Conflict` when another
        engine has the state open. `own_thread` says that the calling thread, which isn't the main thread, is the engine's for good. With
        `dns` names are answered on the gateways as long as the engine is open; `files` is where namespaces' resolv.conf and hosts are kept.
        """
        lock = _take(Path(state)) if state is not None else None
        store = Store(Path(state) / "state.db" if state is not None else None)
        engine = cls(Host(netns_dir, in_place=own_thread), store, lock, dns=dns, files=files)
        faults.begin("open")
        engine.recover()
        return engine

    def close(self) -> None:
        """Let go of everything that is open. The kernel's side stays as it is."""
        self.settle()
        self.names.close()
        for held in (self._pidfds, self._held):
            for fd in held.values():
                os.close(fd)
            held.clear()
        self.ends.close()
        self.host.close()
        self.store.close()
        if self._lock is not None:
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def recover(self) -> None:
        """Overridden by the verbs."""

    def emit(self, event: str, **fields: Any) -> None:
        if self.listener is not None:
            self.listener(event, fields)

    def do(self, plan: Plan) -> None:
        """Carry a plan out; `on_plan` is told of it first."""
        if self.on_plan is not None:
            self.on_plan(plan)
        execute(self.host, plan)

    # --- small helpers ---

    def new_id(self) -> str:
        """Ten hex digits: with a prefix of three they fit an interface name, and 40 bits leave room for chance."""
        while True:
            made = secrets.token_hex(5)
            if made not in self.state.networks and made not in self.state.endpoints:
                return made

    @staticmethod
    def new_mac() -> str:
        """A random, locally administered address: one that came from the IP address would outlive it in others' caches."""
        return "02:" + secrets.token_bytes(5).hex(":")

    @staticmethod
    def now() -> float:
        return time.time()

    def links(self) -> dict[str, rtnl.Link]:
        return {link.name: link for link in rtnl.links(self.host.rtnl)}

    def read_setting(self, name: str) -> str | None:
        return self.host.run(lambda: sysctl.read(name))

    # --- the firewall as a whole ---

    def fenced(self) -> list[Element]:
        return [Element(name, (interface,)) for name in FENCES.values() for interface in self.store.facts(f"{name}:")]

    def elements(self) -> list[Element]:
        """Every element that the model asks for."""
        found = self.fenced()
        for network in self.state.bridge_networks():
            found += network_elements(network)
            for endpoint in self.state.endpoints_on(network):
                found += endpoint_elements(network, endpoint)
        return found

    def firewall_script(self) -> str:
        """The whole ruleset, made anew in one transaction; nothing when no network needs one."""
        if not any(True for _ in self.state.bridge_networks()):
            return RESET
        return RESET + SKELETON + statement("add", self.elements())

    def rebuild_firewall(self) -> None:
        """Packets see the old ruleset or the new one, never half of one; connections keep their NAT."""
        self.host.nft.apply(self.firewall_script())

    def delete_elements(self, elements: Iterable[Element]) -> None:
        """Take elements away. If one isn't there nft refuses all, and then the model says what must be: the whole is made anew."""
        try:
            execute(self.host, Plan(tuple(change("delete", elements))))
        except AtollError:
            self.rebuild_firewall()

    # --- namespaces as routing sees them ---

    def has_interface(self, namespace: Namespace, name: str) -> bool:
        """Whether an adopted namespace has an interface of this name; of the others all are ours or none of our business."""
        if namespace.kind != "adopted":
            return False
        with self.host.socket_in(namespace.name) as sock:
            try:
                interface_index(sock, name)
            except NotFound:
                return False
        return True

    def foreign_defaults(self, namespace: Namespace) -> set[int]:
        """The families in which an adopted namespace has a default route of its own."""
        if namespace.kind != "adopted":
            return set()
        with self.host.socket_in(namespace.name) as sock:
            return {
                6 if row.family == 10 else 4
                for row in rtnl.routes(sock)
                if row.destination is None and row.table == rtnl.TABLE_MAIN and row.protocol != rtnl.RTPROT_ATOLL
            }

    def wanted_routes(self, namespace: Namespace, *sets: list[tuple[Network, Endpoint]]) -> list[list[Operation]]:
        """The routes and rules for each of these sets of endpoints."""
        if namespace.is_external or not any(sets):
            return [[] for _ in sets]
        families = self.foreign_defaults(namespace)
        return [routing.routes(attached, foreign_default=families) for attached in sets]

    # --- names ---

    def refresh_files(self) -> None:
        """Write namespaces' files anew if the host's, which are in them, have changed."""
        found = (_read("/etc/resolv.conf"), _read("/etc/hosts")) if self.files is not None else ()
        if found != self._hosts_files:
            self._hosts_files = found
            for namespace in self.state.namespaces.values():
                self.write_files(namespace)

    def write_files(self, namespace: Namespace) -> None:
        """Make a namespace's resolv.conf and hosts fit its networks. That they can't be written is said and stops nothing."""
        if self.files is None or not namespace.has_files:
            return
        attached = self.state.attached(namespace.name)
        try:
            self.files.write(
                namespace.name,
                {
                    "resolv.conf": names.resolv_conf(namespace, attached, _read("/etc/resolv.conf")),
                    "hosts": names.hosts(namespace, attached, _read("/etc/hosts")),
                },
            )
        except OSError as error:
            self.emit("files.fail", namespace=namespace.name, what=f"writing its files: {error.strerror} ({error.filename})")

    # --- doing and undoing ---

    def attach(self, network: Network, endpoint: Endpoint, namespace: Namespace) -> Plan:
        """The plan that connects an endpoint: firewall first, so that nothing is ever up without its rules."""
        others = self.state.attached(namespace.name)
        before, after = self.wanted_routes(namespace, others, [*others, (network, endpoint)])
        routing.check_apart(after)
        gone, added = routing.changes(before, after)
        rules = change("add", endpoint_elements(network, endpoint))
        # A client that spoke to the port before it led here would go on with nobody. TCP clients start anew by themselves.
        forget = [ConntrackDelete(port.protocol, port.host_port, port.count) for port in endpoint.ports if port.protocol != "tcp"]
        return Plan.of(rules, of(network).endpoint_up(network, endpoint, namespace), gone, added, forget)

    def detach(
        self,
        network: Network,
        endpoint: Endpoint,
        namespace: Namespace | None,
        others: list[tuple[Network, Endpoint]] | None = None,
    ) -> Plan:
        """The plan that disconnects an endpoint, from its record alone; `namespace` is None when it has vanished.

        The link goes first: its rules must outlive it. Firewall elements are taken away apart (`delete_elements`). `others` are the
        namespace's endpoints that stay; None means all others.
        """
        operations: list[Operation] = []
        if namespace is None:
            if network.driver == "bridge":
                operations += of(network).endpoint_down(network, endpoint, _vanished(endpoint))
            return Plan.of(operations)
        if others is None:
            others = [pair for pair in self.state.attached(namespace.name) if pair[1].id != endpoint.id]
        gone, added = routing.changes(*self.wanted_routes(namespace, [*others, (network, endpoint)], others))
        if not others:
            gone = list(routing.without_links(gone))
        gone += put_back(endpoint, namespace.name, [other for _, other in others])
        return Plan.of(gone, of(network).endpoint_down(network, endpoint, namespace), added)

    def forget_connections(self, endpoint: Endpoint) -> set[ConntrackDelete]:
        found = {ConntrackDelete(port.protocol, port.host_port, port.count) for port in endpoint.ports}
        return found | {ConntrackDelete(address=text.partition("/")[0]) for text in endpoint.addresses}

    def settle(self) -> None:
        """Do what is cheap only for many at once: delete the links of namespaces that were removed, forget the connections of what was
        disconnected.

        A link's deletion and a walk over the connections take the kernel about 10 ms each, however many they concern. Until then the
        firewall drops what such a link sends. The daemon settles as soon as it is idle, and `connect` before it uses an address or a
        port again.
        """
        if self._doomed:
            self._doomed = False
            self.host.rtnl.request(rtnl.delete_group(DOOMED))
        self._forget_stale()

    def _forget_stale(self) -> None:
        if self._stale:
            due, self._stale = self._stale, set()
            self.do(Plan(tuple(sorted(due, key=repr))))

    def settle_for(self, endpoint: Endpoint) -> None:
        """Before an address or a port that was given up a moment ago is used by another."""
        if self._stale and any(_touches(stale, endpoint) for stale in self._stale):
            self._forget_stale()

    def tear_down(self, network: Network, endpoint: Endpoint, *, with_namespace: bool = False) -> list[AtollError]:
        """Take away all that an endpoint's record speaks of, and the record. Idempotent; never stops at the first error.

        `with_namespace`: its namespace goes as well, so what is inside needs no care and the link may wait for others (`settle`).
        """
        errors: list[AtollError] = []
        if with_namespace and network.driver == "bridge":
            # A shaper is only there with an egress rate, and a spare end until it is taken; that one can't be named is no error.
            ends = (endpoint.host_interface, endpoint.shaper, endpoint.spare)
            self.host.rtnl.request(*(rtnl.set_group(name, DOOMED) for name in ends))
            self._doomed = True
        else:
            errors = dismantle(self.host, self._detach_what_is_there(network, endpoint))
        faults.step()
        self.state.drop_endpoint(endpoint)
        self.names.drop_endpoint(network, endpoint)
        if network.driver == "bridge":
            self.delete_elements(endpoint_elements(network, endpoint))
            self._stale |= self.forget_connections(endpoint)
            self.announcements.give_up(network, endpoint)
        faults.step()
        with self.store.transaction():
            self.store.delete(endpoint)
        return errors

    def _detach_what_is_there(self, network: Network, endpoint: Endpoint) -> Plan:
        try:
            return self.detach(network, endpoint, self.state.namespaces.get(endpoint.namespace))
        except (NotFound, Denied):
            return self.detach(network, endpoint, None)

    def plan_tear_down(
        self, network: Network, endpoint: Endpoint, namespace: Namespace, others: list[tuple[Network, Endpoint]] | None = None
    ) -> Plan:
        """What `tear_down` does, and the forgetting that it leaves for later; `others` as in `detach`."""
        plan = self.detach(network, endpoint, namespace, others)
        if network.driver != "bridge":
            return plan
        rules = change("delete", endpoint_elements(network, endpoint))
        return Plan.of(plan.operations, rules, sorted(self.forget_connections(endpoint), key=repr))

    def put_host_back(self, removed: Network) -> None:
        """Give back the settings that no network needs any more after one has been removed."""
        recorded = self.store.facts("former:")
        back = host_side.put_back(recorded, removed, self.state.networks.values())
        dismantle(self.host, Plan(tuple(back)))
        with self.store.transaction():
            for operation in back:
                self.store.set_fact(f"former:{operation.setting}", None)
            if not any(True for _ in self.state.bridge_networks()):
                for element in self.fenced():
                    self.store.set_fact(f"{element.set}:{element.key[0]}", None)

    def ready(self, endpoint: Endpoint) -> Endpoint:
        made = structs.replace(endpoint, state="ready")
        held = [text.partition("/")[0] for text in made.addresses] if self.state.holds else []
        with self.store.transaction():
            self.store.put(made)
            for text in held:
                self.store.delete_hold(made.network, text)
        self.state.put_endpoint(made)
        for text in held:
            self.state.drop_hold(made.network, text)
        return made


def _read(path: str) -> str:
    """A text file; empty when it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _touches(stale: ConntrackDelete, endpoint: Endpoint) -> bool:
    if stale.address:
        return any(text.partition("/")[0] == stale.address for text in endpoint.addresses)
    return any(
        port.protocol == stale.protocol and port.host_port < stale.port + stale.count and stale.port < port.host_port + port.count
        for port in endpoint.ports
    )


def _vanished(endpoint: Endpoint) -> Namespace:
    return Namespace(name=endpoint.namespace)


def _take(folder: Path) -> int:
    """The lock that makes one engine the only writer of a state folder. Raises `Conflict` when it is taken."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except PermissionError:
        raise Denied(f"may not write to {folder}", "run as root, or set ATOLL_STATE to a folder of your own") from None
    except OSError as error:
        raise Failed(f"opening {folder}: {error.strerror}", errno=error.errno or 0) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise Conflict(f"another atoll has the state in {folder} open", "use its daemon, or stop it: atoll daemon stop") from None
    return lock
