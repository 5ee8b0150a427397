"""The how-to for Podman does what it says, with the real Podman, on a host where Atoll was never before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.podman_host import podman_host
from tests.docs import pages
from tests.docs.shell import Shell

if TYPE_CHECKING:
    from pathlib import Path

with_podman = [page for page in pages.PAGES if pages.needs_podman(page)]


@pytest.mark.parametrize("page", with_podman, ids=pages.name)
def test_the_commands_of_a_page_print_what_the_page_says(page: Path) -> None:
    with podman_host() as there, Shell(enter=there.host.enter) as shell:
        for step in pages.steps(page):
            if wrong := shell.follow(step):
                pytest.fail(f"{pages.name(page)}:{step.line}: {wrong}", pytrace=False)
