"""From the features of a run's images to the table of their identities."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..answers import Closure, ImageKeys, Ledger
from ..clustering import check_backend
from ..config import RunConfig, TestFeatures
from ..data import ImageSet
from ..data.records import UNKNOWN, Record, track_numbers
from ..data.walk import relative
from ..engine.checkpoint import load_checkpoint
from ..engine.checkpoint_content import is_count
from ..engine.console import Reporter
from ..engine.extract import identities_and_cameras
from ..engine.shard_folders import COMMON, has_shards, last_checkpoint
from ..errors import LedgerError, UserError, counted, printable
from ..files import write_atomically, write_json
from ..labels import (
    Identities,
    LabelTable,
    identities_by_answers,
    read_numbers,
    write_table,
)
from ..labels.confidence import Examples
from ..labels.judge import Judged, judge
from ..labels.numbers import keep_numbers
from ..labels.table import UNREAD
from ..methods.cluster_images import cluster_images
from .questions import LEDGER_FILE, answers_of

#: Name of the table in the folder of a run.
LABELS_FILE = "labels.csv"
#: Name of the file beside it that has the number of the next new identity.
NEXT_FILE = "labels.json"
#: If all features differ by less than this, they count as equal: their graph would hold every pair.
_COLLAPSED = 1e-6
#: An identity of fewer images is no sign of a network that tells nothing apart.
_MANY = 20


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


class Earlier(NamedTuple):
    """The identities of an earlier table.

    Args:
        numbers: Identity by path, -1 for none.
        first_new: The first number that no identity ever had.
    """

    numbers: Mapping[str, int]
    first_new: int


@dataclass(frozen=True)
class Labelled:
    """The training images of a run, with the features of those that could be read.

    Args:
        config: The configuration of the run.
        folder: The folder of the run.
        images: The image set.
        features: (m, D) float32, unit-norm.
        records: The m images that could be read, in the order of the set.
        digests: Digests of their contents.
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
        folder: The folder of the run. The whole of last.pt is read, and kept no longer than this
            takes. Of a checkpoint of several processes, only the file of common values is read.

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


def earlier_numbers(like: str | None, folder: Path) -> Earlier:
    """Read the numbers that identities keep: those of a table, or of the run's own table.

    Args:
        like: The table; None for labels.csv of the run, where it has one.
        folder: The folder of the run.

    Raises:
        UserError: The table does not exist, or is none.
    """
    if like is not None and not os.path.isfile(like):
        raise UserError(f"`like`: {printable(like)} is not a file; name a table of identities")
    file = folder / LABELS_FILE if like is None else Path(like)
    if not os.path.isfile(file):
        return Earlier({}, 0)
    numbers = read_numbers(file)
    first_new = max(numbers.values(), default=-1) + 1
    if file.absolute() == (folder / LABELS_FILE).absolute():
        first_new = max(first_new, _next_identity(folder))
    return Earlier(numbers, first_new)


def _next_identity(folder: Path) -> int:
    """The number after all that identities of a run ever had; 0 where it is not known."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        value = json.loads((folder / NEXT_FILE).read_text())["next_identity"]
        return value if is_count(value) else 0
    return 0


def write_run_labels(table: LabelTable, earlier: Earlier, folder: Path) -> None:
    """Write labels.csv into the folder of a run, and the number of its next new identity.

    Args:
        table: The identities.
        earlier: The numbers that they kept.
        folder: The folder of the run.

    Raises:
        CheckpointError: A file cannot be written; the one that was there is intact.
    """
    # This number first: one that is too high does no harm.
    following = max(earlier.first_new, int(table.identities.max(initial=-1)) + 1)
    write_json(folder / NEXT_FILE, {"next_identity": following})
    write_atomically(folder / LABELS_FILE, lambda file: write_table(table, file))


def find_labels(found: Labelled, earlier: Earlier, reporter: Reporter) -> LabelTable:
    """Find the identities of a run's training images.

    The images are clustered as in an epoch of the run, and the clusters then agree with every
    answer in its ledger. With `method` supervised the identities are the true ones.

    Args:
        found: The images and their features.
        earlier: The numbers that are kept.
        reporter: Prints what was found, and warnings.

    Returns:
        The table. Memory and time are those of the clustering, of `active.refine` where there are
        answers, and of `labels.judge`.

    Raises:
        UserError: The features cannot be clustered, or the ledger cannot be used.
    """
    _check_images(found, reporter)
    truth, cameras = identities_and_cameras(found.records)
    given = found.config.method == "supervised"
    identities = _given(found, truth) if given else _clustered(found, cameras, reporter)
    judged = judge(identities, truth, found.config.memory.temperature, given)
    if not given:
        reporter.line(_calibrated(judged.examples))
        _warn_of_one_identity(identities.identities, reporter)
    reporter.line(_counts(identities.identities, judged))
    return _table(found, identities.identities, judged, earlier)


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
            f"{root}: the run was trained on none of its {len(names):,} images (first: "
            f"{printable(names[0])}); name the folder of its images with `data_root`"
        )
    if before and new:
        reporter.warn(
            f"the run was not trained on {len(new):,} of {len(names):,} images (first: "
            f"{printable(new[0])}); they get identities as well"
        )


def _warn_of_one_identity(labels: Tensor, reporter: Reporter) -> None:
    """Warn if one of the identities holds more than half of the images."""
    n = len(labels)
    most = int(labels[labels >= 0].bincount().max()) if bool((labels >= 0).any()) else 0
    if 2 * most > n and most >= _MANY:
        reporter.warn(
            f"one identity holds {most:,} of {n:,} images: the network hardly tells the images "
            "apart; train for more epochs"
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

    tracks = None
    if config.cluster.tracks == "must_link":
        numbers = track_numbers(found.records)
        tracks = None if numbers is None else torch.tensor(numbers)

    def cluster(cannot_links: Tensor | None, must_links: Tensor | None) -> tuple[Tensor, Tensor]:
        if _are_equal(found.features):
            if n > 1:
                reporter.warn(f"all {n:,} images have the same feature: there are no clusters")
            return torch.full((n,), -1), found.features
        check_backend(config.cluster.dbscan, n, "`cluster.dbscan`")
        threshold = found.saved.threshold if config.method == "ucal" else None
        clusters = cluster_images(
            found.features,
            cameras,
            config.cluster,
            threshold,
            cannot_links,
            must_links=must_links,
        )
        return clusters.labels, clusters.features

    if config.method == "nnct":
        reporter.line(
            "nnct has no clusters: its features are clustered by UCAL's settings `cluster.*`"
        )
    links = config.cluster.algorithm == "linkage"
    try:
        with _ledger(found) as ledger:
            return identities_by_answers(
                found.features, cluster, ledger, config.questions, links, tracks
            )
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
            f"there is no ledger {printable(url)}, which held {saved.answers} answers of the run; "
            "restore it, or start the command in the folder where the run was started"
        )
    return None


@contextlib.contextmanager
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


def _calibrated(examples: Examples) -> str:
    """A line that says what the confidence was learnt from."""
    if not examples.usable:
        return "confidence: not calibrated, because too few answers and true identities are known"
    count = len(examples.same)
    if examples.origin == "identities":
        return f"confidence: calibrated on {count:,} images whose true identity is known"
    return f"confidence: calibrated on {count:,} examples from the answers"


def _counts(labels: Tensor, judged: Judged) -> str:
    """A line that counts identities, images without one, and images to review."""
    n = len(labels)
    count = len(labels[labels >= 0].unique())
    reasons = [f"{int(of.sum()):,} {why}" for why, of in judged.review.items() if of.any()]
    return (
        f"{counted(count, 'identity', 'identities')} of {counted(n, 'image', 'images')}, "
        f"{counted(int((labels < 0).sum()), 'image', 'images')} without one; "
        f"{int(judged.marked.sum()):,} to review" + (f" ({', '.join(reasons)})" if reasons else "")
    )


def _table(found: Labelled, labels: Tensor, judged: Judged, earlier: Earlier) -> LabelTable:
    """The table of all training images, also of those that could not be read."""
    train = found.images.train
    paths = [_name(found, record) for record in train]
    row_of = {record.path: row for row, record in enumerate(train)}
    rows = np.array([row_of[record.path] for record in found.records], dtype=np.int64)
    n = len(train)

    def spread(values: Tensor, missing: float) -> np.ndarray:
        whole = np.full(n, missing, dtype=values.numpy().dtype)
        whole[rows] = values.numpy()
        return whole

    identities = spread(labels, UNKNOWN)
    if earlier.numbers:
        old = _old_numbers(found, paths, rows, earlier.numbers)
        identities = keep_numbers(identities, old, earlier.first_new)
    return LabelTable(
        paths,
        identities,
        np.array([record.camera for record in train], dtype=np.int64),
        spread(judged.sizes, 0),
        spread(judged.confidence, 0.0),
        spread(judged.margins, np.nan),
        spread(judged.sources, UNREAD),
        spread(judged.marked, False),
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
