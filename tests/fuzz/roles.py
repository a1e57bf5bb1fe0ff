"""Mutations of an argument, by its role: what a caller may pass instead, and what has to happen.

"same": another form of the same value; the result has to be the same. "refused": an error that
names the argument. "any": a result or an error that names the argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Random = np.random.Generator


class Mutation(NamedTuple):
    """One way to change an argument.

    Args:
        expected: "same", "refused" or "any".
        change: Returns the changed value; the value itself where the change does not apply.
    """

    expected: str
    change: Callable[[Any, Random], Any]


def constant(expected: str, value: Any) -> Mutation:
    return Mutation(expected, lambda _, random: value)


def of_array(expected: str, change: Callable[[np.ndarray], Any]) -> Mutation:
    """A change of a tensor's values as an array."""

    def changed(x: Any, random: Random) -> Any:
        if not isinstance(x, Tensor) or x.dtype == torch.bfloat16:
            return x
        return change(x.detach().numpy())

    return Mutation(expected, changed)


def of_tensor(expected: str, change: Callable[[Tensor], Any]) -> Mutation:
    return Mutation(expected, lambda x, random: change(x) if isinstance(x, Tensor) else x)


def with_value(expected: str, value: Any) -> Mutation:
    """One entry of a tensor is another value."""

    def changed(x: Any, random: Random) -> Any:
        if not isinstance(x, Tensor) or not x.numel():
            return x
        if isinstance(value, int) and not -(2**31) <= value < 2**31 and x.dtype != torch.int64:
            return x
        x = x.detach().clone()
        x.view(-1)[int(random.integers(x.numel()))] = value
        return x

    return Mutation(expected, changed)


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def reversed_twice(x: np.ndarray) -> np.ndarray:
    return np.flip(np.flip(x).copy())


def spread(x: np.ndarray) -> np.ndarray:
    """A view of every second entry of a longer array."""
    return np.repeat(x, 2, axis=0)[::2]


JUNK = {
    "None": constant("refused", None),
    "text": constant("refused", "features"),
    "bytes": constant("refused", b"\0\1"),
    "dict": constant("refused", {"a": 1}),
    "object": constant("refused", object()),
    "set": constant("refused", {1, 2}),
    "function": constant("refused", len),
    "complex": constant("refused", 1j),
    "type": constant("refused", int),
}
NO_NUMBER = {
    "True": constant("refused", True),
    "NaN": constant("refused", float("nan")),
    "inf": constant("refused", float("inf")),
    "list of it": Mutation("refused", lambda x, random: [x]),
    "two values": constant("refused", torch.zeros(2)),
    "array of texts": constant("refused", np.array(["1"])),
    "text of it": Mutation("refused", lambda x, random: str(x)),
}
ARRAYS = {
    "array": of_array("same", np.copy),
    "strided array": of_array("same", spread),
    "reversed array": of_array("same", reversed_twice),
    "other byte order": of_array("same", lambda x: x.astype(x.dtype.newbyteorder())),
    "read-only array": of_array("same", read_only),
    "columns first": of_array("same", np.asfortranarray),
    "strided tensor": of_tensor("same", lambda x: x.repeat_interleave(2, 0)[::2]),
}
NO_TENSOR = {
    "objects": of_array("refused", lambda x: x.astype(object)),
    "texts": of_array("refused", lambda x: x.astype(str)),
    "dates": of_array("refused", lambda x: np.zeros(x.shape, "M8[s]")),
    "complex array": of_array("refused", lambda x: x.astype(complex)),
    "masked array": of_array("refused", np.ma.masked_array),
    "sparse": of_tensor("refused", lambda x: x.detach().to_sparse() if x.ndim == 2 else x),
    "bools": of_tensor("refused", lambda x: x.detach() > 0),
    "one dimension more": of_tensor("refused", lambda x: x[None]),
    "no dimension": of_tensor("refused", lambda x: x.detach().sum()),
    "a number": constant("refused", 3),
    "list of None": constant("refused", [None, None]),
}
ROWS = {
    **JUNK,
    **ARRAYS,
    **NO_TENSOR,
    "integers": of_tensor("refused", lambda x: x.detach().long()),
    "nested list": of_tensor("refused", lambda x: x.tolist() if x.ndim > 1 else None),
    "half floats": of_tensor("any", lambda x: x.half()),
    "bfloat16": of_tensor("any", lambda x: x.bfloat16()),
    "doubles": of_tensor("any", lambda x: x.double()),
    "fewer rows": of_tensor("any", lambda x: x[:-1]),
    "more rows": of_tensor("any", lambda x: torch.cat([x, x])),
    "no rows": of_tensor("any", lambda x: x[:0]),
    "narrower": of_tensor("any", lambda x: x[..., :-1]),
    "no columns": of_tensor("any", lambda x: x[..., :0]),
    "zeros": of_tensor("any", lambda x: x.detach() * 0),
    "long": of_tensor("any", lambda x: x.detach() * 1e30),
    "longer": of_tensor("any", lambda x: x.detach() * 3e38),
    "short": of_tensor("any", lambda x: x.detach() * 1e-30),
}
NON_FINITE = {
    "a NaN": with_value("refused", torch.nan),
    "an inf": with_value("refused", torch.inf),
    "a -inf": with_value("refused", -torch.inf),
}
MAYBE_NON_FINITE = {name: m._replace(expected="any") for name, m in NON_FINITE.items()}
IDS = {
    **JUNK,
    **ARRAYS,
    **NO_TENSOR,
    "floats": of_tensor("refused", lambda x: x.float()),
    "int32 array": of_array("same", lambda x: x.astype(np.int32)),
    "big-endian int16": of_array("same", lambda x: x.astype(">i2")),
    "shorter": of_tensor("any", lambda x: x[:-1]),
    "longer": of_tensor("any", lambda x: torch.cat([x, x])),
    "none": of_tensor("any", lambda x: x[:0]),
    "huge uint64": of_array("any", lambda x: np.full(x.shape, 2**64 - 1, np.uint64)),
    "a large value": with_value("any", 10**9),
    "a huge value": with_value("any", 2**62),
    "a negative value": with_value("any", -7),
    "descending": of_tensor("any", lambda x: x.sort(descending=True).values),
}
LISTS = {
    "int32": of_tensor("same", lambda x: x.int()),
    "list": of_tensor("same", lambda x: x.tolist() if x.ndim == 1 else x),
    "tuple": of_tensor("same", lambda x: tuple(x.tolist()) if x.ndim == 1 else x),
    "list of floats": of_tensor("refused", lambda x: [float(v) + 0.5 for v in x.view(-1)] or None),
}
NO_LISTS = {
    "int32": of_tensor("refused", lambda x: x.int()),
    "list": of_tensor("refused", lambda x: x.tolist()),
}
OUT_OF_RANGE = {
    "a large value": with_value("refused", 10**9),
    "a huge value": with_value("refused", 2**62),
    "a negative value": with_value("refused", -7),
}
COUNT = {
    **JUNK,
    **NO_NUMBER,
    "int64 of NumPy": Mutation("same", lambda x, random: np.int64(x) if x is not None else x),
    "a half": constant("refused", 2.5),
    "as a float": Mutation("refused", lambda x, random: float(x or 0)),
    "0": constant("any", 0),
    "-1": constant("any", -1),
    "1": constant("any", 1),
    "large": constant("any", 5_000),
    "huge": constant("refused", 2**70),
}
NUMBER = {
    **JUNK,
    **NO_NUMBER,
    "float64 of NumPy": Mutation("same", lambda x, random: np.float64(x) if x is not None else x),
    "0": constant("any", 0),
    "-1": constant("any", -1.0),
    "tiny": constant("any", 1e-300),
    "huge": constant("any", 1e300),
    "beyond float": constant("refused", 10**400),
    "tensor of it": Mutation("any", lambda x, random: torch.tensor(float(x or 0))),
}
FLAG = {
    **JUNK,
    "bool of NumPy": Mutation("same", lambda x, random: np.bool_(x)),
    "a number": constant("refused", 3),
    "list": constant("refused", [True]),
}
CHOICE = {**JUNK, "a number": constant("refused", 3), "list": constant("refused", ["auto"])}
OBJECT = {**JUNK, "a number": constant("refused", 3), "list": constant("refused", [1, 2])}


def without(known: dict[str, Mutation], *names: str) -> dict[str, Mutation]:
    return {name: mutation for name, mutation in known.items() if name not in names}


#: The mutations of each role. A role that begins with "?" takes None too.
ROLES: dict[str, dict[str, Mutation]] = {
    "rows": {**ROWS, **NON_FINITE},
    "free rows": {**ROWS, **MAYBE_NON_FINITE},
    "ids": {**IDS, **LISTS},
    "indices": {**IDS, **LISTS, **OUT_OF_RANGE},
    "kernel ids": {**IDS, **NO_LISTS},
    "kernel indices": {**IDS, **NO_LISTS, **OUT_OF_RANGE},
    "count": COUNT,
    "number": NUMBER,
    "numbers": {**NUMBER, "list of it": Mutation("any", lambda x, random: [x])}
    | {"two values": constant("any", torch.zeros(2))},
    "flag": FLAG,
    "choice": CHOICE,
    "object": OBJECT,
    "pair": without(OBJECT, "list"),
    "text": without(CHOICE, "text"),
    "row": COUNT | {"huge": constant("any", 2**70)},
    "seed": without(COUNT, "huge"),
    "buffer": {**ROWS, **MAYBE_NON_FINITE}
    | {name: m._replace(expected="any") for name, m in ARRAYS.items()},
    "function": without(OBJECT, "function", "type"),
}


def mutations(role: str) -> dict[str, Mutation]:
    """The mutations of an argument with this role."""
    known = ROLES[role.removeprefix("?")]
    return known | {"None": constant("any", None)} if role.startswith("?") else known
