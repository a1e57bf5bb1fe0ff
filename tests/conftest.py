"""Shared fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.process_pool import Pool


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Processes that are one another's ranks."""
    pool = Pool()
    yield pool
    pool.close()
