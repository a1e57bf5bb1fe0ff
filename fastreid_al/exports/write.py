"""Writes a network in one of the forms."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import NetworkForm
from ..errors import UserError
from ..files import replacing
from ..models import ReIdNet, Stage
from ..models.safetensors_file import ABOUT_NETWORK
from .deployed import DeployedNet, layout
from .graphs import save_openvino, to_onnx, to_torch_export, to_torchscript
from .tracker import torchreid_state

#: How the name of a file may end.
SUFFIXES: Mapping[NetworkForm, tuple[str, ...]] = {
    "onnx": (".onnx",),
    "openvino": (".xml",),
    "torchscript": (".pt", ".ts", ".torchscript"),
    "torch-export": (".pt2",),
    "safetensors": (".safetensors",),
    "torchreid": (".pth", ".pt", ".tar"),
    "boxmot": (".pt",),
}
_GRAPHS = {"onnx": to_onnx, "torchscript": to_torchscript, "torch-export": to_torch_export}


def files_of(form: NetworkForm, out: Path) -> list[Path]:
    """Return the files of an export: `out`, and for OpenVINO the file of the weights.

    Raises:
        UserError: The name does not end as the form demands.
    """
    if out.suffix not in SUFFIXES[form]:
        raise UserError(
            f"`out`: got {out}, expected a name that ends in {' or '.join(SUFFIXES[form])} "
            f"for `what` {form}"
        )
    return [out, out.with_suffix(".bin")] if form == "openvino" else [out]


def write_form(
    form: NetworkForm,
    model: ReIdNet,
    stage: Stage,
    size: tuple[int, int],
    about: Mapping[str, str],
    path: Path,
    half: bool = False,
) -> None:
    """Write a network.

    Args:
        form: What is written.
        model: The network, in evaluation mode.
        stage: Which features it computes; torchreid and BoxMOT compute pool5.
        size: Height and width of its images in pixels.
        about: Metadata.
        path: The file, in a folder that is not used by anyone else.
        half: Whether OpenVINO's weights are written in half precision.

    Raises:
        UserError: The network cannot be converted.
        OSError: The file cannot be written.
    """
    if form == "openvino":
        save_openvino(DeployedNet(model, stage), *size, about, path, half)
        return
    if form in _GRAPHS:
        content = _GRAPHS[form](DeployedNet(model, stage), *size, about)
    elif form == "safetensors":
        content = _to_safetensors(model, layout(model, stage, *size), about)
    else:
        content = _to_weights(model, about, form)
    with replacing(path) as file:
        file.write(content)


def _to_safetensors(model: ReIdNet, network: Mapping[str, Any], about: Mapping[str, str]) -> bytes:
    """Return all weights under the project's names; equal bytes for equal networks."""
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    # One entry, because the library writes several in no fixed order.
    content = json.dumps({"network": network, "about": about}, sort_keys=True)
    return save(state, {ABOUT_NETWORK: content})


def _to_weights(model: ReIdNet, about: Mapping[str, str], form: NetworkForm) -> bytes:
    """Return the weights of the backbone as torch.save writes them, for torchreid and BoxMOT."""
    content: dict[str, Any] = {"state_dict": torchreid_state(model), "fastreid_al": dict(about)}
    if form == "boxmot":
        # Newer versions of BoxMOT read it in place of the file's name.
        content["model_name"] = model.name
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()
