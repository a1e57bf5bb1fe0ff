"""Prints, exports, undoes and checks the answers of a ledger, and what contradicts what."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from itertools import chain, combinations, product
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import LedgerError, one_line, parse_printable, printable
from ..files import open_output
from .closure import Closure, Contradiction
from .ledger import Event, Ledger
from .posterior import decides, log_odds_of, weigh_answers
from .question import Answer, Verdict
from .queue import Mark, marks_of

if TYPE_CHECKING:
    from .repair import Conflict, Link

#: A row of an export, by column.
Row = dict[str, Any]

ANSWER_COLUMNS = [*(field.name for field in dataclasses.fields(Event)), "undone"]
#: Columns that stay as they are when an event is undone.
_DIGESTED = [name for name in ANSWER_COLUMNS if name not in ("undone", "undone_by")]
CLOSURE_COLUMNS = ["left", "right", "verdict", "chain", "evidence"]
_WIDTH = 16
#: Weights of evidence are limited to plus and minus this.
_MOST_EVIDENCE = 30.0
#: Signs that begin a formula in a spreadsheet, also as the wide characters of East Asia.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_QUOTE = "'"


def show(url: str) -> list[str]:
    """Return lines that count the answers of a ledger and describe what follows from them.

    Raises:
        LedgerError: It cannot be read.
    """
    with Ledger.open(url, write=False) as ledger:
        events = list(ledger.events())
        answers = ledger.answers()
        closure = Closure.replay(answers)
        in_force = [e for e in events if e.kind == "answer" and e.undone_by is None]
        lines = [
            _line("ledger", ledger.name),
            _line("data set", ledger.dataset() or "none"),
            _line("questions", f"{len(in_force):,} answered, last event {ledger.last_event()}"),
            _line("undone", f"{sum(e.undone_by is not None for e in events):,}"),
            _line("verdicts", _counts(e.verdict for e in in_force)),
            _line("annotators", _counts(e.annotator for e in in_force)),
            _line("reasons", _counts(e.reason for e in in_force)),
            _line("epochs", _counts((e.epoch for e in in_force), by_number=True)),
            *_marks(marks_of(ledger)),
            _line("pending", _pending(answers, closure)),
            *_components(closure),
            _line("time", f"{ledger.seconds():,.1f} s of answering"),
            _line("contradictions", f"{len(closure.contradictions):,}"),
        ]
    by_number = {e.id: e for e in events}
    return lines + [_contradiction(c, by_number) for c in closure.contradictions]


def export(
    url: str,
    what: str,
    form: str,
    out: str = "-",
    *,
    as_of: int | None = None,
    pair: Sequence[str] | None = None,
) -> None:
    """Write a ledger's events, or the pairs of images that its answers decide.

    Args:
        url: The ledger.
        what: "answers" for every event, "closure" for the pairs that the answers decide.
        form: "csv" or "jsonl".
        out: File to write, "-" for standard output.
        as_of: Last event that counts; all when not given.
        pair: Paths of two images: export only the verdict about these.

    Raises:
        LedgerError: The ledger cannot be read, the pair is not in it, or the file cannot be
            written.
    """
    if pair is not None and what != "closure":
        raise LedgerError(
            "`pair` selects from what follows from the answers; set `what` to closure"
        )
    with Ledger.open(url, write=False) as ledger:
        columns = ANSWER_COLUMNS if what == "answers" else CLOSURE_COLUMNS
        rows = (
            answer_rows(ledger, as_of) if what == "answers" else closure_rows(ledger, as_of, pair)
        )
        # The first row is made before the file is opened, so that an unknown pair leaves an
        # existing file unchanged.
        first = next(rows, None)
        rows = iter(()) if first is None else chain([first], rows)
        if out != "-":
            _keep_ledger(url, out)
        write_output(rows, columns, form, out)


def write_output(rows: Iterator[Row], columns: Sequence[str], form: str, out: str) -> None:
    """Write rows into a file that the user named.

    Args:
        rows: The rows.
        columns: Names of the columns.
        form: "csv" or "jsonl".
        out: File to write, "-" for standard output.

    Raises:
        LedgerError: The file cannot be written.
    """
    if out == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        write_rows(rows, columns, form, sys.stdout)
        return
    try:
        with open_output(out) as file:
            write_rows(rows, columns, form, file)
    except OSError as error:
        raise LedgerError(
            f"could not write {out} ({error.strerror}); name another file with `out`"
        ) from error


def undo(url: str, event: int, annotator: str) -> str:
    """Undo an answer, and return a line that describes it.

    Raises:
        LedgerError: The answer does not exist, or the ledger cannot be written.
    """
    # Opened for reading first: opening for writing would create a ledger that does not exist.
    with Ledger.open(url, write=False) as ledger:
        answer = next((e for e in ledger.events() if e.id == event), None)
    # A run may have it open as its trainer.
    with Ledger.open(url, role="command") as ledger:
        by = ledger.undo(event, annotator)
    return f"event {by} undoes {_describe(event, answer)}"


def conflicts(url: str) -> list[str]:
    """Return lines that describe each contradiction, and which questions to ask again.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    # SciPy takes half a second to load, and the other commands do not need it.
    from .repair import conflicts as find_conflicts

    with Ledger.open(url, write=False) as ledger:
        found = find_conflicts(ledger)
    if not found:
        return ["no contradictions"]
    return [line for conflict in found for line in _conflict(conflict)]


def check(url: str) -> list[str]:
    """Return what is wrong with a ledger, one line each.

    Raises:
        LedgerError: It cannot be opened.
    """
    with Ledger.open(url, write=False) as ledger:
        return ledger.integrity()


def digest(url: str, as_of: int | None = None) -> str:
    """Return a line with the SHA-256 of all events up to one, in hexadecimal.

    Whoever noted it can tell later whether one of these events, or the path or the digest of an
    image in them, was changed. What is appended later, and the kind of database, do not matter.

    Args:
        url: Path or URL of the ledger.
        as_of: Last event that counts; all when not given.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    summed = hashlib.sha256()
    last = count = 0
    with Ledger.open(url, write=False) as ledger:
        for row in answer_rows(ledger, as_of):
            # Whether an event was undone since is said by a later one.
            kept = {name: row[name] for name in _DIGESTED}
            summed.update(f"{json.dumps(kept, sort_keys=True)}\n".encode())
            last, count = row["id"], count + 1
    return f"{count:,} events up to {last}: {summed.hexdigest()}"


def answer_rows(ledger: Ledger, as_of: int | None = None) -> Iterator[Row]:
    """Yield every event up to one, as it was written, and whether it was undone by then."""
    for event in ledger.events():
        if as_of is not None and event.id > as_of:
            return
        by = event.undone_by if as_of is None or (event.undone_by or 0) <= as_of else None
        # Not `dataclasses.asdict`, which would copy the lists of paths that were shown.
        fields = {name: getattr(event, name) for name in ANSWER_COLUMNS[:-1]}
        yield {**fields, "undone_by": by, "undone": by is not None}


def closure_rows(
    ledger: Ledger, as_of: int | None = None, pair: Sequence[str] | None = None
) -> Iterator[Row]:
    """Yield every pair of images that the answers decide, with the events that prove it.

    There can be many more rows than answers: all pairs within a component, and all pairs between
    two components with a cannot-link.

    The weight of evidence is the log-odds that every answer of the chain is right, from all answers
    about the same pairs and each annotator's rate of errors (`posterior.weigh_answers`, with
    estimated rates and without features).
    """
    names = ledger.images()
    answers = ledger.answers(as_of)
    closure = Closure.replay(answers)
    right = _probabilities_right(ledger, answers)
    pairs = _decided_pairs(closure) if pair is None else iter([_find_pair(names, pair)])
    for a, b in pairs:
        if (verdict := closure.verdict(a, b)) is not None:
            events = closure.chain(a, b)
            evidence = log_odds_of(math.prod(right[event] for event in events))
            yield {
                "left": names[a],
                "right": names[b],
                "verdict": verdict.value,
                "chain": events,
                "evidence": round(min(max(evidence, -_MOST_EVIDENCE), _MOST_EVIDENCE), 2),
            }


def _probabilities_right(ledger: Ledger, answers: Sequence[Answer]) -> dict[int, float]:
    """The probability that each "same" or "different" is right, by event."""
    names = {event.id: event.annotator for event in ledger.events()}
    log_odds = weigh_answers(answers, lambda i, j: 0.0, None, names).log_odds
    right = {}
    for answer in filter(decides, answers):
        same = log_odds[min(answer.left, answer.right), max(answer.left, answer.right)]
        of_verdict = same if answer.verdict is Verdict.SAME else -same
        right[answer.event] = 0.5 + 0.5 * math.tanh(0.5 * of_verdict)
    return right


def write_rows(rows: Iterator[Row], columns: Sequence[str], form: str, file: TextIO) -> None:
    """Write rows one by one.

    Args:
        rows: The rows.
        columns: Names of the columns.
        form: "csv", with a header line, or "jsonl", one object per line.
        file: Where to write.
    """
    if form == "jsonl":
        for row in rows:
            file.write(_as_json(row) + "\n")
        return
    table = csv.writer(file, lineterminator="\n")
    table.writerow(columns)
    table.writerows([_cell(row[name]) for name in columns] for row in rows)


def parse_cell(cell: str) -> str:
    """Return the text that `write_rows` wrote into a cell of a CSV file."""
    return parse_printable(cell[1:]) if cell.startswith(_QUOTE) else cell


def _decided_pairs(closure: Closure) -> Iterator[tuple[int, int]]:
    """Yield the pairs within each component, then those with components known to be different."""
    components = {root: sorted(images) for root, images in closure.components().items()}
    order = sorted(components, key=lambda root: components[root][0])
    index = {root: i for i, root in enumerate(order)}
    for root in order:
        yield from combinations(components[root], 2)
        for other in sorted(closure.cannot_links(root), key=index.__getitem__):
            # Each pair of components once.
            if index[other] > index[root]:
                yield from product(components[root], components[other])


def _find_pair(names: dict[int, str], pair: Sequence[str]) -> tuple[int, int]:
    # If the content of a path changed, the latest image of the path.
    numbers = {path: image for image, path in names.items()}
    found = []
    for path in pair:
        # As it is, or as a message shows it.
        number = numbers.get(path, numbers.get(parse_printable(path)))
        if number is None:
            raise LedgerError(
                f"no answer is about {printable(path)}; "
                "paths are relative to the folder of the image set"
            )
        found.append(number)
    return found[0], found[1]


def _pending(answers: Sequence[Answer], closure: Closure) -> str:
    count = sum(a.verdict is Verdict.SAME and not closure.counted(a.event) for a in answers)
    return f'{count:,} "same" that need further answers to agree' if count else "0"


def _marks(marks: Sequence[Mark]) -> list[str]:
    """The event that the labels of each epoch were made from, the last ten epochs of a run."""
    of_run: dict[str, list[str]] = {}
    for mark in marks:
        event = "open" if mark.event is None else f"event {mark.event}"
        of_run.setdefault(mark.run, []).append(f"epoch {mark.epoch}: {event}")
    return [
        _line("labels from", f"run {printable(run)[:8]}, {', '.join(texts[-10:])}")
        for run, texts in of_run.items()
    ]


def _components(closure: Closure) -> list[str]:
    sizes = [len(images) for images in closure.components().values()]
    joined = [size for size in sizes if size > 1]
    cannot_links = sum(len(closure.cannot_links(root)) for root in closure.components()) // 2
    largest = f", the largest of {max(joined):,}" if joined else ""
    return [
        _line("components", f"{len(joined):,} of two or more images{largest}"),
        _line("cannot-links", f"{cannot_links:,} between components"),
    ]


def _contradiction(found: Contradiction, events: dict[int, Event]) -> str:
    line = f"  {_describe(found.event, events.get(found.event))}, against {_numbers(found.against)}"
    aside = _numbers(found.set_aside)
    return line + (f"; set aside: {aside}" if aside else "")


def _conflict(found: Conflict) -> list[str]:
    wrong = ", ".join(f"event {s.event} ({s.probability:.0%} wrong)" for s in found.suspects)
    lines = [_link(found.answer), *(f"  against {_link(link)}" for link in found.against)]
    if found.set_aside:
        lines.append(f"  set aside: {_numbers(found.set_aside)}")
    return [*lines, f"  ask again: {wrong}"]


def _link(link: Link) -> str:
    left, right = map(printable, link.names)
    who = ", ".join(map(printable, link.people))
    epoch = "" if link.epoch is None else f", epoch {link.epoch}"
    when = time_text(link.answered_at)
    return f"event {link.event} ({left}, {right}: {link.verdict}) by {who}, {when}{epoch}"


def time_text(seconds: float) -> str:
    """Return unix seconds as a date and time in UTC; "an unknown time" for no such time."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "an unknown time"


def _describe(number: int, event: Event | None) -> str:
    return (
        f"event {number}"
        if event is None
        else f"event {number} ({_name(event.left)}, {_name(event.right)}: {event.verdict})"
    )


def _name(path: str | None) -> str:
    return "none" if path is None else printable(path)


def _counts(values: Iterator[object], by_number: bool = False) -> str:
    counts = Counter("none" if value is None else value for value in values)
    found: list[tuple[object, int]] = counts.most_common()
    if by_number:
        found.sort(key=lambda item: (isinstance(item[0], str), item[0]))
    return (
        ", ".join(
            f"{value}: {count:,}" if by_number else f"{value} {count:,}" for value, count in found
        )
        or "none"
    )


def _numbers(events: Sequence[int]) -> str:
    return " ".join(map(str, events))


def _line(what: str, value: str) -> str:
    return f"{what:<{_WIDTH}}{value}"


def _cell(value: object) -> object:
    """Format a value for csv: a chain as numbers with spaces, paths as JSON because they may hold
    spaces, a text as `_text_cell` says.
    """
    if isinstance(value, list):
        return _numbers(value)
    if isinstance(value, tuple):
        return _as_json(value)
    return _text_cell(value) if isinstance(value, str) else value


def _text_cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula, and no terminal for a command.

    Where it begins with a sign of a formula or with an apostrophe, or holds what is not printable,
    it is written as an apostrophe and its printable form; `parse_cell` is the inverse.
    """
    harmless = not text.lstrip().startswith(_FORMULA) and one_line(text) == text
    return text if harmless else _QUOTE + printable(text)


def _as_json(value: object) -> str:
    """Return JSON in which every character that is not printable is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else "".join(map(_json_escaped, text))


def _json_escaped(char: str) -> str:
    return char if one_line(char) == char else json.dumps(char)[1:-1]


def _keep_ledger(url: str, out: str) -> None:
    with contextlib.suppress(OSError):
        if os.path.samefile(url, out):
            raise LedgerError(f"`out` {out} is the ledger itself; name another file")
