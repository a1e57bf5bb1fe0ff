"""Pixels that are decoded once, into memory or into a memory-mapped file.

The same images are read in every epoch, so JPEGs are decoded a single time, by threads, straight to
the size of the network's input. At 256 x 128 an image takes 98,304 bytes: 3.2 GB for MSMT17's
32,621 training images, 98 GB for a million. They can be kept for later runs, and used by all
processes of a machine, in the files of `cache`.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ..config import ImageConfig
from ..distributed.world import SINGLE_PROCESS, World
from ..errors import DataError
from ..files import discard_folder, nameless_file, new_folder
from .cache import FileState, PixelCache, digest_of, reserve, threads
from .formats import readable_formats

#: Pixels past which an image is left out: a crop of a person is never this large, a decompression
#: bomb is.
LARGEST_IMAGE = 64_000_000

#: Prefix of a folder in which processes share pixels for the time of decoding.
EXCHANGE = "pixels-"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Progress = Callable[[int, int], None]


class BadImage(NamedTuple):
    """An image that could not be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class PixelStore:
    """Decoded images of one split.

    Args:
        pixels: (m, 3, H, W) uint8, m >= n, in memory or memory-mapped; read only.
        slots: (n,) int64, the index of each readable image in `pixels` and in the list of paths
            that was decoded.
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
        """Read images by row: (B,) int64 -> (B, 3, H, W) uint8."""
        return self.pixels[self.slots[rows]]


@dataclass(frozen=True)
class PixelSettings:
    """Size of decoded images, and where they are kept.

    Args:
        height: Height of the store in pixels.
        width: Width of the store in pixels.
        store_gib: Past this many GiB the store is a memory-mapped file, which the system deletes
            when the process ends.
        store_dir: Folder of that file; the system's temporary folder when not given.
        cache: Folder in which the pixels are kept, to be found again by the content of the files;
            not kept when not given.
        cache_gib: Past this many GiB in that folder, the least recently used pixels are removed.
    """

    height: int
    width: int
    store_gib: float = 4.0
    store_dir: str | Path | None = None
    cache: str | Path | None = None
    cache_gib: float = 64.0

    @classmethod
    def of(cls, image: ImageConfig, store_dir: Path | None) -> PixelSettings:
        """Return the settings of a run.

        Args:
            image: Size, budgets and cache.
            store_dir: Folder of a memory-mapped file.
        """
        cache = cache_folder(image.cache)
        return cls(image.height, image.width, image.store_gib, store_dir, cache, image.cache_gib)

    def bytes_of(self, n: int) -> int:
        """Bytes that n images take."""
        return n * 3 * self.height * self.width


def cache_folder(setting: str) -> Path | None:
    """Return the folder that a value of the setting `image.cache` names.

    Args:
        setting: "none", "auto" (the user's cache folder, or FASTREID_AL_CACHE), or a folder.
    """
    if setting == "none":
        return None
    if setting != "auto":
        return Path(setting)
    from platformdirs import user_cache_dir

    return Path(os.environ.get("FASTREID_AL_CACHE") or user_cache_dir("fastreid_al")) / "pixels"


def file_digests(
    paths: Sequence[Path], cache: Path | None, on_progress: Progress | None = None
) -> list[str]:
    """Return the digests of files' contents, empty for a file that cannot be read.

    With a cache, files that it knows are not read again, and those that are read now are known when
    they are decoded.

    Args:
        paths: The n files.
        cache: Folder of the cache.
        on_progress: Called with (files done, files in all).
    """
    if cache is not None:
        with contextlib.suppress(OSError):
            return PixelCache(cache, 0, _silent).digests(paths, on_progress)

    def digest(path: Path) -> str:
        with contextlib.suppress(OSError):
            return digest_of(path.read_bytes())
        return ""

    found = []
    with threads() as pool:
        for one in pool.map(digest, paths):
            found.append(one)
            if on_progress is not None:
                on_progress(len(found), len(paths))
    return found


def decode(
    paths: Sequence[Path],
    settings: PixelSettings | int,
    width: int | None = None,
    *,
    world: World = SINGLE_PROCESS,
    on_progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> PixelStore:
    """Decode images once, resized with antialiased bicubic interpolation.

    Resizing is that of torchvision's Resize on a PIL image. An image is turned as its EXIF
    orientation says. Only the formats of `formats.FORMATS` are opened, whatever a file's name is.
    Greyscale, CMYK, palette, 16-bit and animated images (their first frame) are converted to RGB.
    What cannot be read is left out and reported in `bad`.

    Collective: of the processes of a machine one decodes, while the others wait, and all map the
    same file, so that the pixels are in its memory once. Without a cache that file lies in
    `store_dir` and is deleted by the system when the last process ends.

    Args:
        paths: Image files.
        settings: Size of the images, and where they are kept; or only their height in pixels.
        width: Width of the images in pixels, after a height.
        world: Processes that decode the same images.
        on_progress: Called with (images done, images in all); with a cache also while digests are
            taken of files that are not known, before they are decoded.
        warn: Called with one line when the cache is damaged or cannot be written.

    Raises:
        DataError: There is no room for the memory-mapped file, or the processes do not see the same
            images.
    """
    warn = warn or _silent
    if not isinstance(settings, PixelSettings):
        if width is None:
            raise TypeError("width: got None, expected the width in pixels after the height")
        settings = PixelSettings(settings, width)
    if world.size == 1:
        return _decode_here(paths, settings, False, on_progress, warn)
    if settings.cache is not None:
        fits = settings.bytes_of(len(paths)) <= settings.cache_gib * 2**30
        if fits:
            return _agreed(lambda: _decode_here(paths, settings, True, on_progress, warn), world)
    exchange = world.compute_on_first(lambda: _new_folder(settings.store_dir))
    exchanged = replace(settings, cache=exchange, cache_gib=float("inf"))
    try:
        return _agreed(lambda: _decode_here(paths, exchanged, True, on_progress, warn), world)
    finally:
        # By now every process has opened the file, or has failed.
        discard_folder(exchange, EXCHANGE)


def _decode_here(
    paths: Sequence[Path],
    settings: PixelSettings,
    many: bool,
    on_progress: Progress | None,
    warn: Callable[[str], None],
) -> PixelStore:
    """Decode in this process, or read the pixels from the cache.

    Args:
        paths: Image files.
        settings: Size of the images, and where they are kept.
        many: Several processes map the cache's file.
        on_progress: As for `decode`.
        warn: As for `decode`.
    """

    def fill(array: np.ndarray) -> list[FileState]:
        return _fill(array, paths, on_progress)

    if settings.cache is not None:
        large = settings.bytes_of(len(paths)) > settings.store_gib * 2**30
        cache = PixelCache(Path(settings.cache), settings.cache_gib * 2**30, warn)
        cached = cache.get(paths, settings.height, settings.width, many or large, fill, on_progress)
        if cached is not None:
            with warnings.catch_warnings():
                # PyTorch warns of an array that is read only; nothing writes to it.
                warnings.simplefilter("ignore")
                return _store(torch.from_numpy(cached.pixels), paths, cached.files)
    pixels = _allocate(len(paths), settings)
    return _store(pixels, paths, fill(pixels.numpy()))


def _silent(line: str) -> None:
    """Drop a warning."""


def _new_folder(parent: str | Path | None) -> Path:
    place = "the folder for temporary files" if parent is None else str(parent)
    try:
        return new_folder(Path(parent or tempfile.gettempdir()), EXCHANGE)
    except OSError as error:
        raise DataError(
            f"no room for decoded pixels in {place} ({error.strerror}); "
            "choose another folder for temporary files (TMPDIR) or for the run (`run_dir`)"
        ) from error


def _agreed(make: Callable[[], PixelStore], world: World) -> PixelStore:
    """Make a store in each process; an error of one is raised in all."""
    error: Exception | None = None
    digest = ""
    try:
        store = make()
        slots = map(str, store.slots.tolist())
        digest = digest_of("\n".join([*store.digests, *slots]).encode())
    except Exception as raised:
        error = raised
    results = world.all_gather_objects((digest, f"{error}" if error is not None else None))
    if error is not None:
        raise error
    first_digest = results[0][0]
    for rank, (other_digest, message) in enumerate(results):
        if message is not None:
            raise DataError(f"rank {rank}: {message}")
        if other_digest != first_digest:
            raise DataError(
                f"rank {rank} does not find the same images as rank 0; "
                "give all machines the same files"
            )
    return store


def _fill(
    array: np.ndarray, paths: Sequence[Path], on_progress: Progress | None
) -> list[FileState]:
    """Decode n files into (n, 3, H, W) uint8."""
    height, width = array.shape[-2:]

    def decode_one(index: int) -> FileState:
        digest = ""
        try:
            content = read_bytes(paths[index])
            digest = digest_of(content)
            array[index] = resized(to_rgb(content), height, width)
        except Exception as error:  # Pillow raises a wide range of types on damaged files.
            return FileState(digest, reason_of(error))
        return FileState(digest)

    files: list[FileState] = []
    with warnings.catch_warnings(), threads() as pool:
        # This module decides about large and odd images, not Pillow's warnings.
        warnings.simplefilter("ignore")
        for file in pool.map(decode_one, range(len(paths))):
            files.append(file)
            if on_progress is not None:
                on_progress(len(files), len(paths))
    return files


def resized(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Resize an RGB image with antialiased bicubic interpolation, to (3, height, width) uint8."""
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(small).transpose(2, 0, 1)


def read_image(path: Path) -> Image.Image:
    """Read and decode an image file as RGB, turned as its EXIF orientation says.

    Raises:
        Exception: It cannot be read; Pillow raises many types, which `reason_of` names.
    """
    return to_rgb(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file; a pipe or a device could be read for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("no regular file")
    return path.read_bytes()


def _store(pixels: Tensor, paths: Sequence[Path], files: Sequence[FileState]) -> PixelStore:
    slots = []
    digests = []
    bad = []
    for index, file in enumerate(files):
        if file.reason:
            bad.append(BadImage(paths[index], file.reason))
        else:
            slots.append(index)
            digests.append(file.digest)
    return PixelStore(pixels, torch.tensor(slots, dtype=torch.int64), digests, bad)


def _allocate(n: int, settings: PixelSettings) -> Tensor:
    """Make room for n images, (n, 3, H, W) uint8, in memory or in a memory-mapped file."""
    shape = (n, 3, settings.height, settings.width)
    size = settings.bytes_of(n)
    if size <= settings.store_gib * 2**30 or n == 0:
        return torch.empty(shape, dtype=torch.uint8)
    given = settings.store_dir
    folder = "the folder for temporary files" if given is None else str(given)
    try:
        # It is looked for here: where all is read-only there is none, and most need none.
        folder = str(given or tempfile.gettempdir())
        with nameless_file(Path(folder)) as file:
            reserve(file, size)
            mapped = np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"no room for {size / 2**30:.1f} GiB of decoded pixels in {folder} ({error.strerror}); "
            "choose another folder for temporary files (TMPDIR)"
            # Only a run keeps them in its folder.
            + (
                ""
                if given is None
                else " or for the run (`run_dir`), or allow more memory with `image.store_gib`"
            )
        ) from error
    return torch.from_numpy(mapped)


def to_rgb(content: bytes) -> Image.Image:
    """Decode the content of an image file.

    Raises:
        ValueError: It is empty, too large or damaged.
        OSError: It is damaged.
    """
    return image_to_rgb(open_image(content))


def open_image(content: bytes) -> Image.Image:
    """Open the content of an image file, whose pixels are not decoded yet.

    Raises:
        ValueError: It is empty or too large.
        OSError: The header of the file is damaged, or the file is no image.
    """
    if not content:
        raise ValueError("the file is empty")
    image = Image.open(io.BytesIO(content), formats=readable_formats())
    if image.width * image.height > LARGEST_IMAGE:
        raise ValueError(
            f"{image.width} x {image.height} is more than {LARGEST_IMAGE // 10**6} million pixels"
        )
    return image


def image_to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image as `decode` does: turned upright, 16 bits scaled to 8, in RGB.

    Args:
        image: The image, as `PIL.Image.open` returned it or as it was made.

    Raises:
        OSError: It is damaged.
    """
    # Pillow turns a TIFF image by itself when it is loaded.
    image.load()
    turned = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(np.asarray(turned), sixteen_bit=image.mode.startswith("I;16"))
    return turned.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; a damaged one says nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises a wide range of types on damaged metadata.
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _from_deep(values: np.ndarray, sixteen_bit: bool) -> Image.Image:
    """Scale 16-bit grey values to 8 bits; Pillow's own conversion clips them.

    Wider modes hold 8-bit or 16-bit values.
    """
    values = values.astype(np.float64)
    if sixteen_bit or values.max(initial=0) > 255:
        values = values / 257
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")


def reason_of(error: Exception) -> str:
    """Say why an image cannot be read."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
