"""What tests of packets share: the host's surroundings, and traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.cni_door import runtime
from tests.support import FACING, OUTSIDE, Traffic, cidr, lenient, outside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from atoll import Engine
    from atoll.lab.machine import Machine
    from tests.clients.cni_runtime import Runtime


@pytest.fixture
def world(engine: Engine) -> Iterator[Machine]:
    """A machine outside of the host, which sends everything by the host."""
    lenient()
    with outside("outside", "wan0", cidr(FACING), cidr(OUTSIDE)) as machine:
        yield machine


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    with Traffic() as made:
        yield made


@pytest.fixture
def cni(engine: Engine, tmp_path: Path) -> Runtime:
    """A CNI runtime whose plugins are those of the engine."""
    return runtime(engine, tmp_path)
