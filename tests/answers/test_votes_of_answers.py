"""What several people's answers to a question count as."""

from __future__ import annotations

from fastreid_al.answers.ledger import Ledger, combined
from fastreid_al.answers.question import Answer, Verdict
from fastreid_al.answers.service import AnswerService
from tests.support.queues import answer_next, publish

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE


def votes(*verdicts: Verdict) -> list[Answer]:
    return [
        Answer(event, 1, 2, verdict, seconds=1.0, order=(0, 7))
        for event, verdict in enumerate(verdicts, 1)
    ]


def test_most_people_decide_and_equally_many_do_not() -> None:
    for given, expected in (
        ((SAME, DIFFERENT, SAME), SAME),
        ((SAME, DIFFERENT), UNSURE),
        ((SAME, DIFFERENT, UNSURE), UNSURE),
    ):
        [answer] = combined(votes(*given))
        assert (answer.event, answer.verdict, answer.seconds) == (1, expected, len(given))


def test_the_answer_that_settled_a_question_decides_among_equally_many() -> None:
    given = votes(SAME, DIFFERENT, DIFFERENT, SAME)
    assert combined(given, {7: 4})[0].verdict is SAME
    # A later answer disputes it.
    assert combined(given, {7: 3})[0].verdict is UNSURE
    assert combined(given, {8: 4})[0].verdict is UNSURE


def test_a_question_that_needs_another_person_has_no_answer_yet() -> None:
    with Ledger.open("sqlite://") as ledger:
        service = AnswerService(ledger, gold_share=0.0)
        anna, ben = service.person_named("anna"), service.person_named("ben")
        publish(ledger, [(1, 2)], votes=2, reason="merge")
        publish(ledger, [(3, 4)])
        # Both are there before one answers.
        for person in (anna, ben):
            service.release(person, service.next_task(person).id)  # type: ignore[union-attr]
        answer_next(service, anna, SAME)
        assert ledger.answers() == []
        half = ledger.last_event()
        answer_next(service, ben, SAME)
        [answer] = ledger.answers()
        assert (answer.event, answer.verdict) == (1, SAME)
        # At the earlier event it had none, also when it is looked at later.
        assert ledger.answers(as_of=half) == []
        service.undo(ben)
        assert ledger.answers() == []
