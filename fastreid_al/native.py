"""The extension `fastreid_al._native`: whether it is here, and how many threads it may use."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor


@functools.cache
def extension() -> ModuleType | None:
    """The compiled module, or None, said once: then the same is computed in Python and PyTorch, slower.

    FASTREID_AL_NATIVE=0 in the environment leaves it out on purpose.
    """
    if os.environ.get("FASTREID_AL_NATIVE") == "0":
        return None
    try:
        return importlib.import_module("fastreid_al._native")
    except ImportError as error:
        warnings.warn(
            f"the compiled part of fastreid_al is not in use ({error}); results are the same, clustering is slower. "
            "`python -m fastreid_al.doctor` says what to do",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def cuda_extension() -> ModuleType | None:
    """The compiled module if it has its CUDA part."""
    module = extension()
    return module if module is not None and module.cuda else None


def threads() -> int:
    """Threads of the extension: as many as PyTorch uses, set with `torch.set_num_threads` or OMP_NUM_THREADS."""
    return torch.get_num_threads()


def address(x: Tensor) -> int:
    """Where a contiguous tensor's values begin."""
    if not x.is_contiguous():
        raise ValueError("a tensor that is not contiguous cannot be handed to the extension")
    return x.data_ptr()
