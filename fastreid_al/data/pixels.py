"""Pixels decoded once: a uint8 store in memory, or in a memory-mapped file when it is past a budget.

The same images are read in every epoch, so JPEGs are decoded a single time, by threads, straight to the size of the network's
input. At 256 x 128 an image takes 98,304 bytes: 3.2 GB for MSMT17's 32,621 training images, 98 GB for a million.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError

#: Pixels past which an image is left out: a crop of a person is never this large, a decompression bomb is.
LARGEST_IMAGE = 64_000_000


class BadImage(NamedTuple):
    """An image that could not be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class PixelStore:
    """Decoded images of one split.

    Args:
        pixels: (m, 3, H, W) uint8, m >= n, in memory or memory-mapped.
        slots: (n,) int64, the place of each readable image in `pixels` and in the list of paths that was decoded.
        digests: n hexadecimal digests of the files' contents.
        bad: The images left out.
    """

    pixels: Tensor
    slots: Tensor
    digests: list[str]
    bad: list[BadImage]

    def __len__(self) -> int:
        return len(self.slots)

    def read(self, rows: Tensor) -> Tensor:
        """Images by row, (B,) int64 -> (B, 3, H, W) uint8."""
        return self.pixels[self.slots[rows]]


def decode(
    paths: Sequence[Path],
    height: int,
    width: int,
    *,
    store_gib: float = 4.0,
    store_dir: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PixelStore:
    """Decode images once, resized with antialiased bicubic interpolation, as torchvision's Resize does on a PIL image.

    Greyscale, CMYK, palette, 16-bit and animated images (their first frame) are converted to RGB. What cannot be read is
    left out and reported in `bad`.

    Args:
        paths: Image files.
        height: Height of the store in pixels.
        width: Width of the store in pixels.
        store_gib: Past this many GiB the store is a memory-mapped file, deleted by the system when the process ends.
        store_dir: Folder of that file; the system's temporary folder when not given.
        on_progress: Called with (images done, images in all).

    Raises:
        DataError: There is no room for the memory-mapped file.
    """
    store = _allocate(len(paths), height, width, store_gib, store_dir)
    array = store.numpy()

    def one(place: int) -> str | BadImage:
        try:
            content = paths[place].read_bytes()
            image = to_rgb(content).resize((width, height), Image.Resampling.BICUBIC)
        except Exception as error:  # Pillow raises a wide range of types on damaged files.
            return BadImage(paths[place], _reason(error))
        array[place] = np.asarray(image).transpose(2, 0, 1)
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    results: list[str | BadImage] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # a large or odd image is judged here, not by Pillow's warnings
        for result in pool.map(one, range(len(paths))):
            results.append(result)
            if on_progress is not None:
                on_progress(len(results), len(paths))
    kept = [place for place, result in enumerate(results) if isinstance(result, str)]
    return PixelStore(
        store,
        torch.tensor(kept, dtype=torch.int64),
        [r for r in results if isinstance(r, str)],
        [r for r in results if isinstance(r, BadImage)],
    )


def _allocate(n: int, height: int, width: int, store_gib: float, store_dir: str | Path | None) -> Tensor:
    shape = (n, 3, height, width)
    size = n * 3 * height * width
    if size <= store_gib * 2**30 or n == 0:
        return torch.empty(shape, dtype=torch.uint8)
    folder = Path(store_dir) if store_dir is not None else Path(tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="pixels-", suffix=".u8", delete=False) as file:
            try:
                # Without the reservation a full disk would be a bus error in the middle of decoding.
                with contextlib.suppress(AttributeError):
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
                mapped = np.memmap(file.name, np.uint8, "r+", shape=shape)
            finally:
                with contextlib.suppress(OSError):  # an open mapping outlives its name, except on Windows
                    os.unlink(file.name)
    except OSError as error:
        raise DataError(
            f"no place for {size / 2**30:.1f} GiB of decoded pixels in {folder} ({error.strerror}); "
            "name another folder with the setting store-dir, or allow more memory with store-gib"
        ) from error
    return torch.from_numpy(mapped)


def to_rgb(content: bytes) -> Image.Image:
    """Decode the content of an image file; ValueError or OSError where it is damaged or too large."""
    if not content:
        raise ValueError("the file is empty")
    image = Image.open(io.BytesIO(content))
    if image.width * image.height > LARGEST_IMAGE:
        raise ValueError(f"{image.width} x {image.height} is more than {LARGEST_IMAGE // 10**6} million pixels")
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(np.asarray(image), sixteen_bit=image.mode.startswith("I;16"))
    return image.convert("RGB")


def _from_deep(values: np.ndarray, sixteen_bit: bool) -> Image.Image:
    """Scale 16-bit grey values to 8 bits; Pillow's own conversion clips them. Wider modes hold either range."""
    values = values.astype(np.float64)
    if sixteen_bit or values.max(initial=0) > 255:
        values = values / 257
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
