"""Features of images: OpenVINO, beside PyTorch, torch.compile and ONNX Runtime.

PyTorch is the form of before: pixels are normalised, and the network reads them channels-last.
`OMP_NUM_THREADS` sets the threads of all forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastreid_al.config import EngineConfig
from fastreid_al.engine.network import Network
from fastreid_al.exports.deployed import DeployedNet
from fastreid_al.exports.graphs import to_onnx
from fastreid_al.models import ReIdNet, build_model

#: Backbone, height, width, images.
SIZES = {
    "tiny": [("resnet18", 32, 16, 4)],
    "small": [
        ("osnet_x0_25", 256, 128, 64),
        ("osnet_x1_0", 256, 128, 32),
        ("resnet18", 96, 48, 64),
        ("resnet50", 256, 128, 32),
    ],
}
CPU = torch.device("cpu")

Extract = Callable[[Tensor], Tensor]


def by_engine(model: ReIdNet, **settings: Any) -> Extract:
    engine = EngineConfig(**settings)
    network = Network(model.to(memory_format=torch.channels_last), engine, CPU)
    extract = network.feature_pass(10_000, "bn")

    def features(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return extract(pixels)

    return features


def by_pytorch(model: ReIdNet, height: int, width: int) -> Extract:
    return by_engine(model, inference="torch")


def compiled(model: ReIdNet, height: int, width: int) -> Extract:
    return by_engine(model, inference="torch", compile="default")


def by_openvino(model: ReIdNet, height: int, width: int) -> Extract:
    return by_engine(model, inference="openvino")


def by_onnx_runtime(model: ReIdNet, height: int, width: int) -> Extract:
    import onnxruntime

    content = to_onnx(DeployedNet(model, "bn"), height, width, {})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    return lambda pixels: torch.from_numpy(session.run(None, {name: pixels.numpy()})[0])


FORMS = {
    "OpenVINO": by_openvino,
    "PyTorch": by_pytorch,
    "torch.compile": compiled,
    "ONNX Runtime": by_onnx_runtime,
}


def make(form: str, name: str, height: int, width: int, images: int) -> tuple[Extract, Tensor]:
    torch.manual_seed(0)
    extract = FORMS[form](build_model(name, "none", bn_group=0).eval(), height, width)
    pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8)
    extract(pixels)
    return extract, pixels


def call(extract: Extract, pixels: Tensor) -> Tensor:
    return extract(pixels)


@pytest.mark.parametrize("form", FORMS)
def test_extraction(
    benchmark: BenchmarkFixture,
    size: tuple[str, int, int, int],
    form: str,
    device: str,
    rounds: int,
) -> None:
    if device == "cuda":
        pytest.skip("it compares forms for a CPU")
    name, height, width, images = size
    benchmark.group = f"features of {images} images, {name}, {height} x {width}"
    if form == "torch.compile" and images < 32:
        pytest.skip("compiling takes minutes, which the tiny size is not worth")
    arguments = make(form, *size)
    features = benchmark.pedantic(call, arguments, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info.update(form=form, n=images, **harness.surroundings(device))
    expected = call(*make("PyTorch", *size))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
