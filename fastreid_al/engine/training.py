"""The state of a run, and the method that the loop drives: what is saved, and what may change when a run goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..config import OptimizerConfig, RunConfig
from ..data.augment import Augment
from ..data.fingerprint import check_same_data
from ..distributed.launch import flat
from ..distributed.world import SINGLE_PROCESS, Sharded, World
from ..errors import CheckpointError, TrainingError
from ..models import ReIdNet, without_source
from .checkpoint import load_checkpoint, save_checkpoint
from .console import RunFolder
from .sharded_checkpoint import drop_shards, has_shards, load_shards, save_shards


class Method(Protocol):
    """What the loop asks of a method."""

    @property
    def iterations(self) -> int:
        """Batches in an epoch."""

    @property
    def labels_before_questions(self) -> Tensor | None:
        """(n,) int64: the clusters that the epoch's were refined from; None when they were not."""

    def layers(self) -> nn.ModuleList:
        """The layers that are trained beside the network, as new ones; a part of `state_dict`."""

    def label_images(self, epoch: int, extract: Callable[..., Tensor]) -> dict[str, float]:
        """Label the images for the epoch; returns metrics for the log. `extract("source")` gives the source's features."""

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Rows of the images of each batch; the same again when asked again for the same epoch.

        Rows of the target's images first; those of the source's are numbered after them.
        """

    def loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """The loss of a batch: embeddings (B, D) with gradient, of any length, of the images at rows (B,)."""

    def update(self, embeddings: Tensor, rows: Tensor) -> None:
        """Take notice of the batch's embeddings, after the step."""

    def label_metrics(self, identities: Tensor | None) -> dict[str, float]:
        """What the log says of the labels at the end of an epoch, against the true identities (n,) where they are known."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


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
        world: The ranks of the run.
        epoch: Epochs completed.
        step: Batches done of the epoch under way.
        loss: Sum of the losses of the epoch under way.
        metrics: What the method said when it labelled the images of the epoch under way.
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
    world: World = SINGLE_PROCESS
    epoch: int = 0
    step: int = 0
    loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, what is sharded as `Sharded`. All ranks call it."""
        return {
            **self.weights(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "method": self.method.state_dict(),
            "config": dataclasses.asdict(self.config),
            "random": {
                "augment": self.augment.generator.get_state(),
                "torch": torch.get_rng_state(),
            },
            "data": self.data,
            "epoch": self.epoch,
            "step": self.step,
            "loss": self.world.all_reduce_sum(self.loss) / self.world.size,
            "metrics": self.metrics,
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
        self.optimizer.load_state_dict(_as_here(state["optimizer"], self.optimizer))
        self.scheduler.load_state_dict(state["scheduler"])
        try:
            self.method.load_state_dict(
                _moved(state["method"], next(self.model.parameters()).device)
            )
        except ValueError as error:
            raise CheckpointError(
                f"the checkpoint does not fit the run: {error}; resume with the images and settings that it was made with, or "
                "start a new run with another --run-dir"
            ) from error
        self.augment.generator.set_state(state["random"]["augment"])
        torch.set_rng_state(state["random"]["torch"])
        self.epoch, self.step, self.loss = state["epoch"], state["step"], state["loss"]
        self.metrics, self.history, self.pending = (
            state["metrics"],
            state["history"],
            state["pending"],
        )
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

    def save(self, folder: RunFolder) -> None:
        """Write a checkpoint, unless the training has diverged. All ranks call it.

        Raises:
            TrainingError: A weight, or the loss, is not finite; the checkpoint on disk is left as it is.
            CheckpointError: It could not be written; the one before it is intact.
        """
        modules = (self.model, self.method.layers())
        weights = (
            v for module in modules for v in module.state_dict().values() if v.is_floating_point()
        )
        bad = not torch.isfinite(self.loss) or not all(torch.isfinite(v).all() for v in weights)
        if self.world.any_true(bad):
            before = folder.last.exists() or has_shards(folder.path)
            kept = "the last checkpoint is intact" if before else "no checkpoint was written yet"
            raise TrainingError(
                f"epoch {self.epoch + (self.step > 0)}: the loss or weights are not finite (the training diverged); {kept}. "
                "Go on with --resume and a lower --optimizer.lr"
            )
        if self.world.size == 1:
            save_checkpoint(folder.last, self.state_dict())
            drop_shards(folder.path)
            return
        save_shards(folder.path, self.state_dict(), self.world)
        if self.world.is_first:
            # For evaluation, which is one process's.
            save_checkpoint(folder.last, self.weights())


def last_state(folder: RunFolder, world: World) -> dict[str, Any] | None:
    """What a run in a folder was last saved as, by one process or by several ranks; None where it never was.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    sharded = load_shards(folder.path, world) if has_shards(folder.path) else None
    whole = load_checkpoint(folder.last) if folder.last.exists() else None
    if sharded is None or whole is None:
        return sharded or whole
    # Both are there when several ranks wrote weights for evaluation, or when a process was killed between its own and theirs.
    later = "optimizer" in whole and (whole["epoch"], whole["step"]) > (
        sharded["epoch"],
        sharded["step"],
    )
    return whole if later else sharded


def learning_rates(settings: OptimizerConfig) -> list[float]:
    """Of the two groups of parameters: new layers, backbone."""
    return [settings.lr, settings.lr if settings.backbone_lr is None else settings.backbone_lr]


def make_optimizer(
    model: ReIdNet, settings: OptimizerConfig, layers: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimizer over all parameters of a network that are trained: new layers, `layers` too, then the backbone."""
    backbone = {id(p) for p in model.backbone.parameters()}
    trained = [
        p
        for module in (model, layers or nn.ModuleList())
        for p in module.parameters()
        if p.requires_grad
    ]
    parts = [p for p in trained if id(p) not in backbone], [p for p in trained if id(p) in backbone]
    groups = [
        {"params": part, "lr": lr} for part, lr in zip(parts, learning_rates(settings), strict=True)
    ]
    decay, fused = settings.weight_decay, all(p.device.type in ("cpu", "cuda") for p in trained)
    if settings.name == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(
            groups, weight_decay=decay, momentum=momentum, nesterov=momentum > 0, fused=fused
        )
    return torch.optim.Adam(groups, weight_decay=decay, fused=fused)


def _as_here(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state, whatever form of it wrote it, for this one's form."""
    form = {"fused": optimizer.defaults["fused"], "foreach": None}
    return {**state, "param_groups": [{**group, **form} for group in state["param_groups"]]}


def _moved(state: Any, device: torch.device) -> Any:
    """Nested dictionaries with their tensors on a device."""
    if isinstance(state, dict):
        return {k: _moved(v, device) for k, v in state.items()}
    if isinstance(state, Sharded):
        return Sharded(state.rows.to(device), state.n)
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
    "image.cache",
    "image.place",
    "engine.",
    "tensorboard",
    "profile",
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
        raise CheckpointError(
            "the checkpoint holds weights alone; resume from last.pt of a run, not best.pt"
        )
    have, want = flat(state["config"]), flat(dataclasses.asdict(config))
    different = [k for k in want if have.get(k) != want[k] and not k.startswith(_MAY_CHANGE)]
    if different:
        trained, asked = (
            " ".join(f"--{k.replace('_', '-')} {side.get(k)}" for k in different)
            for side in (have, want)
        )
        raise CheckpointError(
            f"the checkpoint was trained with {trained}, the run asks for {asked}; "
            "resume with the former, or start a new run with another --run-dir"
        )
