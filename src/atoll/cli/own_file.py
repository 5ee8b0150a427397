"""Files of configuration that Atoll writes for others to read: whole files of its own, known by their first line."""

from __future__ import annotations

import contextlib
import os

from atoll.errors import AtollError, Conflict, Denied, Failed


def is_there(path: str, head: str, command: str) -> bool:
    """Whether the file is there. Raises `Conflict` when somebody else wrote it: ours begins with `head`, and `command` writes it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            if not file.read().startswith(head):
                raise Conflict(f"{path} isn't from {command}", "move it away first")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise refused(f"reading {path}", error) from None
    return True


def write(path: str, text: str) -> None:
    """Make the file say this, whole at any moment."""
    fresh = f"{path}.atoll-new"
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(fresh, path)
    except OSError as error:
        raise refused(f"writing {path}", error) from None


def remove(path: str) -> None:
    """Nothing there is success."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise refused(f"removing {path}", error) from None


def refused(doing: str, error: OSError) -> AtollError:
    if isinstance(error, PermissionError):
        return Denied(f"{doing}: {error.strerror}", "run as root")
    return Failed(f"{doing}: {error.strerror}", errno=error.errno or 0)
