"""Asking: the budget, the label memory, and the ledger between a strategy and an annotator."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .closure import Closure, Effect
from .ledger import Ledger
from .question import Annotator, Answer, NoAnswer, Question, UndoLast, Verdict

ClosureName = Literal["transitive", "none"]
#: Gives the labels as the answers so far would leave them.
CurrentLabels = Callable[[], Tensor]
#: Further pairs that are asked about for each answer that a merge needs, when some do not decide it.
_TRIES = 3


class OutOfQuestions(Exception):  # noqa: N818
    """The budget is spent."""


class RoundAgain(Exception):  # noqa: N818
    """An answer was taken back: the round starts over, and gives itself the answers that still stand."""


@dataclass
class Spent:
    """What a round cost: questions answered, their verdicts, seconds, and pairs that the memory answered instead."""

    questions: int = 0
    seconds: float = 0.0
    remembered: int = 0
    contradictions: int = 0

    def __post_init__(self) -> None:
        self.verdicts: Counter[str] = Counter()


class Asker:
    """Puts questions to an annotator, each pair of images once, and never one that the answers so far decide.

    A round (`begin` to `end`) starts from the answers of this run up to its position in the ledger, and from all answers of
    other runs. Answers of this run beyond the position, given before it was killed or stopped, are taken from the ledger when
    the round asks for them, so that a resumed round is the same round.

    Args:
        annotator: Answers.
        ledger: Keeps the answers; one in memory when not given.
        closure: "transitive" lets the answers answer what follows from them, "none" is the paper's label memory.
        confirm_merges: Further questions about other images of the two clusters that must agree before a merge counts.
        budget: Questions in all; None is no limit.
        run: Name of the run in the ledger; a resumed run has its old name. A new one when not given.
        seed: Seed of strategies that draw.
    """

    def __init__(
        self,
        annotator: Annotator,
        ledger: Ledger | None = None,
        *,
        closure: ClosureName = "transitive",
        confirm_merges: int = 0,
        budget: int | None = None,
        run: str | None = None,
        seed: int = 0,
    ) -> None:
        self.annotator, self.ledger = annotator, ledger or Ledger.open("sqlite://")
        self.transitive, self.confirm_merges, self.budget = (
            closure == "transitive",
            confirm_merges,
            budget,
        )
        self.run, self.seed = uuid.uuid4().hex if run is None else run, seed
        #: Event of the ledger up to which the answers of this run belong to rounds that ended.
        self.position = 0
        #: Questions and seconds of the rounds that ended.
        self.asked, self.seconds = 0, 0.0
        #: Called after each answer with the questions so far and what gives the present labels.
        self.watch: Callable[[int, CurrentLabels], None] | None = None
        self.current_labels: CurrentLabels = lambda: torch.zeros(0, dtype=torch.int64)
        #: Unit-norm features (n, D) and clusters (n,) of the round, which `ask_pair` needs.
        self.features: Tensor | None = None
        self.labels: Tensor | None = None
        self.epoch = 0
        self._limit: int | None = None
        #: Answers beyond the position, by pair, until the round asks for them.
        self._ahead: dict[tuple[int, int], Answer] = {}
        #: Pairs of this round that the annotator passed on, and pairs that the memory answered.
        self._passed: set[tuple[int, int]] = set()
        self._remembered: set[tuple[int, int]] = set()
        self._open_round()

    def begin(self, epoch: int, limit: int | None = None) -> None:
        """Begin a round of at most `limit` questions; None is no limit."""
        self.epoch = epoch
        self._limit = limit
        self._open_round()

    def end(self) -> Spent:
        """End the round: every answer of the ledger is known, and what this run gave is counted."""
        self._catch_up()
        self.features = None
        self.labels = None
        self.position = self.ledger.last_event()
        self.asked += self.spent.questions
        self.seconds += self.spent.seconds
        self.spent.remembered = len(self._remembered)
        return self.spent

    def allowed(self) -> int | None:
        """Questions that this round may ask in all, the same when it is begun again; None is no limit."""
        limits = [] if self._limit is None else [self._limit]
        limits += [] if self.budget is None else [self.budget - self.asked]
        return max(0, min(limits)) if limits else None

    def left(self) -> int | None:
        """Questions that may still be asked in this round; None is no limit."""
        allowed = self.allowed()
        return (
            None if allowed is None else max(0, allowed - self.spent.questions - len(self._ahead))
        )

    def open(self, a: int, b: int) -> bool:
        """Whether two images can be asked about: the answers neither hold the pair nor decide it, and nobody passed on it."""
        return (
            not self.memory.answered(a, b)
            and self.memory.verdict(a, b) is None
            and _pair(a, b) not in self._passed
        )

    def waits(self, a: int, b: int) -> bool:
        """Whether a "same" about two images waits for others to confirm it."""
        said = self.memory.answer(a, b)
        return (
            said is not None
            and said.verdict is Verdict.SAME
            and self.memory.verdict(a, b) is None
            and not self.memory.disputed(_merge_of(said))
            and _pair(a, b) not in self._passed
        )

    def constraints(self) -> Closure:
        """What the labels must agree with: the memory, also where it infers nothing about what to ask."""
        return self.memory if self.transitive else Closure.replay(self.memory.answers())

    def ask_pair(self, i: int, j: int) -> Verdict:
        """Ask whether two images show the same identity.

        Args:
            i: Row of one image.
            j: Row of the other image.

        Returns:
            The verdict; see `ask`.

        Raises:
            ValueError: Both rows are the same, or the round has no features and labels.
            OutOfQuestions: The budget is spent.
        """
        i = int(i)
        j = int(j)
        if i == j:
            raise ValueError(f"ask_pair: got image {i} twice, expected two different images")
        if self.features is None or self.labels is None:
            raise ValueError("ask_pair: the round has no features and labels")
        same_cluster = int(self.labels[i]) == int(self.labels[j]) >= 0
        reason = "split" if same_cluster else "merge"
        similarity = float(self.features[i] @ self.features[j])
        return self.ask(Question.about_images(i, j, reason, similarity))

    def ask(self, question: Question) -> Verdict:
        """What a person says of the two groups of a question, from memory where it is known.

        A "same" that is not confirmed yet, or that other answers contradict, comes back as UNSURE.

        Raises:
            OutOfQuestions: The budget is spent.
            QuitAsking: The annotator leaves.
            RoundAgain: The annotator took an answer back.
        """
        pair = _pair(*question.images)
        if self.open(*pair):
            self._put(question, question.images, self._need(question), None)
        elif pair not in self._passed:
            self._remembered.add(pair)
        if self.waits(*pair):
            self._confirm(question)
        known = self.memory.verdict(*pair)
        return Verdict.UNSURE if known is None else known

    def state_dict(self) -> dict[str, Any]:
        """The position in the ledger, and what was spent."""
        return {"position": self.position, "asked": self.asked, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. A ledger that is behind it (an old copy, or another) is read from its own end."""
        self.position = min(state["position"], self.ledger.last_event())
        self.asked, self.seconds = state["asked"], state["seconds"]
        self._open_round()

    def _open_round(self) -> None:
        self.spent = Spent()
        self._passed.clear()
        self._remembered.clear()
        self._ahead.clear()
        known = []
        for answer in self.ledger.answers():
            if answer.run == self.run and answer.event > self.position:
                self._ahead.setdefault(_pair(answer.left, answer.right), answer)
            else:
                known.append(answer)
        self.memory = Closure.replay(known, self.transitive)

    def _need(self, question: Question) -> int:
        pairs = len(question.groups[0]) * len(question.groups[1])
        return min(1 + self.confirm_merges, pairs) if question.reason == "merge" else 1

    def _confirm(self, question: Question) -> None:
        """Ask about further images of a merge until it counts, one speaks against it, or too many do not decide it."""
        first = self.memory.answer(*question.images)
        assert first is not None
        tries = _TRIES * first.need
        for pair in _further_pairs(question):
            if tries == 0 or not self.waits(*question.images):
                break
            if self.open(*pair):
                self._put(question, pair, first.need, _merge_of(first))
                tries -= 1
        if self.waits(*question.images):
            self._passed.add(_pair(*question.images))

    def _put(
        self, question: Question, pair: tuple[int, int], need: int, confirms: int | None
    ) -> None:
        """Take an answer from the ledger where it lies ahead, else from the annotator, and remember it."""
        answer = self._ahead.pop(_pair(*pair), None)
        if answer is None and self._ahead:
            # This round is not the one that was broken off (an answer was undone since, or a setting changed).
            self._catch_up()
            if not self.open(*pair):
                return
        if answer is None:
            if self.left() == 0:
                raise OutOfQuestions
            try:
                answer = self._new_answer(question, pair, need, confirms)
            except NoAnswer:
                self._passed.add(_pair(*pair))
                return
        self._take(answer)

    def _take(self, answer: Answer) -> None:
        effect = self.memory.add(answer)
        self.spent.questions += 1
        self.spent.seconds += answer.seconds
        self.spent.verdicts[answer.verdict.value] += 1
        self.spent.contradictions += effect is Effect.CONTRADICTION
        if self.watch is not None:
            self.watch(self.asked + self.spent.questions, self.current_labels)

    def _catch_up(self) -> None:
        """Take every answer that lies ahead, in the order in which they were given."""
        ahead = list(self._ahead.values())
        self._ahead.clear()
        for answer in ahead:
            self._take(answer)

    def _new_answer(
        self, question: Question, pair: tuple[int, int], need: int, confirms: int | None
    ) -> Answer:
        shown = dataclasses.replace(question, images=pair)
        asked_at = time.time()
        verdict = self._answered(shown)
        answered_at = time.time()
        event = self.ledger.append(
            *pair,
            verdict,
            annotator=self.annotator.name,
            asked_at=asked_at,
            answered_at=answered_at,
            epoch=self.epoch,
            reason=question.reason if confirms is None else "confirm",
            score=question.score,
            similarity=question.similarity,
            need=need,
            confirms=confirms,
            shown=getattr(self.annotator, "shown", ((), ())),
            run=self.run,
        )
        return Answer(event, *pair, verdict, need, confirms, answered_at - asked_at, self.run)

    def _answered(self, question: Question) -> Verdict:
        """The annotator's verdict. Taking back is for answers of this run alone; where there is none it is asked again."""
        while True:
            try:
                return self.annotator.answer(question)
            except UndoLast:
                last = self.ledger.last_answer(self.run)
                if last is not None:
                    self.ledger.undo(last, self.annotator.name)
                    raise RoundAgain from None


def _merge_of(answer: Answer) -> int:
    """The merge that an answer speaks for, named by the event of its first answer."""
    return answer.event if answer.confirms is None else answer.confirms


def _further_pairs(question: Question) -> Iterator[tuple[int, int]]:
    """Other pairs of images of the two groups, central images first, each pair once, different images before repeated ones."""
    first, second = (side.tolist() for side in question.groups)
    swapped = len(first) < len(second)
    longer, shorter = (second, first) if swapped else (first, second)
    for shift in range(len(shorter)):
        for place, a in enumerate(longer):
            b = shorter[(place + shift) % len(shorter)]
            pair = (b, a) if swapped else (a, b)
            if set(pair) != set(question.images):
                yield pair


def _pair(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)
