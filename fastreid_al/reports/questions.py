"""The questions of a run as a page shows them: both pictures, the answer, and what follows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import combinations, islice, product
from pathlib import Path

from markupsafe import Markup

from ..answers import Verdict
from ..answers.closure import Closure
from ..answers.ledger import Event, Ledger
from ..answers.posterior import weigh_answers
from ..errors import printable
from .crops import Crops

#: Pairs that are looked at to find implied ones.
_PAIRS = 20_000
#: Steps of a chain that are shown.
_STEPS = 12

#: Signs that say an answer without colour.
SIGNS = {"same": "=", "different": "\u2260"}


@dataclass(frozen=True)
class Answers:
    """The answers of a ledger, and what follows from them.

    About 2.3 kB an answer: 150 MB at 65,000 answers.

    Args:
        name: Name of the ledger, without a password.
        events: Every event that is an answer, also those that were taken back.
        closure: What follows from the answers in force, about the images of the ledger.
        paths: Path of each image of the ledger by its number, relative to the folder of the set.
        doubted: Events of answers that the others contradict, as `ledger export` weighs them.
    """

    name: str
    events: Sequence[Event]
    closure: Closure
    paths: dict[int, str]
    doubted: frozenset[int]


def read_answers(url: str) -> Answers:
    """Read a ledger without changing it.

    Raises:
        LedgerError: It cannot be read.
    """
    with Ledger.open(url, write=False) as ledger:
        events = [event for event in ledger.events() if event.kind == "answer"]
        answers = ledger.answers()
        paths = ledger.images()
        name = ledger.name
    names = {event.id: event.annotator for event in events}
    weighed = weigh_answers(answers, lambda i, j: 0.0, None, names)
    doubted = frozenset(answer.event for answer in weighed.doubted)
    return Answers(name, events, Closure.replay(answers), paths, doubted)


@dataclass(frozen=True)
class Side:
    """One of the two pictures of a question.

    Args:
        crop: The picture.
        name: Its path.
    """

    crop: Markup
    name: str


@dataclass(frozen=True)
class Shown:
    """A question as the page shows it.

    Args:
        event: Number of its answer in the ledger.
        left: One image.
        right: The other one.
        verdict: The answer.
        sign: A sign for "same" and "different".
        facts: Who answered, when, in which epoch, why it was asked, in how many seconds.
        marks: What is unusual about the answer.
        chain: The earlier answers that it contradicts.
    """

    event: int
    left: Side
    right: Side
    verdict: str
    sign: str
    facts: Sequence[str]
    marks: Sequence[str]
    chain: Sequence[Shown]


@dataclass(frozen=True)
class Implied:
    """Two images that nobody compared and about which the answers decide.

    Args:
        left: One image.
        right: The other one.
        verdict: "same" or "different".
        sign: A sign for the verdict.
        chain: The answers that prove it, from the first image to the second.
        more: Answers of the chain that are not shown.
    """

    left: Side
    right: Side
    verdict: str
    sign: str
    chain: Sequence[Shown]
    more: int


class QuestionPages:
    """Turns answers into what a page shows.

    Args:
        answers: The answers.
        find: Returns the file of an image of the set by its path relative to the set's folder, None
            for an image that is not in the set.
        crops: Makes the pictures.
        anonymise: Whether annotators are numbered in place of named.
        identity: Returns the true identity of an image by its path, None where it is not known;
            answers that it contradicts are marked.
    """

    def __init__(
        self,
        answers: Answers,
        find: Callable[[str], Path | None],
        crops: Crops,
        anonymise: bool = False,
        identity: Callable[[str], int | None] = lambda path: None,
    ) -> None:
        self._answers = answers
        self._identity = identity
        self._find = find
        self._crops = crops
        self._anonymise = anonymise
        self._by_event = {event.id: event for event in answers.events}
        names = dict.fromkeys(event.annotator for event in answers.events)
        self._people = {name: number for number, name in enumerate(names, 1)}
        self._marks = self._all_marks()

    def person(self, name: str) -> str:
        """Return the name of an annotator as the page shows it."""
        return f"annotator {self._people[name]}" if self._anonymise else printable(name)

    def people(self) -> list[list[str]]:
        """Return a row for each annotator: name, answers in force by verdict, seconds."""
        rows = []
        for name in self._people:
            own = [e for e in self._answers.events if e.annotator == name and e.undone_by is None]
            verdicts = [sum(e.verdict == verdict.value for e in own) for verdict in Verdict]
            seconds = sum(max(0.0, e.answered_at - e.asked_at) for e in own)
            counts = [f"{count:,}" for count in (len(own), *verdicts)]
            rows.append([self.person(name), *counts, f"{seconds:,.0f}"])
        return rows

    def chosen(self, most: int) -> list[Event]:
        """Return the answers that are shown: those with a mark, then the latest; by number."""
        events = self._answers.events
        marked = [event for event in events if self._marks[event.id]][:most]
        known = {event.id for event in marked}
        others = [event for event in events if event.id not in known]
        latest = others[max(0, len(others) - (most - len(marked))) :]
        return sorted([*marked, *latest], key=lambda event: event.id)

    def is_marked(self, event: Event) -> bool:
        """Whether something about an answer is unusual."""
        return bool(self._marks[event.id])

    def show(self, event: Event, with_chain: bool = True) -> Shown:
        """Return an answer as the page shows it."""
        chain: list[Shown] = []
        if with_chain:
            for found in self._answers.closure.contradictions:
                if found.event == event.id:
                    chain = self._steps(found.against)
        verdict = printable(event.verdict or "unknown")
        return Shown(
            event.id,
            self._side(event.left),
            self._side(event.right),
            verdict,
            SIGNS.get(verdict, "?"),
            self._facts(event),
            self._marks[event.id],
            chain,
        )

    def implied(self, most: int) -> list[Implied]:
        """Return pairs that were not asked about and that the answers decide, with the proof.

        Half of them are the same at most, so that both verdicts are shown where both follow.

        Args:
            most: Most pairs that are returned.
        """
        found: dict[str, list[Implied]] = {"same": [], "different": []}
        for a, b in islice(self._decided_pairs(), _PAIRS):
            verdict = self._answers.closure.verdict(a, b)
            if verdict is None or self._answers.closure.answered(a, b):
                continue
            of_verdict = found[verdict.value]
            if len(of_verdict) < max(1, most // 2):
                of_verdict.append(self._implied(a, b, verdict.value))
            elif all(len(pairs) >= most // 2 for pairs in found.values()):
                break
        return [*found["same"], *found["different"]][:most]

    def _decided_pairs(self) -> Iterator[tuple[int, int]]:
        """A few pairs of each component and of each two components with a cannot-link."""
        closure = self._answers.closure
        for root, images in closure.components().items():
            yield from islice(combinations(images[:4], 2), 3)
            for other in sorted(closure.cannot_links(root)):
                if root < other:
                    members = closure.components()[other]
                    yield from islice(product(images[-2:], members[-2:]), 2)

    def _implied(self, a: int, b: int, verdict: str) -> Implied:
        chain = self._answers.closure.chain(a, b)
        left, right = (self._side(self._answers.paths.get(image)) for image in (a, b))
        steps = self._steps(chain)
        return Implied(left, right, verdict, SIGNS[verdict], steps, len(chain) - len(steps))

    def _steps(self, chain: Sequence[int]) -> list[Shown]:
        events = [self._by_event[number] for number in chain[:_STEPS] if number in self._by_event]
        return [self.show(event, with_chain=False) for event in events]

    def _side(self, path: str | None) -> Side:
        name = "an unknown image" if path is None else printable(path)
        return Side(self._crops.show(None if path is None else self._find(path), name), name)

    def _facts(self, event: Event) -> list[str]:
        facts = [f"by {self.person(event.annotator)}", utc(event.answered_at)]
        if event.epoch is not None:
            facts.append(f"epoch {event.epoch}")
        if event.reason:
            facts.append(printable(event.reason))
        if event.similarity is not None:
            facts.append(f"similarity {event.similarity:.3f}")
        seconds = event.answered_at - event.asked_at
        return [*facts, f"{seconds:,.1f} s"] if seconds > 0 else facts

    def _all_marks(self) -> defaultdict[int, list[str]]:
        """What is unusual about each answer, by its event."""
        marks: defaultdict[int, list[str]] = defaultdict(list)
        closure = self._answers.closure
        for event in self._answers.events:
            if event.undone_by is not None:
                marks[event.id].append(f"taken back by event {event.undone_by}")
            elif event.verdict == Verdict.SAME.value and not closure.counted(event.id):
                marks[event.id].append("waits for further answers that agree")
        for found in closure.contradictions:
            against = ", ".join(f"{number}" for number in found.against)
            marks[found.event].append(f"contradicts what follows from {against}")
            for number in found.set_aside:
                if number != found.event:
                    marks[number].append(f"set aside because of {found.event}")
            for number in found.against:
                if number not in found.set_aside:
                    marks[number].append(f"contradicted by {found.event}")
        for number in self._answers.doubted:
            marks[number].append("doubted: other answers weigh more")
        for event in self._answers.events:
            if self._is_wrong(event):
                marks[event.id].append("wrong by the true identities")
        return marks

    def _is_wrong(self, event: Event) -> bool:
        """Whether the true identities are known and contradict an answer."""
        first, second = (self._identity(path or "") for path in (event.left, event.right))
        if first is None or second is None:
            return False
        truth = Verdict.SAME if first == second else Verdict.DIFFERENT
        return event.verdict in ("same", "different") and event.verdict != truth.value


def utc(seconds: float) -> str:
    """Return a time in unix seconds as date and time in UTC; for a damaged one words."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return "time unknown"
