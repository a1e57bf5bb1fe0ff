"""Changes of a ledger before its page is served: links, the local person, and known answers."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from ..answers.database import IMAGES, PEOPLE, QUESTIONS
from ..answers.ledger import Ledger
from ..answers.people import digest_of, new_token
from ..answers.question import Verdict
from ..data.text import delimiter_of
from ..errors import UserError, printable

_COLUMNS = ("left", "right", "verdict")
_KNOWN = (Verdict.SAME.value, Verdict.DIFFERENT.value)


def have_links(ledger: str) -> bool:
    """Return whether anybody who may answer has a personal link.

    Args:
        ledger: Path or URL of the ledger.
    """
    wanted = PEOPLE.c.secret.is_not(None) & PEOPLE.c.disabled_at.is_(None)
    with (
        Ledger.open(ledger, role="command") as opened,
        opened.store.reading() as connection,
    ):
        return connection.execute(sa.select(PEOPLE.c.id).where(wanted)).first() is not None


def renew_link(ledger: str, name: str) -> str:
    """Give a person another token, and return it; the old one is not valid any more.

    Args:
        ledger: Path or URL of the ledger.
        name: Name of the person.
    """
    token = new_token()
    with (
        Ledger.open(ledger, role="command") as opened,
        opened.store.writing() as connection,
    ):
        chosen = PEOPLE.update().where(PEOPLE.c.name == name)
        connection.execute(chosen, {"secret": digest_of(token)})
    return token


def make_admin(ledger: str, name: str) -> None:
    """Let a person do everything: whoever can write the ledger can do so anyhow.

    Args:
        ledger: Path or URL of the ledger.
        name: Name of the person.
    """
    with (
        Ledger.open(ledger, role="command") as opened,
        opened.store.writing() as connection,
    ):
        connection.execute(PEOPLE.update().where(PEOPLE.c.name == name), {"role": "admin"})


def add_known_answers(ledger: str, file: Path) -> int:
    """Add questions whose answers a file knows, and return how many are new.

    They are mixed among the others, and measure how often a person errs. Their images must be known
    to the ledger. A file may be read again, also with further lines: only pairs that are new are
    added. Of a sheet with a single new pair, a known one is shown again, because a sheet has two
    comparisons or more.

    Args:
        ledger: Path or URL of the ledger.
        file: CSV file with the columns left, right and verdict: two paths as in the ledger, and
            "same" or "different". A column sheet may name the sheet of a line: two lines or more
            with the same left image. Lines without a name are pairs.

    Raises:
        UserError: The file cannot be read, or a line of it is wrong.
    """
    rows = _read(file)
    with (
        Ledger.open(ledger, role="command") as opened,
        opened.store.writing() as connection,
    ):
        numbers = {path: i for i, path in connection.execute(sa.select(IMAGES.c.id, IMAGES.c.path))}
        columns = QUESTIONS.c.left_id, QUESTIONS.c.right_id, QUESTIONS.c.sheet, QUESTIONS.c.gold
        chosen = sa.select(*columns).where(QUESTIONS.c.gold.is_not(None))
        known: set[tuple[frozenset[int], bool]] = set()
        verdicts: dict[frozenset[int], str] = {}
        for *images, sheet, verdict in connection.execute(chosen):
            known.add((frozenset(images), sheet is not None))
            verdicts[frozenset(images)] = verdict
        # The run of the newest question is the one whose progress is shown.
        newest = sa.select(QUESTIONS.c.run, QUESTIONS.c.epoch).order_by(QUESTIONS.c.id.desc())
        run, epoch = connection.execute(newest.limit(1)).first() or ("", 0)
        for row in rows:
            for path in (row.left, row.right):
                if path not in numbers:
                    raise UserError(
                        f"{file}, line {row.line}: the ledger has no image {printable(path)}; name "
                        "images that were asked about"
                    )
            pair = numbers[row.left], numbers[row.right]
            before = verdicts.setdefault(frozenset(pair), row.verdict)
            if before != row.verdict:
                raise UserError(
                    f"{file}, line {row.line}: got {row.verdict}, and the known answer of this "
                    f"pair is {before} by an earlier line or file; remove the line that is wrong "
                    "(a known answer that is in the ledger cannot be changed)"
                )
        sheets: dict[str, int] = {}
        added = 0
        for task in _tasks(rows):
            keys = [_key(row, numbers) for row in task]
            fresh = [key not in known for key in keys]
            if task[0].sheet and sum(fresh) == 1:
                # A sheet of one would not look like the sheets that it is mixed among.
                fresh[fresh.index(False)] = True
            for row, key, is_added in zip(task, keys, fresh, strict=True):
                if not is_added:
                    continue
                added += key not in known
                known.add(key)
                pair = numbers[row.left], numbers[row.right]
                values = {
                    **{"run": run, "epoch": epoch, "left_id": pair[0], "right_id": pair[1]},
                    "left_images": json.dumps([pair[0]]),
                    "right_images": json.dumps([pair[1]]),
                    **{"reason": "merge", "gold": row.verdict, "known_event": 0, "status": "open"},
                    **{"made_at": time.time(), "sheet": sheets.get(row.sheet)},
                }
                inserted = connection.execute(QUESTIONS.insert(), values).inserted_primary_key
                assert inserted is not None
                if row.sheet and row.sheet not in sheets:
                    sheets[row.sheet] = inserted[0]
                    first = QUESTIONS.c.id == inserted[0]
                    connection.execute(QUESTIONS.update().where(first), {"sheet": inserted[0]})
    return added


class _Known(NamedTuple):
    """A line of a file of known answers."""

    line: int
    left: str
    right: str
    verdict: str
    sheet: str


def _tasks(rows: Sequence[_Known]) -> list[list[_Known]]:
    """The lines of each sheet together, and each pair alone, in the order of their first lines."""
    tasks: dict[tuple[str, int], list[_Known]] = {}
    for row in rows:
        tasks.setdefault((row.sheet, 0 if row.sheet else row.line), []).append(row)
    return list(tasks.values())


def _key(row: _Known, numbers: Mapping[str, int]) -> tuple[frozenset[int], bool]:
    """What makes a known answer the same as another: its images, and whether it is on a sheet."""
    return frozenset((numbers[row.left], numbers[row.right])), bool(row.sheet)


def _read(file: Path) -> list[_Known]:
    """The lines of a file of known answers."""
    found = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            delimiter = delimiter_of(lines.read())
            lines.seek(0)
            reader = csv.DictReader(lines, delimiter=delimiter)
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise UserError(f"{file}: expected the columns {', '.join(_COLUMNS)}")
            for row in reader:
                left, right, verdict = (row[name] or "" for name in _COLUMNS)
                if verdict not in _KNOWN or left == right:
                    raise UserError(
                        f"{file}, line {reader.line_num}: expected two different images, and same "
                        f"or different, got {printable(verdict)!r}"
                    )
                sheet = (row.get("sheet") or "").strip()
                found.append(_Known(reader.line_num, left, right, verdict, sheet))
    except (OSError, UnicodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read ({reason}); name another file") from error
    _check_sheets(file, found)
    return found


def _check_sheets(file: Path, rows: Sequence[_Known]) -> None:
    """Refuse sheets that cannot be shown."""
    of_sheet: dict[str, list[_Known]] = {}
    for row in rows:
        if row.sheet:
            of_sheet.setdefault(row.sheet, []).append(row)
    for name, lines in of_sheet.items():
        first, *others = lines
        if not others or len({row.right for row in lines}) < len(lines):
            raise UserError(
                f"{file}, line {first.line}: expected two different right images or more of sheet "
                f"{printable(name)}"
            )
        for row in others:
            if row.left != first.left:
                raise UserError(
                    f"{file}, line {row.line}: got left image {printable(row.left)} in sheet "
                    f"{printable(name)}, expected {printable(first.left)} as in line {first.line}"
                )
