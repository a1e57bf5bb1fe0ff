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
from ..distributed.world import SINGLE_PROCESS, World
from ..errors import TrainingError
from ..models import Domain, ReIdNet, Stage, join_world

#: torch.compile's modes, by the setting.
_MODES = {"default": "default", "graphs": "reduce-overhead"}


class Network:
    """Forward passes of a network, in float32 outside.

    Args:
        model: The network; what it holds stays its own.
        settings: Precision and compilation.
        device: Where it lies.
        warn: Told once why a compilation was given up.
    """

    def __init__(
        self,
        model: ReIdNet,
        settings: EngineConfig,
        device: torch.device,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model, self.device = model, device
        self.bf16 = precision_of(settings, device) == "bf16"
        mode = compile_of(settings, device)
        self.compiled, self.graphs = mode != "none", mode == "graphs"
        if settings.compile == "graphs" and not self.graphs:
            warn("CUDA graphs need a GPU: the network is compiled without them")
        self._forward: _Compiled | None = None
        if self.compiled:
            self._forward = _Compiled(model.forward, _MODES[mode], warn)
            model.forward = self._forward  # type: ignore[method-assign]
        self._train: nn.Module = model

    def join(self, world: World) -> Network:
        """From now on average the gradients of `train` over ranks (DDP), whose BatchNorms are one another's; gives itself."""
        join_world(self.model, world)
        if world.size > 1:
            # Running statistics are kept the same by `update_running`, not by copying buffers.
            known = inspect.signature(DistributedDataParallel).parameters
            copies = (
                "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            )
            self._train = DistributedDataParallel(
                self.model,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                process_group=world.group,
                gradient_as_bucket_view=True,
                **{copies: False},  # type: ignore[arg-type]
            )
        return self

    def prove(
        self,
        batch: int,
        height: int,
        width: int,
        step: int = 2,
        source: bool = False,
        spare: str = "",
        world: World = SINGLE_PROCESS,
    ) -> None:
        """Run a training step on noise, where compiling or the device's memory may fail, before anything slow is done.

        The network is left as it was. To be called before `join`: no rank waits for another in it.

        Args:
            batch: Images that are forwarded together.
            height: Their height.
            width: Their width.
            step: What a batch is a multiple of.
            source: Whether as many images of a source are forwarded beside.
            spare: What else would make room, for the message.
            world: Ranks that do the same.

        Raises:
            TrainingError: The device has no room; what would fit is named.
        """
        if not self.compiled and self.device.type != "cuda":
            return

        def fits(some: int) -> bool:
            return not world.any_true(not self._fits(some, height, width, source))

        if fits(batch):
            return
        less = batch // 2 // step * step
        while less and not fits(less):
            less = less // 2 // step * step
        advice = (
            f"--batch.size {less * world.size} would fit"
            if less
            else "no batch would fit: take a smaller --model or image"
        )
        images = f"{batch} images of {height} x {width}" + (
            " on each rank" if world.size > 1 else ""
        )
        raise TrainingError(
            f"{self.device} has no room for a batch of {images} ({self.model.name}); {advice}{spare}"
        )

    def _fits(self, batch: int, height: int, width: int, source: bool) -> bool:
        kept = [b.clone() for b in self.model.buffers()]
        self.model.train()
        try:
            self.begin_step()
            outs = []
            for domain in cast(
                "tuple[Domain, ...]", ("target", "source") if source else ("target",)
            ):
                images = torch.randn(batch, 3, height, width, device=self.device)
                outs.append(
                    self.train(images.contiguous(memory_format=torch.channels_last), domain)
                )
            torch.cat(outs).square().mean().backward()
            return True
        except torch.OutOfMemoryError:
            return False
        except Exception as error:
            if self._forward is None or not self._forward.give_up(error):
                raise
        finally:
            outs = []
            self.model.zero_grad(set_to_none=True)
            for buffer, before in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(before)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return self._fits(batch, height, width, source)

    def begin_step(self) -> None:
        """Say that what earlier steps gave is no longer needed."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def train(self, images: Tensor, domain: Domain = "target") -> Tensor:
        """Embeddings (B, D) float32 of any length, with gradient, of normalised images (B, 3, H, W)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            out = self._train(images, "raw", domain)
        return cast(Tensor, out).float()

    def features(
        self, images: Tensor, stage: Stage, domain: Domain = "target", flip: bool = False
    ) -> Tensor:
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


class _Compiled:
    """A compiled forward; at its first failure the plain one from then on, and why is said."""

    def __init__(self, plain: Callable[..., Any], mode: str, warn: Callable[[str], None]) -> None:
        self._plain, self._warn = plain, warn
        self._run: Callable[..., Any] = torch.compile(plain, mode=mode, dynamic=False)

    def __call__(self, images: Tensor, stage: Stage = "bn", domain: Domain = "target") -> Tensor:
        """What the network gives."""
        try:
            return cast(Tensor, self._run(images, stage, domain))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not self.give_up(error):
                raise
            return cast(Tensor, self._plain(images, stage, domain))

    def give_up(self, error: Exception) -> bool:
        """Run uncompiled from now on; False where it was already so."""
        if self._run is self._plain:
            return False
        self._run = self._plain
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [
            type(error).__name__
        ]
        why = next((line for line in lines if "error:" in line.lower()), lines[0])
        self._warn(
            f"torch.compile failed ({why[:200]}); the network runs uncompiled. To leave the attempt out: --engine.compile none"
        )
        return True
