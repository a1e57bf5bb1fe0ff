"""Features by OpenVINO, on a CPU, from the present weights of a network.

A network is traced and converted once. The constants of the converted network are the memory of a
copy of the network. So new weights are copied there, and only the compilation is repeated, which
fuses them: 0.1 to 0.7 s for the networks of this library (docs/speed.md).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.augment import normalize
from ..errors import TrainingError, UserError, one_line
from ..metrics.parity import Parity, compare_features
from ..models import Domain, ReIdNet, Stage
from ..optional import import_openvino, openvino_core

#: Images in a pass below which compiling costs more than it saves.
FEWEST = 1000
#: Multiply-adds of convolutions for each output of a BatchNorm, below which OpenVINO pays: what it
#: saves is the time of BatchNorm and ReLU. OSNet has 40 to 120, ResNet-50 490, ResNet-18 1,060.
_DENSEST = 600.0
#: Images by which a hand-over of weights is checked: as many at each, so that a resumed run, whose
#: first hand-over is a later one of the run, decides as the run would have.
_CHECK = 64
#: Images that one request computes: their activations stay in the caches.
_PART = 16
#: Most characters of a library's reason in a message.
_LONGEST_REASON = 200

Compute = Callable[[Tensor], Tensor]


def require_openvino() -> None:
    """Refuse to go on without OpenVINO.

    Raises:
        UserError: It is not installed.
    """
    if find_spec("openvino") is None:
        raise UserError(
            "`engine.inference` openvino needs OpenVINO: pip install 'fastreid_al[cpu]'"
        )


class OpenVinoInference:
    """Computes the features of a network by OpenVINO.

    Args:
        model: The network; its weights are read at each `load`.
        stage: Which features.
        domain: Domain of the images, where each domain has its own BatchNorms.
        flip: Whether to average the features of the images and of their mirror images.
    """

    def __init__(self, model: ReIdNet, stage: Stage, domain: Domain, flip: bool) -> None:
        self._model = model
        self._flip = flip
        self._copy = _Pixels(_copied(model), stage, domain).eval()
        self._size: torch.Size | None = None
        self._converted: Any = None
        # The converted network reads its weights through it.
        self._decoder: Any = None
        self._queue: Any = None
        #: The last comparison with PyTorch; None before the first.
        self.parity: Parity | None = None

    def load(self, pixels: Tensor, reference: Compute) -> bool:
        """Take over the present weights, and compare the features with PyTorch's.

        Args:
            pixels: (B, 3, H, W) uint8: images to compare with. Later images are of their size.
            reference: Computes the features by PyTorch.

        Returns:
            Whether the features are the same.
        """
        first = self._size != pixels.shape[2:]
        # A trace cannot be made of tensors of the inference mode.
        with torch.inference_mode(False), torch.no_grad():
            fresh = self._take_weights()
            if first:
                self._convert(pixels.shape[2:])
        if first or fresh:
            self._compile()
        some = pixels[:_CHECK]
        self.parity = compare_features(reference(some), self(some))
        return self.parity.holds

    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute unit-norm features.

        Args:
            pixels: (B, 3, H, W) uint8.

        Returns:
            (B, D) float32.
        """
        out = self._infer(pixels)
        return nn.functional.normalize(out + self._infer(pixels.flip(-1))) if self._flip else out

    def _infer(self, pixels: Tensor) -> Tensor:
        array = pixels.contiguous().numpy()
        out = np.empty((len(array), self._model.features), dtype=np.float32)

        def keep(request: Any, start: int) -> None:
            part = request.get_output_tensor(0).data
            out[start : start + len(part)] = part

        self._queue.set_callback(keep)
        for start in range(0, len(array), _PART):
            part = array[start : start + _PART]
            self._queue.start_async([part], start, share_inputs=True)
        self._queue.wait_all()
        return torch.from_numpy(out)

    def _take_weights(self) -> bool:
        """Copy the network's weights into the copy; whether any differ."""
        fresh = False
        own = self._copy.network.state_dict()
        for name, value in self._model.state_dict().items():
            if not torch.equal(own[name], value):
                own[name].copy_(value)
                fresh = True
        return fresh

    def _convert(self, size: torch.Size) -> None:
        """Trace the copy for images of a size, and convert it."""
        import_openvino()
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        example = torch.zeros(2, 3, *size, dtype=torch.uint8)
        with warnings.catch_warnings():
            # Of sizes that the trace takes as constant, as they are here; and that torch.export
            # replaces the trace, whose constants would be no memory of the copy.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(self._copy, example, check_trace=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        self._decoder = TorchScriptPythonDecoder(traced)
        # openvino.convert_model would fold the weights into constants of its own.
        self._converted = frontend.convert(frontend.load(self._decoder))
        self._converted.reshape([-1, 3, *size])
        self._size = size

    def _compile(self) -> None:
        """Compile the converted network with the weights of the copy."""
        openvino = import_openvino()
        threads = torch.get_num_threads()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            # Several processes on one machine would be put on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = openvino_core().compile_model(self._converted, "CPU", settings)
        self._queue = openvino.AsyncInferQueue(compiled, threads)


class _Pixels(nn.Module):
    """A network that takes pixels (B, 3, H, W) uint8 and returns features (B, D) float32."""

    def __init__(self, network: ReIdNet, stage: Stage, domain: Domain) -> None:
        super().__init__()
        self.network = network
        self._stage: Stage = stage
        self._domain: Domain = domain

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(normalize(pixels), self._stage, self._domain)
        return features


def _copied(model: ReIdNet) -> ReIdNet:
    """A copy of a network in evaluation mode whose tensors are contiguous.

    OpenVINO copies tensors of another layout, and would not see new weights in them.
    """
    shared: dict[int, Any] = {}
    for module in model.modules():
        for name in ("world", "process_group"):
            # Connections to other processes cannot be copied, and evaluation needs none.
            value = getattr(module, name, None)
            shared[id(value)] = value
    with torch.inference_mode(False):
        copied = copy.deepcopy(model, shared).eval().requires_grad_(False)
        return copied.to(memory_format=torch.contiguous_format)


def pays(model: ReIdNet, height: int, width: int) -> bool:
    """Whether OpenVINO is expected to be faster than PyTorch, from the shapes of the layers.

    It is not measured, so that all processes and a resumed run decide alike.

    Args:
        model: The network.
        height: Height of an image.
        width: Width of an image.
    """
    work = {"multiply-adds": 0, "outputs": 0}

    def convolution(layer: nn.Module, _: Any, out: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        work["multiply-adds"] += out.numel() * layer.weight[0].numel()

    def norm(_: nn.Module, __: Any, out: Tensor) -> None:
        work["outputs"] += out.numel()

    probe = _copied(model)
    for layer in probe.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(convolution)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_hook(norm)
    with torch.inference_mode():
        probe(torch.zeros(1, 3, height, width))
    return 0 < work["multiply-adds"] < _DENSEST * work["outputs"]


class InferenceChoice:
    """Decides what computes features on a CPU: OpenVINO, or PyTorch.

    Args:
        model: The network.
        setting: The setting `engine.inference`.
        usable: Whether the network runs on a CPU, uncompiled.
        report: Prints a line.
        warn: Prints a warning.
    """

    def __init__(
        self,
        model: ReIdNet,
        setting: str,
        usable: bool,
        report: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._model = model
        self._asked = setting == "openvino"
        self._report = report
        self._warn = warn
        self._usable = usable and setting != "torch"
        if self._usable and self._asked:
            require_openvino()
        elif self._usable:
            self._usable = find_spec("openvino") is not None
        elif self._asked:
            warn(
                "`engine.inference` openvino is for a CPU, without `engine.compile`: PyTorch "
                "extracts the features"
            )
        self._pays: bool | None = None
        self._warned = False
        self._forms: dict[tuple[Stage, Domain, bool], OpenVinoInference] = {}

    def for_pass(
        self, images: int, stage: Stage, domain: Domain, flip: bool, reference: Compute
    ) -> Compute:
        """What computes the features of one pass over images, whose weights do not change.

        Args:
            images: Images of the pass.
            stage: Which features.
            domain: Domain of the images.
            flip: Whether to average with the features of the mirror images.
            reference: Computes the features of pixels (B, 3, H, W) uint8 by PyTorch.

        Returns:
            A function of pixels (B, 3, H, W) uint8 that returns features (B, D) float32.
        """
        chosen: list[Compute] = []

        def compute(pixels: Tensor) -> Tensor:
            if not chosen:
                form = self._loaded(images, pixels, stage, domain, flip, reference)
                chosen.append(form or reference)
            return chosen[0](pixels)

        return compute

    def _use(self, images: int, pixels: Tensor) -> bool:
        if not self._usable or len(pixels) < 2:
            return False
        if self._asked:
            return True
        if images < FEWEST:
            return False
        if self._pays is None:
            self._pays = pays(self._model, pixels.shape[2], pixels.shape[3])
        return self._pays

    def _loaded(
        self,
        images: int,
        pixels: Tensor,
        stage: Stage,
        domain: Domain,
        flip: bool,
        reference: Compute,
    ) -> Compute | None:
        """OpenVINO with the present weights; None where it does not pay or cannot be used.

        A network that OpenVINO cannot run is not tried again. Features that differ depend on the
        weights, so they decide about this pass alone: a resumed run decides alike.
        """
        key = (stage, domain, flip)
        new = key not in self._forms
        problem, lasting = "", False
        try:
            if not self._use(images, pixels):
                return None
            if new:
                self._forms[key] = OpenVinoInference(self._model, stage, domain, flip)
            form = self._forms[key]
            if not form.load(pixels, reference):
                problem = f"computes other features than PyTorch ({form.parity})"
        except Exception as error:  # a converter fails in many ways
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            problem, lasting = f"cannot run {self._model.name} ({reason[:_LONGEST_REASON]})", True
        if problem:
            # The caller says that the network has diverged.
            if bool(torch.isfinite(reference(pixels[:_CHECK])).all()):
                if lasting:
                    self._usable = False
                    self._forms.clear()
                self._complain(problem)
            return None
        if new:
            threads = torch.get_num_threads()
            self._report(
                f"features by OpenVINO {version('openvino').split('-')[0]}, {threads} threads; "
                f"compared with PyTorch: {form.parity}"
            )
        return form

    def _complain(self, problem: str) -> None:
        """Say once that PyTorch is used in its place; an error where OpenVINO was asked for."""
        problem = one_line(f"OpenVINO {problem}")
        if self._asked:
            raise TrainingError(f"{problem}; set `engine.inference` to torch")
        if not self._warned:
            self._warn(f"{problem}: PyTorch extracts the features")
        self._warned = True
