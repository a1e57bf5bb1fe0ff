"""`similarity_topk` on a CPU: both of its forms equal a stable sort of the similarities."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import reid_kernels
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reid_kernels import (
    BankIndex,
    NotFiniteError,
    similarity_topk,
    similarity_topk_reference,
    topk_cpu,
)
from reid_kernels.topk import _bank_index, _search_index, _similarity_topk
from torch import Tensor

from tests.support.kernels import (
    FLOATS,
    HALVES,
    compiled_once,
    on_grid,
    strided,
    unit_rows,
)


def example_similarity_topk(call: Callable[..., Any], x: Tensor, bank: Tensor) -> Any:
    return call(x, bank, 5)


@pytest.fixture(params=["bf16 candidates", "float32"])
def candidates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms on any CPU: PyTorch multiplies bfloat16 without units for it as well, slowly."""
    for module in (topk_cpu, reid_kernels.topk):
        monkeypatch.setattr(module, "has_bf16_units", lambda: request.param != "float32")
    return str(request.param)


def reached(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that `_certified` saw, filled as it is called."""
    seen: list[int] = []
    inner = topk_cpu._certified

    def count(query: Tensor, *rest: object) -> None:
        seen.append(len(query))
        inner(query, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(topk_cpu, "_certified", count)
    return seen


@pytest.mark.parametrize("k", [1, 30, 128])
@pytest.mark.parametrize("n", [1024, 1999])
@pytest.mark.parametrize("excluded", [True, False])
def test_ties_go_to_the_lowest_row(
    candidates: str, k: int, n: int, excluded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = reached(monkeypatch)
    bank = on_grid(n, 64)
    bank[n // 2] = bank[-1] = bank[3]
    query = torch.cat([bank[:10], on_grid(40, 64, seed=1)])
    own = torch.cat([torch.arange(10), torch.randint(-1, n, (40,))]) if excluded else None
    got = similarity_topk(query, bank, k, normalize=False, exclude=own)
    expected = similarity_topk_reference(
        query.double(), bank.double(), k, normalize=False, exclude=own
    )
    assert torch.equal(got[0], expected[0].float())
    assert torch.equal(got[1], expected[1])
    assert bool(seen) == (candidates != "float32" and 8 * k <= n)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("normalize", [True, False])
def test_values_are_those_of_the_rows_returned(
    candidates: str, dtype: torch.dtype, normalize: bool
) -> None:
    bank, query = unit_rows(1500, 96, dtype) * 3, unit_rows(50, 96, dtype, seed=1) * 2
    values, indices = similarity_topk(query, bank, 20, normalize=normalize)
    exact, order = similarity_topk_reference(query.double(), bank.double(), 20, normalize=normalize)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=0, atol=1e-6 if normalize else 1e-5)
    q, b = query.double(), bank.double()
    if normalize:
        q, b = torch.nn.functional.normalize(q), torch.nn.functional.normalize(b)
    torch.testing.assert_close(
        (q[:, None] * b[indices]).sum(2), exact, rtol=0, atol=1e-6 if normalize else 1e-5
    )
    assert (indices == order).float().mean() > 0.99


@settings(max_examples=60, deadline=None)
@given(
    b=st.integers(0, 40),
    n=st.integers(0, 60),
    dim=st.integers(1, 20),
    k=st.integers(1, 70),
    dtype=st.sampled_from([*FLOATS, torch.float64]),
    normalize=st.booleans(),
    excluded=st.booleans(),
    seed=st.integers(0, 10),
)
def test_any_shape_equals_the_reference(
    b: int, n: int, dim: int, k: int, dtype: torch.dtype, normalize: bool, excluded: bool, seed: int
) -> None:
    query, bank = on_grid(b, dim, seed).to(dtype), on_grid(n, dim, seed + 1).to(dtype)
    if normalize:
        # Norms that are powers of two keep the similarities exact.
        query, bank = (
            torch.nn.functional.one_hot(x.argmax(1), dim).to(dtype) * 2 for x in (query, bank)
        )
    own = torch.randint(-1, max(n, 1), (b,)) if excluded else None
    if n == 0 and own is not None:
        own.fill_(-1)
    values, indices = similarity_topk(query, bank, k, normalize=normalize, exclude=own)
    expected = similarity_topk_reference(
        query.double(), bank.double(), k, normalize=normalize, exclude=own
    )
    assert values.shape == indices.shape == (b, k)
    assert torch.equal(values.double(), expected[0])
    assert torch.equal(indices, expected[1])


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1024, 1400),
    dim=st.integers(64, 130),
    k=st.integers(1, 100),
    crowd=st.sampled_from([0.0, 1e-4, 1e-2, 1.0]),
    seed=st.integers(0, 100),
)
def test_bf16_candidates_lose_nothing_however_rows_crowd(
    n: int, dim: int, k: int, crowd: float, seed: int
) -> None:
    """Rows that differ by less than bfloat16 can tell, and by more."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(dim, generator=generator)
    bank = centre + crowd * torch.randn(n, dim, generator=generator)
    query = centre + crowd * torch.randn(30, dim, generator=generator)
    values, indices = torch.full((30, k), -torch.inf), torch.full((30, k), -1)
    scales = [topk_cpu._inverse_norms("rows", x) for x in (query, bank)]
    low = topk_cpu._rounded(bank, scales[1])
    topk_cpu._certified(query, bank, low, *scales, None, values, indices, False)
    exact, _ = similarity_topk_reference(query.double(), bank.double(), k)
    torch.testing.assert_close(values.double(), exact, rtol=0, atol=2e-6)
    assert all(len(row.unique()) == k for row in indices)


def test_rows_that_cannot_be_certified_are_computed_in_float32() -> None:
    bank, query = torch.ones(1100, 64), torch.ones(20, 64)
    values, indices = torch.zeros(20, 5), torch.zeros(20, 5, dtype=torch.int64)
    low = topk_cpu._rounded(bank, None)
    topk_cpu._certified(query, bank, low, None, None, None, values, indices, False)
    assert torch.equal(values, torch.full((20, 5), 64.0))
    assert torch.equal(indices, torch.arange(5).expand(20, 5))


@pytest.mark.parametrize("moved", [6, 13, 19, 29])
def test_products_on_either_side_of_a_rounding_are_not_swapped(candidates: str, moved: int) -> None:
    """The worst that three roundings do: the better row loses by each of them, and the other one
    gains.

    With a query of 1/8 everywhere the products are 1 + u 2^-13, u the sum of the row's steps of
    2^-10 above 1/8; bfloat16 rounds them at u = 32.
    """
    step = 2.0**-10

    def row(steps: int) -> Tensor:
        return 0.125 + step * (torch.arange(64) < steps)

    bank = torch.zeros(1024, 64)
    # Less than half a step, so that the row's own rounding takes it away.
    bank[7], bank[500] = row(31), row(33)
    bank[7, -moved:] += 0.495 * step
    bank[500, :moved] -= 0.495 * step
    assert torch.equal(bank[[7, 500]].bfloat16().float(), torch.stack([row(31), row(33)]))
    query = torch.full((16, 64), 0.125)
    exact, order = similarity_topk_reference(query.double(), bank.double(), 1, normalize=False)
    values, indices = similarity_topk(query, bank, 1, normalize=False)
    assert torch.equal(indices, order)
    torch.testing.assert_close(values.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-23, 1e-24, 1e-26, 1e-10, 1e5, 1e15])
def test_bounds_hold_for_rows_of_any_length(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    bank = 1 + 1e-3 * torch.randn(4000, 64, generator=generator)
    query = scale * (1 + 1e-3 * torch.randn(64, 64, generator=generator))
    values, indices = torch.full((64, 5), -torch.inf), torch.full((64, 5), -1)
    low = topk_cpu._rounded(bank, None)
    topk_cpu._certified(query, bank, low, None, None, None, values, indices, False)
    exact, _ = similarity_topk_reference(query.double(), bank.double(), 5, normalize=False)
    torch.testing.assert_close(values.double(), exact, rtol=2e-6, atol=0)


def test_rows_that_share_memory_are_not_taken_for_each_other(candidates: str) -> None:
    square = unit_rows(1024, 1024)
    for query in (square.T, square[:1].expand(1024, 1024)):
        got, expected = (similarity_topk(q, square, 3) for q in (query, query.clone()))
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("batch", [1, 2, 5, 17])
@pytest.mark.parametrize("n", [511, 2047])
def test_equal_rows_tie_in_small_batches_too(batch: int, n: int) -> None:
    bank, query = unit_rows(n, 2048), unit_rows(batch, 2048, seed=1)
    rows = torch.tensor([3, n // 2, n - 2, n - 1])
    bank[rows] = query[:1]
    assert torch.equal(similarity_topk(query, bank, 4, precision="ieee")[1][0], rows)


def test_a_bank_searched_with_itself_equals_a_copy(candidates: str) -> None:
    bank = unit_rows(1100, 64)
    own = torch.arange(1100)
    here, there = (similarity_topk(q, bank, 9, exclude=own) for q in (bank, bank.clone()))
    assert torch.equal(here[0], there[0])
    assert torch.equal(here[1], there[1])
    assert not (here[1] == own[:, None]).any()


def test_rows_need_not_be_contiguous(candidates: str) -> None:
    bank, query = unit_rows(1100, 64), unit_rows(20, 64, seed=1)
    got, expected = (
        similarity_topk(strided(query), strided(bank), 7),
        similarity_topk(query, bank, 7),
    )
    torch.testing.assert_close(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_two_runs_are_equal_to_the_bit(candidates: str) -> None:
    bank, query = unit_rows(1500, 100), unit_rows(70, 100, seed=1)
    first, second = similarity_topk(query, bank, 12), similarity_topk(query, bank, 12)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_autocast_does_not_round_the_products() -> None:
    bank, query = unit_rows(300, 64), unit_rows(20, 64, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        got = similarity_topk(query, bank, 6)[0]
    assert torch.equal(got, similarity_topk(query, bank, 6)[0])


def test_the_default_dtype_is_not_looked_at(candidates: str) -> None:
    bank, query = unit_rows(1100, 64), unit_rows(20, 64, seed=1)
    expected = similarity_topk(query, bank, 6)
    torch.set_default_dtype(torch.float64)
    try:
        got = similarity_topk(query, bank, 6)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_zero_rows_have_similarity_zero(candidates: str) -> None:
    bank, query = unit_rows(1100, 64), unit_rows(20, 64, seed=1)
    query[4], bank[17] = 0, 0
    values, indices = similarity_topk(query, bank, 6)
    assert torch.equal(values[4], torch.zeros(6))
    assert torch.equal(indices[4], torch.arange(6))
    assert not (indices[:4] == 17).any()


def test_fewer_rows_than_k_leave_minus_one() -> None:
    values, indices = similarity_topk(
        unit_rows(3, 4), unit_rows(5, 4, seed=1), 9, exclude=torch.tensor([0, -1, 4])
    )
    assert (indices >= 0).sum(1).tolist() == [4, 5, 4]
    assert torch.equal(values.isinf(), indices < 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["query", "bank"])
def test_rows_that_are_not_finite_are_named(candidates: str, value: float, where: str) -> None:
    rows = {"query": unit_rows(20, 64), "bank": unit_rows(1100, 64, seed=1)}
    rows[where][13, 5] = value
    with pytest.raises(NotFiniteError, match=rf"{where}: row 13 is not finite \(1 such rows\)"):
        similarity_topk(rows["query"], rows["bank"], 3)


def test_a_row_that_is_not_finite_is_named_among_ties_too(candidates: str) -> None:
    bank = torch.ones(1100, 64)
    bank[5, 3] = torch.nan
    with pytest.raises(NotFiniteError, match="bank: row 5 is not finite"):
        similarity_topk(torch.ones(20, 64), bank, 1000)


@pytest.mark.parametrize(
    ("query", "bank", "more", "message"),
    [
        (
            torch.zeros(3),
            torch.zeros(2, 4),
            {},
            r"query: got shape \(3,\), expected two dimensions",
        ),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 5),
            {},
            "bank: got rows of width 5, expected 4, the width of query",
        ),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 4).half(),
            {},
            "bank: got dtype torch.float16, expected torch.float32",
        ),
        (
            torch.zeros(3, 4).int(),
            torch.zeros(2, 4).int(),
            {},
            "query: got dtype torch.int32, expected float32",
        ),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 4, device="meta"),
            {},
            "bank: got device meta, expected cpu",
        ),
        (torch.zeros(3, 4), torch.zeros(2, 4), {"k": 0}, "k: got 0, expected 1 to 1024"),
        (torch.zeros(3, 4), torch.zeros(2, 4), {"k": 1025}, "k: got 1025, expected 1 to 1024"),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 4),
            {"precision": "fp8"},
            "precision: got 'fp8', expected one of auto, ieee",
        ),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 4),
            {"exclude": torch.zeros(2, dtype=torch.int64)},
            r"exclude: got shape \(2,\)",
        ),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 4),
            {"exclude": torch.zeros(3)},
            "exclude: got dtype torch.float32",
        ),
        (
            torch.zeros(3, 4),
            torch.zeros(2, 4),
            {"exclude": torch.tensor([0, 2, 0])},
            "exclude: got 2 at index 1, expected",
        ),
    ],
)
def test_bad_input_is_named(
    query: Tensor, bank: Tensor, more: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        similarity_topk(query, bank, **{"k": 1, **more})  # type: ignore[arg-type]


def test_similarities_carry_no_gradient() -> None:
    values, _ = similarity_topk(
        unit_rows(3, 4).requires_grad_(), unit_rows(5, 4).requires_grad_(), 2
    )
    assert not values.requires_grad


def test_what_is_no_tensor_is_named() -> None:
    bank = unit_rows(5, 4)
    with pytest.raises(ValueError, match=r"query: got a list, expected a torch.Tensor"):
        similarity_topk(bank.tolist(), bank, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"exclude: got a list, expected a torch.Tensor"):
        similarity_topk(bank, bank, 2, exclude=[0] * 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"k: got 2.0, expected an integer, 1 to 1024"):
        similarity_topk(bank, bank, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"normalize: got 'yes', expected True or False"):
        similarity_topk(bank, bank, 2, normalize="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_length_that_the_sums_cannot_hold_is_refused(dtype: torch.dtype) -> None:
    bank = unit_rows(20, 4).to(dtype)
    bank[7] = torch.finfo(dtype).max
    if dtype == torch.float16:  # its squares fit into the float32 of the sums
        assert similarity_topk(bank, bank, 2)[0].isfinite().all()
        return
    with pytest.raises(NotFiniteError, match="row 7 is too long"):
        similarity_topk(bank, bank, 2)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("exclude", [None, torch.tensor([0, -1, 3])])
def test_operator_is_registered_as_pytorch_wants_it(
    dtype: torch.dtype, exclude: Tensor | None
) -> None:
    arguments = (unit_rows(3, 8, dtype), unit_rows(20, 8, dtype, seed=1), 4, True, exclude, "auto")
    torch.library.opcheck(_similarity_topk, arguments)


def test_it_compiles_once_for_all_sizes_of_the_bank() -> None:
    sizes = [(unit_rows(6, 8), unit_rows(n, 8, seed=1)) for n in (30, 41, 77)]
    compiled_once(lambda q, b: similarity_topk(q, b, 5), sizes, lambda q, b: [b])


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
@pytest.mark.parametrize("normalize", [True, False])
def test_an_index_finds_what_a_search_without_one_finds(
    candidates: str, dtype: torch.dtype, normalize: bool
) -> None:
    bank, query = unit_rows(1303, 70, dtype) * 3, unit_rows(40, 70, dtype, seed=1) * 2
    index = BankIndex(bank, normalize=normalize)
    own = torch.randint(-1, 1303, (40,))
    for k in (1, 7, 200):
        got = index.search(query, k, exclude=own)
        expected = similarity_topk(query, bank, k, normalize=normalize, exclude=own)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
    itself = index.search(bank, 3)
    assert torch.equal(itself[1], similarity_topk(bank, bank, 3, normalize=normalize)[1])


@pytest.mark.parametrize("rows", [None, [5, 1302, 5, 0], []])
def test_an_updated_index_is_that_of_the_changed_bank(
    candidates: str, rows: list[int] | None
) -> None:
    bank, query = unit_rows(1303, 70), unit_rows(40, 70, seed=1)
    index = BankIndex(bank)
    changed = torch.arange(1303) if rows is None else torch.tensor(rows, dtype=torch.int64)
    bank[changed] = query[: len(changed)].repeat(40, 1)[: len(changed)] if rows else bank[changed]
    index.update(None if rows is None else changed)
    got, expected = index.search(query, 5), similarity_topk(query, bank, 5)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_an_index_of_a_changed_bank_is_refused_until_it_is_updated() -> None:
    bank = unit_rows(30, 8)
    index = BankIndex(bank)
    reid_kernels.update_bank_(bank, unit_rows(2, 8, seed=1), torch.tensor([3, 4]), 0.5)
    with pytest.raises(ValueError, match=r"bank: its values have changed .* call update\(\)"):
        index.search(unit_rows(2, 8), 3)
    index.update(torch.tensor([3, 4]))
    assert index.search(bank, 1)[1][:, 0].tolist() == list(range(30))
    with pytest.raises(ValueError, match=r"rows: got 30 at index 0, expected values in \[0, 30\)"):
        index.update(torch.tensor([30]))


def test_an_index_serves_banks_of_inference_mode_and_copies() -> None:
    with torch.inference_mode():
        bank = unit_rows(30, 8).clone()
        index = BankIndex(bank)
        assert index.search(bank, 1)[1][:, 0].tolist() == list(range(30))
    plain = unit_rows(30, 8).mul_(1.0).neg_()
    with torch.inference_mode():
        index = BankIndex(plain)
    plain[4] = plain[7]
    index.update(torch.tensor([4]))
    assert index.search(plain[7:8], 2)[1].tolist() == [[4, 7]]
    for copied in (copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        assert copied.search(plain[7:8], 2)[1].tolist() == [[4, 7]]
    plain.neg_()
    with pytest.raises(ValueError, match="values have changed"):
        copy.deepcopy(index)


def test_a_search_of_an_index_compiles_whatever_happened_to_its_bank() -> None:
    bank = unit_rows(30, 8).mul_(1.0).neg_()
    index = BankIndex(bank)
    query = unit_rows(3, 8, seed=1)
    search = torch.compile(lambda q: index.search(q, 3), fullgraph=True, backend="aot_eager")
    assert torch.equal(search(query)[1], similarity_topk(query, bank, 3)[1])


def test_an_index_checks_what_it_is_given() -> None:
    index = BankIndex(unit_rows(30, 8))
    with pytest.raises(ValueError, match="bank: got rows of width 8, expected 9"):
        index.search(torch.ones(2, 9), 3)
    with pytest.raises(ValueError, match="k: got 0, expected 1 to 1024"):
        index.search(torch.ones(2, 8), 0)
    with pytest.raises(ValueError, match="normalize"):
        BankIndex(torch.ones(2, 8), normalize=1)  # type: ignore[arg-type]
    assert BankIndex(torch.zeros(5, 0)).search(torch.zeros(1, 0), 2)[1].tolist() == [[0, 1]]
    empty = BankIndex(torch.ones(0, 8)).search(torch.ones(2, 8), 3)
    assert empty[1].tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_operators_of_an_index_are_registered_as_pytorch_wants_them(
    candidates: str, dtype: torch.dtype
) -> None:
    bank = unit_rows(1030, 64, dtype)
    torch.library.opcheck(_bank_index, (bank, True))
    parts = _bank_index(bank, True)
    arguments = (unit_rows(30, 64, dtype), bank, parts, 4, True, None)
    torch.library.opcheck(_search_index, arguments)
