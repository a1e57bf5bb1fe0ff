"""Put the questions of a run together from its configuration: annotator, ledger, budget."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..active import Questions
from ..annotators import Oracle, Replay, Terminal
from ..answers import Annotator, Asker, Closure, ImageKeys, Ledger
from ..config import RunConfig
from ..data.records import ImageSet, Record
from ..distributed.world import SINGLE_PROCESS, World
from ..engine.console import Reporter
from ..engine.extract import identities_and_cameras
from ..engine.stop_signal import StopSignal
from ..errors import UserError
from ..files import write_atomically

LEDGER_FILE = "answers.sqlite"
RUN_FILE = "run_name"
SHEET_FILE = "question.png"


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
) -> Iterator[Questions | None]:
    """The questions that a run asks, with its ledger held open; None when it asks none, and on all ranks but the first.

    Raises:
        UserError: The annotator or the ledger cannot be used, in one line.
    """
    if not (asks(config) and world.is_first):
        yield None
        return
    names = [r.path.relative_to(images.root).as_posix() for r in records]
    keys = ImageKeys(images.name, names, digests)
    settings = config.questions
    with Ledger.open(settings.ledger or str(folder / LEDGER_FILE), keys) as ledger:
        _say_what_is_known(ledger, reporter)
        if settings.start >= config.epochs:
            reporter.warn(
                f"no question will be asked: --questions.start {settings.start} is past the last of {config.epochs} epochs"
            )
        asker = Asker(
            _annotator(config, records, keys, folder),
            ledger,
            closure=settings.closure,
            confirm_merges=settings.confirm_merges,
            budget=settings.budget,
            run=_run_name(folder),
            seed=config.seed,
        )
        # Every answer is on the disk when this is called, so a signal may end the asking there.
        asker.watch = lambda questions, current: stop.check()
        yield Questions(asker, config.ask, settings)  # type: ignore[arg-type]  # "none" was sorted out above


def asks(config: RunConfig) -> bool:
    """Whether a run asks questions."""
    return config.ask != "none" and config.method == "ucal"


def check_questions(config: RunConfig, identities_known: bool) -> None:
    """Refuse settings that cannot work with the image set, before anything slow is done.

    Raises:
        UserError: In one line.
    """
    if config.ask != "none" and config.method != "ucal":
        raise UserError(f"--method {config.method} has no questions to ask; leave --ask out")
    if not asks(config):
        return
    if config.annotator == "oracle" and not identities_known:
        raise UserError(
            "--annotator oracle needs true identities, which this set lacks; answer with --annotator terminal"
        )
    if config.annotator == "replay" and not config.questions.replay:
        raise UserError(
            "--annotator replay needs --questions.replay, the ledger whose answers it gives"
        )


def _annotator(
    config: RunConfig, records: Sequence[Record], keys: ImageKeys, folder: Path
) -> Annotator:
    if config.annotator == "terminal":
        return Terminal(records, folder / SHEET_FILE)
    if config.annotator == "replay":
        with Ledger.open(str(config.questions.replay), keys, write=False) as other:
            return Replay(Closure.replay(other.answers()))
    o = config.oracle
    try:
        return Oracle(
            identities_and_cameras(records)[0],
            keys.names,
            error=o.error,
            unsure=o.unsure,
            not_comparable=o.not_comparable,
            seed=o.seed,
        )
    except ValueError as error:
        raise UserError(f"--oracle: {error}") from error


def _run_name(folder: Path) -> str:
    """The name under which a run's answers stand in a ledger: one for each run folder, whatever becomes of its path."""
    file = folder / RUN_FILE
    if not file.exists():
        write_atomically(file, lambda out: out.write(uuid.uuid4().hex.encode()))
    return file.read_text()


def _say_what_is_known(ledger: Ledger, reporter: Reporter) -> None:
    known = len(ledger.answers())
    if known:
        reporter.line(f"{known} answers in {ledger.name}")
    if unusable := ledger.unusable():
        reporter.warn(
            f"{unusable} of them are about images that are not in this set; they are kept, and of no use here"
        )
