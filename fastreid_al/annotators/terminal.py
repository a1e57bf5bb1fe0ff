"""The terminal annotator: a person who looks at a contact sheet and answers with one key."""

from __future__ import annotations

import contextlib
import errno
import getpass
import importlib.util
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch

from ..answers.ledger import Ledger
from ..answers.people import check_name
from ..answers.question import Question, QuitAsking, UndoLast, Verdict
from ..answers.service import AnswerService, Item, Outcome, Person, Submission, Task
from ..data.records import Record
from ..errors import LedgerError, printable
from .context import AnnotatorContext
from .sheet import REASONS, describe_image, draw_sheet, shown_rows

#: Name of the contact sheet in the run folder.
SHEET_FILE = "question.png"

_INPUT_CLOSED = "standard input was closed"
_ANNOTATOR_LEFT = "the annotator left"
_KEYS = "[s]ame  [d]ifferent  [u]nsure  [x] not comparable  [z] undo  "
_PROMPT = f"{_KEYS}[q]uit > "
_SKIP_PROMPT = f"{_KEYS}[space] skip  [q]uit > "
_HELP = (
    "s same, d different, u unsure, x not comparable, z undo (take back the last answer), "
    "q quit (all answers are kept)"
)
_SKIP_HELP = f"{_HELP}, space or the word skip: ask this later"
#: Name of a person without a login name.
_NAMELESS = "terminal"
#: Seconds to wait for the next question, and between signs that a person still looks at one.
_PAUSE = 0.2
_BEAT = 20.0
#: False on Windows, where answers are read by lines.
_HAS_TERMIOS = importlib.util.find_spec("termios") is not None
_VERDICTS = {
    "s": Verdict.SAME,
    "d": Verdict.DIFFERENT,
    "u": Verdict.UNSURE,
    "x": Verdict.NOT_COMPARABLE,
}
_UNDO = "z"
_SKIP = " "
_QUIT = "q"
#: Ctrl-C and Ctrl-D, as characters.
_INTERRUPT = "\x03"
_END = "\x04"
_WORD_OF_KEY = {
    **{key: verdict.value for key, verdict in _VERDICTS.items()},
    _UNDO: "undo",
    _QUIT: "quit",
}
_KEY_OF_WORD = {word: key for key, word in _WORD_OF_KEY.items()}
#: The same where a question can be skipped.
_WORD_OF_QUEUE_KEY = {**_WORD_OF_KEY, _SKIP: "skip"}
_KEY_OF_QUEUE_WORD = {word: key for key, word in _WORD_OF_QUEUE_KEY.items()}


class Terminal:
    """A person at a terminal, who sees a contact sheet in an image viewer and presses one key per
    answer.

    If standard input is not a terminal, answers are read by lines: the letter of a key, or its
    word.

    `serve` takes questions from the queue of a ledger, which several people may answer; `answer`
    answers one that is given.

    Args:
        records: The images by row. Their identities are not used.
        sheet: Path of the contact sheet, which is drawn again for each question.
        name: Recorded with each answer.
        stdin: Where answers are read; standard input when not given.
        stdout: Where questions are printed; standard output when not given.
    """

    def __init__(
        self,
        records: Sequence[Record],
        sheet: Path,
        *,
        name: str = "terminal",
        stdin: TextIO | None = None,
        stdout: TextIO | None = None,
    ) -> None:
        self.name = name
        #: Paths of the images on each side of the last sheet.
        self.shown: tuple[list[str], list[str]] = ([], [])
        self._records = records
        self._sheet = sheet
        self._stdin = stdin or sys.stdin
        self._stdout = stdout or sys.stdout
        self._answered = 0
        self._introduced = False
        self._service: AnswerService | None = None
        self._served: object = None
        self._acted_at = time.monotonic()
        self._skipped: int | None = None

    #: Questions that are open at a time: the person sees one after the other.
    window = 1

    def answer(self, question: Question) -> Verdict:
        """Show a question and wait for its answer.

        Raises:
            QuitAsking: The person leaves, or standard input ends.
            UndoLast: The person takes the last answer back.
            UserError: The contact sheet cannot be written.
        """
        number = self._answered + 1
        self.shown = draw_sheet(question, self._records, self._sheet, number)
        key = self._ask(self._describe(question, f"Question {number}"), can_skip=False)
        if key == _UNDO:
            self._answered = max(0, self._answered - 1)
            raise UndoLast
        if key not in _VERDICTS:
            raise QuitAsking(_INPUT_CLOSED if key == _END else _ANNOTATOR_LEFT)
        self._answered += 1
        return _VERDICTS[key]

    def serve(self, served: AnswerService | Ledger) -> None:
        """Show the next question of a queue, or sheet of questions, and submit the person's answer.

        Returns after one decision, which may be to take the last one back or to skip the question,
        or after a moment if no question is open for this person.

        Args:
            served: The service of the queue, or its ledger, which its trainer has open.

        Raises:
            QuitAsking: The person leaves, or standard input ends.
            UserError: The contact sheet cannot be written.
            LedgerError: The ledger cannot be used.
        """
        service = self._service_of(served)
        # Whoever runs the trainer can change its ledger in any way.
        person = service.person_named(self.name, role="admin")
        # Who looks at a terminal that waits is here only for some minutes after the last key.
        task = service.next_task(person, idle=time.monotonic() - self._acted_at)
        if task is None:
            time.sleep(_PAUSE)
            return
        if task.id == self._skipped:
            self._say("No other question is open. Answer this one, or u if you cannot decide.")
        try:
            with _heartbeats(service, person, task):
                self._decide(service, person, task)
            self._acted_at = time.monotonic()
        except QuitAsking:
            with contextlib.suppress(LedgerError):
                service.release(person, task.id)
            raise

    def _service_of(self, served: AnswerService | Ledger) -> AnswerService:
        if isinstance(served, AnswerService):
            return served
        if self._service is None or self._served is not served:
            self._service = AnswerService(served)
            self._served = served
        return self._service

    def _decide(self, service: AnswerService, person: Person, task: Task) -> None:
        """Ask about each question of a task, and submit the answers; or skip it, or undo."""
        verdicts: dict[int, Verdict] = {}
        shown: set[int] = set()
        began = time.monotonic()
        while len(verdicts) < len(task.items):
            item = task.items[len(verdicts)]
            question, images = self._question_of(service, task, item)
            if question is None:
                # Its images are not in this run's image set: somebody else may have them.
                service.skip(person, task.id)
                time.sleep(_PAUSE)
                return
            label = _label(task, len(verdicts))
            self.shown = draw_sheet(question, self._records, self._sheet, task.number)
            rows = shown_rows(question, self._records)
            shown |= {images[row] for side in rows for row in side}
            key = self._ask(self._describe(question, label, can_skip=True), can_skip=True)
            if key == _UNDO and verdicts:
                del verdicts[task.items[len(verdicts) - 1].question]
            elif key == _UNDO:
                if self._undo(service, person):
                    self._skipped = None
                    return
            elif key == _SKIP:
                service.skip(person, task.id)
                self._skipped = task.id
                return
            elif key not in _VERDICTS:
                raise QuitAsking(_INPUT_CLOSED if key == _END else _ANNOTATOR_LEFT)
            else:
                verdicts[item.question] = _VERDICTS[key]
        submission = Submission(
            task.id,
            uuid.uuid4().hex,
            verdicts,
            active_seconds=time.monotonic() - began,
            source="terminal",
            shown=sorted(shown),
        )
        self._print_outcome(service.submit(person, submission))

    def _question_of(
        self, service: AnswerService, task: Task, item: Item
    ) -> tuple[Question | None, dict[int, int]]:
        """A question of a task, about rows of the image set, and the image of each row; None where
        the set lacks one of the two images.
        """
        images: dict[int, int] = {}
        groups = []
        for large, group in ((task.left, task.left_images), (item.right, item.right_images)):
            numbers = [large, *(image for image in group if image != large)]
            rows = service.rows(numbers)
            if rows[0] < 0:
                return None, {}
            images.update(zip(rows, numbers, strict=True))
            groups.append([row for row in rows if row >= 0])
        left, right = groups
        question = Question(
            (left[0], right[0]),
            (torch.tensor(left), torch.tensor(right)),
            task.reason,
            task.similarity or 0.0,
            0.0,
        )
        return question, images

    def _undo(self, service: AnswerService, person: Person) -> bool:
        """Take the person's last decision back; False if there is none."""
        before = service.progress(person).decided
        task = service.undo(person)
        if task is None and service.progress(person).decided == before:
            self._say("There is no answer of this run to take back.")
            return False
        if task is None:
            self._say("The last answer was taken back; its question is not open any more.")
        return True

    def _print_outcome(self, outcome: Outcome) -> None:
        """Say what an answer changed, if that is more than the pair itself."""
        effect = outcome.effect
        if outcome.contradiction:
            events = ", ".join(map(str, outcome.contradiction))
            self._say(f"This answer contradicts earlier ones (events {events} of the ledger).")
        elif effect is not None and effect.pairs > 1:
            first, second = effect.joined
            if first * second == effect.pairs:
                self._say(f"This joins {first:,} and {second:,} images: {effect.pairs:,} pairs.")
            else:
                self._say(f"With this, {effect.pairs:,} pairs are known to be the same.")

    def _say(self, text: str) -> None:
        with _quit_without_input():
            self._print(f"{text}\n")

    def _ask(self, text: str, *, can_skip: bool) -> str:
        """Print a question, and return the key of its answer."""
        with _quit_without_input():
            self._print(text)
            return self._read_key(can_skip)

    def _describe(self, question: Question, label: str, *, can_skip: bool = False) -> str:
        lines = []
        if not self._introduced:
            self._introduced = True
            lines.append(
                f"The images of each question are shown in {printable(self._sheet)}. "
                "Leave it open in an image viewer that reloads changed files."
            )
            lines.append(f"Keys: {_SKIP_HELP if can_skip else _HELP}.")
        reason = REASONS.get(question.reason, question.reason)
        lines.append(f"{label}: {reason} (shown in {printable(self._sheet)})")
        lines.append(f"  A: {self._describe_side(question, 0)}")
        lines.append(f"  B: {self._describe_side(question, 1)}")
        return "\n".join(lines) + "\n"

    def _describe_side(self, question: Question, side: int) -> str:
        """Name an image by its row: file names of the field's data sets contain the identity."""
        row = question.images[side]
        size = len(question.groups[side])
        images = "1 image" if size == 1 else f"{size:,} images"
        return f"image {row} ({describe_image(self._records[row])}, {images})"

    def _read_key(self, can_skip: bool) -> str:
        """Read until a key is known: that of an answer, undo, skip, quit, or the end of input."""
        is_terminal = self._stdin is not None and self._stdin.isatty() and _HAS_TERMIOS
        known = _WORD_OF_QUEUE_KEY if can_skip else _WORD_OF_KEY
        while True:
            key = self._read_press(can_skip) if is_terminal else self._read_line(can_skip)
            if key in known or key in (_INTERRUPT, _END):
                return key
            self._print(f"{_SKIP_HELP if can_skip else _HELP}\n")

    def _read_line(self, can_skip: bool) -> str:
        """Read a line that holds a letter or a word.

        Other text is returned as it is, never interpreted: "don't know" does not mean "d".
        """
        self._print(_SKIP_PROMPT if can_skip else _PROMPT)
        line = self._stdin.readline() if self._stdin is not None else ""
        if not line:
            self._print("\n")
            return _END
        text = " ".join(line.lower().split())
        self._print(f"{text}\n")
        return (_KEY_OF_QUEUE_WORD if can_skip else _KEY_OF_WORD).get(text, text)

    def _read_press(self, can_skip: bool) -> str:
        """Read one key press, without Enter."""
        assert self._stdin is not None
        with _single_keys(self._stdin.fileno()):
            # The prompt is printed after earlier key presses were dropped: they were made before
            # this question was seen.
            self._print(_SKIP_PROMPT if can_skip else _PROMPT)
            pressed = os.read(self._stdin.fileno(), 64).decode(errors="replace").lower() or _END
            # An arrow key sends several characters, and the last of them may be a letter.
            key = pressed if pressed.startswith("\x1b") else pressed[0]
            words = _WORD_OF_QUEUE_KEY if can_skip else _WORD_OF_KEY
            self._print(f"{words.get(key, '')}\n")
        return key

    def _print(self, text: str) -> None:
        # A file name may hold characters that the terminal cannot show.
        encoding = self._stdout.encoding or "utf-8"
        self._stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stdout.flush()


def make_terminal(context: AnnotatorContext) -> Terminal:
    """Return the terminal annotator of a run, with its contact sheet in the run folder."""
    name = context.config.questions.person or login_name()
    return Terminal(context.records, context.folder / SHEET_FILE, name=check_name(name))


def login_name() -> str:
    """Return the name of who runs this process; "terminal" where it has none."""
    try:
        return check_name(getpass.getuser())
    except (LedgerError, KeyError, OSError, ImportError):
        return _NAMELESS


def _label(task: Task, asked: int) -> str:
    """What a question is called: its number, and its place in a sheet."""
    total = f" of {task.total:,}" if task.total > task.number else ""
    place = f", pair {asked + 1} of {len(task.items)}" if task.sheet else ""
    return f"Question {task.number:,}{total}{place}"


@contextlib.contextmanager
def _heartbeats(service: AnswerService, person: Person, task: Task) -> Iterator[None]:
    """Keep a task while a person looks at it."""
    done = threading.Event()
    began = time.monotonic()
    seconds = min(_BEAT, service.lease_seconds / 3)

    def beat() -> None:
        while not done.wait(seconds):
            # If the ledger is away, the answer will say so.
            with contextlib.suppress(LedgerError):
                service.heartbeat(person, task.id, idle=time.monotonic() - began)

    thread = threading.Thread(target=beat, name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def _quit_without_input() -> Iterator[None]:
    """Raise QuitAsking when the terminal has closed, or on a Ctrl-C that arrives as a signal."""
    try:
        yield
    except KeyboardInterrupt:
        raise QuitAsking(_ANNOTATOR_LEFT) from None
    except UnicodeDecodeError as error:
        raise QuitAsking("standard input is not text") from error
    except (EOFError, ValueError) as error:  # ValueError: the file object was closed
        raise QuitAsking(_INPUT_CLOSED) from error
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EBADF):
            raise
        raise QuitAsking(_INPUT_CLOSED) from error


@contextlib.contextmanager
def _single_keys(fd: int) -> Iterator[None]:
    """Make a terminal send each key at once, without showing it; keys typed before are dropped.

    Ctrl-C arrives as a character. While a run trains, the first SIGINT is only noted and a second
    one would end the process, which would leave the terminal in this mode.
    """
    import termios

    try:
        before = termios.tcgetattr(fd)
        mode = termios.tcgetattr(fd)
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        control_characters = mode[6]
        control_characters[termios.VMIN] = 1
        control_characters[termios.VTIME] = 0
        control_characters[termios.VINTR] = bytes([os.fpathconf(fd, "PC_VDISABLE")])
        try:
            termios.tcsetattr(fd, termios.TCSAFLUSH, mode)
            yield
        finally:
            termios.tcsetattr(fd, termios.TCSANOW, before)
    except termios.error as error:
        raise OSError(*error.args) from error
