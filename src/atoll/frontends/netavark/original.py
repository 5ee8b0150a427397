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
