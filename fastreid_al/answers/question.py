"""Questions, answers and annotators: the terms that strategies, ledger and closure share."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


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
    """

    images: tuple[int, int]
    groups: tuple[Tensor, Tensor]
    reason: str
    similarity: float
    score: float
    cluster: int = -1

    @classmethod
    def about_images(
        cls, i: int, j: int, reason: str, similarity: float, score: float = 0.0
    ) -> Question:
        """Return a question about two single images, the one with the lower row first."""
        low = min(i, j)
        high = max(i, j)
        groups = torch.tensor([low]), torch.tensor([high])
        return cls((low, high), groups, reason, similarity, score)


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
    """

    event: int
    left: int
    right: int
    verdict: Verdict
    need: int = 1
    confirms: int | None = None
    seconds: float = 0.0
    run: str = ""


class Annotator(Protocol):
    """Whoever answers questions: an oracle, a person at a terminal, a web page.

    `answer` may raise `QuitAsking` to end the asking for now, `UndoLast` to take the last answer
    back, and `NoAnswer` to pass.
    """

    #: Recorded with each answer.
    name: str

    def answer(self, question: Question) -> Verdict:
        """Answer one question about the images `question.images`."""


class QuitAsking(Exception):  # noqa: N818
    """The annotator leaves; every answer so far is kept, and the question that was open will be
    asked again.
    """


class NoAnswer(Exception):  # noqa: N818
    """The annotator passes: nothing is recorded and nothing is spent."""


class UndoLast(Exception):  # noqa: N818
    """The annotator takes the last answer back."""
