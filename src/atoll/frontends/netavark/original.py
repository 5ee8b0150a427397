"""The netavark that stood at our place before: what Podman would use without us."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Podman's own (containers.conf(5), helper_binaries_dir).
DEFAULT_FOLDERS: Final = ("/usr/local/libexec/podman", "/usr/local/lib/podman", "/usr/libexec/podman", "/usr/lib/podman")
CONFIGURATION: Final = "/etc/containers/containers.conf"
#: Where we say that we come first.
DROP_IN: Final = f"{CONFIGURATION}.d/atoll.conf"


def original(program: str) -> str:
    """The path of the netavark that `program`, the forwarder that was called, stands before; "" when there is none."""
    from atoll.frontends import forwarder

    ours = os.path.dirname(program)
    for folder in folders():
        path = os.path.join(folder, "netavark")
        if folder != ours and os.access(path, os.X_OK) and not forwarder.is_ours(path):
            return path
    return forwarder.replaced(program)


def folders(root: str = "/") -> list[str]:
    """Where Podman looks for its helpers: the last word of its configuration, in the order in which it reads the files."""
    found = list(DEFAULT_FOLDERS)
    for path in files(root):
        found = configured(path, found)
    return found


def files(root: str = "/") -> list[Path]:
    """The configuration of the whole system, in the order in which Podman 4 and 5 read it; the last one counts."""
    etc = Path(root) / CONFIGURATION.lstrip("/")
    drop_ins = sorted(path for path in _listed(Path(f"{etc}.d")) if path.name.endswith(".conf") and not path.is_dir())
    return [Path(root) / "usr/share/containers/containers.conf", etc, *drop_ins]


def configured(path: Path, before: Iterable[str]) -> list[str]:
    """The folders after this file has been read. A list replaces the one before it, but with `{append=true}` (Podman 5)."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        value = table.get("engine", {}).get("helper_binaries_dir")
    except (OSError, ValueError, AttributeError):
        return list(before)
    if not isinstance(value, list):
        return list(before)
    texts = [item for item in value if isinstance(item, str)]
    appended = any(isinstance(item, dict) and item.get("append") for item in value)
    return [*before, *texts] if appended else texts


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
