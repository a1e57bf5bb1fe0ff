"""The state of a run: everything that a checkpoint holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import RunConfig
from ..data.augment import Augment
from ..data.fingerprint import check_same_data
from ..distributed.world import SINGLE_PROCESS, Sharded, World
from ..errors import CheckpointError, DivergedError
from ..models import ReIdNet, without_source
from .checkpoint import save_checkpoint
from .method import Method
from .optimizer import apply_settings, check_optimizer
from .precision import Kind
from .run_folder import RunFolder
from .shard_folders import drop_shards

#: Most characters of another library's reason in a message.
_LONGEST_REASON = 200


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@dataclass
class Training:
    """The state of a run.

    Args:
        config: The configuration.
        model: The network.
        method: The method.
        optimizer: Its optimizer.
        scheduler: The schedule of its learning rates.
        augment: The augmentation, for its random state.
        data: Fingerprint of the image set.
        world: The processes of the run.
        precision: That of its training steps.
        epoch: Epochs completed.
        step: Batches done in the current epoch.
        loss: Sum () of the losses of the current epoch.
        metrics: Metrics of the labels of the current epoch.
        history: One record an epoch, as in metrics.jsonl.
        pending: Record of a trained epoch that is not yet evaluated and recorded.
    """

    config: RunConfig
    model: ReIdNet
    method: Method
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.StepLR
    augment: Augment
    data: dict[str, str]
    world: World = SINGLE_PROCESS
    precision: Kind = "float32"
    epoch: int = 0
    step: int = 0
    loss: Tensor = field(default_factory=_zero)
    metrics: dict[str, float | None] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state as (sharded) tensors and plain values. All processes call it."""
        return {
            **self.weights(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "method": self.method.state_dict(),
            "config": dataclasses.asdict(self.config),
            "precision": self.precision,
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
        """Return the part of the state that evaluation needs."""
        return {
            "model": without_source(self.model.state_dict()),
            "network": network_settings(self.config, self.model.name),
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            CheckpointError: It was trained on other images, or it does not fit the run.
        """
        check_same_data(state["data"], self.data)
        try:
            self._restore(state)
            self._check_restored()
        except torch.OutOfMemoryError:
            raise
        except (ArithmeticError, AssertionError, AttributeError, LookupError) as error:
            raise _does_not_fit(error) from error
        except (RuntimeError, TypeError, ValueError) as error:
            raise _does_not_fit(error) from error

    def _restore(self, state: dict[str, Any]) -> None:
        check_optimizer(state["optimizer"], state["scheduler"], self.optimizer, self.scheduler)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(_in_own_form(state["optimizer"], self.optimizer))
        self.scheduler.load_state_dict(state["scheduler"])
        device = next(self.model.parameters()).device
        _check_width(state["method"], self.model.features)
        self.method.load_state_dict(_to_device(state["method"], device))
        self.augment.generator.set_state(state["random"]["augment"])
        torch.set_rng_state(state["random"]["torch"])
        self.epoch = state["epoch"]
        self.step = state["step"]
        self.loss = state["loss"]
        self.metrics = state["metrics"]
        self.history = state["history"]
        self.pending = state["pending"]
        if state["config"]["optimizer"] != dataclasses.asdict(self.config.optimizer):
            apply_settings(self.optimizer, self.scheduler, self.config.optimizer, self.epoch)

    def _check_restored(self) -> None:
        """Refuse what was restored where no run could have saved it."""
        if self.step and self.step >= self.method.iterations:
            raise ValueError(f"step: got {self.step}, expected less than {self.method.iterations}")
        if not self._is_finite():
            raise ValueError("the loss or weights are not finite")

    def end_epoch(self) -> None:
        """Count the current epoch as completed, and move the learning rates to the next one."""
        self.epoch += 1
        self.step = 0
        self.loss = _zero()
        self.scheduler.step()

    def save(self, folder: RunFolder) -> None:
        """Write a checkpoint, unless the training has diverged. All processes call it.

        Raises:
            DivergedError: A weight or the loss is not finite; the last checkpoint is kept.
            CheckpointError: It could not be written; the last checkpoint is intact.
        """
        if self.world.any_true(not self._is_finite()):
            raise DivergedError(
                f"epoch {self.epoch + (self.step > 0)}: the loss or weights are not finite "
                "(the training diverged)"
            )
        if self.world.size == 1:
            save_checkpoint(folder.last, self.state_dict())
            drop_shards(folder.path)
            return
        # Imported here: it takes more than a second.
        from .sharded_checkpoint import save_shards

        save_shards(folder.path, self.state_dict(), self.world)
        if self.world.is_first:
            # Evaluation runs on a single process, which reads the weights from one file.
            save_checkpoint(folder.last, self.weights())

    def _is_finite(self) -> bool:
        """Whether the loss, the weights and the running statistics are finite.

        A device is waited for once.
        """
        # By device: a buffer may lie elsewhere, and the loss of an epoch without steps does.
        finite: dict[torch.device, list[Tensor]] = {}
        values = [self.loss]
        for module in (self.model, self.method.layers()):
            values += module.state_dict().values()
        for value in values:
            if value.is_floating_point():
                finite.setdefault(value.device, []).append(torch.isfinite(value).all())
        return all(bool(torch.stack(flags).all()) for flags in finite.values())


def _check_width(state: Any, features: int) -> None:
    """Refuse feature memories whose vectors have another length than the network's features."""
    for name, value in state.items() if isinstance(state, dict) else ():
        rows = value.rows if isinstance(value, Sharded) else value
        is_bank = name == "bank" and isinstance(rows, Tensor) and len(rows)
        if is_bank and rows.shape[1:] != (features,):
            raise ValueError(f"the feature memory has vectors of {tuple(rows.shape[1:])}")
        _check_width(value, features)


def _does_not_fit(error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
    return CheckpointError(
        f"the checkpoint does not fit the run: {reason}; resume with the images and "
        "settings that it was made with, or start a new run with another `run_dir`"
    )


def _in_own_form(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state with the implementation (fused or not) of `optimizer`."""
    form = {"fused": optimizer.defaults["fused"], "foreach": None}
    groups = [{**group, **form} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def _to_device(state: Any, device: torch.device) -> Any:
    """Return nested dictionaries with their tensors on a device."""
    if isinstance(state, dict):
        return {key: _to_device(value, device) for key, value in state.items()}
    if isinstance(state, Sharded):
        return Sharded(state.rows.to(device), state.n)
    return state.to(device) if isinstance(state, Tensor) else state


def network_settings(config: RunConfig, name: str) -> dict[str, Any]:
    """Return what decides the shape of the network and of its input, for evaluation.

    Args:
        config: The configuration.
        name: Name of the network.
    """
    return {
        "name": name,
        "pool": config.network.pool,
        "test_features": config.network.test_features,
        "osnet_fc": config.network.osnet_fc,
        "height": config.image.height,
        "width": config.image.width,
    }
