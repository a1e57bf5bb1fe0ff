"""A rendered person re-identification set in the layout of MSMT17_V1, for runs without real images.

Which camera sees which identity when is planned here, from the seed alone; `render` makes each
image.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..config import SyntheticConfig
from ..data.msmt17 import read_msmt17_lists
from ..data.reader import ReadOptions
from ..data.records import ImageSet, keep_test_apart, renumber
from ..errors import DataError
from ..files import create_file, discard_folder, make_folder, move_made, new_folder, replacing
from .exact import Stream
from .render import RENDER_VERSION, jpeg_quality, render_image
from .traits import Split

#: MSMT17 lists 2,373 of its 32,621 training images for validation.
VALIDATION_SHARE = (2373, 32_621)

#: Sets smaller than this are rendered in the calling process, because starting others would cost
#: more than it saves.
SMALL_SET = 300

#: Images that a process renders at a time.
_CHUNK = 64

Progress = Callable[[int, int], None]


class _Shot(NamedTuple):
    """One image of the set and the list that names it."""

    part: str
    identity: int
    camera: int
    number: int

    @property
    def split(self) -> Split:
        return "train" if self.part in ("train", "val") else "test"

    def path(self, seed: int) -> str:
        stream = Stream(seed, *self, "name")
        stem = f"{self.identity:04d}_{self.number:03d}_{self.camera:02d}"
        suffix = f"0303morning_{stream.below(10_000):04d}_{stream.below(3)}.jpg"
        return f"{self.identity:04d}/{stem}_{suffix}"


def read_synthetic(root: Path, options: ReadOptions) -> ImageSet:
    """Read the synthetic set from the user's cache; it is rendered there at the first use.

    Statistics: as many images, identities and cameras as the settings say, by default those of
    `SyntheticConfig`. Layout: MSMT17_V1.

    Args:
        root: Not used.
        options: Size and seed, whether validation images are trained on, and progress.

    Raises:
        DataError: The settings describe no possible set, or there is no room for it.
    """
    try:
        folder = cached_synthetic(options.synthetic, on_progress=options.on_progress)
    except ValueError as error:
        raise DataError(f"`{options.keys.synthetic}`: {error}") from error
    except OSError as error:
        raise DataError(
            f"could not render the synthetic set ({error}); "
            "name a folder with room in FASTREID_AL_CACHE"
        ) from error
    train, query, gallery = read_msmt17_lists(folder, validation=options.validation)
    return keep_test_apart(ImageSet("synthetic", folder, renumber(train), query, gallery))


def write_synthetic(
    folder: Path,
    config: SyntheticConfig,
    *,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Render the whole set in the layout of MSMT17_V1.

    `folder` then holds `train/`, `test/` and the lists `list_train.txt`, `list_val.txt`,
    `list_query.txt` and `list_gallery.txt` with lines `PID4/FILE.jpg PID`. Train and val share the
    training identities; the identities of the test split count from 0 again. Each query has a match
    from another camera in the gallery. The set is rendered into a sibling folder and renamed when
    complete; where another process has finished `folder` first, its set stays.

    The pixels and lists depend on the configuration alone; the bytes of the JPEG files also on
    Pillow's libjpeg. The default set takes 6 MB (11 MB in blocks of 4 KiB), one of MSMT17's size
    0.7 GB (0.9 GB).

    Args:
        folder: Folder to make; it may exist if it is empty.
        config: Counts, height and seed of the set.
        workers: Processes that render, by default one for each core. Small sets are rendered in
            this process.
        on_progress: Called with (images rendered, images of the set) now and then.

    Raises:
        ValueError: The configuration describes no possible set.
        FileExistsError: `folder` has contents.
    """
    _check(config)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    prefix = f".{folder.name}-"
    unfinished = new_folder(folder.parent, prefix, private=False)
    try:
        _write_all(unfinished, config, workers or os.cpu_count() or 1, on_progress)
        try:
            move_made(unfinished, folder)
        except OSError:
            # Another process has finished the same set first.
            if not (folder / "list_train.txt").exists():
                raise
    finally:
        discard_folder(unfinished, prefix)


def cached_synthetic(
    config: SyntheticConfig,
    cache: Path | None = None,
    *,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Return the folder MSMT17_V1 of a set in the user's cache; it is rendered at the first use.

    Args:
        config: Counts, height and seed of the set.
        cache: Folder of all cached sets, by default the environment variable FASTREID_AL_CACHE or
            else the user's cache folder of the operating system.
        workers: Processes that render, by default one for each core.
        on_progress: Called with (images rendered, images of the set) now and then; not called for a
            set that is in the cache.

    Raises:
        ValueError: The configuration describes no possible set.
    """
    _check(config)
    if cache is None:
        from platformdirs import user_cache_dir

        cache = Path(os.environ.get("FASTREID_AL_CACHE") or user_cache_dir("fastreid_al"))
    folder = cache / _cache_name(config) / "MSMT17_V1"
    if not folder.exists():
        # Another process may finish the same set between the check and the rendering.
        with suppress(FileExistsError):
            write_synthetic(folder, config, workers=workers, on_progress=on_progress)
    return folder


def _cache_name(config: SyntheticConfig) -> str:
    """Name of a set's folder in the cache, made of its settings."""
    # The usual cast is not part of the name, so that sets rendered before there was a choice are
    # still found.
    values = tuple(
        value
        for name, value in asdict(config).items()
        if name != "cast" or value != SyntheticConfig.cast
    )
    digest = hashlib.blake2b(repr((RENDER_VERSION, values)).encode(), digest_size=4).hexdigest()
    return "-".join(["synthetic", f"v{RENDER_VERSION}", *map(str, values), digest])


def _check(config: SyntheticConfig) -> None:
    """Raise ValueError, in one line, for a set that cannot be rendered."""
    if config.cameras < 2:
        raise ValueError(
            f"cameras must be 2 or more to match identities across them, got {config.cameras}"
        )
    if config.height < 32:
        raise ValueError(f"height must be 32 or more, got {config.height}")
    if not 0 <= config.cast < math.inf:
        raise ValueError(f"cast must be 0 or more, got {config.cast}")
    if min(config.train_identities, config.test_identities) < 1:
        raise ValueError("train_identities and test_identities must be 1 or more")
    for name, images, identities, least in (
        ("train_images", config.train_images, config.train_identities, 2),
        ("query_images", config.query_images, config.test_identities, 1),
        ("gallery_images", config.gallery_images, config.test_identities, 2),
    ):
        if images < least * identities:
            raise ValueError(
                f"{name} must be {least} or more for each of {identities} identities, got {images}"
            )


def _plan(config: SyntheticConfig) -> list[_Shot]:
    """Plan all images of the set, each list in the order of its identities."""
    _check(config)
    stream = Stream(config.seed, "plan")
    return _plan_training(config, stream) + _plan_test(config, stream)


def _plan_training(config: SyntheticConfig, stream: Stream) -> list[_Shot]:
    total = config.train_images
    share, whole = VALIDATION_SHARE
    validation = (2 * total * share + whole) // (2 * whole)  # rounded to the nearest
    counts = _split_unevenly(total, config.train_identities, 2, stream)
    shots: list[_Shot] = []
    for identity, images in enumerate(counts):
        for index, camera in enumerate(_cameras_of_images(config, images, stream)):
            done = len(shots)
            # Validation images are spread evenly over all training images.
            held_out = (done + 1) * validation // total > done * validation // total
            shots.append(_Shot("val" if held_out else "train", identity, camera, index))
    return shots


def _plan_test(config: SyntheticConfig, stream: Stream) -> list[_Shot]:
    gallery_counts = _split_unevenly(config.gallery_images, config.test_identities, 2, stream)
    query_counts = _split_unevenly(config.query_images, config.test_identities, 1, stream)
    shots = []
    for identity in range(config.test_identities):
        images = gallery_counts[identity]
        cameras = _cameras_of_images(config, images, stream)
        for index, camera in enumerate(cameras):
            shots.append(_Shot("gallery", identity, camera, index))
        distinct = sorted(set(cameras))
        first = stream.below(len(distinct))
        for turn in range(query_counts[identity]):
            camera = distinct[(first + turn) % len(distinct)]
            shots.append(_Shot("query", identity, camera, images + turn))
    return shots


def _split_unevenly(total: int, people: int, least: int, stream: Stream) -> list[int]:
    """Split `total` images over people, unevenly, at least `least` each."""
    weights = [40 + stream.below(120) for _ in range(people)]
    spare = total - least * people
    whole = sum(weights)
    counts = []
    before = 0
    for weight in weights:
        extra = (before + weight) * spare // whole - before * spare // whole
        counts.append(least + extra)
        before += weight
    return counts


def _cameras_of_images(config: SyntheticConfig, images: int, stream: Stream) -> list[int]:
    """The camera of each of an identity's images, sorted: 2 to 6 cameras, each at least once."""
    count = min(config.cameras, max(2, min(images // 2, 3 + stream.below(4))))
    cameras = stream.sample(range(1, config.cameras + 1), count)
    more = [stream.pick(cameras) for _ in range(images - count)]
    return sorted(cameras + more)


def _write_all(
    folder: Path, config: SyntheticConfig, workers: int, on_progress: Progress | None
) -> None:
    """Write the lists and render all images."""
    shots = _plan(config)
    for split, identity in {(shot.split, shot.identity): None for shot in shots}:
        make_folder(folder / split / f"{identity:04d}", private=False)
    _write_lists(folder, config, shots)
    chunks = [shots[start : start + _CHUNK] for start in range(0, len(shots), _CHUNK)]
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, len(shots))

    if workers > 1 and len(shots) >= SMALL_SET:
        # A script without a main guard cannot start processes; the loop below renders its images.
        spawn = multiprocessing.get_context("spawn")
        with suppress(BrokenProcessPool), ProcessPoolExecutor(workers, spawn) as pool:
            waiting = {pool.submit(_write_shots, folder, config, chunk): chunk for chunk in chunks}
            for future in as_completed(waiting):
                advance(future.result())
                chunks.remove(waiting[future])
    for chunk in chunks:
        advance(_write_shots(folder, config, chunk))


def _write_lists(folder: Path, config: SyntheticConfig, shots: Sequence[_Shot]) -> None:
    for part in ("train", "val", "query", "gallery"):
        lines = []
        for shot in shots:
            if shot.part == part:
                lines.append(f"{shot.path(config.seed)} {shot.identity}\n")
        with create_file(folder / f"list_{part}.txt", private=False) as file:
            file.write("".join(lines).encode())


def _write_shots(folder: Path, config: SyntheticConfig, shots: Sequence[_Shot]) -> int:
    """Render images into the folder, whose folders of identities exist; returns their number."""
    for shot in shots:
        what = (shot.split, shot.identity, shot.camera, shot.number)
        quality = jpeg_quality(config, *what)
        image = Image.fromarray(render_image(config, *what))
        path = folder / shot.split / shot.path(config.seed)
        # It exists already where a process that rendered this chunk has died.
        with replacing(path, private=False, durable=False) as file:
            image.save(file, format="JPEG", quality=quality)
    return len(shots)
