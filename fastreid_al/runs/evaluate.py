"""Scores a checkpoint or a weights file on the test images of a set."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import EvaluationConfig, RunConfig, ScoringConfig, SyntheticConfig
from ..data import ImageSet, describe
from ..data.listing import Listing
from ..data.walk import relative
from ..distributed.launch import require_single_process
from ..engine.console import Reporter
from ..engine.extract import (
    Evaluator,
    identities_and_cameras,
    ranking_metrics,
    without_match,
)
from ..engine.network import Network
from ..errors import DataError, UserError
from ..files import refuse_existing, write_atomically
from ..metrics import Ranking
from ..models import BackboneBuilder
from ..retrieval.feature_file import new_feature_file
from ..settings import validate
from .checks import pick_device, working_on
from .data import read_set
from .extract import SUFFIX, add_features
from .feature_stream import describe_features
from .rankings_file import RANKS, check_rankings_file, write_rankings
from .summary import SCORES, report_skipped, score_row
from .trained import (
    Trained,
    config_of_run,
    engine_of_checkpoint,
    extract_records,
    find_run,
    load_trained,
    refuse_folder,
)

#: Settings by which an image set is read and scored.
_READ_BY = (
    *("data_root", "camera_pattern", "identity_pattern", "tracklet_frames"),
    *("synthetic", "evaluation"),
)
_DEFAULTS = {
    **{key: getattr(EvaluationConfig, key) for key in _READ_BY[:4]},
    **{"synthetic": SyntheticConfig(), "evaluation": ScoringConfig()},
}


def evaluate_file(
    options: EvaluationConfig,
    reporter: Reporter | None = None,
    *,
    model: BackboneBuilder | None = None,
) -> Ranking | None:
    """Score a checkpoint or a bare weights file on the test images of a set; print the scores.

    Args:
        options: The file, the set, and what to compute.
        reporter: Prints the scores and progress.
        model: Builds the backbone, in place of `options.model`.

    Returns:
        The ranking by the features, without re-ranking; None where features were saved of a set
        without test images.

    Raises:
        UserError: The file or the image set cannot be used, or no query has a match.
    """
    reporter = reporter or Reporter()
    require_single_process("an evaluation")
    validate(options)
    path = Path(options.checkpoint)
    if os.path.isfile(path / "config.json"):
        options = replace(options, checkpoint=str(find_run(path).checkpoint))
    refuse_folder(Path(options.checkpoint))
    if options.save_features is not None:
        refuse_existing(Path(options.save_features), options.force)
    if options.save_rankings is not None:
        check_rankings_file(Path(options.save_rankings), options.force)
    options = _with_set_of_run(options)
    engine = engine_of_checkpoint(options.engine, Path(options.checkpoint), reporter)
    options = replace(options, engine=engine)
    device = pick_device(options.device)
    with working_on(device):
        return _evaluated(options, model, device, reporter)


def _evaluated(
    options: EvaluationConfig,
    model: BackboneBuilder | None,
    device: torch.device,
    reporter: Reporter,
) -> Ranking | None:
    """Score what the options name on a device."""
    scored = _load(options, model, reporter)
    images = _read_images(options, reporter)
    network = scored.on(device, options.engine, reporter)
    if options.save_features is not None:
        _save_features(options, scored, network, images, reporter)
        if not images.query:
            return None
    same_camera = options.evaluation.same_camera
    evaluator = Evaluator(
        images,
        scored.image,
        None,
        reporter,
        scored.stage,
        options.engine,
        same_camera=same_camera,
    )
    ranking, reranked = _ranked(options, evaluator, network, images, reporter)
    rankings = {"by the features": ranking}
    if reranked is not None:
        rankings["re-ranked"] = reranked
    rows = [score_row(name, ranking_metrics(scores)) for name, scores in rankings.items()]
    reporter.table(f"Test set, %: {options.checkpoint}", ["ranking", *SCORES], rows)
    if ranking.queries == 0:
        raise DataError(without_match(images, same_camera))
    report_skipped(ranking_metrics(ranking), reporter)
    return ranking


def _ranked(
    options: EvaluationConfig,
    evaluator: Evaluator,
    network: Network,
    images: ImageSet,
    reporter: Reporter,
) -> tuple[Ranking, Ranking | None]:
    """Rank the gallery, also with re-ranking if that is asked for, and write the lists."""
    if options.save_rankings is None:
        return evaluator.with_reranking(network) if options.rerank else (evaluator(network), None)
    ranking, reranked, lists = evaluator.with_lists(network, RANKS, options.rerank)
    names = [
        [str(relative(record.path, images.root)) for record in evaluator.records[split]]
        for split in ("query", "gallery")
    ]
    path = Path(options.save_rankings)
    write_rankings(path, lists, names[0], names[1])
    reporter.line(f"the first gallery images of {len(names[0]):,} queries in {path}")
    return ranking, reranked


def _with_set_of_run(options: EvaluationConfig) -> EvaluationConfig:
    """Return the options with the set that the checkpoint's run was trained on, if they name none.

    Raises:
        UserError: The configuration of the run cannot be read.
    """
    file = Path(options.checkpoint).parent / "config.json"
    if options.dataset is not None or not os.path.isfile(file):
        return options
    try:
        run = config_of_run(file)
        known = replace(
            options,
            dataset=run.dataset,
            **{key: _of_run(options, run, key) for key in _READ_BY},
        )
        validate(known)
    except UserError as error:
        raise UserError(
            f"{file} is not the configuration of a run; name the image set with `dataset`"
        ) from error
    return known


def _of_run(options: EvaluationConfig, run: RunConfig, key: str) -> Any:
    """The value of a setting, or where it has its default, that of the run."""
    given = getattr(options, key)
    return getattr(run, key) if given == _DEFAULTS[key] else given


def _load(
    options: EvaluationConfig, builder: BackboneBuilder | None, reporter: Reporter
) -> Trained:
    """Load the network that the options name."""
    return load_trained(
        Path(options.checkpoint),
        reporter,
        model=builder or options.model,
        pool=options.pool,
        test_features=options.test_features,
        height=options.height,
        width=options.width,
        store_gib=options.store_gib,
    )


def _read_images(options: EvaluationConfig, reporter: Reporter) -> ImageSet:
    """Read the image set, and print its counts.

    Raises:
        UserError: It cannot be read, or has no test images.
    """
    name = options.dataset or "synthetic"
    images = read_set(options, name, reporter)
    for line in describe(images):
        reporter.line(line)
    needed = options.save_features is None or options.save_rankings is not None
    if not images.query and needed:
        raise DataError(
            f"{images.root} has no query and gallery images: nothing to evaluate on; name a set "
            "that has them with `dataset` and `data_root`"
        )
    return images


def _save_features(
    options: EvaluationConfig,
    scored: Trained,
    network: Network,
    images: ImageSet,
    reporter: Reporter,
) -> None:
    """Write features, identities, cameras and paths of all images to an .npz or .safetensors file.

    The arrays of the training images are `features`, `identities`, `cameras` and `paths`; those of
    the queries and of the gallery have the split's name before them. A .safetensors file is that of
    `retrieval.feature_file`, and is written part by part.
    """
    path = Path(str(options.save_features))
    if path.suffix.lower() == SUFFIX:
        _save_tensors(path, options, scored, network, images, reporter)
        return
    arrays: dict[str, np.ndarray] = {}
    for split, records in images.splits.items():
        if records:
            found = extract_records(scored, network, records, split, options.engine, reporter)
            identities, cameras = identities_and_cameras(found.records)
            paths = [str(relative(record.path, images.root)) for record in found.records]
            of_split = {
                "features": found.features.cpu().numpy(),
                "identities": identities.numpy(),
                "cameras": cameras.numpy(),
                "paths": np.array(paths),
            }
            arrays |= {_prefix(split) + name: array for name, array in of_split.items()}
            reporter.line(f"{len(paths):,} {split} features in {path}")
    write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def _save_tensors(
    path: Path,
    options: EvaluationConfig,
    scored: Trained,
    network: Network,
    images: ImageSet,
    reporter: Reporter,
) -> None:
    """Write the features of all images to a .safetensors file."""
    about = describe_features(scored, network, options.engine)
    columns = ("cameras", "identities")
    with new_feature_file(path, about, columns, splits=3, key="save_features") as writer:
        for split, records in images.splits.items():
            if records:
                names = [relative(record.path, images.root).as_posix() for record in records]
                listed = Listing(images.root, records, names)
                add_features(writer, scored, network, listed, options.engine, reporter, split)
                count = writer.end_split(_prefix(split))
                reporter.line(f"{count:,} {split} features in {path}")


def _prefix(split: str) -> str:
    """What stands before the names of a split's arrays in a file of features."""
    return "" if split == "train" else f"{split}_"
