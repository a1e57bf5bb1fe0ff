"""Finds the operators of `reid_kernels` and what belongs to each of them by its name.

An operator X is a module `reid_kernels/X.py` with kernels in `X_triton.py`.
`tests/kernels/test_X.py` has an example call of each of its public functions that has a reference,
`tests/kernels/interpreted/X_cases.py` the launches of its kernels.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "kernels" / "reid_kernels"
TESTS = ROOT / "tests" / "kernels"

#: Names of the operators' modules.
OPERATORS = sorted(path.stem.removesuffix("_triton") for path in FOLDER.glob("?*_triton.py"))
#: Names of the scripts that run kernels in Triton's interpreter.
INTERPRETED = sorted(path.stem for path in TESTS.glob("interpreted/*_cases.py"))

Example = Callable[..., Any]


def tests_of(operator: str) -> ModuleType:
    """The operator's tests."""
    return importlib.import_module(f"tests.kernels.test_{operator}")


def examples() -> dict[str, Example]:
    """The example of each public function, by the function's name without a trailing underscore.

    An example is called with the function (or its reference), features (9, 16) and a bank (40, 16),
    unit-norm rows of one dtype.
    """
    got = {}
    for operator in OPERATORS:
        for name, value in vars(tests_of(operator)).items():
            if name.startswith("example_"):
                got[name.removeprefix("example_")] = value
    return got


def example_sources() -> str:
    """Source text of the examples, for a process that cannot import the tests."""
    return "\n".join(textwrap.dedent(inspect.getsource(x)) for x in examples().values())


def example_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Features and bank of the examples."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(49, 16, dtype=torch.float64, generator=generator)
    features, bank = F.normalize(wide).to(dtype).split([9, 40])
    return features, bank


def launchers() -> Iterator[Callable[[], None]]:
    """The function `launches` of each operator: it calls the operator's launchers in every way that
    compiles other code.
    """
    for operator in OPERATORS:
        cases = importlib.import_module(f"tests.kernels.interpreted.{operator}_cases")
        yield cases.launches
