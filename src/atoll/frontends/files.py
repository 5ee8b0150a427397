"""Reading files that callers and clients name."""

from __future__ import annotations

import errno
import os
import stat


def read_file(path: str, most: int, *, follow: bool = True) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises OSError for any other, also for a path that can be none.

    Never waits, as opening a FIFO would; without `follow` no link is followed in the path's last part.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), path) from None
    with os.fdopen(fd, "rb") as file:
        about = os.fstat(fd)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", path)
        # A file of /proc says that it is empty, and others may grow.
        if about.st_size > most or len(content := file.read(most + 1)) > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return content
