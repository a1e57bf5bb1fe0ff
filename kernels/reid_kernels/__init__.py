"""Operators of person re-identification. They need PyTorch, on a GPU also Triton, and nothing else.

Each operator runs on any device and chooses its implementation by the device of its arguments:
Triton kernels on a GPU, blocked PyTorch on a CPU. Each has a plain reference for any floating
dtype, `NAME_reference`. The folder can be installed with the project, copied into another one, or
loaded by path.
"""

from typing import Any

from . import _deprecated, bank_loss, compat, grouped_norm, labels, multilabel, topk, update_bank
from .bank_loss import *
from .checks import NotFiniteError
from .grouped_norm import *
from .labels import *
from .multilabel import *
from .topk import *
from .update_bank import *

#: An operator's module lists its own public names.
__all__ = ["NotFiniteError", "compat"]
__all__ += bank_loss.__all__
__all__ += grouped_norm.__all__
__all__ += labels.__all__
__all__ += multilabel.__all__
__all__ += topk.__all__
__all__ += update_bank.__all__


def __getattr__(name: str) -> Any:
    """Find former public names."""
    return _deprecated.former_name(__name__, name)
