"""Where Podman looks for its helpers, netavark among them: who is used, and who would be without us. Reads files, and changes nothing."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from atoll.frontends import forwarder
from atoll.frontends.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Podman's own (containers.conf(5)).
DEFAULT_FOLDERS: Final = ("/usr/local/libexec/podman", "/usr/local/lib/podman", "/usr/libexec/podman", "/usr/lib/podman")
DEFAULT_PLUGIN_FOLDERS: Final = ("/usr/local/libexec/netavark", "/usr/libexec/netavark", "/usr/local/lib/netavark", "/usr/lib/netavark")
#: The distribution's, and the administrator's.
DISTRIBUTED: Final = "/usr/share/containers/containers.conf"
CONFIGURATION: Final = "/etc/containers/containers.conf"
_MOST_BYTES: Final = 1 << 20
#: Where we say that we come first.
DROP_IN: Final = f"{CONFIGURATION}.d/atoll.conf"


def original(program: str) -> str:
    """The path of the netavark that `program`, the forwarder that was called, stands before; "" when there is none."""
    ours = os.path.dirname(program)
    for folder in folders(without=DROP_IN):
        path = os.path.join(folder, "netavark")
        if folder != ours and os.access(path, os.X_OK) and not forwarder.is_ours(path):
            return path
    return forwarder.replaced(program)


def folders(*, without: str = "") -> list[str]:
    """Where Podman looks for its helpers: the last word of its configuration. `without` is a file to leave out."""
    return _configured("engine", "helper_binaries_dir", DEFAULT_FOLDERS, without)


def plugin_folders(*, without: str = "") -> list[str]:
    """Where Podman and netavark look for drivers of networks."""
    return _configured("network", "netavark_plugin_dirs", DEFAULT_PLUGIN_FOLDERS, without)


def _configured(section: str, key: str, default: Iterable[str], without: str) -> list[str]:
    found = list(default)
    for path in _files():
        if str(path) != without:
            found = _read(path, section, key, found)
    return found


def _files() -> list[Path]:
    """The configuration of the whole system, in the order in which Podman 4 and 5 read it; the last one counts."""
    drop_ins = sorted(path for path in _listed(Path(f"{CONFIGURATION}.d")) if path.name.endswith(".conf") and not path.is_dir())
    return [Path(DISTRIBUTED), Path(CONFIGURATION), *drop_ins]


def _read(path: Path, section: str, key: str, before: Iterable[str]) -> list[str]:
    """The folders after this file has been read. A list replaces the one before it, but with `{append=true}` (Podman 5)."""
    try:
        value = tomllib.loads(read_file(str(path), _MOST_BYTES).decode()).get(section, {}).get(key)
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
