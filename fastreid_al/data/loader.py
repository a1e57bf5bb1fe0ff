"""Batches of decoded pixels on the device, of which none is waited for."""

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

#: Share of a device's free memory that `auto` gives to pixels; the rest is for the network, its memories and the graph.
SHARE = 0.5
#: GiB that are left free where the device is asked for.
RESERVE = 2.0
#: Images that are copied to the device at a time.
_BLOCK = 256


class BatchLoader:
    """Reads images of a store by row, for one device.

    On a GPU the store lies on it as a whole (device), which takes 98 kB an image of 256 x 128 (3.2 GB at n = 32,621, 98 GB at
    1e6); or a thread gathers rows from the host's memory or the mapped file into pinned memory, from where they are copied on
    a stream of their own (host), which takes a few batches in either memory. On a CPU both are a plain read of the store.

    Args:
        store: The images.
        device: Where batches are wanted.
        place: device, host, or (auto) the device if the store takes at most half of the memory that is free there.
        warn: Called with one line when auto decides for the host.

    Raises:
        DataError: The device was asked for and has no room.
    """

    def __init__(
        self,
        store: PixelStore,
        device: torch.device,
        place: Place = "auto",
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.store, self.device = store, device
        self._pixels: Tensor | None = None
        self._pool: ThreadPoolExecutor | None = None
        if device.type != "cuda":
            return
        self.device = torch.device(
            "cuda", torch.cuda.current_device() if device.index is None else device.index
        )
        size = len(store) * store.pixels[:1].nbytes
        if pick_place(size, torch.cuda.mem_get_info(self.device)[0], place, warn) == "device":
            self._pixels = self._copied()
        else:
            self._pool = ThreadPoolExecutor(1, "loader")
            self._stream = torch.cuda.Stream(self.device)

    @property
    def place(self) -> Literal["device", "host"]:
        """Where batches are read from."""
        return "host" if self._pixels is None else "device"

    @property
    def spare(self) -> str:
        """What is said of the room that the pixels take on a device, when it lacks: empty where they take none."""
        if self._pixels is None:
            return ""
        return f", or --image.place host, which frees {self._pixels.nbytes / 2**30:.1f} GiB"

    def __len__(self) -> int:
        return len(self.store)

    def start(self, rows: Tensor) -> Callable[[], Tensor]:
        """Begin to bring images (B,) int64 to the device; what is given, called once, returns them: (B, 3, H, W) uint8.

        Where the device holds the store, or is the CPU, they are read when that is called. Rows may lie on the device only
        where the store lies there too.
        """
        if self._pixels is not None:
            return partial(self._pixels.index_select, 0, to_device_async(rows, self.device))
        if self._pool is None:
            return partial(self._read, rows)
        return partial(self._taken, self._pool.submit(self._staged, rows))

    def read(self, rows: Tensor) -> Tensor:
        """Images by row, (B,) int64 -> (B, 3, H, W) uint8 on the device."""
        return self.start(rows)()

    def _read(self, rows: Tensor) -> Tensor:
        return self.store.read(rows).to(self.device)

    def _copied(self) -> Tensor:
        """The images of the store in the order of its rows, on the device."""
        out = torch.empty(
            (len(self.store), *self.store.pixels.shape[1:]), dtype=torch.uint8, device=self.device
        )
        for rows in torch.arange(len(self.store)).split(_BLOCK):
            out[int(rows[0]) : int(rows[-1]) + 1].copy_(self._gathered(rows), non_blocking=True)
        return out

    def _gathered(self, rows: Tensor) -> Tensor:
        """Images in pinned memory, which its allocator keeps until a copy from it is done."""
        out = torch.empty(
            (len(rows), *self.store.pixels.shape[1:]), dtype=torch.uint8, pin_memory=True
        )
        return torch.index_select(self.store.pixels, 0, self.store.slots[rows], out=out)

    def _staged(self, rows: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            images = self._gathered(rows).to(self.device, non_blocking=True)
            return images, self._stream.record_event()

    def _taken(self, staged: Future[tuple[Tensor, torch.cuda.Event]]) -> Tensor:
        images, copied = staged.result()
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(copied)
        images.record_stream(stream)
        return images


def pick_place(
    size: int, free: int, place: Place, warn: Callable[[str], None] | None = None
) -> Place:
    """Whether a store of `size` bytes goes to a device with `free` bytes: device or host.

    Raises:
        DataError: As `BatchLoader`.
    """
    needed = f"the pixels take {size / 2**30:.1f} GiB"
    if place == "device" and size > (room := free - RESERVE * 2**30):
        raise DataError(
            f"--image.place device: {needed}, {(size - room) / 2**30:.1f} GiB more than the device has room for "
            f"({free / 2**30:.1f} GiB free, {RESERVE:g} of them for the network); give --image.place host"
        )
    if place == "auto" and size > SHARE * free:
        if warn is not None:
            warn(
                f"{needed}, more than half of the device's {free / 2**30:.1f} free GiB: batches are copied from the host"
            )
        return "host"
    return "host" if place == "host" else "device"


def prefetch(batches: Iterable[A], start: Callable[[A], B]) -> Iterator[tuple[A, B]]:
    """Each batch with what `start` gives for it, which is called while the batch before it is still worked on."""
    waiting: tuple[A, B] | None = None
    for batch in batches:
        present, waiting = waiting, (batch, start(batch))
        if present is not None:
            yield present
    if waiting is not None:
        yield waiting


def to_device_async(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor on a device, through pinned memory, so that neither the host nor the device waits."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


@functools.cache
def device_constant(
    values: Any, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Numbers, in a tuple of any depth, that lie on a device once and for all."""
    with torch.inference_mode(False):
        return to_device_async(torch.tensor(values, dtype=dtype), device)
