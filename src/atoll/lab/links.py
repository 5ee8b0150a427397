"""Links and the weather on them.

Weather is a thread that stands in the way: what leaves by an interface is led into a tap device instead, read there, and sent on
later, twice or never. So it works wherever there are namespaces, rootless too, and by a seed the same packets have the same fate every
time, which the kernel's netem can't promise on most kernels. It passes some ten thousand packets a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from atoll.checks import parse_rate
from atoll.errors import Invalid, Unsupported
from atoll.kernel import netlink, rtnl, sysctl, tc
from atoll.kernel.host import interface_index

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.lab.lab import Lab
    from atoll.lab.places import Place

#: "out" is what leaves the first (or only) place of a link, "in" is what comes to it.
Direction = Literal["out", "in", "both"]
#: When a packet would go on its way -> when it does: never, once or more often. Sizes are in bytes.
Fate = Callable[[float, int], list[float]]

_TUNSETIFF: Final = 0x400454CA
_IFF_TAP_NO_PI: Final = 0x1002
_SOL_PACKET: Final = 263
_PACKET_QDISC_BYPASS: Final = 20
_FRAMES_AT_ONCE: Final = 64
#: The longest queue before a slow link, in seconds; what comes then is lost.
_LONGEST: Final = 1.0


class Device(NamedTuple):
    """An interface in a place."""

    place: Place
    name: str


class Link:
    """Two interfaces and what is between them: a wire's two ends, or a namespace's interface and its port on a bridge.

    `medium` tells which links lead to the same neighbours.
    """

    def __init__(
        self,
        lab: Lab,
        medium: tuple[str, str],
        name: str,
        near: Device,
        far: Device,
        addresses: tuple[str, ...],
        far_addresses: tuple[str, ...] = (),
        aliases: tuple[str, ...] = (),
    ) -> None:
        self._lab, self.medium, self.name = lab, medium, name
        self.near, self.far, self._aliases = near, far, aliases
        self._addresses, self._far_addresses = addresses, far_addresses

    def __repr__(self) -> str:
        return f"<link {self.name}>"

    def addresses_of(self, place: Place) -> tuple[str, ...]:
        """With prefix length."""
        return self._addresses if place is self.near.place else self._far_addresses if place is self.far.place else ()

    def names_of(self, place: Place) -> tuple[str, ...]:
        """By which others find a place's addresses: its own, and on a network its aliases there."""
        return tuple(dict.fromkeys((place.name, *(self._aliases if place is self.near.place else ()))))

    @property
    def subnet(self) -> str:
        """Of the first address."""
        return str(ipaddress.ip_interface(self._addresses[0]).network)

    # --- weather, as context managers; they add up ---

    def loss(self, probability: float, *, seed: int = 0, direction: Direction = "both") -> contextlib.AbstractContextManager[None]:
        """Lose packets by chance."""
        _check_probability(probability)

        def fate(chance: random.Random) -> Fate:
            return lambda when, size: [] if chance.random() < probability else [when]

        return self._weather(fate, seed, direction)

    def duplicate(self, probability: float, *, seed: int = 0, direction: Direction = "both") -> contextlib.AbstractContextManager[None]:
        """Let packets arrive twice by chance."""
        _check_probability(probability)

        def fate(chance: random.Random) -> Fate:
            return lambda when, size: [when, when] if chance.random() < probability else [when]

        return self._weather(fate, seed, direction)

    def delay(
        self, ms: float, *, jitter: float = 0, seed: int = 0, direction: Direction = "both"
    ) -> contextlib.AbstractContextManager[None]:
        """Hold every packet, each way, for `ms` milliseconds, give or take `jitter`; with jitter they may overtake each other."""
        if not 0 <= jitter <= ms:
            raise Invalid(f"a delay of {ms} ms can't vary by {jitter} ms", "expected 0 <= jitter <= ms")

        def fate(chance: random.Random) -> Fate:
            return lambda when, size: [when + (ms + jitter * chance.uniform(-1, 1)) / 1000]

        return self._weather(fate, seed, direction)

    def rate(self, rate: str, *, direction: Direction = "both") -> contextlib.AbstractContextManager[None]:
        """Pass no more than a rate, each way: "10mbit". What waits longer than a second is lost."""
        bits = parse_rate(rate, "a link's rate")
        if not bits:
            raise Invalid(f"{rate!r} is no rate to limit to", "expected such as 10mbit")

        def fate(_: random.Random) -> Fate:
            free = 0.0

            def passes(when: float, size: int) -> list[float]:
                nonlocal free
                if max(free, when) - when > _LONGEST:
                    return []
                free = max(free, when) + size * 8 / bits
                return [free]

            return passes

        return self._weather(fate, 0, direction)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """A namespace's interface loses its carrier; a wire between hosts passes nothing but keeps it, and so the routes over it."""
        if self._far_addresses:
            with self.loss(1):
                yield
            return
        _set_up(self.far, False)
        try:
            yield
        finally:
            _set_up(self.far, True)
            settle(self.far)
            settle(self.near)

    @contextlib.contextmanager
    def _weather(self, make: Callable[[random.Random], Fate], seed: int, direction: Direction) -> Iterator[None]:
        if direction not in ("out", "in", "both"):
            raise Invalid(f"{direction!r} is no direction", "expected out, in or both")
        with contextlib.ExitStack() as stack:
            for way, device in (("out", self.near), ("in", self.far)):
                if direction in (way, "both"):
                    box = self._lab.weather(device)
                    stack.callback(box.remove, box.add(make(random.Random(f"{seed} {way}"))))  # noqa: S311
            yield


def _check_probability(value: float) -> None:
    if not 0 <= value <= 1:
        raise Invalid(f"{value} is not a probability", "expected 0 to 1, such as 0.05 for 5 %")


def _set_up(device: Device, up: bool) -> None:
    def change() -> None:
        with netlink.Socket() as sock:
            sock.execute(rtnl.set_link(interface_index(sock, device.name), up=up))

    device.place.visit(change)


def settle(device: Device) -> None:
    """Return when packets pass a link that just came up: asked about it, the kernel first does what it puts off (see `plan.execute`)."""

    def ask() -> None:
        with netlink.Socket() as sock:
            sock.ask(rtnl.get_link(device.name))

    device.place.visit(ask)


class Box:
    """The weather on what leaves by one interface; there is a tap in the way as long as there is any."""

    def __init__(self, lab: Lab, device: Device) -> None:
        self._lab, self._device = lab, device
        self._fates: tuple[Fate, ...] = ()
        self._tap = -1
        self._out: socket.socket | None = None
        self._last = 0.0

    def add(self, fate: Fate) -> Fate:
        self._fates = (*self._fates, fate)
        if self._tap < 0:
            try:
                self._device.place.visit(self._open)
                self._lab.loop.watch(self._tap, self._read)
                self._device.place.visit(self._divert)
            except BaseException:
                self.remove(fate)
                raise
        return fate

    def remove(self, fate: Fate) -> None:
        left = tuple(one for one in self._fates if one is not fate)
        if left or self._tap < 0:
            self._fates = left
        else:
            with contextlib.suppress(netlink.NetlinkError):
                self._device.place.visit(self._let_pass)
            with contextlib.suppress(KeyError):
                self._lab.loop.forget(self._tap)
            self._lab.loop.call(self._end)
            os.close(self._tap)
            self._tap = -1

    def _open(self) -> None:
        """In the place: a tap, and a socket that sends by the interface past its hooks."""
        try:
            self._tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            answer = fcntl.ioctl(self._tap, _TUNSETIFF, struct.pack("16sH22x", b"weather%d", _IFF_TAP_NO_PI))
        except OSError as error:
            raise Unsupported(f"no weather without tap devices: /dev/net/tun: {error.strerror}", "modprobe tun") from None
        self._tap_name = answer[:16].rstrip(b"\0").decode()
        # It must say nothing of its own.
        if sysctl.read(f"net/ipv6/conf/{self._tap_name}/disable_ipv6") is not None:
            sysctl.write(f"net/ipv6/conf/{self._tap_name}/disable_ipv6", "1")
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._out = out
        out.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        out.bind((self._device.name, 0))

    def _divert(self) -> None:
        with netlink.Socket() as sock:
            tap, index = interface_index(sock, self._tap_name), interface_index(sock, self._device.name)
            mtu = rtnl.parse_link(sock.ask(rtnl.get_link(self._device.name)).body).mtu
            sock.execute(rtnl.set_link(tap, up=True, mtu=mtu))
            sock.ask(rtnl.get_link(self._tap_name))
            sock.execute(tc.add_clsact(index))
            sock.execute(tc.add_redirect(index, tap, leaving=True))

    def _let_pass(self) -> None:
        with netlink.Socket() as sock:
            sock.execute(tc.delete_clsact(interface_index(sock, self._device.name)))

    def _end(self) -> None:
        """What is in the tap has the fate of what came before; what is held goes on its way when its time comes."""
        while self._read():
            pass
        self._fates = ()
        out, self._out = self._out, None
        if out is not None:
            self._lab.loop.at(self._last, out.close)

    def _read(self) -> bool:
        """Whether there may be more to read."""
        for _ in range(_FRAMES_AT_ONCE):
            try:
                frame = os.read(self._tap, 65536)
            except OSError:
                return False
            now = time.monotonic()
            times = [now]
            for fate in self._fates:
                times = [later for when in times for later in fate(when, len(frame))]
            out = self._out
            for when in times:
                if when <= now:
                    self._send(out, frame)
                else:
                    self._last = max(self._last, when)
                    self._lab.loop.at(when, lambda out=out, frame=frame: self._send(out, frame))  # type: ignore[misc]
        return True

    def _send(self, out: socket.socket | None, frame: bytes) -> None:
        if out is not None:
            with contextlib.suppress(OSError):
                out.send(frame)
                self._lab.watcher.note(self._device, frame)
