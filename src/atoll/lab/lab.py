"""The lab: everything in it is held by descriptors of this process, and nothing has a name outside."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from atoll.checks import check_name
from atoll.errors import Conflict, Invalid, NotFound, Unsupported
from atoll.kernel import netlink, netns, rtnl
from atoll.kernel.host import interface_index
from atoll.lab import private
from atoll.lab.links import Box, Device, Link, settle
from atoll.lab.loop import Loop
from atoll.lab.places import Host, Namespace, Place
from atoll.lab.processes import Names, Processes, in_thread
from atoll.lab.watch import Watcher
from atoll.model import interface as parse_interface

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from atoll.lab.topologies import LabHost
    from atoll.model import Network
    from atoll.topology import Change, Topology


def ready() -> None:
    """See to it that this process may have labs: as an ordinary user it becomes root of a user namespace of its own, which a process
    with one thread can. Raises `Unsupported`."""
    if not _may_administer():
        if threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1:
            raise Unsupported(
                "this process has threads, and may not make namespaces",
                "make the first Lab before there are threads, call atoll.lab.private.become_root() at the start, or run as root",
            )
        private.become_root()
    try:
        in_thread(lambda: netns.unshare(netns.CLONE_NEWNET | netns.CLONE_NEWNS))
    except OSError as error:
        what = f"this kernel makes no network namespace for this process ({error.strerror})"
        raise Unsupported(what, "see sysctl user.max_net_namespaces, and what a container's seccomp filter forbids") from None


def _may_administer() -> bool:
    """Whether this process has CAP_SYS_ADMIN. A trial would need a thread, whose end the kernel may notice late."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> 21 & 1)


class Lab:
    """A context manager; when it ends, so does everything in it.

        with Lab() as lab:
            a, b = lab.namespaces("a", "b", network="net")
            print(a.ping(b))

    `ring` is how many packets of each link are remembered.
    """

    def __init__(self, *, ring: int = 50) -> None:
        ready()
        self._exits = contextlib.ExitStack()
        self.hosts: dict[str, Host] = {}
        self.links: list[Link] = []
        self.names = Names()
        self.processes = Processes()
        self.loop = Loop()
        self.watcher = Watcher(self.loop, ring)
        self._boxes: dict[Device, Box] = {}
        self._applied: LabHost | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def at_end(self, function: Callable[[], None]) -> None:
        """Call a function when the lab ends, the last one first."""
        self._exits.callback(function)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.names.close)
            for host in self.hosts.values():
                stack.callback(host.close)
            stack.callback(self.loop.close)
            stack.callback(self.watcher.close)
            stack.callback(self.processes.close)
            stack.push(self._exits)

    # --- what is in it ---

    def __getitem__(self, name: str) -> Place:
        """A host or namespace by its name, or by that of the topology's service that it alone is. Raises `NotFound`, `Conflict`."""
        for host in self.hosts.values():
            if host.name == name:
                return host
            if name in host.namespaces:
                return host.namespaces[name]
        serving = [made for host in self.hosts.values() for made in host.namespaces.values() if made.service == name]
        if len(serving) == 1:
            return serving[0]
        if serving:
            raise Conflict(f"service {name[:80]} is several namespaces", f"name one: {', '.join(made.name for made in serving)}")
        raise NotFound(f"no host or namespace named {name[:80]} in this lab")

    def places(self) -> list[Place]:
        return [place for host in self.hosts.values() for place in (host, *host.namespaces.values())]

    def host(self, name: str) -> Host:
        """A machine of its own."""
        self.check_new(name)
        made = self.hosts[name] = Host(self, name)
        return made

    @property
    def default(self) -> Host:
        """The host named "host", which is made when it is first asked for: where networks and namespaces are that no host is named for."""
        return self.hosts.get("host") or self.host("host")

    def network(self, name: str, *subnets: str, **options: Any) -> Network:
        return self.default.network(name, *subnets, **options)

    def namespace(self, name: str, network: str = "", **options: Any) -> Namespace:
        return self.default.namespace(name, network, **options)

    def namespaces(self, *names: str, network: str = "", **options: Any) -> list[Namespace]:
        """Several namespaces on one network."""
        return self.default.several(names, network, **options)

    def apply(self, topology: str | Path | Topology, *, folder: str | Path = ".") -> tuple[Change, ...]:
        """Make the default host as a topology says; what was changed. It is a value, a document's text (more than one line), or a file's
        path in `folder`, which a text's own paths begin at as well.

        Services' commands are started as processes of the lab. Raises `Invalid` with FILE:LINE:COLUMN for what is wrong in a document.
        """
        from atoll.lab import topologies

        wanted = topologies.read(topology, folder)
        if self._applied is None:
            self._applied = topologies.LabHost(self.default)
        return self._applied.apply(wanted)

    def wire(self, one: Host, other: Host, subnet: str, *, mtu: int = 1500) -> Link:
        """A cable between two hosts; they get the first two addresses of the subnet, in this order."""
        if one is other:
            raise Invalid(f"a wire from {one.name} to itself leads nowhere", "expected two hosts")
        network = parse_interface(subnet).network
        if network.num_addresses < 4:
            raise Invalid(f"{subnet} has no room for two hosts", "expected a subnet such as 10.0.0.0/24")
        near, far = Device(one, one.free_interface()), Device(other, other.free_interface())
        mine, theirs = (f"{network[number]}/{network.prefixlen}" for number in (1, 2))
        macs = [f"02:{host.chance.randbytes(5).hex(':')}" for host in (one, other)]

        def add() -> None:
            with netlink.Socket() as sock:
                sock.execute(rtnl.add_veth(near.name, peer=far.name, peer_netns=other.fd, peer_mac=macs[1], mtu=mtu))
                sock.execute(rtnl.set_link(interface_index(sock, near.name), mac=macs[0]))

        one.visit(add)
        made = Link(self, ("", f"wire {len(self.links)}"), f"{one.name}-{other.name}", near, far, (mine,), (theirs,))
        for host, device in ((one, near), (other, far)):
            host.configure(device.name, made.addresses_of(host))
            host.links.append(made)
        for device in (near, far):
            settle(device)
        self.add_link(made)
        return made

    def check_new(self, name: str) -> None:
        check_name(name, "name")
        if any(place.name == name for place in self.places()):
            raise Conflict(f"a host or namespace named {name} is in this lab", "choose another name")

    def add_link(self, link: Link) -> None:
        """Of the lab's own parts: a link was made."""
        self.links.append(link)
        self.watcher.add(link)
        for place in {link.near.place, link.far.place}:
            if addresses := [text.partition("/")[0] for text in link.addresses_of(place)]:
                for name in link.names_of(place):
                    self.names.add(name, addresses)

    def drop_link(self, link: Link) -> None:
        self.links.remove(link)
        self.watcher.remove(link)
        for place in {link.near.place, link.far.place}:
            for name in link.names_of(place):
                self.names.remove(name, [text.partition("/")[0] for text in link.addresses_of(place)])

    # --- weather ---

    def weather(self, device: Device) -> Box:
        return self._boxes.setdefault(device, Box(self, device))

    @contextlib.contextmanager
    def partition(self, *groups: Collection[Place]) -> Iterator[None]:
        """Places of different groups get nothing from each other, by their addresses; within a group, and with others, all is as it was.

        Each drops in its own firewall, in a table of the lab's, what comes from the others and what goes to them.
        """
        members = [place for group in groups for place in group]
        if len(groups) < 2 or len({id(place) for place in members}) != len(members):
            raise Invalid("a partition is between two or more groups, each place in one of them", "partition({a, b}, {c})")
        with contextlib.ExitStack() as stack:
            for group in groups:
                strangers = [text for place in members if place not in group for text in place.addresses]
                for place in group:
                    place.nft(_cut(strangers))
                    stack.callback(place.nft, f"delete table inet {_TABLE}\n")
            yield

    # --- packets ---

    def capture(self, path: str | Path) -> contextlib.AbstractContextManager[None]:
        """Write what passes all links meanwhile to a file in pcapng format, each link an interface of its own."""
        return self.watcher.capture(Path(path))


_TABLE = "atoll_lab_partition"


def _cut(strangers: list[str]) -> str:
    rules: dict[str, list[str]] = {"prerouting": [], "output": []}
    for family, addresses in (("ip", [a for a in strangers if ":" not in a]), ("ip6", [a for a in strangers if ":" in a])):
        if addresses:
            listed = "{ " + ", ".join(addresses) + " }"
            rules["prerouting"].append(f"{family} saddr {listed} drop")
            rules["output"].append(f"{family} daddr {listed} drop")
    chains = "\n".join(
        f"chain {hook} {{ type filter hook {hook} priority -300; policy accept; {'; '.join(lines)}; }}"
        for hook, lines in rules.items()
        if lines
    )
    return f"table inet {_TABLE} {{\n{chains}\n}}\n"
