"""Options of the benchmarks: `pytest bench --benchmark-only [--scale small|market|msmt17] [--device cpu|cuda]`."""

from __future__ import annotations

import pytest
import torch

SCALES = ("small", "market", "msmt17")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastreid_al benchmarks")
    group.addoption("--scale", choices=SCALES, default="small", help="size of the problems")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where they run")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: there is no CUDA device here; give --device cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A benchmark that asks for `size` runs at each of its module's SIZES of the scale."""
    if "size" in metafunc.fixturenames:
        sizes = metafunc.module.SIZES[metafunc.config.getoption("--scale")]
        metafunc.parametrize("size", sizes, ids=lambda size: "x".join(map(str, size)))


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--scale"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))


@pytest.fixture
def rounds(scale: str, device: str) -> int:
    """Few rounds where one takes minutes."""
    if scale == "small":
        return 5
    return 2 if device == "cuda" else 1
