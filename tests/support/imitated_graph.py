"""The capture of a CUDA graph on the imitated device.

A graph holds launches and copies with the shapes, constants and addresses that they had when they
were captured, and repeats them for new content of the same buffers. Inside `capturing()` a call
raises that would end a capture on a GPU: a wait of the host, a copy of pageable memory, an
allocation of pinned memory, a query, a seed. The launches are recorded. `differences` says whether
a second capture, with other content, made the same launches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from tests.support import imitated_cuda
from tests.support.imitated_cuda import Imitated, content_of, place_of_line


class CaptureError(RuntimeError):
    """A call that a capture does not allow."""


class Launch(NamedTuple):
    """Something that the device executes.

    Args:
        name: Name of the operator, kernel or function.
        arguments: Shapes, strides, dtypes, constants, and addresses of buffers that were there
            before the capture.
    """

    name: str
    arguments: tuple[Any, ...]


class Capture:
    """The launches of a capture, in order."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        #: First address and bytes of what was allocated in the capture. It is kept, so that its
        #: addresses are not used again.
        self._made: dict[int, int] = {}
        self._kept: list[Tensor] = []

    def forbidden(self, kind: str) -> None:
        """Raise for a call that a capture does not allow."""
        place = place_of_line()
        where = ": ".join(place) if place else "outside of the project"
        raise CaptureError(f"{kind} in a capture: {where}")

    def done(self, name: str, arguments: Any, result: Any) -> None:
        """Record a launch."""
        leaves, form = tree_flatten(arguments)
        given = tuple(self._described(x) for x in leaves)
        self.launches.append(Launch(name, (str(form) if name.startswith("aten") else "", *given)))
        known = {x.untyped_storage().data_ptr() for x in leaves if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Imitated):
                self._made_by_launch(content_of(x), known)

    def _made_by_launch(self, x: Tensor, known: set[int]) -> None:
        """Remember a result that is not a view of an argument."""
        storage = x.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in known:
            self._made[storage.data_ptr()] = storage.nbytes()
            self._kept.append(x)

    def _described(self, x: Any) -> Any:
        """What a graph keeps of an argument."""
        if isinstance(x, Tensor) and not x.ndim and not isinstance(x, Imitated):
            # Passed to a kernel by value.
            return "scalar", x.dtype, x.item()
        if isinstance(x, Tensor):
            place = self._place(content_of(x).data_ptr() if x.numel() else 0)
            return tuple(x.shape), x.stride(), x.dtype, x.device.type, place
        if isinstance(x, int) and not isinstance(x, bool):
            return self._place(x)
        return x if isinstance(x, bool | float | str | None) else str(x)

    def _place(self, address: int) -> Any:
        """An address; for memory of the capture itself, the place in what was allocated."""
        for first, size in self._made.items():
            if first <= address < first + size:
                return "made in the capture", address - first
        return address


@contextlib.contextmanager
def capturing() -> Iterator[Capture]:
    """Capture what is launched on the imitated device inside a block.

    Yields:
        The launches.

    Raises:
        CaptureError: A call that a capture does not allow; the message names the line.
    """
    before = imitated_cuda.observer
    capture = Capture()
    imitated_cuda.observer = capture
    try:
        yield capture
    finally:
        imitated_cuda.observer = before


def captured_twice(step: Callable[[], object], renew: Callable[[], object]) -> list[Capture]:
    """Run a step once, because a first run allocates what is kept, then capture it twice.

    Args:
        step: Works on buffers that stay.
        renew: Puts other content into the buffers; called before each capture.

    Returns:
        Both captures.
    """
    step()
    captures = []
    for _ in range(2):
        renew()
        with capturing() as capture:
            step()
        captures.append(capture)
    return captures


def differences(one: Sequence[Launch], other: Sequence[Launch]) -> list[str]:
    """Which launches of two captures differ: none if a graph could stand for both."""
    found = []
    if len(one) != len(other):
        found.append(f"{len(one)} launches and {len(other)}")
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            found.append(f"launch {place}: {a} and {b}")
    return found
