"""What the annotation service reads: figures of people, progress, earlier decisions, images."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import LedgerError, printable
from . import gold
from .agreement import ErrorEstimate
from .checks import errs_often
from .database import EVENTS, IMAGES, PEOPLE, QUESTIONS, SKIPS, read_meta
from .ledger import MEMBER
from .quality import gold_answers
from .question import Answer, Verdict
from .rounds import Outlook
from .tally import DECISIONS, Tally, Work
from .tasks import Decision, ImageEntry, Person, PersonFigures, Progress, Step

#: Keys of the table `meta` under which a trainer tells how far it is, as JSON.
_TOLD = ("progress", "outlook")
_MOST_IDS = 500
_MINE, _THEIRS = EVENTS.alias(), EVENTS.alias()
_TASK = sa.func.coalesce(QUESTIONS.c.sheet, QUESTIONS.c.id)


def figures(
    connection: Connection, tally: Tally, estimates: Mapping[int, ErrorEstimate]
) -> list[PersonFigures]:
    """Return what is known of each person's work, in the order of their numbers.

    Args:
        connection: A transaction.
        tally: How much each person answered.
        estimates: Estimated errors by number of the person.
    """
    asked: Counter[int] = Counter()
    right: Counter[int] = Counter()
    for answer in gold_answers(connection):
        asked[answer.person] += 1
        right[answer.person] += answer.said == answer.truth
    work = tally.of_people()
    agreement = _agreement(connection)
    found = []
    for row in connection.execute(sa.select(PEOPLE).order_by(PEOPLE.c.id)):
        done = work.get(row.id, Work())
        estimate = estimates.get(row.id)
        found.append(
            PersonFigures(
                row.name,
                row.role,
                done.answers,
                done.gestures,
                done.seconds,
                3600 * done.gestures / done.seconds if done.seconds > 0 else None,
                right[row.id],
                asked[row.id],
                agreement.get(row.id),
                None if estimate is None else estimate.rate,
                row.seen_at,
                row.disabled_at is not None,
                None if estimate is None else estimate.often,
                errs_often(estimate),
            )
        )
    return found


def _agreement(connection: Connection) -> dict[int, float]:
    """Share of the other people's votes on the same questions that agree with each person's."""
    mine, theirs = _MINE, _THEIRS
    both = (mine.c.question == theirs.c.question) & (mine.c.person != theirs.c.person)
    both &= (mine.c.left_id == theirs.c.left_id) & (mine.c.right_id == theirs.c.right_id)
    for side in (mine, theirs):
        both &= (side.c.kind == "answer") & (side.c.reason != MEMBER) & gold.in_force(side)
    agreed = sa.func.sum(sa.case((mine.c.verdict == theirs.c.verdict, 1), else_=0))
    query = sa.select(mine.c.person, agreed, sa.func.count()).where(both).group_by(mine.c.person)
    return {person: float(same) / count for person, same, count in connection.execute(query)}


def current_run(connection: Connection) -> str:
    """Return the run of the newest question that a run asked; empty without one."""
    # Questions that were imported, or whose answer was given, are of no run.
    newest = sa.select(sa.func.max(QUESTIONS.c.id)).where(QUESTIONS.c.run != "").scalar_subquery()
    found = connection.execute(sa.select(QUESTIONS.c.run).where(QUESTIONS.c.id == newest)).scalar()
    return found or ""


def count_given(connection: Connection, person: int, tally: Tally) -> int:
    """Return how many tasks a person answered or skipped."""
    skipped = sa.select(sa.func.count()).where(SKIPS.c.person == person)
    return tally.given(person) + connection.execute(skipped).scalar_one()


def count_remaining(connection: Connection, run: str) -> int:
    """Return how many tasks are left, as far as it is known."""
    settled = (QUESTIONS.c.run == run) & (QUESTIONS.c.status == "answered")
    settled &= QUESTIONS.c.gold.is_(None)
    answered = connection.execute(sa.select(sa.func.count()).where(settled)).scalar_one()
    remaining = _remaining(_told(connection, run), answered)
    if remaining is not None:
        return remaining
    wanted = (QUESTIONS.c.status == "open") & QUESTIONS.c.gold.is_(None)
    return connection.execute(sa.select(sa.func.count(_TASK.distinct())).where(wanted)).scalar_one()


def progress(
    connection: Connection, tally: Tally, person: Person, here: Collection[int]
) -> Progress:
    """Return how far the run of the newest question is.

    Args:
        connection: A transaction.
        tally: How much each person answered.
        person: Whose rate is wanted.
        here: Numbers of the people who are here.
    """
    run = current_run(connection)
    of_run = (QUESTIONS.c.run == run) & QUESTIONS.c.gold.is_(None)
    status = QUESTIONS.c.status
    query = sa.select(status, sa.func.count().label("number")).where(of_run).group_by(status)
    counts = {row.status: row.number for row in connection.execute(query)}
    newest = sa.select(sa.func.max(QUESTIONS.c.epoch)).where(of_run)
    work = tally.of_run(run)
    own = work.get(person.id, Work())
    others = [work[number] for number in here if number in work]
    rates = [3600 * done.answers / done.seconds for done in others if done.seconds > 0]
    told = _told(connection, run)
    total = _total(told)
    remaining = _remaining(told, counts.get("answered", 0))
    if remaining is None:
        remaining = counts.get("open", 0)
    outlook = told.get("outlook")
    outlook = outlook if isinstance(outlook, dict) else None
    return Progress(
        run=run,
        epoch=connection.execute(newest).scalar(),
        answered=counts.get("answered", 0),
        open=counts.get("open", 0),
        review=counts.get("review", 0),
        total=total,
        decided=own.gestures,
        rate=3600 * own.gestures / own.seconds if own.seconds > 0 else None,
        rate_of_all=sum(rates) if rates else None,
        eta_seconds=3600 * remaining / sum(rates) if rates else None,
        outlook=outlook,
        worth_stopping=_changes_little(outlook),
        told=told,
        known=own.known,
    )


def _changes_little(outlook: Mapping[str, Any] | None) -> bool | None:
    """Whether the next questions are expected to change little; None where unknown."""
    numbers: list[Any] = [(outlook or {}).get(name) for name in ("questions", "changed", "total")]
    if not outlook or not all(isinstance(number, int | float) for number in numbers):
        return None
    counts: Literal["pairs", "clusters"] = (
        "clusters" if outlook.get("counts") == "clusters" else "pairs"
    )
    questions, changed, total = numbers
    return not Outlook(questions, changed, total, counts).is_worth_asking


def _total(told: Mapping[str, Any]) -> int | None:
    """How many questions a run asks: its budget, else those up to the end of this round."""
    names = ("budget", "asked", "asked_in_round", "allowed_in_round")
    numbers = [told.get(name) for name in names]
    budget, asked, in_round, allowed = (n if type(n) is int else None for n in numbers)
    if budget is not None:
        return budget
    if asked is None or in_round is None or allowed is None:
        return None
    return asked - in_round + allowed


def _remaining(told: Mapping[str, Any], answered: int) -> int | None:
    """How many questions a run still asks; None where its trainer does not say.

    Args:
        told: What the trainer says. It counts a question when it takes the answer, which may be a
            moment later than the answer.
        answered: Questions of the run that are answered.
    """
    total, asked = _total(told), told.get("asked")
    return (
        max(0, total - max(asked, answered)) if total is not None and type(asked) is int else None
    )


def _told(connection: Connection, run: str) -> dict[str, Any]:
    """What the trainer of a run says of it."""
    meta = read_meta(connection)
    found: dict[str, Any] = {}
    for key in _TOLD:
        try:
            told = json.loads(meta.get(key, ""))
        except ValueError:
            continue
        if isinstance(told, dict) and told.get("run", run) == run:
            found |= {"outlook": told} if key == "outlook" else told
    return found


def skipped_at(person: int) -> sa.ScalarSelect[Any]:
    """Return when a person skipped the task of a question."""
    chosen = (SKIPS.c.question == _TASK) & (SKIPS.c.person == person)
    return sa.select(SKIPS.c.at).where(chosen).correlate(QUESTIONS).scalar_subquery()


def decisions(connection: Connection, person: Person, limit: int) -> list[Decision]:
    """Return the last decisions of a person, the newest first.

    Args:
        connection: A transaction.
        person: The person.
        limit: How many.
    """
    c = EVENTS.c
    own = (c.person == person.id) & EVENTS.c.kind.in_(DECISIONS) & c.gesture.is_not(None)
    newest = sa.func.max(c.id)
    chosen = sa.select(c.gesture).where(own).group_by(c.gesture).order_by(newest.desc())
    gestures = list(connection.execute(chosen.limit(limit)).scalars())
    undone = (~gold.in_force()).label("undone")
    query = (
        sa.select(EVENTS, QUESTIONS.c.sheet, undone)
        .select_from(EVENTS.outerjoin(QUESTIONS, QUESTIONS.c.id == c.question))
        .where(own & c.gesture.in_(gestures))
        .order_by(c.id)
    )
    of_gesture: dict[str, list[Any]] = defaultdict(list)
    for row in connection.execute(query):
        of_gesture[row.gesture].append(row)
    return [_decision(of_gesture[gesture]) for gesture in gestures]


def _decision(rows: Sequence[Any]) -> Decision:
    first = rows[0]
    main = [row for row in rows if row.reason != MEMBER]
    odd = [
        row.right_id
        for row in rows
        if row.reason == MEMBER and row.verdict == Verdict.DIFFERENT.value
    ]
    same = {
        row.right_id for row in rows if row.reason == MEMBER and row.verdict == Verdict.SAME.value
    }
    return Decision(
        first.gesture,
        first.question if first.sheet is None else first.sheet,
        tuple(row.id for row in rows),
        first.answered_at,
        first.left_id,
        tuple((row.right_id, row.verdict) for row in main),
        tuple(odd),
        bool(first.undone),
        first.comment,
        tuple(first.tags.split(",")) if first.tags else (),
        sum(max(0.0, row.answered_at - row.asked_at) for row in rows),
        tuple(image for image in odd if image in same),
    )


def images(connection: Connection, numbers: Sequence[int]) -> list[ImageEntry]:
    """Return images of the ledger, in the order of their numbers' list.

    Raises:
        LedgerError: The ledger has no such image.
    """
    found = {}
    for part in _parts(numbers):
        for row in connection.execute(sa.select(IMAGES).where(IMAGES.c.id.in_(part))):
            is_erased = row.erased_at is not None
            found[row.id] = ImageEntry(row.id, row.path, row.digest, is_erased)
    for number in numbers:
        if number not in found:
            raise LedgerError(f"the ledger has no image {number}")
    return [found[number] for number in numbers]


def image_at(connection: Connection, path: str) -> ImageEntry:
    """Return the image of a path.

    Raises:
        LedgerError: The ledger has no such image.
    """
    row = connection.execute(sa.select(IMAGES).where(IMAGES.c.path == path)).first()
    if row is None:
        raise LedgerError(f"the ledger has no image {printable(path)}")
    return ImageEntry(row.id, row.path, row.digest, row.erased_at is not None)


def erased(connection: Connection, numbers: Sequence[int]) -> set[int]:
    """Return those of some images that were erased."""
    found: set[int] = set()
    # There are few, if any.
    if connection.execute(
        sa.select(IMAGES.c.id).where(IMAGES.c.erased_at.is_not(None)).limit(1)
    ).first():
        for part in _parts(numbers):
            gone = IMAGES.c.id.in_(part) & IMAGES.c.erased_at.is_not(None)
            found |= set(connection.execute(sa.select(IMAGES.c.id).where(gone)).scalars())
    return found


def paths(connection: Connection, sides: tuple[Sequence[int], Sequence[int]]) -> list[list[str]]:
    """Return the paths of the images of two sides."""
    known = {entry.id: entry.path for entry in images(connection, [*sides[0], *sides[1]])}
    return [[known[image] for image in side] for side in sides]


def steps(
    connection: Connection, votes: Mapping[int, tuple[Verdict, Sequence[int]] | None]
) -> list[Step]:
    """Return the answers of some events, in their order.

    Args:
        connection: A transaction.
        votes: By event the verdict of most people on its question, with the events that say it.
    """
    c = EVENTS.c
    columns = (
        *(c.id, c.left_id, c.right_id, c.verdict, c.annotator, c.answered_at, c.epoch),
        *(c.run, c.reason),
    )
    wanted = {*votes, *(event for vote in votes.values() if vote for event in vote[1])}
    found = {}
    for part in _parts(sorted(wanted)):
        for row in connection.execute(sa.select(*columns).where(c.id.in_(part))):
            found[row.id] = Step(*row)
    chain = []
    for event, vote in votes.items():
        step = found[event]
        verdict, said = (step.verdict, [event]) if vote is None else (vote[0].value, vote[1])
        people = dict.fromkeys(found[number].annotator for number in said)
        chain.append(step._replace(verdict=verdict, people=tuple(people)))
    return chain


def imagined(left: int, right: int, verdict: Verdict) -> Answer:
    """Return an answer that nobody gave."""
    return Answer(2**62, left, right, verdict)


def _parts(numbers: Sequence[int]) -> list[Sequence[int]]:
    """Parts of a list that are short enough for one statement."""
    return [numbers[i : i + _MOST_IDS] for i in range(0, len(numbers), _MOST_IDS)]
