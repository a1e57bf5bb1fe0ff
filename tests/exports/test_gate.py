"""A file with other features is found, and common mistakes are named."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastreid_al.exports import DeployedNet, Reference, check_file, open_file
from fastreid_al.exports.gate import find_fault
from fastreid_al.exports.graphs import to_onnx, to_torchscript
from fastreid_al.exports.runtimes import Runtime
from fastreid_al.models import ReIdNet
from tests.support.exported import SIZE, calibrated, colours, exported, reference

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@pytest.fixture(scope="module")
def model() -> ReIdNet:
    return calibrated()


@pytest.fixture(scope="module")
def wanted(model: ReIdNet) -> Reference:
    return reference(model)


class Faulty(nn.Module):
    """A network with something wrong before it."""

    def __init__(self, model: ReIdNet, wrong: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.wrong = wrong
        self.register_buffer("mean", MEAN)
        self.register_buffer("std", STD)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features of images, wrongly prepared."""
        return self.model(self.wrong(images.float()))


def normal(images: Tensor) -> Tensor:
    return (images / 255 - MEAN) / STD


MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "red and blue exchanged": lambda x: normal(x.flip(1)),
    "images that were normalised twice": lambda x: (normal(x) - MEAN) / STD,
    "normalised and divided by 255 twice": lambda x: normal(normal(x)),
    "divided by 255 twice": lambda x: normal(x / 255),
    "divided by 255 and not normalised": lambda x: x / 255,
    "neither divided by 255 nor normalised": lambda x: x,
    "normalised without division by 255": lambda x: (x - MEAN) / STD,
    "mirrored left to right": lambda x: normal(x.flip(-1)),
    "height and width exchanged": lambda x: normal(x.transpose(2, 3)),
    "resized to 24 x 12": lambda x: normal(F.interpolate(x, (24, 12), mode="bilinear")),
}


@pytest.mark.parametrize(
    ("form", "clause"),
    [
        *(("torchscript", clause) for clause in MISTAKES),
        # ONNX takes ten times as long.
        ("onnx", "red and blue exchanged"),
        ("onnx", "images that were normalised twice"),
        ("onnx", "resized to 24 x 12"),
    ],
)
def test_a_usual_mistake_in_a_file_is_named(
    form: Any, clause: str, model: ReIdNet, wanted: Reference, tmp_path: Path
) -> None:
    faulty: Any = Faulty(model, MISTAKES[clause])
    path = tmp_path / "faulty"
    convert = to_onnx if form == "onnx" else to_torchscript
    path.write_bytes(convert(faulty, *SIZE, {}))
    parity, fault = check_file(wanted, open_file(form, path, model), unit_norm=True)
    assert not parity.holds
    assert "its features are those of" in fault and clause in fault
    assert f"lowest cosine {parity.cosine:.6f}" in fault


def test_a_file_of_another_image_size_is_not_run(
    model: ReIdNet, wanted: Reference, tmp_path: Path
) -> None:
    runtime = exported("onnx", model, tmp_path / "net.onnx", size=(256, 128))
    parity, fault = check_file(wanted, runtime, unit_norm=True)
    assert fault == "it takes images of 256 x 128, the run has 48 x 24"
    assert not parity.holds


def large_values() -> ReIdNet:
    """A network whose features are right in float32, and whose values overflow in float16."""
    model = copy.deepcopy(calibrated())
    norm = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)][-1]
    norm.weight.data *= 1e6
    norm.bias.data *= 1e6
    model.neck.running_mean *= 1e6
    model.neck.running_var *= 1e12
    return model


class HalfNet(nn.Module):
    """A network in half precision."""

    def __init__(self, model: ReIdNet) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()
        self.model.neck.float()
        self.register_buffer("mean", MEAN)
        self.register_buffer("std", STD)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features that were computed in float16 up to the neck."""
        return self.model(((images.float() / 255 - self.mean) / self.std).half())


def test_an_overflow_of_half_precision_is_named(tmp_path: Path) -> None:
    model = large_values()
    wanted = reference(model)
    assert torch.isfinite(wanted.features).all()
    half: Any = HalfNet(model)
    path = tmp_path / "half.pt"
    path.write_bytes(to_torchscript(half, *SIZE, {}))
    parity, fault = check_file(wanted, open_file("torchscript", path, model), unit_norm=True)
    assert not parity.finite
    assert "of 40 images are not finite: values inside the network reach" in fault
    assert "65,504 of half precision" in fault


def test_half_precision_that_does_not_overflow_is_judged_by_the_features(tmp_path: Path) -> None:
    model = calibrated()
    half: Any = HalfNet(model)
    path = tmp_path / "half.pt"
    path.write_bytes(to_torchscript(half, *SIZE, {}))
    parity, _ = check_file(reference(model), open_file("torchscript", path, model), unit_norm=True)
    assert parity.finite and parity.cosine > 0.999


def test_the_other_stage_is_named(model: ReIdNet, wanted: Reference, tmp_path: Path) -> None:
    runtime = exported("torchscript", model, tmp_path / "x.pt", "pool5")
    _, fault = check_file(wanted, runtime, unit_norm=True)
    assert "the stage pool5, before the last BatchNorm" in fault
    pooled = reference(model, "pool5")
    runtime = exported("torchscript", model, tmp_path / "y.pt", "bn")
    _, fault = check_file(pooled, runtime, unit_norm=True)
    assert "the stage bn, after the last BatchNorm" in fault


def test_features_that_no_mistake_explains_are_refused_all_the_same(wanted: Reference) -> None:
    noise = torch.randn(wanted.features.shape, generator=torch.Generator().manual_seed(3))
    assert find_fault(wanted, noise) == "no common mistake explains it"
    parity, fault = check_file(wanted, Runtime(lambda x: noise[: len(x)]), unit_norm=False)
    assert not parity.holds and "no common mistake" in fault


class OneSize(nn.Module):
    """A backbone that takes images of one size only."""

    features = 12

    def forward(self, images: Tensor) -> Tensor:
        """Means of the quarters of an image, in each channel."""
        assert images.shape[-2:] == SIZE
        return F.adaptive_avg_pool2d(images, 2).flatten(1)


def test_a_mistake_is_named_for_a_backbone_of_one_image_size() -> None:
    model = ReIdNet("one size", OneSize(), 12).eval()
    wanted = reference(model)
    swapped = Reference.of(model, "bn", wanted.pixels.flip(1)).features
    assert "red and blue exchanged" in find_fault(wanted, swapped)


def test_features_must_be_unit_norm_where_that_is_promised(
    model: ReIdNet, wanted: Reference
) -> None:
    def longer(images: Tensor) -> Tensor:
        return 3 * Reference.of(model, "bn", images).features

    assert check_file(wanted, Runtime(longer), unit_norm=False)[1] == ""
    fault = check_file(wanted, Runtime(longer), unit_norm=True)[1]
    assert fault == "its features are not unit-norm: their lengths are 3 to 3"


def test_a_file_that_fails_or_has_another_dimension_is_refused_in_one_line(
    model: ReIdNet, wanted: Reference
) -> None:
    def fails(images: Tensor) -> Tensor:
        raise RuntimeError("\nno\nsuch operator")

    parity, fault = check_file(wanted, Runtime(fails), unit_norm=True)
    assert fault == "it fails on images of 48 x 24 (no)" and not parity.holds
    _, fault = check_file(wanted, Runtime(lambda x: torch.ones(len(x), 7)), unit_norm=True)
    assert fault == "it computes features of shape (40, 7), expected (40, 64)"


def test_files_of_a_fixed_number_of_float_images_are_checked_too(
    model: ReIdNet, wanted: Reference, tmp_path: Path
) -> None:
    class Float(DeployedNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)

    out = io.BytesIO()
    program = torch.onnx.export(
        Float(model, "bn"), (torch.zeros(3, 3, *SIZE),), dynamo=True, verbose=False
    )
    assert program is not None
    onnx.save(program.model_proto, out)
    path = tmp_path / "fixed.onnx"
    path.write_bytes(out.getvalue())
    parity, fault = check_file(wanted, open_file("onnx", path, model), unit_norm=True)
    assert fault == "" and parity.holds and parity.same_lists == 40


def test_the_right_file_passes(model: ReIdNet, wanted: Reference, tmp_path: Path) -> None:
    parity, fault = check_file(wanted, exported("onnx", model, tmp_path / "x.onnx"), True)
    assert fault == "" and parity.holds and parity.images == 40


def test_two_images_are_enough(model: ReIdNet, tmp_path: Path) -> None:
    few = Reference.of(model, "bn", colours(2))
    assert check_file(few, exported("torchscript", model, tmp_path / "x.pt"), True)[1] == ""
