"""Rounds of published questions that are repeated, interrupted, or end before people answer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch
from torch import Tensor

from fastreid_al.active import refine
from fastreid_al.answers.asker import Asker
from fastreid_al.answers.database import QUESTIONS
from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.question import Question, QuitAsking, Verdict
from fastreid_al.answers.service import AnswerService, Submission
from fastreid_al.config import QuestionConfig
from tests.active.strategies.test_gain import crowded

from .test_queue import People, keys, rounds

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE


@pytest.fixture
def planted() -> tuple[Tensor, Tensor, Tensor]:
    return crowded()


def open_questions(ledger: Ledger) -> set[int]:
    """Numbers of the questions that people may answer."""
    with ledger.store.reading() as connection:
        found = sa.select(QUESTIONS.c.id).where(QUESTIONS.c.status == "open")
        return set(connection.execute(found).scalars())


def about(i: int, j: int, *others: int) -> Question:
    """Whether two clusters are one person; the second one may have further images."""
    groups = torch.tensor([i]), torch.tensor([j, *others])
    return Question((i, j), groups, "merge", 0.5, 1.0)


class Tiring(People):
    """People who stop answering after some decisions of each round, but hold what they have."""

    each = 9
    left = each
    #: The clock of the round, in seconds, which goes on while nobody answers.
    now = 0.0

    def serve(self, ledger: Ledger) -> None:
        if self.left > 0:
            before = self.decided
            super().serve(ledger)
            self.left -= self.decided - before
        else:
            self.now += 1.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("sheet", [1, 4])
@pytest.mark.parametrize("first", [0, 1])
def test_a_round_that_timed_out_is_repeated_from_an_older_checkpoint_as_it_was(
    first: int,
    sheet: int,
    planted: tuple[Tensor, Tensor, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = str(tmp_path / "answers.sqlite")
    people = Tiring(planted[1], ("anna", "ben", "cleo"))
    monkeypatch.setattr("fastreid_al.answers.published.time", people)
    states: list[dict[str, object] | None] = [None]
    expected, spent = [], []
    for labels, asker in rounds(file, planted, people, count=3, window=6, wait=5.0, sheet=sheet):
        expected.append(labels)
        spent.append((asker.spent.questions, asker.spent.seconds, asker.spent.verdicts))
        states.append(asker.state_dict())
        # Late answers, to questions that people had before them when the round ended.
        people.left = 2
        for _ in range(8):
            people.serve(asker.ledger)
        people.left = people.each
    assert people.decided >= 3 * people.each
    with Ledger.open(file, write=False) as ledger:
        events = ledger.last_event()
    nobody = People(planted[1], seed=3)
    again = rounds(
        file,
        planted,
        nobody,
        count=3,
        window=6,
        wait=5.0,
        sheet=sheet,
        first=first,
        state=states[first],
    )
    for epoch, (labels, asker) in enumerate(again, first):
        assert torch.equal(labels, expected[epoch])
        assert (asker.spent.questions, asker.spent.seconds, asker.spent.verdicts) == spent[epoch]
        assert asker.state_dict() == states[epoch + 1]
    assert nobody.decided == 0
    with Ledger.open(file, write=False) as ledger:
        assert ledger.last_event() == events and ledger.integrity() == []


def test_a_repeated_epoch_says_which_answers_it_uses() -> None:
    ledger = Ledger.open("sqlite://")
    people = People(torch.arange(4))
    said: list[str] = []
    for _ in range(2):
        asker = Asker(people, ledger, run="run")
        asker.notice = said.append
        # A run also begins a round to learn what sets images apart.
        for _ in range(2):
            asker.begin(1)
        asker.ask(about(0, 1))
        asker.end()
    assert len(said) == 1 and "epoch 1" in said[0] and "event 1" in said[0]
    ledger.undo(1, "anna")
    asker = Asker(people, ledger, run="run")
    asker.notice = said.append
    asker.begin(1)
    assert len(said) == 2 and "taken back" in said[1]
    assert asker.ask(about(0, 1)) is DIFFERENT


def test_the_end_of_a_repeated_round_leaves_the_questions_of_later_rounds_open() -> None:
    class Two(People):
        def serve(self, ledger: Ledger) -> None:
            if self.decided == 2:
                raise QuitAsking
            super().serve(ledger)

    ledger = Ledger.open("sqlite://")
    asker = Asker(Two(torch.arange(8), ("anna",)), ledger, run="run", window=2)
    asker.begin(1)
    asker.ask(about(0, 1))
    asker.end()
    asker.begin(2)
    for pair in ((2, 3), (4, 5)):
        asker.offer(about(*pair))
    with pytest.raises(QuitAsking):
        asker.settle()
    before = open_questions(ledger)
    asker = Asker(Two(torch.arange(8), ("anna",)), ledger, run="run", window=2)
    asker.begin(1)
    asker.ask(about(0, 1))
    asker.end()
    assert before and open_questions(ledger) == before


class Reverses:
    """A person who answers one question after the other. Then somebody takes the third answer back,
    and the person answers the opposite.

    Args:
        identities: (n,) true identities.
        reversed_: Questions whose answer is the opposite of the truth.
        most: Decisions after which the person leaves.
        at: Decision at which the third answer is taken back.
    """

    name = "anna"

    def __init__(
        self, identities: Tensor, reversed_: set[int], most: int = 1000, at: int = 6
    ) -> None:
        self._identities = identities.tolist()
        self._reversed = reversed_
        self._left = most
        self._until_undo = at

    def serve(self, ledger: Ledger) -> None:
        if not self._left:
            raise QuitAsking
        if not self._until_undo:
            third = next(event for event in ledger.events() if event.id == 3)
            assert third.question is not None
            self._reversed.add(third.question)
            with Ledger.open(ledger.store.url, role="command") as command:
                command.undo(3, "boss")
        self._left -= 1
        self._until_undo -= 1
        with AnswerService(ledger, gold_share=0) as service:
            anna = service.person_named("anna")
            task = service.next_task(anna)
            if task is None:
                return
            first = self._identities[ledger.row_of(task.left)]
            verdicts = {}
            for item in task.items:
                is_same = first == self._identities[ledger.row_of(item.right)]
                verdicts[item.question] = (
                    SAME if is_same != (item.question in self._reversed) else DIFFERENT
                )
            token = f"{task.id}-{ledger.last_event()}"
            service.submit(anna, Submission(task.id, token, verdicts))


def ask_by_the_third(
    features: Tensor, labels: Tensor, asker: Asker, config: QuestionConfig
) -> None:
    """Ask other pairs if the third answer is "different", which depend on what is known."""
    for low in (0, 2):
        asker.ask_pair(low, low + 1)
    if asker.ask_pair(4, 5) is SAME:
        for low in range(6, 24, 2):
            asker.ask_pair(low, low + 1)
        return
    asker.ask_pair(30, 31)
    low = 32 if asker.closure.answered(6, 7) else 34
    asker.ask_pair(low, low + 1)
    asker.ask_pair(36, 37)


@pytest.mark.parametrize("most", [7, 8, 9])
def test_a_round_whose_answer_was_reversed_and_that_was_killed_asks_the_same_pairs(
    most: int, tmp_path: Path
) -> None:
    identities = torch.arange(40) // 2

    def finished(file: str, people: Sequence[Reverses]) -> list[object]:
        for each in people:
            with Ledger.open(file, keys(40)) as ledger, contextlib.suppress(QuitAsking):
                asker = Asker(each, ledger, run="run")
                refine(torch.eye(40), identities, asker, ask_by_the_third, epoch=1)
                assert asker.asked == len(ledger.answers())
        with Ledger.open(file, keys(40), write=False) as ledger:
            return [(a.left, a.right, a.verdict) for a in ledger.answers()]

    whole = finished(str(tmp_path / "a.sqlite"), [Reverses(identities, set())])
    reversed_: set[int] = set()
    people = [Reverses(identities, reversed_, most), Reverses(identities, reversed_, at=-1)]
    assert finished(str(tmp_path / "b.sqlite"), people) == whole
    assert len(reversed_) == 1 and (32, 33, SAME) in whole and len(whole) == 9


def test_a_late_vote_that_disagrees_counts_at_the_end_of_the_round() -> None:
    ledger = Ledger.open("sqlite://")
    service = AnswerService(ledger, gold_share=0, lease_seconds=100)

    class Late(People):
        """Ben holds a question that Anna answers, and answers it after it was applied."""

        def serve(self, ledger: Ledger) -> None:
            anna, ben = service.person_named("anna"), service.person_named("ben")
            if not self.decided:
                held = service.next_task(ben)
                assert held is not None
                self.held = held
                with ledger.store.writing() as connection:
                    connection.exec_driver_sql("UPDATE leases SET until = since - 1")
                task = service.next_task(anna)
                assert task is not None and task.id == held.id
                service.submit(anna, Submission(task.id, "anna", {task.id: SAME}))
            else:
                sent = Submission(self.held.id, "ben", {self.held.id: DIFFERENT})
                assert service.submit(ben, sent).status == "late"
                task = service.next_task(anna)
                assert task is not None
                service.submit(anna, Submission(task.id, "anna again", {task.id: SAME}))
            self.decided += 1

    asker = Asker(Late(torch.zeros(4)), ledger, run="run")
    asker.begin(1)
    assert asker.ask(about(0, 1)) is SAME
    # Within the round the verdict that settled the question stands.
    assert asker.ask(about(2, 3)) is SAME and asker.closure.verdict(0, 1) is SAME
    spent = asker.end()
    assert asker.closure.verdict(0, 1) is None and asker.closure.verdict(2, 3) is SAME
    assert spent.verdicts[SAME.value] == 1 == spent.verdicts[UNSURE.value]
    assert asker.closure.answers() == ledger.answers(as_of=asker.position)


def test_a_sheet_that_somebody_holds_is_not_published_again() -> None:
    ledger = Ledger.open("sqlite://")
    people = People(torch.arange(6))
    asker = Asker(people, ledger, run="run", wait="none", window=4, confirm_merges=1)
    service = AnswerService(ledger, gold_share=0)
    anna = service.person_named("anna")
    asker.begin(1)
    asker.offer_sheet([about(0, 1), about(0, 2)])
    held = service.next_task(anna)
    assert held is not None and len(held.items) == 2
    asker.end()
    asker.begin(2)
    # The clusters are larger now, so that a merge needs a second answer.
    asker.offer_sheet([about(0, 1, 5), about(0, 2, 3, 4)])
    assert open_questions(ledger) == {item.question for item in held.items}
    asker.end()
    verdicts = {item.question: SAME for item in held.items}
    service.submit(anna, Submission(held.id, "anna", verdicts))
    assert [answer.need for answer in ledger.answers()] == [2, 2]


def test_the_last_epoch_of_a_run_that_does_not_wait_publishes_nothing(
    planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    features, identities, labels = planted
    config = QuestionConfig(per_epoch=12, k_max_rule="root")
    with Ledger.open(str(tmp_path / "answers.sqlite"), keys(len(features))) as ledger:
        people = People(identities)
        asker = Asker(people, ledger, run="run", wait="none", window=8)
        asker.last_epoch = 3
        for epoch in (1, 2, 3):
            before = open_questions(ledger)
            refine(features, labels, asker, "gain", config, epoch)
            found = open_questions(ledger)
            if epoch < 3:
                assert found - before
            for _ in range(6):
                people.serve(ledger)
        # What was published for the last epoch stays open for people.
        assert found == before and found
        assert asker.asked == people.decided - sum(
            answer.event > asker.position for answer in ledger.answers()
        )
