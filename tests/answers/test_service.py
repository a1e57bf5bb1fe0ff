"""The annotation service gives each question to one person, and keeps every answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest

from fastreid_al.answers.closure import Effect
from fastreid_al.answers.database import META, PEOPLE, QUESTIONS
from fastreid_al.answers.ledger import Ledger, insert_event
from fastreid_al.answers.question import Question, Verdict
from fastreid_al.answers.queue import Entry, QuestionQueue
from fastreid_al.answers.service import (
    AnswerService,
    Impact,
    Outcome,
    Person,
    Submission,
    Task,
)
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


def seconds_of(ledger: Ledger) -> list[float]:
    """Active seconds of each event."""
    return [event.answered_at - event.asked_at for event in ledger.events()]


def test_forged_seconds_are_bounded_by_the_clock_of_the_server(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(i, 50 + i) for i in range(6)])
    anna, bert = service.person_named("anna"), service.person_named("bert")
    ahead = [service.next_task(anna, ahead) for ahead in range(3)]
    clock.now += 5
    other = task_for(service, bert)
    clock.now += 5
    for number, task in enumerate(ahead):
        assert task is not None
        sent = decision(task, token=f"a{number}", active_seconds=1e6, idle_seconds=1e6)
        service.submit(anna, sent)
    # All of the ten seconds are of the first decision: the others were given at the same time.
    assert seconds_of(ledger) == [10.0, 0.0, 0.0]
    assert [event.idle for event in ledger.events()] == [0.0, 10.0, 10.0]
    # Nobody else loses time by it.
    service.submit(bert, decision(other, active_seconds=4.0, idle_seconds=3.0))
    assert (seconds_of(ledger)[3], list(ledger.events())[3].idle) == (4.0, 1.0)
    # What was taken back took its time all the same.
    service.undo(anna)
    again = task_for(service, anna)
    clock.now += 3
    service.submit(anna, decision(again, token="again", active_seconds=60.0))
    assert seconds_of(ledger)[-1] == 3.0
    # A clock that was set back gives no negative seconds.
    last = task_for(service, anna)
    clock.now -= 500
    service.submit(anna, decision(last, token="back", active_seconds=60.0))
    assert seconds_of(ledger)[-1] == 0.0


def test_answers_that_waited_in_a_browser_keep_their_seconds(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1), (2, 3), (4, 5)])
    anna = service.person_named("anna")
    tasks = [service.next_task(anna, ahead) for ahead in range(3)]
    clock.now += 60
    for task, seconds in zip(tasks, (12.0, 3.0, 30.0), strict=True):
        assert task is not None
        service.submit(anna, decision(task, active_seconds=seconds))
    assert seconds_of(ledger) == [12.0, 3.0, 30.0]


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


def task_for(service: AnswerService, person: Person, ahead: int = 0) -> Task:
    task = service.next_task(person, ahead)
    assert task is not None
    return task


def said(ledger: Ledger) -> list[tuple[str, str | None, int | None]]:
    return [(event.kind, event.verdict, event.question) for event in ledger.events()]


def test_the_next_task_is_loaded_while_one_is_shown(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1), (2, 3), (4, 5)])
    anna = service.person_named("anna")
    first, second = task_for(service, anna), task_for(service, anna, ahead=1)
    assert (first.id, first.number, second.id, second.number) == (1, 1, 2, 2)
    assert task_for(service, anna).id == 1 and task_for(service, anna, ahead=1).id == 2
    service.submit(anna, decision(first))
    assert task_for(service, anna) == second
    assert task_for(service, anna, ahead=1).id == 3
    assert service.next_task(anna, ahead=2) is None


def test_a_clock_set_back_does_not_make_leases_eternal(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1)])
    anna, bert = service.person_named("anna"), service.person_named("bert")
    task_for(service, anna)
    assert service.next_task(bert) is None
    clock.now = 10.0
    assert task_for(service, bert).id == 1
    clock.now = 1e6
    assert service.heartbeat(anna, 1)
    clock.now = 20.0
    assert not service.heartbeat(anna, 1)
    assert task_for(service, bert).id == 1


def test_a_question_that_was_not_answered_in_time_comes_first(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1), (2, 3), (4, 5)])
    anna, bert = service.person_named("anna"), service.person_named("bert")
    task_for(service, anna)
    task_for(service, anna, ahead=1)
    service.release(anna, 1)
    clock.now += 100
    assert task_for(service, bert).id == 2


def test_skipped_questions_come_after_all_others(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1), (2, 3), (4, 5)])
    anna, bert = service.person_named("anna"), service.person_named("bert")
    service.skip(anna, task_for(service, anna).id)
    service.skip(anna, task_for(service, anna).id)
    assert task_for(service, bert).id == 1
    service.release(bert, 1)
    assert [answer_next(service, anna).id for _ in range(3)] == [3, 1, 2]


def test_two_votes_are_asked_of_two_people_and_a_third_decides(
    service: AnswerService, ledger: Ledger
) -> None:
    publish(ledger, [(0, 1), (2, 3)], votes=2)
    people = [service.person_named(name) for name in ("anna", "bert", "carl")]
    for who in people:
        service.next_task(who)
    tasks = [task_for(service, who) for who in people]
    # While only anna was known to be here, one answer was wanted of the first question.
    assert [task.id for task in tasks] == [1, 1, 2]
    service.submit(people[0], decision(tasks[0], SAME, "a"))
    assert statuses(ledger)[0] == ("open", None)
    service.submit(people[1], decision(tasks[1], DIFFERENT, "b"))
    assert statuses(ledger)[0] == ("open", None)
    service.release(people[2], 2)
    third = task_for(service, people[2])
    assert third.id == 1
    service.submit(people[2], decision(third, DIFFERENT, "c"))
    assert statuses(ledger)[0] == ("answered", 3)
    assert [answer.verdict for answer in ledger.answers()] == [DIFFERENT]


def test_where_three_disagree_a_reviewer_decides(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1)], votes=2)
    people = [service.person_named(name) for name in ("anna", "bert", "carl")]
    for who in people:
        service.heartbeat(who, 1)
    for who, verdict in zip(people, (SAME, DIFFERENT, UNSURE), strict=True):
        answer_next(service, who, verdict)
    assert statuses(ledger) == [("review", None)]
    assert service.next_task(service.person_named("dora")) is None
    emil = service.person_named("emil", "review")
    assert service.progress(emil).review == 1
    answer_next(service, emil, SAME)
    assert statuses(ledger) == [("answered", 4)]
    assert service.undo(emil) is not None
    assert statuses(ledger) == [("review", None)]


def test_nobody_waits_for_people_who_left(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1)], votes=2)
    anna, bert = service.person_named("anna"), service.person_named("bert")
    service.heartbeat(bert, 1)
    answer_next(service, anna)
    assert statuses(ledger) == [("open", None)]
    clock.now += 599
    assert service.settle() == 0
    clock.now += 2
    assert service.settle() == 1
    assert statuses(ledger) == [("answered", 1)]


def test_a_same_of_a_person_who_errs_often_is_asked_again(
    service: AnswerService, ledger: Ledger
) -> None:
    publish(ledger, [(i, 100 + i) for i in range(30)], gold="different")
    anna, bert = service.person_named("anna"), service.person_named("bert")
    service.heartbeat(bert, 1)
    with ledger.store.writing() as connection:
        for number in range(1, 31):
            values = {"kind": "gold", "left_id": number - 1, "right_id": 99 + number}
            values |= {"verdict": "same" if number % 2 else "different", "annotator": "anna"}
            values |= {"asked_at": 0.0, "answered_at": 1.0, "question": number, "person": anna.id}
            insert_event(connection, values | {"gesture": f"g{number}", "reason": "merge"})
    publish(ledger, [(200, 201), (202, 203)], reason="merge")
    figures = service.people()[0]
    assert (figures.gold_right, figures.gold_asked) == (15, 30)
    assert figures.estimated_error is not None and figures.estimated_error > 0.2
    answer_next(service, anna, SAME)
    assert statuses(ledger)[30] == ("open", None)
    answer_next(service, anna, DIFFERENT)
    assert statuses(ledger)[31][0] == "answered"
    answer_next(service, bert, SAME)
    assert statuses(ledger)[30][0] == "answered"


def test_known_answers_are_one_in_twenty_and_look_like_others(ledger: Ledger, clock: Clock) -> None:
    service = AnswerService(ledger, clock=clock)
    publish(ledger, [(2 * i, 2 * i + 1) for i in range(400)], votes=1)
    publish(ledger, [(1000 + i, 2000 + i) for i in range(60)], gold="same", status="answered")
    anna = service.person_named("anna")
    tasks = [answer_next(service, anna) for _ in range(400)]
    asked = [task for task in tasks if task.id > 400]
    assert 8 <= len(asked) <= 36
    assert [task.number for task in tasks] == list(range(1, 401))
    gold = [event for event in ledger.events() if event.kind == "gold"]
    assert [event.question for event in gold] == [task.id for task in asked]
    assert len({task.id for task in asked}) == len(asked)
    assert len(ledger.answers()) == 400 - len(asked)
    figures = service.people()[0]
    assert (figures.gold_asked, figures.gold_right) == (len(asked), len(asked))
    assert figures.answers == figures.gestures == 400
    assert ledger.integrity() == []


def test_a_pair_that_two_people_answered_alike_measures_a_third(
    ledger: Ledger, clock: Clock
) -> None:
    plain = AnswerService(ledger, gold_share=0, clock=clock)
    publish(ledger, [(0, 1), (2, 3)], votes=2)
    people = [plain.person_named(name) for name in ("anna", "bert", "carl")]
    plain.heartbeat(people[1], 1)
    for who in people[:2]:
        answer_next(plain, who)
    service = AnswerService(ledger, gold_share=1, clock=clock)
    task = task_for(service, people[2])
    assert task.id == 1
    outcome = service.submit(people[2], decision(task, DIFFERENT, "gold"))
    assert (outcome.status, outcome.contradiction) == ("recorded", ())
    assert outcome.effect is not None
    assert said(ledger)[2:] == [("gold", "different", 1)]
    assert statuses(ledger)[0] == ("answered", 2)
    assert [(f.gold_right, f.gold_asked) for f in service.people()] == [(0, 0), (0, 0), (0, 1)]
    again = service.undo(people[2])
    assert again is not None and again.id == 1
    service.submit(people[2], decision(again, SAME, "again"))
    assert said(ledger)[3:] == [("undo", None, 1), ("gold", "same", 1)]
    assert [(f.gold_right, f.gold_asked) for f in service.people()][2] == (1, 1)
    # The person has seen it.
    assert task_for(service, people[2]).id == 2
    assert ledger.integrity() == []


def test_an_answer_that_is_known_has_the_effect_of_one_that_is_new(
    ledger: Ledger, clock: Clock
) -> None:
    plain = AnswerService(ledger, gold_share=0, clock=clock)
    # Two people agree that 0 = 1 and 1 = 2, and answer the same about 0 and 2 anew.
    publish(ledger, [(0, 1), (2, 3), (1, 2)], votes=2)
    people = [plain.person_named(name) for name in ("anna", "bert", "carl")]
    plain.heartbeat(people[1], 1)
    for who in people[:2]:
        for _ in range(3):
            answer_next(plain, who)
    publish(ledger, [(4, 5)])
    service = AnswerService(ledger, gold_share=1, clock=clock)
    seen = {}
    for number in range(3):
        task = task_for(service, people[2])
        prospects = service.prospects(task.items[0].question)
        outcome = service.submit(people[2], decision(task, SAME, f"gold{number}"))
        effect = outcome.effect
        assert effect is not None and outcome.contradiction == ()
        assert effect == prospects[SAME]
        seen[task.id] = effect.effect, effect.joined, effect.pairs
    new = Effect.NEW
    assert seen == {1: (new, (1, 3), 3), 2: (new, (3, 1), 3), 3: (new, (2, 2), 4)}
    assert [event.kind for event in ledger.events()][-3:] == ["gold"] * 3


def test_no_count_tells_that_an_answer_was_known(ledger: Ledger, clock: Clock) -> None:
    publish(ledger, [(2 * i, 2 * i + 1) for i in range(30)])
    publish(ledger, [(100 + i, 200 + i) for i in range(40)], gold="same", status="answered")
    service = AnswerService(ledger, gold_share=0.5, clock=clock)
    anna = service.person_named("anna")
    seen = set()
    for number in range(1, 21):
        task = answer_next(service, anna)
        assert (task.number, task.total) == (number, 30)
        seen.add(task.id > 30)
        progress = service.progress(anna)
        assert progress.answered + progress.known == number
    assert seen == {True, False}


def test_before_the_answer_only_who_wants_it_learns_what_earlier_answers_imply(
    service: AnswerService, ledger: Ledger
) -> None:
    publish(ledger, [(0, 1), (1, 2), (0, 2)])
    anna = service.person_named("anna")
    for _ in range(2):
        answer_next(service, anna)
    blind = service.prospects(3)
    assert {impact.effect for impact in blind.values()} == {Effect.NEW}
    assert blind[SAME].joined == (2, 1) and blind[DIFFERENT].apart == 2
    told = service.prospects(3, exact=True)
    assert told[SAME].effect is Effect.KNOWN
    assert (told[DIFFERENT].effect, told[DIFFERENT].against) == (Effect.CONTRADICTION, (1, 2))
    # Asking changes nothing.
    assert service.prospects(3) == blind
    with pytest.raises(LedgerError, match="no question 99"):
        service.prospects(99)


def test_the_first_answer_to_a_merge_is_expected_to_wait_for_another(
    service: AnswerService, ledger: Ledger
) -> None:
    publish(ledger, [(0, 1)], reason="merge", need=2)
    assert service.prospects(1)[SAME].effect is Effect.PENDING


def test_who_does_nothing_is_not_present_and_a_page_that_waits_writes_seldom(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1)], votes=2)
    anna, bert = service.person_named("anna"), service.person_named("bert")

    def seen() -> list[float | None]:
        return [figures.seen_at for figures in service.people()]

    service.next_task(bert)
    began = clock.now
    assert seen() == [None, began]
    # The page of bert stays open, and nobody uses it.
    for second in range(1, 700, 20):
        clock.now = began + second
        assert service.heartbeat(bert, 1, idle=float(second))
        assert seen() == [None, began]
    service.release(bert, 1)
    assert seen()[1] != began
    clock.now += 700
    assert answer_next(service, anna).id == 1
    assert statuses(ledger) == [("answered", 1)]
    times = []
    for second in (0, 1, 14, 16, 17):
        clock.now = began + 2000 + second
        service.next_task(bert)
        times.append((seen()[1] or 0.0) - began - 2000)
    assert times == [0, 0, 0, 16, 16]


def test_who_does_nothing_at_an_open_page_keeps_no_question_from_others(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1)])
    anna, bert = service.person_named("anna"), service.person_named("bert")
    assert service.next_task(bert) is not None
    for second in range(20, 260, 20):
        clock.now += 20
        assert service.heartbeat(bert, 1, idle=float(second))
        assert service.next_task(bert, idle=float(second)) is not None
        assert service.next_task(anna) is None
    # Three minutes of use, and the 90 seconds of a lease.
    clock.now += 20
    assert service.next_task(anna) is not None
    assert not service.heartbeat(bert, 1, idle=280.0)


def test_a_page_that_nobody_uses_does_not_get_its_question_again(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1)])
    anna, bert = service.person_named("anna"), service.person_named("bert")
    assert service.next_task(bert) is not None
    # The page shows the question, and asks for another one again and again.
    for second in range(1, 250):
        clock.now += 1
        assert service.next_task(bert, ahead=1, idle=float(second)) is None
        assert service.next_task(anna) is None
        if second % 20 == 0:
            assert service.heartbeat(bert, 1, idle=float(second))
    clock.now += 1
    assert service.next_task(bert, ahead=1, idle=250.0) is None
    assert service.next_task(anna) is not None


def test_an_image_of_the_other_side_is_two_answers_that_are_taken_back_together(
    service: AnswerService, ledger: Ledger
) -> None:
    publish(ledger, [(0, 1)], groups=([10, 11], [20]))
    anna = service.person_named("anna")
    task = task_for(service, anna)
    with pytest.raises(LedgerError, match="answer different, or take the mark back"):
        service.submit(anna, decision(task, SAME, "both", other_side=[10]))
    with pytest.raises(LedgerError, match="image 99 is not a thumbnail"):
        service.submit(anna, decision(task, DIFFERENT, "none", other_side=[99]))
    given = decision(task, DIFFERENT, "one", other_side=[10], all_confirmed=True)
    assert len(service.submit(anna, given).events) == 5
    number = {path: key for key, path in ledger.images().items()}
    said = {(number[e.left], number[e.right]): e.verdict for e in ledger.events()}
    assert said == {
        **{(0, 1): "different", (0, 10): "different", (1, 10): "same"},
        **{(0, 11): "same", (1, 20): "same"},
    }
    (done,) = service.mine(anna)
    assert (done.odd, done.other_side) == ((10,), (10,))
    assert service.undo(anna) is not None
    assert ledger.answers() == [] and ledger.integrity() == []


def test_images_of_a_sheet_have_no_other_side(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1), (0, 2)], sheet=True, groups=([10], []))
    anna = service.person_named("anna")
    task = task_for(service, anna)
    with pytest.raises(LedgerError, match="is a sheet"):
        service.submit(anna, decision(task, DIFFERENT, other_side=[10]))


def test_the_chain_of_a_pair_names_everybody_who_said_so(
    service: AnswerService, ledger: Ledger
) -> None:
    publish(ledger, [(0, 1)], votes=2)
    people = [service.person_named(name) for name in ("anna", "bert", "carl")]
    for who in people:
        service.heartbeat(who, 1)
    for who, verdict in zip(people, (DIFFERENT, SAME, SAME), strict=True):
        answer_next(service, who, verdict)
    (step,) = service.proof(0, 1)
    assert (step.verdict, step.people, step.epoch) == ("same", ("bert", "carl"), 3)
    assert service.image_at("train/1.jpg").id == 1
    with pytest.raises(LedgerError, match=r"has no image train/7\.jpg"):
        service.image_at("train/7.jpg")


def test_a_late_vote_that_is_taken_back_leaves_the_question_settled(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1)])
    anna, bert = service.person_named("anna"), service.person_named("bert")
    late = task_for(service, anna)
    clock.now += 100
    answer_next(service, bert)
    assert service.submit(anna, decision(late, DIFFERENT, "late")).status == "late"
    assert [answer.verdict for answer in ledger.answers()] == [UNSURE]
    again = service.undo(anna)
    assert again is not None and again.id == 1
    assert statuses(ledger) == [("answered", 1)]
    assert service.submit(anna, decision(again, SAME, "again")).status == "late"
    assert [event.kind for event in ledger.events()] == ["answer", "answer", "undo", "answer"]
    service.undo(anna)
    service.undo(bert)
    assert statuses(ledger) == [("open", None)]


def test_a_late_vote_does_not_open_what_was_settled_while_few_were_there(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1)], votes=2)
    anna, bert = service.person_named("anna"), service.person_named("bert")
    task = task_for(service, bert)
    clock.now += 700
    answer_next(service, anna)
    assert statuses(ledger) == [("answered", 1)]
    assert service.submit(bert, decision(task, token="late")).status == "late"
    assert service.undo(bert) is not None
    assert statuses(ledger) == [("answered", 1)]


def test_an_answer_to_a_withdrawn_question_is_kept(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1)])
    anna = service.person_named("anna")
    task = task_for(service, anna)
    with ledger.store.writing() as connection:
        connection.execute(QUESTIONS.update(), {"status": "withdrawn"})
    assert not service.heartbeat(anna, 1)
    assert service.submit(anna, decision(task)).status == "late"
    assert statuses(ledger) == [("withdrawn", None)]
    assert len(ledger.answers()) == 1
    assert service.undo(anna) is None
    assert ledger.answers() == []
    assert statuses(ledger) == [("withdrawn", None)]


def test_only_admins_take_back_what_others_said(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1)])
    anna, bert = service.person_named("anna"), service.person_named("bert", "review")
    carl = service.person_named("carl", "admin")
    answer_next(service, anna)
    assert service.undo(bert) is None
    for event, who, match in (
        (1, bert, "event 1 is not an answer of bert"),
        (7, carl, "no answer 7 that could be taken back"),
        (True, carl, "got event True"),
    ):
        with pytest.raises(LedgerError, match=match):
            service.undo(who, event)
    assert service.undo(carl, 1) is None
    assert statuses(ledger) == [("open", None)]
    assert task_for(service, bert).id == 1


def test_a_sheet_is_one_decision(service: AnswerService, ledger: Ledger, clock: Clock) -> None:
    publish(ledger, [(0, 1), (0, 2), (0, 3)], sheet=True, groups=([10], [20]))
    anna = service.person_named("anna")
    task = task_for(service, anna)
    assert (task.id, task.sheet, task.left, task.total) == (1, True, 0, 1)
    assert [(item.question, item.right, item.right_images) for item in task.items] == [
        (1, 1, (1, 20)),
        (2, 2, (2, 20)),
        (3, 3, (3, 20)),
    ]
    verdicts = {1: SAME, 2: DIFFERENT, 3: UNSURE}
    clock.now += 8
    sent = Submission(1, "t", verdicts, all_confirmed=True, active_seconds=6.0)
    service.submit(anna, sent)
    events = list(ledger.events())
    assert [(e.question, e.reason, e.verdict) for e in events] == [
        (1, "split", "same"),
        (1, "member", "same"),
        (1, "member", "same"),
        (2, "split", "different"),
        (2, "member", "same"),
        (3, "split", "unsure"),
        (3, "member", "same"),
    ]
    assert [e.answered_at - e.asked_at for e in events] == [2.0, 0, 0, 2.0, 0, 2.0, 0]
    assert ledger.seconds() == 6.0
    assert [event for _, event in statuses(ledger)] == [3, 5, 7]
    assert service.mine(anna)[0].verdicts == ((1, "same"), (2, "different"), (3, "unsure"))
    service.undo(anna)
    assert {status for status, _ in statuses(ledger)} == {"open"}


def test_only_what_was_shown_is_confirmed(service: AnswerService, ledger: Ledger) -> None:
    group = list(range(100, 125))
    publish(ledger, [(0, 1)], groups=(group, []))
    anna = service.person_named("anna")
    task = task_for(service, anna)
    assert task.left_images == (0, *group)
    service.submit(anna, decision(task, odd=[120], all_confirmed=True))
    members = [event for event in ledger.events() if event.reason == "member"]
    assert [e.right for e in members] == [f"train/{i}.jpg" for i in (*group[:10], 120)]
    assert [e.verdict for e in members] == ["same"] * 10 + ["different"]
    again = service.undo(anna)
    assert again is not None
    service.submit(anna, decision(again, token="2", all_confirmed=True, shown=[0, 1, 111]))
    *_, main, member = ledger.events()
    assert (main.shown, member.right) == (
        (["train/0.jpg", "train/111.jpg"], ["train/1.jpg"]),
        "train/111.jpg",
    )


FORGED: list[tuple[dict[str, object], str]] = [
    ({"task_id": 99}, "has no task 99"),
    ({"task_id": -1}, "got task -1, expected its number"),
    ({"task_id": "1"}, "got task '1'"),
    ({"task_id": True}, "got task True"),
    ({"task_id": 10**30}, "got task 1000"),
    ({"task_id": 3}, "has no task 3"),
    ({"task_id": 4}, "task 4 is not with anna"),
    ({"token": ""}, "got a token of 0 characters"),
    ({"token": "x" * 201}, "got a token of 201 characters"),
    ({"token": "\ud800"}, "expected printable ASCII"),
    ({"token": None}, "got token None"),
    ({"verdicts": {}}, "got verdicts for 0 of the 1 questions of task 1"),
    ({"verdicts": {1: "maybe"}}, "got verdict 'maybe', expected one of same, different"),
    ({"verdicts": {2: "same"}}, "task 1 has no question 2"),
    ({"verdicts": {"1": "same"}}, "task 1 has no question '1'"),
    ({"verdicts": [("1", "same")]}, "expected them by question"),
    ({"odd": [77]}, "image 77 is not a thumbnail of task 1"),
    ({"odd": [0]}, "image 0 is not a thumbnail of task 1"),
    ({"odd": ["0"]}, "got image '0'"),
    ({"odd": 5}, "got odd 5, expected a list"),
    ({"tags": ["ugly"]}, "got tag 'ugly', expected bad crop, mixed, no object"),
    ({"tags": "mixed"}, "got tags 'mixed', expected a list"),
    ({"comment": "x" * 10_001}, "got a comment of 10,001 characters"),
    ({"comment": 5}, "got comment 5"),
    ({"active_seconds": -1}, "got active_seconds -1"),
    ({"active_seconds": float("nan")}, "got active_seconds nan"),
    ({"idle_seconds": 1e300}, r"got idle_seconds 1e\+300"),
    ({"source": "mail"}, "got source 'mail'"),
]


@pytest.mark.parametrize(("change", "message"), FORGED)
def test_forged_submissions_are_refused_in_one_line(
    change: dict[str, object], message: str, service: AnswerService, ledger: Ledger
) -> None:
    publish(ledger, [(0, 1)], groups=([10], [20]))
    publish(ledger, [(2, 3), (2, 4)], sheet=True)
    publish(ledger, [(5, 6)])
    anna = service.person_named("anna")
    task_for(service, anna)
    sent = dataclasses.replace(decision(1), **change)  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match=message) as caught:
        service.submit(anna, sent)
    assert "\n" not in str(caught.value)
    assert ledger.last_event() == 0
    assert service.submit(anna, decision(1)).status == "recorded"


def test_every_question_of_a_sheet_needs_a_verdict(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1), (0, 2)], sheet=True)
    anna = service.person_named("anna")
    task_for(service, anna)
    with pytest.raises(LedgerError, match="verdicts for 1 of the 2 questions of task 1"):
        service.submit(anna, Submission(1, "t", {2: SAME}))
    for call in (service.heartbeat, service.release, service.skip):
        with pytest.raises(LedgerError, match="has no task 2"):
            call(anna, 2)
    with pytest.raises(LedgerError, match="task 1 is not with bert"):
        service.skip(service.person_named("bert"), 1)
    assert not service.heartbeat(service.person_named("bert"), 1)


def test_people_are_known_by_tokens_of_which_a_digest_is_kept(
    service: AnswerService, ledger: Ledger
) -> None:
    anna, token = service.add_person("anna")
    bert, other = service.add_person("bert", "admin")
    assert len(token) >= 32 and token != other
    assert service.person_of_token(token) == anna
    assert service.person_of_token(other) == bert == (2, "bert", "admin")
    for wrong in ("", token[:-1], token.upper(), "\ud800", None, 5):
        assert service.person_of_token(wrong) is None  # type: ignore[arg-type]
    with ledger.store.reading() as connection:
        secrets = list(connection.execute(PEOPLE.select().with_only_columns(PEOPLE.c.secret)))
    assert [len(row.secret) for row in secrets] == [64, 64]
    assert token not in str(secrets)
    publish(ledger, [(0, 1)])
    task_for(service, anna)
    service.disable(anna)
    assert service.person_of_token(token) is None
    for call in (service.next_task, service.undo):
        with pytest.raises(LedgerError, match="anna may not answer any more"):
            call(anna)
    assert task_for(service, bert).id == 1
    assert [(f.name, f.disabled) for f in service.people()] == [("anna", True), ("bert", False)]
    with pytest.raises(LedgerError, match="there is no person 77"):
        service.next_task(Person(77, "eve", "admin"))


@pytest.mark.parametrize("name", ["", " ", " anna", "a\nb", "x" * 101, "\ud800", None, 5])
def test_names_that_cannot_be_shown_are_refused(name: object, service: AnswerService) -> None:
    for call in (service.add_person, service.person_named):
        with pytest.raises(LedgerError, match=r"^got (a|the) name"):
            call(name)  # type: ignore[arg-type]


def test_names_are_taken_once_and_roles_are_known(service: AnswerService) -> None:
    service.add_person("anna")
    with pytest.raises(LedgerError, match="there is a person anna already"):
        service.add_person("anna")
    with pytest.raises(LedgerError, match="got role king, expected one of annotate, review, admin"):
        service.add_person("bert", "king")


def test_a_role_that_a_client_claims_is_not_believed(
    service: AnswerService, ledger: Ledger
) -> None:
    publish(ledger, [(0, 1)])
    anna = service.person_named("anna")
    with pytest.raises(LedgerError, match="anna may not erase images"):
        service.erase(0, anna._replace(role="admin"), "mine")


def test_an_erased_image_is_shown_no_more(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1), (2, 3)], groups=([0, 10], [20]))
    anna = service.person_named("anna", "admin")
    event = service.erase(0, anna, "asked to")
    assert statuses(ledger) == [("withdrawn", None), ("open", None)]
    assert service.image(0) == (0, "train/0.jpg", f"{0:032x}", True)
    assert not service.image(1).erased
    task = task_for(service, anna)
    assert (task.id, task.left_images) == (2, (2, 10))
    page = service.members(2, 0)
    assert ([entry.id for entry in page.images], page.total, page.pages) == ([2, 10], 2, 1)
    service.submit(anna, decision(task, all_confirmed=True))
    assert [e.right for e in ledger.events() if e.reason == "member"] == [
        "train/10.jpg",
        "train/20.jpg",
    ]
    (erase,) = [e for e in ledger.events() if e.kind == "erase"]
    assert (erase.id, erase.left, erase.comment) == (event, "train/0.jpg", "asked to")
    with pytest.raises(LedgerError, match="image 0 was erased before"):
        service.erase(0, anna, "again")
    with pytest.raises(LedgerError, match="has no image 999"):
        service.image(999)
    assert ledger.integrity() == []


def test_nobody_is_asked_again_about_an_erased_image(
    service: AnswerService, ledger: Ledger
) -> None:
    publish(ledger, [(0, 1), (2, 3)])
    anna = service.person_named("anna", "admin")
    service.submit(anna, decision(task_for(service, anna)))
    service.erase(0, anna, "asked to")
    # Neither when the answer is taken back, nor by the questions of a later round.
    assert service.undo(anna) is None
    assert ledger.answers() == []
    queue = QuestionQueue(ledger, "run")
    queue.begin(2, window=3)
    numbers = [
        queue.publish([Entry(Question.about_images(i, j, "merge", 0.5))])
        for i, j in ((0, 4), (5, 6), (0, 7))
    ]
    assert numbers == [[3], [4], [5]]
    assert queue.answers([3]) == [[]]
    assert [status for status, _ in statuses(ledger)] == [
        *("withdrawn", "open", "withdrawn", "open", "withdrawn")
    ]
    assert task_for(service, anna).id == 2


def test_undo_takes_back_the_last_decision_also_where_its_answer_is_known(
    service: AnswerService, ledger: Ledger
) -> None:
    anna = service.person_named("anna")
    publish(ledger, [(0, 1), (2, 3)])
    first = answer_next(service, anna)
    publish(ledger, [(4, 5)], run="", gold="same", reason="gold")
    assert service.progress(anna).run == "run"
    with AnswerService(ledger, gold_share=1) as mixing:
        known = task_for(mixing, anna)
        # It looks like any other question.
        assert (known.id, known.number) == (3, first.number + 1)
        mixing.submit(anna, decision(known))
        again = mixing.undo(anna)
        assert again is not None and again.id == known.id
        mixing.submit(anna, decision(again, DIFFERENT, "again"))
        assert task_for(mixing, anna).number == first.number + 2
        assert [answer.left for answer in ledger.answers()] == [0]


def test_undo_takes_back_an_answer_to_what_another_run_left(
    service: AnswerService, ledger: Ledger
) -> None:
    anna = service.person_named("anna")
    publish(ledger, [(0, 1), (2, 3)])
    answer_next(service, anna)
    publish(ledger, [(4, 5)], run="other", known_event=1)
    # The answer to the earlier run, from before this one, is not taken back.
    assert service.undo(anna) is None
    left = answer_next(service, anna)
    assert left.id == 2
    again = service.undo(anna)
    assert again is not None and again.id == 2
    assert [answer.left for answer in ledger.answers()] == [0]


def test_members_are_paged(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1)], groups=([], list(range(100, 124))))
    pages = [service.members(1, 1, page) for page in range(4)]
    assert [[entry.id for entry in page.images] for page in pages] == [
        [1, *range(100, 109)],
        list(range(109, 119)),
        list(range(119, 124)),
        [],
    ]
    assert pages[0][1:] == (0, 3, 25)
    with pytest.raises(LedgerError, match="has no question 9"):
        service.members(9, 0)


def test_contradictions_are_told_when_they_are_made(service: AnswerService, ledger: Ledger) -> None:
    publish(ledger, [(0, 1), (1, 2), (0, 2), (2, 3)])
    anna = service.person_named("anna")

    def answered(verdict: Verdict) -> Outcome:
        task = task_for(service, anna)
        token = f"{ledger.last_event()}"
        return service.submit(anna, decision(task, verdict, token))

    first = answered(SAME)
    assert first.effect == Impact(Effect.NEW, (1, 1), 1)
    assert answered(SAME).effect == Impact(Effect.NEW, (2, 1), 2)
    contradiction = answered(DIFFERENT)
    assert contradiction.contradiction == (1, 2)
    assert contradiction.effect == Impact(Effect.CONTRADICTION, cuts=1, against=(1, 2))
    assert service.effect(3) == contradiction.effect
    assert service.effect(2) == Impact(Effect.NEW, (2, 1), 2)
    assert service.preview(0, 3, DIFFERENT) == Impact(Effect.NEW, apart=2)
    service.undo(anna)
    assert [step[:5] for step in service.proof(0, 2)] == [
        (1, 0, 1, "same", "anna"),
        (2, 1, 2, "same", "anna"),
    ]
    assert service.proof(0, 3) == []
    again = answered(SAME)
    assert again.effect is not None and again.effect.effect is Effect.KNOWN
    with pytest.raises(LedgerError, match="has no answer 77"):
        service.effect(77)


def test_progress_counts_the_run_of_the_newest_question(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    anna, bert = service.person_named("anna"), service.person_named("bert")
    assert service.progress(anna).eta_seconds is None
    publish(ledger, [(0, 1)], run="old", status="answered")
    publish(ledger, [(i, 50 + i) for i in range(10)])
    for who, seconds in ((anna, 10.0), (bert, 30.0)):
        assert service.next_task(who) is not None
        clock.now += seconds
        answer_next(service, who, active_seconds=seconds)
    progress = service.progress(anna)
    assert (progress.run, progress.epoch, progress.answered, progress.open) == ("run", 3, 2, 8)
    assert (progress.decided, progress.rate, progress.rate_of_all) == (1, 360.0, 480.0)
    assert progress.eta_seconds == 60.0
    assert (progress.total, progress.outlook, progress.worth_stopping) == (None, None, None)
    outlook = {"questions": 50, "changed": 3.0, "total": 1000, "counts": "pairs"}
    told = {"run": "run", "budget": 100, "asked": 2, "outlook": outlook}
    with ledger.store.writing() as connection:
        connection.execute(META.insert(), {"key": "progress", "value": json.dumps(told)})
    progress = service.progress(anna)
    assert (progress.total, progress.outlook, progress.worth_stopping) == (100, outlook, True)
    assert progress.eta_seconds == 98 / 480 * 3600
    task = task_for(service, anna)
    assert (task.number, task.total) == (2, 99)
    with ledger.store.writing() as connection:
        told = {"run": "other", "budget": 1}
        chosen = META.c.key == "progress"
        connection.execute(META.update().where(chosen), {"value": json.dumps(told)})
    assert service.progress(anna).total is None


@pytest.mark.parametrize(
    ("counts", "changed", "expected"),
    [
        ("pairs", 4.9, True),
        ("pairs", 5.0, False),
        ("clusters", 0.9, True),
        ("clusters", 1.0, False),
        ("pairs", None, None),
        ("pairs", "many", None),
    ],
)
def test_stopping_is_worth_it_where_little_is_expected(
    counts: str, changed: object, expected: bool | None, service: AnswerService, ledger: Ledger
) -> None:
    outlook = {"questions": 50, "changed": changed, "total": 1000, "counts": counts}
    with ledger.store.writing() as connection:
        told = json.dumps({"outlook": outlook})
        connection.execute(META.insert(), {"key": "progress", "value": told})
    anna = service.person_named("anna")
    assert service.progress(anna).worth_stopping is expected
    with ledger.store.writing() as connection:
        connection.execute(META.update().where(META.c.key == "progress"), {"value": "{"})
    assert service.progress(anna).worth_stopping is None


def test_without_a_budget_the_end_of_the_round_is_the_goal(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1), (2, 3)])
    anna = service.person_named("anna")
    told = {"run": "run", "budget": None, "asked": 61, "asked_in_round": 1, "allowed_in_round": 60}
    with ledger.store.writing() as connection:
        connection.execute(META.insert(), {"key": "progress", "value": json.dumps(told)})
    assert service.next_task(anna) is not None
    clock.now += 36
    answer_next(service, anna, active_seconds=36.0)
    progress = service.progress(anna)
    assert (progress.total, progress.eta_seconds) == (120, 59 / 100 * 3600)
    assert task_for(service, anna).total == 1 + 59


def test_the_total_stays_while_the_trainer_has_not_taken_an_answer(
    service: AnswerService, ledger: Ledger
) -> None:
    publish(ledger, [(0, 1), (2, 3), (4, 5)])
    anna = service.person_named("anna")
    told = {"run": "run", "budget": None, "asked": 0, "asked_in_round": 0, "allowed_in_round": 6}
    with ledger.store.writing() as connection:
        connection.execute(META.insert(), {"key": "progress", "value": json.dumps(told)})
    shown = []
    for _ in range(3):
        task = task_for(service, anna)
        shown.append((task.number, task.total, service.progress(anna).total))
        answer_next(service, anna)
    assert shown == [(1, 6, 6), (2, 6, 6), (3, 6, 6)]


def test_images_that_were_marked_as_odd_are_not_shown_again(
    service: AnswerService, ledger: Ledger
) -> None:
    publish(ledger, [(0, 1), (0, 2)], groups=([10, 11, 12], []))
    publish(ledger, [(10, 11)], status="withdrawn")
    anna = service.person_named("anna")
    answer_next(service, anna, DIFFERENT, odd=[10])
    task = task_for(service, anna)
    assert task.left_images == (0, 11, 12)
    assert [item.right_images for item in task.items] == [(2,)]
    # They return with the answer that is taken back.
    again = service.undo(anna)
    assert again is not None and again.left_images == (0, 10, 11, 12)


def test_own_decisions_are_listed_the_newest_first(
    service: AnswerService, ledger: Ledger, clock: Clock
) -> None:
    publish(ledger, [(0, 1), (2, 3)], groups=([10], []))
    anna, bert = service.person_named("anna"), service.person_named("bert")
    answer_next(service, anna, odd=[10], comment="dark", tags=["bad crop", "mixed"])
    assert service.next_task(anna) is not None
    clock.now += 2
    answer_next(service, anna, UNSURE, active_seconds=2.0)
    service.undo(anna)
    newest, oldest = service.mine(anna)
    assert (newest.task_id, newest.undone, newest.seconds) == (2, True, 2.0)
    assert (oldest.task_id, oldest.undone, oldest.verdicts) == (1, False, ((1, "same"),))
    assert (oldest.odd, oldest.comment, oldest.tags) == ((10,), "dark", ("bad crop", "mixed"))
    assert [decision.task_id for decision in service.mine(anna, limit=1)] == [2]
    assert service.mine(bert) == []
