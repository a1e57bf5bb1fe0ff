"""Scores a checkpoint or a weights file on the test images of a set."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import EvaluationConfig, ImageConfig, ScoringConfig, SyntheticConfig, TestFeatures
from ..data import ImageSet, describe
from ..data.loader import BatchLoader
from ..data.records import Record
from ..data.walk import relative
from ..distributed.launch import require_single_process
from ..engine.checkpoint_content import is_count
from ..engine.console import Reporter
from ..engine.extract import (
    Evaluator,
    decode_records,
    extract_features,
    identities_and_cameras,
    ranking_metrics,
    without_match,
)
from ..engine.network import Network
from ..errors import CheckpointError, DataError, UserError
from ..files import write_atomically
from ..metrics import Ranking
from ..models import BackboneBuilder, ReIdNet, build_model
from ..models.weights import read_tensors
from ..settings import validate, with_values
from ..settings_file import read_settings
from .checks import pick_device, working_on
from .data import read_set
from .summary import SCORES, report_skipped, score_row

#: Settings by which an image set is read.
_READ_BY = ("camera_pattern", "identity_pattern", "tracklet_frames")


@dataclass(frozen=True)
class _Scored:
    """A network to score, and how its features are computed.

    Args:
        model: The network.
        image: Size of its images.
        stage: Which features are ranked.
    """

    model: ReIdNet
    image: ImageConfig
    stage: TestFeatures


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
    _check_is_weights(Path(options.checkpoint))
    options = _with_set_of_run(options)
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
    scored.model.to(device).to(memory_format=torch.channels_last)
    network = Network(scored.model, options.engine, device, reporter.warn)
    if options.save_features is not None:
        _save_features(options, scored, network, images, reporter)
        if not images.query:
            return None
    temporary = Path(tempfile.gettempdir())
    same_camera = options.evaluation.same_camera
    evaluator = Evaluator(
        images,
        scored.image,
        temporary,
        reporter,
        scored.stage,
        options.engine,
        same_camera=same_camera,
    )
    if options.rerank:
        ranking, reranked = evaluator.with_reranking(network)
        rankings = {"by the features": ranking, "re-ranked": reranked}
    else:
        ranking = evaluator(network)
        rankings = {"": ranking}
    rows = [score_row(name, ranking_metrics(scores)) for name, scores in rankings.items()]
    reporter.table(f"Test set, %: {options.checkpoint}", ["", *SCORES], rows)
    if ranking.queries == 0:
        raise DataError(without_match(images, same_camera))
    report_skipped(ranking_metrics(ranking), reporter)
    return ranking


def _check_is_weights(path: Path) -> None:
    """Refuse a run folder or a part of a sharded checkpoint, and name the file of weights."""
    run = path.parent if path.name.startswith("last") else path
    weights = run / "last.pt"
    if (os.path.isdir(path) or path.suffix == ".json") and os.path.isfile(weights):
        raise CheckpointError(f"{path} is not a weights file: evaluate {weights}")


def _with_set_of_run(options: EvaluationConfig) -> EvaluationConfig:
    """Return the options with the set that the checkpoint's run was trained on, if they name none.

    Raises:
        UserError: The configuration of the run cannot be read.
    """
    file = Path(options.checkpoint).parent / "config.json"
    if options.dataset is not None or not os.path.isfile(file):
        return options
    try:
        run = read_settings(file)
        synthetic = {
            key.removeprefix("synthetic."): value
            for key, value in run.items()
            if key.startswith("synthetic.")
        }
        known = replace(
            options,
            dataset=run["dataset"],
            data_root=_of_run(options, run, "data_root"),
            **{key: _of_run(options, run, key) for key in _READ_BY if key in run},
        )
        if options.synthetic == SyntheticConfig():
            known = replace(known, synthetic=with_values(SyntheticConfig(), synthetic))
        if options.evaluation == ScoringConfig() and "evaluation.same_camera" in run:
            known = replace(known, evaluation=ScoringConfig(run["evaluation.same_camera"]))
        validate(known)
    except (UserError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not the configuration of a run; name the image set with `dataset`"
        ) from error
    return known


def _of_run(options: EvaluationConfig, run: dict[str, Any], key: str) -> Any:
    """The value of a setting, or where it has its default, that of the run."""
    given = getattr(options, key)
    return run[key] if given == getattr(EvaluationConfig, key) else given


#: What a checkpoint says of its network, and the type of each value.
_NETWORK: dict[str, type] = {
    **{"name": str, "pool": str, "test_features": str, "osnet_fc": bool},
    **{"height": int, "width": int},
}


def _network_of(content: Any, origin: str) -> dict[str, Any]:
    """Return what a checkpoint says of its network; empty for a bare weights file.

    Raises:
        CheckpointError: It says something that no run writes.
    """
    saved = content.get("network") if isinstance(content, Mapping) else None
    if not isinstance(saved, Mapping) or "name" not in saved:
        return {}
    for name, kind in _NETWORK.items():
        value: Any = saved.get(name)
        right = is_count(value) and value > 0 if kind is int else isinstance(value, kind)
        if name in saved and not right:
            raise CheckpointError(
                f"{origin} is not a checkpoint that a run wrote: network.{name} is {value!r:.40}"
            )
    return dict(saved)


def _load(
    options: EvaluationConfig, builder: BackboneBuilder | None, reporter: Reporter
) -> _Scored:
    """Load the network of a file; a checkpoint knows its backbone, image size and features.

    Args:
        options: The file, and what it does not know.
        builder: Builds the backbone, in place of the named one.
        reporter: Prints what was left out of a file of another code base.

    Raises:
        UserError: The options do not fit the file, or are not enough for a bare weights file.
    """
    content = read_tensors(Path(options.checkpoint))
    saved = _network_of(content, options.checkpoint)
    backbone = builder or options.model or saved.get("name")
    if backbone is None:
        raise UserError(
            f"{options.checkpoint} is a bare weights file: name its backbone with `model`"
        )
    if options.model is not None and saved.get("name", options.model) != options.model:
        raise CheckpointError(
            f"{options.checkpoint} was trained with `model` {saved['name']}, "
            f"not {options.model}; do not set `model`"
        )
    model = build_model(
        backbone,
        options.checkpoint,
        pool=saved.get("pool", options.pool),
        bn_group=0,
        osnet_fc=saved.get("osnet_fc", True),
        report=reporter.line,
    )
    height = options.height or saved.get("height", 256)
    width = options.width or saved.get("width", 128)
    image = ImageConfig(height, width, store_gib=options.store_gib)
    return _Scored(model, image, options.test_features or saved.get("test_features", "bn"))


def _read_images(options: EvaluationConfig, reporter: Reporter) -> ImageSet:
    """Read the image set, and print its counts.

    Raises:
        UserError: It cannot be read, or has no test images.
    """
    name = options.dataset or "synthetic"
    images = read_set(options, name, reporter)
    for line in describe(images):
        reporter.line(line)
    if not images.query and options.save_features is None:
        raise DataError(f"{images.root} has no query and gallery images: nothing to evaluate on")
    return images


def _save_features(
    options: EvaluationConfig,
    scored: _Scored,
    network: Network,
    images: ImageSet,
    reporter: Reporter,
) -> None:
    """Write features, identities, cameras and paths of all images to an .npz file.

    The arrays of the training images are `features`, `identities`, `cameras` and `paths`; those of
    the queries and of the gallery have the split's name before them.
    """
    path = Path(str(options.save_features))
    arrays: dict[str, np.ndarray] = {}
    for split, records in images.splits.items():
        if records:
            prefix = "" if split == "train" else f"{split}_"
            of_split = _features_of(split, records, options, scored, network, reporter)
            root = images.root
            of_split["paths"] = np.array([str(relative(p, root)) for p in of_split["paths"]])
            arrays |= {prefix + name: array for name, array in of_split.items()}
            reporter.line(f"{len(of_split['paths']):,} {split} features in {path}")
    write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def _features_of(
    split: str,
    records: list[Record],
    options: EvaluationConfig,
    scored: _Scored,
    network: Network,
    reporter: Reporter,
) -> dict[str, Any]:
    """Features (m, D), identities (m,), cameras (m,) and paths of the readable images."""
    temporary = Path(tempfile.gettempdir())
    store, readable = decode_records(records, split, scored.image, temporary, reporter)
    loader = BatchLoader(store, network.device, "host")
    with reporter.progress(f"extracting {split}", len(store)) as update:
        features = extract_features(network, loader, options.engine, update, scored.stage)
    identities, cameras = identities_and_cameras(readable)
    return {
        "features": features.cpu().numpy(),
        "identities": identities.numpy(),
        "cameras": cameras.numpy(),
        "paths": [record.path for record in readable],
    }
