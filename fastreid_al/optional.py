"""Packages that are not required, imported without side effects."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import cast


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
