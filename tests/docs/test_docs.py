"""Every example of the documentation does what the page says, on a host of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.pages import ROOT
from tests.docs.shell import Shell

with_clients = [page for page in pages.PAGES if pages.needs_docker(page) or pages.needs_podman(page)]
with_commands = [page for page in pages.PAGES if pages.has(page, "console") and page not in with_clients]
with_python = [page for page in pages.PAGES if pages.has(page, "python")]


@pytest.mark.parametrize("page", with_commands, ids=pages.name)
def test_the_commands_of_a_page_print_what_the_page_says(page: Path, host: None) -> None:
    steps = pages.steps(page)
    for tool in ("curl", "ping", "ip", "nft", "tc", "iptables-nft"):
        if any(tool in step.command.split() for step in steps) and shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    root = pages.is_for_root(page)
    if not root:
        need_ordinary_users()
    with Shell(root=root) as shell:
        for step in steps:
            if wrong := shell.follow(step):
                pytest.fail(f"{pages.name(page)}:{step.line}: {wrong}", pytrace=False)


def need_ordinary_users() -> None:
    """Skip where nobody can be an ordinary user with a private host: in a user namespace, or by the kernel's settings."""
    if Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]:
        pytest.skip("there is only one user here")
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "--user", "--net", "true"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("an ordinary user may make no namespaces here")


@pytest.mark.parametrize("page", with_python, ids=pages.name)
def test_the_python_of_a_page_prints_what_the_page_says(page: Path, host: None) -> None:
    program, expected = pages.program(page)
    run = f"import sys; exec(compile(sys.stdin.read(), {pages.name(page)!r}, 'exec'))"
    done = subprocess.run([sys.executable, "-c", run], input=program, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert pages.matches(expected, done.stdout), f"printed\n{done.stdout}--- the page says\n{expected}"


def test_the_library_example_runs_without_a_daemon(host: None) -> None:
    done = subprocess.run([sys.executable, ROOT / "examples/two_networks.py"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_line_example_leaves_nothing_behind(host: None) -> None:
    with Shell() as shell:
        before = shell.run("ip -br link; ip -br address; nft list ruleset; ip netns list").output
        done = shell.run(str(ROOT / "examples/web.sh"))
        assert done.code == 0, done.output
        shell.run("atoll daemon stop")
        assert shell.run("ip -br link; ip -br address; nft list ruleset; ip netns list").output == before


def test_the_examples_can_be_started() -> None:
    for example in (ROOT / "examples").iterdir():
        assert os.access(example, os.X_OK), example
