"""tuning: settings of the kernel in the container's namespace, and what its interface is (reference: plugins/meta/tuning).

DEL puts everything back, the settings too. `dataDir` has no effect: what was there before is in the engine's state. Where a cluster's
administrator keeps a list of the settings that are allowed (/etc/cni/tuning/allowlist.conf), it counts here as well.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field, structs

from atoll.checks import check_mac
from atoll.frontends.cni.attachments import require
from atoll.frontends.cni.chained import each_stale, fail, previous
from atoll.frontends.cni.refusal import BAD_CONFIG, IO_FAILURE, Refusal
from atoll.frontends.files import read_file
from atoll.model import Tuning

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.cni.results import Interface, Result
    from atoll.frontends.cni.words import Request
    from atoll.model import Endpoint, Network

#: One regular expression a line.
_ALLOWED: Final = "/etc/cni/tuning/allowlist.conf"
_MOST_BYTES: Final = 1 << 16


class _Asked(Struct, frozen=True):
    sysctl: dict[str, str] | None = None
    mac: str = ""
    promisc: bool | None = None
    mtu: int = 0
    allmulti: bool | None = None
    queue: int | None = field(name="txQLen", default=None)


class _Args(Struct, frozen=True):
    cni: _Asked = _Asked()


class _Runtime(Struct, frozen=True):
    mac: str = ""


class _Configuration(_Asked, frozen=True):
    args: _Args = _Args()
    runtime: _Runtime = field(name="runtimeConfig", default=_Runtime())


def add(engine: Engine, request: Request) -> Result:
    result = previous(request)
    asked = tuning_asked(request)
    if asked == Tuning():
        return result
    network, endpoint = require(engine, request)
    tuned = engine.tune(network.id, endpoint.namespace, asked, interface=endpoint.interface)
    interfaces = tuple(
        structs.replace(one, mac=tuned.mac if asked.mac else one.mac, mtu=asked.mtu or one.mtu) if _is_ours(request, one) else one
        for one in result.interfaces
    )
    return structs.replace(result, interfaces=interfaces)


def delete(engine: Engine, request: Request) -> None:
    _untune(engine, *require(engine, request))


def check(engine: Engine, request: Request) -> None:
    asked = tuning_asked(request)
    if asked != Tuning():
        network, endpoint = require(engine, request)
        fail(engine.tuning_faults(network.id, endpoint.namespace, asked, interface=endpoint.interface))


def gc(engine: Engine, request: Request) -> None:
    each_stale(engine, request, lambda network, endpoint: _untune(engine, network, endpoint))


def status(engine: Engine, request: Request) -> None:
    del engine
    tuning_asked(request)


# --- parts ---------------------------------------------------------------------------------------------------------------------------


def _untune(engine: Engine, network: Network, endpoint: Endpoint) -> None:
    engine.untune(network.id, endpoint.namespace, interface=endpoint.interface)


def _is_ours(request: Request, interface: Interface) -> bool:
    return interface.name == request.environment.interface and bool(interface.sandbox)


def tuning_asked(request: Request) -> Tuning:
    """What comes later overrides: the configuration, CNI_ARGS, `runtimeConfig`, then `args` (plugins/meta/tuning/tuning.go)."""
    found = request.read(_Configuration)
    args = found.args.cni
    settings = args.sysctl if args.sysctl is not None else found.sysctl or {}
    mac = args.mac or found.runtime.mac or request.environment.arguments.get("MAC", "") or found.mac
    mtu = args.mtu or found.mtu
    if not 0 <= mtu <= 65535:
        raise Refusal(BAD_CONFIG, f"tuning: {mtu} is not an MTU", "68 to 65535 bytes")
    return Tuning(
        settings=_paths(settings, request.environment.interface),
        # Of the reference only an interface that is to be promiscuous is touched; allmulti says both.
        promisc=True if (args.promisc if args.promisc is not None else found.promisc) else None,
        allmulti=args.allmulti if args.allmulti is not None else found.allmulti,
        queue=args.queue if args.queue is not None else found.queue,
        mac=check_mac(mac) if mac else "",
        mtu=mtu,
    )


def _paths(settings: dict[str, str], interface: str) -> dict[str, str]:
    """By their path under /proc/sys: names are written with dots or slashes, whichever comes first separates (sysctl(8))."""
    allowed = _allowed() if settings else None
    found: dict[str, str] = {}
    for name, value in settings.items():
        if allowed is not None and not any(one.match(name) for one in allowed):
            raise Refusal(BAD_CONFIG, f"Sysctl {name[:80]} is not allowed", f"{_ALLOWED} lists those that are")
        first = re.search(r"[./]", name)
        path = name.translate(str.maketrans("./", "/.")) if first is not None and first[0] == "." else name
        path = path.replace("IFNAME", interface)
        if not path.startswith("net/"):
            raise Refusal(BAD_CONFIG, f"invalid net sysctl key: {name[:80]!r}", "only settings of the network, such as net.core.somaxconn")
        found[path] = value
    return found


def _allowed() -> list[re.Pattern[str]] | None:
    """None where there is no such list."""
    try:
        lines = read_file(_ALLOWED, _MOST_BYTES).decode().splitlines()
        return [re.compile(line) for line in lines if line.strip()]
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, re.error) as error:
        raise Refusal(IO_FAILURE, f"reading {_ALLOWED}", str(error)[:200]) from None
