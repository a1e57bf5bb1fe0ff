"""`grouped_batch_norm` on a CPU: as good as PyTorch's BatchNorm of each group by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reid_kernels import grouped_batch_norm, grouped_batch_norm_reference
from reid_kernels.grouped_norm import _grouped_batch_norm, _grouped_batch_norm_backward
from reid_kernels.grouped_norm_cpu import (
    backward_native,
    backward_plain,
    forward_native,
    forward_plain,
)
from torch import Tensor

from tests.support.kernels import FLOATS, assert_as_good_as_eager

#: Relative error that passes without comparison.
TINY = {torch.float64: 1e-14, torch.float32: 2e-7, torch.float16: 1e-4, torch.bfloat16: 1e-3}


def example_grouped_batch_norm(call: Callable[..., Any], x: Tensor, bank: Tensor) -> Any:
    return call(x, bank[0], bank[1], 3)


def problem(
    shape: tuple[int, ...], dtype: torch.dtype, last: bool = False, seed: int = 0
) -> list[Tensor]:
    """Images of a mean that is not zero, weight, bias, and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    x, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x = (2 * x + torch.randn(shape[1], generator=generator).view(-1, *[1] * (len(shape) - 2))).to(
        dtype
    )
    gradient = gradient.to(dtype)
    if last:
        x, gradient = (y.movedim(1, -1).contiguous().movedim(-1, 1) for y in (x, gradient))
    kind = torch.promote_types(dtype, torch.float32)
    weight, bias = (torch.randn(shape[1], generator=generator).to(kind) for _ in range(2))
    return [x, weight, bias, gradient]


def through(
    call, x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor, group: int
) -> list[Tensor]:
    """Images, statistics and gradients of a form."""
    leaves = [y.clone().requires_grad_() for y in (x, weight, bias)]
    y, mean, var = call(*leaves, group)
    return [y.detach(), mean.detach(), var.detach(), *torch.autograd.grad(y, leaves, gradient)]


def loop(x: Tensor, weight: Tensor, bias: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's BatchNorm of one group after the other."""
    parts, means, variances = [], [], []
    for part in x.split(group):
        mean, var = torch.zeros_like(weight), torch.zeros_like(weight)
        parts.append(F.batch_norm(part, mean, var, weight, bias, True, 1.0, 1e-5))
        means.append(mean)
        variances.append(var)
    return torch.cat(parts), torch.stack(means), torch.stack(variances)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 4),
    group=st.integers(2, 5),
    channels=st.integers(1, 20),
    places=st.sampled_from([(), (3,), (4, 3), (1, 1), (2, 1, 2)]),
    dtype=st.sampled_from([*FLOATS, torch.float64]),
    last=st.booleans(),
    seed=st.integers(0, 100),
)
def test_it_is_as_good_as_a_loop_over_the_groups(
    groups: int,
    group: int,
    channels: int,
    places: tuple[int, ...],
    dtype: torch.dtype,
    last: bool,
    seed: int,
) -> None:
    inputs = problem((groups * group, channels, *places), dtype, last, seed)
    got = through(grouped_batch_norm, *inputs, group)
    eager = through(loop, *inputs, group)
    exact = through(grouped_batch_norm_reference, *(x.double() for x in inputs), group)
    for place, (a, b, c) in enumerate(zip(got, eager, exact, strict=True)):
        assert a.dtype == b.dtype, place
        assert_as_good_as_eager(a, b, c, TINY[dtype])
    assert got[0].stride() == got[3].stride() == inputs[0].stride()


@pytest.mark.parametrize("last", [False, True])
def test_large_batches_are_written_in_place_as_exactly(last: bool) -> None:
    inputs = problem((8, 24, 96, 64), torch.float32, last)
    got, eager = (through(call, *inputs, 4) for call in (grouped_batch_norm, loop))
    exact = through(grouped_batch_norm_reference, *(x.double() for x in inputs), 4)
    for a, b, c in zip(got, eager, exact, strict=True):
        assert_as_good_as_eager(a, b, c, TINY[torch.float32])


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 2, 2)])
def test_gradients_are_those_of_differences(shape: tuple[int, ...]) -> None:
    x, weight, bias, _ = (y.requires_grad_() for y in problem(shape, torch.float64))
    assert torch.autograd.gradcheck(
        lambda *inputs: grouped_batch_norm(*inputs, 3)[0], (x, weight, bias)
    )


def test_what_other_devices_take_is_the_same() -> None:
    x, weight, bias, gradient = problem((6, 5, 3, 2), torch.float64, True)
    plain, native = (f(x, weight, bias, 2, 1e-5) for f in (forward_plain, forward_native))
    back = [
        f(gradient, x, weight, plain[1], plain[3], 2) for f in (backward_plain, backward_native)
    ]
    for a, b in zip((*plain, *back[0]), (*native, *back[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_only_what_is_asked_for_gets_a_gradient_and_only_once() -> None:
    x, weight, bias, gradient = problem((4, 3, 2, 2), torch.float32)
    y, mean, var = grouped_batch_norm(x, weight, bias.requires_grad_(), 2)
    assert y.requires_grad and not mean.requires_grad and not var.requires_grad
    (to_bias,) = torch.autograd.grad(y, bias, gradient, create_graph=True)
    torch.testing.assert_close(to_bias.detach(), gradient.sum((0, 2, 3)))
    with pytest.raises(RuntimeError, match="no second derivative"):
        to_bias.sum().backward()


def test_images_that_lie_in_memory_in_no_usual_way() -> None:
    x, weight, bias, gradient = problem((4, 3, 2, 6), torch.float32)
    expected = through(grouped_batch_norm, x, weight, bias, gradient, 2)
    odd = torch.empty(4, 3, 2, 12)[..., ::2].copy_(x)
    y, _, _ = grouped_batch_norm(odd.requires_grad_(), weight, bias, 2)
    y.backward(gradient[:1].expand(4, -1, -1, -1))
    again = through(
        grouped_batch_norm, x, weight, bias, gradient[:1].expand(4, -1, -1, -1).contiguous(), 2
    )
    torch.testing.assert_close(y.detach(), expected[0])
    torch.testing.assert_close(odd.grad, again[3])


def test_on_the_edges() -> None:
    x, weight, bias, gradient = problem((4, 3, 2, 2), torch.float32)
    for empty, group in ((x[:0], 5), (x[:0], 1)):
        y, mean, var = grouped_batch_norm(
            empty.requires_grad_(), weight.requires_grad_(), bias, group
        )
        y.sum().backward()
        assert y.shape == empty.shape and mean.shape == var.shape == (0, 3)
        assert not weight.grad.any()
    whole = through(grouped_batch_norm, x, weight, bias, gradient, 4)
    torch.testing.assert_close(whole[0], F.batch_norm(x, None, None, weight, bias, True))
    constant = torch.full((4, 3), 7.0)
    y, mean, var = grouped_batch_norm(constant, weight, bias, 2)
    torch.testing.assert_close(y, bias.expand(4, 3), rtol=0, atol=1e-3)
    assert (mean == 7).all() and not var.any()
    x[3, 1, 0, 0] = torch.nan
    y, _, var = grouped_batch_norm(x, weight, bias, 2)
    assert y.isnan().flatten(2).any(2).nonzero().tolist() == [
        [2, 1],
        [3, 1],
    ] and var.isnan().nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("x", "channels", "group", "message"),
    [
        (torch.zeros(4), 4, 2, r"x: got shape \(4,\)"),
        (torch.zeros(4, 3, dtype=torch.int64), 3, 2, "x: got dtype torch.int64"),
        (torch.zeros(4, 3), 3, 3, "group: got 3, expected a divisor of 4"),
        (torch.zeros(4, 3), 3, 0, "group: got 0, expected 1 or more"),
        (torch.zeros(4, 3), 3, 1, r"x: got shape \(4, 3\), expected more than one value a channel"),
        (torch.zeros(4, 3), 2, 2, r"weight: got shape \(2,\), expected \(3,\)"),
    ],
)
def test_bad_input_is_named(x: Tensor, channels: int, group: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grouped_batch_norm(x, torch.ones(channels), torch.zeros(channels), group)


@pytest.mark.parametrize("last", [False, True])
def test_operators_are_registered_as_pytorch_wants_them(last: bool) -> None:
    x, weight, bias, gradient = problem((4, 3, 2, 2), torch.float32, last)
    leaves = (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
    torch.library.opcheck(_grouped_batch_norm, (*leaves, 2, 1e-5))
    _, mean, _, rstd = _grouped_batch_norm(x.detach(), weight.detach(), bias.detach(), 2, 1e-5)
    torch.library.opcheck(
        _grouped_batch_norm_backward, (gradient, x.detach(), weight.detach(), mean, rstd, 2)
    )


@pytest.mark.parametrize("last", [False, True])
def test_it_compiles_to_one_graph_for_all_batches(last: bool) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(grouped_batch_norm, backend=counter, fullgraph=True)
    for batch in (4, 8, 12):
        inputs = problem((batch, 5, 3, 2), torch.float32, last)
        torch._dynamo.mark_dynamic(inputs[0], 0)
        leaves = [y.requires_grad_() for y in inputs[:3]]
        got = compiled(*leaves, 2)
        gradients = torch.autograd.grad(got[0], leaves, inputs[3])
        expected = through(grouped_batch_norm, *(y.detach() for y in inputs), 2)
        for a, b in zip((*got, *gradients), expected, strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=1e-5, atol=1e-5)
        assert got[0].stride() == inputs[0].stride()
    assert counter.frame_count == 1
