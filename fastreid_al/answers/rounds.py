"""The terms of a round of questions: what is asked at a time, what it costs, and how it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from .question import Answer, Question

#: Share of the pairs that further questions should change, to be worth asking.
_WORTH_ASKING = 0.005
#: Merges per question that they should bring.
_MERGES_WORTH_ASKING = 0.02

#: Returns the labels (n,) that the answers so far lead to.
CurrentLabels = Callable[[], Tensor]
#: Whether a round waits for people: until all answered, for so many seconds without an answer, or
#: not at all.
Wait = Literal["all", "none"] | float


class OutOfQuestions(Exception):  # noqa: N818
    """The budget is spent."""


class RoundAgain(Exception):  # noqa: N818
    """An answer was taken back: the round starts again, and reuses the answers that are still in
    force.
    """


@dataclass
class Spent:
    """The cost of a round.

    Args:
        questions: Questions that were answered.
        seconds: Time that the answers took; where people answer when they like, also answers that
            came late, that were taken back, or whose question has a known answer.
        remembered: Pairs that the strategy asked about and that earlier answers decided or
            contained.
        contradictions: Answers that contradict earlier ones.
        doubted: Answers of all rounds that are not believed.
        gestures: Decisions of a person: a sheet is one.
        members: Further images of the groups that were judged with them.
    """

    questions: int = 0
    seconds: float = 0.0
    remembered: int = 0
    contradictions: int = 0
    doubted: int = 0
    gestures: int = 0
    members: int = 0

    def __post_init__(self) -> None:
        #: Number of answers by verdict.
        self.verdicts: Counter[str] = Counter()


class Observation(NamedTuple):
    """An answer, and what was known of the question when it was asked.

    Args:
        epoch: Epoch of the round.
        inputs: Numbers that a strategy predicts answers from.
        answer: Whether the answer was "same", or the probability of it.
    """

    epoch: int
    inputs: tuple[float, ...]
    answer: float


@dataclass(eq=False)
class Request:
    """A pair that is asked about, or the pairs of a sheet.

    Args:
        questions: One for each pair; its images are the two that are shown.
        needs: Answers that must agree before a "same" counts, for each.
        confirms: Event of the first answer of the merge that it confirms.
        is_sheet: Whether the annotator gets a sheet, also one with a single question.
        known: Answers that the ledger has already; None for those that are asked for.
        numbers: Numbers in the queue of those that are asked for.
    """

    questions: list[Question]
    needs: list[int]
    confirms: int | None = None
    is_sheet: bool = False
    known: list[Answer | None] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def open_questions(self) -> list[Question]:
        """The questions without an answer."""
        pairs = zip(self.questions, self.known, strict=True)
        return [question for question, answer in pairs if answer is None]


class Outlook(NamedTuple):
    """What further questions are expected to change.

    Args:
        questions: Number of further questions, 50 where there are so many.
        changed: Pairs of images that they are expected to join or to set apart, or clusters that
            they are expected to merge into others.
        total: Pairs of images that share a cluster now, or clusters.
        counts: What is counted: "pairs" or "clusters".
    """

    questions: int
    changed: float
    total: int
    counts: Literal["pairs", "clusters"] = "pairs"

    @property
    def share(self) -> float:
        """What is expected to change, over the total."""
        return self.changed / max(self.total, 1)

    @property
    def is_worth_asking(self) -> bool:
        """Whether the questions are expected to change enough: 0.5 % of the pairs, or one merge in
        50 questions.
        """
        if self.counts == "clusters":
            return self.changed >= _MERGES_WORTH_ASKING * self.questions > 0
        return self.share >= _WORTH_ASKING


class Limits(Protocol):
    """How much a round may still ask."""

    def questions_left(self) -> int | None:
        """Return how many questions may still be asked; None is no limit."""

    def out_of_time(self) -> bool:
        """Return whether the answers so far took the time that they may take."""


class Source(Protocol):
    """Where the answers of a round come from: an annotator that is asked (`at_once.AtOnce`), or
    people who answer published questions (`published.Published`).

    An interrupted round has answers that lie ahead: they are in the ledger, and the round has not
    asked for them again.
    """

    @property
    def who(self) -> str | None:
        """Name of whoever answers next; None where nobody knows."""

    def divide(self, answers: list[Answer], position: int) -> list[Answer]:
        """Return the answers that are known when a round begins; the others lie ahead.

        Args:
            answers: All answers, in the order of `Answer.place`.
            position: Last event of the rounds of this run that ended.
        """

    def count_ahead(self) -> int:
        """Return how many answers lie ahead."""

    def is_ahead(self, pair: tuple[int, int]) -> bool:
        """Return whether the answer about a pair (low, high) lies ahead."""

    def take_ahead(self, pair: tuple[int, int]) -> Answer | None:
        """Take the answer about a pair (low, high) of those that lie ahead; None without one."""

    def is_another_round(self, pairs: list[tuple[int, int]], count: int, limits: Limits) -> bool:
        """Return whether this round differs from the one that was interrupted: an answer was undone
        since, or a setting changed.

        Args:
            pairs: Pairs that are asked about and have no answer that lies ahead.
            count: Answers that lie ahead and are used now.
            limits: How much may still be asked.
        """

    def catch_up(self) -> None:
        """Take in every answer that lies ahead, in the order in which they were given."""

    def answer(self, request: Request) -> None:
        """Wait for the answers to what was asked, and apply them."""
