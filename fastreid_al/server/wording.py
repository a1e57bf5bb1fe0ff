"""What the service returns, as the JSON that the page reads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..answers.ledger import Ledger
from ..answers.question import Verdict
from ..answers.repair import Link, conflicts
from ..answers.service import AnswerService
from ..answers.tasks import (
    Decision,
    ImageEntry,
    Impact,
    Outcome,
    PersonFigures,
    Progress,
    Step,
    Task,
)
from ..errors import LedgerError
from .pictures import Pictures

#: Images of a side that are shown at most.
_MOST_MEMBERS = 1000
#: Images whose path and digest are remembered.
_REMEMBERED = 200_000
#: Figures of a round that the page shows.
_OUTLOOK = ("questions", "changed", "total", "counts")


class Wording:
    """Describes tasks, outcomes and figures for the page.

    Args:
        service: Knows the images and events.
        pictures: Knows camera, time and track of images.
        show_similarity: Whether similarity and reason are shown, which may sway an answer.
        read_ledger: Opens the ledger for reading, beside the service.
    """

    def __init__(
        self,
        service: AnswerService,
        pictures: Pictures,
        show_similarity: bool,
        read_ledger: Callable[[], Ledger],
    ) -> None:
        self._service = service
        self._pictures = pictures
        self._show_similarity = show_similarity
        self._read_ledger = read_ledger
        self._lock = threading.Lock()
        self._entries: dict[int, ImageEntry] = {}

    def is_reachable(self) -> bool:
        """Return whether the database answers."""
        try:
            self._service.people()
        except LedgerError:
            return False
        return True

    def task(self, task: Task) -> dict[str, Any]:
        """Return what the page shows of a task. Nothing says whether its answer is known."""
        items = [
            {
                "question": item.question,
                "image": item.right,
                "members": _others(item.right, item.right_images),
                "pairs": len(task.left_images) * len(item.right_images),
                "prospects": self.prospects(item.question),
            }
            for item in task.items
        ]
        left = {"image": task.left, "members": _others(task.left, task.left_images)}
        shown = {task.left, *task.left_images[:_MOST_MEMBERS]}
        for item in task.items:
            shown |= {item.right, *item.right_images[:_MOST_MEMBERS]}
        found: dict[str, Any] = {
            "id": task.id,
            "sheet": task.sheet,
            "number": task.number,
            "total": task.total,
            "left": left,
            "items": items,
            "images": self.images(shown),
        }
        if self._show_similarity:
            found["reason"] = task.reason
            found["similarity"] = _finite(task.similarity)
            found["probability"] = _finite(task.probability)
        return found

    def prospects(self, question: int) -> dict[str, Any]:
        """Return what each answer to a question would change.

        What earlier answers imply is told with the similarity only: either sways an answer.

        Args:
            question: Its number.
        """
        found = self._service.prospects(question, exact=self._show_similarity)
        return {verdict.value: _impact(impact) for verdict, impact in found.items()}

    def images(self, numbers: Iterable[int]) -> dict[str, dict[str, Any]]:
        """Return caption and version of images, by number.

        Args:
            numbers: Their numbers in the ledger.
        """
        found = {}
        for number in numbers:
            entry = self.entry(number)
            found[str(number)] = {
                "version": entry.digest[:16],
                "caption": self._pictures.caption(entry.path),
            }
        return found

    def entry(self, number: int) -> ImageEntry:
        """Return path and digest of an image, which never change; it may be erased since.

        Args:
            number: Its number in the ledger.

        Raises:
            LedgerError: There is no such image.
        """
        with self._lock:
            found = self._entries.get(number)
        if found is None:
            found = self._service.image(number)
            with self._lock:
                if len(self._entries) >= _REMEMBERED:
                    self._entries.clear()
                self._entries[number] = found
        return found

    def outcome(self, outcome: Outcome) -> dict[str, Any]:
        """Return what became of an answer."""
        return {
            "events": list(outcome.events),
            "status": outcome.status,
            "contradiction": list(outcome.contradiction),
            "effect": None if outcome.effect is None else _impact(outcome.effect),
        }

    def decisions(self, decisions: Sequence[Decision]) -> list[dict[str, Any]]:
        """Return a person's last decisions, with the images that they are about."""
        return [
            {
                "events": list(decision.events),
                "at": decision.answered_at,
                "left": decision.left,
                "verdicts": [list(verdict) for verdict in decision.verdicts],
                "odd": list(decision.odd),
                "other_side": list(decision.other_side),
                "undone": decision.undone,
                "comment": decision.comment,
                "tags": list(decision.tags),
                "seconds": _finite(decision.seconds),
                "images": self.images(
                    {decision.left, *(image for image, _ in decision.verdicts), *decision.odd}
                ),
            }
            for decision in decisions
        ]

    def steps(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        """Return a chain of answers, with the images that they are about."""
        return [
            {
                "event": step.event,
                "left": step.left,
                "right": step.right,
                "verdict": step.verdict,
                "people": list(step.people),
                "at": _finite(step.answered_at),
                "epoch": step.epoch,
                "run": step.run,
                "images": self.images({step.left, step.right}),
            }
            for step in steps
        ]

    def proof(self, a: int, b: int) -> dict[str, Any]:
        """Return the two images, and the chain of answers that decides about them; it is empty
        where none does.
        """
        chain = self._service.proof(a, b)
        decides = any(step.verdict == Verdict.DIFFERENT.value for step in chain)
        verdict = Verdict.DIFFERENT if decides else Verdict.SAME
        return {
            "pair": [a, b],
            "verdict": verdict.value if chain else None,
            "images": self.images({a, b}),
            "events": self.steps(chain),
        }

    def contradictions(self) -> list[dict[str, Any]]:
        """Return the contradictions with the answers that are likely wrong, the newest first.

        Reads all answers, by a connection of its own: nobody waits for it.
        """
        with self._read_ledger() as ledger:
            found = conflicts(ledger)
        return [
            {
                "answer": self._link(conflict.answer),
                "against": [self._link(link) for link in conflict.against],
                "set_aside": list(conflict.set_aside),
                "suspects": [suspect._asdict() for suspect in conflict.suspects],
            }
            for conflict in reversed(found)
        ]

    def _link(self, link: Link) -> dict[str, Any]:
        return {
            "event": link.event,
            "left": link.left,
            "right": link.right,
            "verdict": link.verdict,
            "people": list(link.people),
            "at": _finite(link.answered_at),
            "epoch": link.epoch,
            "images": self.images({link.left, link.right}),
        }

    def person(self, figures: PersonFigures) -> dict[str, Any]:
        """Return the figures of a person's work."""
        return figures._asdict()

    def progress(self, progress: Progress) -> dict[str, Any]:
        """Return how far a run is."""
        outlook = progress.outlook or {}
        total = max(progress.total or 0, progress.answered + progress.open)
        return {
            "epoch": progress.epoch,
            # Each decision moves the bar, also one about a question whose answer is known.
            "answered": min(progress.answered + progress.known, total),
            "open": progress.open,
            "review": progress.review,
            "total": total,
            "decided": progress.decided,
            "rate": _finite(progress.rate),
            "rate_of_all": _finite(progress.rate_of_all),
            "eta_seconds": _finite(progress.eta_seconds),
            "outlook": {name: outlook[name] for name in _OUTLOOK if name in outlook} or None,
            "worth_stopping": progress.worth_stopping,
        }


def _impact(impact: Impact) -> dict[str, Any]:
    """What an answer changes."""
    return {
        "effect": impact.effect.value,
        "joined": list(impact.joined),
        "pairs": impact.pairs,
        "apart": impact.apart,
        "cuts": impact.cuts,
        "against": list(impact.against),
        "lost": impact.lost,
    }


def _others(image: int, members: Sequence[int]) -> list[int]:
    """The images of a group without the one that is shown large."""
    return [member for member in members if member != image][:_MOST_MEMBERS]


def _finite(value: float | None) -> float | None:
    """A number that JSON can hold."""
    return value if value is not None and math.isfinite(value) else None
