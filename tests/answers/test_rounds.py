"""What a round is expected to bring."""

from __future__ import annotations

import pytest

from fastreid_al.answers.rounds import Outlook


@pytest.mark.parametrize(
    ("outlook", "is_worth_it"),
    [
        (Outlook(50, 5.0, 1000), True),
        (Outlook(50, 4.9, 1000), False),
        (Outlook(50, 0.0, 0), False),
        (Outlook(50, 1.0, 300, "clusters"), True),
        (Outlook(50, 0.9, 300, "clusters"), False),
        (Outlook(0, 0.0, 300, "clusters"), False),
    ],
)
def test_questions_that_change_little_are_not_worth_asking(
    outlook: Outlook, is_worth_it: bool
) -> None:
    assert outlook.is_worth_asking is is_worth_it
