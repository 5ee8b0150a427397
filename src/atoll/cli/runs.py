"""Runs in Python: `atoll run`, `atoll stop` and what else is asked of runs, for the command line and for `atoll up`.

    start(RunRequest(("python3", "-m", "http.server"), name="web", publish=("8080:8000",)))      # as `atoll run --detach` does
    stop("web", timeout=10)

A detached run has a shepherd: a process that waits for the program and then tells the daemon its exit code. Whatever it is that ends,
and however, the daemon sees the program's end by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from atoll import paths, starting
from atoll.cli import client, program
from atoll.errors import BY_NAME, AtollError, Conflict, Failed, Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: For how long a shepherd waits for a daemon that is being started anew, to report to, and between its attempts (seconds).
_REPORT: Final = 10.0
_PAUSE: Final = 0.1
#: As the kernel takes it in length, and as others can write it.
_HOSTNAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}\Z")
#: What is told from a shepherd to the command that started it: a JSON object, of this many bytes at most.
_MOST_BYTES: Final = 1 << 20


class RunRequest(NamedTuple):
    """A program and where it runs.

    `networks` are attachments as the API takes them (`{"network": NAME, "addresses": [...], ...}`); `share` is `host` or `ns:NAME` instead.
    `servers` are asked about names outside, before those of the networks. `environment` is added to the caller's. `user` is
    NAME|UID[:GROUP|GID]. `hostname` is the name when empty.
    """

    command: Sequence[str]
    name: str = ""
    networks: Sequence[Mapping[str, Any]] = ({"network": "default"},)
    share: str = ""
    publish: Sequence[str] = ()
    servers: Sequence[str] = ()
    labels: Mapping[str, str] = {}
    directory: str = ""
    environment: Mapping[str, str] = {}
    user: str = ""
    hostname: str = ""


def start(request: RunRequest) -> str:
    """Run a program detached, its output in a log; its name once it runs. Raises what kept it from that, and then nothing is left.

    For a process with one thread: it forks.
    """
    made = _program(request)
    _fill_standard()
    starting.ensure_daemon()
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        # The shepherd is nobody's child: its caller need not wait for it.
        os.close(reader)
        _in_child(lambda: _shepherd(request, made, writer) if os.fork() == 0 else None)
    os.close(writer)
    os.waitpid(middle, 0)
    said = _hear(reader)
    if said is None:
        raise Failed("the run was ended before its program began", "try again")
    _raise_if_error(said)
    return str(said["name"])


def foreground(request: RunRequest) -> NoReturn:
    """Become the program: this process enters its namespace and executes it."""
    made = _program(request)
    starting.ensure_daemon()
    run = client.post("/v1/runs", _body(request))
    program.become(_named(made, request, run), run)


def plan(request: RunRequest) -> Any:
    """The commands that it stands for."""
    _program(request)
    return client.post("/v1/runs", _body(request), dry_run=True)


def stop(name: str, timeout: float = 10.0) -> None:
    """SIGTERM, and after `timeout` seconds SIGKILL, to the very process that is recorded. Returns when what it held is given back."""
    run = find(name)
    if run["state"] == "ended":
        return
    holder = _hold(run["pid"], run["start"])
    if holder >= 0:
        try:
            for number, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, None)):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(holder, number)
                if _ended(holder, patience):
                    break
        except PermissionError:
            raise Failed(f"may not stop {name}: its process belongs to another user", "run as root") from None
        finally:
            os.close(holder)
    # The daemon has seen the end as well, or sees it now; a foreground run is forgotten with it.
    with contextlib.suppress(NotFound):
        client.post(f"/v1/runs/{client.quote(run['name'])}/exit", {"pid": run["pid"]})
    _await_shepherd(run)


def wait(name: str) -> int:
    """The exit code of a detached run, when it has ended. Raises `Failed` when nobody can know it."""
    run = find(name)
    if not run["detached"]:
        raise Conflict(f"{name} runs in the foreground", "its exit code goes to whoever started it")
    holder = _hold(run["pid"], run["start"])
    if holder >= 0:
        _ended(holder, None)
        os.close(holder)
    _await_shepherd(run)
    ended = find(name)
    if ended["pid"] == run["pid"] and ended["exit_code"] is not None:
        return int(ended["exit_code"])
    raise Failed(f"the exit code of {name} is unknown", "its shepherd, or the daemon, was killed before it could be told")


def find(name: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/runs/{client.quote(name)}")
    return found


def log_path(name: str) -> str:
    """Where a detached run's output is. `name` is one that the daemon has given or found, so it leads to no other folder."""
    return os.path.join(paths.run_folder(), "logs", f"{name}.log")


def goes_on(run: Mapping[str, Any], patience: float) -> bool:
    """Whether a run's process still lives after `patience` seconds; False as soon as it has ended."""
    holder = _hold(run["pid"], run["start"]) if run["state"] != "ended" else -1
    if holder < 0:
        return False
    try:
        return not _ended(holder, patience)
    finally:
        os.close(holder)


# --- requests ------------------------------------------------------------------------------------------------------------------------


def _program(request: RunRequest) -> program.Program:
    """What can be checked before anything is made."""
    if not request.command or not request.command[0]:
        raise Invalid("no command to run was given", "atoll run [OPTIONS] -- COMMAND...")
    if request.hostname and not _HOSTNAME.match(request.hostname):
        raise Invalid(f"{request.hostname[:80]!r} is not a host name", "1 to 64 letters, digits, '-' or '.'")
    who = program.account(request.user) if request.user else None
    environment = dict(os.environ)
    if who is not None and who.name:
        environment |= {"HOME": who.home, "USER": who.name, "LOGNAME": who.name}
    return program.Program(tuple(request.command), environment | dict(request.environment), request.directory, who, request.hostname)


def _body(request: RunRequest, **more: Any) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "name": request.name,
        "networks": [] if request.share else list(request.networks),
        "share": request.share,
        "publish": list(request.publish),
        "servers": list(request.servers),
        "labels": dict(request.labels),
        "command": [_printable(word) for word in request.command],
        "user": request.user,
        "directory": _printable(request.directory or _here()),
    } | more


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return ""


def _printable(word: str) -> str:
    """JSON carries no bytes that aren't text."""
    return word.encode("utf-8", "replace").decode()


def _named(made: program.Program, request: RunRequest, run: Mapping[str, Any]) -> program.Program:
    """With the host name that it has by default: that of its namespace, which is the machine's own on the host's network."""
    return made._replace(hostname=request.hostname or run["namespace"])


# --- detached ------------------------------------------------------------------------------------------------------------------------


def _fill_standard() -> None:
    """Put /dev/null where a standard descriptor is closed: a pipe of ours with its number would be taken for it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(fd, True)
    os.close(fd)


def _shepherd(request: RunRequest, made: program.Program, caller: int) -> None:
    """Start the program, pass on whether it began, wait for it, report its end."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        # Whoever reads the command's output must not wait for ours.
        os.dup2(null, fd)
    os.closerange(3, caller)
    os.closerange(caller + 1, os.sysconf("SC_OPEN_MAX"))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(caller)
        _in_child(lambda: _begin(request, made, writer))
    os.close(writer)
    said = _hear(reader) or {}
    if "kind" in said or "name" not in said:
        os.waitpid(pid, 0)
        if "name" in said:
            with contextlib.suppress(AtollError):
                client.delete(f"/v1/runs/{client.quote(said['name'])}")
        _tell(caller, said)
        return
    _tell(caller, said)
    os.close(caller)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _report(said["name"], pid, code if code >= 0 else 128 - code)


def _begin(request: RunRequest, made: program.Program, writer: int) -> None:
    """Become the program. The pipe closes as that happens; before it says the run's name, or what went wrong."""
    said: dict[str, Any] = {}
    try:
        os.setsid()  # so that a signal to the program's group doesn't reach its shepherd
        run = client.post("/v1/runs", _body(request, detached=True, shepherd=os.getppid()))
        said = {"name": run["name"]}
        _open_log(run["name"])
        _tell(writer, said)
        program.become(_named(made, request, run), run)
    except AtollError as error:
        known = next(kind for kind in type(error).__mro__ if kind in BY_NAME.values())
        _tell(writer, said | {"kind": known.__name__, "what": error.what, "hint": error.hint, "exit_code": error.exit_code})


def _open_log(name: str) -> None:
    """A new file that nobody else can read, whatever was there by that name."""
    path = log_path(name)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Failed(f"making the log {path}: {error.strerror}", errno=error.errno or 0) from None
    for fd in (1, 2):
        os.dup2(log, fd)
    os.close(log)


def _report(name: str, pid: int, code: int) -> None:
    """Tell the daemon. One that is gone isn't started for it, but one that is being started anew is waited for."""
    end = time.monotonic() + _REPORT
    while time.monotonic() < end:
        try:
            client.request("POST", f"/v1/runs/{client.quote(name)}/exit", {"pid": pid, "code": code}, start=False)
        except NotFound:
            return
        except AtollError:
            time.sleep(_PAUSE)
        else:
            return


def _in_child(work: Callable[[], object]) -> NoReturn:
    """A forked process does its work and ends, without the rest of what its parent was about to do."""
    try:
        work()
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def _tell(fd: int, said: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(said).encode() + b"\n")


def _hear(fd: int) -> dict[str, Any] | None:
    """The last line that was said before the other end closed."""
    with os.fdopen(fd, "rb") as reader:
        lines = reader.read(_MOST_BYTES).splitlines()
    found: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return found


def _raise_if_error(said: Mapping[str, Any]) -> None:
    if "kind" not in said:
        if "name" not in said:
            raise Failed("the run was ended before its program began", "try again")
        return
    known = {126: program.NotExecutable, 127: program.NoCommand}
    kind = known.get(said["exit_code"], BY_NAME.get(said["kind"], AtollError))
    raise kind(said["what"], said["hint"])


# --- processes -----------------------------------------------------------------------------------------------------------------------


def _hold(pid: int, start: int) -> int:
    """A descriptor of the very process, or -1 when it has ended."""
    from atoll.kernel import netns

    try:
        return netns.hold_process(netns.Process(pid, start))
    except NotFound:
        return -1


def _ended(holder: int, patience: float | None) -> bool:
    """Whether a process ends within `patience` seconds (None: it is waited for)."""
    poll = select.poll()
    poll.register(holder, select.POLLIN)
    return bool(poll.poll(None if patience is None else patience * 1000))


def _await_shepherd(run: Mapping[str, Any]) -> None:
    """A shepherd ends when it has reported, or can't."""
    if not run["shepherd"]:
        return
    try:
        holder = os.pidfd_open(run["shepherd"])
    except OSError:
        return
    try:
        # The number may be another's by now; that one's end is not waited for.
        if run["detached"] and client.get(f"/v1/runs/{client.quote(run['name'])}")["exit_code"] is None:
            _ended(holder, _REPORT)
    except NotFound:
        return
    finally:
        os.close(holder)
