"""What the answers so far imply: the closure of must-links and cannot-links, with contradictions
kept.
"""

from __future__ import annotations

import enum
import gc
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from reid_kernels.checks import LARGEST

from ..arguments import as_flag, as_integer, described
from .question import Answer, Verdict


class Effect(str, enum.Enum):
    """What an answer changed in the closure."""

    NEW = "new"  # it joined two components, or added a cannot-link between them
    KNOWN = "known"  # it followed from the answers before it
    PENDING = "pending"  # a "same" that needs further answers that agree
    OPEN = "open"  # "unsure" or "not comparable": no constraint
    CONTRADICTION = "contradiction"  # the answers before it imply the opposite
    UNUSABLE = "unusable"  # an image of the pair is not in the set


class Contradiction(NamedTuple):
    """An answer whose opposite follows from earlier answers.

    Args:
        event: Event of the answer.
        against: Events of the earlier answers that imply the opposite, in the order of the path.
        set_aside: Events of the "same" answers that no longer count because of it.
    """

    event: int
    against: tuple[int, ...]
    set_aside: tuple[int, ...]


class Closure:
    """The must-links and cannot-links that follow from the answers: a union-find with cannot-links
    between components.

    same(a, b) and same(b, c) imply same(a, c); same(a, b) and different(b, c) imply different(a,
    c). Two images that are both different from a third are *not* implied to be the same. Where
    answers contradict each other, "different" takes precedence until one of them is undone: a
    "same" across a cannot-link is set aside; for a "different" inside a component, the component's
    "same" answers are applied again from the oldest to the youngest, and each that would join the
    two images is set aside.

    Args:
        transitive: False keeps the answered pairs only and infers nothing, as the paper's label
            memory does.

    An answer takes about 700 bytes: 46 MB at 65,000 answers. Adding an answer takes amortised O(log
    answers) time, a contradiction time linear in its component.
    """

    def __init__(self, transitive: bool = True) -> None:
        self.transitive = as_flag("transitive", transitive)
        self.contradictions: list[Contradiction] = []
        #: Usable answers by pair, the latest last.
        self._pairs: dict[tuple[int, int], list[Answer]] = {}
        #: Image -> root of its component; root -> images; root -> roots that are known to be
        #: different.
        self._root: dict[int, int] = {}
        self._members: dict[int, list[int]] = {}
        self._cannot_links: dict[int, set[int]] = {}
        #: Answers that count, by image: other image -> event.
        self._same: dict[int, dict[int, int]] = {}
        self._different: dict[int, dict[int, int]] = {}
        #: Place of each answer of a queue, by its event.
        self._places: dict[int, tuple[int, int, int]] = {}
        #: "same" answers by the merge that they belong to, and the events of those that count.
        self._votes: dict[int, list[Answer]] = {}
        self._counted: set[int] = set()
        #: Merges that a confirming question answered with "different", by the event of their first
        #: answer.
        self._disputed: set[int] = set()

    @classmethod
    def replay(cls, answers: Iterable[Answer], transitive: bool = True) -> Closure:
        """Return the closure of answers that are in the order of `Answer.place`."""
        if isinstance(answers, str | bytes) or not isinstance(answers, Iterable):
            raise ValueError(f"answers: got {described(answers)}, expected a list of answers")
        closure = cls(transitive)
        # A replay creates long-lived objects only; the garbage collector would take half of its
        # time.
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
        """Take in one answer; answers come in the order of `Answer.place`.

        Returns:
            What it changed. A "same" that confirms a merge may let earlier answers count as well:
            then CONTRADICTION if one of them contradicts the answers before it, else NEW if one of
            them joins two components.

        Raises:
            ValueError: It is no answer, or a field of it has the wrong type.
        """
        answer = _checked(answer)
        a, b = answer.left, answer.right
        if a < 0 or b < 0 or a == b:
            return Effect.UNUSABLE
        self._pairs.setdefault(_pair(a, b), []).append(answer)
        if answer.order is not None:
            self._places[answer.event] = answer.place
        if answer.verdict is Verdict.DIFFERENT:
            if answer.confirms is not None:
                self._disputed.add(answer.confirms)
            return self._separate(a, b, answer.event) if self.transitive else Effect.NEW
        if answer.verdict is not Verdict.SAME:
            return Effect.OPEN
        votes = self._vote(answer)
        if not votes:
            return Effect.PENDING
        if not self.transitive:
            return Effect.NEW
        effects = {self._join(v.left, v.right, v.event) for v in votes}
        return next(e for e in (Effect.CONTRADICTION, Effect.NEW, Effect.KNOWN) if e in effects)

    def link(self, a: int, b: int) -> Effect:
        """Add that two images are the same for another reason than an answer, such as a track.

        In chains and contradictions, event 0 stands for it. It yields to the answers so far: across
        a cannot-link nothing is added. Without `transitive` nothing is added either.

        Args:
            a: Row of one image.
            b: Row of another image.

        Returns:
            NEW or KNOWN, CONTRADICTION if it was not added, or OPEN without `transitive`.
        """
        a, b = as_integer("a", a, 0), as_integer("b", b, 0)
        if a == b:
            raise ValueError(f"link: got image {a} twice, expected two different images")
        if not self.transitive:
            return Effect.OPEN
        if self.verdict(a, b) is Verdict.DIFFERENT:
            return Effect.CONTRADICTION
        return self._join(a, b, 0)

    def verdict(self, a: int, b: int) -> Verdict | None:
        """Return what the answers imply about two images: SAME, DIFFERENT or None."""
        a, b = _rows(a, b)
        if not self.transitive:
            deciding = self._deciding_answer(a, b)
            return None if deciding is None else deciding.verdict
        root_a = self._root.get(a)
        root_b = self._root.get(b)
        if root_a is None or root_b is None:
            return None
        if root_a == root_b:
            return Verdict.SAME
        return Verdict.DIFFERENT if root_b in self._cannot_links[root_a] else None

    def answers(self) -> list[Answer]:
        """Return every usable answer, in the order of `Answer.place`."""
        answers = [answer for answers in self._pairs.values() for answer in answers]
        return sorted(answers, key=lambda answer: answer.place)

    def answered(self, a: int, b: int) -> bool:
        """Return whether the pair itself was answered, with any verdict."""
        return _pair(a, b) in self._pairs

    def answer(self, a: int, b: int) -> Answer | None:
        """Return the latest answer about the pair itself."""
        answers = self._pairs.get(_pair(a, b))
        return answers[-1] if answers else None

    def root(self, image: int) -> int | None:
        """Return the root of the component of an image, or None for an image without must-link and
        cannot-link.
        """
        return self._root.get(image if type(image) is int else as_integer("image", image))

    def components(self) -> dict[int, list[int]]:
        """Return the images of each component by its root; a single image with a cannot-link is a
        component.
        """
        return self._members

    def cannot_links(self, root: int) -> set[int]:
        """Return the roots of the components that are known to be different from a component."""
        try:
            return self._cannot_links[root]
        except (KeyError, TypeError):
            raise ValueError(
                f"root: got {described(root)}, expected the root of a component"
            ) from None

    def cannot_linked_images(self) -> list[tuple[int, int]]:
        """Return every pair of images (low, high) that is known to be different, ascending.

        All images of two components with a cannot-link between them are, so that there are more
        pairs than answers.
        """
        pairs: set[tuple[int, int]] = set()
        for root, others in self._cannot_links.items():
            for other in others:
                if root < other:
                    for a in self._members[root]:
                        pairs.update(_pair(a, b) for b in self._members[other])
        return sorted(pairs)

    def counted(self, event: int) -> bool:
        """Return whether enough answers agree for this "same" to count."""
        return as_integer("event", event) in self._counted

    def disputed(self, merge: int) -> bool:
        """Return whether a question that was to confirm a merge was answered "different".

        Args:
            merge: Event of the first answer of the merge.
        """
        return as_integer("merge", merge) in self._disputed

    def chain(self, a: int, b: int) -> list[int]:
        """Return the events that prove the verdict about two images, in the order of the path from
        a to b.

        The path is a shortest path of must-links; for DIFFERENT it contains one cannot-link. Empty
        without a verdict.
        """
        a, b = _rows(a, b)
        verdict = self.verdict(a, b)
        if verdict is None or a == b:
            return []
        if not self.transitive:
            deciding = self._deciding_answer(a, b)
            return [] if deciding is None else [deciding.event]
        if verdict is Verdict.SAME:
            return self._path(a, {b})[0]
        root_a = self._root[a]
        root_b = self._root[b]
        # Images of a's component with a cannot-link to b's component: the path leaves through one
        # of them.
        exits = {
            x
            for x in self._members[root_a]
            if any(self._root[y] == root_b for y in self._different[x])
        }
        before, last = self._path(a, exits)
        entries = {
            y: event for y, event in self._different[last].items() if self._root[y] == root_b
        }
        after, first = self._path(b, set(entries))
        return [*before, entries[first], *reversed(after)]

    def _deciding_answer(self, a: int, b: int) -> Answer | None:
        """Return the latest answer about the pair itself that decides it; a "same" that does not
        count decides nothing.
        """
        for answer in reversed(self._pairs.get(_pair(a, b), [])):
            counts = answer.verdict is Verdict.SAME and answer.event in self._counted
            if answer.verdict is Verdict.DIFFERENT or counts:
                return answer
        return None

    def _vote(self, answer: Answer) -> list[Answer]:
        """Return the "same" answers that begin to count because of this one."""
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
        """Add a must-link, unless a cannot-link forbids it."""
        large = self._add_image(a)
        small = self._add_image(b)
        if small in self._cannot_links[large]:
            self.contradictions.append(Contradiction(event, tuple(self.chain(a, b)), (event,)))
            return Effect.CONTRADICTION
        self._same[a].setdefault(b, event)
        self._same[b].setdefault(a, event)
        if large == small:
            return Effect.KNOWN
        if len(self._members[large]) < len(self._members[small]):
            large, small = small, large
        for image in self._members[small]:
            self._root[image] = large
        self._members[large] += self._members.pop(small)
        for other in self._cannot_links.pop(small):
            self._cannot_links[other].discard(small)
            self._cannot_links[other].add(large)
            self._cannot_links[large].add(other)
        return Effect.NEW

    def _separate(self, a: int, b: int, event: int) -> Effect:
        """Add a cannot-link; within a component, set aside the must-links that contradict it."""
        root_a = self._add_image(a)
        root_b = self._add_image(b)
        effect = Effect.KNOWN if root_b in self._cannot_links[root_a] else Effect.NEW
        if root_a == root_b:
            against = tuple(self.chain(a, b))
            self.contradictions.append(Contradiction(event, against, self._break_up(a, b)))
            root_a = self._root[a]
            root_b = self._root[b]
            effect = Effect.CONTRADICTION
        self._different[a].setdefault(b, event)
        self._different[b].setdefault(a, event)
        self._cannot_links[root_a].add(root_b)
        self._cannot_links[root_b].add(root_a)
        return effect

    def _break_up(self, a: int, b: int) -> tuple[int, ...]:
        """Build the component of two images again without the must-links that would join them.

        Must-links are applied from the oldest to the youngest.

        Returns:
            Events of the must-links that were set aside.
        """
        images = self._members.pop(self._root[a])
        links = sorted(
            {(event, *_pair(x, y)) for x in images for y, event in self._same[x].items()},
            key=lambda link: (self._places.get(link[0], (link[0], 0, link[0])), link),
        )
        for other in self._cannot_links.pop(self._root[a]):
            self._cannot_links[other].discard(self._root[a])
        for image in images:
            self._make_component(image)
            self._same[image] = {}
        # `_join` refuses whatever would join a and b.
        self._cannot_links[self._root[a]].add(b)
        self._cannot_links[self._root[b]].add(a)
        set_aside = []
        for event, x, y in links:
            if self._root[y] in self._cannot_links[self._root[x]]:
                set_aside.append(event)
            else:
                self._join(x, y, event)
        for image in images:
            root = self._root[image]
            for other in self._different[image]:
                self._cannot_links[root].add(self._root[other])
                self._cannot_links[self._root[other]].add(root)
        return tuple(set_aside)

    def _add_image(self, image: int) -> int:
        """Return the root of an image, which becomes a component of its own if it is new."""
        if image not in self._root:
            self._make_component(image)
            self._same[image] = {}
            self._different[image] = {}
        return self._root[image]

    def _make_component(self, image: int) -> None:
        self._root[image] = image
        self._members[image] = [image]
        self._cannot_links[image] = set()

    def _path(self, start: int, goals: set[int]) -> tuple[list[int], int]:
        """Return the events along a shortest path of must-links to any goal, and that goal."""
        #: Image -> image before it on the path, and the event of the must-link between them.
        before: dict[int, tuple[int, int]] = {}
        queue = deque([start])
        seen = {start}
        while queue:
            image = queue.popleft()
            if image in goals:
                return self._trace(before, start, image), image
            for other, event in self._same[image].items():
                if other not in seen:
                    seen.add(other)
                    before[other] = image, event
                    queue.append(other)
        raise AssertionError("a component is connected")

    @staticmethod
    def _trace(before: dict[int, tuple[int, int]], start: int, goal: int) -> list[int]:
        """Return the events from start to goal, following each image back to the one before it."""
        events = []
        image = goal
        while image != start:
            image, event = before[image]
            events.append(event)
        return events[::-1]


def _rows(a: int, b: int) -> tuple[int, int]:
    """Rows of two images; strategies ask for millions of pairs, whose rows are integers."""
    if type(a) is int and type(b) is int:
        return a, b
    return as_integer("a", a), as_integer("b", b)


def _checked(answer: Answer) -> Answer:
    """An answer whose fields have the right types."""
    if (
        # As a ledger returns them: there may be millions.
        type(answer) is Answer
        and type(answer.event)
        is type(answer.left)
        is type(answer.right)
        is type(answer.need)
        is int
        and type(answer.verdict) is Verdict
        and answer.need > 0
        and max(answer.event, answer.left, answer.right, answer.need) <= LARGEST
        and (answer.confirms is None or type(answer.confirms) is int)
    ):
        return answer
    if not isinstance(answer, Answer) or not isinstance(answer.verdict, Verdict):
        got = answer.verdict if isinstance(answer, Answer) else answer
        raise ValueError(f"answer: got {described(got)}, expected an Answer with a Verdict")
    confirms = answer.confirms
    return answer._replace(
        event=as_integer("answer.event", answer.event),
        left=as_integer("answer.left", answer.left),
        right=as_integer("answer.right", answer.right),
        need=as_integer("answer.need", answer.need, 1),
        confirms=None if confirms is None else as_integer("answer.confirms", confirms),
    )


def _pair(a: int, b: int) -> tuple[int, int]:
    if type(a) is not int or type(b) is not int:
        a, b = _rows(a, b)
    return (a, b) if a < b else (b, a)
