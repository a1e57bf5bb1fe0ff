"""The network as the engine runs it: precision, failing compilation, too little memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fastreid_al.config import EngineConfig
from fastreid_al.engine.network import Network
from fastreid_al.engine.precision import Precision
from fastreid_al.errors import TrainingError
from fastreid_al.models import ReIdNet, build_model

CPU = torch.device("cpu")
FLOAT32 = EngineConfig(precision="float32")


@pytest.fixture
def model() -> ReIdNet:
    return build_model("osnet_x0_25", "none", bn_group=4).to(memory_format=torch.channels_last)


def images(n: int = 8) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(n, 3, 32, 16).contiguous(memory_format=torch.channels_last)


def test_features_are_float32_on_a_cpu_whatever_the_precision(model: ReIdNet) -> None:
    model.eval()
    exact = Network(model, FLOAT32, CPU).features(images(), "bn")
    low = Network(model, EngineConfig(precision="bf16"), CPU).features(images(), "bn")
    assert torch.equal(low, exact)


def test_features_in_bfloat16_are_float32_values_near_those_of_float32(model: ReIdNet) -> None:
    """As on a GPU."""
    model.eval()
    exact = Network(model, FLOAT32, CPU).features(images(), "bn")
    on_gpu = Precision("bf16", "bf16", "")
    low = Network(model, EngineConfig(), CPU, precision=on_gpu).features(images(), "bn")
    assert low.dtype == torch.float32 and not torch.equal(low, exact)
    assert (low * exact).sum(1).min() > 0.999
    assert torch.allclose(low.norm(dim=1), torch.ones(8), atol=1e-6)


@pytest.mark.parametrize(("pool", "bn_group"), [("avg", 0), ("avg", 8), ("gem", 8)])
def test_steps_in_bfloat16_have_float32_results_near_those_of_float32(
    pool: str, bn_group: int
) -> None:
    model = build_model("resnet18", "none", pool=pool, bn_group=bn_group)
    model = model.to(memory_format=torch.channels_last).train()
    x = torch.randn(16, 3, 64, 32).contiguous(memory_format=torch.channels_last)
    # A sum or a norm has no gradient: the last BatchNorm holds both.
    direction = torch.randn(16, model.features)
    start = copy.deepcopy(model.state_dict())
    found: list[tuple[Tensor, dict[str, Tensor], Tensor]] = []
    for settings in (FLOAT32, EngineConfig(precision="bf16")):
        model.load_state_dict(start)
        model.zero_grad(set_to_none=True)
        embeddings = Network(model, settings, CPU).train(x)
        (embeddings * direction).sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        assert embeddings.dtype == torch.float32
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        state = copy.deepcopy(model.state_dict())
        assert all(value.dtype == start[key].dtype for key, value in state.items())
        found.append((embeddings.detach(), state, torch.cat(gradients)))
    (exact, exact_state, exact_gradient), (low, low_state, low_gradient) = found
    assert not torch.equal(low, exact)
    assert cosine_similarity(low.flatten(), exact.flatten(), 0) > 0.99
    assert cosine_similarity(low_gradient, exact_gradient, 0) > 0.9
    for key, value in exact_state.items():
        if key.endswith("running_mean") or key.endswith("running_var"):
            assert cosine_similarity(low_state[key], value, 0) > 0.999, key


def test_a_step_in_bfloat16_repeats_to_the_bit(model: ReIdNet) -> None:
    network = Network(model.train(), EngineConfig(precision="bf16"), CPU)
    gradients = []
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        embeddings = network.train(images())
        (embeddings * torch.arange(8.0)[:, None]).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


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
    network = Network(
        model, EngineConfig(precision="float32", compile="default"), CPU, warn=said.append
    )
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
