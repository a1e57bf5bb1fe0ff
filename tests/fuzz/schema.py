"""What a schema of a public function is, and values that many of them take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Random = np.random.Generator
Arguments = dict[str, Any]


class Schema(NamedTuple):
    """How to call a public function, and what is right.

    Args:
        call: The function, or several calls of one object.
        roles: The role of each argument that is mutated, see `roles`.
        make: Valid arguments; the same for the same random numbers.
        right: Whether a result is right, by a float64 reference where there is one.
        words: Further words by which an error may name what is wrong.
        leaves_out: Whether every value that is not finite is one that the function leaves out, so
            that it need not be refused.
    """

    call: Callable[..., Any]
    roles: Mapping[str, str]
    make: Callable[[Random], Arguments]
    right: Callable[[Arguments, Any], bool] = lambda arguments, result: True
    words: tuple[str, ...] = ()
    leaves_out: Callable[[Arguments], bool] = lambda arguments: False


def rows(
    random: Random, n: int, dim: int, dtype: torch.dtype = torch.float32, spread: float = 0.4
) -> Tensor:
    """Unit-norm rows of some clusters, often with exact copies."""
    centres = random.normal(size=(max(1, n // 5), dim))
    made = centres[random.integers(len(centres), size=n)] + spread * random.normal(size=(n, dim))
    if n > 4 and random.random() < 0.3:
        made[random.integers(n, size=n // 3)] = made[0]
    return torch.nn.functional.normalize(torch.from_numpy(made)).to(dtype)


def ids(random: Random, n: int, high: int, low: int = 0) -> Tensor:
    """Integers (n,) in [low, high)."""
    return torch.from_numpy(random.integers(low, max(low + 1, high), size=n))


def count(random: Random, low: int, high: int) -> int:
    return int(random.integers(low, high + 1))


def floating(random: Random) -> torch.dtype:
    choices = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)
    return choices[int(random.integers(len(choices)))]


def lists(random: Random, rows: int, n: int) -> tuple[Tensor, Tensor]:
    """Lists of different ids in CSR form, ascending."""
    drawn = [np.flatnonzero(random.random(n) < 0.3) for _ in range(rows)]
    indptr = np.cumsum([0, *map(len, drawn)])
    return torch.from_numpy(indptr), torch.from_numpy(np.concatenate([*drawn, np.zeros(0, int)]))


def close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether a result is near a float64 reference, relative to its greatest value."""
    got, expected = got.double(), expected.double()
    if got.shape != expected.shape:
        return False
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(got)):
        return False
    scale = 1 + float(expected[finite].abs().max()) if bool(finite.any()) else 1.0
    return bool(((got - expected)[finite].abs() <= tolerance * scale).all())


#: Error of results by the dtype of the rows.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


def doubles(arguments: Arguments) -> Arguments:
    """The arguments with floating rows in float64."""
    return {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in arguments.items()
    }
