"""The engine: the verbs. `core.Engine` is the main path; the other modules are its parts."""

from atoll.engine.core import Engine

__all__ = ["Engine"]
