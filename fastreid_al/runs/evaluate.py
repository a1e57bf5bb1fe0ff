"""Scores of a network on the test set: of a file, and in the summary of a run."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..answers import Verdict
from ..config import EngineConfig, EvaluationConfig, ImageConfig, SyntheticConfig, TestFeatures
from ..data import ImageSet
from ..data.loader import BatchLoader
from ..distributed.launch import require_single_process
from ..engine.console import Reporter, percent
from ..engine.extract import (
    Evaluator,
    decode_records,
    extract_features,
    identities_and_cameras,
    ranking_metrics,
)
from ..engine.network import Network
from ..engine.run_folder import RunFolder
from ..errors import CheckpointError, DataError, UserError
from ..files import write_atomically
from ..metrics import Ranking
from ..models import ReIdNet, build_model
from ..models.weights import read_tensors
from ..settings import validate
from .checks import load_images, pick_device

SCORES = ("mAP", "mINP", "rank1", "rank5", "rank10")


def evaluate_file(options: EvaluationConfig, reporter: Reporter | None = None) -> Ranking:
    """Score a checkpoint, or a bare weights file, on the test set of an image set.

    Returns:
        The ranking by the features; that after re-ranking, where it is asked for, is printed below it.

    Raises:
        UserError: The file or the image set cannot be used, in one line.
    """
    reporter = reporter or Reporter()
    require_single_process("evaluate")
    validate(options)
    file = Path(options.checkpoint)
    run = file.parent if file.name.startswith("last") else file
    if (file.is_dir() or file.suffix == ".json") and (run / "last.pt").is_file():
        raise CheckpointError(f"{file} is no file of weights: evaluate {run / 'last.pt'}")
    options = _set_of_run(options)
    device = pick_device(options.device)
    model, size, stage = _load_network(options)
    images = load_images(options, reporter)
    if not images.query:
        raise DataError(f"{images.root} has no query and gallery images: nothing to evaluate on")
    model.to(device).to(memory_format=torch.channels_last)
    network = Network(model, options.engine, device, reporter.warn)
    if options.save_features is not None:
        _save_features(
            Path(options.save_features), network, images, size, stage, options.engine, reporter
        )
    evaluator = Evaluator(
        images, size, Path(tempfile.gettempdir()), reporter, stage, options.engine
    )
    if options.rerank:
        ranking, again = evaluator.with_reranking(network)
        found = {"by the features": ranking_metrics(ranking), "re-ranked": ranking_metrics(again)}
    else:
        ranking = evaluator(network)
        found = {"": ranking_metrics(ranking)}
    rows = [[name, *(percent(scores[k]) for k in SCORES)] for name, scores in found.items()]
    reporter.table(f"Test set, %: {options.checkpoint}", ["", *SCORES], rows)
    _say_skipped(ranking_metrics(ranking), reporter)
    return ranking


def _set_of_run(options: EvaluationConfig) -> EvaluationConfig:
    """The image set that a checkpoint's run was trained on, where none is named."""
    file = Path(options.checkpoint).parent / "config.json"
    if options.dataset is not None or not file.is_file():
        return options
    try:
        run = json.loads(file.read_text())
        dataset, root, drawn = run["dataset"], run["data_root"], SyntheticConfig(**run["synthetic"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not the configuration of a run; name the image set with --dataset"
        ) from error
    return replace(
        options,
        dataset=dataset,
        data_root=root if options.data_root == EvaluationConfig.data_root else options.data_root,
        synthetic=drawn if options.synthetic == SyntheticConfig() else options.synthetic,
    )


def _save_features(
    path: Path,
    network: Network,
    images: ImageSet,
    size: ImageConfig,
    stage: TestFeatures,
    settings: EngineConfig,
    reporter: Reporter,
) -> None:
    """Write the features that are ranked, identities and cameras of the training images."""
    store, records = decode_records(
        images.train, "train", size, Path(tempfile.gettempdir()), reporter
    )
    with reporter.progress("extracting train", len(store)) as update:
        features = (
            extract_features(
                network, BatchLoader(store, network.device, "host"), settings, update, stage
            )
            .cpu()
            .numpy()
        )
    identities, cameras = (t.numpy() for t in identities_and_cameras(records))
    write_atomically(
        path, lambda f: np.savez(f, features=features, identities=identities, cameras=cameras)
    )
    reporter.line(f"{len(records)} training features in {path}")


def _load_network(options: EvaluationConfig) -> tuple[ReIdNet, ImageConfig, TestFeatures]:
    """The network of a file, the size of its images, and which of its features are ranked."""
    content = read_tensors(Path(options.checkpoint))
    network = content.get("network", {}) if isinstance(content, dict) else {}
    name = options.model or network.get("name")
    if name is None:
        raise UserError(
            f"{options.checkpoint} is a bare weights file: name its backbone with --model"
        )
    if network.get("name", name) != name:
        raise CheckpointError(
            f"{options.checkpoint} was trained with --model {network['name']}, not {name}; leave --model out"
        )
    model = build_model(
        name,
        options.checkpoint,
        pool=network.get("pool", options.pool),
        bn_group=0,
        osnet_fc=network.get("osnet_fc", True),
    )
    height, width = (
        options.height or network.get("height", 256),
        options.width or network.get("width", 128),
    )
    if min(height, width) < 16:
        raise UserError(
            f"--height {height} --width {width}: images of 16 x 16 pixels and more can be scored"
        )
    stage = options.test_features or network.get("test_features", "bn")
    return (
        model,
        ImageConfig(height, width, store_gib=options.store_gib),
        stage,
    )


def summarise(history: list[dict[str, Any]], folder: RunFolder, reporter: Reporter) -> None:
    """Print the table of the untrained, last and best network."""
    evaluated = [r for r in history if r.get("mAP") is not None]
    trained = [r for r in evaluated if r["epoch"] > 0]
    if trained:
        best = max(trained, key=lambda r: r["mAP"])
        rows = [("untrained", r) for r in evaluated if r["epoch"] == 0]
        rows += [
            (f"last, epoch {trained[-1]['epoch']}", trained[-1]),
            (f"best, epoch {best['epoch']}", best),
        ]
        table = [[name, *(percent(r[k]) for k in SCORES)] for name, r in rows]
        reporter.table("Test set, %", ["network", *SCORES], table)
        reporter.line("best was chosen on the test set; the result to report is last")
        _say_skipped(trained[-1], reporter)
    _say_cost(history, reporter)
    reporter.line(f"run folder: {folder.path}")


def _say_cost(history: list[dict[str, Any]], reporter: Reporter) -> None:
    asked = [r for r in history if "questions" in r]
    if asked:
        last, verdicts = asked[-1], (v.name.lower() for v in Verdict)
        said = ", ".join(
            f"{sum(r[f'answered_{v}'] for r in asked)} {v.replace('_', ' ')}" for v in verdicts
        )
        reporter.line(
            f"{last['questions_total']} questions ({said}), {100 * last['share_total']:.4f} % of all pairs, "
            f"{last['answering_seconds_total']:.0f} s of answering, {sum(r['contradictions'] for r in asked)} contradictions"
        )


def _say_skipped(scores: dict[str, Any], reporter: Reporter) -> None:
    if scores["skipped_queries"]:
        reporter.line(
            f"{scores['skipped_queries']} queries have no match in the gallery and were skipped"
        )
