"""Putting the executed file of a front door in its place, and taking it away again: a static C program where a compiler is, else a script.

    place("/opt/cni/bin/bridge", "cni")     a foreign file there is kept in .atoll-replaced beside it
    remove("/opt/cni/bin/bridge")           ... and put back

Files of one folder and door are one file with several names. What is built is kept below the state folder, so that the next one needs no
compiler. The daemon's folders are baked in, as a runtime doesn't tell them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from atoll import paths
from atoll.errors import Denied, Failed, Invalid, NotFound
from atoll.frontends.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The folder, beside an executed file of ours, of what stood in its place before. The forwarder knows it, too.
REPLACED: Final = ".atoll-replaced"
DOORS: Final = ("cni", "netavark", "plugin")
_MARKER: Final = b"atoll forwarder of the door "
#: Ours are smaller; of a larger file nothing is read.
_MOST: Final = 4 << 20
_SOURCES: Final = Path(__file__).parent
#: The longest path of a Unix socket (unix(7)).
_SOCKET: Final = 107
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-")
#: With the C library inside it starts in half the time; where there is only the shared one, with that.
_COMPILE: Final = ("-std=c99", "-O2", "-s")
_LINKING: Final = (("-static",), ())


def place(path: str, door: str, otherwise: str = "") -> str:
    """Put a forwarder of `door` at `path`; the kind that it is ("c" or "python"). One of ours that is there is made anew.

    `otherwise` is the program for users who may not use the daemon, such as a rootless Podman, where none was replaced. Raises `Denied`
    for ordinary users, `Invalid`, `Failed`.
    """
    _check(path, door)
    kept = _kept(path)
    keeps = os.path.lexists(path) and not is_ours(path)
    try:
        built = build(door, otherwise)
        if keeps:
            if os.path.isdir(path):
                raise Invalid(f"{path} is a folder", "a file can be replaced, a folder can't")
            os.makedirs(os.path.dirname(kept), exist_ok=True)
            # Linked and not moved, so that the path never leads nowhere: a runtime may be about to execute it.
            with _beside(Path(kept)) as fresh:
                fresh.unlink()
                os.link(path, fresh, follow_symlinks=False)
        _install(built, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            if keeps and os.path.samestat(os.lstat(path), os.lstat(kept)):
                os.unlink(kept)
            os.rmdir(os.path.dirname(kept))
        raise _refused("putting a forwarder at", path, error) from None
    return kind(path)


def remove(path: str) -> None:
    """Take a forwarder away and put back what stood there. What is not ours stays; nothing there is success. Raises `Denied`, `Failed`."""
    _check_root()
    kept = _kept(path)
    try:
        if is_ours(path):
            if os.path.lexists(kept):
                os.rename(kept, path)
            else:
                os.unlink(path)
        elif not os.path.lexists(path) and os.path.lexists(kept):
            os.rename(kept, path)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(kept))
    except OSError as error:
        raise _refused("removing the forwarder at", path, error) from None


def is_ours(path: str) -> bool:
    """Whether the file at a path is a forwarder, of whatever version."""
    return door_of(path) != ""


def door_of(path: str) -> str:
    """The door that the forwarder at a path leads to; "" for anything else."""
    content = _content(path)
    at = content.find(_MARKER)
    word = content[at + len(_MARKER) :].partition(b"\n")[0] if at >= 0 else b""
    return word.decode("ascii", "replace") if word.decode("ascii", "replace") in DOORS else ""


def kind(path: str) -> Literal["c", "python"]:
    """Raises `NotFound` for what is no forwarder."""
    if not is_ours(path):
        raise NotFound(f"{path} is no forwarder of Atoll's")
    return "python" if _content(path).startswith(b"#!") else "c"


def replaced(path: str) -> str:
    """The path of what stood at `path` before us; "" when nothing did."""
    return _kept(path) if os.path.lexists(_kept(path)) else ""


# --- building ------------------------------------------------------------------------------------------------------------------------


def build(door: str, otherwise: str = "", *, compilers: Sequence[str] = ("cc", "gcc", "clang"), patience: int = 60) -> Path:
    """A forwarder in the state folder, built if it isn't there, by the first of the compilers that there is; the script without one.
    `patience` is for how many seconds it waits for an answer. Raises OSError, `Failed`, `Invalid`."""
    run, state = os.path.abspath(paths.run_folder()), os.path.abspath(paths.state_folder())
    if len(os.fsencode(f"{run}/doors.sock")) > _SOCKET:
        raise Invalid(f"the path {run}/doors.sock is too long for a socket", "set ATOLL_RUN to a shorter path")
    baked: dict[str, str | int] = {"DOOR": door, "RUN": run, "STATE": state, "PYTHON": sys.executable, "OTHERWISE": otherwise}
    baked["PATIENCE"] = patience
    found = next(filter(None, map(shutil.which, compilers)), None)
    os.makedirs(state, mode=0o700, exist_ok=True)
    folder = Path(state) / "forwarders"
    folder.mkdir(exist_ok=True)
    if found:
        source = (_SOURCES / "forward.c").read_bytes()
        built = folder / _key(source, found, repr(baked))
        if built.exists() or _compiled(found, baked, built):
            return built
    script = _script(baked)
    built = folder / _key(script)
    if not built.exists():
        with _beside(built) as fresh:
            fresh.write_bytes(script)
    return built


def _key(*parts: bytes | str) -> str:
    return hashlib.sha256(b"\0".join(part if isinstance(part, bytes) else os.fsencode(part) for part in parts)).hexdigest()[:20]


def _compiled(compiler: str, baked: dict[str, str | int], built: Path) -> bool:
    """Whether the compiler could make it."""
    defined = [f"-D{name}={value if isinstance(value, int) else _c_string(value)}" for name, value in baked.items()]
    for how in _LINKING:
        with _beside(built) as fresh:
            command = [compiler, *_COMPILE, *how, *defined, "-o", str(fresh), str(_SOURCES / "forward.c")]
            try:
                done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
                if done.returncode == 0:
                    return True
            except (OSError, subprocess.TimeoutExpired):
                pass
            fresh.unlink(missing_ok=True)
    return False


def _c_string(text: str) -> str:
    return '"' + "".join(chr(byte) if chr(byte) in _PLAIN else f"\\{byte:03o}" for byte in os.fsencode(text)) + '"'


def _script(baked: dict[str, str | int]) -> bytes:
    text = (_SOURCES / "forward.py").read_text()
    before, _, rest = text.partition("# --- baked in ---\n")
    _, _, after = rest.partition("# --- until here ---\n")
    values = "".join(f"{name} = {value!a}\n" for name, value in baked.items())
    marker = f"# {_MARKER.decode()}{baked['DOOR']}\n"
    return f"#!{interpreter()} -ISB\n{marker}{before}{values}{after}".encode()


def interpreter() -> str:
    """One that is no shim and needs nothing around it: the distribution's before the one that we run in."""
    candidates = ("/usr/bin/python3", os.path.realpath(sys.executable), sys.executable)
    for candidate in candidates:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            words = [candidate, "-ISBc", "import _socket, posix, select, fcntl, sys; sys.exit(sys.version_info < (3, 9))"]
            if len(candidate) < 100 and subprocess.run(words, check=False, capture_output=True, timeout=30).returncode == 0:
                return candidate
    raise Failed("no Python interpreter can run the forwarder", "install a C compiler, or Debian's package python3-minimal")


# --- files ---------------------------------------------------------------------------------------------------------------------------


def _check(path: str, door: str) -> None:
    _check_root()
    if door not in DOORS:
        raise Invalid(f"there is no door {door!r}", f"there are {', '.join(DOORS)}")
    if not os.path.isabs(path) or os.path.basename(path) in ("", ".", ".."):
        raise Invalid(f"{path!r} is not the absolute path of a file", "such as /opt/cni/bin/bridge")


def _check_root() -> None:
    if os.geteuid() != 0:
        raise Denied("only root may put files where runtimes execute them", "run it with sudo")


def _refused(doing: str, path: str, error: OSError) -> Denied | Failed:
    kind = Denied if isinstance(error, PermissionError) else Failed
    return kind(f"{doing} {path}: {error.strerror or error}", "is the folder there, and writable?")


def _kept(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, REPLACED, name)


def _content(path: str) -> bytes:
    """Of a regular file that is small enough, else nothing."""
    try:
        return read_file(path, _MOST)
    except OSError:
        return b""


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new file that takes the path's place in the end, if it is still there."""
    fd, name = tempfile.mkstemp(prefix=".atoll-", dir=path.parent)
    os.close(fd)
    fresh = Path(name)
    fresh.chmod(0o755)
    try:
        yield fresh
        if os.path.lexists(fresh):
            fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)


def _install(built: Path, path: str) -> None:
    """As a further name of the same file in this folder, if there is one; the file in the state folder stays apart, as somebody who
    writes into one of the names would spoil them all."""
    content = built.read_bytes()
    with _beside(Path(path)) as fresh:
        for other in sorted(Path(path).parent.iterdir()):
            if _same_size(other, len(content)) and other.read_bytes() == content:
                fresh.unlink()
                os.link(other, fresh)
                return
        fresh.write_bytes(content)


def _same_size(path: Path, size: int) -> bool:
    about = path.lstat()
    return stat.S_ISREG(about.st_mode) and about.st_size == size
