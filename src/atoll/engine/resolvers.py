"""The verb for namespaces that have a resolver of somebody else's inside, as Docker's containers do."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from msgspec import structs

from atoll.checks import check_servers
from atoll.engine.base import Base
from atoll.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from atoll.model import Namespace


class ResolverVerbs(Base):
    def set_resolver(self, namespace: str, resolver: str, *, servers: Sequence[str] = ()) -> Namespace:
        """Have our name server ask the one at `resolver` inside the namespace about what it doesn't know, and then `servers`.

        Empty: nobody inside. It takes effect when it is known which file leads to the namespace. The same again is success.
        """
        known = self.state.namespace(namespace)
        if resolver and not _is_loopback(resolver):
            raise Invalid(f"{resolver[:80]!r} is not an address inside a namespace", "expected one such as 127.0.0.11")
        made = structs.replace(known, resolver=resolver, servers=check_servers(servers))
        if made == known:
            return known
        with self.store.transaction():
            self.store.put(made)
        self.state.put_namespace(made)
        self.names.drop_namespace(known)
        self.names.put_namespace(made)
        self.names.tell()
        return made


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False
