"""The files that stand in for /etc/resolv.conf and /etc/hosts inside namespaces.

They are in a folder NAME of a folder of ours, written in place because running processes have them mounted, and found by `ip netns exec`
through a link /etc/netns/NAME. A user's own /etc/netns/NAME is never touched. Nothing is followed that could lead elsewhere.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from atoll import faults
from atoll.kernel import netns

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

NAMES: Final = ("resolv.conf", "hosts")
ETC_NETNS: Final = Path("/etc/netns")
#: A file that says that the folder of links is ours as well; no namespace can have this name.
_MADE: Final = ".links"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Files:
    """`folder` is ours alone; `links` is where links to its folders are kept, None for nowhere."""

    def __init__(self, folder: Path, links: Path | None = None) -> None:
        self.folder, self._links = folder, links

    def of(self, name: str) -> dict[str, str]:
        """A namespace's files, by what they stand in for."""
        return {f"/etc/{file}": str(self.folder / name / file) for file in NAMES}

    def write(self, name: str, contents: Mapping[str, str]) -> None:
        """Make a namespace's files say this. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        with contextlib.suppress(FileExistsError):
            (self.folder / name).mkdir(mode=0o755)
        faults.step()
        opened = os.open(self.folder / name, _FOLDER)
        try:
            for file, text in contents.items():
                _write(opened, file, text.encode())
                faults.step()
        finally:
            os.close(opened)
        self._link(name)

    def remove(self, name: str) -> None:
        """Take a namespace's files and link away. Nothing there is success."""
        self._unlink(name)
        faults.step()
        with contextlib.suppress(OSError):
            opened = os.open(self.folder / name, _FOLDER)
            try:
                for file in NAMES:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(file, dir_fd=opened)
                    faults.step()
            finally:
                os.close(opened)
            os.rmdir(self.folder / name)

    def rename(self, name: str, new: str) -> None:
        """Another name for a namespace's files, which stay the files that they are: processes have them mounted."""
        self._unlink(name)
        if name in _listed(self.folder):
            self.remove(new)
            with contextlib.suppress(OSError):
                os.rename(self.folder / name, self.folder / new)
        faults.step()
        if new in _listed(self.folder):
            self._link(new)

    def keep_only(self, names: Collection[str]) -> None:
        """Take away what earlier processes left of namespaces that aren't there any more."""
        there = _listed(self.folder)
        if self._links is not None:
            there |= {name for name in _listed(self._links) if self._is_our_link(name)}
        for name in there - {_MADE, *names}:
            self.remove(name)

    # --- links ---

    def _link(self, name: str) -> None:
        if self._links is None:
            return
        # PermissionError, or EROFS: then `ip netns exec` doesn't find them, and all else does.
        with contextlib.suppress(OSError):
            if not self._links.exists():
                (self.folder / _MADE).touch()
                self._links.mkdir(mode=0o755)
            os.symlink(self.folder / name, self._links / name)

    def _unlink(self, name: str) -> None:
        if self._links is not None and self._is_our_link(name):
            with contextlib.suppress(OSError):
                os.unlink(self._links / name)
                if (self.folder / _MADE).exists():
                    self._links.rmdir()
                    (self.folder / _MADE).unlink()

    def _is_our_link(self, name: str) -> bool:
        try:
            return self._links is not None and os.readlink(self._links / name) == str(self.folder / name)
        except OSError:
            return False


def _listed(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _write(folder: int, file: str, data: bytes) -> None:
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        if os.pread(fd, len(data) + 1, 0) != data:
            # In this order a reader never meets an empty file.
            os.pwrite(fd, data, 0)
            os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def links_of_the_machine() -> Path | None:
    """/etc/netns, where the namespaces' names are the machine's own. In a private host they aren't, but /etc is the machine's."""
    folder = netns.NETNS_DIR if netns.NETNS_DIR.exists() else netns.NETNS_DIR.parent
    try:
        here, there = os.stat(folder), os.stat(f"/proc/1/root{folder}")
    except OSError:
        return None
    return ETC_NETNS if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) else None
