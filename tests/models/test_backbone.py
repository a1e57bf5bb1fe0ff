"""Backbones of other packages are found by name, or are passed as functions."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

from fastreid_al import plugins
from fastreid_al.errors import WeightsError
from fastreid_al.models import BackboneOptions, build_model
from fastreid_al.models.norm import GroupedBatchNorm2d


def tiny(options: BackboneOptions) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    backbone = nn.Sequential(*layers)
    backbone.features = 8  # type: ignore[assignment]
    return backbone


def test_a_backbone_is_passed_as_a_function() -> None:
    model = build_model(tiny, "none", bn_group=4)
    assert (model.name, model.features) == ("tiny", 8)
    assert isinstance(model.backbone[1], GroupedBatchNorm2d)
    features = model(torch.rand(8, 3, 16, 8))
    assert torch.allclose(features.norm(dim=1), torch.ones(8))


def test_a_backbone_of_another_package_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("small", f"{__name__}:tiny", plugins.MODELS)
    monkeypatch.setattr(plugins, "available", lambda group: {"small": point})
    assert build_model("small", "none").name == "small"


def test_a_backbone_brings_its_imagenet_weights_or_says_that_it_has_none() -> None:
    with pytest.raises(WeightsError, match=r"tiny has no ImageNet weights; .*`weights` none"):
        build_model(tiny, "imagenet")
    expected = {k: torch.ones_like(v) for k, v in tiny(BackboneOptions("")).state_dict().items()}

    def with_weights(options: BackboneOptions) -> nn.Module:
        backbone = tiny(options)
        backbone.imagenet_weights = lambda: expected  # type: ignore[assignment]
        return backbone

    model = build_model(with_weights, "imagenet")
    assert torch.equal(model.backbone[0].weight, expected["0.weight"])
