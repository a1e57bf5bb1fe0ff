"""The asker: stands between a strategy and its annotators, and keeps the budget, the ledger and the
closure.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
from .at_once import AtOnce
from .closure import Closure
from .ledger import Ledger
from .posterior import Prior
from .published import Published
from .question import Answer, AnyAnnotator, Question, Verdict
from .queue import QuestionQueue
from .record import RoundRecord, pair_of
from .rounds import (
    CurrentLabels,
    Observation,
    Outlook,
    OutOfQuestions,
    Request,
    RoundAgain,
    Spent,
    Wait,
)
from .steps import QuestionSteps, Steps

__all__ = ["Asker", "CurrentLabels", "Observation", "OutOfQuestions", "Outlook", "RoundAgain"]

ClosureName = Literal["transitive", "none"]
#: Is given the verdict of a question, or those of a sheet.
Then = Callable[[Verdict], object]
SheetThen = Callable[[list[Verdict]], object]
#: Questions that are published for people who answer while the run trains, if nothing else limits
#: them.
_PUBLISHED = 64
#: Most questions that are open at a time, and how many for each person: one that they look at, one
#: that is loaded, and one more while the oldest waits for a second person's answer.
_MOST_OPEN = 16
_OPEN_PER_PERSON = 3
#: Observations of a name that are kept.
_MOST_OBSERVATIONS = 2000


@dataclass(eq=False)
class _Open:
    """A question or a sheet that was offered and is not decided.

    Args:
        questions: The question, or those of the sheet.
        steps: Goes on when what was asked last is answered.
        then: Is given the verdicts.
    """

    questions: list[Question]
    steps: Steps
    then: SheetThen


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
        minutes: Minutes that the answers of all rounds may take together, counted as
            `Spent.seconds`; None is no limit.
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
        annotator: AnyAnnotator,
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
        if ledger is not None:
            as_instance("ledger", ledger, Ledger)
        check_choice("closure", closure, ("transitive", "none"))
        self.transitive = closure == "transitive"
        confirm_merges = as_integer("confirm_merges", confirm_merges, 0)
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
        second_vote = None if second_vote is None else as_integer("second_vote", second_vote, 0)
        judge_members = as_flag("judge_members", judge_members)
        self.tracks = None if tracks is None else as_ids("tracks", tracks, low=-1, per="image")
        self.ledger = ledger or Ledger.open("sqlite://")
        self._record = RoundRecord(
            self.transitive, self.expected_error, self.tracks, self._was_answered
        )
        self._source = self._make_source(annotator, judge_members, second_vote)
        self.window = 1
        #: Event of the ledger up to which the answers of this run belong to rounds that ended.
        self.position = 0
        #: Questions and seconds of the rounds that ended.
        self.asked = 0
        self.seconds = 0.0
        #: Called after each answer, when it is on the disk, with the number of questions so far and
        #: `current_labels`.
        self.after_answer: Callable[[int, CurrentLabels], None] | None = None
        #: Called again and again while a round waits for people; it may raise.
        self.while_waiting: Callable[[], None] | None = None
        #: Is given a line where an epoch is repeated whose questions were asked before.
        self.notice: Callable[[str], None] | None = None
        #: Last epoch of the run, if it is known: a round of it that does not wait publishes no
        #: questions, because no epoch would use the answers.
        self.last_epoch: int | None = None
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
        #: What was offered and is not decided, in the order in which it is applied.
        self._open: deque[tuple[_Open, Request]] = deque()
        self._open_pairs: set[tuple[int, int]] = set()
        self._steps = QuestionSteps(
            self._record, self._source, self, self._open_pairs, confirm_merges
        )
        self._open_round()

    def _make_source(
        self, annotator: AnyAnnotator, judge_members: bool, second_vote: int | None
    ) -> AtOnce | Published:
        """Where the answers come from."""
        if callable(getattr(annotator, "serve", None)):
            return Published(
                annotator,
                self.ledger,
                self.run,
                self._record,
                self.wait,
                second_vote,
                self._is_waiting,
                self._say,
            )
        return AtOnce(annotator, self.ledger, self.run, self._record, judge_members)

    @property
    def annotator(self) -> AnyAnnotator:
        """Who answers the questions."""
        annotator: AnyAnnotator = self._source.annotator
        return annotator

    @annotator.setter
    def annotator(self, annotator: AnyAnnotator) -> None:
        self._source.annotator = annotator

    @property
    def queue(self) -> QuestionQueue | None:
        """Where questions are published, if people answer when they like."""
        return self._source.queue if isinstance(self._source, Published) else None

    @property
    def spent(self) -> Spent:
        """The cost of the round so far."""
        return self._record.spent

    @property
    def closure(self) -> Closure:
        """The closure of the answers so far, or of those that are believed."""
        return self._record.closure

    def _was_answered(self) -> None:
        """An answer was applied."""
        if self.after_answer is not None:
            self.after_answer(self.asked + self.spent.questions, self.current_labels)

    def _is_waiting(self) -> None:
        """The round waits for people."""
        if self.while_waiting is not None:
            self.while_waiting()

    def _say(self, line: str) -> None:
        """Say a line to whoever runs the program."""
        if self.notice is not None:
            self.notice(line)

    def begin(self, epoch: int, limit: int | None = None) -> None:
        """Begin a round of at most `limit` questions; None is no limit."""
        self.epoch = as_integer("epoch", epoch, 0)
        self._limit = None if limit is None else as_integer("limit", limit, 0)
        self._open_round()
        source = self._source
        if isinstance(source, AtOnce):
            source.epoch = self.epoch
            self.window = self._window_setting or self._usual_window()
            return
        start = getattr(source.annotator, "start", None)
        if callable(start):
            start(self.ledger)
        window = self._window_setting or self._usual_window()
        self.window = source.begin(self.epoch, window, self.position, self._is_last())

    def _is_last(self) -> bool:
        """Whether the round is that of the last epoch."""
        return self.last_epoch is not None and self.epoch >= self.last_epoch

    def end(self) -> Spent:
        """End the round: take in every answer of the ledger, add up the costs, and return those of
        this round.

        Where the round did not wait for people, answers that came meanwhile are for the next one.
        """
        self._close_all()
        if isinstance(self._source, AtOnce):
            self._source.catch_up()
            self.position = self.ledger.last_event()
        elif self._source.is_begun:
            self.position = self._source.end()
        self.features = None
        self.labels = None
        if self.queue is not None:
            # Also the time of answers that settled nothing: people gave it.
            self.spent.seconds = max(0.0, self.queue.seconds(self.position) - self.seconds)
        self.asked += self.spent.questions
        self.seconds += self.spent.seconds
        self.spent.remembered = len(self._record.remembered)
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
        the end of the round, a merge needs as many answers that agree as it takes to make it 50 %
        likely, 3 at most, from the question's probability if it has one. Does nothing if answers
        are never wrong.

        Args:
            prior: Log-odds of "same" for two images before any answer.
        """
        if self.expected_error == 0:
            return
        names = {}
        if self.expected_error is None:
            names = {event.id: event.annotator for event in self.ledger.events()}
        self._record.weigh(prior, names)

    def likely(self) -> Closure:
        """Return the closure of the believed answers, and of the opposite of each doubted "same".

        A strategy may have merged clusters because of an answer that is doubted since.
        """
        return self._record.likely()

    def deciding_answers(self) -> list[Answer]:
        """Return the answers so far that say "same" or "different" of two images of the set."""
        return self._record.deciding_answers()

    def questions_allowed(self) -> int | None:
        """Return how many questions this round may ask in all; the same if it is begun again; None
        is no limit.
        """
        limits = []
        if self._limit is not None:
            limits.append(self._limit)
        if self.budget is not None:
            limits.append(self.budget - self.asked - self._late())
        return max(0, min(limits)) if limits else None

    def questions_left(self) -> int | None:
        """Return how many questions may still be asked in this round; None is no limit."""
        if self.queue is not None and self.wait == "none" and self._is_last():
            return 0
        waiting = sum(len(request.questions) for _, request in self._open)
        asked = self.spent.questions + waiting + self._source.count_ahead()
        limits = []
        if self._limit is not None:
            # Late answers are to questions that earlier rounds asked.
            limits.append(self._limit - (asked - self._late()))
        if self.budget is not None:
            # People may still answer questions of earlier rounds.
            source = self._source
            earlier = source.count_earlier() if isinstance(source, Published) else 0
            limits.append(self.budget - self.asked - asked - earlier)
        return max(0, min(limits)) if limits else None

    def _late(self) -> int:
        """Answers of this round to questions that earlier rounds asked."""
        return self._source.late if isinstance(self._source, Published) else 0

    def out_of_time(self) -> bool:
        """Return whether the answers so far took the minutes that all may take."""
        if self.minutes is None:
            return False
        seconds = self.seconds + self.spent.seconds
        if self.queue is not None:
            # Up to the answers that were applied: a round that is begun again ends at the same one.
            seconds = self.queue.seconds(max(self._record.applied, default=0))
        return seconds >= 60 * self.minutes

    def can_ask(self, i: int, j: int) -> bool:
        """Return whether a question about two images would reach the annotator.

        It does not if the pair was answered, if the answers decide it, or if the annotator passed
        on it in this round.
        """
        return self._record.can_ask(i, j)

    @property
    def takes_sheets(self) -> bool:
        """Whether the annotator answers several questions about one image at a time."""
        is_queue = isinstance(self._source, Published)
        return is_queue or callable(getattr(self.annotator, "answer_sheet", None))

    def closed_pairs(self) -> list[tuple[int, int]]:
        """Return the pairs of images that were asked about and need no further question.

        They were answered, and the answer is neither doubted nor waits for confirmation, or the
        annotator passed on them in this round. What follows from answers is not among them.
        """
        return self._record.closed_pairs()

    def awaits_confirmation(self, i: int, j: int) -> bool:
        """Return whether two images were answered "same" and further answers are needed before it
        counts.
        """
        return self._record.awaits_confirmation(i, j)

    def constraints(self) -> Closure:
        """Return the closure that labels must agree with.

        With closure "none" it infers nothing about what to ask, but labels still agree with what
        follows from the answers; it is computed anew at each call.
        """
        return self._record.constraints()

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
        self._source.answer(request)
        self._open.popleft()
        self._open_pairs -= {pair_of(*question.images) for question in request.questions}
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

        self._begin(_Open([question], self._steps.of_question(question), give))

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
        steps = self._steps.of_sheet(asked) if self.takes_sheets else self._steps.of_each(asked)
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
        self.outlook = None
        self._close_all()
        self._record.open()
        self._observed.clear()
        if isinstance(self._source, Published):
            self._source.open()
        self._record.know(self._source.divide(self.ledger.answers(), self.position))

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

    def _begin(self, item: _Open) -> None:
        """Ask about something that is offered, when fewer than `window` are open."""
        self.make_room()
        while any(pair_of(*q.images) in self._open_pairs for q in item.questions):
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
        if isinstance(self._source, Published):
            self._source.publish(request)
            self._source.queue.tell(self.progress())
        self._open.append((item, request))
        self._open_pairs |= {pair_of(*question.images) for question in request.questions}

    def progress(self) -> dict[str, Any]:
        """Return how far the round is, for people: numbers by name."""
        outlook = self.outlook
        return {
            "asked": self.asked + self.spent.questions,
            # Late answers of the round before do not count against what this round may ask.
            "asked_in_round": self.spent.questions - self._late(),
            "allowed_in_round": self.questions_allowed(),
            "budget": self.budget,
            "minutes": self.minutes,
            "outlook": None if outlook is None else {**outlook._asdict(), "share": outlook.share},
        }


def _check_sheet(questions: Sequence[Question]) -> None:
    """Refuse questions that cannot be on one sheet."""
    for question in questions:
        as_instance("questions", question, Question)
    if len({question.images[0] for question in questions}) > 1:
        raise ValueError("questions: got several first images, expected one")
    if len({question.images for question in questions}) < len(questions):
        raise ValueError("questions: got a pair of images twice, expected each once")


def _observation(row: Sequence[float]) -> Observation:
    """An observation of a saved state: epoch, inputs, answer."""
    epoch, *inputs, answer = row
    return Observation(
        as_integer("observations", epoch, 0),
        tuple(float(as_number("observations", value)) for value in inputs),
        float(as_number("observations", answer, 0, 1)),
    )
