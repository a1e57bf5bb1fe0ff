"""The extension `fastreid_al._native`: whether it is here, and how many threads it may use."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import os
import re
import sysconfig
import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

AGAIN = "`pip install --force-reinstall --no-deps -e .` in the source folder builds it again"


@functools.cache
def extension() -> ModuleType | None:
    """The compiled module, or None, said once: then the same is computed in Python and PyTorch, slower.

    FASTREID_AL_NATIVE=0 in the environment leaves it out on purpose.
    """
    if left_out():
        return None
    try:
        return load()
    except ImportError as error:
        warnings.warn(
            f"the compiled part of fastreid_al is not in use ({explain(error)}); results are the same, clustering is slower. "
            "`python -m fastreid_al.doctor` says what to do",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def cuda_extension() -> ModuleType | None:
    """The compiled module if it has its CUDA part, and that runs on the current device; else None, said once a device."""
    module = extension()
    if module is None or not module.cuda:
        return None
    if torch.cuda.is_available() and not _runs_on(
        torch.cuda.current_device(), module.cuda_architectures
    ):
        return None
    return module


def threads() -> int:
    """Threads of the extension: as many as PyTorch uses, set with `torch.set_num_threads` or OMP_NUM_THREADS."""
    return torch.get_num_threads()


def address(x: Tensor) -> int:
    """Where a contiguous tensor's values begin."""
    if not x.is_contiguous():
        raise ValueError("a tensor that is not contiguous cannot be handed to the extension")
    return x.data_ptr()


def left_out() -> bool:
    """Whether the environment leaves the extension out."""
    return os.environ.get("FASTREID_AL_NATIVE") == "0"


def load() -> ModuleType:
    """Import the compiled module; `extension` is what others call.

    Raises:
        ImportError: It is not here, or the loader refuses it; `explain` says more.
    """
    module = importlib.import_module("fastreid_al._native")
    # In a copy of the package, an editable installation elsewhere offers its own.
    if Path(str(module.__file__)).resolve().parent != Path(__file__).resolve().parent:
        raise ImportError(f"{module.__file__} belongs to another copy of the package")
    return module


def libraries(folder: Path | None = None) -> list[Path]:
    """Builds of the extension that lie in the package, whichever Python they are for."""
    return sorted((folder or Path(__file__).parent).glob("_native*.so"))


def explain(error: ImportError, folder: Path | None = None) -> str:
    """Why the extension did not load, and what to do, in one line."""
    found = libraries(folder)
    if not found:
        return "it was not built; with a C++ compiler such as g++ on PATH, " + AGAIN
    names = {f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES}
    if not any(path.name in names for path in found):
        tags = " and ".join(
            path.name.removeprefix("_native.").removesuffix(".so") for path in found
        )
        return f"it was built for {tags}, and this Python is {sysconfig.get_config_var('SOABI')}; {AGAIN}"
    loader = " ".join(str(error).split())
    if "libgomp" in loader:
        return f"{loader}; install the OpenMP runtime (Debian, Ubuntu: libgomp1)"
    if re.search(r"GLIBC(XX)?_|CXXABI_", loader):
        return f"{loader}; it was built on a newer system, and {AGAIN} for this one"
    return f"{loader}; {AGAIN}"


def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether machine code for these architectures ("80 90") runs on a device of this compute capability.

    Code runs on later devices of the same generation; what the last one is compiled from is there too, for devices after it.
    """
    built = [divmod(int(number), 10) for number in architectures.split()]
    return any(
        major == capability[0] and minor <= capability[1] for major, minor in built
    ) or capability >= max(built)


@functools.cache
def _runs_on(device: int, architectures: str) -> bool:
    capability = torch.cuda.get_device_capability(device)
    if covers(architectures, capability):
        return True
    warnings.warn(
        f"the CUDA part of fastreid_al was built for sm_{architectures.replace(' ', ', sm_')}, not for device {device} (sm_"
        f"{capability[0]}{capability[1]}): it is not in use there. `python -m fastreid_al.doctor` says what to do",
        RuntimeWarning,
        stacklevel=3,
    )
    return False
