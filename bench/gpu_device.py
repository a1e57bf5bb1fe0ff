"""Print what is here as a line of JSON: the CUDA device, and the extension for it.

    python bench/gpu_device.py

`name` is null without a device, `library` without an extension whose CUDA part runs on it.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch

from fastreid_al import native


def found() -> dict[str, Any]:
    """The device, on which something is computed, and the path of the extension."""
    if not torch.cuda.is_available():
        return {"name": None, "library": None}
    assert float(torch.ones(8, device="cuda").sum()) == 8
    major, minor = torch.cuda.get_device_capability()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = native.cuda_extension()
    return {
        "name": torch.cuda.get_device_name(),
        "capability": f"{major}{minor}",
        "cuda": torch.version.cuda,
        "library": None if module is None else module.__file__,
    }


if __name__ == "__main__":
    print(json.dumps(found()))
