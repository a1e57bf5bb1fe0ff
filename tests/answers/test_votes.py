"""A question is settled when enough people agree, and never waits for people who are not there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fastreid_al.answers.votes import Standing, Vote, standing

HERE = (1, 2, 3, 4)


def votes(*verdicts: str, reviewer: int | None = None) -> list[Vote]:
    """Votes of the people 1, 2, ... with the events 10, 20, ..."""
    return [
        Vote(person, verdict, 10 * person, reviews=person == reviewer)
        for person, verdict in enumerate(verdicts, 1)
    ]


@pytest.mark.parametrize(
    ("verdicts", "people", "present", "expected"),
    [
        ((), 1, HERE, Standing("open", None, 1)),
        ((), 2, HERE, Standing("open", None, 2)),
        ((), 2, (1,), Standing("open", None, 1)),
        ((), 2, (), Standing("open", None, 1)),
        (("same",), 1, HERE, Standing("answered", 10)),
        (("same",), 2, HERE, Standing("open", None, 1)),
        # Nobody else is here.
        (("same",), 2, (1,), Standing("answered", 10)),
        (("same", "same"), 2, HERE, Standing("answered", 20)),
        (("same", "different"), 2, HERE, Standing("open", None, 1)),
        (("same", "different"), 2, (1, 2), Standing("review", None, 1)),
        (("same", "different", "same"), 2, HERE, Standing("answered", 30)),
        (("same", "different", "unsure"), 2, HERE, Standing("review", None, 1)),
        # A late vote changes nothing.
        (("same", "different"), 1, HERE, Standing("answered", 10)),
        (("unsure",), 1, HERE, Standing("answered", 10)),
    ],
)
def test_where_a_question_stands(
    verdicts: Sequence[str], people: int, present: Sequence[int], expected: Standing
) -> None:
    assert standing(votes(*verdicts), people, present) == expected


def test_a_reviewer_decides_where_three_disagree() -> None:
    disagree = ("same", "different", "unsure")
    further = votes(*disagree, "same")
    assert standing(further, 2, HERE).status == "review"
    assert standing(votes(*disagree, "same", reviewer=4), 2, HERE) == Standing("answered", 40)
    # A reviewer who was one of the three may decide as well.
    again = [*votes(*disagree, reviewer=2), Vote(2, "same", 40, reviews=True)]
    assert standing(again, 2, HERE) == Standing("answered", 40)


def test_a_same_of_an_erring_person_needs_one_more_where_it_merges_clusters() -> None:
    assert standing(votes("same"), 1, HERE, merges=True, erring={1}) == Standing("open", None, 1)
    assert standing(votes("same", "same"), 1, HERE, merges=True, erring={1}).event == 20
    assert standing(votes("same"), 1, HERE, merges=False, erring={1}).event == 10
    assert standing(votes("different"), 1, HERE, merges=True, erring={1}).event == 10
    assert standing(votes("same"), 1, HERE, merges=True, erring={2}).event == 10
    assert standing(votes("same"), 1, (1,), merges=True, erring={1}).event == 10
