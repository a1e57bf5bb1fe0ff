"""Put a run together from its configuration: images, pixels, network, method, loop."""

from __future__ import annotations

import shlex
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..active import Questions, QuitAsking, Verdict
from ..clustering import check_backend
from ..clustering.approximate import check_library
from ..config import EvaluationConfig, ImageConfig, RunConfig, TestFeatures
from ..data import ImageSet, describe, load
from ..data.augment import Augment
from ..data.camstyle import CameraStyle, camera_style
from ..data.pixels import PixelStore
from ..data.records import UNKNOWN, Record, count
from ..data.samplers import iterations_of
from ..engine.checkpoint import data_fingerprint, load_checkpoint, write_atomically
from ..engine.extract import Evaluator, decode_records, extract_features, identities_and_cameras
from ..engine.loop import Interrupted, Method, Training, check_resumable, make_optimizer, train
from ..engine.report import Reporter, RunFolder, draw_curves, percent, ranking_metrics
from ..errors import CheckpointError, DataError, UserError
from ..metrics import Ranking
from ..models import ReIdNet, build_model
from ..models.weights import read_tensors
from .adaptation import Source, SourceClassifier
from .asking import check_questions, open_questions
from .nnct import NNCT
from .supervised import Supervised
from .ucal import UCAL

SCORES = ("mAP", "mINP", "rank1", "rank5", "rank10")


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, and one record an epoch, the untrained network first when it was evaluated."""

    folder: Path
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class _Decoded:
    """The training images of a source: their set, pixels, records, and what is known of them."""

    images: ImageSet
    store: PixelStore
    records: list[Record]
    source: Source


def run_training(config: RunConfig, *, resume: bool = False, reporter: Reporter | None = None) -> Finished:
    """Train as configured, from the beginning or from the run folder's last checkpoint.

    Args:
        config: The configuration.
        resume: Continue the run in `config.run_dir`; where it has no checkpoint yet, begin.
        reporter: Says how it goes.

    Raises:
        UserError: What stands in the way, in one line.
        Interrupted: A signal asked the run to stop; it can be resumed.
    """
    reporter = reporter or Reporter()
    folder = RunFolder(_run_path(config))
    _check(config)
    if folder.last.exists() and not resume:
        raise UserError(f"{folder.path} already holds a run: continue it with --resume, or name another with --run-dir")
    saved = load_checkpoint(folder.last) if resume and folder.last.exists() else None
    if saved is not None:
        check_resumable(saved, config)
    device = pick_device(config.device)
    images = _load(config, reporter)
    check_questions(config, all(r.identity != UNKNOWN for r in images.train))
    source_images = _load_source(config, images, reporter)
    model = _model(config, device, fresh=saved is None)
    folder.prepare()
    store, records = _decode(images, config, folder, reporter)
    source = None if source_images is None else _decode_source(source_images, config, folder, reporter)
    identities = identities_and_cameras(records)[0]
    with open_questions(config, images, records, store.digests, folder.path, reporter) as questions:
        style = _style(config, images, records, store, folder, reporter)
        state = _training(config, model, images, store, records, questions, source, style)
        if saved is not None:
            state.load_state_dict(saved)
            reporter.line(f"resuming {folder.path} after epoch {state.epoch}, batch {state.step}")
        folder.describe(config)
        try:
            train(
                state,
                store,
                device,
                folder,
                reporter,
                Evaluator(images, config.image, device, folder.path, reporter, config.network.test_features)
                if images.query
                else None,
                identities if (identities != UNKNOWN).all() else None,
                None if source is None else source.store,
            )
        except (Interrupted, QuitAsking) as stop:
            reporter.line(_stopped(state, folder, stop))
            if isinstance(stop, QuitAsking):
                raise Interrupted(0) from stop
            raise
    draw_curves(state.history, folder.figure)
    summarise(state.history, folder, reporter)
    return Finished(folder.path, state.history)


def dry_run(config: RunConfig, reporter: Reporter | None = None) -> None:
    """Read the image set, build the network, and say what a run would do; no run folder is made.

    Raises:
        UserError: What would stand in the way, in one line.
    """
    reporter = reporter or Reporter()
    _check(config)
    device = pick_device(config.device)
    images = _load(config, reporter)
    check_questions(config, all(r.identity != UNKNOWN for r in images.train))
    source = _load_source(config, images, reporter)
    model = _model(config, device)
    image, n = config.image, len(images.train)
    parameters = sum(p.numel() for p in model.parameters())
    pixels = 3 * image.height * image.width
    reporter.line(
        f"{config.method} with {model.name}, {parameters / 1e6:.2f} M parameters, {model.features} features, {device}"
    )
    iterations = iterations_of(config.batch.iterations, n, config.batch.size)
    reporter.line(
        f"{config.epochs} epochs of {iterations} batches of {config.batch.size} images at {image.height} x {image.width}"
    )
    in_memory = n * pixels <= image.store_gib * 2**30
    reporter.line(
        f"training pixels {n * pixels / 2**30:.2f} GiB in {'memory' if in_memory else 'a memory-mapped file'}, "
        f"feature memory {4 * n * model.features / 2**30:.2f} GiB"
    )
    if source is not None:
        m = len(source.train)
        beside = f"a classifier, weight {1 - config.adaptation.weight:g}" if config.method == "nnct" else "classes"
        where = "BatchNorms of their own" if model.switch is not None else "the same BatchNorms"
        reporter.line(
            f"beside them as many images of {source.name}, {count(source.train).identities} identities as {beside}, through "
            f"{where}; {m * pixels / 2**30:.2f} GiB of pixels"
        )
    if config.method == "nnct":
        known = None if source is None else _source(source.train)
        labels = _nnct(config, n, known, model.features).label_memory
        single = min(config.nnct.single_label, config.epochs)
        reporter.line(
            f"label memory {labels.nbytes / 2**30:.2f} GiB as {labels.layout}; {single} epochs of single labels, then "
            f"labels above {config.nnct.threshold:g} and those of {config.neighbours_k} nearest images"
        )
    reporter.line(f"a run would write into {_run_path(config)}; none was started")


def evaluate_file(options: EvaluationConfig, reporter: Reporter | None = None) -> Ranking:
    """Score a checkpoint, or a bare weights file, on the test set of an image set.

    Raises:
        UserError: The file or the image set cannot be used, in one line.
    """
    reporter = reporter or Reporter()
    device = pick_device(options.device)
    model, size, stage = _load_network(options)
    images = _load(options, reporter)
    if not images.query:
        raise DataError(f"{images.root} has no query and gallery images: nothing to evaluate on")
    model.to(device).to(memory_format=torch.channels_last)
    if options.save_features is not None:
        _save_features(Path(options.save_features), model, images, size, stage, device, reporter)
    ranking = Evaluator(images, size, device, Path(tempfile.gettempdir()), reporter, stage)(model)
    scores = ranking_metrics(ranking)
    reporter.table(f"Test set, %: {options.checkpoint}", ["", *SCORES], [["", *(percent(scores[k]) for k in SCORES)]])
    _say_skipped(scores, reporter)
    return ranking


def _save_features(
    path: Path,
    model: ReIdNet,
    images: ImageSet,
    size: ImageConfig,
    stage: TestFeatures,
    device: torch.device,
    reporter: Reporter,
) -> None:
    """Write the features that are ranked, identities and cameras of the training images."""
    store, records = decode_records(images.train, "train", size, Path(tempfile.gettempdir()), reporter)
    with reporter.progress("extracting train", len(store)) as update:
        features = extract_features(model, store, device, on_progress=update, stage=stage).cpu().numpy()
    identities, cameras = (t.numpy() for t in identities_and_cameras(records))
    write_atomically(path, lambda f: np.savez(f, features=features, identities=identities, cameras=cameras))
    reporter.line(f"{len(records)} training features in {path}")


def _load_network(options: EvaluationConfig) -> tuple[ReIdNet, ImageConfig, TestFeatures]:
    """The network of a file, the size of its images, and which of its features are ranked."""
    content = read_tensors(Path(options.checkpoint))
    network = content.get("network", {}) if isinstance(content, dict) else {}
    name = options.model or network.get("name")
    if name is None:
        raise UserError(f"{options.checkpoint} is a bare weights file: name its backbone with --model")
    if network.get("name", name) != name:
        raise CheckpointError(
            f"{options.checkpoint} was trained with --model {network['name']}, not {name}; leave --model out"
        )
    model = build_model(name, options.checkpoint, pool=network.get("pool", options.pool), bn_group=0)
    height, width = options.height or network.get("height", 256), options.width or network.get("width", 128)
    if min(height, width) < 16:
        raise UserError(f"--height {height} --width {width}: images of 16 x 16 pixels and more can be scored")
    stage = options.test_features or network.get("test_features", "bn")
    return model, ImageConfig(height, width, store_gib=options.store_gib, store_dir=options.store_dir), stage


def pick_device(name: str) -> torch.device:
    """The device that a setting names; auto is CUDA where there is one.

    Raises:
        UserError: No such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name} is not a device; give auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported; give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(
            f"--device {name}: {torch.cuda.device_count()} CUDA devices are here; give --device cpu or auto"
        )
    return device


def summarise(history: list[dict[str, Any]], folder: RunFolder, reporter: Reporter) -> None:
    """Print the table of the untrained, last and best network."""
    evaluated = [r for r in history if r.get("mAP") is not None]
    trained = [r for r in evaluated if r["epoch"] > 0]
    if trained:
        best = max(trained, key=lambda r: r["mAP"])
        rows = [("untrained", r) for r in evaluated if r["epoch"] == 0]
        rows += [(f"last, epoch {trained[-1]['epoch']}", trained[-1]), (f"best, epoch {best['epoch']}", best)]
        table = [[name, *(percent(r[k]) for k in SCORES)] for name, r in rows]
        reporter.table("Test set, %", ["network", *SCORES], table)
        reporter.line("best was chosen on the test set; the result to report is last")
        _say_skipped(trained[-1], reporter)
    _say_cost(history, reporter)
    reporter.line(f"run folder: {folder.path}")


def _stopped(state: Training, folder: RunFolder, stop: Exception) -> str:
    again = f"python -m fastreid_al.train --run-dir {shlex.quote(str(folder.path))} --resume"
    if isinstance(stop, QuitAsking):
        why = f" ({stop})" if str(stop) else ""
        return f"stopped asking in epoch {state.epoch + 1}{why}, every answer is kept; go on with: {again}"
    return f"stopped in epoch {state.epoch + 1} after batch {state.step}, all saved; go on with: {again}"


def _say_cost(history: list[dict[str, Any]], reporter: Reporter) -> None:
    asked = [r for r in history if "questions" in r]
    if asked:
        last, verdicts = asked[-1], (v.name.lower() for v in Verdict)
        said = ", ".join(f"{sum(r[f'answered_{v}'] for r in asked)} {v.replace('_', ' ')}" for v in verdicts)
        reporter.line(
            f"{last['questions_total']} questions ({said}), {100 * last['share_total']:.4f} % of all pairs, "
            f"{last['answering_seconds_total']:.0f} s of answering, {sum(r['contradictions'] for r in asked)} contradictions"
        )


def _say_skipped(scores: dict[str, Any], reporter: Reporter) -> None:
    if scores["skipped_queries"]:
        reporter.line(f"{scores['skipped_queries']} queries have no match in the gallery and were skipped")


def _run_path(config: RunConfig) -> Path:
    name = f"{config.dataset}-{config.method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(config.run_dir) if config.run_dir else Path("runs") / name


def _check(config: RunConfig) -> None:
    """Refuse settings that cannot work, before anything slow is done."""
    wanted = {
        "--epochs": config.epochs >= 1,
        "--batch.size": config.batch.size >= 2,
        "--batch.per-identity": 1 <= config.batch.per_identity <= config.batch.size,
        "--batch.iterations": config.batch.iterations >= 0,
        "--image.height": config.image.height >= 16,
        "--image.width": config.image.width >= 16,
        "--network.bn-group": config.network.bn_group == 0 or config.network.bn_group >= 2,
        "--seed": config.seed >= 0,
        "--evaluate-every": config.evaluate_every >= 0,
        "--image.pad": 0 <= config.image.pad <= 64,
        "--image.flip": 0 <= config.image.flip <= 1,
        "--image.erase": 0 <= config.image.erase <= 1,
        "--image.erase-area": 0 < config.image.erase_area[0] <= config.image.erase_area[1] <= 1,
        "--image.erase-aspect": 0 < config.image.erase_aspect[0] <= config.image.erase_aspect[1],
        "--image.crop-area": 0 < config.image.crop_area[0] <= config.image.crop_area[1] <= 1,
        "--image.crop-aspect": 0 < config.image.crop_aspect[0] <= config.image.crop_aspect[1],
        "--image.rotate": 0 <= config.image.rotate <= 180,
        "--style.probability": config.style.probability is None or 0 <= config.style.probability <= 1,
        "--style.band": 0 < config.style.band <= 0.5,
        "--image.jitter": 0 <= config.image.jitter <= 1,
        "--image.store-gib": config.image.store_gib >= 0,
        "--cluster.k1": config.cluster.k1 >= 1,
        "--cluster.k2": 1 <= config.cluster.k2 <= config.cluster.k1,
        "--cluster.min-samples": config.cluster.min_samples >= 1,
        "--cluster.eps-gap": config.cluster.eps_gap >= 0,
        "--cluster.eps": config.cluster.eps - config.cluster.eps_gap >= 0
        and config.cluster.eps + config.cluster.eps_gap < 1,
        "--memory.temperature": config.memory.temperature > 0,
        "--memory.momentum": config.memory.momentum is None or 0 <= config.memory.momentum <= 1,
        "--questions.start": config.questions.start >= 0,
        "--questions.budget": (config.questions.budget or 0) >= 0,
        "--questions.per-epoch": (config.questions.per_epoch or 0) >= 0,
        "--questions.l-max": config.questions.l_max >= 1,
        "--questions.delta": 0 <= config.questions.delta <= 1,
        "--questions.merge-share": 0 <= config.questions.merge_share <= 1,
        "--questions.confirm-merges": config.questions.confirm_merges >= 0,
        "--nnct.threshold": -1 < config.nnct.threshold < 1,
        "--nnct.at-least": config.nnct.at_least >= 1,
        "--nnct.lambda-n": config.nnct.lambda_n >= 0,
        "--nnct.delta": config.nnct.delta >= 0,
        "--nnct.hard-ratio": 0 <= config.nnct.hard_ratio <= 1,
        "--nnct.single-label": config.nnct.single_label >= 0,
        "--nnct.momentum": 0 <= config.nnct.momentum <= 1,
        "--nnct.capacity": config.nnct.capacity >= 1,
        "--neighbours-k": 0 <= config.neighbours_k <= 1024,
        "--adaptation.weight": 0 <= config.adaptation.weight <= 1,
        "--optimizer.momentum": 0 <= config.optimizer.momentum < 1,
        "--optimizer.backbone-lr": config.optimizer.backbone_lr is None or config.optimizer.backbone_lr > 0,
        "--optimizer.lr": config.optimizer.lr > 0,
        "--optimizer.step": config.optimizer.step >= 1,
        "--optimizer.gamma": config.optimizer.gamma > 0,
        "--optimizer.weight-decay": config.optimizer.weight_decay >= 0,
    }
    wrong = [option for option, fine in wanted.items() if not fine]
    if wrong:
        raise UserError(f"{wrong[0]} is out of range; see its meaning with --help")
    if config.source is not None and config.method == "supervised":
        raise UserError("--source is for --method ucal and nnct; leave it out with supervised")
    if config.method == "ucal":
        try:
            check_backend(config.cluster.dbscan, name="--cluster.dbscan")
            if config.cluster.neighbours == "ivf":
                check_library(pick_device(config.device).type)
        except ValueError as error:
            raise UserError(str(error)) from error


def _load(config: RunConfig | EvaluationConfig, reporter: Reporter) -> ImageSet:
    with reporter.progress("drawing", 0) as update:
        images = load(config.dataset, config.data_root, synthetic=config.synthetic, verbose=False, on_progress=update)
    for line in describe(images):
        reporter.line(line)
    return images


def _load_source(config: RunConfig, images: ImageSet, reporter: Reporter) -> ImageSet | None:
    """The labelled source without its test images, which nothing reads; None where the run has no source."""
    if config.source is None:
        return None
    options = {"--data-root": "--source-root", "--synthetic": "--adaptation.synthetic"}
    try:
        with reporter.progress("drawing the source", 0) as update:
            drawn = config.adaptation.synthetic
            found = load(config.source, config.source_root, synthetic=drawn, verbose=False, on_progress=update)
    except DataError as error:
        text = str(error)
        for target, source in options.items():
            text = text.replace(target, source)
        raise DataError(f"--source {config.source}: {text}") from error
    first, *counts = describe(found)
    for line in (f"source: {first}", *counts):
        reporter.line(line)
    if found.root.resolve() == images.root.resolve():
        other = "--adaptation.synthetic.seed" if config.source == "synthetic" else "--source or --source-root"
        raise DataError(f"the source is the set that is trained on, {found.root}; name another with {other}")
    _source(found.train)
    return replace(found, query=[], gallery=[])


def _source(records: list[Record]) -> Source:
    try:
        return Source(*identities_and_cameras(records))
    except ValueError as error:
        raise DataError(str(error)) from error


def _decode_source(images: ImageSet, config: RunConfig, folder: RunFolder, reporter: Reporter) -> _Decoded:
    store, records = decode_records(images.train, "source", config.image, folder.path, reporter)
    source = _source(records)
    if len(source) < config.batch.size and config.method != "nnct":
        reporter.warn(
            f"{len(source)} images of the source are fewer than a batch of {config.batch.size}: batches repeat images"
        )
    return _Decoded(images, store, records, source)


def _model(config: RunConfig, device: torch.device, fresh: bool = True) -> ReIdNet:
    torch.manual_seed(config.seed)
    # A resumed run takes its weights from the checkpoint, wherever it first got them.
    weights = config.weights if fresh else "none"
    try:
        network = config.network
        domain_bn = network.domain_bn and config.source is not None
        model = build_model(config.model, weights, pool=network.pool, bn_group=network.bn_group, domain_bn=domain_bn)
    except ValueError as error:
        raise UserError(f"--network: {error}") from error
    return model.to(device).to(memory_format=torch.channels_last)


def _decode(
    images: ImageSet, config: RunConfig, folder: RunFolder, reporter: Reporter
) -> tuple[PixelStore, list[Record]]:
    store, records = decode_records(images.train, "train", config.image, folder.path, reporter)
    if len(records) < 2:
        raise DataError(f"{images.root}: {len(records)} readable training images; a run needs many more")
    if len(records) < config.cluster.k1 and config.method == "ucal":
        reporter.warn(
            f"{len(records)} images are fewer than --cluster.k1 {config.cluster.k1}: lists are as long as the set"
        )
    if len(records) < config.batch.size and config.method != "nnct":
        reporter.warn(f"{len(records)} images are fewer than a batch of {config.batch.size}: batches repeat images")
    return store, records


def _training(
    config: RunConfig,
    model: ReIdNet,
    images: ImageSet,
    store: PixelStore,
    records: list[Record],
    questions: Questions | None,
    source: _Decoded | None,
    style: CameraStyle | None,
) -> Training:
    settings = config.optimizer
    method = _method(config, records, questions, None if source is None else source.source, model.features)
    layers = method.layers().to(next(model.parameters()).device)
    optimizer = make_optimizer(model, settings, layers)
    data = data_fingerprint(images, records, store.digests)
    if source is not None:
        beside = data_fingerprint(source.images, source.records, source.store.digests)
        data |= {f"source: {name}": what for name, what in beside.items()}
    if style is not None:
        data |= style.digests
    return Training(
        config,
        model,
        method,
        optimizer,
        torch.optim.lr_scheduler.StepLR(optimizer, settings.step, settings.gamma),
        Augment(config.image, config.seed, style),
        data,
    )


def _style(
    config: RunConfig,
    images: ImageSet,
    records: list[Record],
    store: PixelStore,
    folder: RunFolder,
    reporter: Reporter,
) -> CameraStyle | None:
    """The camera styles that training images are drawn in."""
    with reporter.progress("camera styles", len(records)) as update:
        style = camera_style(
            config.camstyle, images, records, store, config.style, config.image, folder.path, reporter.warn, update
        )
    if style is not None:
        reporter.line(style.describe())
    return style


def _method(
    config: RunConfig, records: list[Record], questions: Questions | None, source: Source | None, features: int
) -> Method:
    if config.method == "nnct":
        return _nnct(config, len(records), source, features)
    identities, cameras = identities_and_cameras(records)
    try:
        if config.method == "supervised":
            return Supervised(identities, cameras, config.batch, config.memory, config.seed)
        return UCAL(cameras, config.cluster, config.batch, config.memory, config.seed, questions, source)
    except ValueError as error:
        raise UserError(str(error)) from error


def _nnct(config: RunConfig, n: int, source: Source | None, features: int) -> NNCT:
    weight = config.adaptation.weight
    classifier = None if source is None else SourceClassifier(source, features, weight, config.seed)
    try:
        return NNCT(n, config.neighbours_k, config.nnct, config.batch, config.epochs, config.seed, classifier)
    except ValueError as error:
        raise UserError(str(error)) from error
