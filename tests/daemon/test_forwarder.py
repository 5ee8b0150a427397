"""The executed file, in C and as a script, in front of a daemon: what goes through it, and what it says when that fails."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from atoll.errors import Denied, Failed, Invalid, NotFound
from atoll.frontends import forwarder
from tests.daemon.doors import KINDS, EchoDaemon, execute, made
from tests.daemon.processes import NOBODY

if TYPE_CHECKING:
    from pathlib import Path


def wish(**wishes: Any) -> bytes:
    return json.dumps(wishes).encode()


# --- what goes through ---------------------------------------------------------------------------------------------------------------


def test_the_door_gets_all_that_the_runtime_gave(echoing: EchoDaemon, program: Path) -> None:
    environment: dict[str, str | bytes] = {
        "CNI_COMMAND": "ADD",
        "CNI_ARGS": b"\xff=\xc3\xa9\n",
        "NETAVARK_FW": "",
        "RUST_LOG": "warn",
        "PATH": "/bin",
        "CNI": "no",
    }
    stdin = bytes(range(256)) * 1000
    call = execute(program, "", "two words", b"\xfe", stdin=stdin, environment=environment, cwd="/usr").echo
    assert call == {
        "door": "cni",
        "program": str(program),
        "arguments": ["", "two words", "\\udcfe"],
        "environment": {"CNI_COMMAND": "ADD", "CNI_ARGS": "\\udcff=é\n", "NETAVARK_FW": "", "RUST_LOG": "warn"},
        "stdin": stdin.decode("latin-1"),
        "folder": "/usr",
    }


def test_the_program_is_the_path_that_was_called_and_not_where_a_link_leads(echoing: EchoDaemon, program: Path) -> None:
    link = program.with_name("portmap")
    link.symlink_to(program)
    assert execute(link).echo["program"] == str(link)
    done = subprocess.run(["./bin/portmap"], cwd=program.parent.parent, env={}, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert json.loads(done.stdout)["call"]["program"] == "./bin/portmap"


def test_of_a_variable_that_is_there_twice_the_first_counts(echoing: EchoDaemon, program: Path) -> None:
    # Only execve itself can make such an environment: by a shim in C or, here, by the kernel's own door.
    code = "import ctypes,sys; c=ctypes.c_char_p; a=(c*2)(sys.argv[1].encode(),None); "
    code += "e=(c*3)(b'CNI_ARGS=first',b'CNI_ARGS=second',None); ctypes.CDLL(None).execve(a[0],a,e)"
    done = subprocess.run([sys.executable, "-c", code, str(program)], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert json.loads(done.stdout)["call"]["environment"] == {"CNI_ARGS": "first"}


def test_the_caller_gets_all_that_the_door_says(echoing: EchoDaemon, program: Path) -> None:
    assert execute(program, stdin=wish(say={"code": 7, "stdout": "öut\n", "stderr": "err"})) == (7, "öut\n".encode(), b"err")
    large = "x" * (5 << 20)
    assert execute(program, stdin=wish(say={"code": 255, "stdout": large})) == (255, large.encode(), b"")


def test_closed_descriptors_are_empty_input_and_no_harm(echoing: EchoDaemon, program: Path) -> None:
    script = 'exec "$0" <&- 2>&-'
    done = subprocess.run(["sh", "-c", script, str(program)], env={}, stdout=subprocess.PIPE, check=True)
    assert json.loads(done.stdout)["call"]["stdin"] == ""
    assert subprocess.run(["sh", "-c", 'exec "$0" <&- >&- 2>&-', str(program)], env={}, check=False).returncode == 0


def test_output_that_nobody_takes_is_a_failure(echoing: EchoDaemon, program: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([program], input=b"{}", env={}, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1


def test_an_error_that_nobody_takes_is_a_failure_and_no_more(echoing: EchoDaemon, program: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([program], input=wish(say={"run": "/nonexistent"}), env={}, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


def test_input_beyond_the_limit_is_refused_in_the_clients_form(echoing: EchoDaemon, program: Path) -> None:
    error = execute(program, stdin=bytes((16 << 20) + 1)).error
    assert error == {
        "cniVersion": "1.0.0",
        "code": 5,
        "msg": "Atoll: the standard input is too large",
        "details": "the limit is 16 MiB",
    }
    assert execute(program, stdin=bytes(16 << 20)).error["msg"] == "Atoll: the call is too large"


# --- the program that stood there before ---------------------------------------------------------------------------------------------

SHOW = """#!/bin/sh
printf '%s\\n' "$0" "$@" "$CNI_COMMAND" "$OTHER"
cat
exit 3
"""


def test_the_original_runs_with_the_same_arguments_environment_and_stdin(echoing: EchoDaemon, program: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.write_text(SHOW)
    original.chmod(0o755)
    stdin = wish(say={"run": str(original)}, filling="x" * 3_000_000)
    said = execute(program, "a b", "", stdin=stdin, environment={"CNI_COMMAND": "DEL", "OTHER": "kept", "PATH": os.environ["PATH"]})
    assert said == (3, f"{original}\na b\n\nDEL\nkept\n".encode() + stdin, b"")


@pytest.mark.parametrize(("target", "words"), [("/nonexistent/bridge", "No such file"), ("/etc/passwd", "Permission denied")])
def test_an_original_that_cannot_run_is_an_error(echoing: EchoDaemon, program: Path, target: str, words: str) -> None:
    error = execute(program, stdin=wish(say={"run": target})).error
    assert target in error["msg"]
    assert words in error["details"]


def test_a_forwarder_that_is_told_to_become_itself_ends(echoing: EchoDaemon, program: Path) -> None:
    error = execute(program, stdin=wish(say={"run": str(program)})).error
    assert error["msg"] == "Atoll: the program that stood here before is Atoll's as well"


# --- failures ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("door", "keys"), [("cni", ["cniVersion", "code", "msg", "details"]), ("netavark", ["error"]), ("plugin", ["error"])]
)
def test_a_defect_of_the_door_is_an_error_in_the_clients_form(
    echoing: EchoDaemon, tmp_path: Path, kind: str, door: str, keys: list[str]
) -> None:
    error = execute(made(tmp_path / "bin" / "program", kind, door), stdin=wish(run="raise")).error
    assert list(error) == keys
    assert "the daemon failed inside" in str(error)
    assert "RuntimeError: a defect" in echoing.tail()


def test_a_daemon_that_dies_during_an_add_is_reported_and_the_add_not_repeated(echoing: EchoDaemon, program: Path) -> None:
    error = execute(program, stdin=wish(run="exit"), environment={"CNI_COMMAND": "ADD"}).error
    assert (error["code"], error["msg"]) == (11, "Atoll: the daemon ended while it carried this out")
    assert echoing.has_died()


@pytest.mark.parametrize("kind", KINDS)
def test_a_daemon_that_does_not_answer_is_reported_in_time(echoing: EchoDaemon, tmp_path: Path, kind: str) -> None:
    error = execute(made(tmp_path / "bin" / "netavark", kind, "netavark", patience=1), "setup", stdin=wish(run="hang")).error
    assert error["error"].startswith("Atoll: the daemon does not answer; its log is ")


def test_a_socket_that_hangs_up_at_once_is_an_error_after_a_few_attempts(folders: Path, program: Path) -> None:
    (folders / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folders / "run" / "doors.sock"))
        listener.listen()
        with subprocess.Popen([program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={"CNI_COMMAND": "ADD"}) as process:
            for _ in range(3):
                listener.accept()[0].close()
            out, _ = process.communicate(timeout=60)
    assert json.loads(out)["msg"].endswith("hangs up")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad", b"ATA1\xff\xff\xff\xff", b"ATA1\0\0\0\x04\0\0\0\0", b"ATA1\0\0\0\x10\0\0\1\0" + bytes(12)]
)
def test_nonsense_from_the_daemon_is_an_error(folders: Path, program: Path, answer: bytes) -> None:
    (folders / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folders / "run" / "doors.sock"))
        listener.listen()
        process = subprocess.Popen([program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={})
        with process, listener.accept()[0] as sock:
            sock.sendall(answer)
            out, _ = process.communicate(timeout=60)
    assert json.loads(out)["msg"] == "Atoll: the daemon's answer can't be read"


# --- without a daemon ----------------------------------------------------------------------------------------------------------------


def test_words_of_a_daemon_that_cannot_start_reach_the_client(host: None, folders: Path, program: Path) -> None:
    (folders / "state" / "state.db").mkdir()
    error = execute(program, environment={"CNI_COMMAND": "VERSION"}).error
    assert (error["code"], error["msg"]) == (11, "Atoll: the daemon can't be started")
    assert "the daemon did not start: " in error["details"]


def test_a_run_folder_that_cannot_be_made_is_an_error(host: None, folders: Path, program: Path) -> None:
    (folders / "run").write_text("a file")
    error = execute(program).error
    assert error["msg"].startswith(f"Atoll: {folders}/run/doors")


@pytest.mark.parametrize("kind", KINDS)
def test_another_user_becomes_the_original(host: None, folders: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As a rootless Podman's netavark does: whose state it is decides, as in its user namespace it takes itself for root."""
    otherwise = folders / "otherwise"
    otherwise.write_text(SHOW)
    otherwise.chmod(0o755)
    program = made(folders / "bin" / "bridge", kind, otherwise=str(otherwise))
    original = program.parent / forwarder.REPLACED / "bridge"
    original.parent.mkdir()
    shutil.copy(otherwise, original)
    try:
        os.chown(folders / "state", NOBODY, NOBODY)
    except OSError:
        pytest.skip(f"needs root, to give a folder to user {NOBODY}")
    for expected in (original, otherwise):
        said = execute(program, "x", stdin=b"stdin", environment={"PATH": os.environ["PATH"]})
        assert said == (3, f"{expected}\nx\n\n\nstdin".encode(), b"")
        expected.unlink()
    assert execute(program).error["msg"] == f"Atoll: this user may not use the daemon of {folders}/run"
    assert not (folders / "run").exists()


# --- putting it in its place ---------------------------------------------------------------------------------------------------------


def test_a_placed_file_is_ours_and_its_names_are_one_file(host: None, folders: Path) -> None:
    folder = folders / "opt"
    folder.mkdir()
    for name in ("bridge", "portmap"):
        kind = forwarder.place(str(folder / name), "cni")
        assert forwarder.is_ours(str(folder / name))
        assert forwarder.kind(str(folder / name)) == kind
    forwarder.place(str(folder / "netavark"), "netavark")
    assert [forwarder.door_of(str(folder / name)) for name in ("bridge", "netavark", "missing")] == ["cni", "netavark", ""]
    assert os.path.samefile(folder / "bridge", folder / "portmap")
    assert not os.path.samefile(folder / "bridge", folder / "netavark")
    assert sorted(path.name for path in folder.iterdir()) == ["bridge", "netavark", "portmap"]
    for name in ("bridge", "portmap", "netavark"):
        forwarder.remove(str(folder / name))
        forwarder.remove(str(folder / name))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("link", [False, True], ids=["file", "link"])
def test_what_stood_there_is_kept_and_put_back(host: None, folders: Path, link: bool) -> None:
    folder = folders / "opt"
    folder.mkdir()
    path = folder / "bridge"
    if link:
        path.symlink_to("elsewhere")
    else:
        path.write_text("#!/bin/sh\n")
        path.chmod(0o751)
    before = path.lstat()
    for _ in range(2):
        forwarder.place(str(path), "cni")
        assert forwarder.is_ours(str(path))
        assert forwarder.replaced(str(path)) == str(folder / forwarder.REPLACED / "bridge")
    forwarder.remove(str(path))
    after = path.lstat()
    assert (before.st_ino, before.st_mode, before.st_mtime_ns) == (after.st_ino, after.st_mode, after.st_mtime_ns)
    assert [item.name for item in folder.iterdir()] == ["bridge"]
    assert forwarder.replaced(str(path)) == ""


def test_a_foreign_file_is_never_removed(host: None, folders: Path) -> None:
    path = folders / "bridge"
    path.write_text("theirs")
    forwarder.remove(str(path))
    assert path.read_text() == "theirs"
    with pytest.raises(NotFound):
        forwarder.kind(str(path))


def test_what_cannot_be_placed_is_refused_and_changes_nothing(host: None, folders: Path) -> None:
    (folders / "folder").mkdir()
    for path, door in (
        (str(folders / "folder"), "cni"),
        ("relative", "cni"),
        (str(folders / "x"), "docker"),
        (f"{folders}/missing/x", "cni"),
    ):
        with pytest.raises(Exception, match=r".+; .+") as caught:
            forwarder.place(path, door)
        assert type(caught.value).__module__ == "atoll.errors"
    assert not (folders / "x").exists()


def test_a_replaced_file_stays_when_ours_cannot_be_put_there(host: None, folders: Path) -> None:
    folder = folders / "opt"
    folder.mkdir()
    (folder / "bridge").write_text("theirs")
    (folders / "state").write_text("a file where the folder should be")
    with pytest.raises(Failed, match="putting a forwarder at"):
        forwarder.place(str(folder / "bridge"), "cni")
    assert (folder / "bridge").read_text() == "theirs"
    assert [path.name for path in folder.iterdir()] == ["bridge"]


def test_a_run_folder_that_no_socket_fits_in_is_refused(host: None, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_RUN", str(folders / ("x" * 100)))
    with pytest.raises(Invalid, match="too long"):
        forwarder.place(str(folders / "bridge"), "cni")


def test_an_ordinary_user_is_refused(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Denied, match="only root"):
        forwarder.place(str(folders / "bridge"), "cni")
    with pytest.raises(Denied, match="only root"):
        forwarder.remove(str(folders / "bridge"))


@pytest.mark.parametrize("kind", KINDS)
def test_folders_with_strange_names_are_baked_in_as_they_are(host: None, folders: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    strange = folders / 'a "b\\ é?7\n$x'
    monkeypatch.setenv("ATOLL_RUN", str(strange))
    strange.mkdir()
    program = made(folders / "bin" / "bridge", kind, patience=5)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(strange / "doors.sock"))
        listener.listen()
        with subprocess.Popen([program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={}) as process:
            listener.settimeout(20)
            listener.accept()[0].close()
            listener.close()
            process.kill()
