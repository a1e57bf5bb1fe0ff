"""Questions, answers and annotators: the terms that strategies, ledger and closure share."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from reid_kernels.checks import LARGEST
from torch import Tensor

from ..arguments import as_ids, as_instance, as_integer, as_number, described


class Verdict(str, enum.Enum):
    """What a person says of two images. Only the first two are constraints."""

    SAME = "same"
    DIFFERENT = "different"
    UNSURE = "unsure"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True, eq=False)
class Question:
    """ "Same or different?" about two images, each of which stands for a group of images.

    Args:
        images: Rows of the two images that are shown: the medoids of their groups.
        groups: Rows of the images of each group, (a,) and (b,) int64, most central first; the
            medoid is the first.
        reason: "split" (one cluster may hold two identities) or "merge" (two clusters may hold one
            identity).
        similarity: Cosine similarity that made the question: of the medoids for a split, of the
            centroids for a merge.
        score: Expected gain; the order in which questions are asked when not all can be.
        cluster: Label of the cluster that a split is about, -1 for a merge.
        probability: Probability of "same" before the answer, of a strategy that estimates it.
    """

    images: tuple[int, int]
    groups: tuple[Tensor, Tensor]
    reason: str
    similarity: float
    score: float
    cluster: int = -1
    probability: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no question.

        Raises:
            ValueError: Wrong type or shape of an argument, an image twice, or an empty group.
        """
        if self._is_usual():
            return
        set_field = partial(object.__setattr__, self)
        set_field("images", _two_images(self.images))
        if not isinstance(self.groups, tuple | list) or len(self.groups) != 2:
            raise ValueError(f"groups: got {described(self.groups)}, expected two lists of images")
        set_field("groups", tuple(_group(group) for group in self.groups))
        as_instance("reason", self.reason, str)
        set_field("similarity", float(as_number("similarity", self.similarity)))
        set_field("score", float(as_number("score", self.score)))
        set_field("cluster", as_integer("cluster", self.cluster, -1))
        if self.probability is not None:
            set_field("probability", float(as_number("probability", self.probability, 0, 1)))

    def _is_usual(self) -> bool:
        """Whether the types are those of this package's own questions: there may be millions."""
        if not (type(self.images) is type(self.groups) is tuple):
            return False
        if not (len(self.images) == len(self.groups) == 2):
            return False
        (i, j), (first, second) = self.images, self.groups
        return (
            type(i) is type(j) is type(self.cluster) is int
            and type(self.similarity) is type(self.score) is float
            and type(first) is type(second) is Tensor
            and first.dtype is second.dtype is torch.int64
            and first.ndim == second.ndim == 1
            and type(self.reason) is str
            and self.probability is None
            and 0 <= min(i, j) < max(i, j) <= LARGEST
            and -1 <= self.cluster <= LARGEST
            and math.isfinite(self.similarity + self.score)
            and len(first) > 0 < len(second)
        )

    @classmethod
    def about_images(
        cls, i: int, j: int, reason: str, similarity: float, score: float = 0.0
    ) -> Question:
        """Return a question about two single images, the one with the lower row first."""
        if not (type(i) is type(j) is int and 0 <= min(i, j) < max(i, j) <= LARGEST):
            i, j = _two_images((i, j))
        low, high = min(i, j), max(i, j)
        groups = torch.tensor([low]), torch.tensor([high])
        return cls((low, high), groups, reason, similarity, score)


def _two_images(images: Any) -> tuple[int, int]:
    """Rows of two different images."""
    if not isinstance(images, tuple | list) or len(images) != 2:
        raise ValueError(f"images: got {described(images)}, expected the rows of two images")
    i, j = (as_integer("images", row, 0) for row in images)
    if i == j:
        raise ValueError(f"images: got image {i} twice, expected two different images")
    return i, j


def _group(group: Any) -> Tensor:
    """Rows of the images of a group."""
    # Rows that this package makes need no further look: there may be millions.
    if not isinstance(group, Tensor) or group.dtype != torch.int64 or group.ndim != 1:
        group = as_ids("groups", group, low=0, per="image")
    if not len(group):
        raise ValueError("groups: got a group without images, expected one image at least")
    return group


class Answer(NamedTuple):
    """One answer in force: a line of the ledger.

    Args:
        event: Its number in the ledger; a later event has a higher number.
        left: One image of the pair: its row, or -1 when it is not in the set any more.
        right: The other image.
        verdict: What was said.
        need: Answers that must agree before a "same" counts as a must-link; 1 when it counts at
            once.
        confirms: Event of the first answer of the merge that this one confirms, None when it is
            itself the first.
        seconds: Time that it took.
        run: The run that asked.
        order: Where its question stands among the questions of a queue: the last event when it was
            published, and its number. None for an answer that was given at once.
        gesture: Name of the decision that it is part of.
        is_member: Whether it judges another image of a group than the question was about.
    """

    event: int
    left: int
    right: int
    verdict: Verdict
    need: int = 1
    confirms: int | None = None
    seconds: float = 0.0
    run: str = ""
    order: tuple[int, int] | None = None
    gesture: str | None = None
    is_member: bool = False

    @property
    def place(self) -> tuple[int, int, int]:
        """Key by which answers are ordered.

        Answers of a queue are in the order of their questions, whoever was faster.
        """
        known_event, question = self.order or (self.event, 0)
        return known_event, question, self.event


class Annotator(Protocol):
    """Whoever answers questions: an oracle, a person at a terminal, a web page.

    `answer` may raise `QuitAsking` to end the asking for now, `UndoLast` to take the last answer
    back, and `NoAnswer` to pass.
    """

    #: Recorded with each answer.
    name: str

    def answer(self, question: Question) -> Verdict:
        """Answer one question about the images `question.images`."""


class SheetAnnotator(Annotator, Protocol):
    """An annotator that also compares one image with several others at a time.

    `answer_sheet` may raise what `answer` may raise. An annotator that takes no time of its own,
    such as an oracle, may have a method `sheet_seconds(count)`: the seconds that a sheet counts
    for.
    """

    def answer_sheet(self, questions: Sequence[Question]) -> Sequence[Verdict]:
        """Answer questions about the same first image, `questions[0].images[0]`.

        Returns:
            A verdict for each question, in their order.
        """


class Judgement(NamedTuple):
    """What an annotator says of a question and of what it sees beside the two images.

    Args:
        verdict: The verdict of the question.
        members: Pairs of rows, each the image that a side shows large and another one of its group,
            with what is said of them.
    """

    verdict: Verdict
    members: Sequence[tuple[tuple[int, int], Verdict]]


class MemberAnnotator(Annotator, Protocol):
    """An annotator that also says which images of a group do not belong to it.

    `judge` may raise what `answer` may raise.
    """

    def judge(self, question: Question) -> Judgement:
        """Answer a question, and judge the images beside the two that it is about."""


class QueueAnnotator(Protocol):
    """Stands for people who answer published questions, in this process or in others.

    `people` may say how many there are: three questions are open for each, at most 16. A method
    `start(ledger)` is called when a round begins.
    """

    name: str

    def serve(self, ledger: Any) -> None:
        """Let a person decide one published question, or wait for others for a moment.

        Args:
            ledger: The `answers.Ledger` with the questions, which its trainer has open.

        Raises:
            QuitAsking: Nobody will answer any more.
        """


#: Whoever a run may ask: somebody who answers at once, or people who answer published questions.
AnyAnnotator = Annotator | QueueAnnotator


class QuitAsking(Exception):  # noqa: N818
    """The annotator leaves; every answer so far is kept, and the question that was open will be
    asked again.
    """


class NoAnswer(Exception):  # noqa: N818
    """The annotator passes: nothing is recorded and nothing is spent."""


class UndoLast(Exception):  # noqa: N818
    """The annotator takes the last answer back."""
