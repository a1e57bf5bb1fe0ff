"""The training loop: thin, and blind to the method it runs."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..config import OptimizerConfig, RunConfig
from ..data.augment import Augment
from ..data.pixels import PixelStore
from ..errors import CheckpointError, TrainingError
from ..metrics import Ranking, pair_scores
from ..models import Domain, ReIdNet, without_source
from .checkpoint import check_same_data, save_checkpoint
from .distributed import flat
from .extract import extract_features, to_device
from .report import Reporter, RunFolder, percent, ranking_metrics


class Method(Protocol):
    """What the loop asks of a method."""

    @property
    def iterations(self) -> int:
        """Batches in an epoch."""

    @property
    def drafted(self) -> Tensor | None:
        """(n,) int64: the clusters that the epoch's were refined from; None when they were not."""

    def layers(self) -> nn.ModuleList:
        """The layers that are trained beside the network, as new ones; a part of `state_dict`."""

    def label_images(self, epoch: int, extract: Callable[..., Tensor]) -> dict[str, float]:
        """Label the images for the epoch; gives facts for the log. `extract("source")` gives the source's features."""

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Rows of the images of each batch; the same again when asked again for the same epoch.

        Rows of the target's images first; those of the source's are numbered after them.
        """

    def loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """The loss of a batch: embeddings (B, D) with gradient, of any length, of the images at rows (B,)."""

    def update(self, embeddings: Tensor, rows: Tensor) -> None:
        """Take notice of the batch's embeddings, after the step."""

    def review(self, identities: Tensor | None) -> dict[str, float]:
        """What the log says of the labels at the end of an epoch, against the true identities (n,) where they are known."""

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
        data: Fingerprint of the image set.
        epoch: Epochs completed.
        step: Batches done of the epoch under way.
        loss: Sum of the losses of the epoch under way.
        facts: What the method said when it labelled the images of the epoch under way.
        history: One record an epoch.
        pending: Record of a trained epoch whose evaluation is still due.
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
    pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        return {
            **self.weights(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "method": self.method.state_dict(),
            "config": dataclasses.asdict(self.config),
            "random": {"augment": self.augment.generator.get_state(), "torch": torch.get_rng_state()},
            "data": self.data,
            "epoch": self.epoch,
            "step": self.step,
            "loss": self.loss,
            "facts": self.facts,
            "history": self.history,
            "pending": self.pending,
        }

    def weights(self) -> dict[str, Any]:
        """The part that evaluation needs."""
        return {
            "model": without_source(self.model.state_dict()),
            "network": network_of(self.config),
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: It belongs to other images, or its memories do not fit.
        """
        check_same_data(state["data"], self.data)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        try:
            self.method.load_state_dict(_moved(state["method"], next(self.model.parameters()).device))
        except ValueError as error:
            raise CheckpointError(
                f"the checkpoint does not fit the run: {error}; resume with the images and settings that it was made with, or "
                "start a new run with another --run-dir"
            ) from error
        self.augment.generator.set_state(state["random"]["augment"])
        torch.set_rng_state(state["random"]["torch"])
        self.epoch, self.step, self.loss = state["epoch"], state["step"], state["loss"]
        self.facts, self.history, self.pending = state["facts"], state["history"], state["pending"]
        if state["config"]["optimizer"] != dataclasses.asdict(self.config.optimizer):
            self._apply_optimizer_settings()

    def _apply_optimizer_settings(self) -> None:
        """Go on with other settings than the checkpoint's, as if they had always held."""
        settings = self.config.optimizer
        rates = learning_rates(settings)
        self.scheduler.base_lrs = [*rates]
        self.scheduler.step_size, self.scheduler.gamma = settings.step, settings.gamma  # type: ignore[attr-defined]
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["initial_lr"], group["weight_decay"] = lr, settings.weight_decay
            group["lr"] = lr * settings.gamma ** (self.epoch // settings.step)
            if settings.name == "sgd":
                group["momentum"], group["nesterov"] = settings.momentum, settings.momentum > 0
        self.scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def save(self, path: Path) -> None:
        """Write a checkpoint, unless the training has diverged.

        Raises:
            TrainingError: A weight, or the loss, is not finite; the checkpoint on disk is left as it is.
            CheckpointError: The file could not be written; the one before it is intact.
        """
        modules = (self.model, self.method.layers())
        weights = (v for module in modules for v in module.state_dict().values() if v.is_floating_point())
        if not torch.isfinite(self.loss) or not all(torch.isfinite(v).all() for v in weights):
            kept = "the last checkpoint is intact" if path.exists() else "no checkpoint was written yet"
            raise TrainingError(
                f"epoch {self.epoch + (self.step > 0)}: the loss or weights are not finite (the training diverged); {kept}. "
                "Go on with --resume and a lower --optimizer.lr"
            )
        save_checkpoint(path, self.state_dict())


def learning_rates(settings: OptimizerConfig) -> list[float]:
    """Of the two groups of parameters: new layers, backbone."""
    return [settings.lr, settings.lr if settings.backbone_lr is None else settings.backbone_lr]


def make_optimizer(model: ReIdNet, settings: OptimizerConfig, layers: nn.Module | None = None) -> torch.optim.Optimizer:
    """The optimizer over all parameters of a network that are trained: new layers, `layers` too, then the backbone."""
    backbone = {id(p) for p in model.backbone.parameters()}
    trained = [p for module in (model, layers or nn.ModuleList()) for p in module.parameters() if p.requires_grad]
    parts = [p for p in trained if id(p) not in backbone], [p for p in trained if id(p) in backbone]
    groups = [{"params": part, "lr": lr} for part, lr in zip(parts, learning_rates(settings), strict=True)]
    if settings.name == "sgd":
        decay, momentum = settings.weight_decay, settings.momentum
        return torch.optim.SGD(groups, weight_decay=decay, momentum=momentum, nesterov=momentum > 0)
    return torch.optim.Adam(groups, weight_decay=settings.weight_decay)


def _moved(state: Any, device: torch.device) -> Any:
    """Nested dictionaries with their tensors on a device."""
    if isinstance(state, dict):
        return {k: _moved(v, device) for k, v in state.items()}
    return state.to(device) if isinstance(state, Tensor) else state


def network_of(config: RunConfig) -> dict[str, Any]:
    """What decides the shape of the network and of its input."""
    network, image = config.network, config.image
    return {
        "name": config.model,
        "pool": network.pool,
        "test_features": network.test_features,
        "osnet_fc": network.osnet_fc,
        "height": image.height,
        "width": image.width,
    }


#: What may change on resume without making the checkpoint's state meaningless.
_MAY_CHANGE = (
    "epochs",
    "evaluate_",
    "device",
    "data_root",
    "source_root",
    "run_dir",
    "weights",
    "image.store_",
    "cluster.",
    "optimizer.lr",
    "optimizer.backbone_lr",
    "optimizer.momentum",
    "optimizer.weight_decay",
    "optimizer.step",
    "optimizer.gamma",
    "ask",
    "annotator",
    "questions.",
    "oracle.",
)


def check_resumable(state: dict[str, Any], config: RunConfig) -> None:
    """Refuse, before anything slow is done, a checkpoint of another configuration, naming what differs.

    Raises:
        CheckpointError: It does not fit the configuration, or lacks the state of a training run.
    """
    if "optimizer" not in state:
        raise CheckpointError("the checkpoint holds weights alone; resume from last.pt of a run, not best.pt")
    have, want = flat(state["config"]), flat(dataclasses.asdict(config))
    different = [k for k in want if have.get(k) != want[k] and not k.startswith(_MAY_CHANGE)]
    if different:
        trained, asked = (
            " ".join(f"--{k.replace('_', '-')} {side.get(k)}" for k in different) for side in (have, want)
        )
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
    source: PixelStore | None = None,
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
        source: Pixels of the source's training images, where the method trains with a source.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the state after the step under way, or before the extraction, is saved.
        TrainingError: The loss or the features are not finite, or there is nothing to contrast; the last checkpoint is intact.
        CheckpointError: A checkpoint could not be written; the one before it is intact.
    """
    config = state.config
    folder.rewrite_metrics(state.history)

    def extract(domain: Domain = "target") -> Tensor:
        pixels, what = (source, "extracting the source") if domain == "source" else (store, "extracting")
        assert pixels is not None
        with reporter.progress(what, len(pixels)) as update:
            return extract_features(state.model, pixels, device, on_progress=update, domain=domain)

    with _stop_signals(reporter) as stop:
        if evaluate is not None and config.evaluate_untrained and not state.history and not state.pending:
            _record(state, folder, reporter, {"epoch": 0, **_scores(evaluate, state, reporter)})
        if state.pending:
            _finish_epoch(state, folder, reporter, evaluate)
        for epoch in range(state.epoch, config.epochs):
            start = time.perf_counter()
            if state.step == 0:
                state.facts = state.method.label_images(epoch, extract)
                if state.method.drafted is not None and identities is not None:
                    scores = pair_scores(state.method.drafted, identities)
                    state.facts |= {f"drafted_pair_{k}": v for k, v in scores._asdict().items()}
            labelled = time.perf_counter()
            _train_epoch(state, store, source, device, reporter, stop, folder)
            state.pending = _epoch_record(state, identities)
            state.pending["seconds"] = {
                "labels": round(labelled - start, 3),
                "training": round(time.perf_counter() - labelled, 3),
            }
            state.epoch, state.step, state.loss = epoch + 1, 0, torch.zeros((), dtype=torch.float64)
            state.scheduler.step()
            _finish_epoch(state, folder, reporter, evaluate)
            if stop.signum and epoch + 1 < config.epochs:
                raise Interrupted(stop.signum)


def _finish_epoch(
    state: Training, folder: RunFolder, reporter: Reporter, evaluate: Callable[[ReIdNet], Ranking] | None
) -> None:
    """Evaluate when it is due, record, save. What was trained is saved before a long evaluation begins."""
    record = dict(state.pending or {})
    if evaluate is not None and _evaluates(state.config, state.epoch):
        state.save(folder.last)
        start = time.perf_counter()
        record |= _scores(evaluate, state, reporter)
        record["seconds"] = {**record["seconds"], "evaluation": round(time.perf_counter() - start, 3)}
        _keep_best(state, record, folder)
    state.pending = None
    _record(state, folder, reporter, record)
    state.save(folder.last)


def _scores(evaluate: Callable[[ReIdNet], Ranking], state: Training, reporter: Reporter) -> dict[str, float]:
    ranking = evaluate(state.model)
    if ranking.queries == 0:
        reporter.warn("no query has a match from another camera in the gallery: the scores mean nothing")
    return ranking_metrics(ranking)


def _train_epoch(
    state: Training,
    store: PixelStore,
    source: PixelStore | None,
    device: torch.device,
    reporter: Reporter,
    stop: _Stop,
    folder: RunFolder,
) -> None:
    state.model.train()
    method = state.method
    total = method.iterations
    what = f"epoch {state.epoch + 1}/{state.config.epochs}"
    batches = method.batches(state.epoch)
    for _ in range(state.step):
        next(batches)
    for rows in reporter.track(what, batches, total, state.step):
        on_device = rows.to(device)
        embeddings = _embed(state, store, source, rows, device)
        rows = on_device
        loss = method.loss(embeddings, rows)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        method.update(embeddings.detach(), rows)
        state.loss = state.loss.to(device) + loss.detach()
        state.step += 1
        if stop.signum and state.step < total:
            state.save(folder.last)
            raise Interrupted(stop.signum)


def _embed(state: Training, store: PixelStore, source: PixelStore | None, rows: Tensor, device: torch.device) -> Tensor:
    """Embeddings (B, D) of the images at rows (B,) on the CPU, each domain forwarded by itself."""
    target = rows[rows < len(store)]
    # Camera styles are the target's; its images are known to them by their rows.
    images = to_device(store.read(target), device, partial(state.augment, rows=target))
    if source is None:
        return cast(Tensor, state.model(images, "raw"))
    # Both are on the device before either is forwarded: a copy waits for what runs there.
    beside = to_device(source.read(rows[len(target) :] - len(store)), device, state.augment)
    return torch.cat([state.model(images, "raw"), state.model(beside, "raw", "source")])


def _epoch_record(state: Training, identities: Tensor | None) -> dict[str, Any]:
    loss = float(state.loss) / max(state.step, 1)
    record: dict[str, Any] = {
        "epoch": state.epoch + 1,
        "loss": loss,
        "lr": state.scheduler.get_last_lr()[0],
        **state.facts,
    }
    return record | state.method.review(identities)


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
    if "questions" in record:
        text += f", {record['questions']} questions ({record['questions_total']} in all)"
    if "pair_precision" in record:
        text += f", pair precision {_change(record, 'precision')} % recall {_change(record, 'recall')} %"
    if "labels_per_image" in record:
        found = record["labels_per_image"]
        text += f", {found:.{1 if found >= 1 else 2}f} other images labelled for each" if found else ", single labels"
    if record.get("labels_per_image") and "label_precision" in record:
        precision, recall = percent(record["label_precision"]), percent(record["label_recall"])
        text += f", precision {precision} % recall {recall} %"
    if record.get("labels_dropped"):
        text += f", {record['labels_dropped']} labels dropped in all (a larger --nnct.capacity keeps them)"
    if "mAP" in record:
        text += f", mAP {percent(record['mAP'])} %, rank-1 {percent(record['rank1'])} %"
    reporter.line(f"{text} ({seconds['labels']:.1f} s labels, {seconds['training']:.1f} s training)")


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
def _stop_signals(reporter: Reporter) -> Iterator[_Stop]:
    """Note SIGINT and SIGTERM instead of dying of them; a second Ctrl-C ends the process at once.

    Extraction and evaluation take minutes and lose nothing when they are broken off, so there the signal is heeded at once.
    """
    stop = _Stop()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    try:
        for signum in before:
            signal.signal(signum, note)
        reporter.between = stop.check
        yield stop
    finally:
        reporter.between = None
        for signum, handler in before.items():
            signal.signal(signum, handler)
