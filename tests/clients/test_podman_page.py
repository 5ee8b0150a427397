"""The how-to about Podman does what it says, with the real Podman."""

from __future__ import annotations

import time

import pytest

from tests.clients.podman_host import podman_host
from tests.docs import pages

#: Commands that only look at what may not be there yet, and how long they may look (seconds).
_LOOKS = ("curl ", "atoll ns ls", "atoll network ls", "podman exec ", "atoll run ", "atoll ns exec ")
_PATIENCE = 10.0


def test_the_commands_of_the_page_about_podman_print_what_it_says() -> None:
    page = pages.ROOT / "docs/howto/podman.md"
    with podman_host() as there:
        for step in pages.steps(page):
            end = time.monotonic() + _PATIENCE
            while True:
                _, output, words = there.host.runner(["bash", "-c", f"PATH={there.path}\n{step.command}"])
                if step.expected is None or pages.matches(step.expected, output + words):
                    break
                if not step.command.startswith(_LOOKS) or time.monotonic() > end:
                    pytest.fail(f"{page}:{step.line}: {step.command}\n{output}{words}--- the page says\n{step.expected}", pytrace=False)
                time.sleep(0.1)
