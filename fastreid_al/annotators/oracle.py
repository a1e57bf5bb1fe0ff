"""The oracle: an annotator that knows the true identities, with errors at given rates."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..answers.question import Judgement, Question, Verdict
from ..arguments import as_ids, as_instance, as_integer, as_number, check_row, described
from ..errors import UserError
from .context import AnnotatorContext

#: Most small images of a side that are judged.
_MEMBERS = 10


class Oracle:
    """Answers from true identities, with errors at given rates; the same question always has the
    same answer.

    The answer to a question depends on the seed and on the names of its two images only. It does
    not depend on the order of the questions, the order of the images, or the process.

    Args:
        identities: (n,) int64, true identities.
        names: n names of the images; their rows when not given. If the names are the images' paths,
            an image keeps its answers when other images are added to the set or removed.
        error: Share of questions answered wrong: "same" for "different", and "different" for
            "same".
        unsure: Share of questions answered "unsure".
        not_comparable: Share of questions answered "not comparable".
        seed: Seed of the errors.
        seconds: Seconds that an answer is counted for: what a person would take.
        seconds_more: Seconds for each further image of a sheet.

    Raises:
        ValueError: A rate is not in [0, 1], the rates sum to more than 1, or an identity is
            unknown.
    """

    name = "oracle"

    def __init__(
        self,
        identities: Tensor,
        names: Sequence[str] | None = None,
        *,
        error: float = 0.0,
        unsure: float = 0.0,
        not_comparable: float = 0.0,
        seed: int = 0,
        seconds: float = 0.0,
        seconds_more: float = 0.0,
    ) -> None:
        identities = as_ids("identities", identities, per="image")
        _check(
            identities, names, {"unsure": unsure, "not_comparable": not_comparable, "error": error}
        )
        self._identities = identities.tolist()
        self._names = names
        self._seed = as_integer("seed", seed)
        self.seconds = as_number("seconds", seconds, 0)
        self._seconds_more = as_number("seconds_more", seconds_more, 0)
        # A uniform number below the first bound is "unsure", below the second "not comparable",
        # below the third wrong.
        self._unsure_below = unsure
        self._not_comparable_below = math.fsum((unsure, not_comparable))
        self._wrong_below = math.fsum((unsure, not_comparable, error))

    def answer(self, question: Question) -> Verdict:
        """Answer for the two images that are shown.

        Raises:
            ValueError: It is no question, or one about an image without an identity.
        """
        images = as_instance("question", question, Question).images
        a, b = (check_row("question.images", row, len(self._identities)) for row in images)
        number = self._uniform(a, b)
        if number < self._unsure_below:
            return Verdict.UNSURE
        if number < self._not_comparable_below:
            return Verdict.NOT_COMPARABLE
        same = self._identities[a] == self._identities[b]
        wrong = number < self._wrong_below
        return Verdict.SAME if same != wrong else Verdict.DIFFERENT

    def judge(self, question: Question) -> Judgement:
        """Answer for the two images, and for the 10 most central other images of each group.

        Each of these is compared with the image of its side, with errors at the same rates. One
        that the oracle is unsure about is left out.
        """
        verdict = self.answer(question)
        members = []
        for image, group in zip(question.images, question.groups, strict=True):
            others = [row for row in group[: _MEMBERS + 1].tolist() if row != image][:_MEMBERS]
            for other in others:
                said = self.answer(Question.about_images(image, other, "member", 0.0))
                if said in (Verdict.SAME, Verdict.DIFFERENT):
                    members.append(((image, other), said))
        return Judgement(verdict, members)

    def answer_sheet(self, questions: Sequence[Question]) -> list[Verdict]:
        """Answer for each pair of images, as `answer` does."""
        return [self.answer(question) for question in questions]

    def sheet_seconds(self, count: int) -> float:
        """Seconds that a sheet of so many questions is counted for."""
        return self.seconds + (count - 1) * self._seconds_more

    def _uniform(self, a: int, b: int) -> float:
        """Return a number in [0, 1) that is uniform over pairs of images."""
        names = sorted(str(row) if self._names is None else self._names[row] for row in (a, b))
        text = json.dumps([self._seed, *names])
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        # 53 bits, because more would round up to 1.
        return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def make_oracle(context: AnnotatorContext) -> Oracle:
    """Return the oracle of a run.

    Raises:
        UserError: An identity is unknown, or a rate is out of range.
    """
    identities = torch.tensor([record.identity for record in context.records], dtype=torch.int64)
    settings = context.config.oracle
    try:
        return Oracle(
            identities,
            context.keys.names,
            error=settings.error,
            unsure=settings.unsure,
            not_comparable=settings.not_comparable,
            seed=settings.seed,
            seconds=settings.seconds,
            seconds_more=settings.seconds_more,
        )
    except ValueError as error:
        raise UserError(f"`oracle`: {error}") from error


def _check(identities: Tensor, names: Sequence[str] | None, rates: dict[str, float]) -> None:
    for what, rate in rates.items():
        as_number(what, rate, 0, 1)
    # Summed without rounding in between: 0.1 + 0.2 + 0.7 is 1.
    total = math.fsum(rates.values())
    if total > 1:
        raise ValueError(
            f"unsure, not_comparable and error: got a sum of {total:g}, expected at most 1"
        )
    unknown = int((identities < 0).sum())
    if unknown:
        raise ValueError(
            f"the oracle needs true identities: {unknown:,} of {len(identities):,} are unknown (-1)"
        )
    if names is None:
        return
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names: got {described(names)}, expected a list of names")
    if len(names) != len(identities):
        raise ValueError(
            f"names: got {len(names):,}, expected one for each of {len(identities):,} identities"
        )
