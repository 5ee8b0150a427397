"""Attachments as the engine knows them: the endpoint of a container's interface on a network, and the namespace that it is in."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field

from atoll.errors import AtollError, Conflict, NotFound
from atoll.frontends.cni.refusal import IO_FAILURE, Refusal, Unknown, convert
from atoll.frontends.cni.words import attachment_of
from atoll.kernel import netns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.engine import Engine
    from atoll.frontends.cni.words import Request
    from atoll.model import Endpoint, Namespace, Network

#: skel's code for a namespace that is the plugin's own: the host's.
_HOSTS_OWN: Final = 8
_HEX_ID: Final = re.compile(r"[0-9a-f]{64}\Z")
#: Under which a namespace's labels say what Kubernetes told of it, as its own runtimes do.
_POD_LABELS: Final = {
    "K8S_POD_NAME": "io.kubernetes.pod.name",
    "K8S_POD_NAMESPACE": "io.kubernetes.pod.namespace",
    "K8S_POD_UID": "io.kubernetes.pod.uid",
}


class _Label(Struct, frozen=True):
    key: str = ""
    value: str = ""


class _Cni(Struct, frozen=True):
    labels: tuple[_Label, ...] = ()


class _Args(Struct, frozen=True):
    cni: _Cni = _Cni()


class _Labelled(Struct, frozen=True):
    args: _Args = field(default=_Args())


# --- what is there -------------------------------------------------------------------------------------------------------------------


def network_named(engine: Engine, name: str) -> Network | None:
    """The network of exactly that name. An id's beginning, which serves people, must not make a stranger's network ours."""
    try:
        found = engine.state.network(name)
    except (NotFound, Conflict):
        return None
    return found if found.name == name else None


def find(engine: Engine, request: Request) -> tuple[Network, Endpoint] | None:
    """The network and endpoint of an attachment; None when there is none."""
    for endpoint in engine.state.owned(request.owner):
        network = engine.state.networks.get(endpoint.network)
        if network is not None and network.name == request.network:
            return network, endpoint
    return None


def require(engine: Engine, request: Request) -> tuple[Network, Endpoint]:
    """The same. Raises `Unknown`."""
    found = find(engine, request)
    if found is None:
        container, interface = request.environment.container, request.environment.interface
        raise Unknown(f"container {container[:80]} has no interface {interface} on network {request.network[:80]}")
    return found


# --- namespaces ----------------------------------------------------------------------------------------------------------------------


def _namespace(engine: Engine, request: Request, *, servers: tuple[str, ...] = ()) -> tuple[Namespace, bool]:
    """The container's namespace under our care, and whether it came there only now (then it goes with its last attachment)."""
    path = request.environment.netns
    known = engine.namespace_at(path)
    if known is not None:
        return known, False
    labels = _labels(request)
    name = _name(engine, request)
    return engine.adopt_namespace(name, path=path, follow=True, source=_source(request), labels=labels, servers=servers), True


def _source(request: Request) -> str:
    return f"cni:{request.environment.container[:200]}"


def open_netns(engine: Engine, request: Request) -> int:
    """The namespace behind CNI_NETNS, as a descriptor. Raises `Refusal` for the host's own, and `NotFound` where nothing is."""
    path = request.environment.netns
    fd = netns.open_path(path)
    if netns.identity(fd) == engine.host.identity:
        os.close(fd)
        raise Refusal(_HOSTS_OWN, f"CNI_NETNS {path[:200]} is the host's own network namespace", "a container needs one of its own")
    return fd


def _labels(request: Request) -> dict[str, str]:
    arguments = request.environment.arguments
    found = {label: arguments[word] for word, label in _POD_LABELS.items() if arguments.get(word)}
    return found | {label.key: label.value for label in convert(_Labelled, request.configuration).args.cni.labels}


def _name(engine: Engine, request: Request) -> str:
    """The pod's name, else the container's id (of 64 hex digits the first twelve, as everybody shows it), with a number if it is taken."""
    wanted = request.environment.arguments.get("K8S_POD_NAME") or request.environment.container
    wanted = wanted[:12] if _HEX_ID.match(wanted) else wanted
    its_own = request.environment.netns == str(engine.host.namespace_path(wanted)) and len(wanted) <= 63
    return wanted if its_own and wanted not in engine.state.namespaces else engine.free_name(wanted)


# --- making and taking away ----------------------------------------------------------------------------------------------------------


def attach(engine: Engine, request: Request, network: Network, *, servers: tuple[str, ...] = (), **options: Any) -> Endpoint:
    """Connect the container to a network; `options` are those of `connect`. Leaves nothing behind when it fails."""
    os.close(open_netns(engine, request))
    for stale in engine.state.owned(request.owner):
        # Of an earlier container of that id, whose runtime never said that it ended: what is at the path now is another one.
        if engine.namespace_at(request.environment.netns) != engine.state.namespace(stale.namespace):
            detach(engine, engine.state.network(stale.network), stale)
    namespace, adopted = _namespace(engine, request, servers=servers)
    try:
        return engine.connect(network.id, namespace.name, interface=request.environment.interface, owner=request.owner, **options)
    except BaseException:
        if adopted:
            engine.remove_namespace(namespace.name)
        raise


def detach(engine: Engine, network: Network, endpoint: Endpoint, *, ending: bool = False) -> None:
    """Disconnect an attachment; a namespace that was adopted for attachments is let go with the last one. `ending`: it has ended, so that
    nobody looks for the interface in there any more."""
    namespace = engine.state.namespaces.get(endpoint.namespace)
    if namespace is not None and namespace.source.startswith("cni:") and engine.state.endpoints_of(namespace.name) == [endpoint]:
        # A program of `atoll run` in it keeps it under our care.
        with contextlib.suppress(Conflict):
            engine.remove_namespace(namespace.name, ending=ending)
            return
    engine.disconnect(network.id, endpoint.namespace, interface=endpoint.interface)


def let_go(engine: Engine, request: Request) -> None:
    """Of the namespace that an ADD has adopted which was killed before it had connected it."""
    namespace = engine.namespace_at(request.environment.netns)
    if namespace is not None and namespace.source == _source(request) and not engine.state.endpoints_of(namespace.name):
        with contextlib.suppress(Conflict):  # as above
            engine.remove_namespace(namespace.name)


@contextlib.contextmanager
def kept_if_whole(engine: Engine, network: Network, endpoint: Endpoint) -> Iterator[None]:
    """Detach the attachment when what is done to it in the block fails."""
    try:
        yield
    except BaseException:
        detach(engine, network, endpoint)
        raise


def collect(engine: Engine, request: Request) -> None:
    """GC: take away every attachment of the network that isn't valid, whatever fails; the failures are said at the end."""
    errors: list[str] = []
    for endpoint in list(engine.state.owned_by("cni:")):
        network = engine.state.networks.get(endpoint.network)
        if network is None or network.name != request.network or attachment_of(endpoint.owner) in request.valid:
            continue
        try:
            detach(engine, network, endpoint)
        except AtollError as error:
            errors.append(str(error))
    if errors:
        raise Refusal(
            IO_FAILURE, f"{len(errors)} stale attachments of {request.network} were not taken away whole", "; ".join(errors)[:1000]
        )
