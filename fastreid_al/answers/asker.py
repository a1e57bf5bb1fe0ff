"""The asker: stands between a strategy and its annotators, and keeps the budget, the ledger and the
closure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from ..arguments import (
    as_flag,
    as_ids,
    as_instance,
    as_integer,
    as_number,
    check_choice,
    check_row,
    described,
)
from .closure import Closure, Effect
from .ledger import MEMBER, Ledger, Origin
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
    Judgement,
    MemberAnnotator,
    NoAnswer,
    Question,
    QueueAnnotator,
    SheetAnnotator,
    UndoLast,
    Verdict,
)
from .queue import Entry, QuestionQueue

ClosureName = Literal["transitive", "none"]
#: Returns the labels (n,) that the answers so far lead to.
CurrentLabels = Callable[[], Tensor]
#: What an annotator returns.
Answered = TypeVar("Answered")
#: Whether a round waits for people: until all answered, for so many seconds without an answer, or
#: not at all.
Wait = Literal["all", "none"] | float
#: Questions that are published for people who answer while the run trains, if nothing else limits
#: them.
_PUBLISHED = 64
#: Most questions that are open at a time, and how many for each person.
_MOST_OPEN = 16
_OPEN_PER_PERSON = 2
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
class _Request:
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


#: Yields what is asked about a question or a sheet, and returns the verdicts.
_Steps = Generator[_Request, None, list[Verdict]]
#: Is given the verdict of a question, or those of a sheet.
Then = Callable[[Verdict], object]
SheetThen = Callable[[list[Verdict]], object]


@dataclass(eq=False)
class _Open:
    """A question or a sheet that was offered and is not decided.

    Args:
        questions: The question, or those of the sheet.
        steps: Goes on when what was asked last is answered.
        then: Is given the verdicts.
    """

    questions: list[Question]
    steps: _Steps
    then: SheetThen


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

    A strategy offers questions (`offer`), of which `window` are open at a time. Their answers are
    applied in the order in which the questions were offered, whoever was faster: what is asked, and
    the labels, depend on the answers alone. With a window of 1, a question is offered when the one
    before is answered.

    An annotator with a method `serve` (`QueueAnnotator`) does not answer itself: the questions are
    published in the ledger (`QuestionQueue`), and people answer them with
    `answers.service.AnswerService`, from this process or from others.

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
        window: Questions that are open at a time. None: what the annotator says, and 1 for one that
            answers at once.
        wait: How long a round waits for people: "all" until every question is answered, a number
            until there was no answer for so many seconds, "none" not at all. The round then ends,
            and the run trains with the answers so far.
        second_vote: A merge of clusters with sizes a and b needs two people's answers if a b is at
            least this; None asks one person.
        tracks: (n,) int64: images of one number are the same, such as those of one track; -1 for an
            image of none. They are never asked about, and yield to answers that contradict them.
            None where there are no tracks.
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
        window: int | None = None,
        wait: Wait = "all",
        second_vote: int | None = None,
        judge_members: bool = False,
        tracks: Tensor | None = None,
    ) -> None:
        answers = any(callable(getattr(annotator, name, None)) for name in ("answer", "serve"))
        if not answers or not hasattr(annotator, "name"):
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
        self._window_setting = None if window is None else as_integer("window", window, 1)
        self.wait = wait if wait in ("all", "none") else float(as_number("wait", wait, 0))
        self.second_vote = (
            None if second_vote is None else as_integer("second_vote", second_vote, 0)
        )
        self.judge_members = as_flag("judge_members", judge_members)
        self.tracks = None if tracks is None else as_ids("tracks", tracks, low=-1, per="image")
        self._links = [] if self.tracks is None else _links_of(self.tracks)
        self.ledger = ledger or Ledger.open("sqlite://")
        #: Where questions are published, if people answer when they like.
        self.queue = QuestionQueue(self.ledger, self.run) if self._serves else None
        self.window = 1
        #: Event of the ledger up to which the answers of this run belong to rounds that ended.
        self.position = 0
        #: Last event before the round, where people answer when they like.
        self._first_event = 0
        #: Last event of the round, if it had ended before it was begun again.
        self._last_event: int | None = None
        #: Questions of earlier rounds that were answered after their round, and count for this one.
        self._late = 0
        #: Questions and seconds of the rounds that ended.
        self.asked = 0
        self.seconds = 0.0
        #: Called after each answer, when it is on the disk, with the number of questions so far and
        #: `current_labels`.
        self.after_answer: Callable[[int, CurrentLabels], None] | None = None
        #: Called again and again while a round waits for people; it may raise.
        self.while_waiting: Callable[[], None] | None = None
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
        #: Answers beyond the position, by pair, until the round asks for them; and those about
        #: further images of the groups, by gesture.
        self._ahead: dict[tuple[int, int], Answer] = {}
        self._ahead_members: dict[str, list[Answer]] = {}
        #: Events of each sheet since this object was made, which are taken back together.
        self._sheets: list[list[int]] = []
        #: What was offered and is not decided, in the order in which it is applied.
        self._open: deque[tuple[_Open, _Request]] = deque()
        self._open_pairs: set[tuple[int, int]] = set()
        #: Events that were applied, or that were known when the round began.
        self._applied: set[int] = set()
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
        start = getattr(self.annotator, "start", None)
        if self.queue is not None and callable(start):
            start(self.ledger)
        self.window = self._window_setting or self._usual_window()
        if self.queue is not None:
            self._begin_queue()

    def end(self) -> Spent:
        """End the round: take in every answer of the ledger, add up the costs, and return those of
        this round.

        Where the round did not wait for people, answers that came meanwhile are for the next one.
        """
        self._close_all()
        if self.queue is None:
            self._catch_up()
            self.position = self.ledger.last_event()
        elif self._begun:
            if self.wait == "none":
                self.position = self._first_event
            else:
                self.position = self._end_of_round()
                self._take_in_unapplied(self.position)
                self.queue.withdraw(only_waiting=self.wait != "all")
            self.queue.end(self.position)
        self.features = None
        self.labels = None
        self.asked += self.spent.questions
        self.seconds += self.spent.seconds
        self.spent.remembered = len(self._remembered)
        for name, observation in self._observed:
            self.observations.setdefault(name, []).append(observation)
        for name, observations in self.observations.items():
            self.observations[name] = observations[-_MOST_OBSERVATIONS:]
        self._observed.clear()
        return self.spent

    def _end_of_round(self) -> int:
        """The last event that the labels of this round are made from.

        A round that had ended already, and is repeated from an older checkpoint, ends where it
        ended: the answers after it belong to the rounds after it.
        """
        assert self.queue is not None
        before = self._last_event
        if before is None or max(self._applied, default=0) > before:
            return self.ledger.last_event()
        return self.ledger.last_event() if self.queue.undone_since(before) else before

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
        self.closure = self._closure_of(weighed.believed, self.transitive)
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
        return self._closure_of(answers, self.transitive)

    def _closure_of(self, answers: Sequence[Answer], transitive: bool) -> Closure:
        """The closure of answers and, as far as they do not contradict the answers, of tracks."""
        closure = Closure.replay(answers, transitive)
        for a, b in self._links:
            closure.link(a, b)
        return closure

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
            limits.append(self.budget - self.asked - self._late)
        return max(0, min(limits)) if limits else None

    def questions_left(self) -> int | None:
        """Return how many questions may still be asked in this round; None is no limit."""
        waiting = sum(len(request.questions) for _, request in self._open) + len(self._ahead)
        asked = self.spent.questions + waiting
        limits = []
        if self._limit is not None:
            # Late answers are to questions that earlier rounds asked.
            limits.append(self._limit - (asked - self._late))
        if self.budget is not None:
            # People may still answer questions of earlier rounds.
            earlier = 0
            if self.queue is not None and self.wait == "none":
                earlier = self.queue.count_earlier()
            limits.append(self.budget - self.asked - asked - earlier)
        return max(0, min(limits)) if limits else None

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
        return self._serves or callable(getattr(self.annotator, "answer_sheet", None))

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
        return self._closure_of(self.closure.answers(), True)

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
        return self.ask(self._question_about("ask_pair", i, j))

    def offer_pair(self, i: int, j: int, then: Then | None = None) -> None:
        """Ask whether two images show the same identity, without waiting for the answer.

        Args:
            i: Row of one image.
            j: Row of the other image.
            then: Is given the verdict; see `offer`, also for what is raised.

        Raises:
            ValueError: A row is outside the images, both rows are the same, or the round has no
                features and labels.
        """
        self.make_room()
        self.offer(self._question_about("offer_pair", i, j), then)

    def _question_about(self, name: str, i: int, j: int) -> Question:
        """A question about two images of the round's set."""
        if self.features is None or self.labels is None:
            raise ValueError(f"{name}: the round has no features and labels")
        i = check_row("i", i, len(self.labels))
        j = check_row("j", j, len(self.labels))
        if i == j:
            raise ValueError(f"{name}: got image {i} twice, expected two different images")
        same_cluster = int(self.labels[i]) == int(self.labels[j]) >= 0
        reason = "split" if same_cluster else "merge"
        similarity = float(self.features[i] @ self.features[j])
        return Question.about_images(i, j, reason, similarity)

    def ask(self, question: Question) -> Verdict:
        """Return whether the two groups of a question are the same identity, from the closure if it
        is known.

        A "same" that is not confirmed yet, or that other answers contradict, is returned as UNSURE.
        What was offered before is decided first.

        Raises:
            OutOfQuestions: The budget is spent, or nobody answers.
            QuitAsking: The annotator leaves.
            RoundAgain: The annotator took an answer back.
        """
        verdicts: list[Verdict] = []
        self.settle()
        self.offer(question, verdicts.append)
        self.settle()
        return verdicts[0]

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
            OutOfQuestions: The budget is spent, or nobody answers.
            QuitAsking: The annotator leaves.
            RoundAgain: The annotator took its last answer back, here the whole sheet.
        """
        _check_sheet(questions)
        if not self.takes_sheets:
            return [self.ask(question) for question in questions]
        found: list[list[Verdict]] = []
        self.settle()
        self.offer_sheet(questions, found.append)
        self.settle()
        return found[0]

    def make_room(self) -> None:
        """Wait until another question may be offered: fewer than `window` are open then.

        A strategy that makes its next question from the answers so far calls this before it does.

        Raises:
            OutOfQuestions: Nobody answers, or the round does not wait for people.
            QuitAsking: The annotator leaves.
            RoundAgain: The annotator took an answer back.
        """
        while len(self._open) >= self.window:
            self.settle_first()

    def settle_first(self) -> None:
        """Wait for the answer to what was offered first, and apply it; see `make_room`.

        A merge that needs confirmation is asked about again, after what was offered since.
        """
        self._go_on_or_settle(self._first_answered())

    def _first_answered(self) -> _Open:
        """Wait for the answer to what was offered first, apply it, and return what was offered."""
        item, request = self._open[0]
        self._answer(request)
        self._open.popleft()
        self._open_pairs -= {_pair(*question.images) for question in request.questions}
        return item

    def settle(self) -> None:
        """Wait until everything that was offered is decided; see `make_room`."""
        while self._open:
            self.settle_first()

    def is_waiting(self) -> bool:
        """Return whether something was offered that is not decided yet."""
        return bool(self._open)

    def open_questions(self) -> list[Question]:
        """Return the questions that were offered and are not decided yet."""
        return [question for item, _ in self._open for question in item.questions]

    def offer(self, question: Question, then: Then | None = None) -> None:
        """Ask whether the two groups of a question are the same identity, without waiting for it.

        Args:
            question: The question.
            then: Is given the verdict when it is known: at once if the answers so far decide it,
                else in the order in which the questions were offered. See `ask`.

        Raises:
            OutOfQuestions: The budget is spent, or nobody answers.
            QuitAsking: The annotator leaves.
            RoundAgain: The annotator took an answer back.
        """
        as_instance("question", question, Question)

        def give(verdicts: list[Verdict]) -> None:
            if then is not None:
                then(verdicts[0])

        self._begin(_Open([question], self._question_steps(question), give))

    def offer_sheet(self, questions: Sequence[Question], then: SheetThen | None = None) -> None:
        """Ask several questions about one first image, without waiting for the answers.

        Args:
            questions: See `ask_sheet`.
            then: Is given a verdict for each question, in their order.

        Raises:
            ValueError: The questions do not have one first image, or name a pair twice.
            OutOfQuestions: The budget is spent, or nobody answers.
            QuitAsking: The annotator leaves.
            RoundAgain: The annotator took an answer back.
        """
        _check_sheet(questions)
        asked = list(questions)
        give = then or (lambda verdicts: None)
        steps = self._sheet_steps(asked) if self.takes_sheets else self._single_steps(asked)
        self._begin(_Open(asked, steps, give))

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
        self._begun = False
        self._late = 0
        self._close_all()
        self._passed.clear()
        self._remembered.clear()
        self._ahead.clear()
        self._ahead_members.clear()
        self._observed.clear()
        self._doubted.clear()
        self._prior = None
        self._rates.clear()
        known = []
        for answer in self.ledger.answers():
            is_ahead = answer.run == self.run and answer.event > self.position
            if not is_ahead or self.queue is not None:
                known.append(answer)
            elif answer.is_member and answer.gesture:
                self._ahead_members.setdefault(answer.gesture, []).append(answer)
            else:
                self._ahead.setdefault(_pair(answer.left, answer.right), answer)
        self._know(known)

    def _know(self, answers: list[Answer]) -> None:
        """Begin from answers, in the order of `Answer.place`."""
        self._answers = answers
        self._applied = {answer.event for answer in answers}
        self.closure = self._closure_of(answers, self.transitive)

    def _begin_queue(self) -> None:
        """Begin the round in the queue, or begin it again with the answers that it began with."""
        assert self.queue is not None
        begun = self.queue.begin(self.epoch, self.window, self.position)
        self.window, self._first_event, self._last_event = begun
        self._begun = True
        known = self.ledger.answers(as_of=self._first_event)
        self._know(known)
        # Answers that came after the last round had ended count for this one.
        self._count_all([a for a in known if a.run == self.run and a.event > self.position])
        # They are no questions of this round, whose limit is not for them.
        self._late = self.spent.questions
        if self.wait == "none":
            self.queue.withdraw(only_waiting=True)
            self.queue.forget()
            self._last_event = None

    @property
    def _serves(self) -> bool:
        """Whether the annotator serves a queue in place of answering at once."""
        return callable(getattr(self.annotator, "serve", None))

    def _usual_window(self) -> int:
        """Questions that are open at a time if the setting does not say."""
        if self.wait == "none":
            return min(self.questions_allowed() or _PUBLISHED, _PUBLISHED)
        people = int(getattr(self.annotator, "people", 0))
        return min(_OPEN_PER_PERSON * people, _MOST_OPEN) if people else 1

    def _close_all(self) -> None:
        """Drop what was offered and is not decided."""
        for item, _ in self._open:
            item.steps.close()
        self._open.clear()
        self._open_pairs.clear()

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
                rate = self._rate()
            weight = answer_weight(rate)
            needed = max(needed, min(math.ceil(missing / weight), _MOST_ANSWERS))
        return min(needed, pairs)

    def _begin(self, item: _Open) -> None:
        """Ask about something that is offered, when fewer than `window` are open."""
        self.make_room()
        while any(_pair(*q.images) in self._open_pairs for q in item.questions):
            self.settle_first()
        self._go_on_or_settle(item)

    def _go_on_or_settle(self, item: _Open) -> None:
        """Take the next step; if the budget is spent, first decide what was offered before.

        Which answers the round has would otherwise depend on how fast people are.
        """
        try:
            self._go_on(item)
        except OutOfQuestions:
            while self._open and self.wait != "none":
                other = self._first_answered()
                with contextlib.suppress(OutOfQuestions):
                    self._go_on(other)
            raise

    def _go_on(self, item: _Open) -> None:
        """Take the next step of a question or a sheet: ask something, or give the verdicts."""
        try:
            request = next(item.steps)
        except StopIteration as end:
            item.then(end.value)
            return
        self._publish(request)
        self._open.append((item, request))
        self._open_pairs |= {_pair(*question.images) for question in request.questions}

    def _question_steps(self, question: Question) -> _Steps:
        """Ask a question, unless the answers so far decide it, and confirm what needs it."""
        if self.can_ask(*question.images):
            needed = self._answers_needed(question)
            yield from self._pair_steps(question, question.images, needed, None)
        elif _pair(*question.images) not in self._passed:
            self._remembered.add(_pair(*question.images))
        verdict = yield from self._confirmed_verdict(question)
        return [verdict]

    def _single_steps(self, questions: list[Question]) -> _Steps:
        """Ask the questions of a sheet one after the other."""
        verdicts = []
        for question in questions:
            verdicts += yield from self._question_steps(question)
        return verdicts

    def _sheet_steps(self, questions: list[Question]) -> _Steps:
        """Ask those questions of a sheet that are open, and confirm what needs it."""
        open_pairs = [question for question in questions if self.can_ask(*question.images)]
        for question in questions:
            pair = _pair(*question.images)
            if question not in open_pairs and pair not in self._passed:
                self._remembered.add(pair)
        if open_pairs:
            yield from self._together_steps(open_pairs)
        verdicts = []
        for question in questions:
            verdict = yield from self._confirmed_verdict(question)
            verdicts.append(verdict)
        return verdicts

    def _rate(self) -> float:
        """Share of wrong answers of whoever answers next, as it was estimated."""
        if self.queue is None:
            return self._rates.get(self.annotator.name, UNKNOWN_RATE)
        # Nobody knows who of the people will answer.
        rates = self._rates.values()
        return math.fsum(rates) / len(rates) if rates else UNKNOWN_RATE

    def _confirmed_verdict(self, question: Question) -> Generator[_Request, None, Verdict]:
        """The verdict of a question that was asked, after confirmations if it needs any."""
        if self.awaits_confirmation(*question.images):
            yield from self._confirm(question)
        verdict = self.closure.verdict(*question.images)
        return Verdict.UNSURE if verdict is None else verdict

    def _confirm(self, question: Question) -> Generator[_Request, None, None]:
        """Ask about further images of a merge until it counts, one answer disputes it, or too many
        are undecided.
        """
        first = self.closure.answer(*question.images)
        assert first is not None
        tries = _TRIES * first.need
        for pair in _further_pairs(question):
            if tries == 0 or not self.awaits_confirmation(*question.images):
                break
            if self.can_ask(*pair) and _pair(*pair) not in self._open_pairs:
                yield from self._pair_steps(question, pair, first.need, _merge_of(first))
                tries -= 1
        if self.awaits_confirmation(*question.images):
            self._passed.add(_pair(*question.images))

    def _pair_steps(
        self,
        question: Question,
        pair: tuple[int, int],
        need: int,
        confirms: int | None,
    ) -> Generator[_Request, None, None]:
        """Ask about a pair, or take its answer from the ledger if it lies ahead.

        Args:
            question: The question that the pair belongs to.
            pair: Rows of the two images that are shown.
            need: Answers that must agree before a "same" counts.
            confirms: Event of the first answer of the merge that is confirmed; None if this is the
                first answer.
        """
        answer = self._ahead.pop(_pair(*pair), None)
        if answer is None and self._is_another_round([pair]):
            self._catch_up()
            if not self.can_ask(*pair):
                return
        if answer is None and (self.questions_left() == 0 or self._out_of_time()):
            raise OutOfQuestions
        shown = dataclasses.replace(question, images=pair)
        yield _Request([shown], [need], confirms, False, [answer])

    def _together_steps(self, questions: list[Question]) -> Generator[_Request, None, None]:
        """Ask the questions of a sheet, and take the answers that lie ahead from the ledger.

        Args:
            questions: Questions with one first image; each can be asked.
        """
        # Answers that lie ahead were counted when the interrupted round asked for them.
        left = self.questions_left()
        if left is not None:
            count_ahead = sum(_pair(*question.images) in self._ahead for question in questions)
            questions = questions[: left + count_ahead]
        ahead = [question for question in questions if _pair(*question.images) in self._ahead]
        new = [question for question in questions if _pair(*question.images) not in self._ahead]
        if new and self._is_another_round([question.images for question in new], len(ahead)):
            self._catch_up()
            still_open = [question for question in questions if self.can_ask(*question.images)]
            if still_open:
                yield from self._together_steps(still_open)
            return
        if not questions or (new and self._out_of_time()):
            raise OutOfQuestions
        needs = [self._answers_needed(question) for question in questions]
        known = [self._ahead.pop(_pair(*question.images), None) for question in questions]
        yield _Request(questions, needs, None, True, known)

    def _is_another_round(self, pairs: list[tuple[int, int]], count: int = 0) -> bool:
        """Whether this round differs from the one that was interrupted: an answer was undone since,
        or a setting changed.

        Args:
            pairs: Pairs that are asked about and have no answer that lies ahead.
            count: Answers that lie ahead and are used now.
        """
        if self.queue is None:
            return len(self._ahead) > count
        if all(self.queue.knows(*pair) for pair in pairs):
            return False
        if self.queue.leftover():
            return True
        # Later rounds may have asked about these pairs, if this one had ended before.
        is_spent = self.questions_left() == 0 or self._out_of_time()
        return self._last_event is not None and not is_spent

    def _publish(self, request: _Request) -> None:
        """Show people what is asked, if they answer when they like."""
        if self.queue is None:
            return
        entries = [
            Entry(question, need, request.confirms, self._votes_needed(question))
            for question, need in zip(request.questions, request.needs, strict=True)
        ]
        request.numbers = self.queue.publish(entries)
        self.queue.tell(self.progress())

    def progress(self) -> dict[str, Any]:
        """Return how far the round is, for people: numbers by name."""
        outlook = self.outlook
        return {
            "asked": self.asked + self.spent.questions,
            "asked_in_round": self.spent.questions,
            "allowed_in_round": self.questions_allowed(),
            "budget": self.budget,
            "minutes": self.minutes,
            "outlook": None if outlook is None else {**outlook._asdict(), "share": outlook.share},
        }

    def _votes_needed(self, question: Question) -> int:
        pairs = len(question.groups[0]) * len(question.groups[1])
        is_large = self.second_vote is not None and pairs >= self.second_vote
        return 2 if is_large and question.reason == "merge" else 1

    def _answer(self, request: _Request) -> None:
        """Wait for the answers to what was asked, and apply them."""
        if self.queue is not None:
            self._apply_settled(request, self._wait(request))
            return
        for answer in sorted(
            (answer for answer in request.known if answer is not None), key=lambda a: a.place
        ):
            self._take_in(answer)
            for member in self._ahead_members.pop(answer.gesture or "", []):
                self._take_in_member(member)
        if any(answer is not None for answer in request.known):
            self.spent.gestures += 1
        if request.open_questions():
            if request.is_sheet:
                self._ask_new_sheet(request)
            else:
                self._ask_new_pair(request)

    def _apply_settled(self, request: _Request, found: list[list[Answer]]) -> None:
        """Apply the answers to published questions; one without an answer was passed on."""
        for question, answers in zip(request.questions, found, strict=True):
            main = [answer for answer in answers if not answer.is_member]
            if not main:
                self._passed.add(_pair(*question.images))
            for answer in main:
                self._take_in(answer)
            for answer in answers:
                if answer.is_member:
                    self._take_in_member(answer)
        self.spent.gestures += any(found)

    def _wait(self, request: _Request) -> list[list[Answer]]:
        """Wait for people's answers to published questions.

        Raises:
            OutOfQuestions: The round does not wait, or nobody answered for too long.
            RoundAgain: An answer was taken back.
            QuitAsking: The annotator leaves.
        """
        assert self.queue is not None
        annotator = cast(QueueAnnotator, self.annotator)
        last_event, since = -1, time.monotonic()
        while True:
            if self.wait == "none":
                raise OutOfQuestions
            found = self.queue.answers(request.numbers)
            # Afterwards: an answer may be taken back while it is read.
            if self.queue.undone():
                raise RoundAgain
            if found is not None:
                return found
            newest = self.ledger.last_event()
            if newest != last_event:
                last_event, since = newest, time.monotonic()
            if self.wait != "all" and time.monotonic() - since >= self.wait:
                raise OutOfQuestions
            if self.while_waiting is not None:
                self.while_waiting()
            annotator.serve(self.ledger)

    def _ask_new_pair(self, request: _Request) -> None:
        """Ask the annotator about a pair."""
        (question,) = request.questions
        try:
            self._new_answer(question, request.needs[0], request.confirms)
        except NoAnswer:
            self._passed.add(_pair(*question.images))

    def _ask_new_sheet(self, request: _Request) -> None:
        """Ask the annotator about a sheet, or about what is left of one."""
        questions = request.open_questions()
        needs = dict(zip([q.images for q in request.questions], request.needs, strict=True))
        asked_at = time.time()
        began = time.monotonic()
        try:
            verdicts = self._with_undo(lambda: self._sheet_verdicts(questions))
        except NoAnswer:
            self._passed.update(_pair(*question.images) for question in questions)
            return
        seconds = time.monotonic() - began
        each = self._seconds_each(seconds / len(questions), len(request.questions))
        events: list[int] = []
        self._sheets.append(events)
        if len(questions) == len(request.questions):
            self.spent.gestures += 1
        for question, verdict in zip(questions, verdicts, strict=True):
            need = needs[question.images]
            answer = self._record(question, verdict, need, None, asked_at, each)
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
        self._add(answer)
        self._count(answer)
        if self.after_answer is not None:
            self.after_answer(self.asked + self.spent.questions, self.current_labels)

    def _take_in_member(self, answer: Answer) -> None:
        """Add an answer about a further image of a group, which is no question of its own."""
        self._add(answer)
        self._count(answer)

    def _add(self, answer: Answer) -> None:
        self._answers.append(answer)
        self._applied.add(answer.event)
        if self.closure.add(answer) is Effect.CONTRADICTION:
            self.spent.contradictions += 1

    def _count(self, answer: Answer) -> None:
        """Add an answer to the cost of the round."""
        self.spent.seconds += answer.seconds
        if answer.is_member:
            self.spent.members += 1
            return
        self.spent.questions += 1
        self.spent.verdicts[answer.verdict.value] += 1

    def _count_all(self, answers: Sequence[Answer]) -> None:
        """Add answers that the closure holds, but that no question waited for, to the cost."""
        for answer in answers:
            self._count(answer)
        decisions = {a.gesture or str(a.event) for a in answers if not a.is_member}
        self.spent.gestures += len(decisions)
        events = {answer.event for answer in answers}
        self.spent.contradictions += sum(c.event in events for c in self.closure.contradictions)

    def _catch_up(self) -> None:
        """Take in every answer that lies ahead, in the order in which they were given."""
        if self.queue is not None:
            self._last_event = None
            waiting = {number for _, request in self._open for number in request.numbers}
            waiting |= self.queue.open_numbers()
            self.queue.forget()
            for answer in self.ledger.answers():
                number = None if answer.order is None else answer.order[1]
                is_ahead = answer.run == self.run and answer.event not in self._applied
                if is_ahead and number not in waiting:
                    take_in = self._take_in_member if answer.is_member else self._take_in
                    take_in(answer)
            return
        ahead = list(self._ahead.values())
        self._ahead.clear()
        for answer in ahead:
            self._take_in(answer)
            for member in self._ahead_members.pop(answer.gesture or "", []):
                self._take_in_member(member)

    def _take_in_unapplied(self, event: int) -> None:
        """Take in every answer of the ledger up to an event that was not applied.

        The closure is made anew, because such an answer may stand before others.
        """
        answers = self.ledger.answers(as_of=event)
        applied = self._applied
        if {answer.event for answer in answers} != applied or len(answers) != len(self._answers):
            self._know(answers)
        self._count_all([a for a in answers if a.run == self.run and a.event not in applied])

    def _new_answer(self, question: Question, need: int, confirms: int | None) -> None:
        """Ask the annotator, and write the answer to the ledger before it is applied."""
        # The clock of the machine may be set meanwhile; durations are of one that is not.
        asked_at = time.time()
        began = time.monotonic()
        judgement = self._with_undo(lambda: self._judgement(question, confirms))
        seconds = time.monotonic() - began
        # An oracle takes no time, and says how much a person would take.
        seconds = float(getattr(self.annotator, "seconds", seconds))
        gesture = None
        if judgement.members:
            gesture = uuid.uuid4().hex
            count = getattr(self.annotator, "sheet_seconds", None)
            seconds = seconds if count is None else float(count(1 + len(judgement.members)))
        answer = self._record(
            question, judgement.verdict, need, confirms, asked_at, seconds, gesture
        )
        events = [answer.event]
        members = []
        for images, verdict in judgement.members:
            member = dataclasses.replace(question, images=images)
            members.append(
                self._record(member, verdict, 1, None, asked_at + seconds, 0.0, gesture, MEMBER)
            )
            events.append(members[-1].event)
        if members:
            self._sheets.append(events)
        self.spent.gestures += 1
        self._take_in(answer)
        for of_member in members:
            self._take_in_member(of_member)

    def _judgement(self, question: Question, confirms: int | None) -> Judgement:
        """What the annotator says of a pair, and of further images if it judges those."""
        judge = getattr(self.annotator, "judge", None)
        if judge is None or confirms is not None or not self.judge_members:
            return Judgement(self.annotator.answer(question), [])
        return cast(MemberAnnotator, self.annotator).judge(question)

    def _record(
        self,
        question: Question,
        verdict: Verdict,
        need: int,
        confirms: int | None,
        asked_at: float,
        seconds: float,
        gesture: str | None = None,
        reason: str | None = None,
    ) -> Answer:
        """Write an answer to the ledger."""
        answered_at = asked_at + seconds
        pair = question.images
        if reason is None:
            reason = question.reason if confirms is None else "confirm"
        event = self.ledger.append(
            *pair,
            verdict,
            annotator=self.annotator.name,
            asked_at=asked_at,
            answered_at=answered_at,
            epoch=self.epoch,
            reason=reason,
            score=question.score,
            similarity=question.similarity,
            need=need,
            confirms=confirms,
            shown=getattr(self.annotator, "shown", ((), ())),
            run=self.run,
            origin=None if gesture is None else Origin(gesture=gesture),
        )
        # The seconds are those that the ledger will return: a resumed round adds up the same ones.
        seconds = answered_at - asked_at
        return Answer(
            event,
            *pair,
            verdict,
            need,
            confirms,
            seconds,
            self.run,
            None,
            gesture,
            reason == MEMBER,
        )

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


def _check_sheet(questions: Sequence[Question]) -> None:
    """Refuse questions that cannot be on one sheet."""
    for question in questions:
        as_instance("questions", question, Question)
    if len({question.images[0] for question in questions}) > 1:
        raise ValueError("questions: got several first images, expected one")
    if len({question.images for question in questions}) < len(questions):
        raise ValueError("questions: got a pair of images twice, expected each once")


def _links_of(tracks: Tensor) -> list[tuple[int, int]]:
    """Each image of a track with the next one."""
    links = []
    last: dict[int, int] = {}
    for row, track in enumerate(tracks.tolist()):
        if track >= 0:
            if track in last:
                links.append((last[track], row))
            last[track] = row
    return links


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
