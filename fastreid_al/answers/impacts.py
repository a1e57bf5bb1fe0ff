"""What each answer changes when it is given, from the answers about the same images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from itertools import combinations
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .closure import Closure, Effect
from .database import EVENTS, QUESTIONS
from .ledger import MEMBER
from .question import Answer, Verdict
from .tasks import Impact

#: A question and a pair of images, or an event that is no answer of a queue.
_Key = tuple[int, ...]
_VERDICTS = {verdict.value: verdict for verdict in Verdict}
_COLUMNS = (
    *(EVENTS.c.id, EVENTS.c.kind, EVENTS.c.left_id, EVENTS.c.right_id, EVENTS.c.verdict),
    *(EVENTS.c.need, EVENTS.c.confirms, EVENTS.c.undoes, EVENTS.c.question, EVENTS.c.run),
    EVENTS.c.reason,
    QUESTIONS.c.known_event,
)


class AnswerGraph:
    """The answers of a ledger by its numbered images, kept up to date.

    What an answer changes depends on few others: those about the images that "same" answers connect
    with the pair. A closure is made of these alone, so that the time does not grow with the ledger.

    As in `Ledger.answers`, what confirmed a merge goes on to do so where the first answer of the
    merge was undone and its pair was answered again in the run.

    An answer takes about 1 KB.
    """

    def __init__(self) -> None:
        self._last = 0
        #: Answers in force by question and pair, several where several people answered.
        self._votes: dict[_Key, dict[int, Answer]] = {}
        self._keys: dict[int, _Key] = {}
        self._of_image: dict[int, set[_Key]] = defaultdict(set)
        #: Answers about a merge that further answers confirm.
        self._of_merge: dict[int, set[_Key]] = defaultdict(set)
        #: First answers of merges that were undone, by event.
        self._gone: dict[int, Answer] = {}

    def catch_up(self, connection: Connection, wanted: Collection[int] = ()) -> dict[int, Impact]:
        """Take in the events since the last call.

        Args:
            connection: A transaction that reads.
            wanted: Events whose impact is returned.

        Returns:
            The impact of the wanted ones among these events.
        """
        kinds = EVENTS.c.kind.in_(("answer", "undo"))
        joined = EVENTS.outerjoin(QUESTIONS, QUESTIONS.c.id == EVENTS.c.question)
        query = sa.select(*_COLUMNS).select_from(joined).where(kinds & (EVENTS.c.id > self._last))
        rows = connection.execute(query.order_by(EVENTS.c.id)).all()
        found: dict[int, Impact] = {}
        for row in rows:
            if row.kind == "undo":
                self._remove(row.undoes)
            else:
                answer = _answer(row)
                if answer is not None:
                    self._add(_key(row), answer)
                if row.id in wanted:
                    found[row.id] = self.impact(row.id)
            self._last = row.id
        return found

    def impact(self, event: int) -> Impact:
        """Return what an answer in force changed, given the answers in force before it."""
        key = self._keys.get(event)
        if key is None:
            return Impact(Effect.UNUSABLE)
        votes = self._votes[key]
        answer = votes[event]
        before = [vote.verdict for number, vote in votes.items() if number < event]
        earlier = self.closure_of(answer.left, answer.right, before=event)
        if not before:
            return impact_of(earlier, answer)
        verdict = _most([*before, answer.verdict])
        if verdict is _most(before):
            # A further vote on a question adds nothing where the verdict of most people stays.
            return Impact(Effect.KNOWN)
        later = self.closure_of(answer.left, answer.right, before=event + 1)
        return _change(earlier, later, answer._replace(verdict=verdict), votes)

    def imagined(self, connection: Connection, events: Collection[int]) -> Impact | None:
        """Return what a decision would change if nothing were known of its pair.

        A question whose answer is known is answered like any other. What the answers to it, and
        those that imply its answer, brought is left out, as if they had not been given.

        Args:
            connection: A transaction that reads.
            events: Events of the decision, that of the pair first.
        """
        joined = EVENTS.outerjoin(QUESTIONS, QUESTIONS.c.id == EVENTS.c.question)
        query = sa.select(*_COLUMNS).select_from(joined).where(EVENTS.c.id.in_(events))
        rows = connection.execute(query.order_by(EVENTS.c.id)).all()
        answers = [answer for answer in map(_answer, rows) if answer is not None]
        if not answers:
            return None
        first = answers[0]
        others = {image for answer in answers for image in (answer.left, answer.right)}
        closure = self.undecided(first.left, first.right, rows[0].question, *others)
        return together(impact_of(closure, answer._replace(order=None)) for answer in answers)

    def undecided(self, left: int, right: int, question: int, *others: int) -> Closure:
        """Return the closure of some images without the answers that decide about a pair.

        Those to the question itself are left out, and the youngest of each chain that still
        decides, so that the rest is what an earlier person could have known.

        Args:
            left: One image of the pair.
            right: The other image of the pair.
            question: The question about the pair.
            others: Further images that matter.
        """
        around = self._around({left, right, *others})
        used = {key for key in around if not _is_of(key, question)}
        while True:
            closure = self._replay(used)
            chain = closure.chain(left, right)
            if not chain:
                return closure
            used.discard(self._keys[max(chain)])

    def without(self, left: int, right: int, question: int) -> Closure:
        """Return the closure of two images without the answers to one question.

        Args:
            left: One image.
            right: The other image.
            question: The question.
        """
        around = self._around((left, right))
        return self._replay(key for key in around if not _is_of(key, question))

    def voters(self, event: int) -> tuple[Verdict, list[int]] | None:
        """Return the verdict of most people on the question of an answer in force, with the events
        that say it; None where there is no such answer.

        Args:
            event: Event of one of the votes.
        """
        key = self._keys.get(event)
        if key is None:
            return None
        votes = self._votes[key]
        verdict = _most([vote.verdict for vote in votes.values()])
        return verdict, [number for number, vote in votes.items() if vote.verdict is verdict]

    def closure_of(
        self, *images: int, before: int | None = None, by_place: bool = False
    ) -> Closure:
        """Return the closure of the answers that bear on some images.

        Args:
            images: The images.
            before: Only answers with lower events count; all when not given.
            by_place: Apply answers in the order of their questions, as a trainer does, and not in
                the order in which they were given.
        """
        return self._replay(self._around(images), before, by_place)

    def _replay(
        self, keys: Iterable[_Key], before: int | None = None, by_place: bool = False
    ) -> Closure:
        """The closure of the answers of some keys."""
        answers = []
        for key in keys:
            answer = self._combined(key, before)
            if answer is not None:
                answers.append(answer if by_place else answer._replace(order=None))
        return Closure.replay(sorted(answers, key=lambda answer: answer.place))

    def _around(self, images: Collection[int]) -> set[_Key]:
        """Keys of the answers that bear on some images."""
        waiting = list(images)
        seen = set(waiting)
        found: set[_Key] = set()
        while waiting:
            for key in self._of_image.get(waiting.pop(), ()):
                if key in found:
                    continue
                found.add(key)
                reached = {i for linked in self._linked(key) for i in linked}
                waiting += reached - seen
                seen |= reached
        return found

    def _linked(self, key: _Key) -> Iterable[tuple[int, int]]:
        """Pairs whose answers decide together whether their images are the same."""
        for vote in self._votes[key].values():
            if vote.verdict is Verdict.SAME:
                yield vote.left, vote.right
            if vote.verdict is Verdict.SAME or vote.confirms is not None:
                for merge in self._names_of(self._merge_of(vote)):
                    for other in self._of_merge.get(merge, ()):
                        for confirming in self._votes[other].values():
                            yield confirming.left, confirming.right

    def _merge_of(self, answer: Answer) -> int:
        """The event that stands for the first answer of the merge that an answer is about."""
        merge = _merge(answer)
        first = self._gone.get(merge)
        if first is None:
            return merge
        found = min(self._again(first), key=lambda vote: vote.event, default=None)
        return merge if found is None else _merge(found)

    def _again(self, first: Answer) -> Iterator[Answer]:
        """The answers in force about the pair of an answer that was undone, of the same run."""
        pair = {first.left, first.right}
        for key in self._of_image[first.left] & self._of_image[first.right]:
            for vote in self._votes[key].values():
                is_same = {vote.left, vote.right} == pair and vote.run == first.run
                if is_same and not vote.is_member:
                    yield vote

    def _names_of(self, merge: int) -> set[int]:
        """The events by which answers name a merge: its first answer, and those it replaced."""
        gone = {event for event, first in self._gone.items() if self._merge_of(first) == merge}
        return {merge} | gone

    def _combined(self, key: _Key, before: int | None) -> Answer | None:
        """The answer of all people to a question, as `ledger.combined` makes it."""
        votes = [v for e, v in self._votes[key].items() if before is None or e < before]
        if not votes:
            return None
        first = votes[0]
        confirms = None if first.confirms is None else self._merge_of(first)
        verdict = _most([vote.verdict for vote in votes])
        return first._replace(verdict=verdict, confirms=confirms)

    def _add(self, key: _Key, answer: Answer) -> None:
        self._votes.setdefault(key, {})[answer.event] = answer
        self._keys[answer.event] = key
        self._of_image[answer.left].add(key)
        self._of_image[answer.right].add(key)
        if answer.need > 1 or answer.confirms is not None:
            self._of_merge[_merge(answer)].add(key)

    def _remove(self, event: int) -> None:
        key = self._keys.pop(event, None)
        if key is None:
            return
        answer = self._votes[key].pop(event)
        if answer.need > 1 and answer.confirms is None:
            self._gone[event] = answer
        if self._votes[key]:
            return
        del self._votes[key]
        for image in (answer.left, answer.right):
            self._of_image[image].discard(key)
        self._of_merge[_merge(answer)].discard(key)


def impact_of(closure: Closure, answer: Answer) -> Impact:
    """Add an answer to a closure, and return what it changed.

    Answers of its merge that begin to count with it are part of the change.
    """
    members = closure.components()
    roots = closure.root(answer.left), closure.root(answer.right)
    sizes = [1 if root is None else len(members[root]) for root in roots]
    contradictions = len(closure.contradictions)
    same_pairs = _same_pairs(closure)
    effect = closure.add(answer)
    fresh = closure.contradictions[contradictions:]
    against = tuple(dict.fromkeys(event for found in fresh for event in found.against))
    joined, pairs, apart, cuts = (0, 0), 0, 0, 0
    if answer.verdict is Verdict.SAME:
        pairs = _same_pairs(closure) - same_pairs
        were_apart = roots[0] is None or roots[0] != roots[1]
        if pairs and were_apart and closure.root(answer.left) == closure.root(answer.right):
            joined = sizes[0], sizes[1]
    elif effect is Effect.CONTRADICTION:
        cuts = sum(len(found.set_aside) for found in fresh)
    elif effect is Effect.NEW:
        apart = sizes[0] * sizes[1]
    return Impact(effect, joined, pairs, apart, cuts, against)


def _same_pairs(closure: Closure) -> int:
    """Pairs of images in one component."""
    return sum(len(m) * (len(m) - 1) // 2 for m in closure.components().values())


def _change(before: Closure, after: Closure, answer: Answer, votes: Collection[int]) -> Impact:
    """Return what changes where a further person changes the verdict of most people.

    Args:
        before: Closure with the verdict of those who answered before.
        after: Closure with the verdict of all.
        answer: The pair, and the verdict of all.
        votes: Events of the votes on the question.
    """
    left, right = answer.left, answer.right
    # Images that both closures have in one component behave alike.
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for image in _component(before, left, right) | _component(after, left, right):
        # An image that a closure does not know is a component of its own.
        places = (before.root(image), after.root(image))
        first, second = (-1 - image if place is None else place for place in places)
        alike[first, second].append(image)
    pairs = apart = lost = 0
    for some, others in combinations(alike.values(), 2):
        was, now = (closure.verdict(some[0], others[0]) for closure in (before, after))
        if was is now:
            continue
        number = len(some) * len(others)
        pairs += number * (now is Verdict.SAME)
        apart += number * (now is Verdict.DIFFERENT)
        lost += number * (now is None)
    known = set(before.contradictions)
    fresh = [found for found in after.contradictions if found not in known]
    against = dict.fromkeys(e for found in fresh for e in (*found.against, found.event))
    set_aside = [{e for c in k.contradictions for e in c.set_aside} for k in (before, after)]
    joined = (0, 0)
    if pairs and after.verdict(left, right) is Verdict.SAME:
        joined = len(_component(before, left)), len(_component(before, right))
    if fresh:
        effect = Effect.CONTRADICTION
    elif pairs or apart:
        effect = Effect.NEW
    elif answer.verdict not in (Verdict.SAME, Verdict.DIFFERENT):
        effect = Effect.OPEN
    else:
        pending = after.verdict(left, right) is None
        effect = Effect.PENDING if pending else Effect.KNOWN
    return Impact(
        effect,
        joined,
        pairs,
        apart,
        len(set_aside[1] - set_aside[0] - set(votes)),
        tuple(event for event in against if event not in votes),
        lost,
    )


def _component(closure: Closure, *images: int) -> set[int]:
    """The images that are known to be the same as one of some images, with these."""
    found = set(images)
    for image in images:
        root = closure.root(image)
        if root is not None:
            found.update(closure.components()[root])
    return found


def together(impacts: Iterable[Impact]) -> Impact | None:
    """Return the impact of a decision from those of its events, the pair's verdict first."""
    every = list(impacts)
    if not every:
        return None
    contradicts = any(impact.effect is Effect.CONTRADICTION for impact in every)
    joined = next((impact.joined for impact in every if impact.pairs), (0, 0))
    against = dict.fromkeys(event for impact in every for event in impact.against)
    return Impact(
        Effect.CONTRADICTION if contradicts else every[0].effect,
        joined,
        sum(impact.pairs for impact in every),
        sum(impact.apart for impact in every),
        sum(impact.cuts for impact in every),
        tuple(against),
        sum(impact.lost for impact in every),
    )


def _answer(row: Any) -> Answer | None:
    """Return the answer of an event; None where it is damaged."""
    verdict = _VERDICTS.get(row.verdict)
    if verdict is None or not (type(row.left_id) is type(row.right_id) is type(row.need) is int):
        return None
    if not isinstance(row.confirms, int | None):
        return None
    order = None if row.known_event is None else (row.known_event, row.question)
    need = max(1, row.need)
    return Answer(
        row.id,
        row.left_id,
        row.right_id,
        verdict,
        need,
        row.confirms,
        run=row.run or "",
        order=order,
        is_member=row.reason == MEMBER,
    )


def _key(row: Any) -> _Key:
    if row.question is None:
        return (row.id,)
    return row.question, min(row.left_id, row.right_id), max(row.left_id, row.right_id)


def _is_of(key: _Key, question: int) -> bool:
    """Whether a key is that of an answer to a question."""
    return len(key) > 1 and key[0] == question


def _merge(answer: Answer) -> int:
    """Return the first answer of the merge that an answer is about."""
    return answer.event if answer.confirms is None else answer.confirms


def _most(verdicts: list[Verdict]) -> Verdict:
    """Return the verdict of most people, "unsure" where several were given equally often."""
    (verdict, most), *others = Counter(verdicts).most_common()
    return Verdict.UNSURE if others and others[0][1] == most else verdict
