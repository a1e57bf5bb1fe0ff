"""Person re-identification from unlabelled images, with a few questions to a person."""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_SUBPACKAGES = (
    "active",
    "annotators",
    "answers",
    "clustering",
    "config",
    "data",
    "distributed",
    "engine",
    "exports",
    "infer",
    "memory",
    "methods",
    "metrics",
    "models",
    "plugins",
    "retrieval",
    "runs",
    "settings",
    "synthetic",
)


def __getattr__(name: str) -> ModuleType:
    """Import a subpackage at its first use, so that `import fastreid_al` stays light."""
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
