"""What forward.c is, for machines without a compiler; the comments are there. The first line, which says by which interpreter and with
`-ISB`, and the values below are put in by forwarder.py. Nothing is imported but what is built into the interpreter, so it starts in
the time that the interpreter itself takes.
"""

import _socket
import posix
import sys

# --- baked in ---
DOOR = ""
RUN = ""
STATE = ""
PYTHON = ""
OTHERWISE = ""
PATIENCE = 60
# --- until here ---

MOST = 16 << 20
STARTING = 45
ATTEMPTS = 3
IO_FAILED, TRY_AGAIN = 5, 11
KEPT = (b"PATH", b"LANG", b"TZ", b"TMPDIR", b"DBUS_SYSTEM_BUS_ADDRESS")


class Failure(Exception):
    """An error for the client: CNI's code, what, more."""


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[posix.write(fd, data) :]


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(c):04x}" if c in '"\\' or ord(c) < 32 or ord(c) == 127 else c if ord(c) < 127 else "?" for c in text)


def failed(code: int, what: str, more: str) -> bytes:
    what, more = escaped(what), escaped(more)
    if DOOR == "cni":
        return f'{{"cniVersion":"1.0.0","code":{code},"msg":"Atoll: {what}","details":"{more}"}}\n'.encode()
    return f'{{"error":"Atoll: {what}; {more}"}}\n'.encode()


# --- the call ---


def read_input() -> bytes:
    data = bytearray()
    if posix.isatty(0):
        return b""
    while part := posix.read(0, 1 << 16):
        data += part
        if len(data) > MOST:
            raise Failure(IO_FAILED, "the standard input is too large", "the limit is 16 MiB")
    return bytes(data)


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def field(data: bytes) -> bytes:
    return number(len(data)) + data


def encode(program: bytes, arguments: list[bytes], data: bytes) -> bytes:
    variables = [
        name + b"=" + value for name, value in ENVIRONMENT.items() if name.startswith((b"CNI_", b"NETAVARK_")) or name == b"RUST_LOG"
    ]
    try:
        folder = posix.getcwdb()
    except OSError:
        folder = b""
    parts = [DOOR.encode(), program, folder if folder.startswith(b"/") else b""]
    body = b"".join(map(field, parts))
    for items in (arguments, variables):
        body += number(len(items)) + b"".join(map(field, items))
    body += field(data)
    if len(body) > MOST:
        raise Failure(IO_FAILED, "the call is too large", "the limit is 16 MiB")
    return b"ATC1" + field(body)


# --- the program that stood here before ---


def become(program: bytes, arguments: list[bytes], data: bytes) -> None:
    name = program.decode("utf-8", "replace")
    if ENVIRONMENT.get(b"ATOLL_FORWARDED") == program:
        raise Failure(IO_FAILED, "the program that stood here before is Atoll's as well", name)
    fd = posix.memfd_create("stdin", 0)
    write_all(fd, data)
    posix.lseek(fd, 0, 0)
    posix.dup2(fd, 0)
    posix.close(fd)
    try:
        posix.execve(program, [program, *arguments], ENVIRONMENT | {b"ATOLL_FORWARDED": program})
    except OSError as error:
        raise Failure(IO_FAILED, name, error.strerror) from None


def be_otherwise(program: bytes, arguments: list[bytes], data: bytes) -> None:
    folder, slash, name = program.rpartition(b"/")
    for path in (folder + slash + b".atoll-replaced/" + name, OTHERWISE.encode("utf-8", "surrogateescape")):
        if path and posix.access(path, 1):
            become(path, arguments, data)
    raise Failure(IO_FAILED, f"this user may not use the daemon of {RUN}", "be root")


# --- the daemon ---


def connect() -> _socket.socket:
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(f"{RUN}/doors.sock")
    except OSError:
        sock.close()
        raise
    return sock


def start(deadline: float) -> None:
    import select
    import signal
    import time

    environment = {name: value for name, value in ENVIRONMENT.items() if name in KEPT or name.startswith((b"LC_", b"ATOLL_"))}
    environment.pop(b"ATOLL_FORWARDED", None)
    for name, folder in ((b"ATOLL_RUN", RUN), (b"ATOLL_STATE", STATE)):
        environment[name] = folder.encode("utf-8", "surrogateescape")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reader, writer = posix.pipe()
    child = posix.fork()
    if child == 0:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            posix.setsid()
            posix.chdir("/")
            posix.dup2(posix.open("/dev/null", posix.O_RDWR), 0)
            posix.dup2(writer, 1)
            posix.dup2(writer, 2)
            posix.execve(PYTHON, [PYTHON, "-P", "-m", "atoll.frontends.start"], environment)
        except OSError as error:
            posix.write(writer, f"{PYTHON}: {error.strerror}".encode())
        posix._exit(1)
    posix.close(writer)
    words = b""
    while True:
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            posix.kill(child, signal.SIGKILL)
            raise Failure(TRY_AGAIN, "the daemon takes too long to start", f"its log is {RUN}/daemon.log")
        part = posix.read(reader, 1024)
        if not part:
            break
        words = (words + part)[:1023]
    posix.close(reader)
    if posix.waitpid(child, 0)[1]:
        line = words.decode("utf-8", "replace").strip().partition("\n")[0]
        raise Failure(TRY_AGAIN, "the daemon can't be started", line or f"its log is {RUN}/daemon.log")


def owns_state() -> bool:
    path = STATE
    while path:
        try:
            return posix.stat(path).st_uid == posix.geteuid()
        except OSError:
            path = path.rpartition("/")[0]
    return False


def reach(program: bytes, arguments: list[bytes], data: bytes) -> _socket.socket:
    try:
        return connect()
    except PermissionError:
        be_otherwise(program, arguments, data)
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    except OSError as error:
        raise Failure(TRY_AGAIN, f"{RUN}/doors.sock", str(error.strerror or error)) from None
    if not owns_state():
        be_otherwise(program, arguments, data)
    import fcntl
    import time

    deadline = time.monotonic() + STARTING
    mask = posix.umask(0o022)
    try:  # noqa: SIM105 - contextlib would have to be imported
        posix.mkdir(RUN, 0o755)
    except OSError:
        pass
    posix.umask(mask)
    try:
        lock = posix.open(f"{RUN}/doors.lock", posix.O_RDWR | posix.O_CREAT, 0o600)
    except OSError as error:
        raise Failure(IO_FAILED, f"{RUN}/doors.lock", error.strerror) from None
    locked = False
    while time.monotonic() < deadline:
        try:
            sock = connect()
            posix.close(lock)
            return sock
        except OSError:
            if locked:
                start(deadline)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            time.sleep(0.01)
    raise Failure(TRY_AGAIN, f"the daemon of {RUN} does not serve the doors", "its log is in that folder")


def receive(sock: _socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            part = sock.recv(min(size - len(data), 1 << 20))
        except TimeoutError:
            raise Failure(TRY_AGAIN, "the daemon does not answer", f"its log is {RUN}/daemon.log") from None
        except OSError:
            break
        if not part:
            break
        data += part
    return bytes(data)


def send(sock: _socket.socket, data: bytes) -> bool:
    try:
        sock.sendall(data)
    except TimeoutError:
        raise Failure(TRY_AGAIN, "the daemon does not listen", f"its log is {RUN}/daemon.log") from None
    except OSError:
        return False
    return True


# --- the answer ---


def obey(body: bytes, arguments: list[bytes], data: bytes) -> int:
    code, at = int.from_bytes(body[:4], "big"), 4
    fields = []
    for _ in range(3):
        size = int.from_bytes(body[at : at + 4], "big")
        fields.append(body[at + 4 : at + 4 + size])
        at += 4 + size
    if len(body) < 16 or at > len(body) or code > 255:
        raise Failure(IO_FAILED, "the daemon's answer can't be read", "put the forwarder there again")
    out, error, run = fields
    if run:
        become(run, arguments, data)
    try:  # noqa: SIM105 - as above
        write_all(2, error)
    except OSError:
        pass
    try:
        write_all(1, out)
    except OSError:
        return code or 1
    return code


def forward(program: bytes, arguments: list[bytes]) -> int:
    data = read_input()
    message = encode(program, arguments, data)
    once = b"setup" in arguments or ENVIRONMENT.get(b"CNI_COMMAND") == b"ADD"
    for _ in range(ATTEMPTS):
        sock = reach(program, arguments, data)
        head = receive(sock, 8) if send(sock, message) else b""
        if len(head) == 8:
            size = int.from_bytes(head[4:], "big")
            if head[:4] != b"ATA1" or size > MOST:
                raise Failure(IO_FAILED, "the daemon's answer can't be read", "put the forwarder there again")
            body = receive(sock, size)
            if len(body) == size:
                return obey(body, arguments, data)
        sock.close()
        if head and once:
            raise Failure(TRY_AGAIN, "the daemon ended while it carried this out", "what it had begun is taken back when it starts again")
    raise Failure(TRY_AGAIN, f"the daemon of {RUN} hangs up", "its log is in that folder; is this forwarder as new as the daemon?")


ENVIRONMENT: dict[bytes, bytes] = dict(posix.environ)


def main() -> int:
    # The descriptors that we open must not become these.
    while (fd := posix.open("/dev/null", posix.O_RDWR)) <= 2:
        pass
    posix.close(fd)
    command = [word.encode(sys.getfilesystemencoding(), "surrogateescape") for word in sys.argv]
    try:
        return forward(command[0], command[1:])
    except Failure as error:
        words = failed(*error.args)
    except (OSError, ValueError) as error:
        words = failed(IO_FAILED, "the call can't be handed on", str(getattr(error, "strerror", "") or error))
    try:  # noqa: SIM105 - as above
        write_all(1, words)
    except OSError:
        pass
    return 1


if __name__ == "__main__":
    posix._exit(main())
