"""What the annotation service and its clients exchange: people, tasks, submissions and outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from .closure import Effect
from .question import Verdict

#: What a person may do: answer; also decide questions that people disagree about; also manage
#: people, take back the answers of others, and erase images.
PersonRole = Literal["annotate", "review", "admin"]
#: What became of a submission.
Status = Literal["recorded", "repeated", "late"]
#: Images of a group that are shown below its large image at first, and on each page of `members`.
THUMBNAILS = 10
#: What may be wrong with the images of a question.
TAGS = ("bad crop", "mixed", "no object")


class Person(NamedTuple):
    """A person who answers.

    Args:
        id: Number in the ledger.
        name: Name, which the answers are recorded with.
        role: What the person may do.
    """

    id: int
    name: str
    role: PersonRole


class PersonFigures(NamedTuple):
    """What is known of a person's work.

    Args:
        name: Name.
        role: What the person may do.
        answers: Answers in force, without those about thumbnails.
        gestures: Decisions in force: a sheet is one.
        seconds: Active seconds of these decisions.
        rate: Decisions in an active hour; None without a decision.
        gold_right: Right answers to questions whose answer is known.
        gold_asked: Answers to such questions.
        agreement: Share of the votes of others on the same questions that agree; None without any.
        estimated_error: Estimated share of wrong answers; None where too little is known.
        seen_at: When the person did something last, to 15 seconds, in unix seconds.
        disabled: Whether the person may not answer any more.
        often_wrong: Probability that more than one in ten of the answers is wrong; None where too
            little is known.
        errs_often: Whether this is so likely that the person is pointed out.
    """

    name: str
    role: PersonRole
    answers: int
    gestures: int
    seconds: float
    rate: float | None
    gold_right: int
    gold_asked: int
    agreement: float | None
    estimated_error: float | None
    seen_at: float | None
    disabled: bool = False
    often_wrong: float | None = None
    errs_often: bool = False


class Item(NamedTuple):
    """A question of a task.

    Args:
        question: Number of the question.
        right: Its second image.
        right_images: Images of the second group, most central first, with `right`.
    """

    question: int
    right: int
    right_images: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """What a person sees at a time: one question, or a sheet of questions about one first image.

    Args:
        id: Number of the question, or of the first question of the sheet.
        sheet: Whether it is a sheet.
        items: Its questions.
        left: The first image, as a number of the ledger.
        left_images: Images of the first group, most central first, with `left`.
        reason: Kind of the question: "split", "merge", "confirm".
        similarity: Cosine similarity that led to the (first) question; None where unknown.
        probability: Probability of "same" before the answer; None where unknown.
        asked_at: When the task was given to the person, in unix seconds.
        number: Which decision of the person in this run it is, from 1.
        total: Decisions until the end, as far as it is known: `number` of `total`.
    """

    id: int
    sheet: bool
    items: tuple[Item, ...]
    left: int
    left_images: tuple[int, ...]
    reason: str
    similarity: float | None
    probability: float | None
    asked_at: float
    number: int
    total: int


@dataclass(frozen=True)
class Submission:
    """A person's decision about a task.

    Args:
        task_id: The task.
        token: A name that the client makes for each decision: one that is sent twice is written
            once.
        verdicts: The verdict of each question of the task, by its number.
        odd: Images of the groups that do not belong to the large image of their side.
        other_side: Images of the groups of a pair that show what the large image of the other side
            shows, and not what that of their own side shows.
        all_confirmed: Whether all other thumbnails that were shown do belong to it.
        comment: A remark.
        tags: What is wrong with the images, of `TAGS`.
        active_seconds: Seconds that the person took.
        idle_seconds: Seconds in which the page was hidden or nobody was there.
        source: "web", "terminal" or "import".
        shown: Images that were shown; the first `THUMBNAILS` of each group when not given.
    """

    task_id: int
    token: str
    verdicts: Mapping[int, Verdict | str]
    odd: Sequence[int] = ()
    other_side: Sequence[int] = ()
    all_confirmed: bool = False
    comment: str | None = None
    tags: Sequence[str] = ()
    active_seconds: float = 0.0
    idle_seconds: float = 0.0
    source: str = "web"
    shown: Sequence[int] | None = None


class Impact(NamedTuple):
    """What an answer changed, given the answers that came before it.

    Args:
        effect: What it is in the closure.
        joined: Sizes of the two groups of images that it joined; (0, 0) if it joined none.
        pairs: Pairs of images that are known to be the same because of it.
        apart: Pairs of images that are known to be different because of it.
        cuts: Earlier "same" answers that do not count any more because of it.
        against: Events of earlier answers that imply the opposite.
        lost: Pairs of images about which nothing is known any more because of it: a further person
            disagrees with those who answered before.
    """

    effect: Effect
    joined: tuple[int, int] = (0, 0)
    pairs: int = 0
    apart: int = 0
    cuts: int = 0
    against: tuple[int, ...] = ()
    lost: int = 0


class Outcome(NamedTuple):
    """What became of a submission.

    Args:
        events: Events of the decision in the ledger, the pair's verdict first.
        status: "recorded"; "repeated", if it was written before; or "late", if the questions were
            answered or withdrawn meanwhile: it is kept, and changes nothing that is settled.
        contradiction: Events of earlier answers that it disagrees with.
        effect: What it changed, all its events together; None for a repeated one.
    """

    events: tuple[int, ...]
    status: Status
    contradiction: tuple[int, ...] = ()
    effect: Impact | None = None


class Decision(NamedTuple):
    """An earlier decision of a person.

    Args:
        gesture: Its name in the ledger.
        task_id: The task.
        events: Its events.
        answered_at: When, in unix seconds.
        left: First image.
        verdicts: Second image and verdict of each question.
        odd: Images that were marked as not belonging.
        undone: Whether it was taken back.
        comment: The remark.
        tags: What is wrong with the images.
        seconds: Active seconds.
        other_side: Images that were marked as those of the other side, which are in `odd` too.
    """

    gesture: str
    task_id: int
    events: tuple[int, ...]
    answered_at: float
    left: int
    verdicts: tuple[tuple[int, str], ...]
    odd: tuple[int, ...]
    undone: bool
    comment: str | None
    tags: tuple[str, ...]
    seconds: float
    other_side: tuple[int, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        run: Name of the run; empty without questions.
        epoch: Epoch of its newest question.
        answered: Questions that are settled.
        open: Questions that wait for an answer.
        review: Questions that people disagree about.
        total: Questions that the run may ask; without a budget, those up to the end of this round;
            None where unknown.
        decided: Decisions of the person in this run.
        rate: Decisions of the person in an active hour; None without any.
        rate_of_all: Questions that all people who are here answer in an hour; None without any.
        eta_seconds: Seconds until the remaining questions are answered; None where unknown.
        outlook: What the next questions are expected to change, as the trainer says it: fields
            `questions`, `changed`, `total`, `counts`; None where unknown.
        worth_stopping: Whether they are expected to change little; None where unknown.
        told: All that the trainer says of the round.
        known: Decisions of the person in this run about questions whose answer is known.
    """

    run: str
    epoch: int | None
    answered: int
    open: int
    review: int
    total: int | None
    decided: int
    rate: float | None
    rate_of_all: float | None
    eta_seconds: float | None
    outlook: Mapping[str, Any] | None
    worth_stopping: bool | None
    told: Mapping[str, Any] = field(default_factory=dict)
    known: int = 0


class ImageEntry(NamedTuple):
    """An image of the ledger.

    Args:
        id: Number in the ledger.
        path: Path relative to the folder of its set.
        digest: Digest of its content in hexadecimal; empty when unknown.
        erased: Whether it was erased, and must not be shown.
    """

    id: int
    path: str
    digest: str
    erased: bool


class MemberPage(NamedTuple):
    """A page of the images of a group.

    Args:
        images: The images, most central first, without erased ones.
        page: Number of the page, from 0.
        pages: Number of pages.
        total: Images of the group.
    """

    images: tuple[ImageEntry, ...]
    page: int
    pages: int
    total: int


class Step(NamedTuple):
    """An answer in a chain that proves what is known of two images.

    Args:
        event: Number in the ledger.
        left: One image.
        right: The other image.
        verdict: What most people said.
        annotator: Who answered first.
        answered_at: When, in unix seconds.
        epoch: Epoch of the run.
        run: The run.
        reason: Kind of the question.
        people: Who said so, where several people answered.
    """

    event: int
    left: int
    right: int
    verdict: str
    annotator: str
    answered_at: float
    epoch: int | None
    run: str | None
    reason: str | None
    people: tuple[str, ...] = ()
