"""Inputs of the benchmarks, and how they measure."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import math
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

T = TypeVar("T")

_MIB = 2**20
_CENTRE_DIMENSIONS = 16
_SPREAD = 2.0
_GRID = np.float32(2**11)
#: Relative error that is accepted without comparison, by dtype.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
#: Calls of an operator that are timed, and seconds that they may take together.
_ROUNDS, _SECONDS = 100, 1.0
#: A call of more seconds than this is timed once.
_SLOW = 5.0
#: Clock cycles, some two milliseconds, in which the host queues a call before the device starts it.
_AHEAD = 2**22
#: Bytes written between two calls on CUDA: more than any of its caches holds.
_FLUSH = 2**28
#: Values that are copied, and width of the matrices that are multiplied, to measure the ceilings.
_COPIED = {"cpu": 2**25, "cuda": 2**28}
_MULTIPLIED = {"cpu": 1024, "cuda": 8192}

#: Fresh processes at the cost of a fork: their template has imported PyTorch and has not used it.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["numpy", "torch"])


class Inputs(NamedTuple):
    """Arguments of a measured call: `make(device, *settings)`.

    They are made again in a child process, so `make` and the call must be module-level functions
    and `settings` must be picklable.
    """

    make: Callable[..., tuple[Any, ...]]
    settings: tuple[Any, ...]


class Work(NamedTuple):
    """The least work that a call has to do.

    Args:
        operations: On floating-point numbers; a multiplication and an addition are two.
        bytes: Each input read once, each output written once.
        unit: The unit that does the arithmetic, a key of `peaks`: "float32", "tf32" or "bfloat16".
    """

    operations: float
    bytes: float
    unit: str


def planted_features(n: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit rows around n / 20 centres, and the centre of each row: (n, dim) float32, (n,) int64.

    The centres lie in few dimensions, so that they crowd each other as identities do: clusters
    touch, and some rows are noise. Coordinates are multiples of 2^-11 (rows are unit-norm up to
    1e-3): a dot product is then exact in float32 in whatever order it is summed, and two
    implementations see the same similarities and the same ties, on every device.
    """
    random = np.random.default_rng(seed)
    count = max(1, n // 20)
    centres = random.standard_normal((count, _CENTRE_DIMENSIONS), dtype=np.float32)
    centres = centres @ random.standard_normal((_CENTRE_DIMENSIONS, dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    identities = random.integers(count, size=n)
    features = random.standard_normal((n, dim), dtype=np.float32)
    features *= np.float32(_SPREAD / math.sqrt(dim))
    features += centres[identities]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features *= _GRID
    np.rint(features, out=features)
    features /= _GRID
    return torch.from_numpy(features), torch.from_numpy(identities)


def unit_rows(
    device: str, dtype: str, n: int, dim: int, *, spread: float = _SPREAD, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """`planted_features` for millions of rows: generated on the device, block by block, in a dtype.

    Returns the rows (n, dim) and their centres (n,). Only with `exact` are coordinates multiples of
    2^-11; otherwise rounding would not show in the results.
    """
    generator = torch.Generator(device).manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, device=device)
    count = max(1, n // 20)
    centres = F.normalize(draw(count, _CENTRE_DIMENSIONS) @ draw(_CENTRE_DIMENSIONS, dim))
    identities = torch.randint(count, (n,), generator=generator, device=device)
    rows = torch.empty(n, dim, dtype=getattr(torch, dtype), device=device)
    for start in range(0, n, 2**14):
        block = centres[identities[start : start + 2**14]]
        block += draw(block.shape) * (spread / math.sqrt(dim))
        block = F.normalize(block)
        if exact:
            block.mul_(float(_GRID)).round_().div_(float(_GRID))
        rows[start : start + len(block)] = block
    return rows, identities


def near(bank: Tensor, places: Tensor, spread: float = 1.0) -> Tensor:
    """Unit-norm features of a batch: rows of the bank plus noise of length `spread`."""
    generator = torch.Generator(bank.device).manual_seed(1)
    moved = bank[places].float()
    noise = torch.randn(moved.shape, generator=generator, device=bank.device)
    moved += noise * (spread / math.sqrt(bank.shape[1]))
    return F.normalize(moved).to(bank.dtype)


def clocked(call: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    """Result of a call, and the seconds until the caller and the device have finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    before = time.perf_counter()
    result = call(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - before


def value_and_gradient(
    loss: Callable[..., Tensor], features: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Loss of features and its gradient for them."""
    leaf = features.detach().requires_grad_()
    value = loss(leaf, *rest)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Norm of the difference divided by the norm of the reference; NaN if a value is NaN."""
    reference = reference.double()
    return float((found.double() - reference).norm() / reference.norm())


def check(
    benchmark: BenchmarkFixture,
    error: float,
    error_of_eager: float,
    found: Sequence[Tensor],
    operators: Sequence[Tensor],
) -> None:
    """Record the relative errors against float64, and compare them with eager's error.

    The results are compared with those of the operator as well. In bfloat16 the errors of forms
    other than ours are recorded only.
    """
    benchmark.extra_info.update(error_vs_float64=error, error_of_eager=error_of_eager)
    form, dtype = benchmark.extra_info["form"], benchmark.extra_info["dtype"]
    if form.startswith("ours") or dtype == "float32":
        assert error <= 2 * error_of_eager + _TOLERANCE[dtype]
        for part, operators_part in zip(found, operators, strict=True):
            assert relative_error(part, operators_part) <= 2 * error_of_eager + _TOLERANCE[dtype]


@functools.cache
def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of a function, once per process."""
    return torch.compile(call)


def need_compiler(device: str) -> None:
    """Skip if `torch.compile` has no compiler."""
    compiler = os.environ.get("CXX", "g++")
    if device == "cpu" and shutil.which(compiler) is None:
        pytest.skip(f"torch.compile needs a C++ compiler on a CPU; there is no {compiler}")


def measure(
    benchmark: BenchmarkFixture,
    call: Callable[..., Any],
    inputs: Inputs,
    device: str,
    *,
    n: int,
    dim: int,
    rounds: int,
    warmup: int = 0,
) -> Any:
    """Time a call and measure its peak memory, on a CPU in a fresh process. Returns its result."""
    rounds, warmup = min(rounds, _ROUNDS), min(warmup, _ROUNDS)
    result, events, peaks_mib = _timed(benchmark, call, inputs, device, rounds, warmup)
    benchmark.extra_info.update(n=n, dim=dim, **surroundings(device))
    if events:
        benchmark.extra_info["cuda_event_median_ms"] = round(statistics.median(events), 4)
        benchmark.extra_info.update(_on_device(peaks_mib))
    elif not benchmark.disabled:
        benchmark.extra_info.update(peak_memory(call, inputs, device))
    return result


def measure_operator(
    benchmark: BenchmarkFixture,
    call: Callable[..., Any],
    inputs: Inputs,
    device: str,
    *,
    operator: str,
    form: str,
    size: str,
    dtype: str,
    work: Work,
) -> Any:
    """`measure` for calls of microseconds to seconds, with rates.

    Returns the result of the first call.

    The rounds fill a second. On CUDA `cuda_event_median_ms` is the device's time of calls whose
    inputs are not in its caches and that were queued before the device was ready, and the rates are
    for that time; the benchmark's own median is the caller's waiting time. On a CPU inputs stay in
    the caches where they fit, so the share of the roofline may exceed 1.
    """
    benchmark.group = f"{operator}, {size}, {dtype}"
    benchmark.extra_info.update(
        operator=operator, form=form, size=size, dtype=dtype, **surroundings(device)
    )
    arguments = inputs.make(device, *inputs.settings)
    result = _finished(call, arguments, device)
    seconds = 0.0 if benchmark.disabled else _seconds(call, arguments, device)
    slow = seconds > _SLOW
    rounds = 1 if benchmark.disabled or slow else min(_ROUNDS, max(3, int(_SECONDS / seconds)))
    benchmark.pedantic(_finished, (call, arguments, device), rounds=rounds, iterations=1)
    if benchmark.disabled:
        return result
    seconds = median_seconds(benchmark) or math.nan
    if device == "cuda":
        cold = torch.empty(_FLUSH, dtype=torch.int8, device=device)
        seconds = statistics.median(_seconds(call, arguments, device, cold) for _ in range(rounds))
        benchmark.extra_info["cuda_event_median_ms"] = round(1e3 * seconds, 5)
        del cold
        peaks_mib: list[float] = []
        with _allocated(peaks_mib):
            call(*arguments)
        benchmark.extra_info.update(_on_device(peaks_mib))
    del arguments
    _let_go(device)
    benchmark.extra_info.update(_rates(work, seconds, device))
    if device == "cpu":
        benchmark.extra_info.update(peak_memory(call, inputs, device, warm=not slow))
    return result


def _rates(work: Work, seconds: float, device: str) -> dict[str, Any]:
    """Rates of a call, and the ceilings above them."""
    ceilings = peaks(device)
    floor = max(work.bytes / 1e9 / ceilings["copy"], work.operations / 1e12 / ceilings[work.unit])
    return {
        "GB_per_s": float(f"{work.bytes / 1e9 / seconds:.4g}"),
        "TFLOP_per_s": float(f"{work.operations / 1e12 / seconds:.4g}"),
        "operations_per_byte": float(f"{work.operations / work.bytes:.4g}"),
        "unit": work.unit,
        "floor_ms": float(f"{1e3 * floor:.4g}"),
        "roofline_share": float(f"{floor / seconds:.3g}"),
        "peaks": ceilings,
    }


@functools.cache
def peaks(device: str) -> dict[str, float]:
    """Ceilings of this machine, measured once.

    `copy` in GB/s, read and written; square matrix products in TFLOP/s.
    """
    size = _MULTIPLIED[device]
    source = torch.rand(_COPIED[device], device=device)
    target = torch.empty_like(source)
    found = {
        "copy": 2
        * source.nbytes
        / 1e9
        / min(_seconds(target.copy_, (source,), device) for _ in range(8))
    }
    del source, target
    precision = torch.get_float32_matmul_precision()
    for unit in ("float32", "bfloat16", *(("tf32",) if device == "cuda" else ())):
        kind = torch.bfloat16 if unit == "bfloat16" else torch.float32
        square = torch.randn(size, size, device=device).to(kind)
        torch.set_float32_matmul_precision("high" if unit == "tf32" else "highest")
        fastest = min(_seconds(torch.mm, (square, square), device) for _ in range(8))
        found[unit] = 2 * size**3 / 1e12 / fastest
        del square
    torch.set_float32_matmul_precision(precision)
    _let_go(device)
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def _seconds(
    call: Callable[..., Any], arguments: tuple[Any, ...], device: str, cold: Tensor | None = None
) -> float:
    """Seconds of one call.

    On CUDA they are measured between two events. The call is queued while the device is kept busy,
    after a write that evicts its caches.
    """
    if device == "cpu":
        before = time.perf_counter()
        call(*arguments)
        return time.perf_counter() - before
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(_AHEAD)
    if cold is not None:
        cold.zero_()
    start.record()
    call(*arguments)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _finished(call: Callable[..., Any], arguments: tuple[Any, ...], device: str) -> Any:
    result = call(*arguments)
    if device == "cuda":
        torch.cuda.synchronize()
    return result


def _let_go(device: str) -> None:
    """Release PyTorch's cached memory: another process measures on the same device."""
    if device == "cuda":
        torch.cuda.empty_cache()


def surroundings(device: str) -> dict[str, Any]:
    """Device, PyTorch version and threads, recorded with every figure."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _timed(
    benchmark: BenchmarkFixture,
    call: Callable[..., Any],
    inputs: Inputs,
    device: str,
    rounds: int,
    warmup: int,
) -> tuple[Any, list[float], list[float]]:
    """The last result, and on CUDA the milliseconds between two events and the peak MiB of each
    round.
    """
    arguments = inputs.make(device, *inputs.settings)
    if device == "cpu":
        return (
            benchmark.pedantic(call, arguments, rounds=rounds, warmup_rounds=warmup, iterations=1),
            [],
            [],
        )
    milliseconds: list[float] = []
    peaks_mib: list[float] = []

    def synchronised() -> Any:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with _allocated(peaks_mib):
            start.record()
            result = call(*arguments)
            end.record()
        milliseconds.append(start.elapsed_time(end))
        return result

    torch.cuda.synchronize()
    result = benchmark.pedantic(synchronised, rounds=rounds, warmup_rounds=warmup, iterations=1)
    return result, milliseconds[-rounds:], peaks_mib[-rounds:]


@contextlib.contextmanager
def _allocated(found: list[float]) -> Iterator[None]:
    """Append the most MiB that a block has allocated on the device in addition to what was there.

    The allocator counts exactly, so that this needs no process of its own, which would take longer
    to start than most calls take.
    """
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield
    torch.cuda.synchronize()
    found.append((torch.cuda.max_memory_allocated() - before) / _MIB)


def _on_device(peaks_mib: list[float]) -> dict[str, float | str]:
    return {"peak_extra_MiB": round(max(peaks_mib), 1), "peak_from": "allocated by PyTorch"}


def median_seconds(benchmark: BenchmarkFixture) -> float | None:
    """Median of the rounds; None if nothing was timed (benchmarks disabled)."""
    return float(benchmark.stats.stats.median) if benchmark.stats else None


def peak_memory(
    call: Callable[..., Any], inputs: Inputs, device: str, warm: bool = False
) -> dict[str, float | str]:
    """Peak memory of a call in addition to its inputs, in a process that has done nothing else.

    Args:
        call: The measured call.
        inputs: Its arguments.
        device: Where it runs.
        warm: Call it once before, so that compilation and start-up of a first call do not count.

    Returns:
        On the CPU `peak_extra_MiB`, growth of the resident set, and `peak_from`, how it was read.
        On CUDA `peak_extra_MiB` is the growth of the memory that PyTorch has allocated there, and
        `host_peak_extra_MiB` and `peak_from` are those of the process.
    """
    return in_fresh_process(peak_memory_here, call, inputs, device, warm)


def in_fresh_process(call: Callable[..., T], *arguments: Any) -> T:
    """Result of a call in a process that has done nothing else; call and arguments must be
    picklable.
    """
    with ProcessPoolExecutor(1, mp_context=_PROCESSES) as pool:
        return pool.submit(call, *arguments).result()


def peak_memory_here(
    call: Callable[..., Any], inputs: Inputs, device: str, warm: bool = False
) -> dict[str, float | str]:
    """`peak_memory` in this process."""
    arguments = inputs.make(device, *inputs.settings)
    if warm:
        call(*arguments)
    gc.collect()
    _return_freed_memory()
    reset = _reset_peak()
    before = _status("VmRSS") if reset else _greatest_resident()
    allocated = 0
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
    call(*arguments)
    found: dict[str, float | str] = {}
    if device == "cuda":
        torch.cuda.synchronize()
        found["peak_extra_MiB"] = round((torch.cuda.max_memory_allocated() - allocated) / _MIB, 1)
    host = (_status("VmHWM") if reset else _greatest_resident()) - before
    found["host_peak_extra_MiB" if device == "cuda" else "peak_extra_MiB"] = round(host / _MIB, 1)
    # Without the reset the peak while making the inputs may hide a part of the growth.
    found["peak_from"] = "VmHWM" if reset else "ru_maxrss, a lower bound"
    return found


def _return_freed_memory() -> None:
    """Return memory freed after making the inputs to the system; otherwise the call would reuse it
    unseen.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> bool:
    """Reset the kernel's record of the peak to the present size, if it allows that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return abs(_status("VmHWM") - _status("VmRSS")) < 16 * _MIB
    except (OSError, KeyError):
        return False


def _status(name: str) -> int:
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    return int(fields[name].split()[0]) * 1024


def _greatest_resident() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
