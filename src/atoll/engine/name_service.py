"""The engine's hold on the name server: a process of its own that answers on the gateways, and is told of every change.

It is a convenience to networks, so it never makes a verb fail: what it can't do is a problem that `problems` names. When it has died it
is started anew with all that it must know, by whoever notices first: the daemon, which watches `pid`, or the next verb.
"""

from __future__ import annotations

import contextlib
import select
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from atoll.dns.zone import NamespaceServers, Update
from atoll.engine import names
from atoll.errors import AtollError

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.dns.child import NameServer
    from atoll.dns.zone import EndpointNames, NetworkNames
    from atoll.engine.state import State
    from atoll.kernel.host import Host
    from atoll.model import Endpoint, Namespace, Network

#: Deaths that are forgiven at once, and how long (seconds) they count; then it is left dead for longer and longer.
_FORGIVEN: Final = 5
_REMEMBERED: Final = 60.0
_LONGEST: Final = 30.0


class NameService:
    """Changes gather until `push`, which sends them; `wait` returns when they are known. All on the engine's thread."""

    def __init__(self, host: Host, state: State, emit: Callable[..., None], *, enabled: bool) -> None:
        self._host, self._state, self._emit, self._enabled = host, state, emit, enabled
        self._server: NameServer | None = None
        self._serial = 0
        self._unanswered: list[int] = []
        self._starts: list[float] = []
        #: It was started before, and that it is back has yet to be said.
        self._was_started = self._again = False
        self._clear()
        #: What is wrong with it now.
        self.problems: tuple[str, ...] = ()

    def _clear(self) -> None:
        self._networks: dict[str, NetworkNames | None] = {}
        self._endpoints: dict[str, EndpointNames | None] = {}
        self._servers: dict[str, NamespaceServers] = {}

    # --- what has changed ---

    def put_network(self, network: Network) -> None:
        if network.resolvers():
            self._networks[network.id] = names.network_names(network)

    def drop_network(self, network: Network) -> None:
        if network.resolvers():
            self._networks[network.id] = None

    def put_endpoint(self, network: Network, endpoint: Endpoint) -> None:
        if network.resolvers():
            self._endpoints[endpoint.id] = names.endpoint_names(endpoint)

    def drop_endpoint(self, network: Network, endpoint: Endpoint) -> None:
        if network.resolvers():
            self._endpoints[endpoint.id] = None

    def put_namespace(self, namespace: Namespace) -> None:
        if namespace.servers or namespace.resolver:
            self._servers[namespace.name] = names.namespace_servers(namespace)

    def drop_namespace(self, namespace: Namespace) -> None:
        if namespace.servers or namespace.resolver:
            self._servers[namespace.name] = NamespaceServers(namespace.name)

    # --- telling it ---

    def push(self) -> None:
        """Send what has changed. The first time, and after a death, that is everything."""
        if not self._enabled:
            self._clear()
        if not (self._networks or self._endpoints or self._servers):
            return
        if None in self._networks.values() and not self._is_needed():
            self.close()
            return
        if self._server is None or self._is_dead(self._server):
            self._start()
            return
        update = Update(
            serial=self._next(),
            networks=tuple(item for item in self._networks.values() if item),
            gone_networks=tuple(key for key, item in self._networks.items() if not item),
            endpoints=tuple(item for item in self._endpoints.values() if item),
            gone_endpoints=tuple(key for key, item in self._endpoints.items() if not item),
            namespaces=tuple(self._servers.values()),
        )
        self._clear()
        self._send(update)

    def wait(self) -> None:
        """Until everything that was sent is known; when it dies meanwhile, until another one knows it."""
        if not self._answered():
            self._start()
            self._answered()

    def _answered(self) -> bool:
        due, self._unanswered = self._unanswered, []
        server = self._server
        if server is None:
            return True
        try:
            for serial in due:
                self.problems = tuple(server.wait(serial))
        except AtollError as error:
            self._lose(error)
            return False
        if due and self._again:
            self._again = False
            self._emit("dns.restart", pid=self.pid)
        return True

    def tell(self) -> None:
        self.push()
        self.wait()

    def reset(self) -> None:
        """Tell it everything anew: at the start, and to have it try again what it couldn't do."""
        if not self._enabled:
            return
        if self._server is None or self._is_dead(self._server):
            self._start()
        else:
            self._clear()
            self._send(names.whole(self._state, self._next()))

    def faults(self) -> tuple[str, ...]:
        """What is wrong now. It tries again by itself what it couldn't do, so it is asked."""
        if self.problems and self._server is not None:
            self._send(Update(serial=self._next()))
            self.wait()
        return self.problems

    def heal(self) -> bool:
        """Start it anew if it has died and may be started by now; whether it is as it should be."""
        if not self._enabled or not self._was_started:
            return True
        if self._server is None or self._is_dead(self._server):
            self._start()
            self.wait()
        return self._server is not None

    # --- the process ---

    @property
    def pid(self) -> int:
        """The process, 0 when there is none."""
        server = self._server  # the daemon's loop asks as well
        return server.pid if server is not None else 0

    def stats(self) -> dict[str, Any]:
        if self._server is None:
            return {}
        try:
            return dict(self._server.stats())
        except AtollError as error:
            self._lose(error)
            return {}

    def close(self) -> None:
        """End it, as at the beginning."""
        self._bury()
        self._clear()
        self._starts.clear()
        self._was_started = False
        self.problems = ()

    def _start(self) -> None:
        """Start it with everything, if a network has names at all and it hasn't died too often of late."""
        self._bury()
        self._clear()
        if not self._is_needed():
            return
        now = time.monotonic()
        self._starts = [start for start in self._starts if now - start < _REMEMBERED]
        excess = len(self._starts) - _FORGIVEN
        if excess >= 0 and now - self._starts[-1] < min(2.0**excess, _LONGEST):
            self.problems = (f"names are not served: the name server has died {len(self._starts)} times within a minute",)
            return
        from atoll.dns.child import NameServer

        self._again, self._was_started = self._was_started, True
        self._starts.append(now)
        try:
            self._server = self._host.run(NameServer)
        except (AtollError, OSError) as error:
            self.problems = (f"names are not served: {error}",)
            return
        self._send(names.whole(self._state, self._next()))

    def _is_needed(self) -> bool:
        return any(network.resolvers() for network in self._state.networks.values())

    def _send(self, update: Update) -> None:
        if self._server is None:
            return
        try:
            self._server.send(update)
        except AtollError as error:
            self._lose(error)
        else:
            self._unanswered.append(update.serial)

    def _lose(self, error: AtollError) -> None:
        """It doesn't answer. What has died is started anew by the next one to look."""
        if self._server is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._server.pidfd, signal.SIGKILL)
        self._bury()
        self.problems = (f"names are not served: {error.what}",)

    def _bury(self) -> None:
        self._unanswered = []
        if self._server is not None:
            with contextlib.suppress(AtollError, OSError):
                self._server.close()
            self._server = None

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    @staticmethod
    def _is_dead(server: NameServer) -> bool:
        poll = select.poll()
        poll.register(server.pidfd, select.POLLIN)
        return bool(poll.poll(0))
