"""A network with grouped BatchNorm on CUDA equals that of the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastreid_al.models import build_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"


def test_grouped_batchnorm_equals_that_of_the_cpu() -> None:
    # In float64, for convolutions in float32 may run in TF32 on CUDA.
    model = build_model("osnet_x0_25", "none", bn_group=4).double()
    images = torch.randn(10, 3, 64, 32, dtype=torch.float64)
    expected = model(images)
    running = {name: t.clone() for name, t in model.state_dict().items() if "running" in name}
    torch.manual_seed(0)
    other = build_model("osnet_x0_25", "none", bn_group=4).double()
    other.load_state_dict({**model.state_dict(), **_fresh_statistics(model)})
    other.to(DEVICE)
    torch.testing.assert_close(other(images.to(DEVICE)).cpu(), expected, rtol=0, atol=1e-8)
    got = other.state_dict()
    for name, values in running.items():
        torch.testing.assert_close(got[name].cpu(), values, rtol=1e-8, atol=1e-10)


def _fresh_statistics(model: torch.nn.Module) -> dict[str, Tensor]:
    state = {
        name: t
        for name, t in model.state_dict().items()
        if "running" in name or "num_batches" in name
    }
    return {
        name: torch.ones_like(t) if name.endswith("var") else torch.zeros_like(t)
        for name, t in state.items()
    }
