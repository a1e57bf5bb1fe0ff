"""Exports the identities that a run found: a table, folders of images, files for other tools."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

from ..config import ExportConfig
from ..data import ImageSet, describe
from ..engine.console import Reporter
from ..errors import UserError, printable
from ..files import refuse_existing, replacing
from ..labels import LabelTable, write_table
from ..labels.folders import FolderForm, check_folder, write_folders
from ..labels.tools import write_fiftyone, write_label_studio
from .checks import pick_device, working_on
from .find_labels import (
    LABELS_FILE,
    Earlier,
    Labelled,
    earlier_numbers,
    find_labels,
    find_ledger,
    label_stage,
    load_saved,
    write_run_labels,
)
from .trained import (
    RunFiles,
    engine_of_run,
    extract_records,
    find_run,
    images_of_run,
    load_trained,
)


def export_labels(options: ExportConfig, reporter: Reporter) -> None:
    """Write the identities of a run's training images.

    Args:
        options: The run, the form, and where to write.
        reporter: Prints lines and progress.

    Raises:
        UserError: The run, its images or its answers cannot be read, or the output cannot be
            written.
    """
    out = Path(options.out)
    refuse_existing(out, options.force)
    if options.what in get_args(FolderForm):
        check_folder(out)
    elif os.path.isdir(out):
        raise UserError(f"{printable(out)} is a folder; name a file with `out`")
    run = find_run(Path(options.run), options.data_root)
    earlier = earlier_numbers(options.like, run.folder)
    device = pick_device(options.device)
    images = images_of_run(run, reporter)
    for line in describe(images):
        reporter.line(line)
    if options.what in get_args(FolderForm):
        _refuse_inside(out, images)
    with working_on(device):
        table = labels_of_run(options, run, images, earlier, reporter)
    own = (run.folder / LABELS_FILE).absolute()
    if options.what == "labels" and out.absolute() == own:
        write_run_labels(table, earlier, run.folder)
    else:
        _write(options, table, images, out, reporter)
    reporter.line(f"wrote {printable(out)}")


def _refuse_inside(out: Path, images: ImageSet) -> None:
    """Refuse to write images into a folder all of whose images are read."""
    if images.name == "folder" and out.resolve().is_relative_to(images.root.resolve()):
        raise UserError(
            f"{printable(out)} lies in {printable(images.root)}: its files would be read as images "
            "of the set; name another folder with `out`"
        )


def labels_of_run(
    options: ExportConfig, run: RunFiles, images: ImageSet, earlier: Earlier, reporter: Reporter
) -> LabelTable:
    """Extract the features of a run's training images anew, and find their identities.

    Args:
        options: How features are extracted.
        run: The files of the run.
        images: Its image set.
        earlier: The numbers that identities keep.
        reporter: Prints lines and progress.

    Raises:
        UserError: The run or its answers cannot be read, or the features cannot be clustered.
    """
    saved = load_saved(run.folder)
    # A ledger that is missing is reported before the extraction.
    find_ledger(run.config, run.folder, saved)
    trained = load_trained(
        run.checkpoint,
        reporter,
        test_features=label_stage(run.config),
        store_gib=options.store_gib,
    )
    engine = engine_of_run(options.engine, run.config)
    network = trained.on(pick_device(options.device), engine, reporter)
    found = extract_records(trained, network, images.train, "train", engine, reporter)
    labelled = Labelled(run.config, run.folder, images, *found, saved)
    return find_labels(labelled, earlier, reporter)


def _write(
    options: ExportConfig, table: LabelTable, images: ImageSet, out: Path, reporter: Reporter
) -> None:
    """Write the table in the form that is asked for."""
    what = options.what
    if what == "labels":
        _write_output(out, partial(write_table, table))
    elif what == "imagefolder" or what == "market1501":
        with reporter.progress("writing", len(table)) as update:
            link = options.copy == "link"
            count = write_folders(table, images, out, what, link, update)
        reporter.line(f"{count:,} images")
        alone = int((table.identities < 0).sum())
        if alone and what == "imagefolder":
            reporter.line(f"{alone:,} images have no identity, and are left out")
    else:
        write = write_fiftyone if what == "fiftyone" else write_label_studio
        left_out = []
        _write_output(out, lambda file: left_out.append(write(table, images, file)))
        if left_out[0]:
            reporter.warn(f"{left_out[0]:,} images are left out: {printable(out)} cannot name them")


def _write_output(file: Path, write: Callable[[Any], object]) -> None:
    """Write a file that the user named, whole or not at all.

    Args:
        file: The file.
        write: Writes the content into the open file that it is called with.

    Raises:
        UserError: It cannot be written; a file that was there is intact.
    """
    try:
        with replacing(file) as opened:
            write(opened)
    except OSError as error:
        raise UserError(
            f"could not write {printable(file)} ({error.strerror}); name another with `out`"
        ) from error
