"""firewalld: the bridges in a zone of our own, over D-Bus.

firewalld rejects forwarded packets between interfaces that no zone accepts. So, where it runs on this host:

- a zone `atoll` with the target ACCEPT: what comes in from our bridges passes. firewalld lets the permanent configuration define
  zones only, and takes them up at a reload, so the first network on a host causes one reload, as Docker does for its zone. That
  drops what an administrator configured at run time only; it does not happen again as long as firewalld knows the zone.
- a policy `atoll-forwarding` from any zone to ours, target ACCEPT: what goes out to our bridges passes. Without it only published
  ports (which firewalld knows by their DNAT) and answers would.
- the bridges in the zone, at run time only: one interface `atb+` (any ending) for all default names and one for each other
  bridge.

A reload, a restart and a later start of firewalld lose the interfaces; the signals Reloaded and NameOwnerChanged say so, and
they are put back at once. Whatever else is in the zone is taken out: it is ours alone. With the last network, interfaces, zone
and policy go; the zone stays known to firewalld, empty, until its next reload, which isn't ours to cause.

firewalld filters the namespace that it runs in. One that runs in another namespace than we (an engine in a lab, with the
machine's bus in sight) is none of our business and is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from atoll.neighbours import interfaces

if TYPE_CHECKING:
    # Imported late: it takes 50 ms, and most hosts have no firewalld.
    from dbus_fast import Message
    from dbus_fast.aio import MessageBus

ZONE: Final = "atoll"
POLICY: Final = "atoll-forwarding"

_NAME: Final = "org.fedoraproject.FirewallD1"
_PATH: Final = "/org/fedoraproject/FirewallD1"
_CONFIG_PATH: Final = "/org/fedoraproject/FirewallD1/config"
_BUS: Final = "org.freedesktop.DBus"
_DEFAULT_ADDRESS: Final = "unix:path=/run/dbus/system_bus_socket"
_RULES: Final = (
    f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='{_NAME}'",
    f"type='signal',sender='{_NAME}',interface='{_NAME}',member='Reloaded'",
)

#: Seconds: how long a caller is kept waiting, how long firewalld may take for one call (a reload of many rules is slow), after
#: how long a failure is tried again, and how long the pauses are between attempts to reach the bus.
_PATIENCE: Final = 5.0
_CALL_TIMEOUT: Final = 20.0
_RETRY: Final = 30.0
_RECONNECT: Final = (1.0, 60.0)


class _Refused(Exception):
    """firewalld's or the bus's answer to a call was an error."""

    def __init__(self, member: str, name: str, words: str) -> None:
        super().__init__(f"{member}: {words or name}")
        self.name = name


class Firewalld:
    """Keeps the bridges in the zone for as long as it is started. Belongs to one event loop.

    `running` says whether firewalld runs on this host, `problems` what does not work, a sentence each with what helps; both are
    for `doctor`. No method raises because of firewalld or the bus, and none keeps its caller for more than 5 s: what is not done
    by then goes on behind.
    """

    def __init__(self, address: str | None = None) -> None:
        """`address` is the system bus's; by default $DBUS_SYSTEM_BUS_ADDRESS or the usual socket."""
        self.running = False
        self.problems: list[str] = []
        self._address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or _DEFAULT_ADDRESS
        self._wanted: list[str] | None = None
        self._bus: MessageBus | None = None
        self._work = asyncio.Event()
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._may_reload = True

    async def start(self) -> None:
        """Look for firewalld, now and from now on. Changes nothing before `set_bridges` has been called."""
        self._task = asyncio.create_task(self._stay_connected())
        await self._wait()

    async def set_bridges(self, names: Collection[str]) -> None:
        """Make these the bridges in the zone; with none, the zone goes. Without firewalld they wait until it comes."""
        wanted = interfaces(names)
        if wanted == self._wanted:
            return
        self._wanted = wanted
        if self._bus is not None:
            self._ask_for_work()
            # One that fails already, perhaps because it hangs, is not waited for each time.
            if not self.problems:
                await self._wait()

    async def stop(self) -> None:
        """Leave the bus. The bridges stay in the zone: traffic goes on while the daemon is restarted."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._settled.wait()

    def _ask_for_work(self) -> None:
        self._settled.clear()
        self._work.set()

    # --- the connection
    # --------------------------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        pause, longest = _RECONNECT
        while True:
            if self._bus_may_exist():
                bus = await self._connect()
                if bus is not None:
                    pause = _RECONNECT[0]
                    await self._serve(bus)
                self.running = False
                self.problems = []
            self._settled.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    def _bus_may_exist(self) -> bool:
        kind, _, path = self._address.partition("unix:path=")
        return kind != "" or "," in path or ";" in path or os.path.exists(path)

    async def _connect(self) -> MessageBus | None:
        from dbus_fast import AuthError, DBusError, InvalidAddressError
        from dbus_fast.aio import MessageBus

        try:
            async with asyncio.timeout(_PATIENCE):
                bus = MessageBus(bus_address=self._address)
                await bus.connect()
        except (OSError, EOFError, AuthError, DBusError, InvalidAddressError):
            return None
        return bus

    async def _serve(self, bus: MessageBus) -> None:
        """Work whenever there is some until the bus goes away."""
        self._bus = bus
        bus.add_message_handler(self._on_message)
        gone = asyncio.create_task(_gone(bus))
        gone.add_done_callback(lambda _: self._work.set())
        try:
            for rule in _RULES:
                await self._call("AddMatch", "s", rule, name=_BUS, path="/org/freedesktop/DBus", interface=_BUS)
            self._ask_for_work()
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY if self.problems else None):
                        await self._work.wait()
                if gone.done():
                    return
                self._work.clear()
                self.problems = await self._sync()
                if not self._work.is_set():
                    self._settled.set()
        except (_Refused, OSError, EOFError):
            pass  # the bus is gone or does not answer: the caller starts again
        finally:
            self._bus = None
            bus.disconnect()
            await gone

    def _on_message(self, message: Message) -> None:
        if message.member == "NameOwnerChanged" and message.body[:1] == [_NAME]:
            self._may_reload = True
            self._ask_for_work()
        elif message.member == "Reloaded" and message.interface == _NAME:
            self._ask_for_work()

    async def _call(
        self, member: str, signature: str = "", *body: object, path: str = _PATH, interface: str = _NAME, name: str = _NAME
    ) -> Any:
        """The first value of the answer. Raises `_Refused`, or `OSError` (`TimeoutError` is one) or `EOFError` without one."""
        from dbus_fast import Message, MessageFlag, MessageType

        bus = self._bus
        if bus is None or not bus.connected:
            raise ConnectionError("the bus is gone")
        # Never start a firewalld that the administrator has stopped.
        question = Message(name, path, interface, member, flags=MessageFlag.NO_AUTOSTART, signature=signature, body=list(body))
        async with asyncio.timeout(_CALL_TIMEOUT):
            answer = await bus.call(question)
        if answer is None:
            raise ConnectionError("the bus is gone")
        if answer.message_type is MessageType.ERROR:
            raise _Refused(member, answer.error_name or "", " ".join(str(part) for part in answer.body))
        return answer.body[0] if answer.body else None

    # --- the zone
    # --------------------------------------------------------------------------------------------------------------------

    async def _sync(self) -> list[str]:
        """Bring firewalld to what is wanted, from whatever state it is in. Idempotent. Returns the problems."""
        try:
            self.running = await self._runs_here()
            if not self.running or self._wanted is None:
                return []
            if self._wanted:
                await self._make_known()
            await self._set_interfaces(self._wanted)
            if not self._wanted:
                await self._remove("Policy", POLICY)
                await self._remove("Zone", ZONE)
        except _Refused as refusal:
            if not await self._has_owner():
                self.running = False
                return []  # it was stopped in between
            return [f"firewalld refuses to let the bridges' packets through: {refusal}; see journalctl -u firewalld"]
        except TimeoutError:
            return [f"firewalld does not answer within {_CALL_TIMEOUT:.0f} s; try systemctl restart firewalld"]
        return []

    async def _has_owner(self) -> bool:
        return bool(await self._call("NameHasOwner", "s", _NAME, name=_BUS, path="/org/freedesktop/DBus", interface=_BUS))

    async def _runs_here(self) -> bool:
        if not await self._has_owner():
            return False
        pid = await self._call("GetConnectionUnixProcessID", "s", _NAME, name=_BUS, path="/org/freedesktop/DBus", interface=_BUS)
        return _in_our_namespace(pid)

    async def _make_known(self) -> None:
        """Zone and policy in the permanent configuration, and a reload when firewalld does not know them at run time."""
        from dbus_fast import Variant

        about = Variant("s", "The bridges of Atoll, which decides by itself what they may reach. Managed by Atoll.")
        accept = Variant("s", "ACCEPT")
        zone = {"short": Variant("s", "Atoll"), "description": about, "target": accept}
        policy = {**zone, "ingress_zones": Variant("as", ["ANY"]), "egress_zones": Variant("as", [ZONE])}
        await self._ensure("Zone", "addZone2", ZONE, zone)
        await self._ensure("Policy", "addPolicy", POLICY, policy)
        if await self._known():
            self._may_reload = True
        elif self._may_reload:
            # Once only: a firewalld that does not take the zone up would otherwise be reloaded for ever by its own signals.
            self._may_reload = False
            await self._call("reload")

    async def _known(self) -> bool:
        zones = await self._call("getZones", interface=f"{_NAME}.zone")
        policies = await self._call("getPolicies", interface=f"{_NAME}.policy")
        return ZONE in zones and POLICY in policies

    async def _ensure(self, kind: str, add: str, name: str, settings: dict[str, Any]) -> None:
        if name not in await self._call(f"get{kind}Names", path=_CONFIG_PATH, interface=f"{_NAME}.config"):
            await self._call(add, "sa{sv}", name, settings, path=_CONFIG_PATH, interface=f"{_NAME}.config")

    async def _remove(self, kind: str, name: str) -> None:
        if name in await self._call(f"get{kind}Names", path=_CONFIG_PATH, interface=f"{_NAME}.config"):
            path = await self._call(f"get{kind}ByName", "s", name, path=_CONFIG_PATH, interface=f"{_NAME}.config")
            await self._call("remove", path=path, interface=f"{_NAME}.config.{kind.lower()}")

    async def _set_interfaces(self, wanted: list[str]) -> None:
        zones = await self._call("getZones", interface=f"{_NAME}.zone")
        if ZONE not in zones and not wanted:
            return
        present = await self._call("getInterfaces", "s", ZONE, interface=f"{_NAME}.zone")
        for name in wanted:
            if name not in present:
                # Unlike addInterface this also moves a bridge that something else has put into another zone.
                await self._call("changeZoneOfInterface", "ss", ZONE, name, interface=f"{_NAME}.zone")
        for name in present:
            if name not in wanted:
                await self._call("removeInterface", "ss", ZONE, name, interface=f"{_NAME}.zone")


async def _gone(bus: MessageBus) -> None:
    with contextlib.suppress(OSError, EOFError):
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


def _in_our_namespace(pid: int) -> bool:
    try:
        return os.path.samefile(f"/proc/{pid}/ns/net", "/proc/thread-self/ns/net")
    except OSError:
        return False  # it has ended, or it isn't ours to look at
