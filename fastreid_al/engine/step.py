"""The network as the engine runs it: precision, compilation, ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import EngineConfig
from ..models import Domain, ReIdNet, Stage
from ..ranks import ALONE, Ranks

#: torch.compile's modes, by the setting.
_MODES = {"default": "default", "graphs": "reduce-overhead"}


class Network:
    """Forward passes of a network, in float32 outside.

    Args:
        model: The network; what it holds stays its own.
        settings: Precision and compilation.
        device: Where it lies.
        ranks: Gradients of `train` are averaged over them (DDP).
        warn: Told once why a compilation was given up.
    """

    def __init__(
        self,
        model: ReIdNet,
        settings: EngineConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model, self.device = model, device
        self.bf16 = precision_of(settings, device) == "bf16"
        mode = compile_of(settings, device)
        self.compiled, self.graphs = mode != "none", mode == "graphs"
        if self.compiled:
            model.forward = _with_fallback(model, _MODES[mode], warn)  # type: ignore[method-assign]
        self._train: nn.Module = model
        if ranks.size > 1:
            # Running statistics are kept the same by `update_running`, not by copying buffers.
            self._train = DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == "cuda" else None,
                process_group=ranks.group,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def begin_step(self) -> None:
        """Say that what earlier steps gave is no longer needed."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def train(self, images: Tensor, domain: Domain = "target") -> Tensor:
        """Embeddings (B, D) float32 of any length, with gradient, of normalised images (B, 3, H, W)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            out = self._train(images, "raw", domain)
        return cast(Tensor, out).float()

    def features(self, images: Tensor, stage: Stage, domain: Domain = "target", flip: bool = False) -> Tensor:
        """Features (B, D) float32 of normalised images; with `flip` the mean with those of the mirrored ones, of length one."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.model(images, stage, domain).float()
            if flip:
                # A graph writes its next result where this one lies.
                out = out.clone() if self.graphs else out
                out = out + self.model(images.flip(-1), stage, domain).float()
        return torch.nn.functional.normalize(out) if self.bf16 or flip else cast(Tensor, out)


def precision_of(settings: EngineConfig, device: torch.device) -> str:
    """float32 or bf16: by the device where the setting is auto."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def compile_of(settings: EngineConfig, device: torch.device) -> str:
    """none, default or graphs: by the device where the setting is auto. Without a GPU there are no graphs."""
    if settings.compile == "auto":
        return "default" if device.type == "cuda" else "none"
    return "default" if settings.compile == "graphs" and device.type != "cuda" else settings.compile


def be_deterministic() -> None:
    """Have PyTorch take only algorithms that give the same bits from run to run."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def _with_fallback(model: ReIdNet, mode: str, warn: Callable[[str], None]) -> Callable[..., Any]:
    """The compiled forward; at its first failure the plain one from then on, and why is said."""
    plain = model.forward
    state: dict[str, Callable[..., Any]] = {"run": torch.compile(plain, mode=mode, dynamic=False)}

    def forward(images: Tensor, stage: Stage = "bn", domain: Domain = "target") -> Tensor:
        if state["run"] is plain:
            return plain(images, stage, domain)
        try:
            return cast(Tensor, state["run"](images, stage, domain))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            warn(f"torch.compile failed ({lines[0][:200]}): the network runs uncompiled; --engine.compile none says so")
            state["run"] = plain
            return plain(images, stage, domain)

    return forward
