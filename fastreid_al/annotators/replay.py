"""The replay annotator: answers that were given in another run."""

from __future__ import annotations

from ..answers.closure import Closure
from ..answers.ledger import Ledger
from ..answers.question import NoAnswer, Question, Verdict
from ..arguments import as_instance
from ..errors import SettingError
from .context import AnnotatorContext


class Replay:
    """Repeats the answers of another run, and what follows from them.

    Args:
        closure: The answers of the other run, by row of this run's images.
    """

    name = "replay"

    def __init__(self, closure: Closure) -> None:
        self._closure = as_instance("closure", closure, Closure)

    def answer(self, question: Question) -> Verdict:
        """Return the answer of the other run.

        Raises:
            NoAnswer: The other run has no answer about the two images, and none follows from its
                answers.
        """
        as_instance("question", question, Question)
        given = self._closure.answer(*question.images)
        if given is not None:
            return given.verdict
        implied = self._closure.verdict(*question.images)
        if implied is not None:
            return implied
        a, b = question.images
        raise NoAnswer(f"the other run has no answer about images {a} and {b}")


def make_replay(context: AnnotatorContext) -> Replay:
    """Return an annotator that repeats the answers of the ledger `questions.replay`.

    Raises:
        SettingError: The ledger is not named.
        LedgerError: The ledger cannot be read.
    """
    url = context.config.questions.replay
    if not url:
        raise SettingError(
            "questions.replay", url, "the ledger whose answers the annotator replay repeats"
        )
    with Ledger.open(url, context.keys, write=False) as ledger:
        return Replay(Closure.replay(ledger.answers()))
