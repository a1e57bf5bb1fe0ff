"""Batches of decoded pixels, prefetched to the device without blocking."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ..errors import DataError
from .pixels import PixelStore

A = TypeVar("A")
B = TypeVar("B")

Place = Literal["auto", "device", "host"]

#: Share of a device's free memory that `auto` uses for pixels; the rest is for the network, its
#: memories and the graph.
SHARE = 0.5
#: GiB that are left free where the device is asked for.
RESERVE = 2.0
#: Images that are copied to the device at a time.
_BLOCK = 256


class BatchLoader:
    """Reads images of a store by row, for one device.

    On a GPU there are two placements. "device": the whole store is on the GPU, which takes 98 kB
    for each image of 256 x 128 (3.2 GB at n = 32,621, 98 GB at 1e6). "host": a thread gathers rows
    from the host's memory or the mapped file into pinned memory, from where they are copied on a
    stream of their own; this takes the memory of a few batches on either side. On a CPU both read
    the store.

    Args:
        store: The images.
        device: Device of the batches.
        place: "device", "host", or "auto": the device if the store takes at most half of its free
            memory.
        warn: Called with one line when "auto" chooses the host.

    Raises:
        DataError: "device" was asked for, and the device has not enough memory.
    """

    def __init__(
        self,
        store: PixelStore,
        device: torch.device,
        place: Place = "auto",
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.store = store
        self.device = device
        self._pixels: Tensor | None = None
        self._pool: ThreadPoolExecutor | None = None
        if device.type != "cuda":
            return
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        size = len(store) * store.pixels[:1].nbytes
        free = torch.cuda.mem_get_info(self.device)[0]
        if pick_place(size, free, place, warn) == "device":
            self._pixels = self._copy_store()
        else:
            self._pool = ThreadPoolExecutor(1, "loader")
            self._stream = torch.cuda.Stream(self.device)

    @property
    def place(self) -> Literal["device", "host"]:
        """Where batches are read from."""
        return "host" if self._pixels is None else "device"

    @property
    def memory_hint(self) -> str:
        """Hint for a device that is out of memory; empty where the pixels take none of it."""
        if self._pixels is None:
            return ""
        return f", or `image.place` host, which frees {self._pixels.nbytes / 2**30:.1f} GiB"

    def __len__(self) -> int:
        return len(self.store)

    def start(self, rows: Tensor) -> Callable[[], Tensor]:
        """Begin to bring images to the device.

        Args:
            rows: (B,) int64, on the host; on the device only where the store is there too.

        Returns:
            A function that returns the images, (B, 3, H, W) uint8 on the device; to be called once.
            Where the device holds the store, or is the CPU, they are read in that call.
        """
        if self._pixels is not None:
            return partial(self._pixels.index_select, 0, to_device_async(rows, self.device))
        if self._pool is None:
            return partial(self._read, rows)
        return partial(self._take, self._pool.submit(self._stage, rows))

    def read(self, rows: Tensor) -> Tensor:
        """Read images by row: (B,) int64 -> (B, 3, H, W) uint8 on the device."""
        return self.start(rows)()

    def _read(self, rows: Tensor) -> Tensor:
        return self.store.read(rows).to(self.device)

    def _copy_store(self) -> Tensor:
        """Copy the store to the device, in the order of its rows: (n, 3, H, W) uint8."""
        shape = (len(self.store), *self.store.pixels.shape[1:])
        out = torch.empty(shape, dtype=torch.uint8, device=self.device)
        for rows in torch.arange(len(self.store)).split(_BLOCK):
            block = out[int(rows[0]) : int(rows[-1]) + 1]
            block.copy_(self._gather(rows), non_blocking=True)
        return out

    def _gather(self, rows: Tensor) -> Tensor:
        """Gather images in pinned memory, whose allocator keeps it until a copy from it is done."""
        shape = (len(rows), *self.store.pixels.shape[1:])
        out = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.index_select(self.store.pixels, 0, self.store.slots[rows], out=out)

    def _stage(self, rows: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Copy images to the device on the loader's stream; the event marks the copy's end."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            images = self._gather(rows).to(self.device, non_blocking=True)
            return images, self._stream.record_event()

    def _take(self, staged: Future[tuple[Tensor, torch.cuda.Event]]) -> Tensor:
        """Hand staged images to the caller's stream, which waits for them; the host does not."""
        images, copied = staged.result()
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        # The memory must not be reused by the loader's stream while the caller's still reads it.
        images.record_stream(stream)
        return images


def pick_place(
    size: int, free: int, place: Place, warn: Callable[[str], None] | None = None
) -> Place:
    """Choose where a store is kept.

    Args:
        size: Bytes of the store.
        free: Free bytes of the device.
        place: "device", "host" or "auto".
        warn: Called with one line when "auto" chooses the host.

    Returns:
        "device" or "host".

    Raises:
        DataError: "device" was asked for, and the device has not enough memory.
    """
    needed = f"the pixels take {size / 2**30:.1f} GiB"
    if place == "device":
        room = free - RESERVE * 2**30
        if size > room:
            raise DataError(
                f"`image.place` device: {needed}, {(size - room) / 2**30:.1f} GiB more than "
                f"the device has room for ({free / 2**30:.1f} GiB free, {RESERVE:g} of them for "
                "the network); choose `image.place` host"
            )
    if place == "auto" and size > SHARE * free:
        if warn is not None:
            warn(
                f"{needed}, more than half of the device's {free / 2**30:.1f} free GiB: "
                "batches are copied from the host"
            )
        return "host"
    return "host" if place == "host" else "device"


def prefetch(batches: Iterable[A], start: Callable[[A], B]) -> Iterator[tuple[A, B]]:
    """Start each batch while the one before it is still being worked on.

    Args:
        batches: The batches.
        start: Called with each batch, one batch early.

    Yields:
        Each batch and what `start` returned for it.
    """
    started: tuple[A, B] | None = None
    for batch in batches:
        previous = started
        started = (batch, start(batch))
        if previous is not None:
            yield previous
    if started is not None:
        yield started


def to_device_async(x: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor to a device through pinned memory; neither host nor device waits."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


@functools.cache
def device_constant(
    values: Any, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return a tensor of constants, which is made once for each device and kept there.

    Args:
        values: Numbers in a tuple of any depth.
        device: The device.
        dtype: The tensor's dtype.
    """
    # A tensor made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        return to_device_async(torch.tensor(values, dtype=dtype), device)
