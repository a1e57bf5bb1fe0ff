"""Put a run together from its configuration: images, pixels, network, method, loop."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..active import Questions
from ..answers import QuitAsking
from ..config import RunConfig
from ..data import ImageSet, describe, load
from ..data.augment import Augment
from ..data.camera_style import CameraStyle, camera_style, match_copies, nothing_to_draw
from ..data.fingerprint import data_fingerprint
from ..data.loader import BatchLoader
from ..data.pixels import PixelStore
from ..data.records import STYLE_COPIES, UNKNOWN, Record, count
from ..data.samplers import iterations_of
from ..distributed.launch import (
    device_of_rank,
    joined,
    may_restart,
    require_single_process,
    restarted,
)
from ..distributed.world import SINGLE_PROCESS, World
from ..engine.console import Reporter
from ..engine.curves import draw_curves
from ..engine.extract import Evaluator, decode_records, identities_and_cameras
from ..engine.loop import TrainingLoop
from ..engine.method import Method
from ..engine.network import Network, choose_algorithms
from ..engine.optimizer import make_optimizer
from ..engine.resume import check_resumable, holds_run, last_state
from ..engine.run_folder import RunFolder
from ..engine.stop_signal import Interrupted, StopSignal
from ..engine.training import Training
from ..errors import DataError, UserError
from ..methods.adaptation import Source, SourceClassifier
from ..methods.nnct import NNCT
from ..methods.supervised import Supervised
from ..methods.ucal import UCAL
from ..models import ReIdNet, build_model
from .agreement import check_same_images, check_same_settings
from .checks import check_parts, check_settings, load_images, pick_device, warn_of_settings
from .evaluate import summarise
from .questions import check_questions, open_questions


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


def run_training(
    config: RunConfig,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    world: World | None = None,
) -> Finished:
    """Train as configured, from the beginning or from the run folder's last checkpoint.

    Args:
        config: The configuration.
        resume: Continue the run in `config.run_dir`; where it has no checkpoint yet, begin.
        reporter: Says how it goes.
        world: The ranks of the run; those that torchrun started, or this process alone, when not given.

    Raises:
        UserError: What stands in the way, in one line.
        Interrupted: A signal asked the run to stop; it can be resumed.
    """
    reporter = reporter or Reporter()
    device = pick_device(config.device if world else device_of_rank(config.device))
    if world is not None:
        return _run(config, resume, reporter, world, device)
    if may_restart() and not config.run_dir:
        raise UserError(
            "--max-restarts: name the run's folder with --run-dir, where a restart finds its checkpoint"
        )
    with joined(device, raised_together=(Interrupted,)) as (world, how):
        if how is not None and world.is_first:
            reporter.line(how)
        return _run(config, resume or restarted(), reporter, world, device)


def _run(
    config: RunConfig, resume: bool, reporter: Reporter, world: World, device: torch.device
) -> Finished:
    reporter = reporter if world.is_first else Reporter(Console(quiet=True))
    check_settings(config)
    check_same_settings(world, config, resume)
    folder = RunFolder(
        world.all_gather_objects(_run_path(config))[0], world.is_first, config.tensorboard
    )
    if world.any_true(holds_run(folder) and not resume):
        raise UserError(
            f"{folder.path} already holds a run: continue it with --resume, or name another with --run-dir"
        )
    saved = last_state(folder, world) if resume else None
    if saved is not None:
        check_resumable(saved, config)
    if saved is None or world.size > 1:
        check_parts(config, world.size)
    warn_of_settings(config, reporter)
    choose_algorithms(config.engine.deterministic)
    images = world.first_then_rest(lambda: load_images(config, reporter))
    check_questions(config, all(r.identity != UNKNOWN for r in images.train))
    source_images = world.first_then_rest(lambda: _load_source(config, images, reporter))
    stop_signal = StopSignal(ends_phases=world.size == 1)
    model = _model(config, device, fresh=saved is None)
    if config.method == "nnct":
        # Refuse what the whole set cannot have before it is decoded; the method itself is made of what can be read.
        known = None if source_images is None else _source(source_images.train)
        _nnct(config, len(images.train), known, model.features, world)
    folder.prepare()
    store, records = _decode(images, config, folder, reporter, world)
    if len(records) < world.size:
        raise UserError(
            f"{world.size} ranks are more than the {len(records)} training images: start torchrun with fewer processes"
        )
    source = (
        None
        if source_images is None
        else _decode_source(source_images, config, folder, reporter, world)
    )
    identities = identities_and_cameras(records)[0]
    with open_questions(
        config, images, records, store.digests, folder.path, reporter, stop_signal, world
    ) as questions:
        style = _style(config, images, records, store, folder, reporter, world)
        state = _training(
            config, model, images, store, records, questions, source, style, world, stop_signal
        )
        check_same_images(world, state.data)
        if saved is not None:
            state.load_state_dict(saved)
            reporter.line(f"resuming {folder.path} after epoch {state.epoch}, batch {state.step}")
            del saved
        folder.describe(config)
        loader = BatchLoader(store, device, config.image.place, reporter.warn)
        network = Network(model, config.engine, device, reporter.warn)
        part, step = config.batch.size // world.size, max(config.network.bn_group, 2)
        height, width = config.image.height, config.image.width
        network.prove(part, height, width, step, source is not None, loader.spare, world)
        network.join(world)
        try:
            TrainingLoop(
                state,
                network,
                loader,
                folder,
                reporter,
                stop_signal,
                Evaluator(
                    images,
                    config.image,
                    folder.path,
                    reporter,
                    config.network.test_features,
                    config.engine,
                    world,
                    stop_signal,
                )
                if images.query
                else None,
                identities if (identities != UNKNOWN).all() else None,
                None
                if source is None
                else BatchLoader(source.store, device, config.image.place, reporter.warn),
            ).run()
        except (Interrupted, QuitAsking) as stop:
            reporter.line(_stopped(state, folder, stop, world))
            if isinstance(stop, QuitAsking):
                raise Interrupted(0) from stop
            raise
    if world.is_first:
        draw_curves(state.history, folder.figure)
        summarise(state.history, folder, reporter)
    return Finished(folder.path, state.history)


def dry_run(config: RunConfig, reporter: Reporter | None = None) -> None:
    """Read the image set, build the network, and say what a run would do; no run folder is made.

    Raises:
        UserError: What would stand in the way, in one line.
    """
    require_single_process("a dry run")
    reporter = reporter or Reporter()
    check_settings(config)
    check_parts(config, 1)
    warn_of_settings(config, reporter)
    device = pick_device(config.device)
    images = load_images(config, reporter)
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
        w = config.adaptation.weight
        beside = (
            f"loss {1 - w:g} x source + {w:g} x target"
            if config.method == "nnct"
            else "their identities are classes"
        )
        where = "BatchNorms of their own" if model.switch is not None else "shared BatchNorms"
        reporter.line(
            f"each batch has as many images of the source {source.name} again ({count(source.train).identities} identities): "
            f"{beside}, {where}; {m * pixels / 2**30:.2f} GiB of pixels"
        )
    if config.camstyle != "none":
        reporter.line(_styles(config, images))
    if config.method == "nnct":
        known = None if source is None else _source(source.train)
        labels = _nnct(config, n, known, model.features).label_memory
        single, more = config.nnct.single_label, config.epochs - config.nnct.single_label
        reporter.line(
            f"label memory (PLMB) {labels.nbytes / 1e6:.1f} MB as {labels.layout}; single labels in the first {single} epochs, "
            f"then labels above {config.nnct.threshold:g}, and those of the {config.neighbours_k} nearest"
            if more > 0
            else f"single labels in all epochs: --nnct.single-label {single} is not less than --epochs {config.epochs}"
        )
    reporter.line(f"a run would write into {_run_path(config)}; none was started")


def _styles(config: RunConfig, images: ImageSet) -> str:
    """What a dry run says of camera styles."""
    if missing := nothing_to_draw(config.camstyle, images, images.train):
        return missing
    if config.camstyle != "files":
        return f"images are drawn in camera styles ({config.camstyle})"
    copies = len(match_copies(images.root / STYLE_COPIES, images.train)[0])
    size = 3 * config.image.height * config.image.width * copies / 2**30
    place = "memory" if size <= config.image.store_gib else "a memory-mapped file"
    return f"images are drawn in camera styles, from {copies:,} copies: {size:.2f} GiB in {place}"


def _stopped(state: Training, folder: RunFolder, stop: Exception, world: World) -> str:
    again = f"python -m fastreid_al.train --run-dir {shlex.quote(str(folder.path))} --resume"
    if world.size > 1:
        again = f"torchrun, on any number of ranks, and -m {again.removeprefix('python -m ')}"
    if isinstance(stop, QuitAsking):
        why = f" ({stop})" if str(stop) else ""
        return f"stopped asking in epoch {state.epoch + 1}{why}, every answer is kept; go on with: {again}"
    return f"stopped in epoch {state.epoch + 1} after batch {state.step}, all saved; go on with: {again}"


def _run_path(config: RunConfig) -> Path:
    name = f"{config.dataset}-{config.method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(config.run_dir) if config.run_dir else Path("runs") / name


def _load_source(config: RunConfig, images: ImageSet, reporter: Reporter) -> ImageSet | None:
    """The labelled source without its test images, which nothing reads; None where the run has no source."""
    if config.source is None:
        return None
    options = {"--data-root": "--source-root", "--synthetic": "--adaptation.synthetic"}
    try:
        with reporter.progress("drawing the source", 0) as update:
            drawn = config.adaptation.synthetic
            found = load(
                config.source,
                config.source_root,
                synthetic=drawn,
                verbose=False,
                on_progress=update,
            )
    except DataError as error:
        text = str(error)
        for target, source in options.items():
            text = text.replace(target, source)
        raise DataError(f"--source {config.source}: {text}") from error
    first, *counts = describe(found)
    for line in (f"source: {first}", *counts):
        reporter.line(line)
    if config.source == config.dataset == "synthetic" and drawn.seed == config.synthetic.seed:
        raise DataError(
            f"the source and the set that is trained on show the same people: both are drawn with seed {drawn.seed}; "
            "give another --adaptation.synthetic.seed"
        )
    shared = {r.path.resolve() for r in found.train} & {r.path.resolve() for r in images.train}
    if shared:
        raise DataError(
            f"{len(shared)} training images of the source are those that are trained on (first: {min(shared)}); "
            "name another with --source or --source-root"
        )
    _source(found.train)
    return replace(found, query=[], gallery=[])


def _source(records: list[Record]) -> Source:
    try:
        return Source(*identities_and_cameras(records))
    except ValueError as error:
        raise DataError(str(error)) from error


def _decode_source(
    images: ImageSet, config: RunConfig, folder: RunFolder, reporter: Reporter, world: World
) -> _Decoded:
    store, records = decode_records(
        images.train, "source", config.image, folder.path, reporter, world
    )
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
        model = build_model(
            config.model,
            weights,
            pool=network.pool,
            bn_group=network.bn_group,
            domain_bn=domain_bn,
            osnet_fc=network.osnet_fc,
        )
    except ValueError as error:
        raise UserError(f"--network: {error}") from error
    return model.to(device).to(memory_format=torch.channels_last)


def _decode(
    images: ImageSet, config: RunConfig, folder: RunFolder, reporter: Reporter, world: World
) -> tuple[PixelStore, list[Record]]:
    store, records = decode_records(
        images.train, "train", config.image, folder.path, reporter, world
    )
    if len(records) < 2:
        raise DataError(
            f"{images.root}: {len(records)} readable training images; a run needs many more"
        )
    if len(records) < config.cluster.k1 and config.method == "ucal":
        reporter.warn(
            f"{len(records)} images are fewer than --cluster.k1 {config.cluster.k1}: lists are as long as the set"
        )
    if len(records) < config.batch.size and config.method != "nnct":
        reporter.warn(
            f"{len(records)} images are fewer than a batch of {config.batch.size}: batches repeat images"
        )
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
    world: World,
    stop: StopSignal,
) -> Training:
    settings = config.optimizer
    known = None if source is None else source.source
    method = _method(config, records, questions, known, model.features, world, stop)
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
        world,
    )


def _style(
    config: RunConfig,
    images: ImageSet,
    records: list[Record],
    store: PixelStore,
    folder: RunFolder,
    reporter: Reporter,
    world: World,
) -> CameraStyle | None:
    """The camera styles that training images are drawn in."""
    with reporter.progress("camera styles", len(records)) as update:
        style = camera_style(
            config.camstyle,
            images,
            records,
            store,
            config.style,
            config.image,
            folder.path,
            reporter.warn,
            update,
            world,
        )
    if style is not None:
        reporter.line(style.describe())
    return style


def _method(
    config: RunConfig,
    records: list[Record],
    questions: Questions | None,
    source: Source | None,
    features: int,
    world: World,
    stop: StopSignal,
) -> Method:
    if config.method == "nnct":
        return _nnct(config, len(records), source, features, world)
    identities, cameras = identities_and_cameras(records)
    try:
        if config.method == "supervised":
            return Supervised(identities, cameras, config.batch, config.memory, config.seed, world)

        settings = config.cluster, config.batch, config.memory, config.seed
        return UCAL(cameras, *settings, questions, source, world, stop.check)
    except ValueError as error:
        raise UserError(str(error)) from error


def _nnct(
    config: RunConfig, n: int, source: Source | None, features: int, world: World = SINGLE_PROCESS
) -> NNCT:
    weight = config.adaptation.weight
    classifier = None if source is None else SourceClassifier(source, features, weight, config.seed)
    try:
        return NNCT(
            n,
            config.neighbours_k,
            config.nnct,
            config.batch,
            config.epochs,
            config.seed,
            classifier,
            world,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
