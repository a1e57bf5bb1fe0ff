"""Shared fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Several workers of pytest-xdist share the cores. OpenMP reads this when PyTorch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from fastreid_al import plugins
from fastreid_al.engine import precision
from tests.support.process_pool import Pool
from tests.support.tiny import MODEL

#: Modules that take minutes. They come first, so that no worker waits for another at the end.
LONGEST = (
    "test_train_killed",
    "test_compile",
    "test_train_ranks",
    "test_imitated_gpu_check",
    "test_imitated_cuda",
    "test_imitated_ranks",
    "test_imitated_graph",
    "test_faults",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def _cpu_units() -> Iterator[None]:
    """FASTREID_AL_TEST_BF16_UNITS 0 or 1 sets whether the CPU has units for bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        forced = os.environ.get("FASTREID_AL_TEST_BF16_UNITS")
        if forced is not None:
            flags = {"avx512_bf16"} if int(forced) else set()
            patch.setattr(precision, "_flags", lambda: flags)
        yield


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)


@pytest.fixture
def released_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The models of the package alone, without that of the tests."""
    monkeypatch.delitem(plugins.BUILT_IN[plugins.MODELS], MODEL)
    plugins.available.cache_clear()
    yield
    monkeypatch.undo()
    plugins.available.cache_clear()


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Processes that are one another's ranks."""
    pool = Pool()
    yield pool
    pool.close()
