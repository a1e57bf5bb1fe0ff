"""Questions of a round that people answer in any order."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch
from torch import Tensor

from fastreid_al.active import refine
from fastreid_al.active.partition import apply_answers
from fastreid_al.answers.asker import Asker, OutOfQuestions, RoundAgain
from fastreid_al.answers.closure import Closure
from fastreid_al.answers.database import QUESTIONS
from fastreid_al.answers.ledger import ImageKeys, Ledger
from fastreid_al.answers.question import Answer, Question, QuitAsking, Verdict
from fastreid_al.answers.queue import Entry, QuestionQueue, marks_of
from fastreid_al.answers.service import AnswerService, Person, Submission, Task
from fastreid_al.config import QuestionConfig
from tests.active.strategies.test_gain import crowded

SAME, DIFFERENT = Verdict.SAME, Verdict.DIFFERENT


class People:
    """People who answer from true identities, each at their own pace.

    Args:
        identities: (n,) true identities.
        names: Their names.
        seed: Decides who is next.
        most: Decisions after which all leave.
        wrong: Decisions, counted from 0, that are wrong and are taken back by the next one.
        lease_seconds: How long they hold a task.
    """

    name = "people"

    def __init__(
        self,
        identities: Tensor,
        names: tuple[str, ...] = ("anna", "ben"),
        seed: int = 0,
        most: int | None = None,
        wrong: tuple[int, ...] = (),
        lease_seconds: float = 90.0,
    ) -> None:
        self.people = len(names)
        self.decided = 0
        self.shown: list[tuple[str, int]] = []
        self._identities = identities.tolist()
        self._names = names
        self._draw = random.Random(seed)
        self._most = most
        self._wrong = set(wrong)
        self._lease_seconds = lease_seconds
        self._service: AnswerService | None = None
        self._held: dict[str, list[Task]] = {}

    def serve(self, ledger: Ledger) -> None:
        if self._most is not None and self.decided >= self._most:
            raise QuitAsking("everybody leaves")
        if self._service is None or self._service.name != ledger.name:
            self._service = AnswerService(ledger, gold_share=0.0, lease_seconds=self._lease_seconds)
            self._rows = ledger.row_of
        name = self._draw.choice(self._names)
        person = self._service.person_named(name)
        held = self._held.setdefault(name, [])
        task = self._service.next_task(person, ahead=len(held))
        if task is not None:
            held.append(task)
            self.shown.append((name, task.id))
        # Nobody answers in the order in which the tasks were given.
        if held and (len(held) == 2 or task is None):
            self._decide(person, held.pop(self._draw.randrange(len(held))))

    def _decide(self, person: Person, task: Task) -> None:
        assert self._service is not None
        is_wrong = self.decided in self._wrong
        left = self._identities[self._rows(task.left)]
        verdicts = {}
        for item in task.items:
            same = left == self._identities[self._rows(item.right)]
            verdicts[item.question] = SAME if same != is_wrong else DIFFERENT
        self._service.submit(person, Submission(task.id, f"{task.id}-{self.decided}", verdicts))
        self.decided += 1
        if is_wrong:
            again = self._service.undo(person)
            assert again is not None and again.id == task.id
            self._wrong.discard(self.decided - 1)
            self._decide(person, again)


@pytest.fixture
def planted() -> tuple[Tensor, Tensor, Tensor]:
    return crowded()


def keys(n: int) -> ImageKeys:
    return ImageKeys(
        "planted", [f"train/{i}.jpg" for i in range(n)], [f"{i:032x}" for i in range(n)]
    )


def rounds(
    file: str,
    planted: tuple[Tensor, Tensor, Tensor],
    people: People,
    strategy: str = "gain",
    count: int = 2,
    sheet: int = 1,
    state: dict[str, object] | None = None,
    first: int = 0,
    **settings: object,
) -> Iterator[tuple[Tensor, Asker]]:
    """Refine the clusters round after round, as a run does."""
    features, _, labels = planted
    config = QuestionConfig(per_epoch=40, sheet=sheet, k_max_rule="root")
    with Ledger.open(file, keys(len(features))) as ledger:
        asker = Asker(people, ledger, run="run", **settings)  # type: ignore[arg-type]
        if state is not None:
            asker.load_state_dict(state)
        for epoch in range(first, count):
            refined = refine(features, labels, asker, strategy, config, epoch + 1)
            yield refined.labels, asker


def last(found: Iterator[tuple[Tensor, Asker]]) -> Tensor:
    *_, (labels, _) = found
    return labels


@pytest.mark.parametrize("strategy", ["gain", "ucal", "spal", "random"])
@pytest.mark.parametrize("sheet", [1, 4])
def test_labels_do_not_depend_on_who_was_faster(
    strategy: str, sheet: int, planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    if sheet > 1 and strategy != "gain":
        pytest.skip("only gain makes sheets")
    found = []
    answers = []
    for seed in (0, 1, 2):
        file = str(tmp_path / f"{seed}.sqlite")
        names = ("anna", "ben", "cleo")[: 2 if seed else 3]
        people = People(planted[1], names, seed)
        found.append(last(rounds(file, planted, people, strategy, sheet=sheet, window=4)))
        with Ledger.open(file, write=False) as ledger:
            answers.append([(a.left, a.right, a.verdict) for a in ledger.answers()])
            assert ledger.integrity() == []
        # Nobody gets a question that somebody else has.
        assert len({task for _, task in people.shown}) == len(people.shown)
    assert len(answers[0]) >= 20
    assert answers[0] == answers[1] == answers[2]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("strategy", ["gain", "ucal", "spal", "random"])
def test_a_window_of_one_asks_what_an_annotator_who_answers_at_once_is_asked(
    strategy: str, planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    from fastreid_al.annotators import Oracle

    file = str(tmp_path / "people.sqlite")
    labels = last(rounds(file, planted, People(planted[1]), strategy, window=1))
    at_once = str(tmp_path / "oracle.sqlite")
    expected = last(rounds(at_once, planted, Oracle(planted[1]), strategy))  # type: ignore[arg-type]
    assert torch.equal(labels, expected)
    asked = []
    for url in (file, at_once):
        with Ledger.open(url, keys(len(labels)), write=False) as ledger:
            asked.append([(a.left, a.right, a.verdict) for a in ledger.answers()])
    assert asked[0] == asked[1]


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("most", [1, 23, 55])
def test_a_round_that_was_left_goes_on_to_the_same_labels(
    window: int, most: int, planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    whole = str(tmp_path / "whole.sqlite")
    expected = [labels for labels, _ in rounds(whole, planted, People(planted[1]), window=window)]
    file = str(tmp_path / "left.sqlite")
    state: dict[str, object] | None = None
    done: list[Tensor] = []
    people = People(planted[1], most=most, lease_seconds=4.0)
    with contextlib.suppress(QuitAsking):
        for labels, asker in rounds(file, planted, people, window=window):
            done.append(labels)
            state = asker.state_dict()
    assert len(done) < 2
    # Another setting of the window does not change the round that was left.
    again = People(planted[1], ("cleo", "ben"), seed=5)
    for labels, _ in rounds(file, planted, again, window=window, state=state, first=len(done)):
        done.append(labels)
    assert [torch.equal(a, b) for a, b in zip(expected, done, strict=True)] == [True, True]
    answers = []
    for url in (whole, file):
        with Ledger.open(url, keys(len(labels)), write=False) as ledger:
            answers.append([(a.left, a.right, a.verdict) for a in ledger.answers()])
    assert answers[0] == answers[1]


def test_an_answer_that_is_taken_back_is_asked_again_and_leaves_no_trace(
    planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    expected = last(rounds(str(tmp_path / "a.sqlite"), planted, People(planted[1]), window=4))
    people = People(planted[1], wrong=(2, 9, 30))
    file = str(tmp_path / "b.sqlite")
    assert torch.equal(last(rounds(file, planted, people, window=4)), expected)
    with Ledger.open(file, write=False) as ledger:
        assert sum(event.kind == "undo" for event in ledger.events()) == 3


def test_without_waiting_a_round_uses_the_answers_up_to_its_mark(
    planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    features, identities, labels = planted
    file = str(tmp_path / "answers.sqlite")
    people = People(identities)
    found = []
    for refined, asker in rounds(file, planted, people, count=4, wait="none", window=12):
        found.append(refined)
        assert not asker.is_waiting()
        # While the run trains, people decide some of what is published.
        for _ in range(14):
            people.serve(asker.ledger)
    assert people.decided > 20
    with Ledger.open(file, keys(len(features)), write=False) as ledger:
        found_marks = marks_of(ledger)
        assert [(m.run, m.epoch, m.window) for m in found_marks] == [
            ("run", epoch, 12) for epoch in (1, 2, 3, 4)
        ]
        marks = [mark.event or 0 for mark in found_marks]
        assert marks == sorted(marks) and marks[0] == 0 and marks[-1] > 20
        for event, refined in zip(marks, found, strict=True):
            closure = Closure.replay(ledger.answers(as_of=event))
            expected = apply_answers(features, labels, closure)
            expected = apply_answers(features, expected, closure)
            assert torch.equal(refined, expected)
    assert not torch.equal(found[0], found[-1])


def test_a_round_goes_on_when_nobody_answers_for_some_time(
    planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    class Absent(People):
        def serve(self, ledger: Ledger) -> None:
            if self.decided < 5:
                super().serve(ledger)
            else:
                time.sleep(0.01)

    people = Absent(planted[1])
    file = str(tmp_path / "answers.sqlite")
    for _, asker in rounds(file, planted, people, wait=0.2, window=4):
        assert asker.position == asker.ledger.last_event()
    assert people.decided == 5
    with Ledger.open(file, write=False) as ledger:
        assert len(ledger.answers()) == 5


def test_late_answers_count_in_the_next_round(
    planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    people = People(planted[1])
    file = str(tmp_path / "answers.sqlite")
    spent = []
    for _, asker in rounds(file, planted, people, count=3, wait="none", window=6):
        spent.append(asker.spent.questions)
        for _ in range(8):
            people.serve(asker.ledger)
    assert spent[0] == 0 and min(spent[1:]) > 0
    assert asker.asked == sum(spent)


def test_each_round_publishes_as_many_questions_as_it_may_ask() -> None:
    ledger = Ledger.open("sqlite://")
    asker = Asker(People(torch.arange(40)), ledger, wait="none", budget=14)  # type: ignore[arg-type]
    service = AnswerService(ledger, gold_share=0)
    anna = service.person_named("anna")
    pairs = iter([(2 * at, 2 * at + 1) for at in range(20)])
    published = []
    for epoch in (1, 2, 3):
        asker.begin(epoch, limit=6)
        while asker.questions_left():
            asker.offer(Question.about_images(*next(pairs), "merge", 0.5))
        published.append(len(asker.open_questions()))
        asker.end()
        while (task := service.next_task(anna)) is not None:
            sent = Submission(task.id, str(task.id), {task.id: DIFFERENT})
            service.submit(anna, sent)
    # The answers to all questions of a round come late; only the budget counts them for the next.
    assert published == [6, 6, 2] and asker.asked == 12


def test_the_total_of_a_round_is_right_where_answers_came_late() -> None:
    ledger = Ledger.open("sqlite://")
    asker = Asker(People(torch.arange(60)), ledger, wait="none")  # type: ignore[arg-type]
    service = AnswerService(ledger, gold_share=0)
    anna = service.person_named("anna")
    pairs = iter([(2 * a, 2 * a + 1) for a in range(30)])
    shown = []
    for epoch in (1, 2, 3):
        asker.begin(epoch, limit=6)
        while asker.questions_left():
            asker.offer(Question.about_images(*next(pairs), "merge", 0.5))
        asker.end()
        for _ in range(6):
            task = service.next_task(anna)
            assert task is not None
            shown.append((task.number, task.total, service.progress(anna).total))
            service.submit(anna, Submission(task.id, str(task.id), {task.id: DIFFERENT}))
    totals = [6] * 6 + [12] * 6 + [18] * 6
    assert shown == [(i + 1, total, total) for i, total in enumerate(totals)]


def test_while_waiting_a_signal_is_seen(
    planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    features, _, labels = planted

    class Nobody:
        name = "nobody"

        def serve(self, ledger: Ledger) -> None:
            raise AssertionError("the signal comes first")

    def stop() -> None:
        raise KeyboardInterrupt

    with Ledger.open(str(tmp_path / "a.sqlite"), keys(len(features))) as ledger:
        asker = Asker(Nobody(), ledger, run="run")
        asker.while_waiting = stop
        with pytest.raises(KeyboardInterrupt):
            refine(features, labels, asker, "gain", QuestionConfig(), 1)


def test_members_that_are_judged_are_answers_of_the_same_decision(
    planted: tuple[Tensor, Tensor, Tensor],
) -> None:
    from fastreid_al.annotators import Oracle

    features, identities, labels = planted
    config = QuestionConfig(per_epoch=15)
    asker = Asker(Oracle(identities), judge_members=True)
    refined, spent = refine(features, labels, asker, "gain", config, 1)
    assert spent.questions == 15 == spent.gestures
    assert spent.members > 15
    answers = asker.ledger.answers()
    assert len(answers) == spent.questions + spent.members
    closure = Closure.replay(answers)
    for answer in answers:
        same = identities[answer.left] == identities[answer.right]
        assert answer.verdict is (SAME if same else DIFFERENT)
        assert closure.verdict(answer.left, answer.right) is answer.verdict
        together = refined[answer.left] == refined[answer.right] != -1
        assert bool(together) == bool(same)


@pytest.mark.parametrize("window", [1, 4])
def test_a_round_with_judged_members_that_was_left_goes_on_to_the_same_labels(
    window: int, planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    from fastreid_al.annotators import Oracle

    class Leaves(Oracle):
        left = 9

        def judge(self, question: Question) -> object:  # type: ignore[override]
            self.left -= 1
            if self.left < 0:
                raise QuitAsking("leaves")
            return super().judge(question)

    identities = planted[1]
    make = partial(rounds, planted=planted, count=1, judge_members=True, window=window)
    expected = last(make(str(tmp_path / "a.sqlite"), people=Oracle(identities)))  # type: ignore[arg-type]
    file = str(tmp_path / "b.sqlite")
    with pytest.raises(QuitAsking):
        last(make(file, people=Leaves(identities)))  # type: ignore[arg-type]
    assert torch.equal(last(make(file, people=Oracle(identities))), expected)  # type: ignore[arg-type]


def test_two_people_decide_a_large_merge(
    planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    file = str(tmp_path / "answers.sqlite")
    people = People(planted[1])
    last(rounds(file, planted, people, window=4, second_vote=1))
    with Ledger.open(file, write=False) as ledger:
        by_pair: dict[tuple[object, object], set[int | None]] = {}
        for event in ledger.events():
            if event.reason == "merge":
                by_pair.setdefault((event.left, event.right), set()).add(event.person)
        # One person decides while the other has not come yet.
        alone = [pair for pair, voters in by_pair.items() if len(voters) < 2]
        assert len(by_pair) > 10 and len(alone) <= 4 and alone == list(by_pair)[: len(alone)]


def test_a_question_whose_answer_is_undone_from_outside_is_open_again(tmp_path: Path) -> None:
    file = str(tmp_path / "answers.sqlite")
    with Ledger.open(file, keys(6)) as ledger:
        queue = QuestionQueue(ledger, "run")
        queue.begin(1, 2)
        (number,) = queue.publish([Entry(Question.about_images(1, 4, "merge", 0.5))])
        assert queue.answers([number]) is None
        service = AnswerService(ledger, gold_share=0.0)
        anna = service.person_named("anna")
        task = service.next_task(anna)
        assert task is not None
        service.submit(anna, Submission(task.id, "token-of-1", {number: SAME}))
        [[answer]] = queue.answers([number]) or []
        assert (answer.left, answer.right, answer.verdict) == (1, 4, SAME)
        assert not queue.undone()
        with Ledger.open(file, role="command") as command:
            command.undo(answer.event, "ben")
        assert queue.undone() and not queue.undone()
        assert queue.answers([number]) is None
        assert [task.id for task in [service.next_task(anna)] if task] == [number]
        queue.withdraw()
        assert queue.answers([number]) == [[]]


def test_a_budget_that_ends_within_a_merge_leaves_no_open_question_behind(
    planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    features, identities, labels = planted
    config = QuestionConfig(per_epoch=17, k_max_rule="root")
    found = []
    answers = []
    for seed in range(3):
        people = People(identities, ("anna", "ben", "cleo", "dora")[: 2 + seed], seed)
        with Ledger.open(str(tmp_path / f"{seed}.sqlite"), keys(len(features))) as ledger:
            asker = Asker(people, ledger, run="run", window=6, confirm_merges=2)
            found.append(refine(features, labels, asker, "gain", config, 1).labels)
            answers.append([(a.left, a.right, a.verdict) for a in ledger.answers()])
            assert asker.asked == 17
    assert answers[0] == answers[1] == answers[2]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_answers_to_earlier_rounds_do_not_use_up_the_limit_of_a_round(
    planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    features, identities, labels = planted
    people = People(identities)
    config = QuestionConfig(per_epoch=6, k_max_rule="root")
    with Ledger.open(str(tmp_path / "answers.sqlite"), keys(len(features))) as ledger:
        asker = Asker(people, ledger, run="run", wait="none", budget=21)
        published = 0
        for epoch in (1, 2, 3, 4, 5):
            spent = refine(features, labels, asker, "gain", config, epoch).spent
            # Everything that was published before was answered.
            assert spent.questions == spent.gestures == published
            with ledger.store.reading() as connection:
                is_open = QUESTIONS.c.status == "open"
                count = sa.select(sa.func.count()).where(is_open)
                published = connection.execute(count).scalar_one()
            assert published == min(6, 21 - asker.asked)
            for _ in range(20):
                people.serve(ledger)
        assert asker.asked == 21


@pytest.mark.parametrize("wait", ["all", 5.0])
@pytest.mark.parametrize("first", [0, 1])
def test_rounds_that_are_repeated_from_an_older_checkpoint_are_the_same_rounds(
    wait: str | float, first: int, planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    file = str(tmp_path / "answers.sqlite")
    expected = []
    states: list[dict[str, object] | None] = [None]
    for labels, asker in rounds(file, planted, People(planted[1]), count=3, window=4, wait=wait):
        expected.append(labels)
        states.append(asker.state_dict())
    people = People(planted[1], seed=3)
    made = rounds(
        file, planted, people, count=3, window=4, wait=wait, first=first, state=states[first]
    )
    for epoch, (labels, asker) in enumerate(made, first):
        assert torch.equal(labels, expected[epoch])
        assert asker.state_dict() == states[epoch + 1]
    assert people.decided == 0


def test_a_round_that_is_repeated_differently_asks_nothing_that_later_rounds_asked(
    planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    file = str(tmp_path / "answers.sqlite")
    last(rounds(file, planted, People(planted[1]), count=3, window=4))
    people = People(planted[1], seed=3)
    *_, (_, asker) = rounds(file, planted, people, "random", count=3, window=4, budget=200, seed=1)
    with Ledger.open(file, keys(len(planted[0])), write=False) as ledger:
        answers = ledger.answers()
        assert len({(a.left, a.right) for a in answers}) == len(answers)
        # Each is counted once.
        assert asker.asked == len(answers)


def test_an_answer_that_is_taken_back_while_it_is_read_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    people = People(torch.tensor([0, 0]), ("anna",))
    asker = Asker(people, run="run")
    asker.begin(1)
    read = asker.ledger.answers_to

    def read_late(question: int, until: int) -> list[Answer]:
        monkeypatch.undo()
        with AnswerService(asker.ledger) as service:
            service.undo(service.person_named("anna"))
        return read(question, until)

    monkeypatch.setattr(asker.ledger, "answers_to", read_late)
    question = Question.about_images(0, 1, "split", 0.5)
    with pytest.raises(RoundAgain):
        asker.ask(question)
    asker.begin(1)
    assert asker.ask(question) is SAME


def test_a_question_that_a_person_has_before_them_is_not_asked_of_another(
    planted: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    features, identities, labels = planted
    people = People(identities)
    config = QuestionConfig(per_epoch=12, k_max_rule="root")
    with Ledger.open(str(tmp_path / "answers.sqlite"), keys(len(features))) as ledger:
        asker = Asker(people, ledger, run="run", wait="none", budget=30, window=8)
        for epoch in range(1, 9):
            refine(features, labels, asker, "gain", config, epoch)
            for _ in range(14):
                people.serve(ledger)
        pairs = [(a.left, a.right) for a in ledger.answers()]
        assert len(set(pairs)) == len(pairs) == 30


def test_a_pair_that_a_person_has_before_them_is_not_given_to_another_one() -> None:
    ledger = Ledger.open("sqlite://")
    asker = Asker(People(torch.arange(4)), ledger, wait="none", window=4)  # type: ignore[arg-type]
    service = AnswerService(ledger, gold_share=0)
    anna, ben = service.person_named("anna"), service.person_named("ben")

    def begin(epoch: int) -> None:
        asker.begin(epoch)
        for pair in ((0, 1), (2, 3)):
            if asker.can_ask(*pair):
                asker.offer(Question.about_images(*pair, "merge", 0.5))

    begin(1)
    held = service.next_task(anna)
    assert held is not None
    asker.end()
    begin(2)
    other = service.next_task(ben)
    assert other is not None and {other.left, other.items[0].right}.isdisjoint(
        {held.left, held.items[0].right}
    )
    assert service.next_task(service.person_named("cleo")) is None
    assert service.heartbeat(anna, held.id)
    service.submit(anna, Submission(held.id, "anna", {held.id: SAME}))
    asker.end()
    begin(3)
    assert asker.closure.verdict(held.left, held.items[0].right) is SAME


def test_a_merge_stays_confirmed_when_its_first_answer_is_given_again() -> None:
    class Wavers(People):
        def _decide(self, person: Person, task: Task) -> None:
            super()._decide(person, task)
            if self.decided == 2:
                assert self._service is not None
                self._service.undo(person, 1)

    people = Wavers(torch.zeros(3, dtype=torch.int64), ("anna",))
    asker = Asker(people, run="run", confirm_merges=1)
    groups = torch.tensor([0, 1]), torch.tensor([2])
    question = Question((0, 2), groups, "merge", 0.5, 1.0)
    asker.begin(1)
    with pytest.raises(RoundAgain):
        asker.ask(question)
    asker.begin(1)
    assert asker.ask(question) is SAME
    assert asker.end().questions == 2
    for as_of, verdict in ((None, SAME), (4, SAME), (3, None), (2, SAME)):
        closure = Closure.replay(asker.ledger.answers(as_of))
        assert closure.verdict(0, 2) is verdict, as_of


def test_time_of_people_counts_whatever_became_of_their_answers() -> None:
    """Answers that came late, were taken back, or are known before use up the minutes too."""
    now = [1000.0]
    with Ledger.open("sqlite://", keys(12)) as ledger:

        class Slow:
            """Anna takes 20 seconds for a question; Ben is late once, and she takes one back."""

            name = "slow"
            people = 1
            asked = 0

            def serve(self, ledger: Ledger) -> None:
                service = AnswerService(ledger, gold_share=0, clock=lambda: now[0])
                anna, ben = service.person_named("anna"), service.person_named("ben")
                if self.asked == 0:
                    # Ben takes the question and answers too late.
                    late = service.next_task(ben)
                    now[0] += 100
                    self._answer(service, anna)
                    assert late is not None
                    sent = Submission(late.id, "late", {late.id: SAME}, active_seconds=30.0)
                    assert service.submit(ben, sent).status == "late"
                elif self.asked == 1:
                    self._answer(service, anna)
                    assert service.undo(anna) is not None
                    self._answer(service, anna)
                else:
                    self._answer(service, anna)

            def _answer(self, service: AnswerService, person: Person) -> None:
                task = service.next_task(person)
                assert task is not None
                now[0] += 20
                token = f"t{self.asked}-{now[0]}"
                sent = Submission(task.id, token, {task.id: DIFFERENT}, active_seconds=20.0)
                service.submit(person, sent)
                self.asked += 1

        asker = Asker(Slow(), ledger, run="run", minutes=2.0, window=1)
        with contextlib.suppress(OutOfQuestions):
            while True:
                asker.begin(1)
                asked = 0
                # What was taken back begins the round again.
                with contextlib.suppress(RoundAgain):
                    for j in range(1, 12):
                        asker.ask(Question.about_images(0, j, "merge", 0.5))
                        asked += 1
        spent = asker.end()
        # 20 and 30 late, 20 taken back and 20 again, 20, 20: that is 130 seconds for four answers.
        assert (asked, spent.questions) == (4, 4)
        assert spent.seconds == asker.seconds == 130.0
