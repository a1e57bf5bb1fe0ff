"""The steps of a question: its pair is asked about, and further pairs confirm a merge."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Generator, Iterator
from itertools import chain, zip_longest

from .posterior import UNKNOWN_RATE, answer_weight, limited, log_odds_of
from .question import Question, Verdict
from .record import RoundRecord, merge_of, pair_of
from .rounds import Limits, OutOfQuestions, Request, Source

#: Yields what is asked about a question or a sheet, and returns the verdicts.
Steps = Generator[Request, None, list[Verdict]]
#: Further pairs that are asked about for each confirmation that a merge needs, if answers are
#: undecided.
_TRIES = 3
#: Log-odds of "same", 50 per cent, from which on a merge counts if answers may be wrong. With 70
#: per cent, clusters were purer, and networks of two seeds worse (docs/questions.md).
_SURE = 0.0
#: Images of each group that are shown with the other image of the question, to confirm a merge.
_EXCHANGED = 2
#: Answers that must agree before a merge counts, at most, if answers may be wrong.
_MOST_ANSWERS = 3


class QuestionSteps:
    """Decides what is asked for a question: nothing if it is known, its pair, and confirmations.

    A step is a `Request`. The next step is taken when the request is answered and the answer is in
    the record.

    Args:
        record: What is known in the round.
        source: Where answers come from.
        limits: How much may still be asked.
        open_pairs: Pairs that are asked about now.
        confirm_merges: Further questions about other images of the two clusters that must agree
            before a merge counts.
    """

    def __init__(
        self,
        record: RoundRecord,
        source: Source,
        limits: Limits,
        open_pairs: Collection[tuple[int, int]],
        confirm_merges: int,
    ) -> None:
        self._record = record
        self._source = source
        self._limits = limits
        self._open_pairs = open_pairs
        self._confirm_merges = confirm_merges

    def of_question(self, question: Question) -> Steps:
        """Ask a question, unless the answers so far decide it, and confirm what needs it."""
        record = self._record
        if record.can_ask(*question.images):
            needed = self._answers_needed(question)
            yield from self._pair(question, question.images, needed, None)
        elif pair_of(*question.images) not in record.passed:
            record.remembered.add(pair_of(*question.images))
        verdict = yield from self._confirmed_verdict(question)
        return [verdict]

    def of_each(self, questions: list[Question]) -> Steps:
        """Ask the questions of a sheet one after the other."""
        verdicts = []
        for question in questions:
            verdicts += yield from self.of_question(question)
        return verdicts

    def of_sheet(self, questions: list[Question]) -> Steps:
        """Ask those questions of a sheet that are open, and confirm what needs it."""
        record = self._record
        open_pairs = [question for question in questions if record.can_ask(*question.images)]
        for question in questions:
            pair = pair_of(*question.images)
            if question not in open_pairs and pair not in record.passed:
                record.remembered.add(pair)
        if open_pairs:
            yield from self._together(open_pairs)
        verdicts = []
        for question in questions:
            verdict = yield from self._confirmed_verdict(question)
            verdicts.append(verdict)
        return verdicts

    def _confirmed_verdict(self, question: Question) -> Generator[Request, None, Verdict]:
        """The verdict of a question that was asked, after confirmations if it needs any."""
        if self._record.awaits_confirmation(*question.images):
            yield from self._confirm(question)
        verdict = self._record.closure.verdict(*question.images)
        return Verdict.UNSURE if verdict is None else verdict

    def _confirm(self, question: Question) -> Generator[Request, None, None]:
        """Ask about further images of a merge until it counts, one answer disputes it, or too many
        are undecided.
        """
        record = self._record
        first = record.closure.answer(*question.images)
        assert first is not None
        tries = _TRIES * first.need
        for pair in _further_pairs(question, record.expected_error != 0):
            if tries == 0 or not record.awaits_confirmation(*question.images):
                break
            if self._is_odd(question, pair):
                continue
            if record.can_ask(*pair) and pair_of(*pair) not in self._open_pairs:
                yield from self._pair(question, pair, first.need, merge_of(first))
                tries -= 1
        if record.awaits_confirmation(*question.images):
            record.passed.add(pair_of(*question.images))

    def _is_odd(self, question: Question, pair: tuple[int, int]) -> bool:
        """Whether an image is known not to show the identity of its side of a question."""
        return any(
            image != shown and self._record.closure.verdict(image, shown) is Verdict.DIFFERENT
            for image, shown in zip(pair, question.images, strict=True)
        )

    def _pair(
        self,
        question: Question,
        pair: tuple[int, int],
        need: int,
        confirms: int | None,
    ) -> Generator[Request, None, None]:
        """Ask about a pair, or take its answer from the ledger if it lies ahead.

        Args:
            question: The question that the pair belongs to.
            pair: Rows of the two images that are shown.
            need: Answers that must agree before a "same" counts.
            confirms: Event of the first answer of the merge that is confirmed; None if this is the
                first answer.
        """
        source, limits = self._source, self._limits
        answer = source.take_ahead(pair_of(*pair))
        if answer is None and source.is_another_round([pair], 0, limits):
            source.catch_up()
            if not self._record.can_ask(*pair):
                return
        if answer is None and (limits.questions_left() == 0 or limits.out_of_time()):
            raise OutOfQuestions
        shown = dataclasses.replace(question, images=pair)
        yield Request([shown], [need], confirms, False, [answer])

    def _together(self, questions: list[Question]) -> Generator[Request, None, None]:
        """Ask the questions of a sheet, and take the answers that lie ahead from the ledger.

        Args:
            questions: Questions with one first image; each can be asked.
        """
        source = self._source
        # Answers that lie ahead were counted when the interrupted round asked for them.
        left = self._limits.questions_left()
        if left is not None:
            questions = questions[: left + sum(map(self._is_ahead, questions))]
        new = [question for question in questions if not self._is_ahead(question)]
        count = len(questions) - len(new)
        pairs = [question.images for question in new]
        if new and source.is_another_round(pairs, count, self._limits):
            source.catch_up()
            still_open = [q for q in questions if self._record.can_ask(*q.images)]
            if still_open:
                yield from self._together(still_open)
            return
        if not questions or (new and self._limits.out_of_time()):
            raise OutOfQuestions
        needs = [self._answers_needed(question) for question in questions]
        known = [source.take_ahead(pair_of(*question.images)) for question in questions]
        yield Request(questions, needs, None, True, known)

    def _is_ahead(self, question: Question) -> bool:
        """Whether the answer to a question lies ahead."""
        return self._source.is_ahead(pair_of(*question.images))

    def _answers_needed(self, question: Question) -> int:
        """Answers that must agree before a "same" counts."""
        if question.reason != "merge":
            return 1
        record = self._record
        pairs = len(question.groups[0]) * len(question.groups[1])
        needed = 1 + self._confirm_merges
        if record.prior is not None:
            prior = record.prior(*pair_of(*question.images))
            if question.probability is not None:
                prior = log_odds_of(question.probability)
            missing = _SURE - limited(prior)
            rate = record.expected_error
            if rate is None:
                rate = self._rate()
            weight = answer_weight(rate)
            needed = max(needed, min(math.ceil(missing / weight), _MOST_ANSWERS))
        return min(needed, pairs)

    def _rate(self) -> float:
        """Share of wrong answers of whoever answers next, as it was estimated."""
        rates, who = self._record.rates, self._source.who
        if who is not None:
            return rates.get(who, UNKNOWN_RATE)
        return math.fsum(rates.values()) / len(rates) if rates else UNKNOWN_RATE


def _further_pairs(question: Question, keep_one: bool) -> Iterator[tuple[int, int]]:
    """Yield the other pairs of images of the two groups, each once.

    Central images come first, and an image is repeated only after every image of the longer group
    had its turn.

    Args:
        question: The question.
        keep_one: Begin with pairs in which only one of the two shown images is exchanged. A group
            may hold images of somebody else, and two exchanged images fail to confirm a right
            answer about twice as often as one.
    """
    done = {frozenset(question.images)}
    exchanged = _exchanged(question) if keep_one else ()
    for pair in chain(exchanged, _all_pairs(question)):
        if frozenset(pair) not in done:
            done.add(frozenset(pair))
            yield pair


def _exchanged(question: Question) -> Iterator[tuple[int, int]]:
    """Yield pairs of an image that is shown and one of the first others of the other group."""
    first, second = question.images
    others = [
        [row for row in group[: _EXCHANGED + 1].tolist() if row != shown][:_EXCHANGED]
        for group, shown in zip(question.groups, question.images, strict=True)
    ]
    for of_first, of_second in zip_longest(*others):
        if of_second is not None:
            yield first, of_second
        if of_first is not None:
            yield of_first, second


def _all_pairs(question: Question) -> Iterator[tuple[int, int]]:
    """Yield all pairs of images of the two groups, those of the shown images too."""
    first = question.groups[0].tolist()
    second = question.groups[1].tolist()
    swapped = len(first) < len(second)
    longer = second if swapped else first
    shorter = first if swapped else second
    # Each shift pairs every image of the longer group with another image of the shorter one.
    for shift in range(len(shorter)):
        for index, i in enumerate(longer):
            j = shorter[(index + shift) % len(shorter)]
            yield (j, i) if swapped else (i, j)
