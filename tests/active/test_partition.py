"""Clusters are split and merged so that no answer contradicts them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastreid_al.active.partition import Partition, apply_answers, join_groups
from fastreid_al.answers import (
    Closure,
    Verdict,
)
from fastreid_al.answers.question import Answer
from tests.support.features import clustered_features

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE


@st.composite
def answered_labels(draw: st.DrawFn) -> tuple[list[Answer], Tensor]:
    images = 12
    pair = st.tuples(st.integers(0, images - 1), st.integers(0, images - 1)).filter(
        lambda p: p[0] != p[1]
    )
    answers = draw(st.lists(st.tuples(pair, st.sampled_from([SAME, DIFFERENT])), max_size=20))
    labels = draw(st.lists(st.integers(-1, 3), min_size=images, max_size=images))
    return [Answer(i + 1, *p, v) for i, (p, v) in enumerate(answers)], torch.tensor(labels)


@settings(max_examples=300, deadline=None)
@given(answered_labels())
def test_memory_brings_together_what_is_the_same_and_sets_apart_what_is_different(
    given_: tuple[list[Answer], Tensor],
) -> None:
    answers, labels = given_
    features = torch.from_numpy(clustered_features(12, 4)).float()
    closure = Closure.replay(answers)
    after = apply_answers(features, labels, closure)
    for a in range(12):
        for b in range(a):
            together = bool(after[a] == after[b] >= 0)
            if closure.verdict(a, b) is SAME:
                assert together
            if closure.verdict(a, b) is DIFFERENT:
                assert not together
    if not answers:
        assert torch.equal(after, Partition(labels).labels())


def test_an_image_that_would_bring_enemies_together_moves_alone() -> None:
    features = torch.from_numpy(clustered_features(6, 2)).float()
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    # 0 and 3 are different, 1 and 4 the same: 4 moves to 1, the clusters stay.
    closure = Closure.replay([Answer(1, 0, 3, DIFFERENT), Answer(2, 1, 4, SAME)])
    assert apply_answers(features, labels, closure).tolist() in (
        [0, 0, 0, 1, 0, 1],
        [0, 1, 0, 1, 1, 1],
    )


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({}, [0, 0, 0]),
        ({(0, 1): DIFFERENT, (0, 2): DIFFERENT, (1, 2): DIFFERENT}, [0, 1, 2]),
        ({(0, 1): SAME, (0, 2): DIFFERENT, (1, 2): DIFFERENT}, [0, 0, 2]),
        ({(0, 1): DIFFERENT}, [0, 1, 1]),
        ({(0, 1): DIFFERENT, (0, 2): SAME}, [0, 1, 0]),
        ({(0, 1): UNSURE, (0, 2): UNSURE, (1, 2): UNSURE}, [0, 0, 0]),
        ({(0, 1): SAME, (1, 2): SAME, (0, 2): DIFFERENT}, [0, 1, 1]),
    ],
)
def test_groups_part_only_where_someone_said_different(
    verdicts: dict[tuple[int, int], Verdict], expected: list[int]
) -> None:
    assert join_groups(3, verdicts, {(0, 1): 0.5, (0, 2): 0.6, (1, 2): 0.7}) == expected
