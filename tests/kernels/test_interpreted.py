"""Every kernel's arithmetic in Triton's interpreter, against the references. No GPU is needed."""

from __future__ import annotations

import pytest

from tests.support.kernels import run_interpreted
from tests.support.operators import INTERPRETED, OPERATORS

#: The script that runs with the plain test command; the others take longer.
SHORT = "update_bank_cases"


def test_every_operator_has_interpreted_cases() -> None:
    assert {f"{operator}_cases" for operator in OPERATORS} <= set(INTERPRETED)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == SHORT else pytest.mark.slow) for name in INTERPRETED],
)
def test_kernels_equal_the_reference_in_the_interpreter(name: str) -> None:
    run_interpreted(name)
