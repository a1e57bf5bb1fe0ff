"""Reads and decodes the images of a run: the set to train on, and a labelled source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import ClusterConfig, EvaluationConfig, RunConfig
from ..data import ImageSet, describe, load
from ..data.fingerprint import data_fingerprint
from ..data.pixels import PixelStore, cache_folder, file_digests
from ..data.reader import SOURCE_KEYS
from ..data.records import UNKNOWN, Record, join_sources, track_numbers
from ..engine.console import Reporter
from ..engine.extract import decode_records, identities_and_cameras
from ..errors import DataError, SettingError, UserError
from ..methods.adaptation import Source
from ..settings import separated
from .context import RunContext


@dataclass(frozen=True)
class Dataset:
    """The decoded training images of a set.

    Args:
        images: The set.
        records: Its n training images that could be read.
        store: Their pixels.
        identities: (n,) int64, -1 where unknown.
        cameras: (n,) int64, -1 where unknown.
    """

    images: ImageSet
    records: list[Record]
    store: PixelStore
    identities: Tensor
    cameras: Tensor

    def __len__(self) -> int:
        return len(self.records)

    @property
    def known_identities(self) -> Tensor | None:
        """(n,) int64 identities; None when any is unknown."""
        return self.identities if (self.identities != UNKNOWN).all() else None

    def tracks(self, config: ClusterConfig) -> Tensor | None:
        """(n,) int64 track of each image, -1 for none; None where `cluster.tracks` or the set has
        no tracks.
        """
        numbers = track_numbers(self.records) if config.tracks == "must_link" else None
        return None if numbers is None else torch.tensor(numbers)

    def fingerprint(self, test_digests: Mapping[Path, str] | None = None) -> dict[str, str]:
        """Describe the content of every image, by path.

        Args:
            test_digests: Digests of the contents of test images, by path.
        """
        return data_fingerprint(self.images, self.records, self.store.digests, test_digests)


def read_set(
    config: RunConfig | EvaluationConfig,
    name: str,
    reporter: Reporter,
) -> ImageSet:
    """Read the image set of a run or of an evaluation.

    A synthetic set is rendered at its first use.

    Args:
        config: Where the set lies, and how it is read.
        name: Name of the set.
        reporter: Shows progress.

    Raises:
        UserError: The set cannot be read.
    """
    with reporter.progress("rendering", 0) as update:
        return load(
            name,
            config.data_root,
            synthetic=config.synthetic,
            verbose=False,
            on_progress=update,
            camera_pattern=config.camera_pattern,
            identity_pattern=config.identity_pattern,
            frames=config.tracklet_frames,
        )


def load_target(context: RunContext) -> ImageSet:
    """Read the set to train on, and print its counts. All processes call it.

    The first process reads first, so that the others find what it rendered.

    Raises:
        UserError: The set cannot be read.
    """

    def read() -> ImageSet:
        config = context.config
        if context.extensions.dataset is not None:
            return context.extensions.dataset
        return read_set(config, config.dataset, context.reporter)

    images = context.world.first_then_rest(read)
    for line in describe(images):
        context.reporter.line(line)
    return images


def load_source(context: RunContext, target: ImageSet) -> ImageSet | None:
    """Read the labelled source where the run has one, and print its counts. All processes call it.

    Args:
        context: The run.
        target: The set to train on.

    Returns:
        The source without its test images, which nothing reads; None for a run without a source.

    Raises:
        UserError: The source cannot be read, has no labels, or shows the images to train on.
    """
    config = context.config
    if config.source is None:
        return None
    images = join_sources(context.world.first_then_rest(lambda: _read_sources(context)))
    first, *counts = describe(images)
    for line in (f"source: {first}", *counts):
        context.reporter.line(line)
    _check_other_images(context, target, images)
    make_source(*identities_and_cameras(images.train))
    return replace(images, query=[], gallery=[])


def _read_sources(context: RunContext) -> list[ImageSet]:
    """Read each of the labelled sets of a run."""
    config = context.config
    names = separated(config.source or "")
    roots = separated(config.source_root) if len(names) > 1 else [config.source_root]
    if len(roots) == 1:
        roots *= len(names)
    if len(roots) != len(names):
        raise SettingError(
            "source_root",
            config.source_root,
            f"one folder, or {len(names)} with commas between, one for each set of `source`",
        )
    sets = []
    with context.reporter.progress("rendering", 0) as update:
        for name, root in zip(names, roots, strict=True):
            sets.append(
                load(
                    name,
                    root,
                    synthetic=config.adaptation.synthetic,
                    verbose=False,
                    on_progress=update,
                    keys=SOURCE_KEYS,
                )
            )
    return sets


def _check_other_images(context: RunContext, target: ImageSet, source: ImageSet) -> None:
    """Refuse a source that shows the people of the set to train on.

    Raises:
        DataError: Both are synthetic with the same seed, or they have images in common.
    """
    config = context.config
    seed = config.adaptation.synthetic.seed
    both_synthetic = config.dataset == "synthetic" and "synthetic" in separated(config.source or "")
    by_name = context.extensions.dataset is None
    if both_synthetic and by_name and seed == config.synthetic.seed:
        raise DataError(
            f"the source and the set to train on show the same people: both are rendered with seed "
            f"{seed}; change `adaptation.synthetic.seed`"
        )
    target_paths = {record.path.resolve() for record in target.train}
    common = target_paths & {record.path.resolve() for record in source.train}
    if common:
        raise DataError(
            f"{len(common)} training images of the source are in the set to train on (first: "
            f"{min(common)}); name another set with `source` or `source_root`"
        )


def test_digests(context: RunContext, images: ImageSet) -> dict[Path, str]:
    """Return the digests of the labelled test images, by path.

    Each is read once, and known to the cache when it is decoded for the first evaluation.

    Args:
        context: The run.
        images: The set to train on.
    """
    found: dict[Path, str] = {}
    cache = cache_folder(context.config.image.cache)
    for split in ("query", "gallery"):
        # The list that an evaluation decodes, by which the cache knows it.
        paths = [r.path for r in images.splits[split] if r.identity >= 0]
        with context.reporter.progress(f"checking {split}", len(paths)) as update:
            digests = file_digests(paths, cache, context.stop.checked(update))
        found |= dict(zip(paths, digests, strict=True))
    return found


def make_source(identities: Tensor, cameras: Tensor) -> Source:
    """Return the labels of a source for a method.

    Args:
        identities: (m,) int64, -1 where unknown.
        cameras: (m,) int64, -1 where unknown.

    Raises:
        DataError: An identity is unknown, or there are fewer than two.
    """
    try:
        return Source(identities, cameras)
    except ValueError as error:
        raise DataError(str(error)) from error


def decode(context: RunContext, images: ImageSet, split: str) -> Dataset:
    """Decode the training images of a set. All processes call it.

    Args:
        context: The run.
        images: The set.
        split: "train" for the set to train on, "source" for a source.

    Raises:
        DataError: Fewer than two images can be read.
        UserError: The run has more processes than images.
    """
    config = context.config
    store, records = decode_records(
        images.train,
        split,
        config.image,
        context.folder.path,
        context.reporter,
        context.world,
        context.stop,
    )
    identities, cameras = identities_and_cameras(records)
    dataset = Dataset(images, records, store, identities, cameras)
    if split == "source":
        make_source(identities, cameras)
    else:
        _check_count(context, dataset)
    if len(dataset) < config.batch.size and config.method != "nnct":
        which = "images of the source" if split == "source" else "images"
        context.reporter.warn(
            f"{len(dataset)} {which} are fewer than a batch of {config.batch.size}: "
            "batches repeat images"
        )
    return dataset


def _check_count(context: RunContext, target: Dataset) -> None:
    """Refuse too few images to train on, and warn where the lists of neighbours are cut short."""
    config = context.config
    if not target.images.train:
        raise DataError(
            f"{target.images.root} has query and gallery images, but no images to train on; add "
            "them, or score a network on the set with evaluate"
        )
    if len(target) < 2:
        raise DataError(
            f"{target.images.root}: {len(target)} readable training images; a run needs many more"
        )
    if len(target) < config.cluster.k1 and config.method == "ucal":
        context.reporter.warn(
            f"{len(target)} images are fewer than `cluster.k1` {config.cluster.k1}: "
            "lists of neighbours hold the whole set"
        )
    if len(target) < context.world.size:
        raise UserError(
            f"{context.world.size} ranks are more than the {len(target)} training images: "
            "start torchrun with fewer processes"
        )


def all_labelled(records: Sequence[Record]) -> bool:
    """Whether the identity of every image is known."""
    return all(record.identity != UNKNOWN for record in records)
