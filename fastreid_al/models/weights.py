"""Weights files, opened without executing pickles."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError, printable
from ..files import check_digest
from .foreign import find_backbone, fits, flatten_tensors, summarise_names
from .head import ReIdNet
from .norm import without_source
from .safetensors_file import is_safetensors, read_safetensors

#: Types that may stand in a file next to tensors, none of which does anything when it is made:
#: published checkpoints have their rank-1 as a NumPy scalar, and the options of their command line.
_SAFE: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *(np.dtypes.Float16DType, np.dtypes.Float32DType, np.dtypes.Float64DType),
    *(np.dtypes.Int32DType, np.dtypes.Int64DType, np.dtypes.BoolDType),
    argparse.Namespace,
]
#: Format of the first checkpoints that carry a digest.
FIRST_WITH_DIGEST = 3
#: Most characters of another library's reason in a message.
_LONGEST_REASON = 200
#: Name by which a network of this library is known.
_NECK = "neck.running_mean"


def read_tensors(path: Path) -> Any:
    """Open a file written by torch.save, tensors and plain values only, or a .safetensors file.

    Raises:
        WeightsError: The file is missing, damaged, or holds pickled code.
    """
    if not os.path.isfile(path):
        problem = "is not a file" if os.path.exists(path) else "does not exist"
        raise WeightsError(f"{path} {problem}; name a file of weights or a checkpoint")
    try:
        if is_safetensors(path):
            return read_safetensors(path)
        has_digest = check_digest(path)
        _refuse_compressed(path)
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
        reason = reason.split(". ")[0][:_LONGEST_REASON]
        raise WeightsError(
            f"{path} cannot be read as weights ({reason}); download or copy it again"
        ) from error
    if not has_digest and _had_digest(content):
        raise WeightsError(
            f"{path} is damaged: its end, which holds the digest of its content, is missing; "
            "copy it again"
        )
    return content


def _refuse_compressed(path: Path) -> None:
    """Refuse a zip file that holds more than its own size, which torch.save never writes."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as content:
            inside = sum(entry.file_size for entry in content.infolist())
        if inside > path.stat().st_size:
            raise ValueError(f"it is compressed, and holds {inside} bytes")


def _had_digest(content: Any) -> bool:
    """Whether a content is that of a checkpoint which was written with a digest."""
    if not isinstance(content, dict) or not {"model", "network", "epoch"} <= content.keys():
        return False
    version = content.get("format")
    return isinstance(version, int) and version >= FIRST_WITH_DIGEST


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights or of a checkpoint, by their joined names.

    Raises:
        WeightsError: The file cannot be read, or holds no tensors.
    """
    content = read_tensors(path)
    state = flatten_tensors(content)
    if not state:
        raise WeightsError(
            f"{path} holds no state_dict; save one with torch.save(model.state_dict(), PATH)"
        )
    return state


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


def load_weights_file(model: ReIdNet, path: Path) -> str:
    """Load a file of this library or of another code base.

    A file of this library is loaded as a whole, without the source's BatchNorms. From any other
    file the backbone is loaded, all of it or nothing (`foreign`).

    Args:
        model: The network.
        path: The file.

    Returns:
        What was loaded and what was left out, in one line; empty where nothing was left out.

    Raises:
        WeightsError: The file cannot be read, or its tensors do not fit the network.
    """
    state = read_state_dict(path)
    own = _own_state(state)
    if own is None:
        return _load_backbone(model, state, str(path))
    _load(model, without_source(own), str(path), model.name)
    return ""


def _own_state(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the network's part of a file of this library; None for a file of another.

    It has a neck beside the backbone, under whatever wrappers.
    """
    for name in state:
        prefix = name.removesuffix(_NECK)
        parts = (prefix + "backbone.", prefix + "neck.")
        if f".{name}".endswith(f".{_NECK}") and any(other.startswith(parts[0]) for other in state):
            return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(parts)}
    return None


def _load_backbone(model: ReIdNet, state: Mapping[str, Tensor], origin: str) -> str:
    try:
        found = find_backbone(state, model.backbone)
    except ValueError as error:
        raise WeightsError(
            f"{origin} does not fit {model.name}: {error}; "
            "choose the `model` that the file was made with"
        ) from error
    own = model.backbone.state_dict()
    _load(model.backbone, {**own, **found.state}, origin, model.name)
    if not found.left_out:
        return ""
    where = f" under {printable(found.prefix)}*" if found.prefix else ""
    return (
        f"{origin}: took the {len(found.state)} tensors of {model.name}{where}; left out "
        f"{len(found.left_out)} others: {summarise_names(found.left_out, found.prefix)}"
    )


def _load(module: torch.nn.Module, state: Mapping[str, Tensor], origin: str, name: str) -> None:
    expected = module.state_dict()
    # Files of before 2018, torchvision's own among them, lack these counters; nothing here reads
    # them.
    complete = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked")}
    complete.update(state)
    wrong = [k for k in expected if k not in complete or not fits(complete[k], expected[k])]
    extra = [k for k in complete if k not in expected]
    if wrong or extra:
        first = wrong[0] if wrong else extra[0]
        raise WeightsError(
            f"{origin} does not fit {name}: {len(wrong)} tensors are missing or of another shape, "
            f"{len(extra)} are left over (first: {printable(first)}); "
            "choose the `model` that the file was made with"
        )
    for key, tensor in complete.items():
        if not torch.isfinite(tensor.to(expected[key].dtype)).all():
            raise WeightsError(f"{origin}: {printable(key)} is not finite; use another file")
    module.load_state_dict(complete)
