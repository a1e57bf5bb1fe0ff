"""Writes answers from elsewhere into a ledger, all of them or none."""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..data.cache import digest_of
from ..data.formats import HEAD, format_of
from ..errors import LedgerError, parse_printable, printable
from .database import EVENTS, IMAGES, PEOPLE, QUESTIONS
from .import_files import Form, Imported, read_answers
from .ledger import Ledger, insert_event

#: What an imported answer has for a reason, where the file does not say it.
_REASON = "import"
#: Annotator of answers of which the file does not say who gave them.
NOBODY = "import"


class _Known(NamedTuple):
    """An image of the ledger."""

    path: str
    digest: str
    erased: bool


class _Numbered(NamedTuple):
    """An answer with the numbers of its images in the ledger."""

    answer: Imported
    left: int
    right: int


def import_answers(
    url: str,
    path: str,
    form: Form = "csv",
    *,
    data_root: str | None = None,
    annotator: str = NOBODY,
) -> list[str]:
    """Write the answers of a file into a ledger, in one transaction.

    An answer that the ledger holds already is left out, so that a file can be imported again: one
    with the same content in a file, or one about the same images with the same verdict, annotator
    and time. Where the ledger knows all images, this works while a run trains. To add images it is
    opened as its trainer. A ledger that does not exist is made if the folder of the images is
    given.

    Args:
        url: The ledger.
        path: The file.
        form: "csv" or "label-studio", see `import_files.read_answers`.
        data_root: Folder of the image set, which paths are relative to. With it, images are also
            found by their content, and new ones are added.
        annotator: Who gave the answers of which the file does not say it.

    Returns:
        Lines that say what was imported.

    Raises:
        LedgerError: A line of the file is wrong, an image is unknown, or the ledger cannot be
            written; nothing is imported then.
    """
    answers, without = read_answers(path, form)
    files = _Files(data_root)
    made = data_root is not None and "://" not in url and not os.path.lexists(url)
    if made:
        images = _Images({}, files)
    else:
        with Ledger.open(url, write=False) as ledger, ledger.store.reading() as connection:
            images = _Images(_read_images(connection, ledger.store.format), files)
    # Every line is checked before the ledger is opened for writing.
    images.number(answers)
    with _opened(url, images.fresh, made) as ledger, ledger.store.writing() as connection:
        # Once more: another process may have added images since.
        images = _Images(_read_images(connection, ledger.store.format), files)
        numbered = images.number(answers)
        if images.fresh:
            connection.execute(IMAGES.insert(), images.rows())
        written = _Writer(connection, annotator).write(numbered)
    lines = [f"imported {len(written):,} answers{_by(written)}"]
    if len(answers) > len(written):
        lines.append(f"{len(answers) - len(written):,} were there already")
    if without:
        lines.append(f"left out {without:,} that are undone, skipped, or no answers")
    if images.fresh:
        lines.append(f"added {len(images.fresh):,} images")
    return lines


def _opened(url: str, fresh: Mapping[tuple[str, str], int], made: bool) -> Ledger:
    """Open the ledger for writing; only a trainer adds images."""
    if not fresh and not made:
        return Ledger.open(url, role="command")
    try:
        return Ledger.open(url, role="import")
    except LedgerError as error:
        raise LedgerError(f"{error} ({len(fresh):,} images are new to the ledger)") from error


def _by(names: Sequence[str]) -> str:
    counts = Counter(names).most_common()
    return " by " + ", ".join(f"{name} {count:,}" for name, count in counts) if counts else ""


def _read_images(connection: Connection, version: int) -> dict[int, _Known]:
    """Return the images of a ledger by number, ascending."""
    erased = IMAGES.c.erased_at if version > 1 else sa.null().label("erased_at")
    query = sa.select(IMAGES.c.id, IMAGES.c.path, IMAGES.c.digest, erased)
    return {
        line.id: _Known(line.path, line.digest, line.erased_at is not None)
        for line in connection.execute(query.order_by(IMAGES.c.id))
    }


class _Files:
    """The files of an image set.

    Args:
        root: Its folder; None when it is not known.
    """

    def __init__(self, root: str | None) -> None:
        self.root = None if root is None else os.path.abspath(os.path.expanduser(root))
        if self.root is not None and not os.path.isdir(self.root):
            raise LedgerError(
                f"`data_root` {printable(self.root)} is not a folder; name that of the image set"
            )
        self._digests: dict[str, str] = {}

    def relative(self, text: str) -> str | None:
        """Return a path relative to the folder, None for one that is outside of it."""
        if os.path.isabs(text):
            if self.root is None:
                return None
            text = os.path.relpath(text, self.root).replace(os.sep, "/")
        path = posixpath.normpath(text)
        return None if path in (".", "..") or path.startswith("../") else path

    def below(self, text: str) -> str | None:
        """Return the rest of a path that begins with the name of the folder, None for another.

        Label Studio serves only files of folders below its document root. Its addresses of local
        files therefore begin with the name of the image set's folder.
        """
        if self.root is None or os.path.isabs(text):
            return None
        first, _, rest = posixpath.normpath(text).partition("/")
        return rest if rest and first == os.path.basename(self.root) else None

    def digest(self, path: str) -> str:
        """Return the digest of an image's content; empty where there is no such image."""
        if self.root is None:
            return ""
        if path not in self._digests:
            content = b""
            with contextlib.suppress(OSError, ValueError):
                file = os.path.join(self.root, path)
                # A link may lead out of the folder, as image sets are often made of links.
                if os.path.isfile(file):
                    content = Path(file).read_bytes()
            is_image = format_of(content[:HEAD]) is not None
            self._digests[path] = digest_of(content) if is_image else ""
        return self._digests[path]


class _Images:
    """Finds the images of a ledger by path and content, and numbers new ones.

    Args:
        known: The images of the ledger by number, ascending.
        files: The files of the image set.
    """

    def __init__(self, known: Mapping[int, _Known], files: _Files) -> None:
        self._known = known
        self._files = files
        self._by_path: dict[str, list[int]] = defaultdict(list)
        self._by_digest: dict[str, int] = {}
        for number, image in known.items():
            self._by_path[image.path].append(number)
            if image.digest:
                self._by_digest.setdefault(image.digest, number)
        self._next = max(known, default=-1) + 1
        #: Numbers of new images by path and digest.
        self.fresh: dict[tuple[str, str], int] = {}

    def number(self, answers: Iterable[Imported]) -> list[_Numbered]:
        """Find the images of answers.

        Raises:
            LedgerError: An image is unknown or erased, or an answer is about one image.
        """
        found = []
        for answer in answers:
            left, right = (self._find(answer.place, text) for text in (answer.left, answer.right))
            if left == right:
                raise LedgerError(
                    f"{answer.place}: got image {printable(answer.left)} twice, "
                    "expected two different images"
                )
            found.append(_Numbered(answer, left, right))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return the new images as rows of the database."""
        return [
            {"id": number, "path": path, "digest": digest}
            for (path, digest), number in self.fresh.items()
        ]

    def _find(self, place: str, text: str) -> int:
        # As it is, or as a message shows it.
        texts = text, parse_printable(text)
        paths = [*map(self._files.relative, texts), *map(self._files.below, texts)]
        for path in dict.fromkeys(paths):
            number = None if path is None else self._number_of(path)
            if number is not None:
                image = self._known.get(number)
                if image is not None and image.erased:
                    raise LedgerError(f"{place}: image {printable(text)} was erased on request")
                return number
        hint = (
            "give `data_root` to add images"
            if self._files.root is None
            else f"there is no such image in {printable(self._files.root)}"
        )
        raise LedgerError(
            f"{place}: unknown image {printable(text[:200])!r}, expected a path relative to the "
            f"folder of the image set; {hint}"
        )

    def _number_of(self, path: str) -> int | None:
        numbers = self._by_path.get(path, [])
        digest = self._files.digest(path)
        if not digest:
            # If the content of a path changed, the latest image of the path.
            return numbers[-1] if numbers else None
        for number in reversed(numbers):
            if self._known[number].digest in ("", digest):
                return number
        if digest not in self._by_digest:
            self.fresh[path, digest] = self._by_digest[digest] = self._next
            self._next += 1
        return self._by_digest[digest]


class _Written(NamedTuple):
    """An answer of the ledger."""

    event: int
    question: int | None


class _Writer:
    """Writes answers that the ledger does not hold yet.

    Args:
        connection: A transaction that writes.
        annotator: Who gave the answers of which the file does not say it.
    """

    def __init__(self, connection: Connection, annotator: str) -> None:
        self._connection = connection
        self._annotator = annotator
        #: Answers of the ledger by token, and by what they say, who said it and when.
        self._by_token: dict[str, _Written] = {}
        self._by_content: dict[tuple[Any, ...], _Written] = {}
        c = EVENTS.c
        columns = [c.id, c.left_id, c.right_id, c.verdict, c.annotator, c.answered_at]
        query = sa.select(*columns, c.question, c.token).where(c.kind == "answer")
        for row in connection.execute(query):
            written = _Written(row.id, row.question)
            if row.token is not None:
                self._by_token[row.token] = written
            pair = frozenset((row.left_id, row.right_id))
            self._by_content[pair, row.verdict, row.annotator, row.answered_at] = written
        self._last_event = connection.execute(sa.select(sa.func.max(c.id))).scalar() or 0
        self._people = {
            row.name: row.id for row in connection.execute(sa.select(PEOPLE.c.id, PEOPLE.c.name))
        }
        #: Numbers of this ledger by those of the ledger that was exported: of questions, and of the
        #: first answer of each merge.
        self._questions: dict[int, int] = {}
        self._heads: dict[int, int] = {}

    def write(self, numbered: Sequence[_Numbered]) -> list[str]:
        """Write answers, and return who gave those that were new."""
        for line in numbered:
            # Votes that are added to a question of an earlier import belong to that question.
            known = self._find(line)
            if known and known.question is not None and line.answer.question is not None:
                self._questions.setdefault(line.answer.question, known.question)
        names = []
        votes: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for line in numbered:
            answer = line.answer
            written = self._find(line)
            if written is None:
                written = self._insert(line)
                names.append(self._name(answer))
                if written.question is not None:
                    votes[written.question].append((written.event, answer.verdict.value))
            if answer.confirms is not None:
                # Where the first answer of a merge was undone, the next one takes its place.
                self._heads.setdefault(answer.confirms, written.event)
            elif answer.number is not None:
                self._heads.setdefault(answer.number, written.event)
        for question, said in votes.items():
            verdict = Counter(verdict for _, verdict in said).most_common(1)[0][0]
            settled = next(event for event, other in said if other == verdict)
            unsettled = (QUESTIONS.c.id == question) & QUESTIONS.c.settled_event.is_(None)
            self._connection.execute(
                QUESTIONS.update().where(unsettled), {"settled_event": settled}
            )
        return names

    def _name(self, answer: Imported) -> str:
        return answer.annotator or self._annotator

    def _find(self, line: _Numbered) -> _Written | None:
        found = self._by_token.get(line.answer.token)
        if found is None and line.answer.answered_at is not None:
            found = self._by_content.get(self._content(line))
        return found

    def _content(self, line: _Numbered) -> tuple[Any, ...]:
        answer = line.answer
        pair = frozenset((line.left, line.right))
        return pair, answer.verdict.value, self._name(answer), answer.answered_at

    def _insert(self, line: _Numbered) -> _Written:
        answer = line.answer
        answered_at = time.time() if answer.answered_at is None else answer.answered_at
        question = self._question(line, answered_at)
        head = None if answer.confirms is None else self._heads.get(answer.confirms)
        values = {
            "kind": "answer",
            "left_id": line.left,
            "right_id": line.right,
            "verdict": answer.verdict.value,
            "annotator": self._name(answer),
            "asked_at": answered_at - answer.seconds,
            "answered_at": answered_at,
            "need": answer.need,
            "confirms": head,
            "shown": json.dumps([[], []]),
            "run": "",
            "question": question,
            "person": self._people.get(self._name(answer)),
            "token": answer.token,
            "source": "import",
            **answer.more,
        }
        values["reason"] = values.get("reason") or _REASON
        written = _Written(insert_event(self._connection, values), question)
        self._by_token[answer.token] = written
        self._by_content[self._content(line)] = written
        return written

    def _question(self, line: _Numbered, made_at: float) -> int | None:
        """Return the question of an answer; those of an export are made, as answered.

        Several people's answers to one question are then one answer, as in that ledger.
        """
        answer = line.answer
        if answer.question is None:
            return None
        if answer.question not in self._questions:
            values = {
                "run": "",
                "epoch": answer.more.get("epoch") or 0,
                "left_id": line.left,
                "right_id": line.right,
                "left_images": json.dumps([line.left]),
                "right_images": json.dumps([line.right]),
                "reason": answer.more.get("reason") or _REASON,
                "score": answer.more.get("score"),
                "similarity": answer.more.get("similarity"),
                "need": answer.need,
                "known_event": self._last_event,
                "status": "answered",
                "made_at": made_at,
            }
            key = self._connection.execute(QUESTIONS.insert(), values).inserted_primary_key
            assert key is not None
            self._questions[answer.question] = key[0]
        return self._questions[answer.question]
