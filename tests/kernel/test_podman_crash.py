"""kill -9 at every step of a setup and a teardown: the next engine has nothing half made, and Podman can call again."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import msgspec
import pytest

from atoll import Engine
from tests.podman_calls import COMMON, call, container, done, namespace, network, nothing_is_left, port

if TYPE_CHECKING:
    from pathlib import Path

_CALL: Final = """
import sys
from pathlib import Path
from atoll import Engine
from atoll.frontends import netavark
from atoll.frontends.call import Call
with Engine.open(sys.argv[1]) as engine:
    answer = netavark.answer(engine, Call("netavark", "/x/netavark", tuple(sys.argv[3:]), {}, Path(sys.argv[2]).read_bytes()))
sys.exit(answer.code)
"""
ASKED: Final = container((network(), {"static_ips": ["10.89.0.2"]}), port_mappings=[port(8080)])


def killed(folder: Path, verb: str, step: int, *arguments: str) -> bool:
    """Whether a process that carries out a call dies at this step of a verb; it has fewer steps otherwise."""
    command = [sys.executable, "-c", _CALL, str(folder / "state"), str(folder / "request"), *COMMON, *arguments]
    environment = {"ATOLL_FAULT": f"{verb}:{step}"}
    code = subprocess.run(command, env=environment, check=False, capture_output=True, timeout=60).returncode
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize(
    ("command", "verb"), [("setup", "adopt_namespace"), ("setup", "create_network"), ("setup", "connect"), ("teardown", "remove_namespace")]
)
def test_a_call_that_is_killed_can_be_made_again(host: None, tmp_path: Path, command: str, verb: str) -> None:
    (tmp_path / "request").write_bytes(msgspec.json.encode(ASKED))
    for step in itertools.count(1):
        path = namespace(tmp_path, f"n{step}")
        if command == "teardown":
            with Engine.open(tmp_path / "state") as engine:
                done(call(engine, "setup", path, body=ASKED))
        died = killed(tmp_path, verb, step, command, path)
        with Engine.open(tmp_path / "state") as engine:
            assert not engine.differences()
            assert all(engine.state.count_on(network) for network in engine.state.networks.values())
            if died and command == "setup":
                done(call(engine, "setup", path, body=ASKED))
                assert not engine.differences()
            call(engine, "teardown", path, body=ASKED)
            nothing_is_left(engine)
        if not died:
            assert step > 2
            return
