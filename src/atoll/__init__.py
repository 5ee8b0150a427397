"""Atoll: container networks for Linux."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["AtollError", "Engine", "__version__"]

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.errors import AtollError


def __getattr__(name: str) -> object:
    """`import atoll` costs nothing; a name brings in what it needs."""
    if name == "Engine":
        from atoll.engine import Engine

        return Engine
    if name == "AtollError":
        from atoll.errors import AtollError

        return AtollError
    raise AttributeError(f"module 'atoll' has no attribute {name!r}")
