"""The `ports:` of a service, in Compose's short and long form, as specs that can be published."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from atoll.checks import parse_publish
from atoll.model import PortChoice
from atoll.topology import keys
from atoll.topology.source import Map, as_list, as_map, as_number, as_text, at, check_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from atoll.topology.source import Mark, Node


def ports(node: Node, unused: Callable[[str], None]) -> list[tuple[str, Mark]]:
    """Each port with its place in the file. A range is one spec. One without a port of the host is for neighbours, who reach it anyway:
    Docker would choose a host port that nobody knows beforehand, so it is named among what isn't used."""
    found: list[tuple[str, Mark]] = []
    for item in as_list(node, "ports"):
        text = _long(item, unused) if isinstance(item, Map) else _short(item)
        if not text:
            unused("ports without a port of the host")
            continue
        with at(item.mark):
            port = parse_publish(text)
        if isinstance(port, PortChoice):
            raise item.mark.error(f"{port} leaves the port of the host open", "name one, so that it is the same each time")
        spec = str(port)
        if any(spec == other for other, _ in found):
            raise item.mark.error(f"{spec} is published twice", "write it once")
        found.append((spec, item.mark))
    return found


def _short(node: Node) -> str:
    text = as_text(node, "a port")
    if re.fullmatch(r"[0-9]+(-[0-9]+)?(/[a-z]+)?", text) or re.search(r"::[0-9]+(-[0-9]+)?(/[a-z]+)?\Z", text):
        return ""
    return text


def _long(node: Node, unused: Callable[[str], None]) -> str:
    found = as_map(node, "a port")
    check_keys(found, (*keys.PORT, *keys.PORT_UNUSED), "a port")
    for key in keys.PORT_UNUSED:
        if key in found.entries:
            unused(f"ports.{key}")
    if "target" not in found.entries:
        raise node.mark.error("a port has no target", "expected target: PORT")
    target = as_number(found.entries["target"], "target", 1, 65535)
    if "published" not in found.entries:
        return ""
    host = as_text(found.entries["host_ip"], "host_ip") if "host_ip" in found.entries else ""
    protocol = as_text(found.entries["protocol"], "protocol") if "protocol" in found.entries else "tcp"
    prefix = f"[{host}]:" if ":" in host else f"{host}:" if host else ""
    return f"{prefix}{as_text(found.entries['published'], 'published')}:{target}/{protocol}"
