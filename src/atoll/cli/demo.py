"""`atoll demo`: the whole story in a private host, each step with the commands that it stands for and a proof from real packets."""

from __future__ import annotations

import contextlib
import difflib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from atoll.errors import Failed, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from atoll.engine import Engine
    from atoll.graph.scene import Scene
    from atoll.lab.machine import Machine
    from atoll.plan.operations import Plan

#: RFC 5737 and RFC 3849: addresses that are nobody's.
_HOST: Final = "192.0.2.1"
_OUTSIDE: Final = "192.0.2.2"
_HOST6: Final = "2001:db8::1"
_OUTSIDE6: Final = "2001:db8::2"
_WIDTH: Final = 100
#: A ruleset is long; what a person wants to see of it here is how it begins.
_SHOWN_LINES: Final = 4
_TIMEOUT: Final = 2.0


@click.command()
@click.option("--svg", "svg_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the picture to this file.")
@click.option("--commands/--no-commands", "show", default=True, help="Whether to print the commands that each step stands for.")
def demo(svg_file: Path | None, show: bool) -> None:
    """Show the whole story in a private lab, with commands and proofs.

    Nothing of this machine is touched: it all happens in namespaces that end with the demo. Root is not needed where the kernel lets
    users make namespaces.
    """
    from atoll.engine import Engine
    from atoll.engine.files import Files
    from atoll.lab import private
    from atoll.lab.machine import Machine, wire

    private.enter()
    with Machine("outside") as outside:
        wire("uplink", outside, "eth0")
        _configure_here("uplink", (f"{_HOST}/24", f"{_HOST6}/64"))
        outside.configure("eth0", (f"{_OUTSIDE}/24", f"{_OUTSIDE6}/64"))
        before = _snapshot()
        with tempfile.TemporaryDirectory() as folder, Engine.open(dns=True, files=Files(Path(folder))) as engine:
            story = Story(engine, outside, show)
            story.tell()
            if svg_file is not None:
                svg_file.write_text(story.svg())
                click.echo(f"\nThe picture is in {svg_file}.")
            story.end()
        _compare(before, _snapshot())


class Story:
    """The demo's steps, one a method. A proof that fails ends the demo with an error."""

    def __init__(self, engine: Engine, outside: Machine, show: bool) -> None:
        self._engine = engine
        self._outside = outside
        self._show = show
        self._number = 0
        self._scene: Scene | None = None
        engine.on_plan = self._print_plan

    def tell(self) -> None:
        self._networks_and_namespaces()
        self._names()
        self._isolation()
        self._way_out()
        with self._web_server("r1"):
            self._published_port()
        self._adoption()
        self._repair()
        self._picture()

    # --- the steps ---

    def _networks_and_namespaces(self) -> None:
        engine = self._engine
        self._step("A network: 192.168.34.0/24 with gateway 192.168.34.162, and an IPv6 prefix of its own")
        engine.create_network("br0", subnets=["192.168.34.0/24"], gateways=["192.168.34.162"], ipv6=True)
        self._step("Two namespaces, r1 and r2, each connected with an address of its choice")
        for name, address in (("r1", "192.168.34.163"), ("r2", "192.168.34.164")):
            engine.create_namespace(name)
            engine.connect("br0", name, addresses=[address], aliases=["db"] if name == "r2" else [])
        self._proof("r1 pings r2 at 192.168.34.164", self._ping("r1", "192.168.34.164"))
        self._proof("r2 pings r1 at 192.168.34.163", self._ping("r2", "192.168.34.163"))
        six = engine.state.endpoint(engine.state.network("br0"), "r2").address(6)
        self._proof(f"r1 pings r2 at {six}", self._ping("r1", six))

    def _names(self) -> None:
        self._step("Names: the gateway answers for the namespaces of its network, and an alias is one more name")
        self._proof("r1 pings r2 by name", self._ping_name("r1", "r2"))
        self._proof("r2 pings r1 as r1.br0.atoll", self._ping_name("r2", "r1.br0.atoll"))
        self._proof("r1 pings db, which is an alias of r2", self._ping_name("r1", "db"))

    def _isolation(self) -> None:
        self._step("A second network with a namespace r3: networks are closed to each other")
        self._engine.create_network("other")
        self._engine.create_namespace("r3")
        self._engine.connect("other", "r3")
        self._proof("r3 can't reach r1 at 192.168.34.163", not self._ping("r3", "192.168.34.163"))
        self._proof("its own name is known to it, and r1's isn't", self._knows("r3", "r3") and not self._knows("r3", "r1.br0.atoll"))
        self._proof("r1 still reaches r2 (the probe works)", self._ping("r1", "192.168.34.164"))

    def _way_out(self) -> None:
        self._step(f"The way out: from r1 to a machine outside, which sees the host's address {_HOST} (source NAT)")
        seen = self._fetch_from("r1", _OUTSIDE)
        self._proof(f"the outside machine answered r1 and saw {seen}", seen == _HOST)

    def _published_port(self) -> None:
        self._step("A port: the host's 8080 leads to the web server in r1 (destination NAT), live, while it runs")
        self._engine.publish("r1", ["8080:80"])
        for who, run, address in (
            ("the outside machine", self._outside.run, _HOST),
            ("the outside machine", self._outside.run, _HOST6),
            ("the host itself", self._engine.host.run, _HOST),
            ("the host itself", self._engine.host.run, "127.0.0.1"),
            ("the host itself", self._engine.host.run, "::1"),
        ):
            url = f"http://{f'[{address}]' if ':' in address else address}:8080/"
            seen = run(lambda address=address: _fetch(address, 8080))  # type: ignore[misc]
            self._proof(f"{who} gets {url}; r1 saw the client {seen}", bool(seen))
        seen = self._in("r3", lambda: _fetch(_HOST, 8080))
        self._proof(f"r3 gets it by the host's address, too; r1 saw the client {seen}", bool(seen))
        direct = self._in("r3", lambda: _fetch("192.168.34.163", 80))
        self._proof("but not by r1's own address", not direct)

    def _adoption(self) -> None:
        self._step("A process that somebody else started, in a namespace that Atoll did not make, joins the network")
        script = "import socket, time; print(flush=True); time.sleep(600)"
        stranger = subprocess.Popen(["unshare", "-n", sys.executable, "-c", script], stdout=subprocess.PIPE)
        try:
            if stranger.stdout is not None:
                stranger.stdout.readline()
            click.echo(f"  somebody's process has pid {stranger.pid}")
            self._engine.adopt_namespace("guest", pid=stranger.pid)
            self._engine.connect("br0", "guest")
            listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
            self._proof("`ip netns list` shows it", "guest" in listed)
            self._proof("it pings r1", self._ping("guest", "192.168.34.163"))
            self._proof("r1 pings it by name", self._ping_name("r1", "guest"))
            self._scene = self._look()
        finally:
            stranger.kill()
            stranger.wait()
        gone = [namespace.name for namespace in self._engine.release_vanished()]
        self._proof("the process has ended, and its namespace, address and ports are given back", gone == ["guest"])

    def _repair(self) -> None:
        self._step("Somebody flushes the ruleset and deletes the bridge by hand")
        bridge = self._engine.state.network("br0").bridge
        click.echo(f"  $ nft flush ruleset; ip link delete {bridge}")
        self._engine.host.nft.apply("flush ruleset\n")
        subprocess.run(["ip", "link", "delete", bridge], check=False)
        self._proof("r1 and r2 are cut off", not self._ping("r1", "192.168.34.164"))
        found, _ = self._engine.repair()
        click.echo(f"  doctor: {len(found)} differences found and repaired (a running daemon does this by itself)")
        for difference in found[:3]:
            click.echo(f"    {difference.subject}: {difference.what}")
        self._proof("r1 reaches r2 again", self._ping("r1", "192.168.34.164"))

    def _picture(self) -> None:
        self._step("The picture")
        if self._scene is not None:
            from atoll.graph.terminal import lines

            for line in lines(self._scene, _WIDTH, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR")):
                click.echo(f"  {line}")

    def end(self) -> None:
        self._step("Everything is removed")
        engine = self._engine
        engine.on_plan = None
        for name in ("r1", "r2", "r3"):
            if name == "r1":
                self._print_plan(engine.plan_remove_namespace(name))
            engine.remove_namespace(name)
        click.echo("  (and so on for r2 and r3)")
        engine.remove_network("other")
        self._print_plan(engine.plan_remove_network("br0"))
        engine.remove_network("br0")

    # --- what the steps use ---

    def svg(self) -> str:
        from atoll.cli.graph import render

        return render(self._scene, "svg").decode() if self._scene is not None else ""

    def _look(self) -> Scene:
        """What there is now, for the picture."""
        from atoll.graph import scene
        from atoll.view import host_view, namespace_view, network_view

        engine = self._engine
        networks = [network_view(engine, network) for network in engine.networks()]
        namespaces = [namespace_view(engine, namespace) for namespace in engine.namespaces()]
        return scene.read(networks, namespaces, host_view(engine) | {"hostname": "demo"}, outside=_OUTSIDE)

    def _step(self, words: str) -> None:
        self._number += 1
        click.echo()
        click.secho(f"{self._number}. {words}", bold=True)

    def _proof(self, words: str, holds: bool) -> None:
        click.echo(f"  {click.style('✓' if holds else '✗', fg='green' if holds else 'red')} {words}")
        if not holds:
            raise Failed(f"the demo's proof failed: {words}", "atoll doctor on this machine may say why")

    def _print_plan(self, plan: Plan) -> None:
        for command in plan.commands() if self._show else ():
            shown = command.splitlines()
            if len(shown) > _SHOWN_LINES + 2:
                shown = [*shown[:_SHOWN_LINES], f"... ({len(shown) - _SHOWN_LINES - 1} more lines)", shown[-1]]
            for position, line in enumerate(shown):
                text = line.expandtabs(4)
                text = text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
                click.secho(f"  {'$ ' if position == 0 else '  '}{text}", dim=True)

    def _in(self, namespace: str, function: Callable[[], str]) -> str:
        with self._engine.host.namespace(namespace) as fd:
            return self._engine.host.visitor.run(fd, function)

    def _ping(self, namespace: str, address: str) -> bool:
        command = ["ping", "-c", "1", "-W", "1", address]

        def run() -> str:
            return "yes" if subprocess.run(command, capture_output=True, check=False).returncode == 0 else ""

        return bool(self._in(namespace, run))

    def _ping_name(self, namespace: str, name: str) -> bool:
        """As any program in the namespace finds a name: by its resolv.conf, mounted over the host's."""
        if self._engine.files is None:
            return False
        files = self._engine.files.of(namespace)
        script = "mount --bind $0 /etc/resolv.conf && mount --bind $1 /etc/hosts && exec ping -c 1 -W 1 $2"
        command = ["unshare", "--mount", "sh", "-c", script, files["/etc/resolv.conf"], files["/etc/hosts"], name]
        return self._in(namespace, lambda: str(subprocess.run(command, capture_output=True, check=False).returncode)) == "0"

    def _knows(self, namespace: str, name: str) -> bool:
        """Whether the gateway of a namespace's network tells it the address of a name."""
        from atoll.dns.ask import ask

        gateway = self._engine.state.attached(namespace)[0][0].gateway(4)

        def run() -> str:
            try:
                return "yes" if ask(gateway, name, "A") else ""
            except NotFound:
                return ""

        return bool(self._in(namespace, run))

    def _fetch_from(self, namespace: str, address: str) -> str:
        """The client's address that a server on the outside machine sees."""
        with _Server(self._outside.run, socket.AF_INET, 80):
            return self._in(namespace, lambda: _fetch(address, 80))

    @contextlib.contextmanager
    def _web_server(self, namespace: str) -> Iterator[None]:
        with self._engine.host.namespace(namespace) as fd:

            def there(function: Callable[[], Any]) -> Any:
                return self._engine.host.visitor.run(fd, function)

            with _Server(there, socket.AF_INET6, 80):
                yield


class _Server:
    """A web server whose page is the client's address; its socket is made where `run` runs a function."""

    def __init__(self, run: Callable[[Callable[[], Any]], Any], family: int, port: int) -> None:
        def listen() -> socket.socket:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
            sock.listen()
            return sock

        self._sock: socket.socket = run(listen)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()

    def _serve(self) -> None:
        while True:
            try:
                client, address = self._sock.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.settimeout(_TIMEOUT)
                client.recv(4096)
                page = str(address[0]).removeprefix("::ffff:").encode()
                client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page)


def _fetch(address: str, port: int) -> str:
    """A page's text; empty when nothing answers."""
    try:
        with socket.create_connection((address, port), _TIMEOUT) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            data = b""
            while part := sock.recv(4096):
                data += part
    except OSError:
        return ""
    return data.partition(b"\r\n\r\n")[2].decode()


def _configure_here(link: str, addresses: tuple[str, ...]) -> None:
    from atoll.kernel import netlink, rtnl
    from atoll.kernel.host import interface_index
    from atoll.model import interface

    with netlink.Socket() as sock:
        index = interface_index(sock, link)
        sock.execute(rtnl.set_link(index, up=True), *(rtnl.add_address(index, interface(text)) for text in addresses))


#: What must be the same after as before, by the tools that people use. Counters and random seeds aren't configuration.
_SNAPSHOTS: Final = (
    "ip -details link; ip address; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule",
    "nft list ruleset",
    "ip netns list; ls /run/netns",
    "sysctl -a 2>/dev/null | grep ^net | grep -v -e conntrack_count -e random -e stable_secret",
)


def _snapshot() -> list[str]:
    env = os.environ | {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    run = partial(subprocess.run, capture_output=True, text=True, check=False, env=env)
    return [run(["sh", "-c", command]).stdout for command in _SNAPSHOTS]


def _compare(before: list[str], after: list[str]) -> None:
    left = [
        line
        for one, other in zip(before, after, strict=True)
        for line in difflib.unified_diff(one.splitlines(), other.splitlines(), lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    for line in left:
        click.echo(f"  {line}")
    if left:
        raise Failed("the host is not as it was")
    size = sum(map(len, after))
    click.echo(f"  {click.style('✓', fg='green')} the host is as it was: {size} bytes of `ip`, `nft` and `sysctl` output are the same")
