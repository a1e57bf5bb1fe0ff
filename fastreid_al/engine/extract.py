"""From images to features, and from features to a ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import ImageConfig
from ..data.augment import normalize
from ..data.pixels import PixelStore, decode
from ..data.records import ImageSet, Record
from ..errors import DataError, TrainingError
from ..metrics import Ranking, rank_gallery, rerank_gallery
from ..models import Domain, ReIdNet, Stage
from .report import Reporter


def extract_features(
    model: ReIdNet,
    store: PixelStore,
    device: torch.device,
    batch: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
    stage: Stage = "bn",
    domain: Domain = "target",
) -> Tensor:
    """Features of all images under the present weights, in evaluation mode.

    Args:
        model: The network.
        store: The images.
        device: Where the model lies.
        batch: Images at a time.
        on_progress: Called with (images done, images in all).
        stage: Which features.
        domain: Whose images they are, where each domain has BatchNorms of its own.

    Returns:
        (n, D) float32 on the device: 267 MB at n = 32,621 and 8.2 GB at 1e6 for D = 2,048, twice that while it is put
        together.
    """
    training = model.training
    model.eval()
    parts: list[Tensor] = []
    with torch.inference_mode():
        for rows in torch.arange(len(store)).split(batch):
            parts.append(model(to_device(store.read(rows), device, normalize), stage, domain))
            if on_progress is not None:
                on_progress(int(rows[-1]) + 1, len(store))
    model.train(training)
    return torch.cat(parts) if parts else torch.zeros(0, 0, device=device)


def to_device(pixels: Tensor, device: torch.device, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """Move uint8 pixels to the device and make network input of them there, channels last."""
    return prepare(pixels.to(device)).contiguous(memory_format=torch.channels_last)


class Evaluator:
    """Ranks the gallery for the queries of an image set; decodes them at first use and keeps the pixels.

    Args:
        images: The set; junk is left out before it is decoded.
        config: Size of the images and budget of the pixel store.
        device: Where the model lies.
        store_dir: Folder of a memory-mapped store.
        reporter: Shows progress and names unreadable images.
        stage: Which features are ranked.
    """

    def __init__(
        self,
        images: ImageSet,
        config: ImageConfig,
        device: torch.device,
        store_dir: Path,
        reporter: Reporter,
        stage: Stage = "bn",
    ) -> None:
        self._stage: Stage = stage
        self._images, self._config, self._device = images, config, device
        self._store_dir, self._reporter = store_dir, reporter
        self._splits: dict[str, tuple[PixelStore, Tensor, Tensor]] = {}

    def __call__(self, model: ReIdNet) -> Ranking:
        """Extract, then rank.

        Raises:
            DataError: The set has no query or no gallery image that can be read.
            TrainingError: The network gives features that are not finite.
        """
        return rank_gallery(*self._sides(model))

    def with_reranking(self, model: ReIdNet) -> tuple[Ranking, Ranking]:
        """The ranking and that after k-reciprocal re-ranking, of the same features; raises as a call does."""
        sides = self._sides(model)
        return rank_gallery(*sides), rerank_gallery(*sides)

    def _sides(self, model: ReIdNet) -> list[Tensor]:
        """Features, identities and cameras of the queries, then of the gallery."""
        sides = []
        for split in ("query", "gallery"):
            store, ids, cameras = self._decoded(split)
            with self._reporter.progress(f"extracting {split}", len(store)) as update:
                features = extract_features(model, store, self._device, on_progress=update, stage=self._stage)
            if not torch.isfinite(features).all():
                raise TrainingError(
                    f"the {split} features are not finite: the network has diverged, there is nothing to rank"
                )
            sides += [features, ids, cameras]
        return sides

    def _decoded(self, split: str) -> tuple[PixelStore, Tensor, Tensor]:
        if split not in self._splits:
            records = [r for r in self._images.splits[split] if r.identity >= 0]
            store, kept = decode_records(records, split, self._config, self._store_dir, self._reporter)
            if not kept:
                raise DataError(f"{self._images.root}: no readable {split} image; evaluation needs query and gallery")
            self._splits[split] = store, *identities_and_cameras(kept)
        return self._splits[split]


def decode_records(
    records: Sequence[Record], split: str, config: ImageConfig, store_dir: Path, reporter: Reporter
) -> tuple[PixelStore, list[Record]]:
    """Decode the images of a split; returns the store and the records that could be read."""
    with reporter.progress(f"decoding {split}", len(records)) as update:
        store = decode(
            [r.path for r in records],
            config.height,
            config.width,
            store_gib=config.store_gib,
            store_dir=config.store_dir or store_dir,
            on_progress=update,
        )
    reporter.bad_images(split, store.bad)
    return store, [records[i] for i in store.slots.tolist()]


def identities_and_cameras(records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """Two (n,) int64 tensors."""
    return torch.tensor([r.identity for r in records]), torch.tensor([r.camera for r in records])
