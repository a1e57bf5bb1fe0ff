"""The head's bias is frozen; GeM is between mean and maximum."""

from __future__ import annotations

import torch

from fastreid_al.models import build_model


def test_neck_bias_is_frozen_and_weight_learns() -> None:
    model = build_model("resnet18", "none")
    model(torch.randn(32, 3, 64, 32)).sum().backward()
    assert model.neck.bias.grad is None
    assert not model.neck.bias.requires_grad
    assert model.neck.weight.grad is not None


def test_gem_of_large_power_approaches_the_maximum() -> None:
    pool = build_model("resnet18", "none", pool="gem").backbone.avgpool
    x = torch.rand(2, 3, 4, 5)
    with torch.no_grad():
        assert torch.allclose(pool(x)[..., 0, 0], x.pow(3).mean((2, 3)).pow(1 / 3), atol=1e-5)
        pool.p.fill_(200.0)
        assert torch.allclose(pool(x)[..., 0, 0], x.amax((2, 3)), atol=0.02)
