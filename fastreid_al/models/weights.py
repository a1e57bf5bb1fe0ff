"""Weights files, opened without executing pickles."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError
from ..files import check_digest
from .head import ReIdNet
from .norm import without_source

#: Types that may stand in a file next to tensors: published checkpoints have their rank-1 as a
#: NumPy scalar.
_SAFE: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]
#: Format of the first checkpoints that carry a digest.
FIRST_WITH_DIGEST = 3
#: Layers of published files that the backbone does not have.
_DROPPED = ("classifier.", "fc.")


def read_tensors(path: Path) -> Any:
    """Open a file written by torch.save, tensors and plain values only.

    Raises:
        WeightsError: The file is missing, damaged, or holds pickled code.
    """
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise WeightsError(f"{path} {problem}; name a file of weights or a checkpoint")
    try:
        has_digest = check_digest(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a plain weights file (it is damaged, or holds pickled code, "
            "which is never run); save its state_dict with torch.save and name that file"
        ) from error
    except Exception as error:  # damaged bytes raise nearly any type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as weights ({reason}); download or copy it again"
        ) from error
    if not has_digest and _had_digest(content):
        raise WeightsError(
            f"{path} is damaged: its end, which holds the digest of its content, is missing; "
            "copy it again"
        )
    return content


def _had_digest(content: Any) -> bool:
    """Whether a content is that of a checkpoint which was written with a digest."""
    if not isinstance(content, dict) or not {"model", "network", "epoch"} <= content.keys():
        return False
    version = content.get("format")
    return isinstance(version, int) and version >= FIRST_WITH_DIGEST


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read the state dictionary of a file: its weights, or those in a checkpoint.

    The prefix `module.`, which `DataParallel` adds to names, is removed.

    Raises:
        WeightsError: The file cannot be read, or has no state dictionary.
    """
    content = read_tensors(path)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(
            f"{path} holds no state_dict; save one with torch.save(model.state_dict(), PATH)"
        )
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def load_imagenet(model: ReIdNet) -> None:
    """Load ImageNet weights into the backbone, which knows where they are.

    Raises:
        WeightsError: The backbone has none, or they cannot be read or downloaded.
    """
    imagenet_weights = getattr(model.backbone, "imagenet_weights", None)
    if imagenet_weights is None:
        raise WeightsError(
            f"{model.name} has no ImageNet weights; train from random weights with `weights` none, "
            "or name a file"
        )
    _load_backbone(model, imagenet_weights(), f"the file of ImageNet weights of {model.name}")


def load_weights_file(model: ReIdNet, path: Path) -> None:
    """Load a file strictly.

    A file of this library is loaded as a whole, without the source's BatchNorms; from any other
    file the backbone is loaded, without a classifier.

    Args:
        model: The network.
        path: The file.

    Raises:
        WeightsError: The file cannot be read, or its tensors do not fit the network.
    """
    state = without_source(read_state_dict(path))
    if any(name.startswith("backbone.") for name in state):
        _load(model, state, str(path), model.name)
    else:
        _load_backbone(model, state, str(path))


def _load_backbone(model: ReIdNet, state: Mapping[str, Tensor], origin: str) -> None:
    expected = model.backbone.state_dict()
    kept = {}
    for name, tensor in state.items():
        if name in expected or not name.startswith(_DROPPED):
            kept[name] = tensor
    for name, tensor in expected.items():
        # Published files have no weights of a pooling layer.
        if name.startswith("avgpool."):
            kept.setdefault(name, tensor)
    _load(model.backbone, kept, origin, model.name)


def _load(module: torch.nn.Module, state: Mapping[str, Tensor], origin: str, name: str) -> None:
    expected = module.state_dict()
    # Files of before 2018, torchvision's own among them, lack these counters; nothing here reads
    # them.
    complete = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")}
    complete.update(state)
    wrong = [k for k in expected if k not in complete or complete[k].shape != expected[k].shape]
    extra = [k for k in complete if k not in expected]
    if wrong or extra:
        first = wrong[0] if wrong else extra[0]
        raise WeightsError(
            f"{origin} does not fit {name}: {len(wrong)} tensors are missing or of another shape, "
            f"{len(extra)} are left over (first: {first}); "
            "choose the `model` that the file was made with"
        )
    module.load_state_dict(complete)
