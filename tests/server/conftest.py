"""A small ledger with its application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.labelling import Site

#: Two questions, a sheet of three, and a question about groups of images.
TASKS = [
    [([0], [1])],
    [([2], [3])],
    [([4, 5], [6]), ([4, 5], [7, 8]), ([4, 5], [9])],
    [([10, 11, 12], [13, 14])],
]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site where people need links."""
    made = Site(tmp_path, TASKS)
    yield made
    made.close()


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Site]:
    """A site of whoever uses this machine."""
    made = Site(tmp_path, TASKS, local="anna")
    yield made
    made.close()
