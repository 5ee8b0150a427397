"""Whole topologies: a document or a value, what differs from it on a host, and how to make the host so."""

from atoll.topology.apply import EngineHost, Host, apply, carry_out
from atoll.topology.difference import Change, Current, difference
from atoll.topology.document import Parsed, find, folder_project, load, parse
from atoll.topology.keys import schema
from atoll.topology.value import PROJECT, SERVICE, Connection, Place, Program, Topology

__all__ = [
    "PROJECT",
    "SERVICE",
    "Change",
    "Connection",
    "Current",
    "EngineHost",
    "Host",
    "Parsed",
    "Place",
    "Program",
    "Topology",
    "apply",
    "carry_out",
    "difference",
    "find",
    "folder_project",
    "load",
    "parse",
    "schema",
]
