"""Files that callers name: whatever is there is read within limits or refused, and nothing is waited for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from atoll.frontends.files import read_file

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_read_up_to_the_limit_and_none_beyond(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert read_file(str(path), 3) == b"abc"
    with pytest.raises(OSError, match="File too large"):
        read_file(str(path), 2)
    assert b"Name:" in read_file("/proc/self/status", 1 << 16)
    with pytest.raises(OSError, match="File too large"):
        read_file("/proc/self/status", 10)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in ((str(tmp_path / "fifo"), "Not a regular file"), ("/dev/zero", "Not a regular file"), ("/", "Is a directory")):
        with pytest.raises(OSError, match=words):
            read_file(path, 100)
    for path in ("a\0b", "\ud800"):
        with pytest.raises(OSError, match="22"):
            read_file(path, 100)


def test_links_are_followed_where_they_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_file(str(tmp_path / "link"), 3) == b"abc"
    with pytest.raises(OSError, match="symbolic links"):
        read_file(str(tmp_path / "link"), 3, follow=False)
