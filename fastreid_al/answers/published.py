"""Answers of people who answer published questions when they like."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

from .ledger import Ledger
from .question import Answer, Question, QueueAnnotator
from .queue import Begun, Entry, QuestionQueue
from .record import RoundRecord, pair_of
from .rounds import Limits, OutOfQuestions, Request, RoundAgain, Wait


class Published:
    """Publishes the questions of a round in the ledger, and applies the answers of people.

    Args:
        annotator: Stands for the people.
        ledger: Keeps the questions and the answers, opened as its trainer.
        run: Name of the run in the ledger.
        record: Applies the answers.
        wait: How long a round waits for people.
        second_vote: A merge of clusters with sizes a and b needs two people's answers if a b is at
            least this; None asks one person.
        while_waiting: Called again and again while a round waits; it may raise.
        notice: Is given a line for whoever runs the program.
    """

    def __init__(
        self,
        annotator: Any,
        ledger: Ledger,
        run: str,
        record: RoundRecord,
        wait: Wait,
        second_vote: int | None,
        while_waiting: Callable[[], None],
        notice: Callable[[str], None],
    ) -> None:
        self.annotator = annotator
        self.queue = QuestionQueue(ledger, run)
        #: Questions of earlier rounds that were answered after their round, and count for this one.
        self.late = 0
        #: Whether a round began since `open`.
        self.is_begun = False
        self._ledger = ledger
        self._run = run
        self._record = record
        self._wait_for = wait
        self._second_vote = second_vote
        self._while_waiting = while_waiting
        self._notice = notice
        #: Epochs of which it was said that they are repeated.
        self._said: set[int] = set()
        #: Last event before the round.
        self._first_event = 0
        #: Last event of the round, if it had ended before it was begun again: it then uses the
        #: answers up to this event, and waits for nobody.
        self._last_event: int | None = None
        #: Last event and question of the look at which the round waited in vain; of a round that is
        #: repeated, the question alone.
        self._timed_out: int | None = None
        self._unanswered: int | None = None

    @property
    def who(self) -> str | None:
        """None: nobody knows who of the people will answer."""
        return None

    def open(self) -> None:
        """Forget the round before."""
        self.is_begun = False
        self.late = 0
        self._timed_out = self._unanswered = None

    def begin(self, epoch: int, window: int, position: int, is_last: bool) -> int:
        """Begin a round, or begin it again with the answers that it began with.

        Args:
            epoch: Epoch of the run.
            window: Questions that are open at a time.
            position: Last event that the labels of the round before were made from.
            is_last: Whether no epoch follows, so that a round which does not wait publishes
                nothing, and leaves what is open to people.

        Returns:
            Questions that are open at a time: a round that is begun again keeps its own.
        """
        waits = self._wait_for != "none"
        begun = self.queue.begin(epoch, window, position, repeats=waits)
        self._first_event = begun.first_event
        self._last_event = begun.last_event if waits else None
        self._unanswered = begun.unanswered
        self.is_begun = True
        self._say_again(epoch, begun)
        known = self._ledger.answers(as_of=self._first_event)
        self._record.know(known)
        # Answers that came after the last round had ended count for this one.
        fresh = [a for a in known if a.run == self._run and a.event > position]
        self._record.count_all(fresh)
        # Those to earlier rounds are no questions of this round, whose limit is not for them.
        own = self.queue.numbers()
        self.late = sum(
            not a.is_member and (a.order is None or a.order[1] not in own) for a in fresh
        )
        if not waits:
            if not is_last:
                self.queue.withdraw(only_waiting=True)
            self.queue.forget()
        return begun.window

    def _say_again(self, epoch: int, begun: Begun) -> None:
        """Say once that an epoch is repeated, and from which answers."""
        if epoch in self._said or (begun.last_event is None and not begun.is_changed):
            return
        self._said.add(epoch)
        if begun.is_changed:
            self._notice(
                f"epoch {epoch} was labelled before, and an answer that it used was taken back "
                "since: it is asked again"
            )
        else:
            self._notice(
                f"epoch {epoch} was labelled before: it uses the same answers again, those up to "
                f"event {begun.last_event if self._last_event is not None else begun.first_event}"
            )

    def end(self) -> int:
        """End the round, and return the last event that its labels are made from.

        Where the round did not wait for people, answers that came meanwhile are for the next one.
        """
        if self._wait_for == "none":
            position = self._first_event
        else:
            position = self._end_of_round()
            self._record.take_in_unapplied(self._ledger.answers(as_of=position), self._run)
            if self._last_event is None:
                self.queue.withdraw(only_waiting=self._wait_for != "all", later=False)
        self.queue.end(position, self._unanswered)
        return position

    def _end_of_round(self) -> int:
        """The last event that the labels of this round are made from.

        A round that had ended already, and is repeated from an older checkpoint, ends where it
        ended: the answers after it belong to the rounds after it. So do answers that come after the
        look at which a round gave up waiting.
        """
        if self._last_event is not None:
            return self._last_event
        return self._ledger.last_event() if self._timed_out is None else self._timed_out

    def count_earlier(self) -> int:
        """Return how many questions of earlier rounds people may still answer."""
        return self.queue.count_earlier() if self._wait_for == "none" else 0

    def divide(self, answers: list[Answer], position: int) -> list[Answer]:
        """Return all answers: `begin` looks at which of them a round begins with."""
        return answers

    def count_ahead(self) -> int:
        """Return 0: answers that lie ahead are read from the queue."""
        return 0

    def is_ahead(self, pair: tuple[int, int]) -> bool:
        """Return False: answers that lie ahead are read from the queue."""
        return False

    def take_ahead(self, pair: tuple[int, int]) -> Answer | None:
        """Return None: answers that lie ahead are read from the queue."""
        return None

    def is_another_round(self, pairs: list[tuple[int, int]], count: int, limits: Limits) -> bool:
        """Return whether this round differs from the one that was interrupted."""
        if all(self.queue.knows(*pair) for pair in pairs):
            return False
        if self._last_event is None:
            return self.queue.is_ahead()
        # Later rounds may have asked about these pairs.
        return limits.questions_left() != 0 and not limits.out_of_time()

    def catch_up(self) -> None:
        """Begin the round anew with every answer that there is.

        A round that is interrupted later begins with the same answers again, so that it asks the
        same questions.

        Raises:
            RoundAgain: Always.
        """
        self.queue.begin_anew()
        raise RoundAgain

    def publish(self, request: Request) -> None:
        """Show people what is asked."""
        entries = [
            Entry(question, need, request.confirms, self._votes_needed(question))
            for question, need in zip(request.questions, request.needs, strict=True)
        ]
        request.numbers = self.queue.publish(entries)

    def _votes_needed(self, question: Question) -> int:
        """People who must agree."""
        pairs = len(question.groups[0]) * len(question.groups[1])
        is_large = self._second_vote is not None and pairs >= self._second_vote
        return 2 if is_large and question.reason == "merge" else 1

    def answer(self, request: Request) -> None:
        """Wait for people's answers, and apply them; a question without one was passed on."""
        found = self._wait(request)
        record = self._record
        for question, answers in zip(request.questions, found, strict=True):
            main = [answer for answer in answers if not answer.is_member]
            if not main:
                record.passed.add(pair_of(*question.images))
            for answer in main:
                record.take_in(answer)
            for answer in answers:
                if answer.is_member:
                    record.take_in(answer)
        record.spent.gestures += any(found)

    def _wait(self, request: Request) -> list[list[Answer]]:
        """Wait for people's answers to published questions.

        Raises:
            OutOfQuestions: The round does not wait, or nobody answered for too long.
            RoundAgain: An answer was taken back.
            QuitAsking: The annotator leaves.
        """
        if self._wait_for == "none":
            raise OutOfQuestions
        if self._last_event is not None:
            return self._answers_again(request, self._last_event)
        annotator = cast(QueueAnnotator, self.annotator)
        last_event, since = -1, time.monotonic()
        while True:
            # Before the answers: what is not settled then was not settled by this event.
            newest = self._ledger.last_event()
            found = self.queue.answers(request.numbers)
            # Afterwards: an answer may be taken back while it is read.
            if self.queue.undone():
                raise RoundAgain
            if found is not None:
                return found
            if newest != last_event:
                last_event, since = newest, time.monotonic()
            if self._wait_for != "all" and time.monotonic() - since >= self._wait_for:
                self._timed_out, self._unanswered = newest, request.numbers[0]
                raise OutOfQuestions
            self._while_waiting()
            annotator.serve(self._ledger)

    def _answers_again(self, request: Request, last_event: int) -> list[list[Answer]]:
        """The answers that a round which is repeated had.

        Raises:
            OutOfQuestions: The round had ended at this request.
            RoundAgain: An answer was taken back.
        """
        if self.queue.undone():
            raise RoundAgain
        if self._unanswered in request.numbers:
            raise OutOfQuestions
        return self.queue.answers_by(request.numbers, last_event)
