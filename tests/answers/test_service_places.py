"""The annotation service loses nothing when it is killed, used by threads, or cut off from its
server, and works in every database.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.service import AnswerService, Outcome, Person
from fastreid_al.errors import LedgerError
from tests.support.children import forked, kill
from tests.support.ledgers import put
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


def test_a_second_server_is_refused_and_a_trainer_is_not(file: str) -> None:
    with Ledger.open(file) as trainer, AnswerService.open(file) as service:
        publish(trainer, [(0, 1), (2, 3)])
        with pytest.raises(LedgerError, match="is in use by process") as caught:
            AnswerService.open(file)
        assert "\n" not in str(caught.value)
        anna = service.person_named("anna")
        answer_next(service, anna)
        assert [answer.event for answer in trainer.answers()] == [1]
        put(trainer, 0, 2, DIFFERENT)
        assert answer_next(service, anna).id == 2
        assert [answer.event for answer in trainer.answers()] == [1, 3, 2]
    with pytest.raises(LedgerError, match="is closed"):
        service.people()
    AnswerService.open(file).close()


def test_people_and_undo_survive_a_restart(file: str) -> None:
    with Ledger.open(file) as trainer:
        publish(trainer, [(0, 1), (2, 3)])
        with AnswerService.open(file) as service:
            anna, token = service.add_person("anna", "review")
            answer_next(service, anna)
        with AnswerService.open(file) as service:
            assert service.person_of_token(token) == anna == service.person_named("anna")
            task = service.undo(anna)
            assert task is not None and task.id == 1
            assert statuses(trainer) == [("open", None), ("open", None)]
            assert service.undo(anna) is None


def submit_until_killed(file: str, write: int) -> None:
    with AnswerService.open(file, gold_share=0) as service:
        anna = service.person_named("anna")
        while (task := service.next_task(anna)) is not None:
            given = decision(task, SAME, f"t{task.id}", all_confirmed=True)
            events = service.submit(anna, given).events
            os.write(write, f"{task.id} {events[0]} {events[-1]}\n".encode())


@pytest.mark.parametrize("lines", [1, 25, 60])
def test_acknowledged_decisions_survive_a_kill_and_none_is_half_written(
    lines: int, file: str
) -> None:
    with Ledger.open(file) as trainer:
        pairs = [(2 * i, 2 * i + 1) for i in range(200)]
        publish(trainer, pairs, groups=([1000, 1001], [1002]))
        read, write = os.pipe()
        child = forked(lambda: submit_until_killed(file, write))
        os.close(write)
        with os.fdopen(read) as pipe:
            seen = [pipe.readline().split() for _ in range(lines)]
            kill(child)
            seen += [line.split() for line in pipe.read().splitlines(keepends=True) if "\n" in line]
        events = {event.id: event for event in trainer.events()}
        assert len(events) % 4 == 0
        for question, first, last in seen:
            assert [events[e].question for e in range(int(first), int(last) + 1)] == [
                int(question)
            ] * 4
        settled = [event for status, event in statuses(trainer) if status == "answered"]
        assert settled == list(range(4, len(events) + 1, 4))
        with AnswerService.open(file, gold_share=0) as service:
            anna = service.person_named("anna")
            question, first, last = (int(word) for word in seen[-1])
            again = service.submit(anna, decision(question))
            assert again.status == "repeated"
            assert (again.events[0], again.events[-1]) == (first, last)
            assert answer_next(service, anna).id == len(settled) + 1
        assert trainer.integrity() == []


@pytest.mark.parametrize("place", ["file", "memory"])
def test_threads_answer_every_question_once(place: str, file: str) -> None:
    with Ledger.open(file if place == "file" else "sqlite://") as ledger:
        publish(ledger, [(2 * i, 2 * i + 1) for i in range(60)])
        service = AnswerService(ledger, gold_share=0)
        failures: list[BaseException] = []

        def work(person: Person) -> None:
            try:
                while (task := service.next_task(person)) is not None:
                    service.heartbeat(person, task.id)
                    service.progress(person)
                    service.submit(person, decision(task))
            except BaseException as error:
                failures.append(error)

        people = [service.person_named(f"p{number}") for number in range(4)]
        threads = [threading.Thread(target=work, args=(person,)) for person in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert sorted(event.question or 0 for event in ledger.events()) == list(range(1, 61))


@pytest.fixture(params=["file", "server"])
def place(request: pytest.FixtureRequest, file: str) -> str:
    """A file, or the URL of a database of a server."""
    return file if request.param == "file" else request.getfixturevalue("database")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def trainer(place: str) -> Iterator[Ledger]:
    with Ledger.open(place) as opened:
        yield opened


def test_every_method_works_in_every_database(place: str, trainer: Ledger, clock: Clock) -> None:
    publish(trainer, [(0, 1), (2, 3)], groups=([10, 11], [20]), votes=2)
    publish(trainer, [(4, 5), (4, 6)], sheet=True)
    with AnswerService.open(place, gold_share=0, clock=clock) as service:
        anna = service.person_named("anna", "admin")
        bert, token = service.add_person("bert")
        assert service.person_of_token(token) == bert
        tasks = {who: service.next_task(who) for who in (anna, bert)}
        outcomes: list[Outcome] = []
        clock.now += 5
        for who, task in tasks.items():
            assert task is not None and task.id == 1
            said = decision(task, SAME, who.name, odd=[11], active_seconds=4, comment="né\0e\ud800")
            outcomes.append(service.submit(who, said))
        assert outcomes[0].effect is not None and outcomes[0].effect.pairs == 1
        assert statuses(trainer)[0] == ("answered", 4)
        task = service.next_task(anna)
        assert task is not None and service.heartbeat(anna, task.id)
        service.skip(anna, task.id)
        sheet = service.next_task(anna)
        assert sheet is not None and (sheet.id, sheet.sheet, len(sheet.items)) == (3, True, 2)
        service.release(anna, sheet.id)
        assert service.undo(bert) is not None
        assert statuses(trainer)[0] == ("open", None)
        assert service.settle() == 0
        figures = service.people()
        assert [(f.name, f.answers, f.gestures, f.seconds) for f in figures] == [
            ("anna", 1, 1, 4.0),
            ("bert", 0, 0, 0.0),
        ]
        assert [d.undone for d in service.mine(bert)] == [True]
        assert service.mine(anna)[0].comment == "né\0e\ud800"
        progress = service.progress(anna)
        assert (progress.answered, progress.open, progress.run) == (0, 4, "run")
        assert [entry.id for entry in service.members(1, 0).images] == [0, 10, 11]
        assert service.effect(1).joined == (1, 1)
        assert [step.annotator for step in service.proof(0, 1)] == ["anna"]
        service.erase(11, anna, "asked to")
        assert service.image(11).erased
        service.disable(bert)
        assert service.person_of_token(token) is None
        assert trainer.integrity() == []


def test_known_answers_are_given_in_every_database(
    place: str, trainer: Ledger, clock: Clock
) -> None:
    publish(trainer, [(0, 1), (2, 3)], votes=2)
    with AnswerService.open(place, gold_share=0, clock=clock) as service:
        people = [service.person_named(name) for name in ("anna", "bert")]
        for who in people:
            service.heartbeat(who, 1)
        for who in people:
            answer_next(service, who)
    with AnswerService.open(place, gold_share=1, clock=clock) as service:
        carl = service.person_named("carl")
        assert answer_next(service, carl, UNSURE).id == 1
        assert [event.kind for event in trainer.events()] == ["answer", "answer", "gold"]
        assert answer_next(service, carl).id == 2


def test_a_lost_connection_is_opened_again(database: str) -> None:
    import psycopg

    with Ledger.open(database) as trainer:
        publish(trainer, [(0, 1), (2, 3)])
        with AnswerService.open(database) as service:
            anna = service.person_named("anna")
            task = service.next_task(anna)
            assert task is not None
            with psycopg.connect(database, autocommit=True) as other:
                other.execute(
                    "SELECT pg_terminate_backend(l.pid) FROM pg_locks l "
                    "JOIN pg_stat_activity a USING (pid) "
                    "WHERE l.locktype = 'advisory' AND a.datname = current_database() "
                    "ORDER BY a.backend_start DESC LIMIT 1"
                )
            with pytest.raises(LedgerError, match="the connection was lost"):
                service.submit(anna, decision(task))
            assert service.submit(anna, decision(task)).status == "recorded"
            assert answer_next(service, anna).id == 2
            with pytest.raises(LedgerError, match="is in use by"):
                AnswerService.open(database)
        assert [answer.event for answer in trainer.answers()] == [1, 2]


def test_known_sheets_are_given_in_every_database(
    place: str, trainer: Ledger, clock: Clock
) -> None:
    publish(trainer, [(0, 1), (0, 2)], sheet=True, gold="same")
    publish(trainer, [(4, 5), (4, 6)], sheet=True)
    with AnswerService.open(place, gold_share=1, clock=clock) as service:
        anna = service.person_named("anna")
        clock.now += 5
        assert answer_next(service, anna, DIFFERENT, active_seconds=60.0).id == 1
        assert service.next_task(anna).id == 3  # type: ignore[union-attr]
        (figures,) = service.people()
        assert (figures.gold_right, figures.gold_asked, figures.seconds) == (0, 2, 0.0)
