"""The annotation service gives each question to one person, and keeps every answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.service import AnswerService
from fastreid_al.errors import LedgerError
from tests.support.queues import (
    DIFFERENT,
    SAME,
    UNSURE,
    Clock,
    answer_next,
    decision,
    publish,
    statuses,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.open("sqlite://") as opened:
        yield opened


@pytest.fixture
def service(ledger: Ledger, clock: Clock) -> AnswerService:
    return AnswerService(ledger, gold_share=0, clock=clock)


def test_questions_are_given_in_their_order_and_answered(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1), (2, 3)], reason="merge", need=2)
    anna = service.person_named("anna")
    assert service.person_named("anna") == anna
    task = service.next_task(anna)
    assert task is not None
    assert (task.id, task.sheet, task.left, task.items[0].right) == (1, False, 0, 1)
    assert (task.number, task.total, task.reason, task.similarity) == (1, 2, "merge", 0.5)
    assert service.next_task(anna) == task
    clock.now += 10
    outcome = service.submit(anna, decision(task, active_seconds=7.5, idle_seconds=2.5))
    assert outcome.status == "recorded" and len(outcome.events) == 1
    assert statuses(ledger) == [("answered", 1), ("open", None)]
    (event,) = ledger.events()
    assert (event.left, event.right, event.verdict) == ("train/0.jpg", "train/1.jpg", "same")
    assert (event.annotator, event.person, event.question, event.need) == ("anna", anna.id, 1, 2)
    assert (event.asked_at, event.answered_at, event.idle) == (1002.5, 1010.0, 2.5)
    assert (event.source, event.run, event.reason, event.epoch) == ("web", "run", "merge", 3)
    assert answer_next(service, anna).number == 2
    assert service.next_task(anna) is None


def test_two_people_get_different_questions_until_a_lease_ends(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1), (2, 3), (4, 5)])
    anna, bert = service.person_named("anna"), service.person_named("bert")
    first = service.next_task(anna)
    second = service.next_task(bert)
    assert first is not None and second is not None
    assert (first.id, second.id) == (1, 2)
    clock.now += 80
    assert service.heartbeat(bert, 2)
    clock.now += 15
    again = service.next_task(bert, ahead=1)
    assert again is not None and again.id == 1
    assert not service.heartbeat(anna, 1)
    service.submit(bert, decision(again, DIFFERENT))
    late = service.submit(anna, decision(first, token="late"))
    assert late.status == "late"
    assert statuses(ledger)[0] == ("answered", 1)
    assert [event.question for event in ledger.events()] == [1, 1]


def test_undo_takes_the_whole_last_decision_back(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1), (2, 3)], groups=([10, 11], [20]))
    anna = service.person_named("anna")
    assert service.undo(anna) is None
    answer_next(service, anna, all_confirmed=True, odd=[11])
    assert [e.verdict for e in ledger.events()] == ["same", "same", "different", "same"]
    assert statuses(ledger)[0] == ("answered", 4)
    task = service.undo(anna)
    assert task is not None and task.id == 1
    assert service.next_task(anna) == task
    assert [e.kind for e in ledger.events()] == ["answer"] * 4 + ["undo"] * 4
    assert len({e.gesture for e in ledger.events()}) == 1
    assert statuses(ledger)[0] == ("open", None)
    assert ledger.integrity() == []


def test_a_token_is_written_once(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1)])
    anna = service.person_named("anna")
    task = service.next_task(anna)
    assert task is not None
    first = service.submit(anna, decision(task))
    assert service.submit(anna, decision(task, UNSURE)) == (first.events, "repeated", (), None)
    with pytest.raises(LedgerError, match="make a new token"):
        service.submit(service.person_named("bert"), decision(task))
    assert ledger.last_event() == 1
    assert SAME.value == next(iter(ledger.events())).verdict
