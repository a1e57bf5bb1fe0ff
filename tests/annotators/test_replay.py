"""The replay annotator repeats the answers of another run."""

from __future__ import annotations

import pytest

from fastreid_al.annotators import Replay
from fastreid_al.answers.closure import Closure
from fastreid_al.answers.question import (
    Answer,
    NoAnswer,
    Verdict,
)
from tests.support.asking import question

S, D, U, X = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE, Verdict.NOT_COMPARABLE


def test_replay_gives_the_answers_of_either_order_and_what_follows_from_them() -> None:
    replay = Replay(Closure.replay([Answer(1, 1, 4, S), Answer(2, 0, 2, X), Answer(3, 4, 9, D)]))
    assert replay.name == "replay"
    assert replay.answer(question(4, 1)) is S
    assert replay.answer(question(1, 4)) is S
    assert replay.answer(question(2, 0)) is X
    assert replay.answer(question(9, 1)) is D


def test_replay_passes_where_the_other_run_has_no_answer() -> None:
    with pytest.raises(NoAnswer, match="images 7 and 3"):
        Replay(Closure.replay([Answer(1, 0, 1, S)])).answer(question(7, 3))
