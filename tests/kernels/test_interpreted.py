"""Every kernel's arithmetic in Triton's interpreter, against the references. No GPU is needed."""

from __future__ import annotations

import pytest

from tests.support.kernels import run_interpreted
from tests.support.operators import INTERPRETED, OPERATORS


def test_every_operator_has_interpreted_cases() -> None:
    assert {f"{operator}_cases" for operator in OPERATORS} <= set(INTERPRETED)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPRETED)
def test_kernels_equal_the_reference_in_the_interpreter(name: str) -> None:
    run_interpreted(name)
