"""The record of a round: the answers that were applied, in order, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .closure import Closure
from .posterior import Prior, decides, weigh_answers
from .question import Answer, Verdict
from .rounds import Spent


class RoundRecord:
    """What is known in a round, and what the round cost.

    It asks nothing. Answers are applied in the order in which `take_in` is called.

    Args:
        transitive: Whether the closure also decides pairs that follow from the answers.
        expected_error: Share of the answers that are expected to be wrong; None estimates it for
            each annotator.
        tracks: (n,) int64: images of one number are the same, -1 for an image of none; None where
            there are no tracks.
        answered: Called after each answer to a question was applied.
    """

    def __init__(
        self,
        transitive: bool,
        expected_error: float | None,
        tracks: Tensor | None,
        answered: Callable[[], None],
    ) -> None:
        self.transitive = transitive
        self.expected_error = expected_error
        self._links = [] if tracks is None else _links_of(tracks)
        self._answered = answered
        self.spent = Spent()
        self.closure = Closure(transitive)
        #: Every answer so far.
        self.answers: list[Answer] = []
        #: Events that were applied, or that were known when the round began.
        self.applied: set[int] = set()
        #: Events whose cost is that of this round.
        self._counted: set[int] = set()
        #: Pairs of this round that the annotator passed on.
        self.passed: set[tuple[int, int]] = set()
        #: Pairs of this round that the closure answered.
        self.remembered: set[tuple[int, int]] = set()
        #: Pairs of the answers that are not believed.
        self.doubted: set[tuple[int, int]] = set()
        #: What the features of this round say of a pair, once answers were weighed.
        self.prior: Prior | None = None
        #: Share of wrong answers by annotator, as it was assumed or estimated.
        self.rates: dict[str, float] = {}

    def open(self) -> None:
        """Begin a round that has cost nothing."""
        self.spent = Spent()
        self._counted.clear()
        self.passed.clear()
        self.remembered.clear()
        self.doubted.clear()
        self.prior = None
        self.rates.clear()

    def know(self, answers: list[Answer]) -> None:
        """Begin from answers, in the order of `Answer.place`."""
        self.answers = answers
        self.applied = {answer.event for answer in answers}
        self.closure = self._closure_of(answers, self.transitive)

    def take_in(self, answer: Answer) -> None:
        """Add an answer to the closure and to the cost of the round."""
        self.answers.append(answer)
        self.applied.add(answer.event)
        before = len(self.closure.contradictions)
        self.closure.add(answer)
        # A confirmation lets several answers count, of which each may contradict others.
        self.spent.contradictions += len(self.closure.contradictions) - before
        self._count(answer)
        # An answer about a further image of a group is no question of its own.
        if not answer.is_member:
            self._answered()

    def _count(self, answer: Answer) -> None:
        """Add an answer to the cost of the round."""
        self._counted.add(answer.event)
        self.spent.seconds += answer.seconds
        if answer.is_member:
            self.spent.members += 1
            return
        self.spent.questions += 1
        self.spent.verdicts[answer.verdict.value] += 1

    def count_all(self, answers: Sequence[Answer]) -> None:
        """Add answers that the closure holds, but that no question waited for, to the cost."""
        for answer in answers:
            self._count(answer)
        decisions = {a.gesture or str(a.event) for a in answers if not a.is_member}
        self.spent.gestures += len(decisions)
        events = {answer.event for answer in answers}
        self.spent.contradictions += sum(c.event in events for c in self.closure.contradictions)

    def take_in_unapplied(self, answers: list[Answer], run: str) -> None:
        """Take in every answer that was not applied.

        The closure is made anew, because such an answer may stand before others.

        Args:
            answers: The answers that count at the end of the round.
            run: Name of the run, whose answers cost something.
        """
        before = {answer.event: answer for answer in self.answers}
        now = {answer.event: answer for answer in answers}
        if now != before or len(answers) != len(self.answers):
            self.know(answers)
        self.count_all([a for a in answers if a.run == run and a.event not in before])
        # A vote that came after its question was applied may have changed the verdict.
        for event, answer in now.items():
            if answer.run == run and event in before:
                self._count_changed(before[event], answer)

    def _count_changed(self, before: Answer, now: Answer) -> None:
        """Correct the cost where a further vote changed an answer."""
        self.spent.seconds += now.seconds - before.seconds
        is_counted = now.event in self._counted and not now.is_member
        if is_counted and now.verdict is not before.verdict:
            self.spent.verdicts[before.verdict.value] -= 1
            self.spent.verdicts[now.verdict.value] += 1

    def weigh(self, prior: Prior, names: dict[int, str]) -> None:
        """Weigh the answers so far against each other and the features; believe the likely ones.

        Args:
            prior: Log-odds of "same" for two images before any answer.
            names: Annotator by event; empty where all have one rate.
        """
        self.prior = prior
        weighed = weigh_answers(self.answers, prior, self.expected_error, names)
        self.doubted = {pair_of(answer.left, answer.right) for answer in weighed.doubted}
        self.rates = weighed.rates
        self.closure = self._closure_of(weighed.believed, self.transitive)
        self.spent.doubted = len(weighed.doubted)

    def likely(self) -> Closure:
        """Return the closure of the believed answers, and the opposite of each doubted "same"."""
        opposite = [
            answer._replace(verdict=Verdict.DIFFERENT)
            for answer in self.answers
            if answer.verdict is Verdict.SAME and pair_of(answer.left, answer.right) in self.doubted
        ]
        answers = sorted([*self.closure.answers(), *opposite], key=lambda answer: answer.place)
        return self._closure_of(answers, self.transitive)

    def constraints(self) -> Closure:
        """Return the closure that labels must agree with, see `Asker.constraints`."""
        if self.transitive:
            # A transitive closure of all answers exists already.
            return self.closure
        return self._closure_of(self.closure.answers(), True)

    def _closure_of(self, answers: Sequence[Answer], transitive: bool) -> Closure:
        """The closure of answers and, as far as they do not contradict the answers, of tracks."""
        closure = Closure.replay(answers, transitive)
        for a, b in self._links:
            closure.link(a, b)
        return closure

    def deciding_answers(self) -> list[Answer]:
        """Return the answers so far that say "same" or "different" of two images of the set."""
        return [a for a in self.answers if decides(a)]

    def can_ask(self, i: int, j: int) -> bool:
        """Return whether a question about two images would reach the annotator."""
        return (
            not self.closure.answered(i, j)
            and pair_of(i, j) not in self.doubted
            and self.closure.verdict(i, j) is None
            and pair_of(i, j) not in self.passed
        )

    def awaits_confirmation(self, i: int, j: int) -> bool:
        """Return whether two images were answered "same" and further answers are needed before it
        counts.
        """
        given = self.closure.answer(i, j)
        return (
            given is not None
            and given.verdict is Verdict.SAME
            and self.closure.verdict(i, j) is None
            and not self.closure.disputed(merge_of(given))
            and pair_of(i, j) not in self.passed
        )

    def closed_pairs(self) -> list[tuple[int, int]]:
        """Return the pairs that were asked about and need no further question, ascending."""
        answered = {pair_of(answer.left, answer.right) for answer in self.answers}
        return sorted(
            self.passed
            | {
                (i, j)
                for i, j in answered - self.doubted
                if i >= 0 and not self.awaits_confirmation(i, j)
            }
        )


def merge_of(answer: Answer) -> int:
    """Return the event of the first answer of the merge that an answer belongs to, which identifies
    the merge.
    """
    return answer.event if answer.confirms is None else answer.confirms


def pair_of(i: int, j: int) -> tuple[int, int]:
    """Return two rows, the lower one first."""
    return (i, j) if i < j else (j, i)


def _links_of(tracks: Tensor) -> list[tuple[int, int]]:
    """Each image of a track with the next one."""
    links = []
    last: dict[int, int] = {}
    for row, track in enumerate(tracks.tolist()):
        if track >= 0:
            if track in last:
                links.append((last[track], row))
            last[track] = row
    return links
