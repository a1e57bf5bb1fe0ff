"""Shared by the tests of the operators."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

ROOT = Path(__file__).resolve().parents[2]
HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, *HALVES)


def unit_rows(n: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random unit-norm rows."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64)).to(dtype)


def on_grid(n: int, dim: int, seed: int = 0) -> Tensor:
    """Rows with few coarse values.

    Their products are exact in any order of summation and in any dtype, and many are equal.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, (n, dim), generator=generator).float() / 4


def strided(x: Tensor) -> Tensor:
    """The same values as every second column of a wider matrix."""
    wide = x.new_full((x.shape[0], 2 * x.shape[1]), torch.nan)
    wide[:, ::2] = x
    return wide[:, ::2]


def assert_as_good_as_eager(got: Tensor, eager: Tensor, exact: Tensor, tiny: float) -> None:
    """Assert an error of at most twice that of plain PyTorch in the same dtype, plus something
    tiny.
    """
    error, plain = ((x.double() - exact.double()).norm() for x in (got, eager))
    assert error <= 2 * plain + tiny * exact.double().norm().clamp(min=1)


def compiled_once(
    call: Callable[..., Any], sizes: list[tuple[Any, ...]], dynamic: Callable[..., list[Tensor]]
) -> None:
    """Assert that the call compiles to one graph, once for all sizes, with unchanged results."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, backend=counter, fullgraph=True)
    for arguments in sizes:
        for x in dynamic(*arguments):
            torch._dynamo.mark_dynamic(x, 0)
        got, expected = compiled(*arguments), call(*arguments)
        got, expected = (x if isinstance(x, tuple) else (x,) for x in (got, expected))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


def run_interpreted(name: str) -> None:
    """Run `interpreted/NAME.py` in a separate process with Triton's interpreter."""
    interpreted(ROOT / "tests" / "kernels" / "interpreted" / f"{name}.py")


def imitated_results(script: str, extension: Path) -> dict[str, Any]:
    """The result of each case of a script in tests/imitated, by name."""
    printed = interpreted(ROOT / "tests" / "imitated" / script, str(extension))
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    return {result["case"]: result for result in map(json.loads, lines)}


def interpreted(script: Path, *arguments: str) -> str:
    """Run a script in a separate process with Triton's interpreter; return what it prints."""
    pytest.importorskip("triton")
    ran = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=1200,
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        },
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
