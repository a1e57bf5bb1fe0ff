"""The terminal annotator: a person who looks at a contact sheet and answers with one key."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ..answers.question import Question, QuitAsking, UndoLast, Verdict
from ..data.records import Record
from ..errors import printable
from .context import AnnotatorContext
from .sheet import REASONS, describe_image, draw_sheet

#: Name of the contact sheet in the run folder.
SHEET_FILE = "question.png"

_INPUT_CLOSED = "standard input was closed"
_ANNOTATOR_LEFT = "the annotator left"
_PROMPT = "[s]ame  [d]ifferent  [u]nsure  [x] not comparable  [z] undo  [q]uit > "
_HELP = (
    "s same, d different, u unsure, x not comparable, z undo (take back the last answer), "
    "q quit (all answers are kept)"
)
#: False on Windows, where answers are read by lines.
_HAS_TERMIOS = importlib.util.find_spec("termios") is not None
_VERDICTS = {
    "s": Verdict.SAME,
    "d": Verdict.DIFFERENT,
    "u": Verdict.UNSURE,
    "x": Verdict.NOT_COMPARABLE,
}
_UNDO = "z"
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


class Terminal:
    """A person at a terminal, who sees a contact sheet in an image viewer and presses one key per
    answer.

    If standard input is not a terminal, answers are read by lines: the letter of a key, or its
    word.

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

    def answer(self, question: Question) -> Verdict:
        """Show a question and wait for its answer.

        Raises:
            QuitAsking: The person leaves, or standard input ends.
            UndoLast: The person takes the last answer back.
            UserError: The contact sheet cannot be written.
        """
        self.shown = draw_sheet(question, self._records, self._sheet, self._answered + 1)
        text = self._describe(question)
        with _quit_without_input():
            self._print(text)
            key = self._read_key()
        if key == _UNDO:
            self._answered = max(0, self._answered - 1)
            raise UndoLast
        if key not in _VERDICTS:
            raise QuitAsking(_INPUT_CLOSED if key == _END else _ANNOTATOR_LEFT)
        self._answered += 1
        return _VERDICTS[key]

    def _describe(self, question: Question) -> str:
        lines = []
        if not self._introduced:
            self._introduced = True
            lines.append(
                f"The images of each question are shown in {printable(self._sheet)}. "
                "Leave it open in an image viewer that reloads changed files."
            )
            lines.append(f"Keys: {_HELP}.")
        reason = REASONS.get(question.reason, question.reason)
        lines.append(
            f"Question {self._answered + 1}: {reason} (similarity {question.similarity:.2f}, "
            f"shown in {printable(self._sheet)})"
        )
        lines.append(f"  A: {self._describe_side(question, 0)}")
        lines.append(f"  B: {self._describe_side(question, 1)}")
        return "\n".join(lines) + "\n"

    def _describe_side(self, question: Question, side: int) -> str:
        """Name an image by its row: file names of the field's data sets contain the identity."""
        row = question.images[side]
        size = len(question.groups[side])
        images = "1 image" if size == 1 else f"{size:,} images"
        return f"image {row} ({describe_image(self._records[row])}, {images})"

    def _read_key(self) -> str:
        """Read until a key is known: that of an answer, undo, quit, or the end of input."""
        is_terminal = self._stdin is not None and self._stdin.isatty() and _HAS_TERMIOS
        while True:
            key = self._read_press() if is_terminal else self._read_line()
            if key in _WORD_OF_KEY or key in (_INTERRUPT, _END):
                return key
            self._print(f"{_HELP}\n")

    def _read_line(self) -> str:
        """Read a line that holds a letter or a word.

        Other text is returned as it is, never interpreted: "don't know" does not mean "d".
        """
        self._print(_PROMPT)
        line = self._stdin.readline() if self._stdin is not None else ""
        if not line:
            self._print("\n")
            return _END
        text = " ".join(line.lower().split())
        self._print(f"{text}\n")
        return _KEY_OF_WORD.get(text, text)

    def _read_press(self) -> str:
        """Read one key press, without Enter."""
        assert self._stdin is not None
        with _single_keys(self._stdin.fileno()):
            # The prompt is printed after earlier key presses were dropped: they were made before
            # this question was seen.
            self._print(_PROMPT)
            pressed = os.read(self._stdin.fileno(), 64).decode(errors="replace").lower() or _END
            # An arrow key sends several characters, and the last of them may be a letter.
            key = pressed if pressed.startswith("\x1b") else pressed[0]
            self._print(f"{_WORD_OF_KEY.get(key, '')}\n")
        return key

    def _print(self, text: str) -> None:
        # A file name may hold characters that the terminal cannot show.
        encoding = self._stdout.encoding or "utf-8"
        self._stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stdout.flush()


def make_terminal(context: AnnotatorContext) -> Terminal:
    """Return the terminal annotator of a run, with its contact sheet in the run folder."""
    return Terminal(context.records, context.folder / SHEET_FILE)


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
