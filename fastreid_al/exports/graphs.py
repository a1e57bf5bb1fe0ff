"""Converts a deployed network to ONNX, OpenVINO, TorchScript and torch.export.

Each conversion runs the network on two images, and leaves the number of images open.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..errors import UserError
from ..files import write_error
from ..optional import import_openvino
from .deployed import DeployedNet
from .packages import quiet

P = ParamSpec("P")
R = TypeVar("R")

#: Version of the ONNX operators; torch.onnx writes it without a conversion.
OPSET = 18
#: Names of the input and of the output.
INPUT = "images"
OUTPUT = "features"
#: The entry of TorchScript and torch.export files that holds the metadata as JSON.
ABOUT = "fastreid_al.json"
#: Most characters of a library's reason in a message.
_LONGEST_REASON = 200


def _converting(form: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Turn a failed conversion into one line; the libraries print nothing."""

    def decorate(convert: Callable[P, R]) -> Callable[P, R]:
        @wraps(convert)
        def converted(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                with quiet(), torch.no_grad():
                    return convert(*args, **kwargs)
            except (OSError, UserError):
                raise
            except Exception as error:  # a tracer raises whatever the network raises
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise UserError(
                    f"the network cannot be converted to {form} ({reason[:_LONGEST_REASON]}); its "
                    "control flow must not depend on the values of its input. `what` safetensors "
                    "writes its weights alone"
                ) from error

        return converted

    return decorate


def _example(height: int, width: int) -> Tensor:
    """Two images (2, 3, H, W) uint8: with one, a tracer would take the number for a constant."""
    return torch.zeros(2, 3, height, width, dtype=torch.uint8)


def _exported(net: DeployedNet, height: int, width: int) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(net, (_example(height, width),), dynamic_shapes=({0: batch},))


@_converting("ONNX")
def to_onnx(net: DeployedNet, height: int, width: int, about: Mapping[str, str]) -> bytes:
    """Return a network as an ONNX file, weights included; equal bytes for equal networks.

    Args:
        net: The network.
        height: Height of its images in pixels.
        width: Width of its images in pixels.
        about: Metadata, for the file's `metadata_props`.

    Raises:
        UserError: It cannot be converted.
    """
    import onnx

    program = torch.onnx.export(
        net,
        (_example(height, width),),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    _remove_traces(model)
    for name, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _remove_traces(model: Any) -> None:
    """Remove what the exporter notes of each node: it holds the paths of source files."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (model, graph, *graph.node, *values):
        del part.metadata_props[:]
        part.doc_string = ""


@_converting("TorchScript")
def to_torchscript(net: DeployedNet, height: int, width: int, about: Mapping[str, str]) -> bytes:
    """Return a network as a TorchScript file, made by tracing.

    PyTorch numbers the classes that it traces, so that a second export in one process has other
    bytes; those of two processes are equal. The file holds the paths of the traced source files.

    Args:
        net: The network.
        height: Height of its images in pixels.
        width: Width of its images in pixels.
        about: Metadata, for the extra file `fastreid_al.json`.

    Raises:
        UserError: It cannot be converted.
    """
    traced = torch.jit.trace(net, _example(height, width), check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file, {ABOUT: json.dumps(about)})
    return file.getvalue()


@_converting("torch.export")
def to_torch_export(net: DeployedNet, height: int, width: int, about: Mapping[str, str]) -> bytes:
    """Return a network as a .pt2 file of torch.export; equal bytes for equal networks.

    Args:
        net: The network.
        height: Height of its images in pixels.
        width: Width of its images in pixels.
        about: Metadata, for the extra file `fastreid_al.json`.

    Raises:
        UserError: It cannot be converted.
    """
    program = _exported(net, height, width)
    for node in program.graph.nodes:
        # It holds the paths of source files.
        node.meta.pop("stack_trace", None)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={ABOUT: json.dumps(about)})
    return file.getvalue()


@_converting("OpenVINO")
def save_openvino(
    net: DeployedNet, height: int, width: int, about: Mapping[str, str], path: Path, half: bool
) -> None:
    """Write a network as a model of OpenVINO, without ONNX; equal bytes for equal networks.

    Args:
        net: The network.
        height: Height of its images in pixels.
        width: Width of its images in pixels.
        about: Metadata, for the group `fastreid_al` of the model's `rt_info`.
        path: The .xml file; the weights lie next to it, in a .bin file.
        half: Whether weights are written in half precision (float16).

    Raises:
        UserError: It cannot be converted.
        OSError: It cannot be written.
    """
    openvino = import_openvino()
    shape = openvino.PartialShape([-1, 3, height, width])
    model = openvino.convert_model(
        net, example_input=_example(height, width), input=[(INPUT, shape, openvino.Type.u8)]
    )
    model.outputs[0].get_tensor().set_names({OUTPUT})
    model.set_friendly_name(about["model"])
    for number, node in enumerate(model.get_ordered_ops()):
        # OpenVINO numbers nodes over all models of a process.
        if node.get_type_name() != "Parameter":
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    for name, value in about.items():
        model.set_rt_info(value, ["fastreid_al", name])
    try:
        openvino.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:
        raise write_error(error, path.parent) from error
