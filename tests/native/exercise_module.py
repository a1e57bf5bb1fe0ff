"""What the extension says of itself."""

from __future__ import annotations

from types import ModuleType


def run(module: ModuleType) -> None:
    """Check the module's facts."""
    assert isinstance(module.openmp, bool)
    assert module.compiler
    assert module.cuda_architectures or not module.cuda
