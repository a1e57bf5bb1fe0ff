"""Former public names still work, and name their successors."""

from __future__ import annotations

import pytest
import reid_kernels
import torch
from reid_kernels import partial_contrast, partial_contrast_reference

from tests.support.kernels import unit_rows


@pytest.mark.parametrize(
    ("former", "successor"),
    [
        ("bank_contrast_shares", partial_contrast),
        ("bank_contrast_shares_reference", partial_contrast_reference),
    ],
)
def test_former_functions_return_the_former_fields(former: str, successor: object) -> None:
    arguments = unit_rows(3, 4), unit_rows(9, 4, seed=1), torch.tensor([0, 8, -1]), 0.1
    with pytest.warns(DeprecationWarning, match=f"use reid_kernels.{successor.__name__}"):
        call = getattr(reid_kernels, former)
    result = call(*arguments)
    assert result._fields == ("losses", "log_sums", "means", "chosen")
    assert all(map(torch.equal, result, successor(*arguments)))


def test_the_former_class_is_found_by_import() -> None:
    with pytest.warns(DeprecationWarning, match="use reid_kernels.PartialContrast"):
        from reid_kernels import ContrastShares
    assert len(ContrastShares._fields) == len(reid_kernels.PartialContrast._fields)


def test_other_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="'reid_kernels' has no attribute 'bank_gradient'"):
        _ = reid_kernels.bank_gradient
