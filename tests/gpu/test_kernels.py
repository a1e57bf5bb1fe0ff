"""The operators on CUDA: against their references in float64, against the CPU, and against
themselves.
"""

from __future__ import annotations

import pytest
import reid_kernels
import torch
import torch.nn.functional as F
from reid_kernels import (
    bank_contrast_loss,
    bank_contrast_loss_reference,
    class_index,
    class_means,
    label_prediction,
    multilabel_bank_loss,
    multilabel_bank_loss_reference,
    partial_contrast,
    partial_contrast_reference,
    similarity_topk,
    similarity_topk_reference,
    update_bank_,
    update_bank_reference,
)
from reid_kernels.bank_loss import _bank_contrast, _class_means
from reid_kernels.labels import _label_prediction
from reid_kernels.multilabel import _multilabel_bank_loss
from reid_kernels.topk import _similarity_topk
from reid_kernels.update_bank import _update_bank
from torch import Tensor

from tests.support.kernels import FLOATS, assert_as_good_as_eager, on_grid, strided, unit_rows
from tests.support.operators import example_inputs, examples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
EXAMPLES = examples()
PRECISIONS = ("ieee", "tf32", "bf16")


def positives_of(batch: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Up to 30 positives a row, CSR."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 30, (batch,), generator=generator)
    rows = [torch.randperm(n, generator=generator)[:size].sort().values for size in sizes]
    return F.pad(sizes.cumsum(0), (1, 0)), torch.cat(rows)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_operator_equals_its_reference_and_itself(name: str) -> None:
    """The examples of all operators; what is particular to one operator is tested below."""
    public = getattr(reid_kernels, name, None) or getattr(reid_kernels, f"{name}_")
    inputs = example_inputs()
    with torch.device(DEVICE):
        on_device = [x.to(DEVICE) for x in inputs]
        first, second = (EXAMPLES[name](public, *on_device) for _ in range(2))
    reference = getattr(reid_kernels, f"{name}_reference")
    exact = EXAMPLES[name](reference, *(x.double() for x in inputs))
    if isinstance(exact, Tensor):
        first, second, exact = (first,), (second,), (exact,)
    for a, b, c in zip(first, second, exact, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a.cpu(), c.to(a.dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("precision", ["auto", *PRECISIONS])
@pytest.mark.parametrize(
    ("n", "batch", "dim", "k"), [(5000, 300, 96, 30), (777, 50, 65, 1), (20000, 64, 512, 1024)]
)
def test_topk_equals_the_reference_where_products_are_exact(
    dtype: torch.dtype, precision: str, n: int, batch: int, dim: int, k: int
) -> None:
    bank, query = on_grid(n, dim).to(dtype), on_grid(batch, dim, seed=1).to(dtype)
    bank[n // 2] = bank[-1] = bank[3]
    own = torch.randint(-1, n, (batch,))
    exact = similarity_topk_reference(query.float(), bank.float(), k, normalize=False, exclude=own)
    got = similarity_topk(
        query.to(DEVICE),
        bank.to(DEVICE),
        k,
        normalize=False,
        exclude=own.to(DEVICE),
        precision=precision,
    )
    assert torch.equal(got[0].cpu(), exact[0])
    assert torch.equal(got[1].cpu(), exact[1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("precision", ["auto", "ieee"])
def test_topk_finds_the_most_similar_of_real_rows(
    dtype: torch.dtype, normalize: bool, precision: str
) -> None:
    bank, query = unit_rows(30_000, 256, dtype) * 2, unit_rows(200, 256, dtype, seed=1) * 3
    exact, _ = similarity_topk_reference(query.double(), bank.double(), 50, normalize=normalize)
    values, indices = similarity_topk(
        query.to(DEVICE), bank.to(DEVICE), 50, normalize=normalize, precision=precision
    )
    torch.testing.assert_close(
        values.double().cpu(), exact, rtol=0, atol=1e-6 if normalize else 1e-5
    )
    q, b = (F.normalize(x.double()) if normalize else x.double() for x in (query, bank))
    torch.testing.assert_close(
        (q[:, None] * b[indices.cpu()]).sum(2), exact, rtol=0, atol=1e-6 if normalize else 1e-5
    )


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_topk_candidates_at_low_precision_miss_little(precision: str) -> None:
    bank, query = unit_rows(30_000, 256), unit_rows(200, 256, seed=1)
    _, exact = similarity_topk_reference(query.double(), bank.double(), 50)
    _, got = similarity_topk(query.to(DEVICE), bank.to(DEVICE), 50, precision=precision)
    shared = sum(len(set(a) & set(b)) for a, b in zip(got.tolist(), exact.tolist(), strict=True))
    assert shared >= 0.98 * exact.numel()


def test_topk_of_crowded_rows_is_settled_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = torch.ones(1, 64) + 1e-3 * torch.randn(5000, 64, generator=generator)
    exact, _ = similarity_topk_reference(bank[:80].double(), bank.double(), 20)
    values, _ = similarity_topk(bank[:80].to(DEVICE), bank.to(DEVICE), 20)
    torch.testing.assert_close(values.double().cpu(), exact, rtol=0, atol=2e-6)


def test_topk_on_the_edges() -> None:
    bank, query = unit_rows(5, 4).to(DEVICE), unit_rows(3, 4, seed=1).to(DEVICE)
    _, indices = similarity_topk(query, bank, 9, exclude=torch.tensor([0, -1, 4], device=DEVICE))
    assert (indices >= 0).sum(1).tolist() == [4, 5, 4]
    for q, b in ((query[:0], bank), (query, bank[:0])):
        values, indices = similarity_topk(q, b, 2)
        assert values.shape == indices.shape == (len(q), 2)
        assert (indices == -1).all()
    bank[2, 1] = torch.nan
    assert similarity_topk(query, bank, 2)[1][:, 0].tolist() == [2, 2, 2]
    values, indices = similarity_topk(strided(query), strided(bank[:2]), 2)
    assert torch.equal(indices, similarity_topk(query, bank[:2], 2)[1])


def test_topk_past_two_to_the_31_values() -> None:
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free GPU memory")
    n, dim = 2**22 + 100, 512
    bank = torch.zeros(n, dim, dtype=torch.bfloat16, device=DEVICE)
    rows = torch.tensor([0, n // 2, n - 2, n - 1], device=DEVICE)
    bank[rows] = unit_rows(4, dim, torch.bfloat16).to(DEVICE)
    values, indices = similarity_topk(bank[rows], bank, 1)
    assert torch.equal(indices[:, 0], rows)
    torch.testing.assert_close(values[:, 0], torch.ones(4, device=DEVICE), rtol=0, atol=1e-5)
    update_bank_(bank, -bank[rows], rows, 0.0)
    torch.testing.assert_close(bank[n - 1].float().norm().item(), 1.0, rtol=0, atol=1e-2)
    features = bank[rows].clone().requires_grad_()
    loss = bank_contrast_loss(features, bank, rows, 0.05)
    exact = torch.logsumexp(torch.cat([torch.tensor([20.0]), torch.zeros(n - 1)]), 0) - 20
    # bfloat16 moves the logit of 20 by up to a tenth.
    assert loss.item() == pytest.approx(exact.item(), rel=0.3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("instances", [True, False])
@pytest.mark.parametrize(("n", "batch", "dim"), [(3000, 64, 96), (20_000, 256, 2048), (77, 5, 33)])
def test_contrast_loss_is_as_good_as_plain_pytorch(
    dtype: torch.dtype, instances: bool, n: int, batch: int, dim: int
) -> None:
    bank, features = unit_rows(n, dim, dtype), unit_rows(batch, dim, dtype, seed=1)
    generator = torch.Generator().manual_seed(2)
    classes = torch.randint(-1, n // 5, (n,), generator=generator) if instances else None
    targets = torch.randint(0, n, (batch,), generator=generator)
    if classes is not None:
        targets = classes[classes >= 0][targets % (n // 2)]
    targets[3] = -1
    on = [None if x is None else x.to(DEVICE) for x in (features, bank, targets, classes)]
    for precision in PRECISIONS if dtype == torch.float32 else ("auto",):
        got = with_gradient(bank_contrast_loss, *on[:3], 0.05, classes=on[3], precision=precision)
        seen = [x.bfloat16() if precision == "bf16" else x for x in on[:2]]
        eager = with_gradient(bank_contrast_loss_reference, *seen, on[2], 0.05, classes=on[3])
        exact = with_gradient(
            bank_contrast_loss_reference, *(x.double() for x in on[:2]), on[2], 0.05, classes=on[3]
        )
        tiny = 1e-5 if precision == "ieee" else 1e-2
        for a, b, c in zip(got, eager, exact, strict=True):
            assert_as_good_as_eager(a, b, c, tiny)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("instances", [True, False])
def test_partial_results_are_as_good_as_plain_pytorch(dtype: torch.dtype, instances: bool) -> None:
    bank, features = (
        unit_rows(3000, 96, dtype).to(DEVICE),
        unit_rows(64, 96, dtype, seed=1).to(DEVICE),
    )
    classes = (torch.arange(3000, device=DEVICE) % 700 - 1) if instances else None
    targets = torch.arange(64, device=DEVICE) % 50
    targets[::3] = -1
    got = partial_contrast(features, bank, targets, 0.05, classes=classes)
    eager = partial_contrast_reference(features, bank, targets, 0.05, classes=classes)
    exact = partial_contrast_reference(
        features.double(), bank.double(), targets, 0.05, classes=classes
    )
    for part in zip(got, eager, exact, strict=True):
        assert_as_good_as_eager(*part, 1e-5 if dtype == torch.float32 else 1e-2)
    empty = partial_contrast(features, bank[:0], torch.full_like(targets, -1), 0.05)
    assert bool((empty.log_sum_exp == -torch.inf).all()) and not any(
        x.any() for x in (empty.softmax_means, empty.target_vectors)
    )


def with_gradient(
    call: object, features: Tensor, *arguments: object, **more: object
) -> tuple[Tensor, Tensor]:
    features = features.clone().requires_grad_()
    loss = call(features, *arguments, **more)  # type: ignore[operator]
    loss.backward()
    return loss.detach(), features.grad  # type: ignore[return-value]


@pytest.mark.parametrize("instances", [True, False])
def test_contrast_loss_has_a_gradient_for_the_bank(instances: bool) -> None:
    bank, features = unit_rows(900, 40), unit_rows(30, 40, seed=1)
    classes = torch.arange(900) % 70 if instances else None
    targets = torch.arange(30)
    here, there = bank.clone().requires_grad_(), bank.to(DEVICE).requires_grad_()
    bank_contrast_loss(features, here, targets, 0.1, classes=classes).backward()
    moved = None if classes is None else classes.to(DEVICE)
    bank_contrast_loss(
        features.to(DEVICE), there, targets.to(DEVICE), 0.1, classes=moved
    ).backward()
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=1e-4, atol=1e-6)


def test_targets_that_do_not_exist_read_nothing() -> None:
    bank, features = (
        unit_rows(50, 8).to(DEVICE),
        unit_rows(4, 8, seed=1).to(DEVICE).requires_grad_(),
    )
    targets = torch.tensor([0, 50, -1, -9], device=DEVICE)
    losses = bank_contrast_loss(features, bank, targets, 0.1, reduction="none")
    losses.sum().backward()
    assert losses.isnan().tolist() == [False, True, False, True]
    assert features.grad.isnan().any(1).tolist() == [False, True, False, True]
    before = bank.clone()
    update_bank_(bank, features.detach(), torch.tensor([50, -9, -1, 2**40], device=DEVICE), 0.5)
    assert torch.equal(bank, before)


@pytest.mark.parametrize("dtype", FLOATS)
def test_class_means_equal_those_of_the_cpu(dtype: torch.dtype) -> None:
    bank, classes = unit_rows(3000, 130, dtype), torch.randint(-1, 40, (3000,))
    classes[classes == 7] = 8
    got = class_means(bank.to(DEVICE), classes.to(DEVICE), 45)
    torch.testing.assert_close(got.cpu(), class_means(bank, classes, 45))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "batch", "dim"), [(50, 300, 2048), (3000, 64, 130), (5, 1, 1)])
@pytest.mark.parametrize("momentum", [0.0, 0.2, 1.0])
def test_update_applies_the_batch_in_order(
    dtype: torch.dtype, n: int, batch: int, dim: int, momentum: float
) -> None:
    bank, features, targets = (
        unit_rows(n, dim, dtype),
        unit_rows(batch, dim, dtype, seed=1),
        torch.randint(-1, n, (batch,)),
    )
    expected = update_bank_reference(bank, features, targets, momentum)
    got = update_bank_(bank.to(DEVICE), features.to(DEVICE), targets.to(DEVICE), momentum)
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "batch", "dim"), [(3000, 64, 96), (500, 7, 33), (32_621, 64, 128)])
def test_multilabel_loss_is_as_good_as_plain_pytorch(
    dtype: torch.dtype, n: int, batch: int, dim: int
) -> None:
    bank, features = unit_rows(n, dim, dtype), unit_rows(batch, dim, dtype, seed=1)
    positives = positives_of(batch, n)
    on = tuple(x.to(DEVICE) for x in positives)
    for precision in PRECISIONS if dtype == torch.float32 else ("auto",):
        got = with_gradient(
            multilabel_bank_loss, features.to(DEVICE), bank.to(DEVICE), on, precision=precision
        )
        exact = with_gradient(
            multilabel_bank_loss_reference, features.double(), bank.double(), positives
        )
        eager = with_gradient(multilabel_bank_loss_reference, features, bank, positives)
        for a, b, c in zip(got, eager, exact, strict=True):
            assert_as_good_as_eager(a.cpu(), b, c, 1e-5 if precision == "ieee" else 1e-2)


def test_multilabel_loss_shares_the_last_places_between_ties() -> None:
    bank, features = on_grid(2000, 16), on_grid(9, 16, seed=1)
    positives = positives_of(9, 2000)
    got = with_gradient(
        multilabel_bank_loss,
        features.to(DEVICE),
        bank.to(DEVICE),
        tuple(x.to(DEVICE) for x in positives),
    )
    expected = with_gradient(multilabel_bank_loss, features, bank, positives)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_label_prediction_equals_that_of_the_cpu(dtype: torch.dtype) -> None:
    bank = on_grid(1500, 24).to(dtype) / 2
    bank[::50] = 0
    rows = torch.arange(0, 1500, 37)
    got = label_prediction(bank.to(DEVICE), rows.to(DEVICE), threshold=0.6)
    expected = label_prediction(bank, rows, threshold=0.6)
    assert len(expected[1]) > len(rows)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.cpu(), b)


def test_two_runs_are_equal_to_the_bit() -> None:
    bank, features = unit_rows(9000, 300).to(DEVICE), unit_rows(100, 300, seed=1).to(DEVICE)
    targets, classes = torch.arange(100, device=DEVICE), torch.arange(9000, device=DEVICE) % 700
    positives = tuple(x.to(DEVICE) for x in positives_of(100, 9000))
    runs = [
        (
            *similarity_topk(features, bank, 40),
            *with_gradient(bank_contrast_loss, features, bank, targets, 0.05),
            *with_gradient(bank_contrast_loss, features, bank, targets, 0.05, classes=classes),
            *with_gradient(multilabel_bank_loss, features, bank, positives),
            class_means(bank, classes, 700),
            update_bank_(bank.clone(), features, targets // 3, 0.2),
            *label_prediction(bank, targets, threshold=0.1),
        )
        for _ in range(3)
    ]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_operators_are_registered_as_pytorch_wants_them() -> None:
    features, bank = unit_rows(5, 6).to(DEVICE), unit_rows(30, 6, seed=1).to(DEVICE)
    targets, classes = torch.arange(5, device=DEVICE), torch.arange(30, device=DEVICE) % 7
    index = class_index(classes)
    torch.library.opcheck(_similarity_topk, (features, bank, 4, True, targets, "auto"))
    torch.library.opcheck(
        _bank_contrast,
        (features.clone().requires_grad_(), bank, targets, *index, 0.1, -1, True, False, "auto"),
    )
    torch.library.opcheck(_class_means, (bank, *index))
    torch.library.opcheck(_update_bank, (bank.clone(), features, targets, 0.2, -1))
    assert _multilabel_bank_loss is not None
    assert _label_prediction is not None


def test_training_step_compiles_as_one_graph() -> None:
    def step(features: Tensor, bank: Tensor, targets: Tensor) -> Tensor:
        return bank_contrast_loss(F.normalize(features), bank, targets, 0.05)

    compiled = torch.compile(step, fullgraph=True)
    for n in (900, 1300, 1700):
        bank, targets = unit_rows(n, 64).to(DEVICE), torch.arange(32, device=DEVICE)
        torch._dynamo.mark_dynamic(bank, 0)
        features = unit_rows(32, 64, seed=1).to(DEVICE) * 2
        got, expected = (with_gradient(call, features, bank, targets) for call in (compiled, step))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
