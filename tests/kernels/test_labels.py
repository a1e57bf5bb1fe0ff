"""`label_prediction`: the CPU form against the reference, its corners."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reid_kernels import labels_cpu, multilabel_cpu
from reid_kernels.labels import _label_prediction, label_prediction, label_prediction_reference
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def example_label_prediction(call: Callable[..., Any], x: Tensor, bank: Tensor) -> Any:
    return call(bank, torch.arange(9) * 3 % 7, threshold=0.1)


def integers(*shape: int) -> Tensor:
    """Rows whose products are exact in every dtype with float32 sums, and often equal."""
    return torch.randint(-2, 3, shape) / 4


def crowds(n: int, groups: int, dim: int) -> Tensor:
    """Rows around a few centres, on the same grid."""
    return integers(groups, dim)[torch.randint(0, groups, (n,))] + integers(n, dim) / 2


def at(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64) * (math.pi / 180)
    return torch.stack([angles.cos(), angles.sin()], 1)


def positives_of(bank: Tensor, row: int, **kwargs) -> list[int]:
    return label_prediction(bank, torch.tensor([row]), **kwargs)[1].tolist()


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == torch.int64
        assert x.tolist() == y.tolist()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_positives_equal_the_reference(data: st.DataObject) -> None:
    n, groups, dim, batch = (data.draw(st.integers(1, most)) for most in (90, 6, 8, 6))
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    bank = data.draw(
        st.sampled_from(
            [crowds(n, groups, dim), integers(groups, dim)[torch.randint(0, groups, (n,))]]
        )
    )
    if data.draw(st.booleans()):
        bank[torch.rand(n) < 0.3] = 0
    rows = torch.randint(0, n, (batch,))
    kwargs = {
        "threshold": data.draw(st.sampled_from([-0.3, 0.0, 0.2, 0.5, 1.0])),
        "at_least": data.draw(st.integers(1, 12)),
    }
    expected = label_prediction_reference(bank.double(), rows, **kwargs)
    assert_same(
        label_prediction(bank.to(data.draw(st.sampled_from(DTYPES))), rows, **kwargs), expected
    )


@pytest.mark.parametrize("dim", [8, 64])
def test_unit_rows_agree_too(dim: int) -> None:
    centres = F.normalize(torch.randn(12, dim))
    bank = F.normalize(centres.repeat(20, 1) + torch.randn(240, dim) * 0.7 / dim**0.5)
    rows = torch.randint(0, 240, (32,))
    expected = label_prediction_reference(bank.double(), rows)
    assert expected[0].diff().max() > 5
    assert_same(label_prediction(bank, rows), expected)


# A crowd behind the row at 50 degrees holds twelve rows that are nearer to it than the row at 0,
# and not near that.
CROWD = [55 + x for x in range(12)]


def test_the_walk_stops_at_the_first_that_fails_and_does_not_skip() -> None:
    assert positives_of(at(0, 1, 50, -52, *CROWD), 0) == [0, 1]
    assert positives_of(at(0, 1, 50, -52), 0) == [0, 1, 2, 3]


def test_the_first_neighbour_needs_only_its_similarity() -> None:
    assert positives_of(at(0, 50, -52, *CROWD), 0) == [0, 1]
    assert positives_of(at(0, 54, *CROWD), 0) == [0]


def test_a_rank_may_be_as_great_as_the_bound() -> None:
    # Nearer to the row at 50 than 0 is: itself, the row at 1 and the crowd.
    bank = at(0, 1, 50, *CROWD[:8])
    assert positives_of(bank, 0, at_least=10) == [0, 1, 2]
    assert positives_of(bank, 0, at_least=9) == [0, 1]


def test_equal_rows_are_listed_from_the_lowest() -> None:
    bank = torch.tensor([[0.0, 1], [1, 0], [1, 0], [1, 0]])
    assert positives_of(bank, 2) == [1, 2, 3]
    assert positives_of(bank, 0) == [0]


def test_a_row_that_is_not_in_its_own_list_comes_last() -> None:
    bank = torch.tensor([[0.5, 0], [2, 0], [3, 0]])
    assert positives_of(bank, 0) == [2, 1, 0]


def test_an_empty_memory_gives_each_row_itself() -> None:
    indptr, indices = label_prediction(torch.zeros(40, 8), torch.tensor([7, 0, 7]))
    assert indptr.tolist() == [0, 1, 2, 3]
    assert indices.tolist() == [7, 0, 7]


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.3])
def test_waves_and_blocks_change_nothing(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, rows = crowds(150, 2, 6), torch.arange(0, 150, 7)
    whole = label_prediction(bank, rows, threshold=threshold)
    assert_same(whole, label_prediction_reference(bank, rows, threshold=threshold))
    assert whole[0].diff().max() > 42
    monkeypatch.setattr(multilabel_cpu, "BLOCK", 4 * 150 * 2)
    assert_same(label_prediction(bank, rows, threshold=threshold), whole)
    monkeypatch.setattr(labels_cpu, "_FIRST", 1)
    monkeypatch.setattr(labels_cpu, "_NEXT", 2)
    assert_same(label_prediction(bank, rows, threshold=threshold), whole)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_named(bad: float) -> None:
    bank = at(0, 1, 2, 90).float()
    bank[1, 0] = bad
    with pytest.raises(ValueError, match="bank: row 1 is not finite"):
        label_prediction(bank, torch.tensor([0]))


def test_empty_inputs() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    for bank in (torch.ones(5, 3), torch.ones(0, 3)):
        indptr, indices = label_prediction(bank, nothing)
        assert indptr.tolist() == [0]
        assert indices.shape == (0,)
    assert positives_of(torch.ones(5, 0), 3) == [3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_inputs_of_any_stride(dtype: torch.dtype) -> None:
    bank, rows = crowds(60, 4, 12).to(dtype)[:, ::2], torch.arange(40)[::4]
    expected = label_prediction(bank.contiguous(), rows.contiguous(), threshold=0.3)
    assert_same(label_prediction(bank, rows, threshold=0.3), expected)
    assert_same(label_prediction(bank.T.contiguous().T, rows, threshold=0.3), expected)


def test_two_runs_give_the_same() -> None:
    bank, rows = F.normalize(torch.randn(300, 16)), torch.arange(32)
    assert_same(
        label_prediction(bank, rows, threshold=0.2), label_prediction(bank, rows, threshold=0.2)
    )


def test_autocast_does_not_lower_the_precision() -> None:
    bank, rows = F.normalize(torch.randn(300, 16)), torch.arange(32)
    expected = label_prediction(bank, rows, threshold=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(label_prediction(bank, rows, threshold=0.2), expected)


def test_a_bank_that_requires_a_gradient_gets_none() -> None:
    bank, rows = crowds(60, 4, 6), torch.arange(8)
    assert_same(label_prediction(bank.clone().requires_grad_(), rows), label_prediction(bank, rows))


def test_the_custom_op_is_well_formed() -> None:
    torch.library.opcheck(_label_prediction, (crowds(60, 4, 6), torch.arange(8), 0.3, 10))


def test_compiles_whole_and_once_for_every_size_of_the_bank() -> None:
    torch._dynamo.reset()
    counter, counts = CompileCounterWithBackend("aot_eager"), set()
    compiled = torch.compile(label_prediction, backend=counter, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for n in (40, 77, 130):
            bank, rows = crowds(n, 4, 6), torch.arange(9)
            assert_same(
                compiled(bank, rows, threshold=0.3), label_prediction(bank, rows, threshold=0.3)
            )
            counts.add(counter.frame_count)
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank": torch.ones(4)}, r"bank: got shape \(4,\)"),
        ({"bank": torch.ones(4, 4, dtype=torch.int64)}, "bank: got dtype torch.int64"),
        ({"rows": torch.zeros(2, 2, dtype=torch.int64)}, r"rows: got shape \(2, 2\)"),
        (
            {"rows": torch.zeros(2, dtype=torch.int32)},
            "rows: got dtype torch.int32, expected torch.int64",
        ),
        ({"rows": torch.tensor([0, 5])}, r"rows: got 5 at index 1, expected values in \[0, 5\)"),
        ({"rows": torch.tensor([-1])}, "rows: got -1 at index 0"),
        ({"at_least": 0}, "at_least: got 0, expected 1 or more"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_prediction(**({"bank": torch.ones(5, 4), "rows": torch.tensor([0])} | change))
