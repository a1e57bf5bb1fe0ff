"""`bank_contrast_cuda` against the same arithmetic in NumPy, and against float64."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import numpy as np

#: Shared memory of a block on compute capability 9.0 and 10.0, for the emulation.
SHARED_BYTES = 227 * 1024
IGNORED = -1
TEMPERATURE = 0.05


class Problem(NamedTuple):
    """A loss.

    Args:
        features: (B, D) uint16, the bits of bfloat16 or float16 values.
        bank: (n, D) uint16.
        targets: (B,) int64.
        float16: Whether the values are float16.
    """

    features: np.ndarray
    bank: np.ndarray
    targets: np.ndarray
    float16: bool


class Results(NamedTuple):
    """Losses (B,), log-sum-exps (B,) and gradients (B, D)."""

    losses: np.ndarray
    log_sums: np.ndarray
    slopes: np.ndarray


def bits_of(values: np.ndarray, float16: bool) -> np.ndarray:
    """The bits of float32 values that are rounded to 16 bits, to the nearest and ties to even."""
    if float16:
        return values.astype(np.float16).view(np.uint16)
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (words + np.uint32(0x7FFF) + (words >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def values_of(bits: np.ndarray, float16: bool) -> np.ndarray:
    """The float32 values of 16-bit values."""
    if float16:
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def problem_of(batch: int, n: int, dim: int, float16: bool = False, spread: float = 3.0) -> Problem:
    """Unit-norm rows; each feature is near the bank row that is its target."""
    random = np.random.default_rng(batch + n + dim)
    bank = random.standard_normal((n, dim))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    targets = random.integers(n, size=batch)
    features = bank[targets] + spread * random.standard_normal((batch, dim)) / np.sqrt(dim)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rows = [bits_of(x.astype(np.float32), float16) for x in (features, bank)]
    return Problem(rows[0], rows[1], targets, float16)


@contextlib.contextmanager
def emulated(clusters: int, shared_bytes: int = SHARED_BYTES) -> Iterator[None]:
    """The emulated device has this shared memory and runs so many clusters at a time."""
    names = {
        "FASTREID_AL_EMULATED_SHARED_BYTES": str(shared_bytes),
        "FASTREID_AL_EMULATED_CLUSTERS": str(clusters),
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def native_problem(module: ModuleType, problem: Problem) -> object:
    """The problem with the addresses of its arrays, whose rows may have a stride."""
    features, bank, targets, float16 = problem
    return module.BankContrast(
        features.ctypes.data,
        bank.ctypes.data,
        targets.ctypes.data,
        len(features),
        *bank.shape,
        features.strides[0] // 2,
        bank.strides[0] // 2,
        IGNORED,
        1.0 / TEMPERATURE,
        float16,
    )


def by_kernel(module: ModuleType, problem: Problem) -> tuple[Results, int]:
    """The results, and the number of parts into which the bank was split."""
    native = native_problem(module, problem)
    parts = module.bank_contrast_cuda_parts(native)
    assert parts >= 1
    batch, dim = problem.features.shape
    # The kernel must write every value that it reads.
    heads = np.full((3, parts, batch), np.nan, np.float32)
    sums = np.full((parts, batch, dim), np.nan, np.float32)
    losses, log_sums = np.full((2, batch), 7, np.float32)
    slopes = np.full((batch + 1, dim), 7, np.float32)
    out = [x.ctypes.data for x in (heads, sums, losses, log_sums, slopes)]
    module.bank_contrast_cuda(native, parts, *out, 0)
    assert (slopes[-1] == 7).all()
    return Results(losses, log_sums, slopes[:-1]), parts


def by_tiles(problem: Problem, parts: int, tile: int) -> Results:
    """The arithmetic of the kernel: a running maximum over tiles, exponentials rounded to 16 bits
    for the second product, and parts that are combined in order.

    Sums within a tile have NumPy's order.
    """
    features, bank = (values_of(x, problem.float16) for x in problem[:2])
    batch, n = len(features), len(bank)
    tiles = -(-n // tile)
    found = []
    for part in range(parts):
        top, total = np.full(batch, -np.inf, np.float32), np.zeros(batch, np.float32)
        sums = np.zeros_like(features)
        for number in range(tiles * part // parts, tiles * (part + 1) // parts):
            rows = bank[number * tile : (number + 1) * tile]
            logits = features @ rows.T * np.float32(1 / TEMPERATURE)
            higher = np.maximum(top, logits.max(1))
            factor, weights = np.exp(top - higher), np.exp(logits - higher[:, None])
            total = total * factor + weights.sum(1)
            rounded = values_of(bits_of(weights, problem.float16), problem.float16)
            sums = sums * factor[:, None] + rounded @ rows
            top = higher
        found.append((top, total, sums))
    top = np.max([x[0] for x in found], 0)
    total, sums = np.zeros(batch, np.float32), np.zeros_like(features)
    for part_top, part_total, part_sums in found:
        factor = np.exp(part_top - top)
        total = total + factor * part_total
        sums = sums + factor[:, None] * part_sums
    rows = bank[problem.targets]
    own = np.einsum("bd,bd->b", features, rows) * np.float32(1 / TEMPERATURE)
    slopes = (sums / total[:, None] - rows) * np.float32(1 / TEMPERATURE)
    return Results(np.log(total) + (top - own), top + np.log(total), slopes)


def exact(problem: Problem) -> Results:
    """The results in float64."""
    features, bank = (values_of(x, problem.float16).astype(np.float64) for x in problem[:2])
    logits = features @ bank.T / TEMPERATURE
    top = logits.max(1, keepdims=True)
    weights = np.exp(logits - top)
    log_sums = top[:, 0] + np.log(weights.sum(1))
    softmax = weights / weights.sum(1, keepdims=True)
    losses = log_sums - logits[np.arange(len(features)), problem.targets]
    return Results(losses, log_sums, (softmax @ bank - bank[problem.targets]) / TEMPERATURE)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference, relative to that of the expected values where this is above 1."""
    return float(np.linalg.norm(found - expected) / max(1.0, np.linalg.norm(expected)))


def tile_of(problem: Problem) -> int:
    """Bank rows of a tile."""
    batch, dim = problem.features.shape
    return 64 if batch <= 64 and dim <= 2048 else 32


def agrees(module: ModuleType, problem: Problem, clusters: int) -> None:
    """The kernel computes what `by_tiles` computes, and is near the results in float64."""
    with emulated(clusters):
        found, parts = by_kernel(module, problem)
    tiled, reference = by_tiles(problem, parts, tile_of(problem)), exact(problem)
    # A float32 sum in another order may round an exponential to the next 16-bit value.
    last_place = 2.0**-11 if problem.float16 else 2.0**-8
    for x, y, z in zip(found, tiled, reference, strict=True):
        assert difference(x, y) < last_place / 8, (difference(x, y), problem.features.shape)
        assert difference(x, z) < last_place, (difference(x, z), problem.features.shape)
    assert np.allclose(found.losses, reference.losses, atol=2e-5, rtol=2e-6)


def same_bits(first: Results, second: Results) -> bool:
    """Whether two results are equal bit for bit."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(first, second, strict=True))


def repeats(module: ModuleType, problem: Problem, plain: Results) -> None:
    """Another order in which the threads run gives the same bits."""
    seed = os.environ.get("FASTREID_AL_EMULATED_SEED", "1")
    os.environ["FASTREID_AL_EMULATED_SEED"] = str(int(seed) + 17)
    again, _ = by_kernel(module, problem)
    os.environ["FASTREID_AL_EMULATED_SEED"] = seed
    assert same_bits(again, plain)


def reads_rows_with_a_stride(module: ModuleType, problem: Problem, plain: Results) -> None:
    """Rows that are a part of wider rows, whose other values are NaN, give the same bits."""
    wider = []
    for rows in problem[:2]:
        wide = np.full((len(rows), rows.shape[1] + 16), 0x7FFF, np.uint16)
        wide[:, : rows.shape[1]] = rows
        wider.append(wide[:, : rows.shape[1]])
    strided, _ = by_kernel(module, problem._replace(features=wider[0], bank=wider[1]))
    assert same_bits(strided, plain)


def keeps_rows_apart(module: ModuleType, problem: Problem, plain: Results) -> None:
    """Ignored features have no loss; a NaN feature or a target outside the bank is its own NaN."""
    nan = bits_of(np.array([np.nan], np.float32), problem.float16)
    features, targets = problem.features.copy(), problem.targets.copy()
    targets[[0, 1]] = IGNORED
    features[[1, 2], 5] = nan
    targets[[3, 4]] = [len(problem.bank), -2]
    found, _ = by_kernel(module, problem._replace(features=features, targets=targets))
    assert not found.losses[:2].any() and not found.slopes[:2].any()
    assert np.isnan(found.losses[2:5]).all() and np.isnan(found.slopes[2:5]).all()
    assert np.isnan(found.log_sums[1:3]).all()
    assert (found.log_sums[[0, 3, 4]] == plain.log_sums[[0, 3, 4]]).all()
    assert same_bits(Results(*(x[5:] for x in found)), Results(*(x[5:] for x in plain)))


def spreads_rows_that_are_not_finite(module: ModuleType, problem: Problem) -> None:
    """A bank row that is not finite makes every loss that depends on it NaN."""
    for value in (np.nan, np.inf):
        bank = problem.bank.copy()
        bank[len(bank) // 2] = bits_of(np.array([value], np.float32), problem.float16)
        found, _ = by_kernel(module, problem._replace(bank=bank))
        assert np.isnan(found.slopes).any(1).all()
        if np.isnan(value):
            assert np.isnan(found.losses).all() and np.isnan(found.log_sums).all()


def run(module: ModuleType) -> None:
    """All shapes of the kernel, the ends of batch, bank and width, and both formats."""
    if not module.cuda:
        return
    with emulated(clusters=1):
        native = native_problem(module, problem_of(1, 1, 8))
        if module.bank_contrast_cuda_parts(native) == 0:
            print("this device has no clusters of blocks with 227 KiB of shared memory each")
            return
    agrees(module, problem_of(1, 1, 8), clusters=1)
    agrees(module, problem_of(64, 200, 512, float16=True), clusters=2)
    agrees(module, problem_of(9, 65, 1032), clusters=1)
    agrees(module, problem_of(70, 100, 1000), clusters=3)
    agrees(module, problem_of(129, 33, 2048, float16=True), clusters=4)
    agrees(module, problem_of(65, 64, 2056), clusters=2)
    agrees(module, problem_of(2, 33, 4096), clusters=1)
    agrees(module, problem_of(512, 40, 16), clusters=4)
    # Twelve tiles in one part: every place of the tiles in shared memory is used twice.
    agrees(module, problem_of(12, 740, 40), clusters=1)
    problem = problem_of(8, 150, 72)
    with emulated(clusters=2):
        plain, _ = by_kernel(module, problem)
        repeats(module, problem, plain)
        reads_rows_with_a_stride(module, problem, plain)
        keeps_rows_apart(module, problem, plain)
        spreads_rows_that_are_not_finite(module, problem)
