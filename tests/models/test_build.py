"""Networks are built by name: shapes, resolution, refusals."""

from __future__ import annotations

import pytest
import torch

from fastreid_al import plugins
from fastreid_al.errors import SettingError
from fastreid_al.models import build_model
from tests.support import tiny

IMAGES = torch.randn(4, 3, 64, 32)


@pytest.mark.parametrize("name", plugins.BUILT_IN[plugins.MODELS])
def test_every_backbone_has_unit_norm_features(name: str) -> None:
    model = build_model(name, "none", bn_group=0).eval()
    with torch.inference_mode():
        features = model(IMAGES)
    assert features.shape == (4, model.features)
    widths = {"resnet50": 2048, "resnet101": 2048, tiny.MODEL: tiny.FEATURES}
    assert model.features == widths.get(name, 512)
    assert torch.allclose(features.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_last_stage_keeps_its_resolution(name: str) -> None:
    backbone = build_model(name, "none").backbone.eval()
    seen = {}
    backbone.layer4.register_forward_hook(
        lambda module, given, out: seen.update(inside=given[0].shape, out=out.shape)
    )
    with torch.inference_mode():
        backbone(torch.randn(1, 3, 256, 128))
    assert seen["inside"][2:] == seen["out"][2:] == (16, 8)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(SettingError, match="did you mean osnet_x0_25"):
        build_model("osnet_x0_2", "none")
    with pytest.raises(ValueError, match="pool: got 'max'"):
        build_model("resnet18", "none", pool="max")


@pytest.mark.parametrize("group", [1, -2])
def test_impossible_groups_are_refused(group: int) -> None:
    with pytest.raises(ValueError, match="bn_group"):
        build_model("resnet18", "none", bn_group=group)
