"""What the answers so far imply: must-link and cannot-link closure, with contradictions kept."""

from __future__ import annotations

import enum
import gc
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from .question import Answer, Verdict


class Effect(str, enum.Enum):
    """What an answer did to the closure."""

    NEW = "new"  # it joined two components, or set them apart
    KNOWN = "known"  # it followed from the answers before it
    PENDING = "pending"  # a "same" that waits for answers that agree
    OPEN = "open"  # "unsure" or "not comparable": no constraint
    CONTRADICTION = "contradiction"  # the answers before it imply the opposite
    UNUSABLE = "unusable"  # an image of the pair is not in the set


class Contradiction(NamedTuple):
    """An answer, and the chain of earlier answers that implies its opposite, by event; the "same" answers set aside for it."""

    event: int
    against: tuple[int, ...]
    set_aside: tuple[int, ...]


class Closure:
    """The label memory: a union-find of images said to be the same, with the set of enemies of each component.

    same(a, b) and same(b, c) give same(a, c); same(a, b) and different(b, c) give different(a, c); an enemy of an enemy is
    *not* a friend. Where answers contradict each other, apart wins until one of them is undone: a "same" between enemies is
    set aside; for a "different" inside a component, the component's "same" answers are taken again from the oldest to the
    youngest, and each that would join the two is set aside.

    Args:
        transitive: False keeps the answered pairs alone and infers nothing, as the paper's label memory does.

    Some 700 bytes an answer: 46 MB at 65,000 answers. Adding an answer takes amortised O(log answers) time, a contradiction
    time linear in its component.
    """

    def __init__(self, transitive: bool = True) -> None:
        self.transitive = transitive
        self.contradictions: list[Contradiction] = []
        #: Effective answers by pair, the latest last.
        self._pairs: dict[tuple[int, int], list[Answer]] = {}
        self._root: dict[int, int] = {}
        self._members: dict[int, list[int]] = {}
        self._enemies: dict[int, set[int]] = {}
        #: In force, by image: other image -> event.
        self._same: dict[int, dict[int, int]] = {}
        self._different: dict[int, dict[int, int]] = {}
        self._votes: dict[int, list[Answer]] = {}
        self._counted: set[int] = set()
        #: Merges that an answer which was to confirm them spoke against, by the event of their first answer.
        self._against: set[int] = set()

    @classmethod
    def replay(cls, answers: Iterable[Answer], transitive: bool = True) -> Closure:
        """The closure of answers in the order of their events."""
        closure = cls(transitive)
        # A replay makes nothing but long-lived objects; looking for garbage among them would take half its time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            for answer in answers:
                closure.add(answer)
        finally:
            if collecting:
                gc.enable()
        return closure

    def add(self, answer: Answer) -> Effect:
        """Take in one answer, in the order of events."""
        a, b = answer.left, answer.right
        if a < 0 or b < 0 or a == b:
            return Effect.UNUSABLE
        self._pairs.setdefault(_pair(a, b), []).append(answer)
        if answer.verdict not in (Verdict.SAME, Verdict.DIFFERENT):
            return Effect.OPEN
        if answer.verdict is Verdict.DIFFERENT:
            if answer.confirms is not None:
                self._against.add(answer.confirms)
            return self._part(a, b, answer.event) if self.transitive else Effect.NEW
        votes = self._vote(answer)
        if not votes:
            return Effect.PENDING
        if not self.transitive:
            return Effect.NEW
        return [self._join(v.left, v.right, v.event) for v in votes][-1]

    def verdict(self, a: int, b: int) -> Verdict | None:
        """What the answers imply of two images: SAME, DIFFERENT or None."""
        if not self.transitive:
            word = self._last_word(a, b)
            return None if word is None else word.verdict
        ra, rb = self._root.get(a), self._root.get(b)
        if ra is None or rb is None:
            return None
        if ra == rb:
            return Verdict.SAME
        return Verdict.DIFFERENT if rb in self._enemies[ra] else None

    def answers(self) -> list[Answer]:
        """Every answer that was taken in, in the order of events."""
        return sorted(answer for answers in self._pairs.values() for answer in answers)

    def answered(self, a: int, b: int) -> bool:
        """Whether the pair itself was answered, whatever the answer."""
        return _pair(a, b) in self._pairs

    def answer(self, a: int, b: int) -> Answer | None:
        """The latest answer about the pair itself."""
        answers = self._pairs.get(_pair(a, b))
        return answers[-1] if answers else None

    def root(self, a: int) -> int | None:
        """Name of the component of an image that has a must-link or a cannot-link; None for any other image."""
        return self._root.get(a)

    def components(self) -> dict[int, list[int]]:
        """Images of each component, a single image with a cannot-link included."""
        return self._members

    def enemies(self, root: int) -> set[int]:
        """Roots of the components that are known to be different."""
        return self._enemies[root]

    def counted(self, event: int) -> bool:
        """Whether enough answers agree for this "same" to count."""
        return event in self._counted

    def disputed(self, merge: int) -> bool:
        """Whether an answer that was to confirm a merge, named by the event of its first answer, spoke against it."""
        return merge in self._against

    def chain(self, a: int, b: int) -> list[int]:
        """Events that prove what `verdict` says of two images, in the order of the path from a to b; empty without a verdict.

        A shortest path of must-links; for DIFFERENT one cannot-link is on it.
        """
        verdict = self.verdict(a, b)
        if verdict is None or a == b:
            return []
        if not self.transitive:
            word = self._last_word(a, b)
            return [] if word is None else [word.event]
        if verdict is Verdict.SAME:
            return self._path(a, {b})[0]
        enemy = self._root[b]
        gates = {
            x
            for x in self._members[self._root[a]]
            if any(self._root[y] == enemy for y in self._different[x])
        }
        before, gate = self._path(a, gates)
        exits = {y: event for y, event in self._different[gate].items() if self._root[y] == enemy}
        after, other = self._path(b, set(exits))
        return [*before, exits[other], *reversed(after)]

    def _last_word(self, a: int, b: int) -> Answer | None:
        """Without closure: the pair's latest answer that decides; a "same" that does not count yet decides nothing."""
        for answer in reversed(self._pairs.get(_pair(a, b), [])):
            if answer.verdict is Verdict.DIFFERENT or (
                answer.verdict is Verdict.SAME and answer.event in self._counted
            ):
                return answer
        return None

    def _vote(self, answer: Answer) -> list[Answer]:
        """The "same" answers that count now that this one was given."""
        merge = answer.event if answer.confirms is None else answer.confirms
        votes = self._votes.setdefault(merge, [])
        votes.append(answer)
        different_pairs = {_pair(v.left, v.right) for v in votes}
        if len(different_pairs) < max(v.need for v in votes):
            return []
        fresh = [v for v in votes if v.event not in self._counted]
        self._counted |= {v.event for v in fresh}
        return fresh

    def _join(self, a: int, b: int, event: int) -> Effect:
        ra, rb = self._node(a), self._node(b)
        if rb in self._enemies[ra]:
            self.contradictions.append(Contradiction(event, tuple(self.chain(a, b)), (event,)))
            return Effect.CONTRADICTION
        self._same[a].setdefault(b, event)
        self._same[b].setdefault(a, event)
        if ra == rb:
            return Effect.KNOWN
        if len(self._members[ra]) < len(self._members[rb]):
            ra, rb = rb, ra
        for image in self._members[rb]:
            self._root[image] = ra
        self._members[ra] += self._members.pop(rb)
        for enemy in self._enemies.pop(rb):
            self._enemies[enemy].discard(rb)
            self._enemies[enemy].add(ra)
            self._enemies[ra].add(enemy)
        return Effect.NEW

    def _part(self, a: int, b: int, event: int) -> Effect:
        ra, rb = self._node(a), self._node(b)
        effect = Effect.KNOWN if rb in self._enemies[ra] else Effect.NEW
        if ra == rb:
            against = tuple(self.chain(a, b))
            self.contradictions.append(Contradiction(event, against, self._break_apart(a, b)))
            ra, rb = self._root[a], self._root[b]
            effect = Effect.CONTRADICTION
        self._different[a].setdefault(b, event)
        self._different[b].setdefault(a, event)
        self._enemies[ra].add(rb)
        self._enemies[rb].add(ra)
        return effect

    def _break_apart(self, a: int, b: int) -> tuple[int, ...]:
        """Take the component's must-links again, oldest first, without those that would join a and b; gives these."""
        images = self._members.pop(self._root[a])
        links = sorted(
            {(event, *_pair(x, y)) for x in images for y, event in self._same[x].items()}
        )
        for enemy in self._enemies.pop(self._root[a]):
            self._enemies[enemy].discard(self._root[a])
        for image in images:
            self._root[image], self._members[image], self._enemies[image] = image, [image], set()
            self._same[image] = {}
        self._enemies[self._root[a]].add(b)
        self._enemies[self._root[b]].add(a)
        set_aside = []
        for event, x, y in links:
            if self._root[y] in self._enemies[self._root[x]]:
                set_aside.append(event)
            else:
                self._join(x, y, event)
        for image in images:
            root = self._root[image]
            for other in self._different[image]:
                self._enemies[root].add(self._root[other])
                self._enemies[self._root[other]].add(root)
        return tuple(set_aside)

    def _node(self, image: int) -> int:
        if image not in self._root:
            self._root[image], self._members[image], self._enemies[image] = image, [image], set()
            self._same[image], self._different[image] = {}, {}
        return self._root[image]

    def _path(self, start: int, goals: set[int]) -> tuple[list[int], int]:
        """Events along a shortest path of must-links to any goal, and that goal."""
        came: dict[int, tuple[int, int]] = {}
        queue, seen = deque([start]), {start}
        while queue:
            image = queue.popleft()
            if image in goals:
                events, goal = [], image
                while image != start:
                    image, event = came[image]
                    events.append(event)
                return events[::-1], goal
            for other, event in self._same[image].items():
                if other not in seen:
                    seen.add(other)
                    came[other] = image, event
                    queue.append(other)
        raise AssertionError("a component is connected")


def _pair(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)
