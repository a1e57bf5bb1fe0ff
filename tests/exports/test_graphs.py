"""A network in four forms of graph: the same features, from pixels, for any number of images."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, get_args

import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import nn

from fastreid_al.config import NetworkForm
from fastreid_al.data.augment import normalize
from fastreid_al.errors import UserError
from fastreid_al.exports import SUFFIXES, DeployedNet, describe, files_of, write_form
from fastreid_al.exports.deployed import GRAPHS
from fastreid_al.models import ReIdNet, Stage
from tests.support.exported import SIZE, calibrated, colours, exported
from tests.support.tiny import FEATURES

ROOT = Path(__file__).parent.parent.parent
BACKBONES = [
    *((name, {}) for name in ("resnet18", "resnet34", "resnet50", "resnet101")),
    ("resnet18", {"pool": "gem"}),
    *((name, {}) for name in ("osnet_x1_0", "osnet_x0_75", "osnet_x0_5", "osnet_x0_25")),
    ("osnet_x0_25", {"osnet_fc": False}),
]


def named(tmp_path: Path, form: Any) -> Path:
    return tmp_path / f"net{SUFFIXES[form][0]}"


def test_pixels_become_the_features_of_the_network_bit_for_bit() -> None:
    model = calibrated()
    pixels = colours(3)
    with torch.no_grad():
        for stage in ("bn", "pool5"):
            found = DeployedNet(model, stage)(pixels)  # type: ignore[arg-type]
            assert torch.equal(found, model(normalize(pixels), stage))


@pytest.mark.parametrize("stage", ["bn", "pool5"])
@pytest.mark.parametrize("form", GRAPHS)
def test_a_file_computes_the_features_of_any_number_of_images(
    form: Any, stage: Stage, tmp_path: Path
) -> None:
    model = calibrated()
    runtime = exported(form, model, named(tmp_path, form), stage)
    assert runtime.size == (SIZE if form in ("onnx", "openvino") else None)
    for count in (1, 2, 5):
        pixels = colours(count)
        found = runtime.features(pixels)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, model(normalize(pixels), stage), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(count))


@pytest.mark.slow
@pytest.mark.parametrize("form", GRAPHS)
@pytest.mark.parametrize(("name", "options"), BACKBONES, ids=str)
def test_every_backbone_can_be_exported(
    name: str, options: dict[str, Any], form: Any, tmp_path: Path
) -> None:
    size = (64, 32)
    model = calibrated(name, size, **options)
    runtime = exported(form, model, named(tmp_path, form), size=size)
    pixels = colours(3, size)
    with torch.no_grad():
        own = model(normalize(pixels))
    torch.testing.assert_close(runtime.features(pixels), own, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", [f for f in get_args(NetworkForm) if f != "torchscript"])
def test_two_exports_have_equal_bytes_without_paths_of_this_machine(
    form: Any, tmp_path: Path
) -> None:
    model = calibrated("osnet_x0_25") if form in ("torchreid", "boxmot") else calibrated()
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        out = named(tmp_path / name, form)
        write_form(form, model, "bn", SIZE, {"model": "any", "b": "1", "a": "2"}, out)
        contents.append([file.read_bytes() for file in files_of(form, out)])
    assert contents[0] == contents[1]
    assert not [content for content in contents[0] if str(ROOT).encode() in content]


def test_a_file_says_what_its_network_needs(tmp_path: Path) -> None:
    model = calibrated()
    about = describe(model, "pool5", *SIZE, "0" * 64, "onnx")
    assert about["colour_order"] == "RGB" and "bicubic" in about["resize"]
    assert (about["height"], about["width"], about["feature_dimension"]) == ("48", "24", "64")
    files = {form: named(tmp_path, form) for form in GRAPHS}
    for form, file in files.items():
        write_form(form, model, "pool5", SIZE, about, file)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(files["onnx"])
    assert session.get_modelmeta().custom_metadata_map == about
    read = openvino.Core().read_model(files["openvino"])
    assert {key: read.get_rt_info(["fastreid_al", key]).value for key in about} == about
    extra: dict[str, Any] = {"fastreid_al.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch discourages TorchScript
        torch.jit.load(files["torchscript"], _extra_files=extra)
    assert json.loads(extra["fastreid_al.json"]) == about
    torch.export.load(files["torch-export"], extra_files=extra)
    assert json.loads(extra["fastreid_al.json"]) == about


def test_an_onnx_file_is_complete_and_valid(tmp_path: Path) -> None:
    exported("onnx", calibrated(), tmp_path / "net.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    model = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert not any(t.data_location for t in model.graph.initializer)
    entry, out = model.graph.input[0], model.graph.output[0]
    assert (entry.name, out.name) == ("images", "features")
    assert entry.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    dims = [
        [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in (entry, out)
    ]
    assert dims == [["batch", 3, *SIZE], ["batch", FEATURES]]


@pytest.mark.parametrize("form", GRAPHS)
def test_a_conversion_prints_nothing(
    form: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    exported(form, calibrated(), named(tmp_path, form)).features(colours(2))
    assert tuple(capfd.readouterr()) == ("", "")
    assert list(recwarn) == []


class Undecided(nn.Module):
    """A backbone whose forward pass depends on the values of its input."""

    features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Means of the channels, or their negatives."""
        means = images.mean((2, 3))
        return means if means.numpy().sum() > 0 else -means


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_a_backbone_that_cannot_be_traced_is_refused_in_one_line(form: Any, tmp_path: Path) -> None:
    model = ReIdNet("undecided", Undecided(), 3).eval()
    with pytest.raises(UserError, match="must not depend on the values") as said:
        write_form(form, model, "bn", SIZE, {"model": "any"}, named(tmp_path, form))
    assert "\n" not in str(said.value) and list(tmp_path.iterdir()) == []


def test_a_name_must_end_as_its_form_demands() -> None:
    assert files_of("openvino", Path("a/b.xml")) == [Path("a/b.xml"), Path("a/b.bin")]
    with pytest.raises(UserError, match=r"`out`: got net\.pt, expected a name that ends in \.onnx"):
        files_of("onnx", Path("net.pt"))
