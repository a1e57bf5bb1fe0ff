"""What the figures of this folder were measured with."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch


def describe() -> dict[str, object]:
    """Return the date, the processor and the versions."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("fastreid_al", "torch", "numpy", "sqlalchemy")
        },
    }


def _processor() -> str:
    """The name of the processor, where the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
