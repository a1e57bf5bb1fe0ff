"""Sheets whose answers are known measure people, and look like other sheets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.service import AnswerService, Submission
from fastreid_al.answers.tasks import Person
from tests.support.queues import DIFFERENT, SAME, UNSURE, Clock, decision, publish, statuses


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open("sqlite://") as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


def answered_sheet(ledger: Ledger, clock: Clock, *verdicts: dict[int, str]) -> list[Person]:
    """A sheet of the questions 1 to 3 that two people answer, and then a third person."""
    publish(ledger, [(0, 1), (0, 2), (0, 3)], sheet=True, votes=2)
    service = AnswerService(ledger, gold_share=0, clock=clock)
    people = [service.person_named(name) for name in ("anna", "ben", "carl")]
    for who in people[:2]:
        service.heartbeat(who, 1)
    for who, said in zip(people, verdicts, strict=False):
        task = service.next_task(who)
        assert task is not None and task.sheet
        given = {item.question: said[item.question] for item in task.items}
        service.submit(who, Submission(task.id, who.name, given))
    return people


ALIKE = {1: SAME, 2: DIFFERENT, 3: SAME}


def test_a_sheet_that_two_people_answered_alike_measures_a_third(
    ledger: Ledger, clock: Clock
) -> None:
    *_, carl = answered_sheet(ledger, clock, ALIKE, ALIKE)
    publish(ledger, [(4, 5), (4, 6)], sheet=True)
    service = AnswerService(ledger, gold_share=1, clock=clock)
    before = statuses(ledger)
    answers = ledger.answers()
    task = service.next_task(carl)
    assert task is not None and (task.id, task.sheet) == (1, True)
    assert [item.question for item in task.items] == [1, 2, 3]
    sent = Submission(1, "gold", {1: SAME, 2: SAME, 3: UNSURE}, active_seconds=0.0)
    assert service.submit(carl, sent).status == "recorded"
    events = list(ledger.events())[6:]
    assert [(e.kind, e.question, e.verdict) for e in events] == [
        ("gold", 1, "same"),
        ("gold", 2, "same"),
        ("gold", 3, "unsure"),
    ]
    # Nothing is settled anew, and no label changes.
    assert (statuses(ledger), ledger.answers()) == (before, answers)
    figures = service.people()[2]
    assert (figures.gold_right, figures.gold_asked, figures.gestures) == (1, 2, 1)
    # It can be taken back, and is not shown again afterwards.
    again = service.undo(carl)
    assert again is not None and again.id == 1 and len(again.items) == 3
    service.submit(carl, decision(again, SAME, "again"))
    assert service.people()[2].gold_right == 2
    following = service.next_task(carl)
    assert following is not None and following.id == 4
    assert ledger.integrity() == []


def test_of_a_sheet_known_by_half_only_the_known_answers_measure(
    ledger: Ledger, clock: Clock
) -> None:
    other = {**ALIKE, 3: UNSURE}
    *_, carl = answered_sheet(ledger, clock, other, other)
    publish(ledger, [(4, 5), (4, 6)], sheet=True)
    service = AnswerService(ledger, gold_share=1, clock=clock)
    task = service.next_task(carl)
    assert task is not None and task.id == 1
    service.submit(carl, decision(task, SAME, "gold"))
    assert (service.people()[2].gold_right, service.people()[2].gold_asked) == (1, 2)


@pytest.mark.parametrize(
    "said", [{1: SAME, 2: UNSURE, 3: UNSURE}, {1: UNSURE, 2: UNSURE, 3: UNSURE}]
)
def test_a_sheet_of_which_little_is_known_measures_nobody(
    ledger: Ledger, clock: Clock, said: dict[int, str]
) -> None:
    *_, carl = answered_sheet(ledger, clock, said, said)
    publish(ledger, [(4, 5), (4, 6)], sheet=True)
    task = AnswerService(ledger, gold_share=1, clock=clock).next_task(carl)
    assert task is not None and task.id == 4


def test_a_known_task_has_the_form_of_the_task_that_it_stands_before(
    ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1)], gold="same")
    publish(ledger, [(0, 2), (0, 3)], sheet=True, gold="different")
    publish(ledger, [(4, 5)])
    publish(ledger, [(6, 7), (6, 8)], sheet=True)
    service = AnswerService(ledger, gold_share=1, clock=clock)
    anna = service.person_named("anna")
    seen = []
    for number in range(4):
        task = service.next_task(anna)
        assert task is not None
        seen.append((task.id, task.sheet))
        service.submit(anna, decision(task, DIFFERENT, f"t{number}"))
    assert seen == [(1, False), (4, False), (2, True), (5, True)]
    assert (service.people()[0].gold_right, service.people()[0].gold_asked) == (2, 3)


def test_a_sheet_with_an_erased_image_is_not_given(ledger: Ledger, clock: Clock) -> None:
    publish(ledger, [(0, 2), (0, 3)], sheet=True, gold="different")
    publish(ledger, [(6, 7), (6, 8)], sheet=True)
    service = AnswerService(ledger, gold_share=1, clock=clock)
    boss = service.person_named("boss", "admin")
    service.erase(3, boss, "asked to")
    task = service.next_task(boss)
    assert task is not None and task.id == 3
