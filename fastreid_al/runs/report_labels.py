"""The identities that a report shows: those of `labels.csv`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import ImageSet
from ..engine.console import Reporter
from .find_labels import Labelled, earlier_numbers, find_labels, load_saved
from .trained import Extracted, RunFiles


def labels_of_run(run: RunFiles, images: ImageSet, found: Extracted, reporter: Reporter) -> Tensor:
    """Find the identities of a run's training images, as an export of its labels does.

    Args:
        run: The run.
        images: Its image set.
        found: Its n training images that could be read, and their features.
        reporter: Prints what was found, and warnings.

    Returns:
        (n,) int64 on the CPU, -1 for an image without identity; numbers are those of labels.csv in
        the folder of the run, where there is one.

    Raises:
        UserError: The features cannot be clustered, or the ledger of the run cannot be used.
    """
    saved = load_saved(run.folder)
    labelled = Labelled(run.config, run.folder, images, *found, saved)
    table = find_labels(labelled, earlier_numbers(None, run.folder), reporter)
    row_of = {record.path: row for row, record in enumerate(images.train)}
    return torch.from_numpy(table.identities[[row_of[r.path] for r in found.records]])
