"""A printed plan is the plan: its commands, run by bash with the real tools on an empty host, make what our own execution makes.

Every scenario runs on two hosts at once. On one the engine does each step, on the other bash runs what the step's plan printed before;
after each step both kernels must hold the same. Before that the plan must have changed nothing.
"""

from __future__ import annotations

import random
import secrets
import time
from typing import TYPE_CHECKING, Any

import pytest

from atoll.engine import Engine
from tests.kernel.kernel_state import OtherHost, Shell, differences, raw, values

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTLED = 5.0  # seconds; carrier changes travel through a work queue of the kernel


class Twins:
    """The engine's host and the one where bash does the same."""

    def __init__(self, engine: Engine, other: OtherHost, draws: random.Random) -> None:
        self.engine = engine
        self.here = Shell()
        self.other = other
        self._draws = draws

    def both(self, script: str) -> None:
        """Something that is not ours, on both hosts."""
        self.here.run(script)
        self.other.run(script)

    def do(self, verb: str, *names: str, **options: Any) -> Any:
        """One step: the plan, which changes nothing, then the same by the engine and by bash, then the comparison."""
        drawn = self._draws.getstate()
        before = raw(self.here), _record(self.engine)
        commands = getattr(self.engine, f"plan_{verb}")(*names, **options).commands()
        assert (raw(self.here), _record(self.engine)) == before
        # Ids and MAC addresses are random: the step draws again what its plan drew.
        self._draws.setstate(drawn)
        made = getattr(self.engine, verb)(*names, **options)
        self.engine.settle()
        self.other.run("\n".join(commands))
        self.compare(commands)
        return made

    def compare(self, commands: list[str]) -> None:
        deadline = time.monotonic() + SETTLED
        while found := differences(values(raw(self.here)), values(raw(self.other))):
            assert time.monotonic() < deadline, "\n".join(["first our execution, then the commands differ:", found, "", *commands])


def _record(engine: Engine) -> list[object]:
    """All that the engine keeps: its store, and in memory the state of each address pool."""
    pools = [(pool.subnet, pool.cursor, list(pool.holders()), pool._last_freed) for n in engine.state.networks.values() for pool in engine.state.pools(n)]
    return [*engine.store._db.iterdump(), *pools]


@pytest.fixture
def twins(host: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Twins]:
    draws = random.Random(1)
    monkeypatch.setattr(secrets, "token_bytes", draws.randbytes)
    monkeypatch.setattr(secrets, "token_hex", lambda size: draws.randbytes(size).hex())
    monkeypatch.setattr(secrets, "randbits", draws.getrandbits)
    with OtherHost() as other, Engine.open() as engine:
        yield Twins(engine, other, draws)


def test_the_first_network_brings_the_whole_ruleset(twins: Twins) -> None:
    twins.do("create_network", "net")
    twins.do("create_namespace", "r1")
    twins.do("connect", "net", "r1", publish=["8080:80"])
    twins.do("disconnect", "net", "r1")
    twins.do("remove_namespace", "r1")
    twins.do("remove_network", "net")
