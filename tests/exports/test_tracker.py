"""Weights for torchreid and BoxMOT: their rules load every layer, and features are equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastreid_al.data.augment import normalize
from fastreid_al.errors import UserError
from fastreid_al.exports import check_torchreid, check_tracker, open_file, write_form
from fastreid_al.exports.tracker import load_by_name, torchreid_state
from fastreid_al.models import ReIdNet, build_model
from fastreid_al.models.osnet import OSNet
from tests.support.exported import calibrated, colours

#: The size that BoxMOT takes; the weights do not depend on it.
SIZE = (256, 128)
SMALL = (64, 32)
NAMES = Path(__file__).parent.parent / "models" / "osnet_names.json"


class TheirOSNet(nn.Module):
    """OSNet as torchreid and BoxMOT build it: always with `fc`, and with a classifier."""

    def __init__(self, name: str) -> None:
        super().__init__()
        for part, module in OSNet(name, fc=True).named_children():
            self.add_module(part, module)
        self.classifier = nn.Linear(512, 751)

    def forward(self, images: Tensor) -> Tensor:
        """What they take as features: the output of `fc`."""
        x = self.maxpool(self.conv1(images))
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        return self.fc(self.global_avgpool(x).flatten(1))


class TheirResNet(torchvision.models.ResNet):
    """torchreid's ResNet: `classifier` in place of torchvision's `fc`, and any stride."""

    def __init__(self, stride: int) -> None:
        super().__init__(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2])
        self.fc = nn.Identity()
        self.classifier = nn.Linear(512, 751)
        self.layer4[0].conv1.stride = (stride, stride)
        self.layer4[0].downsample[0].stride = (stride, stride)


def loaded(path: Path, network: nn.Module) -> set[str]:
    """Load a file by their rules; returns the names that fitted."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    state = checkpoint.get("state_dict", checkpoint)
    mine = network.state_dict()
    fitting = {}
    for key, value in state.items():
        key = key[7:] if key.startswith("module.") else key
        if key in mine and mine[key].size() == value.size():
            fitting[key] = value
    mine.update(fitting)
    network.load_state_dict(mine)
    network.eval()
    return set(fitting)


def written(form: Any, model: ReIdNet, path: Path) -> Path:
    write_form(form, model, "pool5", SMALL, {"model": model.name}, path)
    return path


@pytest.mark.parametrize("form", ["torchreid", "boxmot"])
@pytest.mark.parametrize("fc", [True, False])
def test_every_layer_of_their_osnet_is_loaded_and_its_features_are_pool5(
    form: str, fc: bool, tmp_path: Path
) -> None:
    model = calibrated("osnet_x0_25", SMALL, osnet_fc=fc)
    network = TheirOSNet("osnet_x0_25")
    names = loaded(written(form, model, tmp_path / "osnet_x0_25_mine.pt"), network)
    assert set(network.state_dict()) - names == {"classifier.weight", "classifier.bias"}
    images = normalize(colours(4, SMALL))
    with torch.no_grad():
        found = nn.functional.normalize(network(images))
        own = model(images, "pool5")
    torch.testing.assert_close(found[:, : model.features], own, atol=1e-5, rtol=0)
    assert not found[:, model.features :].any()


def test_the_names_are_those_of_the_published_file() -> None:
    state = torchreid_state(build_model("osnet_x1_0", "none"))
    plain = {k: list(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert plain == json.loads(NAMES.read_text())


def test_torchreids_resnet_needs_the_stride_of_the_last_stage(tmp_path: Path) -> None:
    model = calibrated("resnet18", SMALL)
    path = written("torchreid", model, tmp_path / "x.pth")
    images = normalize(colours(3, SMALL))
    features = {}
    for stride in (1, 2):
        network = TheirResNet(stride)
        names = loaded(path, network)
        assert set(network.state_dict()) - names == {"classifier.weight", "classifier.bias"}
        with torch.no_grad():
            features[stride] = nn.functional.normalize(network(images))
    own = model(images, "pool5")
    torch.testing.assert_close(features[1], own, atol=1e-5, rtol=0)
    # The reason why BoxMOT, where the stride cannot be set, gets no ResNet.
    assert (features[2] * own).sum(1).min() < 0.9999


def test_a_file_that_would_leave_layers_at_random_values_is_found(tmp_path: Path) -> None:
    model = calibrated("osnet_x0_25", SMALL)
    state = torchreid_state(model)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pt")
    assert load_by_name(tmp_path / "a.pt", build_model("osnet_x0_25", "none").backbone) == []
    torch.save({f"backbone.{k}": v for k, v in state.items()}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="would leave 565 tensors of osnet_x0_25 at random values"):
        open_file("boxmot", tmp_path / "b.pt", model)


@pytest.mark.parametrize("name", ["osnet_x0_25_mine.pt", "OSNET_x0_25.pt", "my_osnet_x0_25_4.pt"])
def test_a_file_name_that_boxmot_understands_is_taken(name: str) -> None:
    check_tracker(build_model("osnet_x0_25", "none"), *SIZE, name)


@pytest.mark.parametrize(
    ("model", "size", "name", "said"),
    [
        ("osnet_x0_25", SIZE, "mine.pt", "names no architecture: name it osnet_x0_25_NAME.pt"),
        ("osnet_x0_25", SIZE, "osnet_x0_5_a.pt", "names osnet_x0_5: name it osnet_x0_25_NAME.pt"),
        ("osnet_x0_25", SIZE, "clip_osnet_x0_25.pt", "names osnet_x0_25 and clip"),
        ("osnet_x0_25", (96, 48), "osnet_x0_25_a.pt", "resizes images to 256 x 128, this network"),
        ("osnet_x0_25", SIZE, "osnet_x0_25_veri.pt", "256 x 256 because osnet_x0_25_veri.pt"),
        ("resnet18", SIZE, "resnet18_a.pt", "ResNets halve the resolution in their last stage"),
        ("tiny", SIZE, "tiny.pt", "BoxMOT has no network tiny"),
    ],
)
def test_what_boxmot_would_take_for_something_else_is_refused(
    model: str, size: tuple[int, int], name: str, said: str
) -> None:
    network = build_model(model, "none")
    with pytest.raises(UserError, match=said):
        check_tracker(network, *size, name)


def test_a_network_for_vehicles_may_have_square_images() -> None:
    check_tracker(build_model("osnet_x0_25", "none"), 256, 256, "osnet_x0_25_veri.pt")


def test_a_network_that_torchreid_does_not_have_is_refused() -> None:
    check_torchreid(build_model("resnet50", "none"))
    with pytest.raises(UserError, match="generalised mean pooling"):
        check_torchreid(build_model("resnet50", "none", pool="gem"))
    with pytest.raises(UserError, match="torchreid has no network tiny"):
        check_torchreid(build_model("tiny", "none"))
