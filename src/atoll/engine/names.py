"""What the model means as names: what the name server is told, and a namespace's resolv.conf and hosts. Pure."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from atoll.dns.zone import DOMAIN, EndpointNames, NamespaceServers, NetworkNames, Update
from atoll.model import MAX_SERVERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from atoll.engine.state import State
    from atoll.model import Endpoint, Namespace, Network, PublishedPort

#: Of an endpoint's published ports so many have SRV records: nobody asks for one of a range of thousands by name.
MOST_SERVICES: Final = 256
#: What resolvers take of a search list (resolv.conf(5): glibc before 2.26, and musl's 256 bytes).
_MOST_DOMAINS: Final = 6
_MOST_SEARCH: Final = 250


# --- for the name server -------------------------------------------------------------------------------------------------------------


def network_names(network: Network) -> NetworkNames:
    return NetworkNames(
        id=network.id,
        name=network.name,
        listen=network.resolvers(),
        subnets=tuple(subnet.subnet for subnet in network.subnets),
        internal=network.internal,
        servers=network.servers,
        domains=network.domains,
    )


def endpoint_names(endpoint: Endpoint) -> EndpointNames:
    return EndpointNames(
        id=endpoint.id,
        network=endpoint.network,
        namespace=endpoint.namespace,
        names=tuple(dict.fromkeys((endpoint.namespace, *endpoint.aliases))),
        addresses=tuple(text.partition("/")[0] for text in endpoint.addresses),
        services=services(endpoint.ports),
    )


def namespace_servers(namespace: Namespace) -> NamespaceServers:
    return NamespaceServers(namespace.name, namespace.servers, namespace.resolver if namespace.path else "", namespace.path)


def services(ports: Iterable[PublishedPort]) -> tuple[tuple[int, str], ...]:
    """The inner ports that are published, each once."""
    each = ((port.port + offset, str(port.protocol)) for port in ports for offset in range(min(port.count, MOST_SERVICES)))
    return tuple(dict.fromkeys(itertools.islice(each, MOST_SERVICES)))


def whole(state: State, serial: int) -> Update:
    """All that is to be known, in one update that forgets what was known before."""
    networks = [network for network in state.networks.values() if network.state == "ready" and network.resolvers()]
    ends = [end for network in networks for end in state.endpoints_on(network) if end.state == "ready"]
    return Update(
        serial=serial,
        reset=True,
        networks=tuple(map(network_names, networks)),
        endpoints=tuple(map(endpoint_names, ends)),
        namespaces=tuple(map(namespace_servers, (n for n in state.namespaces.values() if n.servers or n.resolver))),
    )


# --- a namespace's files -------------------------------------------------------------------------------------------------------------


def by_gateway(attached: Iterable[tuple[Network, Endpoint]]) -> list[tuple[Network, Endpoint]]:
    """A namespace's endpoints, that of its default route first."""
    return sorted(attached, key=lambda pair: (-pair[1].gateway_priority, pair[0].internal, pair[1].created, pair[1].number))


def resolv_conf(namespace: Namespace, attached: Iterable[tuple[Network, Endpoint]], host: str) -> str:
    """The gateways of its networks with DNS, or else its own servers, or else a copy of the host's (`host`): processes that run before
    their namespace is on any network must see what comes later in the same file.

    `ndots:0` has glibc, musl and Go ask for a short name as it is first, and the gateway knows it on every network of the namespace: one
    question (of each family) for NAME, NAME.NETWORK and a name outside alike. With the default of 1, NAME would be looked for in one
    network after the other. The search list is for resolvers that never send a short name as it is (systemd-resolved).
    """
    able = list({network.id: network for network, _ in by_gateway(attached) if network.resolvers()}.values())
    servers: Sequence[str] = [address for network in able for address in network.resolvers()] or namespace.servers
    head = f"# Written by Atoll for the namespace {namespace.name}, and again when its networks change.\n"
    if not servers:
        return host
    lines = [f"nameserver {address}" for address in servers[:MAX_SERVERS]]
    if able:
        lines += [f"search {' '.join(_search(able))}", "options ndots:0"]
    return head + "".join(f"{line}\n" for line in lines)


def _search(networks: Sequence[Network]) -> list[str]:
    domains = [f"{network.name}.{DOMAIN}" for network in networks[:_MOST_DOMAINS]]
    while len(" ".join(domains)) > _MOST_SEARCH:
        domains.pop()
    return domains


def hosts(namespace: Namespace, attached: Iterable[tuple[Network, Endpoint]], host: str) -> str:
    """The namespace's own name at its own addresses, then what the host has (`host`): the machine's own name is in there, which its
    programs go by inside as well."""
    lines = [f"# Written by Atoll for the namespace {namespace.name}, and again when its networks change."]
    for network, endpoint in by_gateway(attached):
        lines += [f"{text.partition('/')[0]}\t{namespace.name}.{network.name}.{DOMAIN} {namespace.name}" for text in endpoint.addresses]
    if "localhost" not in host.split():
        lines += ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    return "".join(f"{line}\n" for line in lines) + host
