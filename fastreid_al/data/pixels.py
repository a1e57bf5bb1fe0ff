"""Pixels decoded once: a uint8 store in memory, or in a memory-mapped file when it is past a budget.

The same images are read in every epoch, so JPEGs are decoded a single time, by threads, straight to the size of the network's
input. At 256 x 128 an image takes 98,304 bytes: 3.2 GB for MSMT17's 32,621 training images, 98 GB for a million. They can be
kept for later runs, and shared by the processes of a machine, in the files of `cache`.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..distributed.world import SINGLE_PROCESS, World
from ..errors import DataError
from .cache import PixelCache, Seen, digest_of, reserve, threads

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
        pixels: (m, 3, H, W) uint8, m >= n, in memory or memory-mapped; to be read alone.
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


def cache_folder(setting: str) -> Path | None:
    """The folder that the setting image.cache names: the user's (auto), which FASTREID_AL_CACHE moves, or none (none)."""
    if setting == "none":
        return None
    if setting != "auto":
        return Path(setting)
    from platformdirs import user_cache_dir

    return Path(os.environ.get("FASTREID_AL_CACHE") or user_cache_dir("fastreid_al")) / "pixels"


def decode(
    paths: Sequence[Path],
    height: int,
    width: int,
    *,
    store_gib: float = 4.0,
    store_dir: str | Path | None = None,
    cache: str | Path | None = None,
    cache_gib: float = 64.0,
    world: World = SINGLE_PROCESS,
    on_progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> PixelStore:
    """Decode images once, resized with antialiased bicubic interpolation, as torchvision's Resize does on a PIL image.

    Greyscale, CMYK, palette, 16-bit and animated images (their first frame) are converted to RGB. What cannot be read is
    left out and reported in `bad`.

    Collective: of the ranks of a machine one decodes, while the others wait, and all map the same file, so that the pixels
    are in its memory once. Without a cache that file lies in `store_dir` and is deleted by the system when the last ends.

    Args:
        paths: Image files.
        height: Height of the store in pixels.
        width: Width of the store in pixels.
        store_gib: Past this many GiB the store is a memory-mapped file, deleted by the system when the process ends.
        store_dir: Folder of that file; the system's temporary folder when not given.
        cache: Folder in which the pixels are kept and found again by the content of the files; not kept when not given.
        cache_gib: Past this many GiB in that folder, what was used longest ago is removed.
        world: Ranks that decode the same images.
        on_progress: Called with (images done, images in all); with a cache also while digests are taken of files that are
            not known, before they are decoded.
        warn: Called with one line when the cache is damaged, or cannot be written and is done without.

    Raises:
        DataError: There is no room for the memory-mapped file; or the ranks do not find the same images.
    """
    warn = warn or _silent

    def fill(array: np.ndarray) -> list[Seen]:
        return _fill(array, paths, on_progress)

    def here(folder: Path | None, budget: float) -> PixelStore:
        if folder is not None:
            mapped = world.size > 1 or len(paths) * 3 * height * width > store_gib * 2**30
            kept = PixelCache(folder, budget, warn).get(
                paths, height, width, mapped, fill, on_progress
            )
            if kept is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter(
                        "ignore"
                    )  # a mapped file can only be read, which is all that is done
                    return _store(torch.from_numpy(kept.pixels), paths, kept.seen)
        pixels = _allocate(len(paths), height, width, store_gib, store_dir)
        return _store(pixels, paths, fill(pixels.numpy()))

    if world.size == 1:
        return here(None if cache is None else Path(cache), cache_gib * 2**30)
    size = len(paths) * 3 * height * width
    if cache is not None and size <= cache_gib * 2**30:
        return _agreed(lambda: here(Path(cache), cache_gib * 2**30), world)
    exchange = world.compute_on_first(lambda: _new_folder(store_dir))
    try:
        return _agreed(lambda: here(exchange, float("inf")), world)
    finally:
        # All have opened it by now, or have failed.
        shutil.rmtree(exchange, ignore_errors=True)


def _silent(line: str) -> None:
    """Warn nobody."""


def _new_folder(parent: str | Path | None) -> Path:
    try:
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="pixels-", dir=parent))
    except OSError as error:
        raise DataError(
            f"no place for decoded pixels in {parent or tempfile.gettempdir()} ({error.strerror}); name another folder with "
            "the setting store-dir"
        ) from error


def _agreed(make: Callable[[], PixelStore], world: World) -> PixelStore:
    """What each rank makes; an error of one is raised on all."""
    error: Exception | None = None
    digest = ""
    try:
        store = make()
        digest = digest_of("\n".join([*store.digests, *map(str, store.slots.tolist())]).encode())
    except Exception as raised:
        error = raised
    said = world.all_gather_objects((digest, f"{error}" if error is not None else None))
    if error is not None:
        raise error
    for rank, (other, failed) in enumerate(said):
        if failed is not None:
            raise DataError(f"rank {rank}: {failed}")
        if other != said[0][0]:
            raise DataError(
                f"rank {rank} does not find the same images as rank 0; give all machines the same files"
            )
    return store


def _fill(
    array: np.ndarray, paths: Sequence[Path], on_progress: Callable[[int, int], None] | None
) -> list[Seen]:
    """Decode files into (n, 3, H, W) uint8."""
    height, width = array.shape[-2:]

    def one(place: int) -> Seen:
        digest = ""
        try:
            content = paths[place].read_bytes()
            digest = digest_of(content)
            image = to_rgb(content).resize((width, height), Image.Resampling.BICUBIC)
        except Exception as error:  # Pillow raises a wide range of types on damaged files.
            return Seen(digest, _reason(error))
        array[place] = np.asarray(image).transpose(2, 0, 1)
        return Seen(digest)

    seen: list[Seen] = []
    with warnings.catch_warnings(), threads() as pool:
        warnings.simplefilter(
            "ignore"
        )  # a large or odd image is judged here, not by Pillow's warnings
        for result in pool.map(one, range(len(paths))):
            seen.append(result)
            if on_progress is not None:
                on_progress(len(seen), len(paths))
    return seen


def _store(pixels: Tensor, paths: Sequence[Path], seen: list[Seen]) -> PixelStore:
    return PixelStore(
        pixels,
        torch.tensor([place for place, x in enumerate(seen) if not x.reason], dtype=torch.int64),
        [x.digest for x in seen if not x.reason],
        [BadImage(path, x.reason) for path, x in zip(paths, seen, strict=True) if x.reason],
    )


def _allocate(
    n: int, height: int, width: int, store_gib: float, store_dir: str | Path | None
) -> Tensor:
    shape = (n, 3, height, width)
    size = n * 3 * height * width
    if size <= store_gib * 2**30 or n == 0:
        return torch.empty(shape, dtype=torch.uint8)
    folder = Path(store_dir) if store_dir is not None else Path(tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=folder, prefix="pixels-", suffix=".u8", delete=False
        ) as file:
            try:
                reserve(file, size)
                mapped = np.memmap(file.name, np.uint8, "r+", shape=shape)
            finally:
                with contextlib.suppress(
                    OSError
                ):  # an open mapping outlives its name, except on Windows
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
        raise ValueError(
            f"{image.width} x {image.height} is more than {LARGEST_IMAGE // 10**6} million pixels"
        )
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
