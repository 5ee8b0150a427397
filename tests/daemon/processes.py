"""Daemons and commands as processes, and what a test needs to talk to them and to see what they left.

Everything runs on the calling thread's host (fixture `host`), with its state and socket in a folder of the test's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import msgspec
import pytest

import atoll
from atoll.kernel import netns
from tests.kernel import kernel_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from tests.support import Place

T = TypeVar("T")

#: How long, in seconds, something that must happen may take on a busy machine.
PATIENCE: Final = 20.0
ATOLL: Final = Path(sys.executable).with_name("atoll")


def eventually(condition: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """The first true value of a condition that is looked at again and again; fails after `patience` seconds."""
    end = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {patience} s: {what}"
        time.sleep(0.01)
    return found


# --- the API -------------------------------------------------------------------------------------------------------------------------

_OFFLOADS: Final = ("tso_max_size", "tso_max_segs")


class Answer(NamedTuple):
    """What the daemon answered; `value` is the JSON."""

    status: int
    value: Any


class Died(Exception):
    """There was no whole answer: nobody knows whether the request was carried out."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("atoll", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = open_socket(self._path)


def open_socket(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


def send(path: Path, method: str, target: str, body: bytes = b"") -> Answer:
    """One request with a body as it is. Raises `Died`."""
    connection = _Connection(path)
    try:
        connection.request(method, target, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
    except (http.client.HTTPException, OSError) as error:
        raise Died(f"{method} {target}: {error!r}") from None
    finally:
        connection.close()
    return Answer(answer.status, json.loads(data) if answer.headers.get_content_type() == "application/json" else data)


# --- a daemon ------------------------------------------------------------------------------------------------------------------------


class Daemon:
    """A daemon of the calling thread's host. It may be started, stopped and killed any number of times; as a context manager it is
    killed in the end."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.state, self.run = folder / "state", folder / "run"
        self.socket = self.run / "atoll.sock"
        own = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "XDG_"))}
        #: The system bus, and so a firewalld on it, is the machine's and not this host's.
        own |= {"ATOLL_STATE": str(self.state), "ATOLL_RUN": str(self.run), "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder}/no-bus"}
        self.environment = own | environment
        self.log = folder / "log"
        self.pid = 0
        self._pidfd = -1
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pidfd >= 0:
            self.kill()

    def start(self, *, fault: str = "") -> bool:
        """Whether it serves, and hasn't died of `fault` (VERB:STEP, see `atoll.faults`) on the way there."""
        reader, writer = os.pipe()
        with open(self.log, "ab") as log, open(reader, "rb") as ready:
            try:
                self.pid = self._launch(self.environment | ({"ATOLL_FAULT": fault} if fault else {}), writer, log)
            finally:
                os.close(writer)
            words = ready.read().decode()
        assert not words, words
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(self.pid)
        try:
            open_socket(self.socket).close()
        except OSError:
            assert fault, f"it does not serve; {self.tail()}"
            return False
        return True

    def _launch(self, environment: dict[str, str], ready: int, log: BinaryIO) -> int:
        command = [sys.executable, "-P", "-m", "atoll.daemon", "--ready-fd", str(ready)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(ready,), cwd="/"
        )
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._pidfd >= 0 and not select.select([self._pidfd], [], [], 0)[0]

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and it must end by itself."""
        self._end(signal.SIGTERM)

    def has_died(self) -> bool:
        """Whether it is gone or goes within a moment; only to be asked when it should."""
        return self._pidfd < 0 or bool(select.select([self._pidfd], [], [], PATIENCE)[0])

    def _end(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)
        self.bury()

    def bury(self) -> None:
        """Wait for the end of what was told to end, or has died."""
        if self._pidfd >= 0:
            assert self.has_died(), f"the daemon did not end; {self.tail()}"
            os.close(self._pidfd)
            self._pidfd = -1
        if self._process is not None:
            self._process.wait()

    def tail(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-40:])

    # --- talking to it ---

    def send(self, method: str, target: str, body: Any = None) -> Answer:
        return send(self.socket, method, target, b"" if body is None else json.dumps(body).encode())

    def call(self, method: str, target: str, body: Any = None) -> Any:
        """The value of an answer that must be a success."""
        answer = self.send(method, target, body)
        assert answer.status == 200, f"{method} {target} {body}: {answer}"
        return answer.value

    def view(self) -> dict[str, Any]:
        """Networks and namespaces by name, endpoints in both."""
        return {kind: {item["name"]: item for item in self.call("GET", f"/v1/{kind}")} for kind in ("networks", "namespaces")}

    def differences(self) -> list[dict[str, Any]]:
        """What `atoll doctor` would name."""
        found = self.call("GET", "/v1/doctor")
        assert found["errors"] == []
        return list(found["differences"])

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        return list(self.call("GET", f"/v1/events?since={since}"))

    def last_event(self) -> int:
        return max((event["number"] for event in self.events()), default=0)

    def cpu(self) -> float:
        """The processor time that it has used, in seconds (to 1/100)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_NURSERY: Final = """
import importlib, json, os, signal, socket, sys
import atoll.daemon.server, uvloop
from atoll import faults
from atoll.daemon.__main__ import main
asked = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while (found := socket.recv_fds(asked, 1 << 16, 2))[0]:
    message, (ready, log), _, _ = found
    pid = os.fork()
    if pid == 0:
        asked.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(log, 1), os.dup2(log, 2), os.close(log)
        os.environ.clear()
        os.environ.update(json.loads(message))
        importlib.reload(faults)
        os._exit(main(["--ready-fd", str(ready)]))
    os.close(ready), os.close(log)
    asked.send(str(pid).encode())
"""


class QuickDaemon(Daemon):
    """The same, forked from a process that has imported everything; for tests that start hundreds. Starting one takes a tenth."""

    def __init__(self, folder: Path, **environment: str) -> None:
        super().__init__(folder, **environment)
        self._ask, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other, open(self.log, "ab") as log:
            command = [sys.executable, "-P", "-c", _NURSERY, str(other.fileno())]
            self._nursery = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stderr=log, pass_fds=(other.fileno(),), cwd="/"
            )

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._ask.close()
        self._nursery.wait()

    def _launch(self, environment: dict[str, str], ready: int, log: BinaryIO) -> int:
        socket.send_fds(self._ask, [json.dumps(environment).encode()], [ready, log.fileno()])
        return int(self._ask.recv(100))


# --- namespaces ----------------------------------------------------------------------------------------------------------------------


class Inside:
    """A named namespace, to make sockets in."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, function: Callable[[], T]) -> T:
        with contextlib.closing(netns.Visitor()) as visitor, open(netns.NETNS_DIR / self.name, "rb") as file:
            return visitor.run(file.fileno(), function)


class Here:
    """The test's own host."""

    name = "host"

    def run(self, function: Callable[[], T]) -> T:
        return function()


# --- files ---------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def etc(folder: Path) -> Iterator[Path]:
    """A copy of /etc in its place, for this process and its children."""
    copy = folder / "etc"
    shutil.copytree("/etc", copy, symlinks=True, ignore_dangling_symlinks=True)
    (copy / "resolv.conf").unlink(missing_ok=True)
    (copy / "resolv.conf").write_text("# nothing\n")
    netns.mount(str(copy), "/etc", "none", netns.MS_BIND)
    try:
        yield copy
    finally:
        netns.unmount("/etc")


# --- connections ---------------------------------------------------------------------------------------------------------------------


class Flow:
    """An established TCP connection, with both of its ends in the test's hands."""

    def __init__(self, client: Place, address: str, port: int, server: Place, inner_port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with server.run(lambda: socket.create_server(("", inner_port), family=family)) as listener:
            listener.settimeout(PATIENCE)
            self._client = client.run(lambda: socket.socket(family))
            self._client.settimeout(PATIENCE)
            self._client.connect((address, port))
            self._server = listener.accept()[0]
            self._server.settimeout(PATIENCE)
        self._sent = 0

    def close(self) -> None:
        self._client.close()
        self._server.close()

    def goes_on(self) -> None:
        """What is sent arrives, both ways. Raises OSError when it doesn't."""
        for sender, receiver in ((self._client, self._server), (self._server, self._client)):
            self._sent += 1
            sender.sendall(b"%08d" % self._sent)
            assert receiver.recv(8, socket.MSG_WAITALL) == b"%08d" % self._sent

    def retransmissions(self) -> int:
        """Segments that were sent more than once, by either end: `tcpi_total_retrans` (linux/tcp.h)."""
        infos = (end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104) for end in (self._client, self._server))
        return sum(int.from_bytes(info[100:104], sys.byteorder) for info in infos)


@contextlib.contextmanager
def flow(client: Place, address: str, port: int, server: Place, inner_port: int) -> Iterator[Flow]:
    made = Flow(client, address, port, server, inner_port)
    try:
        yield made
    finally:
        made.close()


# --- the kernel's side ---------------------------------------------------------------------------------------------------------------


def kernel(view: dict[str, Any]) -> kernel_state.State:
    """All that the host's kernel holds but connections, as it would be on another host too: every id in it is replaced by one that
    is made of the name of what it belongs to in `view` (`Daemon.view`)."""
    text = json.dumps(kernel_state.exact(kernel_state.read(kernel_state.Shell())))
    for found, name in _ids(view).items():
        text = text.replace(found, hashlib.sha256(name.encode()).hexdigest()[:10])
    state: kernel_state.State = json.loads(text)
    state.pop("connections", None)
    for place in state:
        if place.endswith(": links"):
            # A bridge's are those of the ports that it ever had.
            state[place] = [{key: value for key, value in link.items() if key not in _OFFLOADS} for link in state[place]]
    return kernel_state.comparable(state)


def named(view: dict[str, Any]) -> dict[str, Any]:
    """A view without what is another each time that the same thing is made."""
    text = json.dumps(view, sort_keys=True)
    for found, name in _ids(view).items():
        text = text.replace(found, name)

    def forget(item: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in item.items() if key not in ("created", "inode")}

    result: dict[str, Any] = json.loads(text, object_hook=forget)
    return result


def _ids(view: dict[str, Any]) -> dict[str, str]:
    networks = {item["id"]: name for name, item in view["networks"].items()}
    ends = {end["id"]: f"{end['network']}/{end['namespace']}" for item in view["namespaces"].values() for end in item["endpoints"]}
    return {found: name for found, name in (networks | ends).items() if found not in ("host", "none")}


# --- the command line ----------------------------------------------------------------------------------------------------------------


class CommandLine:
    """`atoll` as processes, which start a daemon when they need one; what they started is stopped in the end."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.daemon = Daemon(folder, **environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.serving() and (left := self("ps", "-q").stdout.split()):
            # What a test that failed has started: it outlives its daemon, as it should.
            self("stop", "-t", "0", *left)
        self.daemon.__exit__()
        if pid := self.serving():
            with open_pidfd(pid) as pidfd:
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                assert select.select([pidfd], [], [], PATIENCE)[0], "the daemon did not end"

    def serving(self) -> int:
        """The pid of the daemon that serves, 0 without one: of the process that listens, as the kernel knows it (unix(7))."""
        try:
            with open_socket(self.daemon.socket) as sock:
                return int(struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        except OSError:
            return 0

    def __call__(self, *arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ATOLL, *arguments],
            env=self.daemon.environment | environment,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            input=stdin,
            timeout=60,
        )

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([ATOLL, *arguments], env=self.daemon.environment, text=True, **options)

    def says(self, *arguments: str) -> str:
        """What a command that must succeed prints."""
        done = self(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def shows(self, *arguments: str) -> Any:
        """The same, as JSON."""
        return json.loads(self.says(*arguments, "--format", "json"))

    def fails(self, code: int, *arguments: str) -> str:
        """The error of a command that must end with this exit code, and one line that says what and what to do."""
        done = self(*arguments)
        assert done.returncode == code, done
        assert done.stdout == "", done
        assert done.stderr.startswith("error: "), done
        assert done.stderr.count("\n") == 1, done
        assert done.stderr.rstrip("\n").isprintable(), done
        return done.stderr.removeprefix("error: ").rstrip("\n")


@contextlib.contextmanager
def open_pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


# --- an ordinary user ----------------------------------------------------------------------------------------------------------------

NOBODY: Final = 65534
_MS_RDONLY: Final = 1
_MS_REMOUNT: Final = 32


class User(CommandLine):
    """The command line as an ordinary user has it."""

    def __init__(self, folder: Path, uid: int, gid: int) -> None:
        super().__init__(folder, HOME=str(folder / "home"), PYTHONDONTWRITEBYTECODE="1")
        self.folder = folder
        for name in ("home", "runtime"):
            (folder / name).mkdir(mode=0o700)
            os.chown(folder / name, uid, gid)
        self.daemon.run = folder / "runtime" / "atoll"
        self.daemon.socket = self.daemon.run / "atoll.sock"
        # The interpreter and the packages may be in a home that nobody else can enter.
        self.python = str(folder / "python" / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
        self.become = ["setpriv", "--reuid", str(uid), "--regid", str(gid), "--clear-groups", "--inh-caps=-all"]
        # State and socket are where an ordinary user has them, unless a test says otherwise.
        self.environment = {name: value for name, value in self.daemon.environment.items() if not name.startswith("ATOLL_")} | {
            "PYTHONPATH": f"{folder}/atoll:{folder}/packages",
            "LD_LIBRARY_PATH": f"{folder}/python/lib",
            "XDG_RUNTIME_DIR": f"{folder}/runtime",
        }

    def __call__(self, *arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.become, *self.command(*arguments)],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            input=stdin,
            timeout=60,
        )

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([*self.become, *self.command(*arguments)], env=self.environment, text=True, **options)

    def command(self, *arguments: str) -> list[str]:
        return [self.python, "-P", "-c", "from atoll.cli import main; main()", *arguments]


def _mapped() -> Iterator[tuple[int, int]]:
    """The users of this user namespace: the first of each run and how many (user_namespaces(7))."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        yield first, count


@contextlib.contextmanager
def user(uid: int = NOBODY, gid: int = NOBODY) -> Iterator[User]:
    """A user with a folder that everybody may enter, and in it all that it takes to run `atoll`."""
    if all(uid not in range(first, first + count) for first, count in _mapped()):
        pytest.skip(f"needs root, to become user {uid}")
    with tempfile.TemporaryDirectory(prefix="atoll-") as name, contextlib.ExitStack() as mounted:
        folder = Path(name)
        folder.chmod(0o755)
        for target, source in (
            ("python", sys.base_prefix),
            ("packages", Path(msgspec.__file__).parent.parent),
            ("atoll", Path(atoll.__file__).parent.parent),
        ):
            (folder / target).mkdir()
            netns.mount(str(source), str(folder / target), "none", netns.MS_BIND)
            mounted.callback(netns.unmount, str(folder / target))
            # Whatever goes wrong with the folder's removal, it removes nothing in there.
            netns.mount("", str(folder / target), flags=netns.MS_BIND | _MS_REMOUNT | _MS_RDONLY)
        with User(folder, uid, gid) as made:
            yield made
