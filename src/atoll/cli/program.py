"""Becoming a program: what `atoll run` does with its own process once the daemon has made the namespace.

The order matters: the namespace and its mounts need privileges, the folder is one of those mounts, the user is changed last.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from atoll.cli.enter import enter
from atoll.errors import Denied, Failed, Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping


class NoCommand(NotFound):
    """There is no such program; the exit code is that of a shell, and of Docker."""

    exit_code = 127


class NotExecutable(Failed):
    """There is one, and it can't be run."""

    exit_code = 126


class Account(NamedTuple):
    """Whom a program runs as. `name` and `home` are empty for a number that is nobody's."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str = ""
    home: str = ""


class Program(NamedTuple):
    """A command with its surroundings. `directory` and `hostname` empty: as they are; `account` None: whoever this is."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str = ""
    account: Account | None = None
    hostname: str = ""


def account(text: str) -> Account:
    """`NAME|UID[:GROUP|GID]` by this machine's /etc/passwd and /etc/group. A UID that is nobody's has the same number as its group.

    Raises `NotFound` for a name that isn't there, `Denied` for an ordinary user, who is root in the private host and nobody else.
    """
    import grp
    import pwd

    who, _, group = text.partition(":")
    try:
        entry = pwd.getpwuid(int(who)) if who.isdecimal() else pwd.getpwnam(who)
        found = Account(entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)), entry.pw_name, entry.pw_dir)
    except (KeyError, OverflowError):
        if not who.isdecimal() or int(who) >= 2**32 - 1:
            raise NotFound(f"no user {who[:80]!r}", "expected NAME or UID, with :GROUP or :GID if need be") from None
        found = Account(int(who), int(who), (int(who),))
    if group:
        try:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise NotFound(f"no group {group[:80]!r}", "expected the name of a group or its GID") from None
        if gid >= 2**32 - 1:
            raise Invalid(f"{gid} is not a GID", "expected a number below 4294967295")
        found = found._replace(gid=gid, groups=(gid,))
    if os.geteuid() != 0 and (found.uid, found.gid) != (0, 0):
        raise Denied(f"an ordinary user's programs can't run as {text[:80]}", "in a private host there is only root, which is you")
    return found


def become(program: Program, run: Mapping[str, Any]) -> NoReturn:
    """Enter a run's namespace and turn into its program. `run` is the daemon's answer to `POST /v1/runs`."""
    ordinary = os.geteuid() != 0
    _enter(run, run["daemon"] if ordinary else 0)
    if program.hostname:
        _rename(program.hostname)
    if program.directory:
        try:
            os.chdir(program.directory)
        except OSError as error:
            raise NotExecutable(f"going to {program.directory[:200]}: {error.strerror}", "make the folder, or give another") from None
    if program.account is not None and not ordinary:
        _turn_into(program.account)
    execute(program.command, program.environment)


def execute(command: tuple[str, ...], environment: Mapping[str, str]) -> NoReturn:
    """Turn into a program: found on PATH, run without a shell. Raises `NoCommand` or `NotExecutable`."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores these, and what is ignored stays so in a program that is executed.
        signal.signal(number, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed when we began
            stream.flush()
    word = command[0]
    try:
        os.execvpe(word, command, environment)  # noqa: S606 - the user's own command, without a shell
    except FileNotFoundError:
        raise NoCommand(f"no command {word[:80]!r}", "give its path, or install it") from None
    except (OSError, ValueError) as error:
        # A folder of PATH that one may not look into counts like a missing one, as it does for a shell.
        if isinstance(error, PermissionError) and not _is_there(word, environment):
            raise NoCommand(f"no command {word[:80]!r}", "give its path, or install it") from None
        raise NotExecutable(f"{word[:80]!r} can't be run: {getattr(error, 'strerror', error)}") from None


def _is_there(word: str, environment: Mapping[str, str]) -> bool:
    folders = [""] if "/" in word else os.get_exec_path(environment)
    return any(os.path.exists(os.path.join(folder, word)) for folder in folders)


def _enter(run: Mapping[str, Any], daemon: int) -> None:
    if (place := run["place"]) is not None:
        enter(place["path"], place["name"], daemon, place.get("files", {}))
        return
    host = f"/proc/{run['daemon']}/ns/net"
    if daemon or not _is_here(host):
        enter(host, run["name"], daemon, {})


def _is_here(path: str) -> bool:
    try:
        return os.path.samefile(path, "/proc/self/ns/net")
    except OSError:
        return False


def _rename(hostname: str) -> None:
    import socket

    from atoll.kernel import netns

    try:
        netns.unshare(netns.CLONE_NEWUTS)
        socket.sethostname(hostname)
    except OSError as error:
        raise Failed(f"setting the host name {hostname[:80]}: {error.strerror}", errno=error.errno or 0) from None


def _turn_into(who: Account) -> None:
    """The user last, and the groups before it: afterwards there is no way back."""
    try:
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
    except OSError as error:
        if (who.uid, who.gid) == (os.geteuid(), os.getegid()):
            return  # one is who one is, also in a user namespace that may set no groups (user_namespaces(7))
        raise Denied(f"may not become user {who.uid} ({error.strerror})", "is it mapped in this user namespace?") from None
