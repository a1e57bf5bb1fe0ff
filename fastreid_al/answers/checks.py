"""How many of a person's answers something else checks: known answers, and second votes.

Checks cost answers, so they go where they tell most: to people of whom it is not known yet whether
they err often. A new person is such a person, and so is one whose answers turned out wrong.

An answer that contradicts what other answers imply is no evidence here. A pair whose answer follows
from others is not asked about, so that there are few such answers. Those that are seen are no fair
sample either: an implied answer that agrees is hardly ever seen, and each one that contradicts is.
They would blame whoever answered last. `repair` says which answers of a contradiction are likely
wrong.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from ..arguments import as_number
from .agreement import ErrorEstimate

#: A person is pointed out if it is more likely than this that they err often: that more than a
#: tenth of their answers is wrong.
LIKELY = 0.4
#: A person is trusted if it is less likely.
UNLIKELY = 0.03


class Checks(NamedTuple):
    """Shares of the answers that are checked.

    Args:
        known: Share of a person's tasks whose answer is known, once the person is trusted.
        known_unsure: The same share before.
        again: Share of a person's answers that a second person gives too, once the first one is
            trusted.
        again_unsure: The same share before. All answers of a person who likely errs often are
            given again.
    """

    known: float = 0.05
    known_unsure: float = 0.2
    again: float = 0.05
    again_unsure: float = 0.3

    def checked(self) -> Checks:
        """Return these shares.

        Raises:
            ValueError: One is no number from 0 to 1.
        """
        return Checks(*(float(as_number(n, v, 0, 1)) for n, v in self._asdict().items()))

    def share_known(self, estimate: ErrorEstimate | None) -> float:
        """Return the share of a person's tasks whose answer is known.

        Args:
            estimate: What is known of the person; None where too little is.
        """
        return self.known if is_trusted(estimate) else self.known_unsure

    def share_again(self, estimate: ErrorEstimate | None) -> float:
        """Return the share of a person's answers that a second person gives too.

        Args:
            estimate: What is known of the person; None where too little is.
        """
        if is_trusted(estimate):
            return self.again
        # Without second votes for anybody, nobody waits for one.
        return 1.0 if errs_often(estimate) and self.again_unsure > 0 else self.again_unsure

    def asks_again(self, person: int, task: int, estimate: ErrorEstimate | None) -> bool:
        """Return whether a second person gets a task that a person answered.

        The same tasks are drawn again while the share does not change, and fewer or more of them
        when it does.

        Args:
            person: Number of the person.
            task: Number of the task.
            estimate: What is known of the person; None where too little is.
        """
        return draw("again", person, task) < self.share_again(estimate)


def is_trusted(estimate: ErrorEstimate | None) -> bool:
    """Return whether a person hardly errs often."""
    return estimate is not None and estimate.often < UNLIKELY


def errs_often(estimate: ErrorEstimate | None) -> bool:
    """Return whether more than a tenth of a person's answers are likely wrong."""
    return estimate is not None and estimate.often > LIKELY


def draw(*key: str | int) -> float:
    """Return a number in [0, 1) that depends on the arguments only, as if it were random."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
