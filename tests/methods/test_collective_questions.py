"""What the first rank knows of the images is the same on all ranks."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from fastreid_al.active import QuestionRounds
from fastreid_al.annotators import Oracle
from fastreid_al.answers import Asker, Verdict
from fastreid_al.config import QuestionConfig
from fastreid_al.distributed.world import SINGLE_PROCESS, World
from fastreid_al.methods.collective_questions import CollectiveQuestions
from tests.support.features import clustered_features
from tests.support.ledgers import put
from tests.support.process_pool import Pool

N = 31
FEATURES = torch.from_numpy(clustered_features(N, 5)).float()
MustLinks = Literal["clusters", "compact", "before"]


def must_links(world: World, when: MustLinks, tracks: Tensor | None) -> list[Tensor | None]:
    """The must-links in an epoch without questions, and in one with them."""
    questions = None
    if world.is_first:
        asker = Asker(Oracle(torch.arange(N)), tracks=tracks)
        put(asker.ledger, 4, 9, Verdict.SAME)
        put(asker.ledger, 0, 1, Verdict.DIFFERENT)
        questions = QuestionRounds(asker, "gain", QuestionConfig(start=1, must_links=when))
    collective = CollectiveQuestions(questions, world)
    own = FEATURES[world.local_slice(N)]
    return [collective.must_links(epoch, own, tracks) for epoch in range(2)]


def groups(numbers: Tensor | None) -> list[list[int]]:
    """The images of each group of two or more."""
    if numbers is None:
        return []
    found = [(numbers == number).nonzero()[:, 0].tolist() for number in numbers.unique()]
    return sorted(rows for rows in found if len(rows) > 1 and numbers[rows[0]] >= 0)


@pytest.mark.parametrize(
    ("when", "has_tracks", "expected"),
    [
        ("compact", False, []),
        ("before", False, [[4, 9]]),
        ("compact", True, [[1, 2], [9, 10]]),
        ("before", True, [[1, 2], [4, 9, 10]]),
    ],
)
def test_all_ranks_get_the_must_links_that_one_process_finds(
    pool: Pool, when: MustLinks, has_tracks: bool, expected: list[list[int]]
) -> None:
    tracks = None
    if has_tracks:
        tracks = torch.full((N,), -1)
        tracks[[0, 1, 2]] = 0
        tracks[[9, 10]] = 1
    before, during = must_links(SINGLE_PROCESS, when, tracks)
    assert groups(before) == ([[0, 1, 2], [9, 10]] if has_tracks else [])
    assert groups(during) == expected
    for of_rank in pool.run(must_links, 2, when, tracks):
        assert [groups(x) for x in of_rank] == [groups(before), groups(during)]
