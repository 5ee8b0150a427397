"""Labs: hosts, wires, networks and namespaces on one machine, for tests, demos and teaching. `Lab` is where to begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.lab.checks import Inconclusive, assert_blocked, assert_reachable
    from atoll.lab.lab import Lab

__all__ = ["Inconclusive", "Lab", "assert_blocked", "assert_reachable"]


def __getattr__(name: str) -> Any:
    """Loaded when first asked for: the command line imports this package for less."""
    if name == "Lab":
        from atoll.lab.lab import Lab

        return Lab
    if name in __all__:
        from atoll.lab import checks

        return getattr(checks, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
