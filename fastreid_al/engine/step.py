"""The network as the engine runs it: precision, compilation, ranks."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import EngineConfig
from ..errors import TrainingError
from ..models import Domain, ReIdNet, Stage, forget_running
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
        self.model, self.device, self._ranks = model, device, ranks
        self.bf16 = precision_of(settings, device) == "bf16"
        mode = compile_of(settings, device)
        self.compiled, self.graphs = mode != "none", mode == "graphs"
        if settings.compile == "graphs" and not self.graphs:
            warn("CUDA graphs need a GPU: the network is compiled without them")
        if self.compiled:
            model.forward = _with_fallback(model, _MODES[mode], warn)  # type: ignore[method-assign]
        self._train: nn.Module = model
        if ranks.size > 1:
            # Running statistics are kept the same by `update_running`, not by copying buffers.
            known = inspect.signature(DistributedDataParallel).parameters
            copies = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            self._train = DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == "cuda" else None,
                process_group=ranks.group,
                gradient_as_bucket_view=True,
                **{copies: False},  # type: ignore[arg-type]
            )

    def prove(self, batch: int, height: int, width: int, step: int = 1, spare: str = "") -> None:
        """Run a training step on noise, where compiling or the device's memory may fail, before anything slow is done.

        The network is left as it was.

        Args:
            batch: Images that are forwarded together.
            height: Their height.
            width: Their width.
            step: What a batch is a multiple of.
            spare: What else would make room, for the message.

        Raises:
            TrainingError: The device has no room; what would fit is named.
        """
        if not self.compiled and self.device.type != "cuda":
            return
        if self._all_fit(batch, height, width):
            return
        less = batch // 2 // step * step
        while less and not self._all_fit(less, height, width):
            less = less // 2 // step * step
        fits = (
            f"--batch.size {less * self._ranks.size} would fit"
            if less
            else "no batch would fit: take a smaller --model or image"
        )
        images = f"{batch} images of {height} x {width}" + (" on each rank" if self._ranks.size > 1 else "")
        raise TrainingError(f"{self.device} has no room for a batch of {images} ({self.model.name}); {fits}{spare}")

    def _all_fit(self, batch: int, height: int, width: int) -> bool:
        return not self._ranks.any(not self._fits(batch, height, width))

    def _fits(self, batch: int, height: int, width: int) -> bool:
        kept = [b.clone() for b in self.model.buffers()]
        self.model.train()
        try:
            for domain in ("target",) if self.model.switch is None else ("target", "source"):
                self.begin_step()
                images = torch.randn(batch, 3, height, width, device=self.device)
                images = images.contiguous(memory_format=torch.channels_last)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    out = self.model(images, "raw", domain)
                out.float().square().mean().backward()
        except torch.OutOfMemoryError:
            return False
        finally:
            self.model.zero_grad(set_to_none=True)
            forget_running(self.model)
            for buffer, before in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(before)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return True

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


def choose_algorithms(deterministic: bool) -> None:
    """Have PyTorch take the fastest algorithms for a run's shapes, or only those that give the same bits from run to run."""
    # Shapes are few and fixed, so trying out convolutions pays.
    torch.backends.cudnn.benchmark = not deterministic
    if not deterministic:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


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
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            why = next((line for line in lines if "error:" in line.lower()), lines[0])
            warn(
                f"torch.compile failed ({why[:200]}); the network runs uncompiled. To leave the attempt out: --engine.compile none"
            )
            state["run"] = plain
            return plain(images, stage, domain)

    return forward
