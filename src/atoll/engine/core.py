"""The engine: every verb in one object. See `endpoints` for the main path."""

from __future__ import annotations

from atoll.engine.checking import CheckVerbs
from atoll.engine.holds import HoldVerbs
from atoll.engine.isolating import IsolationVerbs
from atoll.engine.reconcile import Reconcile
from atoll.engine.resolvers import ResolverVerbs
from atoll.engine.runs import RunVerbs
from atoll.engine.tuning import TuningVerbs


class Engine(ResolverVerbs, RunVerbs, HoldVerbs, TuningVerbs, CheckVerbs, IsolationVerbs, Reconcile):
    """Networks, namespaces and endpoints of one host.

        with Engine.open() as engine:
            engine.create_network("br0", subnets=["192.168.34.0/24"])
            engine.create_namespace("r1")
            engine.connect("br0", "r1", publish=["8080:80"])

    The verbs of the command line have `plan_` twins that return what they would do and change nothing. An engine belongs to one thread
    at a time.
    """
