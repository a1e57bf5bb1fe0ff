"""Builds of the extension.

`installed` is the extension as users have it. Its CUDA functions need a GPU and are hidden here
(`cuda` is False). `emulated` is a build whose CUDA functions run on the CPU (cuda_on_cpu.h) and
take addresses of NumPy arrays or CPU tensors, with stream 0:

    def test_counts_agree(emulated):
        emulated.count_cuda(x.ctypes.data, x.size, out.ctypes.data, 0)

A file exercise_NAME.py is a script with `run(module)`. It calls bindings with NumPy arrays, also
`module.*_cuda` if `module.cuda` is true, and compares the results with plain NumPy. It imports
neither PyTorch nor pytest: .ci/sanitize runs it under AddressSanitizer and ThreadSanitizer, and
bench/gpu_check.py on a GPU under compute-sanitizer, with the data of NumPy arrays in managed
memory. Small arrays and several threads (`threads=4`) find most errors.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import build_native
import pytest

from fastreid_al import native


@pytest.fixture(scope="session")
def installed() -> SimpleNamespace:
    try:
        module = native.load()
    except ImportError as error:
        pytest.skip(native.explain(error))
    return SimpleNamespace(**{**vars(module), "cuda": False})


@pytest.fixture(scope="session")
def emulated_library(pytestconfig: pytest.Config) -> Path:
    """The path of the emulated build."""
    if build_native.compiler() is None:
        pytest.skip("no C++ compiler")
    pytest.importorskip("pybind11")
    # The build takes a minute of processor time. It is kept in pytest's cache, where workers and
    # later sessions find it; `pytest --cache-clear` removes it.
    assert pytestconfig.cache is not None
    return build_native.kept_build(pytestconfig.cache.mkdir("emulated"))


@pytest.fixture(scope="session")
def emulated(emulated_library: Path) -> ModuleType:
    return build_native.load(emulated_library)
