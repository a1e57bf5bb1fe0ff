"""What a case came to, and the check of an error's message."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastreid_al.errors import UserError

#: Outcomes, from harmless to bad.
RIGHT, REFUSED, UNCLEAR, WRONG, HANG, SIGNAL, MEMORY = OUTCOMES = (
    *("right", "refused", "unclear", "wrong", "hang", "signal", "memory"),
)
GOOD = (RIGHT, REFUSED)
#: Characters of a message that is one line to read.
_LONGEST = 600


class Outcome(NamedTuple):
    """What a case came to, and the message or the reason."""

    kind: str
    text: str = ""


def of_error(error: Exception, names: Iterable[str]) -> Outcome:
    """Whether an error is clear: of the right class, one line, and naming one of the arguments."""
    text = str(error)
    shown = f"{type(error).__name__}: {text[:300]}"
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return Outcome(MEMORY, shown)
    if not isinstance(error, ValueError | TypeError | UserError):
        return Outcome(UNCLEAR, shown)
    if not text or "\n" in text or len(text) > _LONGEST:
        return Outcome(UNCLEAR, shown)
    if not isinstance(error, UserError):
        words = set(re.findall(r"\w+", text))
        if names and not words & set(names):
            return Outcome(UNCLEAR, shown)
    return Outcome(REFUSED, text)


def as_tensors(x: Any) -> Any:
    """A result with tensors in place of arrays of NumPy, in tuples also."""
    if isinstance(x, tuple):
        parts = [as_tensors(part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def equal(a: Any, b: Any) -> bool:
    """Whether two results are the same, up to rounding: a product may depend on the strides."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return (
            torch.allclose(
                a, b, rtol=1e-2 if a.dtype.itemsize < 4 else 1e-4, atol=1e-5, equal_nan=True
            )
            if a.is_floating_point()
            else torch.equal(a, b)
        )
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return equal(torch.from_numpy(a), torch.from_numpy(b))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, equal_nan=True))
    fields = getattr(a, "__dict__", None)
    if fields and type(a) is type(b):
        return equal(fields, b.__dict__)
    return bool(a == b) if type(a) is type(b) else False
