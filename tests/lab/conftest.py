"""Tests of the lab begin in a private host as all others do, in which a lab must leave nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from atoll.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lab(host: None) -> Iterator[Lab]:
    with Lab() as made:
        yield made
