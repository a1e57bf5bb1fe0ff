"""Options of the benchmarks.

`pytest bench --benchmark-only [--scale SCALE] [--device cpu|cuda]`
"""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastreid_al.files import append_text

#: "tiny" shows that the benchmarks work; its figures mean nothing.
SCALES = ("tiny", "small", "market", "msmt17", "million")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastreid_al benchmarks")
    group.addoption("--scale", choices=SCALES, default="small", help="size of the problems")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where they run")
    group.addoption(
        "--figures",
        type=Path,
        metavar="FILE",
        help="append each figure as a line of JSON as soon as it is measured",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: there is no CUDA device here; give --device cpu")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Append the figure of a benchmark, so that the ones before a crash are kept."""
    report = yield
    path = item.config.getoption("--figures")
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if path and call.when == "call" and benchmark is not None and benchmark.stats:
        append_text(path, json.dumps(figure_of(benchmark, report.passed), default=str) + "\n")
    return report


def figure_of(benchmark: Any, passed: bool) -> dict[str, Any]:
    """What a benchmark has measured, as `bench/report.py` reads it."""
    stats = benchmark.stats.stats
    return {
        "name": benchmark.name,
        "group": benchmark.group,
        "passed": passed,
        "median_s": stats.median if stats.data else None,
        "rounds": stats.rounds,
        "extra_info": benchmark.extra_info,
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A benchmark that asks for `size` runs at each of its module's SIZES of the scale, one that
    asks for `dtype` or `precision` in each.
    """
    if "size" in metafunc.fixturenames:
        scale = metafunc.config.getoption("--scale")
        none = pytest.param((), marks=pytest.mark.skip(reason=f"it has no size at scale {scale}"))
        metafunc.parametrize(
            "size",
            metafunc.module.SIZES.get(scale, [none]),
            ids=lambda size: "x".join(map(str, size)),
        )
    if "dtype" in metafunc.fixturenames:
        on_cuda = metafunc.config.getoption("--device") == "cuda"
        metafunc.parametrize("dtype", ["float32", "bfloat16"] if on_cuda else ["float32"])
    if "precision" in metafunc.fixturenames:
        on_cpu = metafunc.config.getoption("--device") == "cpu"
        metafunc.parametrize("precision", ["float32", "bf16"] if on_cpu else ["float32"])


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
