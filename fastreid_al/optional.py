"""Packages that are not required, imported without side effects."""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any, cast


def import_openvino() -> ModuleType:
    """Import OpenVINO without the usage statistics that it otherwise sends when it is imported.

    It sends them by a package of its own, and does without where that package is missing.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    statistics = "openvino_telemetry"
    if "openvino" in sys.modules or statistics in sys.modules:
        return importlib.import_module("openvino")
    # None in place of a module makes its import fail.
    sys.modules[statistics] = cast(ModuleType, None)
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[statistics]


@functools.cache
def openvino_core() -> Any:
    """Return the one `openvino.Core` of this process.

    OpenVINO gives the thread that compiles first a stack for signal handlers, and takes it away
    with the last network of a core. After a second core the thread may be left with a stack that
    was freed, and the next signal ends the process.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    return import_openvino().Core()
