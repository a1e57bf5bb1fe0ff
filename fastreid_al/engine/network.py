"""The network as the engine runs it: precision, compilation, several processes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import EngineConfig
from ..data.augment import normalize
from ..distributed.world import SINGLE_PROCESS, World
from ..errors import TrainingError
from ..models import Domain, ReIdNet, Stage, join_world
from .openvino_inference import InferenceChoice
from .precision import Precision, choose_precision

#: Modes of torch.compile, by the setting `engine.compile`.
_MODES = {"default": "default", "graphs": "reduce-overhead"}


class Network:
    """Forward passes of a network in the configured precision, with float32 results.

    Args:
        model: The network; its weights are used in place.
        settings: Precision and compilation.
        device: Where the network is.
        warn: Called with one line when the network cannot be compiled or run as asked.
        report: Called with one line that says what extracts features, where it is not PyTorch.
        precision: What the processes of a run have agreed on; that of `settings` when not given.
    """

    def __init__(
        self,
        model: ReIdNet,
        settings: EngineConfig,
        device: torch.device,
        warn: Callable[[str], None] = lambda _: None,
        report: Callable[[str], None] = lambda _: None,
        precision: Precision | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.precision = precision or choose_precision(settings, device)
        mode = compile_of(settings, device)
        self.compiled = mode != "none"
        self.graphs = mode == "graphs"
        if settings.compile == "graphs" and not self.graphs:
            warn("CUDA graphs need a GPU: the network is compiled without them")
        self._forward: _CompiledForward | None = None
        if self.compiled:
            self._forward = _CompiledForward(model.forward, _MODES[mode], warn)
            model.forward = self._forward  # type: ignore[method-assign]
        self._train: nn.Module = model
        usable = device.type == "cpu" and not self.compiled
        self._inference = InferenceChoice(model, settings.inference, usable, report, warn)

    def join(self, world: World) -> Network:
        """Wrap the network in DDP and synchronise its BatchNorms, for several processes.

        Args:
            world: The processes that train together.

        Returns:
            The network itself.
        """
        join_world(self.model, world)
        if world.size > 1:
            # `update_running` keeps the running statistics equal; DDP need not copy the buffers.
            parameters = inspect.signature(DistributedDataParallel).parameters
            new_name = "forward_sync_buffers" in parameters
            copies_buffers = "forward_sync_buffers" if new_name else "broadcast_buffers"
            self._train = DistributedDataParallel(
                self.model,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                process_group=world.group,
                gradient_as_bucket_view=True,
                **{copies_buffers: False},  # type: ignore[arg-type]
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
        """Run a training step on noise, to see before expensive work whether it compiles and fits.

        The network is left as it was. Call it before `join`: inside, no process waits for another.

        Args:
            batch: Images that are forwarded together.
            height: Height of an image in pixels.
            width: Width of an image in pixels.
            step: A smaller batch must be a multiple of this number.
            source: Whether as many images of a source are forwarded in each step.
            spare: What else would free memory, as the end of the message.
            world: Processes that do the same.

        Raises:
            TrainingError: The device has too little memory; the message names a batch that fits.
        """
        if not self.compiled and self.device.type != "cuda":
            return

        def fits(count: int) -> bool:
            return not world.any_true(not self._fits(count, height, width, source))

        if fits(batch):
            return
        smaller = batch // 2 // step * step
        while smaller and not fits(smaller):
            smaller = smaller // 2 // step * step
        advice = "no batch would fit: take a smaller `model` or image"
        if smaller:
            advice = f"`batch.size` {smaller * world.size} would fit"
        each = " on each rank" if world.size > 1 else ""
        raise TrainingError(
            f"{self.device} has no memory for a batch of {batch} images of {height} x {width}"
            f"{each} ({self.model.name}); {advice}{spare}"
        )

    def _fits(self, batch: int, height: int, width: int, source: bool) -> bool:
        """Whether a training step fits; if compiling fails, it is tried again uncompiled."""
        kept = [buffer.clone() for buffer in self.model.buffers()]
        self.model.train()
        domains: tuple[Domain, ...] = ("target", "source") if source else ("target",)
        embeddings = []
        try:
            self.begin_step()
            for domain in domains:
                images = torch.randn(batch, 3, height, width, device=self.device)
                images = images.contiguous(memory_format=torch.channels_last)
                embeddings.append(self.train(images, domain))
            torch.cat(embeddings).square().mean().backward()
            return True
        except torch.OutOfMemoryError:
            return False
        except Exception as error:
            if self._forward is None or not self._forward.give_up(error):
                raise
        finally:
            # Free the graph before the cache is emptied.
            embeddings = []
            self.model.zero_grad(set_to_none=True)
            for buffer, before in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(before)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return self._fits(batch, height, width, source)

    def begin_step(self) -> None:
        """Begin a step; results of earlier steps may be overwritten from here on (CUDA graphs)."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def train(self, images: Tensor, domain: Domain = "target") -> Tensor:
        """Compute embeddings with gradient.

        Args:
            images: (B, 3, H, W) float32, normalised.
            domain: Whose BatchNorms to use, where each domain has its own.

        Returns:
            (B, D) float32, not normalised.
        """
        low = self.precision.training == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            out = self._train(images, "raw", domain)
        return cast(Tensor, out).float()

    def feature_pass(
        self, images: int, stage: Stage, domain: Domain = "target", flip: bool = False
    ) -> Callable[[Tensor], Tensor]:
        """What computes the features of one pass over images, during which no weight changes.

        Args:
            images: Images of the pass.
            stage: Which features.
            domain: Whose BatchNorms to use, where each domain has its own.
            flip: Whether to average the features of the images and of their mirror images.

        Returns:
            A function of pixels (B, 3, H, W) uint8 that returns unit-norm features (B, D) float32.
            It begins a step.
        """

        def by_pytorch(pixels: Tensor) -> Tensor:
            self.begin_step()
            prepared = normalize(pixels).contiguous(memory_format=torch.channels_last)
            return self.features(prepared, stage, domain, flip)

        return self._inference.for_pass(images, stage, domain, flip, by_pytorch)

    def features(
        self, images: Tensor, stage: Stage, domain: Domain = "target", flip: bool = False
    ) -> Tensor:
        """Compute unit-norm features, without regard to gradients.

        Args:
            images: (B, 3, H, W) float32, normalised.
            stage: Which features.
            domain: Whose BatchNorms to use, where each domain has its own.
            flip: Whether to average the features of the images and of their mirror images.

        Returns:
            (B, D) float32.
        """
        low = self.precision.features == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            out = self.model(images, stage, domain).float()
            if flip:
                # A CUDA graph writes its next result over this one.
                out = out.clone() if self.graphs else out
                out = out + self.model(images.flip(-1), stage, domain).float()
        return torch.nn.functional.normalize(out) if low or flip else cast(Tensor, out)


def compile_of(settings: EngineConfig, device: torch.device) -> str:
    """Return "none", "default" or "graphs"; auto depends on the device, graphs need a GPU."""
    if settings.compile == "auto":
        return "default" if device.type == "cuda" else "none"
    return "default" if settings.compile == "graphs" and device.type != "cuda" else settings.compile


def choose_algorithms(deterministic: bool) -> None:
    """Let PyTorch use the fastest algorithms, or only those with the same bits from run to run."""
    # Shapes are few and fixed, so it pays to try out the algorithms for convolutions.
    torch.backends.cudnn.benchmark = not deterministic
    if not deterministic:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


class _CompiledForward:
    """A compiled forward pass, which falls back to eager at its first failure, with a warning."""

    def __init__(self, plain: Callable[..., Any], mode: str, warn: Callable[[str], None]) -> None:
        self._plain = plain
        self._warn = warn
        self._current: Callable[..., Any] = torch.compile(plain, mode=mode, dynamic=False)

    def __call__(self, images: Tensor, stage: Stage = "bn", domain: Domain = "target") -> Tensor:
        """Run the forward pass."""
        try:
            return cast(Tensor, self._current(images, stage, domain))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not self.give_up(error):
                raise
            return cast(Tensor, self._plain(images, stage, domain))

    def give_up(self, error: Exception) -> bool:
        """Run uncompiled from now on, with a warning.

        Args:
            error: Why compiling failed.

        Returns:
            False when it ran uncompiled already.
        """
        if self._current is self._plain:
            return False
        self._current = self._plain
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        lines = lines or [type(error).__name__]
        reason = next((line for line in lines if "error:" in line.lower()), lines[0])
        self._warn(
            f"torch.compile failed ({reason[:200]}); the network runs uncompiled. "
            "Set `engine.compile` to none to skip the attempt"
        )
        return True
