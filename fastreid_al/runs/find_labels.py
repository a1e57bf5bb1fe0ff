"""From the features of a run's images to the table of their identities."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..answers import Closure, ImageKeys, Ledger
from ..answers.posterior import decides
from ..clustering import check_backend
from ..config import RunConfig, TestFeatures
from ..data import ImageSet
from ..data.records import UNKNOWN, Record
from ..data.walk import relative
from ..engine.checkpoint import load_checkpoint
from ..engine.console import Reporter
from ..engine.extract import identities_and_cameras
from ..engine.shard_folders import COMMON, has_shards, last_checkpoint
from ..errors import LedgerError, UserError, printable
from ..labels import Identities, LabelTable, identities_by_answers, read_numbers
from ..labels.confidence import (
    Examples,
    examples_of_answers,
    examples_of_identities,
    probabilities,
    with_answers,
)
from ..labels.halves import smaller_halves
from ..labels.identities import answered_images, changed_images, component_sizes
from ..labels.margins import Margins
from ..labels.numbers import keep_numbers
from ..labels.review import UNSURE, close_to_another, contradicted_images, weakly_joined
from ..labels.table import ANSWERED, GIVEN, IMPLIED, MODEL, UNREAD
from ..methods.cluster_images import cluster_images
from .questions import LEDGER_FILE, answers_of

#: Name of the table in the folder of a run.
LABELS_FILE = "labels.csv"
#: If all features differ by less than this, they count as equal: their graph would hold every pair.
_COLLAPSED = 1e-6


@dataclass(frozen=True)
class Saved:
    """What a run saved beside its weights.

    Args:
        threshold: Threshold of the self-paced selection of its clusterings; None where it has none.
        answers: Answers that the checkpoint counts.
        digests: Digest of the content of each training image, by its path below the set's root.
    """

    threshold: float | None = None
    answers: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Labelled:
    """The training images of a run, with the features of those that could be read.

    Args:
        config: The configuration of the run.
        folder: The folder of the run.
        images: The image set.
        features: (m, D) float32, unit-norm.
        records: The m images that could be read, in the order of the set.
        digests: SHA-256 of their contents, in hex.
        saved: What the run saved beside its weights.
    """

    config: RunConfig
    folder: Path
    images: ImageSet
    features: Tensor
    records: Sequence[Record]
    digests: Sequence[str]
    saved: Saved


def label_stage(config: RunConfig) -> TestFeatures:
    """Which features are clustered: those of an epoch, or with `method` nnct those of a ranking."""
    return config.network.test_features if config.method == "nnct" else "bn"


def load_saved(folder: Path) -> Saved:
    """Read what a run saved beside its weights.

    Args:
        folder: The folder of the run. Of a checkpoint of several processes, only the file of common
            values is read.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    file = folder / "last.pt"
    if has_shards(folder):
        name = last_checkpoint(folder)
        file = file if name is None else folder / name / COMMON
    state = load_checkpoint(file) if os.path.isfile(file) else {}
    method = state.get("method")
    if not isinstance(method, Mapping):
        return Saved()
    data = state.get("data")
    threshold = method.get("threshold") if "questions" in method else None
    return Saved(
        threshold if isinstance(threshold, float) else None,
        answers_of(state),
        _train_digests(data) if isinstance(data, Mapping) else {},
    )


def _train_digests(data: Mapping[str, Any]) -> dict[str, str]:
    """The digests of training images in a checkpoint's fingerprint of its images."""
    digests = {}
    for name, content in data.items():
        # Test images begin with their size in bytes.
        digest, _, _ = str(content).partition(" ")
        if len(digest) >= 32:
            digests[name] = digest
    return digests


def earlier_numbers(like: str | None, folder: Path) -> dict[str, int]:
    """Read the numbers that identities keep: those of a table, or of the run's own table.

    Args:
        like: The table; None for labels.csv of the run, where it has one.
        folder: The folder of the run.

    Returns:
        Identity by path, -1 for none.

    Raises:
        UserError: The table does not exist, or is none.
    """
    if like is not None and not os.path.isfile(like):
        raise UserError(f"`like`: {printable(like)} is no file; name a table of identities")
    file = folder / LABELS_FILE if like is None else Path(like)
    return read_numbers(file) if os.path.isfile(file) else {}


def find_labels(found: Labelled, earlier: Mapping[str, int], reporter: Reporter) -> LabelTable:
    """Find the identities of a run's training images.

    The images are clustered as in an epoch of the run, and the clusters then agree with every
    answer in its ledger. With `method` supervised the identities are the true ones.

    Args:
        found: The images and their features.
        earlier: Numbers that are kept, by path; -1 for none.
        reporter: Prints what was found, and warnings.

    Returns:
        The table. Memory and time are those of the clustering, and of `labels.margins.Margins`.

    Raises:
        UserError: The features cannot be clustered, or the ledger cannot be used.
    """
    _check_images(found, reporter)
    truth, cameras = identities_and_cameras(found.records)
    if found.config.method == "supervised":
        return _table(found, _given(found, truth), truth, earlier, reporter)
    return _table(found, _clustered(found, cameras, reporter), truth, earlier, reporter)


def _check_images(found: Labelled, reporter: Reporter) -> None:
    """Refuse other images than those of the run, and features that cannot be clustered."""
    root = found.images.root
    if not len(found.records):
        raise UserError(
            f"{root}: no training image can be read; name their folder with `data_root`"
        )
    if not bool(torch.isfinite(found.features).all()):
        raise UserError("the features are not finite: the training diverged; export another run")
    before = found.saved.digests
    names = [_name(found, record) for record in found.records]
    contents = set(before.values())
    new = [
        name
        for name, digest in zip(names, found.digests, strict=True)
        if before.get(name) != digest and digest not in contents
    ]
    if before and len(new) == len(names):
        raise UserError(
            f"{root}: not one of {len(names):,} images is one that the run was trained on (first: "
            f"{printable(names[0])}); name the folder of its images with `data_root`"
        )
    if before and new:
        reporter.warn(
            f"{len(new):,} of {len(names):,} images are not those that the run was trained on "
            f"(first: {printable(new[0])}); they get identities as well"
        )


def _name(found: Labelled, record: Record) -> str:
    return relative(record.path, found.images.root).as_posix()


def _given(found: Labelled, truth: Tensor) -> Identities:
    """The true identities, which no answer changes."""
    return Identities(truth, truth, found.features, Closure(), [], 0.0)


def _clustered(found: Labelled, cameras: Tensor, reporter: Reporter) -> Identities:
    """The clusters of the images, changed to agree with the answers."""
    config = found.config
    n = len(found.records)

    def cluster(cannot_links: Tensor | None) -> tuple[Tensor, Tensor]:
        if _are_equal(found.features):
            if n > 1:
                reporter.warn(f"all {n:,} images have the same feature: there are no clusters")
            return torch.full((n,), -1), found.features
        check_backend(config.cluster.dbscan, n, "`cluster.dbscan`")
        threshold = found.saved.threshold if config.method == "ucal" else None
        clusters = cluster_images(found.features, cameras, config.cluster, threshold, cannot_links)
        return clusters.labels, clusters.features

    if config.method == "nnct":
        reporter.line("nnct makes no clusters: its features are clustered by the settings of UCAL")
    links = config.cluster.algorithm == "linkage"
    try:
        with _ledger(found) as ledger:
            return identities_by_answers(found.features, cluster, ledger, config.questions, links)
    except ValueError as error:
        raise UserError(f"the features cannot be clustered: {error}") from error


def _are_equal(features: Tensor) -> bool:
    """Whether the features (n, D) of all images are the same."""
    return float((features.amax(0) - features.amin(0)).max()) < _COLLAPSED


def find_ledger(config: RunConfig, folder: Path, saved: Saved) -> str | None:
    """Return the file or URL of the answers of a run; None where it has none.

    Args:
        config: The configuration of the run.
        folder: Its folder.
        saved: What it saved beside its weights.

    Raises:
        LedgerError: The run has answers, and their ledger is missing.
    """
    url = config.questions.ledger or str(folder / LEDGER_FILE)
    if config.method != "ucal":
        return None
    if "://" in url:
        return url if config.ask != "none" or saved.answers else None
    if os.path.exists(url):
        return url
    if saved.answers:
        raise LedgerError(
            f"there is no ledger {printable(url)}, and the run has {saved.answers} answers that it "
            "held; restore it, or start the command in the folder where the run was started"
        )
    return None


@contextmanager
def _ledger(found: Labelled) -> Iterator[Ledger | None]:
    """Open the answers of a run for reading, also while another process writes them."""
    url = find_ledger(found.config, found.folder, found.saved)
    if url is None:
        yield None
        return
    names = [_name(found, record) for record in found.records]
    keys = ImageKeys(found.images.name, names, found.digests)
    with Ledger.open(url, keys, write=False) as ledger:
        yield ledger


def _table(
    found: Labelled,
    identities: Identities,
    truth: Tensor,
    earlier: Mapping[str, int],
    reporter: Reporter,
) -> LabelTable:
    """The table of identities, for the images that could not be read as well."""
    given = found.config.method == "supervised"
    labels = identities.identities
    margins = Margins(identities.features, labels)
    by_cluster = margins
    if not torch.equal(labels, identities.clusters):
        by_cluster = Margins(identities.features, identities.clusters)
    n = len(labels)
    sizes = torch.ones(n, dtype=torch.int64)
    sizes[labels >= 0] = margins.sizes[margins.identities[labels >= 0]]
    examples = _examples(found, identities, by_cluster, truth)
    confidence = _confidence(found.config, identities, margins, sizes, examples)
    if given:
        confidence = (labels >= 0).double().numpy()
    else:
        reporter.line(_calibrated(examples))
    review = _review(found.config, identities, margins, by_cluster, confidence, examples)
    reporter.line(_counts(labels, review))
    sources = torch.full((n,), GIVEN if given else MODEL, dtype=torch.uint8)
    sources[changed_images(identities.clusters, labels)] = IMPLIED
    sources[answered_images(identities.closure, n)] = ANSWERED
    return _with_unread(
        found,
        earlier,
        labels.numpy(),
        sizes.numpy(),
        confidence,
        margins.margin.numpy(),
        sources.numpy(),
        torch.stack(list(review.values())).any(0).numpy(),
    )


def _examples(
    found: Labelled, identities: Identities, by_cluster: Margins, truth: Tensor
) -> Examples:
    """What is known of images and identities: the answers, or else the true identities."""
    answers = [a for a in identities.closure.answers() if decides(a)]
    examples = examples_of_answers(by_cluster, [*answers, *identities.doubted])
    if examples.usable or found.config.method == "supervised":
        return examples
    return examples_of_identities(by_cluster, truth)


def _confidence(
    config: RunConfig,
    identities: Identities,
    margins: Margins,
    sizes: Tensor,
    examples: Examples,
) -> np.ndarray:
    """The confidence of each image, (n,) float64; 0 without identity."""
    by_margin = probabilities(margins.margin.numpy(), examples, config.memory.temperature)
    known = component_sizes(identities.closure, len(sizes)).numpy()
    confidence = with_answers(by_margin, sizes.numpy(), known, identities.error)
    inside = (identities.identities >= 0).numpy()
    return np.where(inside, confidence, 0.0)


def _calibrated(examples: Examples) -> str:
    if not examples.usable:
        return "confidence: not calibrated, there are too few answers to learn it from"
    count = len(examples.same)
    if examples.origin == "identities":
        return f"confidence: calibrated on {count:,} images whose identity is known"
    return (
        f"confidence: calibrated on the answers ({count:,} images towards the identity of another)"
    )


def _review(
    config: RunConfig,
    identities: Identities,
    margins: Margins,
    by_cluster: Margins,
    confidence: np.ndarray,
    examples: Examples,
) -> dict[str, Tensor]:
    """Whether each image is worth a look, (n,) bool by reason."""
    n = len(identities.identities)
    inside = identities.identities >= 0
    return {
        "low confidence": inside & (torch.from_numpy(confidence) < UNSURE),
        "close to another identity": inside & close_to_another(margins.margin),
        "in the smaller group of an identity that may be two": smaller_halves(margins),
        "contradicted answer": contradicted_images(identities.closure, identities.doubted, n),
        "joined by one answer against the features": weakly_joined(
            identities.clusters,
            identities.closure,
            _answered_probabilities(config, identities, by_cluster, examples),
        ),
    }


def _answered_probabilities(
    config: RunConfig, identities: Identities, by_cluster: Margins, examples: Examples
) -> dict[tuple[int, int], float]:
    """What the features say of each answered pair: the larger of both images' probabilities."""
    pairs = [(a.left, a.right) for a in identities.closure.answers() if decides(a)]
    pairs = [pair for pair in pairs if min(by_cluster.identities[list(pair)]) >= 0]
    if not pairs:
        return {}
    left, right = torch.tensor(pairs).T
    both = [by_cluster.towards(left, right), by_cluster.towards(right, left)]
    best = torch.stack(both).amax(0).numpy()
    values = probabilities(best, examples, config.memory.temperature)
    return dict(zip(pairs, values.tolist(), strict=True))


def _counts(labels: Tensor, review: Mapping[str, Tensor]) -> str:
    """A line that counts identities, images without one, and images to review."""
    n = len(labels)
    count = len(labels[labels >= 0].unique())
    marked = int(torch.stack(list(review.values())).any(0).sum())
    reasons = [f"{int(found.sum()):,} {why}" for why, found in review.items() if found.any()]
    return (
        f"{count:,} identities of {n:,} images, {int((labels < 0).sum()):,} images without one; "
        f"{marked:,} worth a look" + (f" ({', '.join(reasons)})" if reasons else "")
    )


def _with_unread(
    found: Labelled,
    earlier: Mapping[str, int],
    labels: np.ndarray,
    sizes: np.ndarray,
    confidence: np.ndarray,
    margins: np.ndarray,
    sources: np.ndarray,
    review: np.ndarray,
) -> LabelTable:
    """The table of all training images: with rows for those that could not be read."""
    train = found.images.train
    paths = [_name(found, record) for record in train]
    row_of = {record.path: row for row, record in enumerate(train)}
    rows = np.array([row_of[record.path] for record in found.records], dtype=np.int64)
    n = len(train)

    def spread(values: np.ndarray, missing: float) -> np.ndarray:
        whole = np.full(n, missing, dtype=values.dtype)
        whole[rows] = values
        return whole

    identities = spread(labels, UNKNOWN)
    if earlier:
        old = _old_numbers(found, paths, rows, earlier)
        first_new = max(earlier.values(), default=-1) + 1
        identities = keep_numbers(identities, old, first_new)
    return LabelTable(
        paths,
        identities,
        np.array([record.camera for record in train], dtype=np.int64),
        spread(sizes, 0),
        spread(confidence, 0.0),
        spread(margins, np.nan),
        spread(sources, UNREAD),
        spread(review, False),
    )


def _old_numbers(
    found: Labelled, paths: Sequence[str], rows: np.ndarray, earlier: Mapping[str, int]
) -> np.ndarray:
    """The earlier number of each image, by its path, else by its content; -1 for none.

    Args:
        found: The images.
        paths: n paths of the training images.
        rows: (m,) int64 rows of those that could be read.
        earlier: Earlier numbers by path.
    """
    old = np.array([earlier.get(path, -1) for path in paths], dtype=np.int64)
    present = set(paths)
    of_content: dict[str, int] = {}
    for path, number in earlier.items():
        digest = found.saved.digests.get(path)
        if digest is not None and path not in present:
            of_content.setdefault(digest, number)
    for row, digest in zip(rows.tolist(), found.digests, strict=True):
        if paths[row] not in earlier:
            old[row] = of_content.get(digest, -1)
    return old
