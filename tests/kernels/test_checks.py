"""The checks of arguments: what is taken, and the message where it is not."""

from __future__ import annotations

import sys
import types
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from reid_kernels import (
    BankIndex,
    checks,
    class_index,
    class_means,
    similarity_topk,
    update_bank_,
)
from reid_kernels.bank_loss import ClassIndex, bank_contrast_loss

from tests.support.kernels import unit_rows

ROWS = unit_rows(6, 4)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, 1)[:, ::2],
        lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
        lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
        lambda x: x.astype(x.dtype.newbyteorder()),
    ],
    ids=["plain", "columns first", "strided", "reversed", "read-only", "other byte order"],
)
def test_arrays_of_any_layout_are_taken(change: Any) -> None:
    assert torch.equal(checks.as_rows("x", change(ROWS.numpy())), ROWS)


class Foreign:
    """An array of another library: it has nothing but its DLPack methods."""

    def __init__(self, content: torch.Tensor) -> None:
        self.content = content

    def __dlpack__(self, **options: Any) -> Any:
        return self.content.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.content.__dlpack_device__()


def test_arrays_of_other_libraries_share_their_memory() -> None:
    rows = unit_rows(6, 4)
    taken = checks.as_rows("x", Foreign(rows))
    assert taken.data_ptr() == rows.data_ptr()
    assert torch.equal(taken, rows)
    wide = unit_rows(6, 8)
    assert torch.equal(checks.as_rows("x", Foreign(wide[:, ::2])), wide[:, ::2])
    assert checks.as_ids("x", Foreign(torch.arange(6)), 6, ROWS, "bank", "row").tolist() == [
        *range(6)
    ]
    _, indices = similarity_topk(Foreign(rows), Foreign(rows), 2)  # type: ignore[arg-type]
    assert torch.equal(indices, similarity_topk(rows, rows, 2)[1])
    expected = update_bank_(rows.clone(), ROWS[:2], torch.tensor([3, 0]), 0.5)
    given: Any = Foreign(rows)
    update_bank_(given, ROWS[:2], torch.tensor([3, 0]), 0.5)
    assert torch.equal(rows, expected)


def test_results_are_arrays_of_the_library_of_the_first_argument() -> None:
    rows, ids = unit_rows(6, 4), torch.tensor([1, 0])
    arrays: Any = rows.numpy()
    values, indices = similarity_topk(arrays, arrays, 2)
    assert isinstance(values, np.ndarray) and isinstance(indices, np.ndarray)
    assert np.array_equal(indices, similarity_topk(rows, rows, 2)[1].numpy())
    found = BankIndex(arrays).search(arrays, 2)
    assert isinstance(found[0], np.ndarray) and np.array_equal(found[1], indices)
    loss: Any = bank_contrast_loss(arrays[:2], arrays, ids, 0.5)
    assert float(loss) == float(bank_contrast_loss(rows[:2], rows, ids, 0.5))
    assert isinstance(loss, np.ndarray)
    assert isinstance(similarity_topk(k=2, query=arrays, bank=arrays)[0], np.ndarray)
    index = class_index(ids.numpy())  # type: ignore[arg-type]
    mean: Any = class_means(arrays[:2], index, 2)
    assert isinstance(mean, np.ndarray) and np.array_equal(mean, arrays[[1, 0]])
    before = arrays.copy()
    changed: Any = update_bank_(arrays, rows[:2].clone(), ids, 0.5)
    assert isinstance(changed, np.ndarray) and np.shares_memory(changed, arrays)
    assert not np.array_equal(arrays, before)
    assert isinstance(similarity_topk(rows, arrays, 2)[0], torch.Tensor)


def test_results_of_a_library_that_cannot_take_them_are_tensors() -> None:
    class Half(Foreign):
        pass

    given: Any = Foreign(unit_rows(6, 4))
    assert isinstance(similarity_topk(given, given, 2)[0], torch.Tensor)
    half: Any = Half(unit_rows(6, 4).bfloat16())
    library = types.ModuleType("numbers_of_others")
    library.from_dlpack = np.from_dlpack  # type: ignore[attr-defined]
    Half.__module__ = "numbers_of_others.core"
    with mock.patch.dict(sys.modules, numbers_of_others=library):
        values, indices = similarity_topk(half, half, 2)
        assert isinstance(values, np.ndarray) and isinstance(indices, np.ndarray)
        mean: Any = class_means(half, torch.zeros(6, dtype=torch.int64), 1)
    assert mean.shape == (1, 4)


def test_an_array_that_cannot_be_shared_is_refused() -> None:
    refused: Any = Foreign(torch.zeros(2, 2, requires_grad=True))
    with pytest.raises(ValueError, match="x: got a Foreign that PyTorch cannot share"):
        checks.as_rows("x", refused)
    with pytest.raises(ValueError, match="x: got "):
        checks.as_rows("x", Foreign)


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i4", ">i8", "u2", "u8"])
def test_arrays_of_integers_are_ids(dtype: str) -> None:
    ids = checks.as_ids("x", np.arange(6).astype(dtype), 6, ROWS, "bank", "row")
    assert ids.dtype == torch.int64
    assert ids.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "x: got None, expected a torch.Tensor, a NumPy array or another array"),
        ([[1.0]], "x: got a list"),
        ("rows", "x: got a str"),
        ({}, "x: got a dict"),
        (np.array([["a"]]), "x: got an array of dtype <U1, expected an array of numbers"),
        (np.array([[None]]), "x: got an array of dtype object"),
        (np.zeros((1, 1), "M8[s]"), r"x: got an array of dtype datetime64\[s\]"),
        (np.zeros((1, 1), np.longdouble), "x: got an array of dtype float128"),
        (np.ma.masked_array(np.zeros((1, 1))), "x: got a MaskedArray"),
        (np.zeros((1, 1), complex), "x: got dtype torch.complex128, expected float32"),
        (torch.zeros(1, 1).to_sparse(), "x: got a tensor of layout torch.sparse_coo"),
        (torch.zeros(1), r"x: got shape \(1,\), expected two dimensions"),
        (torch.zeros(1, 1, dtype=torch.bool), "x: got dtype torch.bool"),
    ],
)
def test_what_is_no_matrix_of_floats_is_refused(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checks.as_rows("x", x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([0.5]), "x: got dtype torch.float64, expected torch.int64"),
        (np.array([True]), "x: got dtype torch.bool, expected torch.int64"),
        (np.array([2**63], np.uint64), r"x: got a number of 2\^63 or more, expected int64"),
        (np.array(3), r"x: got shape \(\), expected \(1,\), one for each row"),
    ],
)
def test_what_is_no_list_of_ids_is_refused(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checks.as_ids("x", x, 1, ROWS, "bank", "row")


@pytest.mark.parametrize("k", [1, np.int32(1), np.uint64(1)])
def test_integers_of_numpy_are_integers(k: Any) -> None:
    assert type(checks.as_integer("k", k, 1, 9)) is int


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (True, "k: got True, expected an integer, 1 to 9"),
        (1.0, "k: got 1.0, expected an integer, 1 to 9"),
        ("1", "k: got '1', expected an integer, 1 to 9"),
        (np.bool_(True), "k: got a bool"),
        (np.array(1), r"k: got a ndarray of shape \(\)"),
        (torch.tensor([1]), r"k: got a tensor of shape \(1,\)"),
        (torch.tensor(1.0), r"k: got a tensor of shape \(\)"),
        (torch.tensor(True), r"k: got a tensor of shape \(\)"),
        (10, "k: got 10, expected 1 to 9"),
        pytest.param(10**5000, "k: got an integer of 16610 bits, expected 1 to 9", id="huge"),
        (None, "k: got None, expected an integer, 1 to 9"),
    ],
)
def test_what_is_no_integer_is_refused(k: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checks.as_integer("k", k, 1, 9)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_numbers_of_any_kind_are_numbers(value: Any) -> None:
    assert checks.as_number("x", value, 0, 1) == 0.5


@pytest.mark.parametrize(
    "value",
    [
        *(True, "0.5", None, [0.5], torch.nan, torch.inf, -torch.inf, 10**400, 1j, 1.5),
        *(torch.zeros(2), np.array(["a"]), torch.tensor(True)),
    ],
    ids=repr,
)
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^x: got .*, expected a number in \[0, 1\]$"):
        checks.as_number("x", value, 0, 1)
    with pytest.raises(ValueError, match=r"^x: got .*, expected a number in \[0, 1\)$"):
        checks.as_number("x", 1.0, 0, 1, below=True)


@pytest.mark.parametrize("value", [0, -1.0, 1e-300, torch.inf, torch.nan, "1", True, None, 10**400])
def test_a_temperature_divides_logits(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^temperature: got .*, expected a .*number"):
        bank_contrast_loss(ROWS, ROWS, torch.arange(6), value)


def test_an_index_of_other_rows_is_refused() -> None:
    order, starts = class_index(torch.tensor([0, 0, 1, 1, 2, 2]))
    for index in (
        ClassIndex(order + 1, starts),
        ClassIndex(order, starts.flip(0)),
        ClassIndex(order, starts + 1),
    ):
        with pytest.raises(ValueError, match=r"^classes: "):
            class_means(ROWS, index, 3)
        with pytest.raises(ValueError, match=r"^classes: "):
            bank_contrast_loss(ROWS, ROWS, torch.zeros(6, dtype=torch.int64), 1.0, classes=index)
