"""Inputs that the benchmarks share, and the one way in which they measure."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import multiprocessing
import resource
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

_MIB = 2**20
_CENTRE_DIMENSIONS = 16
_SPREAD = 2.0
_GRID = np.float32(2**11)


class Inputs(NamedTuple):
    """What a measured call is given: `make(device, *settings)`.

    It is made again in a child process, so `make` and the call belong to a module and `settings` can be pickled.
    """

    make: Callable[..., tuple[Any, ...]]
    settings: tuple[Any, ...]


def planted_features(n: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit rows around n / 20 centres, and the centre of each row: (n, dim) float32, (n,) int64.

    The centres lie in few dimensions, so that they crowd each other as identities do: clusters touch, and some rows are noise.
    Coordinates are multiples of 2^-11 (rows are of length one up to 1e-3): a dot product is then exact in float32 in whatever
    order it is summed, and two implementations see the same similarities and the same ties, on every device.
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
    """Time a call in this process and take its peak memory in a fresh one; gives what the call returns."""
    result, events = _timed(benchmark, call, inputs, device, rounds, warmup)
    benchmark.extra_info.update(
        n=n,
        dim=dim,
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )
    if events:
        benchmark.extra_info["cuda_event_median_ms"] = round(statistics.median(events), 4)
    if not benchmark.disabled:
        benchmark.extra_info.update(peak_memory(call, inputs, device))
    return result


def _timed(
    benchmark: BenchmarkFixture, call: Callable[..., Any], inputs: Inputs, device: str, rounds: int, warmup: int
) -> tuple[Any, list[float]]:
    """The last result, and on CUDA the milliseconds of each round between two events."""
    arguments = inputs.make(device, *inputs.settings)
    if device == "cpu":
        return benchmark.pedantic(call, arguments, rounds=rounds, warmup_rounds=warmup, iterations=1), []
    milliseconds: list[float] = []

    def synchronised() -> Any:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        result = call(*arguments)
        end.record()
        torch.cuda.synchronize()
        milliseconds.append(start.elapsed_time(end))
        return result

    torch.cuda.synchronize()
    result = benchmark.pedantic(synchronised, rounds=rounds, warmup_rounds=warmup, iterations=1)
    return result, milliseconds[-rounds:]


def median_seconds(benchmark: BenchmarkFixture) -> float | None:
    """Median of the rounds, None where nothing was timed (--benchmark-disable)."""
    return float(benchmark.stats.stats.median) if benchmark.stats else None


def peak_memory(call: Callable[..., Any], inputs: Inputs, device: str) -> dict[str, float | str]:
    """Most memory that a call takes over what its inputs take, in a process that has done nothing else.

    Returns:
        On the CPU `peak_extra_MiB`, growth of the resident set, and `peak_from`, how it was read. On CUDA `peak_extra_MiB` is
        growth of the memory that PyTorch has allocated there, and `host_peak_extra_MiB` and `peak_from` are of the process.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_here, call, inputs, device).result()


def _peak_here(call: Callable[..., Any], inputs: Inputs, device: str) -> dict[str, float | str]:
    arguments = inputs.make(device, *inputs.settings)
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
    # Without the reset the peak of making the inputs may hide some of the growth.
    found["peak_from"] = "VmHWM" if reset else "ru_maxrss, a lower bound"
    return found


def _return_freed_memory() -> None:
    """Give what making the inputs left free back to the system; the call would use it unseen."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> bool:
    """Set the kernel's record of the peak back to the present size, where it lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return abs(_status("VmHWM") - _status("VmRSS")) < 16 * _MIB
    except (OSError, KeyError):
        return False


def _status(name: str) -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields[name].split()[0]) * 1024


def _greatest_resident() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
