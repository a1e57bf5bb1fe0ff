"""Whatever people, clocks and restarts do, no question is lost, none is given to two people, and
every acknowledged answer is in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.answers.service import AnswerService, Outcome, Person, Submission, Task
from fastreid_al.errors import LedgerError
from tests.support.queues import Clock, decision, publish, statuses

LEASE = 90.0
PEOPLE = 3

person = st.integers(0, PEOPLE - 1)
verdict = st.sampled_from(list(Verdict))
ACTIONS = st.one_of(
    st.tuples(st.just("next"), person, st.integers(0, 2)),
    st.tuples(st.just("next"), person, st.integers(0, 2)),
    st.tuples(st.just("beat"), person),
    st.tuples(st.just("skip"), person),
    st.tuples(st.just("release"), person),
    st.tuples(st.just("answer"), person, verdict, st.booleans()),
    st.tuples(st.just("answer"), person, verdict, st.booleans()),
    st.tuples(st.just("repeat"), person),
    st.tuples(st.just("undo"), person),
    st.tuples(st.just("clock"), st.sampled_from([1.0, 40.0, 100.0, 700.0, -30.0, -5000.0])),
    st.tuples(st.just("restart")),
)


class Model:
    """People at a service, and what must be true of it."""

    def __init__(self, ledger: Ledger, questions: Sequence[int], votes: int) -> None:
        self.ledger = ledger
        self.clock = Clock(100_000.0)
        self.votes = votes
        self.questions = list(questions)
        self.service = self.start()
        self.people = [self.service.person_named(name) for name in "abc"[:PEOPLE]]
        #: Tasks of each person that they think they have, with the ends of the leases.
        self.tasks: list[dict[int, Task]] = [{} for _ in self.people]
        self.leases: dict[tuple[int, int], tuple[float, float]] = {}
        self.sent: list[list[tuple[Submission, Outcome]]] = [[] for _ in self.people]
        #: Events that were acknowledged, with their verdicts, and those that were taken back.
        self.acknowledged: dict[int, str] = {}
        self.undone: set[int] = set()

    def start(self) -> AnswerService:
        return AnswerService(self.ledger, lease_seconds=LEASE, gold_share=0, clock=self.clock)

    def holds(self, who: int, task: int) -> bool:
        since, until = self.leases.get((who, task), (0.0, 0.0))
        now = self.clock.now
        return since <= now < until <= now + 2 * LEASE + 1e-6

    def others_holding(self, who: int, task: int) -> int:
        return sum(self.holds(other, task) for other in range(PEOPLE) if other != who)

    def run(self, action: tuple[Any, ...]) -> None:
        getattr(self, action[0])(*action[1:])
        events = {event.id: event for event in self.ledger.events()}
        for event, said in self.acknowledged.items():
            assert events[event].verdict == said
            assert (events[event].undone_by is not None) == (event in self.undone)

    def next(self, who: int, ahead: int) -> None:
        held = {task for task in self.tasks[who] if self.holds(who, task)}
        task = self.service.next_task(self.people[who], ahead)
        if task is None:
            return
        if task.id not in held:
            assert self.others_holding(who, task.id) < self.votes
        self.tasks[who][task.id] = task
        now = self.clock.now
        since, _ = self.leases.get((who, task.id), (now, now))
        self.leases[who, task.id] = (since if task.id in held else now), now + LEASE

    def beat(self, who: int) -> None:
        for task in self.tasks[who]:
            held = self.holds(who, task)
            if self.service.heartbeat(self.people[who], task):
                assert held or self.others_holding(who, task) < self.votes
                now = self.clock.now
                since, _ = self.leases[who, task]
                self.leases[who, task] = min(since, now), now + LEASE

    def skip(self, who: int) -> None:
        for task in list(self.tasks[who])[:1]:
            self.service.skip(self.people[who], task)
            self.forget(who, task)

    def release(self, who: int) -> None:
        for task in list(self.tasks[who])[:1]:
            self.service.release(self.people[who], task)
            self.forget(who, task)

    def forget(self, who: int, task: int) -> None:
        self.tasks[who].pop(task, None)
        self.leases.pop((who, task), None)

    def answer(self, who: int, said: Verdict, newest: bool) -> None:
        if not self.tasks[who]:
            return
        task = list(self.tasks[who].values())[-1 if newest else 0]
        sent = decision(task, said, f"{who}/{len(self.sent[who])}", active_seconds=3.0)
        outcome = self.service.submit(self.people[who], sent)
        assert outcome.status in ("recorded", "late")
        assert len(outcome.events) == len(task.items)
        self.sent[who].append((sent, outcome))
        self.acknowledged.update(dict.fromkeys(outcome.events, said.value))
        self.forget(who, task.id)

    def repeat(self, who: int) -> None:
        for sent, outcome in self.sent[who][-2:]:
            last = self.ledger.last_event()
            again = self.service.submit(self.people[who], sent)
            assert (again.events, again.status) == (outcome.events, "repeated")
            assert self.ledger.last_event() == last

    def undo(self, who: int) -> None:
        last = [o.events for _, o in self.sent[who] if not self.undone & set(o.events)]
        task = self.service.undo(self.people[who])
        assert (task is not None) == bool(last)
        if task is not None:
            self.undone |= set(max(last))
            self.tasks[who][task.id] = task
            self.leases[who, task.id] = task.asked_at, self.clock.now + LEASE
            again = self.service.next_task(self.people[who])
            assert again is not None and again.id == task.id

    def clock_(self, seconds: float) -> None:
        self.clock.now += seconds

    def restart(self) -> None:
        self.service = self.start()

    def drain(self) -> None:
        """One person is left, and answers everything."""
        # Later than every clock that gave a lease.
        self.clock.now = 1e6
        who = self.people[0]
        for _ in range(3 * len(self.questions)):
            task = self.service.next_task(who)
            if task is None:
                break
            self.service.submit(who, decision(task, token=f"drain{task.id}{self.clock.now}"))
            self.clock.now += 1
        assert {status for status, _ in statuses(self.ledger)} <= {"answered", "review"}


def play(actions: Sequence[tuple[Any, ...]], votes: int, sheets: bool) -> None:
    with Ledger.open("sqlite://") as ledger:
        questions = publish(ledger, [(2 * i, 2 * i + 1) for i in range(4)], votes=votes)
        if sheets:
            questions += publish(ledger, [(20, 21), (20, 22)], sheet=True, votes=votes)
        model = Model(ledger, questions, votes)
        for action in actions:
            model.run(("clock_", *action[1:]) if action[0] == "clock" else action)
        settled = [event for status, event in statuses(ledger) if status == "answered"]
        assert all(event in model.acknowledged for event in settled)
        assert not set(settled) & model.undone
        if votes == 1:
            model.drain()
            assert {status for status, _ in statuses(ledger)} == {"answered"}
        else:
            model.drain()
        assert ledger.integrity() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTIONS, max_size=30), st.sampled_from([1, 2]), st.booleans())
def test_no_question_is_lost_or_given_twice(
    actions: list[tuple[Any, ...]], votes: int, sheets: bool
) -> None:
    play(actions, votes, sheets)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(st.lists(ACTIONS, max_size=60), st.sampled_from([1, 2]), st.booleans())
def test_no_question_is_lost_or_given_twice_in_long_interleavings(
    actions: list[tuple[Any, ...]], votes: int, sheets: bool
) -> None:
    play(actions, votes, sheets)


def test_what_a_person_answered_is_refused_a_second_time() -> None:
    with Ledger.open("sqlite://") as ledger:
        publish(ledger, [(0, 1)])
        service = AnswerService(ledger)
        anna: Person = service.person_named("anna")
        task = service.next_task(anna)
        assert task is not None
        service.submit(anna, decision(task, token="one"))
        with pytest.raises(LedgerError, match="task 1 is not with anna: it was answered"):
            service.submit(anna, decision(task, token="two"))
