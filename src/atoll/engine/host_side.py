"""What the host as a whole must have for its networks, beyond the networks' own objects: forwarding, and a fence around it. Pure.

Switching forwarding on makes a host a router between all of its interfaces. So those that were there before are fenced: nothing passes
from one of them to another. What is switched on is remembered with its former value and put back when the last network that needs it
has gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from atoll.drivers import of
from atoll.firewall.elements import Element
from atoll.firewall.skeleton import FENCES
from atoll.model import BRIDGE_PREFIX, PARENT_PREFIX, SHAPER_PREFIX, SPARE_PREFIX, TRUNK_PREFIX, VETH_PREFIX
from atoll.plan.operations import HOST, Operation, SysctlSet

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from atoll.kernel.rtnl import Link
    from atoll.model import Network

_FORWARD4: Final = "net/ipv4/ip_forward"
#: The kernel flips this one together with forwarding, both ways (Documentation/networking/ip-sysctl.rst), so it is remembered too.
_REDIRECTS: Final = "net/ipv4/conf/all/accept_redirects"
_FORWARD6: Final = "net/ipv6/conf/all/forwarding"
_BRIDGE4: Final = "net/bridge/bridge-nf-call-iptables"
_BRIDGE6: Final = "net/bridge/bridge-nf-call-ip6tables"
_OURS: Final = (BRIDGE_PREFIX, VETH_PREFIX, SPARE_PREFIX, TRUNK_PREFIX, SHAPER_PREFIX, PARENT_PREFIX)


def needs(networks: Iterable[Network], links: Collection[Link], read: Callable[[str], str | None]) -> dict[str, str]:
    """The settings that these networks need beyond what the host has or what was recorded before."""
    bridges = [network for network in networks if network.driver == "bridge"]
    routed = [network for network in bridges if not network.internal]
    wanted: dict[str, str] = {}
    if any(network.has(4) for network in routed):
        wanted[_FORWARD4] = "1"
    if any(network.has(6) for network in routed):
        # A forwarding host takes router advertisements only where accept_ra is 2, so an uplink that lives by them keeps them.
        served = {network.bridge for network in bridges}
        for link in links:
            setting = f"net/ipv6/conf/{link.name}/accept_ra"
            if not link.name.startswith(_OURS) and link.name not in {"lo", *served} and read(setting) == "1":
                wanted[setting] = "2"
        wanted[_FORWARD6] = "1"
    if bridges and not any(link.kind == "bridge" and not link.name.startswith(_OURS) for link in links):
        # Frames between the ports of a bridge need no second pass through the IP firewall; with it, ::1 and a publisher's own
        # published port can't work. Where another bridge lives its owner may rely on it, and it stays as it is.
        for setting in (_BRIDGE4, _BRIDGE6):
            if read(setting) == "1":
                wanted[setting] = "0"
    return wanted


def on_adopted(network: Network) -> dict[str, str]:
    """The settings of a bridge that was there before us which its network changes."""
    if network.driver != "bridge" or network.made_bridge:
        return {}
    return {operation.setting: operation.value for operation in of(network).network_up(network) if isinstance(operation, SysctlSet)}


def remember(wanted: Mapping[str, str], known: Mapping[str, str], read: Callable[[str], str | None]) -> dict[str, str]:
    """The former values of settings that will change and aren't recorded yet."""
    former: dict[str, str] = {}
    for setting, value in wanted.items():
        current = read(setting)
        if setting not in known and current is not None and current != value:
            former[setting] = current
            if setting == _FORWARD4:
                former[_REDIRECTS] = read(_REDIRECTS) or "1"
    return former


def lasting(networks: Collection[Network]) -> list[Operation]:
    """The settings that are held up while these networks exist (the others are only made once)."""
    wanted = needs(networks, (), lambda _: None)
    return set_up(wanted)


def set_up(wanted: Mapping[str, str]) -> list[Operation]:
    return [SysctlSet(HOST, setting, value) for setting, value in wanted.items()]


def put_back(recorded: Mapping[str, str], removed: Network, networks: Iterable[Network]) -> list[SysctlSet]:
    """Former values of what nobody needs when one of these networks is removed; forwarding before what the kernel flips with it."""
    bridges = [network for network in networks if network.driver == "bridge" and network.id != removed.id]
    routed = [network for network in bridges if not network.internal]
    freed = on_adopted(removed)
    needed4, needed6 = (any(network.has(version) for network in routed) for version in (4, 6))

    def needed(setting: str) -> bool:
        if setting in freed:
            return False
        if setting in (_FORWARD4, _REDIRECTS):
            return needed4
        return bool(bridges) if setting in (_BRIDGE4, _BRIDGE6) else needed6

    gone = [SysctlSet(HOST, setting, value, optional=True) for setting, value in recorded.items() if not needed(setting)]
    return sorted(gone, key=lambda operation: operation.setting == _REDIRECTS)


def fence(former: Mapping[str, str], links: Collection[Link]) -> list[Element]:
    """The interfaces to fence in each family whose forwarding is about to be switched on; in the other the host may be a router."""
    others = sorted(link.name for link in links if link.name != "lo" and not link.name.startswith(_OURS))
    switched = [version for version, setting in ((4, _FORWARD4), (6, _FORWARD6)) if former.get(setting) == "0"]
    return [Element(FENCES[version], (name,)) for version in switched for name in others]
