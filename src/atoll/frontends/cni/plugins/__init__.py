"""The plugins by the names under which runtimes call them: a module each, with the verbs that are said of an attachment or a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from atoll.frontends.cni.plugins import (
    atoll,
    bandwidth,
    bridge,
    dnsname,
    firewall,
    host_local,
    loopback,
    macvlan,
    portmap,
    ptp,
    static,
    tuning,
)

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request


class Plugin(Protocol):
    """What a module of a plugin has. Each raises `Refusal` or an `AtollError` for what it can't do.

    `delete` and `check` raise `Unknown` for an attachment that we didn't make (the answer is then success, or the replaced plugin's), and
    `add` raises `Unserved` for what Atoll doesn't do.
    """

    def add(self, engine: Engine, request: Request) -> Result: ...

    def delete(self, engine: Engine, request: Request) -> None: ...

    def check(self, engine: Engine, request: Request) -> None: ...

    def gc(self, engine: Engine, request: Request) -> None: ...

    def status(self, engine: Engine, request: Request) -> None: ...


PLUGINS: Final[dict[str, Plugin]] = {
    "atoll": atoll,
    "bandwidth": bandwidth,
    "bridge": bridge,
    "dnsname": dnsname,
    "firewall": firewall,
    "host-local": host_local,
    "loopback": loopback,
    "macvlan": macvlan,
    "portmap": portmap,
    "ptp": ptp,
    "static": static,
    "tuning": tuning,
}
