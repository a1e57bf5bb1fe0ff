"""Runs a training: check, load, build, decode, restore, train."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..active.strategies import Strategy
from ..answers.question import AnyAnnotator, QuitAsking
from ..config import RunConfig
from ..data import ImageSet
from ..data.loader import BatchLoader
from ..distributed.launch import device_of_rank, joined, may_restart, restarted
from ..distributed.world import World
from ..engine.console import Reporter
from ..engine.curves import draw_curves
from ..engine.epoch_labels import EpochLabelsFolder
from ..engine.extract import Evaluator, extract_features, without_match
from ..engine.loop import TrainingLoop
from ..engine.network import Network, choose_algorithms
from ..engine.resume import check_resumable, holds_run, last_state
from ..engine.stop_signal import Interrupted
from ..engine.training import Training
from ..errors import SettingError, UserError, counted
from ..methods.ucal import UCAL
from ..metrics import Ranking
from ..models import BackboneBuilder
from .agreement import check_same_images, check_same_settings
from .build import build_network, build_training, check_method
from .checks import (
    check_parts,
    check_run_folder,
    check_settings,
    pick_device,
    warn_of_settings,
    working_on,
)
from .context import Extensions, RunContext, make_context
from .data import Dataset, all_labelled, decode, load_source, load_target
from .find_labels import (
    LABELS_FILE,
    Labelled,
    Saved,
    earlier_numbers,
    find_labels,
    label_stage,
    write_run_labels,
)
from .questions import asks, check_ledger, check_questions, open_questions
from .summary import summarise


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Args:
        folder: Its folder.
        history: One record an epoch, as in metrics.jsonl; the untrained network first when it was
            evaluated.
    """

    folder: Path
    history: list[dict[str, Any]]


def run_training(
    config: RunConfig,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    world: World | None = None,
    strategy: Strategy | None = None,
    annotator: AnyAnnotator | None = None,
    dataset: ImageSet | None = None,
    model: BackboneBuilder | None = None,
) -> Finished:
    """Train as configured, from the beginning or from the last checkpoint in the run folder.

    Args:
        config: The configuration.
        resume: Continue the run in `config.run_dir`, if it has a checkpoint.
        reporter: Prints lines and progress.
        world: The processes of the run. When not given, those that torchrun started, or this one.
        strategy: Which pairs to ask about, in place of `config.ask`.
        annotator: Who answers, in place of `config.annotator`: at once, or people who answer
            published questions (`QueueAnnotator`).
        dataset: The image set, in place of `config.dataset`.
        model: Builds the backbone, in place of `config.model`.

    Returns:
        The folder and the history of the run.

    Raises:
        UserError: The run cannot start or continue; the message says why and what to do.
        Interrupted: A signal asked the run to stop; it can be resumed.
    """
    resume = resume or (world is None and restarted())
    extensions = Extensions(strategy, annotator, dataset, model)
    with _started(config, reporter, world) as (world, device):
        context = make_context(config, device, world, reporter, extensions)
        with _locked(context):
            return _run(context, resume)


def _run(context: RunContext, resume: bool) -> Finished:
    """Train a run whose folder this process has locked, where it exists already."""
    saved = _check(context, resume)
    context.world.compute_on_first(partial(check_ledger, context, saved))
    images = load_target(context)
    if saved is None and context.extensions.dataset is None:
        check_run_folder(context.folder.path, images)
    check_questions(context, all_labelled(images.train))
    source_images = load_source(context, images)
    network = build_network(context, fresh=saved is None)
    check_method(context, images, source_images, network.features)
    context.world.first_then_rest(context.folder.prepare)
    if saved is None:
        # Another process may have trained in the folder since it was looked at.
        _refuse_other_run(context)
    target = decode(context, images, "train")
    source = None if source_images is None else decode(context, source_images, "source")
    with open_questions(context, target, saved) as questions:
        state = build_training(context, network, target, source, questions)
        _restore(context, state, saved)
        del saved  # as large as the state itself
        _train(context, state, target, source)
    return _finish(context, state)


@contextmanager
def _locked(context: RunContext) -> Iterator[None]:
    """Hold the lock of the run folder; of several processes the first one does. All call it."""
    try:
        context.world.compute_on_first(context.folder.lock)
        yield
    finally:
        context.folder.unlock()


def _refuse_other_run(context: RunContext) -> None:
    """Refuse a folder that holds a run already. All processes call it."""
    if context.world.any_true(holds_run(context.folder)):
        raise UserError(
            f"{context.folder.path} already holds a run: continue it with `resume`, "
            "or name another folder with `run_dir`"
        )


@contextmanager
def _started(
    config: RunConfig, reporter: Reporter | None, world: World | None
) -> Iterator[tuple[World, torch.device]]:
    """Join the other processes of the run, where torchrun started this one.

    Args:
        config: The configuration, for the device.
        reporter: Prints how the processes communicate.
        world: The processes, where they have joined already.

    Yields:
        The processes of the run, and the device of this one.
    """
    if world is not None:
        device = pick_device(config.device)
        with working_on(device):
            yield world, device
        return
    device = pick_device(device_of_rank(config.device))
    if may_restart() and not config.run_dir:
        raise SettingError(
            "run_dir",
            None,
            "the run's folder where torchrun may restart the ranks",
            "a restart finds its checkpoint there",
        )
    with working_on(device), joined(device, raised_together=(Interrupted,)) as (world, line):
        if line is not None and world.is_first:
            (reporter or Reporter()).line(line)
        yield world, device


def _check(context: RunContext, resume: bool) -> dict[str, Any] | None:
    """Check the settings, and read the checkpoint to continue from. All processes call it.

    Args:
        context: The run.
        resume: Whether the run may continue from a checkpoint.

    Returns:
        The state of the checkpoint; None for a run that starts from the beginning.

    Raises:
        UserError: The settings cannot work, or the checkpoint does not fit them.
    """
    config = context.config
    world = context.world
    check_settings(config, context.extensions.keys)
    check_same_settings(world, config, resume)
    if not resume:
        _refuse_other_run(context)
    saved = last_state(context.folder, world) if resume else None
    if saved is not None:
        check_resumable(saved, config)
    if saved is None or world.size > 1:
        check_parts(config, world.size)
    warn_of_settings(config, context.reporter, context.extensions.keys)
    choose_algorithms(config.engine.deterministic)
    return saved


def _restore(context: RunContext, state: Training, saved: dict[str, Any] | None) -> None:
    """Restore the state of a checkpoint, and describe the run in its folder. All processes call it.

    Args:
        context: The run.
        state: The state of the run at its beginning.
        saved: The state of the checkpoint; None for a run that starts from the beginning.
    """
    check_same_images(context.world, state.data)
    if saved is not None:
        state.load_state_dict(saved)
        context.reporter.line(
            f"resuming {context.folder.path} after epoch {state.epoch}, batch {state.step}"
        )
        if state.epoch >= context.config.epochs:
            trained = counted(state.epoch, "epoch is", "epochs are")
            context.reporter.line(
                f"{trained} trained already and `epochs` is {context.config.epochs}: nothing is "
                "trained"
            )
    _report_precision(context, saved)
    context.folder.describe(context.config, context.precision)


def _report_precision(context: RunContext, saved: dict[str, Any] | None) -> None:
    """Print in which precision the run computes, and warn where that has changed.

    Args:
        context: The run.
        saved: The state of the checkpoint; None for a run that starts from the beginning.
    """
    precision = context.precision
    context.reporter.line(precision.describe())
    before = None if saved is None else saved.get("precision")
    if saved is not None and before is None and context.device.type == "cpu":
        # Checkpoints of earlier versions do not say it; `auto` was float32 on a CPU.
        before = "float32" if context.config.engine.precision == "auto" else None
    if before is not None and before != precision.training:
        context.reporter.warn(
            f"the run was trained in {before} until here; set `engine.precision` {before} to go on "
            "as before"
        )


def _train(context: RunContext, state: Training, target: Dataset, source: Dataset | None) -> None:
    """Train to the last epoch.

    Args:
        context: The run.
        state: Its state.
        target: The images to train on.
        source: The labelled source, where the run has one.

    Raises:
        Interrupted: A signal asked the run to stop, or the annotator left; the state is saved.
    """
    config = context.config
    loader = _loader(context, target)
    network = Network(
        state.model,
        config.engine,
        context.device,
        context.reporter.warn,
        context.reporter.line,
        context.precision,
    )
    network.prove(
        config.batch.size // context.world.size,
        config.image.height,
        config.image.width,
        max(config.network.bn_group, 2),
        source is not None,
        loader.memory_hint,
        context.world,
    )
    network.join(context.world)
    loop = TrainingLoop(
        state,
        network,
        loader,
        context.folder,
        context.reporter,
        context.stop,
        _evaluate(context, target),
        target.known_identities,
        None if source is None else _loader(context, source),
        target.cameras,
        _keep_labels(context, state, target),
    )
    try:
        loop.run()
        _write_labels(context, state, target, network, loader)
    except Interrupted:
        context.reporter.line(_stopped(context, state))
        raise
    except QuitAsking as left:
        context.reporter.line(_stopped_asking(context, state, left))
        raise Interrupted(0) from left


def _keep_labels(
    context: RunContext, state: Training, target: Dataset
) -> Callable[[int], None] | None:
    """Return what keeps the labels of an epoch with questions; None in a run without any."""
    method = state.method
    if not (asks(context) and context.world.is_first and isinstance(method, UCAL)):
        return None
    kept = EpochLabelsFolder(context.folder.path)
    begun: list[int] = []

    def write(epoch: int) -> None:
        if not begun:
            root = target.images.root
            kept.write_names([r.path.relative_to(root).as_posix() for r in target.records])
            # A run that went back to an older checkpoint makes later epochs anew.
            kept.remove_from(epoch)
            begun.append(epoch)
        questions = method.questions.state_dict() or {}
        kept.write(epoch, method.labels, int(questions.get("position", 0)))

    def keep(epoch: int) -> None:
        context.reporter.attempt(f"the labels of epoch {epoch}", lambda: write(epoch))

    return keep


def _loader(context: RunContext, dataset: Dataset) -> BatchLoader:
    return BatchLoader(
        dataset.store, context.device, context.config.image.place, context.reporter.warn
    )


def _evaluate(context: RunContext, target: Dataset) -> Callable[[Network], Ranking] | None:
    """Return what scores the network on the test images; None when the set has none."""
    images = target.images
    if not images.query:
        return None
    same_camera = context.config.evaluation.same_camera
    evaluator = Evaluator(
        images,
        context.config.image,
        context.folder.path,
        context.reporter,
        context.config.network.test_features,
        context.config.engine,
        context.world,
        context.stop,
        same_camera,
        frozenset(target.store.digests),
    )

    def evaluate(network: Network) -> Ranking:
        ranking = evaluator(network)
        if ranking.queries == 0:
            context.reporter.warn(without_match(images, same_camera))
        return ranking

    return evaluate


def _write_labels(
    context: RunContext, state: Training, target: Dataset, network: Network, loader: BatchLoader
) -> None:
    """Write the identities that a finished run found; a failure of it is a warning.

    All processes call it. Each extracts its own images, and the first one finds the identities
    while the others wait idle.
    """
    reporter = context.reporter
    world = context.world
    own: list[Tensor] = []

    def extract() -> None:
        with reporter.progress("extracting", len(loader)) as update:
            engine, stage = context.config.engine, label_stage(context.config)
            own.append(extract_features(network, loader, engine, update, stage, world=world))

    extracted = reporter.attempt(LABELS_FILE, extract)
    if world.any_true(not extracted):
        if extracted:
            reporter.warn(f"{LABELS_FILE} could not be made (another rank failed)")
        return
    features = world.gather_rows_to_first(own[0])  # (n, D) on the first process

    def write() -> None:
        method = state.method
        saved = Saved(method.threshold if isinstance(method, UCAL) else None)
        found = Labelled(
            context.config,
            context.folder.path,
            target.images,
            features,
            target.records,
            target.store.digests,
            saved,
        )
        earlier = earlier_numbers(None, context.folder.path)
        table = find_labels(found, earlier, reporter)
        write_run_labels(table, earlier, context.folder.path)

    world.compute_on_first(lambda: reporter.attempt(LABELS_FILE, write))


def _stopped(context: RunContext, state: Training) -> str:
    return (
        f"stopped in epoch {state.epoch + 1} after batch {state.step}, all saved; "
        f"{_how_to_resume(context)}"
    )


def _stopped_asking(context: RunContext, state: Training, left: QuitAsking) -> str:
    reason = f" ({left})" if str(left) else ""
    return (
        f"stopped asking in epoch {state.epoch + 1}{reason}, every answer is kept; "
        f"{_how_to_resume(context)}"
    )


def _how_to_resume(context: RunContext) -> str:
    folder = shlex.quote(str(context.folder.path))
    command = f"-m fastreid_al.train `run_dir` {folder} `resume`"
    if context.world.size > 1:
        return f"continue with: torchrun, on any number of ranks, and {command}"
    return f"continue with: python {command}"


def _finish(context: RunContext, state: Training) -> Finished:
    """Draw the curves of a finished run, and print its summary."""
    if context.world.is_first:
        figure = partial(draw_curves, state.history, context.folder.figure)
        context.reporter.attempt("the figure of the curves", figure)
        summarise(state.history, context.folder, context.reporter)
    return Finished(context.folder.path, state.history)
