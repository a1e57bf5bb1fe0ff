"""Writes the page of one run, or of two side by side."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..config import ReportConfig
from ..data import ImageSet
from ..distributed.launch import require_single_process
from ..engine.console import Reporter
from ..engine.extract import Evaluator
from ..engine.network import Network
from ..errors import CheckpointError, DataError, UserError, printable
from ..files import refuse_existing, replacing
from ..reports.page import render_report
from ..reports.queries import RANKS, Ranked
from ..reports.questions import Answers, read_answers
from ..reports.results import RunResults
from ..settings import validate
from .checks import pick_device, working_on
from .find_labels import label_stage
from .questions import LEDGER_FILE
from .report_labels import labels_of_run
from .trained import (
    RunFiles,
    Trained,
    config_of_run,
    engine_of_run,
    extract_records,
    find_run,
    images_of_run,
    load_trained,
)


def write_report(options: ReportConfig, reporter: Reporter | None = None) -> None:
    """Write one HTML file that shows a run, or two runs side by side.

    The features of the training images are extracted anew, clustered by the settings of the run,
    and the gallery is ranked, all under the last weights: 267 MB at n = 32,621 and 8.2 GB at 1e6
    for D = 2,048, of one run at a time for the gallery and of both for the training images.

    Args:
        options: The runs, the file, and how much is shown.
        reporter: Prints lines and progress.

    Raises:
        UserError: A run cannot be read, or the file cannot be written.
    """
    reporter = reporter or Reporter()
    require_single_process("a report")
    validate(options)
    out = Path(options.out)
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"`out`: got {printable(out.name)}, expected a name that ends in .html")
    refuse_existing(out, options.force)
    folders = [options.run, *([options.other] if options.other else [])]
    runs = [_find(Path(folder), options.data_root) for folder in folders]
    device = pick_device(options.device)
    with working_on(device):
        results = [
            _gather(run, name, options, device, reporter)
            for run, name in zip(runs, _names(runs), strict=True)
        ]
    with reporter.progress("writing the page", 0):
        page = render_report(results, options).encode(errors="backslashreplace")
    _write(out, page)
    reporter.line(f"{out}: {len(page) / 1e6:.1f} MB, opens in a browser without a network")


def _write(out: Path, page: bytes) -> None:
    try:
        with replacing(out) as file:
            file.write(page)
    except OSError as error:
        raise UserError(
            f"could not write {out} ({error.strerror}); name another file with `out`"
        ) from error


def _find(path: Path, data_root: str | None) -> RunFiles:
    """Find the files of a run, also of one that was stopped before its first checkpoint."""
    saved = path / "config.json"
    if os.path.isfile(saved) and not os.path.isfile(path / "last.pt"):
        config = config_of_run(saved)
        if data_root is not None:
            config = replace(config, data_root=data_root)
        return RunFiles(path, path / "last.pt", config)
    return find_run(path, data_root)


def _names(runs: list[RunFiles]) -> list[str]:
    """Names of the runs: those of their folders, with the folder above where these are equal."""
    folders = [Path(os.path.abspath(run.folder)) for run in runs]
    names = [printable(folder.name) for folder in folders]
    if len(set(names)) < len(names):
        names = [printable(f"{folder.parent.name}/{folder.name}") for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names


def _gather(
    run: RunFiles, name: str, options: ReportConfig, device: torch.device, reporter: Reporter
) -> RunResults:
    """Read what a run left behind, and compute what it did not write."""
    results = RunResults(
        name,
        run.config,
        _read_history(run.folder / "metrics.jsonl"),
        _read_versions(run.folder / "versions.json"),
        _read_answers(run),
    )
    try:
        images = images_of_run(run, reporter)
    except UserError as error:
        if options.data_root is not None:
            raise
        return _with_error(results, "The images cannot be read", error, options, reporter)
    results = replace(results, images=images)
    if not os.path.isfile(run.checkpoint):
        return _with_problem(
            results,
            "The run has saved no checkpoint: there are no clusters and no rankings.",
            reporter,
        )
    trained = load_trained(run.checkpoint, reporter, store_gib=options.store_gib)
    options = replace(options, engine=engine_of_run(options.engine, run.config))
    network = trained.on(device, options.engine, reporter)
    results = _with_clusters(results, run, trained, network, options, reporter)
    return _with_rankings(results, run, trained, network, options, reporter)


def _with_problem(results: RunResults, line: str, reporter: Reporter) -> RunResults:
    """Say in the page and on the console what is missing."""
    reporter.warn(f"{results.name}: {line}")
    return replace(results, problems=(*results.problems, line))


def _with_error(
    results: RunResults, what: str, error: UserError, options: ReportConfig, reporter: Reporter
) -> RunResults:
    """Say what is missing and why; a page without names gives no reason, which may name folders."""
    reporter.warn(f"{results.name}: {what}: {error}")
    line = f"{what}." if options.anonymise else f"{what}: {error}"
    return replace(results, problems=(*results.problems, line))


def _with_clusters(
    results: RunResults,
    run: RunFiles,
    trained: Trained,
    network: Network,
    options: ReportConfig,
    reporter: Reporter,
) -> RunResults:
    """Add the features and the clusters of the training images."""
    images = results.images
    assert images is not None
    train = images.train
    if not train:
        return _with_problem(results, "The set has no training images.", reporter)
    # Clusters are made of the features that an epoch clusters, rankings of those that are ranked.
    clustered = replace(trained, stage=label_stage(run.config))
    found = extract_records(clustered, network, train, "train", options.engine, reporter)
    results = replace(results, records=found.records, features=found.features)
    unread = len(train) - len(found.records)
    if unread:
        line = f"{unread:,} training images cannot be read and are left out."
        results = _with_problem(results, line, reporter)
    try:
        labels = labels_of_run(run, images, found, reporter)
    except UserError as error:
        return _with_error(results, "The images cannot be clustered", error, options, reporter)
    return replace(results, labels=labels)


def _with_rankings(
    results: RunResults,
    run: RunFiles,
    trained: Trained,
    network: Network,
    options: ReportConfig,
    reporter: Reporter,
) -> RunResults:
    """Add the rankings, where the set has query and gallery."""
    images = results.images
    assert images is not None
    if not images.query or not images.gallery:
        return results
    try:
        ranked = _rank(images, run, trained, network, options, reporter)
    except DataError as error:
        return _with_error(results, "The gallery cannot be ranked", error, options, reporter)
    return replace(results, ranked=ranked)


def _rank(
    images: ImageSet,
    run: RunFiles,
    trained: Trained,
    network: Network,
    options: ReportConfig,
    reporter: Reporter,
) -> Ranked:
    evaluator = Evaluator(
        images,
        trained.image,
        None,
        reporter,
        trained.stage,
        options.engine,
        same_camera=run.config.evaluation.same_camera,
    )
    ranking, _, lists = evaluator.with_lists(network, RANKS)
    query, gallery = evaluator.records["query"], evaluator.records["gallery"]
    digests = evaluator.digests["query"]
    return Ranked(images.root, query, gallery, ranking.of_queries, lists, digests)


def _read_history(file: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, their numbers alone.

    A line that a killed run left unfinished is passed over.
    """
    history = []
    for line in _read(file).splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("epoch"), int):
            shown = {key: value for key, value in record.items() if _can_be_shown(value)}
            history += [shown] if "epoch" in shown else []
    return history


def _can_be_shown(value: Any) -> bool:
    """Whether a value of a record is a finite number, or None as for a score that is not there."""
    try:
        return value is None or (isinstance(value, int | float) and math.isfinite(value))
    except OverflowError:
        return False


def _read_versions(file: Path) -> dict[str, str]:
    """The versions that a run wrote; none where they cannot be read."""
    try:
        found = json.loads(_read(file) or "{}")
    except (ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _read(file: Path) -> str:
    """The text of a file; empty where there is none.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        return file.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CheckpointError(f"could not read {file} ({error.strerror})") from error


def _read_answers(run: RunFiles) -> Answers | None:
    """The answers of the ledger of a run; None for a run without one.

    Raises:
        LedgerError: It cannot be read.
    """
    url = run.config.questions.ledger or str(run.folder / LEDGER_FILE)
    if "://" not in url and not os.path.exists(url):
        return None
    return read_answers(url)
