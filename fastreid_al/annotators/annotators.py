"""Who answers: true identities, the answers of another run, or a person at a terminal."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from torch import Tensor

from ..answers.closure import Closure
from ..answers.question import NoAnswer, Question, QuitAsking, UndoLast, Verdict
from ..data.records import Record
from .sheet import REASONS, camera_name, draw_sheet

_CLOSED = "standard input was closed"
_PROMPT = "[s]ame  [d]ifferent  [u]nsure  [x] not comparable  [z] undo  [q]uit > "
_HELP = "s same, d different, u unsure, x not comparable, z undo (take back the last answer), q quit (all answers are kept)"
_HAS_TERMIOS = (
    importlib.util.find_spec("termios") is not None
)  # not on Windows, which is asked by lines
_VERDICTS = {
    "s": Verdict.SAME,
    "d": Verdict.DIFFERENT,
    "u": Verdict.UNSURE,
    "x": Verdict.NOT_COMPARABLE,
}
_UNDO, _QUIT, _INTERRUPT, _END = "z", "q", "\x03", "\x04"
_NAMES = {
    **{key: verdict.value for key, verdict in _VERDICTS.items()},
    _UNDO: "undo",
    _QUIT: "quit",
}
_KEYS = {name: key for key, name in _NAMES.items()}


class Oracle:
    """Answers from true identities, with errors at given rates; the same question always gets the same answer.

    What becomes of a question depends on the seed and the names of its two images only: not on the order of the questions,
    the order of the images, or the process.

    Args:
        identities: True identities, (n,) int64.
        names: Names of the images, n of them; their rows when not given. With the images' paths, an image keeps its answers
            when others are added to the set or left out.
        error: Share of questions answered wrong: "same" for "different" and the other way round.
        unsure: Share of questions answered "unsure".
        not_comparable: Share of questions answered "not comparable".
        seed: Seed of the errors.

    Raises:
        ValueError: A rate is not in [0, 1], they sum to more than 1, or an identity is unknown.
    """

    name = "oracle"

    def __init__(
        self,
        identities: Tensor,
        names: Sequence[str] | None = None,
        *,
        error: float = 0.0,
        unsure: float = 0.0,
        not_comparable: float = 0.0,
        seed: int = 0,
    ) -> None:
        rates = {"unsure": unsure, "not_comparable": not_comparable, "error": error}
        for what, rate in rates.items():
            if not 0 <= rate <= 1:
                raise ValueError(f"{what} is a share between 0 and 1, not {rate}")
        # Added without rounding in between: 0.1 + 0.2 + 0.7 is 1.
        if math.fsum(rates.values()) > 1:
            raise ValueError(
                f"unsure, not_comparable and error sum to {math.fsum(rates.values()):g}, more than 1"
            )
        unknown = int((identities < 0).sum())
        if unknown:
            raise ValueError(
                f"the oracle needs true identities, and {unknown:,} of {len(identities):,} are unknown (-1)"
            )
        if names is not None and len(names) != len(identities):
            raise ValueError(f"{len(names):,} names for {len(identities):,} identities")
        self._identities, self._names, self._seed = identities.tolist(), names, seed
        self._unsure, self._not_comparable = unsure, math.fsum((unsure, not_comparable))
        self._error = math.fsum(rates.values())

    def answer(self, question: Question) -> Verdict:
        """Answer for the two images that are shown."""
        a, b = question.images
        draw = self._draw(a, b)
        if draw < self._unsure:
            return Verdict.UNSURE
        if draw < self._not_comparable:
            return Verdict.NOT_COMPARABLE
        wrong = draw < self._error
        return (
            Verdict.SAME
            if (self._identities[a] == self._identities[b]) != wrong
            else Verdict.DIFFERENT
        )

    def _draw(self, a: int, b: int) -> float:
        """A number in [0, 1), uniform over pairs."""
        names = [str(row) if self._names is None else self._names[row] for row in (a, b)]
        digest = hashlib.blake2b(
            json.dumps([self._seed, *sorted(names)]).encode(), digest_size=8
        ).digest()
        return (int.from_bytes(digest, "big") >> 11) * 2.0**-53  # 53 bits: more would round up to 1


class Replay:
    """Answers that were given before, in another run, and what follows from them.

    Args:
        memory: The answers of the other run, by row of this one.
    """

    name = "replay"

    def __init__(self, memory: Closure) -> None:
        self._memory = memory

    def answer(self, question: Question) -> Verdict:
        """Give the answer of the other run.

        Raises:
            NoAnswer: It has none.
        """
        said, implied = (
            self._memory.answer(*question.images),
            self._memory.verdict(*question.images),
        )
        if said is not None:
            return said.verdict
        if implied is not None:
            return implied
        raise NoAnswer(
            f"the other run has no answer about images {question.images[0]} and {question.images[1]}"
        )


class Terminal:
    """A person at a terminal, who looks at a contact sheet in an image viewer and presses one key an answer.

    Where standard input is not a terminal it is read by lines: the letter of a key, or its word.

    Args:
        records: The images by row. Their identities are not looked at.
        sheet: The contact sheet, drawn anew for each question.
        name: Recorded with each answer.
        stdin: Read from; standard input when not given.
        stdout: Written to; standard output when not given.
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
        self._records, self._sheet = records, sheet
        self._stdin, self._stdout = stdin or sys.stdin, stdout or sys.stdout
        self._given = 0
        self._greeted = False

    def answer(self, question: Question) -> Verdict:
        """Show a question and wait for its answer.

        Raises:
            QuitAsking: The person leaves, or standard input ends.
            UndoLast: The person takes the last answer back.
            UserError: The contact sheet cannot be written.
        """
        self.shown = draw_sheet(question, self._records, self._sheet, self._given + 1)
        text = self._describe(question)
        with _gone_quits():
            self._say(text)
            key = self._key()
        if key == _UNDO:
            self._given = max(0, self._given - 1)
            raise UndoLast
        if key not in _VERDICTS:
            raise QuitAsking(_CLOSED if key == _END else "the annotator left")
        self._given += 1
        return _VERDICTS[key]

    def _describe(self, question: Question) -> str:
        lines = [
            f"question {self._given + 1}: {REASONS.get(question.reason, question.reason)} "
            f"similarity {question.similarity:.2f}, sheet {self._sheet}",
            "   ".join(
                f"{letter}: {self._image(question, side)}" for side, letter in enumerate("AB")
            ),
        ]
        if not self._greeted:
            self._greeted = True
            lines.insert(
                0,
                f"Each question is drawn in {self._sheet}; an image viewer that reloads may be left open.",
            )
            lines.insert(1, f"Keys: {_HELP}.")
        return "\n".join(lines) + "\n"

    def _image(self, question: Question, side: int) -> str:
        """An image by its number: in the field's sets the file name tells the identity."""
        row, size = question.images[side], len(question.groups[side])
        return f"image {row} ({camera_name(self._records[row].camera)}, {size:,} image{'s' if size > 1 else ''})"

    def _key(self) -> str:
        """Ask until a key is known: that of an answer, undo, quit, or the end of input."""
        terminal = self._stdin is not None and self._stdin.isatty() and _HAS_TERMIOS
        while True:
            key = self._pressed() if terminal else self._line()
            if key in _NAMES or key in (_INTERRUPT, _END):
                return key
            self._say(f"{_HELP}\n")

    def _line(self) -> str:
        """The key of a line, which is a letter or a word; nothing else of a line is guessed at: "don't know" is not "d"."""
        self._say(_PROMPT)
        line = self._stdin.readline() if self._stdin is not None else ""
        said = " ".join(line.lower().split())
        self._say(f"{said}\n")
        return _KEYS.get(said, said) if line else _END

    def _pressed(self) -> str:
        """One key, without Enter."""
        assert self._stdin is not None
        with _single_keys(self._stdin.fileno()):
            # The prompt comes when keys are listened to: what was pressed before this question was seen is thrown away.
            self._say(_PROMPT)
            pressed = os.read(self._stdin.fileno(), 64).decode(errors="replace").lower() or _END
            # An arrow is several characters, of which the last may be a letter.
            key = pressed if pressed.startswith("\x1b") else pressed[0]
            self._say(f"{_NAMES.get(key, '')}\n")
        return key

    def _say(self, text: str) -> None:
        encoding = self._stdout.encoding or "utf-8"
        # A file name may hold what the terminal cannot show.
        self._stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stdout.flush()


@contextlib.contextmanager
def _gone_quits() -> Iterator[None]:
    """Leave when the terminal is gone, or on Ctrl-C where it comes as a signal."""
    try:
        yield
    except KeyboardInterrupt:
        raise QuitAsking("the annotator left") from None
    except UnicodeDecodeError as error:
        raise QuitAsking("standard input is not text") from error
    except (EOFError, ValueError) as error:  # ValueError: the file object was closed
        raise QuitAsking(_CLOSED) from error
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EBADF):
            raise
        raise QuitAsking(_CLOSED) from error


@contextlib.contextmanager
def _single_keys(fd: int) -> Iterator[None]:
    """Let a terminal give each key at once, unseen; what was typed before is dropped.

    Ctrl-C comes as a key: while a run trains, its signal is only noted, and a second one would end the process with the
    terminal left like this.
    """
    import termios

    try:
        before, mode = termios.tcgetattr(fd), termios.tcgetattr(fd)
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        mode[6][termios.VINTR] = bytes([os.fpathconf(fd, "PC_VDISABLE")])
        try:
            termios.tcsetattr(fd, termios.TCSAFLUSH, mode)
            yield
        finally:
            termios.tcsetattr(fd, termios.TCSANOW, before)
    except termios.error as error:
        raise OSError(*error.args) from error
