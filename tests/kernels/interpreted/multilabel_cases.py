"""Run with TRITON_INTERPRET=1: the kernels of `multilabel_bank_loss` against the reference in
float64, on tiny shapes.
"""

from __future__ import annotations

import torch
from reid_kernels import multilabel_bank_loss
from reid_kernels._triton import Operands, operands, tl
from reid_kernels._weighted import weighted_rows
from reid_kernels.multilabel import (
    LabelSet,
    MultilabelProblem,
    multilabel_bank_loss_reference,
)
from reid_kernels.multilabel_cpu import multilabel_blocked
from reid_kernels.multilabel_triton import bit_rows, count_bits, multilabel_triton, similarities
from reid_kernels.tiles import Tile
from torch import Tensor

from tests.kernels.interpreted import small
from tests.support import launches as sweep
from tests.support.kernels import unit_rows

TILE = Tile(16, 16, 16, 1, 1)
SELECT = Tile(1, 32, 0, 1, 1)


def lists(*rows: list[int]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([0, *(len(row) for row in rows)])
    return sizes.cumsum(0), torch.tensor([j for row in rows for j in row], dtype=torch.int64)


def integers(*shape: int) -> Tensor:
    """Rows whose products are exact in float32, and often equal."""
    return torch.randint(-2, 3, shape).float() / 4


def run(
    features: Tensor,
    bank: Tensor,
    positives: object,
    delta: float,
    ratio: float,
    precision: str = "auto",
    block: int = 2**26,
):
    labels, indices = (positives, None) if isinstance(positives, Tensor) else positives
    problem = MultilabelProblem(features, bank, labels, indices, delta, ratio, True, precision)
    sets = [LabelSet(labels, indices, 1.0)]
    return multilabel_triton(problem, sets, tile=TILE, select=SELECT, block=block)


def expected(
    features: Tensor, bank: Tensor, positives: object, delta: float, ratio: float
) -> tuple[Tensor, Tensor]:
    features = features.double().requires_grad_()
    losses = multilabel_bank_loss_reference(
        features, bank.double(), positives, delta=delta, hard_ratio=ratio, reduction="none"
    )
    return losses.detach(), torch.autograd.grad(losses.sum(), features)[0]


def close(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], tolerance: float) -> None:
    for x, y in zip(got, wanted, strict=True):
        assert x.dtype == torch.float32 and x.shape == y.shape
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)


def several_tiles_and_blocks_agree_with_the_reference() -> None:
    n = 70
    positives = lists([3, 3, 69, 0], [], list(range(n)))
    for make in (torch.randn, integers):
        features, bank = make(3, 20) / 2, make(n, 20) / 2
        wanted = expected(features, bank, positives, 5.0, 0.11)
        got = run(features, bank, positives, 5.0, 0.11)
        close(got, wanted, 2e-6)
        again = run(features, bank, positives, 5.0, 0.11, block=4 * n)
        assert all(map(torch.equal, got, again))


def ties_at_the_threshold_share_its_places_as_on_a_cpu() -> None:
    bank = integers(6, 20)[torch.arange(40) % 6]
    features, positives = integers(4, 20), lists([0, 6], [1], [5], [2, 3, 4])
    got = run(features, bank, positives, 2.0, 0.2)
    close(got, expected(features, bank, positives, 2.0, 0.2), 2e-6)
    shuffled = torch.randperm(40)
    place = shuffled.argsort()
    moved = run(features, bank[shuffled], (positives[0], place[positives[1]]), 2.0, 0.2)
    blocked = multilabel_blocked(
        MultilabelProblem(features, bank, *positives, 2.0, 0.2, True, "auto"),
        [LabelSet(*positives, 1.0)],
    )
    for x, y, z in zip(got, moved, blocked, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(x, z, rtol=1e-6, atol=1e-6)


def zeros_and_extreme_rows_are_defined() -> None:
    zero = torch.zeros(2, 20), torch.zeros(33, 20)
    close(run(*zero, lists([1], [2]), 5.0, 0.5), expected(*zero, lists([1], [2]), 5.0, 0.5), 1e-6)
    features, bank, positives = torch.ones(2, 20), integers(33, 20), lists([5], [7])
    for bad in (torch.nan, torch.inf):
        bank[7] = bad
        assert not torch.isfinite(run(features, bank, positives, 5.0, 0.2)[0]).any()
    # Below all others, so no hard negative; a positive in the second row.
    bank[7] = -1e12
    losses, _ = run(features, bank, positives, 5.0, 0.2)
    wanted, _ = expected(features, bank, positives, 5.0, 0.2)
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-6, atol=1e-6)


def half_floats_are_multiplied_exactly() -> None:
    positives = lists([3, 8], [0], [1])
    for dtype in (torch.float16, torch.bfloat16):
        features, bank = (torch.randn(3, 20) / 2).to(dtype), (torch.randn(40, 20) / 2).to(dtype)
        wanted = expected(features, bank, positives, 5.0, 0.11)
        # The interpreter's tf32 is float32.
        close(run(features, bank, positives, 5.0, 0.11), wanted, 5e-6)


def lower_precisions_are_as_close_as_their_format() -> None:
    positives = lists([3, 8], [0], [1])
    features, bank = torch.randn(3, 20) / 4, torch.randn(40, 20) / 4
    wanted = expected(features, bank, positives, 5.0, 0.11)
    close(run(features, bank, positives, 5.0, 0.11, "ieee"), wanted, 2e-6)
    close(run(features, bank, positives, 5.0, 0.11, "tf32"), wanted, 1e-2)
    close(run(features, bank, positives, 5.0, 0.11, "bf16"), wanted, 5e-2)


def bit_rows_hold_each_positive_once_and_nothing_outside() -> None:
    positives = lists([0, 31, 32, 31, 69], [], [70, -1, 64], list(range(70)))
    bits = bit_rows(*positives, 70)
    assert bits.shape == (4, 3) and bits.dtype == torch.int32
    places = torch.arange(96)
    held = (bits[:, places // 32] >> (places % 32)) & 1 == 1
    assert [row.nonzero()[:, 0].tolist() for row in held] == [
        [0, 31, 32, 69],
        [],
        [64],
        list(range(70)),
    ]
    assert count_bits(bits, 70).tolist() == [4, 0, 1, 70]
    assert count_bits(torch.full((2, 3), -1, dtype=torch.int32), 70).tolist() == [70, 70]
    features, bank = torch.randn(4, 20), torch.randn(70, 20)
    listed = run(features, bank, positives, 5.0, 0.1)
    assert all(map(torch.equal, listed, run(features, bank, bits, 5.0, 0.1)))


def rows_of_any_stride_are_read() -> None:
    positives = lists([3], [0], [1])
    features, bank = torch.randn(20, 3).T / 2, (torch.randn(40, 50) / 2)[:, 7:27]
    close(
        run(features, bank, positives, 5.0, 0.11),
        expected(features, bank, positives, 5.0, 0.11),
        2e-6,
    )
    got = run(features, bank[:, ::2].repeat(1, 2), positives, 5.0, 0.11)
    close(got, expected(features, bank[:, ::2].repeat(1, 2), positives, 5.0, 0.11), 2e-6)


def weighted_rows_splits_the_bank_and_adds_in_order() -> None:
    weights, bank = torch.randn(3, 150), torch.randn(150, 37)
    wanted = weights.double() @ bank.double()
    ieee = operands(torch.float32, "ieee")
    got = weighted_rows(weights, bank, ieee, TILE)
    torch.testing.assert_close(got.double(), wanted, rtol=2e-6, atol=2e-5)
    assert torch.equal(got, weighted_rows(weights, bank, ieee, TILE))
    strided = weighted_rows(weights.T.contiguous().T, bank.T.contiguous().T, ieee, TILE)
    assert torch.equal(got, strided)
    low = bank.bfloat16()
    exact = weighted_rows(weights, low, Operands(torch.float32, tl.float32, "tf32"), TILE)
    torch.testing.assert_close(
        exact.double(), weights.double() @ low.double(), rtol=2e-6, atol=2e-5
    )
    rough = weighted_rows(weights, low, operands(torch.bfloat16, "ieee"), TILE)
    torch.testing.assert_close(
        rough.double(), weights.bfloat16().double() @ low.double(), rtol=2e-6, atol=2e-5
    )


def similarities_are_the_product() -> None:
    rows, bank = torch.randn(5, 20), torch.randn(50, 20)
    got = similarities(rows, bank, operands(torch.float32, "ieee"), TILE)
    torch.testing.assert_close(got.double(), rows.double() @ bank.double().T, rtol=1e-6, atol=1e-5)


def banks_past_two_to_the_31_values_are_read() -> None:
    bank, features = unit_rows(40, 20), unit_rows(3, 20, seed=1)
    positives = torch.tensor([0, 2, 2, 3]), torch.tensor([4, 39, 38])
    got, expected = (
        multilabel_triton(
            MultilabelProblem(features, rows, *positives, 5.0, 0.1, True, "ieee"),
            [LabelSet(*positives, 1.0)],
            tile=TILE,
            select=SELECT,
        )
        for rows in (small.far_apart(bank), bank)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def losses_of_several_sets_are_summed() -> None:
    features, bank = torch.randn(3, 20) / 2, torch.randn(70, 20) / 2
    listed = lists([3, 69, 0], [], list(range(70)))
    bits = bit_rows(*lists([5], [1, 2, 64], [40]), 70)
    sets = [LabelSet(*listed, 1.0), LabelSet(bits, None, 0.25), LabelSet(*listed, 2.0)]
    problem = MultilabelProblem(features, bank, *listed, 5.0, 0.11, True, "ieee")
    got = multilabel_triton(problem, sets, tile=TILE, select=SELECT)
    of_lists = expected(features, bank, listed, 5.0, 0.11)
    of_bits = expected(features, bank, bits, 5.0, 0.11)
    wanted = [3 * x + 0.25 * y for x, y in zip(of_lists, of_bits, strict=True)]
    close(got, (wanted[0], wanted[1]), 5e-6)


def the_registered_operator_takes_the_kernels() -> None:
    small.shrink_tiles()
    bank, features = unit_rows(70, 20), unit_rows(3, 20, seed=1)
    positives = torch.tensor([0, 2, 2, 3]), torch.tensor([4, 9, 69])
    got = []
    for call, kind in (
        (multilabel_bank_loss, torch.float32),
        (multilabel_bank_loss_reference, torch.float64),
    ):
        f = features.to(kind).clone().requires_grad_()
        with small.through_operators():
            loss = call(f, bank.to(kind), positives)
        loss.backward()
        got.append((loss.detach().double(), f.grad.double()))
    for a, b in zip(*got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def launches() -> None:
    """Launch the kernels in every way that compiles other code."""
    bits = torch.zeros(sweep.LARGE, -(-sweep.BANK // 32), dtype=torch.int32)
    for dtype, precision, batch, flag in sweep.cases():
        lists = (torch.arange(batch + 1), sweep.ids(batch))
        positives, indices = lists if flag else (bits[:batch], None)
        loss = (sweep.rows(batch, dtype), sweep.rows(sweep.BANK, dtype), positives, indices)
        sets = [LabelSet(positives, indices, 1.0), LabelSet(bits[:batch], None, 0.5)]
        problem = MultilabelProblem(*loss, 5.0, 0.01, flag, precision)
        multilabel_triton(problem, sets[: 1 + flag])


def main() -> None:
    small.require_interpreter()
    torch.manual_seed(0)
    several_tiles_and_blocks_agree_with_the_reference()
    ties_at_the_threshold_share_its_places_as_on_a_cpu()
    zeros_and_extreme_rows_are_defined()
    half_floats_are_multiplied_exactly()
    lower_precisions_are_as_close_as_their_format()
    bit_rows_hold_each_positive_once_and_nothing_outside()
    rows_of_any_stride_are_read()
    weighted_rows_splits_the_bank_and_adds_in_order()
    similarities_are_the_product()
    banks_past_two_to_the_31_values_are_read()
    losses_of_several_sets_are_summed()
    the_registered_operator_takes_the_kernels()


if __name__ == "__main__":
    main()
