"""The how-to for Docker does what it says, with the real dockerd, on a host where Atoll was never before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.docker_host import IMAGE
from tests.clients.neighbours_host import need, private_host
from tests.docs import pages
from tests.docs.shell import Shell

if TYPE_CHECKING:
    from pathlib import Path

with_docker = [page for page in pages.PAGES if pages.has(page, "console") and pages.needs_docker(page)]


@pytest.mark.parametrize("page", with_docker, ids=pages.name)
def test_the_commands_of_a_page_print_what_the_page_says(page: Path) -> None:
    need("dockerd", "docker", "docker-compose", "containerd", "busybox", "curl", "ip", "nft", "unshare", "nsenter")
    with private_host() as host:
        host.start_dockerd("nft")
        host.run("sh", "-ec", IMAGE)
        with Shell(enter=host.enter) as shell:
            for step in pages.steps(page):
                if wrong := shell.follow(step):
                    seen = shell.run("atoll events | tail -20; atoll doctor; docker ps -a; ip neigh").output
                    pytest.fail(f"{pages.name(page)}:{step.line}: {wrong}\n{seen}", pytrace=False)
