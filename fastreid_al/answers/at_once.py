"""Answers of an annotator that answers a question at once: an oracle, or a person at a terminal."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ..arguments import described
from .ledger import MEMBER, Ledger, Origin
from .question import (
    Annotator,
    Answer,
    Judgement,
    MemberAnnotator,
    NoAnswer,
    Question,
    SheetAnnotator,
    UndoLast,
    Verdict,
)
from .record import RoundRecord, pair_of
from .rounds import Limits, Request, RoundAgain

#: What an annotator returns.
Answered = TypeVar("Answered")


class AtOnce:
    """Asks an annotator, and writes each answer to the ledger before it is applied.

    Args:
        annotator: Answers the questions.
        ledger: Keeps the answers.
        run: Name of the run in the ledger.
        record: Applies the answers.
        judge_members: Whether the annotator also judges further images of the groups.
    """

    def __init__(
        self, annotator: Any, ledger: Ledger, run: str, record: RoundRecord, judge_members: bool
    ) -> None:
        self.annotator = annotator
        #: Epoch of the round, which is recorded with the answers.
        self.epoch = 0
        self._ledger = ledger
        self._run = run
        self._record = record
        self._judge_members = judge_members
        #: Answers that lie ahead, by pair; and those about further images of the groups, by
        #: gesture.
        self._ahead: dict[tuple[int, int], Answer] = {}
        self._ahead_members: dict[str, list[Answer]] = {}
        #: Events of each sheet since this object was made, which are taken back together.
        self._sheets: list[list[int]] = []

    @property
    def who(self) -> str | None:
        """Name of the annotator."""
        return cast(str, self.annotator.name)

    def divide(self, answers: list[Answer], position: int) -> list[Answer]:
        """Return the answers that are known when a round begins; the others lie ahead."""
        self._ahead.clear()
        self._ahead_members.clear()
        known = []
        for answer in answers:
            if answer.run != self._run or answer.event <= position:
                known.append(answer)
            elif answer.is_member and answer.gesture:
                self._ahead_members.setdefault(answer.gesture, []).append(answer)
            else:
                self._ahead.setdefault(pair_of(answer.left, answer.right), answer)
        return known

    def count_ahead(self) -> int:
        """Return how many answers lie ahead."""
        return len(self._ahead)

    def is_ahead(self, pair: tuple[int, int]) -> bool:
        """Return whether the answer about a pair (low, high) lies ahead."""
        return pair in self._ahead

    def take_ahead(self, pair: tuple[int, int]) -> Answer | None:
        """Take the answer about a pair (low, high) of those that lie ahead; None without one."""
        return self._ahead.pop(pair, None)

    def is_another_round(self, pairs: list[tuple[int, int]], count: int, limits: Limits) -> bool:
        """Return whether this round differs from the one that was interrupted."""
        return len(self._ahead) > count

    def catch_up(self) -> None:
        """Take in every answer that lies ahead, in the order in which they were given."""
        ahead = list(self._ahead.values())
        self._ahead.clear()
        for answer in ahead:
            self._take_in_with_members(answer)

    def answer(self, request: Request) -> None:
        """Ask what has no answer yet, and apply the answers."""
        known = [answer for answer in request.known if answer is not None]
        for answer in sorted(known, key=lambda answer: answer.place):
            self._take_in_with_members(answer)
        if known:
            self._record.spent.gestures += 1
        if request.open_questions():
            if request.is_sheet:
                self._ask_sheet(request)
            else:
                self._ask_pair(request)

    def _take_in_with_members(self, answer: Answer) -> None:
        """Take in an answer that lay ahead, and what was said of further images with it."""
        self._record.take_in(answer)
        for member in self._ahead_members.pop(answer.gesture or "", []):
            self._record.take_in(member)

    def _ask_pair(self, request: Request) -> None:
        """Ask the annotator about a pair."""
        (question,) = request.questions
        try:
            self._new_answer(question, request.needs[0], request.confirms)
        except NoAnswer:
            self._record.passed.add(pair_of(*question.images))

    def _ask_sheet(self, request: Request) -> None:
        """Ask the annotator about a sheet, or about what is left of one."""
        questions = request.open_questions()
        needs = dict(zip([q.images for q in request.questions], request.needs, strict=True))
        asked_at = time.time()
        began = time.monotonic()
        try:
            verdicts = self._with_undo(lambda: self._sheet_verdicts(questions))
        except NoAnswer:
            self._record.passed.update(pair_of(*question.images) for question in questions)
            return
        seconds = time.monotonic() - began
        each = self._seconds_each(seconds / len(questions), len(request.questions))
        events: list[int] = []
        self._sheets.append(events)
        if len(questions) == len(request.questions):
            self._record.spent.gestures += 1
        for question, verdict in zip(questions, verdicts, strict=True):
            need = needs[question.images]
            answer = self._write(question, verdict, need, None, asked_at, each)
            asked_at += each
            events.append(answer.event)
            self._record.take_in(answer)

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
        answer = self._write(
            question, judgement.verdict, need, confirms, asked_at, seconds, gesture
        )
        events = [answer.event]
        members = []
        for images, verdict in judgement.members:
            member = dataclasses.replace(question, images=images)
            members.append(
                self._write(member, verdict, 1, None, asked_at + seconds, 0.0, gesture, MEMBER)
            )
            events.append(members[-1].event)
        if members:
            self._sheets.append(events)
        self._record.spent.gestures += 1
        self._record.take_in(answer)
        for of_member in members:
            self._record.take_in(of_member)

    def _judgement(self, question: Question, confirms: int | None) -> Judgement:
        """What the annotator says of a pair, and of further images if it judges those."""
        judge = getattr(self.annotator, "judge", None)
        if judge is None or confirms is not None or not self._judge_members:
            return Judgement(cast(Annotator, self.annotator).answer(question), [])
        return cast(MemberAnnotator, self.annotator).judge(question)

    def _write(
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
        event = self._ledger.append(
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
            run=self._run,
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
            self._run,
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
                last = self._ledger.last_answer(self._run)
                if last is None:
                    continue
                events = next((sheet for sheet in self._sheets if last in sheet), [last])
                for event in reversed(events):
                    self._ledger.undo(event, self.annotator.name)
                raise RoundAgain from None
