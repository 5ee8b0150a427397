"""bandwidth: limits what an attachment receives (ingress) and sends (egress), in bits a second (reference: plugins/meta/bandwidth).

Unlike the reference's, its CHECK looks at the queues that the kernel has. The limit is that of the whole interface: `shapedSubnets` and
`unshapedSubnets` are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct, field

from atoll.frontends.cni.attachments import require
from atoll.frontends.cni.chained import each_stale, fail, previous
from atoll.frontends.cni.refusal import BAD_CONFIG, Refusal

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.frontends.cni.results import Result
    from atoll.frontends.cni.words import Request
    from atoll.model import Endpoint, Network

_Number = Annotated[int, Meta(ge=0, le=2**64 - 1)]
_MOST_BURST: Final = (1 << 32) * 8


class _Limits(Struct, frozen=True):
    ingress_rate: _Number = field(name="ingressRate", default=0)
    ingress_burst: _Number = field(name="ingressBurst", default=0)
    egress_rate: _Number = field(name="egressRate", default=0)
    egress_burst: _Number = field(name="egressBurst", default=0)
    shaped: tuple[str, ...] = field(name="shapedSubnets", default=())
    unshaped: tuple[str, ...] = field(name="unshapedSubnets", default=())


class _Runtime(Struct, frozen=True):
    bandwidth: _Limits = _Limits()


class _Configuration(_Limits, frozen=True):
    runtime: _Runtime = field(name="runtimeConfig", default=_Runtime())
