"""Prepares the questions of a run from its configuration: strategy, annotator, ledger, budget."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..active import Questions
from ..active.strategies import Strategy, load_strategy
from ..annotators import AnnotatorContext, load_annotator
from ..answers import Annotator, Asker, ImageKeys, Ledger
from ..config import RunConfig
from ..data.records import ImageSet, Record
from ..distributed.world import SINGLE_PROCESS, World
from ..engine.console import Reporter
from ..engine.stop_signal import StopSignal
from ..errors import SettingError, UserError
from ..files import write_atomically

LEDGER_FILE = "answers.sqlite"
RUN_FILE = "run_name"


@contextmanager
def open_questions(
    config: RunConfig,
    images: ImageSet,
    records: Sequence[Record],
    digests: Sequence[str],
    folder: Path,
    reporter: Reporter,
    stop: StopSignal,
    world: World = SINGLE_PROCESS,
    strategy: Strategy | None = None,
    annotator: Annotator | None = None,
) -> Iterator[Questions | None]:
    """Yield the questions of a run and hold its ledger open; yield None where nothing is asked.

    Nothing is asked by a run without questions, and on all ranks but the first.

    Args:
        config: Configuration of the run.
        images: The image set.
        records: The training images by row.
        digests: Digests of the training images by row.
        folder: The run folder.
        reporter: Prints what the ledger holds already.
        stop: Checked after each answer, when the answer is on the disk.
        world: The ranks of the run.
        strategy: Which pairs to ask about; the strategy named `config.ask` when not given.
        annotator: Who answers; the annotator named `config.annotator` when not given.

    Raises:
        UserError: The strategy, the annotator or the ledger cannot be used.
    """
    if not (asks(config, strategy) and world.is_first):
        yield None
        return
    names = [record.path.relative_to(images.root).as_posix() for record in records]
    keys = ImageKeys(images.name, names, digests)
    settings = config.questions
    with Ledger.open(settings.ledger or str(folder / LEDGER_FILE), keys) as ledger:
        _report_known(ledger, reporter)
        if settings.start >= config.epochs:
            reporter.warn(
                f"no question will be asked: `questions.start` {settings.start} is past the last of "
                f"{config.epochs} epochs"
            )
        if annotator is None:
            context = AnnotatorContext(config, records, keys, folder)
            annotator = load_annotator(config.annotator)(context)
        asker = Asker(
            annotator,
            ledger,
            closure=settings.closure,
            confirm_merges=settings.confirm_merges,
            budget=settings.budget,
            run=_run_name(folder),
            seed=config.seed,
        )
        asker.after_answer = lambda questions, current_labels: stop.check()
        yield Questions(asker, strategy or config.ask, settings)


def asks(config: RunConfig, strategy: Strategy | None = None) -> bool:
    """Return whether a run asks questions; a strategy that is given as a function replaces `config.ask`."""
    return config.method == "ucal" and (strategy is not None or config.ask != "none")


def check_questions(
    config: RunConfig,
    identities_known: bool,
    strategy: Strategy | None = None,
    annotator: Annotator | None = None,
) -> None:
    """Refuse settings of questions that cannot work, before anything slow is done.

    Args:
        config: Configuration of the run.
        identities_known: Whether every training image has a true identity.
        strategy: The strategy that replaces `config.ask`, if one is given.
        annotator: The annotator that replaces `config.annotator`, if one is given.

    Raises:
        UserError: The method asks no questions, a name is unknown, or the annotator lacks what it needs.
    """
    if config.method != "ucal" and (strategy is not None or config.ask != "none"):
        raise UserError(f"`method` {config.method} asks no questions; leave `ask` at none")
    if not asks(config, strategy):
        return
    load_strategy(strategy or config.ask)
    if annotator is not None:
        return
    load_annotator(config.annotator)
    if config.annotator == "oracle" and not identities_known:
        raise SettingError(
            "annotator",
            "oracle",
            "an annotator that needs no true identities, which this image set lacks",
            "terminal asks a person",
        )
    if config.annotator == "replay" and not config.questions.replay:
        raise UserError(
            "`annotator` replay needs `questions.replay`, the ledger whose answers it repeats"
        )


def _run_name(folder: Path) -> str:
    """Return the name of a run in its ledger: one for each run folder, even if the folder is moved."""
    file = folder / RUN_FILE
    if not file.exists():
        write_atomically(file, lambda out: out.write(uuid.uuid4().hex.encode()))
    return file.read_text()


def _report_known(ledger: Ledger, reporter: Reporter) -> None:
    known = len(ledger.answers())
    if known:
        reporter.line(f"{known} answers in {ledger.name}")
    unusable = ledger.unusable()
    if unusable:
        reporter.warn(
            f"{unusable} of them are about images that are not in this set; they are kept, but not used"
        )
