"""Run the exercises on a GPU, from NumPy: `python tests/native/on_gpu.py LIBRARY SCRIPT...`.

The data of arrays lies in managed memory, which CPU and GPU access by the same address, and every
call of a CUDA function waits until the device is done. Works under compute-sanitizer too.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import build_native
import numpy as np

PyObject = ctypes.py_object
Pointer = ctypes.c_void_p
Malloc = ctypes.CFUNCTYPE(Pointer, Pointer, ctypes.c_size_t)
Calloc = ctypes.CFUNCTYPE(Pointer, Pointer, ctypes.c_size_t, ctypes.c_size_t)
Realloc = ctypes.CFUNCTYPE(Pointer, Pointer, Pointer, ctypes.c_size_t)
Free = ctypes.CFUNCTYPE(None, Pointer, Pointer, ctypes.c_size_t)


class Handler(ctypes.Structure):
    """NumPy's PyDataMem_Handler (NEP 49), version 1."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", Pointer),
        ("malloc", Malloc),
        ("calloc", Calloc),
        ("realloc", Realloc),
        ("free", Free),
    )


@contextlib.contextmanager
def arrays_from(allocate: Callable[[int], int], release: Callable[[int], None]) -> Iterator[None]:
    """New arrays have their data at the address that `allocate(bytes)` returns."""
    sizes: dict[int, int] = {}

    def malloc(_: int | None, size: int) -> int:
        address = allocate(max(size, 1))
        sizes[address] = size
        return address

    def calloc(_: int | None, count: int, size: int) -> int:
        address = malloc(None, count * size)
        ctypes.memset(address, 0, count * size)
        return address

    def realloc(_: int | None, old: int | None, size: int) -> int:
        address = malloc(None, size)
        if old:
            ctypes.memmove(address, old, min(size, sizes[old]))
            free(None, old, 0)
        return address

    def free(_: int | None, address: int | None, __: int) -> None:
        if address:
            del sizes[address]
            release(address)

    handler = Handler(
        b"of the tests", 1, None, Malloc(malloc), Calloc(calloc), Realloc(realloc), Free(free)
    )
    # Arrays refer to the handler as long as they live, which may be longer than this function.
    ctypes.pythonapi.Py_IncRef(PyObject(handler))
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = PyObject, (Pointer, ctypes.c_char_p, Pointer)
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = Pointer, (PyObject, ctypes.c_char_p)
    core = getattr(np, "_core", None) or np.core
    table = get(core._multiarray_umath._ARRAY_API, None)
    # Entry 304 of NumPy's table of functions is PyDataMem_SetHandler.
    place = ctypes.cast(table, ctypes.POINTER(Pointer))[304]
    set_handler = ctypes.PYFUNCTYPE(PyObject, PyObject)(place)
    before = set_handler(new(ctypes.addressof(handler), b"mem_handler", None))
    try:
        yield
    finally:
        gc.collect()
        set_handler(before)


class Driver:
    """The functions of the CUDA driver that are needed here, on device 0."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.sizes: dict[int, int] = {}
        self.free: defaultdict[int, list[int]] = defaultdict(list)
        context, device = Pointer(), ctypes.c_int()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function and raise if it fails."""
        if status := getattr(self.library, name)(*arguments):
            raise RuntimeError(f"{name}: CUDA error {status}")

    def allocate(self, size: int) -> int:
        """The address of managed memory.

        Released memory is reused only for exactly as many bytes, so that memcheck knows the end of
        every array. Reuse is needed because the driver takes tens of microseconds and NumPy
        allocates millions of times.
        """
        if self.free[size]:
            return self.free[size].pop()
        address = ctypes.c_uint64()
        self.call("cuMemAllocManaged", ctypes.byref(address), ctypes.c_size_t(size), 1)
        self.sizes[address.value] = size
        return address.value

    def release(self, address: int) -> None:
        """Keep memory for the next request of the same size."""
        self.free[self.sizes[address]].append(address)

    def wait(self) -> None:
        """Wait until the device is done."""
        self.call("cuCtxSynchronize")


class Waiting:
    """A build of the extension whose CUDA functions return when the device is done."""

    def __init__(self, module: ModuleType, wait: Callable[[], None]) -> None:
        self._module, self._wait = module, wait

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if not name.endswith("_cuda"):
            return value

        def waited_for(*arguments: Any, **options: Any) -> Any:
            result = value(*arguments, **options)
            self._wait()
            return result

        return waited_for


def main(library: str, *scripts: str) -> None:
    """Run scripts on a build that has the CUDA part."""
    module = build_native.load(Path(library))
    assert module.cuda, f"{library} has no CUDA part"
    driver = Driver()
    with arrays_from(driver.allocate, driver.release):
        for script in scripts:
            build_native.exercise(Path(script), Waiting(module, driver.wait))
            print(f"{Path(script).stem}: ok", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
