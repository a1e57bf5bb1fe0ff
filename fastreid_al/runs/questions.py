"""Prepares the questions of a run from its configuration: strategy, annotator, ledger, budget."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..active import QuestionRounds
from ..active.strategies import load_strategy
from ..annotators import AnnotatorContext, load_annotator
from ..answers import Asker, ImageKeys, Ledger
from ..engine.checkpoint_content import is_count
from ..engine.console import Reporter
from ..errors import CheckpointError, LedgerError, SettingError, UserError
from ..files import write_file
from .context import RunContext
from .data import Dataset

LEDGER_FILE = "answers.sqlite"
RUN_FILE = "run_name"


def check_ledger(context: RunContext, saved: Mapping[str, Any] | None) -> None:
    """Refuse to continue from a checkpoint that has answers where their ledger is missing.

    Args:
        context: The run.
        saved: The state of the checkpoint; None for a run that starts from the beginning.

    Raises:
        LedgerError: The ledger does not exist; the message has the number of answers.
    """
    answers = answers_of(saved)
    file = _ledger_of(context)
    if not (answers and asks(context)) or "://" in file or os.path.exists(file):
        return
    raise LedgerError(
        f"there is no ledger {file}, and the checkpoint in {context.folder.path} has "
        f"{answers} answers that it held; restore it, name it with `questions.ledger`, "
        "or start a new run with another `run_dir`"
    )


def answers_of(saved: Mapping[str, Any] | None) -> int:
    """Return the number of answers that a checkpoint counts."""
    return _count_in(saved, "asked")


def _count_in(saved: Mapping[str, Any] | None, name: str) -> int:
    """Return a count of the state of the questions in a checkpoint; 0 where it has none."""
    state = None if saved is None else saved["method"].get("questions")
    count = state.get(name) if isinstance(state, Mapping) else 0
    return int(count) if is_count(count) else 0  # type: ignore[arg-type]


def _ledger_of(context: RunContext) -> str:
    return context.config.questions.ledger or str(context.folder.path / LEDGER_FILE)


def _compare(ledger: Ledger, saved: Mapping[str, Any] | None, context: RunContext) -> None:
    """Refuse an empty ledger under a checkpoint that has answers; warn of an older one."""
    last = ledger.last_event()
    position = _count_in(saved, "position")
    if answers_of(saved) and not last:
        raise LedgerError(
            f"{ledger.name} is empty, and the checkpoint in {context.folder.path} has "
            f"{answers_of(saved)} answers; restore the ledger, or start a new run with another "
            "`run_dir`"
        )
    if last < position:
        context.reporter.warn(
            f"{ledger.name} ends at event {last} and the checkpoint at event {position}: the "
            "answers between them are missing"
        )


@contextmanager
def open_questions(
    context: RunContext, target: Dataset, saved: Mapping[str, Any] | None = None
) -> Iterator[QuestionRounds | None]:
    """Yield the questions of a run and hold its ledger open; yield None where nothing is asked.

    Nothing is asked by a run without questions, and on all processes but the first.

    Args:
        context: The run.
        target: The images that are asked about.
        saved: The state of the checkpoint that the run continues from, where it does.

    Raises:
        UserError: The strategy, the annotator or the ledger cannot be used.
    """
    if not (asks(context) and context.world.is_first):
        yield None
        return
    config = context.config
    settings = config.questions
    folder = context.folder.path
    root = target.images.root
    names = [record.path.relative_to(root).as_posix() for record in target.records]
    keys = ImageKeys(target.images.name, names, target.store.digests)
    with Ledger.open(_ledger_of(context), keys) as ledger:
        _compare(ledger, saved, context)
        _report_known(ledger, context.reporter)
        if settings.start >= config.epochs:
            context.reporter.warn(
                f"no question will be asked: `questions.start` {settings.start} is past the last "
                f"of {config.epochs} epochs"
            )
        elif config.annotator in ("web", "terminal") and saved is None:
            what = "the page opens" if config.annotator == "web" else "the first questions come"
            context.reporter.line(
                f"{what} in epoch {settings.start + 1} of {config.epochs} (`questions.start`)"
            )
        annotator = context.extensions.annotator
        if annotator is None:
            make_annotator = load_annotator(config.annotator)
            annotator = make_annotator(AnnotatorContext(config, target.records, keys, folder))
        asker = Asker(
            annotator,
            ledger,
            closure=settings.closure,
            confirm_merges=settings.confirm_merges,
            expected_error=settings.expected_error,
            budget=settings.budget,
            minutes=settings.minutes,
            run=_run_name(folder),
            seed=config.seed,
            cameras=target.cameras,
            window=settings.window,
            wait=settings.wait,
            second_vote=settings.second_vote,
            judge_members=settings.thumbnails,
            tracks=target.tracks(config.cluster),
        )
        # Every answer is on disk when these are called, so a signal may end the round here.
        asker.after_answer = lambda questions, current_labels: context.stop.check()
        asker.while_waiting = context.stop.check
        asker.notice = context.reporter.line
        asker.last_epoch = config.epochs
        try:
            yield QuestionRounds(asker, context.extensions.strategy or config.ask, settings)
        finally:
            close = getattr(annotator, "close", None)
            if callable(close):
                close()


def asks(context: RunContext) -> bool:
    """Whether a run asks questions; a strategy given as a function replaces the setting `ask`."""
    return context.config.method == "ucal" and _has_strategy(context)


def _has_strategy(context: RunContext) -> bool:
    return context.extensions.strategy is not None or context.config.ask != "none"


def check_questions(context: RunContext, labelled: bool) -> None:
    """Refuse settings of questions that cannot work, before expensive work starts.

    Args:
        context: The run.
        labelled: Whether the true identity of every training image is known.

    Raises:
        UserError: The method asks no questions, a name is unknown, or the annotator cannot work.
    """
    config = context.config
    if config.method != "ucal" and _has_strategy(context):
        raise UserError(f"`method` {config.method} asks no questions; leave `ask` at none")
    if not asks(context):
        return
    load_strategy(context.extensions.strategy or config.ask)
    if context.extensions.annotator is not None:
        return
    load_annotator(config.annotator)
    if config.annotator == "oracle" and not labelled:
        raise SettingError(
            "annotator",
            "oracle",
            "an annotator that needs no true identities, which this image set lacks",
            "web asks people on a page, terminal asks one person",
        )
    if config.annotator == "replay" and not config.questions.replay:
        raise UserError(
            "`annotator` replay needs `questions.replay`, the ledger whose answers it repeats"
        )


def _run_name(folder: Path) -> str:
    """Return the name of a run in its ledger, which stays when the run folder is moved."""
    file = folder / RUN_FILE
    if not file.exists():
        write_file(file, uuid.uuid4().hex)
    name = file.read_bytes()[:64]
    if not re.fullmatch(b"[0-9a-f]{32}", name):
        raise CheckpointError(
            f"{file} does not hold the name that the run has in its ledger: 32 hexadecimal digits; "
            "restore it, or start a new run with another `run_dir`"
        )
    return name.decode()


def _report_known(ledger: Ledger, reporter: Reporter) -> None:
    """Print how many answers the ledger holds already, and how many of them cannot be used."""
    known = len(ledger.answers())
    if known:
        reporter.line(f"{known} answers in {ledger.name}")
    unusable = ledger.unusable()
    if unusable:
        reporter.warn(
            f"{unusable} of them are about images that are not in this set; "
            "they are kept, but not used"
        )
