"""Access to the compiled extension `fastreid_al._native`."""

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

#: How to rebuild the extension, as part of a message.
AGAIN = "`pip install --force-reinstall --no-deps -e .` in the source folder builds it again"


@functools.cache
def extension() -> ModuleType | None:
    """The compiled module, or None with a warning the first time.

    Without it the same results are computed in Python and PyTorch, more slowly.
    FASTREID_AL_NATIVE=0 in the environment disables the extension, without a warning.
    """
    if left_out():
        return None
    try:
        return load()
    except ImportError as error:
        warnings.warn(
            f"the compiled part of fastreid_al is not in use ({explain(error)}); "
            "results are the same, clustering is slower. "
            "`python -m fastreid_al.doctor` says what to do",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def cuda_extension() -> ModuleType | None:
    """The compiled module if its CUDA part runs on the current device, else None.

    A build for other architectures causes a warning, once for each device.
    """
    module = extension()
    if module is None or not module.cuda:
        return None
    if torch.cuda.is_available() and not _runs_on(
        torch.cuda.current_device(), module.cuda_architectures
    ):
        return None
    return module


def threads() -> int:
    """Number of threads of the extension.

    It is PyTorch's, set with `torch.set_num_threads` or OMP_NUM_THREADS.
    """
    return torch.get_num_threads()


def address(x: Tensor) -> int:
    """Address of the first value of a contiguous tensor."""
    if not x.is_contiguous():
        raise ValueError("got a tensor that is not contiguous, expected a contiguous one")
    return x.data_ptr()


def left_out() -> bool:
    """Whether FASTREID_AL_NATIVE=0 disables the extension."""
    return os.environ.get("FASTREID_AL_NATIVE") == "0"


def load() -> ModuleType:
    """Import the compiled module. Most callers use `extension` instead.

    Raises:
        ImportError: It is not built, or the loader refuses it; `explain` describes why.
    """
    module = importlib.import_module("fastreid_al._native")
    # From a copy of the package, the import may find the extension of an editable installation
    # elsewhere.
    if Path(str(module.__file__)).resolve().parent != Path(__file__).resolve().parent:
        raise ImportError(f"{module.__file__} belongs to another copy of the package")
    return module


def libraries(folder: Path | None = None) -> list[Path]:
    """Builds of the extension in the package folder, for any version of Python."""
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
        soabi = sysconfig.get_config_var("SOABI")
        return f"it was built for {tags}, and this Python is {soabi}; {AGAIN}"
    loader = " ".join(str(error).split())
    if "libgomp" in loader:
        return f"{loader}; install the OpenMP runtime (Debian, Ubuntu: libgomp1)"
    if re.search(r"GLIBC(XX)?_|CXXABI_", loader):
        return f"{loader}; it was built on a newer system, and {AGAIN} for this one"
    return f"{loader}; {AGAIN}"


def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a build for these architectures runs on a device.

    Args:
        architectures: Such as "80 90".
        capability: Compute capability of the device, such as (8, 6).
    """
    built = [divmod(int(number), 10) for number in architectures.split()]
    # Machine code runs on later devices of the same generation.
    same_generation = any(
        major == capability[0] and minor <= capability[1] for major, minor in built
    )
    # The build includes PTX of its last architecture, which later devices compile.
    return same_generation or capability >= max(built)


@functools.cache
def _runs_on(device: int, architectures: str) -> bool:
    capability = torch.cuda.get_device_capability(device)
    if covers(architectures, capability):
        return True
    major, minor = capability
    warnings.warn(
        f"the CUDA part of fastreid_al was built for sm_{architectures.replace(' ', ', sm_')}, "
        f"not for device {device} (sm_{major}{minor}): it is not in use there. "
        "`python -m fastreid_al.doctor` says what to do",
        RuntimeWarning,
        stacklevel=3,
    )
    return False
