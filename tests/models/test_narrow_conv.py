"""3 x 3 convolutions of narrow images as a matrix product, against those of PyTorch in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastreid_al.models import build_model, narrow_conv
from fastreid_al.models.narrow_conv import NarrowConv2d, narrow_convolutions


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the images that a matrix product convolves."""
    seen: list[torch.Size] = []
    original = narrow_conv._patches

    def noting(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return original(x)

    monkeypatch.setattr(narrow_conv, "_patches", noting)
    return seen


def layer(inputs: int = 24, outputs: int = 512) -> NarrowConv2d:
    made = narrow_convolutions(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
    made.to(memory_format=torch.channels_last)
    assert isinstance(made, NarrowConv2d)
    return made


def images(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def step(conv: nn.Conv2d, x: Tensor, gradient: Tensor, low: bool) -> list[Tensor]:
    """Output of a layer, and gradients for the images and the weight."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        y = conv(x.bfloat16() if low else x)
    y.backward(gradient.to(y.dtype))
    assert x.grad is not None and conv.weight.grad is not None
    return [y.detach(), x.grad, conv.weight.grad]


@pytest.mark.parametrize("shape", [(4, 24, 6, 3), (1, 24, 1, 1), (3, 24, 2, 4), (2, 24, 1, 2)])
def test_outputs_and_gradients_are_those_of_the_convolution(
    shape: tuple[int, ...], products: list[torch.Size]
) -> None:
    conv = layer()
    x = images(*shape).bfloat16().float()
    gradient = images(shape[0], 512, *shape[2:]).bfloat16().float()
    exact = nn.Conv2d(24, 512, 3, padding=1, bias=False).double()
    exact.weight.data = conv.weight.detach().bfloat16().double()
    got = step(conv, x, gradient, low=True)
    # Of the images forward, of the gradient and of the images again backward.
    assert len(products) == 3
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert [value.dtype for value in got] == [torch.bfloat16, torch.float32, torch.float32]
    expected = step(exact, x.double(), gradient.double(), low=False)
    for value, wanted in zip(got, expected, strict=True):
        # A rounding to bfloat16 changes a value by up to 1 / 256 of it.
        assert torch.allclose(value.double(), wanted, rtol=2**-8, atol=1e-3)


def test_an_unneeded_gradient_is_left_out(products: list[torch.Size]) -> None:
    conv = layer()
    conv.requires_grad_(False)
    x = images(2, 24, 6, 3).bfloat16().requires_grad_()
    conv.to(torch.bfloat16)(x).sum().backward()
    assert x.grad is not None and conv.weight.grad is None and len(products) == 2


def test_float32_wide_images_and_other_layouts_are_convolved_as_before(
    products: list[torch.Size],
) -> None:
    conv = layer()
    for x in (images(2, 24, 6, 3), images(2, 24, 6, 5).bfloat16(), torch.randn(2, 24, 6, 3)):
        weight = conv.weight.to(x.dtype)
        if not x.is_contiguous(memory_format=torch.channels_last):
            x = x.bfloat16()
            weight = weight.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
            assert torch.equal(conv(x), F.conv2d(x, weight, padding=1))
    assert products == []


@pytest.mark.parametrize(
    "other",
    [
        {"bias": True},
        {"stride": 2},
        {"padding": 0},
        {"dilation": 2},
        {"kernel_size": 1},
        {"groups": 2},
        {"out_channels": 256},
        {"padding_mode": "reflect"},
    ],
)
def test_other_convolutions_are_left_as_they_are(other: dict[str, object]) -> None:
    usual = {"in_channels": 24, "out_channels": 512, "kernel_size": 3, "padding": 1, "bias": False}
    conv = nn.Conv2d(**{**usual, **other})  # type: ignore[arg-type]
    assert type(narrow_convolutions(conv)) is nn.Conv2d


def test_a_resnet_trains_on_small_images_with_products(products: list[torch.Size]) -> None:
    model = build_model("resnet18", "none").to(memory_format=torch.channels_last)
    again = copy.deepcopy(model)
    x = images(16, 3, 96, 48)
    with torch.autocast("cpu", torch.bfloat16):
        model(x, "raw").square().sum().backward()
    # Two blocks of two convolutions in the last stage.
    assert len(products) == 12 and {shape[3] for shape in products} == {3}
    products.clear()
    again(x, "raw")
    assert products == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_the_backbone_of_a_resnet_can_be_scripted() -> None:
    backbone = build_model("resnet18", "none", bn_group=0).eval().backbone
    x = images(2, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(torch.jit.script(backbone)(x), backbone(x))
