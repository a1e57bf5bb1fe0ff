"""Questions of a queue that tests publish, and a clock that they set."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fastreid_al.answers.database import IMAGES, QUESTIONS
from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.answers.service import AnswerService, Person, Submission, Task

SAME, DIFFERENT, UNSURE = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE


class Clock:
    """A clock that stands until it is set."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def publish(
    ledger: Ledger,
    pairs: Sequence[tuple[int, int]],
    *,
    sheet: bool = False,
    groups: tuple[Sequence[int], Sequence[int]] = ((), ()),
    **more: object,
) -> list[int]:
    """Insert questions, as a trainer does; their images too.

    Args:
        ledger: The ledger.
        pairs: The two images of each.
        sheet: Whether they are shown together.
        groups: Further images of the groups of each.
        more: Other columns.
    """
    numbers = []
    with ledger.store.writing() as connection:
        known = set(connection.execute(IMAGES.select()).scalars())
        for image in sorted({i for pair in pairs for i in pair} | {i for g in groups for i in g}):
            if image not in known:
                values = {"id": image, "path": f"train/{image}.jpg", "digest": f"{image:032x}"}
                connection.execute(IMAGES.insert(), values)
        for left, right in pairs:
            values = {
                "run": "run",
                "epoch": 3,
                "left_id": left,
                "right_id": right,
                "left_images": json.dumps([left, *groups[0]]),
                "right_images": json.dumps([right, *groups[1]]),
                "reason": "split",
                "score": 1.0,
                "similarity": 0.5,
                "known_event": 0,
                "status": "open",
                "made_at": 0.0,
                "sheet": numbers[0] if sheet and numbers else None,
                **more,
            }
            key = connection.execute(QUESTIONS.insert(), values).inserted_primary_key
            assert key is not None
            numbers.append(key[0])
            if sheet and len(numbers) == 1:
                chosen = QUESTIONS.c.id == numbers[0]
                connection.execute(QUESTIONS.update().where(chosen), {"sheet": numbers[0]})
    return numbers


def decision(
    task: Task | int,
    verdict: Verdict | str = SAME,
    token: str | None = None,
    **more: object,
) -> Submission:
    """Return a submission with one verdict for every question of a task."""
    if isinstance(task, int):
        return Submission(task, token or f"t{task}", {task: verdict}, **more)  # type: ignore[arg-type]
    verdicts = {item.question: verdict for item in task.items}
    return Submission(task.id, token or f"t{task.id}", verdicts, **more)  # type: ignore[arg-type]


def answer_next(
    service: AnswerService, person: Person, verdict: Verdict = SAME, **more: object
) -> Task:
    """Let a person answer their next task, and return it."""
    task = service.next_task(person)
    assert task is not None
    given = decision(task, verdict, f"{person.id}/{task.id}/{task.asked_at}", **more)
    assert service.submit(person, given).status == "recorded"
    return task


def statuses(ledger: Ledger) -> list[tuple[str, int | None]]:
    """Return status and settling event of every question."""
    with ledger.store.reading() as connection:
        columns = QUESTIONS.c.status, QUESTIONS.c.settled_event
        query = QUESTIONS.select().with_only_columns(*columns).order_by(QUESTIONS.c.id)
        return [(row.status, row.settled_event) for row in connection.execute(query)]
