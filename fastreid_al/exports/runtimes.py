"""Opens exported files with the libraries that will run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import NetworkForm
from ..data.augment import normalize
from ..errors import UserError
from ..models import build_model
from ..models.head import ReIdNet
from ..models.osnet import FEATURES, OSNet
from ..optional import openvino_core
from .packages import quiet
from .tracker import load_by_name


@dataclass(frozen=True)
class Runtime:
    """A file as its library runs it.

    Args:
        features: Computes features (B, D) float of images (B, 3, H, W) uint8.
        size: Height and width of the images that it takes; None where they are not fixed.
    """

    features: Callable[[Tensor], Tensor]
    size: tuple[int, int] | None = None


def open_file(form: NetworkForm, path: Path, model: ReIdNet) -> Runtime:
    """Open a file.

    Args:
        form: What it is; not "safetensors", which `load_trained` reads.
        path: The file.
        model: The network that was exported, whose architecture a weights file is loaded into.

    Raises:
        UserError: It cannot be opened.
    """
    openers: dict[str, Callable[[], Runtime]] = {
        "onnx": lambda: _open_onnx(path),
        "openvino": lambda: _open_openvino(path),
        "torchscript": lambda: _open_torchscript(path),
        "torch-export": lambda: _open_torch_export(path),
        "torchreid": lambda: _open_weights(path, model),
        "boxmot": lambda: _open_weights(path, model),
    }
    try:
        with quiet():
            return openers[form]()
    except UserError:
        raise
    except Exception as error:  # each library has exceptions of its own
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{path.name} cannot be opened as {form} ({reason[:200]})") from error


def _open_onnx(path: Path) -> Runtime:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Bytes, because a path may hold any.
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    entry = session.get_inputs()[0]
    dtype = np.uint8 if "uint8" in entry.type else np.float32

    def run(images: Tensor) -> Tensor:
        found = session.run(None, {entry.name: images.numpy().astype(dtype)})[0]
        return torch.from_numpy(np.asarray(found))

    return Runtime(_by_batch(run, entry.shape[0]), _size_of(entry.shape))


def _by_batch(run: Callable[[Tensor], Tensor], batch: Any) -> Callable[[Tensor], Tensor]:
    """Run a file whose number of images is fixed on any number of them."""
    if not isinstance(batch, int) or batch < 1:
        return run

    def run_all(images: Tensor) -> Tensor:
        missing = -len(images) % batch
        padded = torch.cat((images, images[-1:].expand(missing, *images.shape[1:])))
        return torch.cat([run(part) for part in padded.split(batch)])[: len(images)]

    return run_all


def _size_of(shape: list[Any]) -> tuple[int, int] | None:
    height, width = shape[-2:] if len(shape) == 4 else (None, None)
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _open_openvino(path: Path) -> Runtime:
    # By default OpenVINO computes in bfloat16 on processors that have it.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(path, "CPU", exact)
    entry = compiled.inputs[0]
    shape = [d.get_length() if d.is_static else None for d in entry.get_partial_shape()]
    dtype = entry.get_element_type().to_dtype()

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled(images.numpy().astype(dtype))[0].copy())

    return Runtime(_by_batch(run, shape[0]), _size_of(shape))


def _open_torchscript(path: Path) -> Runtime:
    with open(path, "rb") as file:
        module = torch.jit.load(file, map_location="cpu")
    return Runtime(_without_gradient(module))


def _open_torch_export(path: Path) -> Runtime:
    with open(path, "rb") as file:
        program = torch.export.load(file)
    return Runtime(_without_gradient(program.module()))


def _without_gradient(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return run


def _open_weights(path: Path, model: ReIdNet) -> Runtime:
    """Load the backbone of a file as torchreid and BoxMOT do, with the fully connected layer."""
    backbone = build_model(model.name, "none", bn_group=0).eval().backbone
    missing = load_by_name(path, backbone)
    if missing:
        raise UserError(
            f"{path.name}: torchreid and BoxMOT would leave {len(missing)} tensors of "
            f"{model.name} at random values, the first {missing[0]}"
        )
    run = _without_gradient(lambda images: backbone(normalize(images)))
    if not isinstance(model.backbone, OSNet) or model.features == FEATURES:
        return Runtime(run)
    return Runtime(lambda images: _without_padding(run(images), model.features))


def _without_padding(features: Tensor, count: int) -> Tensor:
    """Leave out columns that are 0; others are kept, and do not fit then."""
    return features[:, :count] if not features[:, count:].any() else features
