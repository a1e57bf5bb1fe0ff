"""Runs `bench/gpu_check.py` on an imitated CUDA device.

    TRITON_INTERPRET=1 python tests/imitated/imitated_check.py EMULATED_EXTENSION ARGUMENTS...

With WRONG_RESULTS=1 in the environment every result of an operator is found to be wrong.
gpu_check.py knows nothing of it: its programs are forked from this process, and with it the device.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests" / "native")]

import build_native  # noqa: E402
import gpu_check  # noqa: E402
import harness  # noqa: E402

from tests.support.imitated_cuda import imitated_cuda  # noqa: E402

#: Optional packages that cannot be imported.
ABSENT = ("kmedoids", "cuml")


def as_it_is(call: Callable[..., Any]) -> Callable[..., Any]:
    """Leave a function as it is: Inductor generates code for the real device alone."""
    return call


def wrong(*arguments: Any) -> None:
    """Find a result of an operator wrong."""
    raise AssertionError("a planted error")


def main(extension: str, *arguments: str) -> int:
    """Run the check on the device, with a single round of every measurement."""
    torch.set_num_threads(1)
    replaced = {
        "compiled": as_it_is,
        "_ROUNDS": 1,
        "_SECONDS": 0.0,
        # Seconds of a processor for nothing that a test could see.
        "_FLUSH": 2**10,
        "_COPIED": {"cuda": 2**10},
        "_MULTIPLIED": {"cuda": 8},
    }
    if "WRONG_RESULTS" in os.environ:
        replaced["check"] = wrong
    for name in ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]
    with contextlib.ExitStack() as stack:
        # Figures are written while a part of few seconds runs.
        stack.enter_context(mock.patch.object(gpu_check, "EVERY", 0.2))
        for name, value in replaced.items():
            stack.enter_context(mock.patch.object(harness, name, value))
        stack.enter_context(imitated_cuda(build_native.load(Path(extension))))
        return gpu_check.main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
