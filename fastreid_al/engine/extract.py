"""From images to features, and from features to a ranking."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import EngineConfig, ImageConfig, SameCamera
from ..data.loader import BatchLoader, Place, prefetch
from ..data.pixels import PixelSettings, PixelStore, decode
from ..data.records import UNKNOWN, ImageSet, Record
from ..distributed.world import SINGLE_PROCESS, World
from ..errors import DataError, DivergedError
from ..metrics import Ranking, RankLists, list_gallery, rank_gallery, rerank_gallery
from ..models import Domain, Stage
from .console import Reporter
from .network import Network
from .stop_signal import StopSignal


def extract_features(
    network: Network,
    loader: BatchLoader,
    settings: EngineConfig,
    on_progress: Callable[[int, int], None] | None = None,
    stage: Stage = "bn",
    domain: Domain = "target",
    world: World = SINGLE_PROCESS,
) -> Tensor:
    """Extract the features of all images under the present weights, in evaluation mode.

    Args:
        network: The network.
        loader: The images.
        settings: Images at a time, and whether mirror images are extracted too.
        on_progress: Called with (images done, images in all).
        stage: Which features.
        domain: Domain of the images, where each domain has its own BatchNorms.
        world: Processes of the run; each extracts its own images.

    Returns:
        (n, D) float32 on the device: 267 MB at n = 32,621 and 8.2 GB at 1e6 for D = 2,048. With
        several processes the rows of this one.
    """
    model = network.model
    training = model.training
    model.eval()
    own = world.local_slice(len(loader))
    count = own.stop - own.start
    features = torch.empty(count, model.features, device=network.device)  # (n, D)
    done = 0
    compute = network.feature_pass(count, stage, domain, settings.flip_features)
    with torch.inference_mode():
        parts = _parts(count, settings.extract_batch, network.compiled)
        for rows, images in prefetch(parts, lambda rows: loader.start(own.start + rows)):
            start = int(rows[0])
            done = int(rows[-1]) + 1
            features[start:done] = compute(images())
            if on_progress is not None:
                on_progress(min(world.size * done, len(loader)), len(loader))
    model.train(training)
    return features


def _parts(count: int, size: int, same_size: bool) -> list[Tensor]:
    """Split rows into consecutive parts.

    Args:
        count: Rows in all.
        size: Rows of a part.
        same_size: Whether the last part is filled up with rows of the part before it, because a
            compiled network takes batches of one shape.
    """
    size = min(size, count)
    parts = []
    for start in range(0, count, max(1, size)):
        first = min(start, count - size) if same_size else start
        parts.append(torch.arange(first, min(first + size, count)))
    return parts


class Evaluator:
    """Ranks the gallery of an image set for its queries.

    The images are decoded at the first call; their pixels are kept for later ones.

    Args:
        images: The set; junk images are left out before they are decoded.
        config: Size of the images and budget of the pixel store.
        store_dir: Folder of a memory-mapped store; None for the system's temporary folder.
        reporter: Shows progress and names unreadable images.
        stage: Which features are ranked.
        settings: How the features are extracted.
        world: Processes of the run; each extracts and ranks a part of the images.
        stop: Signals that end an evaluation.
        same_camera: Whether matches of the query's own camera count ("include") or are left out.
        train: Digests of the training images; a test image with one of them is reported.
    """

    def __init__(
        self,
        images: ImageSet,
        config: ImageConfig,
        store_dir: Path | None,
        reporter: Reporter,
        stage: Stage = "bn",
        settings: EngineConfig | None = None,
        world: World = SINGLE_PROCESS,
        stop: StopSignal | None = None,
        same_camera: SameCamera = "exclude",
        train: Collection[str] = (),
    ) -> None:
        self._images = images
        self._config = config
        self._store_dir = store_dir
        self._reporter = reporter
        self._stage: Stage = stage
        self._settings = settings or EngineConfig()
        self._world = world
        self._stop = stop or StopSignal()
        self._same_camera = same_camera
        self._digests: dict[str, Collection[str]] = {"train": train} if train else {}
        self._splits: dict[str, tuple[BatchLoader, Tensor, Tensor]] = {}
        #: The images that could be read, by split.
        self.records: dict[str, list[Record]] = {}
        #: Digests of the contents of their files, by split.
        self.digests: dict[str, Sequence[str]] = {}

    def __call__(self, network: Network) -> Ranking:
        """Extract the features, and rank the gallery by them.

        Raises:
            DataError: No query or no gallery image can be read.
            TrainingError: The features are not finite.
            Interrupted: A signal came.
        """
        return rank_gallery(*self._sides(network), world=self._world)

    def with_lists(
        self, network: Network, top: int, rerank: bool = False
    ) -> tuple[Ranking, Ranking | None, RankLists]:
        """Extract the features, rank the gallery by them, and list the first images of each query.

        Rows of the lists are those of `records`.

        Args:
            network: The network.
            top: Ranks that are listed.
            rerank: Whether the gallery is ranked with k-reciprocal re-ranking as well.

        Returns:
            The scores by the features; those with re-ranking, or None; and the lists, which are by
            the features.

        Raises:
            DataError: No query or no gallery image can be read.
            TrainingError: The features are not finite.
            Interrupted: A signal came.
        """
        sides = self._sides(network)
        reranked = rerank_gallery(*sides, world=self._world) if rerank else None
        ranking, lists = list_gallery(*sides, top=top, world=self._world)
        return ranking, reranked, lists

    def with_reranking(self, network: Network) -> tuple[Ranking, Ranking]:
        """Extract the features, and rank the gallery without and with k-reciprocal re-ranking.

        Raises:
            DataError: No query or no gallery image can be read.
            TrainingError: The features are not finite.
            Interrupted: A signal came.
        """
        sides = self._sides(network)
        return rank_gallery(*sides, world=self._world), rerank_gallery(*sides, world=self._world)

    def _sides(self, network: Network) -> list[Tensor]:
        """Return features, identities and cameras of the queries, then those of the gallery."""
        sides = []
        for split in ("query", "gallery"):
            loader, identities, cameras = self._decoded(split, network.device)
            with self._reporter.progress(f"extracting {split}", len(loader)) as update:
                features = extract_features(
                    network,
                    loader,
                    self._settings,
                    self._stop.checked(update),
                    self._stage,
                    world=self._world,
                )
            if self._world.any_true(not torch.isfinite(features).all()):
                raise DivergedError(
                    f"the {split} features are not finite: the network has diverged, "
                    "there is nothing to rank"
                )
            sides += [features, identities, cameras]
        return sides

    def _decoded(self, split: str, device: torch.device) -> tuple[BatchLoader, Tensor, Tensor]:
        """Return the pixels, identities and cameras of a split; decoded at the first call."""
        if split in self._splits:
            return self._splits[split]
        labelled = [r for r in self._images.splits[split] if r.identity >= 0]
        store, records = decode_records(
            labelled,
            split,
            self._config,
            self._store_dir,
            self._reporter,
            self._world,
            self._stop,
        )
        if not records:
            raise DataError(
                f"{self._images.root}: no readable {split} image; "
                "evaluation needs query and gallery"
            )
        # Read only once in each evaluation: the device's memory serves training better.
        place: Place = "device" if self._config.place == "device" else "host"
        loader = BatchLoader(store, device, place)
        self._report_copies(split, store.digests)
        self.digests[split] = store.digests
        identities, cameras = identities_and_cameras(records)
        if self._same_camera == "include" and split == "query":
            # An unknown camera equals no other.
            cameras = torch.full_like(cameras, UNKNOWN)
        self._splits[split] = (loader, identities, cameras)
        self.records[split] = records
        return self._splits[split]

    def _report_copies(self, split: str, digests: Sequence[str]) -> None:
        """Warn of images that are in another split as well, by their content."""
        for other, known in self._digests.items():
            copies = sum(digest in known for digest in digests)
            if copies:
                self._reporter.warn(
                    f"{copies:,} of {len(digests):,} {split} images are also {other} images, by "
                    "their content; the scores count them"
                )
        self._digests[split] = frozenset(digests)


def decode_records(
    records: Sequence[Record],
    split: str,
    config: ImageConfig,
    store_dir: Path | None,
    reporter: Reporter,
    world: World = SINGLE_PROCESS,
    stop: StopSignal | None = None,
) -> tuple[PixelStore, list[Record]]:
    """Decode the images of a split. All processes call it.

    Args:
        records: The images.
        split: Name of the split, for the lines that are printed.
        config: Size of the images, budget of the pixel store, cache.
        store_dir: Folder of a memory-mapped store; None for the system's temporary folder.
        reporter: Shows progress and names unreadable images.
        world: Processes of the run.
        stop: Signals that end the decoding.

    Returns:
        The pixels, and the records of the images that could be read.
    """
    stop = stop or StopSignal()
    with reporter.progress(f"decoding {split}", len(records)) as update:
        store = decode(
            [r.path for r in records],
            PixelSettings.of(config, store_dir),
            world=world,
            on_progress=stop.checked(update),
            warn=reporter.warn,
        )
    reporter.bad_images(split, store.bad)
    return store, [records[i] for i in store.slots.tolist()]


def identities_and_cameras(records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """Return the identities and the cameras of images, (n,) int64 each."""
    identities = [r.identity for r in records]
    cameras = [r.camera for r in records]
    return torch.tensor(identities), torch.tensor(cameras)


def ranking_metrics(ranking: Ranking) -> dict[str, float | None]:
    """Return the scores of a ranking that a run records; None where no query has a match."""
    scores: dict[str, float | None] = {
        "mAP": ranking.mAP,
        "mINP": ranking.mINP,
        **{f"rank{k}": ranking.rank(k) for k in (1, 5, 10)},
    }
    if ranking.queries == 0:
        scores = dict.fromkeys(scores)
    return {**scores, "skipped_queries": ranking.skipped}


def without_match(images: ImageSet, same_camera: SameCamera) -> str:
    """Say why no query has a match, for a set of which that is so.

    Args:
        images: The set.
        same_camera: Whether matches of the query's own camera count.
    """
    identities = {record.identity for record in images.query}
    matches = [r for r in images.gallery if r.identity in identities and r.identity != UNKNOWN]
    why = "no query has a match in the gallery, so there are no scores"
    if not matches or same_camera == "include":
        return f"{why}: no gallery image shows an identity of the queries"
    cameras = len({record.camera for record in matches})
    return (
        f"{why}: all {len(matches):,} gallery images of their identities are of the query's own "
        f"camera ({cameras} in all), and such matches are left out; `evaluation.same_camera` "
        "include counts them"
    )
