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

from reid_kernels import tiles  # noqa: E402

from tests.support import chips  # noqa: E402
from tests.support.chips import CHIPS, Compiled  # noqa: E402

#: Kernels that need few of the products that they compute.
DIAGONAL = ("pair_similarity_kernel",)
#: Single loads that a step of a loop with matrix units may make.
SINGLE_LOADS = {"weighted_kernel": 2}
#: Tile of which one program is meant to fill a multiprocessor.
WIDE = f"{tiles.WIDE_PRODUCT.rows}x{tiles.WIDE_PRODUCT.columns}x"
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
    # Assemblers before Triton 3.9's keep up to 16 bytes where it keeps none.
    most = 0 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 16
    assert [f"{x}: {x.spilled} bytes" for x in results if x.spilled > most] == []


def test_two_large_programs_fit_a_multiprocessor(results: list[Compiled]) -> None:
    disassembled = results[0].chip == chips.DISASSEMBLED
    large = [x for x in results if x.warps == chips.LARGE_WARPS and x.dots and disassembled]
    assert large or not disassembled
    meant = [x for x in large if not ("classes" in x.config or x.config.startswith(WIDE))]
    alone = [x for x in meant if x.programs < 2]
    assert [f"{x}: {x.registers} registers, {x.shared} bytes" for x in alone] == []


def test_loops_of_products_read_whole_words_ahead_of_time(results: list[Compiled]) -> None:
    """Loops with matrix units read memory by asynchronous copies, not value by value."""
    loops = [(x, loop) for x in results for loop in products(x)]
    assert loops or results[0].chip != chips.DISASSEMBLED
    wrong = [(x, loop) for x, loop in loops if reads_single_values(x, loop)]
    assert [f"{x}: {loop}" for x, loop in wrong] == []


def products(x: Compiled) -> list[dict[str, int]]:
    """The loops with matrix units."""
    return [loop for loop in x.loops if "HGMMA" in loop or "HMMA" in loop]


def reads_single_values(x: Compiled, loop: dict[str, int]) -> bool:
    """Whether a loop loads values that it needs at once, or copies nothing ahead of time."""
    return loop.get("LDG", 0) > SINGLE_LOADS.get(x.kernel, 0) or not loop.get("LDGSTS")


@pytest.mark.slow
def test_a_product_that_reads_value_by_value_is_found() -> None:
    (faulty,) = chips.compile_jobs([chips.Job(chips.FAULTY, chips.DISASSEMBLED)])
    assert not faulty.failure
    (loop,) = products(faulty)
    assert reads_single_values(faulty, loop)


def test_loops_of_float32_products_are_mostly_multiply_adds(results: list[Compiled]) -> None:
    shares = [
        (loop["FFMA"] / sum(loop.values()), str(x))
        for x in results
        if x.kernel not in DIAGONAL and all(dot.operand == "fp32" for dot in x.dots)
        for loop in x.loops
        if loop.get("FFMA", 0) >= 64
    ]
    assert shares or results[0].chip != chips.DISASSEMBLED
    assert [pair for pair in shares if pair[0] < 0.6] == []


@pytest.mark.slow
def test_sizes_of_one_and_past_two_to_the_31_compile() -> None:
    results = chips.compile_jobs(chips.jobs_with_integers((1, 2**31 + 16)))
    assert len({x.kernel for x in results}) == len(chips.kernel_names())
    assert [f"{x}: {x.failure}" for x in results if x.failure] == []


def test_loops_are_found_in_machine_code() -> None:
    code = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E R2, [R4] ;
        /*0020*/                   FFMA R2, R2, R3, R2 ;
        /*0030*/              @!P0 FFMA.FTZ R5, R2, R3, R2 ;
        /*0040*/               @P0 BRA 0x20 ;
        /*0050*/             @!P1 BRA 0x10 ;
        /*0060*/                   BRA 0x90 ;
    """
    assert list(chips.loops_of(code)) == [{"FFMA": 2, "BRA": 1}]


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
