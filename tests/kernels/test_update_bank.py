"""`update_bank_` on a CPU: the batch in order, one feature after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reid_kernels import NotFiniteError, hardest_rows, update_bank_, update_bank_reference
from reid_kernels.update_bank import _update_bank, hardest_targets
from torch import Tensor

from tests.support.kernels import FLOATS, compiled_once, strided, unit_rows

TIGHT = {torch.float64: 1e-14, torch.float32: 2e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def example_update_bank(call: Callable[..., Tensor], x: Tensor, bank: Tensor) -> Tensor:
    return call(bank.clone(), x, torch.arange(9) * 3 % 7, 0.2)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 12),
    batch=st.integers(0, 20),
    dim=st.integers(1, 40),
    momentum=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    dtype=st.sampled_from([*FLOATS, torch.float64]),
    seed=st.integers(0, 100),
)
def test_batch_is_applied_in_order(
    n: int, batch: int, dim: int, momentum: float, dtype: torch.dtype, seed: int
) -> None:
    bank, features = unit_rows(n, dim, dtype, seed), unit_rows(batch, dim, dtype, seed + 1)
    targets = torch.randint(-1, n, (batch,), generator=torch.Generator().manual_seed(seed))
    expected = update_bank_reference(bank, features, targets, momentum)
    assert update_bank_(bank, features, targets, momentum) is bank
    torch.testing.assert_close(bank, expected, rtol=0, atol=TIGHT[dtype])


def test_a_row_moves_on_from_where_the_one_before_left_it() -> None:
    bank, features = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    update_bank_(bank, features, torch.tensor([0, 0]), 0.5)
    first = torch.tensor([0.5, 0.5]) / 0.5**0.5
    second = 0.5 * first + torch.tensor([0.5, 0.0])
    torch.testing.assert_close(bank[0], second / second.norm())


def test_rows_that_are_not_named_stay_as_they_are_to_the_bit() -> None:
    bank = torch.randn(5, 7)
    before = bank.clone()
    update_bank_(bank, unit_rows(3, 7), torch.tensor([1, -1, 1]), 0.2)
    assert torch.equal(bank[[0, 2, 3, 4]], before[[0, 2, 3, 4]])
    assert not torch.equal(bank[1], before[1])


def test_ignored_target_is_the_callers_choice() -> None:
    bank = unit_rows(3, 4)
    before = bank.clone()
    update_bank_(bank, unit_rows(2, 4, seed=1), torch.tensor([2, 2]), 0.5, ignore_index=2)
    assert torch.equal(bank, before)


def test_what_cancels_out_stays_zero() -> None:
    bank = torch.tensor([[1.0, 0.0]])
    update_bank_(bank, torch.tensor([[-1.0, 0.0]]), torch.tensor([0]), 0.5)
    assert torch.equal(bank, torch.zeros(1, 2))


def test_a_part_of_a_bank_is_changed_in_place() -> None:
    whole = unit_rows(10, 6)
    expected = whole.clone()
    expected[4:8] = update_bank_reference(
        whole[4:8], unit_rows(2, 6, seed=1), torch.tensor([3, 0]), 0.2
    )
    update_bank_(whole[4:8], strided(unit_rows(2, 6, seed=1)), torch.tensor([3, 0]), 0.2)
    torch.testing.assert_close(whole, expected)


def test_features_may_be_rows_of_the_bank_itself() -> None:
    bank = unit_rows(6, 5)
    expected = update_bank_reference(bank, bank[:3].clone(), torch.tensor([1, 2, 0]), 0.3)
    update_bank_(bank, bank[:3], torch.tensor([1, 2, 0]), 0.3)
    torch.testing.assert_close(bank, expected)


def test_rows_of_a_bank_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="bank: got strides"):
        update_bank_(torch.zeros(1, 4).expand(3, 4), torch.ones(1, 4), torch.tensor([0]), 0.5)


def test_no_gradient_is_kept() -> None:
    bank, features = unit_rows(4, 3), unit_rows(2, 3, seed=1).requires_grad_()
    update_bank_(bank, features, torch.tensor([0, 1]), 0.5)
    assert not bank.requires_grad


@pytest.mark.parametrize(
    ("bank", "features", "targets", "momentum", "message"),
    [
        (torch.zeros(4), torch.zeros(1, 4), [0], 0.5, r"bank: got shape \(4,\)"),
        (
            torch.zeros(4, 3),
            torch.zeros(1, 4),
            [0],
            0.5,
            "features: got rows of width 4, expected 3",
        ),
        (
            torch.zeros(4, 3),
            torch.zeros(1, 3).half(),
            [0],
            0.5,
            "features: got dtype torch.float16",
        ),
        (
            torch.zeros(4, 3),
            torch.zeros(2, 3),
            [0],
            0.5,
            r"targets: got shape \(1,\), expected \(2,\)",
        ),
        (
            torch.zeros(4, 3),
            torch.zeros(1, 3),
            [4],
            0.5,
            r"targets: got 4 at index 0, expected values in \[0, 4\)",
        ),
        (torch.zeros(4, 3), torch.zeros(1, 3), [-2], 0.5, "targets: got -2 at index 0"),
        (
            torch.zeros(4, 3),
            torch.zeros(1, 3),
            [0],
            1.5,
            r"momentum: got 1.5, expected a number in \[0, 1\]",
        ),
        (
            torch.zeros(4, 3, requires_grad=True),
            torch.zeros(1, 3),
            [0],
            0.5,
            "bank: got a tensor that requires a gradient",
        ),
    ],
)
def test_bad_input_is_named(
    bank: Tensor, features: Tensor, targets: list[int], momentum: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        update_bank_(bank, features, torch.tensor(targets), momentum)


def test_hardest_rows_are_the_least_similar_of_their_class() -> None:
    bank = torch.eye(3)
    features = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0.9, 0], [0, 0.2, 0], [0, 0.2, 1]])
    assert sorted(hardest_rows(features, bank, torch.tensor([0, 0, 1, 1, 1])).tolist()) == [1, 3]


def test_hardest_rows_leave_out_what_is_ignored() -> None:
    bank, targets = torch.eye(3), torch.tensor([-1, 1, 1, -1])
    features = torch.tensor([[1.0, 0, 0], [0, 0.5, 0], [0, 0.2, 0], [0, 0, 1]])
    assert hardest_rows(features, bank, targets).tolist() == [2]
    with pytest.raises(ValueError, match="targets: got 3 at index 0"):
        hardest_rows(features, bank, torch.tensor([3, 1, 1, -1]))


def test_hardest_targets_are_those_of_the_hardest_rows() -> None:
    bank, features = unit_rows(5, 8), unit_rows(40, 8, seed=1)
    targets = torch.randint(-1, 5, (40,), generator=torch.Generator().manual_seed(2))
    got = hardest_targets(features, bank, targets)
    expected = torch.full((40,), -1)
    selected = hardest_rows(features, bank, targets)
    expected[selected] = targets[selected]
    assert torch.equal(got, expected)
    similarity = (features * bank[targets.clamp(min=0)]).sum(1)
    for k in range(5):
        own = similarity.where(targets == k, torch.inf)
        assert (got == k).nonzero().tolist() == [[int(own.argmin())]]


def test_features_that_are_not_finite_do_not_reach_the_bank() -> None:
    bank, features = unit_rows(5, 4), unit_rows(3, 4, seed=1)
    features[1, 2], features[2] = torch.nan, torch.nan
    before = bank.clone()
    with pytest.raises(ValueError, match="features: row 1 is not finite"):
        update_bank_(bank, features, torch.tensor([0, 1, -1]), 0.5)
    assert torch.equal(bank, before)


def test_operator_is_registered_as_pytorch_wants_it() -> None:
    torch.library.opcheck(
        _update_bank, (unit_rows(5, 4), unit_rows(3, 4, seed=1), torch.tensor([1, 1, -1]), 0.2, -1)
    )


def test_it_compiles_once_for_all_sizes_of_the_bank() -> None:
    def moved(bank: Tensor, features: Tensor, targets: Tensor) -> Tensor:
        bank = bank.clone()
        update_bank_(bank, features, targets, 0.3)
        return bank

    sizes = [
        (unit_rows(n, 6), unit_rows(4, 6, seed=1), torch.tensor([0, 5, 0, -1])) for n in (9, 17, 30)
    ]
    compiled_once(moved, sizes, lambda bank, *_: [bank])


def test_lengths_that_are_not_finite_do_not_reach_the_bank() -> None:
    bank, features = unit_rows(5, 4), unit_rows(2, 4, seed=1)
    features[1] = 1e30
    before = bank.clone()
    with pytest.raises(NotFiniteError, match="features: row 1 is too long"):
        update_bank_(bank, features, torch.tensor([0, 1]), 0.5)
    bank[3] = 1e30
    with pytest.raises(NotFiniteError, match="bank: row 3 is too long"):
        update_bank_(bank, unit_rows(1, 4), torch.tensor([3]), 0.5)
    assert torch.equal(bank[:3], before[:3])


def test_an_array_is_updated_in_place() -> None:
    bank, features, targets = unit_rows(5, 4), unit_rows(2, 4, seed=1), torch.tensor([3, 0])
    array = bank.numpy().copy()
    expected = update_bank_(bank, features, targets, 0.5)
    update_bank_(array, features.numpy(), targets.int().numpy(), 0.5)  # type: ignore[arg-type]
    assert np.array_equal(array, expected.numpy())
    for copied in (array[::-1], array.astype(">f4")):
        with pytest.raises(ValueError, match="bank: got an array that cannot be changed in place"):
            update_bank_(copied, features, targets, 0.5)  # type: ignore[arg-type]
