"""on_gpu.py with CPU memory in place of managed memory."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import build_native
import numpy as np
import on_gpu
import pytest

LIBC = ctypes.CDLL(None)
LIBC.malloc.restype, LIBC.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
LIBC.free.restype, LIBC.free.argtypes = None, (ctypes.c_void_p,)


def test_arrays_have_their_data_where_allocate_says():
    places: dict[int, int] = {}

    def allocate(size: int) -> int:
        address = LIBC.malloc(size)
        places[address] = size
        return address

    def release(address: int) -> None:
        del places[address]
        LIBC.free(address)

    with on_gpu.arrays_from(allocate, release):
        zeros = np.zeros((10, 3), np.float32)
        assert places[zeros.ctypes.data] >= zeros.nbytes and not zeros.any()
        grown = np.arange(5)
        grown.resize(1000, refcheck=False)
        assert places[grown.ctypes.data] >= 8000 and grown[:6].tolist() == [0, 1, 2, 3, 4, 0]
        total = (zeros[:, None] + 1).sum()
        assert total == 30
        outlives = np.empty(0)
    assert np.ones(3).ctypes.data not in places
    del zeros, grown, outlives, total
    assert not places


def test_cuda_functions_are_waited_for_and_others_are_not():
    said: list[str] = []
    module = SimpleNamespace(
        cuda=True, f_cuda=lambda x, *, y: said.append(f"f {x} {y}"), f=lambda: said.append("cpu")
    )
    waiting = on_gpu.Waiting(module, lambda: said.append("waited"))
    waiting.f_cuda(1, y=2)
    waiting.f()
    assert said == ["f 1 2", "waited", "cpu"] and waiting.cuda


@pytest.mark.slow
def test_exercises_run_on_arrays_from_a_custom_allocator(emulated):
    with on_gpu.arrays_from(LIBC.malloc, LIBC.free):
        for script in build_native.exercises():
            build_native.exercise(script, on_gpu.Waiting(emulated, lambda: None))
