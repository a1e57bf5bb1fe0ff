"""Weights files, opened without executing pickles."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from torch import Tensor

from ..errors import WeightsError
from .head import ReIdNet
from .norm import without_source
from .osnet import WIDTHS

# Published checkpoints carry a NumPy scalar (their rank-1) beside the tensors.
_SAFE: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]
_DROPPED = ("classifier.", "fc.")


def read_tensors(path: Path) -> Any:
    """Open a file written by torch.save, tensors and plain values only.

    Raises:
        WeightsError: The file is missing, damaged, or holds pickled code.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path} {'is not a file' if path.exists() else 'does not exist'}; name a file of weights or a checkpoint"
        )
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a plain weights file (it is damaged, or holds pickled code, which is never run); "
            "save its state_dict with torch.save and name that file"
        ) from error
    except Exception as error:  # damaged bytes raise nearly any type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as weights ({reason}); fetch it again"
        ) from error


def load_imagenet(model: ReIdNet) -> None:
    """Load ImageNet weights into the backbone, from torch's hub folder or by download.

    Raises:
        WeightsError: They are not on disk and cannot be downloaded; the message names the file and its place.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if model.name in WIDTHS:
        file = folder / f"{model.name}_imagenet.pth"
        if not file.is_file():
            raise WeightsError(
                f"ImageNet weights of {model.name} are published for download by hand: put {file.name} of the "
                f"deep-person-reid model zoo at {file}, or train from random weights with --weights none"
            )
        load_weights_file(model, file)
        return
    weights = torchvision.models.get_model_weights(model.name).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"ImageNet weights of {model.name} could not be downloaded ({error}); put {Path(weights.url).name} "
            f"at {folder / Path(weights.url).name}, or train from random weights with --weights none"
        ) from error
    _load_backbone(model, dict(state), Path(weights.url))


def load_weights_file(model: ReIdNet, path: Path) -> None:
    """Load a file strictly: the whole network when the file is this library's, else the backbone without its classifier.

    Of a run with a source it is the target's part.

    Raises:
        WeightsError: The file cannot be read, or its tensors do not fit the network.
    """
    content = read_tensors(path)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(
            f"{path} holds no state_dict; save one with torch.save(model.state_dict(), PATH)"
        )
    state = without_source({str(k).removeprefix("module."): v for k, v in content.items()})
    if any(k.startswith("backbone.") for k in state):
        _load(model, state, path, model.name)
    else:
        _load_backbone(model, state, path)


def _load_backbone(model: ReIdNet, state: dict[str, Tensor], path: Path) -> None:
    wanted = model.backbone.state_dict()
    kept = {k: v for k, v in state.items() if k in wanted or not k.startswith(_DROPPED)}
    # Pooling has no counterpart in published files.
    kept |= {k: v for k, v in wanted.items() if k.startswith("avgpool.") and k not in kept}
    _load(model.backbone, kept, path, model.name)


def _load(module: torch.nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    wanted = module.state_dict()
    # Files of before 2018 lack these counters, torchvision's own among them; nothing here reads them.
    state = {**{k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")}, **state}
    wrong = [k for k in wanted if k not in state or state[k].shape != wanted[k].shape]
    extra = [k for k in state if k not in wanted]
    if wrong or extra:
        first = wrong[0] if wrong else extra[0]
        raise WeightsError(
            f"{path} does not fit {name}: {len(wrong)} tensors are missing or of another shape, {len(extra)} are left over "
            f"(first: {first}); choose the --model that the file was made with"
        )
    module.load_state_dict(state)
