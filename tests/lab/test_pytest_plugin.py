"""The pytest plugin, by runs of pytest in a process of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.daemon.processes import user

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon.processes import User

FAILING = """
import pytest

@pytest.mark.topology({"front": ["web", "db"], "back": ["db"]})
def test_that_fails(lab):
    web, db = lab["web"], lab["db"]
    db.publish("8080:80", network="front")
    web.popen(["sh", "-c", "echo said before the end"]).wait()
    assert web.ping(db) is None, "it answered"
"""


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_inner.py").write_text(program)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=100)


def sections(output: str) -> dict[str, str]:
    parts = re.split(r"^-+ (lab: [a-z ]+) -+$", output, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_report_of_a_failed_test_shows_its_lab(host: None, tmp_path: Path) -> None:
    done = run(tmp_path, FAILING, f"--lab-pcap={tmp_path / 'pcaps'}")
    assert done.returncode == 1, done.stdout + done.stderr
    told = sections(done.stdout)
    assert "network front 172.16.0.0/24" in told["lab: topology"]
    assert "publishes 8080:80/tcp" in told["lab: topology"]
    assert re.search(r"^    default via 172.16.0.1|^  default via 172.16.0.1", told["lab: addresses and routes"], re.MULTILINE)
    assert "table inet atoll" in told["lab: firewall"]
    assert "172.16.0.2 > 172.16.0.3 ICMP echo request 1" in told["lab: last packets"]
    assert "172.16.0.3 > 172.16.0.2 ICMP echo reply 1" in told["lab: last packets"]
    assert "said before the end" in told["lab: processes"]
    (pcap,) = (tmp_path / "pcaps").iterdir()
    if shutil.which("tcpdump") is None:
        pytest.skip("tcpdump is not installed")
    read = subprocess.run(["tcpdump", "-nr", pcap], capture_output=True, text=True, check=True).stdout
    assert "172.16.0.2 > 172.16.0.3: ICMP echo request" in read


def test_workers_side_by_side_have_labs_of_their_own(host: None, tmp_path: Path) -> None:
    program = """
import pytest

@pytest.mark.parametrize("number", range(8))
def test_it(lab, network, number):
    a, b = lab.namespaces("a", "b", network=network.name)
    assert a.address == "172.16.0.2"
    assert a.ping(b) is not None
"""
    done = run(tmp_path, program, "-n", "4", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout


def test_a_run_that_uses_no_lab_is_as_without_the_plugin(host: None, tmp_path: Path) -> None:
    program = """
import os, sys

def test_nothing():
    assert "atoll.engine" not in sys.modules
"""
    assert "1 passed" in run(tmp_path, program).stdout


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_an_ordinary_user_has_labs_where_the_kernel_allows_it(host: None, workers: tuple[str, ...]) -> None:
    with user() as someone:
        if subprocess.run([*someone.become, "unshare", "-Urn", "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("an ordinary user may make no namespaces here")
        done = run_as(someone, FAILING.replace("is None", "is not None"), *workers)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_where_labs_are_refused_tests_are_skipped_and_counted(host: None) -> None:
    with user() as someone:
        done = run_as(someone, FAILING, "-o", "atoll_rootless=off")
    assert "1 skipped" in done.stdout, done.stdout + done.stderr
    assert "atoll labs: 1 skipped: not root, and atoll_rootless is off" in done.stdout


def run_as(someone: User, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest as an ordinary user."""
    folder = someone.folder / "home"
    (folder / "test_inner.py").write_text(program)
    (folder / "test_inner.py").chmod(0o644)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    # The interpreter may have plugins of its own beside the ones that are wanted.
    plugins = ("-p", "no:cacheprovider", "-p", "atoll.lab.pytest_plugin", "-p", "xdist.plugin")
    environment = {name: value for name, value in someone.environment.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [*someone.become, someone.python, "-P", "-m", "pytest", *plugins, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=100)
