"""Exports the labels of an epoch that a run kept, after they were compared with its ledger."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..answers import Closure, ImageKeys, Ledger, Verdict
from ..answers.posterior import decides
from ..answers.report import Row, write_output
from ..engine.epoch_labels import EpochLabels, EpochLabelsFolder
from ..errors import LedgerError, UserError, counted, printable
from .questions import LEDGER_FILE
from .trained import config_of_run

COLUMNS = ("path", "identity")


class Agreement(NamedTuple):
    """How the labels of an epoch agree with the answers that they were made from.

    Args:
        followed: "Same" and "different" answers that the labels agree with.
        others: Those that they do not agree with: answers that were doubted, that contradict
            others, or that wait for confirmation.
    """

    followed: int
    others: int


def export_epoch_labels(run: str, epoch: int | None, form: str, out: str) -> None:
    """Write the labels that an epoch of a run was trained on.

    The labels are those that the run kept. They are compared with the answers of the ledger up to
    the event that they were made from, and a line on standard error says how they agree.

    Args:
        run: Folder of the run.
        epoch: The epoch, from 1; the last one whose labels are kept when not given.
        form: "csv" or "jsonl".
        out: File to write, "-" for standard output.

    Raises:
        UserError: The run keeps no such labels, its ledger cannot be read or is another one, or the
            file cannot be written.
    """
    folder = Path(run)
    if not os.path.isfile(folder / "config.json"):
        raise UserError(
            f"{printable(folder)} is not the folder of a run: labels of an epoch are kept there; "
            "name it in place of the ledger"
        )
    kept = EpochLabelsFolder(folder)
    if epoch is None:
        epoch = max(kept.epochs(), default=1)
    found = kept.read(epoch)
    ledger = config_of_run(folder / "config.json").questions.ledger or str(folder / LEDGER_FILE)
    agreement = agreement_with(ledger, found)
    write_output(_rows(found), COLUMNS, form, out)
    count = len(found.labels[found.labels >= 0].unique())
    sys.stderr.write(
        f"epoch {epoch}: {counted(count, 'identity', 'identities')} of "
        f"{counted(len(found.labels), 'image', 'images')}, from the answers up to event "
        f"{found.event}; {agreement.followed:,} of them are followed, "
        f"{agreement.others:,} are not\n"
    )


def agreement_with(url: str, found: EpochLabels) -> Agreement:
    """Compare labels with the answers that they were made from.

    Args:
        url: The ledger.
        found: The labels.

    Raises:
        LedgerError: The ledger cannot be read, or ends before the event of the labels.
    """
    with Ledger.open(url, write=False) as ledger:
        keys = ImageKeys(ledger.dataset(), found.names, ())
        last, name = ledger.last_event(), ledger.name
    if last < found.event:
        raise LedgerError(
            f"{name} ends at event {last}, and the labels were made from the answers up to event "
            f"{found.event}: it is an older copy or another ledger; restore it"
        )
    with Ledger.open(url, keys, write=False) as ledger:
        answers = [a for a in ledger.answers(as_of=found.event) if decides(a)]
    closure = Closure.replay(answers)
    followed = 0
    for answer in answers:
        pair = answer.left, answer.right
        is_together = _together(found.labels, *pair)
        is_same = answer.verdict is Verdict.SAME
        followed += is_together == is_same and closure.verdict(*pair) is answer.verdict
    return Agreement(followed, len(answers) - followed)


def _together(labels: Tensor, i: int, j: int) -> bool:
    """Whether two images are in one cluster."""
    return bool(labels[i] == labels[j]) and int(labels[i]) >= 0


def _rows(found: EpochLabels) -> Iterator[Row]:
    for name, label in zip(found.names, found.labels.tolist(), strict=True):
        yield {"path": name, "identity": label}
