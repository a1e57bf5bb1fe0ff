"""`bank_contrast_loss`'s and `class_means`' kernels, interpreted."""

from __future__ import annotations

import itertools

import torch
from reid_kernels import (
    bank_contrast_loss,
    bank_contrast_loss_reference,
    class_index,
    class_means,
    partial_contrast,
    partial_contrast_reference,
)
from reid_kernels.bank_loss import ContrastProblem
from reid_kernels.bank_loss_cpu import contrast_blocked
from reid_kernels.bank_loss_cpu import means_of_classes as means_blocked
from reid_kernels.bank_loss_triton import contrast_triton, means_of_classes
from torch import Tensor

from tests.kernels.interpreted import small
from tests.support import launches as sweep
from tests.support.kernels import assert_as_good_as_eager, strided, unit_rows


def reference(
    features: Tensor, bank: Tensor, targets: Tensor, classes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Losses and their gradients."""
    features = features.clone().requires_grad_()
    losses = bank_contrast_loss_reference(
        features, bank, targets, 0.1, classes=classes, reduction="none"
    )
    losses.sum().backward()
    return losses.detach(), features.grad  # type: ignore[return-value]


def launches() -> None:
    """Launch the kernels in every way that compiles other code."""
    index = torch.arange(sweep.BANK), torch.arange(sweep.BANK + 1)
    ways = itertools.product(sweep.cases(), (index, (None, None)), (False, True))
    for (dtype, precision, batch, gradient), (order, starts), partial in ways:
        features = sweep.rows(batch, dtype)
        bank = sweep.rows(sweep.BANK, dtype)
        loss = (features, bank, sweep.ids(batch), order, starts, 0.05, -1)
        contrast_triton(ContrastProblem(*loss, gradient, partial, precision))


def main() -> None:
    """Compare every kernel with the reference in float64."""
    cases = small.Cases()
    small.shrink_tiles()
    for n, batch, dim in ((75, 19, 37), (20, 3, 8), (1, 2, 3)):
        for dtype in small.DTYPES:
            bank, features = unit_rows(n, dim, dtype), unit_rows(batch, dim, dtype, seed=1)
            some = torch.randint(-1, max(n // 2, 1), (n,))
            some[0] = 0
            for classes in (None, some):
                pool = torch.arange(n) if classes is None else classes[classes >= 0]
                targets = pool[torch.randint(0, len(pool), (batch,))]
                targets[1] = -1
                order, starts = (None, None) if classes is None else class_index(classes)
                exact = reference(features.double(), bank.double(), targets, classes)
                eager = reference(features, bank, targets, classes)
                for precision in ("ieee", "tf32", "bf16") if dtype == torch.float32 else ("auto",):
                    if precision == "bf16":
                        rough = reference(features.bfloat16(), bank.bfloat16(), targets, classes)
                    for piece in (None, 32):
                        arguments = (features, bank, targets, order, starts, 0.1, -1)
                        problem = ContrastProblem(*arguments, True, False, precision)
                        losses, _, slopes, _ = contrast_triton(problem, piece)
                        for got, plain, best in zip(
                            (losses, slopes),
                            rough if precision == "bf16" else eager,
                            exact,
                            strict=True,
                        ):
                            # Rounding features to bfloat16 alone moves a logit by up to 2^-8 / tau.
                            tiny = (
                                2e-2
                                if precision == "bf16"
                                else 1e-2
                                if dtype != torch.float32
                                else 1e-6
                            )
                            assert_as_good_as_eager(got, plain, best, tiny)
                            cases.count += 1
                        again = contrast_triton(problem._replace(gradient=False), piece)
                        cases.equal(again[0], losses, n, dtype, precision, piece)
                        assert again[2].shape == (0, dim)
                        if piece and precision in ("auto", "ieee") and dtype != torch.float16:
                            same_partial(cases, problem._replace(partial=True), piece)
    bank, features, targets = (
        unit_rows(40, 21),
        unit_rows(5, 21, seed=1),
        torch.tensor([0, 39, 40, -1, -7]),
    )
    for f, b in (
        (features, bank),
        (strided(features), strided(bank)),
        (features, small.far_apart(bank)),
    ):
        problem = ContrastProblem(f, b, targets, None, None, 0.1, -1, True, False, "auto")
        losses, _, slopes, _ = contrast_triton(problem, 16)
        expected = reference(features.double(), bank.double(), targets.clamp(-1, 39), None)
        cases.close(losses[[0, 1]], expected[0][[0, 1]], 2e-6)
        cases.close(slopes[[0, 1]], expected[1][[0, 1]], 2e-6)
        # Nothing is read where no row is: such a loss is no number, an ignored one is zero.
        cases.equal(losses.isnan(), torch.tensor([False, False, True, False, True]))
        cases.equal(slopes.isnan().all(1), losses.isnan())
        cases.equal(losses[3], torch.tensor(0.0))
        cases.equal(slopes[3], torch.zeros(21))
    classes = torch.randint(-1, 9, (40,))
    order, starts = class_index(classes)
    for dtype in small.DTYPES:
        cases.close(
            means_of_classes(bank.to(dtype), order, starts),
            means_blocked(bank.to(dtype), order, starts),
            1e-6,
        )
    through_operators(cases)
    cases.done()


def same_partial(cases: small.Cases, problem: ContrastProblem, piece: int) -> None:
    """Compare the partial result of a shard that does not hold the targets of some features."""
    got = contrast_triton(problem, piece)
    features = problem.features
    exact = contrast_blocked(
        problem._replace(features=features.double(), bank=problem.bank.double())
    )
    for a, b in zip(got, exact, strict=True):
        cases.close(a, b.float(), 2e-2 if features.dtype != torch.float32 else 2e-6)
    if len(features) == 3:
        bare = contrast_triton(problem._replace(gradient=False), piece)
        cases.equal(bare[0], got[0])
        cases.equal(bare[1], got[1])
        assert bare[2].shape == bare[3].shape == (0, features.shape[1])


def through_operators(cases: small.Cases) -> None:
    """Loss and gradients of the registered operator, targets that are no contiguous column, and no
    class at all.
    """
    bank, features, wide = unit_rows(40, 21), unit_rows(5, 21, seed=1), torch.randint(0, 9, (5, 3))
    classes = torch.arange(80).view(40, 2)[:, 0] % 9
    for some, targets in (
        (None, wide[:, 0]),
        (classes, wide[:, 1]),
        (None, torch.tensor(3).expand(5)),
    ):
        got, exact = [], []
        for kept, kind, call in (
            (got, torch.float32, bank_contrast_loss),
            (exact, torch.float64, bank_contrast_loss_reference),
        ):
            f, b = (x.detach().clone().to(kind).requires_grad_() for x in (features, bank))
            with small.through_operators():
                loss = call(f, b, targets, 0.1, classes=some)
                loss.backward()
            kept += [loss.detach(), f.grad, b.grad]
        for a, b in zip(got, exact, strict=True):
            cases.close(a, b, 2e-6)
    with small.through_operators():
        nothing = torch.full((40,), -1)
        f = features.clone().requires_grad_()
        loss = bank_contrast_loss(f, bank, nothing[:5], 0.1, classes=nothing)
        loss.backward()
        cases.equal(loss.detach(), torch.tensor(0.0))
        cases.equal(f.grad, torch.zeros(5, 21))
        empty = torch.full((40,), -1)
        empty[3] = 2
        for some, where in (
            (None, wide[:, 0]),
            (nothing, nothing[:5]),
            (empty, torch.tensor([2, -1, -1, 2, -1])),
        ):
            got = partial_contrast(features, bank, where, 0.1, classes=some)
            for a, b in zip(
                got,
                partial_contrast_reference(features, bank, where, 0.1, classes=some),
                strict=True,
            ):
                cases.close(a, b, 2e-6)
        cases.close(class_means(bank, classes, 9), means_blocked(bank, *class_index(classes)), 1e-6)


if __name__ == "__main__":
    main()
