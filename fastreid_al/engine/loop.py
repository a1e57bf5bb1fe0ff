"""The training loop: thin, and blind to the method it runs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import RunConfig
from ..data.loader import BatchLoader, prefetch, to_device_async
from ..distributed.world import World
from ..errors import TrainingError
from ..metrics import Ranking, pair_scores
from ..models import Domain, update_running
from .checkpoint import save_checkpoint
from .clock import Clock
from .console import Reporter, RunFolder, memory_in_use, percent, ranking_metrics
from .extract import extract_features
from .network import Network
from .profile import Profile
from .training import Training


class Interrupted(Exception):  # noqa: N818
    """A signal asked the run to stop; it has saved its state."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@dataclass
class _Run:
    """What the functions of the loop share.

    Args:
        state: The run.
        network: The network as it is run.
        loader: Pixels of the training images.
        source: Pixels of the source's training images.
        folder: Takes checkpoints and metrics.
        reporter: Says how it goes.
        evaluate: Scores the network.
        clock: Where the time goes.
        profile: Traces some steps.
    """

    state: Training
    network: Network
    loader: BatchLoader
    source: BatchLoader | None
    folder: RunFolder
    reporter: Reporter
    evaluate: Callable[[Network], Ranking] | None
    clock: Clock
    profile: Profile

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.network.device


def train(
    state: Training,
    network: Network,
    loader: BatchLoader,
    folder: RunFolder,
    reporter: Reporter,
    evaluate: Callable[[Network], Ranking] | None = None,
    identities: Tensor | None = None,
    source: BatchLoader | None = None,
) -> None:
    """Train from wherever the state stands to the last epoch.

    Args:
        state: The run.
        network: Its network, as it is run.
        loader: Pixels of the training images.
        folder: Takes checkpoints and metrics.
        reporter: Says how it goes.
        evaluate: Scores the network; None when the set has nothing to evaluate on.
        identities: (n,) true identities, for the log alone; None when unknown.
        source: Pixels of the source's training images, where the method trains with a source.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the state after the step under way, or before the extraction, is saved.
        TrainingError: The loss or the features are not finite, there is nothing to contrast, or the device has no room; the
            last checkpoint is intact.
        CheckpointError: A checkpoint could not be written; the one before it is intact.
    """
    config, device = state.config, network.device
    folder.rewrite_metrics(state.history)
    clock = Clock(device)
    profile = Profile(folder, config.profile, device)
    run = _Run(state, network, loader, source, folder, reporter, evaluate, clock, profile)

    def extract(domain: Domain = "target") -> Tensor:
        pixels, what = (
            (source, "extracting the source") if domain == "source" else (loader, "extracting")
        )
        assert pixels is not None
        with clock("extraction"), reporter.progress(what, len(pixels)) as update:
            return extract_features(
                network, pixels, config.engine, update, domain=domain, world=state.world
            )

    with _stop_signals(reporter, state.world) as stop:
        if (
            evaluate is not None
            and config.evaluate_untrained
            and not state.history
            and not state.pending
        ):
            _record(run, {"epoch": 0, **_scores(run)})
        if state.pending:
            _finish_epoch(run)
        for epoch in range(state.epoch, config.epochs):
            start = time.perf_counter()
            if state.step == 0:
                state.metrics = state.method.label_images(epoch, extract)
                if state.method.labels_before_questions is not None and identities is not None:
                    scores = pair_scores(state.method.labels_before_questions, identities)
                    state.metrics |= {f"drafted_pair_{k}": v for k, v in scores._asdict().items()}
            labelled = time.perf_counter()
            begun = state.step
            try:
                _train_epoch(run, stop)
            except torch.OutOfMemoryError as error:
                raise TrainingError(_no_room(run)) from error
            state.pending = _epoch_record(state, identities)
            trained = time.perf_counter()
            state.pending["seconds"] = _seconds(
                state.pending, clock, labelled - start, trained - labelled
            )
            images = (state.step - begun) * config.batch.size * (1 if source is None else 2)
            state.pending["speed"] = {
                "images_per_second": round(images / (trained - labelled), 2),
                **memory_in_use(device, state.world),
            }
            state.epoch, state.step, state.loss = epoch + 1, 0, torch.zeros((), dtype=torch.float64)
            state.scheduler.step()
            _finish_epoch(run)
            if state.world.any_true(bool(stop.signum)) and epoch + 1 < config.epochs:
                raise Interrupted(stop.signum or signal.SIGTERM)
    profile.write(state.history)


def _seconds(
    record: dict[str, Any], clock: Clock, labels: float, training: float
) -> dict[str, float]:
    """Seconds of the epoch: of its two parts, and of the phases inside them."""
    phases = clock.read()
    if questions := record.pop("seconds_questions", 0.0):
        phases["questions"] = questions
    rest = labels - phases.get("extraction", 0.0) - phases.get("questions", 0.0)
    seconds = {"labels": labels, "training": training, "clustering": max(0.0, rest), **phases}
    return {name: round(value, 3) for name, value in seconds.items()}


def _finish_epoch(run: _Run) -> None:
    """Evaluate when it is due, record, save. What was trained is saved before a long evaluation begins."""
    state = run.state
    record = dict(state.pending or {})
    if run.evaluate is not None and _evaluates(state.config, state.epoch):
        state.save(run.folder)
        start = time.perf_counter()
        record |= _scores(run)
        record["seconds"] = {
            **record["seconds"],
            "evaluation": round(time.perf_counter() - start, 3),
        }
        _keep_best(state, record, run.folder)
    state.pending = None
    _record(run, record)
    state.save(run.folder)


def _scores(run: _Run) -> dict[str, float]:
    assert run.evaluate is not None
    ranking = run.evaluate(run.network)
    if ranking.queries == 0:
        run.reporter.warn(
            "no query has a match from another camera in the gallery: the scores mean nothing"
        )
    return ranking_metrics(ranking)


def _train_epoch(run: _Run, stop: _Stop) -> None:
    state, network, clock, device = run.state, run.network, run.clock, run.device
    state.model.train()
    method, layers, world = state.method, state.method.layers(), state.world
    total = method.iterations
    what = f"epoch {state.epoch + 1}/{state.config.epochs}"
    batches = method.batches(state.epoch)
    for _ in range(state.step):
        next(batches)
    # A sum on the device: it is read once, at the end of the epoch.
    state.loss = state.loss.to(device)
    with run.profile.steps(total - state.step) as stepped:
        prefetched = prefetch(batches, partial(_part, run))
        for _, part in run.reporter.track(what, prefetched, total, state.step):
            network.begin_step()
            with clock("data"):
                images, beside, own = _batch(run, part)
            with clock("network"):
                embeddings = network.train(images)
                if beside is not None:
                    embeddings = torch.cat([embeddings, network.train(beside, "source")])
            with clock("memory"):
                loss = method.loss(embeddings, own)
            with clock("network"):
                state.optimizer.zero_grad(set_to_none=True)
                loss.backward()
            with clock("optimizer"):
                _average(layers, world)
                state.optimizer.step()
                update_running(state.model, world)
            with clock("memory"):
                method.update(embeddings.detach(), own)
                state.loss += loss.detach()
            state.step += 1
            stepped()
            if world.any_true(bool(stop.signum)) and state.step < total:
                state.save(run.folder)
                raise Interrupted(stop.signum or signal.SIGTERM)


def _no_room(run: _Run) -> str:
    """What is said when a step found no memory on the device, where one on noise had."""
    size, world = run.state.config.batch.size, run.state.world.size
    whole = (
        torch.cuda.get_device_properties(run.device).total_memory
        if run.device.type == "cuda"
        else 0
    )
    return (
        f"epoch {run.state.epoch + 1}: {run.device} ({whole / 2**30:.0f} GiB) ran out of memory beside the feature memory; "
        f"a smaller --batch.size than {size}{run.loader.spare}, or more ranks than {world}, which share the memory, needs less"
    )


class _Part(NamedTuple):
    """This rank's part of a batch, on its way to the device."""

    #: (B,) int64: the batch's images of the target.
    target: Tensor
    #: This rank's among them, and among those of the source.
    own: slice
    #: (b,) or (2b,) int64 on the device: this rank's images of the target, then of the source.
    rows: Tensor
    pixels: Callable[[], Tensor]
    source: Callable[[], Tensor] | None


def _part(run: _Run, rows: Tensor) -> _Part:
    """Begin to bring this rank's part of a batch (B,), or (2B,) with a source, to the device; each half is cut by itself."""
    n = len(run.loader)
    target, others = rows[rows < n], rows[rows >= n]
    own = run.state.world.local_slice(len(target))
    here = torch.cat([target[own], others[own]])
    source = None if run.source is None else run.source.start(others[own] - n)
    return _Part(
        target, own, to_device_async(here, run.device), run.loader.start(target[own]), source
    )


def _batch(run: _Run, part: _Part) -> tuple[Tensor, Tensor | None, Tensor]:
    """Images, the source's, and rows. Draws are those of the whole batch, so that ranks draw alike."""
    augment, (height, width) = run.state.augment, run.loader.store.pixels.shape[-2:]
    n = len(part.target)
    # Camera styles are the target's; its images are known to them by their rows.
    draws = augment.draw(n, height, width, part.target).part(part.own)
    images = augment.apply(part.pixels(), draws).contiguous(memory_format=torch.channels_last)
    if part.source is None:
        return images, None, part.rows
    draws = augment.draw(n, height, width).part(part.own)
    beside = augment.apply(part.source(), draws).contiguous(memory_format=torch.channels_last)
    return images, beside, part.rows


def _average(layers: nn.Module, world: World) -> None:
    """The gradients of a method's own layers, averaged over the ranks as DDP does those of the network."""
    if world.size > 1:
        for parameter in layers.parameters():
            if parameter.grad is not None:
                parameter.grad = world.all_reduce_sum(parameter.grad) / world.size


def _epoch_record(state: Training, identities: Tensor | None) -> dict[str, Any]:
    loss = float(state.world.all_reduce_sum(state.loss)) / state.world.size / max(state.step, 1)
    record: dict[str, Any] = {
        "epoch": state.epoch + 1,
        "loss": loss,
        "lr": state.scheduler.get_last_lr()[0],
        **state.metrics,
    }
    return record | state.method.label_metrics(identities)


def _evaluates(config: RunConfig, epoch: int) -> bool:
    return epoch == config.epochs or (
        config.evaluate_every > 0 and epoch % config.evaluate_every == 0
    )


def _keep_best(state: Training, record: dict[str, Any], folder: RunFolder) -> None:
    trained = [r["mAP"] for r in state.history if r.get("mAP") is not None and r["epoch"] > 0]
    if state.world.is_first and record["mAP"] > max(trained, default=-1.0):
        save_checkpoint(folder.best, state.weights())


def _record(run: _Run, record: dict[str, Any]) -> None:
    reporter = run.reporter
    run.state.history.append(record)
    run.folder.append_metrics(record)
    if record["epoch"] == 0:
        reporter.line(
            f"untrained: mAP {percent(record['mAP'])} %, rank-1 {percent(record['rank1'])} %"
        )
        return
    seconds = record["seconds"]
    text = f"epoch {record['epoch']:>3}: loss {record['loss']:.3f}"
    if "clusters" in record:
        text += f", {record['clusters']} clusters, {record['alone']} images alone"
    if "questions" in record:
        text += f", {record['questions']} questions ({record['questions_total']} in all)"
    if "pair_precision" in record:
        text += f", pair precision {_change(record, 'precision')} % recall {_change(record, 'recall')} %"
    if "labels_per_image" in record:
        found = record["labels_per_image"]
        text += (
            f", {found:.{1 if found >= 1 else 2}f} other images labelled for each"
            if found
            else ", single labels"
        )
    if record.get("labels_per_image") and "label_precision" in record:
        precision, recall = percent(record["label_precision"]), percent(record["label_recall"])
        text += f", precision {precision} % recall {recall} %"
    if record.get("labels_dropped"):
        text += f", {record['labels_dropped']} labels dropped in all (a larger --nnct.capacity keeps them)"
    if "mAP" in record:
        text += f", mAP {percent(record['mAP'])} %, rank-1 {percent(record['rank1'])} %"
    speed = record["speed"]["images_per_second"]
    reporter.line(
        f"{text} ({seconds['labels']:.1f} s labels, {seconds['training']:.1f} s training, {speed:,.0f} images/s)"
    )


def _change(record: dict[str, Any], score: str) -> str:
    """A pair score, with what it was before the questions."""
    before = record.get(f"drafted_pair_{score}")
    return ("" if before is None else f"{percent(before)} -> ") + percent(record[f"pair_{score}"])


@dataclass
class _Stop:
    signum: int = 0

    def check(self) -> None:
        """Raise when a signal came."""
        if self.signum:
            raise Interrupted(self.signum)


@contextmanager
def _stop_signals(reporter: Reporter, world: World) -> Iterator[_Stop]:
    """Note SIGINT and SIGTERM instead of dying of them; a second Ctrl-C ends the process at once.

    Extraction and evaluation take minutes and lose nothing when they are broken off, so there the signal is heeded at once;
    with several ranks at their end, because a rank that leaves would leave the others waiting.
    """
    stop = _Stop()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    try:
        for signum in before:
            signal.signal(signum, note)
        reporter.between, reporter.breaks = stop.check, world.size == 1
        yield stop
    finally:
        reporter.between = None
        for signum, handler in before.items():
            signal.signal(signum, handler)
