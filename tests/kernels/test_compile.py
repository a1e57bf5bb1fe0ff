"""Every Triton kernel compiles to sound machine code with every tile, for every chip.

No GPU is needed.
"""

from __future__ import annotations

import os
from functools import cache

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from tests.support import chips  # noqa: E402
from tests.support.chips import CHIPS, Compiled  # noqa: E402

#: Chips that not every build of Triton compiles for.
OPTIONAL = ("sm_100", "gfx942")


@cache
def compiled_for_all_chips() -> dict[str, list[Compiled]]:
    """Every launch by chip, the trial first, compiled by one pool of processes."""
    jobs = chips.every_job(list(CHIPS))
    by_chip: dict[str, list[Compiled]] = {chip: [] for chip in CHIPS}
    for job, result in zip(jobs, chips.compile_jobs(jobs), strict=True):
        by_chip[job.chip].append(result)
    return by_chip


@pytest.fixture(
    scope="module",
    params=[pytest.param(chip, marks=pytest.mark.slow) for chip in CHIPS],
)
def results(request: pytest.FixtureRequest) -> list[Compiled]:
    """Every launch, compiled for a chip."""
    trial, *real = compiled_for_all_chips()[request.param]
    if trial.failure and trial.chip in OPTIONAL:
        pytest.skip(f"this Triton makes no code for {trial.chip}: {trial.failure}")
    return real


def test_every_kernel_of_the_package_is_launched() -> None:
    assert {launch.kernel.__name__ for launch in chips.captured()} == chips.kernel_names()


def test_every_tile_of_the_table_is_launched() -> None:
    assert chips.unread_tiles() == []


def test_every_launch_compiles(results: list[Compiled]) -> None:
    assert [f"{x}: {x.failure}" for x in results if x.failure] == []
    assert any(x.dots for x in results)


def test_shared_memory_fits_the_chip(results: list[Compiled]) -> None:
    assert [f"{x}: {x.shared} bytes" for x in results if x.shared > CHIPS[x.chip].shared] == []


def test_no_registers_are_spilled(results: list[Compiled]) -> None:
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip("assemblers before Triton 3.9's spill a few bytes where it spills none")
    assert [f"{x}: {x.spilled} bytes" for x in results if x.spilled] == []


def test_low_precision_products_run_on_the_preferred_matrix_units(results: list[Compiled]) -> None:
    low = [x for x in results if any(dot.operand != "fp32" for dot in x.dots)]
    assert low
    assert [f"{x}: {x.matrix}" for x in low if not _preferred(x)] == []


def _preferred(x: Compiled) -> bool:
    """Whether the products run on the chip's preferred matrix units only."""
    if x.chip == "gfx942":
        kinds = {"tf32": "xf32", "bf16": "bf16", "fp16": "f16"}
        used = {name.rsplit("_", 1)[1] for name in x.matrix}
        return used == {kinds[dot.operand] for dot in x.dots}
    units = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}
    return x.matrix == (units[x.chip],)


def test_ieee_products_keep_all_bits_of_float32(results: list[Compiled]) -> None:
    exact = [x for x in results if x.dots and all(dot.operand == "fp32" for dot in x.dots)]
    assert exact
    # AMD's matrix units have a full float32 product as well.
    rounded = [x for x in exact if not all(name.endswith("_f32") for name in x.matrix)]
    assert [f"{x}: {x.matrix}" for x in rounded] == []
    assert [str(x) for x in exact if not x.matrix and not x.plain] == []


@pytest.mark.slow
def test_a_spill_is_seen() -> None:
    names = [launch.kernel.__name__ for launch in chips.captured()]
    job = chips.Job(names.index("group_maxima_kernel"), "sm_80", (("maxnreg", 32),))
    (result,) = chips.compile_jobs([job])
    assert not result.failure
    assert result.spilled > 0
