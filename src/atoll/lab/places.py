"""Places of a lab, where functions, sockets and processes run: hosts, and namespaces on a host's networks."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import random
import select
import socket
import struct
import subprocess
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from atoll.engine import Engine
from atoll.errors import Invalid, NotFound
from atoll.kernel import netlink, netns, nft, rtnl, sysctl
from atoll.kernel.host import Host as Kernel
from atoll.kernel.host import interface_index
from atoll.lab import links, private, processes
from atoll.model import interface as parse_interface
from atoll.store.sqlite import Store

if TYPE_CHECKING:
    import socketserver
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from atoll.lab.lab import Lab
    from atoll.lab.links import Link
    from atoll.model import Endpoint, Network

P = ParamSpec("P")
T = TypeVar("T")

_ICMP: Final = {4: (socket.AF_INET, socket.IPPROTO_ICMP, 8, 0), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129)}


class Place:
    """A network stack of its own, held by a descriptor (`fd`)."""

    def __init__(self, lab: Lab, name: str, fd: int, visitor: netns.Visitor) -> None:
        self.lab, self.name, self.fd = lab, name, fd
        self._visitor = visitor
        self._mounts = -1
        self.links: list[Link] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {self.name}>"

    def close(self) -> None:
        for fd in (self.fd, self._mounts):
            if fd >= 0:
                os.close(fd)
        self.fd = self._mounts = -1

    # --- what runs here ---

    def enter(self) -> None:
        """Move the calling thread here for good: its network, and the lab's names in /etc/hosts."""
        netns.setns(self.fd)
        if self._mounts < 0:
            self._mounts = self.lab.names.place()
        processes.enter_mounts(self._mounts)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result, or its exception, from a thread that is here. Sockets that it makes stay here; it may take long."""

        def visit() -> T:
            self.enter()
            return function(*args, **kwargs)

        return processes.in_thread(visit)

    def visit(self, function: Callable[[], T]) -> T:
        """As `run` for what takes no time: quicker, one at a time, without the lab's names."""
        return self._visitor.run(self.fd, function)

    def popen(self, command: Sequence[str], **options: Any) -> processes.Process:
        """A process here, as `subprocess.Popen`; it ends with the lab at the latest."""
        return self.lab.processes.start(self.enter, self.name, command, options)

    def check_output(self, command: Sequence[str], *, timeout: float = 30, **options: Any) -> str:
        """What a command writes to standard output. Raises `subprocess.CalledProcessError`."""
        process = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        out, errors = process.communicate(timeout=timeout)
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, command, out, errors)
        return str(out)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket that is here, whichever thread uses it."""
        return self.visit(lambda: socket.socket(family, kind, protocol))

    def get(self, url: str, *, timeout: float = 10) -> str:
        """The page at a URL, as text. Raises what `urllib.request.urlopen` raises."""

        def fetch() -> str:
            # The machine's proxy is not to be reached from here.
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout) as answer:
                return str(answer.read().decode())

        return self.run(fetch)

    def serve(self, port: int, handler: type[socketserver.BaseRequestHandler], address: str = "0.0.0.0") -> None:
        """A TCP server here until the lab ends; `handler` is a class of socketserver's or http.server's."""
        from http.server import ThreadingHTTPServer

        server = self.visit(lambda: ThreadingHTTPServer((address, port), handler))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()

        def stop() -> None:
            server.shutdown()
            thread.join()
            server.server_close()

        self.lab.at_end(stop)

    def ping(self, other: Place | str, *, timeout: float = 2) -> float | None:
        """Milliseconds until an echo came back, or None when none did. `other` is a place, its name, or an address. Raises `NotFound`."""
        target = other if isinstance(other, str) and _is_address(other) else self._place(other).address_from(self)
        family, protocol, request, reply = _ICMP[6 if ":" in target else 4]
        with self.socket(family, socket.SOCK_RAW, protocol) as sock:
            token = struct.pack("!HH8s", os.getpid() & 0xFFFF, 1, random.randbytes(8))  # noqa: S311
            packet = struct.pack("!BBH", request, 0, 0) + token
            if protocol == socket.IPPROTO_ICMP:
                packet = struct.pack("!BBH", request, 0, _checksum(packet)) + token
            begin = time.monotonic()
            try:
                sock.sendto(packet, (target, 0))
                while (rest := begin + timeout - time.monotonic()) > 0 and select.select([sock], [], [], rest)[0]:
                    data = sock.recv(2048)
                    if protocol == socket.IPPROTO_ICMP:
                        data = data[(data[0] & 15) * 4 :]
                    if data[0] == reply and data[4:] == token:
                        return (time.monotonic() - begin) * 1000
            except OSError:
                return None
        return None

    def _place(self, other: Place | str) -> Place:
        return self.lab[other] if isinstance(other, str) else other

    def nft(self, script: str) -> None:
        """Change this place's firewall; `script` is nft's own language."""
        with contextlib.closing(nft.open_nft(self._visitor, self.fd)) as opened:
            opened.apply(script)

    # --- where it is ---

    @property
    def addresses(self) -> list[str]:
        """Every address that the lab gave it, without prefix length."""
        return [text.partition("/")[0] for link in self.links for text in link.addresses_of(self)]

    @property
    def address(self) -> str:
        """The first address."""
        if not self.addresses:
            raise NotFound(f"{self.name} has no address", "connect it to a network, or to another host by a wire")
        return self.addresses[0]

    def address_from(self, other: Place) -> str:
        """The address by which another place sees it: one on something that both are on, else the first."""
        shared = {link.medium for link in other.links}
        found = [text for link in self.links if link.medium in shared for text in link.addresses_of(self)]
        return (found or [self.address])[0].partition("/")[0]

    def route(self, destination: str, via: str) -> None:
        """A route; `destination` is a prefix, or "default"."""
        self.visit(lambda: subprocess.run(["ip", "route", "replace", destination, "via", via], check=True, capture_output=True))


class Namespace(Place):
    """A namespace of a host. `ns.host` is the host, `ns.service` the service of a topology that it is, if it is one."""

    def __init__(self, host: Host, name: str, service: str) -> None:
        super().__init__(host.lab, name, host.engine.host.open_namespace(name), host.engine.host.visitor)
        self.host, self.service = host, service

    def connect(self, network: str, **options: Any) -> Link:
        return self.host.connect(network, self, **options)

    def disconnect(self, network: str) -> None:
        self.host.engine.disconnect(network, self.name)
        for link in [link for link in self.links if link.medium == (self.host.name, network)]:
            self.drop(link)

    def drop(self, link: Link) -> None:
        """Of the lab's own parts: a link is gone."""
        self.links.remove(link)
        self.lab.drop_link(link)

    def publish(self, *specs: str, network: str = "") -> None:
        """Publish ports on the host: "8080:80", as in `atoll publish`."""
        self.host.engine.publish(self.name, specs, network=network)


class _Engine(Engine):
    """An engine whose ids and MAC addresses are the same in every lab that is built the same way."""

    def __init__(self, host: Kernel, chance: random.Random) -> None:
        store = Store(None)
        store.set_fact("ula", str(chance.getrandbits(40)))
        self.chance = chance
        super().__init__(host, store, None)

    def new_id(self) -> str:
        while (made := f"{self.chance.getrandbits(40):010x}") in self.state.networks or made in self.state.endpoints:
            pass
        return made

    def new_mac(self) -> str:  # type: ignore[override]
        return "02:" + self.chance.randbytes(5).hex(":")


class Host(Place):
    """A machine of its own: it may have networks and namespaces, and wires to other hosts."""

    def __init__(self, lab: Lab, name: str) -> None:
        def make() -> netns.Visitor:
            netns.unshare(netns.CLONE_NEWNET)
            private.fresh()
            # Only where an address asks for it: a link that is up with IPv6 speaks by itself.
            if sysctl.read("net/ipv6/conf/default/disable_ipv6") is not None:
                sysctl.write("net/ipv6/conf/default/disable_ipv6", "1")
            return netns.Visitor()

        # Its visitor is at home there: an ordinary user could not go back to the namespace that this process is in.
        visitor = processes.in_thread(make)
        super().__init__(lab, name, os.dup(visitor.home), visitor)
        self.namespaces: dict[str, Namespace] = {}
        self._engine: _Engine | None = None
        self.chance = random.Random(f"atoll {name}")  # noqa: S311

    @property
    def engine(self) -> Engine:
        """The host's engine, which is made when it is first needed."""
        if self._engine is None:
            self._engine = _Engine(self.visit(lambda: Kernel(None)), self.chance)
            self._engine.recover()
        return self._engine

    def close(self) -> None:
        for namespace in self.namespaces.values():
            namespace.close()
        if self._engine is not None:
            self._engine.close()
        super().close()
        self._visitor.close()

    def network(self, name: str, *subnets: str, **options: Any) -> Network:
        """A network; `options` are those of `Engine.create_network`."""
        return self.engine.create_network(name, **(options | ({"subnets": list(subnets)} if subnets else {})))

    def namespace(self, name: str, network: str = "", **options: Any) -> Namespace:
        """A namespace, on a network if one is named (made with chosen addresses if there is none yet); `options` are `connect`'s."""
        return self.several([name], network, **options)[0]

    def several(self, names: Sequence[str], network: str = "", **options: Any) -> list[Namespace]:
        """Namespaces, one after the other, in one visit to the host: that is quicker than as many calls."""

        def make(name: str) -> Namespace:
            made = self.create(name)
            if network:
                self.connect(network, made, **options)
            return made

        return self.engine.host.run(lambda: [make(name) for name in names])

    def create(self, name: str, labels: Mapping[str, str] | None = None, *, servers: Sequence[str] = (), service: str = "") -> Namespace:
        """A namespace on no network yet."""
        self.lab.check_new(name)
        self.engine.create_namespace(name, dict(labels or {}), servers=servers)
        made = self.namespaces[name] = Namespace(self, name, service)
        return made

    def remove(self, name: str) -> None:
        """Let a namespace go, with its links."""
        gone = self.namespaces[name]
        self.engine.remove_namespace(name)
        for link in [*gone.links]:
            gone.drop(link)
        del self.namespaces[name]
        gone.close()

    def connect(self, network: str, namespace: Namespace, **options: Any) -> Link:
        """Attach a namespace of this host to a network; `options` are those of `Engine.connect`."""
        if namespace.host is not self:
            raise Invalid(f"{namespace.name} is on host {namespace.host.name}, not on {self.name}")
        if not any(known.name == network for known in self.engine.state.networks.values()):
            self.network(network)
        endpoint: Endpoint = self.engine.connect(network, namespace.name, **options)
        made = links.Link(
            self.lab,
            (self.name, network),
            f"{namespace.name}.{network}",
            links.Device(namespace, endpoint.interface),
            links.Device(self, endpoint.host_interface),
            endpoint.addresses,
            aliases=endpoint.aliases,
        )
        namespace.links.append(made)
        self.lab.add_link(made)
        return made

    def configure(self, name: str, addresses: Sequence[str]) -> None:
        """Bring an interface up with addresses, each with its prefix length."""

        def requests() -> None:
            if any(":" in text for text in addresses):
                sysctl.write(f"net/ipv6/conf/{name}/disable_ipv6", "0")
            with netlink.Socket() as sock:
                index = interface_index(sock, name)
                sock.execute(rtnl.set_link(index, up=True), *(rtnl.add_address(index, parse_interface(text)) for text in addresses))

        self.visit(requests)

    def free_interface(self) -> str:
        taken = {device.name for link in self.links for device in (link.near, link.far) if device.place is self}
        return next(name for name in _numbered("eth") if name not in taken)


def _numbered(stem: str) -> Iterator[str]:
    number = 0
    while True:
        yield f"{stem}{number}"
        number += 1


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
