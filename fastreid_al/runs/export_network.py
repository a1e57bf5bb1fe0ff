"""Exports the network of a run; a file that computes other features is not kept."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..config import ExportConfig, NetworkForm, TestFeatures
from ..engine.console import Reporter
from ..engine.extract import decode_records
from ..errors import DataError, SettingError, UserError
from ..exports import (
    Reference,
    Runtime,
    check_file,
    check_torchreid,
    check_tracker,
    describe,
    files_of,
    open_file,
    require_packages,
    write_form,
)
from ..exports.deployed import GRAPHS
from ..files import refuse_existing, write_by_path
from ..metrics.parity import Parity
from .trained import RunFiles, Trained, find_run, images_of_run, load_trained

#: Images whose features an exported file must reproduce.
GATE_IMAGES = 64
#: Forms whose features are those before the last BatchNorm, whatever the run was evaluated with.
_POOLED = ("torchreid", "boxmot")


def export_network(options: ExportConfig, reporter: Reporter) -> None:
    """Write the network of a run in a form that other programs read, and prove it.

    The file is loaded again by the library that will run it. Its features of 64 training images
    must have cosines of 0.9999 or more with the network's own, and the same lists of nearest
    images; else no file is left. The work is done on the CPU in float32.

    Args:
        options: The run, and what to write.
        reporter: Prints what was written.

    Raises:
        UserError: The run or its images cannot be read, a package is missing, the form does not
            take this network, or the file does not compute its features.
    """
    form = cast(NetworkForm, options.what)
    out = Path(options.out)
    files = files_of(form, out)
    _check_options(options, form, files)
    require_packages(form)
    run = find_run(Path(options.run), options.data_root)
    trained = load_trained(run.checkpoint, reporter, store_gib=options.store_gib)
    _check_network(form, trained, out)
    if run.config.engine.flip_features or options.engine.flip_features:
        reporter.warn(
            "`engine.flip_features` is not part of the file: its features are those of the image "
            "alone, not the mean with those of its mirror image"
        )
    stage: TestFeatures = "pool5" if form in _POOLED else trained.stage
    pixels = _sample_pixels(run, trained, reporter)
    reference = Reference.of(trained.model, stage, pixels)
    if options.check:
        refusal = f"{out} does not compute the features of the run"
        parity = _checked(form, out, trained, reference, refusal, reporter)
    else:
        parity = _written(options, form, files, trained, reference, reporter)
    did = "computes the features of the run" if options.check else "written"
    reporter.line(f"{out}: {did}; {parity.images} training images: {parity}")
    _say_what_it_computes(form, trained, reporter)


def _check_options(options: ExportConfig, form: NetworkForm, files: list[Path]) -> None:
    """Refuse options that do not fit each other, and files that exist or cannot be written."""
    if options.half and form != "openvino":
        raise SettingError("half", True, f"false with `what` {form}", "only openvino supports it")
    if options.check:
        missing = [file for file in files if not os.path.isfile(file)]
        if missing:
            raise UserError(f"{missing[0]} is not a file; name one that exists, or omit `check`")
        return
    for file in files:
        if os.path.isdir(file):
            raise UserError(f"{file} is a folder; name a file")
        refuse_existing(file, options.force)


def _check_network(form: NetworkForm, trained: Trained, out: Path) -> None:
    """Refuse a network that the program which reads the file does not have."""
    if form == "boxmot":
        check_tracker(trained.model, trained.image.height, trained.image.width, out.name)
    if form == "torchreid":
        check_torchreid(trained.model)


def _sample_pixels(run: RunFiles, trained: Trained, reporter: Reporter) -> Tensor:
    """Decode training images from all over the set, (m, 3, H, W) uint8 with m of 64 at most.

    They take 6.3 MB at 256 x 128, for 32,621 images and for 1e6.

    Raises:
        DataError: Fewer than two can be read.
    """
    records = images_of_run(run, reporter).train
    count = min(GATE_IMAGES, len(records))
    rows = torch.linspace(0, max(0, len(records) - 1), count).round().long().tolist()
    chosen = [records[row] for row in rows]
    store, readable = decode_records(chosen, "train", trained.image, None, reporter)
    if len(readable) < 2:
        raise DataError(
            f"{len(readable)} of {count} training images can be read, but the comparison with the "
            "network needs two; name the folder of the images with `data_root`"
        )
    return store.read(torch.arange(len(store)))


def _written(
    options: ExportConfig,
    form: NetworkForm,
    files: list[Path],
    trained: Trained,
    reference: Reference,
    reporter: Reporter,
) -> Parity:
    """Write the files, and keep them if they compute the features.

    Raises:
        UserError: They do not, or they cannot be written.
    """
    out = files[0]
    size = (trained.image.height, trained.image.width)
    digest = replace(trained, stage=reference.stage).digest()
    about = describe(trained.model, reference.stage, *size, digest, form)
    found: list[Parity] = []

    def write(path: str) -> None:
        written = Path(path)
        write_form(form, trained.model, reference.stage, size, about, written, half=options.half)
        precision = " in half precision (`half`)" if options.half else ""
        what = f"{out} is not written{precision}, because the file would compute other features"
        found.append(_checked(form, written, trained, reference, what, reporter))

    try:
        write_by_path(out, write, [file.name for file in files[1:]])
    except OSError as error:
        raise UserError(f"could not write {out} ({error.strerror}); nothing was changed") from error
    return found[0]


def _checked(
    form: NetworkForm,
    path: Path,
    trained: Trained,
    reference: Reference,
    refusal: str,
    reporter: Reporter,
) -> Parity:
    """Compare the features of a file with those of the network.

    Raises:
        UserError: They differ; the message begins with `refusal` and names the likely mistake.
    """
    runtime = _opened(form, path, trained, reporter)
    parity, fault = check_file(reference, runtime, unit_norm=form in GRAPHS)
    if fault:
        raise UserError(f"{refusal}: {fault}")
    return parity


def _opened(form: NetworkForm, path: Path, trained: Trained, reporter: Reporter) -> Runtime:
    if form != "safetensors":
        return open_file(form, path, trained.model)
    again = load_trained(path, reporter)
    stage = again.stage
    size = (again.image.height, again.image.width)
    return Runtime(lambda images: Reference.of(again.model, stage, images).features, size)


def _say_what_it_computes(form: NetworkForm, trained: Trained, reporter: Reporter) -> None:
    """Print what a user of a weights file must know."""
    if form not in _POOLED:
        return
    if trained.stage != "pool5":
        reporter.line(
            "it computes the features before the last BatchNorm (pool5), which is not part of that "
            "program's network; this run is evaluated with bn. For the scores of pool5, run "
            "evaluate with `test_features` pool5"
        )
    if form == "torchreid" and trained.model.name.startswith("resnet"):
        reporter.line(
            "torchreid's ResNet halves the resolution in its last stage, this network does not. "
            "Set that stride to 1 after building the ResNet, see docs/exports.md"
        )
