"""From images to features, and from features to a ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import EngineConfig, ImageConfig
from ..data.augment import normalize
from ..data.loader import BatchLoader, Place, prefetch
from ..data.pixels import PixelStore, cache_folder, decode
from ..data.records import ImageSet, Record
from ..distributed.world import SINGLE_PROCESS, World
from ..errors import DataError, TrainingError
from ..metrics import Ranking, rank_gallery, rerank_gallery
from ..models import Domain, Stage
from .console import Reporter
from .network import Network


def extract_features(
    network: Network,
    loader: BatchLoader,
    settings: EngineConfig,
    on_progress: Callable[[int, int], None] | None = None,
    stage: Stage = "bn",
    domain: Domain = "target",
    world: World = SINGLE_PROCESS,
) -> Tensor:
    """Features of all images under the present weights, in evaluation mode.

    Args:
        network: The network.
        loader: The images.
        settings: Images at a time, and whether mirror images are extracted too.
        on_progress: Called with (images done, images in all).
        stage: Which features.
        domain: Whose images they are, where each domain has BatchNorms of its own.
        world: Each extracts its own of the images.

    Returns:
        (n, D) float32 on the device, written in place batch by batch: 267 MB at n = 32,621 and 8.2 GB at 1e6 for D = 2,048;
        with several ranks the rows of this one.
    """
    model, device = network.model, network.device
    training = model.training
    model.eval()
    own = world.local_slice(len(loader))
    size = own.stop - own.start
    out = torch.empty(size, model.features, device=device)
    batch = min(settings.extract_batch, size)
    # A compiled network has one shape: the last batch is filled up with images that were done.
    last = size - batch if network.compiled else size
    parts = [
        torch.arange(start, min(start + batch, size))
        for start in (min(s, last) for s in range(0, size, max(1, batch)))
    ]
    done = 0
    with torch.inference_mode():
        for rows, images in prefetch(parts, lambda rows: loader.start(own.start + rows)):
            network.begin_step()
            prepared = normalize(images()).contiguous(memory_format=torch.channels_last)
            start, done = int(rows[0]), int(rows[-1]) + 1
            out[start:done] = network.features(prepared, stage, domain, settings.flip_features)
            if on_progress is not None:
                on_progress(min(world.size * done, len(loader)), len(loader))
    model.train(training)
    return out


class Evaluator:
    """Ranks the gallery for the queries of an image set; decodes them at first use and keeps the pixels.

    Args:
        images: The set; junk is left out before it is decoded.
        config: Size of the images and budget of the pixel store.
        store_dir: Folder of a memory-mapped store.
        reporter: Shows progress and names unreadable images.
        stage: Which features are ranked.
        settings: How they are extracted.
        world: Each extracts and ranks its share.
    """

    def __init__(
        self,
        images: ImageSet,
        config: ImageConfig,
        store_dir: Path,
        reporter: Reporter,
        stage: Stage = "bn",
        settings: EngineConfig | None = None,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self._stage: Stage = stage
        self._settings, self._world = settings or EngineConfig(), world
        self._images, self._config = images, config
        self._store_dir, self._reporter = store_dir, reporter
        self._splits: dict[str, tuple[BatchLoader, Tensor, Tensor]] = {}

    def __call__(self, network: Network) -> Ranking:
        """Extract, then rank.

        Raises:
            DataError: The set has no query or no gallery image that can be read.
            TrainingError: The network gives features that are not finite.
        """
        return rank_gallery(*self._sides(network), world=self._world)

    def with_reranking(self, network: Network) -> tuple[Ranking, Ranking]:
        """The ranking and that after k-reciprocal re-ranking, of the same features; raises as a call does."""
        sides = self._sides(network)
        return rank_gallery(*sides, world=self._world), rerank_gallery(*sides, world=self._world)

    def _sides(self, network: Network) -> list[Tensor]:
        """Features, identities and cameras of the queries, then of the gallery."""
        sides = []
        for split in ("query", "gallery"):
            loader, ids, cameras = self._decoded(split, network.device)
            with self._reporter.progress(f"extracting {split}", len(loader)) as update:
                features = extract_features(
                    network, loader, self._settings, update, self._stage, world=self._world
                )
            if self._world.any_true(not torch.isfinite(features).all()):
                raise TrainingError(
                    f"the {split} features are not finite: the network has diverged, there is nothing to rank"
                )
            sides += [features, ids, cameras]
        return sides

    def _decoded(self, split: str, device: torch.device) -> tuple[BatchLoader, Tensor, Tensor]:
        if split not in self._splits:
            records = [r for r in self._images.splits[split] if r.identity >= 0]
            store, kept = decode_records(
                records, split, self._config, self._store_dir, self._reporter, self._world
            )
            if not kept:
                raise DataError(
                    f"{self._images.root}: no readable {split} image; evaluation needs query and gallery"
                )
            # Read once at each evaluation: the device's memory is better left to training.
            place: Place = "device" if self._config.place == "device" else "host"
            self._splits[split] = BatchLoader(store, device, place), *identities_and_cameras(kept)
        return self._splits[split]


def decode_records(
    records: Sequence[Record],
    split: str,
    config: ImageConfig,
    store_dir: Path,
    reporter: Reporter,
    world: World = SINGLE_PROCESS,
) -> tuple[PixelStore, list[Record]]:
    """Decode the images of a split; returns the store and the records that could be read. All ranks call it."""
    with reporter.progress(f"decoding {split}", len(records)) as update:
        store = decode(
            [r.path for r in records],
            config.height,
            config.width,
            store_gib=config.store_gib,
            store_dir=config.store_dir or store_dir,
            cache=cache_folder(config.cache),
            cache_gib=config.cache_gib,
            world=world,
            on_progress=update,
            warn=reporter.warn,
        )
    reporter.bad_images(split, store.bad)
    return store, [records[i] for i in store.slots.tolist()]


def identities_and_cameras(records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """Two (n,) int64 tensors."""
    return torch.tensor([r.identity for r in records]), torch.tensor([r.camera for r in records])
