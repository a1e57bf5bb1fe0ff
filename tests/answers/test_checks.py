"""Answers are checked where that tells most, so that a person who errs often is found soon."""

from __future__ import annotations

import random

import pytest

from fastreid_al.answers.agreement import ErrorEstimate, estimate_errors
from fastreid_al.answers.checks import Checks, draw, errs_often, is_trusted
from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.service import AnswerService, Submission
from tests.support.checking import people_checked
from tests.support.queues import DIFFERENT, SAME, UNSURE, Clock, decision, publish, statuses

PLANTED = {"anna": 0.02, "ben": 0.02, "dora": 0.2}
CAREFUL = {"anna": 0.02, "ben": 0.02, "cleo": 0.02}


def right(answers: int, wrong: int = 0) -> ErrorEstimate:
    """The estimate of a person with so many right and wrong answers to known questions."""
    gold = [("anna", i, i >= wrong, True) for i in range(answers + wrong)]
    return estimate_errors([], gold)["anna"]


def check_seeds(seeds: range) -> None:
    found = [people_checked(seed, Checks(), PLANTED) for seed in seeds]
    careful = [people_checked(seed, Checks(), CAREFUL) for seed in seeds]
    assert sum("dora" in f.pointed_out for f in found) >= 0.9 * len(seeds)
    alarms = [name for f in found for name in f.pointed_out if name != "dora"]
    assert len(alarms) <= 0.05 * 2 * len(seeds)
    alarms = [name for f in careful for name in f.pointed_out]
    assert len(alarms) <= 0.05 * 3 * len(seeds)


def test_a_planted_annotator_among_three_is_found_within_100_answers() -> None:
    check_seeds(range(20))


@pytest.mark.slow
def test_a_planted_annotator_is_found_in_most_of_many_draws() -> None:
    check_seeds(range(100, 300))


def test_checks_of_careful_people_become_few() -> None:
    for seed in (1, 2):
        first, later = (people_checked(seed, Checks(), CAREFUL, n).extra for n in (50, 300))
        assert later < 0.75 * first


def test_without_second_votes_nobody_is_found() -> None:
    plain = Checks(known_unsure=0.05, again=0.0, again_unsure=0.0)
    found = people_checked(1, plain, PLANTED)
    assert (found.pointed_out, found.extra) == ({}, 0.0)


def test_a_new_person_is_checked_more_until_enough_answers_were_right() -> None:
    checks = Checks()
    for estimate in (None, right(3), right(30, wrong=2)):
        assert not is_trusted(estimate) and not errs_often(estimate)
        assert (checks.share_known(estimate), checks.share_again(estimate)) == (0.2, 0.3)
    assert is_trusted(right(20)) and is_trusted(right(60, wrong=1))
    assert (checks.share_known(right(20)), checks.share_again(right(20))) == (0.05, 0.05)
    # Every answer of a person who likely errs often is given again.
    assert errs_often(right(20, wrong=6)) and checks.share_again(right(20, wrong=6)) == 1.0
    none = Checks(again_unsure=0.0)
    assert none.share_again(right(20, wrong=6)) == 0.0


def test_the_probability_to_err_often_is_the_mass_above_a_tenth() -> None:
    # Without votes, the density is that of a Beta distribution.
    sampled = random.Random(0)
    for wrong, answers in ((0, 10), (3, 20), (6, 30)):
        a, b = wrong + 1.5, answers + 25.5
        above = sum(0.1 < sampled.betavariate(a, b) < 0.5 for _ in range(20_000)) / 20_000
        assert right(answers, wrong).often == pytest.approx(above, abs=0.02)


def test_draws_depend_on_their_key_alone_and_are_even() -> None:
    found = [draw("again", 3, task) for task in range(2000)]
    assert found == [draw("again", 3, task) for task in range(2000)]
    assert sum(value < 0.3 for value in found) == pytest.approx(600, abs=60)


def test_shares_are_from_0_to_1() -> None:
    with pytest.raises(ValueError, match="again_unsure"):
        Checks(again_unsure=1.5).checked()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger.open("sqlite://")


def test_a_second_person_gives_a_drawn_answer_too(ledger: Ledger) -> None:
    checks = Checks(known=0, known_unsure=0, again=1.0, again_unsure=1.0)
    service = AnswerService(ledger, checks=checks, clock=Clock())
    publish(ledger, [(0, 1), (2, 3)])
    anna, ben, cleo = (service.person_named(name) for name in ("anna", "ben", "cleo"))
    for who in (ben, cleo):
        service.heartbeat(who, 1)
    task = service.next_task(anna)
    assert task is not None
    service.submit(anna, decision(task, SAME, "a"))
    assert statuses(ledger)[0] == ("open", None)
    again = service.next_task(ben)
    assert again is not None and again.id == task.id
    service.submit(ben, decision(again, DIFFERENT, "b"))
    # They disagree: a third person decides, also if nobody would be checked any more.
    third = service.next_task(cleo)
    assert third is not None and third.id == task.id
    service.submit(cleo, decision(third, DIFFERENT, "c"))
    assert statuses(ledger)[0] == ("answered", 3)


def test_a_check_that_somebody_has_does_not_end_before_their_answer(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    checks = Checks(known=0, known_unsure=0, again=0.0, again_unsure=1.0)
    service = AnswerService(ledger, checks=checks, clock=clock)
    publish(ledger, [(0, 1), (2, 3), (4, 5)])
    anna, ben, cleo = (service.person_named(name) for name in ("anna", "ben", "cleo"))
    for who in (ben, cleo):
        service.heartbeat(who, 1)
    for token in "abc":
        task = service.next_task(anna)
        assert task is not None
        service.submit(anna, decision(task, DIFFERENT, token))
        clock.now += 1
    held = service.next_task(ben)
    skipped = service.next_task(ben, ahead=1)
    assert held is not None and skipped is not None
    # Anna turns out to be careful. What nobody was given yet is settled.
    monkeypatch.setattr(Checks, "share_again", lambda self, estimate: 0.0)
    assert service.settle() == 1
    assert [status for status, _ in statuses(ledger)] == ["open", "open", "answered"]
    # Nobody else is given what ben has.
    assert service.next_task(cleo) is None
    clock.now += 1
    service.submit(ben, decision(held, SAME, "d"))
    service.skip(ben, skipped.id)
    assert service.settle() == 1
    # Ben's answer counts: they disagree, and a third person decides.
    assert [event.kind for event in ledger.events()] == ["answer"] * 4
    assert [status for status, _ in statuses(ledger)] == ["open", "answered", "answered"]
    third = service.next_task(cleo)
    assert third is not None and third.id == held.id


def test_a_second_person_answers_what_is_open_of_a_sheet(ledger: Ledger) -> None:
    clock = Clock()
    checks = Checks(known=0, known_unsure=0, again=1.0, again_unsure=1.0)
    service = AnswerService(ledger, checks=checks, clock=clock)
    publish(ledger, [(0, 1), (0, 2), (0, 3)], sheet=True)
    anna, ben = (service.person_named(name) for name in ("anna", "ben"))
    service.heartbeat(ben, 1)
    task = service.next_task(anna)
    assert task is not None
    first, second, third = (item.question for item in task.items)
    said = {first: DIFFERENT, second: UNSURE, third: DIFFERENT}
    service.submit(anna, Submission(task.id, "anna-sheet", said))
    assert [status for status, _ in statuses(ledger)] == ["open", "answered", "open"]
    clock.now += 10
    # "Unsure" is not checked. The lease that begins now does not bring it back, also later.
    again = service.next_task(ben)
    assert again is not None and [item.question for item in again.items] == [first, third]
    assert service.next_task(ben) == again
    said = {item.question: DIFFERENT for item in again.items}
    service.submit(ben, Submission(again.id, "ben-sheet", said))
    assert [status for status, _ in statuses(ledger)] == ["answered"] * 3


def test_a_person_who_is_alone_waits_for_nobody(ledger: Ledger) -> None:
    service = AnswerService(ledger, checks=Checks(again_unsure=1.0), clock=Clock())
    publish(ledger, [(0, 1)])
    anna = service.person_named("anna")
    task = service.next_task(anna)
    assert task is not None
    service.submit(anna, decision(task))
    assert statuses(ledger) == [("answered", 1)]


@pytest.mark.parametrize(
    ("rate", "answers", "known"),
    [(0.5, 30, 1), pytest.param(0.2, 100, 8, marks=pytest.mark.slow)],
)
def test_a_planted_annotator_is_pointed_out_by_the_service(
    ledger: Ledger, rate: float, answers: int, known: int
) -> None:
    publish(ledger, [(2 * i, 2 * i + 1) for i in range(4 * answers)])
    rates = {**PLANTED, "dora": rate}
    service = AnswerService(ledger, checks=Checks(), clock=Clock())
    people = {name: service.person_named(name) for name in PLANTED}
    for who in people.values():
        service.heartbeat(who, 1)
    random_ = random.Random(4)
    given = dict.fromkeys(PLANTED, 0)
    while given["dora"] < answers:
        name = random_.choice(list(PLANTED))
        task = service.next_task(people[name])
        assert task is not None
        # All images differ.
        verdict = SAME if random_.random() < rates[name] else DIFFERENT
        service.submit(people[name], decision(task, verdict, f"{name}{given[name]}"))
        given[name] += 1
    figures = {figure.name: figure for figure in service.people()}
    assert [name for name, figure in figures.items() if figure.errs_often] == ["dora"]
    assert figures["dora"].often_wrong is not None and figures["dora"].often_wrong > 0.4
    # Known answers came up too, more often than for people who are trusted.
    assert figures["dora"].gold_asked >= known
