"""A drawn person re-identification set in the layout of MSMT17_V1, for runs and tests without the real images.

Which identity is seen when by which camera is planned here, from the seed alone; `drawing` draws each image.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..config import SyntheticConfig
from .render import DRAWING_VERSION, Split, Stream, draw_image, jpeg_quality

#: MSMT17 lists 2,373 of its 32,621 training images for validation.
VALIDATION_SHARE = (2373, 32_621)

#: Sets smaller than this are drawn in the calling process, where starting others would cost more than it saves.
SMALL_SET = 300


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
        return f"{self.identity:04d}/{stem}_0303morning_{stream.below(10_000):04d}_{stream.below(3)}.jpg"


def _check(config: SyntheticConfig) -> None:
    """Raise ValueError, in one line, for a set that cannot be drawn."""
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


def _shares(total: int, people: int, least: int, stream: Stream) -> list[int]:
    """Split `total` images over people, unevenly, at least `least` each."""
    weights = [40 + stream.below(120) for _ in range(people)]
    spare, whole = total - least * people, sum(weights)
    shares, before = [], 0
    for weight in weights:
        shares.append(least + (before + weight) * spare // whole - before * spare // whole)
        before += weight
    return shares


def _seen_by(config: SyntheticConfig, images: int, stream: Stream) -> list[int]:
    """The camera of each of an identity's images, sorted: 2 to 6 cameras, each at least once."""
    count = min(config.cameras, max(2, min(images // 2, 3 + stream.below(4))))
    cameras = stream.sample(range(1, config.cameras + 1), count)
    return sorted(cameras + [stream.pick(cameras) for _ in range(images - count)])


def _plan(config: SyntheticConfig) -> list[_Shot]:
    """All images of the set, each list in the order of its identities."""
    _check(config)
    stream = Stream(config.seed, "plan")
    shots, done = [], 0
    validation = (2 * config.train_images * VALIDATION_SHARE[0] + VALIDATION_SHARE[1]) // (
        2 * VALIDATION_SHARE[1]
    )
    for identity, images in enumerate(
        _shares(config.train_images, config.train_identities, 2, stream)
    ):
        for index, camera in enumerate(_seen_by(config, images, stream)):
            held_out = (
                done + 1
            ) * validation // config.train_images > done * validation // config.train_images
            shots.append(_Shot("val" if held_out else "train", identity, camera, index))
            done += 1
    galleries = _shares(config.gallery_images, config.test_identities, 2, stream)
    queries = _shares(config.query_images, config.test_identities, 1, stream)
    for identity, (images, asked) in enumerate(zip(galleries, queries, strict=True)):
        cameras = _seen_by(config, images, stream)
        shots += [_Shot("gallery", identity, camera, index) for index, camera in enumerate(cameras)]
        seen = sorted(set(cameras))
        first = stream.below(len(seen))
        shots += [
            _Shot("query", identity, seen[(first + turn) % len(seen)], images + turn)
            for turn in range(asked)
        ]
    return shots


def _write_shots(folder: Path, config: SyntheticConfig, shots: Sequence[_Shot]) -> int:
    """Draw the images into the folder; the identities' folders exist already."""
    for shot in shots:
        pixels = draw_image(config, shot.split, *shot[1:])
        quality = jpeg_quality(config, shot.split, *shot[1:])
        Image.fromarray(pixels).save(folder / shot.split / shot.path(config.seed), quality=quality)
    return len(shots)


def _write_all(
    folder: Path,
    config: SyntheticConfig,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    shots = _plan(config)
    for shot in {(shot.split, shot.identity): shot for shot in shots}.values():
        (folder / shot.split / f"{shot.identity:04d}").mkdir(parents=True)
    for part in ("train", "val", "query", "gallery"):
        lines = [
            f"{shot.path(config.seed)} {shot.identity}\n" for shot in shots if shot.part == part
        ]
        (folder / f"list_{part}.txt").write_text("".join(lines))
    chunks = [shots[start : start + 64] for start in range(0, len(shots), 64)]
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, len(shots))

    if workers > 1 and len(shots) >= SMALL_SET:
        # A script without a main guard cannot start processes; its images are then drawn here.
        spawn = multiprocessing.get_context("spawn")
        with suppress(BrokenProcessPool), ProcessPoolExecutor(workers, spawn) as pool:
            waiting = {pool.submit(_write_shots, folder, config, chunk): chunk for chunk in chunks}
            for future in as_completed(waiting):
                advance(future.result())
                chunks.remove(waiting[future])
    for chunk in chunks:
        advance(_write_shots(folder, config, chunk))


def write_synthetic(
    folder: Path,
    config: SyntheticConfig,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw the whole set in the layout of MSMT17_V1.

    `folder` then holds `train/`, `test/` and the lists `list_train.txt`, `list_val.txt`, `list_query.txt` and
    `list_gallery.txt` with lines `PID4/FILE.jpg PID`. Train and val share the training identities; the identities of
    the test split count from 0 again. Each query has a match from another camera in the gallery. The set is drawn into
    a sibling folder and renamed when complete; where another process has finished `folder` first, its set stays.

    The pixels and lists depend on the configuration alone; the bytes of the JPEG files also on Pillow's libjpeg. The
    default set takes 6 MB (11 MB in blocks of 4 KiB), one of MSMT17's size 0.7 GB (0.9 GB).

    Args:
        folder: Folder to make; it may exist if it is empty.
        config: Counts, height and seed of the set.
        workers: Processes to draw with, by default one for each core. Small sets are drawn in this process.
        on_progress: Called with (images drawn, images of the set) now and then.

    Raises:
        ValueError: The configuration describes no possible set.
        FileExistsError: `folder` has contents.
    """
    _check(config)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        _write_all(unfinished, config, workers or os.cpu_count() or 1, on_progress)
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not (folder / "list_train.txt").exists():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def cached_synthetic(
    config: SyntheticConfig,
    cache: Path | None = None,
    *,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The folder MSMT17_V1 of a set in the user's cache, drawn there the first time it is asked for.

    Args:
        config: Counts, height and seed of the set.
        cache: Folder of all cached sets, by default the environment variable FASTREID_AL_CACHE or else the user's
            cache folder of the operating system.
        workers: As for `write_synthetic`.
        on_progress: As for `write_synthetic`; not called for a set that is there already.

    Raises:
        ValueError: The configuration describes no possible set.
    """
    _check(config)
    if cache is None:
        from platformdirs import user_cache_dir

        cache = Path(os.environ.get("FASTREID_AL_CACHE") or user_cache_dir("fastreid_al"))
    # The usual cast has no part in the name, so that sets drawn before there was a choice are still found.
    values = tuple(
        value
        for name, value in asdict(config).items()
        if name != "cast" or value != SyntheticConfig.cast
    )
    digest = hashlib.blake2b(repr((DRAWING_VERSION, values)).encode(), digest_size=4).hexdigest()
    name = "-".join(["synthetic", f"v{DRAWING_VERSION}", *map(str, values), digest])
    folder = cache / name / "MSMT17_V1"
    if not folder.exists():
        # Another process may finish the same set between the question and the drawing.
        with suppress(FileExistsError):
            write_synthetic(folder, config, workers=workers, on_progress=on_progress)
    return folder
