"""`multilabel_bank_loss`: the CPU form against the reference, its corners."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reid_kernels import multilabel_cpu
from reid_kernels.multilabel import (
    _multilabel_bank_loss,
    _multilabel_bank_losses,
    multilabel_bank_loss,
    multilabel_bank_loss_reference,
    sum_of_multilabel_bank_losses,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
EPS = {
    dtype: max(torch.finfo(dtype).eps, 1e-6 if dtype != torch.float64 else 0) for dtype in DTYPES
}


def example_multilabel_bank_loss(call: Callable[..., Tensor], x: Tensor, bank: Tensor) -> Tensor:
    return call(x, bank, (torch.arange(0, 19, 2), torch.arange(18)), hard_ratio=0.1)


def lists(*rows: list[int]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([0, *(len(row) for row in rows)])
    return sizes.cumsum(0), torch.tensor([j for row in rows for j in row], dtype=torch.int64)


def bits(n: int, *rows: list[int]) -> Tensor:
    words = torch.zeros(len(rows), -(-n // 32), dtype=torch.int64)
    for row, positives in zip(words, rows, strict=True):
        for j in set(positives):
            row[j // 32] |= 1 << (j % 32)
    return words.int()


def integers(*shape: int) -> Tensor:
    """Rows whose products are exact in every dtype with float32 sums, and often equal."""
    return torch.randint(-2, 3, shape) / 4


def with_gradient(loss, features: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
    features = features.detach().requires_grad_()
    losses = loss(features, *args, reduction="none", **kwargs)
    return losses.detach(), torch.autograd.grad(losses.sum(), features)[0]


def check(features: Tensor, bank: Tensor, positives, **kwargs) -> tuple[Tensor, Tensor]:
    """Loss and gradient, compared with the reference in float64."""
    losses, gradient = with_gradient(multilabel_bank_loss, features, bank, positives, **kwargs)
    expected = with_gradient(
        multilabel_bank_loss_reference, features.double(), bank.double(), positives, **kwargs
    )
    double = features.dtype == torch.float64
    assert losses.dtype == (torch.float64 if double else torch.float32)
    assert gradient.dtype == features.dtype
    tolerance = 1e-12 if double else 1e-5
    torch.testing.assert_close(losses.double(), expected[0], rtol=tolerance, atol=tolerance)
    tolerance = 1e-12 if double else 10 * EPS[features.dtype]
    torch.testing.assert_close(gradient.double(), expected[1], rtol=tolerance, atol=tolerance)
    return losses, gradient


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_loss_and_gradient_equal_the_reference(data: st.DataObject) -> None:
    batch, n, dim = (data.draw(st.integers(0, most)) for most in (5, 80, 9))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    features, bank = (
        x.to(data.draw(st.shared(st.sampled_from(DTYPES), key="dtype")))
        for x in (integers(batch, dim), integers(n, dim))
    )
    most = data.draw(st.sampled_from([0, 3, 200]))
    positives = [
        torch.randint(0, max(1, n), (int(torch.randint(0, most + 1, ())) if n else 0,)).tolist()
        for _ in range(batch)
    ]
    form = bits(n, *positives) if data.draw(st.booleans()) and batch else lists(*positives)
    check(
        features,
        bank,
        form,
        delta=data.draw(st.sampled_from([0.0, 0.5, 5.0])),
        hard_ratio=data.draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0])),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_any_values_agree_in_every_dtype(dtype: torch.dtype) -> None:
    features, bank = (
        torch.nn.functional.normalize(torch.randn(rows, 24)).to(dtype) for rows in (7, 333)
    )
    positives = lists(*torch.randint(0, 333, (7, 5)).tolist())
    check(features, bank, positives, hard_ratio=0.05)


def test_equal_similarities_at_the_threshold_share_its_places() -> None:
    bank = torch.tensor(
        [[1.0, 0], [0.5, 0], [0.5, 1], [0.5, 2], [0.0, 1], [-1, 0]], dtype=torch.float64
    )
    features = torch.tensor([[1.0, 0]], dtype=torch.float64)
    # Two hard places among negatives of 1, 0.5, 0.5, 0.5, 0: one is left for the three at 0.5.
    losses, gradient = check(features, bank, lists([5]), delta=0.0, hard_ratio=0.4)
    torch.testing.assert_close(losses, torch.tensor([(2**2 + 1.5**2) / 2], dtype=torch.float64))
    weight = torch.tensor([2.0, 0.5, 0.5, 0.5, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(gradient, weight[None] @ bank)


def test_order_of_the_bank_changes_nothing_but_rounding() -> None:
    features, bank, order = integers(4, 8), integers(60, 8), torch.randperm(60)
    positives = lists([3, 4], [], [59], [0, 1, 2])
    moved = positives[0], order.argsort()[positives[1]]
    for x, y in zip(
        check(features, bank, positives, hard_ratio=0.3),
        check(features, bank[order], moved, hard_ratio=0.3),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_no_positives_or_no_negatives_leave_their_term_out() -> None:
    features, bank = torch.randn(3, 8), torch.randn(33, 8)
    everything = list(range(33))
    losses, _ = check(features, bank, lists([], everything, [4]))
    similarity = features @ bank.T
    torch.testing.assert_close(losses[0], (1 + similarity[0].max()).square())
    torch.testing.assert_close(losses[1], 5 * (1 - similarity[1]).square().mean())


def test_hard_negatives_are_counted_in_double_precision() -> None:
    features, bank = torch.ones(1, 1), torch.arange(101.0)[:, None] / 100
    for ratio, hard in ((0.29, 28), (0.01, 1), (0.57, 56), (1.0, 100)):
        loss = multilabel_bank_loss(features, bank, lists([0]), delta=0.0, hard_ratio=ratio)
        torch.testing.assert_close(loss, (1 + bank[-hard:]).square().mean())


def test_a_positive_that_is_listed_twice_counts_once() -> None:
    features, bank = torch.randn(2, 8), torch.randn(40, 8)
    once = multilabel_bank_loss(features, bank, lists([39, 2], [7]), reduction="none")
    assert torch.equal(
        once, multilabel_bank_loss(features, bank, lists([2, 39, 2, 2], [7, 7]), reduction="none")
    )
    assert torch.equal(
        once, multilabel_bank_loss(features, bank, bits(40, [2, 39], [7]), reduction="none")
    )


def test_bits_behind_the_bank_are_not_read() -> None:
    features, bank, clean = torch.randn(1, 8), torch.randn(33, 8), bits(33, [1, 32])
    dirty = clean.clone()
    dirty[0, 1] |= -2
    assert torch.equal(
        multilabel_bank_loss(features, bank, clean), multilabel_bank_loss(features, bank, dirty)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_change_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    features, bank = integers(9, 8).to(dtype), integers(70, 8).to(dtype)
    positives = lists(*torch.randint(0, 70, (9, 3)).tolist())
    whole = with_gradient(multilabel_bank_loss, features, bank, positives, hard_ratio=0.2)
    monkeypatch.setattr(multilabel_cpu, "BLOCK", 4 * 70 * 2)
    for x, y in zip(
        whole,
        with_gradient(multilabel_bank_loss, features, bank, positives, hard_ratio=0.2),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=EPS[dtype], atol=EPS[dtype])


def test_gradients_pass_gradcheck() -> None:
    features = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    bank, positives = torch.randn(30, 5, dtype=torch.float64), lists([2, 3], [], [29])
    for loss in (multilabel_bank_loss_reference, multilabel_bank_loss):
        for reduction in ("mean", "sum", "none"):
            assert torch.autograd.gradcheck(
                lambda x, loss=loss, how=reduction: loss(
                    x, bank, positives, hard_ratio=0.2, reduction=how
                ),
                (features,),
            )


def test_the_bank_may_change_between_forward_and_backward() -> None:
    features, bank, positives = (
        torch.randn(3, 8, requires_grad=True),
        torch.randn(40, 8),
        lists([2], [3], [4]),
    )
    (expected,) = torch.autograd.grad(multilabel_bank_loss(features, bank, positives), features)
    loss = multilabel_bank_loss(features, bank, positives)
    bank.zero_()
    assert torch.equal(torch.autograd.grad(loss, features)[0], expected)
    assert expected.abs().min() > 0


def test_no_gradient_is_computed_unless_it_is_needed() -> None:
    features, bank = torch.randn(3, 8, requires_grad=True), torch.randn(40, 8)
    with torch.no_grad():
        assert not multilabel_bank_loss(features, bank, lists([2], [3], [4])).requires_grad
    assert not multilabel_bank_loss(features.detach(), bank, lists([2], [3], [4])).requires_grad
    _, gradient = _multilabel_bank_loss(
        features.detach(), bank, bits(40, [], [], []), None, 5.0, 0.01, False, "auto"
    )
    assert gradient.shape == (0, 8)


def test_reductions() -> None:
    features, bank, positives = torch.randn(3, 8), torch.randn(40, 8), lists([2], [3], [4])
    losses = multilabel_bank_loss(features, bank, positives, reduction="none")
    assert losses.shape == (3,)
    torch.testing.assert_close(multilabel_bank_loss(features, bank, positives), losses.mean())
    torch.testing.assert_close(
        multilabel_bank_loss(features, bank, positives, reduction="sum"), losses.sum()
    )


@pytest.mark.parametrize(("batch", "n", "dim"), [(0, 40, 8), (0, 0, 8), (3, 0, 8), (3, 40, 0)])
def test_empty_inputs(batch: int, n: int, dim: int) -> None:
    features, bank = torch.randn(batch, dim, requires_grad=True), torch.randn(n, dim)
    for positives in (lists(*[[]] * batch), torch.zeros(batch, -(-n // 32), dtype=torch.int32)):
        for reduction in ("mean", "sum"):
            loss = multilabel_bank_loss(features, bank, positives, reduction=reduction)
            rows = 1 if reduction == "mean" else batch
            # Without width every similarity is 0, so each hard negative costs 1.
            assert loss.item() == (rows if batch and n else 0)
            assert torch.equal(torch.autograd.grad(loss, features)[0], torch.zeros(batch, dim))


def test_rows_of_zeros() -> None:
    losses, gradient = check(torch.zeros(2, 8), torch.zeros(40, 8), lists([3], []))
    assert losses.tolist() == [6, 1]
    assert not gradient.any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_named(bad: float) -> None:
    features, bank = torch.ones(3, 8), torch.zeros(40, 8)
    bank[7] = bad
    with pytest.raises(ValueError, match="bank: row 7 is not finite"):
        multilabel_bank_loss(features, bank, lists([7], [3], []))
    features[1], bank[7] = bad, 1
    with pytest.raises(ValueError, match="features: row 1 is not finite"):
        multilabel_bank_loss(features, bank, lists([7], [3], []))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_any_stride(dtype: torch.dtype) -> None:
    features, bank = integers(8, 3).to(dtype).T, integers(60, 16).to(dtype)[::2, ::2]
    positives = lists([2], [3, 4], [5])
    spread = (
        torch.stack([positives[0], positives[0]], 1)[:, 0],
        torch.stack([positives[1]] * 2, 1)[:, 0],
    )
    expected = check(features.contiguous(), bank.contiguous(), positives, hard_ratio=0.2)
    words = torch.stack([bits(30, [2], [3, 4], [5])] * 2, 2)[:, :, 0]
    for form in (spread, words):
        assert all(map(torch.equal, expected, check(features, bank, form, hard_ratio=0.2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_give_the_same_bits(dtype: torch.dtype) -> None:
    features, bank = torch.randn(16, 32).to(dtype), torch.randn(500, 32).to(dtype)
    positives = lists(*torch.randint(0, 500, (16, 6)).tolist())
    first = with_gradient(multilabel_bank_loss, features, bank, positives)
    assert all(
        map(torch.equal, first, with_gradient(multilabel_bank_loss, features, bank, positives))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_lower_the_precision(dtype: torch.dtype) -> None:
    features, bank, positives = (
        torch.randn(4, 32).to(dtype),
        torch.randn(50, 32).to(dtype),
        lists([1], [2], [3], [4]),
    )
    expected = with_gradient(multilabel_bank_loss, features, bank, positives)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(
            map(
                torch.equal,
                expected,
                with_gradient(multilabel_bank_loss, features, bank, positives),
            )
        )


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("listed", [True, False])
def test_the_custom_op_is_well_formed(differentiable: bool, listed: bool) -> None:
    features, bank = torch.randn(3, 8, requires_grad=differentiable), torch.randn(40, 8)
    positives, indices = lists([2], [3], [4]) if listed else (bits(40, [2], [3], [4]), None)
    torch.library.opcheck(
        _multilabel_bank_loss,
        (features, bank, positives, indices, 5.0, 0.1, differentiable, "auto"),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("crowded", [False, True])
def test_losses_of_several_sets_are_summed(dtype: torch.dtype, crowded: bool) -> None:
    features = (torch.randn(3, 8, dtype=dtype) / 2).requires_grad_()
    bank = torch.randn(40, 8, dtype=dtype)
    if crowded:
        bank = bank[torch.arange(40) % 3]
    sets = [lists([2, 9], [], [4]), bits(40, [1, 2], [30], []), lists([7], [0], [39])]
    factors = [1.0, 0.5, 2.0]
    terms = [
        factor * multilabel_bank_loss(features, bank, positives, hard_ratio=0.2, reduction="none")
        for positives, factor in zip(sets, factors, strict=True)
    ]
    expected = torch.stack(terms).sum(0)
    got = sum_of_multilabel_bank_losses(
        features, bank, sets, factors, hard_ratio=0.2, reduction="none"
    )
    torch.testing.assert_close(got, expected)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    gradients = [torch.autograd.grad((weights * x).sum(), features)[0] for x in (got, expected)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        again = sum_of_multilabel_bank_losses(
            features, bank, sets, factors, hard_ratio=0.2, reduction="none"
        )
    torch.testing.assert_close(again, expected)


def test_bad_sets_are_named() -> None:
    features, bank, labels = torch.randn(3, 8), torch.randn(40, 8), lists([2], [3], [4])
    for sets, factors in (([], []), ([labels], []), ([labels], [1.0, 2.0])):
        with pytest.raises(ValueError, match="factors: got"):
            sum_of_multilabel_bank_losses(features, bank, sets, factors)
    with pytest.raises(ValueError, match="bank: got a tensor that requires a gradient"):
        sum_of_multilabel_bank_losses(features, bank.requires_grad_(), [labels], [1.0])


@pytest.mark.parametrize("differentiable", [True, False])
def test_the_custom_op_of_several_sets_is_well_formed(differentiable: bool) -> None:
    features, bank = torch.randn(3, 8, requires_grad=differentiable), torch.randn(40, 8)
    positives, indices = lists([2], [3], [4])
    labels = [positives, bits(40, [2], [3], [4])]
    listed = [indices, torch.empty(0, dtype=torch.int32)]
    torch.library.opcheck(
        _multilabel_bank_losses,
        (features, bank, labels, listed, [1.0, 0.5], 5.0, 0.1, differentiable, "auto"),
    )


def test_compiles_whole_and_once_for_every_size_of_the_bank() -> None:
    torch._dynamo.reset()
    counter, counts = CompileCounterWithBackend("aot_eager"), set()
    compiled = torch.compile(multilabel_bank_loss, backend=counter, fullgraph=True, dynamic=True)
    for n in (40, 77, 130):
        features, bank = torch.randn(3, 8), torch.randn(n, 8)
        positives = lists([2], [3, 9], [n - 1, 4, 5])
        got = with_gradient(compiled, features, bank, positives)
        assert all(
            map(torch.equal, got, with_gradient(multilabel_bank_loss, features, bank, positives))
        )
        counts.add(counter.frame_count)
    assert len(counts) == 1


GOOD = {"features": torch.ones(2, 4), "bank": torch.ones(40, 4), "positives": lists([0], [1])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.ones(4)}, r"features: got shape \(4,\)"),
        ({"bank": torch.ones(40, 5)}, "bank: got rows of width 5, expected 4"),
        ({"bank": torch.ones(40, 4).double()}, "bank: got dtype torch.float64"),
        (
            {"bank": torch.ones(40, 4, requires_grad=True)},
            "bank: got a tensor that requires a gradient, expected a buffer",
        ),
        ({"hard_ratio": 1.5}, r"hard_ratio: got 1.5, expected a number in \[0, 1\]"),
        ({"reduction": "max"}, "reduction: got 'max', expected one of mean, sum, none"),
        ({"precision": "fp8"}, "precision: got 'fp8'"),
        ({"positives": lists([0])}, r"positives\[0\]: got shape \(2,\), expected \(3,\)"),
        (
            {"positives": (torch.tensor([0, 1, 2]), torch.tensor([0, 1], dtype=torch.int32))},
            r"positives\[1\]: got dtype",
        ),
        (
            {"positives": (torch.tensor([0, 1, 2]), torch.zeros(2, 1, dtype=torch.int64))},
            r"positives\[1\]: got shape",
        ),
        (
            {"positives": (torch.tensor([1, 1, 2]), torch.tensor([0, 1]))},
            r"positives\[0\]: got 1 first and 2 last, expected 0",
        ),
        (
            {"positives": (torch.tensor([0, 1, 1]), torch.tensor([0, 1]))},
            r"got 0 first and 1 last, expected 0 and 2",
        ),
        (
            {"positives": (torch.tensor([0, 3, 2]), torch.tensor([0, 1]))},
            r"positives\[0\]: got a decrease after index 1",
        ),
        (
            {"positives": lists([0], [40])},
            r"positives\[1\]: got 40 at index 1, expected values in \[0, 40\)",
        ),
        ({"positives": lists([-1], [0])}, r"positives\[1\]: got -1 at index 0"),
        (
            {"positives": torch.zeros(2, 1, dtype=torch.int32)},
            r"bit rows of shape \(2, 1\), expected \(2, 2\)",
        ),
        (
            {"positives": torch.zeros(2, 2, dtype=torch.int64)},
            "bit rows of dtype torch.int64, expected torch.int32",
        ),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multilabel_bank_loss(**(GOOD | change))
