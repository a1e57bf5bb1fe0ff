"""Former public names. They work as before and warn with the name of their successor."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

from torch import Tensor

from .bank_loss import partial_contrast, partial_contrast_reference


class ContrastShares(NamedTuple):
    """`PartialContrast` under its former name and with its former field names."""

    losses: Tensor
    log_sums: Tensor
    means: Tensor
    chosen: Tensor


def bank_contrast_shares(*args: Any, **kwargs: Any) -> ContrastShares:
    """Call `partial_contrast`; the result has the former field names."""
    return ContrastShares(*partial_contrast(*args, **kwargs))


def bank_contrast_shares_reference(*args: Any, **kwargs: Any) -> ContrastShares:
    """Call `partial_contrast_reference`; the result has the former field names."""
    return ContrastShares(*partial_contrast_reference(*args, **kwargs))


_SUCCESSORS = {
    "ContrastShares": "PartialContrast",
    "bank_contrast_shares": "partial_contrast",
    "bank_contrast_shares_reference": "partial_contrast_reference",
}


def former_name(package: str, name: str) -> Any:
    """Return the object that had a former public name, with a warning; raise AttributeError for any
    other name.
    """
    if name not in _SUCCESSORS:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    message = f"{package}.{name} is deprecated; use {package}.{_SUCCESSORS[name]}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return globals()[name]
