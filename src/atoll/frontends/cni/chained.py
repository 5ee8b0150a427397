"""What the plugins have in common that come after the one that made the interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.errors import AtollError
from atoll.frontends.cni.refusal import BAD_CONFIG, IO_FAILURE, Refusal
from atoll.frontends.cni.words import attachment_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.engine import Engine
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request
    from atoll.model import Endpoint, Network


def previous(request: Request) -> Result:
    """The result of the plugins before. Raises `Refusal` where there were none."""
    if request.previous is None:
        what = f"{request.plugin} must be called as chained plugin"
        raise Refusal(BAD_CONFIG, what, "put it after the plugin that makes the interface: prevResult is missing")
    return request.previous


def each_stale(engine: Engine, request: Request, undo: Callable[[Network, Endpoint], object]) -> None:
    """GC: undo what was done to the network's attachments that aren't valid any more, whatever fails; the failures are said at the end."""
    errors: list[str] = []
    for endpoint in engine.state.owned_by("cni:"):
        network = engine.state.networks.get(endpoint.network)
        if network is None or network.name != request.network or attachment_of(endpoint.owner) in request.valid:
            continue
        try:
            undo(network, endpoint)
        except AtollError as error:
            errors.append(str(error))
    if errors:
        what = f"{request.plugin}: {len(errors)} stale attachments of {request.network} still have what it gave them"
        raise Refusal(IO_FAILURE, what, "; ".join(errors)[:1000])


def fail(faults: list[str]) -> None:
    """CHECK: raises `Refusal` if there is a fault."""
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise Refusal(IO_FAILURE, f"{faults[0]}{more}", "`atoll doctor --fix` puts back what is missing")
