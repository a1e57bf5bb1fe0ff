"""When a question is settled: how many people's verdicts must agree, and who decides if they do
not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from .question import Verdict

#: From so many people who disagree on, a reviewer decides.
_MOST_VOTERS = 3
_DECIDING = (Verdict.SAME.value, Verdict.DIFFERENT.value)


class Vote(NamedTuple):
    """A person's verdict on a question.

    Args:
        person: Number of the person; 0 for one without a number.
        verdict: The verdict.
        event: Last event of the decision about this question.
        reviews: Whether the person decides where others disagree.
    """

    person: int
    verdict: str
    event: int
    reviews: bool = False


class Standing(NamedTuple):
    """Where a question stands.

    Args:
        status: "open", "answered" or "review".
        event: Event that settled it; None unless it is answered.
        wanted: Further people who are wanted.
    """

    status: Literal["open", "answered", "review"]
    event: int | None = None
    wanted: int = 0


def standing(
    votes: Sequence[Vote],
    people: int,
    present: Collection[int],
    *,
    merges: bool = False,
    erring: Collection[int] = (),
    checked: Collection[int] = (),
) -> Standing:
    """Return where a question stands.

    It is answered when `people` agree, or as many as are present. Where people disagree, a third
    one decides. Where three disagree, or a third one is not present, a reviewer decides.

    Args:
        votes: The verdicts in force, in the order of their events.
        people: People who must agree.
        present: Numbers of the people who are here now.
        merges: Whether a "same" joins two clusters. One more person must then agree with a "same"
            of a person who errs often.
        erring: People who err often.
        checked: People whose "same" or "different" to this question a second person gives too.
    """
    now = Standing("open", wanted=max(1, min(people, len(present))))
    for count in range(1, len(votes) + 1):
        last = votes[count - 1]
        if now.status == "review":
            # Further people may vote, a reviewer decides.
            if last.reviews:
                return Standing("answered", last.event)
            continue
        now = _standing(votes[:count], people, present, merges, erring, checked)
        if now.status == "answered":
            return now
    return now


def _standing(
    votes: Sequence[Vote],
    people: int,
    present: Collection[int],
    merges: bool,
    erring: Collection[int],
    checked: Collection[int],
) -> Standing:
    (verdict, most), *others = Counter(vote.verdict for vote in votes).most_common()
    voters = {vote.person for vote in votes}
    others_here = set(present) - voters
    if others:
        if len(voters) >= _MOST_VOTERS and most > others[0][1]:
            return Standing("answered", votes[-1].event)
        if len(voters) >= _MOST_VOTERS or not others_here:
            return Standing("review", wanted=1)
        return Standing("open", wanted=1)
    if merges and verdict == Verdict.SAME.value and voters & set(erring):
        people += 1
    elif verdict in _DECIDING and voters & set(checked):
        people = max(people, 2)
    if most >= people or not others_here:
        return Standing("answered", votes[-1].event)
    return Standing("open", wanted=min(people - most, len(others_here)))
