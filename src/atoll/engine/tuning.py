"""The verbs for tuning: settings of the kernel in a namespace, and what an interface in it is beyond what Atoll makes of it.

What was there before is recorded first, with what is asked; so it is kept by repair, made anew with its interface, and put back by
`untune` or with the endpoint, by whichever process comes to it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from msgspec import structs

from atoll import faults
from atoll.drivers import tuning as driver
from atoll.engine.changing import ChangingVerbs
from atoll.errors import Conflict, Invalid
from atoll.kernel import rtnl, sysctl
from atoll.model import UNTUNED, Endpoint, Tuning
from atoll.plan.execute import dismantle
from atoll.plan.operations import Plan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from atoll.model import Namespace, Network

#: A path under /proc/sys/net: no part of it is `.` or `..`, and an interface's name may hold dots.
_SETTING: Final = re.compile(r"net(?:/(?!\.\.?(?:/|\Z))[a-zA-Z0-9_.:@-]{1,64}){1,6}\Z")
_MOST_SETTINGS: Final = 100
_LONGEST_VALUE: Final = 1000
_LONGEST_QUEUE: Final = 1_000_000


class TuningVerbs(ChangingVerbs):
    def tune(self, network: str, namespace: str, tuning: Tuning, *, interface: str = "") -> Endpoint:
        """Make an endpoint's interface and its namespace what is asked, beside what was asked before, and keep them so.

        Raises `Invalid` for a setting that isn't one of the namespace's network, `Failed` when the kernel refuses a value; then all is as
        it was.
        """
        faults.begin("tune")
        where, before, after, found = self._asked(network, namespace, tuning, interface)
        known = driver.changes(_over(_part(before.tuning, tuning), found), before.interface, namespace)
        back = Plan.of(known, self._retune_plan(where, after, before).operations)
        return self._as_shown(self._change(where, before, after, self._tuning_plan(where, before, after, tuning), back), tuning)

    def plan_tune(self, network: str, namespace: str, tuning: Tuning, *, interface: str = "") -> Plan:
        where, before, after, _ = self._asked(network, namespace, tuning, interface)
        return self._tuning_plan(where, before, after, tuning)

    def untune(self, network: str, namespace: str, *, interface: str = "") -> Endpoint:
        """Put back what was there before `tune`, and then the record. Nothing to put back is success."""
        faults.begin("untune")
        where, before, after, former = self._untuned(network, namespace, interface)
        if before.tuning == UNTUNED == before.untuned:
            return before
        errors = dismantle(self.host, self._tuning_plan(where, before, after, former))
        faults.step()
        self._record_change(after)
        faults.step()
        self.emit("endpoint.change", network=where.name, namespace=namespace, id=after.id)
        if errors:
            raise errors[0]
        return after

    def plan_untune(self, network: str, namespace: str, *, interface: str = "") -> Plan:
        return self._tuning_plan(*self._untuned(network, namespace, interface))

    def tuning_faults(self, network: str, namespace: str, tuning: Tuning, *, interface: str = "") -> list[str]:
        """What isn't as it was asked, in words; empty when all is."""
        _, endpoint = self._tuned(network, namespace, interface)
        found = self._read(endpoint, tuning)
        wrong: list[str] = []
        for setting, wanted in tuning.settings.items():
            there = found.settings.get(setting)
            same_words = there is not None and there.split() == wanted.split()
            in_the_kernels_words = endpoint.tuning.asked.get(setting) == wanted and endpoint.tuning.settings[setting] == there
            if not same_words and not in_the_kernels_words:
                wrong.append(f"{setting} is {there}, not {wanted}")
        for name in ("promisc", "allmulti", "queue", "mac", "mtu"):
            asked, is_so = getattr(tuning, name), getattr(found, name)
            if asked != is_so:
                wrong.append(f"{name} of {endpoint.interface} is {is_so}, not {asked}")
        return wrong

    # --- parts ---

    def _asked(self, network: str, namespace: str, tuning: Tuning, interface: str) -> tuple[Network, Endpoint, Endpoint, Tuning]:
        """The endpoint before and after, and what is there of what is asked; everything checked."""
        where, before = self._tuned(network, namespace, interface)
        others = [other for other in self.state.endpoints_of(namespace) if other.id != before.id]
        _check(where, self.state.namespace(namespace), before, tuning)
        _check_others(tuning, others)
        found = self._found(before, tuning, others)
        asked, untuned = _over(tuning, before.tuning), _over(before.untuned, found)
        return where, before, structs.replace(self._retuned(where, before, tuning.mac, tuning.mtu), tuning=asked, untuned=untuned), found

    def _untuned(self, network: str, namespace: str, interface: str) -> tuple[Network, Endpoint, Endpoint, Tuning]:
        """The endpoint before and after, and what comes back."""
        where, before = self._tuned(network, namespace, interface)
        others = [other for other in self.state.endpoints_of(namespace) if other.id != before.id]
        former = structs.replace(before.untuned, settings=driver.not_asked_by(others, before.untuned.settings))
        # The MAC address that it had is somebody else's by now, perhaps.
        mac = "" if former.mac != before.mac and self.state.mac_taken(where, former.mac) else former.mac
        return where, before, structs.replace(self._retuned(where, before, mac, former.mtu), tuning=UNTUNED, untuned=UNTUNED), former

    def _tuning_plan(self, where: Network, before: Endpoint, after: Endpoint, tuning: Tuning) -> Plan:
        changes = driver.changes(tuning, after.interface, after.namespace)
        return Plan.of(self._retune_plan(where, before, after).operations, changes)

    def _found(self, endpoint: Endpoint, tuning: Tuning, others: Iterable[Endpoint]) -> Tuning:
        """What is there of what is asked; where another endpoint of the namespace asks for the same, what was there before that one."""
        found = self._read(endpoint, tuning)
        missing = [setting for setting in tuning.settings if setting not in found.settings]
        if missing:
            raise Invalid(f"namespace {endpoint.namespace} has no setting {missing[0]}", "`sysctl -a -r ^net` in it shows what it has")
        settings = dict(found.settings)
        for other in others:
            settings |= {setting: value for setting, value in other.untuned.settings.items() if setting in settings}
        return structs.replace(found, settings=settings)

    def _read(self, endpoint: Endpoint, tuning: Tuning) -> Tuning:
        """What the kernel has of those things that `tuning` speaks of; a setting that it doesn't have is left out."""
        with self.host.namespace(endpoint.namespace) as fd:
            values = self.host.visitor.run(fd, lambda: {setting: sysctl.read(setting) for setting in tuning.settings})
        with self.host.socket_in(endpoint.namespace) as sock:
            link = rtnl.parse_link(sock.ask(rtnl.get_link(endpoint.interface)).body)
        return Tuning(
            settings={setting: value for setting, value in values.items() if value is not None},
            promisc=link.promisc if tuning.promisc is not None else None,
            allmulti=link.allmulti if tuning.allmulti is not None else None,
            queue=link.queue if tuning.queue is not None else None,
            mac=link.mac if tuning.mac else "",
            mtu=link.mtu if tuning.mtu else 0,
        )

    def _as_shown(self, endpoint: Endpoint, tuning: Tuning) -> Endpoint:
        """The record with the values that the kernel shows for what was written, which it may put in other words."""
        shown = self._read(endpoint, Tuning(settings=tuning.settings)).settings
        other = {setting: value for setting, value in shown.items() if value != tuning.settings[setting]}
        if not other:
            return endpoint
        settings, asked = endpoint.tuning.settings | other, endpoint.tuning.asked | {key: tuning.settings[key] for key in other}
        made = structs.replace(endpoint, tuning=structs.replace(endpoint.tuning, settings=settings, asked=asked))
        self._record_change(made)
        return made


def _over(upper: Tuning, lower: Tuning) -> Tuning:
    """The two together; where both speak of something, `upper`."""
    return Tuning(
        settings=lower.settings | upper.settings,
        asked={key: value for key, value in (lower.asked | upper.asked).items() if key in upper.asked or key not in upper.settings},
        promisc=lower.promisc if upper.promisc is None else upper.promisc,
        allmulti=lower.allmulti if upper.allmulti is None else upper.allmulti,
        queue=lower.queue if upper.queue is None else upper.queue,
        mac=upper.mac or lower.mac,
        mtu=upper.mtu or lower.mtu,
    )


def _part(tuning: Tuning, like: Tuning) -> Tuning:
    """What `tuning` says of those things that `like` speaks of."""
    return Tuning(
        settings={setting: value for setting, value in tuning.settings.items() if setting in like.settings},
        promisc=tuning.promisc if like.promisc is not None else None,
        allmulti=tuning.allmulti if like.allmulti is not None else None,
        queue=tuning.queue if like.queue is not None else None,
    )


def _check(network: Network, namespace: Namespace, endpoint: Endpoint, tuning: Tuning) -> None:
    if network.driver not in ("bridge", "macvlan", "ipvlan"):
        raise Invalid(f"{namespace.name} has no interface of its own on network {network.name}", "tune one on another network")
    if namespace.kind not in ("created", "adopted"):
        raise Invalid(f"the inside of {namespace.name} is set up by someone else", "tune it there")
    if endpoint.state != "ready":
        raise Conflict(f"{namespace.name} on {network.name} is {endpoint.state}", "try again in a moment")
    if len(tuning.settings) > _MOST_SETTINGS:
        raise Invalid(f"{len(tuning.settings)} settings are too many", f"at most {_MOST_SETTINGS}")
    for setting, value in tuning.settings.items():
        if not _SETTING.match(setting):
            raise Invalid(f"{setting[:80]!r} is not a setting of a network", "such as net/ipv4/conf/eth0/arp_filter")
        if not value or len(value) > _LONGEST_VALUE or not value.replace("\t", " ").isprintable():
            raise Invalid(f"{value[:40]!r} is not a value for {setting}", f"1 to {_LONGEST_VALUE} printable characters")
        if setting.endswith("/disable_ipv6") and value != "0" and endpoint.address(6):
            raise Invalid(f"{setting} can't be {value}: {namespace.name} has an IPv6 address on {network.name}", "use a network without")
    if tuning.queue is not None and not 0 <= tuning.queue <= _LONGEST_QUEUE:
        raise Invalid(f"{tuning.queue} is not the length of a queue", f"0 to {_LONGEST_QUEUE} packets")


def _check_others(tuning: Tuning, others: Iterable[Endpoint]) -> None:
    """Of two endpoints that ask for different values of one setting neither would be kept."""
    for other in others:
        for setting, value in other.tuning.settings.items():
            if setting in tuning.settings and tuning.settings[setting].split() != value.split():
                raise Conflict(f"{setting} is {value} for {other.interface} of {other.namespace}", "ask for the same value, or only once")
