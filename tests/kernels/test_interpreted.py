"""Every kernel's arithmetic in Triton's interpreter, against the references. No GPU is needed."""

from __future__ import annotations

import pytest

from tests.support.kernels import run_interpreted
from tests.support.operators import INTERPRETED, OPERATORS

#: Scripts that take more than some 5 s.
LONG = ("bank_loss_cases", "labels_cases", "multilabel_cases", "topk_cases")


def test_every_operator_has_interpreted_cases() -> None:
    assert {f"{operator}_cases" for operator in OPERATORS} <= set(INTERPRETED)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in INTERPRETED],
)
def test_kernels_equal_the_reference_in_the_interpreter(name: str) -> None:
    run_interpreted(name)
