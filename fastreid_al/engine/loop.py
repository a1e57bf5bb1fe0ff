"""The training loop: thin, and blind to the method it runs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import RunConfig
from ..data.augment import Augment
from ..data.pixels import PixelStore
from ..errors import CheckpointError, TrainingError
from ..metrics import Ranking, pair_scores
from ..models import ReIdNet
from .checkpoint import check_same_data, save_checkpoint
from .extract import extract_features, to_device
from .report import Reporter, RunFolder, percent, ranking_metrics


class Method(Protocol):
    """What the loop asks of a method."""

    @property
    def labels(self) -> Tensor:
        """(n,) int64: the cluster of each training image in this epoch, -1 outside every cluster."""

    def label_images(self, epoch: int, extract: Callable[[], Tensor]) -> dict[str, float]:
        """Label the images for the epoch; gives facts for the log."""

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Rows of the images of each batch; the same again when asked again for the same epoch."""

    def loss(self, features: Tensor, rows: Tensor) -> Tensor:
        """The loss of a batch."""

    def update(self, features: Tensor, rows: Tensor) -> None:
        """Take notice of the batch's features, after the step."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


class Interrupted(Exception):  # noqa: N818
    """A signal asked the run to stop; it has saved its state."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@dataclass
class Training:
    """The state of a run: all that a checkpoint holds.

    Args:
        config: The configuration.
        model: The network.
        method: The method.
        optimizer: Its optimizer.
        scheduler: Its learning rate schedule.
        augment: The augmentation, for its random state.
        data: Fingerprint of the training images.
        epoch: Epochs completed.
        step: Batches done of the epoch under way.
        loss: Sum of the losses of the epoch under way.
        facts: What the method said when it labelled the images of the epoch under way.
        history: One record an epoch.
    """

    config: RunConfig
    model: ReIdNet
    method: Method
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    augment: Augment
    data: dict[str, str]
    epoch: int = 0
    step: int = 0
    loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    facts: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        return {
            **self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "method": self.method.state_dict(),
            "method_name": self.config.method,
            "random": {"augment": self.augment.generator.get_state(), "torch": torch.get_rng_state()},
            "data": self.data,
            "epoch": self.epoch,
            "step": self.step,
            "loss": self.loss,
            "facts": self.facts,
            "history": self.history,
        }

    def weights(self) -> dict[str, Any]:
        """The part that evaluation needs."""
        return {"model": self.model.state_dict(), "network": network_of(self.config), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: It belongs to other training images.
        """
        check_same_data(state["data"], self.data)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.method.load_state_dict(_moved(state["method"], next(self.model.parameters()).device))
        self.augment.generator.set_state(state["random"]["augment"])
        torch.set_rng_state(state["random"]["torch"])
        self.epoch, self.step, self.loss = state["epoch"], state["step"], state["loss"]
        self.facts, self.history = state["facts"], state["history"]


def _moved(state: Any, device: torch.device) -> Any:
    """Nested dictionaries with their tensors on a device."""
    if isinstance(state, dict):
        return {k: _moved(v, device) for k, v in state.items()}
    return state.to(device) if isinstance(state, Tensor) else state


def network_of(config: RunConfig) -> dict[str, Any]:
    """What decides the shape of the network and of its input."""
    image = config.image
    return {"name": config.model, "pool": config.network.pool, "height": image.height, "width": image.width}


_OPTIONS = {
    "name": "--model",
    "pool": "--network.pool",
    "height": "--image.height",
    "width": "--image.width",
    "method": "--method",
}


def check_resumable(state: dict[str, Any], config: RunConfig) -> None:
    """Refuse, before anything slow is done, a checkpoint of another network or method, naming what differs.

    Raises:
        CheckpointError: It does not fit the configuration, or lacks the state of a training run.
    """
    if "optimizer" not in state:
        raise CheckpointError("the checkpoint holds weights alone; resume from last.pt of a run, not best.pt")
    have = {**state["network"], "method": state["method_name"]}
    want = {**network_of(config), "method": config.method}
    different = [k for k in want if have[k] != want[k]]
    if different:
        trained, asked = (" ".join(f"{_OPTIONS[k]} {side[k]}" for k in different) for side in (have, want))
        raise CheckpointError(
            f"the checkpoint was trained with {trained}, the run asks for {asked}; "
            "resume with the former, or start a new run with another --run-dir"
        )


def train(
    state: Training,
    store: PixelStore,
    device: torch.device,
    folder: RunFolder,
    reporter: Reporter,
    evaluate: Callable[[ReIdNet], Ranking] | None = None,
    identities: Tensor | None = None,
) -> None:
    """Train from wherever the state stands to the last epoch.

    Args:
        state: The run.
        store: Pixels of the training images.
        device: Where the model lies.
        folder: Takes checkpoints and metrics.
        reporter: Says how it goes.
        evaluate: Scores the network; None when the set has nothing to evaluate on.
        identities: (n,) true identities, for the log alone; None when unknown.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the state after the step under way is saved.
        TrainingError: The loss or the features are not finite, or there is nothing to contrast; the last checkpoint is intact.
        CheckpointError: A checkpoint could not be written; the one before it is intact.
    """
    config = state.config
    folder.rewrite_metrics(state.history)
    if evaluate is not None and config.evaluate_untrained and not state.history:
        _record(state, folder, reporter, {"epoch": 0, **ranking_metrics(evaluate(state.model))})

    def extract() -> Tensor:
        with reporter.progress("extracting", len(store)) as update:
            return extract_features(state.model, store, device, on_progress=update)

    with _stop_signals() as stop:
        for epoch in range(state.epoch, config.epochs):
            start = time.perf_counter()
            if state.step == 0:
                state.facts = state.method.label_images(epoch, extract)
            labelled = time.perf_counter()
            _train_epoch(state, store, device, reporter, stop, folder)
            record = _epoch_record(state, identities)
            trained = time.perf_counter()
            state.epoch, state.step, state.loss = epoch + 1, 0, torch.zeros((), dtype=torch.float64)
            state.scheduler.step()
            if evaluate is not None and _evaluates(config, epoch + 1):
                record |= ranking_metrics(evaluate(state.model))
                _keep_best(state, record, folder)
            record["seconds"] = {
                "labels": round(labelled - start, 3),
                "training": round(trained - labelled, 3),
                "evaluation": round(time.perf_counter() - trained, 3),
            }
            _record(state, folder, reporter, record)
            save_checkpoint(folder.last, state.state_dict())
            if stop.signum and epoch + 1 < config.epochs:
                raise Interrupted(stop.signum)


def _train_epoch(
    state: Training, store: PixelStore, device: torch.device, reporter: Reporter, stop: _Stop, folder: RunFolder
) -> None:
    model, method = state.model.train(), state.method
    total = state.config.batch.iterations
    what = f"epoch {state.epoch + 1}/{state.config.epochs}"
    batches = method.batches(state.epoch)
    for _ in range(state.step):
        next(batches)
    for rows in reporter.track(what, batches, total, state.step):
        images = to_device(store.read(rows), device, state.augment)
        features = model(images)
        rows = rows.to(device)
        loss = method.loss(features, rows)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        method.update(features.detach(), rows)
        state.loss = state.loss.to(device) + loss.detach()
        state.step += 1
        if stop.signum and state.step < total:
            save_checkpoint(folder.last, state.state_dict())
            raise Interrupted(stop.signum)


def _epoch_record(state: Training, identities: Tensor | None) -> dict[str, Any]:
    loss = float(state.loss) / max(state.step, 1)
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise TrainingError(
            f"epoch {state.epoch + 1}: the loss is not finite (the training diverged); the checkpoint of epoch {state.epoch} "
            "is intact. Lower --optimizer.lr and resume with --resume"
        )
    record: dict[str, Any] = {
        "epoch": state.epoch + 1,
        "loss": loss,
        "lr": state.scheduler.get_last_lr()[0],
        **state.facts,
    }
    if identities is not None:
        record |= {f"pair_{k}": v for k, v in pair_scores(state.method.labels, identities)._asdict().items()}
    return record


def _evaluates(config: RunConfig, epoch: int) -> bool:
    return epoch == config.epochs or (config.evaluate_every > 0 and epoch % config.evaluate_every == 0)


def _keep_best(state: Training, record: dict[str, Any], folder: RunFolder) -> None:
    trained = [r["mAP"] for r in state.history if r.get("mAP") is not None and r["epoch"] > 0]
    if record["mAP"] > max(trained, default=-1.0):
        save_checkpoint(folder.best, state.weights())


def _record(state: Training, folder: RunFolder, reporter: Reporter, record: dict[str, Any]) -> None:
    state.history.append(record)
    folder.append_metrics(record)
    if record["epoch"] == 0:
        reporter.line(f"untrained: mAP {percent(record['mAP'])} %, rank-1 {percent(record['rank1'])} %")
        return
    seconds = record["seconds"]
    text = f"epoch {record['epoch']:>3}: loss {record['loss']:.3f}"
    if "clusters" in record:
        text += f", {record['clusters']} clusters, {record['alone']} images alone"
    if "pair_precision" in record:
        text += f", pair precision {percent(record['pair_precision'])} % recall {percent(record['pair_recall'])} %"
    if "mAP" in record:
        text += f", mAP {percent(record['mAP'])} %, rank-1 {percent(record['rank1'])} %"
    reporter.line(f"{text} ({seconds['labels']:.1f} s labels, {seconds['training']:.1f} s training)")


@dataclass
class _Stop:
    signum: int = 0


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Note SIGINT and SIGTERM instead of dying of them; a second Ctrl-C ends the process at once."""
    stop = _Stop()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    try:
        for signum in before:
            signal.signal(signum, note)
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
