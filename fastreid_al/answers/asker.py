"""The asker: stands between a strategy and an annotator, and keeps the budget, the ledger and the
closure.
"""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from ..arguments import (
    as_ids,
    as_instance,
    as_integer,
    as_number,
    check_choice,
    check_row,
    described,
)
from .closure import Closure, Effect
from .ledger import Ledger
from .posterior import (
    UNKNOWN_RATE,
    Prior,
    answer_weight,
    decides,
    limited,
    log_odds_of,
    weigh_answers,
)
from .question import (
    Annotator,
    Answer,
    NoAnswer,
    Question,
    SheetAnnotator,
    UndoLast,
    Verdict,
)

ClosureName = Literal["transitive", "none"]
#: Returns the labels (n,) that the answers so far lead to.
CurrentLabels = Callable[[], Tensor]
#: What an annotator returns.
Answered = TypeVar("Answered")
#: Further pairs that are asked about for each confirmation that a merge needs, if answers are
#: undecided.
_TRIES = 3
#: Observations of a name that are kept.
_MOST_OBSERVATIONS = 2000
#: Log-odds of "same", 70 per cent, from which on a merge counts if answers may be wrong.
_SURE = 0.85
#: Answers that must agree before a merge counts, at most, if answers may be wrong.
_MOST_ANSWERS = 3


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
        seconds: Time that the answers took.
        remembered: Pairs that the strategy asked about and that earlier answers decided or
            contained.
        contradictions: Answers that contradict earlier ones.
        doubted: Answers of all rounds that are not believed.
    """

    questions: int = 0
    seconds: float = 0.0
    remembered: int = 0
    contradictions: int = 0
    doubted: int = 0

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


class Asker:
    """Asks an annotator about each pair of images once, and never about a pair that the answers so
    far decide.

    A round (`begin` to `end`) starts from the answers of this run up to its position in the ledger,
    and from all answers of other runs. Answers of this run beyond the position were given before
    the run was killed or stopped. They are taken from the ledger when the round asks for them, so a
    resumed round is the same round.

    Args:
        annotator: Answers the questions.
        ledger: Keeps the answers; a ledger in memory when not given.
        closure: "transitive" also decides pairs that follow from the answers; "none" keeps the
            answered pairs only, which is the paper's label memory.
        confirm_merges: Further questions about other images of the two clusters that must agree
            before a merge counts.
        budget: Questions of all rounds together; None is no limit.
        minutes: Minutes that the answers of all rounds may take together; None is no limit.
        run: Name of the run in the ledger; a resumed run has its old name. A new name when not
            given.
        seed: Seed of strategies that draw random numbers.
        expected_error: Share of the answers that are expected to be wrong. 0 believes every answer,
            and None estimates it for each annotator. Answers are weighed by `weigh`.
        cameras: (n,) int64 camera of each image, -1 where unknown, for strategies that use it; None
            where no camera is known.
    """

    def __init__(
        self,
        annotator: Annotator,
        ledger: Ledger | None = None,
        *,
        closure: ClosureName = "transitive",
        confirm_merges: int = 0,
        budget: int | None = None,
        minutes: float | None = None,
        run: str | None = None,
        seed: int = 0,
        expected_error: float | None = 0.0,
        cameras: Tensor | None = None,
    ) -> None:
        if not callable(getattr(annotator, "answer", None)) or not hasattr(annotator, "name"):
            raise ValueError(
                f"annotator: got {described(annotator)}, expected an object with a name and a "
                "method answer(question)"
            )
        self.annotator = annotator
        if ledger is not None:
            as_instance("ledger", ledger, Ledger)
        check_choice("closure", closure, ("transitive", "none"))
        self.transitive = closure == "transitive"
        self.confirm_merges = as_integer("confirm_merges", confirm_merges, 0)
        self.budget = None if budget is None else as_integer("budget", budget, 0)
        self.minutes = None if minutes is None else as_number("minutes", minutes, 0)
        self.run = uuid.uuid4().hex if run is None else as_instance("run", run, str)
        self.seed = as_integer("seed", seed, 0)
        self.expected_error = (
            None if expected_error is None else as_number("expected_error", expected_error, 0, 1)
        )
        self.cameras = None if cameras is None else as_ids("cameras", cameras, low=-1, per="image")
        self.ledger = ledger or Ledger.open("sqlite://")
        #: Event of the ledger up to which the answers of this run belong to rounds that ended.
        self.position = 0
        #: Questions and seconds of the rounds that ended.
        self.asked = 0
        self.seconds = 0.0
        #: Called after each answer, when it is on the disk, with the number of questions so far and
        #: `current_labels`.
        self.after_answer: Callable[[int, CurrentLabels], None] | None = None
        self.current_labels: CurrentLabels = lambda: torch.zeros(0, dtype=torch.int64)
        #: Unit-norm features (n, D) and clusters (n,) of the round, which `ask_pair` needs.
        self.features: Tensor | None = None
        self.labels: Tensor | None = None
        #: What a strategy expects of further questions at the end of the round; None if it does not
        #: say.
        self.outlook: Outlook | None = None
        self.epoch = 0
        #: What strategies observed in the rounds that ended, by name; see `observe`.
        self.observations: dict[str, list[Observation]] = {}
        self._observed: list[tuple[str, Observation]] = []
        self._limit: int | None = None
        #: Answers beyond the position, by pair, until the round asks for them.
        self._ahead: dict[tuple[int, int], Answer] = {}
        #: Events of each sheet since this object was made, which are taken back together.
        self._sheets: list[list[int]] = []
        #: Pairs of this round that the annotator passed on.
        self._passed: set[tuple[int, int]] = set()
        #: Pairs of this round that the closure answered.
        self._remembered: set[tuple[int, int]] = set()
        #: Every answer so far, and the pairs of those that are not believed.
        self._answers: list[Answer] = []
        self._doubted: set[tuple[int, int]] = set()
        #: What the features of this round say of a pair, once answers were weighed.
        self._prior: Prior | None = None
        #: Share of wrong answers by annotator, as it was assumed or estimated.
        self._rates: dict[str, float] = {}
        self._open_round()

    def begin(self, epoch: int, limit: int | None = None) -> None:
        """Begin a round of at most `limit` questions; None is no limit."""
        self.epoch = as_integer("epoch", epoch, 0)
        self._limit = None if limit is None else as_integer("limit", limit, 0)
        self._open_round()

    def end(self) -> Spent:
        """End the round: take in every answer of the ledger, add up the costs, and return those of
        this round.
        """
        self._catch_up()
        self.features = None
        self.labels = None
        self.position = self.ledger.last_event()
        self.asked += self.spent.questions
        self.seconds += self.spent.seconds
        self.spent.remembered = len(self._remembered)
        for name, observation in self._observed:
            self.observations.setdefault(name, []).append(observation)
        for name, observations in self.observations.items():
            self.observations[name] = observations[-_MOST_OBSERVATIONS:]
        self._observed.clear()
        return self.spent

    def observe(self, name: str, inputs: Sequence[float], answer: float) -> None:
        """Keep an answer for the strategies of later rounds, from which they learn.

        It is in `observations` when the round has ended, and in the state of the asker: the last
        2,000 of each name, about 200 bytes each.

        Args:
            name: Name of what is predicted.
            inputs: Finite numbers that it is predicted from.
            answer: Whether the answer was "same", or the probability of it.
        """
        as_instance("name", name, str)
        values = tuple(float(as_number("inputs", value)) for value in inputs)
        observation = Observation(self.epoch, values, float(as_number("answer", answer, 0, 1)))
        self._observed.append((name, observation))

    def weigh(self, prior: Prior) -> None:
        """Weigh the answers so far against each other and the features; believe the likely ones.

        The closure is then that of the believed answers (`posterior.weigh_answers`). A pair whose
        answer is doubted is not asked about again, but its images may be, with other images. Until
        the end of the round, a merge needs as many answers that agree as it takes to make it 70 %
        likely, 3 at most, from the question's probability if it has one. Does nothing if answers
        are never wrong.

        Args:
            prior: Log-odds of "same" for two images before any answer.
        """
        if self.expected_error == 0:
            return
        self._prior = prior
        names = {}
        if self.expected_error is None:
            names = {event.id: event.annotator for event in self.ledger.events()}
        weighed = weigh_answers(self._answers, prior, self.expected_error, names)
        self._doubted = {_pair(answer.left, answer.right) for answer in weighed.doubted}
        self._rates = weighed.rates
        self.closure = Closure.replay(weighed.believed, self.transitive)
        self.spent.doubted = len(weighed.doubted)

    def likely(self) -> Closure:
        """Return the closure of the believed answers, and of the opposite of each doubted "same".

        A strategy may have merged clusters because of an answer that is doubted since.
        """
        opposite = [
            answer._replace(verdict=Verdict.DIFFERENT)
            for answer in self._answers
            if answer.verdict is Verdict.SAME and _pair(answer.left, answer.right) in self._doubted
        ]
        answers = sorted([*self.closure.answers(), *opposite], key=lambda answer: answer.place)
        return Closure.replay(answers, self.transitive)

    def deciding_answers(self) -> list[Answer]:
        """Return the answers so far that say "same" or "different" of two images of the set."""
        return [a for a in self._answers if decides(a)]

    def questions_allowed(self) -> int | None:
        """Return how many questions this round may ask in all; the same if it is begun again; None
        is no limit.
        """
        limits = []
        if self._limit is not None:
            limits.append(self._limit)
        if self.budget is not None:
            limits.append(self.budget - self.asked)
        return max(0, min(limits)) if limits else None

    def questions_left(self) -> int | None:
        """Return how many questions may still be asked in this round; None is no limit."""
        allowed = self.questions_allowed()
        if allowed is None:
            return None
        return max(0, allowed - self.spent.questions - len(self._ahead))

    def _out_of_time(self) -> bool:
        """Whether the answers so far took the minutes that all may take."""
        return self.minutes is not None and self.seconds + self.spent.seconds >= 60 * self.minutes

    def can_ask(self, i: int, j: int) -> bool:
        """Return whether a question about two images would reach the annotator.

        It does not if the pair was answered, if the answers decide it, or if the annotator passed
        on it in this round.
        """
        return (
            not self.closure.answered(i, j)
            and _pair(i, j) not in self._doubted
            and self.closure.verdict(i, j) is None
            and _pair(i, j) not in self._passed
        )

    @property
    def takes_sheets(self) -> bool:
        """Whether the annotator answers several questions about one image at a time."""
        return callable(getattr(self.annotator, "answer_sheet", None))

    def closed_pairs(self) -> list[tuple[int, int]]:
        """Return the pairs of images that were asked about and need no further question.

        They were answered, and the answer is neither doubted nor waits for confirmation, or the
        annotator passed on them in this round. What follows from answers is not among them.
        """
        answered = {_pair(answer.left, answer.right) for answer in self._answers}
        return sorted(
            self._passed
            | {
                (i, j)
                for i, j in answered - self._doubted
                if i >= 0 and not self.awaits_confirmation(i, j)
            }
        )

    def awaits_confirmation(self, i: int, j: int) -> bool:
        """Return whether two images were answered "same" and further answers are needed before it
        counts.
        """
        given = self.closure.answer(i, j)
        return (
            given is not None
            and given.verdict is Verdict.SAME
            and self.closure.verdict(i, j) is None
            and not self.closure.disputed(_merge_of(given))
            and _pair(i, j) not in self._passed
        )

    def constraints(self) -> Closure:
        """Return the closure that labels must agree with.

        With closure "none" it infers nothing about what to ask, but labels still agree with what
        follows from the answers; it is computed anew at each call.
        """
        if self.transitive:
            # A transitive closure of all answers exists already.
            return self.closure
        return Closure.replay(self.closure.answers())

    def ask_pair(self, i: int, j: int) -> Verdict:
        """Ask whether two images show the same identity.

        Args:
            i: Row of one image.
            j: Row of the other image.

        Returns:
            The verdict; see `ask`.

        Raises:
            ValueError: A row is outside the images, both rows are the same, or the round has no
                features and labels.
            OutOfQuestions: The budget is spent.
        """
        if self.features is None or self.labels is None:
            raise ValueError("ask_pair: the round has no features and labels")
        i = check_row("i", i, len(self.labels))
        j = check_row("j", j, len(self.labels))
        if i == j:
            raise ValueError(f"ask_pair: got image {i} twice, expected two different images")
        same_cluster = int(self.labels[i]) == int(self.labels[j]) >= 0
        reason = "split" if same_cluster else "merge"
        similarity = float(self.features[i] @ self.features[j])
        return self.ask(Question.about_images(i, j, reason, similarity))

    def ask(self, question: Question) -> Verdict:
        """Return whether the two groups of a question are the same identity, from the closure if it
        is known.

        A "same" that is not confirmed yet, or that other answers contradict, is returned as UNSURE.

        Raises:
            OutOfQuestions: The budget is spent.
            QuitAsking: The annotator leaves.
            RoundAgain: The annotator took an answer back.
        """
        as_instance("question", question, Question)
        pair = _pair(*question.images)
        if self.can_ask(*pair):
            self._ask_once(question, question.images, self._answers_needed(question), None)
        elif pair not in self._passed:
            self._remembered.add(pair)
        return self._confirmed_verdict(question)

    def ask_sheet(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return the verdicts of several questions about one first image.

        An annotator that can answer sheets (`SheetAnnotator`) sees all that are open at a time.
        Another one gets one question after the other. Each answer counts as a question, and is in
        the ledger on its own. A sheet has no more questions than the budget allows.

        Args:
            questions: They have the same first image, and different second images.

        Returns:
            A verdict for each question; see `ask`.

        Raises:
            ValueError: The questions do not have one first image, or name a pair twice.
            OutOfQuestions: The budget is spent.
            QuitAsking: The annotator leaves.
            RoundAgain: The annotator took its last answer back, here the whole sheet.
        """
        questions = [as_instance("questions", question, Question) for question in questions]
        if len({question.images[0] for question in questions}) > 1:
            raise ValueError("questions: got several first images, expected one")
        if len({question.images for question in questions}) < len(questions):
            raise ValueError("questions: got a pair of images twice, expected each once")
        if not self.takes_sheets:
            return [self.ask(question) for question in questions]
        open_pairs = [question for question in questions if self.can_ask(*question.images)]
        for question in questions:
            pair = _pair(*question.images)
            if question not in open_pairs and pair not in self._passed:
                self._remembered.add(pair)
        self._ask_together(open_pairs)
        return [self._confirmed_verdict(question) for question in questions]

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the ledger, the costs so far, and the observations."""
        return {
            "position": self.position,
            "asked": self.asked,
            "seconds": self.seconds,
            "observations": {
                name: [[o.epoch, *o.inputs, o.answer] for o in observations]
                for name, observations in self.observations.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        If the ledger ends before the position (it is an older copy, or another ledger), its end is
        the position.
        """
        for name in ("position", "asked", "seconds"):
            if not isinstance(state[name], int | float) or not 0 <= state[name] < float("inf"):
                raise ValueError(f"questions: got {state[name]!r} for {name}, expected 0 or more")
        self.position = min(int(state["position"]), self.ledger.last_event())
        self.asked = state["asked"]
        self.seconds = state["seconds"]
        self.observations = {
            as_instance("observations", name, str): [_observation(row) for row in rows]
            for name, rows in state.get("observations", {}).items()
        }
        self._open_round()

    def _open_round(self) -> None:
        self.spent = Spent()
        self.outlook = None
        self._passed.clear()
        self._remembered.clear()
        self._ahead.clear()
        self._observed.clear()
        self._doubted.clear()
        self._prior = None
        self._rates.clear()
        known = []
        for answer in self.ledger.answers():
            if answer.run == self.run and answer.event > self.position:
                self._ahead.setdefault(_pair(answer.left, answer.right), answer)
            else:
                known.append(answer)
        self._answers = known
        self.closure = Closure.replay(known, self.transitive)

    def _answers_needed(self, question: Question) -> int:
        if question.reason != "merge":
            return 1
        pairs = len(question.groups[0]) * len(question.groups[1])
        needed = 1 + self.confirm_merges
        if self._prior is not None:
            prior = self._prior(*_pair(*question.images))
            if question.probability is not None:
                prior = log_odds_of(question.probability)
            missing = _SURE - limited(prior)
            rate = self.expected_error
            if rate is None:
                rate = self._rates.get(self.annotator.name, UNKNOWN_RATE)
            weight = answer_weight(rate)
            needed = max(needed, min(math.ceil(missing / weight), _MOST_ANSWERS))
        return min(needed, pairs)

    def _confirmed_verdict(self, question: Question) -> Verdict:
        """The verdict of a question that was asked, after confirmations if it needs any."""
        if self.awaits_confirmation(*question.images):
            self._confirm(question)
        verdict = self.closure.verdict(*question.images)
        return Verdict.UNSURE if verdict is None else verdict

    def _confirm(self, question: Question) -> None:
        """Ask about further images of a merge until it counts, one answer disputes it, or too many
        are undecided.
        """
        first = self.closure.answer(*question.images)
        assert first is not None
        tries = _TRIES * first.need
        for pair in _further_pairs(question):
            if tries == 0 or not self.awaits_confirmation(*question.images):
                break
            if self.can_ask(*pair):
                self._ask_once(question, pair, first.need, _merge_of(first))
                tries -= 1
        if self.awaits_confirmation(*question.images):
            self._passed.add(_pair(*question.images))

    def _ask_once(
        self,
        question: Question,
        pair: tuple[int, int],
        need: int,
        confirms: int | None,
    ) -> None:
        """Take the answer about a pair from the ledger if it lies ahead, otherwise from the
        annotator.

        Args:
            question: The question that the pair belongs to.
            pair: Rows of the two images that are shown.
            need: Answers that must agree before a "same" counts.
            confirms: Event of the first answer of the merge that is confirmed; None if this is the
                first answer.
        """
        answer = self._ahead.pop(_pair(*pair), None)
        if answer is None and self._ahead:
            # This round differs from the one that was interrupted: an answer was undone since, or a
            # setting changed.
            self._catch_up()
            if not self.can_ask(*pair):
                return
        if answer is None:
            if self.questions_left() == 0 or self._out_of_time():
                raise OutOfQuestions
            try:
                answer = self._new_answer(question, pair, need, confirms)
            except NoAnswer:
                self._passed.add(_pair(*pair))
                return
        self._take_in(answer)

    def _ask_together(self, questions: list[Question]) -> None:
        """Take the answers of a sheet, those that lie ahead from the ledger.

        Args:
            questions: Questions with one first image; each can be asked.
        """
        if not questions:
            return
        # Answers that lie ahead were counted when the interrupted round asked for them.
        left = self.questions_left()
        if left is not None:
            count_ahead = sum(_pair(*question.images) in self._ahead for question in questions)
            questions = questions[: left + count_ahead]
        ahead = [question for question in questions if _pair(*question.images) in self._ahead]
        new = [question for question in questions if _pair(*question.images) not in self._ahead]
        if new and len(self._ahead) > len(ahead):
            # This round differs from the one that was interrupted, see `_ask_once`.
            self._catch_up()
            self._ask_together([q for q in questions if self.can_ask(*q.images)])
            return
        if not questions or (new and self._out_of_time()):
            raise OutOfQuestions
        needs = {question.images: self._answers_needed(question) for question in questions}
        known = [self._ahead.pop(_pair(*question.images)) for question in ahead]
        for answer in sorted(known, key=lambda answer: answer.place):
            self._take_in(answer)
        if new:
            self._ask_new_sheet(new, needs, len(questions))

    def _ask_new_sheet(
        self, questions: list[Question], needs: dict[tuple[int, int], int], count: int
    ) -> None:
        """Ask the annotator about a sheet, or about what is left of one.

        Args:
            questions: The questions.
            needs: Answers that must agree before a "same" counts, by pair.
            count: Questions of the whole sheet, over which its seconds are divided.
        """
        asked_at = time.time()
        began = time.monotonic()
        try:
            verdicts = self._with_undo(lambda: self._sheet_verdicts(questions))
        except NoAnswer:
            self._passed.update(_pair(*question.images) for question in questions)
            return
        seconds = time.monotonic() - began
        each = self._seconds_each(seconds / len(questions), count)
        events: list[int] = []
        self._sheets.append(events)
        for question, verdict in zip(questions, verdicts, strict=True):
            need = needs[question.images]
            answer = self._record(question, question.images, verdict, need, None, asked_at, each)
            asked_at += each
            events.append(answer.event)
            self._take_in(answer)

    def _seconds_each(self, measured: float, count: int) -> float:
        """Seconds of each answer of a sheet of `count` questions.

        An oracle takes no time, and says how much a person would take.
        """
        sheet_seconds = getattr(self.annotator, "sheet_seconds", None)
        if sheet_seconds is not None:
            return float(sheet_seconds(count)) / count
        return float(getattr(self.annotator, "seconds", measured))

    def _sheet_verdicts(self, questions: list[Question]) -> list[Verdict]:
        """The annotator's verdicts about a sheet.

        Raises:
            ValueError: They are not one verdict for each question.
        """
        annotator = cast(SheetAnnotator, self.annotator)
        verdicts = list(annotator.answer_sheet(tuple(questions)))
        for verdict in verdicts:
            if not isinstance(verdict, Verdict):
                raise ValueError(
                    f"answer_sheet: got {described(verdict)} of {self.annotator.name!r}, expected "
                    "verdicts"
                )
        if len(verdicts) != len(questions):
            raise ValueError(
                f"answer_sheet: got {len(verdicts)} verdicts of {self.annotator.name!r}, expected "
                f"{len(questions)}, one for each question"
            )
        return verdicts

    def _take_in(self, answer: Answer) -> None:
        """Add an answer to the closure and to the cost of the round."""
        self._answers.append(answer)
        effect = self.closure.add(answer)
        self.spent.questions += 1
        self.spent.seconds += answer.seconds
        self.spent.verdicts[answer.verdict.value] += 1
        if effect is Effect.CONTRADICTION:
            self.spent.contradictions += 1
        if self.after_answer is not None:
            self.after_answer(self.asked + self.spent.questions, self.current_labels)

    def _catch_up(self) -> None:
        """Take in every answer that lies ahead, in the order in which they were given."""
        ahead = list(self._ahead.values())
        self._ahead.clear()
        for answer in ahead:
            self._take_in(answer)

    def _new_answer(
        self, question: Question, pair: tuple[int, int], need: int, confirms: int | None
    ) -> Answer:
        """Ask the annotator, and write the answer to the ledger before it is returned."""
        shown = dataclasses.replace(question, images=pair)
        # The clock of the machine may be set meanwhile; durations are of one that is not.
        asked_at = time.time()
        began = time.monotonic()
        verdict = self._with_undo(lambda: self.annotator.answer(shown))
        seconds = time.monotonic() - began
        # An oracle takes no time, and says how much a person would take.
        seconds = float(getattr(self.annotator, "seconds", seconds))
        return self._record(question, pair, verdict, need, confirms, asked_at, seconds)

    def _record(
        self,
        question: Question,
        pair: tuple[int, int],
        verdict: Verdict,
        need: int,
        confirms: int | None,
        asked_at: float,
        seconds: float,
    ) -> Answer:
        """Write an answer to the ledger."""
        answered_at = asked_at + seconds
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
        # The seconds are those that the ledger will return: a resumed round adds up the same ones.
        seconds = answered_at - asked_at
        return Answer(event, *pair, verdict, need, confirms, seconds, self.run)

    def _with_undo(self, ask: Callable[[], Answered]) -> Answered:
        """Return what the annotator answers, after its last answer was taken back if it asks for
        that.

        Only answers of this run are taken back; those of a sheet together, unless the process was
        started again since. If there is none, the annotator is asked again.
        """
        while True:
            try:
                return ask()
            except UndoLast:
                last = self.ledger.last_answer(self.run)
                if last is None:
                    continue
                events = next((sheet for sheet in self._sheets if last in sheet), [last])
                for event in reversed(events):
                    self.ledger.undo(event, self.annotator.name)
                raise RoundAgain from None


def _observation(row: Sequence[float]) -> Observation:
    """An observation of a saved state: epoch, inputs, answer."""
    epoch, *inputs, answer = row
    return Observation(
        as_integer("observations", epoch, 0),
        tuple(float(as_number("observations", value)) for value in inputs),
        float(as_number("observations", answer, 0, 1)),
    )


def _merge_of(answer: Answer) -> int:
    """Return the event of the first answer of the merge that an answer belongs to, which identifies
    the merge.
    """
    return answer.event if answer.confirms is None else answer.confirms


def _further_pairs(question: Question) -> Iterator[tuple[int, int]]:
    """Yield the other pairs of images of the two groups, each once.

    Central images come first, and an image is repeated only after every image of the longer group
    had its turn.
    """
    first = question.groups[0].tolist()
    second = question.groups[1].tolist()
    swapped = len(first) < len(second)
    longer = second if swapped else first
    shorter = first if swapped else second
    # Each shift pairs every image of the longer group with another image of the shorter one.
    for shift in range(len(shorter)):
        for index, i in enumerate(longer):
            j = shorter[(index + shift) % len(shorter)]
            pair = (j, i) if swapped else (i, j)
            if set(pair) != set(question.images):
                yield pair


def _pair(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)
