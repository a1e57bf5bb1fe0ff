"""`bank_contrast_loss` and `class_means` on a CPU, against the whole matrix of logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reid_kernels import (
    NotFiniteError,
    bank_contrast_loss,
    bank_contrast_loss_reference,
    bank_loss_cpu,
    class_index,
    class_means,
    partial_contrast,
    partial_contrast_reference,
)
from reid_kernels.bank_loss import _bank_contrast, _bank_gradient, _class_means
from torch import Tensor

from tests.support.kernels import (
    FLOATS,
    assert_as_good_as_eager,
    compiled_once,
    strided,
    unit_rows,
)


def example_bank_contrast_loss(call: Callable[..., Tensor], x: Tensor, bank: Tensor) -> Tensor:
    return call(x, bank, torch.arange(9) * 3 % 7, 0.05)


def example_partial_contrast(call: Callable[..., Any], x: Tensor, bank: Tensor) -> Any:
    return call(x, bank, torch.arange(9) * 3 % 7, 0.05)


CLASSES = torch.tensor([0, 2, 5, -1, 2, 0, 5, 2, -1, 3])
TARGETS = torch.tensor([0, 5, -1, 3, 2])


def gradients(
    call: object, features: Tensor, bank: Tensor, *arguments: object, **more: object
) -> tuple[Tensor, ...]:
    """Loss, and the gradients of its weighted sum for features and bank."""
    f, b = features.clone().requires_grad_(), bank.clone().requires_grad_()
    loss = call(f, b, *arguments, **more)  # type: ignore[operator]
    weights = torch.linspace(0.5, 1.5, max(loss.numel(), 1), dtype=loss.dtype)[: loss.numel()].view(
        loss.shape
    )
    (loss * weights).sum().backward()
    return loss.detach(), f.grad, b.grad  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("instances", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_loss_and_gradients_are_as_good_as_plain_pytorch(
    dtype: torch.dtype, reduction: str, instances: bool, temperature: float
) -> None:
    bank, features = unit_rows(900, 40, dtype), unit_rows(30, 40, dtype, seed=1)
    generator = torch.Generator().manual_seed(2)
    classes = torch.randint(-1, 200, (900,), generator=generator) if instances else None
    targets = torch.randint(0, 900, (30,), generator=generator)
    if classes is not None:
        targets = classes[classes >= 0][targets % 800]
    targets[3] = -1
    more = {"classes": classes, "reduction": reduction}
    got = gradients(bank_contrast_loss, features, bank, targets, temperature, **more)
    reference = bank_contrast_loss_reference
    exact = gradients(reference, features.double(), bank.double(), targets, temperature, **more)
    eager = gradients(reference, features, bank, targets, temperature, **more)
    assert got[0].dtype == torch.float32
    assert got[1].dtype == got[2].dtype == dtype
    for part in zip(got, eager, exact, strict=True):
        assert_as_good_as_eager(*part, 1e-6)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 12),
    n=st.integers(1, 40),
    dim=st.integers(1, 20),
    instances=st.booleans(),
    block=st.sampled_from([1, 7, 10**6]),
    seed=st.integers(0, 100),
)
def test_any_shape_equals_the_reference(
    batch: int, n: int, dim: int, instances: bool, block: int, seed: int
) -> None:
    bank, features = (
        unit_rows(n, dim, torch.float64, seed),
        unit_rows(batch, dim, torch.float64, seed + 1),
    )
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(-1, n, (n,), generator=generator) if instances else None
    pool = torch.arange(n) if classes is None else classes
    targets = pool[torch.randint(0, n, (batch,), generator=generator)]
    if classes is not None and int(classes.max()) < 0:
        return
    before = bank_loss_cpu._LOGITS
    try:
        bank_loss_cpu._LOGITS = block
        got = gradients(bank_contrast_loss, features, bank, targets, 0.2, classes=classes)
    finally:
        bank_loss_cpu._LOGITS = before
    exact = gradients(bank_contrast_loss_reference, features, bank, targets, 0.2, classes=classes)
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("classes", [None, CLASSES])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_those_of_finite_differences(classes: Tensor | None, reduction: str) -> None:
    bank, features = unit_rows(10, 6, torch.float64), unit_rows(5, 6, torch.float64, seed=1)
    for call in (bank_contrast_loss, bank_contrast_loss_reference):

        def loss(f: Tensor, b: Tensor, call: object = call) -> Tensor:
            return call(f, b, TARGETS, 0.3, classes=classes, reduction=reduction)  # type: ignore

        assert torch.autograd.gradcheck(loss, (features.requires_grad_(), bank.requires_grad_()))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_partial_results_are_as_good_as_plain_pytorch(
    dtype: torch.dtype, classes: Tensor | None
) -> None:
    bank, features = unit_rows(10, 6, dtype), unit_rows(5, 6, dtype, seed=1)
    got = partial_contrast(features, bank, TARGETS, 0.1, classes=classes)
    eager = partial_contrast_reference(features, bank, TARGETS, 0.1, classes=classes)
    exact = partial_contrast_reference(
        features.double(), bank.double(), TARGETS, 0.1, classes=classes
    )
    for part in zip(got, eager, exact, strict=True):
        assert_as_good_as_eager(*part, 1e-6)
    assert (
        got.losses[2] == 0 and not got.target_vectors[2].any() and bool(got.softmax_means[2].any())
    )
    bare = partial_contrast(features, bank, TARGETS, 0.1, classes=classes, gradient=False)
    assert torch.equal(
        bare.losses, got.losses
    ) and bare.softmax_means.shape == bare.target_vectors.shape == (
        0,
        6,
    )


@pytest.mark.parametrize("cuts", [[5], [0, 7], [2, 2, 9]])
@pytest.mark.parametrize("instances", [True, False])
def test_partial_results_of_shards_make_the_loss_of_the_whole_bank(
    cuts: list[int], instances: bool
) -> None:
    """Some shards are empty, some have no class, and some hold no target of any feature."""
    features, targets, tau = unit_rows(5, 6, torch.float64), torch.tensor([0, 6, 5, 3, -1]), 0.05
    classes = torch.tensor([0, 0, 1, 2, 3, 5, -1, 6, 6, -1]) if instances else None
    bank = unit_rows(10, 6, torch.float64, seed=1)
    bounds, parts = [0, *cuts, 10], []
    for first, last in itertools.pairwise(bounds):
        part = None if classes is None else classes[first:last]
        here = torch.isin(targets, torch.arange(first, last) if part is None else part) & (
            targets >= 0
        )
        low = (
            first
            if part is None
            else 0
            if not bool((part >= 0).any())
            else int(part[part >= 0].min())
        )
        local = None if part is None else torch.where(part >= 0, part - low, -1)
        own = torch.where(here, targets - low, -1)
        parts.append((partial_contrast(features, bank[first:last], own, tau, classes=local), here))
    total = torch.stack([share.log_sum_exp for share, _ in parts]).logsumexp(0)
    losses, slopes = torch.zeros(5, dtype=torch.float64), torch.zeros(5, 6, dtype=torch.float64)
    for share, here in parts:
        losses += torch.where(here, share.losses + total - share.log_sum_exp, 0.0)
        slopes += (
            (share.log_sum_exp - total).exp()[:, None] * share.softmax_means - share.target_vectors
        ) / tau
    exact = gradients(
        bank_contrast_loss_reference,
        features,
        bank,
        targets,
        tau,
        classes=classes,
        reduction="none",
    )
    weights = torch.linspace(0.5, 1.5, 5, dtype=torch.float64).masked_fill(targets < 0, 0.0)
    torch.testing.assert_close(losses, exact[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slopes * weights[:, None], exact[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("classes", [None, torch.zeros(0, dtype=torch.int64), torch.full((3,), -1)])
def test_a_shard_without_classes_adds_nothing(classes: Tensor | None) -> None:
    rows = unit_rows(3 if classes is not None and len(classes) else 0, 6)
    nowhere = torch.full((5,), -1)
    for call in (partial_contrast, partial_contrast_reference):
        share = call(unit_rows(5, 6), rows, nowhere, 0.1, classes=classes)
        assert torch.equal(share.log_sum_exp, torch.full((5,), -torch.inf))
        assert not any(x.any() for x in (share.losses, share.softmax_means, share.target_vectors))
        assert share.softmax_means.shape == share.target_vectors.shape == (5, 6)


def test_a_shard_with_a_nan_does_not_raise() -> None:
    bank = unit_rows(4, 6)
    bank[2, 1] = torch.nan
    share = partial_contrast(unit_rows(2, 6), bank, torch.tensor([0, -1]), 0.1)
    assert bool(share.log_sum_exp.isnan().all()) and bool(share.softmax_means.isnan().all())


def test_classes_may_be_indexed_once_for_many_losses() -> None:
    bank, features = unit_rows(10, 6), unit_rows(5, 6, seed=1)
    once = class_index(CLASSES)
    assert torch.equal(
        bank_contrast_loss(features, bank, TARGETS, 0.1, classes=once),
        bank_contrast_loss(features, bank, TARGETS, 0.1, classes=CLASSES),
    )


def test_a_bank_may_change_between_the_loss_and_its_gradient() -> None:
    """As memories do that are updated in the backward pass."""
    bank, features = unit_rows(20, 6), unit_rows(5, 6, seed=1).requires_grad_()
    targets = torch.arange(5)
    expected = torch.autograd.grad(
        bank_contrast_loss(features, bank.clone(), targets, 0.1), features
    )[0]
    loss = bank_contrast_loss(features, bank, targets, 0.1)
    bank.zero_()
    loss.backward()
    assert torch.equal(features.grad, expected)


def test_a_bank_with_a_gradient_that_changed_is_refused() -> None:
    bank, features = unit_rows(20, 6).requires_grad_(), unit_rows(5, 6, seed=1)
    loss = bank_contrast_loss(features, bank, torch.arange(5), 0.1)
    with torch.no_grad():
        bank.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_loss_of_confident_features_does_not_cancel() -> None:
    bank = unit_rows(500, 128)
    for temperature in (0.05, 0.02):
        got, eager, exact = (
            call(bank.to(kind), bank.to(kind), torch.arange(500), temperature)
            for call, kind in (
                (bank_contrast_loss, torch.float32),
                (bank_contrast_loss_reference, torch.float32),
                (bank_contrast_loss_reference, torch.float64),
            )
        )
        assert abs(got.double() - exact) <= 2 * abs(eager.double() - exact) + 1e-12


@pytest.mark.parametrize("instances", [True, False])
def test_what_is_ignored_reaches_no_gradient(instances: bool) -> None:
    """Neither its values nor the weight of its loss."""
    features, bank = unit_rows(5, 6), unit_rows(10, 6, seed=1).requires_grad_()
    features[2] = torch.nan
    classes = CLASSES if instances else None
    features.requires_grad_()
    losses = bank_contrast_loss(features, bank, TARGETS, 0.1, classes=classes, reduction="none")
    losses.log().sum().backward()
    assert torch.isfinite(bank.grad).all()
    assert torch.equal(features.grad[2], torch.zeros(6))
    assert torch.isfinite(features.grad).all()


def test_a_second_derivative_is_refused() -> None:
    for reduction in ("none", "mean"):
        features, bank = unit_rows(5, 6).requires_grad_(), unit_rows(10, 6, seed=1).requires_grad_()
        losses = bank_contrast_loss(features, bank, torch.arange(5), 0.1, reduction=reduction)
        slopes = torch.autograd.grad(losses.square().sum(), (features, bank), create_graph=True)
        for slope in slopes:
            with pytest.raises(RuntimeError, match="no second derivative"):
                slope.sum().backward(retain_graph=True)


def test_a_learnable_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature: got a tensor that requires a gradient"):
        bank_contrast_loss(
            unit_rows(5, 6),
            unit_rows(10, 6),
            torch.arange(5),
            torch.tensor(0.1, requires_grad=True),
        )


def test_class_means_compile() -> None:
    bank = unit_rows(10, 6)
    compiled = torch.compile(
        lambda b: class_means(b, CLASSES, 7), backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(bank), class_means(bank, CLASSES, 7))


def test_large_logits_do_not_overflow() -> None:
    bank, features = unit_rows(50, 8) * 100, unit_rows(6, 8, seed=1) * 100
    targets = torch.arange(6)
    loss = bank_contrast_loss(features, bank, targets, 0.01)
    exact = bank_contrast_loss_reference(features.double(), bank.double(), targets, 0.01)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("batch", [0, 3])
def test_nothing_that_counts_gives_zero(batch: int) -> None:
    features = unit_rows(3, 4)[:batch].requires_grad_()
    targets = torch.full((batch,), 7)
    for n in (0, 5):
        for reduction in ("mean", "sum"):
            features.grad = None
            loss = bank_contrast_loss(
                features, unit_rows(n, 4), targets, 0.1, ignore_index=7, reduction=reduction
            )
            loss.backward()
            assert loss.item() == 0
            assert torch.equal(features.grad, torch.zeros(batch, 4))


@pytest.mark.parametrize("instances", [True, False])
def test_autocast_does_not_round_the_products(instances: bool) -> None:
    bank, features = unit_rows(300, 64), unit_rows(20, 64, seed=1)
    classes = torch.arange(300) % 70 if instances else None
    expected = gradients(
        bank_contrast_loss, features, bank, torch.arange(20), 0.05, classes=classes
    )
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(bank_contrast_loss, features, bank, torch.arange(20), 0.05, classes=classes)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_zero_rows_and_equal_rows_are_rows_like_others() -> None:
    bank, features = torch.zeros(4, 3), unit_rows(2, 3)
    loss = bank_contrast_loss(features, bank, torch.tensor([0, 3]), 0.05)
    assert loss.item() == pytest.approx(torch.tensor(4.0).log().item())


def test_rows_need_not_be_contiguous() -> None:
    bank, features = unit_rows(30, 6), unit_rows(5, 6, seed=1)
    targets = torch.arange(5)
    torch.testing.assert_close(
        bank_contrast_loss(strided(features), strided(bank), targets, 0.1),
        bank_contrast_loss(features, bank, targets, 0.1),
    )


@pytest.mark.parametrize("instances", [True, False])
def test_two_runs_are_equal_to_the_bit(instances: bool) -> None:
    bank, features = unit_rows(3000, 30), unit_rows(40, 30, seed=1)
    classes = torch.arange(3000) % 700 if instances else None
    first, second = (
        gradients(bank_contrast_loss, features, bank, torch.arange(40), 0.05, classes=classes)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("where", ["features", "bank"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_named(where: str, value: float) -> None:
    rows = {"features": unit_rows(5, 6), "bank": unit_rows(20, 6, seed=1)}
    rows[where][3, 2] = value
    with pytest.raises(NotFiniteError, match=rf"{where}: row 3 is not finite"):
        bank_contrast_loss(rows["features"].requires_grad_(), rows["bank"], torch.arange(5), 0.1)


def test_an_ignored_row_may_be_anything() -> None:
    features = unit_rows(5, 6)
    features[3] = torch.nan
    targets = torch.tensor([0, 1, 2, -1, 4])
    kept = features[targets >= 0]
    expected = bank_contrast_loss(kept, unit_rows(20, 6, seed=1), targets[targets >= 0], 0.1)
    torch.testing.assert_close(
        bank_contrast_loss(features, unit_rows(20, 6, seed=1), targets, 0.1), expected
    )


BANK, BATCH = torch.zeros(10, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("features", "bank", "targets", "more", "message"),
    [
        (torch.zeros(2), BANK, [0, 1], {}, r"features: got shape \(2,\)"),
        (torch.zeros(2, 4), BANK, [0, 1], {}, "bank: got rows of width 3, expected 4"),
        (BATCH.double(), BANK, [0, 1], {}, "bank: got dtype torch.float32, expected torch.float64"),
        (BATCH.to("meta"), BANK, [0, 1], {}, "bank: got device cpu, expected meta"),
        (
            BATCH,
            BANK,
            [0],
            {},
            r"targets: got shape \(1,\), expected \(2,\), one for each feature row",
        ),
        (BATCH, BANK, [0, 10], {}, r"targets: got 10 at index 1, expected values in \[0, 10\)"),
        (BATCH, BANK, [0, -2], {}, "targets: got -2 at index 1"),
        (
            BATCH,
            BANK,
            [0, 1],
            {"temperature": 0.0},
            "temperature: got 0.0, expected a number above 0",
        ),
        (
            BATCH,
            BANK,
            [0, 1],
            {"reduction": "max"},
            "reduction: got 'max', expected one of mean, sum, none",
        ),
        (BATCH, BANK, [0, 1], {"precision": "half"}, "precision: got 'half'"),
        (BATCH, BANK, [0, 1], {"classes": CLASSES}, "targets: got class 1, which has no rows"),
        (
            BATCH,
            BANK,
            [0, 6],
            {"classes": CLASSES},
            r"targets: got 6 at index 1, expected values in \[0, 6\)",
        ),
        (
            BATCH,
            BANK,
            [0, 0],
            {"classes": CLASSES[:4]},
            r"classes: got shape \(4,\), expected \(10,\)",
        ),
        (
            BATCH,
            BANK,
            [0, 0],
            {"classes": CLASSES + 6},
            r"classes: got 11 at index 2, expected values in \[-1, 10\)",
        ),
        (
            BATCH,
            BANK,
            [0, 0],
            {"classes": class_index(CLASSES[:4].clamp(max=2))},
            "classes: got 4 rows, expected 10",
        ),
    ],
)
def test_bad_input_is_named(
    features: Tensor, bank: Tensor, targets: list[int], more: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bank_contrast_loss(
            features,
            bank,
            torch.tensor(targets, device=features.device),
            **{"temperature": 0.1, **more},  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_class_means_are_means_of_members(dtype: torch.dtype) -> None:
    bank = unit_rows(10, 6, dtype)
    means = class_means(bank, CLASSES, 8)
    assert means.dtype == dtype
    for c in range(8):
        member = c == CLASSES
        expected = (
            bank[member].double().mean(0).to(dtype) if member.any() else torch.zeros(6, dtype=dtype)
        )
        torch.testing.assert_close(means[c], expected)
    with pytest.raises(ValueError, match="count: got 4, expected 6 at least"):
        class_means(bank, CLASSES, 4)
    assert torch.equal(class_means(bank, torch.full((10,), -1), 2), torch.zeros(2, 6, dtype=dtype))


@pytest.mark.parametrize("classes", [None, CLASSES])
@pytest.mark.parametrize("dtype", FLOATS)
def test_operators_are_registered_as_pytorch_wants_them(
    classes: Tensor | None, dtype: torch.dtype
) -> None:
    order, starts = (None, None) if classes is None else class_index(classes)
    features, bank = unit_rows(5, 6, dtype), unit_rows(10, 6, dtype, seed=1)
    loss = (bank, TARGETS, order, starts, 0.1, -1, True)
    arguments = (features.requires_grad_(), *loss, False, "auto")
    torch.library.opcheck(_bank_contrast, arguments)
    _, log_sums, _, _ = _bank_contrast(*arguments)
    torch.library.opcheck(
        _bank_gradient,
        (features.detach(), bank, TARGETS, order, starts, 0.1, -1, log_sums, torch.ones(5)),
    )
    torch.library.opcheck(_bank_contrast, (features.detach(), *loss, True, "auto"))
    if order is not None:
        torch.library.opcheck(_class_means, (bank, order, starts))


@pytest.mark.parametrize("instances", [True, False])
def test_it_compiles_once_for_all_sizes_of_the_bank(instances: bool) -> None:
    def call(features: Tensor, bank: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
        return bank_contrast_loss(
            features, bank, targets, 0.1, classes=classes if instances else None
        )

    sizes = [
        (unit_rows(6, 8), unit_rows(n, 8, seed=1), torch.arange(6), torch.arange(n) % 9)
        for n in (30, 41, 77)
    ]
    compiled_once(call, sizes, lambda f, b, t, c: [b, c])


def test_gradient_is_the_same_when_compiled() -> None:
    bank, targets = unit_rows(30, 8), torch.arange(6)
    features = unit_rows(6, 8, seed=1).requires_grad_()
    compiled = torch.compile(
        lambda f: bank_contrast_loss(f, bank, targets, 0.1), backend="aot_eager", fullgraph=True
    )
    got = torch.autograd.grad(compiled(features), features)[0]
    expected = torch.autograd.grad(bank_contrast_loss(features, bank, targets, 0.1), features)[0]
    torch.testing.assert_close(got, expected)
