"""Reads answers that were given elsewhere, from a CSV file or an export of Label Studio."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from ..data.text import delimiter_of
from ..errors import LedgerError, printable
from ..settings import did_you_mean
from .question import Verdict
from .report import ANSWER_COLUMNS, parse_cell

#: Forms of files that are read.
Form = Literal["csv", "label-studio"]

#: Columns that every CSV file has.
_NEEDED = ("left", "right", "verdict")
#: Columns of a CSV file; those of `ledger export` are read as well.
_COLUMNS = (*_NEEDED, "annotator", "answered_at", "seconds", "comment")
#: Columns that only `ledger export` writes.
_OF_EXPORT = {"id", "kind"}
#: Columns that say which answer a line is: a line with the same ones is the same answer.
_CONTENT = (
    *("left", "right", "verdict", "annotator", "asked_at", "answered_at", "seconds", "epoch"),
    *("reason", "gesture", "idle", "comment", "tags"),
)
_VERDICTS = {verdict.value: verdict for verdict in Verdict}
#: Names of the two images in a task of Label Studio.
_SIDES = (("left", "right"), ("image1", "image2"), ("image_1", "image_2"), ("img1", "img2"))
#: Latest time that is taken, in unix seconds: the year 5138.
_LATEST = 1e11
#: Most seconds of an answer: 31 years.
_MOST_SECONDS = 1e9
#: Most characters of a text.
_LONGEST = 10_000
_LARGEST_NUMBER = 2**31 - 1
#: Base of the image addresses that Label Studio gives to local files.
_LOCAL_FILES = "/data/local-files/"


class Imported(NamedTuple):
    """An answer of a file.

    Args:
        place: Where it stands, for messages: "answers.csv, line 3".
        left: Path of one image, as it is written.
        right: Path of the other image.
        verdict: The verdict.
        token: Hash of the content: an answer with the same one is the same answer.
        annotator: Who answered; empty when unknown.
        answered_at: When, in unix seconds; None when unknown.
        seconds: Time that it took.
        number: Event of the answer in the ledger that it was exported from.
        question: Number of the question in that ledger.
        confirms: Event in that ledger of the first answer of the merge that it confirms.
        need: Answers that must agree before a "same" counts.
        more: Further columns of the event.
    """

    place: str
    left: str
    right: str
    verdict: Verdict
    token: str
    annotator: str = ""
    answered_at: float | None = None
    seconds: float = 0.0
    number: int | None = None
    question: int | None = None
    confirms: int | None = None
    need: int = 1
    more: Mapping[str, Any] = {}


def read_answers(path: str, form: Form) -> tuple[list[Imported], int]:
    """Read the answers of a file.

    Args:
        path: The file.
        form: "csv": a table with a header line, separated by commas, semicolons or tabs, or what
            `ledger export` wrote; "label-studio": a JSON export of Label Studio.

    Returns:
        The answers in the order of the file, and how many lines hold none: undone answers of an
        export and its other events, and annotations that were skipped.

    Raises:
        LedgerError: The file cannot be read, or a line of it is wrong; the message says which.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LedgerError(f"{printable(path)} cannot be read ({reason}); name a file") from error
    text = _decode(printable(path), content)
    found = list((_csv_lines if form == "csv" else _label_studio)(printable(path), text))
    answers = [answer for answer in found if answer is not None]
    return answers, len(found) - len(answers)


def _decode(name: str, content: bytes) -> str:
    """The text of a file: UTF-16 with a byte order mark, or UTF-8."""
    if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # Names of files may hold any bytes.
        return content.decode("utf-8-sig", errors="surrogateescape")
    try:
        return content.decode("utf-16")
    except UnicodeDecodeError as error:
        raise LedgerError(f"{name} is damaged ({error.reason}); copy it again") from error


def _csv_lines(name: str, text: str) -> Iterator[Imported | None]:
    """Yield the answer of each line after the header, None for one that holds none."""
    # Without translation of line ends, as the module asks for.
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter_of(text), strict=True)
    header: list[str] | None = None
    while True:
        place = f"{name}, line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise LedgerError(f"{place}: got no line of CSV ({error})") from error
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip().lower() for cell in cells]
            _check_header(place, header)
        elif len(cells) != len(header):
            raise LedgerError(f"{place}: got {len(cells)} cells, expected {len(header)}")
        else:
            yield _csv_answer(place, dict(zip(header, cells, strict=True)))
    if header is None:
        raise LedgerError(f"{name} is empty, expected a header line: {','.join(_COLUMNS)}")


def _check_header(place: str, header: Sequence[str]) -> None:
    known = {*_COLUMNS, *ANSWER_COLUMNS}
    for column in header:
        if column not in known:
            hint = did_you_mean(column, known) or f"expected columns {','.join(_COLUMNS)}"
            raise LedgerError(f"{place}: unknown column {printable(column[:100])!r}; {hint}")
        if header.count(column) > 1:
            raise LedgerError(f"{place}: column {column} occurs twice")
    missing = [column for column in _NEEDED if column not in header]
    if missing:
        raise LedgerError(f"{place}: column {missing[0]} is missing; name it in the first line")


def _csv_answer(place: str, cells: Mapping[str, str]) -> Imported | None:
    exported = cells.keys() >= _OF_EXPORT
    if exported:
        cells = {column: parse_cell(cell) for column, cell in cells.items()}
        if cells["kind"] != "answer" or cells.get("undone_by") or cells.get("undone") == "True":
            return None
    fields = _Fields(place, cells)
    answered_at = fields.time("answered_at")
    seconds = fields.number("seconds", 0.0, _MOST_SECONDS)
    asked_at = fields.time("asked_at")
    if seconds is None and answered_at is not None and asked_at is not None:
        seconds = max(0.0, answered_at - asked_at)
    more = {
        **({} if asked_at is None or answered_at is None else {"asked_at": asked_at}),
        "epoch": fields.whole("epoch", 0),
        "reason": fields.text("reason") or None,
        "score": fields.number("score"),
        "similarity": fields.number("similarity"),
        "gesture": fields.plain("gesture"),
        "idle": fields.number("idle", 0.0, _MOST_SECONDS),
        "comment": fields.text("comment") or None,
        "tags": fields.plain("tags"),
    }
    return Imported(
        place,
        *(fields.path("left"), fields.path("right")),
        _verdict(place, cells["verdict"]),
        _token({column: cells.get(column, "").strip() for column in _CONTENT}),
        fields.text("annotator"),
        answered_at,
        seconds or 0.0,
        number=fields.whole("id", 1),
        question=fields.whole("question", 1),
        confirms=fields.whole("confirms", 1),
        need=fields.whole("need", 1) or 1,
        more=more,
    )


class _Fields:
    """Converts the cells of a line; an empty cell is as one that is missing.

    Args:
        place: Where the line stands.
        cells: Its cells by column.
    """

    def __init__(self, place: str, cells: Mapping[str, str]) -> None:
        self._place = place
        self._cells = cells

    def text(self, column: str) -> str:
        """Return the text of a cell."""
        text = self._cells.get(column, "").strip()
        if len(text) > _LONGEST:
            raise self._error(column, f"a text of at most {_LONGEST:,} characters")
        return text

    def plain(self, column: str) -> str | None:
        """Return the text of a cell that is UTF-8, None for an empty one."""
        text = self.text(column)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self._error(column, "a text in UTF-8") from error
        if "\0" in text:
            raise self._error(column, "a text without the character 0")
        return text or None

    def path(self, column: str) -> str:
        """Return the path of an image."""
        # Spaces belong to the name of a file.
        path = self._cells[column]
        if not path or "\0" in path or len(path) > _LONGEST:
            raise self._error(column, "the path of an image")
        return path

    def number(self, column: str, low: float = -_LATEST, high: float = _LATEST) -> float | None:
        """Return the number of a cell."""
        text = self.text(column)
        if not text:
            return None
        number = _as_float(text)
        if number is None or not low <= number <= high:
            raise self._error(column, f"a number from {low:g} to {high:g}")
        return number

    def whole(self, column: str, low: int) -> int | None:
        """Return the whole number of a cell."""
        number = self.number(column, low, _LARGEST_NUMBER)
        if number is None:
            return None
        if number != int(number):
            raise self._error(column, "a whole number")
        return int(number)

    def time(self, column: str) -> float | None:
        """Return the time of a cell in unix seconds."""
        text = self.text(column)
        if not text:
            return None
        found = _as_time(text)
        if found is None:
            raise self._error(
                column, "unix seconds, or a time such as 2026-03-01T09:30:00Z, from 1970 on"
            )
        return found

    def _error(self, column: str, expected: str) -> LedgerError:
        got = printable(self._cells.get(column, "")[:100])
        return LedgerError(f"{self._place}: got {column} {got!r}, expected {expected}")


def _as_float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _as_time(text: str) -> float | None:
    """Return unix seconds, of a number or of ISO 8601; a time without zone is UTC."""
    seconds = _as_float(text)
    if seconds is None:
        try:
            # Python 3.10 does not know the Z.
            moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1] in "zZ" else text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=timezone.utc)
            seconds = moment.timestamp()
        except (ValueError, OverflowError):
            return None
    return seconds if 0 <= seconds <= _LATEST else None


def _verdict(place: str, text: str) -> Verdict:
    found = _VERDICTS.get(text.strip().lower().replace("_", " ").replace("-", " "))
    if found is None:
        expected = ", ".join(_VERDICTS)
        raise LedgerError(
            f"{place}: unknown verdict {printable(text[:100])!r}, expected one of: {expected}"
        )
    return found


def _token(content: Mapping[str, Any]) -> str:
    """Return the hash of an answer's content; what is empty does not count."""
    given = {name: value for name, value in content.items() if value not in ("", None)}
    # Verdicts are compared as they are read.
    given["verdict"] = str(given["verdict"]).lower().replace("_", " ").replace("-", " ")
    text = json.dumps(given, sort_keys=True)
    return "import-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _label_studio(name: str, text: str) -> Iterator[Imported | None]:
    """Yield the answer of each annotation, None for one that was skipped."""
    try:
        tasks = json.loads(text)
    except json.JSONDecodeError as error:
        raise LedgerError(f"{name}, line {error.lineno}: got no JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"{name}: got no JSON that can be read") from error
    if not isinstance(tasks, list):
        raise LedgerError(f"{name}: got no list, expected the list of tasks of a JSON export")
    for number, task in enumerate(tasks, 1):
        yield from _task_answers(f"{name}, task {number}", task)


def _task_answers(place: str, task: Any) -> Iterator[Imported | None]:
    data = task.get("data") if isinstance(task, dict) else None
    annotations = task.get("annotations") if isinstance(task, dict) else None
    if not isinstance(data, dict) or not isinstance(annotations, list):
        raise LedgerError(
            f"{place}: got no data and annotations, expected a task of the form JSON (not JSON-MIN)"
        )
    sides = next((names for names in _SIDES if all(n in data for n in names)), None)
    if sides is None:
        expected = ", or ".join(" and ".join(names) for names in _SIDES)
        raise LedgerError(f"{place}: got data without two images, expected {expected}")
    left, right = (_image_path(f"{place}, {name}", data[name]) for name in sides)
    for number, annotation in enumerate(annotations, 1):
        yield _annotation_answer(f"{place}, annotation {number}", left, right, annotation)


def _image_path(place: str, value: Any) -> str:
    """Return the path of an image from its address: that of a local file, or a path."""
    if isinstance(value, str) and value.startswith(_LOCAL_FILES):
        parts = urlsplit(value, allow_fragments=False)
        # `urllib.parse.parse_qs` would not keep bytes that are not UTF-8.
        value = next((p[2:] for p in parts.query.split("&") if p.startswith("d=")), "")
        value = os.fsdecode(unquote_to_bytes(value))
    if not isinstance(value, str) or not value or "\0" in value or "://" in value:
        raise LedgerError(
            f"{place}: got {printable(str(value)[:100])!r}, expected a path relative to the folder "
            f"of the image set, or {_LOCAL_FILES}?d= and the path"
        )
    return value


def _annotation_answer(place: str, left: str, right: str, annotation: Any) -> Imported | None:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        raise LedgerError(f"{place}: got no result, expected an annotation of a JSON export")
    results = annotation["result"]
    if annotation.get("was_cancelled") is True or not results:
        return None
    by_type: dict[str, list[Any]] = {}
    for result in results:
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            raise LedgerError(f"{place}: got a result without a value")
        kind = str(result.get("type"))
        by_type.setdefault(kind, []).append(value.get("text" if kind == "textarea" else kind))
    choices = by_type.get("choices", [])
    if len(choices) != 1 or not isinstance(choices[0], list) or len(choices[0]) != 1:
        raise LedgerError(
            f"{place}: got {len(choices)} results of Choices, expected one with a single choice: "
            + ", ".join(_VERDICTS)
        )
    comments = [line for text in by_type.get("textarea", []) for line in _texts(text)]
    cells = {
        "verdict": str(choices[0][0]),
        "annotator": _annotator(place, annotation.get("completed_by")),
        "answered_at": str(annotation.get("created_at") or ""),
        "seconds": str(annotation.get("lead_time") or ""),
        "comment": "\n".join(comments),
    }
    fields = _Fields(place, cells)
    return Imported(
        *(place, left, right, _verdict(place, cells["verdict"])),
        _token({**cells, "left": left, "right": right}),
        fields.text("annotator"),
        fields.time("answered_at"),
        fields.number("seconds", 0.0, _MOST_SECONDS) or 0.0,
        more={"comment": fields.text("comment") or None},
    )


def _texts(value: Any) -> list[str]:
    """Return the lines of a text area, whose value is a text or a list of texts."""
    return [str(text) for text in (value if isinstance(value, list) else [value])]


def _annotator(place: str, who: Any) -> str:
    """Return the name of who made an annotation: the address of a user, or the number."""
    if isinstance(who, dict):
        who = who.get("email") or who.get("username") or who.get("id")
    if who is None:
        return ""
    if isinstance(who, bool) or not isinstance(who, int | str):
        raise LedgerError(f"{place}: got a completed_by that names nobody, expected a user")
    return who if isinstance(who, str) else f"user {_short_number(place, who)}"


def _short_number(place: str, number: int) -> int:
    if not 0 <= number <= _LARGEST_NUMBER:
        raise LedgerError(f"{place}: got a completed_by that is the number of no user")
    return number
