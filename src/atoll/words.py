"""Words that the model and the command line share; in a module of their own because the command line does without the model, which
takes longer to load than a short command to run."""

from __future__ import annotations

from typing import Final, Literal

RouteKind = Literal["unicast", "blackhole", "unreachable", "prohibit"]

ROUTE_KINDS: Final[tuple[RouteKind, ...]] = ("unicast", "blackhole", "unreachable", "prohibit")
#: What runs containers on the same host: the beginnings of `Namespace.source` and `Endpoint.owner`, before a colon.
CLIENTS: Final = ("docker", "podman", "cni")
