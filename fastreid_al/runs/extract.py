"""Writes the features of images, however many, into a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..config import EngineConfig, ExtractionConfig
from ..data.listing import Listing, list_images
from ..data.pixels import BadImage
from ..data.walk import passed_over_lines
from ..distributed.launch import require_single_process
from ..engine.console import Reporter
from ..engine.network import Network
from ..errors import DataError, SettingError, UserError, printable
from ..files import refuse_existing
from ..retrieval.feature_file import FeatureWriter, ImageEntry, new_feature_file
from ..settings import validate
from .checks import pick_device, working_on
from .feature_stream import describe_features, stream_features
from .trained import Trained, engine_of_checkpoint, find_run, load_trained


class FileState(NamedTuple):
    """Size in bytes and time of modification in nanoseconds of a file; -1 where unknown."""

    size: int = -1
    modified: int = -1


#: Suffix of files of features.
SUFFIX = ".safetensors"


def extract_images(options: ExtractionConfig, reporter: Reporter | None = None) -> int:
    """Write the features of images into a .safetensors file.

    Memory does not grow with the number of images, apart from some 700 bytes an image for its
    name and its line: 23 MB at n = 32,621 and 700 MB at 1e6. The file takes 8.2 GB at 1e6 images
    of D = 2,048.

    Args:
        options: The network, the images and the file.
        reporter: Prints lines and progress.

    Returns:
        The number of images in the file.

    Raises:
        UserError: The network or the images cannot be read, or the file cannot be written.
    """
    reporter = reporter or Reporter()
    require_single_process("an extraction")
    validate(options)
    out = Path(options.out)
    if out.suffix.lower() != SUFFIX:
        raise SettingError("out", options.out, f"a file whose name ends in {SUFFIX}")
    refuse_existing(out, options.force)
    if os.path.isdir(out):
        raise UserError(f"{printable(out)} is a folder; name a file with `out`")
    listed = list_images(Path(options.images), "images", options.camera_pattern)
    for line in passed_over_lines(listed.passed_over, listed.root):
        reporter.line(line)
    engine = engine_of_checkpoint(options.engine, Path(options.checkpoint), reporter)
    options = replace(options, engine=engine)
    device = pick_device(options.device)
    with working_on(device):
        return _extract(options, listed, device, reporter)


def _extract(
    options: ExtractionConfig, listed: Listing, device: torch.device, reporter: Reporter
) -> int:
    path = Path(options.checkpoint)
    trained = load_trained(
        find_run(path).checkpoint if os.path.isdir(path) else path,
        reporter,
        model=options.model,
        pool=options.pool,
        test_features=options.test_features,
        height=options.height,
        width=options.width,
    )
    network = trained.on(device, options.engine, reporter)
    about = describe_features(trained, network, options.engine)
    columns = ["cameras", *(["identities"] if listed.has_identities else [])]
    out = Path(options.out)
    with new_feature_file(out, about, columns) as writer:
        if not add_features(writer, trained, network, listed, options.engine, reporter):
            raise DataError(f"{options.images} holds no readable image: there is nothing to write")
        count = writer.end_split()
    dim = trained.model.features
    reporter.line(f"{count:,} features of {dim:,} values in {out}")
    return count


def add_features(
    writer: FeatureWriter,
    trained: Trained,
    network: Network,
    listed: Listing,
    engine: EngineConfig,
    reporter: Reporter,
    what: str = "input",
    states: Sequence[FileState] | None = None,
) -> int:
    """Extract features of images, and write them; images that cannot be read are named.

    Args:
        writer: Writes the file.
        trained: How features are computed.
        network: The network as the engine runs it.
        listed: The images.
        engine: How features are extracted.
        reporter: Shows progress, and names images that cannot be read.
        what: What the images are, for the lines that are printed.
        states: Size and time of modification of each file, for an index.

    Returns:
        The number of images that were written.
    """
    bad: list[BadImage] = []
    paths = [record.path for record in listed.records]
    count = 0
    with reporter.progress(f"extracting {what}", len(paths)) as update:
        for part in stream_features(trained, network, paths, engine, bad, update):
            entries = []
            for row, digest in zip(part.rows, part.digests, strict=True):
                record, state = listed.records[row], states[row] if states else FileState()
                name = listed.names[row]
                entries.append(ImageEntry(name, digest, record.camera, record.identity, *state))
            if entries:
                writer.add(part.features, entries)
            count += len(entries)
    reporter.bad_images(what, bad)
    return count
