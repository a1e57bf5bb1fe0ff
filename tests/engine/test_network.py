"""The network as the engine runs it: precision, failing compilation, too little memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastreid_al.config import EngineConfig
from fastreid_al.engine.network import Network
from fastreid_al.errors import TrainingError
from fastreid_al.models import ReIdNet, build_model

CPU = torch.device("cpu")


@pytest.fixture
def model() -> ReIdNet:
    return build_model("osnet_x0_25", "none", bn_group=4).to(memory_format=torch.channels_last)


def images(n: int = 8) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(n, 3, 32, 16).contiguous(memory_format=torch.channels_last)


def test_bfloat16_gives_float32_features_near_those_of_float32(model: ReIdNet) -> None:
    model.eval()
    exact = Network(model, EngineConfig(), CPU).features(images(), "bn")
    low = Network(model, EngineConfig(precision="bf16"), CPU).features(images(), "bn")
    assert low.dtype == torch.float32 and not torch.equal(low, exact)
    assert (low * exact).sum(1).min() > 0.999
    assert torch.allclose(low.norm(dim=1), torch.ones(8), atol=1e-6)
    embeddings = Network(model.train(), EngineConfig(precision="bf16"), CPU).train(images())
    assert embeddings.dtype == torch.float32 and embeddings.requires_grad


def test_flipped_features_are_the_unit_norm_mean_of_both(model: ReIdNet) -> None:
    network = Network(model.eval(), EngineConfig(), CPU)
    both = network.features(images(), "bn", flip=True)
    plain, mirrored = (network.features(x, "bn") for x in (images(), images().flip(-1)))
    assert torch.allclose(both, torch.nn.functional.normalize(plain + mirrored), atol=1e-6)


def test_a_failing_compilation_warns_once_and_the_network_runs_eager(
    model: ReIdNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def fails(*_: Any) -> Tensor:
            raise RuntimeError("no compiler on this machine\nand a long trace")

        return fails

    expected = model(images(), "raw")
    model.load_state_dict(build_again(model))
    monkeypatch.setattr(torch, "compile", broken)
    said: list[str] = []
    network = Network(model, EngineConfig(compile="default"), CPU, warn=said.append)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    network.prove(8, 32, 16)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert len(said) == 1 and "no compiler on this machine" in said[0] and "uncompiled" in said[0]
    assert torch.equal(network.train(images()), expected)
    assert len(said) == 1


def build_again(model: ReIdNet) -> dict[str, Tensor]:
    """The state with the running statistics of a network that has seen nothing."""
    fresh = build_model("osnet_x0_25", "none", bn_group=4).state_dict()
    return {
        k: fresh[k] if "running" in k or "tracked" in k else v
        for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("room", "advice"), [(24, "`batch.size` 16 would fit"), (1, "no batch would fit")]
)
def test_too_little_memory_names_a_batch_that_would_fit(
    model: ReIdNet, monkeypatch: pytest.MonkeyPatch, room: int, advice: str
) -> None:
    network = Network(model, EngineConfig(), CPU)
    network.compiled = True
    forward = model.forward

    def small(x: Tensor, *rest: Any) -> Tensor:
        if len(x) > room:
            raise torch.OutOfMemoryError("too much")
        return forward(x, *rest)

    monkeypatch.setattr(model, "forward", small)
    with pytest.raises(TrainingError, match=advice) as raised:
        network.prove(64, 32, 16, 4, spare="; or put the pixels elsewhere")
    assert "64 images of 32 x 16" in str(raised.value) and "elsewhere" in str(raised.value)
    if room > 1:
        network.prove(room, 32, 16, 4)
