"""A shell on a host of its own, in which a page's commands are typed one after the other."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.docs.pages import Step

from tests.docs.pages import ROOT, matches

#: Seconds that a command may take, and that what it looks at may take to become as the page says.
_LONGEST: Final = 30.0
_PATIENCE: Final = 10.0
#: Commands that only look, or that leave nothing behind when they fail: a reader takes a second to get to them, we don't, and what they
#: look at (a server that starts, a repair) may not be there yet.
_LOOKS: Final = ("curl ", "ip ", "nft list", "atoll events", "atoll ns ls", "atoll ns adopt ", "atoll network ls", "tail ", "tc ")

_NOBODY: Final = 65534
_AS_NOBODY: Final = f"setpriv --reuid {_NOBODY} --regid {_NOBODY} --clear-groups"
#: /run, with sockets and named namespaces, is the shell's own, and what it writes goes there.
_SETUP: Final = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 docs /run
mkdir /run/home /run/netns
"""
#: An ordinary user must get at the interpreter and at Atoll, wherever they are: folders on the way there that are closed to others are
#: covered with open ones.
_REACH: Final = f"""
mkdir -m 700 /run/user
chown {_NOBODY}:{_NOBODY} /run/home /run/user
reach() {{
    local folder top number=0
    local -a closed=()
    local -A covered=()
    for folder; do
        {_AS_NOBODY} test -x "$folder" && continue
        mkdir -p "/run/reach/${{#closed[@]}}"
        mount --rbind "$folder" "/run/reach/${{#closed[@]}}"
        closed+=("$folder")
    done
    for folder in "${{closed[@]}}"; do
        top=/$(cut -d/ -f2 <<<"$folder")
        [[ ${{covered[$top]:-}} ]] || mount -t tmpfs -o mode=755 docs "$top"
        covered[$top]=yes
        mkdir -p "$folder"
        mount --move "/run/reach/$((number++))" "$folder"
    done
}}
"""


class Shell:
    """A context manager that ends whatever was started in the shell. For the namespace of the calling thread; with `enter`, a command that
    runs others there, for the host that it leads to, as it is."""

    def __init__(self, *, root: bool = True, enter: Sequence[str] = ()) -> None:
        reader, self._input = os.pipe()
        self._output, writer = os.pipe()
        folders = shlex.join(sorted({sys.base_prefix, sys.prefix, str(ROOT)}))
        setup = _SETUP if root else f"{_SETUP}{_REACH}reach {folders}\n"
        setup += f"cd /run/home\nexec {'' if root else _AS_NOBODY} bash --noprofile --norc"
        environment = {
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOME": "/run/home",
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
            **({"ATOLL_STATE": "/run/state"} if root and not enter else {} if root else {"XDG_RUNTIME_DIR": "/run/user"}),
        }
        command = ["unshare", "--mount", "bash", "--noprofile", "--norc", "-c", setup]
        if enter:
            command = [*enter, "bash", "--noprofile", "--norc", "-c", "mkdir -p /run/home && cd /run/home && exec bash --noprofile --norc"]
        self._process = subprocess.Popen(command, stdin=reader, stdout=writer, stderr=writer, env=environment, start_new_session=True)
        os.close(reader)
        os.close(writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self.run("atoll daemon stop")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._input)
        os.close(self._output)

    def run(self, command: str) -> Done:
        """Type a command and wait for it; one that ends with `&` goes on."""
        mark = f"=== end of {time.monotonic_ns()} "
        os.write(self._input, f"{{ {command}\n}} </dev/null; printf '{mark}%s\\n' $?\n".encode())
        data = b""
        end = time.monotonic() + _LONGEST
        while mark.encode() not in data or not data.endswith(b"\n"):
            ready, _, _ = select.select([self._output], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._output, 1 << 16) if ready else b""
            assert part, f"{command!r} did not end; its output: {data.decode()}"
            data += part
        output, _, code = data.decode().rpartition(mark)
        return Done(output.replace("\r\n", "\n"), int(code))

    def follow(self, step: Step) -> str:
        """Do a step of a page and hold what it prints against what the page says: what is wrong, or nothing."""
        end = time.monotonic() + _PATIENCE
        while True:
            done = self.run(step.command)
            if _is_as_promised(step.expected, done):
                return ""
            looks = step.command.startswith(_LOOKS) or step.command.partition("-- ")[2].startswith("curl ")
            if not looks or time.monotonic() > end:
                return f"{step.command}\n--- said (exit code {done.code})\n{done.output}--- the page says\n{step.expected}"
            time.sleep(0.05)


class Done(NamedTuple):
    output: str
    code: int


def _is_as_promised(expected: str | None, done: Done) -> bool:
    """A failure must be visible in the page: a command without output has succeeded."""
    if expected is None:
        return done.code == 0
    return matches(expected, done.output) and (done.code == 0 or bool(expected))
